//go:build compat

package pds

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/ipld/go-car"
	"github.com/klauspost/compress/zstd"
)

// event is one event as every wire has it.
type event struct {
	kind, did                             string
	rev, operation, collection, rkey, cid string // of a commit; a sync event has the rev, and its commit's CID
	record                                any
	handle                                string // of an identity
	active                                bool   // of an account
	status                                string

	// Of the upstream's numbers and times only their order is known.
	seq  int64
	time time.Time
}

// commitBody, identityBody, accountBody and syncBody are what the wires have in common.
type commitBody struct {
	Rev        string          `json:"rev"`
	Operation  string          `json:"operation"`
	Collection string          `json:"collection"`
	RKey       string          `json:"rkey"`
	Record     json.RawMessage `json:"record"`
	CID        string          `json:"cid"`
}

type upstreamBody struct {
	DID  string    `json:"did"`
	Seq  int64     `json:"seq"`
	Time time.Time `json:"time"`
}

type identityBody struct {
	upstreamBody
	Handle string `json:"handle"`
}

type accountBody struct {
	upstreamBody
	Active bool   `json:"active"`
	Status string `json:"status"`
}

type syncBody struct {
	upstreamBody
	Rev    string `json:"rev"`
	Blocks struct {
		Bytes string `json:"$bytes"`
	} `json:"blocks"`
}

type v1Message struct {
	DID      string        `json:"did"`
	TimeUS   int64         `json:"time_us"`
	Kind     string        `json:"kind"`
	Commit   *commitBody   `json:"commit"`
	Identity *identityBody `json:"identity"`
	Account  *accountBody  `json:"account"`
}

type v2Message struct {
	Type    string `json:"$type"`
	Payload struct {
		Type string    `json:"$type"`
		Seq  int64     `json:"seq"`
		DID  string    `json:"did"`
		Time time.Time `json:"time"`
		commitBody
		Identity *identityBody `json:"identity"`
		Account  *accountBody  `json:"account"`
		Sync     *syncBody     `json:"sync"`
	} `json:"payload"`
}

// unmarshal refuses what the wire does not have.
func unmarshal(message []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(message))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// value is a record to be compared; its numbers stay as they are written.
func value(raw []byte) (v any, err error) {
	if raw == nil {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

func parseV1(message []byte) (e event, cursor int64, err error) {
	var m v1Message
	if err := unmarshal(message, &m); err != nil {
		return e, 0, err
	}
	e, err = eventOf(m.Kind, m.DID, m.Commit, m.Identity, m.Account, nil)
	return e, m.TimeUS, err
}

func parseV2(message []byte) (e event, cursor int64, err error) {
	var m v2Message
	if err := unmarshal(message, &m); err != nil {
		return e, 0, err
	}
	p := &m.Payload
	_, kind, _ := strings.Cut(p.Type, "network.bsky.jetstream.subscribeEvents#")
	if m.Type != "message" || time.Since(p.Time).Abs() > time.Hour {
		return e, 0, fmt.Errorf("$type %q, time %s", m.Type, p.Time)
	}
	var c *commitBody
	if !reflect.ValueOf(p.commitBody).IsZero() {
		c = &p.commitBody
	}
	e, err = eventOf(kind, p.DID, c, p.Identity, p.Account, p.Sync)
	return e, p.Seq, err
}

// eventOf makes an event of the one body that its kind has.
func eventOf(kind, did string, c *commitBody, i *identityBody, a *accountBody, s *syncBody) (event, error) {
	e := event{kind: kind, did: did}
	var err error
	var up upstreamBody
	bodies := 0
	if c != nil {
		bodies++
		e.rev, e.operation, e.collection, e.rkey, e.cid = c.Rev, c.Operation, c.Collection, c.RKey, c.CID
		e.record, err = value(c.Record)
	}
	if i != nil {
		bodies++
		up, e.handle = i.upstreamBody, i.Handle
	}
	if a != nil {
		bodies++
		up, e.active, e.status = a.upstreamBody, a.Active, a.Status
	}
	if s != nil {
		bodies++
		up, e.rev = s.upstreamBody, s.Rev
		e.cid, err = commitCID(s)
	}
	has := map[string]bool{"commit": c != nil, "identity": i != nil, "account": a != nil, "sync": s != nil}[kind]
	switch {
	case err != nil:
		return e, err
	case !has || bodies != 1:
		return e, fmt.Errorf("kind %q with %d bodies", kind, bodies)
	case kind != "commit" && (up.DID != did || up.Seq <= 0 || time.Since(up.Time).Abs() > time.Hour):
		return e, fmt.Errorf("did %s, inside %s, seq %d, time %s", did, up.DID, up.Seq, up.Time)
	}
	e.seq, e.time = up.Seq, up.Time
	return e, nil
}

// commitCID returns the CID of the commit in a sync event's blocks: a CAR of one block, which
// is its root and says the same DID and rev.
func commitCID(s *syncBody) (string, error) {
	b, err := base64.RawStdEncoding.DecodeString(s.Blocks.Bytes)
	if err != nil {
		return "", fmt.Errorf("sync: blocks: %w", err)
	}
	r, err := car.NewCarReader(bytes.NewReader(b))
	if err != nil {
		return "", fmt.Errorf("sync: blocks: %w", err)
	}
	block, err := r.Next()
	if err != nil {
		return "", fmt.Errorf("sync: blocks: %w", err)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("sync: a second block, %v", err)
	}
	sum, err := block.Cid().Prefix().Sum(block.RawData())
	switch {
	case err != nil:
		return "", err
	case len(r.Header.Roots) != 1 || !r.Header.Roots[0].Equals(sum):
		return "", fmt.Errorf("sync: roots %v, block %s", r.Header.Roots, sum)
	case !bytes.Contains(block.RawData(), []byte(s.DID)) || !bytes.Contains(block.RawData(), []byte(s.Rev)):
		return "", fmt.Errorf("sync: another's commit: %q", block.RawData())
	}
	return sum.String(), nil
}

// received is an event as it came.
type received struct {
	event
	cursor  int64
	message []byte // its JSON
}

// witness is a consumer that keeps everything and, when its connection ends, resumes from
// its cursor.
type witness struct {
	name  string
	url   string // complete but for the cursor
	parse func([]byte) (event, int64, error)
	plain func([]byte) ([]byte, error) // decompresses; nil: the wire is text
	sync  bool                         // this wire has sync events

	// Guarded by mu.
	mu          sync.Mutex
	connections int
	events      []received
	err         error // the first thing that was wrong
}

func (w *witness) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *witness) last() *received {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) == 0 {
		return nil
	}
	return &w.events[len(w.events)-1]
}

// state returns how often it has connected, and what has come.
func (w *witness) state() (connections int, events []received) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.connections, w.events
}

// run returns when ctx has ended.
func (w *witness) run(ctx context.Context) {
	for ctx.Err() == nil {
		w.connect(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// connect reads one connection to its end.
func (w *witness) connect(ctx context.Context) {
	url, last := w.url, w.last()
	if last != nil {
		url += fmt.Sprintf("&cursor=%d", last.cursor)
	}
	ws, _, err := websocket.DefaultDialer.DialContext(ctx, url, nil)
	if err != nil {
		return // the daemon is away; what is missing is seen at the end
	}
	defer ws.Close()
	defer context.AfterFunc(ctx, func() { ws.Close() })()
	w.mu.Lock()
	w.connections++
	w.mu.Unlock()
	for resumed := last != nil; ; resumed = false {
		kind, message, err := ws.ReadMessage()
		if err != nil {
			return
		}
		if binary := kind == websocket.BinaryMessage; binary != (w.plain != nil) {
			w.fail("a message of type %d", kind)
			return
		}
		if w.plain != nil {
			if message, err = w.plain(message); err != nil {
				w.fail("decompress: %w", err)
				return
			}
		}
		e, cursor, err := w.parse(message)
		if err != nil {
			w.fail("%w in %s", err, message)
			return
		}
		before := w.last()
		switch {
		case resumed:
			if !bytes.Equal(message, last.message) {
				w.fail("the last event comes back as\n%s, it was\n%s", message, last.message)
				return
			}
			continue
		case before != nil && cursor <= before.cursor:
			w.fail("cursor %d after %d", cursor, before.cursor)
			return
		}
		w.mu.Lock()
		w.events = append(w.events, received{e, cursor, message})
		w.mu.Unlock()
	}
}

// check compares what came with what was written, in order. It returns how many events are
// still missing, or the first that is wrong or one too many.
func (w *witness) check(want []event) (missing int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	n, seq := 0, int64(0)
	for _, e := range want {
		if e.kind == "sync" && !w.sync {
			continue
		}
		if n++; n > len(w.events) {
			missing++
			continue
		}
		got := w.events[n-1]
		if got.kind != "commit" {
			if got.seq <= seq {
				return 0, fmt.Errorf("event %d: upstream seq %d after %d", n, got.seq, seq)
			}
			seq = got.seq
		}
		e.seq, e.time = got.seq, got.time
		if !reflect.DeepEqual(got.event, e) {
			return 0, fmt.Errorf("event %d is\n%s\nparsed %+v\nwant   %+v", n, got.message, got.event, e)
		}
	}
	if n < len(w.events) {
		return 0, fmt.Errorf("%d events too many, from %s", len(w.events)-n, w.events[n].message)
	}
	return missing, nil
}

// witnesses returns a consumer of each wire, plain and compressed.
func witnesses(t testing.TB, addr string) []*witness {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/dictionary")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dictionary, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	info, err := zstd.InspectDictionary(dictionary)
	if err != nil {
		t.Fatalf("/dictionary: %v", err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionary))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(decoder.Close)
	plain := func(b []byte) ([]byte, error) { return decoder.DecodeAll(b, nil) }
	v1, v2 := "ws://"+addr+"/subscribe?", "ws://"+addr+"/xrpc/network.bsky.jetstream.subscribeEvents?"
	return []*witness{
		{name: "v1", url: v1, parse: parseV1},
		{name: "v1 compressed", url: v1 + "compress=true", parse: parseV1, plain: plain},
		{name: "v2", url: v2, parse: parseV2, sync: true},
		{name: "v2 compressed", url: v2 + fmt.Sprintf("zstdDictionary=%d", info.ID()), parse: parseV2, plain: plain, sync: true},
	}
}
