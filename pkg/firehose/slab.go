package firehose

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// slabSize is the memory that consecutive messages share: some forty of them. A buffer for
// each message alone would be mostly air, since they are from 500 bytes to megabytes large:
// a full pipeline of them held 21 MB where slabs hold 4.
const slabSize = 128 << 10

// slabRest is what a message need not bother to begin in.
const slabRest = 2 << 10

// slab is filled by one session and released by whoever has the frames in it.
type slab struct {
	b    []byte       // what is kept; the rest of its capacity is free; owned by the session
	refs atomic.Int32 // the frames that point into b, and the session while it fills it
}

var slabs = sync.Pool{New: func() any { return &slab{b: make([]byte, 0, slabSize)} }}

func newSlab(size int) *slab {
	var s *slab
	if size == slabSize {
		s = slabs.Get().(*slab)
	} else {
		s = &slab{b: make([]byte, 0, size)}
	}
	s.refs.Store(1)
	return s
}

// release gives up one reference. Slabs of a size of their own are for single large
// messages, and left to the garbage collector: a pool of them would keep a burst's memory
// for ever.
func (s *slab) release() {
	if s.refs.Add(-1) == 0 && cap(s.b) == slabSize {
		s.b = s.b[:0]
		slabs.Put(s)
	}
}

// arena is where a session reads its messages to. Its zero value is ready for use.
type arena struct {
	slab *slab // where messages are kept

	// large holds the last message if there was no room for it in slab; else nil. Only a
	// message that is kept may take the place of the slab: a relay that sends garbage
	// between small frames would otherwise leave each of those in a slab of its own.
	large *slab
}

var errTooLarge = errors.New("message too large")

// read reads a message to its end. It is valid until the next read, unless it is kept.
// After errTooLarge the rest of the message is still to be read.
func (a *arena) read(r io.Reader, limit int) ([]byte, error) {
	a.drop()
	if a.slab != nil && slabSize-len(a.slab.b) < slabRest {
		a.slab.release()
		a.slab = nil
	}
	if a.slab == nil {
		a.slab = newSlab(slabSize)
	}
	s, n := a.slab, 0
	for {
		free := s.b[len(s.b):cap(s.b)]
		if n == len(free) {
			larger := newSlab(max(slabSize, min(2*n, limit+1)))
			copy(larger.b[:n], free)
			a.drop()
			s, a.large = larger, larger
			continue
		}
		m, err := r.Read(free[n:])
		n += m
		if n > limit {
			a.drop()
			return nil, errTooLarge
		}
		if err == io.EOF {
			return free[:n:n], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// keep keeps the message that was read last: it is valid until the slab that comes back is
// released.
func (a *arena) keep(message []byte) *slab {
	s := a.slab
	if large := a.large; large != nil {
		a.large = nil
		if cap(large.b) != slabSize {
			return large // for this message alone: the arena's reference becomes the frame's
		}
		a.slab.release()
		a.slab, s = large, large
	}
	s.b = s.b[:len(s.b)+len(message)]
	s.refs.Add(1)
	return s
}

// drop lets go of a message that was not kept.
func (a *arena) drop() {
	if a.large != nil {
		a.large.release()
		a.large = nil
	}
}

// close lets go of everything.
func (a *arena) close() {
	a.drop()
	if a.slab != nil {
		a.slab.release()
		a.slab = nil
	}
}
