package main

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// isClosed reports whether the other end of a pipe has been closed.
func isClosed(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return err == io.EOF
}

func TestLobby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		l := newLobby(2, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&said, nil)))
		var ours, theirs [6]net.Conn
		for i := range ours {
			ours[i], theirs[i] = net.Pipe()
		}
		begin := time.Now()
		admitted := func(i int, after time.Duration) {
			t.Helper()
			l.state(ours[i], http.StateNew)
			if got := time.Since(begin).Round(100 * time.Millisecond); got != after {
				t.Errorf("connection %d was admitted after %v, want %v", i, got, after)
			}
		}
		admitted(0, 0)
		admitted(1, 0)
		// Two are inside: who comes waits for one of them to become a subscriber, or to go.
		time.AfterFunc(time.Second, func() { l.state(ours[1], http.StateHijacked) })
		admitted(2, time.Second)
		// The oldest has been there for two seconds while nobody else has moved on.
		admitted(3, 2*time.Second)
		for i, want := range []bool{true, false, false, false} {
			if got := isClosed(theirs[i]); got != want {
				t.Errorf("connection %d: closed %v, want %v", i, got, want)
			}
		}
		l.state(ours[0], http.StateClosed) // as net/http says then
		time.AfterFunc(500*time.Millisecond, func() { l.state(ours[2], http.StateClosed) })
		admitted(4, 2500*time.Millisecond)
		// Whoever has been inside for long makes room at once, and only one is told of.
		time.Sleep(10 * time.Second)
		begin = time.Now()
		admitted(5, 0)
		if isClosed(theirs[4]) || !isClosed(theirs[3]) {
			t.Error("not the oldest was closed")
		}
		for _, i := range []int{3, 4, 5, 5} {
			l.state(ours[i], http.StateClosed)
		}
		if l.order.Len()+len(l.index) != 0 {
			t.Errorf("%d and %d are inside when all have left", l.order.Len(), len(l.index))
		}
		if n := strings.Count(said.String(), "\n"); n != 1 {
			t.Errorf("it says:\n%s", &said)
		}
		for i := range ours {
			ours[i].Close()
			theirs[i].Close()
		}
	})
}

// Who carries subscribers without websockets is not in the lobby, until the last of them is
// gone.
func TestLobbyStreaming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(2, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		var ours, theirs [5]net.Conn
		for i := range ours {
			ours[i], theirs[i] = net.Pipe()
			defer ours[i].Close()
			defer theirs[i].Close()
		}
		begin := time.Now()
		admitted := func(i int, after time.Duration) {
			t.Helper()
			l.state(ours[i], http.StateNew)
			if got := time.Since(begin).Round(100 * time.Millisecond); got != after {
				t.Errorf("connection %d was admitted after %v, want %v", i, got, after)
			}
		}
		inside := func(want int) {
			t.Helper()
			if n := l.order.Len(); n != want {
				t.Errorf("%d are inside, want %d", n, want)
			}
		}
		admitted(0, 0)
		l.streaming(ours[0], true)
		l.streaming(ours[0], true)
		inside(0)
		admitted(1, 0)
		admitted(2, 0)
		l.streaming(ours[0], false)
		inside(2)
		time.AfterFunc(time.Second, func() { l.streaming(ours[1], true) })
		admitted(3, time.Second)
		// However long it has streamed, who comes back is the youngest, and lets nobody in.
		l.streaming(ours[0], false)
		inside(3)
		time.AfterFunc(500*time.Millisecond, func() { l.state(ours[3], http.StateClosed) })
		admitted(4, 2*time.Second)
		for i, want := range []bool{false, false, true} {
			if isClosed(theirs[i]) != want {
				t.Errorf("connection %d: closed %v, want %v", i, !want, want)
			}
		}
		// It may be closed before its subscribers are gone.
		l.state(ours[1], http.StateClosed)
		l.streaming(ours[1], false)
		for i := range ours {
			l.state(ours[i], http.StateClosed)
		}
		if inside(0); len(l.index) != 0 {
			t.Errorf("%d are known when all have left", len(l.index))
		}
	})
}

// A crowd of connections that never finish their request does not keep a consumer out
// for long, and when it goes nothing of it stays.
func TestSlowHandshakes(t *testing.T) {
	t.Parallel() // it waits, mostly
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 91, Loop: 10, Total: 10})
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	p := limitedProcess(t, "-n 4096", "serve", "--upstream-url", upstream, "--data-dir", t.TempDir(),
		"--listen-addr", addr, "--metrics-listen-addr", metrics)
	waitHealthy(t, addr)
	http.DefaultClient.CloseIdleConnections()
	places := 4096 / 8
	before := scrape(t, metrics)["process_open_fds"]
	var crowd []net.Conn
	come := func(n int) {
		for range n {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			crowd = append(crowd, c)
			io.WriteString(c, "GET /subscribe HTTP/1.1\r\nHost: x\r\n")
		}
	}
	leave := func() {
		for _, c := range crowd {
			c.Close()
		}
		crowd = nil
	}
	defer leave()
	stream, err := http.Get("http://" + addr + "/subscribe")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	come(places + 200)
	begin := time.Now()
	dialer := websocket.Dialer{HandshakeTimeout: 9 * time.Second} // less than the header timeout
	ws, _, err := dialer.Dial("ws://"+addr+"/subscribe", nil)
	if err != nil {
		t.Fatalf("a consumer is kept out: %v; the process said:\n%s", err, p.Output)
	}
	defer ws.Close()
	t.Logf("the consumer got in after %v", time.Since(begin).Round(time.Millisecond))
	// The one without a websocket, who came first of all, has not had to go.
	testproc.WaitFor(t, "both subscribers", func() bool { return scrape(t, metrics)["slipstream_subscribers"] == 2 })
	m := scrape(t, metrics)
	if m["slipstream_http_connections_refused_total"] < 200 || m["slipstream_subscribers"] != 2 {
		t.Errorf("%v connections were refused, %v subscribers are there", m["slipstream_http_connections_refused_total"], m["slipstream_subscribers"])
	}
	if got := m["process_open_fds"]; got > before+float64(places)+20 {
		t.Errorf("%v descriptors are open, %v were", got, before)
	}
	if n := strings.Count(p.Output.String(), "ask for nothing"); n != 1 {
		t.Errorf("%d lines tell of it", n)
	}
	leave()
	testproc.WaitFor(t, "the crowd's end", func() bool { return scrape(t, metrics)["process_open_fds"] <= before+10 })
	if got := scrape(t, metrics)["slipstream_subscribers"]; got != 2 {
		t.Errorf("%v subscribers are left", got)
	}
	// A full lobby does not hold up the end.
	ws.Close()
	come(places + 10)
	p.End(t)
}

// Far more honest handshakes at once than there are places are all served.
func TestHandshakeStorm(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 92, Loop: 10, Total: 10})
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	limitedProcess(t, "-n 2048", "serve", "--upstream-url", upstream, "--data-dir", t.TempDir(),
		"--listen-addr", addr, "--metrics-listen-addr", metrics)
	waitHealthy(t, addr)
	const consumers = 600 // of 692, in a lobby of 256
	start, errs := make(chan struct{}), make(chan error, consumers)
	all := make(chan *websocket.Conn, consumers)
	for range consumers {
		go func() {
			<-start
			ws, _, err := websocket.DefaultDialer.Dial("ws://"+addr+"/subscribe", nil)
			if err == nil {
				all <- ws
			}
			errs <- err
		}()
	}
	close(start)
	for range consumers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	close(all)
	// A handshake is answered before the subscriber is counted.
	testproc.WaitFor(t, "every subscriber", func() bool { return scrape(t, metrics)["slipstream_subscribers"] == consumers })
	m := scrape(t, metrics)
	if m["slipstream_http_connections_refused_total"] != 0 || m["slipstream_subscribers"] != consumers {
		t.Errorf("%v connections were refused, %v subscribers are there", m["slipstream_http_connections_refused_total"], m["slipstream_subscribers"])
	}
	for ws := range all {
		ws.Close()
	}
	testproc.WaitFor(t, "their end", func() bool { return scrape(t, metrics)["slipstream_subscribers"] == 0 })
}
