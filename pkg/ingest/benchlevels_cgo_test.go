//go:build cgo

package ingest

import "github.com/valyala/gozstd"

func init() {
	libzstd = func(dictionary []byte, level int) (compressorOf, error) {
		d, err := gozstd.NewCDictLevel(dictionary, level)
		return func(dst, src []byte) []byte { return gozstd.CompressDict(dst, src, d) }, err
	}
}
