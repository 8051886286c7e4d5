package simrelay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"github.com/bluesky-social/indigo/events"
)

// A replay source serves captured messages, each under the seq it carries.
type replay struct {
	seqs  []int64
	wires [][]byte
}

func newReplay(frames [][]byte) (*replay, error) {
	p := &replay{}
	for i, f := range frames {
		var event events.XRPCStreamEvent
		if err := event.Deserialize(bytes.NewReader(f)); err != nil {
			return nil, fmt.Errorf("captured frame %d: %w", i, err)
		}
		seq, ok := event.GetSequence()
		if !ok {
			return nil, fmt.Errorf("captured frame %d has no seq", i)
		}
		if i > 0 && seq <= p.seqs[i-1] {
			return nil, fmt.Errorf("captured frame %d: seq %d does not grow", i, seq)
		}
		p.seqs = append(p.seqs, seq)
		p.wires = append(p.wires, appendWS(nil, wsBinary, f))
	}
	if len(p.seqs) == 0 {
		return nil, fmt.Errorf("no captured frames")
	}
	return p, nil
}

func (p *replay) advance(context.Context, int64) error { return nil }

func (p *replay) bounds() (oldest, newest int64) { return p.seqs[0], p.seqs[len(p.seqs)-1] }

func (p *replay) read(dst []byte, from int64, enough, messages int) batch {
	b := batch{buf: dst, next: from}
	i, _ := slices.BinarySearch(p.seqs, from)
	for ; i < len(p.seqs) && len(b.buf) < enough && b.messages < messages; i++ {
		b.buf = append(b.buf, p.wires[i]...)
		b.messages++
		b.next = p.seqs[i] + 1
	}
	return b
}

func (p *replay) expected(int64) []Expected { return nil }

func (p *replay) setFaults(Faults) int64 { return p.seqs[len(p.seqs)-1] + 1 }

// Replay serves captured messages as a relay would: the cursor is respected, and a reader that
// has them all stays connected. It needs no Run; its connections end with the client or the
// server. It panics if a message has no seq or the seqs do not grow.
func Replay(frames [][]byte) http.Handler {
	r, err := New(Config{Frames: frames, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(fmt.Sprintf("simrelay: %v", err))
	}
	return r.Handler()
}
