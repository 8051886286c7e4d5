package eventlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// specimen is a store to damage, and what must be in it.
type specimen struct {
	fs      vfs.FS
	appends []appended
	trimmed event.Cursor

	rng *rand.Rand
	now time.Time
}

// appended is one batch: a chunk and, by its place, its checkpoint.
type appended struct {
	prev, last event.Cursor
	payload    [3][]byte
}

const specimenDir = "log"

// grow appends a chunk of n events of about 200 bytes that nothing compresses.
func (s *specimen) grow(t testing.TB, log *eventlog.Log, n int) {
	t.Helper()
	var b eventlog.Builder
	var payload [3][]byte
	a := appended{prev: log.Last(), last: max(log.Last(), start)}
	for range n {
		a.last += 1000
		noise := make([]byte, 100)
		for i := range noise {
			noise[i] = byte(s.rng.Uint32())
		}
		payload[eventlog.JSON] = fmt.Appendf(payload[eventlog.JSON], "json %d %s", a.last, noise)
		payload[eventlog.Zstd] = fmt.Appendf(payload[eventlog.Zstd], "zstd %d %s", a.last, noise)
		payload[eventlog.Extra] = fmt.Appendf(payload[eventlog.Extra], "extra %d", a.last)
		var end [3]uint32
		for f := range payload {
			end[f] = uint32(len(payload[f]))
		}
		b.Add(a.last, event.KindCommit, []byte("did:plc:a"), []byte("app.test.a"), end)
	}
	a.payload = payload
	c, err := b.Seal(a.prev, 7, payload[0], payload[1], payload[2])
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Append(context.Background(), []*eventlog.Chunk{c}, checkpointOf(len(s.appends)+1)); err != nil {
		t.Fatal(err)
	}
	s.appends = append(s.appends, a)
}

// stalledFS is a file system on which no table can be made while it is stalled.
type stalledFS struct {
	vfs.FS
	stalled sync.Mutex
}

func (s *stalledFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") {
		s.stalled.Lock()
		defer s.stalled.Unlock()
	}
	return s.FS.Create(name, category)
}

// How a specimen was left.
const (
	young   = iota // closed in order, all in the store's first WAL
	closed         // closed in order, with several tables and a WAL
	crashed        // the power failed while more WALs than one were in no table yet
)

func newSpecimen(t testing.TB, left int) *specimen {
	t.Helper()
	s := &specimen{rng: rand.New(rand.NewPCG(3, 4)), now: start.Time()}
	mem := vfs.NewCrashableMem()
	fs := &stalledFS{FS: mem}
	log := s.open(t, fs)
	// Each time a table of events, and one that removes the oldest.
	for range 5 * min(left, 1) {
		for range 50 {
			s.grow(t, log, 1+s.rng.IntN(30))
		}
		s.trim(t, log)
	}
	if left != young {
		// Pebble uses a WAL again that it has done with, and leaves its length: after a start
		// there is none.
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		log = s.open(t, fs)
	}
	if left == crashed {
		fs.stalled.Lock()
		for range 8 {
			s.grow(t, log, 200)
		}
	}
	for range 20 {
		s.grow(t, log, 1+s.rng.IntN(30))
	}
	s.fs = mem
	if left == crashed {
		s.fs = mem.CrashClone(vfs.CrashCloneCfg{})
		fs.stalled.Unlock()
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *specimen) open(t testing.TB, fs vfs.FS) *eventlog.Log {
	t.Helper()
	// Every chunk is a block, so that it is found as it was appended, and tables are small.
	cfg := eventlog.Config{Dir: specimenDir, FS: fs, Limits: eventlog.Limits{Retention: time.Hour}, BlockEvents: 1, Now: func() time.Time { return s.now }}
	cfg.SetTableBytes(200 << 10)
	log, err := eventlog.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// trim removes the oldest chunk.
func (s *specimen) trim(t testing.TB, log *eventlog.Log) {
	t.Helper()
	i := slices.IndexFunc(s.appends, func(a appended) bool { return a.last > log.Trimmed() })
	s.trimmed = s.appends[i].last
	s.now = s.trimmed.Time().Add(time.Hour)
	if err := log.Trim(); err != nil {
		t.Fatal(err)
	}
}

// specimenFiles returns the names of the files of a kind, which is how they begin or end,
// sorted.
func specimenFiles(t testing.TB, fs vfs.FS, kind string) (names []string) {
	t.Helper()
	all, err := fs.List(specimenDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if strings.HasSuffix(name, "."+kind) || strings.HasPrefix(name, kind) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *specimen) clone(t testing.TB) vfs.FS {
	t.Helper()
	fs := vfs.NewMem()
	if ok, err := vfs.Clone(s.fs, fs, specimenDir, specimenDir); !ok || err != nil {
		t.Fatal(ok, err)
	}
	return fs
}

func readFile(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(fs.PathJoin(specimenDir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, fs vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(fs.PathJoin(specimenDir, name), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
}

// outcome is what became of a damaged store.
type outcome struct {
	what    string // whole, shorter, open, read; anything else is a fault of ours
	text    string
	missing int // batches, if shorter
}

// try opens a store and reads everything in every form.
func (s *specimen) try(t testing.TB, fs vfs.FS) outcome {
	t.Helper()
	done := make(chan outcome, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- outcome{what: "panic", text: fmt.Sprint(r)}
			}
		}()
		done <- s.read(fs)
	}()
	select {
	case o := <-done:
		return o
	case <-time.After(20 * time.Second):
		return outcome{what: "hang", text: ""}
	}
}

func (s *specimen) read(fs vfs.FS) outcome {
	log, err := eventlog.Open(eventlog.Config{Dir: specimenDir, FS: fs, WindowBytes: 1, CacheBytes: 1, BlockEvents: 1,
		Now: func() time.Time { return start.Time() }})
	if err != nil {
		return outcome{what: "open", text: err.Error()}
	}
	defer log.Close()
	rest := s.appends
	for len(rest) > 0 && rest[0].last <= log.Trimmed() {
		rest = rest[1:]
	}
	// Where the manifest ends early, retention's last step may have to be done again.
	if got := log.Trimmed(); got > s.trimmed {
		return outcome{what: "wrong", text: fmt.Sprintf("trimmed %d, want %d", got, s.trimmed)}
	}
	for after := log.Trimmed(); ; {
		c, grown, err := log.Next(after)
		if err != nil {
			return outcome{what: "read", text: err.Error()}
		}
		if c == nil {
			if grown == nil || log.Last() != after {
				return outcome{what: "wrong", text: fmt.Sprintf("nothing after %d, last is %d", after, log.Last())}
			}
			break
		}
		if len(rest) == 0 || c.Prev != rest[0].prev || c.Last() != rest[0].last {
			return outcome{what: "wrong", text: fmt.Sprintf("a chunk after %d that ends at %d", c.Prev, c.Last())}
		}
		for f := range eventlog.Extra + 1 {
			p, err := log.Payload(c, f)
			if err != nil {
				return outcome{what: "read", text: err.Error()}
			}
			if !bytes.Equal(p, rest[0].payload[f]) {
				return outcome{what: "wrong", text: fmt.Sprintf("bytes of form %d of the chunk that ends at %d", f, c.Last())}
			}
		}
		after, rest = c.Last(), rest[1:]
	}
	if got, want := string(log.Checkpoint()), string(checkpointOf(len(s.appends)-len(rest))); got != want && log.Last() > 0 {
		return outcome{what: "wrong", text: fmt.Sprintf("checkpoint %s, want %s: the last %d batches are missing", got, want, len(rest))}
	}
	if len(rest) > 0 {
		return outcome{what: "shorter", missing: len(rest)}
	}
	return outcome{what: "whole", text: ""}
}

// refuses tries a store that must not open, twice, and that nothing in it has changed.
func (s *specimen) refuses(t testing.TB, fs vfs.FS) (text string) {
	t.Helper()
	before := contents(t, fs)
	for range 2 {
		o := s.try(t, fs)
		if o.what != "open" {
			t.Fatalf("got %v, want an error from Open", o)
		}
		if text != "" && o.text != text {
			t.Errorf("first it says %q, then %q", text, o.text)
		}
		text = o.text
	}
	if after := contents(t, fs); !maps.Equal(before, after) {
		t.Error("the refused store was changed")
	}
	return text
}

func contents(t testing.TB, fs vfs.FS) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, name := range specimenFiles(t, fs, "") {
		m[name] = string(readFile(t, fs, name))
	}
	return m
}

// sentence checks that an error is one sentence that names the file and says what to do.
func sentence(t testing.TB, text, file string) {
	t.Helper()
	for _, want := range []string{"the store is damaged: " + file + " in " + specimenDir + ": ", "slipstream verify", "--data-dir"} {
		if !strings.Contains(text, want) {
			t.Errorf("it says %q, without %q", text, want)
		}
	}
	if strings.Contains(text, "\n") || strings.Contains(text, "pebble") {
		t.Errorf("it says %q", text)
	}
}

func flipped(b []byte, at, bit int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1 << bit
	return b
}

// Damage of every kind is an error that names the file; only a cut at the very end of what was
// written last, or a record that may have been cut, leaves a log that ends earlier.
func TestDamage(t *testing.T) {
	const newest, older, oldest = -1, -2, 0 // of the files of a kind
	none := func(b []byte) []byte { return nil }
	empty := func(b []byte) []byte { return []byte{} }
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { return flipped(b, (at+len(b))%len(b), 3) }
	}
	number := func(b []byte) []byte { return flipped(b, 7, 0) } // looks like the end of an even WAL
	middle := func(b []byte) []byte { return flipped(b, len(b)/2, 5) }
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	half := func(b []byte) []byte { return b[:len(b)/2] }

	specimens := []*specimen{newSpecimen(t, young), newSpecimen(t, closed), newSpecimen(t, crashed)}
	for _, c := range []struct {
		name   string
		left   int
		kind   string
		which  int
		damage func([]byte) []byte
		want   string // outcome.what; "error" is open or read
		file   string // in the error; empty: the damaged one
	}{
		{"data block", closed, "sst", oldest, flip(20), "error", ""},
		{"block in the middle", closed, "sst", oldest, middle, "error", ""},
		{"index block", closed, "sst", oldest, flip(-200), "error", ""},
		{"footer", closed, "sst", oldest, flip(-60), "error", ""},
		{"version in the footer", closed, "sst", oldest, flip(-10), "error", ""},
		{"magic number", closed, "sst", oldest, flip(-1), "error", ""},
		{"newest table", closed, "sst", newest, flip(20), "error", ""},
		{"table missing", closed, "sst", oldest, none, "open", ""},
		{"table empty", closed, "sst", oldest, empty, "open", ""},
		{"table cut", closed, "sst", newest, cut(1), "open", ""},

		{"first WAL: first record", young, "log", newest, flip(0), "open", ""},
		{"first WAL: number", young, "log", newest, number, "open", ""},
		{"first WAL: record in the middle", young, "log", newest, middle, "open", ""},
		{"first WAL: last record", young, "log", newest, flip(-50), "open", ""},
		{"first WAL: end cut", young, "log", newest, cut(50), "shorter", ""},
		{"first WAL: manifest's marker missing", young, "marker.manifest", newest, none, "open", "marker.manifest.*"},
		{"first WAL: format's marker missing", young, "marker.format", newest, none, "open", "marker.format-version.*"},

		{"first record", closed, "log", newest, flip(0), "open", ""},
		{"length of the first record", closed, "log", newest, flip(4), "open", ""},
		{"WAL number", closed, "log", newest, number, "open", ""},
		{"record in the middle", closed, "log", newest, middle, "open", ""},
		{"last record", closed, "log", newest, flip(-50), "open", ""}, // the end says that it was whole
		{"end mark", closed, "log", newest, flip(-1), "whole", ""},
		{"end cut", closed, "log", newest, cut(50), "shorter", ""},
		{"half a WAL", closed, "log", newest, half, "shorter", ""},
		{"newest WAL missing", closed, "log", newest, none, "shorter", ""},
		{"newest WAL empty", closed, "log", newest, empty, "shorter", ""},

		{"crash: first record", crashed, "log", newest, flip(0), "open", ""},
		{"crash: WAL number", crashed, "log", newest, number, "open", ""},
		{"crash: record in the middle", crashed, "log", newest, middle, "open", ""},
		{"crash: record in the last 32 KiB", crashed, "log", newest, flip(-9000), "open", ""},
		{"crash: last record", crashed, "log", newest, flip(-50), "shorter", ""},
		{"crash: end cut", crashed, "log", newest, cut(1), "shorter", ""},
		{"crash: half a WAL", crashed, "log", newest, half, "shorter", ""},
		{"crash: newest WAL missing", crashed, "log", newest, none, "shorter", ""},

		{"older WAL: first record", crashed, "log", older, flip(0), "open", ""},
		{"older WAL: number", crashed, "log", older, number, "open", ""},
		{"older WAL: record in the middle", crashed, "log", older, middle, "open", ""},
		{"older WAL: last record", crashed, "log", older, flip(-50), "open", ""},
		{"older WAL: end mark", crashed, "log", older, flip(-1), "open", ""},
		{"older WAL: cut", crashed, "log", older, cut(1), "open", ""},
		{"older WAL: half", crashed, "log", older, half, "open", ""},
		{"older WAL: missing", crashed, "log", older, none, "open", "a *.log file"},
		{"older WAL: empty", crashed, "log", older, empty, "open", "a *.log file"},

		{"manifest: first record", closed, "MANIFEST", newest, flip(0), "open", ""},
		{"manifest: record in the middle", closed, "MANIFEST", newest, middle, "open", ""},
		{"manifest missing", closed, "MANIFEST", newest, none, "open", ""},
		{"manifest empty", closed, "MANIFEST", newest, empty, "open", ""},
		{"manifest cut", closed, "MANIFEST", newest, half, "open", ""},
		{"manifest's marker missing", closed, "marker.manifest", newest, none, "open", "marker.manifest.*"},
		{"format's marker missing", closed, "marker.format", newest, none, "open", "marker.format-version.*"},

		{"options missing", closed, "OPTIONS", newest, none, "whole", ""},
		{"options empty", closed, "OPTIONS", newest, empty, "whole", ""},
		{"options cut", closed, "OPTIONS", newest, cut(20), "open", "OPTIONS-*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := specimens[c.left]
			fs := s.clone(t)
			names := specimenFiles(t, fs, c.kind)
			name := names[(c.which+len(names))%len(names)]
			if b := c.damage(readFile(t, fs, name)); b != nil {
				writeFile(t, fs, name, b)
			} else if err := fs.Remove(fs.PathJoin(specimenDir, name)); err != nil {
				t.Fatal(err)
			}
			if c.file == "" {
				c.file = name
			}
			switch c.want {
			case "open":
				sentence(t, s.refuses(t, fs), c.file)
			case "error":
				o := s.try(t, fs)
				if o.what != "open" && o.what != "read" {
					t.Fatalf("got %v, want an error", o)
				}
				sentence(t, o.text, c.file)
			default:
				if o := s.try(t, fs); o.what != c.want {
					t.Fatalf("got %v, want %s", o, c.want)
				}
			}
		})
	}
}

// One bit, anywhere: everything reads back as it was written, or an error names the file.
// Only the last record of a WAL that was not closed may be missing.
func TestFlippedBit(t *testing.T) {
	flips := 200
	if testing.Short() {
		flips = 30
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	specimens := []*specimen{newSpecimen(t, young), newSpecimen(t, closed), newSpecimen(t, crashed)}
	for i := range flips {
		left := i % 3
		s := specimens[left]
		fs := s.clone(t)
		names := slices.DeleteFunc(specimenFiles(t, fs, ""), func(name string) bool { return len(readFile(t, fs, name)) == 0 })
		name := names[rng.IntN(len(names))]
		b := readFile(t, fs, name)
		at, bit := rng.IntN(len(b)), rng.IntN(8)
		writeFile(t, fs, name, flipped(b, at, bit))
		o := s.try(t, fs)
		wals := specimenFiles(t, s.fs, "log")
		switch {
		case o.what == "whole":
		case o.what == "shorter" && left == crashed && name == wals[len(wals)-1] && o.missing == 1:
		case o.what == "open" || o.what == "read":
			kind, _, _ := strings.Cut(name, "-")
			if !strings.Contains(o.text, name+" in ") && !(kind == "OPTIONS" && strings.Contains(o.text, kind)) {
				t.Errorf("seed %d: byte %d, bit %d of %s: %q", seed, at, bit, name, o.text)
			}
		default:
			t.Errorf("seed %d: byte %d, bit %d of %s: %v", seed, at, bit, name, o)
		}
	}
}

// Wherever the manifest is cut, no events are lost without a word.
func TestCutManifest(t *testing.T) {
	step := 20
	if testing.Short() {
		step = 500 // under the race detector each takes a second
	}
	for _, left := range []int{young, closed, crashed} {
		s := newSpecimen(t, left)
		name := specimenFiles(t, s.fs, "MANIFEST")[0]
		b := readFile(t, s.fs, name)
		for n := 0; n < len(b); n += step {
			fs := s.clone(t)
			writeFile(t, fs, name, b[:n])
			switch o := s.try(t, fs); o.what {
			case "whole":
			case "open":
				if !strings.Contains(o.text, "the store is damaged: ") {
					t.Errorf("cut at %d: %q", n, o.text)
				}
			default:
				t.Errorf("cut at %d of %d: %v", n, len(b), o)
			}
		}
	}
}

// What a power failure leaves is not taken for damage, whatever part of what was not on disk
// yet got there: all that was appended is in the log.
func TestCrashIsNoDamage(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 16
	}
	s := &specimen{rng: rand.New(rand.NewPCG(5, 6)), now: start.Time()}
	mem := vfs.NewCrashableMem()
	type crash struct {
		fs   vfs.FS
		kept int // batches
	}
	var crashes []crash
	// The power may fail while the store is made: before each step.
	rng := rand.New(rand.NewPCG(7, 8))
	var steps sync.Mutex
	opening := true
	log := s.open(t, errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		steps.Lock()
		defer steps.Unlock()
		if opening && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			crashes = append(crashes, crash{mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}), 0})
		}
		return nil
	})))
	steps.Lock()
	opening = false
	steps.Unlock()

	stop, done := make(chan struct{}), make(chan struct{})
	var appended atomic.Int64
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			kept := int(appended.Load())
			crashes = append(crashes, crash{mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}), kept})
			time.Sleep(10 * time.Millisecond)
		}
	}()
	for i := range rounds {
		for range 5 {
			s.grow(t, log, 1+s.rng.IntN(100))
			appended.Store(int64(len(s.appends)))
		}
		if i%8 == 7 {
			s.trim(t, log)
		}
	}
	close(stop)
	<-done
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range crashes {
		if ls, err := c.fs.List(specimenDir); err != nil || len(ls) == 0 {
			continue // before there was anything
		}
		switch o := s.try(t, c.fs); {
		case o.what == "whole":
		case o.what == "shorter" && len(s.appends)-o.missing >= c.kept:
		case o.what == "open" && len(specimenFiles(t, c.fs, "sst"))+len(specimenFiles(t, c.fs, "log")) == 0:
			// Pebble's marker got there and its manifest did not: nothing had been stored yet.
		default:
			t.Errorf("after %d batches: %v", c.kept, o)
		}
	}
}

// A fault that Pebble calls fatal while it opens is an error, not a wait without end.
func TestFaultAtOpen(t *testing.T) {
	s := newSpecimen(t, closed)
	fs := errorfs.Wrap(s.clone(t), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && strings.Contains(op.Path, "MANIFEST") {
			return errorfs.ErrInjected
		}
		return nil
	}))
	if o := s.try(t, fs); o.what != "open" || !strings.Contains(o.text, "injected error") {
		t.Fatalf("got %v, want the error", o)
	}
}

// A store of another program, or of a newer version, is refused as it is.
func TestForeignStore(t *testing.T) {
	s := newSpecimen(t, closed)
	for _, c := range []struct {
		name string
		make func(t *testing.T, fs vfs.FS)
		want string
	}{
		{"other keys", func(t *testing.T, fs vfs.FS) { foreign(t, fs, pebble.DefaultComparer) }, "holds the store of another program"},
		{"other order", func(t *testing.T, fs vfs.FS) {
			other := *pebble.DefaultComparer
			other.Name = "another order"
			foreign(t, fs, &other)
		}, "holds the store of another program"},
		{"another engine", func(t *testing.T, fs vfs.FS) {
			writeFile(t, fs, "CURRENT", []byte("MANIFEST-000002\n"))
			writeFile(t, fs, "MANIFEST-000002", []byte("?"))
			writeFile(t, fs, "000003.log", []byte("?"))
		}, "holds the store of another program"},
		{"newer", func(t *testing.T, fs vfs.FS) {
			if ok, err := vfs.Clone(s.fs, fs, specimenDir, specimenDir); !ok || err != nil {
				t.Fatal(ok, err)
			}
			writeFile(t, fs, "marker.format-version.999999.999", nil)
		}, "was written by a newer version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			if err := fs.MkdirAll(specimenDir, 0o755); err != nil {
				t.Fatal(err)
			}
			c.make(t, fs)
			writeFile(t, fs, "LOCK", nil)
			text := s.refuses(t, fs)
			if !strings.Contains(text, c.want) || strings.Contains(text, "pebble") || strings.Contains(text, "\n") {
				t.Errorf("it says %q, want %q", text, c.want)
			}
		})
	}
}

func foreign(t *testing.T, fs vfs.FS, order *pebble.Comparer) {
	t.Helper()
	db, err := pebble.Open(specimenDir, &pebble.Options{FS: fs, Comparer: order, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Set([]byte("key"), []byte("value"), pebble.Sync), db.Close()); err != nil {
		t.Fatal(err)
	}
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) {}

// A damaged table is read up to the damage, and retention gets past it.
func TestPastDamage(t *testing.T) {
	s := &specimen{rng: rand.New(rand.NewPCG(3, 4)), now: start.Time()}
	mem := vfs.NewMem()
	log := s.open(t, mem)
	for range 600 {
		s.grow(t, log, 1+s.rng.IntN(30))
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	s.fs = mem
	names := specimenFiles(t, mem, "sst")
	if len(names) < 8 {
		t.Fatalf("only %d tables", len(names))
	}
	name := names[2] // the newest are looked at when the store is opened
	for share := 1; share < 10; share += 2 {
		t.Run(fmt.Sprint(share, " tenths"), func(t *testing.T) {
			fs := s.clone(t)
			b := readFile(t, fs, name)
			writeFile(t, fs, name, flipped(b, len(b)*share/10, 5))
			now := s.now
			log, err := eventlog.Open(eventlog.Config{Dir: specimenDir, FS: fs, WindowBytes: 1, CacheBytes: 1, BlockEvents: 1,
				Limits: eventlog.Limits{Retention: time.Hour}, Now: func() time.Time { return now }})
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			n, at := 0, event.Cursor(0)
			for ; at < log.Last(); n++ {
				c, _, err := log.Next(at)
				for f := range eventlog.Extra + 1 {
					if err == nil {
						_, err = log.Payload(c, f)
					}
				}
				if err != nil {
					if !strings.Contains(err.Error(), name) {
						t.Fatal(err)
					}
					break
				}
				at = c.Last()
			}
			if n == 0 || n == len(s.appends) || at != s.appends[n-1].last {
				t.Fatalf("%d of %d blocks were read, up to %d", n, len(s.appends), at)
			}
			failed := 0
			for _, a := range s.appends {
				now = a.last.Time().Add(time.Hour)
				if err := log.Trim(); err != nil {
					if failed++; !strings.Contains(err.Error(), name) {
						t.Fatal(err)
					}
				}
			}
			if err := log.Trim(); err != nil || log.Trimmed() != log.Last() || log.Oldest() != 0 {
				t.Fatalf("after %d that failed: %v; trimmed through %d of %d, the oldest is %d", failed, err, log.Trimmed(), log.Last(), log.Oldest())
			}
		})
	}
}
