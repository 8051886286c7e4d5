package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// What TestFullDisk runs with: room for the floor and the ballast, which are eventlog's
// defaults, for what the store has when it is done, and some.
const (
	fullDiskFloor   = 64 << 20
	fullDiskBallast = 64 << 20
	fullDiskSize    = 2*fullDiskFloor + fullDiskBallast + 64<<20
	fullDiskFrames  = 110_000
)

// smallDisk mounts a file system of a given size, in memory.
func smallDisk(t testing.TB, size int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system to fill")
	}
	dir := t.TempDir()
	if err := syscall.Mount("slipstream-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("no small file system to fill can be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// hog is another process that wants the whole disk.
type hog struct {
	t    testing.TB
	dir  string
	file *os.File
	stop func()
	done sync.WaitGroup
}

func (h *hog) free() int64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(h.dir, &s); err != nil {
		h.t.Error(err)
	}
	return int64(s.Bavail) * s.Bsize
}

// fill takes every byte there is, and every byte that anyone frees, until release.
func (h *hog) fill() {
	h.t.Helper()
	var err error
	if h.file, err = os.Create(filepath.Join(h.dir, "hog")); err != nil {
		h.t.Fatal(err)
	}
	stop := make(chan struct{})
	h.stop = sync.OnceFunc(func() { close(stop) })
	h.t.Cleanup(func() {
		h.stop()
		h.done.Wait()
	})
	h.done.Go(func() {
		for size, piece := int64(0), int64(1<<40); ; {
			select {
			case <-stop:
				return
			default:
			}
			n := min(h.free(), piece)
			if n == 0 {
				time.Sleep(time.Millisecond)
			} else if err := syscall.Fallocate(int(h.file.Fd()), 0, size, n); err == nil {
				size, piece = size+n, 1<<40
			} else {
				piece = max(n/2, 4096) // someone was faster
			}
		}
	})
}

// release gives everything back.
func (h *hog) release() {
	h.t.Helper()
	h.stop()
	h.done.Wait()
	h.file.Close()
	if err := os.Remove(h.file.Name()); err != nil {
		h.t.Fatal(err)
	}
}

// Where there is no space for the dictionary that --legacy-dictionary names, the start waits until
// there is, and can be ended.
func TestFullDiskForDictionary(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 73, Loop: 100})
	disk, data := smallDisk(t, 1<<20), t.TempDir()
	if err := os.Symlink(disk, filepath.Join(data, keptName)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "d")
	if err := os.WriteFile(file, otherDictionary(4711), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &hog{t: t, dir: disk}
	h.fill()
	testproc.WaitFor(t, "a full disk", func() bool { return h.free() == 0 })
	addr := testproc.FreeAddr(t)
	args := []string{"serve", "--upstream-url", upstream, "--data-dir", data, "--listen-addr", addr, "--metrics-listen-addr", "127.0.0.1:0", "--legacy-dictionary", file}
	waiting := func() *testproc.Process {
		p := startProcess(t, nil, args...)
		testproc.WaitFor(t, "it waits", func() bool { return strings.Contains(p.Output.String(), "the start waits") })
		return p
	}
	p := waiting()
	p.End(t)
	if said := p.Output.String(); strings.Count(said, "disk is full, the start waits") != 1 || !strings.Contains(said, "stopped while the disk is full") {
		t.Errorf("it says:\n%s", said)
	}
	p = waiting()
	h.release()
	waitHealthy(t, addr)
	if _, err := os.Stat(keptIn(data).file(4711)); err != nil {
		t.Error(err)
	}
	p.End(t)
}

// ready asks /readyz.
func ready(t testing.TB, metrics string) (status int, text string) {
	t.Helper()
	resp, err := http.Get("http://" + metrics + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// Another process fills the disk, as fast as it can and to the last byte, again and again.
// The daemon stays, keeps its consumers, serves replays, says what it waits for, and goes
// on by itself when there is space; and nothing is lost or sent twice.
func TestFullDisk(t *testing.T) {
	const first = int64(simrelay.DefaultFirstSeq)
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	outages, long, total := 4, 9*time.Second, int64(fullDiskFrames)
	disk := smallDisk(t, fullDiskSize)
	// After each outage what the relay has meanwhile comes as fast as the daemon takes it.
	relay, err := simrelay.New(simrelay.Config{Seed: 91, Loop: 600, Total: total, Rate: 12_000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(runRelay(t, relay))
	open := make(chan struct{})
	upstream := serveHandler(t, gate(open, relay.Handler()))
	want := expectedAll{relay: relay, end: first + total}

	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	launch := func() *testproc.Process {
		return startProcess(t, nil, "serve", "--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", disk,
			"--listen-addr", addr, "--metrics-listen-addr", metrics)
	}
	p := launch()
	waitHealthy(t, addr)
	seq := func() int64 { return int64(scrape(t, metrics)["slipstream_upstream_seq"]) }

	// The live consumer is there before the first event, the other comes when there is
	// something to replay.
	live := follow(t, "live", addr, "", want)
	testproc.WaitFor(t, "the ballast", func() bool { return ballast(disk) == fullDiskBallast })
	close(open)
	testproc.WaitFor(t, "the first events", func() bool { return seq() > first+2_000 })
	replaying := follow(t, "replaying", addr, "cursor=0&compress=true", want)

	h := &hog{t: t, dir: disk}
	for i := range outages {
		h.fill()
		testproc.WaitFor(t, "the end of readiness", func() bool {
			status, text := ready(t, metrics)
			if status == http.StatusServiceUnavailable && !strings.Contains(text, "disk") {
				t.Errorf("/readyz says %q", text)
			}
			return status == http.StatusServiceUnavailable
		})
		testproc.WaitFor(t, "the last byte to be taken", func() bool { return h.free() == 0 })
		if i == outages-1 { // longer than what Pebble takes for a slow disk
			time.Sleep(long)
		}
		before := seq()
		during := follow(t, "during the outage", addr, "cursor=0", want)
		testproc.WaitFor(t, "a replay beside a full disk", func() bool { return during.received.Load() > 1_000 })
		during.leave()
		time.Sleep(200 * time.Millisecond)
		if status, text := ready(t, metrics); status != http.StatusServiceUnavailable {
			t.Errorf("during the outage /readyz is %d: %s", status, text)
		}
		t.Logf("outage %d: at frame %d of %d", i+1, before-first, total)
		if i == outages-1 {
			break
		}
		h.release()
		testproc.WaitFor(t, "readiness", func() bool { status, _ := ready(t, metrics); return status == http.StatusOK })
		testproc.WaitFor(t, "ingest", func() bool { return seq() >= min(before+3_000, first+total-1) })
		live.mustBeThere()
		replaying.mustBeThere()
	}
	if seq() >= first+total-1 {
		t.Error("the stream was over before the last outage: the test does not test much")
	}

	// Asked to end while it waits, and again while it opens the store, it does.
	for range 2 {
		begin := time.Now()
		p.Signal(t, syscall.SIGTERM)
		if err := p.Wait(t); err != nil || time.Since(begin) > 10*time.Second {
			t.Errorf("SIGTERM beside a full disk: %v after %s; the process said:\n%s", err, time.Since(begin), p.Output)
		}
		p = launch()
		testproc.WaitFor(t, "the store to be opened", func() bool { return strings.Contains(p.Output.String(), "disk is full") })
	}
	live.mustHaveBeenToldToGo()
	replaying.mustHaveBeenToldToGo()
	h.release()
	waitHealthy(t, addr)
	waitReach(t, "the stream", seq, first+total-1)
	again := follow(t, "from the start", addr, "cursor=0", want)
	waitReach(t, "the replay", again.received.Load, int64(want.count()))
	time.Sleep(300 * time.Millisecond) // for one event too many
	again.leave()

	// With a ballast to burn, a full disk is no obstacle to a start.
	testproc.WaitFor(t, "the ballast", func() bool { return ballast(disk) == fullDiskBallast })
	p.End(t)
	t.Logf("the store takes %d MB, of %d", (fullDiskSize-fullDiskBallast-h.free())>>20, fullDiskSize>>20)
	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	// It can fail for the last blocks, which some file systems need to say where the others are.
	if err := syscall.Fallocate(int(filler.Fd()), 0, 0, h.free()); h.free() != 0 {
		t.Fatalf("%v, %d bytes are free", err, h.free())
	}
	p = launch()
	waitHealthy(t, addr)
	last := follow(t, "after all", addr, "cursor=0", want)
	testproc.WaitFor(t, "a replay", func() bool { return last.received.Load() > 1_000 })
	last.leave()
	if ballast(disk) >= 0 {
		t.Error("the ballast is still there")
	}
	p.End(t)
}

// waitReach waits until a number has grown to what it must be, for as long as it grows.
func waitReach(t testing.TB, what string, number func() int64, want int64) {
	t.Helper()
	for last, since := number(), time.Now(); last != want; time.Sleep(20 * time.Millisecond) {
		if n := number(); n != last {
			last, since = n, time.Now()
		} else if time.Since(since) > 30*time.Second {
			t.Fatalf("%s has come to %d, not %d", what, last, want)
		}
	}
}

// ballast returns the size of the store's ballast, -1 if there is none.
func ballast(disk string) int64 {
	info, err := os.Stat(filepath.Join(disk, "slipstream", "ballast"))
	if err != nil {
		return -1
	}
	return info.Size()
}

// expectedAll is what a relay sends, frame by frame.
type expectedAll struct {
	relay *simrelay.Relay
	end   int64 // the seq behind the last
}

func (e expectedAll) count() int {
	return len(expectedEvents(e.relay, simrelay.DefaultFirstSeq, e.end-1))
}

// follower is a consumer that checks that it receives every event of the relay's, once and
// in order.
type follower struct {
	t        testing.TB
	name     string
	ws       *websocket.Conn
	received atomic.Int64
	done     chan error // how the connection ended
}

func follow(t testing.TB, name, addr, query string, want expectedAll) *follower {
	t.Helper()
	r := newReader(t, dial(t, addr, query))
	f := &follower{t: t, name: name, ws: r.ws, done: make(chan error, 1)}
	go func() {
		last, seq := int64(0), int64(simrelay.DefaultFirstSeq)-1
		var expected []simrelay.Expected // of the frame at seq, what is still to come
		for {
			message, err := r.next(2 * time.Minute)
			if err != nil {
				f.done <- err
				return
			}
			// Not sooner: the relay knows only of frames that it has reached.
			for len(expected) == 0 {
				if seq++; seq >= want.end {
					f.done <- fmt.Errorf("one event too many: %s", message)
					return
				}
				expected = expectedEvents(want.relay, seq, seq)
			}
			var e v1Event
			if err := json.Unmarshal(message, &e); err != nil {
				f.done <- fmt.Errorf("%w in %s", err, message)
				return
			}
			if diff := e.matches(&expected[0]); diff != "" || e.TimeUS <= last {
				f.done <- fmt.Errorf("event %d, time_us %d after %d: %s", f.received.Load(), e.TimeUS, last, diff)
				return
			}
			last, expected = e.TimeUS, expected[1:]
			f.received.Add(1)
		}
	}()
	return f
}

func (f *follower) mustBeThere() {
	f.t.Helper()
	select {
	case err := <-f.done:
		f.t.Fatalf("%s: %v", f.name, err)
	default:
	}
}

// leave ends the connection, which nothing may have ended before.
func (f *follower) leave() {
	f.t.Helper()
	f.mustBeThere()
	f.ws.Close()
	<-f.done
}

func (f *follower) mustHaveBeenToldToGo() {
	f.t.Helper()
	if err := <-f.done; !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		f.t.Errorf("%s: %v", f.name, err)
	}
}
