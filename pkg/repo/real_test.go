package repo_test

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/atdata"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/repo"
)

// event is what production Jetstream made of a frame, but for time_us.
type event struct {
	DID    string
	Kind   string
	Commit *struct {
		Rev, Operation, Collection, RKey, CID string
		Record                                json.RawMessage
	}
	Identity *struct {
		DID    string
		Handle *string
		Seq    int64
		Time   string
	}
	Account *struct {
		Active bool
		DID    string
		Seq    int64
		Status *string
		Time   string
	}
}

// TestRealFrames makes of the real frames what production made of them.
func TestRealFrames(t *testing.T) {
	frames := realFrames(t)
	if len(frames) != 50 {
		t.Fatalf("%d frames", len(frames))
	}
	lines := bytes.Split(bytes.TrimSpace(readShared(t, "frames/real-50.jsonl")), []byte("\n"))
	next := func() (e event) {
		t.Helper()
		if len(lines) == 0 {
			t.Fatal("more events than production has")
		}
		if err := json.Unmarshal(lines[0], &e); err != nil {
			t.Fatal(err)
		}
		lines = lines[1:]
		return e
	}
	var c repo.Commit
	for i, f := range frames {
		switch f.kind {
		case "#commit":
			if err := c.Parse(f.body); err != nil {
				t.Fatalf("frame %d: %v", i, err)
			}
			for _, op := range c.Ops {
				if op.Fault != 0 {
					t.Fatalf("frame %d: %v", i, op.Fault)
				}
				want := next().Commit
				got := *want
				got.Rev, got.Operation = string(c.Rev), op.Action.String()
				got.Collection, got.RKey = string(op.Collection), string(op.RKey)
				got.CID, got.Record = "", nil
				if op.CID != nil {
					got.CID = op.CID.String()
					var err error
					var canonical bool
					if got.Record, canonical, err = dagcbor.AppendRecordJSON(nil, op.Record); err != nil || !canonical {
						t.Fatalf("frame %d: canonical %v, %v", i, canonical, err)
					}
					sameJSON(t, got.Record, want.Record)
					got.Record = want.Record
				}
				if !reflect.DeepEqual(got, *want) {
					t.Errorf("frame %d: got %+v, want %+v", i, got, *want)
				}
			}
		case "#identity":
			got, err := repo.ParseIdentity(f.body)
			want := next().Identity
			if err != nil || string(got.DID) != want.DID || got.Seq != want.Seq || string(got.Time) != want.Time ||
				got.HasHandle != (want.Handle != nil) || got.HasHandle && string(got.Handle) != *want.Handle {
				t.Errorf("frame %d: got %+v, %v; want %+v", i, got, err, want)
			}
		case "#account":
			got, err := repo.ParseAccount(f.body)
			want := next().Account
			if err != nil || string(got.DID) != want.DID || got.Seq != want.Seq || string(got.Time) != want.Time ||
				got.Active != want.Active ||
				got.HasStatus != (want.Status != nil) || got.HasStatus && string(got.Status) != *want.Status {
				t.Errorf("frame %d: got %+v, %v; want %+v", i, got, err, want)
			}
		default:
			t.Errorf("frame %d: kind %q", i, f.kind)
		}
	}
	if len(lines) > 0 {
		t.Errorf("%d events are missing", len(lines))
	}
}

func sameJSON(tb testing.TB, got, want []byte) {
	tb.Helper()
	var g, w any
	for b, v := range map[*[]byte]*any{&got: &g, &want: &w} {
		d := json.NewDecoder(bytes.NewReader(*b))
		d.UseNumber()
		if err := d.Decode(v); err != nil {
			tb.Fatal(err)
		}
	}
	if !reflect.DeepEqual(g, w) {
		tb.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestRelayScenarios reads the messages of the relay's own tests. They are about a relay's
// policy; to us all of them are well-formed.
func TestRelayScenarios(t *testing.T) {
	readShared(t, "vectors/relay-scenarios/legacy.json")
	files, _ := filepath.Glob("../../../shared/data/vectors/relay-scenarios/*.json")
	for _, file := range files {
		var scenario struct {
			Messages []struct {
				Frame struct {
					Header struct{ T string }
					Body   json.RawMessage
				}
			}
		}
		d := json.NewDecoder(bytes.NewReader(readShared(t, "vectors/relay-scenarios/"+filepath.Base(file))))
		if err := d.Decode(&scenario); err != nil {
			t.Fatal(err)
		}
		for i, message := range scenario.Messages {
			fields, err := atdata.UnmarshalJSON(message.Frame.Body)
			if err != nil {
				t.Fatal(err)
			}
			body := encode(fields)
			switch message.Frame.Header.T {
			case "#commit":
				var c repo.Commit
				if err = c.Parse(body); err == nil {
					ops := fields["ops"].([]any)
					if len(c.Ops) != len(ops) || string(c.Rev) != fields["rev"] {
						t.Errorf("%s %d: %+v", file, i, c)
					}
					for _, op := range c.Ops {
						if op.Fault != 0 {
							t.Errorf("%s %d: %v", file, i, op.Fault)
						}
					}
				}
			case "#identity":
				_, err = repo.ParseIdentity(body)
			case "#account":
				_, err = repo.ParseAccount(body)
			case "#sync":
				_, err = repo.ParseSync(body)
			default:
				t.Errorf("%s %d: kind %q", file, i, message.Frame.Header.T)
			}
			if err != nil {
				t.Errorf("%s %d: %v", file, i, err)
			}
		}
	}
}

func TestNoAllocs(t *testing.T) {
	simulated := []frame{
		{"#commit", encode(commitOf(carOf(record(1), record(2)), create("a.b.c/1", record(1)), create("a.b.c/2", record(2))))},
		{"#identity", encode(goodIdentity)},
		{"#account", encode(goodAccount)},
	}
	t.Run("simulated", func(t *testing.T) { noAllocs(t, simulated) })
	t.Run("real", func(t *testing.T) { noAllocs(t, realFrames(t)) })
}

func noAllocs(t *testing.T, frames []frame) {
	var c repo.Commit
	parseAll := func() {
		for _, f := range frames {
			var err error
			switch f.kind {
			case "#commit":
				err = c.Parse(f.body)
			case "#identity":
				_, err = repo.ParseIdentity(f.body)
			case "#account":
				_, err = repo.ParseAccount(f.body)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := testing.AllocsPerRun(50, parseAll); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCommit(b *testing.B) {
	var bodies [][]byte
	for _, f := range realFrames(b) {
		if f.kind == "#commit" {
			bodies = append(bodies, f.body)
		}
	}
	total := len(slices.Concat(bodies...))
	perCommit := func(b *testing.B, f func(body []byte) error) {
		b.ReportAllocs()
		b.SetBytes(int64(total / len(bodies)))
		i := 0
		for b.Loop() {
			if err := f(bodies[i]); err != nil {
				b.Fatal(err)
			}
			if i++; i == len(bodies) {
				i = 0
			}
		}
	}
	b.Run("by=repo", func(b *testing.B) {
		var c repo.Commit
		perCommit(b, c.Parse)
	})
	b.Run("by=indigo", func(b *testing.B) {
		perCommit(b, func(body []byte) error {
			var msg comatproto.SyncSubscribeRepos_Commit
			if err := msg.UnmarshalCBOR(bytes.NewReader(body)); err != nil {
				return err
			}
			blocks := indigoBlocks(msg.Blocks)
			for _, op := range msg.Ops {
				if op.Cid != nil && blocks[op.Cid.String()] == nil {
					b.Fatal("missing block")
				}
			}
			return nil
		})
	})
}
