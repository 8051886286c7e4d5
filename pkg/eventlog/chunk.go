package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"

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

// NoCollection is an Entry's Collection where the event has none.
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
	DIDs        []string     // not necessarily each once

	index []byte
	// payload holds every form if the chunk is or was in the window, and nothing if it
	// was read from disk for a replay: its payloads are in the cache then.
	payload  [forms][]byte
	resident bool
	packed   []byte // the JSON form as it is stored; nil once it is
}

// First returns the cursor of the chunk's first event.
func (c *Chunk) First() event.Cursor { return c.Entries[0].Cursor }

// Last returns the cursor of the chunk's last event.
func (c *Chunk) Last() event.Cursor { return c.Entries[len(c.Entries)-1].Cursor }

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

// memory returns roughly what the index takes in memory.
func (c *Chunk) memory() int64 { return int64(len(c.index) + 40*len(c.Entries) + 16*len(c.DIDs) + 256) }

// The encoded index, little-endian:
//
//	 0       4       5          8          12         16          20         24
//	+-------+-------+----------+----------+----------+-----------+----------+
//	| magic | vers. | 0 0 0    | dictionary| entries | collections| DIDs    |
//	+-------+-------+----------+----------+----------+-----------+----------+
//	24 prev, 8 bytes
//	32 collections, then DIDs, each: length, 2 bytes; the string
//	   entries, each 32 bytes: cursor 8, json end 4, zstd end 4, extra end 4,
//	   DID 4, collection 2, kind 1, five zeros
//
// Entries are of fixed width for the sake of the reader, who is many; on disk they are a
// tenth of all bytes.
const (
	indexMagic   = "SLCK"
	indexVersion = 1
	indexHeader  = 32
	entrySize    = 32
)

var errIndex = errors.New("damaged chunk index")

// parseIndex reads an encoded index, which the chunk keeps. Everything that a reader
// relies on is checked: a chunk that parses can be walked without a bounds check.
func parseIndex(b []byte) (*Chunk, error) {
	if len(b) < indexHeader || string(b[:4]) != indexMagic {
		return nil, fmt.Errorf("%w: no header", errIndex)
	}
	if b[4] != indexVersion {
		return nil, fmt.Errorf("chunk index of version %d, this program reads version %d", b[4], indexVersion)
	}
	entries := int(binary.LittleEndian.Uint32(b[12:]))
	collections := int(binary.LittleEndian.Uint32(b[16:]))
	dids := int(binary.LittleEndian.Uint32(b[20:]))
	if entries == 0 || entries > (len(b)-indexHeader)/entrySize || collections >= NoCollection || collections+dids > len(b)/2 {
		return nil, fmt.Errorf("%w: counts", errIndex)
	}
	c := &Chunk{
		Dictionary: binary.LittleEndian.Uint32(b[8:]),
		Prev:       event.Cursor(binary.LittleEndian.Uint64(b[24:])),
		Entries:    make([]Entry, entries),
		index:      b,
	}
	table := b[indexHeader : len(b)-entries*entrySize]
	text := string(table) // one allocation for all the strings
	names := make([]string, collections+dids)
	at := 0
	for i := range names {
		if len(table)-at < 2 {
			return nil, fmt.Errorf("%w: names", errIndex)
		}
		n := int(binary.LittleEndian.Uint16(table[at:]))
		at += 2
		if len(table)-at < n {
			return nil, fmt.Errorf("%w: names", errIndex)
		}
		names[i] = text[at : at+n]
		at += n
	}
	if at != len(table) {
		return nil, fmt.Errorf("%w: names", errIndex)
	}
	c.Collections, c.DIDs = names[:collections:collections], names[collections:]

	row := b[len(b)-entries*entrySize:]
	last, end := c.Prev, [forms]uint32{}
	for i := range c.Entries {
		e := &c.Entries[i]
		e.Cursor = event.Cursor(binary.LittleEndian.Uint64(row))
		e.End[JSON] = binary.LittleEndian.Uint32(row[8:])
		e.End[Zstd] = binary.LittleEndian.Uint32(row[12:])
		e.End[Extra] = binary.LittleEndian.Uint32(row[16:])
		e.DID = binary.LittleEndian.Uint32(row[20:])
		e.Collection = binary.LittleEndian.Uint16(row[24:])
		e.Kind = event.Kind(row[26])
		if e.Cursor <= last || e.End[JSON] < end[JSON] || e.End[Zstd] < end[Zstd] || e.End[Extra] < end[Extra] ||
			int(e.DID) >= dids || (int(e.Collection) >= collections && e.Collection != NoCollection) {
			return nil, fmt.Errorf("%w: entry %d", errIndex, i)
		}
		last, end = e.Cursor, e.End
		row = row[entrySize:]
	}
	return c, nil
}

// maxScratch is how much memory a builder may keep between chunks.
const maxScratch = 1 << 20

// Builder puts a chunk together. It can be reused after Seal; it is not safe for
// concurrent use.
type Builder struct {
	entries     []Entry
	collections []string
	numbers     map[string]uint16 // of collections
	dids        []byte            // the encoded table
	didCount    uint32
	lastDID     []byte
	packed      []byte // scratch
}

// Add appends one event. end holds where it ends in each payload. did and collection
// (empty: none) are copied.
func (b *Builder) Add(cursor event.Cursor, kind event.Kind, did, collection []byte, end [forms]uint32) {
	if b.didCount == 0 || string(did) != string(b.lastDID) {
		b.dids = binary.LittleEndian.AppendUint16(b.dids, uint16(len(did)))
		b.dids = append(b.dids, did...)
		b.lastDID = b.dids[len(b.dids)-len(did):]
		b.didCount++
	}
	number := uint16(NoCollection)
	if len(collection) > 0 {
		var known bool
		if number, known = b.numbers[string(collection)]; !known {
			if b.numbers == nil {
				b.numbers = map[string]uint16{}
			}
			number = uint16(len(b.collections))
			name := string(collection)
			b.collections = append(b.collections, name)
			b.numbers[name] = number
		}
	}
	b.entries = append(b.entries, Entry{Cursor: cursor, End: end, DID: b.didCount - 1, Collection: number, Kind: kind})
}

// Len returns how many events have been added. A chunk must stay below [MaxEvents].
func (b *Builder) Len() int { return len(b.entries) }

// MaxEvents bounds a chunk: collections are numbered in 16 bits.
const MaxEvents = NoCollection - 1

// Seal makes the chunk of what was added, and empties the builder. The log keeps the
// payloads, which must not be changed any more. prev is the cursor of the last event
// before the chunk. It is an error to seal an empty chunk, or one whose cursors or
// ends do not grow.
func (b *Builder) Seal(prev event.Cursor, dictionary uint32, json, zstd, extra []byte) (*Chunk, error) {
	size := indexHeader + len(b.dids) + entrySize*len(b.entries)
	for _, name := range b.collections {
		size += 2 + len(name)
	}
	x := make([]byte, 0, size)
	x = append(x, indexMagic...)
	x = append(x, indexVersion, 0, 0, 0)
	x = binary.LittleEndian.AppendUint32(x, dictionary)
	x = binary.LittleEndian.AppendUint32(x, uint32(len(b.entries)))
	x = binary.LittleEndian.AppendUint32(x, uint32(len(b.collections)))
	x = binary.LittleEndian.AppendUint32(x, b.didCount)
	x = binary.LittleEndian.AppendUint64(x, uint64(prev))
	for _, name := range b.collections {
		x = binary.LittleEndian.AppendUint16(x, uint16(len(name)))
		x = append(x, name...)
	}
	x = append(x, b.dids...)
	for i := range b.entries {
		e := &b.entries[i]
		x = binary.LittleEndian.AppendUint64(x, uint64(e.Cursor))
		x = binary.LittleEndian.AppendUint32(x, e.End[JSON])
		x = binary.LittleEndian.AppendUint32(x, e.End[Zstd])
		x = binary.LittleEndian.AppendUint32(x, e.End[Extra])
		x = binary.LittleEndian.AppendUint32(x, e.DID)
		x = binary.LittleEndian.AppendUint16(x, e.Collection)
		x = append(x, byte(e.Kind), 0, 0, 0, 0, 0)
	}
	clear(b.numbers)
	b.entries, b.collections, b.dids, b.didCount, b.lastDID = b.entries[:0], b.collections[:0], b.dids[:0], 0, nil

	// Reading back what was written is cheap, and makes a chunk in memory the same
	// thing as one from disk.
	c, err := parseIndex(x)
	if err != nil {
		return nil, fmt.Errorf("seal chunk: %w", err)
	}
	for f, p := range [forms][]byte{json, zstd, extra} {
		if c.Size(Form(f)) != len(p) {
			return nil, fmt.Errorf("seal chunk: form %d has %d bytes, its index %d", f, len(p), c.Size(Form(f)))
		}
		c.payload[f] = p
	}
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
