package compat

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// A feature is a column of the table.
type feature string

const (
	plain   feature = "plain"
	zstdAll feature = "zstd"
	filters feature = "filters"
	options feature = "options update"
	resume  feature = "resume"
	v2wire  feature = "v2"
)

var allFeatures = []feature{plain, zstdAll, filters, options, resume, v2wire}

const (
	legacyDictionary = "../../../shared/data/dictionaries/legacy_subscribe.zdict"
	legacyID         = "1612007021"
)

// known are the collections of the simulated network that clients may have to name.
var known = []string{
	"app.bsky.feed.like", "app.bsky.feed.post", "app.bsky.feed.repost", "app.bsky.feed.threadgate",
	"app.bsky.graph.follow", "app.bsky.graph.block", "app.bsky.graph.list", "app.bsky.graph.listitem",
	"app.bsky.actor.profile", "com.whtwnd.blog.entry", "fm.teal.alpha.feed.play", "org.example.sample.opaque",
	"sh.tangled.feed.star", "sh.tangled.git.refUpdate",
}

// TestCompat runs every client through every feature and prints the table.
func TestCompat(t *testing.T) {
	if os.Getenv("SLIPSTREAM_COMPAT") == "" {
		t.Skip("installs clients from package registries: run `make compat`")
	}
	installAll(t)
	n := startNetwork(t)
	results := &table{cells: map[string]map[feature]string{}}
	for _, c := range clients {
		for _, f := range c.features {
			results.set(c, f, notRun)
			if reason := n.skips(c, f); reason != "" {
				results.set(c, f, "SKIPPED ("+reason+")")
			}
		}
	}
	t.Run("client", func(t *testing.T) {
		for _, c := range clients {
			for _, f := range c.features {
				if f == resume && c.instead == nil || n.skips(c, f) != "" {
					continue
				}
				t.Run(c.name+"/"+string(f), func(t *testing.T) {
					t.Parallel()
					defer results.judge(t, c, f)
					n.try(t, c, f)
				})
			}
		}
		t.Run("README", func(t *testing.T) {
			t.Parallel()
			if cargo.missing != "" {
				t.Skip("there is no ", cargo.missing)
			}
			n.readme(t)
		})
	})
	t.Run("restart", func(t *testing.T) { n.restart(t, results) })
	t.Run("reference", func(t *testing.T) { n.check(t) })
	fmt.Printf("\n%s\n", results)
	results.compareReadme(t)
	n.own.End(t)
	if n.legacy != nil {
		n.legacy.End(t)
	}
}

// A network is a simulated relay and daemons on it, with what consumers must get.
type network struct {
	relay    *simrelay.Relay
	upstream string // its address
	own      *server
	legacy   *server // nil without the legacy dictionary
}

// A server is the real daemon.
type server struct {
	*testproc.Daemon
	endpoint string
	truths   [2]*truth // by wire
}

func startNetwork(t *testing.T) *network {
	// Of this seed all that clients differ in comes within the first 500 frames.
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 2, Accounts: 60, Rate: 150, WallClock: true, History: 50_000})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	start := func(dictionary string) *server {
		d := testproc.Serve(t, "../../bin/slipstream", upstream, t.TempDir(), "--legacy-dictionary", dictionary)
		s := &server{Daemon: d, endpoint: "ws://" + d.Addr}
		for w := range s.truths {
			s.truths[w] = &truth{wire: wire(w)}
			wg.Go(func() {
				if err := s.truths[w].follow(ctx, s.endpoint); err != nil {
					t.Errorf("reference of %s: %v", paths[w], err)
				}
			})
		}
		return s
	}
	n := &network{relay: relay, upstream: upstream, own: start("off")}
	if _, err := os.Stat(legacyDictionary); err == nil {
		n.legacy = start(legacyDictionary)
	}
	wait(t, "events", func() bool { return len(n.own.truths[v1].events()) > 600 })
	return n
}

// skips says what is missing for a feature of a client.
func (n *network) skips(c *client, f feature) string {
	if c.chain != nil && c.chain.missing != "" {
		return "no " + c.chain.missing
	}
	if c.builtIn && f == zstdAll && n.legacy == nil {
		return "no legacy dictionary"
	}
	return ""
}

// An exchange is one run of a client against a server.
type exchange struct {
	client *client
	server *server
	wire   wire
	order  order
	log    testproc.Buffer
	cancel context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	got []entry
	err error
}

// begin starts a client. zstd is what the query says of compression.
func begin(t *testing.T, c *client, s *server, w wire, o order, zstd string) *exchange {
	o.Endpoint, o.Known = s.endpoint, known
	if o.Kinds == nil {
		o.Kinds = c.kinds
	}
	o.URL = o.request(w, zstd)
	if o.Headers == nil {
		o.Headers = map[string]string{}
	}
	for _, list := range []*[]string{&o.Kinds, &o.Collections, &o.DIDs} {
		if *list == nil {
			*list = []string{}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &exchange{client: c, server: s, wire: w, order: o, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		c.consume(ctx, x.order, x.emit, &x.log)
	}()
	t.Cleanup(func() {
		x.end()
		if t.Failed() {
			text := x.log.String()
			t.Logf("%s\nit said:\n%s", x.order.URL, text[max(0, len(text)-3000):])
		}
	})
	return x
}

func (x *exchange) emit(line []byte) {
	e, err := parse(line)
	if err == nil && x.client.alike != nil {
		e.event = x.client.alike(e.event).(object)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil && x.err == nil {
		x.err = err
		return
	}
	x.got = append(x.got, e)
}

func (x *exchange) received() []entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.got
}

// await waits until the client has printed an event that is newer than id, or so many events.
func (x *exchange) await(t *testing.T, events int, id int64) {
	t.Helper()
	wait(t, x.client.name, func() bool {
		select {
		case <-x.done:
			t.Fatalf("%s: it has ended", x.client.name)
		default:
		}
		got := x.received()
		return len(got) >= events && (id == 0 || got[len(got)-1].id > id)
	})
}

// end ends the client.
func (x *exchange) end() {
	x.cancel()
	<-x.done
}

// until ends the client once it has received some seconds of live events, and returns what it
// received up to there.
func (x *exchange) until(t *testing.T, live time.Duration) (got []entry, from, to int64) {
	t.Helper()
	x.await(t, 1, 0)
	to = x.wire.now() + live.Microseconds()
	x.await(t, 1, to)
	x.end()
	if x.err != nil {
		t.Fatal(x.err)
	}
	got = x.received()
	got = got[:slices.IndexFunc(got, func(e entry) bool { return e.id > to })]
	if from = x.order.Cursor; from <= 1 {
		from = got[0].id
		if x.order.Cursor == 1 {
			from = x.server.truths[x.wire].events()[0].id
		}
	}
	return got, from, to
}

// expected is what the client should show of the events from one id to another.
func (x *exchange) expected(t *testing.T, o *order, from, to int64) []entry {
	t.Helper()
	var all []entry
	for _, e := range x.server.truths[x.wire].between(t, from, to) {
		if !o.wants(e.event) {
			continue
		}
		if x.client.sees != nil {
			if e.event = x.client.sees(e.event); e.event == nil {
				continue
			}
		}
		if x.client.alike != nil {
			e.event = x.client.alike(e.event).(object)
		}
		all = append(all, e)
	}
	return all
}

// replayed runs an order to some seconds beyond its start and compares.
func replayed(t *testing.T, c *client, s *server, w wire, o order, zstd string) {
	t.Helper()
	x := begin(t, c, s, w, o, zstd)
	got, from, to := x.until(t, time.Second)
	want := x.expected(t, &x.order, from, to)
	if err := compare(got, want); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d events, all right", len(got))
}

// try runs a client through a feature.
func (n *network) try(t *testing.T, c *client, f feature) {
	if c.instead != nil {
		c.instead(t, n, c, f)
		return
	}
	w := c.wire
	everything := order{Cursor: 1} // a replay of everything, and then live; 0 means none to some
	some := order{Cursor: 1, Collections: []string{"app.bsky.feed.*", "app.bsky.graph.follow"}, DIDs: n.busy(15)}
	switch f {
	case plain:
		replayed(t, c, n.own, w, everything, "")
		n.oddities(t, c)
	case zstdAll:
		everything.Compress = true
		if w == v2 {
			replayed(t, c, n.own, w, everything, "")
			return
		}
		if !c.builtIn {
			replayed(t, c, n.own, w, everything, "compress=true")
		}
		if n.legacy != nil {
			replayed(t, c, n.legacy, w, everything, "compress=true")
		}
		if c.header {
			everything.Headers = map[string]string{"Socket-Encoding": "zstd"}
			replayed(t, c, n.own, w, everything, "")
		}
	case filters:
		if w == v2 {
			some.Kinds = []string{"commit"}
		}
		replayed(t, c, n.own, w, some, "")
	case options:
		n.tryUpdate(t, c)
	case v2wire:
		replayed(t, c, n.own, v2, everything, "")
		some.Kinds = []string{"commit", "account"}
		replayed(t, c, n.own, v2, some, "")
		if slices.Contains(c.features, zstdAll) && w == v1 {
			everything.Compress = true
			replayed(t, c, n.own, v2, everything, "zstdDictionary="+n.dictionary(t))
		}
	}
}

// tryUpdate changes the filter while the stream goes on: up to some event the first one holds,
// from there the second.
func (n *network) tryUpdate(t *testing.T, c *client) {
	events := n.own.truths[v1].events()
	before := order{Cursor: events[len(events)-300].id, Collections: []string{"app.bsky.feed.like"}}
	after := order{Collections: []string{"app.bsky.feed.post", "app.bsky.graph.*"}, DIDs: n.busy(30)}
	before.Update = &update{After: 50, Collections: after.Collections, DIDs: after.DIDs}
	x := begin(t, c, n.own, v1, before, "")
	got, from, to := x.until(t, 3*time.Second)
	old, new := x.expected(t, &before, from, to), x.expected(t, &after, from, to)
	before50 := got[min(50, len(got)-1)].id
	part := func(events []entry, at int64) int {
		i, _ := slices.BinarySearchFunc(events, at, func(e entry, at int64) int { return int(e.id - at) })
		return i
	}
	for _, e := range n.own.truths[v1].between(t, before50, to) {
		first, rest := old[:part(old, e.id)], new[part(new, e.id):]
		if compare(got, slices.Concat(first, rest)) == nil {
			t.Logf("%d events before the update, %d after it", len(first), len(rest))
			return
		}
	}
	t.Fatalf("there is no place in its %d events before which one filter held and after which the other one", len(got))
}

// oddities checks that what the package comment says of a client is so.
func (n *network) oddities(t *testing.T, c *client) {
	if c.odd != nil {
		c.odd(t, n, c)
	}
	// What it shows otherwise must have come up: then the comparison has proved it.
	if c.sees != nil && !slices.ContainsFunc(n.own.truths[c.wire].events(), func(e entry) bool {
		return !reflect.DeepEqual(c.sees(e.event), e.event)
	}) {
		t.Errorf("%s shows every event as it is", c.name)
	}
}

// busy returns the accounts that have the most events.
func (n *network) busy(count int) []string {
	events := map[string]int{}
	for _, e := range n.own.truths[v1].events() {
		events[e.event["did"].(string)]++
	}
	dids := make([]string, 0, len(events))
	for did := range events {
		dids = append(dids, did)
	}
	slices.SortFunc(dids, func(a, b string) int { return events[b] - events[a] })
	return dids[:min(count, len(dids))]
}

// dictionary asks as a v2 consumer does which dictionary there is.
func (n *network) dictionary(t *testing.T) string {
	resp, err := http.Get("http" + strings.TrimPrefix(n.own.endpoint, "ws") + "/xrpc/network.bsky.jetstream.getZstdDictionary")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || len(b) < 8 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	return fmt.Sprint(binary.LittleEndian.Uint32(b[4:]))
}

// readme runs the README's command lines as they are, but for the address.
func (n *network) readme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^ {4}(websocat "ws://localhost:6008(\S+)")$`).FindAllSubmatch(text, -1)
	if len(lines) < 2 {
		t.Fatalf("there are %d", len(lines))
	}
	for _, line := range lines {
		command := strings.Replace(string(line[1]), "ws://localhost:6008", n.own.endpoint, 1)
		t.Run(string(line[2]), func(t *testing.T) {
			o, w := order{Collections: []string{"app.bsky.feed.post"}}, v1
			if strings.HasPrefix(string(line[2]), paths[v2]) {
				o.Kinds, w = []string{"commit"}, v2
			}
			shell := &client{name: command, consume: func(ctx context.Context, _ order, emit func([]byte), log io.Writer) {
				cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+command)
				cmd.Env = append(os.Environ(), "PATH="+cargo.path("bin")+":"+os.Getenv("PATH"))
				cmd.Stderr = log
				drive(cmd, nil, emit, log)
			}}
			replayed(t, shell, n.own, w, o, "")
		})
	}
}

// restart ends and starts the daemon while all clients consume.
func (n *network) restart(t *testing.T, results *table) {
	var all []*exchange
	for _, c := range clients {
		if !slices.Contains(c.features, resume) || c.instead != nil || n.skips(c, resume) != "" {
			continue
		}
		events := n.own.truths[c.wire].events()
		all = append(all, begin(t, c, n.own, c.wire, order{Cursor: events[len(events)-200].id}, ""))
	}
	for _, x := range all {
		x.await(t, 300, 0)
	}
	n.own.End(t)
	time.Sleep(500 * time.Millisecond)
	n.own.Start(t)
	for _, x := range all {
		t.Run(x.client.name, func(t *testing.T) {
			t.Parallel()
			defer results.judge(t, x.client, resume)
			got, from, to := x.until(t, 0)
			last, again := int64(0), 0
			got = slices.DeleteFunc(slices.Clone(got), func(e entry) bool {
				if e.id <= last {
					again++
					return true
				}
				last = e.id
				return false
			})
			if err := compare(got, x.expected(t, &x.order, from, to)); err != nil {
				t.Fatal(err)
			}
			// The cursor is inclusive: one event comes again.
			if again > 1 && !x.client.twice {
				t.Errorf("%d events came again", again)
			}
			if says := x.client.says; !strings.Contains(x.log.String(), says) {
				t.Errorf("it did not say %q", says)
			}
			t.Logf("%d events, all right, %d of them again", len(got), again)
		})
	}
}

// check compares the references with what the relay sent, and with what a new consumer is
// replayed after all that.
func (n *network) check(t *testing.T) {
	for _, s := range []*server{n.own, n.legacy} {
		if s == nil {
			continue
		}
		for _, tr := range s.truths {
			all := tr.events()
			if err := tr.check(n.relay, simrelay.DefaultFirstSeq); err != nil {
				t.Errorf("%s: %v", paths[tr.wire], err)
			}
			again := &truth{wire: tr.wire}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := again.follow(ctx, s.endpoint); err != nil {
					t.Error(err)
				}
			})
			replay := again.between(t, 0, all[len(all)-1].id)
			cancel()
			wg.Wait()
			if err := compare(replay, all); err != nil {
				t.Errorf("%s, replayed: %v", paths[tr.wire], err)
			}
			t.Logf("%s: %d events", paths[tr.wire], len(all))
		}
	}
}

const notRun = "not run"

// A table says what works.
type table struct {
	mu    sync.Mutex
	cells map[string]map[feature]string // by client
}

func (tb *table) set(c *client, f feature, text string) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if tb.cells[c.name] == nil {
		tb.cells[c.name] = map[feature]string{}
	}
	tb.cells[c.name][f] = text
}

// judge notes how a test went. It is deferred.
func (tb *table) judge(t *testing.T, c *client, f feature) {
	text := "yes"
	if t.Failed() {
		text = "FAILED"
	}
	tb.set(c, f, text)
}

// String is the table in markdown.
func (tb *table) String() string {
	var b strings.Builder
	b.WriteString("| client |")
	for _, f := range allFeatures {
		fmt.Fprintf(&b, " %s |", f)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(allFeatures)) + "\n")
	for _, c := range clients {
		fmt.Fprintf(&b, "| %s %s |", c.name, version(c.name))
		for _, f := range allFeatures {
			text := tb.cells[c.name][f]
			if text == "" {
				text = "-"
			}
			fmt.Fprintf(&b, " %s |", text)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// compareReadme fails if the README has another table, unless something was left out.
func (tb *table) compareReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	printed := tb.String()
	if strings.Contains(printed, "SKIPPED") || strings.Contains(printed, notRun) {
		return
	}
	if !bytes.Contains(text, []byte(printed)) {
		t.Error("the README has another table")
	}
}
