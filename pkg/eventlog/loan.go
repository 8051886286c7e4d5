package eventlog

import (
	"sync"
	"sync/atomic"
)

// Loan is a payload that is read and given back: see [Log.Borrow].
type Loan struct {
	Bytes []byte
	of    *shared // nil: they are nobody's, or a resident chunk's
}

// Return gives the bytes back: they will soon be others. It must be called once, but for the zero
// Loan, of which it may be.
func (l Loan) Return() {
	if l.of != nil {
		l.of.drop()
	}
}

// shared is a payload that was read from disk. The cache holds it, and so do those who have
// borrowed it; whoever lets go of it last passes its memory on.
type shared struct {
	bytes   []byte
	spare   *spare
	holders atomic.Int32
}

// hold makes the caller a holder. It reports whether there was still one.
func (s *shared) hold() bool {
	for {
		n := s.holders.Load()
		if n == 0 {
			return false
		}
		if s.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *shared) drop() {
	if s.holders.Add(-1) == 0 {
		s.spare.put(s.bytes)
	}
}

// spare is memory of payloads that are not needed any more, for the next ones: why is in the
// package comment.
type spare struct {
	mu   sync.Mutex
	free [][]byte
}

const (
	spareBuffers = 4        // are kept: one that is given back is soon taken again
	spareMin     = 32 << 10 // below it memory is cheap
)

// take returns an empty buffer with room for size bytes; of no spare, a new one of that size.
func (s *spare) take(size int) []byte {
	if s == nil || size < spareMin {
		return make([]byte, 0, size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, b := range s.free {
		if cap(b) >= size && cap(b) <= 2*size {
			last := len(s.free) - 1
			s.free[i], s.free[last] = s.free[last], nil
			s.free = s.free[:last]
			return b[:0]
		}
	}
	return make([]byte, 0, size+size/4) // blocks are of about one size: it will fit most of them
}

func (s *spare) put(b []byte) {
	if racing { // whoever still reads it is to be seen
		for i := range b {
			b[i] = 0xdb
		}
	}
	if cap(b) < spareMin {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) == spareBuffers {
		s.free[0] = s.free[spareBuffers-1] // the others may be of a size that is not asked for any more
		s.free = s.free[:spareBuffers-1]
	}
	s.free = append(s.free, b)
}
