package subscribe

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// fanout brings what is committed to those who are caught up, in rounds: a round takes the
// chunks that have come since the last one, wakes who is concerned, and writes to them.
//
// What a delivery costs is the kernel's work for each write, whatever is in it: 6 to 10 µs
// on loopback for one event or for twenty, a hundred times what finding and slicing them
// takes. So a round that took long is followed by a pause, and the next one brings more
// events with each write. With a dozen consumers nothing waits; with thousands latency is
// given, up to maxPause, for CPU.
type fanout struct {
	srv *Server
	// published is the newest event that has been dispatched. It is set before the index is
	// asked: a subscriber that parks meanwhile sees either it or its wake.
	published atomic.Int64

	due []*subscriber // owned by round
}

const (
	// share is which part of the time rounds may take before they are spaced out.
	share = 32
	// maxPause bounds what an event waits for the next round to begin. It is two and a half
	// times the linger that it may have waited for company already.
	maxPause = 50 * time.Millisecond
	// alone is how many subscribers a round serves without help: others would take longer to
	// wake than these to serve.
	alone = 16
	// tries is how often a subscriber is served in one round before it goes on by itself.
	tries = 3
)

// run is the fan-out until ctx ends.
func (f *fanout) run(ctx context.Context) {
	pause := time.NewTimer(time.Hour)
	defer pause.Stop()
	for {
		begin := time.Now()
		grown, err := f.round()
		took := time.Since(begin)
		f.srv.metrics.rounds.Observe(took.Seconds())
		next := begin.Add(min(share*took, maxPause))
		if err != nil && !errors.Is(err, eventlog.ErrClosed) {
			f.srv.complain(event.Cursor(f.published.Load()), err)
			next = begin.Add(time.Second)
		} else {
			select {
			case <-ctx.Done():
				return
			case <-grown: // nil if the log is closed
			}
		}
		if wait := time.Until(next); wait > 0 {
			pause.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
			}
		}
	}
}

// round serves what there is. It returns what to wait for.
func (f *fanout) round() (grown <-chan struct{}, err error) {
	defer f.serve()
	for {
		at := event.Cursor(f.published.Load())
		c, grown, err := f.srv.cfg.Log.Next(at)
		switch {
		case errors.Is(err, eventlog.ErrTrimmed):
			// Retention was faster than we: who was at our position has lost events and is to
			// learn it.
			trimmed := f.srv.cfg.Log.Trimmed()
			f.published.Store(int64(trimmed))
			f.srv.interest.everyone(func(sub *subscriber) { f.wake(sub, at, trimmed) })
		case c == nil:
			return grown, err
		default:
			f.published.Store(int64(c.Last()))
			f.srv.interest.dispatch(c, func(sub *subscriber) { f.wake(sub, c.Prev, c.Last()) })
		}
	}
}

// wake takes a parked subscriber for this round: the events after from and up to to are to
// be looked at, unless it has. What was before is not for it.
func (f *fanout) wake(sub *subscriber, from, to event.Cursor) {
	if sub.state.Load() != parked || event.Cursor(sub.position.Load()) >= to || !sub.state.CompareAndSwap(parked, writing) {
		return
	}
	sub.at = max(sub.at, from)
	sub.from = sub.at
	f.due = append(f.due, sub)
}

// serve writes to all that are due, and returns when they are parked again or go on by
// themselves.
func (f *fanout) serve() {
	defer func() {
		clear(f.due)
		if f.due = f.due[:0]; cap(f.due) > 1024 {
			f.due = nil
		}
	}()
	var next atomic.Int64
	work := func() {
		w := newWriter()
		defer w.release()
		for {
			i := int(next.Add(1)) - 1
			if i >= len(f.due) {
				return
			}
			f.due[i].step(w)
		}
	}
	var group sync.WaitGroup
	if len(f.due) > alone {
		for range runtime.GOMAXPROCS(0) - 1 {
			group.Go(work)
		}
	}
	work()
	group.Wait()
}
