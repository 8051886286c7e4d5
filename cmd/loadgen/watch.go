package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const watchHeading = `| | events | events/s | CPU µs/event | user | system | peak RSS MB | RSS MB | store bytes/event | write amplification |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|`

// watch looks at a daemon from its start on.
type watch struct {
	pid     int
	metrics string
	seq     int64 // zero: until
	began   time.Time
	until   time.Time
}

// run waits, and returns the row. Up to a seq it counts from the daemon's start, which was
// just now; for a time, from the first answer on.
func (w watch) run(ctx context.Context) (string, error) {
	var first, last sample
	if w.seq > 0 {
		first.at = w.began
	}
	for {
		s, err := look(ctx, w.pid, w.metrics)
		switch {
		case err == nil && first.at.IsZero():
			first = s
		case err != nil && (last.events > 0 || time.Since(w.began) > 10*time.Second):
			return "", err
		}
		if err == nil {
			// A frame is sequenced a little before its events are stored.
			if w.seq > 0 && s.seq >= w.seq && s.events > 0 && s.events == last.events {
				break
			}
			last = s
			if w.seq == 0 && !s.at.Before(w.until) {
				break
			}
		}
		// A look costs the daemon a few milliseconds. Waiting for a time, two are enough.
		pause := 100 * time.Millisecond
		if err == nil && w.seq == 0 {
			pause = time.Until(w.until)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(pause):
		}
	}
	events := float64(last.events - first.events)
	if events == 0 {
		return "", errors.New("the daemon has taken in no event")
	}
	user, system := float64((last.user-first.user).Microseconds())/events, float64((last.system-first.system).Microseconds())/events
	return fmt.Sprintf("| %.0f | %.0f | %.1f | %.1f | %.1f | %.0f | %.0f | %.0f | %.2f |", events,
		events/last.at.Sub(first.at).Seconds(), user+system, user, system, last.peak, last.rss,
		last.stored/float64(last.events), last.written/last.accepted), nil
}
