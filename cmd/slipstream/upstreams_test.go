package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/firehose"
	"slipstream/pkg/ingest"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// samplesEnv is how often the program samples a standby when it is a test that runs it.
const samplesEnv = "SLIPSTREAM_TEST_SAMPLES"

// twin is one of two relays that carry the same network.
type twin struct {
	*simrelay.Relay
	url    string
	down   atomic.Bool
	served atomic.Int64 // connections
}

func (w *twin) fail() {
	w.down.Store(true)
	w.Cut()
}

func (w *twin) heal() { w.down.Store(false) }

// twins share a network in which a second is a hundred: so two minutes of it are over soon.
func startTwins(t *testing.T, total int64) (all [2]*twin) {
	t.Helper()
	for i := range all {
		relay, err := simrelay.New(simrelay.Config{
			Seed: 31, Accounts: 200, Total: total, History: int(total), Rate: 1000, Step: 100 * time.Millisecond,
			FirstSeq: int64(i+1) * simrelay.DefaultFirstSeq, Shuffle: uint64(i + 1), Silent: i == 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		w := &twin{Relay: relay}
		handler := relay.Handler()
		w.url, err = firehose.ParseURL(serveHandler(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if w.down.Load() {
				http.Error(rw, "down", http.StatusServiceUnavailable)
				return
			}
			w.served.Add(1)
			handler.ServeHTTP(rw, r)
		})))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(runRelay(t, relay))
		all[i] = w
	}
	return all
}

// consumer reads everything from a daemon, over any number of its lives.
type consumer struct {
	t    *testing.T
	addr string

	mu      sync.Mutex
	last    int64
	message []byte
	got     []networkEvent
}

// networkEvent is what two relays send alike.
type networkEvent struct {
	kind, did, rev, path, time string
}

func (e networkEvent) String() string {
	return strings.Join([]string{e.kind, e.did, e.rev, e.path, e.time}, " ")
}

// read reads until stop is closed.
func (c *consumer) read(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		ws, _, err := websocket.DefaultDialer.Dial(fmt.Sprintf("ws://%s/subscribe?cursor=%d", c.addr, c.last), nil)
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		closed := make(chan struct{})
		go func() {
			select {
			case <-stop:
			case <-closed:
			}
			ws.Close()
		}()
		for resumed := c.last != 0; ; resumed = false {
			_, message, err := ws.ReadMessage()
			if err != nil {
				break
			}
			c.take(message, resumed)
		}
		close(closed)
	}
}

func (c *consumer) take(message []byte, resumed bool) {
	var e struct {
		DID               string
		TimeUS            int64 `json:"time_us"`
		Kind              string
		Commit            struct{ Rev, Collection, RKey string }
		Identity, Account struct{ Time string }
	}
	if err := json.Unmarshal(message, &e); err != nil {
		c.t.Errorf("%v in %s", err, message)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if resumed {
		if !bytes.Equal(message, c.message) {
			c.t.Errorf("after a restart the last event comes back as\n%s, it was\n%s", message, c.message)
		}
		return
	}
	if e.TimeUS <= c.last {
		c.t.Errorf("time_us %d after %d", e.TimeUS, c.last)
	}
	c.last, c.message = e.TimeUS, bytes.Clone(message)
	n := networkEvent{kind: e.Kind, did: e.DID}
	if e.Kind == "commit" {
		n.rev, n.path = e.Commit.Rev, e.Commit.Collection+"/"+e.Commit.RKey
	} else {
		n.time = e.Identity.Time + e.Account.Time
	}
	c.got = append(c.got, n)
}

func (c *consumer) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

// await waits until there are so many events.
func (c *consumer) await(n int) {
	c.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); c.count() < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("%d events have come, want %d", c.count(), n)
		}
	}
}

// check checks that what came is the whole network from soon after the first event on: each
// commit once, in its repo's order, and identity and account events at least once.
func (c *consumer) check(w *twin, first int64) {
	c.t.Helper()
	type expected struct {
		networkEvent
		at string
	}
	var want []expected
	for seq := first; seq <= w.LastSeq(); seq++ {
		for _, e := range w.Expected(seq) {
			x := expected{networkEvent{kind: e.Kind, did: e.DID, rev: e.Rev, time: e.Time}, e.Time}
			switch e.Kind {
			case "sync":
				continue
			case "commit":
				x.path, x.time = e.Collection+"/"+e.RKey, ""
			}
			want = append(want, x)
		}
	}
	// The order of the two differs by less than that at the beginning, too.
	const blurred = time.Minute
	complete := func() (missing []expected, repeats int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		seen := map[networkEvent]int{}
		for _, e := range c.got {
			seen[e]++
		}
		since := ""
		for _, x := range want {
			if x.networkEvent == c.got[0] {
				at, _ := time.Parse(time.RFC3339, x.at)
				since = at.Add(blurred).UTC().Format("2006-01-02T15:04:05.000Z")
			}
		}
		for _, x := range want {
			if x.at >= since && seen[x.networkEvent] == 0 {
				missing = append(missing, x)
			}
			if x.kind == "commit" {
				repeats += max(0, seen[x.networkEvent]-1)
			}
		}
		return missing, repeats
	}
	missing, _ := complete()
	for deadline := time.Now().Add(30 * time.Second); len(missing) > 0 && time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
		missing, _ = complete()
	}
	time.Sleep(500 * time.Millisecond) // for what comes too much
	missing, repeats := complete()
	if len(missing) > 0 {
		c.t.Errorf("%d of %d events are missing, the first: %v", len(missing), len(want), missing[0])
	}
	if repeats > 0 {
		c.t.Errorf("%d commits came twice", repeats)
	}
	// Within a repo, commits are a run of the network's without a hole.
	order, at := map[string][]networkEvent{}, map[networkEvent]int{}
	for _, x := range want {
		if x.kind == "commit" {
			at[x.networkEvent] = len(order[x.did])
			order[x.did] = append(order[x.did], x.networkEvent)
		}
	}
	next := map[string]int{}
	commits, others := 0, 0
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, e := range c.got {
		if e.kind != "commit" {
			others++
			continue
		}
		commits++
		place, ok := at[e]
		if !ok {
			c.t.Fatalf("event %d is not of the network: %v", i, e)
		}
		if n, ok := next[e.did]; ok && n != place {
			c.t.Fatalf("event %d, %v, is number %d of its repo, want %d", i, e, place, n)
		}
		next[e.did] = place + 1
	}
	c.t.Logf("%d commit events and %d others of %d", commits, others, len(want))
}

func (d *daemon) switches(reason string) int {
	return metric(d.t, d.metrics, fmt.Sprintf("slipstream_upstream_switches_total{reason=%q}", reason))
}

// metric reads one of the daemon's.
func metric(t testing.TB, addr, name string) int {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			var f float64
			fmt.Sscan(value, &f)
			return int(f)
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// Two relays fail in turn, the first one as soon as the daemon has begun: nothing is lost,
// nothing comes twice, and each repo keeps its order.
func TestFailover(t *testing.T) {
	const total = 10_000
	w := startTwins(t, total)
	sampleInterval = 500 * time.Millisecond
	t.Cleanup(func() { sampleInterval = time.Minute })
	cfg := testConfig(t, w[0].url)
	cfg.UpstreamURLs, cfg.UpstreamCursor, cfg.FailoverAfter = []string{w[0].url, w[1].url}, nil, 400*time.Millisecond
	time.Sleep(100 * time.Millisecond) // something to have been before
	d := startDaemon(t, cfg)
	c := &consumer{t: t, addr: cfg.ListenAddr}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		c.read(stop)
	}()
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %s", what)
			}
		}
		t.Logf("%s at %d and %d", what, w[0].LastSeq()-simrelay.DefaultFirstSeq, w[1].LastSeq()-2*simrelay.DefaultFirstSeq)
	}
	failovers, back := func(n int) func() bool { return func() bool { return d.switches("failover") == n } },
		func(n int) func() bool { return func() bool { return d.switches("back") == n } }

	c.await(100)
	w[0].fail()
	until("first failover", failovers(1))
	w[0].heal()
	until("way back", back(1))
	time.Sleep(time.Duration(rand.N(500)) * time.Millisecond)
	w[0].fail()
	until("second failover", failovers(2))
	w[1].fail() // perhaps still in its overlap
	w[0].heal()
	until("third failover", failovers(3))
	w[1].heal()
	time.Sleep(time.Second)
	w[0].fail()
	until("fourth failover", failovers(4))
	time.Sleep(time.Duration(rand.N(2000)) * time.Millisecond)
	w[0].heal()
	until("second way back", back(2))

	until("end", func() bool {
		return w[0].LastSeq() == simrelay.DefaultFirstSeq+total-1 && w[1].LastSeq() == 2*simrelay.DefaultFirstSeq+total-1
	})
	c.check(w[0], simrelay.DefaultFirstSeq)
	// An end of the network is no failure of the relay.
	if failovers, back := d.switches("failover"), d.switches("back"); failovers != 4 || back != 2 {
		t.Errorf("%d failovers and %d ways back", failovers, back)
	}
	close(stop)
	<-done
	report, err := runCommand(t.Context(), "inspect", "--data-dir", cfg.DataDir, "--metrics-listen-addr", cfg.MetricsListenAddr)
	if err != nil || !strings.Contains(report, "standby       "+w[1].url) {
		t.Errorf("inspect: %v\n%s", err, report)
	}
}

// Killed at random moments right after, or right before, one of two relays fails, and started
// while that one is still away, the daemon loses nothing, repeats nothing and keeps the order.
func TestFailoverKill(t *testing.T) {
	const total, kills = 16_000, 4
	w := startTwins(t, total)
	dir, addr, metrics := t.TempDir(), testproc.FreeAddr(t), testproc.FreeAddr(t)
	launch := func() *testproc.Process {
		return startProcess(t, []string{samplesEnv + "=500ms"}, "serve", "--upstream-url", w[0].url+","+w[1].url, "--upstream-cursor", "0",
			"--failover-after", "1s", "--data-dir", dir, "--listen-addr", addr, "--metrics-listen-addr", metrics)
	}
	p := launch()
	c := &consumer{t: t, addr: addr}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		c.read(stop)
	}()
	defer func() {
		close(stop)
		<-done
	}()
	said := func(p *testproc.Process, what string) bool {
		for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
			if strings.Contains(p.Output.String(), what) {
				return true
			}
		}
		return false
	}
	c.await(100)
	for i := range kills {
		a, b := w[0], w[1]
		if metric(t, metrics, fmt.Sprintf("slipstream_upstream_active{upstream=%q}", b.url)) == 1 {
			a, b = b, a
		}
		if i%3 != 1 {
			// In the overlap, more or less.
			a.fail()
			if !said(p, "going over to another relay") && !said(p, "beginning with another") {
				t.Fatalf("round %d: no failover; the process said:\n%s", i, p.Output)
			}
			time.Sleep(time.Duration(rand.N(300)) * time.Millisecond)
		}
		p.Cmd.Process.Kill()
		p.Wait(t)
		a.fail()
		p = launch()
		n := c.count()
		if !said(p, "connected to the relay") {
			t.Fatalf("round %d: no connection; the process said:\n%s", i, p.Output)
		}
		c.await(n + 500)
		a.heal()
		time.Sleep(time.Second) // samples
	}
	for deadline := time.Now().Add(30 * time.Second); w[0].LastSeq() < simrelay.DefaultFirstSeq+total-1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the network does not end")
		}
	}
	c.check(w[0], simrelay.DefaultFirstSeq)
}

// What is left out is neither sent nor stored; the position moves all the same, and syncs stay.
func TestLeftOut(t *testing.T) {
	const total = 3000
	relay, url := testproc.Relay(t, simrelay.Config{Seed: 5, Accounts: 50, Total: total})
	cfg := testConfig(t, url)
	cfg.Filter = ingest.Filter{NoIdentity: true, NoAccount: true}
	if err := cfg.Filter.Collections.Add("app.bsky.feed.post"); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, cfg)
	for deadline := time.Now().Add(20 * time.Second); metric(t, d.metrics, "slipstream_upstream_seq") != simrelay.DefaultFirstSeq+total-1; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the position does not get to the end")
		}
	}
	var posts []simrelay.Expected
	syncs := 0
	for seq := int64(simrelay.DefaultFirstSeq); seq <= relay.LastSeq(); seq++ {
		for _, e := range relay.Expected(seq) {
			switch {
			case e.Collection == "app.bsky.feed.post":
				posts = append(posts, e)
			case e.Kind == "sync":
				syncs++
			}
		}
	}
	r := newReader(t, dial(t, d.addr, "cursor=0"))
	for i, m := range r.messages(t, len(posts)) {
		e := parseEvent(t, m)
		if diff := e.matches(&posts[i]); diff != "" {
			t.Fatal(diff)
		}
	}
	if m, err := r.next(200 * time.Millisecond); err == nil {
		t.Errorf("one event too many: %s", m)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if seq, events := stored(t, cfg.DataDir); seq != simrelay.DefaultFirstSeq+total-1 || events != len(posts)+syncs || syncs == 0 {
		t.Errorf("stored up to %d, %d events; want %d posts and %d syncs", seq, events, len(posts), syncs)
	}
}
