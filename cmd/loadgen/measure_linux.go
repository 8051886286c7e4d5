package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// consumers is a swarm that runs.
type consumers struct {
	*swarm
	leave func() // returns when they are gone
}

// connect starts consumers and returns when all are connected, and how long that took.
func (b *bench) connect(ctx context.Context, config swarmConfig, specs []spec) (consumers, time.Duration, error) {
	target, err := url.Parse("ws://127.0.0.1:" + strconv.Itoa(b.port+1) + "/subscribe")
	if err != nil {
		return consumers{}, 0, err
	}
	config.target = target
	s, err := newSwarm(config, specs)
	if err != nil {
		return consumers{}, 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	c := consumers{s, func() {
		cancel()
		if err := <-done; err != nil {
			b.wrong = append(b.wrong, err.Error())
		}
		done <- nil
	}}
	took, err := c.connected(ctx, time.Minute)
	if err != nil {
		c.leave()
		return c, 0, err
	}
	return c, took, nil
}

// calm is what most consumers are: in no hurry, on one thread.
var calm = swarmConfig{rate: 2000, pause: swarmPause}

// reference starts the consumer that is timed.
func (b *bench) reference(ctx context.Context, s spec) (consumers, *lateness, error) {
	late := newLateness()
	ctx, cancel := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		if err := late.follow(ctx, b.relayURL()); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "loadgen: the relay's own stream:", err)
		}
	}()
	s.saw = late.arrived
	c, _, err := b.connect(ctx, swarmConfig{resume: s.track}, []spec{s})
	leave := c.leave
	c.leave = func() {
		if leave != nil {
			leave()
		}
		cancel()
		<-followed
	}
	if err != nil {
		c.leave()
	}
	return c, late, err
}

// measure watches the daemon for some time.
func (b *bench) measure(ctx context.Context, d time.Duration, swarms ...consumers) (span, error) {
	messages := func() (n int64) {
		for _, s := range swarms {
			got, _ := s.totals()
			n += got
		}
		return n
	}
	first, err := b.look(ctx)
	if err != nil {
		return span{}, err
	}
	before, own := messages(), ownCPU()
	busy, all, err := machineTicks()
	if err != nil {
		return span{}, err
	}
	if err := sleep(ctx, d); err != nil {
		return span{}, err
	}
	got := messages() - before
	own = ownCPU() - own
	busyLast, allLast, err := machineTicks()
	if err != nil {
		return span{}, err
	}
	last, err := b.look(ctx)
	if err != nil {
		return span{}, err
	}
	return span{took: last.at.Sub(first.at), cpu: last.cpu() - first.cpu(), own: own, events: last.events - first.events,
		messages: got, sent: last.sent - first.sent, machine: 100 * float64(busyLast-busy) / float64(max(allLast-all, 1)), last: last}, nil
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // it has no way to fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// machineTicks reads from /proc/stat what all processors have spent, and how much of it was
// not idle.
func machineTicks() (busy, all int64, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, text := range strings.Fields(line)[1:] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i >= 8 {
			break // guests, which are counted in the first two
		}
		if all += n; i != 3 && i != 4 { // idle, and waiting for a disk
			busy += n
		}
	}
	return busy, all, nil
}

// alone measures the daemon without consumers.
func (b *bench) alone(ctx context.Context) (span, error) {
	if err := sleep(ctx, b.settle); err != nil {
		return span{}, err
	}
	d := b.seconds
	if !b.smoke {
		d = max(d, 10*time.Second)
	}
	return b.measure(ctx, d)
}

// crowded measures the daemon when consumers have been connected for a moment.
func (b *bench) crowded(ctx context.Context, d time.Duration, late *lateness, swarms ...consumers) (s span, p50, p99 float64, err error) {
	if err := sleep(ctx, b.settle); err != nil {
		return s, 0, 0, err
	}
	if late != nil {
		late.reset()
	}
	if s, err = b.measure(ctx, d, swarms...); err != nil || late == nil {
		return s, 0, 0, err
	}
	if _, ms := late.percentiles(0.5, 0.99); ms != nil {
		p50, p99 = ms[0], ms[1]
	}
	return s, p50, p99, nil
}
