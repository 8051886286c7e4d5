package dagcbor

import (
	"encoding/binary"
	"unicode/utf8"
)

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// specials has the high bit set in some byte if some byte of x is one that JSON wants
// escaped: below 0x20, a quote, or a backslash. Each term is the classic "is there a byte
// below n" of bit-twiddling: exact about whether, though not about where.
func specials(x uint64) uint64 {
	quote, backslash := x^('"'*ones), x^('\\'*ones)
	return ((x-0x20*ones)&^x | (quote-ones)&^quote | (backslash-ones)&^backslash) & highs
}

// plain has a bit set for each byte that is ASCII and needs no escape.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// allPlain reports whether b can stand between quotes as it is and is known to be UTF-8
// because it is ASCII.
func allPlain(b []byte) bool {
	for len(b) >= 8 {
		x := binary.LittleEndian.Uint64(b)
		if specials(x)|x&highs != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if !plain[c] {
			return false
		}
	}
	return true
}

// appendText appends b as a JSON string; ok is false if it is not UTF-8.
func appendText(dst, b []byte) (out []byte, ok bool) {
	if allPlain(b) {
		dst = append(dst, '"')
		dst = append(dst, b...)
		return append(dst, '"'), true
	}
	if !utf8.Valid(b) {
		return dst, false
	}
	return appendEscaped(dst, b), true
}

// AppendJSONString appends utf8 as a JSON string with its quotes. It escapes what JSON
// requires to be escaped and nothing else. The caller vouches for valid UTF-8.
func AppendJSONString(dst, utf8 []byte) []byte {
	if allPlain(utf8) {
		dst = append(dst, '"')
		dst = append(dst, utf8...)
		return append(dst, '"')
	}
	return appendEscaped(dst, utf8)
}

func appendEscaped(dst, b []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	done := 0
	for i := 0; i < len(b); {
		if i+8 <= len(b) && specials(binary.LittleEndian.Uint64(b[i:])) == 0 {
			i += 8
			continue
		}
		c := b[i]
		i++
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, b[done:i-1]...)
		done = i
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	dst = append(dst, b[done:]...)
	return append(dst, '"')
}
