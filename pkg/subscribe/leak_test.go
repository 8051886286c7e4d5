package subscribe_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/subscribe"
)

// descriptors returns how many files the process has open, its clients' ends of
// connections included.
func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("cannot count descriptors here:", err)
	}
	return len(open)
}

// TestNothingLeaks: whatever way connections end, no goroutine and no descriptor stays.
func TestNothingLeaks(t *testing.T) { onBothWires(t, testNothingLeaks) }

func testNothingLeaks(t *testing.T, v2 bool) {
	w := newWorld(t, func(s *settings) { s.sub.StallTimeout = time.Minute })
	w.v2 = v2
	w.feed.flood(20_000, 1000)
	ways := []struct {
		query string
		end   func(r *raw)
	}{
		{"", func(r *raw) {}},
		{"cursor=1", func(r *raw) {}}, // in the middle of a write
		{"cursor=1", func(r *raw) { r.conn.SetLinger(0) }},
		{map[bool]string{false: "requireHello=true"}[v2], func(r *raw) {}},
		{"", func(r *raw) { r.write(masked(0x88, []byte("\x03\xe8"))) }},
		{"", func(r *raw) { r.write(masked(0x81, []byte("no options"))) }},
		{"", func(r *raw) { r.write([]byte{0x81, 0x00}) }},       // no mask
		{"cursor=1", func(r *raw) { r.write([]byte{0x81}) }},     // half a header
		{"", func(r *raw) { r.write(maskedHeader(0x81, 1000)) }}, // no payload
		{"cursor=1", func(r *raw) {
			if err := r.follows(start+1, start+20_000); err != nil {
				r.t.Error(err)
			}
		}},
	}
	round := func(n int) {
		t.Helper()
		for i := range n {
			way := ways[i%len(ways)]
			r := w.dialRaw(way.query, 4<<10)
			way.end(r)
			r.conn.Close()
		}
		w.connected(0)
		http.DefaultClient.CloseIdleConnections()
	}
	round(len(ways)) // whatever is made once is made
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	round(300)
	// A few more may come and go in the store and in net/http.
	const slack = 5
	var n, open int
	eventually(t, "goroutines and descriptors are gone", func() bool {
		n, open = runtime.NumGoroutine(), descriptors(t)
		return n <= goroutines+slack && open <= files+slack
	})
	if got := w.handshakes(); got != float64(300+len(ways)) {
		t.Errorf("%v handshakes counted", got)
	}
	if got := w.metric("slipstream_subscribers", ""); got != 0 {
		t.Errorf("%v consumers are shown as connected", got)
	}
}

// TestShutdown: every consumer that can be told is told, and one that reads nothing
// holds nobody up.
func TestShutdown(t *testing.T) { onBothWires(t, testShutdown) }

func testShutdown(t *testing.T, v2 bool) {
	w := newWorld(t, nil)
	w.v2 = v2
	w.feed.flood(20_000, 1000)
	blocked := w.dialRaw("cursor=1", small)
	w.blocked(1)
	told := []*client{w.dial(""), w.dial(map[bool]string{false: "requireHello=true"}[v2]), w.dial(fmt.Sprint("cursor=", w.log.Last()+1))}
	replay := w.dialRaw("cursor=1", 0)
	if err := replay.follows(start+1, start+100); err != nil {
		t.Fatal(err)
	}
	w.connected(5)
	stopped := make(chan struct{})
	go func() { defer close(stopped); w.stop() }()
	for _, c := range told {
		c.expectClose(websocket.CloseGoingAway, "shutting down")
		c.ws.Close()
	}
	for at := start + 101; ; at++ {
		op, p, err := replay.frame()
		if err != nil {
			t.Fatal(err)
		}
		if op == websocket.CloseMessage {
			if !strings.HasPrefix(string(p), "\x03\xe9") || !strings.Contains(string(p), "cursor") {
				t.Errorf("the one in replay got %q", p)
			}
			break
		}
		if !strings.Contains(string(p), cursorText(at, v2)) {
			t.Fatalf("instead of event %d: %.200q", at-start, p)
		}
	}
	replay.conn.Close()
	select {
	case <-stopped:
	case <-time.After(subscribe.CloseTimeout + patience):
		t.Fatal("Run waits for the consumer that reads nothing")
	}
	io.Copy(io.Discard, blocked.br) // until its connection is over; it is a reset
	if n := w.srv.Count(); n != 0 {
		t.Errorf("%d consumers are left", n)
	}
	if resp, body := get(t, "http://"+w.addr+paths[v2], "Connection", "Upgrade", "Upgrade", "websocket",
		"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("who comes now gets %d %q", resp.StatusCode, body)
	}
}

// TestMaxRate: a limited consumer gets everything in order, and not faster than it may.
func TestMaxRate(t *testing.T) {
	t.Parallel()
	const rate, events = 1000, 3000
	w := newWorld(t, func(s *settings) { s.sub.MaxRate = rate })
	w.feed.flood(events, 100)
	begun := time.Now()
	c := w.dialRaw("cursor=1", 0)
	if err := c.follows(start+1, start+events); err != nil {
		t.Fatal(err)
	}
	// A second's worth may come at once.
	if least := (events - rate) * time.Second / rate; time.Since(begun) < least {
		t.Errorf("%d events in %s, in less than %s", events, time.Since(begun), least)
	}
}
