package subscribe_test

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
)

// flood appends n identity events in chunks of size, without the compressed form, which
// would take most of the time.
func (f *feed) flood(n, size int) {
	f.t.Helper()
	for i := range n {
		f.last++
		from, did := len(f.json), "did:plc:flood"
		f.json = event.AppendIdentity(f.json, []byte(did), []byte("alice.example"), int64(f.last-start), []byte("2026-11-24T10:00:00.000Z"))
		event.SetCursor(event.Payload(f.json[from:]), len(did), f.last)
		f.b.Add(f.last, event.KindIdentity, []byte(did), nil, [3]uint32{uint32(len(f.json)), 0, 0})
		if (i+1)%size == 0 || i+1 == n {
			f.commit()
		}
	}
}

// cursorText is what a consumer finds in the event with a cursor.
func cursorText(at event.Cursor, v2 bool) string {
	if v2 {
		return fmt.Sprintf(`"seq":%d,"did"`, at-1_600_000_000_000_000)
	}
	return fmt.Sprintf(`"time_us":%d,`, at)
}

// follows reads the messages with the cursors from to to, and nothing between them.
func (r *raw) follows(from, to event.Cursor) error {
	for at := from; at <= to; at++ {
		op, p, err := r.frame()
		if err != nil {
			return fmt.Errorf("instead of event %d: %w", at-start, err)
		}
		if op != websocket.TextMessage || !strings.Contains(string(p), cursorText(at, r.v2)) {
			return fmt.Errorf("instead of event %d: opcode %d, %.200q", at-start, op, p)
		}
	}
	return nil
}

func heapAfterGC() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSlowConsumer: one that stops reading delays nobody, costs no memory, and gets
// everything when it reads on.
func TestSlowConsumer(t *testing.T) { onBothWires(t, testSlowConsumer) }

func testSlowConsumer(t *testing.T, v2 bool) {
	n := 200_000
	if testing.Short() {
		n = 40_000
	}
	const bound = 10 << 20 // the JSON of n/2 events has 18 MB
	w := newWorld(t, func(s *settings) {
		s.disk = true // its memory is not to be counted
		s.log.WindowBytes, s.log.CacheBytes = 1<<20, 1<<20
		s.sub.PingInterval = time.Hour // no ping among the events, however long this takes
	})
	w.v2 = v2
	slow := w.dialRaw("", small)
	done := make(chan error, 2)
	for range cap(done) {
		r := w.dialRaw("", 0)
		go func() { done <- r.follows(start+1, start+event.Cursor(n)) }()
	}
	w.begun()
	// The store's buffers, the window and the caches fill up first.
	w.feed.flood(n/2, 1000)
	before := heapAfterGC()
	w.feed.flood(n/2, 1000)
	// The others are through while the slow one is blocked.
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	w.blocked(1)
	if after := heapAfterGC(); after > before+bound {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	if err := slow.follows(start+1, start+event.Cursor(n)); err != nil {
		t.Fatal(err)
	}
	if after := heapAfterGC(); after > before+bound {
		t.Errorf("after the replay: the heap grew from %d to %d bytes", before, after)
	}
	// The position counts on: it is live again.
	w.feed.flood(100, 10)
	if err := slow.follows(start+event.Cursor(n)+1, start+event.Cursor(n)+100); err != nil {
		t.Fatal(err)
	}
}

// TestStalled: a consumer that takes nothing is ended; one that takes a little at a time
// is not, however long that goes on.
func TestStalled(t *testing.T) {
	t.Parallel()
	onBothWires(t, testStalled)
}

func testStalled(t *testing.T, v2 bool) {
	t.Parallel()
	const timeout = 2 * time.Second
	w := newWorld(t, func(s *settings) { s.sub.StallTimeout, s.sub.PingInterval = timeout, 200*time.Millisecond })
	w.v2 = v2
	w.feed.posts(20_000, 500) // 7 MB
	// Neither ever answers a ping: nothing can be concluded from that while bytes are unsent.
	stalled := w.dialRaw("cursor=1", small)
	buffers := map[string]int{"small": small, "medium": 64 << 10, "the system's": 0}
	done := make(chan error, len(buffers))
	for name, buffer := range buffers {
		steady := w.dialRaw("cursor=1", buffer)
		go func() {
			pace := 2 << 10 // per 500 ms
			if buffer != small {
				// Linux opens a loopback window again when 64 KiB are free.
				pace = 64 << 10
			}
			for end := time.Now().Add(4 * timeout); time.Now().Before(end); time.Sleep(timeout / 4) {
				if _, err := io.CopyN(io.Discard, steady.conn, int64(pace)); err != nil {
					done <- fmt.Errorf("buffer %s: %w", name, err)
					return
				}
			}
			done <- nil
		}()
	}
	w.blocked(1)
	eventually(t, "the stalled consumer is ended", func() bool { return w.ended("stalled") == 1 })
	for range buffers {
		if err := <-done; err != nil {
			t.Errorf("a steady consumer was ended: %v", err)
		}
	}
	if s, p := w.ended("stalled"), w.ended("no_pong"); s != 1 || p != 0 {
		t.Errorf("%v ended as stalled, %v as silent; want 1 and 0", s, p)
	}
	// It was ended for good: what it finds is what was on its way, and a reset.
	if _, err := io.Copy(io.Discard, stalled.conn); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the stalled connection ends with %v", err)
	}
}

// TestTrickleIntoAFullWindow: what the kernel still buffers for a peer that takes
// nothing is no progress of the peer's.
func TestTrickleIntoAFullWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *settings) { s.sub.StallTimeout = time.Second })
	w.dialRaw("", small)
	w.begun()
	w.feed.posts(30, 30) // its window is full
	eventually(t, "the consumer is ended", func() bool {
		w.feed.posts(1, 1)
		time.Sleep(20 * time.Millisecond)
		return w.ended("stalled") == 1
	})
	if total := w.metric("slipstream_sent_bytes_total", ""); total > 100<<10 {
		t.Errorf("it was ended after %v bytes, only when the socket was full", total)
	}
}

// TestSilent: a consumer that has taken everything must answer pings.
func TestSilent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *settings) { s.sub.StallTimeout, s.sub.PingInterval = time.Second, 100*time.Millisecond })
	w.feed.posts(3, 1)
	silent := w.dialRaw("cursor=1", 0)
	answering := w.dial("cursor=1")
	answering.expect(w.feed.all)
	go answering.next() // gorilla answers pings while it reads
	_, _, err := silent.frame()
	pings := 0
	for err == nil {
		var op byte
		var p []byte
		op, p, err = silent.frame()
		if op == websocket.PingMessage {
			pings++
		}
		if op == websocket.CloseMessage {
			if got := string(p); got != "\x03\xf0no answer to pings" {
				t.Errorf("closed with %q", got)
			}
			break
		}
	}
	if err != nil || pings == 0 {
		t.Errorf("%d pings, then %v", pings, err)
	}
	silent.expectEnd()
	silent.conn.Close()
	w.connected(1)
	if n := w.ended("no_pong"); n != 1 {
		t.Errorf("%v ended as silent, want 1", n)
	}
}

// TestPongAfterALongReplay: the first ping may come long after the peer was last heard.
func TestPongAfterALongReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *settings) { s.sub.StallTimeout, s.sub.PingInterval = 2*time.Second, 100*time.Millisecond })
	w.feed.posts(4000, 500)
	r := w.dialRaw("cursor=1", small)
	n := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if op, p, err := r.frame(); err != nil || op != websocket.TextMessage {
			t.Fatalf("got %d %q %v, want message %d", op, p, err, n)
		}
		n++
	}
	for pings := 0; pings < 10; {
		op, p, err := r.frame()
		switch {
		case err == nil && op == websocket.TextMessage && n < 4000:
			n++
		case err == nil && op == websocket.PingMessage:
			if pings == 0 {
				time.Sleep(300 * time.Millisecond) // many sweeps, but far from the timeout
			}
			r.write(masked(0x8a, p))
			pings++
		default:
			t.Fatalf("after %d messages and %d pings: %d %q %v", n, pings, op, p, err)
		}
	}
	if n := w.ended("no_pong"); n != 0 {
		t.Errorf("%v ended as silent", n)
	}
}

// TestFallsOffTheBuffer: retention passes a consumer that was sent something already.
func TestFallsOffTheBuffer(t *testing.T) { onBothWires(t, testFallsOffTheBuffer) }

func testFallsOffTheBuffer(t *testing.T, v2 bool) {
	now := start.Time()
	w := newWorld(t, func(s *settings) {
		s.log.Now = func() time.Time { return now }
		s.log.Retention = time.Hour
		s.log.WindowBytes = 64 << 10
	})
	w.v2 = v2
	w.feed.posts(6000, 100)
	r := w.dialRaw("cursor=1", small)
	live := w.dial("")
	w.begun()
	w.blocked(1)
	now = w.feed.last.Time().Add(time.Hour)
	if err := w.log.Trim(); err != nil {
		t.Fatal(err)
	}
	w.feed.last = event.CursorAt(now)
	w.feed.posts(10, 5)
	live.expect(w.feed.all[6000:]) // at the tip nobody falls off
	facts := w.feed.all[:6000]
	n := 0
	for ; n < len(facts); n++ {
		op, p, err := r.frame()
		if err != nil {
			t.Fatal(err)
		}
		if op != websocket.TextMessage || string(p) != facts[n].text(v2) {
			// The reason says where it stood, on v2 in a frame of its own before.
			where := facts[n-1].cursor.String()
			if v2 {
				where = fmt.Sprint(facts[n-1].cursor.V2Seq())
				if want := `{"$type":"error","error":"ConsumerTooSlow","message":"the buffer no longer holds what follows seq ` + where + `"}`; op != websocket.TextMessage || string(p) != want {
					t.Fatalf("got %d %.200q, want %s", op, p, want)
				}
				if op, p, err = r.frame(); err != nil {
					t.Fatal(err)
				}
			}
			if op != websocket.CloseMessage || !strings.HasPrefix(string(p), "\x03\xf0") || !strings.Contains(string(p), "the buffer no longer holds what follows") || !strings.HasSuffix(string(p), where) {
				t.Errorf("after %d messages: closed with %q, which does not say %s", n, p, where)
			}
			break
		}
	}
	if n == 0 || n == len(facts) {
		t.Errorf("it got %d events", n)
	}
	r.expectEnd()
	r.conn.Close()
	w.connected(1)
	if n := w.ended("fell_off_the_buffer"); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// TestSpaceComesBack: what retention removes leaves the disk at once, though twenty replays
// stand in the middle of it and take nothing.
func TestSpaceComesBack(t *testing.T) {
	now := start.Time()
	w := newWorld(t, func(s *settings) {
		s.disk = true
		s.log.Now = func() time.Time { return now }
		s.log.Retention = time.Hour
		s.log.WindowBytes = 1 << 20
	})
	w.feed.bulk = true
	const chunks, size = 500, 500
	for range chunks {
		w.feed.post(size)
		w.feed.commit()
	}
	for i := range 20 {
		w.dialRaw(fmt.Sprintf("cursor=%d", start+event.Cursor(1+i*chunks*size/40)), small)
	}
	w.begun()
	w.blocked(20)
	onDisk := func() (n int64) {
		entries, err := os.ReadDir(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), ".sst") {
				n += info.Size()
			}
		}
		return n
	}
	before := onDisk()
	if before < 20<<20 {
		t.Fatalf("tables of %d bytes", before)
	}
	now = (w.feed.last - chunks*size/10).Time().Add(time.Hour) // a tenth stays
	if err := w.log.Trim(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "most of the space has come back", func() bool {
		return onDisk() < before*4/10 // a table goes as a whole
	})
	w.blocked(20)
}

// TestBehind: metrics and log say how many are how far behind. Who waits for its hello is
// not, nor who wants nothing of what has come.
func TestBehind(t *testing.T) {
	var log strings.Builder
	w := newWorld(t, func(s *settings) { s.sub.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	w.feed.posts(1, 1)
	w.dial("wantedDids=did:plc:nobody")
	w.begun()
	w.feed.last += event.Cursor(time.Minute / time.Microsecond)
	w.feed.posts(6000, 500)
	w.dial("requireHello=true")
	w.dial("")
	w.begunBut(1)
	behind := func() (n float64) {
		for _, class := range []string{"10s-1m", "1m-10m", "10m-1h", "over 1h"} {
			n += w.metric("slipstream_subscribers_behind", class)
		}
		return n
	}
	if n, most := behind(), w.metric("slipstream_subscriber_lag_seconds", ""); n != 0 || most != 0 {
		t.Errorf("%v are behind, by up to %v s; want none", n, most)
	}
	w.dialRaw("cursor=1", small)
	w.blocked(1)
	w.feed.last += event.Cursor(time.Minute / time.Microsecond)
	w.feed.posts(1, 1)
	// Who is at the end has yet to be given it.
	eventually(t, "all but one are at the end", func() bool { return behind() == 1 })
	if n, class := behind(), w.metric("slipstream_subscribers_behind", "1m-10m"); n != 1 || class != 1 {
		t.Errorf("%v are behind, %v of them by a minute; want one", n, class)
	}
	if n := w.metric("slipstream_subscribers_blocked", ""); n != 1 {
		t.Errorf("%v are blocked, want 1", n)
	}
	if most := w.metric("slipstream_subscriber_lag_seconds", ""); most < 60 || most > 121 {
		t.Errorf("the last is %v s behind", most)
	}
	w.srv.TellLag()
	if !strings.Contains(log.String(), "1m-10m=1") || !strings.Contains(log.String(), "blocked=1") {
		t.Errorf("the log says %q", log.String())
	}
	if n := w.metric("slipstream_subscribers", ""); n != 4 {
		t.Errorf("%v are connected, want 4", n)
	}
}

// TestSavedBytes: the metrics tell what compression saves, whatever of the events is wanted.
func TestSavedBytes(t *testing.T) {
	w := newWorld(t, nil)
	w.feed.posts(300, 200)
	frames := func(facts []fact) (n float64) {
		for _, f := range facts {
			n += float64(4 + len(f.payload)) // RFC 6455, section 5.2: a length from 126 on takes two bytes more
		}
		return n
	}
	var text float64
	for _, query := range []string{"cursor=1", "cursor=1&compress=true"} {
		before := w.metric("slipstream_sent_bytes_total", "")
		w.dial(query).expect(w.feed.all)
		text += frames(w.feed.all)
		eventually(t, "what was sent is counted", func() bool { return w.metric("slipstream_sent_json_bytes_total", "") == text })
		saved := frames(w.feed.all) - (w.metric("slipstream_sent_bytes_total", "") - before)
		if compressed := strings.Contains(query, "compress"); compressed && saved < frames(w.feed.all)/4 || !compressed && saved > 0 {
			t.Errorf("%s: %v bytes are saved of %v", query, saved, frames(w.feed.all))
		}
	}
	before := w.metric("slipstream_sent_json_bytes_total", "")
	w.dial("cursor=1&wantedDids=" + w.feed.all[7].did).next()
	eventually(t, "a few are counted", func() bool { return w.metric("slipstream_sent_json_bytes_total", "") > before })
}
