package ingest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/events"
	indigorepo "github.com/bluesky-social/indigo/repo"
	"github.com/cockroachdb/pebble/v2"
	"github.com/klauspost/compress/zstd"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/event"
	"slipstream/pkg/firehose"
)

// The reference is what Jetstream v1 does to a frame, stage by stage and through the same
// public calls. It is given an edge where the two cannot be equal: a frame is read from
// memory, not from gorilla's reader; Pebble is this module's version, not v1's older one;
// nothing of v1's locks, metrics, logs and fan-out is here. Like v1 it does not check that
// a block is what its CID says.

// refFrame is a frame after decoding: the message and the records that its ops name.
type refFrame struct {
	message *events.XRPCStreamEvent
	ops     []refOp
}

type refOp struct {
	op     *comatproto.SyncSubscribeRepos_RepoOp
	cid    string
	record []byte // nil: a delete
}

// refParse decodes a message, reads all of a commit's CAR and finds every op's record in
// its tree. Ops that v1 drops are left out.
func refParse(message []byte) (refFrame, error) {
	f := refFrame{message: &events.XRPCStreamEvent{}}
	if err := f.message.Deserialize(bytes.NewReader(message)); err != nil {
		return f, err
	}
	commit := f.message.RepoCommit
	if commit == nil {
		return f, nil
	}
	ctx := context.Background()
	repo, err := indigorepo.ReadRepoFromCar(ctx, bytes.NewReader(commit.Blocks))
	if err != nil {
		return f, err
	}
	for _, op := range commit.Ops {
		switch op.Action {
		case "create", "update":
			if op.Cid == nil {
				continue
			}
			c, record, err := repo.GetRecordBytes(ctx, op.Path)
			if err != nil || c.String() != op.Cid.String() {
				continue
			}
			f.ops = append(f.ops, refOp{op: op, cid: c.String(), record: *record})
		case "delete":
			f.ops = append(f.ops, refOp{op: op})
		}
	}
	return f, nil
}

// refEvent is the v1 event.
type refEvent struct {
	DID      string                                  `json:"did"`
	TimeUS   int64                                   `json:"time_us"`
	Kind     string                                  `json:"kind,omitempty"`
	Commit   *refCommit                              `json:"commit,omitempty"`
	Account  *comatproto.SyncSubscribeRepos_Account  `json:"account,omitempty"`
	Identity *comatproto.SyncSubscribeRepos_Identity `json:"identity,omitempty"`
}

type refCommit struct {
	Rev        string          `json:"rev,omitempty"`
	Operation  string          `json:"operation,omitempty"`
	Collection string          `json:"collection,omitempty"`
	RKey       string          `json:"rkey,omitempty"`
	Record     json.RawMessage `json:"record,omitempty"`
	CID        string          `json:"cid,omitempty"`
}

// refRender makes the events of a frame and their JSON.
func refRender(f refFrame, timeUS int64) (all [][]byte, err error) {
	add := func(e refEvent) error {
		e.TimeUS = timeUS
		b, err := json.Marshal(e)
		all = append(all, b)
		return err
	}
	switch m := f.message; {
	case m.RepoCommit != nil:
		for _, op := range f.ops {
			var record []byte
			if op.record != nil {
				if record, err = refRecord(op.record); err != nil {
					return nil, err
				}
			}
			if err := add(refCommitEvent(m.RepoCommit, op, record)); err != nil {
				return nil, err
			}
		}
	case m.RepoIdentity != nil:
		err = add(refEvent{DID: m.RepoIdentity.Did, Kind: "identity", Identity: m.RepoIdentity})
	case m.RepoAccount != nil:
		err = add(refEvent{DID: m.RepoAccount.Did, Kind: "account", Account: m.RepoAccount})
	}
	return all, err
}

// refRecord makes a record's JSON.
func refRecord(record []byte) ([]byte, error) {
	m, err := atdata.UnmarshalCBOR(record)
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// refCommitEvent puts an op into its event.
func refCommitEvent(c *comatproto.SyncSubscribeRepos_Commit, op refOp, record []byte) refEvent {
	collection, rkey, _ := strings.Cut(op.op.Path, "/")
	return refEvent{DID: c.Repo, Kind: "commit", Commit: &refCommit{
		Rev: c.Rev, Operation: op.op.Action, Collection: collection, RKey: rkey, Record: record, CID: op.cid,
	}}
}

// newRefEncoder is klauspost's encoder as v1 has it; the window does not change what it
// makes of an event, only what it keeps.
func newRefEncoder(dictionary []byte, options ...zstd.EOption) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, append(options, zstd.WithEncoderDict(dictionary),
		zstd.WithWindowSize(128<<10), zstd.WithEncoderConcurrency(1))...)
}

// refStore is v1's: one database for JSON and one for zstd, neither ever synced.
type refStore struct{ json, zstd *pebble.DB }

func openRefStore(dir string) (s refStore, err error) {
	if s.json, err = pebble.Open(filepath.Join(dir, "json"), &pebble.Options{Logger: silent{}}); err != nil {
		return s, err
	}
	s.zstd, err = pebble.Open(filepath.Join(dir, "zstd"), &pebble.Options{Logger: silent{}})
	return s, err
}

// put stores one event. An identity or account event has no collection.
func (s refStore) put(timeUS int64, did, collection string, json, zstd []byte) error {
	key := []byte(fmt.Sprintf("%d_%s", timeUS, did))
	if collection != "" {
		key = []byte(fmt.Sprintf("%d_%s_%s", timeUS, did, collection))
	}
	if err := s.json.Set(key, json, pebble.NoSync); err != nil {
		return err
	}
	return s.zstd.Set(key, zstd, pebble.NoSync)
}

func (s refStore) close() error { return errors.Join(s.json.Close(), s.zstd.Close()) }

// silent keeps Pebble's notes out of the tests' output.
type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

var (
	errNoFrame = errors.New("no frame that yields events")
	errFound   = errors.New("found")
)

// splitFrame cuts a message into type, seq and body exactly as the firehose client does,
// whose own functions for it are not exported. A message without type or seq, or of a type
// that yields no events, is an error.
func splitFrame(message []byte) (f firehose.Frame, err error) {
	s := dagcbor.NewScanner(message)
	var op int64
	err = eachField(&s, func(name []byte) (err error) {
		switch string(name) {
		case "op":
			op, err = s.Int()
			return err
		case "t":
			t, err := s.Text()
			f.Type = ""
			for _, known := range [...]string{"#commit", "#identity", "#account", "#sync"} {
				if string(t) == known {
					f.Type = known
				}
			}
			return err
		}
		return s.Skip()
	})
	if err != nil {
		return f, err
	}
	if op != 1 || f.Type == "" {
		return f, errNoFrame
	}
	f.Body = s.Rest()
	s, f.Seq = dagcbor.NewScanner(f.Body), -1
	err = eachField(&s, func(name []byte) error {
		if string(name) != "seq" {
			return s.Skip()
		}
		seq, err := s.Int()
		f.Seq = firehose.Seq(seq)
		return cmp.Or(err, errFound)
	})
	if err != errFound || f.Seq < 0 {
		return f, errNoFrame
	}
	return f, nil
}

// eachField calls f for each key of the map that s is at; f reads the value.
func eachField(s *dagcbor.Scanner, f func(name []byte) error) error {
	n, err := s.Map()
	for range n {
		name, err := s.Text()
		if err != nil {
			return err
		}
		if err := f(name); err != nil {
			return err
		}
	}
	return err
}

// realMessages are the captured messages, header included; nil where they are not present.
func realMessages(tb testing.TB) (all [][]byte) {
	tb.Helper()
	packed, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "data", "frames", "real-50.bin.zst"))
	if err != nil {
		return nil
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer dec.Close()
	b, err := dec.DecodeAll(packed, nil)
	if err != nil {
		tb.Fatal(err)
	}
	for len(b) > 0 {
		n := binary.LittleEndian.Uint32(b)
		all, b = append(all, b[4:4+n]), b[4+n:]
	}
	return all
}

// messageOf puts the header back before a frame's body.
func messageOf(typ string, body []byte) []byte {
	b := append([]byte("\xa2at"), 0x60|byte(len(typ)))
	b = append(append(b, typ...), "bop\x01"...)
	return append(b, body...)
}

func simulatedMessages(tb testing.TB, n int) (all [][]byte) {
	tb.Helper()
	for _, f := range simulatedFrames(tb, n) {
		all = append(all, messageOf(f.Type, f.Body))
	}
	return all
}

// testTime is the time_us of tests that compare events; nothing else may differ.
const testTime = event.Epoch + 1

// payloads returns the JSON of a batch's events, as part of the batch, all with the same
// cursor.
func payloads(x *batch, cursor event.Cursor) (all [][]byte) {
	frames := x.json
	for i := range x.events {
		e := &x.events[i]
		if e.kind == event.KindSync {
			continue
		}
		p := event.Payload(frames[:e.size])
		event.SetCursor(p, int(e.didLen), cursor)
		all, frames = append(all, p), frames[e.size:]
	}
	return all
}

// TestReference: ours and the reference make the same events of the same frames. Values
// are compared, not bytes: encoding/json sorts a record's keys and escapes <, > and &,
// where we keep the record's own order and characters.
func TestReference(t *testing.T) {
	for name, messages := range map[string][][]byte{"real": realMessages(t), "simulated": simulatedMessages(t, 300)} {
		t.Run(name, func(t *testing.T) {
			if messages == nil {
				t.Skip("the shared test data is not here")
			}
			d := decoder{in: &Ingester{metrics: newMetrics(nil)}}
			events := 0
			for i, m := range messages {
				frame, err := splitFrame(m)
				if err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				x := &batch{frames: []firehose.Frame{frame}}
				d.batch(x)
				got := payloads(x, testTime)
				parsed, err := refParse(m)
				if err != nil {
					t.Fatalf("frame %d: reference: %v", i, err)
				}
				want, err := refRender(parsed, int64(testTime))
				if err != nil {
					t.Fatalf("frame %d: reference: %v", i, err)
				}
				if len(got) != len(want) {
					t.Fatalf("frame %d: %d events, want %d", i, len(got), len(want))
				}
				for j := range got {
					if !sameJSON(t, got[j], want[j]) {
						t.Errorf("frame %d: got  %s\nwant %s", i, got[j], want[j])
					}
				}
				events += len(got)
			}
			if events < len(messages)/2 {
				t.Errorf("%d events of %d frames", events, len(messages))
			}
		})
	}
}

func sameJSON(tb testing.TB, a, b []byte) bool {
	tb.Helper()
	return reflect.DeepEqual(decodeJSON(tb, a), decodeJSON(tb, b))
}

// decodeJSON decodes one JSON value, numbers to the digit.
func decodeJSON(tb testing.TB, b []byte) (v any) {
	tb.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		tb.Fatalf("%v: %s", err, b)
	}
	if _, err := d.Token(); err != io.EOF {
		tb.Fatalf("something follows the value: %s", b)
	}
	return v
}
