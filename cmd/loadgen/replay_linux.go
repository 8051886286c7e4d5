package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A replayBench fills a buffer and has it replayed: alone, where only the buffer's reading
// counts, and beside a consumer that is live.
type replayBench struct {
	*bench
	w      io.Writer
	events int           // in the buffer, at least
	live   time.Duration // how long the other buffer is filled
	repeat int

	full   sample // of the daemon with its buffer
	census census
}

// replay prints a table for each part of what it measures, a row as soon as it is measured.
// Like fanout it fails for what is wrong, never for what is slow.
func replay(ctx context.Context, w io.Writer, cfg replayConfig) error {
	b, err := newBench(cfg.benchConfig)
	if err != nil {
		return err
	}
	defer b.close()
	r := &replayBench{bench: b, w: w, events: 3_000_000, live: 2 * time.Minute, repeat: 3}
	if b.smoke {
		r.events, r.live, r.repeat = 30_000, 5*time.Second, 1
	}
	if cfg.events > 0 {
		r.events = cfg.events
	}
	if cfg.liveSeconds > 0 {
		r.live = time.Duration(cfg.liveSeconds) * time.Second
	}
	if cfg.repeat > 0 {
		r.repeat = cfg.repeat
	}
	fmt.Fprintln(w, watchHeading)
	if b.only.MatchString("live buffer") {
		if err := r.liveBuffer(ctx); err != nil {
			b.fail("live buffer", "%v", err)
		}
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"buffer", r.buffer}, {"census", r.count}, {"replays", r.replays}, {"beside replays", r.beside}} {
		if err = part.run(ctx); err != nil {
			b.fail(part.name, "%v", err)
			break // the next one needs what this one makes
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return b.verdict(w)
}

// replayRate is that of a relay that is live, in events per second.
const replayRate = 500

// accounts are as many as have their turn in a buffer of the live network, in proportion:
// the simulated relay's own thousand would have every repository in every other chunk.
var accounts = []string{"--accounts", "100000"}

// liveBuffer fills a buffer as the live network does: in small chunks, each synced.
func (r *replayBench) liveBuffer(ctx context.Context) error {
	if err := r.relayWith(ctx, append(accounts, "--rate", fmt.Sprint(replayRate/eventsPerFrame))...); err != nil {
		return err
	}
	if err := r.freshDaemon(ctx); err != nil {
		return err
	}
	w := watch{pid: r.daemon.pid(), metrics: r.metricsURL(), began: time.Now()}
	w.until = w.began.Add(r.live)
	row, err := w.run(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(r.w, "| %.0f s live %s\n", r.live.Seconds(), row)
	return nil
}

// buffer fills the one that is replayed, at full speed. Its relay then stays connected and
// has nothing more to say.
func (r *replayBench) buffer(ctx context.Context) error {
	frames := int(float64(r.events)/eventsPerFrame*1.02) + 100
	if err := r.relayWith(ctx, append(accounts, "--rate", "0", "--total", fmt.Sprint(frames))...); err != nil {
		return err
	}
	w := watch{seq: int64(firstSeq + frames - 1), began: time.Now()}
	if err := r.freshDaemon(ctx, "--upstream-cursor", "0"); err != nil {
		return err
	}
	w.pid, w.metrics = r.daemon.pid(), r.metricsURL()
	row, err := w.run(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(r.w, "| at full speed %s\n", row)
	if err := sleep(ctx, r.settle); err != nil { // the store's compactions end
		return err
	}
	if r.full, err = r.look(ctx); err != nil {
		return err
	}
	if r.full.events < int64(r.events) {
		return fmt.Errorf("%d frames had %d events, want at least %d", frames, r.full.events, r.events)
	}
	return nil
}

// fromStart is the query of a consumer that is older than any buffer. As a tracker's cursor
// it would have to come again.
const fromStart = "cursor=1"

// count takes the census, which also brings the buffer into the kernel's cache, where a
// busy server has it.
func (r *replayBench) count(ctx context.Context) error {
	r.census = census{some: map[string]*wanted{}, byDID: map[string]*wanted{}}
	for _, f := range replayFilters {
		if f.collections != nil {
			r.census.some[f.name] = &wanted{collections: f.collections}
		}
	}
	// How many there are is the daemon's word; whether they all come is seen here.
	all := spec{query: fromStart, track: true, saw: r.census.saw, most: r.full.events - r.full.untold}
	if _, err := r.pass(ctx, []spec{all}); err != nil {
		return err
	}
	return r.census.err
}

// replayFilters are of each density that there is a way of passing over events for. No
// collection of the simulated relay's is a third of its events, so three are.
var replayFilters = []struct {
	name        string
	collections []string
}{
	{"everything", nil},
	{"posts, reposts and follows", []string{"app.bsky.feed.post", "app.bsky.feed.repost", "app.bsky.graph.follow"}},
	{"one collection", []string{"sh.tangled.feed.star"}},
	{"one DID", nil},
}

// replays measures everything of everyone.
func (r *replayBench) replays(ctx context.Context) error {
	fmt.Fprintln(r.w, replayHeading)
	defer fmt.Fprintf(r.w, replayCaption, r.census.events, r.repeat)
	for _, f := range replayFilters {
		want, query := &r.census.all, fromStart
		switch {
		case f.collections != nil:
			want = r.census.some[f.name]
			query += "&wantedCollections=" + strings.Join(f.collections, ",")
		case f.name == "one DID":
			did := r.census.someone()
			want = r.census.byDID[did]
			query += "&wantedDids=" + did
		}
		if want.tracker.count == 0 {
			return fmt.Errorf("%s: there is no such event", f.name)
		}
		if err := r.forms(ctx, f.name, spec{query: query}, "compress=true", r.census.events, want); err != nil {
			return err
		}
		if want != &r.census.all {
			continue
		}
		// The v2 wire has other bytes, and all events.
		id, _, err := r.v2Dictionary(ctx)
		if err != nil {
			return err
		}
		s := spec{query: query, v2: true, track: true, most: r.full.events}
		p, err := r.pass(ctx, []spec{s})
		if err != nil {
			return fmt.Errorf("v2: %w", err)
		}
		all := wanted{tracker: p.streams[0], passed: r.full.events}
		if all.tracker.count != r.full.events || all.tracker.last < want.tracker.last {
			return fmt.Errorf("v2: a consumer has %+v of %d events, on v1 %+v", all.tracker, r.full.events, want.tracker)
		}
		if err := r.forms(ctx, f.name+", v2", s, "zstdDictionary="+id, r.full.events, &all); err != nil {
			return err
		}
	}
	return nil
}

// forms measures a replay plain and compressed, to one consumer and to many.
func (r *replayBench) forms(ctx context.Context, name string, of spec, compressed string, events int64, want *wanted) error {
	for _, zstd := range []bool{false, true} {
		name, s := name+", plain", of
		s.track, s.most = true, want.tracker.count
		if zstd {
			name = strings.TrimSuffix(name, "plain") + "zstd"
			s.query += "&" + compressed
			s.track, s.sizes = false, true
		}
		if !r.only.MatchString(name) {
			continue
		}
		expect := want.tracker
		if zstd {
			var err error
			if expect, err = r.unpack(ctx, s, want.tracker); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		for _, n := range []int{1, r.crowd()} {
			row := replayRow{name: name, consumers: n, events: events, wanted: *want}
			for range r.repeat {
				p, err := r.pass(ctx, slices.Repeat([]spec{s}, n))
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				for _, got := range p.streams {
					if got != expect {
						r.fail(name, "a consumer has %+v, want %+v", got, expect)
						break
					}
				}
				row.passes = append(row.passes, p)
			}
			fmt.Fprintln(r.w, &row)
		}
	}
	return nil
}

// unpack has a compressed replay looked into, which takes longer than sending it does, and
// returns what the sizes alone must be of every one that is the same.
func (r *replayBench) unpack(ctx context.Context, s spec, plain tracker) (sizes tracker, err error) {
	// A daemon of a benchmark has one dictionary.
	_, dictionary, err := r.v2Dictionary(ctx)
	if err != nil {
		return tracker{}, err
	}
	u, err := newUnpacker(dictionary)
	if err != nil {
		return tracker{}, err
	}
	defer u.decoder.Close()
	s.saw, s.whole = u.saw, true
	p, err := r.pass(ctx, []spec{s})
	if err != nil {
		return tracker{}, err
	}
	if u.err != nil {
		return tracker{}, u.err
	}
	if u.tracker != plain {
		return tracker{}, fmt.Errorf("unpacked it is %+v, plain %+v", u.tracker, plain)
	}
	return p.streams[0], nil
}

// pass has consumers connect and get all that they are to get. They read on one thread,
// which takes a quarter of what the daemon does, and without a pause: while a reader sleeps,
// what its socket holds is not enough for a replay to go on with, and it was the pause, of
// however little, that set the pace of a single one.
func (r *replayBench) pass(ctx context.Context, specs []spec) (p pass, err error) {
	pid := r.daemon.pid()
	// The peak begins anew.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return p, err
	}
	busy, all, err := machineTicks()
	if err != nil {
		return p, err
	}
	began, own := time.Now(), ownCPU()
	if p.cpu, err = cpuOf(pid); err != nil {
		return p, err
	}
	swarm, _, err := r.connect(ctx, swarmConfig{}, specs)
	if err != nil {
		return p, err
	}
	defer swarm.leave()
	late := time.After(10 * time.Minute)
	for lost := time.Tick(100 * time.Millisecond); p.took == 0; {
		select {
		case <-swarm.complete:
			p.took = time.Since(began)
		case <-lost:
			if swarm.over.Load() > 0 {
				return p, fmt.Errorf("ended: %s; inexact: %v", tally(swarm.endings()), swarm.inexact())
			}
		case <-late:
			events, _ := swarm.totals()
			return p, fmt.Errorf("%d consumers have %d events each, but %d in all after 10 minutes", len(specs), specs[0].most, events)
		case <-ctx.Done():
			return p, ctx.Err()
		}
	}
	last, err := cpuOf(pid)
	if err != nil {
		return p, err
	}
	p.cpu, p.own = last-p.cpu, ownCPU()-own
	busyLast, allLast, err := machineTicks()
	if err != nil {
		return p, err
	}
	p.machine = 100 * float64(busyLast-busy) / float64(max(allLast-all, 1))
	var s sample
	if err := s.process(pid); err != nil {
		return p, err
	}
	p.peak = s.peak
	if err := sleep(ctx, 100*time.Millisecond); err != nil { // nothing more may come
		return p, err
	}
	swarm.leave()
	if ended := swarm.endings(); len(ended) > 0 {
		return p, fmt.Errorf("ended: %s", tally(ended))
	}
	p.streams = swarm.streams()
	return p, nil
}

// cpuOf returns what a process has used, of all its threads. A replay may be over in a
// tenth of a second, of which /proc/PID/stat sees ten ticks; this is the kernel's own clock.
func cpuOf(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED of the kernel's posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// beside times a live consumer, first alone and then while others replay the buffer over
// and over. Those read in a process of their own: at normal priority, and once more at a
// lower one. They would be other machines, so that what they take from the two that are
// timed, the daemon and the live consumer, is an error of the measurement; but a reader that
// waits also spares the daemon work. The truth is between the two.
func (r *replayBench) beside(ctx context.Context) error {
	type crowd struct {
		name, query string
		nice        bool
	}
	crowds := []crowd{{name: "live alone"}}
	for _, nice := range []bool{true, false} {
		for _, form := range []struct{ name, query string }{{"plain", fromStart}, {"zstd", fromStart + "&compress=true"}} {
			name := fmt.Sprintf("live beside %d replays, %s", r.crowd(), form.name)
			if nice {
				name += ", readers niced"
			}
			crowds = append(crowds, crowd{name, form.query, nice})
		}
	}
	crowds = slices.DeleteFunc(crowds, func(c crowd) bool { return !r.only.MatchString(c.name) })
	if len(crowds) == 0 {
		return nil
	}
	if err := r.relayWith(ctx, append(accounts, "--rate", fmt.Sprint(replayRate/eventsPerFrame), "--first-seq", fmt.Sprint(r.full.seq+1))...); err != nil {
		return err
	}
	if _, err := r.until(ctx, time.Minute, "the relay is back", func(s sample) bool { return s.events > r.full.events }); err != nil {
		return err
	}
	timed, late, err := r.reference(ctx, spec{})
	if err != nil {
		return err
	}
	defer timed.leave()
	fmt.Fprintln(r.w, besideHeading)
	var quiet float64
	for _, c := range crowds {
		row := besideRow{row: row{name: c.name}}
		if row.with, row.ms, err = r.besideOne(ctx, c.query, c.nice, timed, late); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if c.query == "" {
			quiet = row.ms[1]
		}
		row.quiet = quiet
		r.undisturbed(&row.row, timed)
		fmt.Fprintln(r.w, &row)
	}
	return nil
}

// crowd is how many replay at once.
func (r *replayBench) crowd() int { return r.few(20) }

// besideOne measures with one crowd, or with none if there is no query. It returns the
// median, p99, p99.9 and maximum of the lateness, in milliseconds.
func (r *replayBench) besideOne(ctx context.Context, query string, nice bool, timed consumers, late *lateness) (s span, ms []float64, err error) {
	var child *child
	if query != "" {
		self, err := os.Executable()
		if err != nil {
			return s, nil, err
		}
		args := []string{self, "consume", "--consumers", fmt.Sprint(r.crowd()), "--again", fmt.Sprint(r.census.events),
			"--url", fmt.Sprintf("ws://127.0.0.1:%d/subscribe?%s", r.port+1, query)}
		if nice {
			args = append([]string{"nice", "-n", "10"}, args...)
		}
		readers := exec.Command(args[0], args[1:]...)
		readers.Stderr = os.Stderr
		if child, err = launch(readers); err != nil {
			return s, nil, err
		}
		defer child.stop(syscall.SIGTERM)
		if _, err := r.until(ctx, 20*time.Second, "the readers are there", func(s sample) bool { return s.subscribers >= 1+r.crowd() }); err != nil {
			return s, nil, err
		}
	}
	if s, _, _, err = r.crowded(ctx, r.seconds, late, timed); err != nil {
		return s, nil, err
	}
	if child != nil {
		select {
		case <-child.done:
			return s, nil, fmt.Errorf("the readers ended by themselves: %v", child.err)
		default:
		}
	}
	if _, ms = late.percentiles(0.5, 0.99, 0.999, 1); ms == nil {
		return s, nil, errors.New("no commit was seen on both sides")
	}
	return s, ms, nil
}
