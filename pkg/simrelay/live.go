package simrelay

import (
	"context"
	"sync"
)

// A live source makes real frames: each one changes a repository, is signed and can be verified.
// It keeps the last History of them, and the bare ops of many more.
type live struct {
	// Immutable after newLive.
	cfg Config

	// Owned by advance.
	world *world
	prev  *frame

	// Guarded by mu.
	mu      sync.Mutex
	faults  faultPlan
	ring    []entry // ring[seq % len(ring)]
	newest  int64
	decided int64 // the highest seq whose fault is settled
	ledger  ledger
}

// An entry is all that goes out for one seq.
type entry struct {
	frame    *frame // good bytes, broken ops marked
	wire     []byte // what goes out: frame's own wire if there is no fault
	messages int
	hangUp   bool
}

func newLive(cfg Config) *live {
	return &live{
		cfg:     cfg,
		world:   newWorld(cfg.Seed, cfg.Accounts, cfg.Records),
		faults:  newFaultPlan(cfg.Seed, cfg.FirstSeq, cfg.Faults),
		ring:    make([]entry, cfg.History),
		newest:  cfg.FirstSeq - 1,
		decided: cfg.FirstSeq - 1,
		ledger:  ledger{first: cfg.FirstSeq, keep: cfg.Remember},
	}
}

func (l *live) advance(ctx context.Context, to int64) error {
	for seq := l.newest + 1; seq <= to && ctx.Err() == nil; seq++ {
		f, err := l.world.next(seq, l.cfg.at(seq))
		if err != nil {
			return err
		}
		l.mu.Lock()
		fault := l.faults.at(seq)
		l.decided = seq
		l.mu.Unlock()
		e := applyFault(fault, f, l.prev, seq, l.cfg.Seed)
		l.prev = f
		events := e.frame.expected(seq, false)
		l.mu.Lock()
		l.ring[seq%int64(len(l.ring))] = e
		l.newest = seq
		l.ledger.add(events)
		l.mu.Unlock()
	}
	return nil
}

func (l *live) bounds() (oldest, newest int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.oldestLocked(), l.newest
}

func (l *live) oldestLocked() int64 { return max(l.cfg.FirstSeq, l.newest-int64(len(l.ring))+1) }

func (l *live) read(dst []byte, from int64, enough, messages int) batch {
	b := batch{buf: dst, next: from}
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.next < l.oldestLocked() {
		b.lost = true
		return b
	}
	for b.next <= l.newest && len(b.buf) < enough && b.messages < messages && !b.hangUp {
		e := &l.ring[b.next%int64(len(l.ring))]
		b.buf = append(b.buf, e.wire...)
		b.messages += e.messages
		b.hangUp = e.hangUp
		b.next++
	}
	return b
}

func (l *live) expected(seq int64) []Expected {
	l.mu.Lock()
	var f *frame
	if seq >= l.oldestLocked() && seq <= l.newest {
		f = l.ring[seq%int64(len(l.ring))].frame
	}
	events := l.ledger.get(seq)
	l.mu.Unlock()
	if f != nil {
		return f.expected(seq, true)
	}
	return events
}

func (l *live) setFaults(f Faults) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.faults.change(l.decided+1, f)
}
