package event

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// dictionaryMagic opens every structured dictionary (RFC 8878 section 5).
const dictionaryMagic = 0xEC30A437

// DictionaryID returns the id in a structured zstd dictionary's header.
func DictionaryID(dictionary []byte) (uint32, error) {
	if len(dictionary) < 8 || binary.LittleEndian.Uint32(dictionary) != dictionaryMagic {
		return 0, errors.New("not a zstd dictionary (RFC 8878 section 5)")
	}
	return binary.LittleEndian.Uint32(dictionary[4:]), nil
}

// Compressor makes one stand-alone zstd frame of one payload, with a dictionary. It
// is safe for concurrent use and lives as long as the process.
type Compressor struct {
	id         uint32
	dictionary []byte
	encoder    encoder // libzstd with cgo, klauspost without
}

// NewCompressor digests the dictionary, which it keeps.
func NewCompressor(dictionary []byte) (*Compressor, error) {
	id, err := DictionaryID(dictionary)
	if err != nil {
		return nil, err
	}
	// The decoder is the stricter reader of the two libraries' dictionaries.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionary), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("zstd dictionary %d: %w", id, err)
	}
	dec.Close()
	enc, err := newEncoder(dictionary)
	if err != nil {
		return nil, fmt.Errorf("zstd dictionary %d: %w", id, err)
	}
	return &Compressor{id: id, dictionary: dictionary, encoder: enc}, nil
}

// ID returns the dictionary's id, which every frame names.
func (c *Compressor) ID() uint32 { return c.id }

// Dictionary returns the dictionary. The caller must not change it.
func (c *Compressor) Dictionary() []byte { return c.dictionary }

// Append appends payload's zstd frame to dst.
func (c *Compressor) Append(dst, payload []byte) []byte {
	return c.encoder.appendFrame(dst, payload)
}

// AppendBinary appends a websocket binary frame that holds payload's zstd frame.
func (c *Compressor) AppendBinary(dst, payload []byte) []byte {
	start := len(dst)
	return finishFrame(c.Append(reserve(dst), payload), start, binaryFrame)
}
