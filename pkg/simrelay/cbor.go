package simrelay

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"time"
)

// cidBytes is a binary CIDv1 with a SHA-256 digest: version, codec, hash code, hash length, digest.
type cidBytes [36]byte

const (
	codecDagCBOR = 0x71
	codecRaw     = 0x55
	digestAt     = 4
)

var lowerBase32 = base32.NewEncoding(base32Chars).WithPadding(base32.NoPadding)

// base32Chars holds the same 32 characters as the alphabet of TIDs, in another order.
const base32Chars = "abcdefghijklmnopqrstuvwxyz234567"

func sumCID(codec byte, data []byte) cidBytes {
	c := cidBytes{0x01, codec, 0x12, 0x20}
	digest := sha256.Sum256(data)
	copy(c[digestAt:], digest[:])
	return c
}

func (c cidBytes) String() string {
	return "b" + lowerBase32.EncodeToString(c[:])
}

// A span is a run of bytes that the loop mode may overwrite without changing any length.
type span struct {
	at, n int
	kind  spanKind
}

type spanKind uint8

const (
	spanRandom spanKind = iota // base32 characters that mean nothing by themselves
	spanClock                  // a timestamp in timeLayout
)

const timeLayout = "2006-01-02T15:04:05.000Z"

// The values that encoder.value takes besides string, int, int64, bool, nil and []byte.
type (
	obj   []field // written in canonical key order, whatever the order here
	arr   []any
	link  cidBytes
	field struct {
		key string
		val any
	}
	// text is a string some of whose bytes may be overwritten; spans count from its start.
	text struct {
		s     string
		spans []span
	}
)

func clockText(t time.Time) text {
	return text{t.UTC().Format(timeLayout), []span{{0, len(timeLayout), spanClock}}}
}

// An encoder appends canonical DAG-CBOR and notes where the overwritable runs come to stand.
type encoder struct {
	buf   []byte
	spans []span
}

func appendHead(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n < 1<<8:
		return append(dst, major|24, byte(n))
	case n < 1<<16:
		return append(dst, major|25, byte(n>>8), byte(n))
	case n < 1<<32:
		return append(dst, major|26, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(dst, major|27, byte(n>>56), byte(n>>48), byte(n>>40), byte(n>>32),
		byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

func (e *encoder) mapHead(n int)   { e.buf = appendHead(e.buf, 5, uint64(n)) }
func (e *encoder) arrayHead(n int) { e.buf = appendHead(e.buf, 4, uint64(n)) }
func (e *encoder) bytesHead(n int) { e.buf = appendHead(e.buf, 2, uint64(n)) }

// str appends a text string and returns where its first byte stands.
func (e *encoder) str(s string) int {
	e.buf = appendHead(e.buf, 3, uint64(len(s)))
	e.buf = append(e.buf, s...)
	return len(e.buf) - len(s)
}

func (e *encoder) int(n int64) {
	if n < 0 {
		e.buf = appendHead(e.buf, 1, uint64(^n))
		return
	}
	e.buf = appendHead(e.buf, 0, uint64(n))
}

func (e *encoder) bool(v bool) {
	if v {
		e.buf = append(e.buf, 0xf5)
		return
	}
	e.buf = append(e.buf, 0xf4)
}

func (e *encoder) null() { e.buf = append(e.buf, 0xf6) }

// link appends a CID as tag 42 and returns where the binary CID (behind its zero byte) stands.
func (e *encoder) link(c cidBytes) int {
	e.buf = append(e.buf, 0xd8, 0x2a, 0x58, 0x25, 0x00)
	e.buf = append(e.buf, c[:]...)
	return len(e.buf) - len(c)
}

func (e *encoder) value(v any) {
	switch v := v.(type) {
	case nil:
		e.null()
	case string:
		e.str(v)
	case text:
		at := e.str(v.s)
		for _, s := range v.spans {
			e.spans = append(e.spans, span{at + s.at, s.n, s.kind})
		}
	case int:
		e.int(int64(v))
	case int64:
		e.int(v)
	case bool:
		e.bool(v)
	case []byte:
		e.bytesHead(len(v))
		e.buf = append(e.buf, v...)
	case link:
		e.link(cidBytes(v))
	case arr:
		e.arrayHead(len(v))
		for _, item := range v {
			e.value(item)
		}
	case obj:
		slices.SortFunc(v, func(a, b field) int {
			return cmp.Or(cmp.Compare(len(a.key), len(b.key)), cmp.Compare(a.key, b.key))
		})
		e.mapHead(len(v))
		for _, f := range v {
			e.str(f.key)
			e.value(f.val)
		}
	default:
		panic(fmt.Sprintf("simrelay: no CBOR form for %T", v))
	}
}
