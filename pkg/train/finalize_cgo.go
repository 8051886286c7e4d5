//go:build cgo

package train

// gozstd links libzstd with its dictionary builder, but wraps only the part of it that
// chooses the content, too.

// #include <stddef.h>
// typedef struct { int level; unsigned verbosity, id; } params; // ZDICT_params_t
// size_t ZDICT_finalizeDictionary(void *, size_t, const void *, size_t, const void *, const size_t *, unsigned, params);
// unsigned ZDICT_isError(size_t);
// const char *ZDICT_getErrorName(size_t);
import "C"

import (
	"bytes"
	"errors"
	"unsafe"

	"github.com/valyala/gozstd"
)

// Available returns why this program cannot train; nil: it can.
func Available() error { return nil }

// finalize puts libzstd's header in front of the content: the id, and tables of what it
// takes to compress the samples with that content.
func finalize(content []byte, samples [][]byte, id uint32) ([]byte, error) {
	const (
		header = 1 << 10 // more than any
		level  = 3       // the one of pkg/event; with the statistics of another, the ratio is the same
	)
	sizes := make([]C.size_t, len(samples))
	for i, s := range samples {
		sizes[i] = C.size_t(len(s))
	}
	flat := bytes.Join(samples, nil)
	d := make([]byte, header+len(content))
	n := C.ZDICT_finalizeDictionary(unsafe.Pointer(&d[0]), C.size_t(len(d)), unsafe.Pointer(&content[0]), C.size_t(len(content)),
		unsafe.Pointer(&flat[0]), &sizes[0], C.unsigned(len(sizes)), C.params{level: level, id: C.unsigned(id)})
	if C.ZDICT_isError(n) != 0 {
		return nil, errors.New("libzstd: " + C.GoString(C.ZDICT_getErrorName(n)))
	}
	return d[:n], nil
}

// newDecoder returns libzstd's decoder.
func newDecoder(dictionary []byte) (func(frame []byte) ([]byte, error), error) {
	d, err := gozstd.NewDDict(dictionary)
	if err != nil {
		return nil, err
	}
	return func(frame []byte) ([]byte, error) { return gozstd.DecompressDict(nil, frame, d) }, nil
}
