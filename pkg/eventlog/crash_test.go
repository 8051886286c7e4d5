package eventlog_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// crashes is a file system whose machine loses power before every single operation that
// changes something: each time it keeps a copy of what would be left, and what was known of
// the log at that moment.
type crashes struct {
	mem *vfs.MemFS

	mu    sync.Mutex
	n     int
	open  bool // the store is being opened
	known known
	left  []crash
}

// known is what Append and Trim have returned for, and what they are doing.
type known struct {
	rows      []row // all that were ever begun, oldest first
	last, end event.Cursor
	seq, next int // checkpoints
	trimmed   event.Cursor
	through   event.Cursor
}

type crash struct {
	n     int
	op    string
	known known
	fs    *vfs.MemFS
}

// MaybeError implements errorfs.Injector: it is called before every operation.
func (c *crashes) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	// Of what was not synced nothing is left, or half, or everything. Not half of what
	// Pebble does at opening: it relies on a file system that does not keep a younger name in
	// a directory and lose an older one.
	percent := c.n % 3 * 50
	if c.open {
		percent = c.n % 2 * 100
	}
	cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(uint64(c.n), 0))}
	c.left = append(c.left, crash{c.n, fmt.Sprintf("%v %s", op.Kind, op.Path), c.known, c.mem.CrashClone(cfg)})
	return nil
}

func (c *crashes) String() string { return "crashes" }

func (c *crashes) set(change func(*known)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.known)
}

func (c *crashes) opening(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = yes
}

func (c *crashes) take() []crash {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.left
	c.left = nil
	return left
}

// Power is lost before every write of a run with appends of all sizes, merges, flushes,
// checkpoints alone, retention and restarts. What Append returned for is there, with its
// checkpoint; what it did not return for is there as a whole or not at all; what Trim
// returned for is gone; and the log goes on from there.
func TestPowerLoss(t *testing.T) {
	mem := vfs.NewCrashableMem()
	c := &crashes{mem: mem, open: true}
	now := start.Time()
	cfg := eventlog.Config{FS: errorfs.Wrap(mem, c), WindowBytes: 5 << 10, Limits: eventlog.Limits{Retention: time.Second}, BlockEvents: 40,
		Now: func() time.Time { return now }}
	cfg.SetTableBytes(40 << 10)
	h := newHarness(t, cfg)
	c.opening(false)
	checked := 0
	steps := 160
	if testing.Short() {
		steps = 30
	}
	for step := range steps {
		switch {
		case step%40 == 39:
			c.opening(true)
			h.reopen()
			c.opening(false)
		case step%15 == 14 && len(h.rows) > 300:
			now = h.rows[len(h.rows)-150].cursor.Time().Add(time.Second)
			// Trim chooses where a block ends, up to there.
			c.set(func(k *known) { k.through = event.CursorAt(now.Add(-time.Second)) })
			if err := h.log.Trim(); err != nil {
				t.Fatal(err)
			}
			trimmed := h.log.Trimmed()
			if trimmed == 0 {
				t.Fatal("nothing was trimmed")
			}
			for h.rows[0].cursor <= trimmed {
				h.rows = h.rows[1:]
			}
			c.set(func(k *known) { k.trimmed, k.through = trimmed, trimmed })
		default:
			var chunks []*eventlog.Chunk
			for range h.rng.IntN(4) {
				chunk, rows := h.chunk(1 + h.rng.IntN(1+step%5*10))
				chunks = append(chunks, chunk)
				h.rows = append(h.rows, rows...)
				c.set(func(k *known) { k.rows = append(k.rows, rows...) })
			}
			h.seq++
			c.set(func(k *known) { k.end, k.next = h.last, h.seq })
			if err := h.log.Append(context.Background(), chunks, checkpointOf(h.seq)); err != nil {
				t.Fatal(err)
			}
			c.set(func(k *known) { k.last, k.seq = h.last, h.seq })
		}
		for _, crash := range c.take() {
			checked++
			if !t.Run(fmt.Sprintf("%d", crash.n), func(t *testing.T) { crash.check(t, h.cfg) }) {
				t.Fatalf("lost power before %s", crash.op)
			}
		}
	}
	h.check()
	t.Logf("%d crashes", checked)
	if checked < 3*steps {
		t.Errorf("only %d crashes", checked)
	}
}

// check opens what is left and holds it against what was known.
func (c crash) check(t *testing.T, cfg eventlog.Config) {
	cfg.FS = c.fs
	h := &harness{t: t, cfg: cfg, rng: rand.New(rand.NewPCG(uint64(c.n), 1))}
	h.open()
	t.Cleanup(func() { h.log.Close() })
	h.last = h.log.Last()
	switch h.last {
	case c.known.end:
		h.seq = c.known.next
		if got := string(h.log.Checkpoint()); c.known.end == c.known.last && (got == fmt.Sprint(c.known.seq) || got == "" && c.known.seq == 0) {
			h.seq = c.known.seq // a checkpoint alone, before or after
		}
	case c.known.last:
		h.seq = c.known.seq
	default:
		t.Fatalf("the log ends at %d; %d was stored and %d begun", h.last, c.known.last, c.known.end)
	}
	trimmed := h.log.Trimmed()
	if trimmed != c.known.trimmed && (trimmed < c.known.trimmed || trimmed > c.known.through) {
		t.Fatalf("trimmed through %d, want %d or up to %d", trimmed, c.known.trimmed, c.known.through)
	}
	for _, r := range c.known.rows {
		if r.cursor > trimmed && r.cursor <= h.last {
			h.rows = append(h.rows, r)
		}
	}
	h.check()
	// It can be written on, and what is on disk then is whole.
	h.next = max(h.last, start)
	h.append(3, 50)
	h.check()
	h.reopen()
	h.check()
}
