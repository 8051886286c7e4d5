package subscribe

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// wire is one of the protocols.
type wire uint8

const (
	v1 wire = iota // GET /subscribe
	v2             // network.bsky.jetstream.subscribeEvents
)

// kinds is a set of kinds of event: bit k is kind k.
type kinds uint8

func kindsOf(all ...event.Kind) (s kinds) {
	for _, k := range all {
		s |= 1 << k
	}
	return s
}

func (s kinds) has(k event.Kind) bool { return s>>k&1 == 1 }

// wireKinds are the kinds of event that a wire has.
var wireKinds = [...]kinds{
	v1: kindsOf(event.KindCommit, event.KindIdentity, event.KindAccount),
	v2: kindsOf(event.KindCommit, event.KindIdentity, event.KindAccount, event.KindSync),
}

// framing says what stands around each event, and around the server's own words.
type framing uint8

const (
	frames     framing = iota // a websocket's
	lines                     // NDJSON
	sentEvents                // server-sent events
)

// encoding says in which bytes a subscriber gets its events.
type encoding struct {
	wire    wire
	framing framing           // other than frames: on v1 only, as text
	zstd    *event.Compressor // nil: as text
}

// stored reports whether the chunk holds its events in the encoding, and under which form.
func (e encoding) stored(c *eventlog.Chunk) (eventlog.Form, bool) {
	switch {
	case e.wire != v1 || e.framing != frames:
		return 0, false
	case e.zstd == nil:
		return eventlog.JSON, true
	}
	return eventlog.Zstd, e.zstd.ID() == c.Dictionary
}

// key names the encoding among derived forms.
func (e encoding) key() uint64 {
	key := uint64(e.framing)<<40 | uint64(e.wire)<<32
	if e.zstd != nil {
		key |= uint64(e.zstd.ID())
	}
	return key
}

// append appends an event in its framing. payload is what a chunk has of it: its JSON on the v1
// wire or, for a sync event, its extra payload. scratch is memory to use, and comes back.
func (e encoding) append(dst, scratch, payload []byte, entry *eventlog.Entry) (out, used []byte, err error) {
	switch e.framing {
	case lines:
		return append(append(dst, payload...), '\n'), scratch, nil
	case sentEvents:
		dst = strconv.AppendInt(append(dst, "id: "...), int64(entry.Cursor), 10)
		return append(append(append(dst, "\ndata: "...), payload...), "\n\n"...), scratch, nil
	}
	if e.wire == v2 {
		if e.zstd == nil {
			out, err = event.AppendMessage(dst, payload, entry.Cursor, entry.Kind)
			return out, scratch, err
		}
		if scratch, err = event.AppendMessage(scratch[:0], payload, entry.Cursor, entry.Kind); err != nil {
			return dst, scratch, err
		}
		payload = event.Payload(scratch)
	}
	return e.zstd.AppendQuick(dst, payload), scratch, nil
}

// added is how many bytes more than its v1 frame an event has as text: on the v2 wire in the
// mean, otherwise at most.
func (e encoding) added() int {
	switch {
	case e.wire == v2:
		return 96
	case e.framing == sentEvents:
		return len("id: 1725519626134432\ndata: \n\n")
	}
	return 0
}

// derive makes the form of a chunk that is not stored: see stored.
func (e encoding) derive(log *eventlog.Log, c *eventlog.Chunk) (d eventlog.Derived, err error) {
	stored, err := log.Borrow(c, eventlog.JSON)
	if err != nil {
		return d, err
	}
	defer stored.Return()
	frames := stored.Bytes
	extra, err := e.extra(log, c)
	if err != nil {
		return d, err
	}
	size := c.Size(eventlog.Zstd) + c.Size(eventlog.Zstd)/8
	if e.zstd == nil {
		size = c.Size(eventlog.JSON) + len(extra) + e.added()*len(c.Entries)
	}
	d.Bytes, d.Ends = make([]byte, 0, size), make([]uint32, len(c.Entries))
	var scratch []byte
	for i := range c.Entries {
		payload := part(frames, eventlog.JSON, c, i)
		if len(payload) > 0 {
			payload = event.Payload(payload)
		} else if e.wire == v2 {
			payload = part(extra, eventlog.Extra, c, i)
		}
		if len(payload) > 0 {
			if d.Bytes, scratch, err = e.append(d.Bytes, scratch, payload, &c.Entries[i]); err != nil {
				return d, fmt.Errorf("event %d: %w", c.Entries[i].Cursor, err)
			}
		}
		d.Ends[i] = uint32(len(d.Bytes))
	}
	return d, nil
}

// extra returns the payloads of a chunk that only the v2 wire has.
func (e encoding) extra(log *eventlog.Log, c *eventlog.Chunk) ([]byte, error) {
	if e.wire != v2 {
		return nil, nil
	}
	return log.Payload(c, eventlog.Extra)
}

// part returns what a payload of a chunk's has of an event.
func part(payload []byte, f eventlog.Form, c *eventlog.Chunk, i int) []byte {
	return payload[c.Start(i, f):c.Entries[i].End[f]]
}

// few takes those events out of a chunk on disk that wanted names, and leaves the others
// empty: out of its compressed form, one by one, so that the rest need not be unpacked.
func (e encoding) few(log *eventlog.Log, z *event.Decompressor, c *eventlog.Chunk, first int, wanted func(i int) bool) (d eventlog.Derived, err error) {
	extra, err := e.extra(log, c)
	if err != nil {
		return d, err
	}
	form, asStored := e.stored(c)
	d.Bytes, d.Ends = make([]byte, 0, 1<<10), make([]uint32, len(c.Entries))
	var text, scratch []byte
	one := func(i int, frame []byte) (err error) {
		if c.Entries[i].Kind == event.KindSync {
			d.Bytes, scratch, err = e.append(d.Bytes, scratch, part(extra, eventlog.Extra, c, i), &c.Entries[i])
			return err
		}
		if asStored && form == eventlog.Zstd {
			d.Bytes = append(d.Bytes, frame...)
			return nil
		}
		if text, err = z.AppendText(text[:0], frame); err != nil {
			return err
		}
		if len(text) != int(c.Entries[i].End[eventlog.JSON]-c.Start(i, eventlog.JSON)) {
			return errors.New("its compressed form has another length than its JSON")
		}
		if asStored {
			d.Bytes = append(d.Bytes, text...)
		} else {
			d.Bytes, scratch, err = e.append(d.Bytes, scratch, event.Payload(text), &c.Entries[i])
		}
		return err
	}
	err = log.View(c, eventlog.Zstd, func(frames []byte) error {
		for i := first; i < len(c.Entries); i++ {
			if wanted(i) {
				if err := one(i, part(frames, eventlog.Zstd, c, i)); err != nil {
					return fmt.Errorf("event %d: %w", c.Entries[i].Cursor, err)
				}
			}
			d.Ends[i] = uint32(len(d.Bytes))
		}
		return nil
	})
	return d, err
}

// keepAlive is what goes out when nothing else does: what is not acknowledged in time, or
// answered, shows that nobody is there, and proxies do not end what is not silent.
func (e encoding) keepAlive() []byte {
	return [...][]byte{frames: {0x80 | websocket.PingMessage, 0}, lines: []byte("\n"), sentEvents: []byte(":\n\n")}[e.framing]
}

// farewell is the last that a consumer gets. Among lines there is no place for it that a
// reader would not take for an event: see Server.respond.
func (e encoding) farewell(code int, reason string) []byte {
	switch {
	case e.framing == lines:
		return nil
	case e.framing == sentEvents && code == websocket.CloseGoingAway:
		return []byte(": " + reason + "\n\n") // nothing is wrong: an EventSource comes back by itself
	case e.framing == sentEvents:
		return []byte("event: error\ndata: " + reason + "\n\n")
	}
	const limit = 123
	if len(reason) > limit {
		reason = reason[:limit]
		for !utf8.ValidString(reason) {
			reason = reason[:len(reason)-1]
		}
	}
	message := websocket.FormatCloseMessage(code, reason)
	return append([]byte{0x80 | websocket.CloseMessage, byte(len(message))}, message...)
}

// notice returns a text frame of the server's own in the encoding.
func (e encoding) notice(frame []byte) []byte {
	if e.zstd == nil {
		return frame
	}
	return e.zstd.AppendBinary(nil, event.Payload(frame))
}
