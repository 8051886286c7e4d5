//go:build cgo

package dictionaries_test

import (
	"bytes"
	"fmt"
	"regexp"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/valyala/gozstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
)

// payload is a like like any other.
const payload = `{"did":"did:plc:ugjtaudqymges4sxruja5bwh","time_us":1795651200149900,"kind":"commit","commit":{"rev":"3n3tbypj5sz2v","operation":"create",` +
	`"collection":"app.bsky.feed.like","rkey":"3n3tbypiuzr2v","record":{"$type":"app.bsky.feed.like","subject":{"cid":"bafyreiahynqigkqd7gqdwia3ozt5fuaits3ev7lu3l35xo5d2j6xfdlk2q",` +
	`"uri":"at://did:plc:7tiia5rclvwibxngh7mvrlsw/app.bsky.feed.post/3n2mcvqdtos2y"},"createdAt":"2026-11-26T14:38:06.726Z"},"cid":"bafyreig7ennsfddooariycpvlo2tvh7u6anxhxphvpozr32ufwfoq2dsj4"}}`

// Both libraries read both libraries' frames with each dictionary.
func TestBothDecode(t *testing.T) {
	ids := map[uint32]bool{}
	for _, d := range dictionaries.All() {
		id, err := event.DictionaryID(d)
		if err != nil {
			t.Fatal(err)
		}
		if ids[id] {
			t.Errorf("two dictionaries have the id %d", id)
		}
		ids[id] = true
		t.Run(fmt.Sprint(id), func(t *testing.T) {
			libzstdPack, err := gozstd.NewCDictLevel(d, 3)
			if err != nil {
				t.Fatal(err)
			}
			libzstdRead, err := gozstd.NewDDict(d)
			if err != nil {
				t.Fatal(err)
			}
			klauspostPack, err := zstd.NewWriter(nil, zstd.WithEncoderDict(d))
			if err != nil {
				t.Fatal(err)
			}
			klauspostRead, err := zstd.NewReader(nil, zstd.WithDecoderDicts(d))
			if err != nil {
				t.Fatal(err)
			}
			defer klauspostRead.Close()
			for _, want := range [][]byte{
				[]byte(payload), []byte("{}"), []byte("文字 \U0001f98b \x00\x01\xff"), []byte(payload[:200]), bytes.Repeat([]byte(payload), 300),
			} {
				for who, z := range map[string][]byte{"libzstd": gozstd.CompressDict(nil, want, libzstdPack), "klauspost": klauspostPack.EncodeAll(want, nil)} {
					if got, err := gozstd.DecompressDict(nil, z, libzstdRead); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes by %s: libzstd makes %d of it, %v", len(want), who, len(got), err)
					}
					if got, err := klauspostRead.DecodeAll(z, nil); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes by %s: klauspost makes %d of it, %v", len(want), who, len(got), err)
					}
				}
			}
		})
	}
}

// libzstd takes the tables of the dictionary in use as they are: those of its own for one event
// take more bytes than they save, and time. (Of 20261124, the first, it does not take them.)
func TestTablesAreTaken(t *testing.T) {
	c, err := gozstd.NewCDictLevel(dictionaries.Current(), 3)
	if err != nil {
		t.Fatal(err)
	}
	z := gozstd.CompressDict(nil, []byte(payload), c)
	// RFC 8878 section 3.1.1: magic number, descriptor, dictionary id and content size; then
	// the block's header, its literals and its sequences.
	const frameHeader, blockHeader, literalsHeader = 4 + 1 + 4 + 2, 3, 3
	literals := z[frameHeader+blockHeader:]
	const treeless = 3
	if literals[0]&3 != treeless {
		t.Fatalf("literals of type %d, want %d: the dictionary's", literals[0]&3, treeless)
	}
	size := (int(literals[0]) | int(literals[1])<<8 | int(literals[2])<<16) >> 14 // 10 bits: fewer than 1,024 bytes
	sequences := literals[literalsHeader+size:]
	const repeat = 0b11_11_11_00
	if sequences[1] != repeat {
		t.Errorf("sequences of mode %08b, want %08b: the dictionary's, all three", sequences[1], repeat)
	}
}

// Nobody is in the one in use. (Of real identifiers a part would be enough to say so.)
func TestNobody(t *testing.T) {
	d := dictionaries.Current()
	for _, identifier := range []string{`did:plc:[a-wyz2-7]`, `bafy?k?rei[a-wyz2-7]`, `did:(web|key):[a-z0-9]`, `https?://[^"]`, `[a-z0-9-]+\.bsky\.social`, `[a-z]@[a-z]`} {
		if found := regexp.MustCompile(identifier).Find(d); found != nil {
			t.Errorf("there is %q in it", found)
		}
	}
}
