package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/pkg/event"
)

// store is the log on disk: see the package comment for its keys.
type store struct {
	db    *pebble.DB
	fault chan error // receives the first fault that Pebble calls fatal
}

const formatByte = 2

// What belongs to a cursor has keys <prefixEvents> <cursor, 8 bytes> <part>.
const (
	prefixEvents = 'e'
	keyLen       = 10
)

// The parts. A chunk's are at the cursor of its last event, the index first, so that a
// seek finds it.
const (
	partIndex      = 'i'
	partTrimmed    = 't'
	partCheckpoint = 'u'
)

var (
	partOf    = [forms]byte{JSON: 'j', Zstd: 'z', Extra: 'x'}
	keyFormat = []byte("FORMAT")
)

func key(c event.Cursor, part byte) []byte {
	return append(position(c), part)
}

// position is a bound: it sorts after the keys of every chunk that ends before c, and
// before those of one that ends at c.
func position(c event.Cursor) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, keyLen), prefixEvents), uint64(c))
}

func keyCursor(key []byte) event.Cursor {
	return event.Cursor(binary.BigEndian.Uint64(key[1:]))
}

// pebbleLogger passes Pebble's messages on. Pebble expects Fatalf not to return; the
// goroutine that calls it is parked for good and the fault reported, so that the
// process ends in order rather than in the middle of a write.
type pebbleLogger struct {
	log   *slog.Logger
	fault chan error
}

func (l pebbleLogger) Infof(format string, args ...any) {
	l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Fatalf(format string, args ...any) {
	select {
	case l.fault <- fmt.Errorf("store: "+format, args...):
	default:
	}
	select {}
}

func openStore(fs vfs.FS, dir string, log *slog.Logger) (*store, error) {
	if fs == nil {
		fs = vfs.Default
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	logger := pebbleLogger{log: log, fault: make(chan error, 1)}
	// Made for a machine with 1 GB of memory. Payloads are read once per replay and
	// then cached here, so Pebble's own cache only needs to hold index blocks.
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref()
	// A memtable is flushed as one table and moved to the bottom at once, while it is alone
	// (see the package comment): with more than two in L0 Pebble would rather merge them.
	// Memtables of 8 MiB took as much CPU, catching up, and 8 MB more.
	options := &pebble.Options{
		FS:                          fs,
		Logger:                      logger,
		Cache:                       cache,
		MemTableSize:                4 << 20,
		MemTableStopWritesThreshold: 3,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       24,
		TargetFileSizes:             [7]int64{4 << 20},
		FormatMajorVersion:          pebble.FormatNewest,
	}
	// Payloads are compressed before they come here. The index is not: a tenth of all bytes.
	options.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	db, err := pebble.Open(dir, options)
	if err != nil {
		if isLocked(err) {
			return nil, fmt.Errorf("open store: %s is in use by another process", dir)
		}
		return nil, fmt.Errorf("open store in %s: %w", dir, err)
	}
	s := &store{db: db, fault: logger.fault}
	if err := s.checkFormat(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func isLocked(err error) bool {
	return strings.Contains(err.Error(), "lock held") || strings.Contains(err.Error(), "resource temporarily unavailable")
}

func (s *store) checkFormat() error {
	v, err := s.get(keyFormat)
	switch {
	case err != nil:
		return err
	case len(v) == 1 && v[0] == formatByte:
		return nil
	case v != nil:
		return fmt.Errorf("the store has format %x, this program reads format %d: give it another data directory", v, formatByte)
	}
	if v, err := s.get([]byte("mformat")); err != nil {
		return err
	} else if v != nil {
		return fmt.Errorf("the store has an older format, %x, this program reads format %d: give it another data directory", v, formatByte)
	}
	it, err := s.db.NewIter(nil)
	if err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	foreign := it.First()
	if err := it.Close(); err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	if foreign {
		return errors.New("the data directory holds a Pebble store of another program; give Slipstream a directory of its own")
	}
	return s.db.Set(keyFormat, []byte{formatByte}, pebble.Sync)
}

// get returns a copy of a value, or nil if there is none.
func (s *store) get(key []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, closer.Close()
}

// append commits chunks and checkpoint in one synced batch. A nil checkpoint leaves
// the stored one. last is the cursor of the last event before the chunks.
func (s *store) append(last event.Cursor, chunks []*Chunk, checkpoint []byte) error {
	size := 256
	for _, c := range chunks {
		size += len(c.index) + len(c.packed) + c.Size(Zstd) + c.Size(Extra) + 128
	}
	b := s.db.NewBatchWithSize(size)
	defer b.Close()
	for _, c := range chunks {
		last = c.Last()
		b.Set(key(last, partIndex), c.index, nil)
		for f, part := range partOf {
			p := c.payload[f]
			if Form(f) == JSON {
				p = c.packed
			}
			if len(p) > 0 {
				b.Set(key(last, part), p, nil)
			}
		}
	}
	if checkpoint != nil {
		b.Set(key(last, partCheckpoint), checkpoint, nil)
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("commit chunk: %w", err)
	}
	for _, c := range chunks {
		c.packed = nil
	}
	return nil
}

// ends returns what is at the two ends of the log: the greatest cursor that retention has
// removed and the greatest one of all (0 if there is none), and the newest checkpoint (nil
// if there is none).
func (s *store) ends() (trimmed, last event.Cursor, checkpoint []byte, err error) {
	it, err := s.events(0, math.MaxInt64)
	if err != nil {
		return 0, 0, nil, err
	}
	if it.First() && it.Key()[keyLen-1] == partTrimmed {
		trimmed = keyCursor(it.Key())
	}
	ok := it.Last()
	if ok {
		last = keyCursor(it.Key())
	}
	// Nearly every append has a checkpoint: this is a step or two.
	for ok && it.Key()[keyLen-1] != partCheckpoint {
		ok = it.Prev()
	}
	if ok {
		v, err := it.ValueAndErr()
		if err != nil {
			return 0, 0, nil, errors.Join(fmt.Errorf("read store: %w", err), it.Close())
		}
		checkpoint = bytes.Clone(v)
	}
	return trimmed, last, checkpoint, closeIter(it)
}

// events iterates over the keys of the chunks that end at or after from and before to.
func (s *store) events(from, to event.Cursor) (*pebble.Iterator, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: position(from), UpperBound: position(to)})
	if err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	return it, nil
}

func closeIter(it *pebble.Iterator) error {
	if err := it.Close(); err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	return nil
}

// indexAt parses the index that an iterator stands at. The chunk has no payloads yet.
func indexAt(it *pebble.Iterator) (*Chunk, error) {
	last := keyCursor(it.Key())
	v, err := it.ValueAndErr()
	if err == nil && it.Key()[keyLen-1] != partIndex {
		err = errors.New("has no index")
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %d: %w", last, err)
	}
	c, err := parseIndex(bytes.Clone(v))
	if err == nil && c.Last() != last {
		err = fmt.Errorf("its index ends at %d", c.Last())
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %d: %w", last, err)
	}
	return c, nil
}

// read returns up to limit bytes of consecutive chunks, but at least one, from the
// first that has an event after the given position. They have no payloads yet.
func (s *store) read(after event.Cursor, limit int) ([]*Chunk, error) {
	it, err := s.events(after+1, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	var chunks []*Chunk
	size := 0
	for ok := it.First(); ok && size < limit; {
		c, err := indexAt(it)
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		chunks = append(chunks, c)
		size += c.Size(JSON)
		ok = size < limit && it.SeekGE(position(c.Last()+1))
	}
	return chunks, closeIter(it)
}

// tail returns a position that at least events events follow, if there are as many,
// counting back from the newest, but reading no more than limit bytes of them.
func (s *store) tail(events int, limit int64) (event.Cursor, error) {
	it, err := s.events(0, math.MaxInt64)
	if err != nil {
		return 0, err
	}
	at := event.Cursor(0)
	for ok := it.Last(); ok && events > 0 && limit > 0; ok = it.SeekLT(position(keyCursor(it.Key()))) {
		if !it.SeekGE(position(keyCursor(it.Key()))) {
			break // an error, which Close returns: the key was there
		}
		if it.Key()[keyLen-1] != partIndex {
			break // the log begins here: what retention has left, or a checkpoint without events
		}
		c, err := indexAt(it)
		if err != nil {
			return 0, errors.Join(err, it.Close())
		}
		at = c.Prev
		events -= len(c.Entries)
		limit -= c.cost()
	}
	return at, closeIter(it)
}

// oldest returns the cursor of the first event after the given cursor, or 0.
func (s *store) oldest(after event.Cursor) (event.Cursor, error) {
	chunks, err := s.read(after, 1)
	if err != nil || len(chunks) == 0 {
		return 0, err
	}
	return chunks[0].First(), nil
}

// lastThrough returns the cursor of the last chunk that ends at or before the given
// cursor, or 0 if there is none.
func (s *store) lastThrough(through event.Cursor) (event.Cursor, error) {
	it, err := s.events(0, through+1)
	if err != nil {
		return 0, err
	}
	var last event.Cursor
	if it.Last() {
		last = keyCursor(it.Key())
	}
	return last, closeIter(it)
}

// trim removes every chunk up to and including the one that ends at through, and stores
// that it did. The checkpoint, made after the event at last, may have been theirs. Nothing
// may be appended meanwhile.
//
// What is deleted gets a table of its own, between two flushes. In one with the newest
// events it would reach over the whole log, and be merged with all that is below
// (measured: as if everything were written once more).
func (s *store) trim(through, last event.Cursor, checkpoint []byte) error {
	if checkpoint != nil && last > through {
		if err := s.db.Set(key(last, partCheckpoint), checkpoint, pebble.Sync); err != nil {
			return fmt.Errorf("trim store: %w", err)
		}
	}
	if err := s.db.Flush(); err != nil {
		return fmt.Errorf("trim store: %w", err)
	}
	b := s.db.NewBatch()
	defer b.Close()
	b.DeleteRange(position(0), position(through+1), nil)
	b.Set(key(through, partTrimmed), nil, nil)
	if checkpoint != nil && last == through {
		b.Set(key(last, partCheckpoint), checkpoint, nil) // the log is empty: this is its end, too
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("trim store: %w", err)
	}
	if err := s.db.Flush(); err != nil {
		return fmt.Errorf("trim store: %w", err)
	}
	return nil
}

// payload reads one form of a chunk.
func (s *store) payload(c *Chunk, f Form) ([]byte, error) {
	if c.Size(f) == 0 {
		return nil, nil
	}
	p, err := s.get(key(c.Last(), partOf[f]))
	if err != nil {
		return nil, err
	}
	if f == JSON && p != nil {
		if p, err = event.UnpackBlock(p, c.Size(f)); err != nil {
			return nil, fmt.Errorf("chunk %d: %w", c.Last(), err)
		}
	}
	if len(p) != c.Size(f) {
		return nil, fmt.Errorf("chunk %d: payload %c has %d bytes, its index says %d", c.Last(), partOf[f], len(p), c.Size(f))
	}
	return p, nil
}
