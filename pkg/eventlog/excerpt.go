package eventlog

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// An excerpt is a chunk within a block, of those of its events that are rare: what is no
// commit, and the collections that have least. See the package comment for why. It stands in
// the block's head, behind the summary:
//
//	which of the block's collections it has, a bit each, the first in the lowest of the first
//	byte; its index, as long as the summary says (see chunk.go); its zstd payload; its extra
//
// It has all of a block's events of what it has. Its index describes a JSON payload that is
// not stored: each event's can be made of its zstd frame. A block of which too much is no
// commit, or nothing is rare, has no excerpt, and its head ends where the summary does.

// excerptShare is which part of a block's zstd payload an excerpt may repeat: 12 bytes an event
// at most, and half of that with the simulated relay's collections.
const excerptShare = 16

// Need is how much of a block a reader has a use for.
type Need uint8

// What a reader needs.
const (
	Nothing Need = iota
	Excerpt      // is enough; where there is none, it gets everything
	Everything
)

// HasExcerpt reports whether the block has an excerpt: see [Summary.Collections].
func (s *Summary) HasExcerpt() bool { return s.excerptIndex > 0 }

// excerpted reports whether the excerpt has the block's collection i.
func (s *Summary) excerpted(i int) bool {
	return s.HasExcerpt() && s.rest[i/8]>>(i%8)&1 == 1
}

// parseExcerpt returns the excerpt in a block's head, which it keeps. Its payloads but the JSON
// are resident.
func parseExcerpt(head []byte) (*Chunk, error) {
	s, err := parseSummary(head)
	if err != nil {
		return nil, err
	}
	if !s.HasExcerpt() {
		return nil, fmt.Errorf("excerpt: %w: there is none", errIndex)
	}
	index := s.rest[bitmapLen(s.nameCount):]
	c, err := parseIndex(index[:s.excerptIndex])
	if err != nil {
		return nil, fmt.Errorf("excerpt: %w", err)
	}
	payloads := index[s.excerptIndex:]
	zstd := c.Size(Zstd)
	if c.Prev != s.Prev || c.First() < s.First || c.Last() > s.Last || len(payloads) != zstd+c.Size(Extra) {
		return nil, fmt.Errorf("excerpt: %w: it is of another block", errIndex)
	}
	c.payload[Zstd], c.payload[Extra] = payloads[:zstd:zstd], payloads[zstd:]
	c.of, c.last = &s, s.Last
	return c, nil
}

func bitmapLen(names int) int { return (names + 7) / 8 }

// excerpter makes excerpts. It keeps its memory: what it made is good until it makes the next.
type excerpter struct {
	builder Builder
	sizes   []int // of the block's collections
	order   []int // of them, smallest first
	has     []bool
	encoded []byte
	payload [forms][]byte
}

// split makes of a block's index, and its payloads, what is stored: its head, in which the store
// has to fill in what it knows, and the rest of the index.
func (x *excerpter) split(c *Chunk) (head, index []byte, err error) {
	s, err := parseSummary(c.index)
	if err != nil {
		return nil, nil, err
	}
	n := len(c.index) - len(s.rest)
	head, index = append(make([]byte, 0, n+c.Size(Zstd)/excerptShare), c.index[:n]...), s.rest
	if has, ok := x.choose(c); ok {
		excerpt, size, err := x.make(c, has)
		if err != nil {
			return nil, nil, err
		}
		head = append(head, excerpt...)
		binary.LittleEndian.PutUint32(head[offExcerpt:], uint32(size))
	}
	return head, index, nil
}

// choose returns which collections of a block are rare; false: there is to be no excerpt.
func (x *excerpter) choose(c *Chunk) (has []bool, ok bool) {
	x.sizes = append(x.sizes[:0], make([]int, len(c.Collections))...)
	x.has = append(x.has[:0], make([]bool, len(c.Collections))...)
	left := c.Size(Zstd) / excerptShare
	for i := range c.Entries {
		e := &c.Entries[i]
		size := int(e.End[Zstd] - c.Start(i, Zstd) + e.End[Extra] - c.Start(i, Extra))
		if e.Collection == NoCollection {
			left -= size
			ok = true
		} else {
			x.sizes[e.Collection] += size
		}
	}
	if left < 0 {
		return nil, false
	}
	x.order = x.order[:0]
	for i := range c.Collections {
		x.order = append(x.order, i)
	}
	slices.SortFunc(x.order, func(i, j int) int { return cmp.Compare(x.sizes[i], x.sizes[j]) })
	for _, i := range x.order {
		if left -= x.sizes[i]; left < 0 {
			break
		}
		x.has[i], ok = true, true
	}
	return x.has, ok
}

// make returns the excerpt of a block, whose payloads are there, that has what it is told, and
// how long its index is.
func (x *excerpter) make(c *Chunk, has []bool) (encoded []byte, index int, err error) {
	for f := range x.payload {
		x.payload[f] = x.payload[f][:0]
	}
	var dids []string
	end := [forms]uint32{}
	for i := range c.Entries {
		e := &c.Entries[i]
		name := ""
		if e.Collection != NoCollection {
			if !has[e.Collection] {
				continue
			}
			name = c.Collections[e.Collection]
		}
		for f := range forms {
			begin := c.Start(i, f)
			end[f] += e.End[f] - begin
			if f != JSON {
				x.payload[f] = append(x.payload[f], c.payload[f][begin:e.End[f]]...)
			}
		}
		if dids == nil {
			dids = c.DIDs()
		}
		x.builder.Add(e.Cursor, e.Kind, []byte(dids[e.DID]), []byte(name), end)
	}
	encodedIndex, err := x.builder.encode(c.Prev, c.Dictionary, end)
	if err != nil {
		return nil, 0, fmt.Errorf("make excerpt: %w", err)
	}
	x.encoded = append(x.encoded[:0], make([]byte, bitmapLen(len(has)))...)
	for i, h := range has {
		if h {
			x.encoded[i/8] |= 1 << (i % 8)
		}
	}
	x.encoded = append(append(append(x.encoded, encodedIndex...), x.payload[Zstd]...), x.payload[Extra]...)
	return x.encoded, len(encodedIndex), nil
}

// checkExcerpt holds a block's excerpt, if it has one, against the block, whose payloads are
// there.
func checkExcerpt(s *Summary, c *Chunk) error {
	if !s.HasExcerpt() {
		return nil
	}
	has := make([]bool, s.nameCount)
	for i := range has {
		has[i] = s.excerpted(i)
	}
	var x excerpter
	want, index, err := x.make(c, has)
	if err != nil {
		return err
	}
	if index != s.excerptIndex || !bytes.Equal(want, s.rest) {
		return fmt.Errorf("excerpt: %w: it is not what the block's payloads have", errIndex)
	}
	return nil
}
