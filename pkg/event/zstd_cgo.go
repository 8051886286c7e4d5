//go:build cgo

package event

import (
	"slices"

	"github.com/valyala/gozstd"
)

// Library names the zstd encoder that this build uses.
const Library = "libzstd"

type encoder struct{ dictionary *gozstd.CDict }

func newEncoder(dictionary []byte, level int) (encoder, error) {
	d, err := gozstd.NewCDictLevel(dictionary, level)
	return encoder{d}, err
}

func (e encoder) appendFrame(dst, payload []byte) []byte {
	return gozstd.CompressDict(room(dst, len(payload)), payload, e.dictionary)
}

func packBlock(dst, src []byte) []byte { return gozstd.CompressLevel(room(dst, len(src)), src, 1) }

// unpackBlock has the size for what hides behind a first frame, and would be made room for.
func unpackBlock(dst, packed []byte, size int) ([]byte, error) {
	return gozstd.DecompressLimited(dst, packed, size)
}

// room makes place for the worst that n bytes can become. Where there is less, gozstd
// may have to compress a second time.
func room(dst []byte, n int) []byte { return slices.Grow(dst, n+n>>8+64) }
