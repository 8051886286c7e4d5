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

// sample is one look at a daemon.
type sample struct {
	at           time.Time
	user, system time.Duration
	peak, rss    float64 // MB

	// From its metrics. Those of a vector are summed up.
	events, seq               int64
	untold                    int64   // of events: those that consumers are not sent
	sent                      int64   // events to consumers
	cursor                    int64   // of the newest event
	stored, accepted, written float64 // bytes
	subscribers, ended        int     // consumers
	goroutines, descriptors   int
	dropped, gaps             int    // what the relay sent and could not be delivered; what it did not send
	version                   string // of the program
}

// cpu is what the process has used, in the kernel too.
func (s sample) cpu() time.Duration { return s.user + s.system }

// look reads a daemon's metrics, then what /proc says about its process.
func look(ctx context.Context, pid int, metrics string) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, metrics, nil)
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
		name, labels, _ := strings.Cut(name, "{")
		switch name {
		case "slipstream_events_total":
			s.events += int64(value)
			if strings.Contains(labels, `kind="sync"`) {
				s.untold = int64(value)
			}
		case "slipstream_sent_events_total":
			s.sent = int64(value)
		case "slipstream_upstream_seq":
			s.seq = int64(value)
		case "slipstream_last_cursor":
			s.cursor = int64(value)
		case "slipstream_store_disk_bytes":
			s.stored = value
		case "slipstream_store_accepted_bytes_total":
			s.accepted = value
		case "slipstream_store_written_bytes_total":
			s.written = value
		case "slipstream_subscribers":
			s.subscribers = int(value)
		case "slipstream_subscribers_ended_total":
			s.ended += int(value)
		case "slipstream_ops_dropped_total", "slipstream_frames_dropped_total", "slipstream_upstream_messages_dropped_total":
			s.dropped += int(value)
		case "slipstream_upstream_gaps_total":
			s.gaps += int(value)
		case "slipstream_build_info":
			_, s.version, _ = strings.Cut(labels, `version="`)
			s.version, _, _ = strings.Cut(s.version, `"`)
		case "go_goroutines":
			s.goroutines = int(value)
		case "process_open_fds":
			s.descriptors = int(value)
		}
	}
	s.at = time.Now()
	return s, s.process(pid)
}

// tick is the unit of /proc/PID/stat on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// process reads /proc.
func (s *sample) process(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
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
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
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
