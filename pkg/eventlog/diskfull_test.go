package eventlog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/pkg/event"
)

// quotaFS is a file system in memory that has room for so many bytes. Like a real one it
// takes what it has room for of a write, and fails.
type quotaFS struct {
	*vfs.MemFS
	blind bool // it cannot tell how much is free

	mu      sync.Mutex
	limit   int64
	used    int64
	files   map[string]*quotaNode
	partial int            // writes that were cut
	refused map[string]int // what there was no room for, by kind of file
}

type quotaNode struct {
	size  int64
	links int
}

// quotaName is what a name takes beside its bytes.
const quotaName = 64

func newQuotaFS(limit int64) *quotaFS {
	return &quotaFS{MemFS: vfs.NewCrashableMem(), limit: limit, files: map[string]*quotaNode{}, refused: map[string]int{}}
}

// leave sets how many bytes are free.
func (q *quotaFS) leave(free int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = q.used + free
}

// more adds to what is free.
func (q *quotaFS) more(n int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit += n
}

func (q *quotaFS) free() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return uint64(max(q.limit-q.used, 0))
}

// refusals returns how often there was no room for a kind of file.
func (q *quotaFS) refusals(kind string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.refused[kind]
}

func (q *quotaFS) has(name string) bool {
	_, err := q.Stat(name)
	return err == nil
}

func (q *quotaFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	if q.blind {
		return vfs.DiskUsage{}, vfs.ErrUnsupported
	}
	return vfs.DiskUsage{AvailBytes: q.free()}, nil
}

func (q *quotaFS) refuseLocked(op, name string) error {
	kind := strings.TrimPrefix(path.Ext(name), ".")
	if base := path.Base(name); kind == "" || strings.HasPrefix(base, "marker") {
		kind, _, _ = strings.Cut(base, "-")
		kind, _, _ = strings.Cut(kind, ".")
	}
	q.refused[kind]++
	// Both that an operation can fail with for want of space, in turn.
	errno := syscall.ENOSPC
	if q.refused[kind]%2 == 0 {
		errno = syscall.EDQUOT
	}
	return &os.PathError{Op: op, Path: name, Err: errno}
}

// takeLocked makes room for a name.
func (q *quotaFS) takeLocked(op, name string) error {
	if q.used+quotaName > q.limit {
		return q.refuseLocked(op, name)
	}
	q.used += quotaName
	return nil
}

func (q *quotaFS) dropLocked(name string) {
	n := q.files[name]
	if n == nil {
		return
	}
	delete(q.files, name)
	q.used -= quotaName
	if n.links--; n.links == 0 {
		q.used -= n.size
	}
}

func (q *quotaFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.takeLocked("create", name); err != nil {
		return nil, err
	}
	f, err := q.MemFS.Create(name, category)
	if err != nil {
		q.used -= quotaName
		return nil, err
	}
	q.dropLocked(name)
	n := &quotaNode{links: 1}
	q.files[name] = n
	return &quotaFile{File: f, fs: q, name: name, node: n}, nil
}

func (q *quotaFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.files[name]
	if n == nil {
		if err := q.takeLocked("open", name); err != nil {
			return nil, err
		}
		n = &quotaNode{links: 1}
		q.files[name] = n
	}
	f, err := q.MemFS.OpenReadWrite(name, category, opts...)
	if err != nil {
		return nil, err
	}
	return &quotaFile{File: f, fs: q, name: name, node: n}, nil
}

func (q *quotaFS) ReuseForWrite(string, string, vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, errors.New("not to be called: it cannot be tried again")
}

func (q *quotaFS) Link(oldname, newname string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.takeLocked("link", newname); err != nil {
		return err
	}
	if err := q.MemFS.Link(oldname, newname); err != nil {
		q.used -= quotaName
		return err
	}
	q.files[newname] = q.files[oldname]
	q.files[newname].links++
	return nil
}

func (q *quotaFS) Rename(oldname, newname string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used > q.limit {
		return q.refuseLocked("rename", newname)
	}
	if err := q.MemFS.Rename(oldname, newname); err != nil {
		return err
	}
	n := q.files[oldname]
	delete(q.files, oldname)
	q.dropLocked(newname)
	q.files[newname] = n
	return nil
}

func (q *quotaFS) Remove(name string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.MemFS.Remove(name); err != nil {
		return err
	}
	q.dropLocked(name)
	return nil
}

func (q *quotaFS) MkdirAll(dir string, perm os.FileMode) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, err := q.MemFS.Stat(dir); err == nil {
		return nil
	}
	if err := q.takeLocked("mkdir", dir); err != nil {
		return err
	}
	return q.MemFS.MkdirAll(dir, perm)
}

func (q *quotaFS) Lock(name string) (io.Closer, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used+quotaName > q.limit {
		return nil, q.refuseLocked("lock", name)
	}
	return q.MemFS.Lock(name)
}

type quotaFile struct {
	vfs.File
	fs   *quotaFS
	name string
	node *quotaNode
	at   int64 // where the next Write goes
}

func (f *quotaFile) Write(p []byte) (int, error) {
	n, err := f.put(p, f.at, f.File.Write)
	f.at += int64(n)
	return n, err
}

func (f *quotaFile) WriteAt(p []byte, at int64) (int, error) {
	return f.put(p, at, func(p []byte) (int, error) { return f.File.WriteAt(p, at) })
}

func (f *quotaFile) put(p []byte, at int64, write func([]byte) (int, error)) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	room := max(f.fs.limit-f.fs.used, 0)
	n := int(max(min(int64(len(p)), f.node.size-at+room), 0))
	if n > 0 {
		if m, err := write(p[:n]); err != nil {
			return m, err
		}
	}
	grown := max(at+int64(n)-f.node.size, 0)
	f.node.size += grown
	if f.node.links > 0 {
		f.fs.used += grown
	}
	if n == len(p) {
		return n, nil
	}
	if n > 0 {
		f.fs.partial++
	}
	return n, f.fs.refuseLocked("write", f.name)
}

// testSpaceFS wraps a file system as Open does, only with less patience.
func testSpaceFS(t *testing.T, inner vfs.FS, ballast int64) (fs *spaceFS, hits *atomic.Int64) {
	t.Helper()
	hits = &atomic.Int64{}
	fs = newSpaceFS(inner, "db", ballast, func(string, error) { hits.Add(1) })
	fs.every = 200 * time.Microsecond
	late := time.AfterFunc(time.Minute, fs.giveUp) // a test fails rather than hangs
	t.Cleanup(func() { late.Stop() })
	return fs, hits
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", what)
		}
	}
}

// What is written piece by piece, as space comes, is in the file once and in order.
func TestFullDiskPartialWrites(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 300<<10)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	for name, write := range map[string]func(vfs.File) (int, error){
		"Write":   func(f vfs.File) (int, error) { return f.Write(bytes.Clone(want)) },
		"WriteAt": func(f vfs.File) (int, error) { return f.WriteAt(bytes.Clone(want), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			q := newQuotaFS(1 << 10)
			fs, hits := testSpaceFS(t, q, 0)
			f, err := fs.OpenReadWrite("file", "")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				n, err := write(f)
				if err == nil && n != len(want) {
					err = io.ErrShortWrite
				}
				done <- err
			}()
			for waiting := true; waiting; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
					waiting = false
				default:
					q.more(rng.Int64N(4000))
					time.Sleep(100 * time.Microsecond)
				}
			}
			got := make([]byte, len(want)+1)
			if n, _ := f.ReadAt(got, 0); !bytes.Equal(got[:n], want) {
				t.Fatalf("the file has %d bytes, or others than were written", n)
			}
			if q.partial < 10 || hits.Load() != 1 || fs.waiting() {
				t.Errorf("%d partial writes, told of a full disk %d times, waiting %v", q.partial, hits.Load(), fs.waiting())
			}
		})
	}
}

// The ballast is made where there is room for it, goes at the first want of space, which
// lets things go on at once, and comes back.
func TestFullDiskBallast(t *testing.T) {
	const size, floor = 2_500_000, 1_000_000
	q := newQuotaFS(1 << 40)
	fs, hits := testSpaceFS(t, q, size)
	if err := fs.MkdirAll("db", 0o755); err != nil {
		t.Fatal(err)
	}
	has := func() bool {
		info, err := q.Stat("db/ballast")
		return err == nil && info.Size() == size
	}
	restore := func() {
		t.Helper()
		if err := fs.restore(q.free(), floor); err != nil {
			t.Fatal(err)
		}
	}
	q.leave(size + floor - 1)
	if restore(); has() {
		t.Fatal("a ballast was made that leaves less than the floor")
	}
	q.leave(size + floor + 1000)
	if restore(); !has() || q.free() < floor {
		t.Fatalf("no ballast was made, %d bytes are free", q.free())
	}
	f, err := fs.Create("db/x", "")
	if err != nil {
		t.Fatal(err)
	}
	q.leave(100)
	if n, err := f.Write(make([]byte, 5000)); n != 5000 || err != nil || hits.Load() != 1 || has() {
		t.Fatalf("a write with a ballast to remove: %d bytes, %v, told %d times, ballast there %v", n, err, hits.Load(), has())
	}
	if restore(); has() {
		t.Fatal("the ballast was made again though there is no room")
	}
	q.leave(1 << 30)
	if restore(); !has() {
		t.Fatal("the ballast was not made again")
	}

	// The next run finds it, whole or not.
	q.leave(0)
	next, _ := testSpaceFS(t, q, size)
	if err := next.restore(0, floor); err != nil || !next.there {
		t.Fatalf("the ballast of the last run is not found: %v", err)
	}
	if _, err := next.Create("db/y", ""); err != nil || has() {
		t.Fatalf("a full disk at start: %v, ballast there %v", err, has())
	}
	half, _ := q.OpenReadWrite("db/ballast", "")
	half.Write(make([]byte, size/2))
	half.Close()
	q.leave(1 << 30)
	restoredAfter, _ := testSpaceFS(t, q, size)
	if err := restoredAfter.restore(q.free(), floor); err != nil || !has() {
		t.Fatalf("half a ballast was left: %v", err)
	}

	// A disk that fills up while it is being made.
	fs.dropBallast()
	free := q.free()
	q.leave(size / 2)
	if err := fs.restore(free, floor); !isDiskFull(err) || q.free() != size/2 {
		t.Fatalf("a ballast without room: %v, %d bytes free", err, q.free())
	}
}

// Told to give up, what waits fails with what it waited for, and says how far it came.
func TestFullDiskGiveUp(t *testing.T) {
	q := newQuotaFS(1000)
	fs, hits := testSpaceFS(t, q, 0)
	f, err := fs.Create("file", "")
	if err != nil {
		t.Fatal(err)
	}
	q.leave(100)
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := f.Write(make([]byte, 500))
		done <- result{n, err}
	}()
	waitUntil(t, "a write that waits", fs.waiting)
	if err := fs.Remove("file"); err != nil { // what needs no space need not wait
		t.Fatal(err)
	}
	q.leave(0)
	select {
	case r := <-done:
		t.Fatalf("the write did not wait: %d, %v", r.n, r.err)
	case <-time.After(20 * time.Millisecond):
	}
	fs.giveUp()
	fs.giveUp()
	if r := <-done; r.n < 100 || r.n == 500 || !isDiskFull(r.err) {
		t.Fatalf("after giving up: %d bytes, %v", r.n, r.err)
	}
	if fs.waiting() || hits.Load() != 1 {
		t.Errorf("waiting %v, told %d times", fs.waiting(), hits.Load())
	}
	if _, err := fs.Create("other", ""); !isDiskFull(err) {
		t.Fatalf("create after giving up: %v", err)
	}
}

// A Pebble store whose disk is full time and again knows nothing of it: what it has
// committed is there, at any moment and after the power fails, reads go on, and nothing is
// fatal.
func TestFullDiskUnderPebble(t *testing.T) {
	rounds := 250
	if testing.Short() {
		rounds = 60
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	q := newQuotaFS(1 << 30)
	fs, hits := testSpaceFS(t, q, 40<<10)
	fault := make(chan error, 1)
	open := func(fs vfs.FS) *pebble.DB {
		t.Helper()
		// Small, so that there are many files of every kind, and with as little separation
		// of what is flushed and what is merged as may be.
		db, err := pebble.Open("db", &pebble.Options{
			FS: fs, Logger: pebbleLogger{log: slog.New(slog.DiscardHandler), fault: fault}, MemTableSize: 64 << 10,
			L0CompactionThreshold: 2, MaxManifestFileSize: 4 << 10, FormatMajorVersion: pebble.FormatNewest,
			TargetFileSizes: [7]int64{32 << 10},
		})
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	key := func(i int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }
	pool := make([]byte, 10_000)
	rand.NewChaCha8([32]byte{}).Read(pool)
	value := func(i int64) []byte {
		at := i % 7001
		return pool[at : at+1+i%2999]
	}
	db := open(fs)

	var committed, reads atomic.Int64
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for i := int64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			b := db.NewBatch()
			b.Set(key(i), value(i), nil)
			b.Set(append(key(i), 'x'), nil, nil)
			if err := b.Commit(pebble.Sync); err != nil {
				t.Errorf("commit %d: %v", i, err)
				return
			}
			b.Close()
			committed.Store(i)
		}
	})
	readOne := func(i int64) {
		v, closer, err := db.Get(key(i))
		if err != nil {
			t.Errorf("read %d: %v", i, err)
			return
		}
		if !bytes.Equal(v, value(i)) {
			t.Errorf("read %d: another value", i)
		}
		closer.Close()
		reads.Add(1)
	}
	for range 2 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if n := committed.Load(); n > 0 {
					readOne(1 + rand.Int64N(n))
				}
				time.Sleep(20 * time.Microsecond)
			}
		})
	}
	// check compares what a store holds with everything that was committed, in order.
	check := func(db *pebble.DB, atLeast int64) {
		t.Helper()
		it, err := db.NewIter(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer it.Close()
		n := int64(0)
		for ok := it.First(); ok; ok = it.Next() {
			n++
			if !bytes.Equal(it.Key(), key(n)) || !bytes.Equal(it.Value(), value(n)) {
				t.Fatalf("entry %d has the key %x", n, it.Key())
			}
			if ok = it.Next(); !ok || !bytes.Equal(it.Key(), append(key(n), 'x')) {
				t.Fatalf("entry %d is half there", n)
			}
		}
		if n < atLeast {
			t.Fatalf("%d entries of %d", n, atLeast)
		}
	}

	ballasts := 0
	// Manifests are few: it goes on until one has been met by a full disk, too.
	for round := 0; round < rounds || q.refusals("MANIFEST") == 0 && round < 10*rounds; round++ {
		q.leave(rng.Int64N(8 << 10))
		for range rng.IntN(4) {
			waitUntil(t, "the wait for space", fs.waiting)
			before := reads.Load()
			waitUntil(t, "a read beside a full disk", func() bool { return reads.Load() > before+1 })
			q.more(rng.Int64N(2 << 10)) // too little
		}
		waitUntil(t, "the wait for space", fs.waiting)
		if round%60 == 40 {
			at := committed.Load()
			crashed := open(q.CrashClone(vfs.CrashCloneCfg{}))
			check(crashed, at)
			if err := crashed.Close(); err != nil {
				t.Fatal(err)
			}
		}
		at := committed.Load()
		q.leave(rng.Int64N(80 << 10))
		// Compactions take space, too.
		waitUntil(t, "the next commits", func() bool {
			if fs.waiting() {
				q.more(5 << 10)
			}
			return committed.Load() > at+2
		})
		if rng.IntN(3) == 0 && fs.restore(q.free(), 0) == nil && q.has("db/ballast") { // it may fail: the disk fills up meanwhile
			ballasts++
		}
	}
	q.leave(1 << 30)
	close(stop)
	group.Wait()
	if t.Failed() {
		return
	}
	check(db, committed.Load())
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(q.MemFS)
	check(db, committed.Load())
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-fault:
		t.Fatal(err)
	default:
	}
	t.Logf("%d commits, %d reads, %d operations waited, %d writes were cut, %d ballasts, refused: %v",
		committed.Load(), reads.Load(), hits.Load(), q.partial, ballasts, q.refused)
	if q.partial < rounds/4 || ballasts == 0 || q.refused["log"] == 0 || q.refused["sst"] == 0 || q.refused["MANIFEST"] == 0 {
		t.Errorf("%d writes were cut, %d ballasts made, refused: %v: the test does not test much", q.partial, ballasts, q.refused)
	}
}

// The log says that it is full, serves its readers, goes on by itself; and the end of the
// context ends a commit that is under way, and with it all appending.
func TestFullDiskInCommit(t *testing.T) {
	for _, end := range []string{"space comes", "told to stop"} {
		t.Run(end, func(t *testing.T) {
			// What waitForSpace cannot see coming.
			q := newQuotaFS(1 << 30)
			q.blind = true
			log, err := Open(Config{FS: q, Dir: "db"})
			if err != nil {
				t.Fatal(err)
			}
			running, stopRun := context.WithCancel(context.Background())
			ran := make(chan error, 1)
			go func() { ran <- log.Run(running) }()
			b := &Builder{}
			first := event.CursorAt(time.Now())
			seal := func() *Chunk {
				b.Add(max(log.Last(), first-1)+1, event.KindIdentity, []byte("did:web:a.example"), nil, [forms]uint32{JSON: 4, Zstd: 1 << 20})
				c, err := b.Seal(log.Last(), 0, []byte("text"), make([]byte, 1<<20), nil)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			if err := log.Append(context.Background(), []*Chunk{seal()}, []byte("1")); err != nil {
				t.Fatal(err)
			}
			q.leave(100 << 10)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			appended := make(chan error, 1)
			go func() { appended <- log.Append(ctx, []*Chunk{seal()}, []byte("2")) }()
			waitUntil(t, "the log to be full", log.Full)
			if c, _, err := log.Next(0); err != nil || c.Last() != first {
				t.Fatalf("reading beside a full disk: %v", err)
			}
			if end == "space comes" {
				q.leave(1 << 30)
				if err := <-appended; err != nil || log.Last() != first+1 {
					t.Fatalf("append: %v, the log ends at %d", err, log.Last())
				}
				if err := log.Append(ctx, []*Chunk{seal()}, []byte("3")); err != nil || log.Full() {
					t.Fatalf("append: %v, full %v", err, log.Full())
				}
				stopRun()
				if err := errors.Join(<-ran, log.Close()); err != nil {
					t.Fatal(err)
				}
			} else {
				cancel()
				if err := <-appended; !errors.Is(err, context.Canceled) {
					t.Fatalf("append after the end of its context: %v", err)
				}
				if err := log.Append(context.Background(), []*Chunk{seal()}, []byte("2")); !errors.Is(err, errStillFull) {
					t.Fatalf("append to a store whose state is not known: %v", err)
				}
				stopRun()
				begin := time.Now()
				if err := errors.Join(<-ran, log.Close()); err != nil || time.Since(begin) > 3*time.Second {
					t.Fatalf("close: %v, after %s", err, time.Since(begin))
				}
				again, err := Open(Config{FS: q.CrashClone(vfs.CrashCloneCfg{}), Dir: "db"})
				if err != nil || again.Last() != first || string(again.Checkpoint()) != "1" {
					t.Fatalf("after it: %v", err)
				}
				if err := again.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A disk that is full at the start is waited for, and the wait can be ended.
func TestFullDiskAtOpen(t *testing.T) {
	for free := int64(0); free < 3000; free += 900 {
		q := newQuotaFS(free)
		var told atomic.Int64
		stop := make(chan struct{})
		time.AfterFunc(20*time.Millisecond, func() { close(stop) })
		if _, err := Open(Config{FS: q, Dir: "db", Stop: stop, Logger: slog.New(countFull{slog.DiscardHandler, &told})}); !errors.Is(err, ErrFull) {
			t.Fatalf("%d bytes free: %v", free, err)
		}
		if n := told.Load(); n != 1 {
			t.Errorf("%d bytes free: it is said %d times", free, n)
		}

		q = newQuotaFS(free)
		time.AfterFunc(20*time.Millisecond, func() { q.leave(1 << 30) })
		log, err := Open(Config{FS: q, Dir: "db"})
		if err != nil {
			t.Fatalf("%d bytes free, then more: %v", free, err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// countFull counts how often it is said that the disk is full.
type countFull struct {
	slog.Handler
	n *atomic.Int64
}

func (c countFull) Enabled(context.Context, slog.Level) bool { return true }

func (c countFull) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "disk is full") {
		c.n.Add(1)
	}
	return nil
}
