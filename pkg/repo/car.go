package repo

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"

	"slipstream/pkg/dagcbor"
)

// A CAR, version 1, is a header and then any number of blocks:
//
//	varint  length of the header
//	        header, DAG-CBOR: version and roots
//	varint  length of CID and data together  \
//	        CID                               | repeated
//	        data                             /

// carReader yields the blocks of a CAR one after another.
type carReader struct {
	rest    []byte
	damaged bool // what is left cannot be read
}

// openCAR skips the header, which has nothing that we need. No CAR at all, as in commits
// that are too big, is one without blocks.
func openCAR(b []byte) carReader {
	r := carReader{rest: b}
	if len(b) > 0 {
		r.section()
	}
	return r
}

// section cuts off the next length-prefixed run of bytes; nil if there is none.
func (r *carReader) section() []byte {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > uint64(len(r.rest)-size) {
		r.damaged = true
		return nil
	}
	end := size + int(n)
	b := r.rest[size:end:end]
	r.rest = r.rest[end:]
	return b
}

// next returns the next block whose CID is of the kind that atproto has; others cannot be
// asked for and are passed over.
func (r *carReader) next() (cid dagcbor.CID, data []byte, ok bool) {
	for len(r.rest) > 0 && !r.damaged {
		b := r.section()
		c, n, err := dagcbor.ParseCID(b)
		if err == nil {
			return c, b[n:], true
		}
	}
	return nil, nil, false
}

// wanted is the set of blocks that a commit's ops name, which each block of the CAR is held
// against. Nearly all commits name one or two, which are compared one after another. More
// make a hash table with open addressing, so that the work is the sum of ops and blocks,
// never their product. The hash is seeded, because the CIDs are chosen by strangers. Each
// block is verified once, however many ops name it.
type wanted struct {
	blocks []block
	slots  []int32 // 1 + index into blocks; 0 is free; the length is a power of two, or 0 for a scan
}

// scanOps is up to how many ops there is no table, which takes 12 percent off the parsing of
// real commits.
const scanOps = 3

type block struct {
	cid   dagcbor.CID
	data  []byte
	found bool
	state verdict
}

type verdict uint8

const (
	unchecked verdict = iota
	good
	mismatch
)

var seed = maphash.MakeSeed()

// reset empties w and makes room for n blocks.
func (w *wanted) reset(n int) {
	clear(w.blocks) // so that they keep no old message in memory
	w.blocks = w.blocks[:0]
	if n <= scanOps {
		w.slots = w.slots[:0]
		return
	}
	size := 4
	for size < 2*n {
		size *= 2
	}
	if cap(w.slots) < size {
		w.slots = make([]int32, size)
		return
	}
	w.slots = w.slots[:size]
	clear(w.slots)
}

// slot returns where in the table c is, or where it would go.
func (w *wanted) slot(c dagcbor.CID) *int32 {
	mask := uint64(len(w.slots) - 1)
	for i := maphash.Bytes(seed, c) & mask; ; i = (i + 1) & mask {
		s := &w.slots[i]
		if *s == 0 || bytes.Equal(w.blocks[*s-1].cid, c) {
			return s
		}
	}
}

// find returns the block of a CID, or nil if it is not wanted.
func (w *wanted) find(c dagcbor.CID) *block {
	if len(w.slots) == 0 {
		for i := range w.blocks {
			if b := &w.blocks[i]; bytes.Equal(b.cid, c) {
				return b
			}
		}
		return nil
	}
	if s := *w.slot(c); s != 0 {
		return &w.blocks[s-1]
	}
	return nil
}

func (w *wanted) add(c dagcbor.CID) {
	if w.find(c) != nil {
		return
	}
	w.blocks = append(w.blocks, block{cid: c})
	if len(w.slots) > 0 {
		*w.slot(c) = int32(len(w.blocks))
	}
}

// collect takes the wanted blocks from a CAR, and reports whether it was read to its end.
// Where a CAR repeats a CID the first block counts.
func (w *wanted) collect(car []byte) (whole bool) {
	r := openCAR(car)
	missing := len(w.blocks)
	for missing > 0 {
		c, data, ok := r.next()
		if !ok {
			break
		}
		if b := w.find(c); b != nil && !b.found {
			b.data, b.found = data, true
			missing--
		}
	}
	return !r.damaged
}

// record returns the verified block of a CID that was added.
func (w *wanted) record(c dagcbor.CID) ([]byte, Fault) {
	b := w.find(c)
	if !b.found {
		return nil, FaultMissingBlock
	}
	if b.state == unchecked {
		b.state = mismatch
		if c.Matches(b.data) {
			b.state = good
		}
	}
	if b.state == mismatch {
		return nil, FaultCIDMismatch
	}
	return b.data, 0
}
