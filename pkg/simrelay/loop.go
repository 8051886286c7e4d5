package simrelay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A loop source cycles over frames that New made, each rewritten for the seq it goes out under:
// what is sent for a seq is a function of the seq alone, so that every cursor can be served and
// nothing needs to be kept.
type loop struct {
	// Immutable after newLoop.
	cfg    Config
	frames []*frame

	newest atomic.Int64

	mu     sync.Mutex // guards faults
	faults faultPlan
}

func newLoop(cfg Config) (*loop, error) {
	l := &loop{cfg: cfg, faults: newFaultPlan(cfg.Seed, cfg.FirstSeq, cfg.Faults)}
	w := newWorld(cfg.Seed, cfg.Accounts, cfg.Records)
	for i := range int64(cfg.Loop) {
		f, err := w.next(cfg.FirstSeq+i, cfg.at(cfg.FirstSeq+i))
		if err != nil {
			return nil, fmt.Errorf("make frame %d of the loop: %w", i, err)
		}
		l.frames = append(l.frames, f)
	}
	l.newest.Store(cfg.FirstSeq - 1)
	return l, nil
}

func (l *loop) advance(_ context.Context, to int64) error {
	l.newest.Store(to)
	return nil
}

func (l *loop) bounds() (oldest, newest int64) { return l.cfg.FirstSeq, l.newest.Load() }

func (l *loop) template(seq int64) *frame { return l.frames[(seq-l.cfg.FirstSeq)%int64(len(l.frames))] }

func (l *loop) fault(seq int64) Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.faults.at(seq)
}

func (l *loop) setFaults(f Faults) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.faults.change(l.newest.Load()+1, f)
}

func (l *loop) read(dst []byte, from int64, enough, messages int) batch {
	b := batch{buf: dst, next: from}
	newest := l.newest.Load()
	if from < l.cfg.FirstSeq {
		b.lost = true
		return b
	}
	for b.next <= newest && len(b.buf) < enough && b.messages < messages && !b.hangUp {
		if fault := l.fault(b.next); fault != "" {
			e := l.entry(fault, b.next)
			b.buf = append(b.buf, e.wire...)
			b.messages += e.messages
			b.hangUp = e.hangUp
		} else {
			t := l.template(b.next)
			start := len(b.buf)
			b.buf = append(b.buf, t.wire...)
			l.rewrite(t, b.buf[start:], b.next)
			b.messages++
		}
		b.next++
	}
	return b
}

// entry is what goes out for a seq that has a fault.
func (l *loop) entry(fault Fault, seq int64) entry {
	var prev *frame
	if seq > l.cfg.FirstSeq {
		prev = l.frame(seq - 1)
	}
	return applyFault(fault, l.frame(seq), prev, seq, l.cfg.Seed)
}

// frame is the good frame of a seq, with a wire of its own.
func (l *loop) frame(seq int64) *frame {
	f := *l.template(seq)
	f.wire = slices.Clone(f.wire)
	l.rewrite(&f, f.wire, seq)
	return &f
}

func (l *loop) expected(seq int64) []Expected {
	if seq < l.cfg.FirstSeq || seq > l.newest.Load() {
		return nil
	}
	return l.entry(l.fault(seq), seq).frame.expected(seq)
}

// rewrite makes wire, a copy of the template's, the frame of another seq: seq, time, rev and DID
// of the message; key, marked bytes and CID of each record; the commit object and its CID. Nothing
// changes its length. The tree still holds the template's keys, and the signature is the
// template's.
func (l *loop) rewrite(t *frame, wire []byte, seq int64) {
	at := l.cfg.at(seq)
	now := at
	if l.cfg.WallClock {
		now = time.Now()
	}
	binary.BigEndian.PutUint64(wire[t.seqAt+1:], uint64(seq))
	var clock [len(timeLayout)]byte
	putClock(clock[:], now)
	copy(wire[t.timeAt:], clock[:])
	h := mix64(l.cfg.Seed ^ uint64(seq)*0x2545f491)
	if len(t.plcAt) > 0 {
		first := wire[t.plcAt[0] : t.plcAt[0]+didLen-len(plcPrefix)]
		putPLC(first, l.cfg.Seed, h%uint64(l.cfg.Accounts))
		for _, p := range t.plcAt[1:] {
			copy(wire[p:], first)
		}
	}
	// Microseconds may repeat where the rate is above a million or the clock is slow; the
	// clock id, taken from the seq, keeps revs apart and the seq's order keeps them growing.
	micros := at.UnixMicro()
	for _, p := range t.revAt {
		putTID(wire[p:], micros, uint64(seq)&1023)
	}
	for i := range t.ops {
		o := &t.ops[i]
		if o.tidKey {
			putTID(wire[o.pathAt+o.collLen+1:], micros-int64(i), uint64(seq)&1023)
		}
		if o.cidAt == 0 {
			continue
		}
		for _, s := range o.spans {
			if s.kind == spanClock {
				copy(wire[s.at:s.at+s.n], clock[:])
				continue
			}
			for from := s.at; from < s.at+s.n; from += 12 {
				h = mix64(h)
				putBase32(wire[from:min(from+12, s.at+s.n)], h)
			}
		}
		digest := sha256.Sum256(wire[o.block.datAt:o.block.end])
		copy(wire[o.cidAt+digestAt:], digest[:])
		copy(wire[o.block.cidAt+digestAt:], digest[:])
	}
	if len(t.commitCID) > 0 {
		digest := sha256.Sum256(wire[t.commit.datAt:t.commit.end])
		for _, p := range t.commitCID {
			copy(wire[p+digestAt:], digest[:])
		}
	}
}

// putClock writes t in timeLayout.
func putClock(dst []byte, t time.Time) { t.UTC().AppendFormat(dst[:0], timeLayout) }

// putTID writes the 13 characters of a TID.
func putTID(dst []byte, micros int64, clockID uint64) {
	const alphabet = "234567abcdefghijklmnopqrstuvwxyz"
	n := uint64(micros)<<10 | clockID
	for i := revLen - 1; i >= 0; i-- {
		dst[i] = alphabet[n&31]
		n >>= 5
	}
}
