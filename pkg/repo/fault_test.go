package repo_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atdata"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/repo"
)

// faultOf returns the fault in err, 0 if there is none.
func faultOf(tb testing.TB, err error) repo.Fault {
	tb.Helper()
	if err == nil {
		return 0
	}
	var e *repo.Error
	if !errors.As(err, &e) {
		tb.Fatalf("%T is not an *Error: %v", err, err)
	}
	if e.Error() == "" {
		tb.Error("no sentence")
	}
	return e.Fault
}

func parseCommit(body []byte) error   { return new(repo.Commit).Parse(body) }
func parseIdentity(body []byte) error { _, err := repo.ParseIdentity(body); return err }
func parseAccount(body []byte) error  { _, err := repo.ParseAccount(body); return err }
func parseSync(body []byte) error     { _, err := repo.ParseSync(body); return err }
func parseInfo(body []byte) error     { _, err := repo.ParseInfo(body); return err }

var (
	goodCommit   = commitOf(carOf(record(1)), create("a.b.c/1", record(1)))
	goodIdentity = m{"seq": 7, "did": testDID, "time": testTime, "handle": "a.example"}
	goodAccount  = m{"seq": 7, "did": testDID, "time": testTime, "active": false, "status": "deleted"}
	goodSync     = m{"seq": 7, "did": testDID, "time": testTime, "rev": testRev, "blocks": atdata.Bytes(carOf())}
	goodInfo     = m{"name": "OutdatedCursor", "message": "too old"}
)

// twice returns the message with one field put in front once more.
func twice(message m, field string) []byte {
	b := encode(message)
	extra := encode(m{field: message[field]})
	return append(append([]byte{b[0] + 1}, extra[1:]...), b[1:]...)
}

var messageFaults = []struct {
	name  string
	parse func([]byte) error
	body  []byte
	want  repo.Fault
}{
	{"commit", parseCommit, encode(goodCommit), 0},
	{"commit with unknown fields", parseCommit, encode(edit(goodCommit, "new", m{"a": []any{1}})), 0},
	{"commit without the deprecated", parseCommit, encode(edit(goodCommit, "rebase", absent{}, "blobs", absent{}, "tooBig", absent{}, "commit", absent{})), 0},
	{"commit without since", parseCommit, encode(edit(goodCommit, "since", absent{})), 0},
	{"commit with odd since", parseCommit, encode(edit(goodCommit, "since", 5)), 0},
	{"commit without blocks", parseCommit, encode(edit(goodCommit, "blocks", absent{})), 0},
	{"commit with null blocks", parseCommit, encode(edit(goodCommit, "blocks", nil)), 0},
	{"commit without ops", parseCommit, encode(commitOf(carOf())), 0},
	{"nothing", parseCommit, nil, repo.FaultBadCBOR},
	{"not a map", parseCommit, []byte{0x80}, repo.FaultBadCBOR},
	{"key not text", parseCommit, []byte{0xa1, 1, 1}, repo.FaultBadCBOR},
	{"cut off", parseCommit, encode(goodCommit)[:100], repo.FaultBadCBOR},
	{"bytes left over", parseCommit, append(encode(goodCommit), 0), repo.FaultBadCBOR},
	{"seq text", parseCommit, encode(edit(goodCommit, "seq", "7")), repo.FaultBadCBOR},
	{"seq null", parseCommit, encode(edit(goodCommit, "seq", nil)), repo.FaultBadCBOR},
	{"ops not a list", parseCommit, encode(edit(goodCommit, "ops", m{})), repo.FaultBadCBOR},
	{"blocks text", parseCommit, encode(edit(goodCommit, "blocks", "x")), repo.FaultBadCBOR},
	{"tooBig number", parseCommit, encode(edit(goodCommit, "tooBig", 1)), repo.FaultBadCBOR},
	{"no seq", parseCommit, encode(edit(goodCommit, "seq", absent{})), repo.FaultMissingField},
	{"no repo", parseCommit, encode(edit(goodCommit, "repo", absent{})), repo.FaultMissingField},
	{"no rev", parseCommit, encode(edit(goodCommit, "rev", absent{})), repo.FaultMissingField},
	{"no time", parseCommit, encode(edit(goodCommit, "time", absent{})), repo.FaultMissingField},
	{"no ops", parseCommit, encode(edit(goodCommit, "ops", absent{})), repo.FaultMissingField},
	{"repo twice", parseCommit, twice(goodCommit, "repo"), repo.FaultDuplicateField},
	{"ops twice", parseCommit, twice(goodCommit, "ops"), repo.FaultDuplicateField},
	{"seq twice", parseCommit, twice(goodCommit, "seq"), repo.FaultDuplicateField},
	{"blocks twice", parseCommit, twice(goodCommit, "blocks"), repo.FaultDuplicateField},
	{"tooBig twice", parseCommit, twice(goodCommit, "tooBig"), repo.FaultDuplicateField},
	{"since twice", parseCommit, twice(goodCommit, "since"), repo.FaultDuplicateField},
	{"negative seq", parseCommit, encode(edit(goodCommit, "seq", -1)), repo.FaultInvalidSeq},
	{"DID with a quote", parseCommit, encode(edit(goodCommit, "repo", `did:plc:a"b`)), repo.FaultInvalidDID},
	{"DID without method", parseCommit, encode(edit(goodCommit, "repo", "did::a")), repo.FaultInvalidDID},
	{"DID empty", parseCommit, encode(edit(goodCommit, "repo", "")), repo.FaultInvalidDID},
	{"DID long", parseCommit, encode(edit(goodCommit, "repo", "did:web:"+strings.Repeat("a", 2048))), repo.FaultInvalidDID},
	{"rev empty", parseCommit, encode(edit(goodCommit, "rev", "")), repo.FaultInvalidRev},
	{"rev with a space", parseCommit, encode(edit(goodCommit, "rev", "a b")), repo.FaultInvalidRev},
	{"rev long", parseCommit, encode(edit(goodCommit, "rev", strings.Repeat("a", 65))), repo.FaultInvalidRev},
	{"time long", parseCommit, encode(edit(goodCommit, "time", strings.Repeat("1", 65))), repo.FaultInvalidTime},
	{"8193 ops", parseCommit, encode(edit(goodCommit, "ops", make([]any, 8193))), repo.FaultTooManyOps},

	{"identity", parseIdentity, encode(goodIdentity), 0},
	{"identity without handle", parseIdentity, encode(edit(goodIdentity, "handle", absent{})), 0},
	{"identity, handle null", parseIdentity, encode(edit(goodIdentity, "handle", nil)), 0},
	{"identity, handle long", parseIdentity, encode(edit(goodIdentity, "handle", strings.Repeat("a", 254))), repo.FaultInvalidHandle},
	{"identity, handle number", parseIdentity, encode(edit(goodIdentity, "handle", 1)), repo.FaultBadCBOR},
	{"identity without DID", parseIdentity, encode(edit(goodIdentity, "did", absent{})), repo.FaultMissingField},
	{"identity cut off", parseIdentity, encode(goodIdentity)[:20], repo.FaultBadCBOR},

	{"account", parseAccount, encode(goodAccount), 0},
	{"account without status", parseAccount, encode(edit(goodAccount, "status", absent{})), 0},
	{"account without active", parseAccount, encode(edit(goodAccount, "active", absent{})), repo.FaultMissingField},
	{"account, active null", parseAccount, encode(edit(goodAccount, "active", nil)), repo.FaultBadCBOR},
	{"account, status long", parseAccount, encode(edit(goodAccount, "status", strings.Repeat("a", 129))), repo.FaultInvalidStatus},

	{"sync", parseSync, encode(goodSync), 0},
	{"sync without rev", parseSync, encode(edit(goodSync, "rev", absent{})), repo.FaultMissingField},
	{"sync, DID bad", parseSync, encode(edit(goodSync, "did", "x")), repo.FaultInvalidDID},

	{"info", parseInfo, encode(goodInfo), 0},
	{"info without message", parseInfo, encode(edit(goodInfo, "message", absent{})), 0},
	{"info without name", parseInfo, encode(edit(goodInfo, "name", absent{})), repo.FaultMissingField},
	{"info long", parseInfo, encode(edit(goodInfo, "message", strings.Repeat("a", 4097))), repo.FaultInvalidInfo},
}

func TestMessageFaults(t *testing.T) {
	for _, c := range messageFaults {
		if got := faultOf(t, c.parse(c.body)); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestFields(t *testing.T) {
	c := parse(t, encode(edit(goodCommit, "since", "3abc", "tooBig", true)))
	if c.Seq != 7 || string(c.Repo) != testDID || string(c.Rev) != testRev || string(c.Since) != "3abc" ||
		string(c.Time) != testTime || !c.TooBig {
		t.Errorf("got %+v", c)
	}
	if c := parse(t, encode(goodCommit)); c.Since != nil || c.TooBig {
		t.Errorf("got %+v", c)
	}
	i, _ := repo.ParseIdentity(encode(goodIdentity))
	if i.Seq != 7 || string(i.DID) != testDID || string(i.Handle) != "a.example" || !i.HasHandle || string(i.Time) != testTime {
		t.Errorf("got %+v", i)
	}
	a, _ := repo.ParseAccount(encode(goodAccount))
	if a.Seq != 7 || string(a.DID) != testDID || a.Active || string(a.Status) != "deleted" || !a.HasStatus || string(a.Time) != testTime {
		t.Errorf("got %+v", a)
	}
	s, _ := repo.ParseSync(encode(goodSync))
	if s.Seq != 7 || string(s.DID) != testDID || string(s.Rev) != testRev || string(s.Time) != testTime {
		t.Errorf("got %+v", s)
	}
	n, _ := repo.ParseInfo(encode(goodInfo))
	if string(n.Name) != "OutdatedCursor" || string(n.Message) != "too old" {
		t.Errorf("got %+v", n)
	}
}

func rawCID(data []byte) dagcbor.CID {
	c := dagcbor.SumCID(data)
	c[1] = 0x55
	return c
}

func cutOff(b []byte) []byte { return b[:len(b)-1] }

var (
	good  = create("a.b.c/good", record(1))
	large = encode(m{"$type": "a.b.c", "text": strings.Repeat("a", 1<<19)})
	// wrong is a block that is not what its CID says.
	wrong = blockOf(dagcbor.SumCID(record(2)), record(3))
)

// opFaults are commits of a good op, one at fault, and a good one again.
var opFaults = []struct {
	name string
	op   any
	car  []byte // nil: one with the record of the good ops and record(2)
	want repo.Fault
}{
	{"create", create("a.b.c/1", record(2)), nil, 0},
	{"update", edit(create("a.b.c/1", record(2)), "action", "update", "prev", linkOf([]byte("x"))), nil, 0},
	{"delete", m{"action": "delete", "path": "a.b.c/1", "cid": nil}, nil, 0},
	{"delete without cid", m{"action": "delete", "path": "a.b.c/1"}, nil, 0},
	{"delete with a cid", m{"action": "delete", "path": "a.b.c/1", "cid": linkOf([]byte("x"))}, nil, 0},
	{"delete with an odd cid", m{"action": "delete", "path": "a.b.c/1", "cid": "x"}, nil, 0},
	{"odd prev", edit(create("a.b.c/1", record(2)), "prev", []any{1}), nil, 0},
	{"the same block again", create("a.b.c/1", record(1)), nil, 0},
	{"rkey with all it may have", create("a.b.c/aZ09._:~-", record(2)), nil, 0},
	{"long rkey", create("a.b.c/"+strings.Repeat("a", 512), record(2)), nil, 0},

	{"not a map", "x", nil, repo.FaultInvalidOp},
	{"null", nil, nil, repo.FaultInvalidOp},
	{"no action", edit(good, "action", absent{}), nil, repo.FaultInvalidAction},
	{"other action", edit(good, "action", "move"), nil, repo.FaultInvalidAction},
	{"action number", edit(good, "action", 1), nil, repo.FaultInvalidAction},
	{"no path", edit(good, "path", absent{}), nil, repo.FaultInvalidPath},
	{"path number", edit(good, "path", 1), nil, repo.FaultInvalidPath},
	{"path empty", edit(good, "path", ""), nil, repo.FaultInvalidPath},
	{"path without slash", edit(good, "path", "a.b.c"), nil, repo.FaultInvalidPath},
	{"path with two", edit(good, "path", "a.b.c/d/e"), nil, repo.FaultInvalidPath},
	{"path that begins with one", edit(good, "path", "/a.b.c/d"), nil, repo.FaultInvalidPath},
	{"no collection", edit(good, "path", "/a"), nil, repo.FaultInvalidPath},
	{"no rkey", edit(good, "path", "a.b.c/"), nil, repo.FaultInvalidPath},
	{"rkey .", edit(good, "path", "a.b.c/."), nil, repo.FaultInvalidPath},
	{"rkey ..", edit(good, "path", "a.b.c/.."), nil, repo.FaultInvalidPath},
	{"rkey with a quote", edit(good, "path", `a.b.c/a"`), nil, repo.FaultInvalidPath},
	{"rkey not ASCII", edit(good, "path", "a.b.c/é"), nil, repo.FaultInvalidPath},
	{"rkey too long", edit(good, "path", "a.b.c/"+strings.Repeat("a", 513)), nil, repo.FaultInvalidPath},
	{"collection with a space", edit(good, "path", "a b/c"), nil, repo.FaultInvalidPath},
	{"collection too long", edit(good, "path", strings.Repeat("a", 318)+"/a"), nil, repo.FaultInvalidPath},
	{"delete of no path", m{"action": "delete", "path": "x"}, nil, repo.FaultInvalidPath},
	{"cid null", edit(good, "cid", nil), nil, repo.FaultMissingCID},
	{"cid absent", edit(good, "cid", absent{}), nil, repo.FaultMissingCID},
	{"cid text", edit(good, "cid", "x"), nil, repo.FaultInvalidCID},
	{"cid of a raw block", edit(good, "cid", link(rawCID(record(1)))), nil, repo.FaultInvalidCID},
	{"no such block", create("a.b.c/1", record(4)), nil, repo.FaultMissingBlock},
	{"wrong block", create("a.b.c/1", record(2)), append(carOf(record(1)), wrong...), repo.FaultCIDMismatch},
	{"CAR cut off", create("a.b.c/1", record(2)), cutOff(carOf(record(1), record(2))), repo.FaultBadCAR},
	{"CAR with a bad length", create("a.b.c/1", record(2)), append(carOf(record(1)), bytes.Repeat([]byte{0xff}, 20)...), repo.FaultBadCAR},
	{"CAR with an odd block", create("a.b.c/1", record(2)),
		append(carOf(record(1)), append(section([]byte{1, 2, 3}), blockOf(dagcbor.SumCID(record(2)), record(2))...)...), 0},
	{"CAR with an empty block", create("a.b.c/1", record(2)),
		append(append(carOf(record(1)), 0), blockOf(dagcbor.SumCID(record(2)), record(2))...), 0},
}

func TestOpFaults(t *testing.T) {
	seen := map[repo.Fault]bool{repo.FaultTooLarge: true}
	var c repo.Commit // used again and again, as it is meant to be
	for _, test := range opFaults {
		seen[test.want] = true
		car := test.car
		if car == nil {
			car = carOf(record(1), record(2))
		}
		if err := c.Parse(encode(commitOf(car, good, test.op, good))); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if len(c.Ops) != 3 {
			t.Errorf("%s: %d ops", test.name, len(c.Ops))
			continue
		}
		for _, op := range []repo.Op{c.Ops[0], c.Ops[2]} {
			if op.Fault != 0 || string(op.RKey) != "good" || !bytes.Equal(op.Record, record(1)) {
				t.Errorf("%s: the sibling suffers: %v", test.name, op.Fault)
			}
		}
		op := c.Ops[1]
		if op.Fault != test.want {
			t.Errorf("%s: got %v, want %v", test.name, op.Fault, test.want)
		}
		if op.Fault != 0 {
			continue
		}
		if op.Action == repo.Delete {
			if op.CID != nil || op.Record != nil {
				t.Errorf("%s: a delete has a record", test.name)
			}
		} else if !op.CID.Matches(op.Record) || !op.CID.IsDagCBOR() {
			t.Errorf("%s: the record is not the CID's", test.name)
		}
	}
	for _, test := range messageFaults {
		seen[test.want] = true
	}
	for _, f := range repo.Faults() {
		if !seen[f] {
			t.Errorf("nothing has fault %v", f)
		}
	}
}

func TestFaultLabels(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range repo.Faults() {
		label := f.String()
		if label == "" || label == "unknown" || seen[label] {
			t.Errorf("fault %d has label %q", f, label)
		}
		seen[label] = true
	}
	if repo.Fault(0).String() != "none" || repo.Fault(255).String() != "unknown" || repo.Action(9).String() != "unknown" {
		t.Error("labels of what does not exist")
	}
}

// TestOpFieldTwice is about ops that could be read in two ways.
func TestOpFieldTwice(t *testing.T) {
	for _, field := range []string{"action", "path", "cid"} {
		body := encode(commitOf(carOf(record(1)), good))
		op := encode(good)
		body = bytes.Replace(body, op, twice(good, field), 1)
		if c := parse(t, body); c.Ops[0].Fault != repo.FaultInvalidOp {
			t.Errorf("%s twice: %v", field, c.Ops[0].Fault)
		}
	}
}

func TestTooBig(t *testing.T) {
	for _, blocks := range []any{atdata.Bytes{}, absent{}, nil} {
		c := parse(t, encode(edit(commitOf(nil, good, m{"action": "delete", "path": "a.b.c/1"}), "tooBig", true, "blocks", blocks)))
		if !c.TooBig || c.Ops[0].Fault != repo.FaultMissingBlock || c.Ops[1].Fault != 0 {
			t.Errorf("got %+v", c)
		}
	}
}

// TestRepeatedBlock has one large record under many keys: what comes out of a commit is
// bounded by more than the size of what went in.
func TestRepeatedBlock(t *testing.T) {
	ops := make([]any, 100)
	for i := range ops {
		ops[i] = create(fmt.Sprintf("a.b.c/%d", i), large)
	}
	total, refused := 0, 0
	for _, op := range parse(t, encode(commitOf(carOf(large), ops...))).Ops {
		switch op.Fault {
		case 0:
			total += len(op.Record)
		case repo.FaultTooLarge:
			refused++
		default:
			t.Fatal(op.Fault)
		}
	}
	if total > 8<<20 || total < 7<<20 || refused == 0 {
		t.Errorf("%d bytes in records, %d refused", total, refused)
	}
}

// TestHostileTime has commits whose ops times blocks would be too much.
func TestHostileTime(t *testing.T) {
	var ops []any
	for i := range 4000 {
		ops = append(ops, create(fmt.Sprintf("a.b.c/%d", i), record(-1-i)))
	}
	car := carOf()
	c := dagcbor.SumCID(record(0))
	for i := range 100_000 {
		c[35], c[34], c[33] = byte(i), byte(i>>8), byte(i>>16)
		car = append(car, blockOf(c, nil)...)
	}
	body := encode(commitOf(car, ops...))
	start := time.Now()
	commit := parse(t, body)
	if d := time.Since(start); d > time.Second {
		t.Errorf("%v for %d ops in %d bytes", d, len(ops), len(car))
	}
	for _, op := range commit.Ops {
		if op.Fault != repo.FaultMissingBlock {
			t.Fatal(op.Fault)
		}
	}
}

// TestReuse looks for old messages held by a Commit that is used again.
func TestReuse(t *testing.T) {
	var c repo.Commit
	many := encode(commitOf(carOf(record(1), record(2)), good, create("a.b.c/2", record(2)), good))
	one := encode(commitOf(carOf(record(1)), good))
	for range 3 {
		for body, n := range map[*[]byte]int{&many: 3, &one: 1} {
			if err := c.Parse(*body); err != nil || len(c.Ops) != n {
				t.Fatal(len(c.Ops), err)
			}
			for _, op := range c.Ops[n:cap(c.Ops)] {
				if op.Record != nil || op.CID != nil || op.RKey != nil {
					t.Fatal("an op of an older message is still there")
				}
			}
		}
		if err := c.Parse(nil); err == nil || len(c.Ops) != 0 {
			t.Fatal("a bad message has ops")
		}
	}
}
