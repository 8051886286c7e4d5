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
// takes. So a round that took long is not followed by another until a write is worth it, or
// a while has passed: latency is given for CPU, where there are many consumers and few
// events. With a dozen consumers nothing waits, nor with any number at 1,000 events/s.
type fanout struct {
	srv *Server
	// published is the newest event that is being dispatched, judged the newest that has
	// been: see park and take.
	published, judged atomic.Int64

	// Owned by run.
	due []*subscriber // of this round
	// share is how much of what is committed a write carried lately: 1, if everyone wants
	// everything.
	share float64
}

const (
	// worth is how many events make a write worth its price: with as many, that is 0.4 µs for
	// each, and what they cost by themselves 0.2.
	worth = 20
	// spacing is how much longer than a round is the time until the next, where no write
	// would be worth it: rounds then take at most 2 % of the time.
	spacing = 45
	// maxPause bounds that time, and so what an event may wait for.
	maxPause = 100 * time.Millisecond
	// alone is how many subscribers a round serves without help: others would take longer to
	// wake than these to serve.
	alone = 16
)

// run is the fan-out until ctx ends.
func (f *fanout) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := time.Duration(0); f.await(ctx, timer, pause); {
		begin := time.Now()
		events := f.dispatch()
		writes, written := f.serve()
		took := time.Since(begin)
		f.srv.metrics.rounds.Observe(took.Seconds())
		pause = min((spacing-1)*took, maxPause)
		if writes > 0 {
			f.share += (float64(written)/float64(writes)/float64(events) - f.share) / 4
		}
		clear(f.due)
		if f.due = f.due[:0]; cap(f.due) > 1024 {
			f.due = nil
		}
	}
}

// await returns when there is something to bring: at once if a write is worth it, and
// otherwise when so much time has passed. It returns false when ctx has ended.
func (f *fanout) await(ctx context.Context, timer *time.Timer, pause time.Duration) bool {
	due := time.Now().Add(pause)
	seen, events := event.Cursor(f.published.Load()), 0
	for {
		c, grown, err := f.srv.cfg.Log.Next(seen)
		wait := time.Duration(-1)
		switch {
		case c != nil:
			seen = c.Last()
			if events += len(c.Entries); float64(events)*f.share >= worth {
				return true
			}
			continue
		case errors.Is(err, eventlog.ErrTrimmed):
			return true
		case errors.Is(err, eventlog.ErrClosed):
		case err != nil:
			f.srv.complain(seen, err)
			wait = time.Second
		case events > 0:
			if wait = time.Until(due); wait <= 0 {
				return true
			}
		}
		var timeout <-chan time.Time
		if wait >= 0 {
			timer.Reset(wait)
			timeout = timer.C
		}
		select {
		case <-ctx.Done():
			return false
		case <-grown:
		case <-timeout:
		}
	}
}

// dispatch makes everybody due whom the chunks concern that there are. It returns how many
// events those have.
func (f *fanout) dispatch() (events int) {
	for {
		at := event.Cursor(f.published.Load())
		c, _, err := f.srv.cfg.Log.Next(at)
		switch {
		case errors.Is(err, eventlog.ErrTrimmed):
			// Retention was faster than we: who was at our position has lost events and is to
			// learn it.
			trimmed := f.srv.cfg.Log.Trimmed()
			f.published.Store(int64(trimmed))
			f.srv.interest.everyone(func(sub *subscriber) { f.wake(sub, at, trimmed) })
			f.judged.Store(int64(trimmed))
		case c == nil:
			return max(events, 1)
		default:
			events += len(c.Entries)
			f.published.Store(int64(c.Last()))
			f.srv.interest.dispatch(c, func(sub *subscriber) { f.wake(sub, c.Prev, c.Last()) })
			f.judged.Store(int64(c.Last()))
		}
	}
}

// wake takes a parked subscriber for this round: the events after from and up to to are to
// be looked at, unless it has. What was before was judged while it was parked.
func (f *fanout) wake(sub *subscriber, from, to event.Cursor) {
	switch sub.state.Load() {
	case parking:
		if sub.state.CompareAndSwap(parking, writing) {
			return // it looks for itself
		}
	case parked:
	default:
		return
	}
	if event.Cursor(sub.position.Load()) < to && sub.state.CompareAndSwap(parked, writing) {
		sub.at = max(sub.at, from)
		sub.from = sub.at
		f.due = append(f.due, sub)
	}
}

// serve writes to all that are due, and returns when they are parked again or go on by
// themselves: how many did not have to, and how many events they got.
func (f *fanout) serve() (writes, events int64) {
	var next, served, written atomic.Int64
	work := func() {
		w := newWriter()
		defer w.release()
		for {
			i := int(next.Add(1)) - 1
			if i >= len(f.due) {
				return
			}
			if w.written = 0; f.due[i].step(w) {
				served.Add(1)
				written.Add(int64(w.written))
			}
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
	return served.Load(), written.Load()
}
