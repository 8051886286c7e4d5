package main

import (
	"encoding/binary"
	"fmt"
)

// Opcodes of RFC 6455 section 5.2 that a server sends.
const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
)

// maxFrame is more than any event. A length beyond it means that the walk has lost its way.
const maxFrame = 1 << 30

// walker finds the frames in what a server sends, however reads have cut it. It looks at
// headers and passes over payloads, so that a consumer costs a few bytes and next to no
// time.
type walker struct {
	peek  int    // how much of a message's payload is shown
	left  int    // bytes of the current frame that are still to be passed over
	carry []byte // the beginning of a frame in which a read has ended
}

// visit is called once for each frame, as soon as enough of it is there. size includes the
// header. payload is all of a control frame's and the first bytes of a message's, and valid
// during the call.
type visit func(opcode byte, size int, payload []byte) error

func (w *walker) walk(b []byte, visit visit) error {
	for len(b) > 0 {
		if w.left > 0 {
			n := min(w.left, len(b))
			w.left -= n
			b = b[n:]
			continue
		}
		begin := b
		if len(w.carry) > 0 {
			_, _, need, err := w.header(w.carry)
			if err != nil {
				return err
			}
			n := min(need-len(w.carry), len(b))
			w.carry = append(w.carry, b[:n]...)
			begin, b = w.carry, b[n:]
		}
		head, size, need, err := w.header(begin)
		if err != nil {
			return err
		}
		if need > len(begin) {
			if len(w.carry) == 0 {
				w.carry, b = append(w.carry, b...), nil
			}
			continue
		}
		if err := visit(begin[0]&15, head+size, begin[head:need]); err != nil {
			return err
		}
		if len(w.carry) > 0 {
			w.left = head + size - len(w.carry)
			w.carry = w.carry[:0]
		} else {
			n := min(head+size, len(b))
			w.left = head + size - n
			b = b[n:]
		}
	}
	return nil
}

// header reads the header that b begins with. Of a frame, need bytes must be there before
// it is shown; where they are more than b, head and size may not be known yet, and need
// may still grow.
func (w *walker) header(b []byte) (head, size, need int, err error) {
	if len(b) < 2 {
		return 0, 0, 2, nil
	}
	head, size = 2, int(b[1])
	switch size {
	case 126:
		if head = 4; len(b) < head {
			return 0, 0, head, nil
		}
		size = int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		if head = 10; len(b) < head {
			return 0, 0, head, nil
		}
		if n := binary.BigEndian.Uint64(b[2:]); n <= maxFrame {
			size = int(n)
		} else {
			size = maxFrame + 1
		}
	}
	control := b[0]&8 != 0
	if b[0]&0x70 != 0 || head == 2 && size > 125 || control && head > 2 || size > maxFrame {
		return 0, 0, 0, fmt.Errorf("no server's frame header: %x", b[:head])
	}
	if control {
		return head, size, head + size, nil
	}
	return head, size, head + min(size, w.peek), nil
}

// headerBytes is how long the header of a server's frame is.
func headerBytes(payload int) int {
	switch {
	case payload < 126:
		return 2
	case payload < 1<<16:
		return 4
	}
	return 10
}
