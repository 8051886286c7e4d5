package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	// CacheBytes bounds what was read from disk for replays, and derived forms, of new chunks
	// too. Default 16 MiB.
	CacheBytes int64
	// BlockEvents is how many events small chunks are merged to before readers find them
	// on disk. Default 1000.
	BlockEvents int
	Limits      // to begin with: see SetLimits
	// Floor is the free space in bytes below which Append waits. Default 64 MiB: room for
	// Pebble to flush and compact what it has already accepted.
	Floor uint64
	// Ballast is the size in bytes of a file that is there to be removed when the disk is
	// full all the same. Default 64 MiB; below 0: none.
	Ballast int64
	// Stop ends what waits in Open for space on a full disk; nil: nothing does.
	Stop <-chan struct{}
	// Logger, Registerer: nil: none.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Now is the clock; nil: time.Now.
	Now func() time.Time

	// The constants, but for tests.
	tableBytes int
	keptBytes  int64
}

// Limits say how much is kept.
type Limits struct {
	// Retention is how long events are kept. Default 24 hours.
	Retention time.Duration
	// MaxBytes is what the store may take on disk, everything included; 0: no limit.
	MaxBytes int64
	// MinFree is the free space that the oldest events make room for; what is more, this
	// or MinFreeShare of the disk, counts. Default: see Config.Floor.
	MinFree      uint64
	MinFreeShare float64
}

// SetLimits changes how much is kept. What is too much by new limits goes as if it had become so
// by itself: what is too old at twice the speed of time, what is too large within a second or two.
func (l *Log) SetLimits(limits Limits) {
	if limits.Retention <= 0 {
		limits.Retention = 24 * time.Hour
	}
	l.limits.Store(&limits)
}

// Log is the event log. All methods are safe for concurrent use but for Append, which
// has one caller at a time.
type Log struct {
	// Immutable after Open.
	cfg     Config
	log     *slog.Logger
	store   *store
	cache   *cache
	damage  *damage
	metrics *metrics

	limits     atomic.Pointer[Limits] // complete
	current    atomic.Pointer[window]
	trimmed    atomic.Int64 // the greatest cursor that retention removed
	oldest     atomic.Int64 // the first event's cursor, 0 if there is none; set under oldestMu
	checkpoint atomic.Pointer[[]byte]
	diskFull   atomic.Bool

	disk      *spaceFS
	retention retention // owned by Trim
	noBallast time.Time // when it could not be made; owned by Run

	// writing is held for a batch and for saying what was in it: last and checkpoint
	// always belong together for who holds it. Whoever holds it may wait for space on a full
	// disk, so that others must be able to give up.
	writing lock
	// Guarded by writing:
	stuck  bool     // a commit was left to itself, and may still come to pass: nothing may follow
	fresh  []*Chunk // stored as they came, in no block yet; all in the window
	blocks event.Cursor
	merger merger

	stored  atomic.Pointer[totals] // in blocks; set under writing
	removed atomic.Pointer[totals] // of those, by retention
	opened  totals                 // as they were at Open; immutable
	copied  atomic.Pointer[int64]  // removed.bytes when the checkpoint was made; nil: there is none

	// oldestMu makes Trim's look at the store and its setting of oldest one step.
	oldestMu sync.Mutex

	// Readers of the store hold closing for reading; Close for writing.
	closing sync.RWMutex
	closed  bool // guarded by closing
}

// lock is a mutex that one can give up waiting for.
type lock chan struct{}

// take takes the lock, for a disk that is full may make whoever has it wait. When ctx has
// ended it gives up, but only then: without a want of space nobody has it for long.
func (l lock) take(ctx context.Context, disk *spaceFS) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
	}
	tick := time.NewTicker(disk.every)
	defer tick.Stop()
	for {
		select {
		case l <- struct{}{}:
			return nil
		case <-tick.C:
			if disk.waiting() {
				return ctx.Err()
			}
		}
	}
}

func (l lock) release() { <-l }

// blockBytes is how much JSON makes a block, however few events: a reader of one of them
// unpacks it all.
const blockBytes = 512 << 10

// blockShare is which part of the retention a block may span: where events are rare, it is
// what retention is late by.
const blockShare = 24

// ErrClosed is returned by a Log that has been closed.
var ErrClosed = errors.New("event log is closed")

// ErrFull is returned by an Open that was stopped while it waited for space.
var ErrFull = errors.New("the disk is full")

// Open opens or creates the log and fills the window from disk, so that those who
// come back after a restart are served from memory.
func Open(cfg Config) (*Log, error) {
	if cfg.WindowBytes <= 0 {
		cfg.WindowBytes = 4 << 20
	}
	if cfg.CacheBytes <= 0 {
		cfg.CacheBytes = 16 << 20
	}
	if cfg.BlockEvents <= 0 {
		cfg.BlockEvents = 1000
	}
	if cfg.Floor == 0 {
		cfg.Floor = 64 << 20
	}
	if cfg.Ballast == 0 {
		cfg.Ballast = 64 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.tableBytes == 0 {
		cfg.tableBytes = tableBytes
	}
	if cfg.keptBytes == 0 {
		cfg.keptBytes = keptBytes
	}
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	l := &Log{cfg: cfg, log: cfg.Logger, cache: newCache(cfg.CacheBytes), damage: &damage{}, writing: make(lock, 1)}
	l.SetLimits(cfg.Limits)
	l.disk = newSpaceFS(cfg.FS, cfg.Dir, cfg.Ballast, l.noSpace)
	opened := make(chan error, 1)
	go func() {
		s, err := openStore(l.disk, cfg.Dir, cfg.Logger, cfg.tableBytes, false)
		if l.store = s; err == nil {
			if err = l.recover(); err != nil {
				err = errors.Join(explain(cfg.Dir, err), s.db.Close())
			}
		}
		opened <- err
	}()
	if err := l.disk.await(cfg.Stop, opened); err == errStillFull {
		l.disk.giveUp()
		return nil, fmt.Errorf("open store in %s: %w", cfg.Dir, ErrFull)
	} else if err != nil {
		return nil, err
	}
	l.metrics = newMetrics(cfg.Registerer, l)
	return l, nil
}

func (l *Log) recover() error {
	end, err := l.store.ending()
	if err != nil {
		return err
	}
	oldest, err := l.store.first(0)
	if err == nil && oldest.Last > 0 && oldest.Last <= end.trimmed {
		// The process ended between the two steps of a trim.
		if err = l.store.excise(context.Background(), end.trimmed); err == nil {
			oldest, err = l.store.first(end.trimmed)
		}
	}
	if err != nil {
		return err
	}
	switch {
	case oldest.Last > 0:
		l.oldest.Store(int64(oldest.First))
	case len(end.fresh) > 0:
		l.oldest.Store(int64(end.fresh[0].First()))
	}
	position, err := l.store.tail(end.blocks, MaxEvents, l.cfg.WindowBytes)
	if err != nil {
		return err
	}
	position = max(position, end.trimmed)
	w := &window{last: end.last, grown: make(chan struct{})}
	for position < end.blocks {
		chunks, _, err := l.store.read(position, 1<<20, nil)
		if err != nil {
			return err
		}
		if len(chunks) == 0 {
			break
		}
		for _, c := range chunks {
			for f := range forms {
				if c.payload[f], err = l.store.payload(c, f, nil); err != nil {
					return err
				}
			}
			c.resident = true
		}
		w = w.with(chunks, l.cfg.WindowBytes, end.blocks)
		position = w.last
	}
	w = w.with(end.fresh, l.cfg.WindowBytes, end.blocks)
	w.last = end.last
	l.fresh, l.blocks = end.fresh, end.blocks
	l.opened = end.totals
	l.stored.Store(&end.totals)
	l.removed.Store(&totals{oldest.totalBytes - oldest.stored, oldest.totalEvents - int64(oldest.Events())})
	if oldest.Last == 0 {
		l.removed.Store(&end.totals)
	}
	l.retention.aged = l.cfg.Now()
	l.current.Store(w)
	l.trimmed.Store(int64(end.trimmed))
	l.checkpoint.Store(&end.checkpoint)
	return nil
}

// Close closes the store. Nothing may be appended any more; readers get ErrClosed. A store
// in which something waits for space is left as it is, for the end of the process to close:
// Pebble recovers what was synced.
func (l *Log) Close() error {
	late := make(chan struct{})
	defer time.AfterFunc(time.Second, func() { close(late) }).Stop()
	closed := make(chan error, 1)
	go func() { closed <- l.close() }()
	err := l.disk.await(late, closed)
	if err == errStillFull {
		l.log.Warn("the disk is full, the store is left as it is; nothing that was stored is lost")
		return nil
	}
	return err
}

func (l *Log) close() error {
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
// the stored one. While the disk is too full it waits for space or for ctx, whose end in
// the middle of a commit is the end of appending: the store may hold more then than the
// log knows. The log keeps the chunks and a copy of the checkpoint.
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
	if err := l.writing.take(ctx, l.disk); err != nil {
		return fmt.Errorf("wait for disk space: %w", err)
	}
	defer l.writing.release()
	if l.stuck {
		return errStillFull
	}
	if checkpoint == nil {
		checkpoint = l.Checkpoint()
	}
	start := time.Now()
	if err := l.commit(ctx, chunks, state{l.Trimmed(), checkpoint}, false); err != nil {
		return err
	}
	l.metrics.commit.Observe(time.Since(start).Seconds())
	kept := bytes.Clone(checkpoint)
	l.checkpoint.Store(&kept)
	if len(chunks) == 0 {
		return nil
	}
	l.oldestMu.Lock()
	l.oldest.CompareAndSwap(0, int64(chunks[0].First()))
	l.oldestMu.Unlock()
	before := l.current.Load()
	l.current.Store(before.with(chunks, l.cfg.WindowBytes, l.blocks))
	close(before.grown)
	l.metrics.appended(chunks)
	return nil
}

// commit stores chunks and state. Where it leaves small chunks behind that make a block,
// it merges them into one; with all, it merges whatever is left. The caller holds writing.
func (l *Log) commit(ctx context.Context, chunks []*Chunk, s state, all bool) error {
	size := 1 << 10
	for _, c := range chunks {
		size += len(c.index) + len(c.packed) + c.Size(Zstd) + c.Size(Extra) + 256
	}
	w := l.store.newBatch(size)
	stored, blocks, last := *l.stored.Load(), l.blocks, l.Last()

	group := slices.Clone(l.fresh) // what the next block is made of
	inStore := len(group)          // so many of them are
	events, bytes := 0, 0
	for _, c := range group {
		events += len(c.Entries)
		bytes += c.Size(JSON)
	}
	closeGroup := func() error {
		if len(group) == 0 {
			return nil
		}
		c, err := l.merger.merge(group)
		if err != nil {
			return err
		}
		if stored, err = w.block(c, stored); err != nil {
			return err
		}
		blocks = c.Last()
		w.merged(group[:inStore])
		group, inStore, events, bytes = nil, 0, 0, 0
		return nil
	}
	for _, c := range chunks {
		last = c.Last()
		large := 2*len(c.Entries) >= l.cfg.BlockEvents || 2*c.Size(JSON) >= blockBytes
		if large || len(group) > 0 && c.Dictionary != group[0].Dictionary {
			if err := closeGroup(); err != nil {
				return errors.Join(err, w.b.Close())
			}
		}
		if large {
			var err error
			if stored, err = w.block(c, stored); err != nil {
				return errors.Join(err, w.b.Close())
			}
			blocks = c.Last()
			continue
		}
		group = append(group, c)
		events += len(c.Entries)
		bytes += c.Size(JSON)
		if events >= l.cfg.BlockEvents || bytes >= blockBytes || l.spansTooMuch(group) {
			if err := closeGroup(); err != nil {
				return errors.Join(err, w.b.Close())
			}
		}
	}
	if all {
		if err := closeGroup(); err != nil {
			return errors.Join(err, w.b.Close())
		}
	}
	for _, c := range group[inStore:] {
		w.fresh(c, s)
	}
	if len(group) == inStore {
		w.state(last, s)
	}
	committed := make(chan error, 1)
	mayFlush := len(l.fresh) == 0 && len(chunks) > 0
	go func() { committed <- w.commit(mayFlush) }()
	if err := l.disk.await(ctx.Done(), committed); err == errStillFull {
		l.stuck = true
		return fmt.Errorf("wait for disk space: %w", ctx.Err())
	} else if err != nil {
		return err
	}
	for _, c := range chunks {
		c.packed = nil
	}
	l.fresh, l.blocks = group, blocks
	l.stored.Store(&stored)
	return nil
}

// spansTooMuch reports whether retention would have to wait for a block of the chunks.
func (l *Log) spansTooMuch(chunks []*Chunk) bool {
	return chunks[len(chunks)-1].Last().Time().Sub(chunks[0].First().Time()) > l.limits.Load().Retention/blockShare
}

// Next returns the chunk that holds the first event after the given position. If
// there is none yet it returns nil and a channel that closes when there is. A
// position before Trimmed gets ErrTrimmed.
func (l *Log) Next(after event.Cursor) (*Chunk, <-chan struct{}, error) {
	c, _, grown, err := l.NextUnless(after, nil)
	return c, grown, err
}

// NextUnless is Next for a reader who may have no use for much of what is on disk: need says,
// of a block there, how much it needs; nil: everything. What it does not need is passed over,
// and where an excerpt is enough, that is what it gets. A bounded number is passed over: with
// neither a chunk nor a channel the reader goes on from passed, where everything up to it has
// been.
func (l *Log) NextUnless(after event.Cursor, need func(*Summary) Need) (c *Chunk, passed event.Cursor, grown <-chan struct{}, err error) {
	for skipped := 0; ; {
		w := l.current.Load()
		if after < l.Trimmed() {
			return nil, after, nil, ErrTrimmed
		}
		if w.covers(after) {
			return w.next(after), after, w.grown, nil
		}
		place := cacheKey{whatIndex, after, 0}
		if c := l.cache.get(place); c != nil {
			return c.(*Chunk), after, nil, nil
		}
		if need != nil {
			// Its damage is noted apart, too: what others could not read may not be needed.
			place.what = whatExcerpt
			if x, ok := l.cache.get(place).(*Chunk); ok {
				switch need(x.of) {
				case Nothing:
					after = x.Last()
					if skipped++; skipped == skipBlocks {
						return nil, after, nil, nil
					}
					continue
				case Excerpt:
					return x, after, nil, nil
				}
			}
		}
		if err := l.damage.at(place); err != nil {
			return nil, after, nil, err
		}
		chunks, passed, err := l.read(after, need)
		// Retention may have passed while the store was read, which is then no error of its.
		if after < l.Trimmed() {
			return nil, after, nil, ErrTrimmed
		}
		switch {
		case err != nil:
			return nil, after, nil, l.damage.note(place, explain(l.cfg.Dir, err))
		case len(chunks) > 0:
			for _, c := range chunks {
				what := whatIndex
				if c.IsExcerpt() {
					what = whatExcerpt
				}
				l.cache.put(cacheKey{what, c.Prev, 0}, c, c.memory())
			}
			return chunks[0], passed, nil, nil
		case passed > after:
			return nil, passed, nil, nil
		case l.current.Load() == w:
			return nil, after, nil, fmt.Errorf("no chunk after cursor %d, though the log ends at %d", after, w.last)
		}
	}
}

func (l *Log) read(after event.Cursor, need func(*Summary) Need) (chunks []*Chunk, passed event.Cursor, err error) {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return nil, after, ErrClosed
	}
	return l.store.read(after, readAhead, need)
}

// InMemory reports whether Next and Payload of its chunk need not read the store for a
// position, as long as the log does not grow.
func (l *Log) InMemory(after event.Cursor) bool { return l.current.Load().covers(after) }

// readAhead is how many bytes of JSON the indexes that are read from disk in one go
// may stand for, and how many bytes their heads may have where excerpts are enough: enough to
// make the seek cheap, little enough for a reader that wants only a few events.
const readAhead = 512 << 10

// Payload returns one form of a chunk, which the caller must not change and may keep.
// ErrTrimmed means that retention took it meanwhile. An excerpt's JSON is an error to ask for.
func (l *Log) Payload(c *Chunk, f Form) ([]byte, error) {
	p, err := l.Borrow(c, f)
	return p.Bytes, err // never returned
}

// Borrow is Payload for who gives it back soon: then its memory serves for the next ones.
func (l *Log) Borrow(c *Chunk, f Form) (Loan, error) {
	if c.IsExcerpt() && f == JSON {
		return Loan{}, errors.New("an excerpt has no JSON")
	}
	if c.resident || c.IsExcerpt() || c.Size(f) == 0 {
		return Loan{Bytes: c.payload[f]}, nil
	}
	place := cacheKey{uint64(f), c.Last(), 0}
	for {
		if err := l.damage.at(place); err != nil {
			return Loan{}, err
		}
		own := false
		v, err := l.cache.make(place, func() (any, int64, error) {
			l.closing.RLock()
			defer l.closing.RUnlock()
			if l.closed {
				return nil, 0, ErrClosed
			}
			p, err := l.store.payload(c, f, &l.cache.spare)
			if err != nil {
				return nil, 0, err
			}
			s := &shared{bytes: p, spare: &l.cache.spare}
			s.holders.Store(2) // the cache, and who has read it
			own = true
			return s, int64(cap(p)), nil
		})
		if err != nil {
			if c.Last() <= l.Trimmed() {
				return Loan{}, ErrTrimmed
			}
			return Loan{}, l.damage.note(place, explain(l.cfg.Dir, err))
		}
		if s := v.(*shared); own || s.hold() {
			return Loan{s.bytes, s}, nil
		}
		// It has left the cache, and its last holder, since it was found there.
	}
}

// View shows one form of a chunk, but not its JSON, to a reader who wants little of it and
// keeps nothing: payload is good until show returns. Errors are Payload's, and show's.
func (l *Log) View(c *Chunk, f Form, show func(payload []byte) error) error {
	if l.Loaded(c, f) {
		p, err := l.Borrow(c, f)
		if err != nil {
			return err
		}
		defer p.Return()
		return show(p.Bytes)
	}
	place := cacheKey{uint64(f), c.Last(), 0}
	if err := l.damage.at(place); err != nil {
		return err
	}
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return ErrClosed
	}
	err := l.store.view(c, f, show)
	switch {
	case err == nil:
		return nil
	case c.Last() <= l.Trimmed():
		return ErrTrimmed
	}
	return l.damage.note(place, explain(l.cfg.Dir, err))
}

// Loaded reports whether Payload would find a form of a chunk in memory.
func (l *Log) Loaded(c *Chunk, f Form) bool {
	if c.IsExcerpt() {
		return f != JSON
	}
	return c.resident || l.cache.get(cacheKey{uint64(f), c.Last(), 0}) != nil
}

// Derived is a form of a chunk that is made on demand.
type Derived struct {
	Bytes []byte
	Ends  []uint32 // where each entry ends in Bytes
}

// Derive returns the derived form of a chunk that key, below 1<<63, names, made by build at
// most once while it is in the cache. The caller must not change it.
func (l *Log) Derive(c *Chunk, key uint64, build func() (Derived, error)) (Derived, error) {
	d, err := l.cache.make(cacheKey{whatDerived | key, c.Last(), len(c.Entries)}, func() (any, int64, error) {
		d, err := build()
		return d, int64(cap(d.Bytes) + 4*cap(d.Ends)), err
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
	l.writing <- struct{}{}
	position := l.blocks
	if len(l.fresh) > 0 {
		position = l.fresh[0].Prev
	}
	for _, c := range l.fresh {
		events -= len(c.Entries)
	}
	l.writing.release()
	position, err := l.store.tail(position, events, 1<<40)
	return max(position, l.Trimmed()), explain(l.cfg.Dir, err)
}

// Run applies retention until ctx ends. It returns an error when the store has failed
// in a way that it cannot recover from; the log is of no use then and must not be
// closed.
func (l *Log) Run(ctx context.Context) error {
	// Apart, because a store that has failed may never let go of who waits for it.
	trimmed := make(chan error, 1)
	go func() { trimmed <- l.trimUntil(ctx) }()
	stopped := make(chan error, 1)
	go func() { stopped <- l.disk.await(ctx.Done(), trimmed) }()
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	for {
		l.keepBallast()
		select {
		case err := <-l.store.fault:
			return err
		case err := <-stopped:
			if err == errStillFull {
				return nil
			}
			return explain(l.cfg.Dir, err)
		case <-tick.C:
		}
	}
}
