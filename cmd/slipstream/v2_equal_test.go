package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// witness is a consumer that comes back whenever its connection ends, from the last event it
// has seen, and keeps what it gets.
type witness struct {
	name string
	v2   bool
	path string // with its query, up to the cursor
	addr string

	mu      sync.Mutex // guards everything below
	texts   [][]byte   // the JSON of each event, once
	cursors []int64    // their time_us or seq
	dials   int
	err     error // what it saw was wrong
}

// watch runs until ctx ends or something is wrong.
func (w *witness) watch(ctx context.Context, t testing.TB) {
	for ctx.Err() == nil {
		last := int64(0)
		if n := len(w.cursors); n > 0 {
			last = w.cursors[n-1]
		}
		ws, resp, err := websocket.DefaultDialer.DialContext(ctx, fmt.Sprintf("ws://%s%scursor=%d", w.addr, w.path, last), nil)
		if err != nil {
			if resp != nil && resp.StatusCode != http.StatusServiceUnavailable {
				w.fail(fmt.Errorf("from cursor %d: %s", last, resp.Status))
				return
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		stop := context.AfterFunc(ctx, func() { ws.Close() })
		err = w.read(ws, t)
		stop()
		ws.Close()
		if err != nil {
			w.fail(err)
			return
		}
	}
}

func (w *witness) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// read reads a connection to its end. The error is what was wrong with what came.
func (w *witness) read(ws *websocket.Conn, t testing.TB) error {
	var next func() (text []byte, cursor int64, err error)
	var broken error
	if w.v2 {
		_, query, _ := strings.Cut(w.path, "?")
		c := newV2Client(t, ws, nil, query)
		next = func() ([]byte, int64, error) {
			f, err := c.next(time.Minute)
			if err != nil {
				if _, isClose := err.(*websocket.CloseError); !isClose && !isNet(err) {
					broken = err
				}
				return nil, 0, err
			}
			if f.kind == "info" || f.kind == "error" {
				broken = fmt.Errorf("a frame that is no event: %s", f.text)
			}
			return f.text, f.seq, broken
		}
	} else {
		r := newReader(t, ws)
		next = func() ([]byte, int64, error) {
			text, err := r.next(time.Minute)
			if err != nil {
				return nil, 0, err
			}
			var e v1Event
			broken = json.Unmarshal(text, &e)
			return text, e.TimeUS, broken
		}
	}
	w.mu.Lock()
	w.dials++
	w.mu.Unlock()
	for first := len(w.texts) > 0; ; first = false {
		text, cursor, err := next()
		if err != nil {
			return broken
		}
		if first { // the cursor is inclusive
			if last := w.texts[len(w.texts)-1]; !bytes.Equal(text, last) {
				return fmt.Errorf("the last event comes again as\n%s, it was\n%s", text, last)
			}
			continue
		}
		if n := len(w.cursors); n > 0 && cursor <= w.cursors[n-1] {
			return fmt.Errorf("%d after %d: %s", cursor, w.cursors[n-1], text)
		}
		w.mu.Lock()
		w.texts, w.cursors = append(w.texts, bytes.Clone(text)), append(w.cursors, cursor)
		w.mu.Unlock()
	}
}

// isNet reports whether reading failed because the connection did.
func isNet(err error) bool {
	for _, text := range []string{"connection reset", "closed network connection", "unexpected EOF", "broken pipe", "EOF"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

func (w *witness) count() (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.texts), w.err
}

// Both wires carry the same events in the same order under the same cursors, the second with
// the syncs in addition: live and replayed, across a kill and a restart.
func TestV2Equivalence(t *testing.T) {
	const first = int64(simrelay.DefaultFirstSeq)
	total := int64(6_000)
	if testing.Short() {
		total = 3_000
	}
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 91, Loop: 1500, Total: total, Rate: 2_500})
	dir := t.TempDir()
	d := serveV2(t, upstream, dir)
	addr, metrics := d.addr, d.metrics
	again := func() {
		t.Helper()
		d = &v2Daemon{addr: addr, metrics: metrics}
		d.Process = startProcess(t, []string{"SLIPSTREAM_LEGACY_DICTIONARY=off"}, "serve", "--upstream-url", upstream, "--upstream-cursor", "0",
			"--data-dir", dir, "--listen-addr", addr, "--metrics-listen-addr", metrics, "--log-level", "warn")
		waitHealthy(t, addr)
	}
	witnesses := func() []*witness {
		return []*witness{
			{name: "v1", path: "/subscribe?", addr: addr},
			{name: "v1, compressed", path: "/subscribe?compress=true&", addr: addr},
			{name: "v2", v2: true, path: v2Path + "?", addr: addr},
			{name: "v2, compressed", v2: true, path: v2Path + "?" + packed(t) + "&", addr: addr},
		}
	}
	run := func(all []*witness) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for _, w := range all {
			group.Go(func() { w.watch(ctx, t) })
		}
		return func() { cancel(); group.Wait() }
	}
	until := func(all []*witness, v1, v2 int) {
		t.Helper()
		testproc.WaitFor(t, fmt.Sprintf("%d events, %d on the second wire", v1, v2), func() bool {
			done := true
			for _, w := range all {
				want := v1
				if w.v2 {
					want = v2
				}
				n, err := w.count()
				if err != nil {
					t.Fatalf("%s: after %d events: %v", w.name, n, err)
				}
				done = done && n >= want
			}
			return done
		})
	}
	live := witnesses()
	back := func(dials int) { // all have read what was under way, and are connected again
		t.Helper()
		testproc.WaitFor(t, fmt.Sprintf("connection %d of every consumer", dials), func() bool {
			done := true
			for _, w := range live {
				w.mu.Lock()
				done = done && w.dials >= dials
				w.mu.Unlock()
			}
			return done
		})
	}
	stop := run(live)
	defer func() { stop() }()
	until(live, int(total)/4, int(total)/4)
	d.Kill(t)
	again()
	back(2)
	until(live, int(total)*3/5, int(total)*3/5)
	d.End(t)
	again()
	back(3)
	testproc.WaitFor(t, "the stream's end", func() bool { return relay.LastSeq() == first+total-1 })
	v1 := len(expectedEvents(relay, first, first+total-1))
	var expected []simrelay.Expected
	for seq := first; seq < first+total; seq++ {
		expected = append(expected, relay.Expected(seq)...)
	}
	until(live, v1, len(expected))
	time.Sleep(300 * time.Millisecond) // for one too many
	stop()

	check := func(t *testing.T, all []*witness) {
		t.Helper()
		plain1, plain2 := all[0], all[2]
		for _, w := range all {
			if w.err != nil {
				t.Fatalf("%s: %v", w.name, w.err)
			}
			if w.v2 {
				sameMessages(t, w.name, w.texts, plain2.texts)
			} else {
				sameMessages(t, w.name, w.texts, plain1.texts)
			}
		}
		if len(plain1.texts) != v1 || len(plain2.texts) != len(expected) || v1 == len(expected) {
			t.Fatalf("%d events, %d on the second wire; want %d and %d", len(plain1.texts), len(plain2.texts), v1, len(expected))
		}
		i := 0
		for n, text := range plain2.texts {
			f, err := parseV2(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := f.differs(t, &expected[n]); diff != "" {
				t.Fatalf("event %d: %s: %s", n, diff, text)
			}
			if f.kind == "sync" {
				continue
			}
			if f.seq+v2Epoch != plain1.cursors[i] || !bytes.Equal(text, v2Of(t, plain1.texts[i])) {
				t.Fatalf("event %d:\nv1 %s\nv2 %s", n, plain1.texts[i], text)
			}
			if f.kind == "commit" {
				checkTail(t, plain1.texts[i], text)
			}
			i++
		}
	}
	t.Run("live, across a kill and a restart", func(t *testing.T) { check(t, live) })
	replay := func(t *testing.T) {
		t.Helper()
		all := witnesses()
		stop := run(all)
		until(all, v1, len(expected))
		time.Sleep(200 * time.Millisecond)
		stop()
		check(t, all)
		for i, w := range all {
			sameMessages(t, "replay to "+w.name, w.texts, live[i].texts)
		}
	}
	t.Run("replayed", replay)
	d.Kill(t)
	again()
	t.Run("replayed after a kill: a seq means the same event", replay)
	d.End(t)
	again()
	t.Run("replayed after a restart: a seq means the same event", replay)
	d.End(t)
}

// differs says how an event differs from what the relay knows it sent, or "".
func (f *v2Frame) differs(t testing.TB, want *simrelay.Expected) string {
	t.Helper()
	var up struct {
		Seq                       int64
		DID                       string `json:"did"`
		Time, Handle, Status, Rev string
		Active                    bool
		Blocks                    struct {
			Bytes string `json:"$bytes"`
		}
	}
	for _, b := range []json.RawMessage{f.identity, f.account, f.upsync} {
		if b != nil {
			if err := json.Unmarshal(b, &up); err != nil {
				return err.Error()
			}
		}
	}
	got := simrelay.Expected{Seq: up.Seq, Kind: f.kind, DID: f.did, Time: up.Time, Rev: up.Rev, Handle: up.Handle, Active: up.Active, Status: up.Status,
		Collection: f.collection, RKey: f.rkey, Action: f.operation, CID: f.cid}
	w := *want
	w.RecordJSON = nil
	if f.kind == "commit" {
		got.Rev, got.Seq, got.Time = f.rev, w.Seq, w.Time // which the upstream's seq and time are not in
	} else if up.DID != f.did {
		return fmt.Sprintf("the upstream object is of %s", up.DID)
	}
	if fmt.Sprint(got) != fmt.Sprint(w) {
		return fmt.Sprintf("got %+v, want %+v", got, w)
	}
	if f.kind == "sync" && len(up.Blocks.Bytes) < 50 {
		return "no blocks"
	}
	if want.RecordJSON != nil && f.seq%20 == 0 && !equalValues(t, f.record, want.RecordJSON) {
		return fmt.Sprintf("want the record %s", want.RecordJSON)
	}
	return ""
}
