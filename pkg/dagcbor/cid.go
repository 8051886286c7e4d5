package dagcbor

import (
	"bytes"
	"crypto/sha256"
)

// CID is a binary content identifier of the one shape atproto uses: version 1, codec
// dag-cbor or raw, sha2-256 with 32 bytes. It is 36 bytes long and carries no multibase
// prefix.
type CID []byte

const (
	cidLen    = 36
	cidHeader = 4 // version, codec, hash function, hash length

	codecRaw     = 0x55
	codecDagCBOR = 0x71

	// cidTextLen is "b" and 288 bits in base32.
	cidTextLen = 1 + (cidLen*8+4)/5
)

func validCID(b []byte) bool {
	return len(b) == cidLen && b[0] == 1 && (b[1] == codecDagCBOR || b[1] == codecRaw) &&
		b[2] == 0x12 && b[3] == sha256.Size
}

// ParseCID reads the CID at the start of b. It points into b and takes n bytes of it.
func ParseCID(b []byte) (c CID, n int, err error) {
	if len(b) < cidLen {
		return nil, 0, fail(ReasonTruncated, 0)
	}
	if !validCID(b[:cidLen]) {
		return nil, 0, fail(ReasonInvalidCID, 0)
	}
	return CID(b[:cidLen:cidLen]), cidLen, nil
}

// SumCID returns the CID of data as a DAG-CBOR block.
func SumCID(data []byte) CID {
	sum := sha256.Sum256(data)
	return append(CID{1, codecDagCBOR, 0x12, sha256.Size}, sum[:]...)
}

// Matches reports whether c is the CID of data.
func (c CID) Matches(data []byte) bool {
	if len(c) != cidLen {
		return false
	}
	sum := sha256.Sum256(data)
	return bytes.Equal(c[cidHeader:], sum[:])
}

// IsDagCBOR reports whether c names a DAG-CBOR block rather than a raw one.
func (c CID) IsDagCBOR() bool { return len(c) == cidLen && c[1] == codecDagCBOR }

// String returns the text form of c.
func (c CID) String() string { return string(AppendCID(nil, c)) }

const base32Alphabet = "abcdefghijklmnopqrstuvwxyz234567"

// AppendCID appends the text form of c: "b" and lower-case base32 without padding.
func AppendCID(dst []byte, c CID) []byte {
	dst = append(dst, 'b')
	for len(c) >= 5 {
		v := uint64(c[0])<<32 | uint64(c[1])<<24 | uint64(c[2])<<16 | uint64(c[3])<<8 | uint64(c[4])
		dst = append(dst,
			base32Alphabet[v>>35], base32Alphabet[v>>30&31],
			base32Alphabet[v>>25&31], base32Alphabet[v>>20&31],
			base32Alphabet[v>>15&31], base32Alphabet[v>>10&31],
			base32Alphabet[v>>5&31], base32Alphabet[v&31])
		c = c[5:]
	}
	var v, bits uint
	for _, b := range c {
		v = v<<8 | uint(b)
		for bits += 8; bits >= 5; bits -= 5 {
			dst = append(dst, base32Alphabet[v>>(bits-5)&31])
		}
	}
	if bits > 0 {
		dst = append(dst, base32Alphabet[v<<(5-bits)&31])
	}
	return dst
}

// isCIDText reports whether b is exactly what AppendCID writes for some CID.
func isCIDText(b []byte) bool {
	if len(b) != cidTextLen || b[0] != 'b' {
		return false
	}
	var raw [cidLen]byte
	var v, bits uint
	n := 0
	for _, ch := range b[1:] {
		var d byte
		switch {
		case 'a' <= ch && ch <= 'z':
			d = ch - 'a'
		case '2' <= ch && ch <= '7':
			d = ch - '2' + 26
		default:
			return false
		}
		v = v<<5 | uint(d)
		if bits += 5; bits >= 8 {
			bits -= 8
			raw[n] = byte(v >> bits)
			n++
		}
	}
	return v&(1<<bits-1) == 0 && validCID(raw[:])
}
