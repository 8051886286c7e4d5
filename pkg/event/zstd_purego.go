//go:build !cgo

package event

import (
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Library names the zstd encoder that this build uses.
const Library = "klauspost"

type encoder struct{ z *zstd.Encoder }

// The fastest level, whatever is asked for: the default one costs five times as much for one percent. The
// window is small because events are: it bounds what an encoder keeps.
func newEncoder(dictionary []byte, _ int) (encoder, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderDict(dictionary), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(128<<10), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	return encoder{z}, err
}

func (e encoder) appendFrame(dst, payload []byte) []byte {
	return e.z.EncodeAll(payload, dst)
}

var blockEncoder = sync.OnceValue(func() *zstd.Encoder {
	// A window that holds a whole chunk; an encoder keeps a few times as much.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(512<<10), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are constants
	}
	return z
})

func packBlock(dst, src []byte) []byte { return blockEncoder().EncodeAll(src, dst) }

// blockDecoder is shared by all: DecodeAll may be called concurrently, and its decoders
// are few and small.
var blockDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

func unpackBlock(dst, packed []byte, _ int) ([]byte, error) {
	return blockDecoder().DecodeAll(packed, dst)
}
