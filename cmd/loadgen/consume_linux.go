package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sync"
	"time"
)

// consume runs consumers until ctx ends or one of them is ended, and prints what they got.
// After so many events as again says, if it does, each begins anew.
func consume(ctx context.Context, w io.Writer, target, relay string, consumers int, again int64) error {
	u, err := url.Parse(target)
	if err != nil {
		return fmt.Errorf("--url: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	var late *lateness
	specs := slices.Repeat([]spec{{sizes: again > 0, most: again, again: again > 0}}, consumers)
	if relay != "" {
		late = newLateness()
		group.Go(func() { cancel(late.follow(ctx, relay)) })
		specs[0].saw = late.arrived
	}
	// The first is the one that is timed: it does not share a loop that pauses. Nor may who
	// replays without end: a pause would hold the replay up.
	var swarms []*swarm
	for i, part := range [][]spec{specs[:1], specs[1:]} {
		config := swarmConfig{target: u}
		if (i > 0 || late == nil) && again == 0 {
			config.pause = swarmPause
		}
		s, err := newSwarm(config, part)
		if err != nil {
			return fmt.Errorf("--url: %w", err)
		}
		swarms = append(swarms, s)
		group.Go(func() { cancel(s.run(ctx)) })
	}
	began := time.Now()
	for poll := time.Tick(100 * time.Millisecond); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-poll:
			for _, s := range swarms {
				if ended := s.endings(); len(ended) > 0 {
					cancel(fmt.Errorf("the server ended connections: %s", tally(ended)))
				}
			}
		}
	}
	took := time.Since(began)
	group.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var events, bytes int64
	for _, s := range swarms {
		e, b := s.totals()
		events, bytes = events+e, bytes+b
	}
	fmt.Fprintf(w, "%d consumers, %.0f s: %d events, %.0f/s, %.2f MB/s\n", consumers, took.Seconds(),
		events, float64(events)/took.Seconds(), float64(bytes)/took.Seconds()/1e6)
	if late != nil {
		fmt.Fprintln(w, late)
	}
	return nil
}
