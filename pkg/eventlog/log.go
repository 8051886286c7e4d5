package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
)

// ErrTrimmed is returned to a reader whose position retention has passed: events
// after it are gone.
var ErrTrimmed = errors.New("the position is older than the buffer")

// Config configures a Log. Only Dir is required.
type Config struct {
	// Dir is the store's directory. It is created if it is not there.
	Dir string
	// FS is the file system; nil: the machine's.
	FS vfs.FS
	// WindowBytes is how much of the newest log stays in memory. Default 4 MiB: eight
	// seconds of 500 events/s.
	WindowBytes int64
	// CacheBytes bounds what was read from disk for replays. Default 16 MiB.
	CacheBytes int64
	// Retention is how long events are kept. Default 24 hours.
	Retention time.Duration
	// MinFree is the free space in bytes below which Append waits. Default 256 MiB:
	// room for Pebble to flush and compact what it has already accepted.
	MinFree uint64
	// Logger, Registerer: nil: none.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Log is the event log. All methods are safe for concurrent use but for Append, which
// has one caller at a time.
type Log struct {
	// Immutable after Open.
	cfg     Config
	log     *slog.Logger
	store   *store
	cache   *cache
	metrics *metrics

	current    atomic.Pointer[window]
	trimmed    atomic.Int64 // the greatest cursor that retention removed
	oldest     atomic.Int64 // the first event's cursor, 0 if there is none; set under oldestMu
	checkpoint atomic.Pointer[[]byte]
	diskFull   atomic.Bool

	space spaceCheck // owned by Append

	// writing is held for a batch and for saying what was in it: last and checkpoint
	// always belong together for who holds it.
	writing sync.Mutex

	// oldestMu makes Trim's look at the store and its setting of oldest one step.
	oldestMu sync.Mutex

	// Readers of the store hold closing for reading; Close for writing.
	closing sync.RWMutex
	closed  bool // guarded by closing
}

// ErrClosed is returned by a Log that has been closed.
var ErrClosed = errors.New("event log is closed")

// Open opens or creates the log and fills the window from disk, so that those who
// come back after a restart are served from memory.
func Open(cfg Config) (*Log, error) {
	if cfg.WindowBytes <= 0 {
		cfg.WindowBytes = 4 << 20
	}
	if cfg.CacheBytes <= 0 {
		cfg.CacheBytes = 16 << 20
	}
	if cfg.Retention <= 0 {
		cfg.Retention = 24 * time.Hour
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = 256 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	s, err := openStore(cfg.FS, cfg.Dir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, log: cfg.Logger, store: s, cache: newCache(cfg.CacheBytes)}
	if err := l.recover(); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	l.metrics = newMetrics(cfg.Registerer, l)
	return l, nil
}

func (l *Log) recover() error {
	trimmed, last, checkpoint, err := l.store.ends()
	if err != nil {
		return err
	}
	oldest, err := l.store.oldest(trimmed)
	if err != nil {
		return err
	}
	position, err := l.store.tail(MaxEvents, l.cfg.WindowBytes)
	if err != nil {
		return err
	}
	position = max(position, trimmed)
	w := &window{last: last, grown: make(chan struct{})}
	for position < last {
		chunks, err := l.store.read(position, 1<<20)
		if err != nil {
			return err
		}
		if len(chunks) == 0 {
			break
		}
		for _, c := range chunks {
			for f := range forms {
				if c.payload[f], err = l.store.payload(c, f); err != nil {
					return err
				}
			}
			c.resident = true
		}
		w = w.with(chunks, l.cfg.WindowBytes)
		position = w.last
	}
	w.last = last
	l.current.Store(w)
	l.trimmed.Store(int64(trimmed))
	l.oldest.Store(int64(oldest))
	l.checkpoint.Store(&checkpoint)
	return nil
}

// Close closes the store. Nothing may be appended any more; readers get ErrClosed.
func (l *Log) Close() error {
	l.closing.Lock()
	defer l.closing.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if err := l.store.db.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// Checkpoint returns what the last Append stored beside its chunks; nil if there was
// none. The caller must not change it.
func (l *Log) Checkpoint() []byte { return *l.checkpoint.Load() }

// Last returns the newest event's cursor, the greatest ever given out; 0 if there has
// been no event.
func (l *Log) Last() event.Cursor { return l.current.Load().last }

// Oldest returns the cursor of the oldest event that can be replayed; 0 if there is
// none.
func (l *Log) Oldest() event.Cursor { return event.Cursor(l.oldest.Load()) }

// Trimmed returns the greatest cursor that retention has removed; 0 if it never
// removed any. A reader's position must not be before it.
func (l *Log) Trimmed() event.Cursor { return event.Cursor(l.trimmed.Load()) }

// Full reports whether Append is waiting for free space.
func (l *Log) Full() bool { return l.diskFull.Load() }

// Append makes chunks and checkpoint durable in one batch and then shows the chunks
// to readers. Without chunks it only stores the checkpoint; a nil checkpoint leaves
// the stored one. While the disk is too full it waits for space or for ctx. The log
// keeps the chunks and a copy of the checkpoint.
func (l *Log) Append(ctx context.Context, chunks []*Chunk, checkpoint []byte) error {
	last := l.Last()
	for _, c := range chunks {
		if c.Prev != last {
			return fmt.Errorf("append: chunk follows cursor %d, the log ends at %d", c.Prev, last)
		}
		last = c.Last()
	}
	if err := l.waitForSpace(ctx); err != nil {
		return err
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	start := time.Now()
	if err := l.store.append(l.Last(), chunks, checkpoint); err != nil {
		return err
	}
	l.metrics.commit.Observe(time.Since(start).Seconds())
	if checkpoint != nil {
		kept := append([]byte(nil), checkpoint...)
		l.checkpoint.Store(&kept)
	}
	if len(chunks) == 0 {
		return nil
	}
	l.oldestMu.Lock()
	l.oldest.CompareAndSwap(0, int64(chunks[0].First()))
	l.oldestMu.Unlock()
	before := l.current.Load()
	l.current.Store(before.with(chunks, l.cfg.WindowBytes))
	close(before.grown)
	l.metrics.appended(chunks)
	return nil
}

// Next returns the chunk that holds the first event after the given position. If
// there is none yet it returns nil and a channel that closes when there is. A
// position before Trimmed gets ErrTrimmed.
func (l *Log) Next(after event.Cursor) (*Chunk, <-chan struct{}, error) {
	w := l.current.Load()
	if after < l.Trimmed() {
		return nil, nil, ErrTrimmed
	}
	if w.covers(after) {
		return w.next(after), w.grown, nil
	}
	if c := l.cache.get(cacheKey{whatIndex, after}); c != nil {
		return c.(*Chunk), nil, nil
	}
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return nil, nil, ErrClosed
	}
	chunks, err := l.store.read(after, readAhead)
	// Retention may have passed while the store was read, which is then no error of its.
	if after < l.Trimmed() {
		return nil, nil, ErrTrimmed
	}
	if err != nil {
		return nil, nil, err
	}
	if len(chunks) == 0 {
		return nil, nil, fmt.Errorf("no chunk after cursor %d, though the log ends at %d", after, w.last)
	}
	for _, c := range chunks {
		l.cache.put(cacheKey{whatIndex, c.Prev}, c, c.memory())
	}
	return chunks[0], nil, nil
}

// InMemory reports whether Next and Payload of its chunk need not read the store for a
// position, as long as the log does not grow.
func (l *Log) InMemory(after event.Cursor) bool { return l.current.Load().covers(after) }

// readAhead is how many bytes of JSON the indexes that are read from disk in one go
// may stand for: enough to make the seek cheap, little enough for a reader that wants
// only a few events.
const readAhead = 512 << 10

// Payload returns one form of a chunk, which the caller must not change and may keep.
// ErrTrimmed means that retention took it meanwhile.
func (l *Log) Payload(c *Chunk, f Form) ([]byte, error) {
	if c.resident {
		return c.payload[f], nil
	}
	p, err := l.cache.make(cacheKey{uint64(f), c.Last()}, func() (any, int64, error) {
		l.closing.RLock()
		defer l.closing.RUnlock()
		if l.closed {
			return nil, 0, ErrClosed
		}
		p, err := l.store.payload(c, f)
		return p, int64(len(p)), err
	})
	if err != nil {
		if c.Last() <= l.Trimmed() {
			return nil, ErrTrimmed
		}
		return nil, err
	}
	return p.([]byte), nil
}

// Derived is a form of a chunk that is made on demand.
type Derived struct {
	Bytes []byte
	Ends  []uint32 // where each entry ends in Bytes
}

// Derive returns the derived form of a chunk that key names, made by build at most
// once while it is in the cache. The caller must not change it.
func (l *Log) Derive(c *Chunk, key uint32, build func() (Derived, error)) (Derived, error) {
	d, err := l.cache.make(cacheKey{whatDerived | uint64(key), c.Last()}, func() (any, int64, error) {
		d, err := build()
		return d, int64(len(d.Bytes) + 4*len(d.Ends)), err
	})
	if err != nil {
		return Derived{}, err
	}
	return d.(Derived), nil
}

// Tail returns a position that at least the given number of events follow, or all
// there are.
func (l *Log) Tail(events int) (event.Cursor, error) {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return 0, ErrClosed
	}
	position, err := l.store.tail(events, 1<<40)
	return max(position, l.Trimmed()), err
}

// Run applies retention until ctx ends. It returns an error when the store has failed
// in a way that it cannot recover from; the log is of no use then and must not be
// closed.
func (l *Log) Run(ctx context.Context) error {
	// Apart, because a store that has failed may never let go of who waits for it.
	trimmed := make(chan error, 1)
	go func() { trimmed <- l.trimUntil(ctx) }()
	select {
	case err := <-l.store.fault:
		return err
	case err := <-trimmed:
		return err
	}
}
