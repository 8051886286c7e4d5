package soak

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"slipstream/dictionaries"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// soakEnv is for how long, a Go duration: make soak.
const soakEnv = "SLIPSTREAM_SOAK"

const (
	rate    = 300 // frames per second
	ttl     = time.Minute
	maxDisk = 500_000_000
	// stall is how long a consumer may take nothing.
	stall = 30 * time.Second
	// long is a soak in which everything must have happened, and growth would show.
	long = 30 * time.Minute
)

// versions are those of the builds that replace each other.
var versions = []string{"soak-even", "soak-odd"}

// soak is what the test's goroutines share.
type soak struct {
	t        *testing.T
	began    time.Time
	length   time.Duration
	relay    *simrelay.Relay
	total    int64 // frames that it sends
	truth    *truth
	dir      string // of the data
	binary   string // that is installed
	builds   []string
	daemon   *testproc.Daemon
	addr     string // of the daemon, for consumers
	admin    string
	faithful []*consumer

	ctx    context.Context
	cancel context.CancelFunc

	calm sync.Mutex // held while the relay is made to misbehave, and around restarts

	// life grows as the daemon is about to end, has ended and serves again: see serves.
	life   atomic.Int64
	ending atomic.Int64 // the signal that the last life ended with

	disk []int64 // bytes of the data dir, every second

	did struct { // what has happened
		visits, events, turns, skipped, tooOld, fellOff, reset, stalled, rude atomic.Int64
		cuts, stalls, faults, restarts, kills, verified, unclean              atomic.Int64
	}
	silence map[string][]time.Duration // by kind of restart

	mu    sync.Mutex // guards wrong
	wrong []string
}

// serves reports whether a daemon is there that nobody has asked to end.
func serves(life int64) bool { return life%3 == 0 }

// sent reports whether the relay has sent its last frame.
func (s *soak) sent() bool { return s.relay.LastSeq() == simrelay.DefaultFirstSeq+s.total-1 }

// fail notes what is wrong and ends the soak.
func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() == nil || len(s.wrong) == 0 { // what follows from that is no news
		s.wrong = append(s.wrong, fmt.Sprintf("%s: ", time.Since(s.began).Round(time.Second))+fmt.Sprintf(format, args...))
	}
	s.cancel()
}

// TestSoak: see the package comment.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv(soakEnv))
	if err != nil {
		t.Skipf("%s says for how long, such as 30s", soakEnv)
	}
	s := &soak{t: t, length: length, dir: t.TempDir(), silence: map[string][]time.Duration{}}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	defer s.cancel()
	for _, version := range versions {
		s.builds = append(s.builds, testproc.Build(t, "slipstream", "-X main.version="+version))
	}
	s.binary = filepath.Join(t.TempDir(), "slipstream")
	s.install(0)

	s.began = time.Now()
	seed := uint64(s.began.UnixNano())
	t.Logf("seed %d", seed)
	s.total = int64(rate * length.Seconds())
	relay, upstream := testproc.Relay(t, simrelay.Config{
		Seed: seed, Rate: rate, WallClock: true, Total: s.total, History: 20_000, Remember: keepEntries,
	})
	s.relay, s.truth = relay, newTruth(relay, ttl, s.ctx.Done())
	s.daemon = testproc.Serve(t, s.binary, upstream, s.dir, "--event-ttl", ttl.String(), "--max-disk", fmt.Sprint(maxDisk),
		"--min-free-disk", "0%", "--stall-timeout", stall.String(), "--window-bytes", fmt.Sprint(1<<20))
	s.addr, s.admin = s.daemon.Addr, s.daemon.Admin

	var everybody sync.WaitGroup
	s.recruit(rand.New(rand.NewPCG(seed, 1)))
	for _, c := range s.faithful {
		everybody.Go(func() { s.follow(c) })
	}
	relayDone := make(chan struct{})
	go func() {
		defer close(relayDone)
		s.upset(rand.New(rand.NewPCG(seed, 2)))
	}()
	defer func() {
		s.cancel()
		everybody.Wait()
		<-relayDone
		for _, what := range s.wrong {
			t.Error(what)
		}
	}()
	looks := s.run(rand.New(rand.NewPCG(seed, 3)))
	<-relayDone
	s.end()
	for _, c := range s.faithful {
		s.count(c)
	}
	if s.length >= long && s.ctx.Err() == nil {
		s.missed()
		for _, what := range grown(looks, s.disk) {
			t.Error(what)
		}
	}
	s.table(looks)
}

// install puts one of the builds in place of the program, as install(1) does.
func (s *soak) install(i int) {
	b, err := os.ReadFile(s.builds[i%len(s.builds)])
	if err == nil {
		os.Remove(s.binary)
		err = os.WriteFile(s.binary, b, 0o755)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// recruit makes the consumers that stay all the time: some of everything, some of each filter.
func (s *soak) recruit(rng *rand.Rand) {
	add := func(name string, w wire, query string, f filter) *consumer {
		c := newConsumer(s.truth, name, w, query, f)
		c.lives = &s.life
		s.faithful = append(s.faithful, c)
		return c
	}
	add("witness", v2, "", filter{}).first = true
	for range 2 {
		add("everything", v1, "", filter{})
		add("everything, zstd", v1, "&compress=true", filter{})
	}
	add("everything, v2", v2, "", filter{})
	add("everything, v2, zstd", v2, s.zstd(v2), filter{})
	for i, names := range [][]string{{"app.bsky.feed.like"}, {"app.bsky.feed.post"}, {"app.bsky.feed.repost", "app.bsky.graph.*"}, {"sh.*"}, {"com.example.never"}} {
		f := filter{collections: names}
		w := wire(i % 2)
		add(fmt.Sprint(names), w, "", f)
		add(fmt.Sprint(names, " zstd"), 1-w, s.zstd(1-w), f)
	}
	add("accounts and identities", v2, "", filter{kinds: []string{"account", "identity", "sync"}})
	for i := range 6 {
		// Whom there are events of is known when there are some.
		testproc.WaitFor(s.t, "events", func() bool { return s.relay.LastSeq() > simrelay.DefaultFirstSeq+100 })
		f := filter{dids: map[string]bool{}}
		for range 1 << (2 * i % 8) {
			if all := s.relay.Expected(simrelay.DefaultFirstSeq + rng.Int64N(100)); len(all) > 0 {
				f.dids[all[0].DID] = true
			}
		}
		if len(f.dids) == 0 {
			f.dids["did:plc:nobody"] = true
		}
		w := wire(i % 2)
		add(fmt.Sprintf("%d repositories", len(f.dids)), w, []string{"", s.zstd(w)}[i/2%2], f)
	}
	for i := range 4 {
		c := add("another filter every few seconds", v1, []string{"", "&compress=true"}[i%2], s.anyFilter(rng, v1))
		c.rng = rand.New(rand.NewPCG(rng.Uint64(), 0))
	}
}

func (s *soak) zstd(w wire) string {
	if w == v2 {
		return fmt.Sprintf("&zstdDictionary=%d", currentID())
	}
	return "&compress=true"
}

// currentID is the number of our own dictionary, which stands in its header (RFC 8878, section 5).
func currentID() uint32 {
	d := dictionaries.Current()
	return uint32(d[4]) | uint32(d[5])<<8 | uint32(d[6])<<16 | uint32(d[7])<<24
}

var manyCollections = []string{"app.bsky.feed.like", "app.bsky.feed.post", "app.bsky.feed.repost", "app.bsky.graph.*", "app.bsky.actor.*"}

// anyFilter makes up a filter.
func (s *soak) anyFilter(rng *rand.Rand, w wire) filter {
	var f filter
	if rng.IntN(3) > 0 {
		f.collections = []string{manyCollections[rng.IntN(len(manyCollections))]}
	}
	if rng.IntN(4) == 0 {
		f.dids = map[string]bool{}
		for _, did := range s.truth.dids(rng.IntN(100), 1+rng.IntN(200)) {
			f.dids[did] = true
		}
	}
	if w == v2 && rng.IntN(4) == 0 {
		f.kinds = []string{"commit"}
	}
	return f
}

// otherFilter makes up a filter that events tell from the one that a consumer has. The caller
// holds its lock.
func (s *soak) otherFilter(c *consumer) filter {
	for {
		f := filter{collections: []string{manyCollections[c.rng.IntN(len(manyCollections))]}}
		if c.rng.IntN(6) == 0 {
			f.collections = nil
		}
		if c.rng.IntN(3) == 0 {
			f.dids = map[string]bool{}
			for _, did := range s.truth.dids(c.rng.IntN(100), 300) {
				f.dids[did] = true
			}
		}
		if !slices.Equal(f.collections, c.check.filter.collections) {
			return f
		}
	}
}

// follow keeps a faithful consumer connected until the soak is over.
func (s *soak) follow(c *consumer) {
	for s.ctx.Err() == nil {
		life := s.life.Load()
		ctx, cancel := context.WithCancel(s.ctx)
		var turning sync.WaitGroup
		if c.rng != nil {
			turning.Go(func() { s.turn(ctx, c) })
		}
		err := c.session(ctx, s.addr, true)
		cancel()
		turning.Wait()
		switch {
		case s.ctx.Err() != nil:
			return
		case errors.Is(err, errTooOld) && len(c.check.filter.dids) > 0:
			// Nothing that it wants has come for so long: it goes on with what there is.
			c.mu.Lock()
			c.check.pos = -1
			c.mu.Unlock()
		case errors.Is(err, errWrong), errors.Is(err, errFellOff), errors.Is(err, errTooOld):
			s.fail("%s: %v", c.name, err)
		case serves(life) && s.life.Load() == life:
			s.fail("%s: the connection ended, and nobody had asked the daemon to: %v", c.name, err)
		case errors.Is(err, errBroken) && s.ending.Load() == int64(syscall.SIGTERM):
			s.did.unclean.Add(1)
		}
		select {
		case <-s.ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// turn asks for another filter every few seconds, and waits until events have shown it.
func (s *soak) turn(ctx context.Context, c *consumer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(500+c.rng.IntN(4000)) * time.Millisecond):
		}
		ws := c.ws.Load()
		c.mu.Lock()
		if ws == nil || !c.check.settled() {
			c.mu.Unlock()
			continue
		}
		next := s.otherFilter(c)
		c.check.turn(next)
		c.mu.Unlock()
		payload := map[string]any{"wantedCollections": next.collections}
		if len(next.dids) > 0 {
			var dids []string
			for did := range next.dids {
				dids = append(dids, did)
			}
			payload["wantedDids"] = dids
		}
		if ws.WriteJSON(map[string]any{"type": "options_update", "payload": payload}) != nil {
			return
		}
	}
}

// upset makes the relay misbehave until the soak is over.
func (s *soak) upset(rng *rand.Rand) {
	defer s.relay.SetFaults(simrelay.Faults{})
	kinds := slices.DeleteFunc(slices.Clone(simrelay.AllFaults), func(f simrelay.Fault) bool { return f == simrelay.ErrorFrame || f == simrelay.Oversized })
	pause := min(s.length/60, 12*time.Second)
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause/4 + rand.N(pause)):
		}
		if time.Since(s.began) > s.length {
			return
		}
		s.calm.Lock()
		switch rng.IntN(6) {
		case 0, 1:
			s.relay.Cut()
			s.did.cuts.Add(1)
		case 2:
			d := rand.N(min(3*time.Second, s.length/20))
			s.relay.Stall(d)
			time.Sleep(d)
			s.did.stalls.Add(1)
		case 3:
			s.relay.SetFaults(simrelay.Faults{Rate: 0.02, Kinds: kinds})
			s.did.faults.Add(1)
		case 4:
			s.relay.SetFaults(simrelay.Faults{Rate: 0.002, Kinds: []simrelay.Fault{simrelay.ErrorFrame, simrelay.Oversized}})
			s.did.faults.Add(1)
		case 5:
			s.relay.SetFaults(simrelay.Faults{CutAfter: 200 + rng.Int64N(2000)})
			s.did.faults.Add(1)
		}
		s.calm.Unlock()
	}
}

// A look is what the daemon takes when only the faithful consumers are there.
type look struct {
	at                      time.Time
	cpu                     float64 // seconds
	goroutines, descriptors float64
	heap, rss               float64 // MB
}

// run is the soak: short lives, a long one, short ones. It returns what was looked at.
func (s *soak) run(rng *rand.Rand) (looks []look) {
	var visitors sync.WaitGroup
	stop := func() {}
	begin := func() {
		var ctx context.Context
		ctx, stop = context.WithCancel(s.ctx)
		for range 20 {
			own := rand.New(rand.NewPCG(rng.Uint64(), 0))
			visitors.Go(func() { s.visit(ctx, own) })
		}
		for i := range 6 {
			own := rand.New(rand.NewPCG(rng.Uint64(), 0))
			visitors.Go(func() { s.crawl(ctx, own, wire(i%2)) })
		}
		visitors.Go(func() { s.doze(ctx) })
		own := rand.New(rand.NewPCG(rng.Uint64(), 0))
		visitors.Go(func() { s.misbehave(ctx, own) })
	}
	end := func() {
		stop()
		visitors.Wait()
	}
	defer func() { end() }()

	s.together()
	begin()
	var restart, looking, measured, told time.Time
	for s.ctx.Err() == nil && time.Since(s.began) < s.length {
		now := time.Now()
		passed := now.Sub(s.began)
		alone := passed > s.length/4 && passed < s.length*3/4 // the long life
		switch {
		case alone && looking.IsZero():
			looking = now.Add(s.length / 24)
		case alone && now.After(looking):
			end()
			looks = append(looks, s.look(looks))
			s.verify()
			begin()
			looking = now.Add(max(s.length/24, 3*time.Second))
		case !alone && now.After(restart):
			if !restart.IsZero() {
				s.restart(rng)
			}
			short := max(s.length/60, 2*time.Second)
			restart = time.Now().Add(short/6 + rand.N(short))
		}
		if now.Sub(measured) > time.Second {
			measured = now
			s.measure()
		}
		if now.Sub(told) > min(time.Minute, s.length/4) {
			told = now
			s.progress()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return looks
}

// together waits until the faithful consumers are connected.
func (s *soak) together() {
	testproc.WaitFor(s.t, "the faithful consumers to be connected", func() bool {
		for _, c := range s.faithful {
			if s.ctx.Err() == nil && (c.ws.Load() == nil || c.life.Load() < s.life.Load()-1) {
				return false
			}
		}
		return true
	})
}

// restart ends the daemon, in order or not, and starts the next build.
func (s *soak) restart(rng *rand.Rand) {
	s.calm.Lock()
	defer s.calm.Unlock()
	n := s.did.restarts.Add(1)
	kind, signal := "SIGTERM", syscall.SIGTERM
	if n%2 == 0 {
		kind, signal = "kill -9", syscall.SIGKILL
		s.did.kills.Add(1)
	}
	s.relay.SetFaults(simrelay.Faults{}) // whose silences are not the daemon's
	everything := s.faithful[:7]
	s.install(int(n))
	s.ending.Store(int64(signal))
	s.life.Add(1)
	for _, c := range everything { // how long the relay has kept silent before does not count
		c.at.Store(time.Now().UnixNano())
		c.silence.Store(0)
	}
	if signal == syscall.SIGTERM {
		s.daemon.End(s.t)
	} else {
		s.daemon.Kill(s.t)
	}
	s.life.Add(1)
	if n%6 == 0 { // while it opens the store, or takes up the stream again
		kind += " twice"
		p := testproc.Start(s.t, exec.Command(s.daemon.Cmd.Args[0], s.daemon.Cmd.Args[1:]...))
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		p.Kill(s.t)
	}
	s.daemon.Start(s.t)
	s.life.Add(1)
	s.together()
	back := time.Now().UnixNano()
	var longest time.Duration
	for _, c := range everything {
		testproc.WaitFor(s.t, "events after a restart", func() bool { return c.at.Load() > back || s.sent() || s.ctx.Err() != nil })
		longest = max(longest, time.Duration(c.silence.Load()))
	}
	if !s.sent() {
		s.silence[kind] = append(s.silence[kind], longest)
	}
	version := fmt.Sprintf(`version="%s"`, versions[n%2])
	if !slices.ContainsFunc(slices.Collect(maps.Keys(s.daemon.Metrics(s.t))), func(name string) bool {
		return strings.HasPrefix(name, "slipstream_build_info") && strings.Contains(name, version)
	}) {
		s.fail("after an upgrade slipstream_build_info has no %s", version)
	}
	s.verify()
}

// look waits until only the faithful consumers are there and the daemon has come to rest.
func (s *soak) look(before []look) look {
	s.together()
	var m map[string]float64
	testproc.WaitFor(s.t, "only the faithful consumers to be there, and no goroutine of others", func() bool {
		m = s.daemon.Metrics(s.t)
		return s.ctx.Err() != nil || m["slipstream_subscribers"] == float64(len(s.faithful)) &&
			(len(before) == 0 || m["go_goroutines"] <= before[0].goroutines+4)
	})
	if !testproc.Answers("http://" + s.admin + "/debug/pprof/heap?gc=1") {
		s.fail("no heap profile")
	}
	m = s.daemon.Metrics(s.t)
	return look{
		at: time.Now(), cpu: m["process_cpu_seconds_total"], goroutines: m["go_goroutines"], descriptors: m["process_open_fds"],
		heap: m["go_memstats_alloc_bytes"] / 1e6, rss: m["process_resident_memory_bytes"] / 1e6,
	}
}

// verify has the store read and checked beside the daemon.
func (s *soak) verify() {
	args := []string{"verify", "--data-dir", s.dir, "--metrics-listen-addr", s.admin}
	out, err := exec.CommandContext(s.ctx, s.binary, args...).CombinedOutput()
	if s.ctx.Err() == nil && (err != nil || !strings.Contains(string(out), "no violation")) {
		s.fail("verify: %v: %s", err, out)
	}
	s.did.verified.Add(1)
}

// measure notes the size of the data dir.
func (s *soak) measure() {
	var used int64
	filepath.WalkDir(s.dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				used += info.Size()
			}
		}
		return nil // a file may be gone meanwhile
	})
	s.disk = append(s.disk, used)
	if used > maxDisk {
		s.fail("the data dir has %d bytes, more than --max-disk", used)
	}
}

// count adds up what a consumer has received.
func (s *soak) count(c *consumer) {
	events, turns, skipped := c.counts()
	s.did.events.Add(int64(events))
	s.did.turns.Add(int64(turns))
	s.did.skipped.Add(int64(skipped))
}

// end waits until everybody has everything, ends the daemon, and has its store checked.
func (s *soak) end() {
	if s.ctx.Err() != nil {
		return
	}
	s.together()
	testproc.WaitFor(s.t, "the relay's last event", func() bool {
		return s.ctx.Err() != nil || s.sent() && s.truth.complete()
	})
	for _, c := range s.faithful {
		testproc.WaitFor(s.t, c.name+" to be at the end", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return s.ctx.Err() != nil || c.check.atEnd()
		})
	}
	if s.ctx.Err() != nil {
		return
	}
	s.life.Add(1)
	s.daemon.End(s.t)
	out, err := exec.Command(s.binary, "verify", "--data-dir", s.dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "no violation") {
		s.fail("verify: %v: %s", err, out)
	}
	s.did.verified.Add(1)
}
