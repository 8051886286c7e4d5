package dagcbor

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"slices"
	"strconv"
)

// Limits of atdata, which refuses what is beyond them.
const (
	maxItemLen      = 1 << 20
	maxContainerLen = 128 << 10
	maxKeyLen       = 8192
)

// AppendJSON appends to dst the JSON of the one DAG-CBOR item that data is. canonical is
// false if data means one thing but is not how DAG-CBOR would write it. On error out is
// dst as it was.
func AppendJSON(dst, data []byte) (out []byte, canonical bool, err error) {
	return appendItem(dst, data, false)
}

// AppendRecordJSON is AppendJSON for a record, which has to be a map, and one that does
// not stand for a link, bytes or a blob.
func AppendRecordJSON(dst, data []byte) (out []byte, canonical bool, err error) {
	return appendItem(dst, data, true)
}

// errUnsorted is how the first, fast pass says that keys are out of order.
var errUnsorted = errors.New("keys out of order")

func appendItem(dst, data []byte, record bool) (out []byte, canonical bool, err error) {
	if len(data) > maxItemLen {
		return dst, false, fail(ReasonTooLarge, 0)
	}
	t := transcoder{s: Scanner{b: data}, record: record}
	out, err = t.item(dst)
	if err == errUnsorted {
		return appendUnsorted(dst, data, record)
	}
	if err != nil {
		return dst, false, err
	}
	return out, !t.s.long, nil
}

// appendUnsorted starts over, this time keeping the keys of each map it is in. A map in
// order cannot repeat a key without the repetition standing side by side, so nearly all
// records never come here; one that does costs at most twice as much, and an allocation.
func appendUnsorted(dst, data []byte, record bool) (out []byte, canonical bool, err error) {
	t := transcoder{s: Scanner{b: data}, record: record, unsorted: true, keys: make([]span, 0, 64)}
	out, err = t.item(dst)
	if err != nil {
		return dst, false, err
	}
	return out, false, nil
}

type transcoder struct {
	s        Scanner
	record   bool   // the outermost item is a record
	unsorted bool   // accept keys in any order, keeping them in keys
	keys     []span // of the maps being read, outermost first
}

// span is a key's place in the input.
type span struct{ start, end uint32 }

func (t *transcoder) item(dst []byte) ([]byte, error) {
	if t.record && t.s.Len() > 0 && !t.s.next(majorMap) {
		return dst, fail(ReasonNotAMap, 0)
	}
	dst, err := t.value(dst, 0)
	if err == nil && t.s.Len() > 0 {
		err = fail(ReasonTrailingBytes, t.s.off)
	}
	return dst, err
}

// value transcodes one item that is inside depth containers.
func (t *transcoder) value(dst []byte, depth int) ([]byte, error) {
	start := t.s.off
	major, arg, err := t.s.head()
	if err != nil {
		return dst, err
	}
	switch major {
	case majorUint:
		if arg > math.MaxInt64 {
			return dst, fail(ReasonIntegerRange, start)
		}
		return strconv.AppendUint(dst, arg, 10), nil
	case majorNegative:
		if arg > math.MaxInt64 {
			return dst, fail(ReasonIntegerRange, start)
		}
		return strconv.AppendInt(dst, ^int64(arg), 10), nil
	case majorBytes:
		b, ok := t.s.take(arg)
		if !ok {
			return dst, fail(ReasonTruncated, start)
		}
		dst = append(dst, `{"$bytes":"`...)
		dst = base64.RawStdEncoding.AppendEncode(dst, b)
		return append(dst, `"}`...), nil
	case majorText:
		b, ok := t.s.take(arg)
		if !ok {
			return dst, fail(ReasonTruncated, start)
		}
		if dst, ok = appendText(dst, b); !ok {
			return dst, fail(ReasonInvalidUTF8, start)
		}
		return dst, nil
	case majorArray:
		return t.array(dst, start, arg, depth+1)
	case majorMap:
		return t.object(dst, start, arg, depth+1)
	case majorTag:
		c, err := t.s.link(arg, start)
		if err != nil {
			return dst, err
		}
		dst = append(dst, `{"$link":"`...)
		dst = AppendCID(dst, c)
		return append(dst, `"}`...), nil
	}
	switch arg {
	case simpleFalse:
		return append(dst, "false"...), nil
	case simpleTrue:
		return append(dst, "true"...), nil
	case simpleNull:
		return append(dst, "null"...), nil
	}
	return dst, fail(simpleReason(arg), start)
}

// container checks the header of the array or map at start, with n entries of at least
// entryLen bytes.
func (t *transcoder) container(start int, n uint64, entryLen, depth int) error {
	switch {
	case depth > MaxDepth:
		return fail(ReasonTooDeep, start)
	case n > uint64(t.s.Len()/entryLen):
		return fail(ReasonTruncated, start)
	case n > maxContainerLen:
		return fail(ReasonTooLarge, start)
	}
	return nil
}

func (t *transcoder) array(dst []byte, start int, n uint64, depth int) ([]byte, error) {
	if err := t.container(start, n, 1, depth); err != nil {
		return dst, err
	}
	dst = append(dst, '[')
	for i := range n {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = t.value(dst, depth); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

func (t *transcoder) object(dst []byte, start int, n uint64, depth int) ([]byte, error) {
	if err := t.container(start, n, 2, depth); err != nil {
		return dst, err
	}
	var (
		body   = t.s.off
		mark   = len(t.keys)
		sorted = true
		blob   = false
		legacy = 0 // how many of the two keys of an old blob there are
		prev   []byte
	)
	dst = append(dst, '{')
	for i := range n {
		at := t.s.off
		key, err := t.key()
		if err != nil {
			return dst, err
		}
		if i > 0 {
			dst = append(dst, ',')
			if c := compareKeys(prev, key); c == 0 {
				return dst, fail(ReasonDuplicateKey, at)
			} else if c > 0 {
				sorted = false
				if !t.unsorted {
					return dst, errUnsorted
				}
			}
		}
		prev = key
		if t.unsorted {
			t.keys = append(t.keys, span{uint32(t.s.off - len(key)), uint32(t.s.off)})
		}
		var ok bool
		if dst, ok = appendText(dst, key); !ok {
			return dst, fail(ReasonInvalidUTF8, at)
		}
		dst = append(dst, ':')
		if len(key) > 0 && key[0] == '$' {
			var r Reason
			if blob, r = t.reserved(key, n, blob, t.record && depth == 1); r != 0 {
				return dst, fail(r, at)
			}
		} else if n == 2 && (string(key) == "cid" || string(key) == "mimeType") {
			legacy++
		}
		if dst, err = t.value(dst, depth); err != nil {
			return dst, err
		}
	}
	if !sorted {
		if dup := t.duplicate(mark); dup >= 0 {
			return dst, fail(ReasonDuplicateKey, dup)
		}
	}
	t.keys = t.keys[:mark]
	if blob || legacy == 2 {
		b := Scanner{b: t.s.b[:t.s.off], off: body}
		if t.record && depth == 1 || blob && !isBlob(b, n) || !blob && !isLegacyBlob(b) {
			return dst, fail(ReasonInvalidBlob, start)
		}
	}
	return append(dst, '}'), nil
}

func (t *transcoder) key() ([]byte, error) {
	at := t.s.off
	major, n, err := t.s.head()
	if err != nil {
		return nil, err
	}
	if major != majorText {
		return nil, fail(ReasonMapKey, at)
	}
	key, ok := t.s.take(n)
	if !ok {
		return nil, fail(ReasonTruncated, at)
	}
	if len(key) > maxKeyLen {
		return nil, fail(ReasonTooLarge, at)
	}
	return key, nil
}

// compareKeys orders keys as DAG-CBOR does: the shorter first, then by bytes.
func compareKeys(a, b []byte) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return bytes.Compare(a, b)
}

// duplicate returns the offset of a key that occurs twice among t.keys[mark:], or -1.
// It may reorder them.
func (t *transcoder) duplicate(mark int) int {
	keys, b := t.keys[mark:], t.s.b
	slices.SortFunc(keys, func(x, y span) int {
		return compareKeys(b[x.start:x.end], b[y.start:y.end])
	})
	for i := 1; i < len(keys); i++ {
		x, y := keys[i-1], keys[i]
		if bytes.Equal(b[x.start:x.end], b[y.start:y.end]) {
			return int(max(x.start, y.start))
		}
	}
	return -1
}

// reserved looks at the value of a key that starts with "$", which the scanner stands
// before, in a map of n entries. It says whether the map is a blob and why it is refused.
func (t *transcoder) reserved(key []byte, n uint64, blob, outermost bool) (bool, Reason) {
	s := t.s
	switch string(key) {
	case "$link":
		v, err := s.str(majorText)
		if err != nil || n != 1 || outermost || !isCIDText(v) {
			return false, ReasonInvalidLink
		}
	case "$bytes":
		v, err := s.str(majorText)
		if err != nil || n != 1 || outermost || !isBase64Text(v) {
			return false, ReasonInvalidBytes
		}
	case "$type":
		v, err := s.str(majorText)
		if err != nil || len(v) == 0 {
			return false, ReasonInvalidType
		}
		return string(v) == "blob", 0
	}
	return blob, 0
}

// isBlob reports whether the n entries at s, of a map with $type "blob", are what a blob
// has. It descends into nothing but a written-out link.
func isBlob(s Scanner, n uint64) bool {
	if n != 4 {
		return false
	}
	for range n {
		key, err := s.str(majorText)
		if err != nil {
			return false
		}
		switch string(key) {
		case "$type", "mimeType":
			_, err = s.str(majorText)
		case "size":
			var size int64
			if size, err = s.Int(); size < 0 {
				return false
			}
		case "ref":
			if s.next(majorTag) {
				_, err = s.CID()
				break
			}
			entries, notMap := s.Map()
			if notMap != nil || entries != 1 {
				return false
			}
			if k, _ := s.str(majorText); string(k) != "$link" {
				return false
			}
			_, err = s.str(majorText)
		default:
			return false
		}
		if err != nil {
			return false
		}
	}
	return true
}

// isLegacyBlob reports whether the two entries at s, "cid" and "mimeType", are those of a
// blob of before 2023. Any other map with just these keys is refused by atdata, too.
func isLegacyBlob(s Scanner) bool {
	for range 2 {
		key, err := s.str(majorText)
		if err != nil {
			return false
		}
		v, err := s.str(majorText)
		if err != nil || len(key) == len("cid") && !isCIDText(v) {
			return false
		}
	}
	return true
}

// isBase64Text reports whether b is exactly how some bytes are written in $bytes.
func isBase64Text(b []byte) bool {
	var last byte
	for _, c := range b {
		switch {
		case 'A' <= c && c <= 'Z':
			last = c - 'A'
		case 'a' <= c && c <= 'z':
			last = c - 'a' + 26
		case '0' <= c && c <= '9':
			last = c - '0' + 52
		case c == '+':
			last = 62
		case c == '/':
			last = 63
		default:
			return false
		}
	}
	switch len(b) % 4 {
	case 1:
		return false
	case 2:
		return last&15 == 0
	case 3:
		return last&3 == 0
	}
	return true
}
