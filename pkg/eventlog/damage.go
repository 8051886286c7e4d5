package eventlog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/pkg/event"
)

// What damage does to a store. A table is safe: all that is read of it has a checksum. But
// opening, Pebble takes a directory without its marker for a new store, ends a WAL and the
// manifest at the first record that it cannot read, as a crash would leave them, and does
// not miss a WAL that is gone. What it does not know it then deletes. So inspect looks first,
// and nothing is changed in a store that it refuses.
//
// One thing cannot be told from a crash: a cut of the newest WAL, or damage in its last
// record, when the log was not closed in order. The log ends earlier then, with the
// checkpoint that was stored there, and the relay is asked again from it.

// refusal is an error that says, in one sentence, what is wrong with the store and what to do.
type refusal struct {
	text   string
	advice string // the end of the sentence, or none
	cause  error  // nil: we found it ourselves
}

func (r refusal) Error() string {
	if r.advice == "" {
		return r.text
	}
	return r.text + "; " + r.advice
}

func (r refusal) Unwrap() error { return r.cause }

const startAnew = "with a new --data-dir the stream resumes live, or from --upstream-cursor"

// damaged is the refusal of a damaged store. dir is its directory, file a name in it.
func damaged(dir, file, what string, cause error) error {
	return refusal{fmt.Sprintf("the store is damaged: %s in %s: %s", file, dir, what),
		`"slipstream verify" shows what can be read; ` + startAnew, cause}
}

// openPebble is pebble.Open, whose faults and panics it returns: with a fault, Open itself
// never does.
func openPebble(dir string, options *pebble.Options, fault <-chan error) (*pebble.DB, error) {
	type result struct {
		db  *pebble.DB
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- result{nil, fmt.Errorf("panic: %v", r)}
			}
		}()
		db, err := pebble.Open(dir, options)
		done <- result{db, err}
	}()
	select {
	case r := <-done:
		return r.db, r.err
	case err := <-fault:
		return nil, err
	}
}

// inspect looks for damage that opening the store would hide, or make worse. It changes
// nothing.
func inspect(dir string, options *pebble.Options, fault <-chan error) error {
	fs := options.FS
	lock, err := pebble.LockDirectory(dir, fs)
	if err != nil {
		return err
	}
	defer lock.Close()
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	manifest, err := findManifest(dir, names)
	if err != nil || manifest == "" {
		return err
	}
	walBytes, manifestEnd := int64(0), -1
	for _, name := range names {
		number, isWAL := walNumber(name)
		if !isWAL && name != manifest {
			continue
		}
		b, err := readFile(fs, fs.PathJoin(dir, name))
		if err != nil {
			return err
		}
		at, hidden := unreadable(b, isWAL, number)
		switch {
		case hidden:
			return damaged(dir, name, fmt.Sprintf("the record at byte %d cannot be read, but later ones can", at), nil)
		case isWAL:
			walBytes += int64(len(b))
		case at < len(b):
			manifestEnd = at
		}
	}

	look := options.Clone()
	look.ReadOnly, look.Lock = true, lock
	err = checkAll(dir, look, fault, names, walBytes)
	if err != nil && manifestEnd >= 0 {
		// What does not fit follows from that.
		return damaged(dir, manifest, fmt.Sprintf("it cannot be read from byte %d on", manifestEnd), err)
	}
	return err
}

// checkAll opens the store without changing it, and checks what is in it.
func checkAll(dir string, look *pebble.Options, fault <-chan error, names []string, walBytes int64) error {
	db, err := openPebble(dir, look, fault)
	if err != nil {
		return err
	}
	s := &store{db: db, dir: dir}
	switch err = s.checkFormat(); {
	case errors.Is(err, errEmpty):
		err = nil // there is nothing in it yet
	case err == nil:
		err = s.checkLinks(walBytes)
	}
	if lost := s.unknownTable(look.FS, names); lost != "" {
		err = damaged(dir, "MANIFEST-*", "it does not know "+lost, err)
	}
	return errors.Join(err, db.Close())
}

// findManifest returns the name of the store's manifest, or "" if there is no store yet.
func findManifest(dir string, names []string) (string, error) {
	const marker, format = "marker.manifest.", "marker.format-version."
	manifest, hasFormat, table, wal := "", false, "", ""
	for _, name := range names { // sorted: the last marker counts
		switch {
		case strings.HasPrefix(name, marker):
			_, manifest, _ = strings.Cut(name[len(marker):], ".")
		case strings.HasPrefix(name, format):
			hasFormat = true
		case strings.HasSuffix(name, ".sst"):
			table = name
		case strings.HasSuffix(name, ".log"):
			wal = name
		}
	}
	// Pebble makes the manifest, its marker, a WAL, the marker of the format, and then tables;
	// the process may have ended in between.
	switch {
	case manifest == "" && slices.Contains(names, "CURRENT"):
		return "", foreignStore(dir, nil)
	case manifest == "" && table+wal != "":
		return "", damaged(dir, marker+"*", "it is missing, though "+max(table, wal)+" is there", nil)
	case !hasFormat && table != "":
		return "", damaged(dir, format+"*", "it is missing, though "+table+" is there", nil)
	}
	return manifest, nil
}

func foreignStore(dir string, cause error) error {
	return refusal{dir + " holds the store of another program: give Slipstream a directory of its own", "", cause}
}

func walNumber(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, ".log")
	n, err := strconv.ParseUint(digits, 10, 64)
	return uint32(n), ok && err == nil
}

func readFile(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// Pebble's WALs and its manifest are made of records, cut into pieces that do not cross a
// border of 32 KiB; where no piece fits before a border there are zeros. A piece,
// little-endian:
//
//	checksum 4, length 2, type 1, in a WAL its number 4, and an offset 8; the bytes
//
// The checksum covers all from the type on. The type says where in its record the piece
// stands: whole, first, middle, last. It counts from 1 in the manifest, from 9 in a WAL, and
// from 5 in the first WAL of a store, which has no offsets. A WAL that was closed ends with
// no checksum, no length, type 5, and a number that is greater by one.
const (
	recordBlock = 32 << 10
	maxHeader   = 19
	walEnd      = 11
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// piece reads the piece at a place. begins says that a record begins there.
func piece(b []byte, at int, isWAL bool, number uint32) (size int, begins, ok bool) {
	border := min(len(b), at-at%recordBlock+recordBlock)
	if border-at < 7 {
		return 0, false, false
	}
	kind := b[at+6] - 1
	header := 7
	switch {
	case kind > 11, isWAL != (kind > 3):
		return 0, false, false
	case kind > 7:
		header = maxHeader
	case kind > 3:
		header = walEnd
	}
	size = header + int(binary.LittleEndian.Uint16(b[at+4:]))
	if border-at < size || isWAL && binary.LittleEndian.Uint32(b[at+7:]) != number {
		return 0, false, false
	}
	c := crc32.Checksum(b[at+6:at+size], castagnoli)
	if binary.LittleEndian.Uint32(b[at:]) != (c>>15|c<<17)+0xa282ead8 {
		return 0, false, false
	}
	return size, kind%4 < 2, true
}

// unreadable returns where the first record is that cannot be read, len(b) if there is none,
// and whether there are readable ones behind it. A crash does not leave any: a record is
// written when the one before it is on disk. Pebble looks for them, too, but not within 32 KiB
// nor always beyond, not in a store's first WAL, and takes a greater number for the end.
func unreadable(b []byte, isWAL bool, number uint32) (at int, hidden bool) {
	end := make([]byte, walEnd)
	end[6] = 5
	binary.LittleEndian.PutUint32(end[7:], number+1)
	for at < len(b) {
		if size, _, ok := piece(b, at, isWAL, number); ok {
			at += size
			continue
		}
		rest := b[at:min(len(b), at-at%recordBlock+recordBlock)]
		if len(rest) >= maxHeader || len(bytes.Trim(rest, "\x00")) > 0 {
			break
		}
		at += len(rest)
	}
	if at >= len(b) || isWAL && bytes.HasPrefix(b[at:], end) {
		return len(b), false
	}
	if isWAL && bytes.Contains(b[at:], end) {
		return at, true
	}
	for next := at + 1; next < len(b); next++ {
		if _, begins, ok := piece(b, next, isWAL, number); ok && begins {
			return at, true
		}
	}
	return at, false
}

// unknownTable returns the name of a table that has newer events than the store knows of, or
// none. A crash leaves tables that nobody knows, too, but of events that are in a WAL or have
// been merged into other tables.
func (s *store) unknownTable(fs vfs.FS, names []string) string {
	it, err := s.events(0, math.MaxInt64)
	if err != nil {
		return ""
	}
	last := event.Cursor(0)
	if it.Last() {
		last = keyCursor(it.Key())
	}
	tables, err := s.db.SSTables()
	if it.Close() != nil || err != nil {
		return "" // whoever reads on finds out
	}
	known := map[string]bool{}
	for _, level := range tables {
		for _, t := range level {
			known[t.BackingSSTNum.String()+".sst"] = true
		}
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") && !known[name] && lastInTable(fs, fs.PathJoin(s.dir, name)) > last {
			return name
		}
	}
	return ""
}

// checkLinks finds what no file tells: that a WAL is gone. What was in WALs is the newest, so
// that the last chunks, of at least as many bytes as given, must follow each other.
func (s *store) checkLinks(size int64) error {
	end, err := s.ending()
	if err != nil {
		return err
	}
	last := end.blocks
	for _, c := range end.fresh {
		if c.Prev != last && c.Prev > end.trimmed {
			return gap(s.dir, last, c.Prev)
		}
		last = c.Last()
	}
	for last = end.blocks; size > 0 && last > end.trimmed; {
		c, err := s.block(last)
		if err != nil {
			return err
		}
		if c == nil {
			before, err := s.lastThrough(last)
			if err != nil {
				return err
			}
			return gap(s.dir, before, last)
		}
		size -= int64(len(c.index) + c.Size(Zstd) + c.Size(Extra))
		last = c.Prev
	}
	return nil
}

// gap is the error for events that are not there, though later ones are.
func gap(dir string, after, through event.Cursor) error {
	return damaged(dir, "a *.log file", fmt.Sprintf("it is missing or cut short: the events after cursor %d, up to %d, are gone", after, through), nil)
}

// lastInTable returns the last cursor in a table, 0 if there is none or it cannot be read.
func lastInTable(fs vfs.FS, path string) event.Cursor {
	f, err := fs.Open(path)
	if err != nil {
		return 0
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		f.Close()
		return 0
	}
	r, err := sstable.NewReader(context.Background(), readable, sstable.ReaderOptions{})
	if err != nil {
		readable.Close()
		return 0
	}
	defer r.Close()
	it, err := r.NewIter(sstable.NoTransforms, nil, nil, sstable.AssertNoBlobHandles)
	if err != nil {
		return 0
	}
	defer it.Close()
	kv := it.Last()
	if kv == nil || len(kv.K.UserKey) != keyLen || kv.K.UserKey[0] != prefixEvents {
		return 0
	}
	return keyCursor(kv.K.UserKey)
}

// How Pebble's errors name a file: by its name, a table by its number, a WAL by its number.
var fileInError = regexp.MustCompile(`((?:MANIFEST|OPTIONS)-\d+|\d+\.(?:sst|log))|(?:file|table|L\d:) (\d{6,})\b|replaying wal (\d+)`)

// What Pebble's errors say, and what we say.
var whatInError = []struct{ pebble, what string }{
	{"size mismatch", "its length is wrong"},
	{"checksum mismatch", "checksum mismatch"},
	{"does not exist", "it is missing"},
	{"no such file", "it is missing"},
	{"malformed manifest", "it cannot be read"},
	{"invalid table", "it cannot be read"},
	{"unexpected EOF", "it is cut short"},
	{"replaying WAL", "a record in it cannot be read"},
	{"key=value", "it cannot be read"},
}

// explain turns an error of Pebble's about damage into one sentence that names the file and
// says what to do. Other errors it returns as they are.
func explain(dir string, err error) error {
	if err == nil {
		return nil
	}
	if r := (refusal{}); errors.As(err, &r) {
		return r
	}
	text := err.Error()
	has := func(part string) bool { return strings.Contains(text, part) }
	switch {
	case has("unknown format major version"):
		return refusal{fmt.Sprintf("the store in %s was written by a newer version: run that one, or give this one another --data-dir", dir), "", err}
	case has("no longer supported"), has("manifest file") && has("comparer name"):
		return foreignStore(dir, err)
	case has("name from options"):
		return damaged(dir, "OPTIONS-*", "it is not of this program", err)
	case has("not pristine"):
		return damaged(dir, "marker.format-version.*", "it is missing", err)
	}
	what := ""
	for _, w := range whatInError {
		if has(w.pebble) {
			what = w.what
			break
		}
	}
	corrupt := pebble.IsCorruptionError(err) || errors.Is(err, errIndex)
	if what == "" && !corrupt && !has("panic: ") {
		return err
	}
	if what == "" {
		what, _, _ = strings.Cut(text, "\n")
	}
	file := fileOf(err)
	switch {
	case file != "":
	case has("key=value"):
		file = "OPTIONS-*"
	case corrupt || has("panic: "):
		file = "a file"
	default:
		return err
	}
	return damaged(dir, file, what, err)
}

// fileOf returns the name of the file that an error of Pebble's is about, "" if it says none.
func fileOf(err error) string {
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		return info.Path[strings.LastIndexAny(info.Path, `/\`)+1:]
	}
	text := err.Error()
	if d := (interface{ ErrorDetail() string })(nil); errors.As(err, &d) {
		text += "\n" + d.ErrorDetail()
	}
	m := fileInError.FindStringSubmatch(text)
	switch {
	case m == nil:
		return ""
	case m[1] != "":
		return m[1]
	case m[2] != "":
		return m[2] + ".sst"
	}
	n, _ := strconv.Atoi(m[3])
	return fmt.Sprintf("%06d.log", n)
}

// damage remembers which places could not be read. Pebble takes seconds to find that out for
// a large block, since it tries whether a single bit is wrong, and who came upon the place
// comes back.
type damage struct {
	mu     sync.Mutex
	places map[cacheKey]error
}

// maxPlaces bounds the memory: beyond it, places are forgotten.
const maxPlaces = 1000

func (d *damage) at(k cacheKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.places[k]
}

// note remembers the place if err is about damage. It returns err.
func (d *damage) note(k cacheKey, err error) error {
	if r := (refusal{}); !errors.As(err, &r) {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.places == nil || len(d.places) >= maxPlaces {
		d.places = map[cacheKey]error{}
	}
	d.places[k] = err
	return err
}

func (d *damage) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.places)
}
