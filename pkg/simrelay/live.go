package simrelay

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
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
	mixer *mixer // nil: frames go out in the order in which they are made

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
	l := &live{
		cfg:     cfg,
		world:   newWorld(cfg.Seed, cfg.Accounts, cfg.Records),
		faults:  newFaultPlan(cfg.Seed, cfg.FirstSeq, cfg.Faults),
		ring:    make([]entry, cfg.History),
		newest:  cfg.FirstSeq - 1,
		decided: cfg.FirstSeq - 1,
		ledger:  ledger{first: cfg.FirstSeq, keep: cfg.Remember},
	}
	if cfg.Shuffle > 0 {
		l.mixer = &mixer{cfg: cfg, world: l.world, rng: rand.New(rand.NewPCG(cfg.Shuffle, 0x5817)), made: cfg.FirstSeq - 1}
	}
	return l
}

// make makes the frame of a seq.
func (l *live) make(seq int64) (*frame, error) {
	if l.mixer != nil {
		return l.mixer.next(seq)
	}
	return l.world.next(seq, l.cfg.at(seq))
}

// shuffleFrames is how many frames a mixer chooses from, and so about how far the order of two
// relays may differ.
const shuffleFrames = 40

// A mixer sends the frames of a world in another order, in which those of one repository keep
// theirs.
type mixer struct {
	cfg     Config
	world   *world
	rng     *rand.Rand
	made    int64 // the number of the last frame made
	waiting []*frame
}

func (m *mixer) next(seq int64) (*frame, error) {
	for len(m.waiting) < shuffleFrames && m.made < m.cfg.end() {
		m.made++
		f, err := m.world.next(m.made, m.cfg.at(m.made))
		if err != nil {
			return nil, err
		}
		m.waiting = append(m.waiting, f)
	}
	i := m.rng.IntN(len(m.waiting))
	for j, f := range m.waiting[:i] {
		if bytes.Equal(f.did(), m.waiting[i].did()) {
			i = j
			break
		}
	}
	f := m.waiting[i]
	m.waiting = slices.Delete(m.waiting, i, i+1)
	putUint64(f.wire[f.seqAt+1:], uint64(seq)) // behind the byte that says eight more follow
	return f, nil
}

func (f *frame) did() []byte { return f.wire[f.didAt : f.didAt+f.didLen] }

func (l *live) advance(ctx context.Context, to int64) error {
	for seq := l.newest + 1; seq <= to && ctx.Err() == nil; seq++ {
		f, err := l.make(seq)
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
