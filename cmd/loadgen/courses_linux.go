package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Scenarios that take a course of their own.

// saturation lets the daemon catch up with a relay that holds nothing back, from a stored
// cursor, while consumers want everything; then, without a relay, they replay it.
func saturation(ctx context.Context, b *bench, s *scenario, show func(*row)) error {
	const target = 1_500_000
	if err := b.relayWith(ctx, "--rate", "0", "--total", "1000"); err != nil {
		return err
	}
	if err := b.freshDaemon(ctx, "--upstream-cursor", "0"); err != nil {
		return err
	}
	stored, err := b.until(ctx, time.Minute, "a cursor is stored", func(s sample) bool { return s.seq >= firstSeq+999 })
	if err != nil {
		return err
	}
	if err := sleep(ctx, b.settle); err != nil {
		return err
	}
	b.daemon.stop(syscall.SIGTERM)
	if err := b.relayWith(ctx, "--rate", "0"); err != nil {
		return err
	}
	if err := b.startDaemon(ctx); err != nil {
		return err
	}
	specs := slices.Repeat([]spec{spec{}}, b.few(s.consumers))
	measure := func(r row, specs []spec) error {
		swarm, _, err := b.connect(ctx, swarmConfig{pause: swarmPause, loops: 2}, specs)
		if err != nil {
			return err
		}
		defer swarm.leave()
		if r.with, _, _, err = b.crowded(ctx, b.seconds, nil, swarm); err != nil {
			return err
		}
		b.undisturbed(&r, swarm)
		rate := float64(r.with.messages) / r.with.took.Seconds()
		r.consumers, r.target = len(specs), fmt.Sprintf("(at least) %d deliveries/s", target)
		r.measured, r.met = fmt.Sprintf("%.0f deliveries/s; %.2f µs of server CPU each, ingest included",
			rate, float64(r.with.cpu.Microseconds())/float64(max(r.with.messages, 1))), rate >= target
		show(&r)
		return nil
	}
	if err := measure(row{name: s.name + ", live while it catches up"}, specs); err != nil {
		return err
	}
	b.relay.stop(syscall.SIGTERM)
	b.relay = nil
	for i := range specs {
		specs[i].cursor = stored.cursor
	}
	return measure(row{name: s.name + ", replay of the same, no relay"}, specs)
}

// slowReaders measures what three slow consumers do to the others: nothing.
func slowReaders(ctx context.Context, b *bench, s *scenario, show func(*row)) error {
	if err := b.relayAt(ctx, s.rate); err != nil {
		return err
	}
	if err := b.freshDaemon(ctx); err != nil {
		return err
	}
	zero, err := b.alone(ctx)
	if err != nil {
		return err
	}
	timed, late, err := b.reference(ctx, spec{})
	if err != nil {
		return err
	}
	defer timed.leave()
	n := b.few(s.consumers)
	specs := slices.Repeat([]spec{spec{}}, n-1)
	normal, _, err := b.connect(ctx, calm, specs)
	if err != nil {
		return err
	}
	defer normal.leave()
	fast := row{name: fmt.Sprintf("f: %d normal readers", n), consumers: n, zero: zero, before: zero.last.rss, target: "–", met: true}
	if fast.with, fast.p50, fast.p99, err = b.crowded(ctx, b.seconds, late, timed, normal); err != nil {
		return err
	}
	b.undisturbed(&fast, timed, normal)
	fast.measured = fmt.Sprintf("p99 %.1f ms", fast.p99)
	show(&fast)

	slow, _, err := b.connect(ctx, calm, []spec{{paced: true, pace: 4, track: true}, {paced: true, pace: 100, track: true}, {paced: true, track: true}})
	if err != nil {
		return err
	}
	defer slow.leave()
	r := row{name: "f: and 4/s, 100/s, nothing at all", consumers: n + 3, zero: zero, before: fast.with.last.rss}
	long := 5 * b.seconds
	if b.smoke {
		long = 2 * b.seconds
	}
	if r.with, r.p50, r.p99, err = b.crowded(ctx, long, late, timed, normal, slow); err != nil {
		return err
	}
	var read []string
	for _, t := range slow.streams() {
		read = append(read, fmt.Sprint(t.count))
	}
	// Then they read as fast as they can: nothing may be missing in between.
	slow.hurry()
	caughtUp := func(s sample) bool {
		if slow.over.Load() > 0 {
			return true // one never will
		}
		for _, t := range slow.streams() {
			if t.last < s.cursor-time.Second.Microseconds() {
				return false
			}
		}
		return true
	}
	began := time.Now()
	if _, err := b.until(ctx, 2*time.Minute, "slow consumers have caught up", caughtUp); err != nil {
		b.fail(r.name, "%v", err)
	}
	b.undisturbed(&r, timed, normal, slow)
	r.target = "nobody ended, p99 unchanged, memory flat"
	r.measured = fmt.Sprintf("p99 %.1f → %.1f ms, RSS %.0f → %.0f MB; they read %s in %.0f s, and the rest in %.1f s", fast.p99, r.p99,
		r.before, r.with.last.rss, strings.Join(read, ", "), r.with.took.Seconds(), time.Since(began).Seconds())
	// What a noisy machine does to a p99, and what replays keep in memory (16 MB).
	r.met = len(r.ended) == 0 && r.p99 <= fast.p99*1.25+2 && r.with.last.rss <= r.before+20
	show(&r)
	return nil
}

// restart ends the daemon under consumers that come back with their cursors.
func restart(ctx context.Context, b *bench, s *scenario, show func(*row)) error {
	signal := syscall.SIGTERM
	if strings.Contains(s.name, "-9") {
		signal = syscall.SIGKILL
	}
	if err := b.relayAt(ctx, s.rate); err != nil {
		return err
	}
	if err := b.freshDaemon(ctx); err != nil {
		return err
	}
	r := row{name: s.name, consumers: b.few(s.consumers), target: "everyone exact, latency back within seconds"}
	var err error
	if r.zero, err = b.alone(ctx); err != nil {
		return err
	}
	r.before = r.zero.last.rss
	from := spec{track: true, cursor: r.zero.last.cursor}
	specs := slices.Repeat([]spec{from}, r.consumers)
	swarm, _, err := b.connect(ctx, swarmConfig{rate: calm.rate, pause: calm.pause, resume: true}, specs)
	if err != nil {
		return err
	}
	defer swarm.leave()
	timed, late, err := b.reference(ctx, from)
	if err != nil {
		return err
	}
	defer timed.leave()
	if r.with, r.p50, r.p99, err = b.crowded(ctx, b.seconds, late, swarm, timed); err != nil {
		return err
	}

	stopping := time.Now()
	b.daemon.stop(signal)
	starting := time.Now()
	if err := b.startDaemon(ctx); err != nil {
		return err
	}
	for swarm.open.Load() < int64(r.consumers) || timed.open.Load() < 1 {
		if time.Since(starting) > time.Minute {
			return fmt.Errorf("%d of %d consumers came back in a minute; ended: %s", swarm.open.Load(), r.consumers, tally(swarm.endings()))
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	back := time.Since(starting)
	after, err := b.measure(ctx, max(b.seconds, time.Second), swarm, timed)
	if err != nil {
		return err
	}
	limit := time.Duration(2 * r.p99 * float64(time.Millisecond))
	normal, settled := late.settled(starting, max(limit, 100*time.Millisecond))
	r.ended = swarm.endings()
	events, exact, err := b.exact(ctx, r.name, from, swarm, timed)
	if err != nil {
		return err
	}
	r.measured = fmt.Sprintf("%d of %d exact over %d events; down for %.2f s, all back %.2f s after the start, ",
		exact, r.consumers+1, events, starting.Sub(stopping).Seconds(), back.Seconds())
	if settled {
		r.measured += fmt.Sprintf("latency after %.1f s", normal.Seconds())
	} else {
		r.measured += fmt.Sprintf("latency not within %.0f s", time.Since(starting).Seconds())
	}
	r.measured += fmt.Sprintf("; RSS of the new process %.0f MB, peak %.0f", after.last.rss, after.last.peak)
	r.met = exact == r.consumers+1 && settled && normal < 5*time.Second
	show(&r)
	return nil
}

// exact stops the relay, waits until everyone has everything, and compares each consumer
// that began at from with one that replays the same in one go. It returns how many events
// that were and how many consumers agree.
func (b *bench) exact(ctx context.Context, name string, from spec, swarms ...consumers) (events int64, exact int, err error) {
	b.relay.stop(syscall.SIGTERM)
	b.relay = nil
	if err := sleep(ctx, max(b.settle, 500*time.Millisecond)); err != nil { // what is on its way is committed
		return 0, 0, err
	}
	replay, _, err := b.connect(ctx, calm, []spec{from})
	if err != nil {
		return 0, 0, err
	}
	defer replay.leave()
	end := func(s sample) bool {
		for _, c := range append(swarms, replay) {
			for _, t := range c.streams() {
				if t.last != s.cursor {
					return false
				}
			}
		}
		return true
	}
	if _, err := b.until(ctx, 30*time.Second, "everyone is at the end", end); err != nil {
		b.fail(name, "%v", err)
	}
	want := replay.streams()[0]
	for _, c := range append(swarms, replay) {
		for _, what := range c.inexact() {
			b.fail(name, "inexact: %s", what)
		}
	}
	for _, c := range swarms {
		for _, got := range c.streams() {
			if got == want {
				exact++
			} else if len(b.wrong) < maxReasons {
				b.fail(name, "inexact: a consumer has %d events until %d, a replay of the same %d until %d", got.count, got.last, want.count, want.last)
			}
		}
	}
	return want.count, exact, nil
}

// storm connects many consumers within a second, and has them leave.
func storm(ctx context.Context, b *bench, s *scenario, show func(*row)) error {
	if err := b.relayAt(ctx, s.rate); err != nil {
		return err
	}
	if err := b.freshDaemon(ctx); err != nil {
		return err
	}
	r := row{name: s.name, consumers: b.few(s.consumers), target: "all served, no leak"}
	var err error
	if r.zero, err = b.alone(ctx); err != nil {
		return err
	}
	before := r.zero.last
	r.before = before.rss
	specs := slices.Repeat([]spec{spec{}}, r.consumers)
	swarm, took, err := b.connect(ctx, swarmConfig{rate: float64(r.consumers), pause: swarmPause}, specs)
	if err != nil {
		return err
	}
	defer swarm.leave()
	if r.with, _, _, err = b.crowded(ctx, min(b.seconds, 5*time.Second), nil, swarm); err != nil {
		return err
	}
	b.undisturbed(&r, swarm)
	swarm.leave()
	left := time.Now()
	gone := func(s sample) bool {
		return s.goroutines <= before.goroutines+4 && s.descriptors <= before.descriptors+4
	}
	after, err := b.until(ctx, 30*time.Second, "no leak: goroutines and descriptors are what they were", gone)
	if err != nil {
		b.fail(s.name, "%v", err)
	}
	until := time.Since(left)
	if err := sleep(ctx, b.settle); err != nil {
		return err
	}
	if after, err = b.look(ctx); err != nil {
		return err
	}
	during := r.with.last
	r.measured = fmt.Sprintf("%d served in %.2f s, gone %.2f s after they left; goroutines %d → %d → %d, descriptors %d → %d → %d, RSS %.0f → %.0f → %.0f MB",
		during.subscribers, took.Seconds(), until.Seconds(), before.goroutines, during.goroutines, after.goroutines,
		before.descriptors, during.descriptors, after.descriptors, before.rss, during.rss, after.rss)
	r.met = during.subscribers == r.consumers && gone(after)
	show(&r)
	return nil
}
