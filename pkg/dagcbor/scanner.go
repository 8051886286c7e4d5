package dagcbor

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// MaxDepth is how deeply maps and arrays may be nested. atproto suggests 32 and atdata
// enforces nothing. With the two levels of an event around a record and the one of a
// $link inside it, 120 stays below 128, where serde_json gives up.
const MaxDepth = 120

const (
	majorUint = iota
	majorNegative
	majorBytes
	majorText
	majorArray
	majorMap
	majorTag
	majorSimple
)

const (
	simpleFalse     = 20
	simpleTrue      = 21
	simpleNull      = 22
	simpleUndefined = 23
)

const tagCID = 42

// Scanner reads DAG-CBOR items one after another from a byte slice. It allocates nothing;
// the byte slices it returns point into the input. A method that fails leaves the scanner
// where it was, except Skip, which stops at the item at fault.
//
// Lengths and integers in more bytes than needed are accepted here.
type Scanner struct {
	b    []byte
	off  int
	long bool // some head was longer than it had to be
}

// NewScanner returns a Scanner at the start of b.
func NewScanner(b []byte) Scanner { return Scanner{b: b} }

// Offset is the position of the next item.
func (s *Scanner) Offset() int { return s.off }

// Len is the number of bytes not yet read.
func (s *Scanner) Len() int { return len(s.b) - s.off }

// Rest returns the bytes not yet read.
func (s *Scanner) Rest() []byte { return s.b[s.off:] }

// Map reads the header of a map and returns its number of pairs, which the remaining
// input is at least long enough to hold.
func (s *Scanner) Map() (n int, err error) { return s.container(majorMap, 2) }

// Array reads the header of an array and returns its number of elements, which the
// remaining input is at least long enough to hold.
func (s *Scanner) Array() (n int, err error) { return s.container(majorArray, 1) }

func (s *Scanner) container(major byte, itemLen int) (int, error) {
	start := s.off
	arg, err := s.expect(major)
	if err != nil {
		return 0, err
	}
	if arg > uint64(s.Len()/itemLen) {
		s.off = start
		return 0, fail(ReasonTruncated, start)
	}
	return int(arg), nil
}

// Text reads a text string of valid UTF-8.
func (s *Scanner) Text() ([]byte, error) {
	start := s.off
	b, err := s.str(majorText)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(b) {
		s.off = start
		return nil, fail(ReasonInvalidUTF8, start)
	}
	return b, nil
}

// Bytes reads a byte string.
func (s *Scanner) Bytes() ([]byte, error) { return s.str(majorBytes) }

func (s *Scanner) str(major byte) ([]byte, error) {
	start := s.off
	n, err := s.expect(major)
	if err != nil {
		return nil, err
	}
	b, ok := s.take(n)
	if !ok {
		s.off = start
		return nil, fail(ReasonTruncated, start)
	}
	return b, nil
}

// Int reads an integer.
func (s *Scanner) Int() (int64, error) {
	start := s.off
	major, arg, err := s.head()
	if err != nil {
		return 0, err
	}
	if major > majorNegative {
		s.off = start
		return 0, fail(ReasonUnexpectedType, start)
	}
	if arg > math.MaxInt64 {
		s.off = start
		return 0, fail(ReasonIntegerRange, start)
	}
	if major == majorNegative {
		return ^int64(arg), nil
	}
	return int64(arg), nil
}

// Bool reads a boolean.
func (s *Scanner) Bool() (bool, error) {
	if s.off < len(s.b) {
		switch s.b[s.off] {
		case majorSimple<<5 | simpleFalse:
			s.off++
			return false, nil
		case majorSimple<<5 | simpleTrue:
			s.off++
			return true, nil
		}
		return false, fail(ReasonUnexpectedType, s.off)
	}
	return false, fail(ReasonTruncated, s.off)
}

// Null consumes a null if that is the next item, and reports whether it was.
func (s *Scanner) Null() bool {
	if s.off < len(s.b) && s.b[s.off] == majorSimple<<5|simpleNull {
		s.off++
		return true
	}
	return false
}

// CID reads a link: tag 42 on a byte string.
func (s *Scanner) CID() (CID, error) {
	start := s.off
	tag, err := s.expect(majorTag)
	if err != nil {
		return nil, err
	}
	c, err := s.link(tag, start)
	if err != nil {
		s.off = start
	}
	return c, err
}

// link reads what follows the tag that starts at offset start.
func (s *Scanner) link(tag uint64, start int) (CID, error) {
	if tag != tagCID {
		return nil, fail(ReasonTag, start)
	}
	major, n, err := s.head()
	if err != nil {
		return nil, err
	}
	if major != majorBytes || n != 1+cidLen {
		return nil, fail(ReasonInvalidCID, start)
	}
	b, ok := s.take(n)
	if !ok {
		return nil, fail(ReasonTruncated, start)
	}
	// The zero is the multibase prefix for "binary".
	if b[0] != 0 || !validCID(b[1:]) {
		return nil, fail(ReasonInvalidCID, start)
	}
	return CID(b[1:]), nil
}

// Skip reads one item of any kind, with all that it contains, and forgets it. It asks for
// well-formed CBOR of definite lengths, not more than MaxDepth deep, and not for DAG-CBOR:
// what is in a field that nobody reads is nobody's business.
func (s *Scanner) Skip() error { return s.skip(0) }

func (s *Scanner) skip(depth int) error {
	start := s.off
	if s.next(majorSimple) {
		return s.skipSimple()
	}
	major, arg, err := s.head()
	if err != nil {
		return err
	}
	items := arg
	switch major {
	case majorUint, majorNegative:
		return nil
	case majorBytes, majorText:
		if _, ok := s.take(arg); !ok {
			return fail(ReasonTruncated, start)
		}
		return nil
	case majorArray:
		if arg > uint64(s.Len()) {
			return fail(ReasonTruncated, start)
		}
	case majorMap:
		if arg > uint64(s.Len()/2) {
			return fail(ReasonTruncated, start)
		}
		items = 2 * arg
	case majorTag:
		items = 1
	}
	if depth++; depth > MaxDepth {
		return fail(ReasonTooDeep, start)
	}
	for range items {
		if err := s.skip(depth); err != nil {
			return err
		}
	}
	return nil
}

// skipSimple reads a simple value or a float.
func (s *Scanner) skipSimple() error {
	start := s.off
	size := uint64(1)
	switch low := s.b[start] & 0x1f; {
	case low == 31:
		return fail(ReasonIndefiniteLength, start)
	case low > 27:
		return fail(ReasonReserved, start)
	case low >= 24:
		size += 1 << (low - 24)
	}
	if _, ok := s.take(size); !ok {
		return fail(ReasonTruncated, start)
	}
	return nil
}

// simpleReason says why simple value v is refused, or 0 where it is not.
func simpleReason(v uint64) Reason {
	switch v {
	case simpleFalse, simpleTrue, simpleNull:
		return 0
	case simpleUndefined:
		return ReasonUndefined
	}
	return ReasonSimpleValue
}

// next reports whether the next item is of the given major type.
func (s *Scanner) next(major byte) bool {
	return s.off < len(s.b) && s.b[s.off]>>5 == major
}

// expect reads a head of the given major type and returns its argument.
func (s *Scanner) expect(major byte) (uint64, error) {
	start := s.off
	m, arg, err := s.head()
	if err != nil {
		return 0, err
	}
	if m != major {
		s.off = start
		return 0, fail(ReasonUnexpectedType, start)
	}
	return arg, nil
}

// head reads the first byte of an item and the argument that belongs to it. Where that
// fails nothing is consumed.
func (s *Scanner) head() (major byte, arg uint64, err error) {
	if s.off >= len(s.b) {
		return 0, 0, fail(ReasonTruncated, s.off)
	}
	c := s.b[s.off]
	if low := c & 0x1f; low < 24 {
		s.off++
		return c >> 5, uint64(low), nil
	}
	return s.longHead(c)
}

func (s *Scanner) longHead(c byte) (major byte, arg uint64, err error) {
	major, low := c>>5, c&0x1f
	switch {
	case low == 31 && major != majorUint && major != majorNegative && major != majorTag:
		return 0, 0, fail(ReasonIndefiniteLength, s.off)
	case low > 27:
		return 0, 0, fail(ReasonReserved, s.off)
	case major == majorSimple && low == 24:
		return 0, 0, fail(ReasonSimpleValue, s.off)
	case major == majorSimple:
		return 0, 0, fail(ReasonFloat, s.off)
	}
	size := 1 << (low - 24)
	b := s.b[s.off+1:]
	if len(b) < size {
		return 0, 0, fail(ReasonTruncated, s.off)
	}
	var least uint64
	switch size {
	case 1:
		arg, least = uint64(b[0]), 24
	case 2:
		arg, least = uint64(binary.BigEndian.Uint16(b)), 1<<8
	case 4:
		arg, least = uint64(binary.BigEndian.Uint32(b)), 1<<16
	default:
		arg, least = binary.BigEndian.Uint64(b), 1<<32
	}
	if arg < least {
		s.long = true
	}
	s.off += 1 + size
	return major, arg, nil
}

// take consumes n bytes.
func (s *Scanner) take(n uint64) ([]byte, bool) {
	if n > uint64(s.Len()) {
		return nil, false
	}
	end := s.off + int(n)
	b := s.b[s.off:end:end]
	s.off = end
	return b, true
}
