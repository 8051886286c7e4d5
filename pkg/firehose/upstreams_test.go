package firehose_test

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
)

// follow runs upstreams until stop is called, and counts frames by relay.
func follow(t *testing.T, cfg firehose.UpstreamsConfig, from firehose.Resume) (frames []atomic.Int64, reg *prometheus.Registry, stop func()) {
	t.Helper()
	return followIdle(t, cfg, from, 10*time.Second)
}

// followIdle is follow where a sample waits so long for its first frame.
func followIdle(t *testing.T, cfg firehose.UpstreamsConfig, from firehose.Resume, idle time.Duration) (frames []atomic.Int64, reg *prometheus.Registry, stop func()) {
	t.Helper()
	reg = prometheus.NewRegistry()
	cfg.Client.Registerer = reg
	cfg.Client.MinBackoff, cfg.Client.MaxBackoff = time.Millisecond, 5*time.Millisecond
	u := firehose.NewUpstreams(cfg)
	u.SetSampleIdle(idle)
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
		case <-time.After(time.Minute):
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
		for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if !dead && time.Since(began) > time.Second || frames[1].Load() > 0 {
				break
			}
			if time.Since(began) > time.Minute {
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
	for deadline := time.Now().Add(time.Minute); frames[0].Load() < 100; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d frames", frames[0].Load())
		}
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > 5*time.Second { // half of what a sample waits for a first frame
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
	for deadline := time.Now().Add(time.Minute); frames[1].Load() == 0; time.Sleep(10 * time.Millisecond) {
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
	for deadline := time.Now().Add(time.Minute); counter(t, reg, switches) < 3; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the preferred relay is not gone back to")
		}
	}
	if got := counter(t, reg, switches); got > 16 {
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
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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

// saysOnce is a relay that sends so many frames, all with one time, and with one frame ends
// the connection.
func saysOnce(t *testing.T, n int, at string) string {
	text := func(b []byte, s string) []byte {
		if len(s) < 24 {
			return append(append(b, 0x60|byte(len(s))), s...)
		}
		return append(append(b, 0x78, byte(len(s))), s...)
	}
	return server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		for i := range n {
			frame := append(text(text(text([]byte{0xa2}, "t"), "#identity"), "op"), 1, 0xa2)
			frame = append(text(frame, "seq"), 0x18, byte(100+i))
			ws.WriteMessage(websocket.BinaryMessage, text(text(frame, "time"), at))
		}
		if n > 1 {
			ws.ReadMessage()
		}
	}))
}

// Times that nothing can hold are none: samples can be stored whatever a relay says.
func TestTimesOutOfRange(t *testing.T) {
	t.Parallel()
	active := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 100, Rate: 500}))
	for _, at := range []string{"9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+23:59", "2300-01-01T00:00:00Z"} {
		u := firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: []string{active, saysOnce(t, 9, at)}})
		u.Run(t.Context(), firehose.Resume{Start: firehose.Start{Live: true}}, func(firehose.Frame) error { return errEnough })
		samples, _, _ := u.Samples()
		if _, err := json.Marshal(samples); err != nil || len(samples[1]) > 0 {
			t.Errorf("%s: %v, %v", at, samples, err)
		}
	}
}

// That what was reached lies in the future, by a relay's clock, does not end failover.
func TestReachedInTheFuture(t *testing.T) {
	t.Parallel()
	down := server(t, http.NotFoundHandler())
	standby := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 1 << 33, Rate: 500, WallClock: true}))
	frames, _, _ := follow(t, firehose.UpstreamsConfig{URLs: []string{down, standby}, FailoverAfter: 50 * time.Millisecond, SampleInterval: time.Second},
		firehose.Resume{Start: firehose.Start{Cursor: 5, Known: true}, Reached: func() time.Time { return time.Now().Add(10 * time.Minute) }})
	until(t, "the standby is taken", func() bool { return frames[1].Load() > 0 })
}

// A relay that sends the same frame on every connection does not work.
func TestSameFrameOverAndOver(t *testing.T) {
	t.Parallel()
	again := saysOnce(t, 1, time.Now().Format(time.RFC3339))
	standby := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 1 << 33, Rate: 500, WallClock: true}))
	frames, _, _ := follow(t, firehose.UpstreamsConfig{URLs: []string{again, standby}, FailoverAfter: 50 * time.Millisecond, SampleInterval: time.Second},
		firehose.Resume{Start: firehose.Start{Cursor: 99, Known: true}, Reached: time.Now})
	until(t, "the standby is taken", func() bool { return frames[1].Load() > 0 })
}

// The preferred relay of a quiet network is gone back to, though no sample of it fits: it sends
// nothing while it is looked at.
func TestBackOnAQuietNetwork(t *testing.T) {
	t.Parallel()
	at := time.Now().Add(-time.Hour)
	quiet := func(first int64) string {
		return server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: first, Total: 5, WallClock: true}))
	}
	_, reg, _ := followIdle(t, firehose.UpstreamsConfig{
		URLs: []string{quiet(1 << 33), quiet(1 << 34)}, FailoverAfter: time.Second, SampleInterval: 50 * time.Millisecond,
	}, firehose.Resume{
		Active: 1, Start: firehose.Start{Cursor: 1 << 34, Known: true}, Reached: func() time.Time { return at.Add(10 * time.Minute) },
		Relays: []firehose.Relay{{Last: &firehose.Position{Seq: 1 << 33, Time: at}}, {}},
	}, 300*time.Millisecond)
	until(t, "the preferred relay is gone back to", func() bool { return counter(t, reg, switches) > 0 })
}

// A restart does not wait for a standby of which samples are stored.
func TestRestartBesideAMuteStandby(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var asked atomic.Int64
	mute := server(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1); <-release }))
	t.Cleanup(func() { close(release) })
	active := server(t, relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 100, Rate: 500}))
	frames, _, _ := follow(t, firehose.UpstreamsConfig{URLs: []string{active, mute}}, firehose.Resume{
		Start: firehose.Start{Cursor: 101, Known: true}, Reached: time.Now,
		Relays: []firehose.Relay{{}, {Samples: []firehose.Position{{Seq: 7, Time: time.Now().Add(-3 * time.Minute)}}}},
	})
	until(t, "frames come", func() bool { return frames[0].Load() > 0 })
	if n := asked.Load(); n != 0 {
		t.Errorf("the standby was asked %d times before", n)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}
