package firehose_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
)

// follow runs upstreams until stop is called, and counts frames by relay.
func follow(t *testing.T, cfg firehose.UpstreamsConfig, from firehose.Resume) (frames []atomic.Int64, reg *prometheus.Registry, stop func()) {
	t.Helper()
	reg = prometheus.NewRegistry()
	cfg.Client.Registerer = reg
	cfg.Client.MinBackoff, cfg.Client.MaxBackoff = time.Millisecond, 5*time.Millisecond
	u := firehose.NewUpstreams(cfg)
	frames = make([]atomic.Int64, len(cfg.URLs))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- u.Run(ctx, from, func(f firehose.Frame) error {
			frames[f.Upstream].Add(1)
			f.Release()
			return nil
		})
	}()
	stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("it does not stop")
		}
		done <- nil
	}
	t.Cleanup(stop)
	return frames, reg, stop
}

const switches = "slipstream_upstream_switches_total"

// An upstream that has nothing to send is neither left nor connected to again, for as long as it
// answers pings. One that does not even do that is left.
func TestIdleIsNoFailure(t *testing.T) {
	t.Parallel()
	for _, dead := range []bool{false, true} {
		idle := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 100, Total: 5, Faults: simrelay.Faults{NoPong: dead}}))
		standby := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 1 << 33, Rate: 500}))
		frames, reg, stop := follow(t, firehose.UpstreamsConfig{
			URLs: []string{idle, standby}, FailoverAfter: 50 * time.Millisecond, SampleInterval: 50 * time.Millisecond,
			Client: firehose.Config{PingInterval: 50 * time.Millisecond, PongGrace: 50 * time.Millisecond},
		}, firehose.Resume{})
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if !dead && time.Now().After(deadline.Add(-9*time.Second)) || frames[1].Load() > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a dead relay is not left")
			}
		}
		stop()
		if dead {
			continue
		}
		if got := counter(t, reg, switches) + counter(t, reg, "slipstream_upstream_reconnects_total"); got != 0 || frames[0].Load() != 5 {
			t.Errorf("%v switches and reconnects, %d frames", got, frames[0].Load())
		}
	}
}

// A limit on silence, for who wants one, is not reached by a stream that is slow.
func TestLivenessTTL(t *testing.T) {
	t.Parallel()
	for _, idle := range []bool{true, false} {
		cfg := simrelay.Config{Seed: 1, FirstSeq: 100, Rate: 20}
		if idle {
			cfg.Total = 1
		}
		_, reg, stop := follow(t, firehose.UpstreamsConfig{
			URLs: []string{server(t, relayHandler(t, cfg))}, Client: firehose.Config{LivenessTTL: 1500 * time.Millisecond},
		}, firehose.Resume{})
		reconnects := func() float64 { return counter(t, reg, "slipstream_upstream_reconnects_total") }
		for deadline := time.Now().Add(2500 * time.Millisecond); time.Now().Before(deadline) && reconnects() == 0; {
			time.Sleep(20 * time.Millisecond)
		}
		stop()
		if got := reconnects(); (got > 0) != idle {
			t.Errorf("idle=%v: %v reconnects", idle, got)
		}
	}
}

// A standby that takes connections and says nothing holds up neither the stream, beyond the
// first samples' time, nor the end.
func TestMuteStandby(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	mute := server(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(func() { close(release) }) // before the server's end, which waits for it
	preferred := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 100, Rate: 500}))
	frames, _, stop := follow(t, firehose.UpstreamsConfig{URLs: []string{preferred, mute}, SampleInterval: 10 * time.Millisecond}, firehose.Resume{})
	for deadline := time.Now().Add(10 * time.Second); frames[0].Load() < 100; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d frames", frames[0].Load())
		}
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > time.Second {
		t.Errorf("it takes %s to stop", took)
	}
}

// Where silence is a fault it is one that another relay can mend.
func TestLivenessFailover(t *testing.T) {
	t.Parallel()
	stuck := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 100, Total: 5}))
	standby := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 1 << 33, Rate: 500}))
	frames, _, _ := follow(t, firehose.UpstreamsConfig{
		URLs: []string{stuck, standby}, FailoverAfter: 50 * time.Millisecond, SampleInterval: time.Second,
		Client: firehose.Config{LivenessTTL: 300 * time.Millisecond, PingInterval: 50 * time.Millisecond},
	}, firehose.Resume{})
	for deadline := time.Now().Add(10 * time.Second); frames[1].Load() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the silent relay is not left")
		}
	}
}

// A preferred relay that answers samples and then fails every time is gone back to ever less
// often, and never for good.
func TestFlapping(t *testing.T) {
	t.Parallel()
	relay := relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 1 << 33, Rate: 500})
	preferred := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("cursor") {
			http.Error(w, "not this way", http.StatusServiceUnavailable)
			return
		}
		relay.ServeHTTP(w, r)
	}))
	standby := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 1 << 34, Rate: 500}))
	begin := time.Now()
	frames, reg, _ := follow(t, firehose.UpstreamsConfig{
		URLs: []string{preferred, standby}, FailoverAfter: 10 * time.Millisecond, SampleInterval: 20 * time.Millisecond, Margin: 10 * time.Second,
	}, firehose.Resume{Start: firehose.Start{Cursor: 1 << 33, Known: true}, Reached: func() time.Time {
		return time.Date(2026, 7, 4, 12, 0, 12, 0, time.UTC).Add(time.Since(begin))
	}})
	time.Sleep(2 * time.Second) // a hundred samples
	if got := counter(t, reg, switches); got < 3 || got > 16 {
		t.Errorf("%v switches in two seconds", got)
	}
	if frames[0].Load() != 0 || frames[1].Load() < 100 {
		t.Errorf("%d frames of the one, %d of the other", frames[0].Load(), frames[1].Load())
	}
}

// Where there is no sample, the place is searched for: close to what was reached, and not
// behind it. A relay whose history is too short for that is taken from its oldest, and the gap
// said; one that is not yet there is not taken.
func TestSearch(t *testing.T) {
	const first = 1 << 33
	began := time.Date(2026, 7, 4, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		reached   time.Duration
		low, high firehose.Seq // of the first frame
		gaps      float64
	}{
		{10 * time.Hour, first + 36000 - 240, first + 36000 - 120 + 9, 0},
		{time.Minute, first, first, 0},
		{-time.Hour, first, first, 1},
		{1000 * time.Hour, 0, 0, 0},
	} {
		url := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: first, Loop: 100, Step: time.Second}))
		reg := prometheus.NewRegistry()
		u := firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: []string{url}, Client: firehose.Config{Registerer: reg, MinBackoff: time.Millisecond}})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		var got firehose.Seq
		if c.high == 0 {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
		err := u.Run(ctx, firehose.Resume{Active: -1, Reached: func() time.Time { return began.Add(c.reached) }}, func(f firehose.Frame) error {
			got = f.Seq
			return errEnough
		})
		cancel()
		if c.high == 0 && err == nil && got == 0 {
			continue
		}
		if err != errEnough || got < c.low || got > c.high {
			t.Errorf("reached %s: %v, first frame %d, want %d to %d", c.reached, err, got-first, c.low-first, c.high-first)
		}
		if gaps := counter(t, reg, "slipstream_upstream_gaps_total"); gaps != c.gaps {
			t.Errorf("reached %s: %v gaps, want %v", c.reached, gaps, c.gaps)
		}
	}
}
