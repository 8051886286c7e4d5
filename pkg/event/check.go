package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Check holds a payload against what an index says about it: it is JSON, and begins with
// exactly that DID, cursor and kind, and a commit with its collection in its place. Consumers
// are promised no more than JSON, but everything that cuts a payload by length relies on the
// bytes.
func Check(payload []byte, did string, c Cursor, kind Kind, collection string) error {
	name := kind.String()
	rest := payload
	for _, part := range [...]struct{ what, text string }{
		{"did", didPrefix + did + `"`},
		{"time_us", cursorPrefix[1:] + strconv.FormatInt(int64(c), 10)},
		{"kind", `,"kind":"` + name + `"`},
		{"body", `,"` + name + `":{`},
	} {
		if len(rest) < len(part.text) || string(rest[:len(part.text)]) != part.text {
			return fmt.Errorf("%s: %#q where the index asks for %#q", part.what, clip(rest, len(part.text)), part.text)
		}
		rest = rest[len(part.text):]
	}
	if kind == KindCommit {
		rev := Rev(payload, len(did))
		at := CollectionOffset(nil, rev, "create") + len(did) // all operations are of one length
		if want := collection + `","rkey":"`; rev == nil || len(payload) < at+len(want) || string(payload[at:at+len(want)]) != want {
			return fmt.Errorf("collection: %#q where the index asks for %#q", clip(payload[min(at, len(payload)):], len(want)), want)
		}
	}
	switch {
	case !utf8.Valid(payload):
		return errors.New("it is not UTF-8")
	case !json.Valid(payload):
		return errors.New("it is not JSON")
	}
	return nil
}

// clip returns what there is of the first n bytes.
func clip(b []byte, n int) []byte { return b[:min(n, len(b))] }

// CheckBinary checks that frame is one whole binary frame with the shortest header, which is
// what [Compressor.AppendBinary] makes.
func CheckBinary(frame []byte) error {
	n := PayloadLen(len(frame))
	header := frame[:len(frame)-n]
	var want [10]byte
	if len(header) != headerLen(n) {
		return fmt.Errorf("a frame of %d bytes, which none has", len(frame))
	}
	putHeader(want[:len(header)], binaryFrame, n)
	if !bytes.Equal(header, want[:len(header)]) {
		return fmt.Errorf("its frame begins with %x, not with %x", header, want[:len(header)])
	}
	return nil
}
