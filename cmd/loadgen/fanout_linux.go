package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"syscall"
)

// fanout runs scenarios against the real programs and prints a row for each. It fails when
// something was wrong, never for being slow.
func fanout(ctx context.Context, w io.Writer, cfg benchConfig) error {
	b, err := newBench(cfg)
	if err != nil {
		return err
	}
	defer b.close()
	chosen := slices.DeleteFunc(scenarios(), func(s scenario) bool { return !b.only.MatchString(s.name) })
	if len(chosen) == 0 {
		return fmt.Errorf("--only %s: no scenario has such a name", cfg.only)
	}
	fmt.Fprintln(w, fanoutHeading)
	show := func(r *row) { fmt.Fprintln(w, r) }
	for _, s := range chosen {
		err := s.run(ctx, b, &s, show)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.fail(s.name, "%v", err)
			// What it has left behind is no start for the next one.
			b.daemon.stop(syscall.SIGKILL)
			b.relay.stop(syscall.SIGKILL)
			b.daemon, b.relay = nil, nil
		}
	}
	fmt.Fprintf(w, fanoutCaption, fmt.Sprintf("%.1f", 10/b.seconds.Seconds()))
	return b.verdict(w)
}

// undisturbed fails a scenario in which nobody should have been ended.
func (b *bench) undisturbed(r *row, swarms ...consumers) {
	if r.ended == nil {
		r.ended = map[string]int{}
	}
	for _, s := range swarms {
		for why, n := range s.endings() {
			r.ended[why] += n
		}
		for _, what := range s.inexact() {
			b.fail(r.name, "inexact: %s", what)
		}
	}
	if len(r.ended) > 0 || r.with.last.ended > 0 {
		b.fail(r.name, "connections ended: %s; by the daemon's own count %d", tally(r.ended), r.with.last.ended)
	}
}

// few makes a number small where figures mean nothing.
func (b *bench) few(n int) int {
	if b.smoke {
		return min(n, max(n/100, 3))
	}
	return n
}
