package subscribe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sort"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// writeBytes bounds one write to a socket: control frames wait for no more than this.
const writeBytes = 256 << 10

// closeLinger is how long a connection is read on after its close frame.
const closeLinger = 2 * time.Second

// messageRate is how many messages per second are read from a consumer, which may have
// saved up as many: each costs up to some 10 ms to parse and makes the writer look up
// its filter again.
const messageRate = 10

// unbegun is the position of a subscriber that waits for its hello.
const unbegun = -1

// subscriber is one connection.
type subscriber struct {
	// Immutable after the handshake.
	srv     *Server
	ws      *websocket.Conn // only read from
	raw     net.Conn        // only the writer writes to it
	box     *mailbox
	options options
	hello   chan struct{} // closed when the first options_update has come
	tip     event.Cursor  // the log's end before the handshake was answered: what comes after it is live

	filter atomic.Pointer[Filter]

	written  atomic.Int64 // bytes that writes to the socket have taken
	writing  atomic.Bool  // a write is under way
	heard    atomic.Int64 // unix ns: when the peer last sent anything
	position atomic.Int64 // the writer's, for metrics
	over     atomic.Bool  // the server has ended the connection, and counted why

	// Owned by the writer.
	at      event.Cursor // the last event that has been dealt with
	chunk   *eventlog.Chunk
	next    int // the first entry of chunk that has not been dealt with
	matcher matcher
	data    []byte   // chunk's payload in the subscriber's form
	ends    []uint32 // where its entries end there; nil: as the index says
	bufs    net.Buffers
	sent    bool // at least one event has been written
	rate    limiter

	// Owned by the server's sweep.
	progress progress
}

// progress is what the last look at a subscriber saw.
type progress struct {
	acked  uint64 // bytes that the peer took; where that cannot be told: that were written
	unsent int
	since  time.Time // when bytes last left, or there was nothing to send
	pinged time.Time
	asked  time.Time // since when a ping could have been answered
}

// serve runs the subscriber until its connection is over.
func (s *subscriber) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(ctx)
		// Whatever the reason: no more will be sent. The reader goes on for a moment, for
		// the peer's close frame.
		s.raw.SetReadDeadline(time.Now().Add(closeLinger))
		if half, ok := s.raw.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}()
	s.read()
	if s.box.isClosing() {
		// Bytes that are left unread make the kernel answer with a reset, which may overtake
		// the close frame; and a peer in the middle of a large message reads nothing before
		// it is rid of it. The deadline above, the sweep or the peer end this.
		io.Copy(io.Discard, s.raw)
	} else {
		// The peer is gone: a write to it must not block any longer.
		cancel()
		s.raw.Close()
	}
	<-written
	cancel()
	s.raw.Close()
}

// read handles what the consumer sends. When it returns the connection is dead, or the
// mailbox holds the close frame that ends it.
func (s *subscriber) read() {
	s.ws.SetReadLimit(maxOptions)
	hear := func() { s.heard.Store(time.Now().UnixNano()) }
	s.ws.SetPongHandler(func(string) error { hear(); return nil })
	s.ws.SetPingHandler(func(data string) error {
		hear()
		s.box.control(websocket.PongMessage, []byte(data))
		return nil
	})
	s.ws.SetCloseHandler(func(code int, _ string) error {
		if code == websocket.CloseNoStatusReceived {
			s.box.control(websocket.CloseMessage, nil)
		} else {
			s.box.close(code, "")
		}
		return nil
	})
	messages := limiter{rate: messageRate}
	for hello := s.options.hello; ; {
		for n, wait := messages.quota(time.Now()); n == 0; n, wait = messages.quota(time.Now()) {
			time.Sleep(wait)
		}
		messages.take(1)
		_, message, err := s.ws.ReadMessage()
		if errors.Is(err, websocket.ErrReadLimit) {
			// gorilla has said so already unless the length is absurd (over 63 bits).
			s.box.close(websocket.CloseMessageTooBig, "")
		}
		if err != nil {
			return
		}
		hear()
		filter, err := parseUpdate(message)
		if errors.Is(err, errIgnored) {
			continue
		}
		if err != nil {
			s.ended(endedOptions)
			s.box.close(websocket.ClosePolicyViolation, err.Error())
			return
		}
		s.filter.Store(filter)
		if hello {
			hello = false
			close(s.hello)
		}
	}
}

// write is the pull loop. It returns when a close frame has been written, or when
// nothing can be.
func (s *subscriber) write(ctx context.Context) {
	ready := false
	hello := s.hello
	var timer <-chan time.Time
	for {
		// Looked at before every write: a replay may not park for hours.
		if ctx.Err() != nil {
			s.box.close(websocket.CloseGoingAway, "the server is shutting down; reconnect with your last time_us as cursor")
		}
		if frames, last := s.box.take(); len(frames) > 0 {
			if s.send(net.Buffers{frames}) != nil || last {
				return
			}
		}
		var grown <-chan struct{}
		var err error
		if ready {
			var wait time.Duration
			if grown, wait, err = s.gather(); err != nil {
				s.end(err)
				continue
			}
			if len(s.bufs) > 0 {
				if s.send(s.bufs) != nil {
					return
				}
				s.sent = true
				s.position.Store(int64(s.at))
				continue
			}
			s.position.Store(int64(s.at))
			timer = nil
			if wait > 0 {
				timer = time.After(wait)
			} else if grown == nil {
				continue // chunks without a match: there is more to read
			}
		}
		select {
		case <-ctx.Done():
		case <-s.box.wake:
		case <-grown:
		case <-timer:
		case <-hello:
			hello, ready = nil, true
			s.at = s.begin()
			s.position.Store(int64(s.at))
		}
	}
}

// begin returns the position at which the subscriber's cursor starts.
func (s *subscriber) begin() event.Cursor {
	last := s.srv.cfg.Log.Last()
	switch {
	case !s.options.live && s.options.cursor <= last:
	case s.options.hello:
		return last
	default:
		return s.tip
	}
	return max(s.options.cursor, s.srv.cfg.Log.Trimmed()+1) - 1 // the smallest cursor has no predecessor
}

// end turns an error of the log's into a close frame.
func (s *subscriber) end(err error) {
	switch {
	case errors.Is(err, eventlog.ErrTrimmed):
		s.ended(endedTrimmed)
		s.box.close(websocket.ClosePolicyViolation, fmt.Sprintf("too slow: the buffer no longer holds what follows cursor %d", s.at))
	case errors.Is(err, eventlog.ErrClosed):
		s.box.close(websocket.CloseGoingAway, "the server is shutting down")
	default:
		s.srv.complain(s.at, err)
		s.box.close(websocket.CloseInternalServerErr, "the server cannot read its event log")
	}
}

// Bounds of what gather collects besides writeBytes.
const (
	// scanEvents is how many unwanted events may be passed before control frames get their
	// turn.
	scanEvents = 100_000
	// holdBytes bounds the payloads that a write keeps in memory, of which a thin filter
	// wants next to nothing, while its consumer is in no hurry to take it.
	holdBytes = 1 << 20
	// writeRuns bounds the slices of a write: the runtime keeps an array for as many with
	// each socket.
	writeRuns = 256
)

// gather fills s.bufs with the next wanted events, up to writeBytes and at message
// boundaries, and moves the position past all that it looked at. With nothing wanted:
// grown is what to wait for, wait how long the rate limit asks for; both zero if it
// only stopped to let control frames through.
func (s *subscriber) gather() (grown <-chan struct{}, wait time.Duration, err error) {
	s.bufs = s.bufs[:0]
	quota, wait := s.rate.quota(time.Now())
	if quota == 0 {
		return nil, wait, nil
	}
	size, scanned, held := 0, 0, 0
	for size < writeBytes && quota > 0 && scanned < scanEvents && held < holdBytes && len(s.bufs) < writeRuns {
		if s.chunk == nil {
			s.chunk, grown, err = s.srv.cfg.Log.Next(s.at)
			if s.follow(err) {
				continue
			}
			if err != nil {
				return nil, 0, s.unless(err)
			}
			if s.chunk == nil {
				return grown, 0, nil
			}
			s.next = s.chunk.After(s.at)
		}
		c := s.chunk
		if f := s.filter.Load(); f != s.matcher.filter {
			s.matcher.reset(f, c)
			if s.matcher.none() {
				scanned += len(c.Entries) - s.next
				s.at = c.Last()
				s.drop()
				continue
			}
		}
		for s.next < len(c.Entries) && !s.matcher.wants(s.next) {
			s.at = c.Entries[s.next].Cursor
			s.next++
			scanned++
		}
		if s.next == len(c.Entries) {
			held += len(s.data)
			s.drop()
			continue
		}
		if s.data == nil {
			if err := s.load(c); err != nil {
				if s.follow(err) {
					continue
				}
				return nil, 0, s.unless(err)
			}
		}
		end := s.run(writeBytes-size, quota)
		if end == s.next {
			if size > 0 {
				break
			}
			end++ // larger than a write: it goes alone
		}
		run := s.data[s.start(s.next):s.stop(end-1)]
		s.bufs = append(s.bufs, run)
		size += len(run)
		quota -= end - s.next
		s.rate.take(end - s.next)
		s.at, s.next = c.Entries[end-1].Cursor, end
	}
	return nil, 0, nil
}

// run returns where the run of wanted events that begins at s.next ends: after no more
// than room bytes and quota events.
func (s *subscriber) run(room, quota int) int {
	c, begin := s.chunk, s.start(s.next)
	if s.matcher.all && s.rate.rate == 0 {
		// Sync events are empty here: they do no harm inside a run.
		return s.next + sort.Search(len(c.Entries)-s.next, func(n int) bool { return s.stop(s.next+n)-begin > room })
	}
	end := s.next
	for end < len(c.Entries) && end-s.next < quota && s.stop(end)-begin <= room && s.matcher.wants(end) {
		end++
	}
	return end
}

// drop lets go of the current chunk, so that a parked subscriber keeps none in memory.
func (s *subscriber) drop() {
	s.chunk, s.data, s.ends = nil, nil, nil
	s.matcher.filter, s.matcher.chunk = nil, nil
}

// follow reports whether err only says that the buffer's start, which the subscriber
// asked for, has moved since. The position then moves with it.
func (s *subscriber) follow(err error) bool {
	if !errors.Is(err, eventlog.ErrTrimmed) || s.sent || len(s.bufs) > 0 {
		return false
	}
	s.at = max(s.at, s.srv.cfg.Log.Trimmed())
	s.drop()
	return true
}

// unless returns err, or nil if there are events to be written first: the error comes
// again.
func (s *subscriber) unless(err error) error {
	if len(s.bufs) > 0 {
		return nil
	}
	return err
}

// load gets the payload of the current chunk in the subscriber's form.
func (s *subscriber) load(c *eventlog.Chunk) (err error) {
	log, zstd := s.srv.cfg.Log, s.srv.cfg.Compressor
	s.ends = nil
	switch {
	case !s.options.compress:
		s.data, err = log.Payload(c, eventlog.JSON)
	case c.Dictionary == zstd.ID():
		s.data, err = log.Payload(c, eventlog.Zstd)
	default:
		// Stored under another dictionary, before this one became the primary.
		var d eventlog.Derived
		d, err = log.Derive(c, zstd.ID(), func() (eventlog.Derived, error) { return recompress(log, c, zstd) })
		s.data, s.ends = d.Bytes, d.Ends
	}
	return err
}

// recompress makes the compressed form of a chunk with another dictionary.
func recompress(log *eventlog.Log, c *eventlog.Chunk, z *event.Compressor) (eventlog.Derived, error) {
	frames, err := log.Payload(c, eventlog.JSON)
	if err != nil {
		return eventlog.Derived{}, err
	}
	d := eventlog.Derived{Ends: make([]uint32, len(c.Entries)), Bytes: make([]byte, 0, c.Size(eventlog.Zstd)+c.Size(eventlog.Zstd)/8)}
	for i := range c.Entries {
		if frame := frames[c.Start(i, eventlog.JSON):c.Entries[i].End[eventlog.JSON]]; len(frame) > 0 {
			d.Bytes = z.AppendBinary(d.Bytes, event.Payload(frame))
		}
		d.Ends[i] = uint32(len(d.Bytes))
	}
	return d, nil
}

// stop returns where event i of the current chunk ends in the subscriber's form.
func (s *subscriber) stop(i int) int {
	switch {
	case s.ends != nil:
		return int(s.ends[i])
	case s.options.compress:
		return int(s.chunk.Entries[i].End[eventlog.Zstd])
	}
	return int(s.chunk.Entries[i].End[eventlog.JSON])
}

// start returns where event i of the current chunk begins in the subscriber's form.
func (s *subscriber) start(i int) int {
	if i == 0 {
		return 0
	}
	return s.stop(i - 1)
}

// ended counts why the server ends the connection: the first reason only.
func (s *subscriber) ended(why ending) {
	if s.over.CompareAndSwap(false, true) {
		s.srv.metrics.ended(why)
	}
}

// send writes buffers to the socket, however long that takes.
func (s *subscriber) send(b net.Buffers) error {
	s.writing.Store(true)
	defer s.writing.Store(false)
	n, err := b.WriteTo(s.raw)
	s.written.Add(n)
	s.srv.metrics.bytes.Add(float64(n))
	return err
}
