package eventlog

import (
	"bytes"
	"cmp"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"

	"slipstream/pkg/event"
)

// Form names one of a chunk's payloads.
type Form uint8

// The payloads of a chunk.
const (
	JSON  Form = iota // v1 text frames
	Zstd              // v1 binary frames, made with the chunk's dictionary
	Extra             // what v1 does not have
	forms
)

// NoCollection is an Entry's Collection where the event has none: where it is no commit.
const NoCollection = math.MaxUint16

// Entry is one event's row in a chunk's index.
type Entry struct {
	Cursor     event.Cursor
	End        [forms]uint32 // where the event ends in each payload
	DID        uint32        // into Chunk.DIDs
	Collection uint16        // into Chunk.Collections, or NoCollection
	Kind       event.Kind
}

// Chunk is a sealed run of consecutive events. It is immutable and shared: nobody
// may change any slice that it hands out.
type Chunk struct {
	Prev        event.Cursor // the last event before this chunk; 0 if there was none
	Dictionary  uint32       // id of the dictionary of the Zstd form
	Entries     []Entry      // at least one, cursors strictly growing
	Collections []string     // each once
	Hashes      []uint32     // of the DIDs, ascending

	last  event.Cursor
	index []byte
	dids  func() []string
	// payload holds every form if the chunk is or was in the window, every one but JSON if it
	// is an excerpt, and nothing if it is a block that was read from disk for a replay: its
	// payloads are in the cache then.
	payload  [forms][]byte
	resident bool
	of       *Summary // the block, of an excerpt; else nil
	packed   []byte   // the JSON form as it is stored; nil once it is
}

// First returns the cursor of the chunk's first event.
func (c *Chunk) First() event.Cursor { return c.Entries[0].Cursor }

// Last returns the cursor of the chunk's last event; for an excerpt, of its block's.
func (c *Chunk) Last() event.Cursor { return c.last }

// After returns the place in Entries of the first event after the given cursor.
func (c *Chunk) After(after event.Cursor) int {
	if after < c.First() {
		return 0
	}
	return sort.Search(len(c.Entries), func(i int) bool { return c.Entries[i].Cursor > after })
}

// Start returns where event i begins in a form.
func (c *Chunk) Start(i int, f Form) uint32 {
	if i == 0 {
		return 0
	}
	return c.Entries[i-1].End[f]
}

// Size returns the length of a form in bytes.
func (c *Chunk) Size(f Form) int { return int(c.Entries[len(c.Entries)-1].End[f]) }

// DIDs returns the chunk's DIDs, each once, in the order of Hashes. They are made of the
// index when they are first asked for: most replays never are.
func (c *Chunk) DIDs() []string { return c.dids() }

// Resident reports whether the chunk's payloads are in memory as long as it is.
func (c *Chunk) Resident() bool { return c.resident }

// IsExcerpt reports whether the chunk has only the rare events of its block: see [Need]. All
// payloads but JSON, which it has not, are in memory as long as it is.
func (c *Chunk) IsExcerpt() bool { return c.of != nil }

// memory returns roughly what the index takes in memory.
func (c *Chunk) memory() int64 {
	n := len(c.index)
	if s := c.of; s != nil {
		n = indexHeader + len(s.hashes) + len(s.collections) + len(s.rest)
	}
	return int64(n + 32*len(c.Entries) + 56*len(c.Hashes) + 256)
}

// The encoded index, little-endian:
//
//	 0 magic "SLCK"            4 version, 1 byte; three zeros      8 dictionary, 4
//	12 commits, 4             16 identities, 4                    20 accounts, 4      24 syncs, 4
//	28 collections, 4         32 DIDs, 4
//	36 prev, 8                44 first cursor, 8                  52 last cursor, 8
//	60 size of json, 4        64 of zstd, 4                       68 of extra, 4
//	72 bytes that the chunk takes in the store, 4;                76 see below, 4
//	80 bytes that it and all before it have ever taken, 8         88 events, likewise, 8
//	96 the DIDs' hashes, ascending, 4 each: the low half of XXH64
//	   collections, each: length, 2 bytes; the string
//	   DIDs, in the order of their hashes, each: length, uvarint; the string. Length 0 stands
//	   for a did:plc, whose 24 characters are base32 and follow as 15 bytes
//	   entries, each: kind, and 128 if there is an extra payload, 1 byte; then uvarints:
//	   cursor less the one before (the first: less the chunk's first), length in json,
//	   length in zstd, length in extra if there is one, DID, and for commits the collection
//
// The fields from 72 to 95 are known when the chunk is given to the store, and zero where
// it is not a block there (see the package comment). What stands before the DIDs is the
// [Summary]: it tells most readers with a filter that there is nothing for them. A block's is
// stored apart from the rest, as the head: at 76 it then has the length of the index of the
// excerpt that follows there (see excerpt.go), and 0 if none does.
//
// It takes some 30 bytes an event, less than a tenth of all. With rows of fixed width and
// DIDs as text it was 66.
const (
	indexMagic   = "SLCK"
	indexVersion = 2
	indexHeader  = 96
	extraFlag    = 0x80

	offStored      = 72
	offExcerpt     = 76
	offTotalBytes  = 80
	offTotalEvents = 88
)

// The short form of a did:plc.
const (
	plcPrefix = "did:plc:"
	plcText   = 24
	plcBytes  = 15
)

var plcEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// appendDID appends a DID as it stands in the index.
func appendDID(b, did []byte) []byte {
	if text, ok := bytes.CutPrefix(did, []byte(plcPrefix)); ok && len(text) == plcText {
		var short [plcBytes]byte
		if n, err := plcEncoding.Decode(short[:], text); err == nil && n == plcBytes {
			return append(append(b, 0), short[:]...)
		}
	}
	return append(binary.AppendUvarint(b, uint64(len(did))), did...)
}

// HashDID is the hash of a DID that [Summary.HasAny] and [Chunk.Hashes] are about.
func HashDID(did string) uint32 { return uint32(xxhash.Sum64String(did)) }

var errIndex = errors.New("damaged chunk index")

// Summary is what an index tells about its chunk as a whole. It belongs to whoever
// handed it out and must not be kept.
type Summary struct {
	Prev, First, Last event.Cursor
	Dictionary        uint32
	Kinds             [event.KindSync + 1]int // events of each kind

	size        [forms]int
	stored      int64 // bytes of the chunk in the store
	totalBytes  int64 // and of all before it
	totalEvents int64

	hashes       []byte
	collections  []byte // encoded, as many as:
	nameCount    int
	excerptIndex int    // the length of its index; 0: there is none
	rest         []byte // encoded DIDs and entries or, of a head, the excerpt
}

// Events returns how many events the chunk has.
func (s *Summary) Events() (n int) {
	for _, k := range s.Kinds {
		n += k
	}
	return n
}

// Collections calls yield for the name of each collection, and whether the block's excerpt
// has it, until it returns false. What is no commit, every excerpt has.
func (s *Summary) Collections(yield func(name []byte, excerpted bool) bool) {
	b := s.collections
	for i := range s.nameCount {
		n := 2 + int(binary.LittleEndian.Uint16(b))
		if !yield(b[2:n], s.excerpted(i)) {
			return
		}
		b = b[n:]
	}
}

// HasAny reports whether the chunk may have an event of one of the DIDs with the given
// hashes, which are sorted. It is wrong about one in four thousand million.
func (s *Summary) HasAny(hashes []uint32) bool {
	own := len(s.hashes) / 4
	at := func(i int) uint32 { return binary.LittleEndian.Uint32(s.hashes[4*i:]) }
	// A few are looked up each; with many it is cheaper to walk along both.
	if len(hashes) < own/8 {
		for _, h := range hashes {
			if i := sort.Search(own, func(i int) bool { return at(i) >= h }); i < own && at(i) == h {
				return true
			}
		}
		return false
	}
	for i, j := 0, 0; i < own && j < len(hashes); {
		switch h := at(i); {
		case h < hashes[j]:
			i++
		case h > hashes[j]:
			j++
		default:
			return true
		}
	}
	return false
}

// parseSummary reads the part of an encoded index that stands before the entries.
func parseSummary(b []byte) (Summary, error) {
	if len(b) < indexHeader || string(b[:4]) != indexMagic {
		return Summary{}, fmt.Errorf("%w: no header", errIndex)
	}
	if b[4] != indexVersion {
		return Summary{}, fmt.Errorf("chunk index of version %d, this program reads version %d", b[4], indexVersion)
	}
	u32 := func(at int) int { return int(binary.LittleEndian.Uint32(b[at:])) }
	u64 := func(at int) int64 { return int64(binary.LittleEndian.Uint64(b[at:])) }
	s := Summary{
		Dictionary: uint32(u32(8)),
		Kinds: [...]int{event.KindCommit: u32(12), event.KindIdentity: u32(16), event.KindAccount: u32(20),
			event.KindSync: u32(24)},
		Prev: event.Cursor(u64(36)), First: event.Cursor(u64(44)), Last: event.Cursor(u64(52)),
		size:   [...]int{JSON: u32(60), Zstd: u32(64), Extra: u32(68)},
		stored: int64(u32(offStored)), totalBytes: u64(offTotalBytes), totalEvents: u64(offTotalEvents),
		nameCount: u32(28), excerptIndex: u32(offExcerpt),
	}
	events, dids := s.Events(), u32(32)
	rest := b[indexHeader:]
	if events == 0 || events > MaxEvents || dids > events || s.nameCount >= NoCollection || s.nameCount > len(rest) ||
		s.Prev < 0 || s.First <= s.Prev || s.Last < s.First || 4*dids > len(rest) {
		return Summary{}, fmt.Errorf("%w: counts", errIndex)
	}
	s.hashes, rest = rest[:4*dids], rest[4*dids:]
	end := 0
	for range s.nameCount {
		if len(rest)-end < 2 {
			return Summary{}, fmt.Errorf("%w: collections", errIndex)
		}
		if end += 2 + int(binary.LittleEndian.Uint16(rest[end:])); end > len(rest) {
			return Summary{}, fmt.Errorf("%w: collections", errIndex)
		}
	}
	s.collections, s.rest = rest[:end], rest[end:]
	if s.HasExcerpt() && bitmapLen(s.nameCount)+s.excerptIndex > len(s.rest) {
		return Summary{}, fmt.Errorf("%w: excerpt", errIndex)
	}
	return s, nil
}

// parseIndex reads an encoded index, which the chunk keeps. Everything that a reader
// relies on is checked: a chunk that parses can be walked without a bounds check.
func parseIndex(b []byte) (*Chunk, error) {
	s, err := parseSummary(b)
	if err != nil {
		return nil, err
	}
	if s.Events() > len(s.rest) {
		return nil, fmt.Errorf("%w: no room for its entries", errIndex)
	}
	c := &Chunk{
		Prev: s.Prev, Dictionary: s.Dictionary, last: s.Last, index: b,
		Entries:     make([]Entry, s.Events()),
		Collections: make([]string, 0, s.nameCount),
		Hashes:      make([]uint32, len(s.hashes)/4),
	}
	names := string(s.collections) // one allocation for all
	for name := range s.Collections {
		names = names[2:]
		c.Collections = append(c.Collections, names[:len(name)])
		names = names[len(name):]
	}
	for i := range c.Hashes {
		c.Hashes[i] = binary.LittleEndian.Uint32(s.hashes[4*i:])
		if i > 0 && c.Hashes[i] < c.Hashes[i-1] {
			return nil, fmt.Errorf("%w: hashes", errIndex)
		}
	}
	rest := s.rest
	for range c.Hashes {
		if _, rest, err = cutDID(rest); err != nil {
			return nil, err
		}
	}
	encoded := s.rest[:len(s.rest)-len(rest)]
	c.dids = sync.OnceValue(func() []string { return decodeDIDs(encoded, len(c.Hashes)) })

	kinds := [len(s.Kinds)]int{}
	cursor, end := s.First, [forms]uint64{}
	at := 0 // in rest; beyond its end once it has turned out too short
	for i := range c.Entries {
		if at >= len(rest) {
			return nil, fmt.Errorf("%w: entry %d", errIndex, i)
		}
		flags := rest[at]
		delta, at1 := uvarint(rest, at+1)
		json, at2 := uvarint(rest, at1)
		zstd, at3 := uvarint(rest, at2)
		extra := uint64(0)
		if flags&extraFlag != 0 {
			extra, at3 = uvarint(rest, at3)
		}
		did, at4 := uvarint(rest, at3)
		kind, collection := event.Kind(flags&^extraFlag), uint64(NoCollection)
		known := true
		if kind == event.KindCommit {
			collection, at4 = uvarint(rest, at4)
			known = collection < uint64(s.nameCount)
		}
		at = at4
		end[JSON] += json
		end[Zstd] += zstd
		end[Extra] += extra
		if at > len(rest) || !known || (delta == 0) != (i == 0) || delta > uint64(s.Last-cursor) || did >= uint64(len(c.Hashes)) ||
			kind == 0 || int(kind) >= len(kinds) ||
			json > uint64(s.size[JSON]) || zstd > uint64(s.size[Zstd]) || extra > uint64(s.size[Extra]) ||
			end[JSON] > uint64(s.size[JSON]) || end[Zstd] > uint64(s.size[Zstd]) || end[Extra] > uint64(s.size[Extra]) {
			return nil, fmt.Errorf("%w: entry %d", errIndex, i)
		}
		cursor += event.Cursor(delta)
		c.Entries[i] = Entry{
			Cursor: cursor, End: [...]uint32{uint32(end[JSON]), uint32(end[Zstd]), uint32(end[Extra])},
			DID: uint32(did), Collection: uint16(collection), Kind: kind,
		}
		kinds[kind]++
	}
	if at < len(rest) || kinds != s.Kinds || cursor != s.Last ||
		c.Size(JSON) != s.size[JSON] || c.Size(Zstd) != s.size[Zstd] || c.Size(Extra) != s.size[Extra] {
		return nil, fmt.Errorf("%w: sums", errIndex)
	}
	return c, nil
}

// uvarint reads the number at b[at:] and returns where what follows it begins: beyond the end
// of b if b ends before the number does. Nearly all have one byte or two.
func uvarint(b []byte, at int) (v uint64, next int) {
	if at+1 < len(b) {
		low, high := b[at], b[at+1]
		if low < 0x80 {
			return uint64(low), at + 1
		}
		if high < 0x80 {
			return uint64(low&0x7f) | uint64(high)<<7, at + 2
		}
	}
	if at < len(b) {
		if v, n := binary.Uvarint(b[at:]); n > 0 {
			return v, at + n
		}
	}
	return 0, len(b) + 1
}

// cutDID cuts the first of encoded DIDs off: its text, or 15 bytes that stand for it.
func cutDID(b []byte) (did, rest []byte, err error) {
	n, width := binary.Uvarint(b)
	if n == 0 {
		n = plcBytes
	}
	if width <= 0 || n > uint64(len(b)-width) {
		return nil, nil, fmt.Errorf("%w: DIDs", errIndex)
	}
	end := width + int(n)
	return b[width:end], b[end:], nil
}

// decodeDIDs makes strings of n encoded DIDs, which have been checked.
func decodeDIDs(encoded []byte, n int) []string {
	var text strings.Builder // of all of them: one allocation
	text.Grow(n * (len(plcPrefix) + plcText))
	ends := make([]int, 0, n)
	for len(encoded) > 0 {
		short := encoded[0] == 0
		did, rest, err := cutDID(encoded)
		if err != nil {
			panic(err) // they have been checked
		}
		if short {
			var plc [plcText]byte
			plcEncoding.Encode(plc[:], did)
			text.WriteString(plcPrefix)
			did = plc[:]
		}
		text.Write(did)
		ends = append(ends, text.Len())
		encoded = rest
	}
	dids, all, start := make([]string, n), text.String(), 0
	for i, end := range ends {
		dids[i] = all[start:end]
		start = end
	}
	return dids
}

// maxScratch is how much memory a builder may keep between chunks.
const maxScratch = 1 << 20

// Builder puts a chunk together. It can be reused after Seal; it is not safe for
// concurrent use.
type Builder struct {
	entries     []Entry
	collections []string
	numbers     map[string]uint16 // of collections
	dids        didTable
	order       []uint32 // scratch: DIDs by their hashes
	place       []uint32 // scratch: of each DID in that order
	packed      []byte   // scratch
}

// didTable numbers DIDs in the order in which they come.
type didTable struct {
	text    []byte // of all of them
	ends    []int  // where each ends there
	hashes  []uint64
	numbers map[uint64]uint32 // by hash
}

func (t *didTable) number(did []byte) uint32 {
	h := xxhash.Sum64(did)
	k, known := t.numbers[h]
	if known && bytes.Equal(t.did(k), did) {
		return k
	}
	k = uint32(len(t.ends))
	t.text = append(t.text, did...)
	t.ends = append(t.ends, len(t.text))
	t.hashes = append(t.hashes, h)
	if !known { // else another has the same hash; this one may then be in the table twice
		if t.numbers == nil {
			t.numbers = map[uint64]uint32{}
		}
		t.numbers[h] = k
	}
	return k
}

func (t *didTable) did(k uint32) []byte {
	start := 0
	if k > 0 {
		start = t.ends[k-1]
	}
	return t.text[start:t.ends[k]]
}

func (t *didTable) clear() {
	t.text, t.ends, t.hashes = t.text[:0], t.ends[:0], t.hashes[:0]
	clear(t.numbers)
}

// Add appends one event. end holds where it ends in each payload. did and collection
// (empty: none, as for all but commits) are copied.
func (b *Builder) Add(cursor event.Cursor, kind event.Kind, did, collection []byte, end [forms]uint32) {
	e := Entry{Cursor: cursor, End: end, DID: b.dids.number(did), Collection: NoCollection, Kind: kind}
	if len(collection) > 0 {
		number, known := b.numbers[string(collection)]
		if !known {
			if b.numbers == nil {
				b.numbers = map[string]uint16{}
			}
			number = uint16(len(b.collections))
			name := string(collection)
			b.collections = append(b.collections, name)
			b.numbers[name] = number
		}
		e.Collection = number
	}
	b.entries = append(b.entries, e)
}

// Len returns how many events have been added. A chunk must stay below [MaxEvents].
func (b *Builder) Len() int { return len(b.entries) }

// MaxEvents bounds a chunk: collections are numbered in 16 bits.
const MaxEvents = NoCollection - 1

// Seal makes the chunk of what was added, and empties the builder. The log keeps the
// payloads, which must not be changed any more. prev is the cursor of the last event
// before the chunk. It is an error to seal an empty chunk, or one whose cursors or
// ends do not grow, or a commit without a collection.
func (b *Builder) Seal(prev event.Cursor, dictionary uint32, json, zstd, extra []byte) (*Chunk, error) {
	x, err := b.encode(prev, dictionary, [forms]uint32{uint32(len(json)), uint32(len(zstd)), uint32(len(extra))})
	if err != nil {
		return nil, fmt.Errorf("seal chunk: %w", err)
	}
	// Reading back what was written is cheap, and makes a chunk in memory the same
	// thing as one from disk.
	c, err := parseIndex(x)
	if err != nil {
		return nil, fmt.Errorf("seal chunk: %w", err)
	}
	c.payload = [...][]byte{json, zstd, extra}
	c.resident = true
	if len(json) > 0 {
		// Here, because sealing is done by many and committing by one.
		b.packed = event.PackBlock(b.packed[:0], json)
		c.packed = bytes.Clone(b.packed)
		if cap(b.packed) > maxScratch {
			b.packed = nil
		}
	}
	return c, nil
}

// encode makes the index of what was added, for payloads of the given sizes, and empties the
// builder.
func (b *Builder) encode(prev event.Cursor, dictionary uint32, sizes [forms]uint32) ([]byte, error) {
	defer func() {
		b.entries = b.entries[:0]
		clear(b.collections)
		b.collections = b.collections[:0]
		clear(b.numbers)
		b.dids.clear()
	}()
	if len(b.entries) == 0 {
		return nil, errors.New("it has no events")
	}
	kinds := [event.KindSync + 1]int{}
	last, end := prev, [forms]uint32{}
	for i := range b.entries {
		e := &b.entries[i]
		if e.Cursor <= last || e.End[JSON] < end[JSON] || e.End[Zstd] < end[Zstd] || e.End[Extra] < end[Extra] {
			return nil, fmt.Errorf("event %d does not follow the one before", i)
		}
		if int(e.Kind) >= len(kinds) || e.Kind == 0 || (e.Kind == event.KindCommit) != (e.Collection != NoCollection) {
			return nil, fmt.Errorf("event %d, of kind %d, has a collection and is no commit, or the reverse", i, e.Kind)
		}
		kinds[e.Kind]++
		last, end = e.Cursor, e.End
	}
	if end != sizes {
		return nil, fmt.Errorf("the forms have %d bytes, their index %d", sizes, end)
	}

	dids := &b.dids
	b.order, b.place = b.order[:0], append(b.place[:0], make([]uint32, len(dids.ends))...)
	for k := range dids.ends {
		b.order = append(b.order, uint32(k))
	}
	slices.SortFunc(b.order, func(i, j uint32) int {
		if c := cmp.Compare(uint32(dids.hashes[i]), uint32(dids.hashes[j])); c != 0 {
			return c
		}
		return bytes.Compare(dids.did(i), dids.did(j))
	})
	for i, k := range b.order {
		b.place[k] = uint32(i)
	}

	x := make([]byte, 0, indexHeader+(4+1+plcBytes)*len(b.order)+64*len(b.collections)+12*len(b.entries))
	u32 := func(n int) { x = binary.LittleEndian.AppendUint32(x, uint32(n)) }
	u64 := func(n event.Cursor) { x = binary.LittleEndian.AppendUint64(x, uint64(n)) }
	x = append(x, indexMagic...)
	x = append(x, indexVersion, 0, 0, 0)
	u32(int(dictionary))
	for _, k := range []event.Kind{event.KindCommit, event.KindIdentity, event.KindAccount, event.KindSync} {
		u32(kinds[k])
	}
	u32(len(b.collections))
	u32(len(b.order))
	u64(prev)
	u64(b.entries[0].Cursor)
	u64(last)
	for _, n := range sizes {
		u32(int(n))
	}
	x = append(x, make([]byte, indexHeader-len(x))...)
	for _, k := range b.order {
		x = binary.LittleEndian.AppendUint32(x, uint32(dids.hashes[k]))
	}
	for _, name := range b.collections {
		x = binary.LittleEndian.AppendUint16(x, uint16(len(name)))
		x = append(x, name...)
	}
	for _, k := range b.order {
		x = appendDID(x, dids.did(k))
	}
	last, end = b.entries[0].Cursor, [forms]uint32{}
	for i := range b.entries {
		e := &b.entries[i]
		flags := byte(e.Kind)
		if e.End[Extra] > end[Extra] {
			flags |= extraFlag
		}
		x = append(x, flags)
		x = binary.AppendUvarint(x, uint64(e.Cursor-last))
		x = binary.AppendUvarint(x, uint64(e.End[JSON]-end[JSON]))
		x = binary.AppendUvarint(x, uint64(e.End[Zstd]-end[Zstd]))
		if flags&extraFlag != 0 {
			x = binary.AppendUvarint(x, uint64(e.End[Extra]-end[Extra]))
		}
		x = binary.AppendUvarint(x, uint64(b.place[e.DID]))
		if e.Kind == event.KindCommit {
			x = binary.AppendUvarint(x, uint64(e.Collection))
		}
		last, end = e.Cursor, e.End
	}
	return slices.Clip(x), nil
}

// merger makes one chunk of several. It keeps its memory: what it made is good until it
// makes the next.
type merger struct {
	builder Builder
	payload [forms][]byte
}

// merge makes one chunk of consecutive ones, with the same cursors and the same bytes.
// They have the same dictionary and are resident.
func (m *merger) merge(chunks []*Chunk) (*Chunk, error) {
	if len(chunks) == 1 && chunks[0].packed != nil {
		return chunks[0], nil
	}
	for f := range forms {
		if cap(m.payload[f]) > 4*maxScratch {
			m.payload[f] = nil
		}
		m.payload[f] = m.payload[f][:0]
		for _, c := range chunks {
			m.payload[f] = append(m.payload[f], c.payload[f]...)
		}
	}
	var base [forms]uint32
	for _, c := range chunks {
		dids := c.DIDs()
		for i := range c.Entries {
			e := &c.Entries[i]
			end, collection := e.End, ""
			for f := range end {
				end[f] += base[f]
			}
			if e.Collection != NoCollection {
				collection = c.Collections[e.Collection]
			}
			m.builder.Add(e.Cursor, e.Kind, []byte(dids[e.DID]), []byte(collection), end)
		}
		for f := range base {
			base[f] += uint32(c.Size(Form(f)))
		}
	}
	return m.builder.Seal(chunks[0].Prev, chunks[0].Dictionary, m.payload[JSON], m.payload[Zstd], m.payload[Extra])
}
