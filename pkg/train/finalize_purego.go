//go:build !cgo

package train

import "errors"

// There is another builder, klauspost's, but with its tables libzstd makes new ones for
// each event.
var errNoLibzstd = errors.New("only libzstd makes a dictionary's tables, and this program was built without it: build with cgo")

// Available returns why this program cannot train; nil: it can.
func Available() error { return errNoLibzstd }

func finalize([]byte, [][]byte, uint32) ([]byte, error) { return nil, errNoLibzstd }

func newDecoder([]byte) (func([]byte) ([]byte, error), error) { return nil, errNoLibzstd }
