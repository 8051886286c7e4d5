package eventlog

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// spaceFS is a file system that is never full: an operation for which there is no room
// waits until there is. Pebble cannot be told of a full disk: its answer to ENOSPC in the
// WAL or the MANIFEST is fatal to the handle or a panic, and a check of the free space
// before each commit does not help where another process takes the space in between.
// pebble's own vfs.OnDiskFull tries once more, and then passes the error on.
//
// The first operation that fails removes the ballast, a file that does nothing but take
// space, which lets the store go on at once, finish what it has begun, and say that it is
// full. What still fails is tried again until it succeeds. Waiting holds up whoever asked
// for the operation, and no one else: reads take no part in it. Two things of Pebble's do
// wait along: pebble.DB.Metrics, while the MANIFEST is being written, and Close.
//
// Passed on is the failure of a Sync. The kernel may have dropped the pages by then, and a
// second Sync that succeeds would say nothing about them. File systems that find room for
// data when it is written, not when it is synced, which is all the usual local ones, do
// not fail there. Passed on, too, is that of Preallocate, since Pebble takes no notice of
// it: the write behind it waits if there really is no room.
//
// Whatever else the wrapped file system and its files can do is theirs.
type spaceFS struct {
	vfs.FS

	// Immutable after newSpaceFS.
	dir     string
	ballast string // the file's name
	size    int64  // of the ballast; 0: there is none
	full    func(op string, err error)
	every   time.Duration // between two attempts

	waiters atomic.Int32
	stop    chan struct{} // closed by giveUp
	giveUp  func()        // makes those that wait, and whoever would from now on, fail

	mu    sync.Mutex // held by who makes or removes the ballast
	there bool       // the ballast is complete; guarded by mu
}

// ballastName is the ballast's name in the store's directory.
const ballastName = "ballast"

// newSpaceFS wraps a file system for the store in dir. full is called, by whoever finds
// the disk full, once for each operation that has to wait; it must not use the file system.
func newSpaceFS(inner vfs.FS, dir string, ballast int64, full func(op string, err error)) *spaceFS {
	stop := make(chan struct{})
	return &spaceFS{
		FS: inner, dir: dir, ballast: inner.PathJoin(dir, ballastName), size: ballast,
		full: full, every: 100 * time.Millisecond,
		stop: stop, giveUp: sync.OnceFunc(func() { close(stop) }),
	}
}

func isDiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// waiting reports whether an operation waits for space.
func (f *spaceFS) waiting() bool { return f.waiters.Load() > 0 }

// errStillFull is returned instead of waiting on.
var errStillFull = errors.New("the disk is full")

// await returns what comes out of done. When stop is closed it returns errStillFull
// instead as soon as an operation waits for space.
func (f *spaceFS) await(stop <-chan struct{}, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-stop:
	}
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if f.waiting() {
				return errStillFull
			}
		}
	}
}

// retry does something until it fails for no lack of space.
func (f *spaceFS) retry(op string, do func() error) error {
	err := do()
	if !isDiskFull(err) {
		return err
	}
	f.waiters.Add(1)
	defer f.waiters.Add(-1)
	f.full(op, err)
	f.dropBallast()
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		if err = do(); !isDiskFull(err) {
			return err
		}
		select {
		case <-f.stop:
			return err
		case <-tick.C:
		}
	}
}

// dropBallast removes the ballast, or what there is of it.
func (f *spaceFS) dropBallast() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.there = false
	// That it cannot be removed is as if there were none.
	_ = f.FS.Remove(f.ballast)
}

// lacks returns how much space the ballast still needs.
func (f *spaceFS) lacks() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.there {
		return 0
	}
	return uint64(max(f.size, 0))
}

// restore makes the ballast if it is not there, and if that leaves the floor free. Whoever
// owns the store calls it now and then.
func (f *spaceFS) restore(free, floor uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Asked with mu held: who comes to wait now removes the ballast after this.
	if f.size <= 0 || f.there || f.waiting() {
		return nil
	}
	if info, err := f.FS.Stat(f.ballast); err == nil && info.Size() == f.size {
		f.there = true // of an earlier run
		return nil
	}
	if free < floor+uint64(f.size) {
		return nil
	}
	if err := f.makeBallast(); err != nil {
		_ = f.FS.Remove(f.ballast)
		return fmt.Errorf("make ballast: %w", err)
	}
	f.there = true
	return nil
}

// makeBallast writes the ballast. It has its whole size no sooner than it has the space.
func (f *spaceFS) makeBallast() error {
	if err := f.FS.Remove(f.ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := f.FS.OpenReadWrite(f.ballast, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	fill := func() error {
		// At once and without a byte written, where the file system can. Not all can, and
		// some say so and do nothing: what is free tells.
		before, err := f.FS.GetDiskUsage(f.dir)
		if err != nil {
			return err
		}
		err = file.Preallocate(0, f.size)
		if isDiskFull(err) {
			return err // of a quota, which the free space does not show
		}
		if err == nil {
			after, err := f.FS.GetDiskUsage(f.dir)
			if err == nil && after.AvailBytes+uint64(f.size)/2 < before.AvailBytes {
				if _, err := file.WriteAt([]byte{0}, f.size-1); err != nil {
					return err
				}
				return file.Sync()
			}
		}
		// Bytes that no file system can compress, and synced piece by piece, so that no
		// commit has to wait for all of them.
		random := rand.NewChaCha8([32]byte{})
		piece := make([]byte, min(f.size, 1<<20))
		for at := int64(0); at < f.size; at += int64(len(piece)) {
			piece = piece[:min(f.size-at, int64(len(piece)))]
			random.Read(piece)
			if _, err := file.Write(piece); err != nil {
				return err
			}
			if err := file.Sync(); err != nil {
				return err
			}
			if f.waiting() {
				return errStillFull
			}
		}
		return nil
	}
	return errors.Join(fill(), file.Close())
}

// Unwrap is for vfs.Root.
func (f *spaceFS) Unwrap() vfs.FS { return f.FS }

func (f *spaceFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open("create", func() (vfs.File, error) { return f.FS.Create(name, category) })
}

func (f *spaceFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.open("open", func() (vfs.File, error) { return f.FS.OpenReadWrite(name, category, opts...) })
}

// ReuseForWrite renames and opens, as the machine's file system does, but one after the
// other: tried again as a whole, it would not find what it has renamed already.
func (f *spaceFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return f.OpenReadWrite(newname, category)
}

// open opens a file for writing.
func (f *spaceFS) open(op string, do func() (vfs.File, error)) (vfs.File, error) {
	var file vfs.File
	err := f.retry(op, func() (err error) {
		file, err = do()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &spaceFile{file, f}, nil
}

func (f *spaceFS) Link(oldname, newname string) error {
	return f.retry("link", func() error { return f.FS.Link(oldname, newname) })
}

func (f *spaceFS) Rename(oldname, newname string) error {
	return f.retry("rename", func() error { return f.FS.Rename(oldname, newname) })
}

func (f *spaceFS) MkdirAll(dir string, perm os.FileMode) error {
	return f.retry("make directory", func() error { return f.FS.MkdirAll(dir, perm) })
}

// Remove can need space, too: where the file system copies on write.
func (f *spaceFS) Remove(name string) error {
	return f.retry("remove", func() error { return f.FS.Remove(name) })
}

func (f *spaceFS) RemoveAll(name string) error {
	return f.retry("remove", func() error { return f.FS.RemoveAll(name) })
}

// Lock creates the file.
func (f *spaceFS) Lock(name string) (closer io.Closer, err error) {
	err = f.retry("lock", func() (err error) {
		closer, err = f.FS.Lock(name)
		return err
	})
	return closer, err
}

// spaceFile is a file that is written to.
type spaceFile struct {
	vfs.File
	fs *spaceFS
}

func (f *spaceFile) Write(p []byte) (n int, err error) {
	err = f.fs.retry("write", func() error {
		m, err := f.File.Write(p[n:])
		n += m
		return err
	})
	return n, err
}

func (f *spaceFile) WriteAt(p []byte, at int64) (n int, err error) {
	err = f.fs.retry("write", func() error {
		m, err := f.File.WriteAt(p[n:], at+int64(n))
		n += m
		return err
	})
	return n, err
}
