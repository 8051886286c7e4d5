package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
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
		s, err := w.look(ctx)
		switch {
		case err == nil && first.at.IsZero():
			first = s
		case err != nil && (last.events > 0 || time.Since(w.began) > 10*time.Second):
			return "", err
		}
		if err == nil {
			// A frame is sequenced a little before its events are stored.
			if w.seq > 0 && s.seq >= w.seq && s.events == last.events {
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

// sample is one look.
type sample struct {
	at                        time.Time
	user, system              time.Duration
	peak, rss                 float64 // MB
	events, seq               int64
	stored, accepted, written float64 // bytes
}

func (w watch) look(ctx context.Context) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.metrics, nil)
	if err != nil {
		return s, err
	}
	req.Header.Set("Accept-Encoding", "identity") // compressing would be the daemon's work
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		value, _ := strconv.ParseFloat(text, 64)
		name, _, _ = strings.Cut(name, "{")
		switch name {
		case "slipstream_events_total":
			s.events += int64(value)
		case "slipstream_upstream_seq":
			s.seq = int64(value)
		case "slipstream_store_disk_bytes":
			s.stored = value
		case "slipstream_store_accepted_bytes_total":
			s.accepted = value
		case "slipstream_store_written_bytes_total":
			s.written = value
		}
	}
	s.at = time.Now()
	return s, w.process(&s)
}

// tick is the unit of /proc/PID/stat on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// process reads /proc.
func (w watch) process(s *sample) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.pid))
	if err != nil {
		return err
	}
	// The name, field 2, may hold spaces; it ends with the last parenthesis.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return errors.New("/proc/PID/stat is too short")
	}
	for i, d := range []*time.Duration{&s.user, &s.system} {
		n, err := strconv.ParseInt(fields[11+i], 10, 64)
		if err != nil {
			return fmt.Errorf("/proc/PID/stat: %w", err)
		}
		*d = time.Duration(n) * tick
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		name, text, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 64)
		switch name {
		case "VmHWM":
			s.peak = kb / 1024
		case "VmRSS":
			s.rss = kb / 1024
		}
	}
	return nil
}
