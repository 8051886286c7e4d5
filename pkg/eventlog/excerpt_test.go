package eventlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// checkExcerpts reads the log as one who wants what excerpts have, and holds each against the
// rows of its block. It returns how many there were.
func (h *harness) checkExcerpts() int {
	h.t.Helper()
	var all []*eventlog.Chunk
	type block struct {
		last event.Cursor
		name string
	}
	has := map[block]bool{}
	for after := event.Cursor(0); after < h.last; {
		c, _, _, err := h.log.NextUnless(after, func(s *eventlog.Summary) eventlog.Need {
			for name, excerpted := range s.Collections {
				has[block{s.Last, string(name)}] = excerpted
			}
			return eventlog.Excerpt
		})
		if err != nil {
			h.t.Fatal(err)
		}
		if c.IsExcerpt() {
			all = append(all, c)
			var want []row
			for _, r := range h.rows {
				if r.cursor > after && r.cursor <= c.Last() && (r.kind != event.KindCommit || has[block{c.Last(), r.collection}]) {
					want = append(want, r)
				}
			}
			for i := range c.Entries {
				if n := int(c.Entries[i].End[eventlog.JSON] - c.Start(i, eventlog.JSON)); n != len(want[i].json) {
					h.t.Fatalf("the JSON of event %d has %d bytes, want %d", i, n, len(want[i].json))
				}
			}
			for _, f := range []eventlog.Form{eventlog.Zstd, eventlog.Extra} {
				p, err := h.log.Payload(c, f)
				if err != nil {
					h.t.Fatal(err)
				}
				h.compare(rowsOf(c, f, p, after), want, f)
			}
			if _, err := h.log.Payload(c, eventlog.JSON); err == nil || h.log.Loaded(c, eventlog.JSON) {
				h.t.Fatal("an excerpt has JSON")
			}
		}
		after = c.Last()
	}
	// The next readers want nothing of the same blocks, and everything.
	for _, c := range all {
		_, passed, _, err := h.log.NextUnless(c.Prev, func(*eventlog.Summary) eventlog.Need { return eventlog.Nothing })
		if err != nil || passed < c.Last() {
			h.t.Fatalf("passed to %d, want %d at least: %v", passed, c.Last(), err)
		}
	}
	for _, c := range all {
		whole, _, err := h.log.Next(c.Prev)
		if err != nil || whole.IsExcerpt() || whole.Last() != c.Last() || whole.Prev != c.Prev {
			h.t.Fatalf("the block is %+v, %v", whole, err)
		}
		if n := c.Size(eventlog.Zstd) + c.Size(eventlog.Extra); n > whole.Size(eventlog.Zstd)/16 {
			h.t.Fatalf("an excerpt of %d bytes, of %d", n, whole.Size(eventlog.Zstd))
		}
	}
	return len(all)
}

func TestExcerpt(t *testing.T) {
	for _, cache := range []int64{1, 1 << 30} {
		h := newHarness(t, eventlog.Config{WindowBytes: 1, CacheBytes: cache})
		for range 60 {
			h.append(1 + h.rng.IntN(30))
		}
		h.append(70, 90)
		if n := h.checkExcerpts(); n < 5 {
			t.Errorf("%d excerpts", n)
		}
		h.reopen()
		h.checkExcerpts()
	}
}

// What a daemon of the format before this one has written is kept: read, verified, and followed
// by blocks of this one.
func TestFormat3(t *testing.T) {
	h := newHarness(t, eventlog.Config{WindowBytes: 1})
	for range 12 { // as the files were made
		h.append(7)
	}
	h.append(50, 3)
	h.append(2)
	if err := h.log.Close(); err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	if _, err := vfs.Clone(vfs.Default, fs, "testdata/format3", "log"); err != nil {
		t.Fatal(err)
	}
	h.cfg.FS, h.cfg.Dir = fs, "log"
	format := func(want int) {
		t.Helper()
		r, err := eventlog.OpenReader(fs, "log")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got := r.Format(); got != want {
			t.Errorf("format %d, want %d", got, want)
		}
	}
	h.verify("log")
	format(3)
	h.open()
	h.check()
	if n := h.checkExcerpts(); n != 0 {
		t.Errorf("%d excerpts of blocks that have none", n)
	}
	for range 40 {
		h.append(7)
	}
	if err := h.log.Close(); err != nil {
		t.Fatal(err)
	}
	h.verify("log")
	format(4)
	h.open()
	if h.checkExcerpts() == 0 {
		t.Error("no excerpt")
	}
	h.check()
}

// tamper changes a part of the block that is n-th in a store, which nobody has open; to nil: it
// removes it.
func tamper(t *testing.T, fs vfs.FS, n int, part byte, change func(value []byte) []byte) {
	t.Helper()
	db, err := pebble.Open("log", &pebble.Options{FS: fs, FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte("e")})
	if err != nil {
		t.Fatal(err)
	}
	for ok := it.First(); ; ok = it.Next() {
		if !ok {
			t.Fatal("there is no such part")
		}
		if key := it.Key(); key[len(key)-1] == part {
			if n--; n == 0 {
				break
			}
		}
	}
	key, value := slices.Clone(it.Key()), change(bytes.Clone(it.Value()))
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if value == nil {
		err = db.Delete(key, pebble.Sync)
	} else {
		err = db.Set(key, value, pebble.Sync)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestDamageThatIsNotMet: who needs the head of a block only is not refused because another could
// not read the rest.
func TestDamageThatIsNotMet(t *testing.T) {
	h := newHarness(t, eventlog.Config{WindowBytes: 1})
	for range 6 {
		h.append(400)
	}
	if err := h.log.Close(); err != nil {
		t.Fatal(err)
	}
	tamper(t, h.cfg.FS, 3, 'i', func(b []byte) []byte { return b[:len(b)/2] })
	h.open()
	at := event.Cursor(0)
	var err error
	for err == nil {
		var c *eventlog.Chunk
		if c, _, err = h.log.Next(at); err == nil {
			at = c.Last()
		}
	}
	if at != h.rows[799].cursor || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("read to %d, then %v", at, err)
	}
	for need := eventlog.Nothing; need <= eventlog.Everything; need++ {
		_, _, _, err := h.log.NextUnless(at, func(*eventlog.Summary) eventlog.Need { return need })
		if (err != nil) != (need == eventlog.Everything) {
			t.Errorf("need %d: %v", need, err)
		}
	}
}

// TestVerifyLooksIntoHeads: what no checksum tells, since it was written so.
func TestVerifyLooksIntoHeads(t *testing.T) {
	h := newHarness(t, eventlog.Config{})
	h.append(100, 100)
	if err := h.log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(head []byte) []byte
		want   string
	}{
		{"a bit of a payload", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, "not what the block's payloads have"},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, "not what the block's payloads have"},
		{"an excerpt that is none", func(b []byte) []byte { copy(b[76:80], "\x00\x00\x00\x00"); return b }, "its head is longer than it says"},
		{"a longer index than there is", func(b []byte) []byte { copy(b[76:80], "\xff\xff\xff\x00"); return b }, "damaged chunk index: excerpt"},
		{"gone", func([]byte) []byte { return nil }, "no header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			if _, err := vfs.Clone(h.cfg.FS, fs, "log", "log"); err != nil {
				t.Fatal(err)
			}
			tamper(t, fs, 1, 'h', c.change)
			r, err := eventlog.OpenReader(fs, "log")
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			err = r.Verify(func(*eventlog.Chunk, []byte, []byte, []byte) error { return nil }, func(float64) {})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			// Of the two blocks this is the first.
			if strings.Contains(fmt.Sprint(err), "can be read") && !strings.Contains(err.Error(), "everything up to event 0 ") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// countingFS counts what is read of tables, in bytes.
type countingFS struct {
	vfs.FS
	read atomic.Int64
}

func (c *countingFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.Open(name, opts...)
	if err == nil && strings.HasSuffix(name, ".sst") {
		f = countingFile{f, &c.read}
	}
	return f, err
}

type countingFile struct {
	vfs.File
	read *atomic.Int64
}

func (f countingFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.read.Add(int64(n))
	return n, err
}

// TestReadsHeadsOnly: who needs nothing of blocks, or their excerpts, does not have Pebble read
// their payloads on the way from one to the next.
func TestReadsHeadsOnly(t *testing.T) {
	fs := &countingFS{FS: vfs.NewMem()}
	cfg := eventlog.Config{Dir: "log", FS: fs, WindowBytes: 1, CacheBytes: 1, Now: func() time.Time { return start.Time() }}
	cfg.SetTableBytes(2 << 20)
	log, err := eventlog.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	const blocks, events = 40, 1000
	rng := rand.New(rand.NewPCG(5, 6))
	noise := make([]byte, 200)
	var chunks []*eventlog.Chunk
	last := event.Cursor(0)
	for n := range blocks {
		var b eventlog.Builder
		var payload []byte
		for i := range events {
			for k := range noise {
				noise[k] = byte(rng.Uint32())
			}
			payload = append(payload, noise...)
			end, name := uint32(len(payload)), "app.test.usual"
			if i%100 == 7 {
				name = "app.test.rare"
			}
			b.Add(start+event.Cursor(n*events+i), event.KindCommit, fmt.Appendf(nil, "did:plc:%d", rng.IntN(1e6)), []byte(name), [3]uint32{end, end, 0})
		}
		c, err := b.Seal(last, 7, payload, payload, nil)
		if err != nil {
			t.Fatal(err)
		}
		last = c.Last()
		// Several at once, so that there are blocks without a state between them.
		if chunks = append(chunks, c); len(chunks) == 4 {
			if err := log.Append(t.Context(), chunks, nil); err != nil {
				t.Fatal(err)
			}
			chunks = nil
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	for need, most := range map[eventlog.Need]int64{eventlog.Nothing: 12 << 10, eventlog.Excerpt: 12 << 10, eventlog.Everything: 40 << 10} {
		if log, err = eventlog.Open(cfg); err != nil {
			t.Fatal(err)
		}
		before, excerpts := fs.read.Load(), 0
		for after := event.Cursor(0); after < log.Last(); {
			c, passed, _, err := log.NextUnless(after, func(*eventlog.Summary) eventlog.Need { return need })
			if err != nil {
				t.Fatal(err)
			}
			if after = passed; c != nil {
				after = c.Last()
				if c.IsExcerpt() {
					excerpts++
				}
			}
		}
		if read := (fs.read.Load() - before) / blocks; read > most {
			t.Errorf("need %d: %d bytes were read of each block, at most %d are expected", need, read, most)
		}
		if need == eventlog.Excerpt && excerpts < blocks-5 {
			t.Errorf("%d excerpts", excerpts)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
