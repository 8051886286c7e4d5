package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/pkg/event"
)

// Reader looks at a log that no process has open, or at a checkpoint of one. It changes
// nothing.
type Reader struct {
	store *store
	end   ending
}

// OpenReader opens the log in dir. fs: nil: the machine's.
func OpenReader(fs vfs.FS, dir string) (*Reader, error) {
	if fs == nil {
		fs = vfs.Default
	}
	s, err := openStore(fs, dir, slog.New(slog.DiscardHandler), tableBytes, true)
	if err != nil {
		return nil, err
	}
	end, err := s.ending()
	if err != nil {
		return nil, errors.Join(explain(dir, err), s.db.Close())
	}
	return &Reader{s, end}, nil
}

// Close closes the log.
func (r *Reader) Close() error {
	if err := r.store.db.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// Format returns the version of the layout.
func (r *Reader) Format() int { return int(r.store.format) }

// Last returns the newest event's cursor; 0 if there has been no event.
func (r *Reader) Last() event.Cursor { return r.end.last }

// Trimmed returns the greatest cursor that retention has removed; 0 if it never did.
func (r *Reader) Trimmed() event.Cursor { return r.end.trimmed }

// Checkpoint returns what the last Append stored beside its chunks; nil if there was none.
func (r *Reader) Checkpoint() []byte { return r.end.checkpoint }

// Stored is a chunk in the store, and what it takes there in bytes.
type Stored struct {
	*Chunk
	Fresh        bool // not merged into a block yet
	IndexBytes   int
	ExcerptBytes int
	JSONBytes    int // as it is packed
	OtherBytes   int // keys
}

// Chunks returns all chunks in order, without their payloads. An error is the last.
func (r *Reader) Chunks() iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		stopped := false
		err := r.store.each(r.end.trimmed, func(b *found) (bool, error) {
			excerpt := 0
			if b.HasExcerpt() {
				excerpt = len(b.rest)
			}
			c, err := b.chunk()
			if err != nil {
				return false, err
			}
			packed := int(b.stored) - blockKeys - len(c.index) - excerpt - c.Size(Zstd) - c.Size(Extra)
			stopped = !yield(Stored{Chunk: c, IndexBytes: len(c.index), ExcerptBytes: excerpt, JSONBytes: packed, OtherBytes: blockKeys}, nil)
			return !stopped, nil
		})
		if err != nil {
			yield(Stored{}, explain(r.store.dir, err))
			return
		}
		for _, c := range r.end.fresh {
			if stopped {
				return
			}
			packed := len(event.PackBlock(nil, c.payload[JSON]))
			stopped = !yield(Stored{Chunk: c, Fresh: true, IndexBytes: len(c.index), JSONBytes: packed}, nil)
		}
	}
}

// Verify reads everything there is and holds it against what package eventlog promises:
// the layout of the keys, the order of events, that none is missing between the first and
// the last, that each index describes its payloads. check is given each chunk's payloads,
// to hold them against the index; it may be called by several goroutines. progress is told
// how much is done, from 0 to 1. The first violation ends it, and names its place.
func (r *Reader) Verify(check func(c *Chunk, json, zstd, extra []byte) error, progress func(float64)) error {
	v := verifier{r: r, check: check, last: r.end.trimmed}
	it, err := r.store.db.NewIter(nil)
	if err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	err = func() error {
		for ok := it.First(); ok; ok = it.Next() {
			value, err := it.ValueAndErr()
			if err != nil {
				return fmt.Errorf("read store: %w", err)
			}
			if err := v.key(it.Key(), value); err != nil {
				return err
			}
			if span := float64(r.end.last - r.end.trimmed); span > 0 && v.first > 0 {
				progress(min(1, float64(v.last-v.first)/max(1, float64(r.end.last-v.first))))
			}
		}
		if err := it.Error(); err != nil {
			return fmt.Errorf("read store: %w", err)
		}
		return v.flush()
	}()
	if err := errors.Join(err, closeIter(it)); err != nil {
		err = explain(r.store.dir, err)
		if d := (refusal{}); errors.As(err, &d) {
			// Whoever is told this has asked what can be read.
			last := v.last
			if v.block != nil {
				last = v.block.Prev // of the block not everything has been read, or it is not as it should be
			}
			d.text += fmt.Sprintf("; everything up to event %d (%s) can be read", last, stamp(last))
			d.advice = startAnew
			err = d
		}
		return err
	}
	if v.last != r.end.last {
		return fmt.Errorf("the chunks end at %d, the log at %d", v.last, r.end.last)
	}
	progress(1)
	return nil
}

// verifier goes through all keys.
type verifier struct {
	r     *Reader
	check func(c *Chunk, json, zstd, extra []byte) error

	first, last event.Cursor // of the chunks so far
	totals      totals
	fresh       bool // chunks are fresh from here on

	head    []byte       // without an index yet; nil: none
	headAt  event.Cursor // its key's
	block   *Chunk       // whose payloads are being read; nil: none
	summary Summary      // of its head, if it has one, or its index
	bytes   int

	ready []*Chunk // complete, waiting to be checked
}

func (v *verifier) key(key, value []byte) error {
	if string(key) == string(keyFormat) {
		return nil // it was looked at when the store was opened
	}
	if len(key) != keyLen || key[0] != prefixEvents || keyCursor(key) < 0 {
		return fmt.Errorf("key %q does not belong here", key)
	}
	at, part := keyCursor(key), keyPart(key)
	fault := func(format string, args ...any) error {
		return fmt.Errorf("chunk %d (%s): %w", at, stamp(at), fmt.Errorf(format, args...))
	}
	if at <= v.r.end.trimmed && part != partState {
		return nil // a trim that was cut short; the next start ends it
	}
	if v.block != nil && v.block.Last() != at {
		if err := v.complete(); err != nil {
			return err
		}
	}
	if v.head != nil && (v.headAt != at || part != partIndex) {
		return fmt.Errorf("chunk %d (%s): %w", v.headAt, stamp(v.headAt), errNoIndex)
	}
	switch part {
	case partState:
		if _, err := parseState(value); err != nil {
			return fault("%w", err)
		}
		return nil
	case partFresh:
		c, _, err := parseFresh(value)
		if err == nil {
			err = v.follows(c, at)
		}
		if err != nil {
			return fault("%w", err)
		}
		v.fresh = true
		return v.add(c)
	case partHead:
		v.head, v.headAt = bytes.Clone(value), at
		return nil
	case partIndex:
		if err := v.index(at, value); err != nil {
			return fault("%w", err)
		}
		return nil
	}
	f := Form(0)
	for f < forms && partOf[f] != part {
		f++
	}
	switch {
	case f == forms:
		return fault("a part %q that is none", part)
	case v.block == nil || v.block.Last() != at:
		return fault("payload %c without an index", part)
	}
	p := value
	if f == JSON {
		var err error
		if p, err = event.UnpackBlock(nil, value, v.block.Size(JSON)); err != nil {
			return fault("json: %w", err)
		}
	} else {
		p = append([]byte(nil), p...)
	}
	v.block.payload[f] = p
	v.bytes += len(value)
	return nil
}

// index begins with a block, whose head, if it has one, has been read.
func (v *verifier) index(at event.Cursor, value []byte) error {
	head := v.head
	v.head = nil
	first := head // has the summary
	if head == nil {
		first = bytes.Clone(value)
	}
	sum, err := parseSummary(first)
	if err != nil {
		return err
	}
	if head != nil && !sum.HasExcerpt() && len(sum.rest) > 0 {
		return errors.New("its head is longer than it says")
	}
	c, err := parseIndex(slices.Concat(sum.front(head), value))
	if err == nil {
		err = v.follows(c, at)
	}
	if err == nil && v.fresh {
		err = errors.New("a block follows fresh chunks")
	}
	v.block, v.summary, v.bytes = c, sum, blockKeys+len(head)+len(value)
	return err
}

func stamp(c event.Cursor) string { return c.Time().UTC().Format("2006-01-02T15:04:05.000000Z") }

// follows checks that a chunk is what comes after those before.
func (v *verifier) follows(c *Chunk, at event.Cursor) error {
	if c.Last() != at {
		return fmt.Errorf("its index ends at %d", c.Last())
	}
	if c.Prev != v.last {
		return fmt.Errorf("it follows event %d, but the one before ends at %d", c.Prev, v.last)
	}
	for i, did := range c.DIDs() {
		if HashDID(did) != c.Hashes[i] {
			return fmt.Errorf("the hash of %s is wrong", did)
		}
	}
	if v.first == 0 {
		v.first = c.First()
	}
	v.last = at
	return nil
}

// complete is called when all of a block has been read.
func (v *verifier) complete() error {
	c := v.block
	fault := func(format string, args ...any) error {
		return fmt.Errorf("chunk %d: %w", c.Last(), fmt.Errorf(format, args...))
	}
	for f := range forms {
		if len(c.payload[f]) != c.Size(f) {
			return fault("payload %c has %d bytes, its index says %d", partOf[f], len(c.payload[f]), c.Size(f))
		}
	}
	if err := checkExcerpt(&v.summary, c); err != nil {
		return fault("%w", err)
	}
	if v.totals == (totals{}) {
		v.totals = totals{v.summary.totalBytes - v.summary.stored, v.summary.totalEvents - int64(len(c.Entries))}
	}
	v.totals.bytes += int64(v.bytes)
	v.totals.events += int64(len(c.Entries))
	if v.summary.stored != int64(v.bytes) || v.summary.totalBytes != v.totals.bytes || v.summary.totalEvents != v.totals.events {
		return fault("it takes %d bytes, %d and %d events with all before it; its index says %d, %d and %d",
			v.bytes, v.totals.bytes, v.totals.events, v.summary.stored, v.summary.totalBytes, v.summary.totalEvents)
	}
	v.block = nil
	return v.add(c)
}

// add has a chunk's contents checked, some at a time.
func (v *verifier) add(c *Chunk) error {
	if v.ready = append(v.ready, c); len(v.ready) < runtime.GOMAXPROCS(0) {
		return nil
	}
	return v.checkReady()
}

func (v *verifier) checkReady() error {
	errs := make([]error, len(v.ready))
	var group sync.WaitGroup
	for i, c := range v.ready {
		group.Go(func() {
			if err := v.check(c, c.payload[JSON], c.payload[Zstd], c.payload[Extra]); err != nil {
				errs[i] = fmt.Errorf("chunk %d: %w", c.Last(), err)
			}
		})
	}
	group.Wait()
	v.ready = v.ready[:0]
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// flush ends what is under way.
func (v *verifier) flush() error {
	if v.head != nil {
		return fmt.Errorf("chunk %d (%s): %w", v.headAt, stamp(v.headAt), errNoIndex)
	}
	if v.block != nil {
		if err := v.complete(); err != nil {
			return err
		}
	}
	return v.checkReady()
}

// WriteCheckpoint writes a copy of the log as it is now to dir, which must not exist, for a
// [Reader] beside a running process. Tables are hard links where the file system has
// them; as long as the copy exists, what retention removes stays on disk. There may be one
// copy at a time, and RemoveCheckpoint removes it.
func (l *Log) WriteCheckpoint(dir string) error {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return ErrClosed
	}
	// Appends wait, for 0.1 s or so: of a WAL that is written while it is copied, later parts
	// may be newer than earlier ones, which is what damage looks like.
	l.writing <- struct{}{}
	defer l.writing.release()
	if l.stuck {
		return errStillFull
	}
	removed := l.removed.Load().bytes
	l.copied.Store(&removed)
	if err := l.store.db.Checkpoint(dir); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// RemoveCheckpoint removes a copy, or what there is of it.
func (l *Log) RemoveCheckpoint(dir string) error {
	if err := l.cfg.FS.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove checkpoint: %w", err)
	}
	l.copied.Store(nil)
	return nil
}
