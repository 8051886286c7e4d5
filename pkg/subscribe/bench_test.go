package subscribe_test

import (
	"bufio"
	"fmt"
	"io"
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
)

// drainEnv makes the test binary a crowd of consumers: "<address> <query> <how many>
// <bytes each waits for>". They say when all are connected, and end when all have as
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
			fmt.Fprintf(conn, "GET /subscribe?%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", f[1])
			br := bufio.NewReader(conn)
			if _, err = http.ReadResponse(br, nil); err == nil {
				go func() {
					_, err := io.CopyN(io.Discard, br, want)
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
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d", drainEnv, w.addr, query, n, bytes))
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
	const chunks, size = 100, 20
	for _, consumers := range []int{0, 1, 100, 1000} {
		b.Run(fmt.Sprintf("consumers=%d", consumers), func(b *testing.B) {
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
					bytes += int64(c.Size(eventlog.JSON))
					all = append(all, c)
				}
				wait := func() {}
				if consumers > 0 {
					wait = w.crowd("x", consumers, bytes)
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
		})
	}
}

// BenchmarkReplay sends one consumer everything from disk; its CPU is counted as
// BenchmarkFanout's.
func BenchmarkReplay(b *testing.B) {
	const events, size = 200_000, 500
	w := newWorld(b, func(s *settings) {
		s.disk = true
		s.log.WindowBytes, s.log.CacheBytes = 1<<20, 8<<20
	})
	w.feed.bulk = true
	bytes := map[string]int64{}
	for range events / size {
		w.feed.post(size)
		c := w.feed.seal(w.log.Last())
		bytes["cursor=1"] += int64(c.Size(eventlog.JSON))
		bytes["cursor=1&compress=true"] += int64(c.Size(eventlog.Zstd))
		if err := w.log.Append(b.Context(), []*eventlog.Chunk{c}, nil); err != nil {
			b.Fatal(err)
		}
	}
	for _, query := range []string{"cursor=1", "cursor=1&compress=true"} {
		b.Run(query, func(b *testing.B) {
			begin := cpu(b)
			b.ResetTimer()
			for range b.N {
				w.crowd(query, 1, bytes[query])()
			}
			b.StopTimer()
			n := float64(b.N * events)
			b.ReportMetric(n/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(cpu(b)-begin)/n, "cpu-ns/event")
			b.ReportMetric(float64(bytes[query])/events, "bytes/event")
		})
	}
}
