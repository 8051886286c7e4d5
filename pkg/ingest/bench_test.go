package ingest

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
)

// corpora are the frames that the stages are measured with: what production sent, where
// it is present, and what the simulated relay sends.
func corpora(b *testing.B) map[string][]firehose.Frame {
	b.Helper()
	return map[string][]firehose.Frame{"real": realFrames(b), "simulated": simulatedFrames(b, 1000)}
}

func realFrames(b testing.TB) []firehose.Frame {
	b.Helper()
	messages := realMessages(b)
	if messages == nil {
		return nil
	}
	relay, err := simrelay.New(simrelay.Config{Frames: messages})
	if err != nil {
		b.Fatal(err)
	}
	return receive(b, relay, len(messages))
}

func simulatedFrames(b testing.TB, n int) []firehose.Frame {
	b.Helper()
	relay, err := simrelay.New(simrelay.Config{Seed: 1, Total: int64(n), Records: 50})
	if err != nil {
		b.Fatal(err)
	}
	return receive(b, relay, n)
}

// receive gets n frames of a relay. They are not released, and so can be used again.
func receive(b testing.TB, relay *simrelay.Relay, n int) []firehose.Frame {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go relay.Run(ctx)
	server := httptest.NewServer(relay.Handler())
	defer server.Close()
	client := firehose.New(firehose.Config{URL: strings.Replace(server.URL, "http", "ws", 1) + "/xrpc/com.atproto.sync.subscribeRepos"})
	var frames []firehose.Frame
	err := client.Run(ctx, firehose.Start{}, func(f firehose.Frame) error {
		frames = append(frames, firehose.Frame{Seq: f.Seq, Type: f.Type, Body: append([]byte(nil), f.Body...)})
		f.Release()
		if len(frames) == n {
			cancel()
		}
		return nil
	})
	if err != nil || len(frames) < n {
		b.Fatalf("%d of %d frames: %v", len(frames), n, err)
	}
	return frames[:n]
}

func bytesOf(frames []firehose.Frame) (n int64) {
	for _, f := range frames {
		n += int64(len(f.Body))
	}
	return n
}

func perEvent(b *testing.B, events int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(events), "ns/event")
}

// BenchmarkDecode: frames to rendered events.
func BenchmarkDecode(b *testing.B) {
	for name, frames := range corpora(b) {
		b.Run(name, func(b *testing.B) {
			if frames == nil {
				b.Skip("the shared test data is not here")
			}
			d := decoder{in: &Ingester{metrics: newMetrics(nil)}}
			x := &batch{frames: frames}
			b.SetBytes(bytesOf(frames))
			b.ReportAllocs()
			for b.Loop() {
				d.batch(x)
			}
			perEvent(b, len(x.events))
		})
	}
}

func oneUpstream(url string) *firehose.Upstreams {
	return firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: []string{url}})
}

// always returns what Config.Compressor wants, of one that never changes.
func always(z *event.Compressor) func() *event.Compressor {
	return func() *event.Compressor { return z }
}

func benchRun(b testing.TB, frames []firehose.Frame) (*run, *event.Compressor) {
	b.Helper()
	compressor, err := event.NewCompressor(dictionaries.Current())
	if err != nil {
		b.Fatal(err)
	}
	in := New(Config{Upstreams: oneUpstream(""), Compressor: always(compressor)})
	d := decoder{in: in}
	x := &batch{frames: frames}
	d.batch(x)
	s := &sequencer{in: in, seq: -1, recent: recent{size: recentFrames}}
	s.next(<-in.freeRuns)
	s.batch(x)
	return s.current, compressor
}

// BenchmarkEncode: rendered events to a sealed chunk, compression included.
func BenchmarkEncode(b *testing.B) {
	for name, frames := range corpora(b) {
		b.Run(name, func(b *testing.B) {
			if frames == nil {
				b.Skip("the shared test data is not here")
			}
			r, compressor := benchRun(b, frames)
			e := encoder{compressor: always(compressor)}
			b.SetBytes(int64(len(r.json)))
			b.ReportAllocs()
			var packed int
			for b.Loop() {
				c, err := e.chunk(r)
				if err != nil {
					b.Fatal(err)
				}
				packed = c.Size(eventlog.Zstd)
			}
			perEvent(b, len(r.events))
			b.ReportMetric(float64(packed)/float64(len(r.json)), "zstd/json")
		})
	}
}

// BenchmarkCommit: sealed chunks to disk, synced, in chunks as they come live at 500
// events/s and as they come when catching up.
func BenchmarkCommit(b *testing.B) {
	for name, size := range map[string]int{"events=10": 10, "events=500": 500} {
		b.Run(name, func(b *testing.B) {
			log, err := eventlog.Open(eventlog.Config{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer log.Close()
			r, compressor := benchRun(b, simulatedFrames(b, size))
			e := encoder{compressor: always(compressor)}
			b.ReportAllocs()
			for b.Loop() {
				// The same events again, later. Building the chunk is not what is measured, and
				// is some microseconds beside a synced commit.
				b.StopTimer()
				r.prev = log.Last()
				span := r.events[len(r.events)-1].cursor - r.events[0].cursor + 1
				for i := range r.events {
					r.events[i].cursor += span
				}
				c, err := e.chunk(r)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := log.Append(context.Background(), []*eventlog.Chunk{c}, []byte("checkpoint")); err != nil {
					b.Fatal(err)
				}
			}
			perEvent(b, len(r.events))
		})
	}
}

// BenchmarkCatchUp: frames in memory to durable chunks, through all stages, as fast as it
// goes. With -cpu 1,2 it says what the second core is worth.
func BenchmarkCatchUp(b *testing.B) {
	const total = 400_000
	relay, err := simrelay.New(simrelay.Config{Seed: 1, Loop: 4000, Records: 100, Total: 4000})
	if err != nil {
		b.Fatal(err)
	}
	frames := receive(b, relay, 4000)
	compressor, err := event.NewCompressor(dictionaries.Current())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		log, err := eventlog.Open(eventlog.Config{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		in := New(Config{Log: log, Upstreams: oneUpstream(""), Compressor: always(compressor)})
		began, cpu := time.Now(), cpuTime()
		err = in.run(context.Background(), func(_ context.Context, _ firehose.Resume, handle func(firehose.Frame) error) error {
			for i := range total {
				f := frames[i%len(frames)]
				f.Seq = firehose.Seq(i + 1)
				if err := handle(f); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		took, spent := time.Since(began), cpuTime()-cpu
		count := 0
		for after := event.Cursor(0); after < log.Last(); {
			c, _, err := log.Next(after)
			if err != nil {
				b.Fatal(err)
			}
			count += len(c.Entries)
			after = c.Last()
		}
		if count < total {
			b.Fatalf("%d events of %d frames", count, total)
		}
		if err := log.Close(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(count)/took.Seconds(), "events/s")
		b.ReportMetric(float64(spent.Nanoseconds())/float64(count), "cpu-ns/event")
	}
}

// BenchmarkPipeline: everything, from the relay's socket to durable chunks, as fast as it
// goes. cpu-ns/event is this process's whole CPU time, the simulated relay included.
func BenchmarkPipeline(b *testing.B) {
	const events = 200_000
	for b.Loop() {
		relay, err := simrelay.New(simrelay.Config{Seed: 1, Loop: 4000, Total: events})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		relayDone := make(chan error, 1)
		go func() { relayDone <- relay.Run(ctx) }()
		server := httptest.NewServer(relay.Handler())
		log, err := eventlog.Open(eventlog.Config{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		compressor, err := event.NewCompressor(dictionaries.Current())
		if err != nil {
			b.Fatal(err)
		}
		url := strings.Replace(server.URL, "http", "ws", 1) + "/xrpc/com.atproto.sync.subscribeRepos"
		first := firehose.Seq(0)
		in := New(Config{Log: log, Upstreams: oneUpstream(url), Compressor: always(compressor), From: &first})
		began, cpu := time.Now(), cpuTime()
		done := make(chan error, 1)
		go func() { done <- in.Run(ctx) }()
		count := 0
		for after := event.Cursor(0); count < events-events/100; {
			c, grown, err := log.Next(after)
			if err != nil {
				b.Fatal(err)
			}
			if c == nil {
				<-grown
				continue
			}
			count += len(c.Entries)
			after = c.Last()
		}
		b.ReportMetric(float64(count)/time.Since(began).Seconds(), "events/s")
		b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(count), "cpu-ns/event")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		server.Close()
		<-relayDone
		if err := log.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is the CPU time that this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
