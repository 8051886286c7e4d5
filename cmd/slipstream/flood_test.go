package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// slowly writes a text in parts until it is through or the connection is over.
func slowly(c net.Conn, text string, part int, pause time.Duration) {
	for len(text) > 0 {
		n := min(part, len(text))
		if _, err := io.WriteString(c, text[:n]); err != nil {
			return
		}
		text = text[n:]
		time.Sleep(pause)
	}
}

// All that takes memory, at once: headers of a megabyte that do not end, filters as large as they
// may be, messages of a megabyte that do not end, consumers that read nothing, and floods. The
// daemon stays within its bound, and serves who comes with something small.
func TestMemoryBound(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute, and under the race detector memory is no figure")
	}
	const (
		lobby, consumers = 256, 400
		dids             = 100_000
		// 60 MB to begin with, 8 headers of 7 MB with their queries, 248 small ones of 30 KB, 32 messages
		// of 4 MB, 400 consumers of 13 KB, 32 MB of what they have yet to take, 16 MB of filters: 310 MB.
		bound = 310e6
	)
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 91, Loop: 2000, Rate: 2000, Total: 1 << 40, WallClock: true})
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	limitedProcess(t, "-n 2048", "serve", "--upstream-url", upstream, "--data-dir", t.TempDir(), "--listen-addr", addr, "--metrics-listen-addr", metrics,
		"--max-subscribers", fmt.Sprint(consumers), "--max-filter-dids", fmt.Sprint(dids+200))
	waitHealthy(t, addr)
	testproc.WaitFor(t, "something to replay", func() bool { return scrape(t, metrics)["slipstream_buffer_events"] > 10_000 })

	ctx, end := context.WithCancel(t.Context())
	var attackers sync.WaitGroup
	defer attackers.Wait()
	defer end()
	attack := func(n int, f func(i int)) {
		for i := range n {
			attackers.Go(func() {
				for ctx.Err() == nil {
					f(i)
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
	}
	connect := func() (net.Conn, error) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			context.AfterFunc(ctx, func() { c.Close() })
		}
		return c, err
	}
	var in [4]atomic.Int64
	stream := func(kind int, query string, messages ...string) {
		ws, _, err := (&websocket.Dialer{HandshakeTimeout: testproc.Patience}).DialContext(ctx, "ws://"+addr+"/subscribe?"+query, nil)
		if err != nil {
			return
		}
		context.AfterFunc(ctx, func() { ws.Close() })
		in[kind].Add(1)
		for _, m := range messages {
			io.WriteString(ws.NetConn(), m)
		}
		if messages == nil {
			<-ctx.Done()
		}
		io.Copy(io.Discard, ws.NetConn())
		ws.Close()
	}
	filters := make([]string, dids/5000)
	for i := range filters {
		var q strings.Builder
		for j := range 100 {
			fmt.Fprintf(&q, "&wantedCollections=app.test.c%d.x%d", i, j)
		}
		for j := range 4900 {
			fmt.Fprintf(&q, "&wantedDids=did:plc:aaaaaaaaaaaaaa%03d%07d", i, j)
		}
		filters[i] = q.String()[1:]
	}
	// First who has to get in, then who keeps others out.
	attack(len(filters), func(i int) { stream(0, filters[i]) })
	testproc.WaitFor(t, "the filters", func() bool { return scrape(t, metrics)["slipstream_filter_dids"] > 0.9*dids })
	// A frame of a megabyte of which all but the last byte comes, masked with zeros.
	large := "\x81\xff\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00" + strings.Repeat(" ", 1<<20-1)
	attack(64, func(int) { stream(1, "wantedDids=did:plc:none", large) })
	attack(100, func(int) { stream(2, "cursor=1") })
	attack(20, func(int) {
		stream(3, "wantedDids=did:plc:none", strings.Repeat("\x81\x82\x00\x00\x00\x00{}", 10_000), strings.Repeat("\x89\x80\x00\x00\x00\x00", 10_000))
	})
	testproc.WaitFor(t, "the consumers", func() bool { return in[1].Load() >= 64 && in[2].Load() >= 100 && in[3].Load() >= 20 })
	attack(lobby+100, func(i int) {
		c, err := connect()
		if err != nil {
			return
		}
		defer c.Close()
		slowly(c, "GET /subscribe?wantedDids="+strings.Repeat("x", 1<<20), 64<<10, time.Millisecond)
		io.Copy(io.Discard, c)
	})
	attack(20, func(int) { // come and go
		if c, err := connect(); err == nil {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			c.Close()
		}
	})

	var most float64
	for range 80 {
		most = max(most, scrape(t, metrics)["process_resident_memory_bytes"])
		time.Sleep(100 * time.Millisecond)
	}
	end()
	attackers.Wait()
	m := scrape(t, metrics)
	t.Logf("%.0f MB at most; %d with filters, %d with messages, %d that read nothing, %d floods; %v connections refused",
		most/1e6, in[0].Load(), in[1].Load(), in[2].Load(), in[3].Load(), m["slipstream_http_connections_refused_total"])
	if most > bound {
		t.Errorf("%.0f MB resident, at most %.0f should be", most/1e6, bound/1e6)
	}
	if m["slipstream_http_connections_refused_total"] == 0 {
		t.Error("no connection was refused")
	}
	// It is as if nothing had been; what the floods have left in the kernel is not read at once.
	testproc.WaitFor(t, "their end", func() bool { return scrape(t, metrics)["slipstream_subscribers"] <= 20 })
	for _, query := range []string{"cursor=1", filters[0] + "&cursor=1"} {
		dial(t, addr, query).Close()
	}
}

// What is too large for a request is refused with a status, or ended; what is large and allowed is
// not, and more of it at a time than are read at a time come in turn.
func TestRequestLimits(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 92, Loop: 10, Total: 10})
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	serveProcess(t, upstream, t.TempDir(), addr, metrics)
	status := func(head string) int {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(testproc.Patience))
		go io.WriteString(c, head)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%.40q: %v", head, err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	mega := strings.Repeat("x", 1<<20)
	upgrade := "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for name, c := range map[string]struct {
		head string
		want int
	}{
		"a query of a megabyte and one": {"GET /subscribe?x=" + mega + " HTTP/1.1\r\n" + upgrade + "\r\n", http.StatusBadRequest},
		"a query just below it":         {"GET /subscribe?x=" + mega[:len(mega)-2] + " HTTP/1.1\r\n" + upgrade + "\r\n", http.StatusSwitchingProtocols},
		"a URL of two megabytes":        {"GET /subscribe?x=" + mega + mega + " HTTP/1.1\r\n" + upgrade + "\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"a header line of two":          {"GET /subscribe HTTP/1.1\r\n" + upgrade + "X: " + mega + mega + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"two megabytes of header lines": {"GET /subscribe HTTP/1.1\r\n" + upgrade + strings.Repeat("X: "+mega[:1000]+"\r\n", 2000) + "\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"a method of two megabytes":     {mega + mega + " / HTTP/1.1\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
	} {
		if got := status(c.head); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}

	var query strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&query, "&wantedDids=did%%3Aplc%%3Aaaaaaaaaaaaaaaa%010d", i)
	}
	errs := make(chan error)
	for range 2 * largeHeaders {
		go func() {
			ws, _, err := (&websocket.Dialer{HandshakeTimeout: testproc.Patience}).Dial("ws://"+addr+"/subscribe?"+query.String()[1:], nil)
			if err == nil {
				ws.Close()
			}
			errs <- err
		}()
	}
	for range 2 * largeHeaders {
		if err := <-errs; err != nil {
			t.Errorf("10,000 wantedDids: %v", err)
		}
	}
	// A connection that is kept alive has its turn each time, and leaves it.
	client := http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for range 2 * largeHeaders {
		resp, err := client.Get("http://" + addr + "/?x=" + mega[:20<<10])
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if n := scrape(t, metrics)["slipstream_http_connections_refused_total"]; n != 0 {
		t.Errorf("%v connections were refused", n)
	}
}

// Who takes ten seconds for a request, or for a TLS handshake, byte by byte or not at all, is cut
// off, and keeps nobody out meanwhile. HTTP/2 has the smaller limit.
func TestSlowRequests(t *testing.T) {
	t.Parallel() // it waits, mostly
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 93, Loop: 10, Total: 10})
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, cert, key, 1)
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if chain, err := os.ReadFile(cert); err != nil || !config.RootCAs.AppendCertsFromPEM(chain) {
		t.Fatal(err)
	}
	addr := testproc.FreeAddr(t)
	startProcess(t, nil, "serve", "--upstream-url", upstream, "--data-dir", filepath.Join(dir, "data"), "--listen-addr", addr,
		"--metrics-listen-addr", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	testproc.WaitFor(t, "the daemon", func() bool {
		c, err := tls.Dial("tcp", addr, config)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	head := "GET /subscribe HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X: y\r\n", 1000)
	hello := "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + strings.Repeat("x", 16<<10) // of 16 KB
	ended := make(chan string)
	slow := map[string]func() (net.Conn, error){
		"no handshake": func() (net.Conn, error) { return net.Dial("tcp", addr) },
		"a slow handshake": func() (net.Conn, error) {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				go slowly(c, hello, 1, 50*time.Millisecond)
			}
			return c, err
		},
		"no request": func() (net.Conn, error) { return tls.Dial("tcp", addr, config) },
		"a slow request": func() (net.Conn, error) {
			c, err := tls.Dial("tcp", addr, config)
			if err == nil {
				go slowly(c, head, 1, 50*time.Millisecond)
			}
			return c, err
		},
	}
	for name, connect := range slow {
		c, err := connect()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			c.SetReadDeadline(time.Now().Add(testproc.Patience))
			_, err := io.Copy(io.Discard, c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				name += " is not cut off"
			}
			ended <- name
		}()
	}
	ws, _, err := (&websocket.Dialer{TLSClientConfig: config}).Dial("wss://"+addr+"/subscribe", nil)
	if err != nil {
		t.Fatal(err)
	}
	ws.Close()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	// The small one first: with its answer the client has the server's limit.
	for _, size := range []int{10 << 10, 100 << 10} {
		large := size > 64<<10
		resp, err := client.Get("https://" + addr + "/?x=" + strings.Repeat("x", size))
		if err == nil {
			resp.Body.Close()
		}
		if tooLarge := err != nil && strings.Contains(err.Error(), "larger than peer's advertised limit"); tooLarge != large || !large && (err != nil || resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK) {
			t.Errorf("HTTP/2, %d bytes: %.200v, %v", size, resp, err)
		}
	}
	for range slow {
		if name := <-ended; strings.HasSuffix(name, "is not cut off") {
			t.Error(name)
		}
	}
}
