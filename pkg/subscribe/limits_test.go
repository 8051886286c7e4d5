package subscribe_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/subscribe"
)

// refused connects and returns how that was refused.
func (w *world) refused(query string, header http.Header) (status int, body string) {
	w.t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+w.addr+"/subscribe?"+query, header)
	if err == nil {
		ws.Close()
		w.t.Fatal("nothing was refused")
	}
	if resp == nil {
		w.t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	if status = resp.StatusCode; resp.Header.Get("Retry-After") == "" {
		w.t.Errorf("%d %s does not say when to come again", status, b)
	}
	return status, string(b)
}

// TestLimits: who is one too many is told so, and let in when there is room again.
func TestLimits(t *testing.T) {
	w := newWorld(t, func(s *settings) {
		s.sub.MaxSubscribers, s.sub.MaxSubscribersPerIP, s.sub.MaxFilterDIDs = 4, 2, 10
		s.sub.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	from := func(addr string) http.Header { return http.Header{"X-Forwarded-For": {addr}} }
	w.feed.posts(1, 1)
	first := w.dial("", "X-Forwarded-For", "192.0.2.1")
	w.dial("", "X-Forwarded-For", "203.0.113.9, 192.0.2.1")
	if status, body := w.refused("", from("192.0.2.1")); status != http.StatusTooManyRequests || !strings.Contains(body, "at most 2 connections") {
		t.Errorf("a third of one address: %d %s", status, body)
	}
	w.dial("wantedDids=did:plc:a,did:plc:b", "X-Forwarded-For", "192.0.2.2")
	if status, body := w.refused(repeat("wantedDids", "did:plc:%d", 9), from("192.0.2.3")); status != http.StatusServiceUnavailable || !strings.Contains(body, "at most 10 DIDs") {
		t.Errorf("nine DIDs beside two: %d %s", status, body)
	}
	// What a request asks for is looked at before what it may have.
	if _, resp, _ := websocket.DefaultDialer.Dial("ws://"+w.addr+"/subscribe?wantedDids=x", from("192.0.2.1")); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a bad request of a full address: %d", resp.StatusCode)
	}
	fourth := w.dial(repeat("wantedDids", "did:plc:%d", 8), "X-Forwarded-For", "192.0.2.3")
	if status, body := w.refused("", from("192.0.2.4")); status != http.StatusServiceUnavailable || !strings.Contains(body, "at most 4 consumers") {
		t.Errorf("a fifth: %d %s", status, body)
	}
	// An update may take as many DIDs as the connection has, and no more.
	fourth.send(`{"type":"options_update","payload":{"wantedDids":["did:plc:1","did:plc:2"]}}`)
	w.pingPong(fourth)
	w.feed.add(event.KindIdentity, "did:plc:2", "", "")
	w.feed.commit()
	fourth.expect(w.feed.all[1:])
	fourth.send(`{"type":"options_update","payload":{"wantedDids":["did:plc:1","did:plc:2","did:plc:3","did:plc:4","did:plc:5","did:plc:6","did:plc:7","did:plc:8","did:plc:9"]}}`)
	fourth.expectClose(websocket.CloseTryAgainLater, "wantedDids: the filters of all consumers together are full")
	fourth.ws.Close()
	first.ws.Close()
	w.connected(2)
	w.dial(repeat("wantedDids", "did:plc:%d", 8), "X-Forwarded-For", "192.0.2.1")
	for reason, want := range map[string]float64{"server_full": 1, "address_full": 1, "filter_budget": 1, "bad_request": 1} {
		if got := w.metric("slipstream_subscribes_refused_total", reason); got != want {
			t.Errorf("%s: counted %v, want %v", reason, got, want)
		}
	}
	if n := w.ended("filter_budget"); n != 1 {
		t.Errorf("%v ended for their DIDs, want 1", n)
	}
}

// TestSetLimits: limits change while the server runs, for who comes next or for everybody;
// nobody is disconnected.
func TestSetLimits(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.sub.MaxFilterDIDs = 10 })
	from := func(addr string) http.Header { return http.Header{"X-Forwarded-For": {addr}} }
	w.feed.posts(3, 1)
	a, b := w.dial(repeat("wantedDids", "did:plc:%d", 8)), w.dial("")
	w.connected(2)

	w.srv.SetLimits(subscribe.Limits{MaxSubscribers: 1, MaxFilterDIDs: 4})
	if status, body := w.refused("", nil); status != http.StatusServiceUnavailable || !strings.Contains(body, "at most 1 consumers") {
		t.Errorf("a third where one is allowed: %d %s", status, body)
	}
	w.srv.SetLimits(subscribe.Limits{MaxFilterDIDs: 4})
	if status, body := w.refused("wantedDids=did:plc:x", nil); status != http.StatusServiceUnavailable || !strings.Contains(body, "at most 4 DIDs") {
		t.Errorf("a DID more than too many: %d %s", status, body)
	}
	w.dial("").ws.Close() // which wants none
	w.connected(2)
	w.pingPong(a)
	w.pingPong(b)

	// Addresses are counted from before there was a limit, by what is believed when they come.
	proxies := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	w.srv.SetLimits(subscribe.Limits{TrustedProxies: proxies})
	c := w.dial("", "X-Forwarded-For", "192.0.2.1")
	w.srv.SetLimits(subscribe.Limits{TrustedProxies: proxies, MaxSubscribersPerIP: 1})
	if status, body := w.refused("", from("192.0.2.1")); status != http.StatusTooManyRequests {
		t.Errorf("a second of one address: %d %s", status, body)
	}
	w.srv.SetLimits(subscribe.Limits{MaxSubscribersPerIP: 1})
	w.dial("", "X-Forwarded-For", "192.0.2.1").ws.Close() // it is this host now
	w.connected(3)

	// The rate changes for who is there.
	w.srv.SetLimits(subscribe.Limits{MaxRate: 100})
	w.feed.posts(150, 150)
	begun := time.Now()
	c.expect(w.feed.all[3:])
	if took := time.Since(begun); took < 400*time.Millisecond {
		t.Errorf("150 events at 100 a second took %s", took)
	}
	w.srv.SetLimits(subscribe.Limits{})
	w.feed.posts(20_000, 1000) // minutes, at that rate
	c.expect(w.feed.all[153:])

	// So does the timeout: who reads nothing was within the old one.
	a.ws.Close()
	b.ws.Close()
	w.connected(1)
	stalled := w.dialRaw("cursor=1", small)
	w.blocked(1)
	w.srv.SetLimits(subscribe.Limits{StallTimeout: time.Second})
	eventually(t, "the stalled consumer is ended", func() bool { return w.ended("stalled") == 1 })
	stalled.conn.Close()
}

// TestLargeQueryOfOneTooMany: for whom there is no place, what takes memory is not looked at, as
// a query that is wrong shows.
func TestLargeQueryOfOneTooMany(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.sub.MaxSubscribers = 1 })
	w.dial("")
	large := strings.Repeat("x", 20<<10)
	for path, want := range map[string]string{
		"/subscribe?wantedDids=":                             "server is full",
		"/xrpc/network.bsky.jetstream.subscribeEvents?dids=": "ServiceUnavailable",
	} {
		for query, status := range map[string]int{"x": http.StatusBadRequest, large: http.StatusServiceUnavailable} {
			resp, err := http.Get("http://" + w.addr + path + query)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != status || status == http.StatusServiceUnavailable && (!strings.Contains(string(body), want) || resp.Header.Get("Retry-After") == "") {
				t.Errorf("%s, %d bytes: %s %s", path, len(query), resp.Status, body)
			}
		}
	}
	if n := w.metric("slipstream_subscribes_refused_total", "server_full"); n != 2 {
		t.Errorf("%v counted, want 2", n)
	}
}

// TestLongNames: what is bounded is memory.
func TestLongNames(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.sub.MaxFilterDIDs = 33 })
	long := "did:web:" + strings.Repeat("a", 2000)
	w.dial("wantedDids=" + long).ws.Close()
	w.connected(0)
	if status, body := w.refused("wantedDids="+long+"&wantedDids="+long+"b", nil); status != http.StatusServiceUnavailable {
		t.Errorf("two DIDs of 2 KB: %d %s", status, body)
	}
	if status, body := w.refused(repeat("wantedCollections", "app.test.c%d.x", 34), nil); status != http.StatusServiceUnavailable {
		t.Errorf("34 collections: %d %s", status, body)
	}
}

// TestTurns: who is served from memory needs no turn to read from disk, nor does a control
// frame, nor a hello.
func TestTurns(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.log.WindowBytes = 64 << 10 })
	w.feed.posts(2000, 100)
	release := w.srv.HoldTurns()
	replay := w.dial("cursor=1")
	eventually(t, "it waits for its turn", func() bool { return w.srv.Queued() == 1 })
	live, hello := w.dial(""), w.dial("requireHello=true")
	w.pingPong(live)
	w.pingPong(hello)
	hello.send(`{"type":"options_update"}`)
	w.pingPong(hello)
	w.begun() // the pong may have come a moment before
	w.feed.posts(20, 10)
	live.expect(w.feed.all[2000:])
	hello.expect(w.feed.all[2000:])
	recent := w.dial(fmt.Sprint("cursor=", w.feed.all[2005].cursor))
	recent.expect(w.feed.all[2005:])
	release()
	replay.expect(w.feed.all)
}

// TestLargeMessages: only so many are read at a time.
func TestLargeMessages(t *testing.T) {
	w := newWorld(t, nil)
	var slow []*raw
	for range subscribe.LargeMessages {
		r := w.dialRaw("", 0)
		r.write(maskedHeader(0x81, 1<<20))
		r.write(make([]byte, 8<<10))
		slow = append(slow, r)
	}
	eventually(t, "they are being read", func() bool { return w.srv.Reading() == subscribe.LargeMessages })
	c := w.dial("wantedDids=did:plc:nobody")
	message := `{"type":"options_update","payload":{"wantedDids":["did:plc:a"]}}`
	c.send(message + strings.Repeat(" ", 8<<10))
	w.begun()
	w.feed.add(event.KindIdentity, "did:plc:a", "", "")
	w.feed.commit()
	w.feed.add(event.KindIdentity, "did:plc:nobody", "", "")
	w.feed.commit()
	c.expect(w.feed.all[1:]) // the update is not in force yet
	slow[0].conn.Close()
	w.pingPong(c)
	w.feed.add(event.KindIdentity, "did:plc:a", "", "")
	w.feed.commit()
	c.expect(w.feed.all[2:])
	for _, r := range slow {
		r.conn.Close()
	}
	w.connected(1)
	if n := w.srv.Reading(); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}

// TestUnfinishedMessage: who does not complete a large message loses its place, and is told
// why. One that is complete leaves no deadline behind.
func TestUnfinishedMessage(t *testing.T) {
	w := newWorld(t, nil)
	w.srv.SetMessageTimeout(300 * time.Millisecond)
	done := w.dial("wantedDids=did:plc:nobody")
	done.send(`{"type":"options_update","payload":{}}` + strings.Repeat(" ", 8<<10))
	w.pingPong(done)
	r := w.dialRaw("", 0)
	r.write(maskedHeader(0x81, 1<<20))
	r.write(make([]byte, 8<<10))
	op, p, err := r.frame()
	if err != nil || op != websocket.CloseMessage || !strings.HasPrefix(string(p), "\x03\xf0a message must be complete within 300ms") {
		t.Errorf("got %d %q %v", op, p, err)
	}
	r.conn.Close()
	w.connected(1)
	w.feed.posts(1, 1)
	done.expect(w.feed.all)
	if n := w.ended("bad_options_update"); n != 1 {
		t.Errorf("%v ended, want 1", n)
	}
}

// certificate returns one for this test.
func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// records counts the TLS records that a client reads.
type records struct {
	net.Conn
	n    *atomic.Int64
	head []byte // of a record whose header is not complete
	rest int    // bytes of the current record that are to come
}

func (r *records) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if r.rest > 0 {
			k := min(r.rest, len(b))
			r.rest, b = r.rest-k, b[k:]
			continue
		}
		r.head, b = append(r.head, b[0]), b[1:]
		if len(r.head) == 5 { // RFC 8446, section 5.1
			r.n.Add(1)
			r.rest, r.head = int(r.head[3])<<8|int(r.head[4]), nil
		}
	}
	return n, err
}

// TestTLS: a filtered stream comes whole and in order in few records, a slow reader holds
// nobody up, one that reads nothing is ended, and the others are told that it is over.
func TestTLS(t *testing.T) {
	var seen atomic.Int64
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	w := newWorld(t, func(s *settings) {
		s.sub.StallTimeout = 2 * time.Second
		s.wrap = func(l net.Listener) net.Listener { return tls.NewListener(l, config) }
	})
	for i := range 4000 {
		w.feed.add(event.KindIdentity, []string{"did:plc:a", "did:plc:b"}[i%2], "", "")
	}
	w.feed.commit()
	w.feed.posts(6000, 500)
	dial := func(query string, buffer int) *client {
		dialer := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, NetDial: func(network, addr string) (net.Conn, error) {
			c, err := net.Dial(network, addr)
			if err == nil && buffer > 0 {
				err = c.(*net.TCPConn).SetReadBuffer(buffer)
			}
			return &records{Conn: c, n: &seen}, err
		}}
		ws, _, err := dialer.Dial("wss://"+w.addr+"/subscribe?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.Close() })
		return &client{t: t, ws: ws}
	}
	stalled := dial("cursor=1", small)
	w.blocked(1)
	seen.Store(0)
	filtered := dial("cursor=1&wantedDids=did:plc:a", 0)
	filtered.expect(plain{DIDs: []string{"did:plc:a"}}.of(w.feed.all))
	// 2,000 runs of one event each, 340 KB; Go's first records are of a packet's size.
	if n := seen.Load(); n > 500 {
		t.Errorf("%d records", n)
	}
	all := dial("cursor=1", 0)
	all.expect(w.feed.all)
	eventually(t, "the stalled consumer is ended", func() bool { return w.ended("stalled") == 1 })
	if _, err := io.Copy(io.Discard, stalled.ws.NetConn()); err == nil {
		t.Error("the stalled consumer is told that all is well")
	}
	all.send("no options")
	all.expectClose(websocket.ClosePolicyViolation, "JSON")
	go w.stop()
	filtered.expectClose(websocket.CloseGoingAway, "shutting down")
}

// TestStorm: everybody comes at once, gets what is sent then, and goes; nothing stays.
func TestStorm(t *testing.T) {
	n := 2000
	if testing.Short() {
		n = 300
	}
	if open := descriptors(t); open+2*n > 9000 {
		n = 1000
	}
	w := newWorld(t, nil)
	w.feed.posts(2000, 20)
	storm := func(n int) {
		t.Helper()
		var served atomic.Int64
		var group sync.WaitGroup
		come, goes := make(chan struct{}), make(chan struct{})
		for range n {
			group.Go(func() {
				<-come
				ws, _, err := websocket.DefaultDialer.Dial("ws://"+w.addr+"/subscribe?wantedDids=did:plc:late", nil)
				if err != nil {
					t.Error(err)
					served.Add(1)
					return
				}
				defer ws.Close()
				ws.SetReadDeadline(time.Now().Add(2 * patience))
				if _, m, err := ws.ReadMessage(); err != nil || !strings.Contains(string(m), "did:plc:late") {
					t.Errorf("got %.100s, %v", m, err)
				}
				served.Add(1)
				<-goes
			})
		}
		close(come)
		w.connected(n)
		w.feed.add(event.KindIdentity, "did:plc:late", "", "")
		w.feed.commit()
		eventually(t, "all are served", func() bool { return served.Load() == int64(n) })
		close(goes)
		group.Wait()
		w.connected(0)
	}
	storm(100) // whatever is made once is made
	goroutines, files, heap := runtime.NumGoroutine(), descriptors(t), heapAfterGC()
	storm(n)
	// A few more may come and go in the store and in net/http.
	const slack = 5
	var g, open int
	eventually(t, "goroutines and descriptors are gone", func() bool {
		g, open = runtime.NumGoroutine(), descriptors(t)
		return g <= goroutines+slack && open <= files+slack
	})
	if after := heapAfterGC(); after > heap+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", heap, after)
	}
	if left := w.srv.Interests(); left != 0 {
		t.Errorf("%d entries are left in the index", left)
	}
}
