package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"slipstream/pkg/firehose"
	"slipstream/pkg/repo"
)

// lateness holds when the relay sent each commit against when a consumer got it.
type lateness struct {
	mu   sync.Mutex           // guards everything below
	sent map[string]time.Time // by rev
	seen []arrival
}

type arrival struct {
	at   time.Time
	took time.Duration
}

func newLateness() *lateness { return &lateness{sent: map[string]time.Time{}} }

// follow subscribes to the relay itself. What the relay sends, it sends to both at once.
func (l *lateness) follow(ctx context.Context, relay string) error {
	target, err := firehose.ParseURL(relay)
	if err != nil {
		return fmt.Errorf("--relay %q: %w", relay, err)
	}
	var commit repo.Commit
	return firehose.New(firehose.Config{URL: target}).Run(ctx, firehose.Start{Live: true}, func(f firehose.Frame) error {
		now := time.Now()
		defer f.Release()
		if f.Type != "#commit" || commit.Parse(f.Body) != nil {
			return nil
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sent[string(commit.Rev)] = now
		return nil
	})
}

// latePeek is how much of an event is looked at: a commit's rev is behind the DID.
const latePeek = 512

var revField = []byte(`"commit":{"rev":"`)

// arrived notes an event. Of a commit's events the first counts.
func (l *lateness) arrived(payload []byte, _ int) {
	now := time.Now()
	_, rev, ok := bytes.Cut(payload, revField)
	if !ok {
		return
	}
	rev, _, _ = bytes.Cut(rev, []byte{'"'})
	l.mu.Lock()
	defer l.mu.Unlock()
	if sent, ok := l.sent[string(rev)]; ok {
		l.seen = append(l.seen, arrival{now, now.Sub(sent)})
		delete(l.sent, string(rev))
	}
}

// stored takes an event of a replay: its commit is not missing, also if it arrived before the
// relay's own stream had it here.
func (l *lateness) stored(payload []byte, _ int) {
	if _, rev, ok := bytes.Cut(payload, revField); ok {
		rev, _, _ = bytes.Cut(rev, []byte{'"'})
		l.mu.Lock()
		delete(l.sent, string(rev))
		l.mu.Unlock()
	}
}

// missing returns how many commits the relay has sent of which nothing has arrived or is stored.
func (l *lateness) missing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sent)
}

// reset forgets everything.
func (l *lateness) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.sent)
	l.seen = nil
}

// percentiles returns how many commits there were and how late they came at each share of
// them, in milliseconds; nil if there were none.
func (l *lateness) percentiles(shares ...float64) (n int, ms []float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n = len(l.seen); n == 0 {
		return 0, nil
	}
	took := make([]time.Duration, n)
	for i, a := range l.seen {
		took[i] = a.took
	}
	slices.Sort(took)
	for _, share := range shares {
		ms = append(ms, float64(took[int(share*float64(n-1))].Microseconds())/1000)
	}
	return n, ms
}

// settled returns how long after since commits were no later than limit any more: from then
// on, through half a second, nine of ten were in time.
func (l *lateness) settled(since time.Time, limit time.Duration) (time.Duration, bool) {
	const step, run = 100 * time.Millisecond, 5
	l.mu.Lock()
	defer l.mu.Unlock()
	all, late := map[int]int{}, map[int]int{}
	last := -1
	for _, a := range l.seen {
		if a.at.Before(since) {
			continue
		}
		i := int(a.at.Sub(since) / step)
		last = max(last, i)
		all[i]++
		if a.took > limit {
			late[i]++
		}
	}
	good := 0
	for i := 0; i <= last; i++ {
		if all[i] == 0 || late[i]*10 > all[i] {
			good = 0
		} else if good++; good == run {
			return time.Duration(i+1-run) * step, true
		}
	}
	return 0, false
}

// String returns the percentiles of the lateness as a row of a markdown table.
func (l *lateness) String() string {
	n, ms := l.percentiles(0.5, 0.9, 0.99, 0.999, 1)
	if n == 0 {
		return "no commit was seen on both sides"
	}
	return fmt.Sprintf("| commits | p50 ms | p90 ms | p99 ms | p99.9 ms | max ms |\n|--:|--:|--:|--:|--:|--:|\n| %d | %.1f | %.1f | %.1f | %.1f | %.1f |",
		n, ms[0], ms[1], ms[2], ms[3], ms[4])
}
