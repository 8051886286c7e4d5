//go:build cgo

package event

import "github.com/valyala/gozstd"

// Library names the zstd encoder that this build uses.
const Library = "libzstd"

// level is the one that libzstd itself defaults to.
const level = 3

type encoder struct{ dictionary *gozstd.CDict }

func newEncoder(dictionary []byte) (encoder, error) {
	d, err := gozstd.NewCDictLevel(dictionary, level)
	return encoder{d}, err
}

func (e encoder) appendFrame(dst, payload []byte) []byte {
	return gozstd.CompressDict(dst, payload, e.dictionary)
}
