package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
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

const (
	prefixIndex = 'i'
	prefixMeta  = 'm'
	formatByte  = 1
)

var (
	prefixOf = [forms]byte{JSON: 'j', Zstd: 'z', Extra: 'x'}

	keyFormat     = []byte("mformat")
	keyLast       = []byte("mlast")
	keyTrimmed    = []byte("mtrimmed")
	keyCheckpoint = []byte("mcheckpoint")
)

func key(prefix byte, c event.Cursor) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefix}, uint64(c))
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
	db, err := pebble.Open(dir, &pebble.Options{
		FS:                          fs,
		Logger:                      logger,
		Cache:                       cache,
		MemTableSize:                8 << 20,
		MemTableStopWritesThreshold: 3,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		FormatMajorVersion:          pebble.FormatNewest,
	})
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
		return fmt.Errorf("the store has format %x, this program reads format %d", v, formatByte)
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

func (s *store) getCursor(key []byte) (event.Cursor, error) {
	v, err := s.get(key)
	if err != nil || v == nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("read store: key %q has %d bytes, not 8", key, len(v))
	}
	return event.Cursor(binary.BigEndian.Uint64(v)), nil
}

func cursorValue(c event.Cursor) []byte { return binary.BigEndian.AppendUint64(nil, uint64(c)) }

// append commits chunks and checkpoint in one synced batch. A nil checkpoint leaves
// the stored one.
func (s *store) append(chunks []*Chunk, checkpoint []byte) error {
	b := s.db.NewBatch()
	for _, c := range chunks {
		last := c.Last()
		b.Set(key(prefixIndex, last), c.index, nil)
		for f, prefix := range prefixOf {
			if p := c.payload[f]; len(p) > 0 {
				b.Set(key(prefix, last), p, nil)
			}
		}
	}
	if len(chunks) > 0 {
		b.Set(keyLast, cursorValue(chunks[len(chunks)-1].Last()), nil)
	}
	if checkpoint != nil {
		b.Set(keyCheckpoint, checkpoint, nil)
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("commit chunk: %w", err)
	}
	return nil
}

// read returns up to limit bytes of consecutive chunks, but at least one, from the
// first that has an event after the given position. They have no payloads yet.
func (s *store) read(after event.Cursor, limit int) ([]*Chunk, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: key(prefixIndex, after+1), UpperBound: []byte{prefixIndex + 1}})
	if err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	var chunks []*Chunk
	size := 0
	for ok := it.First(); ok && size < limit; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			var c *Chunk
			if c, err = parseIndex(append(make([]byte, 0, len(v)), v...)); err == nil {
				chunks = append(chunks, c)
				size += c.Size(JSON)
				continue
			}
		}
		return nil, errors.Join(fmt.Errorf("chunk %d: %w", keyCursor(it.Key()), err), it.Close())
	}
	if err := it.Close(); err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	return chunks, nil
}

// tail returns a position that at least events events follow, if there are as many,
// counting back from the newest, but reading no more than limit bytes of them.
func (s *store) tail(events int, limit int64) (event.Cursor, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixIndex}, UpperBound: []byte{prefixIndex + 1}})
	if err != nil {
		return 0, fmt.Errorf("read store: %w", err)
	}
	position := event.Cursor(0)
	for ok := it.Last(); ok && events > 0 && limit > 0; ok = it.Prev() {
		v, err := it.ValueAndErr()
		if err != nil {
			return 0, errors.Join(fmt.Errorf("read store: %w", err), it.Close())
		}
		c, err := parseIndex(v)
		if err != nil {
			return 0, errors.Join(fmt.Errorf("chunk %d: %w", keyCursor(it.Key()), err), it.Close())
		}
		position = c.Prev
		events -= len(c.Entries)
		limit -= c.cost()
	}
	return position, it.Close()
}

// oldest returns the first event's cursor, or 0.
func (s *store) oldest() (event.Cursor, error) {
	chunks, err := s.read(0, 1)
	if err != nil || len(chunks) == 0 {
		return 0, err
	}
	return chunks[0].First(), nil
}

// lastThrough returns the cursor of the last chunk that ends at or before the given
// cursor, or 0 if there is none.
func (s *store) lastThrough(through event.Cursor) (event.Cursor, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixIndex}, UpperBound: key(prefixIndex, through+1)})
	if err != nil {
		return 0, fmt.Errorf("read store: %w", err)
	}
	var last event.Cursor
	if it.Last() {
		last = keyCursor(it.Key())
	}
	if err := it.Close(); err != nil {
		return 0, fmt.Errorf("read store: %w", err)
	}
	return last, nil
}

// trim removes every chunk up to and including the one that ends at last, and stores
// that it did.
func (s *store) trim(last event.Cursor) error {
	b := s.db.NewBatch()
	for _, prefix := range append([]byte{prefixIndex}, prefixOf[:]...) {
		b.DeleteRange([]byte{prefix}, key(prefix, last+1), nil)
	}
	b.Set(keyTrimmed, cursorValue(last), nil)
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("trim store: %w", err)
	}
	return nil
}

// payload reads one form of a chunk.
func (s *store) payload(c *Chunk, f Form) ([]byte, error) {
	if c.Size(f) == 0 {
		return nil, nil
	}
	p, err := s.get(key(prefixOf[f], c.Last()))
	if err != nil {
		return nil, err
	}
	if len(p) != c.Size(f) {
		return nil, fmt.Errorf("chunk %d: payload %c has %d bytes, its index says %d", c.Last(), prefixOf[f], len(p), c.Size(f))
	}
	return p, nil
}
