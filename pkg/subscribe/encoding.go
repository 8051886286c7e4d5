package subscribe

import (
	"errors"
	"fmt"

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

// encoding says in which bytes a subscriber gets its events.
type encoding struct {
	wire wire
	zstd *event.Compressor // nil: as text
}

// stored reports whether the chunk holds its events in the encoding, and under which form.
func (e encoding) stored(c *eventlog.Chunk) (eventlog.Form, bool) {
	switch {
	case e.wire != v1:
		return 0, false
	case e.zstd == nil:
		return eventlog.JSON, true
	}
	return eventlog.Zstd, e.zstd.ID() == c.Dictionary
}

// key names the encoding among derived forms.
func (e encoding) key() uint64 {
	key := uint64(e.wire) << 32
	if e.zstd != nil {
		key |= uint64(e.zstd.ID())
	}
	return key
}

// append appends an event as a frame. payload is what a chunk has of it: its JSON on the v1
// wire or, for a sync event, its extra payload. scratch is memory to use, and comes back.
func (e encoding) append(dst, scratch, payload []byte, entry *eventlog.Entry) (out, used []byte, err error) {
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

// envelope is what the v2 wire adds to an event, in the mean.
const envelope = 96

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
		size = c.Size(eventlog.JSON) + len(extra) + envelope*len(c.Entries)
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

// notice returns a text frame of the server's own in the encoding.
func (e encoding) notice(frame []byte) []byte {
	if e.zstd == nil {
		return frame
	}
	return e.zstd.AppendBinary(nil, event.Payload(frame))
}
