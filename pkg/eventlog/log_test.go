package eventlog_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// start is the first cursor that the tests give out.
const start event.Cursor = 1_790_000_000_000_000

// row is one event as the harness knows it.
type row struct {
	cursor          event.Cursor
	kind            event.Kind
	did, collection string
	json, zstd      string
	extra           string
}

// harness is a log and what must be in it.
type harness struct {
	t    *testing.T
	cfg  eventlog.Config
	log  *eventlog.Log
	rng  *rand.Rand
	rows []row // everything that was appended and not trimmed, oldest first
	last event.Cursor
	seq  int // the last checkpoint
	next event.Cursor
}

func newHarness(t *testing.T, cfg eventlog.Config) *harness {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = "log"
	}
	if cfg.FS == nil {
		cfg.FS = vfs.NewMem()
	}
	if cfg.BlockEvents == 0 {
		cfg.BlockEvents = 40
	}
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return start.Time() } // nothing is ever too old
	}
	h := &harness{t: t, cfg: cfg, rng: rand.New(rand.NewPCG(1, 2)), next: start}
	h.open()
	t.Cleanup(func() { h.log.Close() })
	return h
}

func (h *harness) open() {
	h.t.Helper()
	log, err := eventlog.Open(h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.log = log
}

func (h *harness) reopen() {
	h.t.Helper()
	if err := h.log.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.verify(h.cfg.Dir)
	h.open()
}

// verify holds a store, which nobody has open, against all that it promises and against the
// harness.
func (h *harness) verify(dir string) {
	h.t.Helper()
	r, err := eventlog.OpenReader(h.cfg.FS, dir)
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	if r.Last() != h.last || h.seq > 0 && string(r.Checkpoint()) != fmt.Sprint(h.seq) {
		h.t.Fatalf("the reader has %d and %s, want %d and %d", r.Last(), r.Checkpoint(), h.last, h.seq)
	}
	var rows [3][]row
	done := 0.0
	var mu sync.Mutex
	err = r.Verify(func(c *eventlog.Chunk, json, zstd, extra []byte) error {
		mu.Lock()
		defer mu.Unlock()
		for f, p := range [][]byte{json, zstd, extra} {
			rows[f] = append(rows[f], rowsOf(c, eventlog.Form(f), p, 0)...)
		}
		return nil
	}, func(share float64) { done = share })
	if err != nil {
		h.t.Fatal(err)
	}
	if done != 1 {
		h.t.Errorf("the progress ended at %v", done)
	}
	for f := range rows {
		// Chunks are checked several at a time.
		slices.SortFunc(rows[f], func(a, b row) int { return cmp.Compare(a.cursor, b.cursor) })
		h.compare(rows[f], h.rows, eventlog.Form(f))
	}
	n, size := 0, 0
	for c, err := range r.Chunks() {
		if err != nil {
			h.t.Fatal(err)
		}
		n += len(c.Entries)
		size += c.IndexBytes + c.ExcerptBytes + c.JSONBytes + c.OtherBytes
	}
	if n != len(h.rows) || (size == 0) != (n == 0) {
		h.t.Fatalf("chunks of %d events, want %d", n, len(h.rows))
	}
}

// chunk makes a chunk of n events.
func (h *harness) chunk(n int) (*eventlog.Chunk, []row) {
	h.t.Helper()
	var b eventlog.Builder
	var rows []row
	var json, zstd, extra []byte
	for range n {
		h.next += 1 + event.Cursor(h.rng.IntN(5000))
		r := row{cursor: h.next, kind: event.KindCommit, did: fmt.Sprintf("did:plc:%d", h.rng.IntN(50)),
			collection: fmt.Sprintf("app.test.c%d", h.rng.IntN(5)),
			json:       fmt.Sprintf("json %d %s", h.next, strings.Repeat("x", h.rng.IntN(300))),
			zstd:       fmt.Sprintf("zstd %d", h.next)}
		switch h.rng.IntN(60) {
		case 0, 1:
			r.collection = fmt.Sprintf("app.test.rare%d", h.rng.IntN(3))
		case 2:
			r.kind, r.collection = event.KindIdentity, ""
		case 3:
			r.kind, r.collection, r.json, r.zstd, r.extra = event.KindSync, "", "", "", fmt.Sprintf("extra %d", h.next)
		}
		json, zstd, extra = append(json, r.json...), append(zstd, r.zstd...), append(extra, r.extra...)
		b.Add(r.cursor, r.kind, []byte(r.did), []byte(r.collection), [3]uint32{uint32(len(json)), uint32(len(zstd)), uint32(len(extra))})
		rows = append(rows, r)
	}
	prev := h.last
	c, err := b.Seal(prev, 7, json, zstd, extra)
	if err != nil {
		h.t.Fatal(err)
	}
	h.last = c.Last()
	return c, rows
}

func checkpointOf(seq int) []byte { return []byte(fmt.Sprint(seq)) }

// append appends chunks of the given sizes with the next checkpoint.
func (h *harness) append(sizes ...int) {
	h.t.Helper()
	var chunks []*eventlog.Chunk
	for _, n := range sizes {
		c, rows := h.chunk(n)
		chunks = append(chunks, c)
		h.rows = append(h.rows, rows...)
	}
	h.seq++
	if err := h.log.Append(context.Background(), chunks, checkpointOf(h.seq)); err != nil {
		h.t.Fatal(err)
	}
}

// readAll reads everything after a position in one form.
func readAll(log *eventlog.Log, after event.Cursor, f eventlog.Form) (rows []row, err error) {
	for {
		c, grown, err := log.Next(after)
		if err != nil {
			return rows, err
		}
		if c == nil {
			if grown == nil {
				return rows, errors.New("nothing to read and nothing to wait for")
			}
			return rows, nil
		}
		p, err := log.Payload(c, f)
		if err != nil {
			return rows, err
		}
		rows = append(rows, rowsOf(c, f, p, after)...)
		after = c.Last()
	}
}

// rowsOf returns the events of a chunk after a position, in one form.
func rowsOf(c *eventlog.Chunk, f eventlog.Form, p []byte, after event.Cursor) (rows []row) {
	for i := c.After(after); i < len(c.Entries); i++ {
		e := c.Entries[i]
		r := row{cursor: e.Cursor, kind: e.Kind, did: c.DIDs()[e.DID]}
		if e.Collection != eventlog.NoCollection {
			r.collection = c.Collections[e.Collection]
		}
		text := string(p[c.Start(i, f):e.End[f]])
		switch f {
		case eventlog.JSON:
			r.json = text
		case eventlog.Zstd:
			r.zstd = text
		case eventlog.Extra:
			r.extra = text
		}
		rows = append(rows, r)
	}
	return rows
}

// check holds the log against the harness: ordered, without hole or overlap between
// window and store, replay from any position equal to the suffix, checkpoint as
// committed.
func (h *harness) check() {
	h.t.Helper()
	if got := string(h.log.Checkpoint()); h.seq > 0 && got != fmt.Sprint(h.seq) {
		h.t.Fatalf("checkpoint: got %s, want %d", got, h.seq)
	}
	if got := h.log.Last(); got != h.last {
		h.t.Fatalf("last: got %d, want %d", got, h.last)
	}
	oldest := event.Cursor(0)
	if len(h.rows) > 0 {
		oldest = h.rows[0].cursor
	}
	if got := h.log.Oldest(); got != oldest {
		h.t.Fatalf("oldest: got %d, want %d", got, oldest)
	}
	froms := []int{0, len(h.rows) - 1}
	for range 3 {
		froms = append(froms, h.rng.IntN(len(h.rows)+1))
	}
	for _, from := range froms {
		if from < 0 || from >= len(h.rows) {
			continue
		}
		for f := range eventlog.Extra + 1 {
			// Both ways to stand before an event: at it less one, and at the one before.
			after := h.rows[from].cursor - 1
			if from > 0 && h.rng.IntN(2) == 0 {
				after = h.rows[from-1].cursor
			}
			got, err := readAll(h.log, after, f)
			if err != nil {
				h.t.Fatal(err)
			}
			h.compare(got, h.rows[from:], f)
		}
	}
}

func (h *harness) compare(got, want []row, f eventlog.Form) {
	h.t.Helper()
	if len(got) != len(want) {
		h.t.Fatalf("form %d: got %d events, want %d", f, len(got), len(want))
	}
	for i, w := range want {
		switch f {
		case eventlog.JSON:
			w.zstd, w.extra = "", ""
		case eventlog.Zstd:
			w.json, w.extra = "", ""
		case eventlog.Extra:
			w.json, w.zstd = "", ""
		}
		if got[i] != w {
			h.t.Fatalf("form %d, event %d: got %+v, want %+v", f, i, got[i], w)
		}
	}
}

// Window, cache and store are one log: whatever the sizes, a reader sees the same.
func TestOneReader(t *testing.T) {
	for _, c := range []struct{ window, cache int64 }{{1, 1}, {20 << 10, 1}, {20 << 10, 30 << 10}, {1 << 30, 1 << 30}} {
		t.Run(fmt.Sprintf("window=%d/cache=%d", c.window, c.cache), func(t *testing.T) {
			h := newHarness(t, eventlog.Config{WindowBytes: c.window, CacheBytes: c.cache})
			for range 40 {
				sizes := make([]int, h.rng.IntN(3))
				for i := range sizes {
					sizes[i] = 1 + h.rng.IntN(40)
				}
				h.append(sizes...)
				h.check()
			}
			h.reopen()
			h.check()
			h.append(3)
			h.check()
		})
	}
}

// A reader that is caught up is woken by the next append, and misses nothing.
func TestReadersFollow(t *testing.T) {
	h := newHarness(t, eventlog.Config{WindowBytes: 10 << 10, CacheBytes: 20 << 10})
	const events = 3000
	var group sync.WaitGroup
	results := make([][]event.Cursor, 8)
	for i := range results {
		group.Go(func() {
			after := event.Cursor(0)
			for len(results[i]) < events {
				c, grown, err := h.log.Next(after)
				if err != nil {
					t.Error(err)
					return
				}
				if c == nil {
					<-grown
					continue
				}
				if p, err := h.log.Payload(c, eventlog.Zstd); err != nil || len(p) != c.Size(eventlog.Zstd) {
					t.Errorf("payload: %d bytes, %v", len(p), err)
					return
				}
				for _, e := range c.Entries[c.After(after):] {
					results[i] = append(results[i], e.Cursor)
				}
				after = c.Last()
			}
		})
	}
	for len(h.rows) < events {
		h.append(min(1+h.rng.IntN(20), events-len(h.rows)))
	}
	group.Wait()
	for i, got := range results {
		if len(got) != events {
			t.Fatalf("reader %d: got %d events", i, len(got))
		}
		for j := range got {
			if got[j] != h.rows[j].cursor {
				t.Fatalf("reader %d: event %d: got %d, want %d", i, j, got[j], h.rows[j].cursor)
			}
		}
	}
}

// Retention removes whole chunks, oldest first; readers that it passes are told, a
// reader at the end never is; the cursor never falls, even when nothing is left.
func TestRetention(t *testing.T) {
	now := start.Time()
	h := newHarness(t, eventlog.Config{WindowBytes: 3 << 10, Limits: eventlog.Limits{Retention: time.Second}, Now: func() time.Time { return now }})
	for range 50 {
		h.append(10)
	}
	h.check()
	keep := h.rows[250].cursor
	now = keep.Time().Add(time.Second)
	trim := func() {
		t.Helper()
		if err := h.log.Trim(); err != nil {
			t.Fatal(err)
		}
		trimmed := h.log.Trimmed()
		for len(h.rows) > 0 && h.rows[0].cursor <= trimmed {
			h.rows = h.rows[1:]
		}
	}
	trim()
	if n := len(h.rows); n < 240 || n > 260 {
		t.Fatalf("%d events are left, want about 250", n)
	}
	h.check()
	if _, _, err := h.log.Next(h.log.Trimmed() - 1); !errors.Is(err, eventlog.ErrTrimmed) {
		t.Fatalf("a position before the buffer: got %v, want ErrTrimmed", err)
	}
	h.reopen()
	h.check()
	if _, _, err := h.log.Next(0); !errors.Is(err, eventlog.ErrTrimmed) {
		t.Fatalf("the trimmed cursor was forgotten: %v", err)
	}

	now = h.last.Time().Add(2 * time.Hour)
	trim()
	if len(h.rows) != 0 {
		t.Fatalf("%d events are left, want none", len(h.rows))
	}
	h.check()
	if c, grown, err := h.log.Next(h.last); c != nil || grown == nil || err != nil {
		t.Fatalf("a reader at the end: got %v %v %v", c, grown, err)
	}
	h.reopen()
	h.check()
	h.append(4)
	h.check()
}

// A disk that is too full holds Append up, not the readers; the context ends the wait.
func TestFullDisk(t *testing.T) {
	fs := &fullFS{FS: vfs.NewMem(), free: 1 << 40}
	h := newHarness(t, eventlog.Config{FS: fs, Floor: 1 << 20})
	h.append(5)
	time.Sleep(1100 * time.Millisecond) // the free space is looked at once a second
	fs.set(1 << 10)
	c, rows := h.chunk(5)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := h.log.Append(ctx, []*eventlog.Chunk{c}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("append to a full disk: %v", err)
	}
	if !h.log.Full() {
		t.Fatal("the log does not say that it is full")
	}
	if got, err := readAll(h.log, 0, eventlog.JSON); err != nil || len(got) != 5 {
		t.Fatalf("reading beside a full disk: %d events, %v", len(got), err)
	}
	fs.set(1 << 30)
	if err := h.log.Append(context.Background(), []*eventlog.Chunk{c}, nil); err != nil {
		t.Fatal(err)
	}
	h.rows = append(h.rows, rows...)
	h.check()
	if h.log.Full() {
		t.Fatal("the log still says that it is full")
	}
}

type fullFS struct {
	vfs.FS
	mu   sync.Mutex
	free uint64
}

func (f *fullFS) set(n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = n
}

func (f *fullFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return vfs.DiskUsage{AvailBytes: f.free}, nil
}

// What does not follow the log's end is refused before anything is written.
func TestAppendRefusesDisorder(t *testing.T) {
	h := newHarness(t, eventlog.Config{})
	h.append(3)
	h.last = start // a wrong predecessor
	c, _ := h.chunk(1)
	if err := h.log.Append(context.Background(), []*eventlog.Chunk{c}, checkpointOf(9)); err == nil {
		t.Fatal("a chunk that follows another cursor was appended")
	}
	h.last = h.rows[2].cursor
	h.check()
}

// A store that is in use, or that cannot be, is one sentence.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	log, err := eventlog.Open(eventlog.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := eventlog.Open(eventlog.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("a second handle: got %v", err)
	}
	if _, err := eventlog.Open(eventlog.Config{Dir: filepath.Join(dir, "LOCK", "x")}); err == nil {
		t.Fatal("a directory below a file was opened")
	}
}

// A form that several ask for at once is made once.
func TestDeriveOnce(t *testing.T) {
	h := newHarness(t, eventlog.Config{})
	h.append(3)
	c, _, err := h.log.Next(0)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	made := 0
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			d, err := h.log.Derive(c, 9, func() (eventlog.Derived, error) {
				mu.Lock()
				defer mu.Unlock()
				made++
				return eventlog.Derived{Bytes: []byte("derived"), Ends: []uint32{1, 2, 7}}, nil
			})
			if err != nil || !bytes.Equal(d.Bytes, []byte("derived")) {
				t.Errorf("got %q, %v", d.Bytes, err)
			}
		})
	}
	group.Wait()
	if made != 1 {
		t.Errorf("made %d times", made)
	}
	fault := errors.New("fault")
	if _, err := h.log.Derive(c, 10, func() (eventlog.Derived, error) { return eventlog.Derived{}, fault }); !errors.Is(err, fault) {
		t.Errorf("got %v, want the fault", err)
	}
	if _, err := h.log.Derive(c, 10, func() (eventlog.Derived, error) { return eventlog.Derived{}, nil }); err != nil {
		t.Errorf("an error was kept: %v", err)
	}
}

// Large chunks are written to disk twice, into Pebble's log and into a table, which is never
// rewritten: neither checkpoints nor retention nor events lie in each other's way. Small ones
// are written a third time, when they are merged, but only into Pebble's log: there is no
// trace of them in any table.
func TestWrittenTwice(t *testing.T) {
	for _, c := range []struct {
		name      string
		size      int
		retention time.Duration
		most      float64
	}{
		{"large", 300 << 10, 24 * time.Hour, 2.2},
		{"large, with retention", 300 << 10, 20 * time.Second, 2.2},
		{"small", 30 << 10, 24 * time.Hour, 3.2},
		{"small, with retention", 30 << 10, 20 * time.Second, 3.2},
	} {
		t.Run(c.name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			now := start.Time()
			h := newHarness(t, eventlog.Config{Registerer: registry, Limits: eventlog.Limits{Retention: c.retention}, Now: func() time.Time { return now }})
			events := (80 << 20) / c.size
			if testing.Short() {
				events /= 3
			}
			second := events / 80 // as many are
			for i := range events {
				noise := make([]byte, c.size) // does not compress
				for j := 0; j < len(noise); j += 8 {
					binary.LittleEndian.PutUint64(noise[j:], h.rng.Uint64())
				}
				h.next += event.Cursor(time.Second.Microseconds()) / event.Cursor(max(second, 1))
				now = h.next.Time()
				var b eventlog.Builder
				b.Add(h.next, event.KindCommit, []byte("did:plc:a"), []byte("app.test.a"), [3]uint32{uint32(len(noise))})
				c, err := b.Seal(h.last, 7, noise, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				h.last = h.next
				chunks := []*eventlog.Chunk{c}
				for range 1 + i%2 {
					h.seq++
					if err := h.log.Append(context.Background(), chunks, checkpointOf(h.seq)); err != nil {
						t.Fatal(err)
					}
					chunks = nil // now and then a checkpoint alone
				}
				if i%(2*second+1) == 0 {
					settle(t, registry) // memory is written faster than Pebble can move tables
				}
				if i%(10*second+1) == 0 {
					if err := h.log.Trim(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if c.retention < time.Minute && h.log.Trimmed() == 0 {
				t.Fatal("nothing was trimmed")
			}
			accepted, written := metric(t, registry, "slipstream_store_accepted_bytes_total"), metric(t, registry, "slipstream_store_written_bytes_total")
			t.Logf("%.0f bytes accepted, %.2f times as many written", accepted, written/accepted)
			if accepted < 0.9*float64(events*c.size) || written > c.most*accepted {
				t.Errorf("%.0f bytes accepted, %.0f written", accepted, written)
			}
		})
	}
}

// settle waits until the store has nothing to do.
func settle(t *testing.T, registry *prometheus.Registry) {
	t.Helper()
	for before, same := -1.0, 0; same < 3; {
		time.Sleep(2 * time.Millisecond)
		written := metric(t, registry, "slipstream_store_written_bytes_total")
		if same++; written != before {
			same = 0
		}
		before = written
	}
}

func metric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// The newest checkpoint survives a restart wherever it was made: before the first event,
// between events, and after retention has left none.
func TestCheckpointAlone(t *testing.T) {
	now := start.Time()
	h := newHarness(t, eventlog.Config{Limits: eventlog.Limits{Retention: time.Hour}, Now: func() time.Time { return now }})
	step := func(name string, sizes ...int) {
		t.Helper()
		h.append(sizes...)
		h.check()
		h.reopen()
		h.check()
		if t.Failed() {
			t.Fatal(name)
		}
	}
	step("before the first event")
	step("with the first chunk", 3)
	step("after it")
	now = h.last.Time().Add(2 * time.Hour)
	if err := h.log.Trim(); err != nil {
		t.Fatal(err)
	}
	h.rows = nil
	h.check()
	h.reopen()
	h.check()
	step("on an empty log")
	step("with a chunk again", 2)
}

// A reader at the very start of the log is told when retention passes it, however the two
// meet.
func TestTrimPassesReaders(t *testing.T) {
	var now atomic.Int64
	now.Store(int64(start))
	h := newHarness(t, eventlog.Config{WindowBytes: 1, CacheBytes: 1, Limits: eventlog.Limits{Retention: time.Second},
		Now: func() time.Time { return time.UnixMicro(now.Load()) }})
	chunks := 1500
	if testing.Short() {
		chunks = 300
	}
	for range chunks {
		h.append(2)
	}
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				c, _, err := h.log.Next(h.log.Trimmed())
				if err == nil && c != nil {
					_, err = h.log.Payload(c, eventlog.JSON)
				}
				if err != nil && !errors.Is(err, eventlog.ErrTrimmed) {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range h.rows {
		if i%20 != 0 {
			continue
		}
		now.Store(int64(h.rows[i].cursor) + time.Second.Microseconds())
		if err := h.log.Trim(); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	group.Wait()
}

// A clock that nobody has set yet takes nothing away.
func TestTrimBefore1970(t *testing.T) {
	h := newHarness(t, eventlog.Config{Now: func() time.Time { return time.Unix(5, 0) }})
	h.append(3)
	if err := h.log.Trim(); err != nil {
		t.Fatal(err)
	}
	h.check()
}
