package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// scenario is one line of the table, or two that belong together.
type scenario struct {
	name      string
	consumers int
	rate      float64 // events per second of the relay
	run       func(ctx context.Context, b *bench, s *scenario, show func(*row)) error

	// Of those that load runs.
	specs  func(ctx context.Context, b *bench, n int) ([]spec, error)
	timed  bool // one consumer more, of everything, is timed
	filled bool // the window is full before, so that memory shows nothing but consumers
	target string
	judge  func(r *row) (measured string, met bool)
	than   string // the scenario that it is compared with, which comes before it
}

func scenarios() []scenario {
	var all []scenario
	for _, form := range []struct{ name, query string }{{"plain", ""}, {"zstd", "compress=true"}} {
		for _, c := range []struct {
			n    int
			most float64
		}{{12, 3}, {100, 0.9}, {1000, 0.7}} {
			all = append(all, scenario{
				name: fmt.Sprintf("a: %d of everything, %s", c.n, form.name), consumers: c.n, rate: 500, run: load,
				specs: alike(spec{query: form.query}), timed: true,
				target: fmt.Sprintf("%.1f µs/delivery", c.most), judge: perDelivery(c.most),
			})
		}
	}
	all = append(all, scenario{name: "b: saturation", consumers: 100, run: saturation})
	for _, c := range []struct {
		n    int
		most float64
	}{{1000, 2}, {10000, 5}} {
		all = append(all, scenario{
			name: fmt.Sprintf("c: %d whose wantedDids match nothing", c.n), consumers: c.n, rate: 1000, run: load, specs: strangers,
			target: fmt.Sprintf("%.0f %% of a core above none", c.most), judge: aboveNone(c.most),
		})
	}
	all = append(all, scenario{
		name: "d: 2000 bots", consumers: 2000, rate: 1000, run: load, specs: bots, timed: true,
		target: "0.7 µs/delivery, nothing per non-match", judge: func(r *row) (string, bool) {
			measured, met := perDelivery(0.7)(r)
			// The one that is timed wants everything.
			all := float64(r.with.events) * float64(r.consumers+1)
			return fmt.Sprintf("%s; %.1f %% above none, of all events %.1f %% were wanted", measured,
				r.with.percent(r.above()), 100*float64(r.with.messages)/all), met
		},
	})
	for _, n := range []int{1000, 10000} {
		all = append(all, scenario{
			name: fmt.Sprintf("e: %d idle", n), consumers: n, rate: 50, run: load, specs: strangers, filled: true,
			target: "12 KB/consumer", judge: func(r *row) (string, bool) {
				return fmt.Sprintf("%.1f KB/consumer", r.perConsumer()), r.perConsumer() <= 12
			},
		})
	}
	for _, form := range []string{"plain", "zstd"} {
		all = append(all, scenario{
			name: "i: 100 of everything, v2, " + form, consumers: 100, rate: 500, run: load, than: "a: 100 of everything, " + form,
			specs: func(ctx context.Context, b *bench, n int) ([]spec, error) {
				s := spec{v2: true}
				if form == "zstd" {
					id, _, err := b.v2Dictionary(ctx)
					if err != nil {
						return nil, err
					}
					s.query = "zstdDictionary=" + id
				}
				return slices.Repeat([]spec{s}, n), nil
			},
			timed: true, target: "1.5 × v1's", judge: func(r *row) (string, bool) {
				if r.than == 0 {
					return fmt.Sprintf("%.2f µs/delivery; v1 was not measured", r.perDelivery()), false
				}
				return fmt.Sprintf("%.2f µs/delivery, %.2f × v1's", r.perDelivery(), r.perDelivery()/r.than), r.perDelivery() <= 1.5*r.than
			},
		})
	}
	return append(all,
		scenario{name: "f: slow readers", consumers: 97, rate: 2000, run: slowReaders},
		scenario{name: "g: restart, SIGTERM", consumers: 2000, rate: 200, run: restart},
		scenario{name: "g: restart, kill -9", consumers: 2000, rate: 200, run: restart},
		scenario{name: "h: connect storm", consumers: 2000, rate: 500, run: storm},
	)
}

func perDelivery(most float64) func(*row) (string, bool) {
	return func(r *row) (string, bool) {
		return fmt.Sprintf("%.2f µs/delivery", r.perDelivery()), r.perDelivery() <= most
	}
}

func aboveNone(most float64) func(*row) (string, bool) {
	return func(r *row) (string, bool) {
		above := r.with.percent(r.above())
		passed := float64(r.with.events) * float64(r.consumers)
		return fmt.Sprintf("%.1f %%; %.3f µs per event and consumer", above, float64(r.above().Nanoseconds())/1000/passed), above <= most
	}
}

// load measures a fresh daemon without and then with consumers. Few of them cost less than
// what ingest costs wavers: then it is done in turn, several times.
func load(ctx context.Context, b *bench, s *scenario, show func(*row)) error {
	r := row{name: s.name, consumers: b.few(s.consumers), target: s.target, than: b.cost[s.than]}
	var err error
	if s.filled {
		err = b.filledDaemon(ctx, s.rate)
	} else if err = b.relayAt(ctx, s.rate); err == nil {
		err = b.freshDaemon(ctx)
	}
	if err != nil {
		return err
	}
	specs, err := s.specs(ctx, b, r.consumers)
	if err != nil {
		return err
	}
	rounds := 1
	if s.consumers <= 100 && !b.smoke {
		rounds = 3
	}
	for range rounds {
		if err := b.round(ctx, &r, specs, s.timed); err != nil {
			return err
		}
	}
	r.measured, r.met = s.judge(&r)
	b.cost[s.name] = r.perDelivery()
	show(&r)
	return nil
}

// v2Dictionary returns the dictionary that the v2 wire offers, and its id.
func (b *bench) v2Dictionary(ctx context.Context) (id string, dictionary []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/xrpc/network.bsky.jetstream.getZstdDictionary", b.port+1), nil)
	if err != nil {
		return "", nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", nil, fmt.Errorf("dictionary: %s", resp.Status)
	}
	dictionary, err = io.ReadAll(resp.Body)
	return resp.Header.Get("Zstd-Dictionary-Id"), dictionary, err
}

// round adds to a row what the daemon does without and then with consumers.
func (b *bench) round(ctx context.Context, r *row, specs []spec, timed bool) error {
	zero, err := b.alone(ctx)
	if err != nil {
		return err
	}
	if r.before == 0 {
		r.before = zero.last.rss
	}
	swarm, _, err := b.connect(ctx, calm, specs)
	if err != nil {
		return err
	}
	defer swarm.leave()
	swarms := []consumers{swarm}
	var late *lateness
	if timed {
		var reference consumers
		if reference, late, err = b.reference(ctx, spec{}); err != nil {
			return err
		}
		defer reference.leave()
		swarms = append(swarms, reference)
	}
	var with span
	if with, r.p50, r.p99, err = b.crowded(ctx, b.seconds, late, swarms...); err != nil {
		return err
	}
	r.zero, r.with = r.zero.plus(zero), r.with.plus(with)
	b.undisturbed(r, swarms...)
	return nil
}

// alike makes consumers that are all the same.
func alike(s spec) func(context.Context, *bench, int) ([]spec, error) {
	return func(_ context.Context, _ *bench, n int) ([]spec, error) { return slices.Repeat([]spec{s}, n), nil }
}

// stranger makes up a DID that the relay does not have.
func stranger(rng *rand.Rand) string {
	const base32 = "abcdefghijklmnopqrstuvwxyz234567"
	did := []byte("did:plc:")
	for range 24 {
		did = append(did, base32[rng.IntN(len(base32))])
	}
	return string(did)
}

// strangers are consumers of a repository each that the relay does not have.
func strangers(_ context.Context, _ *bench, n int) ([]spec, error) {
	rng := rand.New(rand.NewPCG(1, 1))
	specs := make([]spec, n)
	for i := range specs {
		specs[i].query = "wantedDids=" + stranger(rng)
	}
	return specs, nil
}

// botCollections is what bots want, by weight in a hundred. Likes are seven of ten events,
// posts and reposts one each, follows half as many; of the last group one comes every few
// seconds, or never.
var botCollections = []struct {
	weight int
	names  []string
}{
	{45, []string{"app.bsky.feed.post"}},
	{20, []string{"app.bsky.feed.like"}},
	{8, []string{"app.bsky.graph.follow"}},
	{5, []string{"app.bsky.feed.repost"}},
	{7, []string{"app.bsky.actor.profile", "app.bsky.graph.block", "app.bsky.graph.listitem", "app.bsky.feed.threadgate"}},
	{15, []string{"fm.teal.alpha.feed.play", "sh.tangled.feed.star", "com.whtwnd.blog.entry", "org.example.sample.opaque", "com.example.never"}},
}

// bots are consumers of one collection each. A third have wantedDids too, 1 to 500, few
// more often than many; half of those are repositories of the relay's.
func bots(ctx context.Context, b *bench, n int) ([]spec, error) {
	known, err := b.dids(ctx)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(2, 2))
	specs := make([]spec, n)
	for i := range specs {
		var query strings.Builder
		roll := rng.IntN(100)
		for _, c := range botCollections {
			if roll -= c.weight; roll < 0 {
				query.WriteString("wantedCollections=" + c.names[rng.IntN(len(c.names))])
				break
			}
		}
		if i%3 == 0 {
			for range int(math.Exp(rng.Float64() * math.Log(500))) {
				did := stranger(rng)
				if rng.IntN(2) == 0 {
					did = known[rng.IntN(len(known))]
				}
				query.WriteString("&wantedDids=" + did)
			}
		}
		specs[i].query = query.String()
	}
	return specs, nil
}

// dids listens for a while and returns the repositories that there were events of.
func (b *bench) dids(ctx context.Context) ([]string, error) {
	var mu sync.Mutex
	seen := map[string]bool{}
	listener, _, err := b.connect(ctx, calm, []spec{{saw: func(head []byte, _ int) {
		did := field(head, didField)
		if mu.Lock(); did != nil {
			seen[string(did)] = true
		}
		mu.Unlock()
	}}})
	if err != nil {
		return nil, err
	}
	err = sleep(ctx, b.settle)
	listener.leave()
	if err != nil {
		return nil, err
	}
	var all []string
	for did := range seen {
		all = append(all, did)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no event within %s", b.settle)
	}
	return all, nil
}

// filledDaemon starts a daemon, fills its window, and goes on at another rate. It is filled
// live: a burst would leave memory behind for consumers to move into.
func (b *bench) filledDaemon(ctx context.Context, rate float64) error {
	frames := 10_000
	if b.smoke {
		frames = 300
	}
	if err := b.relayWith(ctx, "--rate", "1000", "--total", fmt.Sprint(frames)); err != nil {
		return err
	}
	if err := b.freshDaemon(ctx, "--upstream-cursor", "0"); err != nil {
		return err
	}
	next := int64(firstSeq + frames)
	full, err := b.until(ctx, time.Minute, "the window is filled", func(s sample) bool { return s.seq >= next-1 })
	if err != nil {
		return err
	}
	if err := b.relayWith(ctx, "--rate", fmt.Sprint(rate/eventsPerFrame), "--first-seq", fmt.Sprint(next)); err != nil {
		return err
	}
	_, err = b.until(ctx, time.Minute, "the relay is back", func(s sample) bool { return s.events > full.events })
	return err
}

// firstSeq is the simulated relay's first one if it is not told another.
const firstSeq = 30_000_000_000
