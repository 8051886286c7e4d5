package ingest_test

import (
	"context"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/ingest"
	"slipstream/pkg/simrelay"
)

// A clock that steps back an hour, forward a day, or was never set does not make a cursor
// repeat or fall, neither within a run nor across a restart.
func TestClockSteps(t *testing.T) {
	const total = 4000
	relay, err := simrelay.New(simrelay.Config{Seed: 5, Loop: 200, Total: total})
	if err != nil {
		t.Fatal(err)
	}
	relayCtx, stopRelay := context.WithCancel(context.Background())
	relayDone := make(chan error, 1)
	go func() { relayDone <- relay.Run(relayCtx) }()
	server := httptest.NewServer(relay.Handler())
	defer func() {
		stopRelay()
		<-relayDone
		server.Close()
	}()
	url, err := firehose.ParseURL(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	compressor, err := event.NewCompressor(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}

	// Every so many looks at the clock it jumps.
	real := time.Now()
	var looks atomic.Int64
	clock := func() time.Time {
		n := looks.Add(1)
		switch n / 300 % 4 {
		case 1:
			return real.Add(-time.Hour)
		case 2:
			return real.Add(24*time.Hour + time.Duration(n)*time.Microsecond)
		case 3:
			return time.Unix(int64(n), 0) // 1970: no battery, no NTP yet
		}
		return real.Add(time.Duration(n) * time.Microsecond)
	}

	fs := vfs.NewMem()
	first := firehose.Seq(0)
	last, count := event.Cursor(0), 0
	for round := range 3 {
		log, err := eventlog.Open(eventlog.Config{Dir: "log", FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		in := ingest.New(ingest.Config{
			Log: log, Upstreams: firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: []string{url}}), Compressor: func() *event.Compressor { return compressor },
			From: &first, Linger: 2 * time.Millisecond, Now: clock,
		})
		done := make(chan error, 1)
		go func() { done <- in.Run(ctx) }()
		until := total * (round + 1) / 3
		for count < until {
			c, grown, err := log.Next(last)
			if err != nil {
				t.Fatal(err)
			}
			if c == nil {
				select {
				case <-grown:
				case <-time.After(20 * time.Second):
					t.Fatalf("no events after %d", count)
				}
				continue
			}
			for _, e := range c.Entries[c.After(last):] {
				if e.Cursor <= last || e.Cursor <= event.Epoch {
					t.Fatalf("event %d: cursor %d after %d", count, e.Cursor, last)
				}
				last = e.Cursor
				count++
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
