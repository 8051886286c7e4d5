//go:build cgo

package event_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	datadog "github.com/DataDog/zstd"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/klauspost/compress/zstd"
	"github.com/valyala/gozstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
)

// Two copies of libzstd are in the program: gozstd's, which makes our frames, and
// DataDog's, which Pebble links. They define the same symbols, and what works alone need
// not work together: so both run here, side by side, on the same data. CI does this in a
// static binary, too.
func TestTwoLibzstds(t *testing.T) {
	compressor, err := event.NewCompressor(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.Current()))
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	options := &pebble.Options{FS: vfs.NewMem(), MemTableSize: 256 << 10}
	options.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionGood })
	db, err := pebble.Open("db", options)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()

	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 200 {
				want := bytes.Repeat(fmt.Appendf(nil, `{"did":"did:plc:%d","n":%d},`, worker, i), 1+i%50)
				if got, err := decoder.DecodeAll(compressor.Append(nil, want), nil); err != nil || !bytes.Equal(got, want) {
					t.Errorf("gozstd: got %d bytes, want %d: %v", len(got), len(want), err)
					return
				}
				packed := event.PackBlock(nil, want)
				if got, err := datadog.Decompress(nil, packed); err != nil || !bytes.Equal(got, want) {
					t.Errorf("gozstd's frame by DataDog's: got %d bytes, want %d: %v", len(got), len(want), err)
					return
				}
				theirs, err := datadog.CompressLevel(nil, want, 1+i%9)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := event.UnpackBlock(nil, theirs, len(want)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("DataDog's frame: got %d bytes, want %d: %v", len(got), len(want), err)
					return
				}
				if err := db.Set(fmt.Appendf(nil, "%d/%d", worker, i), want, pebble.NoSync); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	for worker := range 4 {
		want := bytes.Repeat(fmt.Appendf(nil, `{"did":"did:plc:%d","n":%d},`, worker, 199), 50)
		got, closer, err := db.Get(fmt.Appendf(nil, "%d/%d", worker, 199))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("from a table: got %d bytes, want %d: %v", len(got), len(want), err)
		}
		closer.Close()
	}
}

// What the build without cgo sends, libzstd reads.
func TestLibzstdReadsKlauspost(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderDict(dictionaries.Current()), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(128<<10), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	dictionary, err := gozstd.NewDDict(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		want := bytes.Repeat(fmt.Appendf(nil, `{"did":"did:plc:%d","time_us":1790000000000000,"kind":"commit"}`, i), 1+i)
		got, err := gozstd.DecompressDict(nil, enc.EncodeAll(want, nil), dictionary)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, want %d: %v", len(got), len(want), err)
		}
	}
}
