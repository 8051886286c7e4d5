package subscribe

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// closeLinger is how long a connection is read on after its close frame.
const closeLinger = 2 * time.Second

// closePatience is how long a close frame may wait for what is to be written before it.
const closePatience = 30 * time.Second

// messageRate is how many messages per second are read from a consumer, which may have
// saved up as many: each costs up to some 10 ms to parse, and moves it in the index.
const messageRate = 10

// controlRate is the same for pings and pongs: six bytes of a ping ask for a write, which costs
// more than all else that a consumer can send.
const controlRate = 100

// costPerMessage is how much of a filter counts as another message: putting 10,000 DIDs
// into the index takes it some milliseconds, in which nobody else is served.
const costPerMessage = 1000

// A message of more than smallMessage bytes needs one of largeMessages places to be read,
// and must be complete within messageTimeout: what is not complete is held in memory.
const (
	smallMessage   = 4 << 10
	largeMessages  = 32
	messageTimeout = 15 * time.Second
)

// unbegun is the position of a subscriber that waits for its hello.
const unbegun = -1

// subscriber is one connection, or one response. A goroutine of its own reads from the one and
// waits for the end of the other; who writes to it, and when, is in writer.go.
type subscriber struct {
	// Immutable after the handshake.
	srv      *Server
	ws       *websocket.Conn // only read from; nil: there is a response
	response *response       // nil: there is a websocket
	raw      net.Conn        // which others may share: see response
	socket   socket          // raw or response, for who writes to it
	box      mailbox
	options  options      // but for the filter, which may change
	tip      event.Cursor // the log's end before the handshake was answered: what comes after it is live
	place    place        // in the server

	filter atomic.Pointer[Filter] // set by the interest index

	state     atomic.Int32
	greeted   atomic.Bool   // the hello has come
	nudged    atomic.Bool   // what a waiting subscriber waits for has come
	dead      atomic.Bool   // the connection is over
	written   chan struct{} // closed when the state is over because of the writing role
	position  atomic.Int64  // at, for who has not got the role
	sentBytes atomic.Int64  // bytes that the socket has taken
	stuck     atomic.Bool   // the role waits for the socket
	queued    atomic.Bool   // the role waits for a turn
	heard     atomic.Int64  // unix ns: when the peer last sent anything
	ended     atomic.Bool   // the server has ended the connection, and counted why

	// Owned by the writing role.
	begun bool         // the position has been looked up
	at    event.Cursor // the last event that has been dealt with
	from  event.Cursor // where the log finds the next one: at, or the end of the chunk before it
	tail  []byte       // bytes that go out first: the rest of a message, or control frames
	last  bool         // tail ends with the close frame
	sent  bool         // an event has been written, at least in part
	rate  limiter
	timer *time.Timer // of the rate; nil: not needed so far

	// Owned by the server's sweep.
	progress progress
}

// progress is what the last look at a subscriber saw.
type progress struct {
	acked  uint64 // bytes that the peer took; where that cannot be told: that were written
	unsent int
	sent   int64     // sentBytes
	since  time.Time // when bytes last left, or there was nothing to send
	pinged time.Time // or, without a websocket, when anything was last written
	asked  time.Time // since when a ping could have been answered
	reset  bool      // the subscriber has been aborted, if not its connection
}

// newSubscriber makes a subscriber that has no connection yet. Its role is taken.
func (s *Server) newSubscriber(o options) *subscriber {
	o.filter = nil
	sub := &subscriber{
		srv: s, options: o, tip: s.cfg.Log.Last(),
		written: make(chan struct{}),
	}
	sub.box.wake, sub.box.encoding = sub.wake, o.encoding
	sub.state.Store(writing)
	sub.greeted.Store(!o.hello)
	sub.position.Store(unbegun)
	return sub
}

// serve runs the subscriber until its connection is over.
func (s *subscriber) serve() {
	go s.run(more)
	s.read()
	if s.box.isClosing() {
		// Bytes that are left unread make the kernel answer with a reset, which may overtake
		// the close frame; and a peer in the middle of a large message reads nothing before
		// it is rid of it. The deadline that the writing role sets, or this one if the peer does
		// not let it write, or the peer end this.
		if s.state.Load() != over {
			s.raw.SetReadDeadline(time.Now().Add(closePatience))
			if s.state.Load() == over {
				s.raw.SetReadDeadline(time.Now().Add(closeLinger)) // finish's, which was in the way of ours
			}
		}
		io.Copy(io.Discard, s.raw)
	}
	// The peer is gone: a write to it must not block any longer.
	s.dead.Store(true)
	s.raw.Close()
	if s.take() {
		s.finish()
	}
	<-s.written
}

// read handles what the consumer sends. When it returns the connection is dead, or the
// mailbox holds the close frame that ends it.
func (s *subscriber) read() {
	if s.options.wire == v1 {
		s.ws.SetReadLimit(maxOptions)
	}
	hear := func() { s.heard.Store(time.Now().UnixNano()) }
	controls := limiter{rate: controlRate}
	s.ws.SetPongHandler(func(string) error { controls.wait(); hear(); return nil })
	s.ws.SetPingHandler(func(data string) error {
		controls.wait()
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
	for {
		messages.wait()
		_, r, err := s.ws.NextReader()
		if err == nil && s.options.wire == v2 {
			s.blame(endedMessage)
			s.box.close(websocket.ClosePolicyViolation, "this stream takes no messages: its parameters are those of the URL")
			return
		}
		var message []byte
		if err == nil {
			message, err = s.message(r)
		}
		if errors.Is(err, websocket.ErrReadLimit) {
			// gorilla has said so already unless the length is absurd (over 63 bits).
			s.box.close(websocket.CloseMessageTooBig, tooBig)
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
			s.blame(endedOptions)
			s.box.close(websocket.ClosePolicyViolation, err.Error())
			return
		}
		messages.take(filter.cost() / costPerMessage)
		if !s.place.want(filter.cost()) {
			s.blame(endedBudget)
			s.box.close(websocket.CloseTryAgainLater, filterBudgetReason)
			return
		}
		s.srv.interest.set(s, filter)
		if s.greeted.CompareAndSwap(false, true) {
			s.nudge()
		}
	}
}

// message reads a message.
func (s *subscriber) message(r io.Reader) ([]byte, error) {
	small, err := io.ReadAll(io.LimitReader(r, smallMessage))
	if err != nil || len(small) < smallMessage {
		return small, err
	}
	s.srv.large <- struct{}{}
	defer func() { <-s.srv.large }()
	s.raw.SetReadDeadline(time.Now().Add(s.srv.messageTimeout))
	rest, err := io.ReadAll(r)
	var timeout net.Error // gorilla hides os.ErrDeadlineExceeded
	if errors.As(err, &timeout) && timeout.Timeout() && s.state.Load() != over {
		s.blame(endedOptions)
		s.box.close(websocket.ClosePolicyViolation, fmt.Sprintf("a message must be complete within %s", s.srv.messageTimeout))
	}
	s.raw.SetReadDeadline(time.Time{})
	if s.state.Load() == over {
		s.raw.SetReadDeadline(time.Now().Add(closeLinger)) // finish's, which was in the way of ours
	}
	return append(small, rest...), err
}

// begin returns the position at which the subscriber's cursor starts, and a frame that goes
// out first; nil: none.
func (s *subscriber) begin() (at event.Cursor, first []byte) {
	log := s.srv.cfg.Log
	last := log.Last()
	switch {
	case !s.options.live && s.options.cursor <= last:
	case s.options.hello:
		return last, nil
	default:
		return s.tip, nil
	}
	if s.options.wire == v2 && !s.options.timed {
		return s.options.cursor - 1, nil // if retention has passed it since the handshake, reading finds out
	}
	oldest, trimmed := log.Oldest(), log.Trimmed()
	at = max(s.options.cursor, trimmed+1) - 1 // the smallest cursor has no predecessor
	// A time between what retention removed and the oldest event is as good as that event.
	if s.options.timed && (s.options.cursor <= trimmed || trimmed == 0 && s.options.cursor < oldest) {
		first = s.options.notice(event.AppendInfo(nil, "OutdatedCursor", fmt.Sprintf(
			"the cursor %d is before the buffer: resumed from its start, seq %d", s.options.cursor, max(oldest, trimmed+1).V2Seq())))
	}
	return at, first
}

// end turns an error of the log's into a close frame.
func (s *subscriber) end(err error) {
	switch {
	case errors.Is(err, eventlog.ErrTrimmed):
		s.blame(endedTrimmed)
		if s.options.wire == v2 {
			reason := fmt.Sprintf("the buffer no longer holds what follows seq %d", max(s.at, event.Epoch).V2Seq())
			s.box.end(s.options.notice(event.AppendError(nil, "ConsumerTooSlow", reason)), websocket.ClosePolicyViolation, reason)
			return
		}
		s.box.close(websocket.ClosePolicyViolation, fmt.Sprintf("too slow: the buffer no longer holds what follows cursor %d", s.at))
	case errors.Is(err, eventlog.ErrClosed):
		s.box.close(websocket.CloseGoingAway, "the server is shutting down")
	default:
		s.blame(endedUnreadable)
		s.srv.complain(s.at, err)
		at := int64(s.at)
		if s.options.wire == v2 {
			at = s.at.V2Seq()
		}
		s.box.close(websocket.CloseInternalServerErr, fmt.Sprintf("the server cannot read its events after %d; a later cursor may work", at))
	}
}

// blame counts why the server ends the connection: the first reason only.
func (s *subscriber) blame(why ending) {
	if s.ended.CompareAndSwap(false, true) {
		s.srv.metrics.ended(why)
	}
}
