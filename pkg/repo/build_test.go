package repo_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/zstd"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/repo"
)

func readShared(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("../../../shared/data", name))
	if err != nil {
		tb.Skipf("no shared test data: %v", err)
	}
	return b
}

type frame struct {
	kind string // "#commit", ...
	body []byte
}

// realFrames returns the frames of a real relay.
func realFrames(tb testing.TB) []frame {
	tb.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	b, err := d.DecodeAll(readShared(tb, "frames/real-50.bin.zst"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	var all []frame
	for len(b) > 0 {
		n := binary.LittleEndian.Uint32(b)
		s := dagcbor.NewScanner(b[4 : 4+n])
		b = b[4+n:]
		header := s.Rest()
		if err := s.Skip(); err != nil {
			tb.Fatal(err)
		}
		out, _, err := dagcbor.AppendJSON(nil, header[:s.Offset()])
		if err != nil {
			tb.Fatal(err)
		}
		var h struct{ T string }
		if err := json.Unmarshal(out, &h); err != nil {
			tb.Fatal(err)
		}
		all = append(all, frame{h.T, s.Rest()})
	}
	return all
}

// m is a map to be written as a message.
type m = map[string]any

// encode writes v as DAG-CBOR by way of atdata.
func encode(v m) []byte {
	b, err := atdata.MarshalCBOR(v)
	if err != nil {
		panic(err)
	}
	return b
}

func link(c dagcbor.CID) atdata.CIDLink {
	v, err := cid.Cast(c)
	if err != nil {
		panic(err)
	}
	return atdata.CIDLink(v)
}

func linkOf(data []byte) atdata.CIDLink { return link(dagcbor.SumCID(data)) }

// edit returns a copy of base with keys replaced, or removed where the value is absent.
func edit(base m, kv ...any) m {
	out := m{}
	for k, v := range base {
		out[k] = v
	}
	for i := 0; i < len(kv); i += 2 {
		if _, gone := kv[i+1].(absent); gone {
			delete(out, kv[i].(string))
			continue
		}
		out[kv[i].(string)] = kv[i+1]
	}
	return out
}

type absent struct{}

// carOf writes a CAR whose blocks carry the CIDs that are theirs.
func carOf(blocks ...[]byte) []byte {
	root := dagcbor.SumCID([]byte("root"))
	car := section(encode(m{"version": 1, "roots": []any{link(root)}}))
	for _, b := range blocks {
		car = append(car, blockOf(dagcbor.SumCID(b), b)...)
	}
	return car
}

func blockOf(c dagcbor.CID, data []byte) []byte {
	return section(append(bytes.Clone(c), data...))
}

func section(b []byte) []byte {
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

// record returns the i-th of many small records.
func record(i int) []byte { return encode(m{"$type": "a.b.c", "i": i}) }

const (
	testDID  = "did:plc:wq4aajammjtxdomz3e23667t"
	testRev  = "3mptbypluud2a"
	testTime = "2026-07-04T14:38:08.999Z"
)

// commitOf is a commit with these ops and this CAR.
func commitOf(car []byte, ops ...any) m {
	if ops == nil {
		ops = []any{}
	}
	return m{
		"seq": 7, "rebase": false, "tooBig": false, "repo": testDID, "commit": linkOf([]byte("root")),
		"rev": testRev, "since": nil, "blocks": atdata.Bytes(append([]byte{}, car...)), "ops": ops, "blobs": []any{}, "time": testTime,
	}
}

func create(path string, data []byte) m {
	return m{"action": "create", "path": path, "cid": linkOf(data)}
}

func parse(tb testing.TB, body []byte) *repo.Commit {
	tb.Helper()
	c := new(repo.Commit)
	if err := c.Parse(body); err != nil {
		tb.Fatal(err)
	}
	return c
}
