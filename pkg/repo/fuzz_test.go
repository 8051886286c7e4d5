package repo_test

import (
	"bytes"
	"testing"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/ipld/go-car"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/repo"
)

// indigoBlocks reads a CAR as indigo does, as far as that gets.
func indigoBlocks(b []byte) map[string][]byte {
	blocks := map[string][]byte{}
	r, err := car.NewCarReader(bytes.NewReader(b))
	if err != nil {
		return blocks
	}
	for {
		block, err := r.Next()
		if err != nil {
			return blocks
		}
		blocks[block.Cid().String()] = block.RawData()
	}
}

// FuzzCommit holds what we deliver against indigo, where indigo takes the message, and
// looks for anything that may not leave this package.
func FuzzCommit(f *testing.F) {
	f.Add(encode(goodCommit))
	f.Add(encode(commitOf(carOf(record(1), record(2)), good, create("a.b.c/1", record(2)), m{"action": "delete", "path": "a.b.c/2", "cid": nil})))
	for _, c := range messageFaults {
		if len(c.body) < 1000 {
			f.Add(c.body)
		}
	}
	for _, c := range opFaults {
		if body := encode(commitOf(c.car, good, c.op)); len(body) < 1000 {
			f.Add(body)
		}
	}
	var c repo.Commit
	f.Fuzz(func(t *testing.T, body []byte) {
		parseIdentity(body)
		parseAccount(body)
		parseSync(body)
		parseInfo(body)
		if err := c.Parse(body); err != nil {
			if faultOf(t, err) == 0 || len(c.Ops) != 0 {
				t.Fatalf("%v and %d ops", err, len(c.Ops))
			}
			return
		}
		for _, b := range [][]byte{c.Repo, c.Rev, c.Since} {
			plainJSON(t, b)
		}
		var msg comatproto.SyncSubscribeRepos_Commit
		known := msg.UnmarshalCBOR(bytes.NewReader(body)) == nil && len(msg.Ops) == len(c.Ops)
		if known && (msg.Seq != c.Seq || msg.Repo != string(c.Repo) || msg.Rev != string(c.Rev) ||
			msg.Time != string(c.Time) || msg.TooBig != c.TooBig) {
			t.Fatalf("got %+v, want %+v", c, msg)
		}
		blocks := indigoBlocks(msg.Blocks)
		for i, op := range c.Ops {
			if op.Fault != 0 {
				if op.Fault.String() == "unknown" {
					t.Fatal("unknown fault")
				}
				continue
			}
			plainJSON(t, op.Collection)
			plainJSON(t, op.RKey)
			if (op.Action == repo.Delete) != (op.CID == nil) || op.CID != nil && !op.CID.Matches(op.Record) {
				t.Fatalf("op %d: %+v", i, op)
			}
			if !known {
				continue
			}
			want := msg.Ops[i]
			if path := string(op.Collection) + "/" + string(op.RKey); path != want.Path || op.Action.String() != want.Action {
				t.Fatalf("op %d: %v %s, want %s %s", i, op.Action, path, want.Action, want.Path)
			}
			if op.CID == nil {
				continue
			}
			if want.Cid == nil || op.CID.String() != want.Cid.String() {
				t.Fatalf("op %d: %v, want %v", i, op.CID, want.Cid)
			}
			// go-car gives up where a block is bad; we go on.
			if b, ok := blocks[want.Cid.String()]; ok && !bytes.Equal(b, op.Record) {
				t.Fatalf("op %d: %x, want %x", i, op.Record, b)
			}
		}
	})
}

// plainJSON checks that b can stand in a JSON string as it is.
func plainJSON(t *testing.T, b []byte) {
	if s := dagcbor.AppendJSONString(nil, b); len(s) != len(b)+2 || bytes.ContainsFunc(b, func(r rune) bool { return r >= 0x80 }) {
		t.Fatalf("%q needs care in JSON", b)
	}
}

// FuzzCAR asks for each block that go-car finds, and must get each of them.
func FuzzCAR(f *testing.F) {
	f.Add(carOf(record(1), record(2)))
	f.Add(append(carOf(record(1)), wrong...))
	f.Add([]byte{})
	for _, c := range opFaults {
		if c.car != nil {
			f.Add(c.car)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ops := []any{good}
		blocks := indigoBlocks(b)
		var records [][]byte
		for _, data := range blocks {
			if len(ops) < 100 {
				ops = append(ops, create("a.b.c/1", data))
				records = append(records, data)
			}
		}
		c := parse(t, encode(commitOf(b, ops...)))
		for i, data := range records {
			op := c.Ops[i+1]
			if _, ok := blocks[dagcbor.SumCID(data).String()]; !ok {
				continue // go-car found it under another kind of CID
			}
			if op.Fault != 0 || !bytes.Equal(op.Record, data) {
				t.Fatalf("block %d: %v, %x, want %x", i, op.Fault, op.Record, data)
			}
		}
	})
}
