package eventlog

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/pkg/event"
)

// store is the log on disk: see the package comment for its keys.
type store struct {
	db     *pebble.DB
	dir    string
	format byte       // that it has: formatByte, or the one before if it was opened to be read
	fault  chan error // receives the first fault that Pebble calls fatal

	tableBytes int
	// Owned by who writes (Log.writing):
	unflushed int // bytes written since the last flush
	excerpter excerpter
}

// The versions of the layout that are read. Blocks of format 3 have no heads, and stay as they
// are in a store that has been made one of format 4 by opening it.
const (
	formatByte   = 4
	oldestFormat = 3
)

// What belongs to a cursor has keys <prefixEvents> <cursor, 8 bytes> <part>.
const (
	prefixEvents = 'e'
	keyLen       = 10
)

// The parts. A block's are at the cursor of its last event, the head first, so that a
// seek finds it; the state is behind everything else.
const (
	partFresh = 'f'
	partHead  = 'h'
	partIndex = 'i'
	partState = '~'
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

func keyPart(key []byte) byte { return key[keyLen-1] }

// state is what the store knows beside events. It is stored with every append, and the one
// that stands last counts.
type state struct {
	trimmed    event.Cursor // the greatest cursor that retention has removed
	checkpoint []byte       // nil: there has been none
}

// encode returns the state as it is stored: trimmed, 8 bytes little-endian; the checkpoint.
func (s state) encode() []byte {
	return append(binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(s.checkpoint)), uint64(s.trimmed)), s.checkpoint...)
}

func parseState(b []byte) (state, error) {
	if len(b) < 8 {
		return state{}, errors.New("damaged state")
	}
	s := state{trimmed: event.Cursor(binary.LittleEndian.Uint64(b))}
	if len(b) > 8 {
		s.checkpoint = bytes.Clone(b[8:])
	}
	return s, nil
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

// tableBytes is how much is written before it becomes a table, and memTableRoom how much
// larger a memtable is: Pebble would end it by itself, in the wrong place, if the append that
// reaches tableBytes did not fit.
const (
	tableBytes   = 13 << 19
	memTableRoom = 3 << 19
)

func openStore(fs vfs.FS, dir string, log *slog.Logger, tableBytes int, readOnly bool) (*store, error) {
	if readOnly {
		if _, err := fs.Stat(dir); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	} else if err := fs.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	logger := pebbleLogger{log: log, fault: make(chan error, 1)}
	// Made for a machine with 1 GB of memory. Payloads are read once per replay and
	// then cached here, so Pebble's own cache only needs to hold index blocks.
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref()
	// A memtable is flushed as one table and moved to the bottom at once, while it is alone
	// (see the package comment): with more than two in L0 Pebble would rather merge them.
	options := &pebble.Options{
		Comparer:                    comparer(),
		FS:                          fs,
		Logger:                      logger,
		Cache:                       cache,
		MemTableSize:                uint64(tableBytes + memTableRoom),
		MemTableStopWritesThreshold: 3,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       24,
		TargetFileSizes:             [7]int64{int64(tableBytes + memTableRoom)},
		FormatMajorVersion:          pebble.FormatNewest,
		// It grows by a megabyte a day, and is read at each start and copied for each checkpoint.
		MaxManifestFileSize: 4 << 20,
		ReadOnly:            readOnly,
		// Whoever reads gets the error; without this, Fatalf is called.
		EventListener: &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) {}},
	}
	// Payloads are compressed before they come here. The index is not: a tenth of all bytes.
	options.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	err := inspect(dir, options, logger.fault)
	var db *pebble.DB
	if err == nil {
		db, err = openPebble(dir, options, logger.fault)
	}
	if err != nil {
		if isLocked(err) {
			return nil, fmt.Errorf("open store: %s %w", dir, ErrInUse)
		}
		return nil, explain(dir, fmt.Errorf("open store in %s: %w", dir, err))
	}
	s := &store{db: db, dir: dir, fault: logger.fault, tableBytes: tableBytes}
	err = s.checkFormat()
	if !readOnly && (errors.Is(err, errEmpty) || err == nil && s.format < formatByte) {
		err = s.writeFormat()
	}
	if err != nil {
		return nil, errors.Join(explain(dir, err), db.Close())
	}
	return s, nil
}

// comparer is Pebble's own order, by which stores are known, but for what stands in a table's
// index between two blocks: a shortest key between the two would come after position, so that
// each seek to the next block would read the largest payload of the one before.
func comparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Separator = func(dst, a, _ []byte) []byte { return append(dst, a...) }
	return &c
}

// ErrInUse says that another process has the store open.
var ErrInUse = errors.New("is in use by another process")

func isLocked(err error) bool {
	return strings.Contains(err.Error(), "lock held") || strings.Contains(err.Error(), "resource temporarily unavailable")
}

// errEmpty says that there is nothing in a store yet.
var errEmpty = errors.New("the data directory holds no events")

// checkFormat reads the version of the layout.
func (s *store) checkFormat() error {
	v, err := s.get(keyFormat)
	switch {
	case err != nil:
		return err
	case len(v) == 1 && oldestFormat <= v[0] && v[0] <= formatByte:
		s.format = v[0]
		return nil
	case len(v) == 1 && v[0] > formatByte:
		return fmt.Errorf("the store was written by a newer Slipstream (format %d, this one reads %d): upgrade, or give it another data directory", v[0], formatByte)
	case v != nil:
		return fmt.Errorf("the store was written by an older Slipstream (format %x, this one reads %d and later): give it another data directory", v, oldestFormat)
	}
	it, err := s.db.NewIter(nil)
	if err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	foreign := it.First()
	if err := closeIter(it); err != nil {
		return err
	}
	if foreign {
		return foreignStore(s.dir, nil)
	}
	return errEmpty
}

func (s *store) writeFormat() error {
	if err := s.db.Set(keyFormat, []byte{formatByte}, pebble.Sync); err != nil {
		return fmt.Errorf("write store: %w", err)
	}
	// At the bottom, in a table of its own, it is in nobody's way.
	if err := s.db.Compact(context.Background(), keyFormat, append(keyFormat[:len(keyFormat):len(keyFormat)], 0), false); err != nil {
		return fmt.Errorf("write store: %w", err)
	}
	s.format = formatByte
	return nil
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

// batch is what one append writes.
type batch struct {
	store *store
	b     *pebble.Batch
}

func (s *store) newBatch(size int) batch { return batch{s, s.db.NewBatchWithSize(size)} }

// fresh adds a chunk as it came, in one record, with the state that holds once it is stored:
//
//	length of the state, 4 bytes little-endian; the state
//	length of the index, 4; the index
//	length of the packed JSON, 4; the packed JSON
//	zstd, as long as the index says
//	extra
func (w batch) fresh(c *Chunk, s state) {
	st := s.encode()
	v := make([]byte, 0, 12+len(st)+len(c.index)+len(c.packed)+c.Size(Zstd)+c.Size(Extra))
	for _, part := range [][]byte{st, c.index, c.packed} {
		v = append(binary.LittleEndian.AppendUint32(v, uint32(len(part))), part...)
	}
	v = append(append(v, c.payload[Zstd]...), c.payload[Extra]...)
	w.b.Set(key(c.Last(), partFresh), v, nil)
}

// parseFresh reads a fresh record. The chunk is resident.
func parseFresh(v []byte) (*Chunk, state, error) {
	v = bytes.Clone(v) // the chunk keeps it
	var parts [3][]byte
	for i := range parts {
		if len(v) < 4 || uint64(binary.LittleEndian.Uint32(v)) > uint64(len(v)-4) {
			return nil, state{}, errors.New("damaged fresh chunk")
		}
		n := 4 + int(binary.LittleEndian.Uint32(v))
		parts[i], v = v[4:n], v[n:]
	}
	s, err := parseState(parts[0])
	if err != nil {
		return nil, state{}, err
	}
	c, err := parseIndex(parts[1])
	if err != nil {
		return nil, state{}, err
	}
	if len(v) != c.Size(Zstd)+c.Size(Extra) {
		return nil, state{}, fmt.Errorf("payloads of %d bytes, the index says %d", len(v), c.Size(Zstd)+c.Size(Extra))
	}
	c.payload[Zstd], c.payload[Extra] = v[:c.Size(Zstd):c.Size(Zstd)], v[c.Size(Zstd):]
	if len(parts[2]) > 0 || c.Size(JSON) > 0 {
		if c.payload[JSON], err = event.UnpackBlock(nil, parts[2], c.Size(JSON)); err != nil {
			return nil, state{}, err
		}
	}
	c.resident = true
	return c, s, nil
}

// blockKeys is what the keys of a block are counted as, with what Pebble adds.
const blockKeys = 2 * (keyLen + 8)

// block adds a chunk as readers find it. before is how much all blocks before it took.
func (w batch) block(c *Chunk, before totals) (after totals, err error) {
	head, index, err := w.store.excerpter.split(c)
	if err != nil {
		return before, err
	}
	stored := blockKeys + len(head) + len(index) + len(c.packed) + c.Size(Zstd) + c.Size(Extra)
	after = totals{before.bytes + int64(stored), before.events + int64(len(c.Entries))}
	binary.LittleEndian.PutUint32(head[offStored:], uint32(stored))
	binary.LittleEndian.PutUint64(head[offTotalBytes:], uint64(after.bytes))
	binary.LittleEndian.PutUint64(head[offTotalEvents:], uint64(after.events))
	last := c.Last()
	w.b.Set(key(last, partHead), head, nil)
	w.b.Set(key(last, partIndex), index, nil)
	for f, part := range partOf {
		p := c.payload[f]
		if Form(f) == JSON {
			p = c.packed
		}
		if len(p) > 0 {
			w.b.Set(key(last, part), p, nil)
		}
	}
	return after, nil
}

// merged removes fresh records, which a block has taken the place of. Each was written
// once. Whoever writes a key once may delete it by SingleDelete, and if both are still in
// memory nothing of either reaches a table.
func (w batch) merged(chunks []*Chunk) {
	for _, c := range chunks {
		w.b.SingleDelete(key(c.Last(), partFresh), nil)
	}
}

// state adds the state, to hold when the event at last is the newest.
func (w batch) state(last event.Cursor, s state) { w.b.Set(key(last, partState), s.encode(), nil) }

// commit makes the batch durable. mayFlush: what was written before may become a table.
func (w batch) commit(mayFlush bool) error {
	defer w.b.Close()
	if mayFlush {
		if err := w.store.flush(); err != nil {
			return err
		}
	}
	n := w.b.Len()
	if err := w.b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("commit chunk: %w", err)
	}
	w.store.unflushed += n
	return nil
}

// flush lets Pebble turn what has been written into a table, if it is enough for one. It is
// called where no fresh record is left that a later append would delete, and where what is
// written next has keys behind all that there are: then tables never overlap.
func (s *store) flush() error {
	if s.unflushed < s.tableBytes {
		return nil
	}
	s.unflushed = 0
	if _, err := s.db.AsyncFlush(); err != nil {
		return fmt.Errorf("flush store: %w", err)
	}
	return nil
}

// totals counts what has been stored in blocks since the log began, retention or not.
type totals struct{ bytes, events int64 }

// ending is the log's newest part, as found at open.
type ending struct {
	state
	last   event.Cursor // 0: there has been no event
	blocks event.Cursor // the last event that is in a block; 0: there is none
	totals totals
	fresh  []*Chunk
}

// ending reads what the log ends with.
func (s *store) ending() (e ending, err error) {
	it, err := s.events(0, math.MaxInt64)
	if err != nil {
		return e, err
	}
	fault := func(err error) (ending, error) {
		return ending{}, errors.Join(fmt.Errorf("read store: %w", err), it.Close())
	}
	known := false // the state
	for ok := it.Last(); ok; ok = it.Prev() {
		at := keyCursor(it.Key())
		e.last = max(e.last, at)
		v, err := it.ValueAndErr()
		if err != nil {
			return fault(err)
		}
		switch keyPart(it.Key()) {
		case partState:
			if !known {
				if e.state, err = parseState(v); err != nil {
					return fault(fmt.Errorf("at %d: %w", at, err))
				}
				known = true
			}
			continue
		case partFresh:
			c, st, err := parseFresh(v)
			if err == nil && c.Last() != at {
				err = fmt.Errorf("its index ends at %d", c.Last())
			}
			if err != nil {
				return fault(fmt.Errorf("fresh chunk %d: %w", at, err))
			}
			if !known {
				e.state, known = st, true
			}
			e.fresh = append(e.fresh, c)
			continue
		}
		e.blocks = at
		break
	}
	slices.Reverse(e.fresh)
	if err := closeIter(it); err != nil || e.blocks == 0 {
		return e, err
	}
	summary, err := s.first(e.blocks - 1)
	if err == nil && summary.Last != e.blocks {
		err = fmt.Errorf("chunk %d: %w", e.blocks, errNoIndex)
	}
	e.totals = totals{summary.totalBytes, summary.totalEvents}
	return e, err
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

// front returns a copy of the front of a block's index, of the head that was summed up; nil if it
// has none, for then it is of format 3 and its index whole.
func (s *Summary) front(head []byte) []byte {
	if head == nil {
		return nil
	}
	front := bytes.Clone(head[:len(head)-len(s.rest)])
	binary.LittleEndian.PutUint32(front[offExcerpt:], 0)
	return front
}

// block returns the block whose last event is given, or nil if there is none. It has no
// payloads yet.
func (s *store) block(last event.Cursor) (c *Chunk, err error) {
	err = s.each(last-1, func(b *found) (bool, error) {
		if b.Last == last {
			c, err = b.chunk()
		}
		return false, err
	})
	return c, err
}

// found is a block as each comes upon it.
type found struct {
	Summary
	head []byte // nil: of format 3
	at   *pebble.Iterator
}

// chunk reads the rest of the block's index, and takes the head away. The chunk has no payloads
// yet.
func (b *found) chunk() (*Chunk, error) {
	front := b.front(b.head)
	if front != nil && (!b.at.Next() || keyCursor(b.at.Key()) != b.Last || keyPart(b.at.Key()) != partIndex) {
		return nil, cmp.Or(b.at.Error(), errNoIndex)
	}
	index, err := b.at.ValueAndErr()
	if err != nil {
		return nil, err
	}
	return parseIndex(slices.Concat(front, index))
}

var errNoIndex = errors.New("has no index")

// each calls visit with each block, from the first that has an event after the given position,
// until it returns false. What visit is given is good until it returns.
func (s *store) each(after event.Cursor, visit func(b *found) (more bool, err error)) error {
	it, err := s.events(after+1, math.MaxInt64)
	if err != nil {
		return err
	}
	// A seek forward tries a few steps before it looks into the table's index, and each would
	// read a payload. With a limit, of whatever, it does not.
	end := position(math.MaxInt64)
	for ok := it.First(); ok; {
		last, part := keyCursor(it.Key()), keyPart(it.Key())
		switch part {
		case partState:
			ok = it.Next()
			continue
		case partFresh:
			return closeIter(it) // from here on everything is in memory
		}
		b := found{at: it}
		v, err := it.ValueAndErr()
		if err == nil && part != partHead && part != partIndex {
			err = errNoIndex
		}
		if err == nil {
			b.Summary, err = parseSummary(v)
		}
		if err == nil && b.Last != last {
			err = fmt.Errorf("its index ends at %d", b.Last)
		}
		if part == partHead {
			b.head = v
		}
		more := false
		if err == nil {
			more, err = visit(&b)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("chunk %d: %w", last, err), it.Close())
		}
		ok = more && it.SeekGEWithLimit(position(last+1), end) == pebble.IterValid
	}
	return closeIter(it)
}

// skipBlocks bounds how many blocks are passed over in one go: a millisecond or two.
const skipBlocks = 64

// read returns up to limit bytes of consecutive blocks, but at least one, from the first
// that has an event after the given position and is not passed over. Whole ones have no payloads
// yet. passed is the last event of those that were passed over before them, or after.
func (s *store) read(after event.Cursor, limit int, need func(*Summary) Need) (blocks []*Chunk, passed event.Cursor, err error) {
	passed = after
	size, skipped := 0, 0
	before := event.Cursor(0) // what was read last ends here
	err = s.each(after, func(b *found) (bool, error) {
		if b.Prev > max(before, after) {
			return false, gap(s.dir, max(before, after), b.Prev)
		}
		before = b.Last
		n := Everything
		if need != nil {
			n = need(&b.Summary)
		}
		if n == Excerpt && !b.HasExcerpt() {
			n = Everything
		}
		switch n {
		case Nothing:
			if len(blocks) > 0 {
				return false, nil
			}
			passed = b.Last
			skipped++
			return skipped < skipBlocks, nil
		case Excerpt:
			c, err := parseExcerpt(bytes.Clone(b.head))
			if err != nil {
				return false, err
			}
			blocks = append(blocks, c)
			size += len(b.head)
		default:
			c, err := b.chunk()
			if err != nil {
				return false, err
			}
			blocks = append(blocks, c)
			size += c.Size(JSON)
		}
		return size < limit, nil
	})
	if len(blocks) > 0 || passed > after {
		err = nil // it comes again where it belongs: at what could not be read
	}
	return blocks, passed, err
}

// first returns the summary of the first block with an event after the given position; its
// Last is 0 if there is none.
func (s *store) first(after event.Cursor) (first Summary, err error) {
	err = s.each(after, func(b *found) (bool, error) {
		first = b.Summary
		first.hashes, first.collections, first.rest = nil, nil, nil // Pebble's memory
		return false, nil
	})
	return first, err
}

// tail returns a position that at least events events follow, if there are as many,
// counting back from the block that ends at last, but no more than limit bytes of them.
func (s *store) tail(last event.Cursor, events int, limit int64) (event.Cursor, error) {
	for events > 0 && limit > 0 && last > 0 {
		c, err := s.block(last)
		if err != nil {
			return 0, err
		}
		if c == nil {
			break // the log begins here
		}
		last = c.Prev
		events -= len(c.Entries)
		limit -= c.cost()
	}
	return last, nil
}

// lastThrough returns the cursor of the last block that ends at or before the given
// cursor, or 0 if there is none.
func (s *store) lastThrough(through event.Cursor) (event.Cursor, error) {
	it, err := s.events(0, through+1)
	if err != nil {
		return 0, err
	}
	var last event.Cursor
	for ok := it.Last(); ok; ok = it.Prev() {
		if part := keyPart(it.Key()); part != partState && part != partFresh {
			last = keyCursor(it.Key())
			break
		}
	}
	return last, closeIter(it)
}

// excise removes every chunk up to and including the one that ends at through: whole
// tables are dropped, and what is cut off the one that straddles the end goes when the rest
// of it does. The state at through, if there is one, stays.
//
// A range deletion did as much with a flush before it and one after, so that its table did
// not reach over the whole log, and the space came back only when Pebble had looked at
// every table below. Excising is one edit of Pebble's manifest.
func (s *store) excise(ctx context.Context, through event.Cursor) error {
	if err := s.db.Excise(ctx, pebble.KeyRange{Start: position(0), End: key(through, partState)}); err != nil {
		return fmt.Errorf("trim store: %w", err)
	}
	return nil
}

// view shows one form of a block, as it is stored, without a copy.
func (s *store) view(c *Chunk, f Form, show func([]byte) error) error {
	v, closer, err := s.db.Get(key(c.Last(), partOf[f]))
	if err != nil {
		return fmt.Errorf("read store: chunk %d, payload %c: %w", c.Last(), partOf[f], err)
	}
	defer closer.Close()
	if len(v) != c.Size(f) {
		return fmt.Errorf("chunk %d: payload %c has %d bytes, its index says %d", c.Last(), partOf[f], len(v), c.Size(f))
	}
	return show(v)
}

// payload reads one form of a block, into memory of spare's, if it is given any.
func (s *store) payload(c *Chunk, f Form, spare *spare) (p []byte, err error) {
	if c.Size(f) == 0 {
		return nil, nil
	}
	stored, closer, err := s.db.Get(key(c.Last(), partOf[f]))
	if err != nil {
		return nil, fmt.Errorf("read store: chunk %d, payload %c: %w", c.Last(), partOf[f], err)
	}
	defer closer.Close()
	if f == JSON {
		if p, err = event.UnpackBlock(spare.take(c.Size(f)), stored, c.Size(f)); err != nil {
			return nil, fmt.Errorf("chunk %d: %w", c.Last(), err)
		}
		return p, nil
	}
	if len(stored) != c.Size(f) {
		return nil, fmt.Errorf("chunk %d: payload %c has %d bytes, its index says %d", c.Last(), partOf[f], len(stored), c.Size(f))
	}
	return append(spare.take(c.Size(f)), stored...), nil
}
