package simrelay

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A loop source cycles over a fixed set of real frames and patches copies of them. The frame of
// a seq is a pure function of the seq, so nothing is stored and any cursor can be served.
type loop struct {
	// Immutable after newLoop.
	cfg    Config
	frames []*frame

	// Guarded by mu.
	mu     sync.Mutex
	faults faultPlan
	head   int64 // the newest seq that may be read
	handed int64 // no seq above it was handed out, or is about to be
}

// loopBatch bounds what one read takes, and with it how far handed is ahead of what was sent.
const loopBatch = 1024

func newLoop(cfg Config) (*loop, error) {
	// Fewer accounts than frames, so that repositories grow and proofs look like proofs.
	w := newWorld(cfg.Seed, min(cfg.Accounts, 1+cfg.Loop/8), cfg.Records)
	l := &loop{
		cfg:    cfg,
		frames: make([]*frame, cfg.Loop),
		faults: newFaultPlan(cfg.Seed, cfg.FirstSeq, cfg.Faults),
		head:   cfg.FirstSeq - 1,
		handed: cfg.FirstSeq - 1,
	}
	for i := range l.frames {
		seq := cfg.FirstSeq + int64(i)
		f, err := w.next(seq, cfg.at(seq))
		if err != nil {
			return nil, fmt.Errorf("make frames to loop over: %w", err)
		}
		f.wire = slices.Clip(f.wire)
		l.frames[i] = f
	}
	return l, nil
}

func (l *loop) advance(_ context.Context, to int64) error {
	l.mu.Lock()
	l.head = max(l.head, to)
	l.mu.Unlock()
	return nil
}

func (l *loop) bounds() (oldest, newest int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cfg.FirstSeq, l.head
}

func (l *loop) setFaults(f Faults) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	eras := slices.Clone(l.faults.eras) // readers hold on to the old ones
	l.faults.eras = append(eras, faultEra{l.handed + 1, f})
	return l.handed + 1
}

func (l *loop) read(dst []byte, from int64, enough, messages int) batch {
	b := batch{buf: dst, next: from}
	l.mu.Lock()
	head := min(l.head, from+loopBatch-1)
	l.handed = max(l.handed, head)
	faults := l.faults
	l.mu.Unlock()
	if from < l.cfg.FirstSeq {
		b.lost = true
		return b
	}
	faulty := faults.any()
	clock := l.clock()
	for b.next <= head && len(b.buf) < enough && b.messages < messages && !b.hangUp {
		if faulty {
			if fault := faults.at(b.next); fault != "" {
				e := l.entry(fault, b.next, &clock)
				b.buf = append(b.buf, e.wire...)
				b.messages += e.messages
				b.hangUp = e.hangUp
				b.next++
				continue
			}
		}
		b.buf = l.appendFrame(b.buf, b.next, &clock)
		b.messages++
		b.next++
	}
	return b
}

func (l *loop) expected(seq int64) []Expected {
	l.mu.Lock()
	faults, head := l.faults, l.head
	l.mu.Unlock()
	if seq < l.cfg.FirstSeq || seq > head {
		return nil
	}
	clock := l.clock()
	return l.entry(faults.at(seq), seq, &clock).frame.expected(seq, true)
}

// entry makes the frame of a seq in memory of its own, with its fault.
func (l *loop) entry(fault Fault, seq int64, clock *loopClock) entry {
	patched := func(seq int64) *frame {
		f := *l.template(seq)
		f.wire = l.appendFrame(nil, seq, clock)
		return &f
	}
	var prev *frame
	if fault == OldSeq && seq > l.cfg.FirstSeq {
		prev = patched(seq - 1)
	}
	return applyFault(fault, patched(seq), prev, seq, l.cfg.Seed)
}

func (l *loop) template(seq int64) *frame {
	return l.frames[(seq-l.cfg.FirstSeq)%int64(len(l.frames))]
}

// appendFrame appends the template of a seq and overwrites in place what makes it that seq's
// own: seq, time, DID, revs, record keys, and in each record its timestamps and references. Then
// it mends the CIDs of the records and of the commit, so that every block still has its CID. The
// tree and the signature are left as they were, and no longer fit.
func (l *loop) appendFrame(dst []byte, seq int64, clock *loopClock) []byte {
	f := l.template(seq)
	start := len(dst)
	dst = append(dst, f.wire...)
	wire := dst[start:]

	putUint64(wire[f.seqAt+1:], uint64(seq)) // behind the byte that says eight more follow
	micros := clock.micros(seq)
	clock.put(wire[f.timeAt:], clock.sendTime(micros))
	if len(f.plcAt) > 0 {
		lap := uint64(seq-l.cfg.FirstSeq) / uint64(len(l.frames))
		number := (f.number + lap*7919) % uint64(l.cfg.Accounts)
		first := wire[f.plcAt[0] : f.plcAt[0]+didLen-len(plcPrefix)]
		putPLC(first, l.cfg.Seed, number)
		for _, at := range f.plcAt[1:] {
			copy(wire[at:], first)
		}
	}
	if len(f.revAt) == 0 {
		return dst
	}
	for _, at := range f.revAt {
		putTID(wire[at:], micros, 0)
	}
	if f.sinceAt != 0 {
		putTID(wire[f.sinceAt:], micros-1, 0)
	}
	noise := uint64(seq) << 16
	for i := range f.ops {
		o := &f.ops[i]
		if o.tidKey {
			putTID(wire[o.pathAt+o.collLen+1:], micros, uint64(i))
		}
		if o.cidAt == 0 {
			continue
		}
		for _, s := range o.spans {
			if s.kind == spanClock {
				clock.put(wire[s.at:], micros-int64(i)*1000)
				continue
			}
			for at, end := s.at, s.at+s.n; at < end; at += 12 {
				noise++
				putBase32(wire[at:min(at+12, end)], mix64(noise))
			}
		}
		digest := sha256.Sum256(wire[o.block.datAt:o.block.end])
		copy(wire[o.block.cidAt+digestAt:], digest[:])
		copy(wire[o.cidAt+digestAt:], digest[:])
	}
	digest := sha256.Sum256(wire[f.commit.datAt:f.commit.end])
	for _, at := range f.commitCID {
		copy(wire[at+digestAt:], digest[:])
	}
	return dst
}

func putUint64(dst []byte, v uint64) {
	for i := range 8 {
		dst[i] = byte(v >> (56 - 8*i))
	}
}

const tidChars = "234567abcdefghijklmnopqrstuvwxyz"

// putTID writes 13 characters: 53 bits of time, 10 bits of clock ID.
func putTID(dst []byte, micros int64, clockID uint64) {
	v := uint64(micros)<<10 | clockID&0x3ff
	_ = dst[revLen-1]
	for i := revLen - 1; i >= 0; i-- {
		dst[i] = tidChars[v&31]
		v >>= 5
	}
}

// A loopClock tells the time of each seq and writes it, remembering the day it last wrote.
type loopClock struct {
	start int64   // microseconds
	first int64   // seq
	step  float64 // microseconds
	wall  int64   // if not zero, the time that messages are said to be sent

	day  int64
	date [11]byte // as in 2006-01-02T
}

func (l *loop) clock() loopClock {
	c := loopClock{start: l.cfg.Start.UnixMicro(), first: l.cfg.FirstSeq, step: l.cfg.step(), day: -1}
	if l.cfg.WallClock {
		c.wall = time.Now().UnixMicro()
	}
	return c
}

func (c *loopClock) micros(seq int64) int64 { return c.start + int64(float64(seq-c.first)*c.step) }

func (c *loopClock) sendTime(micros int64) int64 {
	if c.wall != 0 {
		return c.wall
	}
	return micros
}

// put writes micros in timeLayout.
func (c *loopClock) put(dst []byte, micros int64) {
	ms := micros / 1000
	if day := ms / 86_400_000; day != c.day {
		c.day = day
		copy(c.date[:], time.UnixMicro(micros).UTC().Format("2006-01-02T"))
	}
	ms %= 86_400_000
	dst = dst[:len(timeLayout)]
	copy(dst, c.date[:])
	two := func(at int, v int64) { dst[at], dst[at+1] = byte('0'+v/10), byte('0'+v%10) }
	two(11, ms/3_600_000)
	two(14, ms/60_000%60)
	two(17, ms/1000%60)
	dst[20] = byte('0' + ms/100%10)
	two(21, ms%100)
}
