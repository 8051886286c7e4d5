//go:build cgo

package main

import (
	"testing"

	"github.com/valyala/gozstd"
)

// checkLibzstd decodes a sample with libzstd.
func checkLibzstd(t *testing.T, s *wireSample) {
	dictionary, err := gozstd.NewDDict(s.dictionary)
	if err != nil {
		t.Fatal(err)
	}
	s.check(t, func(frame []byte) ([]byte, error) { return gozstd.DecompressDict(nil, frame, dictionary) })
}
