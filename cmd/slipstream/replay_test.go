package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
)

// wish is a filter as the obvious, linear way applies it.
type wish struct {
	collections, dids []string
	maxSize           int
}

func (w wish) query() string {
	q := url.Values{}
	for _, c := range w.collections {
		q.Add("wantedCollections", c)
	}
	for _, d := range w.dids {
		q.Add("wantedDids", d)
	}
	if w.maxSize > 0 {
		q.Set("maxMessageSizeBytes", fmt.Sprint(w.maxSize))
	}
	return q.Encode()
}

func (w wish) wants(e *v1Event, size int) bool {
	if w.maxSize > 0 && size > w.maxSize {
		return false
	}
	if len(w.dids) > 0 {
		found := false
		for _, d := range w.dids {
			found = found || d == e.DID
		}
		if !found {
			return false
		}
	}
	if len(w.collections) == 0 || e.Kind != "commit" {
		return true
	}
	for _, c := range w.collections {
		if prefix, ok := strings.CutSuffix(c, "*"); ok && strings.HasPrefix(e.Commit.Collection, prefix) || c == e.Commit.Collection {
			return true
		}
	}
	return false
}

// Consumers that connect from any cursor, with any filter, while ingest runs flat out, get
// exactly the rest of the stream that their filter selects: no gap, no duplicate, no
// reordering, across disk, window and live.
func TestReplayFlowsIntoLive(t *testing.T) {
	const total = 60_000
	relay, upstream := startRelay(t, simrelay.Config{Seed: 21, Loop: 3000, Total: total})
	cfg := testConfig(t, upstream)
	cfg.WindowBytes = 1 << 20 // a thousand events or two: most of the replay comes from disk
	d := startDaemon(t, cfg)

	// The reference sees everything, while it happens. Others start from cursors it has seen.
	type seen struct {
		event   v1Event
		message []byte
	}
	var mu sync.Mutex
	var stream []seen
	finished := make(chan struct{})
	ref := newReader(t, dial(t, d.addr, "cursor=0"))
	count := 0
	go func() {
		defer close(finished)
		for {
			message, err := ref.next(3 * time.Second)
			if err != nil {
				return // the stream is over
			}
			var e v1Event
			if json.Unmarshal(message, &e) != nil {
				return
			}
			mu.Lock()
			stream = append(stream, seen{e, message})
			mu.Unlock()
		}
	}()
	progress := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(stream)
	}

	rng := rand.New(rand.NewPCG(4, 4))
	wishes := func() wish {
		mu.Lock()
		defer mu.Unlock()
		var w wish
		for len(w.dids) < 30 && len(stream) > 0 {
			w.dids = append(w.dids, stream[rng.IntN(len(stream))].event.DID)
		}
		switch rng.IntN(7) {
		case 0:
			return wish{}
		case 1:
			return wish{collections: []string{"app.bsky.feed.post"}}
		case 2:
			return wish{collections: []string{"app.bsky.graph.*"}}
		case 3:
			return wish{collections: []string{"app.bsky.feed.repost", "app.bsky.feed.like", "fm.teal.*"}}
		case 4:
			return w
		case 5:
			return wish{collections: []string{"app.bsky.feed.*"}, dids: w.dids}
		}
		return wish{maxSize: 450}
	}
	type consumer struct {
		name     string
		wish     wish
		from     int64
		messages [][]byte
	}
	var consumers []*consumer
	var group sync.WaitGroup
	for i := range 24 {
		for progress() < min(200+i*1500, total/2) {
			time.Sleep(time.Millisecond)
		}
		c := &consumer{wish: wishes()}
		mu.Lock()
		switch rng.IntN(4) {
		case 0:
			c.from = 0
		case 1: // exactly an event
			c.from = stream[rng.IntN(len(stream))].event.TimeUS
		case 2: // between two events, or on one
			c.from = stream[rng.IntN(len(stream))].event.TimeUS + 1
		case 3: // near the tip
			c.from = stream[len(stream)-1].event.TimeUS - rng.Int64N(1000)
		}
		mu.Unlock()
		query := c.wish.query() + "&cursor=" + fmt.Sprint(c.from)
		if rng.IntN(2) == 0 {
			query += "&compress=true"
		}
		c.name = query[:min(len(query), 90)]
		r := newReader(t, dial(t, d.addr, query))
		consumers = append(consumers, c)
		group.Go(func() {
			for {
				message, err := r.next(6 * time.Second)
				if err != nil {
					return
				}
				c.messages = append(c.messages, message)
			}
		})
	}
	<-finished
	group.Wait()

	// The reference is the whole stream, as the relay knows it.
	want := expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+total-1)
	if len(stream) != len(want) {
		t.Fatalf("the reference received %d events of %d", len(stream), len(want))
	}
	for i := range want {
		if diff := stream[i].event.matches(&want[i]); diff != "" {
			t.Fatalf("event %d: %s", i, diff)
		}
		if i%50 == 0 && want[i].RecordJSON != nil && !equalValues(t, stream[i].event.Commit.Record, want[i].RecordJSON) {
			t.Fatalf("event %d: record %s, want %s", i, stream[i].event.Commit.Record, want[i].RecordJSON)
		}
	}
	for _, c := range consumers {
		var expect [][]byte
		for _, s := range stream {
			if s.event.TimeUS >= c.from && c.wish.wants(&s.event, len(s.message)) {
				expect = append(expect, s.message)
			}
		}
		if len(c.messages) != len(expect) {
			t.Errorf("%s: received %d events, want %d", c.name, len(c.messages), len(expect))
			continue
		}
		for i := range expect {
			if !bytes.Equal(c.messages[i], expect[i]) {
				t.Errorf("%s: event %d: got %s, want %s", c.name, i, c.messages[i], expect[i])
				break
			}
		}
		count += len(expect)
	}
	if count < total {
		t.Errorf("all consumers together received %d events: too few to tell", count)
	}
}

// An options update takes effect between two events: all before it are judged by the old
// filter, all after it by the new one.
func TestOptionsUpdateMidway(t *testing.T) {
	const total = 40_000
	_, upstream := startRelay(t, simrelay.Config{Seed: 22, Loop: 2000, Total: total, Rate: 20_000})
	cfg := testConfig(t, upstream)
	cfg.WindowBytes = 1 << 20
	d := startDaemon(t, cfg)
	all := newReader(t, dial(t, d.addr, "cursor=0"))
	before := wish{collections: []string{"app.bsky.feed.like"}}
	after := wish{collections: []string{"app.bsky.feed.post", "app.bsky.graph.*"}}
	ws := dial(t, d.addr, before.query()+"&cursor=0")
	some := newReader(t, ws)

	var stream, got [][]byte
	var group sync.WaitGroup
	group.Go(func() {
		for {
			m, err := all.next(4 * time.Second)
			if err != nil {
				return
			}
			stream = append(stream, m)
		}
	})
	for {
		m, err := some.next(4 * time.Second)
		if err != nil {
			break
		}
		if got = append(got, m); len(got) == 5000 {
			update := `{"type":"options_update","payload":{"wantedCollections":["app.bsky.feed.post","app.bsky.graph.*"]}}`
			if err := ws.WriteMessage(websocket.TextMessage, []byte(update)); err != nil {
				t.Fatal(err)
			}
		}
	}
	group.Wait()
	// The switch is after the last event that only the old filter wants.
	var events []v1Event
	for _, m := range stream {
		events = append(events, parseEvent(t, m))
	}
	switched := 0
	last := int64(0)
	for _, m := range got {
		if e := parseEvent(t, m); before.wants(&e, len(m)) && !after.wants(&e, len(m)) {
			last = e.TimeUS
		}
	}
	var expect [][]byte
	for i, m := range stream {
		w := before
		if events[i].TimeUS > last {
			w = after
			switched++
		}
		if w.wants(&events[i], len(m)) {
			expect = append(expect, m)
		}
	}
	// Between the last like and the first post neither filter differs, so the switch point
	// is exact.
	if len(got) != len(expect) {
		t.Fatalf("received %d events, want %d (switch after %d)", len(got), len(expect), last)
	}
	for i := range got {
		if !bytes.Equal(got[i], expect[i]) {
			t.Fatalf("event %d: got %s, want %s", i, got[i], expect[i])
		}
	}
	if switched == 0 || switched == len(stream) {
		t.Fatal("the update did not come midway")
	}
}

func equalValues(t testing.TB, a, b []byte) bool {
	t.Helper()
	var x, y any
	for _, p := range []struct {
		text []byte
		v    *any
	}{{a, &x}, {b, &y}} {
		d := json.NewDecoder(bytes.NewReader(p.text))
		d.UseNumber()
		if err := d.Decode(p.v); err != nil {
			t.Fatalf("%v in %s", err, p.text)
		}
	}
	return reflect.DeepEqual(x, y)
}
