package subscribe

import (
	"errors"
	"net"
	"runtime"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// The states of a subscriber. Writing to it is a role that one goroutine at a time has:
// who takes it from a resting state owns the fields that say so, and the socket. It is the
// fan-out for who is caught up, and otherwise a goroutine that lasts as long as there is
// something to send.
const (
	parked  = iota // caught up; a chunk that concerns it, or a control frame, ends that
	waiting        // for its hello, or because of its rate; a chunk does not end that
	writing        // somebody has the role
	parking        // somebody has it, and is about to park: a chunk makes it writing again
	over           // nothing will be written any more
)

// outcome is what has come of a step of the writing role.
type outcome uint8

const (
	rested  outcome = iota // the role was given back
	more                   // there may be more to do at once
	blocked                // the socket is full
	behind                 // what follows must be read from disk, which takes a turn
	done                   // over
)

// take takes the role from a resting subscriber.
func (s *subscriber) take() bool {
	// What the fan-out has judged since it parked was not for it, or would have woken it. It
	// is not to be judged again: that would cost what the index saves, and the filter may be
	// another by now.
	judged := event.Cursor(s.srv.fan.judged.Load())
	if s.state.CompareAndSwap(parked, writing) {
		s.at = max(s.at, judged)
		s.from = s.at
		return true
	}
	return s.state.CompareAndSwap(waiting, writing)
}

// park gives the role back when everything up to the log's end has been dealt with.
//
// A chunk that is published meanwhile must neither be missed nor be taken for judged. It is
// published before the index is asked for it. So either it is seen here, or the index is
// asked later and finds the subscriber parking, or parked.
func (s *subscriber) park() outcome {
	s.state.Store(parking)
	if event.Cursor(s.srv.fan.published.Load()) > s.at {
		s.state.Store(writing)
		return more
	}
	if !s.state.CompareAndSwap(parking, parked) {
		return more // the fan-out has made it writing again
	}
	return s.rested()
}

// pause gives the role back to wait for a nudge.
func (s *subscriber) pause() outcome {
	s.state.Store(waiting)
	return s.rested()
}

// rested looks for what came while the role was taken, and woke nobody.
func (s *subscriber) rested() outcome {
	if (s.box.pending() || s.dead.Load() || s.srv.closing.Load() || s.nudged.Swap(false)) && s.take() {
		return more
	}
	return rested
}

// wake is called when there is something to do for the role other than a chunk.
func (s *subscriber) wake() {
	if s.take() {
		go s.run(more)
	}
}

// nudge ends what a waiting subscriber waits for.
func (s *subscriber) nudge() {
	s.nudged.Store(true)
	s.wake()
}

// step does for a subscriber, whose role the caller has, what can be done without waiting.
// Then the role has been given back, which step reports, or a goroutine has it.
func (s *subscriber) step(w *writer) bool {
	o := s.advances(w)
	if w.rest() > 0 {
		w.cut(s)
	}
	w.drop()
	if o == rested || o == done {
		return true
	}
	go s.run(o)
	return false
}

// run has the role until there is no more to send for now. It begins with what the last
// step left it.
func (s *subscriber) run(o outcome) {
	var w *writer
	kept := 0 // what w keeps
	for {
		if o == blocked {
			s.stuck.Store(true)
			err := s.socket.wait()
			s.stuck.Store(false)
			if err != nil {
				o = s.finish()
			}
		}
		s.srv.keep(-kept)
		if o == rested || o == done {
			if w != nil {
				w.release()
			}
			return
		}
		if w == nil {
			w = newWriter()
		}
		if o == behind {
			s.queued.Store(true)
			s.srv.turns <- struct{}{}
			s.queued.Store(false)
			w.turn = true
			if o = s.advance(w); o == more {
				o = behind // for the next turn, after the others
			}
		} else {
			o = s.advances(w)
		}
		if kept = max(w.pinned, w.size); o != blocked || w.rest() == 0 || !s.srv.keep(kept) {
			if w.rest() > 0 {
				w.cut(s)
			}
			w.drop()
			kept = 0
		}
		if w.turn {
			w.turn = false
			<-s.srv.turns
		}
		if o == blocked && kept == 0 {
			w.release()
			w = nil
		}
	}
}

// advances takes a few steps, as long as there is more.
func (s *subscriber) advances(w *writer) (o outcome) {
	for range 4 {
		if o = s.advance(w); o != more {
			break
		}
	}
	return o
}

// turns returns how many subscribers may read from disk, and write that, at the same
// moment: all cores but one, so that however many replay, what is live finds a core that is
// free. (Beside 20 replays on two cores its p99 is 1.1 to 1.3 times that without; with eight at
// work at once it was 2.3 times, and the replays were no faster together.) No more than these
// hold what they have read. Who is served from memory, and every control frame, needs no
// turn: not for deriving either, which the window bounds, and which whoever needs the same
// form waits for, the fan-out included. While the log catches up that can be milliseconds
// for a chunk.
func turns() int { return max(1, runtime.GOMAXPROCS(0)-1) }

// keepBytes bounds the payloads that all subscribers together keep while their sockets are
// full: enough for a hundred fast ones, for whom looking them up again would cost as much as
// writing them. Beyond it, who is blocked keeps only what is left of one message.
const keepBytes = 32 << 20

// keep takes n bytes of the budget, or gives them back if n is negative. It reports whether
// there were as many.
func (s *Server) keep(n int) bool {
	if s.kept.Add(int64(n)) <= s.keepLimit || n <= 0 {
		return true
	}
	s.kept.Add(int64(-n))
	return false
}

// finish ends the role for good.
func (s *subscriber) finish() outcome {
	if s.tail = nil; s.timer != nil {
		s.timer.Stop()
	}
	s.state.Store(over)
	if s.response == nil {
		// Whatever the reason, no more will be sent. The reader goes on for a moment, for the
		// peer's close frame.
		s.raw.SetReadDeadline(time.Now().Add(closeLinger))
		closeWrite(s.raw)
	}
	close(s.written)
	return done
}

// advance does one step: what is left of a write or of a message that was cut, control
// frames, one write of events. A step waits for nothing but the event log.
func (s *subscriber) advance(w *writer) outcome {
	if s.srv.closing.Load() {
		s.box.close(websocket.CloseGoingAway, [...]string{
			v1: "the server is shutting down; reconnect with your last time_us as cursor",
			v2: "the server is shutting down; reconnect with your last seq as cursor",
		}[s.options.wire])
	}
	if s.dead.Load() {
		return s.finish()
	}
	if w.rest() > 0 {
		return s.push(w)
	}
	for {
		if len(s.tail) > 0 {
			n, full, err := s.write(net.Buffers{s.tail})
			if err != nil {
				return s.finish()
			}
			if s.tail = s.tail[n:]; full {
				return blocked
			}
		}
		s.tail = nil
		if s.last {
			return s.finish()
		}
		if s.tail, s.last = s.box.take(); len(s.tail) == 0 && !s.last {
			break
		}
	}
	if !s.begun {
		if !s.greeted.Load() {
			return s.pause()
		}
		s.begun = true
		s.at, s.tail = s.begin()
		s.from = s.at
		s.position.Store(int64(s.at))
		if len(s.tail) > 0 {
			return more
		}
	}
	wait, end, err := w.gather(s)
	switch {
	case err == errBehind:
		w.commit(s)
		return behind
	case errors.Is(err, eventlog.ErrTrimmed) && s.options.timed && !s.sent:
		s.begun = false // the buffer's start has moved: the consumer is told again
		w.leave()
		return more
	case err != nil:
		s.end(err)
		return more
	}
	if w.size > 0 {
		w.prepare()
		return s.push(w)
	}
	w.commit(s)
	switch {
	case wait > 0:
		if s.timer == nil {
			s.timer = time.AfterFunc(wait, s.nudge)
		} else {
			s.timer.Reset(wait)
		}
		return s.pause()
	case end:
		return s.park()
	}
	return more // chunks without a match: there is more to read
}

// push writes what is left of what was gathered.
func (s *subscriber) push(w *writer) outcome {
	n, full, err := s.write(w.bufs)
	if err != nil {
		w.reset()
		return s.finish()
	}
	if w.out(n); w.rest() == 0 {
		w.commit(s)
	}
	if full {
		return blocked
	}
	return more
}

// write writes buffers to the socket, as far as it takes them.
func (s *subscriber) write(bufs net.Buffers) (n int, full bool, err error) {
	n, full, err = s.socket.write(bufs)
	s.sentBytes.Add(int64(n))
	s.srv.metrics.bytes.Add(float64(n))
	return n, full, err
}
