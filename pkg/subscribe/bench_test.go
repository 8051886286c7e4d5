package subscribe_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/subscribe"
)

// drainEnv makes the test binary a crowd of consumers: "<address> <query> <how many>
// <bytes each waits for> <what they accept, or websocket>". They say when all are connected, and end when all have as
// many bytes.
const drainEnv = "SLIPSTREAM_TEST_DRAIN"

func drain() {
	f := strings.Fields(os.Getenv(drainEnv))
	n, _ := strconv.Atoi(f[2])
	want, _ := strconv.ParseInt(f[3], 10, 64)
	done := make(chan error, n)
	for range n {
		conn, err := net.Dial("tcp", f[0])
		if err == nil {
			header := "Accept: " + f[4]
			if f[4] == "websocket" {
				header = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
			}
			fmt.Fprintf(conn, "GET /subscribe?%s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", f[1], header)
			br := bufio.NewReader(conn)
			var resp *http.Response
			if resp, err = http.ReadResponse(br, nil); err == nil {
				stream := io.Reader(br)
				if f[4] != "websocket" {
					stream = resp.Body
				}
				go func() {
					_, err := io.CopyN(io.Discard, stream, want)
					done <- err
				}()
				continue
			}
		}
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("connected")
	for range n {
		if err := <-done; err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("done")
}

// crowd starts consumers in a process of their own and returns when they are connected;
// wait returns when they have all that they want.
func (w *world) crowd(query string, n int, bytes int64) (wait func()) {
	w.t.Helper()
	return w.crowdBy("websocket", query, n, bytes)
}

// crowdBy starts consumers of another kind: see drainEnv.
func (w *world) crowdBy(kind, query string, n int, bytes int64) (wait func()) {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d %s", drainEnv, w.addr, query, n, bytes, kind))
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		w.t.Helper()
		if !lines.Scan() || lines.Text() != want {
			w.t.Fatalf("the consumers say %q, want %q", lines.Text(), want)
		}
	}
	expect("connected")
	return func() { w.t.Helper(); expect("done") }
}

// cpu returns what this process has used, in the kernel too.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFanout sends 1000 events a second, in chunks of 20 every 20 ms, to consumers
// that want everything. Its CPU is this process's, with the kernel's work for its
// sockets, and with the commit of the chunks, which consumers=0 shows by itself; chunks
// are made beforehand, and the consumers are another process.
func BenchmarkFanout(b *testing.B) {
	for _, consumers := range []int{0, 1, 100, 1000} {
		b.Run(fmt.Sprintf("consumers=%d", consumers), func(b *testing.B) { benchmarkFanout(b, "websocket", consumers) })
	}
}

// BenchmarkFanoutStreams is the same for who comes without a websocket, and for who does
// not, to compare.
func BenchmarkFanoutStreams(b *testing.B) {
	for _, consumers := range []int{100, 1000} {
		for _, kind := range []string{"websocket", "application/x-ndjson", "text/event-stream"} {
			b.Run(fmt.Sprintf("consumers=%d/%s", consumers, kind), func(b *testing.B) { benchmarkFanout(b, kind, consumers) })
		}
	}
}

func benchmarkFanout(b *testing.B, kind string, consumers int) {
	const chunks, size = 100, 20
	// A frame's header, of events of this size, and what is there instead of it.
	around := map[string]int{"websocket": 4, "application/x-ndjson": 1, "text/event-stream": len("id: 1790000000000001\ndata: \n\n")}[kind]
	var used time.Duration
	for range b.N {
		w := newWorld(b, func(s *settings) { s.disk = true })
		w.feed.bulk = true
		var all []*eventlog.Chunk
		bytes, prev := int64(0), event.Cursor(0)
		for range chunks {
			w.feed.post(size)
			c := w.feed.seal(prev)
			prev = c.Last()
			bytes += int64(c.Size(eventlog.JSON) + size*(around-4))
			all = append(all, c)
		}
		wait := func() {}
		if consumers > 0 {
			wait = w.crowdBy(kind, "x", consumers, bytes)
			w.connected(consumers)
			eventually(b, "all have begun", func() bool { return w.srv.Waiting() == 0 })
		}
		tick := time.NewTicker(20 * time.Millisecond)
		begin := cpu(b)
		for _, c := range all {
			<-tick.C
			if err := w.log.Append(b.Context(), []*eventlog.Chunk{c}, nil); err != nil {
				b.Fatal(err)
			}
		}
		wait()
		used += cpu(b) - begin
		tick.Stop()
		w.stop()
	}
	events := float64(b.N * chunks * size)
	if consumers > 0 {
		b.ReportMetric(float64(used)/events/float64(consumers), "cpu-ns/delivery")
	}
	b.ReportMetric(float64(used)/events, "cpu-ns/event")
}

// BenchmarkReplay reads everything on disk for one consumer; its CPU is counted as
// BenchmarkFanout's. All figures are per event in the store, wanted or not.
func BenchmarkReplay(b *testing.B) {
	const events, size = 400_000, 1000
	const rare, someone = "com.example.rare", "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
	w := newWorld(b, func(s *settings) {
		s.disk = true
		s.log.WindowBytes, s.log.CacheBytes = 1<<20, 8<<20
	})
	w.feed.bulk = true
	type scenario struct{ name, query string }
	scenarios := []scenario{{"all", ""}, {"third", "&wantedCollections=app.bsky.feed.post"}, {"rare", "&wantedCollections=" + rare}, {"someone", "&wantedDids=" + someone}}
	plain, zstd := map[string]int64{}, map[string]int64{} // bytes by query
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range events / size {
		for i := range size {
			collection, did := []string{"app.bsky.feed.like", "app.bsky.feed.post", "app.bsky.graph.follow"}[i%3], fmt.Sprintf("did:plc:%024d", rng.IntN(1e6))
			if rng.IntN(1000) == 0 {
				collection = rare
			}
			if i == 0 && n%50 == 49 {
				did = someone
			}
			w.feed.add(event.KindCommit, did, collection, "a post that says nothing "+strings.Repeat("at all ", 5+i%20))
		}
		c := w.feed.seal(w.log.Last())
		for i, e := range c.Entries {
			add := func(query string) {
				plain[query] += int64(e.End[eventlog.JSON] - c.Start(i, eventlog.JSON))
				zstd[query] += int64(e.End[eventlog.Zstd] - c.Start(i, eventlog.Zstd))
			}
			add("")
			add("&wantedCollections=" + c.Collections[e.Collection])
			add("&wantedDids=" + c.DIDs()[e.DID])
		}
		if err := w.log.Append(b.Context(), []*eventlog.Chunk{c}, nil); err != nil {
			b.Fatal(err)
		}
	}
	for _, s := range scenarios {
		for _, form := range []struct {
			name, query string
			bytes       map[string]int64
		}{{"plain", "cursor=1", plain}, {"zstd", "cursor=1&compress=true", zstd}} {
			b.Run("wanted="+s.name+"/"+form.name, func(b *testing.B) {
				if form.bytes[s.query] == 0 {
					b.Fatal("nothing to be had")
				}
				begin := cpu(b)
				b.ResetTimer()
				for range b.N {
					w.crowd(form.query+s.query, 1, form.bytes[s.query])()
				}
				b.StopTimer()
				n := float64(b.N * events)
				b.ReportMetric(n/b.Elapsed().Seconds(), "events/s")
				b.ReportMetric(float64(cpu(b)-begin)/n, "cpu-ns/event")
				b.ReportMetric(float64(form.bytes[s.query])/events, "bytes/event")
			})
		}
	}
}

// mixture is a chunk of the usual collections, in the usual shares, each event by another
// account.
func mixture(w *world, n int) *eventlog.Chunk {
	collections := []string{"app.bsky.feed.like", "app.bsky.feed.like", "app.bsky.feed.like", "app.bsky.feed.like", "app.bsky.feed.post",
		"app.bsky.graph.follow", "app.bsky.feed.repost", "app.bsky.feed.like", "app.bsky.graph.block", "app.bsky.feed.like"}
	for i := range n {
		w.feed.add(event.KindCommit, fmt.Sprintf("did:plc:%024d", i*7919), collections[i%len(collections)], "a text")
	}
	return w.feed.seal(w.log.Last())
}

// BenchmarkDerive makes what a chunk does not hold, beside its compression in ingest.
func BenchmarkDerive(b *testing.B) {
	w := newWorld(b, func(s *settings) { s.idle = true })
	w.feed.bulk = true
	w.feed.post(1000)
	c := w.feed.seal(0)
	perEvent := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(c.Entries)), "ns/event")
	}
	b.Run("reference=compress", func(b *testing.B) {
		frames, err := w.log.Payload(c, eventlog.JSON)
		if err != nil {
			b.Fatal(err)
		}
		var dst []byte
		b.ReportAllocs()
		for b.Loop() {
			dst = dst[:0]
			for i := range c.Entries {
				dst = compressor().AppendBinary(dst, event.Payload(frames[c.Start(i, eventlog.JSON):c.Entries[i].End[eventlog.JSON]]))
			}
		}
		perEvent(b)
	})
	for _, zstd := range []bool{false, true} {
		b.Run(fmt.Sprint("v2/zstd=", zstd), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := w.srv.DeriveV2(c, zstd); err != nil {
					b.Fatal(err)
				}
			}
			perEvent(b)
		})
	}
}

// BenchmarkDispatch looks a chunk of 20 events up in the interest index. Its time is per
// event, for all consumers together.
func BenchmarkDispatch(b *testing.B) {
	for _, filter := range []struct {
		name  string
		query func(i int) string
	}{
		{"nothing", func(i int) string { return fmt.Sprintf("wantedDids=did:web:none%d.example", i) }},
		{"everything", func(i int) string { return "" }},
		{"posts", func(i int) string { return "wantedCollections=app.bsky.feed.post" }},
		{"rare", func(i int) string { return fmt.Sprintf("wantedCollections=org.rare%d.*", i%500) }},
	} {
		for _, consumers := range []int{1000, 10_000} {
			b.Run(fmt.Sprintf("filter=%s/consumers=%d", filter.name, consumers), func(b *testing.B) {
				w := newWorld(b, nil)
				c := mixture(w, 20)
				for i := range consumers {
					w.srv.NewPuller(filter.query(i), 0, false).Join()
				}
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					n += w.srv.Dispatch(c)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/20, "ns/event")
				b.ReportMetric(float64(n)/float64(b.N)/20, "named/event")
			})
		}
	}
}

// BenchmarkMatch passes events by a filter that wants none of them, as a replay does.
func BenchmarkMatch(b *testing.B) {
	for _, filter := range []struct{ name, query string }{
		{"collection", "wantedCollections=com.example.none"},
		{"did", "wantedDids=did:plc:none"},
		{"dids10000", repeat("wantedDids", "did:plc:x%023d", 10_000)},
		{"size", "maxMessageSizeBytes=1"},
	} {
		for _, size := range []int{20, 500} {
			b.Run(fmt.Sprintf("filter=%s/chunk=%d", filter.name, size), func(b *testing.B) {
				w := newWorld(b, nil)
				c := mixture(w, size)
				p := w.srv.NewPuller(filter.query, 0, false)
				b.ReportAllocs()
				for b.Loop() {
					if n := p.Match(c); n != 0 {
						b.Fatal(n)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(size), "ns/event")
			})
		}
	}
}

// BenchmarkWrite writes a number of runs to a socket over loopback: as they are, or copied
// together first. The reader is in this process: its part is the same for both.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{500, 2000, 8000} {
		for _, runs := range []int{1, 2, 5, 20, 100} {
			for _, how := range []string{"vectored", "copied"} {
				b.Run(fmt.Sprintf("bytes=%d/runs=%d/%s", size, runs, how), func(b *testing.B) {
					l, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						b.Fatal(err)
					}
					defer l.Close()
					client, err := net.Dial("tcp", l.Addr().String())
					if err != nil {
						b.Fatal(err)
					}
					defer client.Close()
					server, err := l.Accept()
					if err != nil {
						b.Fatal(err)
					}
					defer server.Close()
					go io.Copy(io.Discard, client)
					s := subscribe.NewSocket(server)
					// Runs lie apart, as those of a filter do.
					chunk := make([]byte, 4*size*runs)
					var bufs, whole net.Buffers
					for i := range runs {
						bufs = append(bufs, chunk[4*size*i:][:size])
					}
					var copied []byte
					b.SetBytes(int64(size * runs))
					b.ReportAllocs()
					begin := cpu(b)
					for b.Loop() {
						whole = append(whole[:0], bufs...)
						if how == "copied" {
							copied = copied[:0]
							for _, run := range bufs {
								copied = append(copied, run...)
							}
							whole = append(whole[:0], copied)
						}
						if err := s.Write(whole); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(cpu(b)-begin)/float64(b.N), "cpu-ns/op")
				})
			}
		}
	}
}
