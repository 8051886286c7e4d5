package eventlog

import (
	"sort"

	"slipstream/pkg/event"
)

// window is the newest part of the log, in memory. It is an immutable snapshot:
// appending makes another one, and readers take no lock.
type window struct {
	chunks []*Chunk
	bytes  int64
	last   event.Cursor  // the newest event of the log; 0 if there has been none
	grown  chan struct{} // closed when the next window replaces this one
}

// covers reports whether the window holds everything after the given position.
func (w *window) covers(after event.Cursor) bool {
	return after >= w.last || len(w.chunks) > 0 && after >= w.chunks[0].Prev
}

// next returns the first chunk with an event after the given position, which must be
// covered, or nil.
func (w *window) next(after event.Cursor) *Chunk {
	// Nearly every reader is at the end.
	if n := len(w.chunks); n == 0 || w.chunks[n-1].Last() <= after {
		return nil
	} else if w.chunks[n-1].Prev <= after {
		return w.chunks[n-1]
	}
	i := sort.Search(len(w.chunks), func(i int) bool { return w.chunks[i].Last() > after })
	return w.chunks[i]
}

// with returns the window after the given chunks were appended, holding at most
// budget bytes, but at least the newest chunk and everything after stored.
func (w *window) with(chunks []*Chunk, budget int64, stored event.Cursor) *window {
	next := &window{bytes: w.bytes, last: w.last, grown: make(chan struct{})}
	for _, c := range chunks {
		next.bytes += c.cost()
		next.last = c.Last()
	}
	all := append(append(make([]*Chunk, 0, len(w.chunks)+len(chunks)), w.chunks...), chunks...)
	drop := 0
	for drop < len(all)-1 && next.bytes > budget && all[drop].Last() <= stored {
		next.bytes -= all[drop].cost()
		drop++
	}
	next.chunks = all[drop:]
	return next
}

// cost is what a chunk with all its payloads takes in memory.
func (c *Chunk) cost() int64 {
	return c.memory() + int64(c.Size(JSON)+c.Size(Zstd)+c.Size(Extra))
}
