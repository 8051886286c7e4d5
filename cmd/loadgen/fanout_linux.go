package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// fanout runs scenarios against the real programs and prints a row for each. It fails when
// something was wrong, never for being slow.
func fanout(ctx context.Context, w io.Writer, cfg fanoutConfig) error {
	only, err := regexp.Compile(cfg.only)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	// The kernel kills children with the thread that started them. The main goroutine's
	// lasts until the end.
	runtime.LockOSThread()
	b := &bench{bin: cfg.bin, port: cfg.port, seconds: time.Duration(cfg.seconds) * time.Second,
		settle: 3 * time.Second, smoke: cfg.smoke, flags: cfg.flags}
	if b.smoke {
		b.settle = 200 * time.Millisecond
	}
	if cfg.seconds <= 0 {
		b.seconds = 20 * time.Second
		if b.smoke {
			b.seconds = 500 * time.Millisecond
		}
	}
	if b.dir, err = os.MkdirTemp("", "loadgen-"); err != nil {
		return err
	}
	defer b.close()
	chosen := slices.DeleteFunc(scenarios(), func(s scenario) bool { return !only.MatchString(s.name) })
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
	if len(b.wrong) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nWrong:")
	for _, what := range b.wrong {
		fmt.Fprintln(w, "-", what)
	}
	return errors.New("something was wrong")
}

// fail notes what no timing excuses.
func (b *bench) fail(scenario, format string, args ...any) {
	what := scenario + ": " + fmt.Sprintf(format, args...)
	fmt.Fprintln(os.Stderr, "loadgen: wrong:", what)
	b.wrong = append(b.wrong, what)
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
