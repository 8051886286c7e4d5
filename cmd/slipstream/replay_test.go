package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
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

// collector reads a connection to its end.
type collector struct {
	mu       sync.Mutex
	messages [][]byte
	events   []v1Event
	err      error
}

func collect(r *reader) *collector {
	c := &collector{}
	go func() {
		for {
			message, err := r.next(time.Minute)
			var e v1Event
			if err == nil {
				err = json.Unmarshal(message, &e)
			}
			c.mu.Lock()
			if err != nil {
				c.err = err
				c.mu.Unlock()
				return
			}
			c.messages, c.events = append(c.messages, message), append(c.events, e)
			c.mu.Unlock()
		}
	}()
	return c
}

// soFar returns what has been read.
func (c *collector) soFar() ([][]byte, []v1Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.messages, c.events
}

// wait waits for n messages.
func (c *collector) wait(t testing.TB, what string, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		got, err := len(c.messages), c.err
		c.mu.Unlock()
		if got >= n {
			return
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%s: %d of %d messages: %v", what, got, n, err)
		}
	}
}

// Consumers that connect from any cursor, with any filter, while ingest runs flat out, get
// exactly the rest of the stream that their filter selects: no gap, no duplicate, no
// reordering, across disk, window and live.
func TestReplayFlowsIntoLive(t *testing.T) {
	total := int64(60_000) // more than the cache of what is read from disk holds
	if testing.Short() {
		total = 20_000
	}
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 21, Loop: 3000, Total: total})
	cfg := testConfig(t, upstream)
	cfg.WindowBytes = 1 << 20 // a thousand events or two: most of the replay comes from disk
	d := startDaemon(t, cfg)

	// The reference sees everything, while it happens. Others start from cursors it has seen.
	ref := collect(newReader(t, dial(t, d.addr, "cursor=0")))
	rng := rand.New(rand.NewPCG(4, 4))
	dids := func(events []v1Event) (some []string) {
		for len(some) < 30 {
			some = append(some, events[rng.IntN(len(events))].DID)
		}
		return some
	}
	wishes := []func(events []v1Event) wish{
		func([]v1Event) wish { return wish{} },
		func([]v1Event) wish { return wish{collections: []string{"app.bsky.feed.post"}} },
		func([]v1Event) wish { return wish{collections: []string{"app.bsky.graph.*"}} },
		func([]v1Event) wish {
			return wish{collections: []string{"app.bsky.feed.repost", "app.bsky.feed.like", "fm.teal.*"}}
		},
		func(events []v1Event) wish { return wish{dids: dids(events)} },
		func(events []v1Event) wish { return wish{collections: []string{"app.bsky.feed.*"}, dids: dids(events)} },
		func([]v1Event) wish { return wish{maxSize: 450} },
	}
	const future = int64(1) << 60
	type consumer struct {
		*collector
		name string
		wish wish
		from int64
	}
	var consumers []consumer
	for i := range 35 {
		ref.wait(t, "the reference", 200+i*500)
		_, events := ref.soFar()
		c := consumer{wish: wishes[i%len(wishes)](events)}
		switch i % 5 { // five and seven: each wish meets each cursor
		case 1: // exactly an event
			c.from = events[rng.IntN(len(events))].TimeUS
		case 2: // between two events, or on one
			c.from = events[rng.IntN(len(events))].TimeUS + 1
		case 3: // near the tip
			c.from = events[len(events)-1].TimeUS - rng.Int64N(1000)
		case 4: // from now on
			c.from = future
		}
		query := c.wish.query() + "&cursor=" + fmt.Sprint(c.from)
		if rng.IntN(2) == 0 {
			query += "&compress=true"
		}
		c.name = fmt.Sprintf("consumer %d, %s", i, query[:min(len(query), 90)])
		c.collector = collect(newReader(t, dial(t, d.addr, query)))
		consumers = append(consumers, c)
	}

	// The reference is the whole stream, as the relay knows it.
	waitSeq(t, d, simrelay.DefaultFirstSeq+total-1)
	want := expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+total-1)
	ref.wait(t, "the reference", len(want))
	stream, events := ref.soFar()
	for i := range want {
		if diff := events[i].matches(&want[i]); diff != "" {
			t.Fatalf("event %d: %s", i, diff)
		}
		if i > 0 && events[i].TimeUS <= events[i-1].TimeUS {
			t.Fatalf("event %d: time_us %d after %d", i, events[i].TimeUS, events[i-1].TimeUS)
		}
		if want[i].RecordJSON != nil && !equalValues(t, events[i].Commit.Record, want[i].RecordJSON) {
			t.Fatalf("event %d: record %s, want %s", i, events[i].Commit.Record, want[i].RecordJSON)
		}
	}
	count, fromNow := 0, 0
	slices.SortStableFunc(consumers, func(a, b consumer) int { return cmp.Compare(a.from, b.from) })
	for _, c := range consumers {
		// Those who asked for the future come last, and say themselves where they began. One
		// that came when all was over got nothing.
		if c.from == future {
			if _, got := c.soFar(); len(got) > 0 {
				c.from = got[0].TimeUS
				fromNow++
			}
		}
		var expect [][]byte
		for i := range events {
			if events[i].TimeUS >= c.from && c.wish.wants(&events[i], len(stream[i])) {
				expect = append(expect, stream[i])
			}
		}
		c.wait(t, c.name, len(expect))
		got, _ := c.soFar()
		sameMessages(t, c.name, got, expect)
		count += len(expect)
	}
	if count < 2*int(total) || fromNow == 0 {
		t.Errorf("all consumers together received %d events, %d of them anything from now on: too few to tell", count, fromNow)
	}
	// By now any event too many has come.
	if got, _ := ref.soFar(); len(got) != len(want) {
		t.Errorf("the reference received %d events of %d", len(got), len(want))
	}
}

func sameMessages(t testing.TB, what string, got, want [][]byte) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("%s: event %d: got %s, want %s", what, i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: received %d events, want %d", what, len(got), len(want))
	}
}

// An options update takes effect between two events: all before it are judged by the old
// filter, all after it by the new one, in replay as well as live.
func TestOptionsUpdateMidway(t *testing.T) {
	const total = 30_000
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 22, Loop: 2000, Total: total, Rate: 10_000})
	cfg := testConfig(t, upstream)
	cfg.WindowBytes = 1 << 20
	d := startDaemon(t, cfg)
	all := collect(newReader(t, dial(t, d.addr, "cursor=0")))

	likes := wish{collections: []string{"app.bsky.feed.like"}}
	posts := wish{collections: []string{"app.bsky.feed.post", "app.bsky.graph.*"}}
	const toPosts = `{"type":"options_update","payload":{"wantedCollections":["app.bsky.feed.post","app.bsky.graph.*"]}}`
	const toAll = `{"type":"options_update","payload":{}}`
	const toLikes = `{"type":"options_update","payload":{"wantedCollections":["app.bsky.feed.like"]}}`
	type consumer struct {
		*collector
		before, after wish
		query, update string
		ws            *websocket.Conn
		due           int // messages before the update
	}
	consumers := []*consumer{
		{before: likes, after: posts, query: "cursor=0", update: toPosts, due: 50},
		{before: likes, after: posts, query: "cursor=0&compress=true", update: toPosts, due: 4000},
		{before: posts, after: wish{}, query: "", update: toAll, due: 500},
		{before: wish{}, after: likes, query: "cursor=0", update: toLikes, due: 5000},
	}
	for _, c := range consumers {
		c.ws = dial(t, d.addr, c.before.query()+"&"+c.query)
		c.collector = collect(newReader(t, c.ws))
	}
	for _, c := range consumers {
		c.wait(t, c.query, c.due)
		if err := c.ws.WriteMessage(websocket.TextMessage, []byte(c.update)); err != nil {
			t.Fatal(err)
		}
	}
	waitSeq(t, d, simrelay.DefaultFirstSeq+total-1)
	all.wait(t, "the reference", len(expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+total-1)))
	stream, events := all.soFar()
	last := ""
	for i, c := range consumers {
		final := len(events) - 1
		for !c.after.wants(&events[final], len(stream[final])) {
			final--
		}
		testproc.WaitFor(t, "the last event", func() bool {
			_, received := c.soFar()
			return received[len(received)-1].TimeUS >= events[final].TimeUS
		})
		_, received := c.soFar()
		in := map[int64]bool{}
		for j := range received {
			if j > 0 && received[j].TimeUS <= received[j-1].TimeUS {
				t.Fatalf("consumer %d: time_us %d after %d", i, received[j].TimeUS, received[j-1].TimeUS)
			}
			in[received[j].TimeUS] = true
		}
		begin := 0
		if !strings.Contains(c.query, "cursor") {
			for events[begin].TimeUS < received[0].TimeUS {
				begin++
			}
		}
		// The switch lies after every event that only the old filter explains and before every
		// one that only the new filter explains.
		after, until := begin, len(events)
		for j := begin; j < len(events); j++ {
			old, fresh, have := c.before.wants(&events[j], len(stream[j])), c.after.wants(&events[j], len(stream[j])), in[events[j].TimeUS]
			switch {
			case old == fresh && have != old:
				t.Fatalf("consumer %d: event %d: received %v, both filters say %v: %s", i, j, have, old, stream[j])
			case old != fresh && have == old:
				after = j + 1
			case old != fresh && have == fresh:
				until = min(until, j)
			}
		}
		if after > until {
			t.Errorf("consumer %d: the filters are mixed between events %d and %d", i, until, after)
		}
		if after == begin || until == len(events) {
			t.Errorf("consumer %d: the update did not come midway", i)
		}
		last = fmt.Sprint(last, " ", after)
	}
	t.Logf("the updates took effect before events%s of %d", last, len(events))
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
