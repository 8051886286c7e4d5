package subscribe_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/testproc"
)

// carrier is a way on which a response may come.
type carrier struct {
	name    string
	tls, h2 bool
}

var carriers = []carrier{{name: "plain"}, {name: "TLS", tls: true}, {name: "h2", tls: true, h2: true}}

// onEveryCarrier runs a test in a world for each carrier.
func onEveryCarrier(t *testing.T, test func(t *testing.T, c carrier)) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) { test(t, c) })
	}
}

// newWorld makes a world whose server offers what the daemon's does.
func (c carrier) newWorld(t testing.TB, change func(*settings)) *world {
	t.Helper()
	return newWorld(t, func(s *settings) {
		if c.tls {
			config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2", "http/1.1"}}
			s.wrap = func(l net.Listener) net.Listener { return tls.NewListener(l, config) }
		}
		if change != nil {
			change(s)
		}
	})
}

// browser is an HTTP client; on HTTP/2 it has one connection.
type browser struct {
	*http.Client
	base string
	c    carrier
}

// browser makes a client that takes some 64 KB that it does not read and no more, or what is
// usual.
func (c carrier) browser(w *world, little bool) browser {
	dialer := net.Dialer{}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: c.h2, DisableCompression: true, ReadBufferSize: 4 << 10,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err == nil && little && !c.h2 {
				err = conn.(*net.TCPConn).SetReadBuffer(32 << 10)
			}
			return conn, err
		},
	}
	if little {
		transport.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	scheme := "http"
	if c.tls {
		scheme = "https"
	}
	return browser{&http.Client{Transport: transport}, scheme + "://" + w.addr + "/subscribe", c}
}

// ofStream is a response that a test reads.
type ofStream struct {
	t      testing.TB
	resp   *http.Response
	br     *bufio.Reader
	sse    bool
	cancel func()
}

// open asks for a stream; headers are pairs. It must be answered with 200.
func (b browser) open(w *world, query string, header ...string) *ofStream {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", b.base+"?"+query, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := b.Do(req)
	if err != nil {
		w.t.Fatalf("%.100s: %v", query, err)
	}
	s := &ofStream{w.t, resp, bufio.NewReaderSize(resp.Body, 4<<10), strings.Contains(req.Header.Get("Accept"), "event-stream"), cancel}
	w.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		w.t.Fatalf("%.100s: %s %s", query, resp.Status, body)
	}
	if (resp.ProtoMajor == 2) != b.c.h2 {
		w.t.Fatalf("it came by %s", resp.Proto)
	}
	w.dials.Add(1)
	if s.sse {
		if line := s.line(); !strings.HasPrefix(line, "retry: ") || s.line() != "" {
			w.t.Fatalf("it begins with %q", line)
		}
	}
	return s
}

var asEvents = []string{"Accept", "text/event-stream"}

// tryLine reads a line without its end. It gives up when patience has passed.
func (s *ofStream) tryLine() (string, error) {
	late := time.AfterFunc(patience, s.cancel)
	defer late.Stop()
	line, err := s.br.ReadString('\n')
	if err == nil {
		line = line[:len(line)-1]
	}
	return line, err
}

func (s *ofStream) line() string {
	s.t.Helper()
	line, err := s.tryLine()
	if err != nil {
		s.t.Fatalf("after %.100q: %v", line, err)
	}
	return line
}

// next reads an event, and holds what is around it against what may be. Keep-alives are
// passed over.
func (s *ofStream) next() (payload string, err error) {
	for {
		line, err := s.tryLine()
		if err != nil {
			return line, err
		}
		if !s.sse {
			if line == "" {
				continue
			}
			return line, nil
		}
		if line == ":" {
			if blank, err := s.tryLine(); err != nil || blank != "" {
				return "", fmt.Errorf("after a comment: %q %v", blank, err)
			}
			continue
		}
		data, err := s.tryLine()
		if err != nil {
			return line, fmt.Errorf("after %q: %w", line, err)
		}
		blank, err := s.tryLine()
		if err != nil {
			return data, err
		}
		id, ok1 := strings.CutPrefix(line, "id: ")
		payload, ok2 := strings.CutPrefix(data, "data: ")
		if !ok1 || !ok2 || blank != "" || !strings.Contains(payload, `"time_us":`+id+",") {
			return "", fmt.Errorf("an event of %q, %.100q, %q", line, data, blank)
		}
		return payload, nil
	}
}

// expect reads exactly the given facts' payloads.
func (s *ofStream) expect(facts []fact) {
	s.t.Helper()
	for i, f := range facts {
		if f.payload == "" {
			continue
		}
		if got, err := s.next(); err != nil || got != f.payload {
			s.t.Fatalf("event %d of %d: %v\n got %.300s\nwant %.300s", i, len(facts), err, got, f.payload)
		}
	}
}

// mixed adds n events of all kinds, and commits them in chunks of any size.
func (f *feed) mixed(rng *rand.Rand, n int) {
	f.t.Helper()
	for i := range n {
		kind := [...]event.Kind{event.KindCommit, event.KindCommit, event.KindCommit, event.KindIdentity, event.KindAccount, event.KindSync}[rng.IntN(6)]
		collection := ""
		if kind == event.KindCommit {
			collection = []string{"app.bsky.feed.post", "app.bsky.feed.like", "com.example.thing"}[rng.IntN(3)]
		}
		text := strings.Repeat("böse \u2028 \r\n\n \"data: \"\tid: ", rng.IntN(20))
		f.add(kind, fmt.Sprintf("did:plc:%d", rng.IntN(8)), collection, text)
		if rng.IntN(15) == 0 || i == n-1 {
			f.commit()
		}
	}
}

// TestStreams: whatever is wanted, who comes without a websocket gets what one with a
// websocket gets: replayed from disk and from memory, and live, without a seam.
func TestStreams(t *testing.T) {
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		w := c.newWorld(t, func(s *settings) { s.log.WindowBytes, s.log.CacheBytes = 64<<10, 64<<10 })
		rng := rand.New(rand.NewPCG(1, 2))
		w.feed.mixed(rng, 1500)
		b := c.browser(w, false)
		dialer := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		type pair struct {
			filter  plain
			from    int
			streams []*ofStream
			ws      *client
		}
		var pairs []pair
		for i := range 12 {
			var p pair
			p.from = rng.IntN(1500)
			for _, name := range []string{"app.bsky.feed.post", "app.bsky.*", "com.example.thing"} {
				if i > 0 && rng.IntN(3) == 0 {
					p.filter.Collections = append(p.filter.Collections, name)
				}
			}
			for d := range 8 {
				if i%2 == 1 && rng.IntN(4) == 0 {
					p.filter.DIDs = append(p.filter.DIDs, fmt.Sprintf("did:plc:%d", d))
				}
			}
			if i%4 == 3 {
				p.filter.MaxSize = 300
			}
			query := p.filter.query() + fmt.Sprintf("&cursor=%d", w.feed.all[p.from].cursor)
			p.streams = []*ofStream{b.open(w, query), b.open(w, query, asEvents...)}
			ws, resp, err := dialer.Dial(strings.Replace(b.base, "http", "ws", 1)+"?"+query, nil)
			if err != nil {
				t.Fatal(err, resp)
			}
			t.Cleanup(func() { ws.Close() })
			p.ws = &client{t: t, ws: ws}
			pairs = append(pairs, p)
		}
		w.feed.mixed(rng, 500) // some meet it in the middle of their replay
		for _, p := range pairs {
			want := p.filter.of(w.feed.all[p.from:])
			p.ws.expect(want)
			for _, s := range p.streams {
				s.expect(want)
			}
		}
		// And now all are live.
		w.feed.mixed(rng, 300)
		for _, p := range pairs {
			want := p.filter.of(w.feed.all[2000:])
			p.ws.expect(want)
			for _, s := range p.streams {
				s.expect(want)
			}
		}
		if n := w.metric("slipstream_subscribes_total", "sse"); n != 12 {
			t.Errorf("%v are counted", n)
		}
	})
}

// TestStreamOfLargeEvents: an event that is larger than a write comes whole, whatever is
// given up while it waits.
func TestStreamOfLargeEvents(t *testing.T) {
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		w := c.newWorld(t, nil)
		w.srv.KeepNothing()
		large := func() {
			for i := range 30 {
				w.feed.add(event.KindCommit, fmt.Sprintf("did:plc:%d", i%3), "com.example.large", strings.Repeat("large ", 1000*(i+1)))
			}
			w.feed.commit()
		}
		large()
		filter := plain{DIDs: []string{"did:plc:1"}}
		b := c.browser(w, false)
		streams := []*ofStream{b.open(w, "cursor=1"), b.open(w, "cursor=1", asEvents...)}
		some := b.open(w, "cursor=1&"+filter.query())
		w.begun()
		large()
		for _, s := range streams {
			s.expect(w.feed.all)
		}
		some.expect(filter.of(w.feed.all))
	})
}

// TestStreamHead: what a response says of itself, to whom.
func TestStreamHead(t *testing.T) {
	w := newWorld(t, nil)
	b := carriers[0].browser(w, false)
	for _, tt := range []struct{ accept, want string }{
		{"", "application/x-ndjson"}, {"*/*", "application/x-ndjson"}, {"text/html,application/xml;q=0.9,*/*;q=0.8", "application/x-ndjson"},
		{"text/event-stream", "text/event-stream"}, {"Text/Event-Stream", "text/event-stream"}, {"application/json, text/event-stream;q=0.9", "text/event-stream"},
		{"text/event-streams", "application/x-ndjson"},
	} {
		for _, method := range []string{"HEAD", "GET"} {
			req, _ := http.NewRequest(method, b.base, nil)
			if tt.accept != "" {
				req.Header.Set("Accept", tt.accept)
			}
			resp, err := b.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			h := resp.Header
			if h.Get("Content-Type") != tt.want || resp.StatusCode != 200 || h.Get("Access-Control-Allow-Origin") != "*" ||
				h.Get("Cache-Control") != "no-store" || h.Get("X-Accel-Buffering") != "no" || h.Get("Vary") != "Accept" || h.Get("Content-Encoding") != "" {
				t.Errorf("%s %q: %d %v", method, tt.accept, resp.StatusCode, h)
			}
		}
	}
	w.connected(0)
	if n := w.handshakes(); n != 7 {
		t.Errorf("%v consumers are counted, and 7 were", n)
	}
}

// TestStreamRefused: what makes no sense without a websocket is refused with a sentence.
func TestStreamRefused(t *testing.T) {
	w := newWorld(t, nil)
	base := "http://" + w.addr + "/subscribe?"
	id := compressor().ID()
	for i, tt := range []struct {
		query  string
		header []string
		names  string
	}{
		{"requireHello=true", nil, "requireHello"},
		{"compress=true", nil, "compress"},
		{fmt.Sprint("zstdDictionary=", id), nil, "zstdDictionary"},
		{"", []string{"Socket-Encoding", "zstd"}, "Socket-Encoding"},
		{"zstdDictionary=7", nil, "there is no dictionary 7"},
		{"cursor=x", nil, "cursor"},
		{"wantedCollections=x", asEvents, "wantedCollections"},
		{"", []string{"Last-Event-ID", "x"}, "Last-Event-ID"},
		{"", []string{"Last-Event-ID", "-5"}, "Last-Event-ID"},
		{"", []string{"Last-Event-ID", "99999999999999999999"}, "Last-Event-ID"},
	} {
		resp, body := get(t, base+tt.query, tt.header...)
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, tt.names) || strings.Count(body, "\n") != 1 {
			t.Errorf("%s %q: %d %q", tt.query, tt.header, resp.StatusCode, body)
		}
		if n := w.metric("slipstream_subscribes_refused_total", "bad_request"); n != float64(i+1) {
			t.Errorf("%s: %v are counted, want %d", tt.query, n, i+1)
		}
	}
	for _, body := range []io.Reader{strings.NewReader("x"), io.MultiReader(strings.NewReader("x"))} { // with a length, and without
		req, _ := http.NewRequest("GET", base, body)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("with a body: %s", resp.Status)
		}
	}
}

// TestPreflight: a page of any origin may send headers of its own, to every endpoint.
func TestPreflight(t *testing.T) {
	w := newWorld(t, nil)
	for _, path := range []string{"/", "/subscribe", "/subscribe?cursor=1", paths[true], "/dictionary", "/xrpc/_health", "/nothing"} {
		req, _ := http.NewRequest("OPTIONS", "http://"+w.addr+path, nil)
		req.Header.Set("Origin", "https://elsewhere.example")
		req.Header.Set("Access-Control-Request-Method", "GET")
		req.Header.Set("Access-Control-Request-Headers", "last-event-id")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		h := resp.Header
		if resp.StatusCode != http.StatusNoContent || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Headers") != "*" || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "GET") {
			t.Errorf("%s: %d %v", path, resp.StatusCode, h)
		}
	}
}

// TestLastEventID: whatever event a consumer names as the last that it got, it gets exactly
// those after it, whatever cursor is in the URL.
func TestLastEventID(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.log.WindowBytes = 16 << 10 })
	w.feed.posts(300, 7)
	b := carriers[0].browser(w, false)
	var streams []*ofStream
	last := []int{0, 1, 6, 7, 150, 298, 299}
	for _, n := range last {
		for _, query := range []string{"", "cursor=1", fmt.Sprintf("cursor=%d", start+200)} {
			streams = append(streams, b.open(w, query, append([]string{"Last-Event-ID", w.feed.all[n].cursor.String()}, asEvents...)...))
		}
	}
	w.begun()
	w.feed.posts(20, 3)
	for i, s := range streams {
		s.expect(w.feed.all[last[i/3]+1:])
	}
	// None, and one before everything, as an EventSource that has got nothing may send.
	b.open(w, "cursor=1", "Last-Event-ID", "").expect(w.feed.all)
	b.open(w, "", "Last-Event-ID", "0").expect(w.feed.all)
	b.open(w, "", "Last-Event-ID", "9223372036854775807")
}

// TestStreamLimits: it takes a place like any other, and leaves it.
func TestStreamLimits(t *testing.T) {
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		w := c.newWorld(t, func(s *settings) { s.sub.MaxSubscribers = 2; s.sub.MaxFilterDIDs = 10 })
		b := c.browser(w, false)
		first := b.open(w, "wantedDids=did:plc:a")
		b.open(w, "", asEvents...)
		refused := func(query, says string) {
			t.Helper()
			resp, err := b.Get(b.base + "?" + query)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), says) ||
				!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
				t.Errorf("%.50s: %s %v %q", query, resp.Status, resp.Header, body)
			}
		}
		refused("", "at most 2 consumers")
		w.connected(2)
		first.cancel()
		w.connected(1)
		if n := w.metric("slipstream_filter_dids", ""); n != 0 {
			t.Errorf("%v DIDs are held", n)
		}
		refused(repeat("wantedDids", "did:plc:x%d", 11), "at most 10 DIDs")
		b.open(w, "")
		w.connected(2)
	})
}

// TestStreamKeepAlive: a stream with nothing to say shows that it lives, and whatever
// timeouts the server has for others, it lasts.
func TestStreamKeepAlive(t *testing.T) {
	t.Parallel()
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		t.Parallel()
		const timeout = 300 * time.Millisecond
		w := c.newWorld(t, func(s *settings) {
			s.sub.PingInterval = 50 * time.Millisecond
			s.http = func(s *http.Server) {
				s.ReadTimeout, s.WriteTimeout, s.IdleTimeout, s.ReadHeaderTimeout = timeout*10, timeout*10, timeout, timeout*10
			}
		})
		b := c.browser(w, false)
		streams := []*ofStream{b.open(w, ""), b.open(w, "", asEvents...)}
		for begun := time.Now(); time.Since(begun) < 12*timeout; {
			if line := streams[0].line(); line != "" {
				t.Fatalf("got %q", line)
			}
			if line := streams[1].line() + "|" + streams[1].line(); line != ":|" {
				t.Fatalf("got %q", line)
			}
		}
		w.feed.posts(3, 1)
		for _, s := range streams {
			s.expect(w.feed.all)
		}
	})
}

// TestStreamStalled: who takes nothing is ended, who takes a little at a time is not. On
// HTTP/2 that is so for each stream by itself, though they share a connection.
func TestStreamStalled(t *testing.T) {
	t.Parallel()
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		t.Parallel()
		const timeout = 2 * time.Second
		w := c.newWorld(t, func(s *settings) { s.sub.StallTimeout, s.sub.PingInterval = timeout, 200*time.Millisecond })
		w.feed.posts(20_000, 500) // 7 MB
		b := c.browser(w, true)
		stalled := b.open(w, "cursor=1")
		steady := b.open(w, "cursor=1", asEvents...)
		done, enough := make(chan error, 1), make(chan struct{})
		go func() {
			// It reads on until the other has been ended.
			for end := time.Now().Add(4 * timeout); ; time.Sleep(timeout / 4) {
				select {
				case <-enough:
					if time.Now().After(end) {
						done <- nil
						return
					}
				default:
				}
				if _, err := io.CopyN(io.Discard, steady.br, 64<<10); err != nil {
					done <- err
					return
				}
			}
		}()
		busy := make(chan struct{})
		go func() {
			// The connection, if it is the same, always carries something that is taken.
			defer close(busy)
			for {
				s := b.open(w, "cursor=1")
				for range 20_000 {
					if _, err := s.next(); err != nil {
						t.Error(err)
						return
					}
					select {
					case <-enough:
						s.cancel()
						return
					default:
					}
				}
				s.cancel()
			}
		}()
		eventually(t, "the stalled consumer is ended", func() bool { return w.ended("stalled") == 1 })
		close(enough)
		<-busy
		if err := <-done; err != nil {
			t.Errorf("the steady consumer was ended: %v", err)
		}
		w.connected(1)
		if _, err := io.Copy(io.Discard, stalled.br); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("the stalled stream ends with %v", err)
		}
		if n := w.ended("stalled"); n != 1 {
			t.Errorf("%v ended as stalled", n)
		}
	})
}

// TestStreamDeadPeer: who is gone without a word is found by what it does not acknowledge.
func TestStreamDeadPeer(t *testing.T) {
	t.Parallel()
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		t.Parallel()
		w := c.newWorld(t, func(s *settings) { s.sub.StallTimeout, s.sub.PingInterval = 2*time.Second, 200*time.Millisecond })
		// Between them is what passes nothing on any more when it is told so.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var dead atomic.Bool
		var group sync.WaitGroup
		defer group.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		group.Go(func() {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Error(err)
				return
			}
			server.(*net.TCPConn).SetReadBuffer(small)
			context.AfterFunc(ctx, func() { client.Close(); server.Close() })
			group.Go(func() { io.Copy(server, client) })
			buf := make([]byte, 4<<10)
			for !dead.Load() {
				n, err := server.Read(buf)
				if err != nil {
					return
				}
				client.Write(buf[:n])
			}
			<-ctx.Done()
		})
		b := c.browser(w, false)
		b.base = strings.Replace(b.base, w.addr, l.Addr().String(), 1)
		streams := []*ofStream{b.open(w, ""), nil}
		if c.h2 {
			streams[1] = b.open(w, "", asEvents...)
		}
		w.begun()
		dead.Store(true)
		w.feed.posts(2000, 100) // more than what all buffers on the way hold
		eventually(t, "all are ended", func() bool {
			w.feed.posts(20, 20)
			return w.srv.Count() == 0
		})
		want := 1.0
		if c.h2 {
			want = 2
		}
		if n := w.ended("stalled"); n != want {
			t.Errorf("%v ended as stalled, want %v", n, want)
		}
	})
}

// TestStreamFallsOff: retention passes a stream. Server-sent events say so, lines end in a
// way that nobody takes for a good one.
func TestStreamFallsOff(t *testing.T) {
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		var now atomic.Int64
		now.Store(start.Time().UnixNano())
		w := c.newWorld(t, func(s *settings) {
			s.log.Now = func() time.Time { return time.Unix(0, now.Load()) }
			s.log.Retention = time.Hour
			s.log.WindowBytes = 64 << 10
		})
		w.feed.posts(12_000, 100)
		b := c.browser(w, true)
		streams := []*ofStream{b.open(w, "cursor=1"), b.open(w, "cursor=1", asEvents...)}
		w.begun()
		eventually(t, "both are blocked", func() bool { return w.metric("slipstream_subscribers_blocked", "") == 2 })
		now.Store(w.feed.last.Time().Add(time.Hour).UnixNano())
		if err := w.log.Trim(); err != nil {
			t.Fatal(err)
		}
		for _, s := range streams {
			n := 0
			var last string
			var err error
			for {
				var line string
				if line, err = s.tryLine(); err != nil {
					break
				}
				if strings.HasPrefix(line, "event: ") {
					last = line + "|" + s.line()
					if line := s.line(); line != "" {
						t.Errorf("then %q", line)
					}
				} else if strings.Contains(line, `"time_us"`) {
					if !strings.HasSuffix(line, w.feed.all[n].payload) {
						t.Fatalf("event %d is %q", n, line)
					}
					n++
				}
			}
			if n == 0 || n == 12_000 {
				t.Errorf("it got %d events", n)
			}
			if s.sse && (err != io.EOF || last != "event: error|data: too slow: the buffer no longer holds what follows cursor "+w.feed.all[n-1].cursor.String()) {
				t.Errorf("after %d events: %v, %q", n, err, last)
			}
			if !s.sse && (err == io.EOF || errors.Is(err, context.Canceled)) {
				t.Errorf("lines end with %v, as if all were well", err)
			}
		}
		w.connected(0)
		if n := w.ended("fell_off_the_buffer"); n != 2 {
			t.Errorf("counted %v", n)
		}
	})
}

// TestStreamShutdown: streams end cleanly, and one that reads nothing holds nobody up.
func TestStreamShutdown(t *testing.T) {
	t.Parallel()
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		t.Parallel()
		w := c.newWorld(t, nil)
		w.feed.posts(20_000, 500)
		slow := c.browser(w, true)
		slow.open(w, "cursor=1")
		eventually(t, "one is blocked", func() bool { return w.metric("slipstream_subscribers_blocked", "") == 1 })
		b := c.browser(w, false)
		streams := []*ofStream{b.open(w, ""), b.open(w, "", asEvents...), b.open(w, "cursor=1")}
		streams[2].expect(w.feed.all[:100])
		w.begun()
		go w.stop()
		for i, s := range streams {
			rest, err := io.ReadAll(s.br)
			if err != nil || len(rest) > 0 && rest[len(rest)-1] != '\n' {
				t.Errorf("stream %d ends with %v, after %q", i, err, rest[max(0, len(rest)-100):])
			}
			if s.sse != strings.Contains(string(rest), ": the server is shutting down") || strings.Contains(string(rest), "event:") {
				t.Errorf("stream %d ends with %q", i, rest[max(0, len(rest)-100):])
			}
		}
		w.stop()
		w.connected(0)
		resp, err := b.Get(b.base)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("who comes now gets %s", resp.Status)
		}
	})
}

// TestStreamsLeaveNothing: whatever way streams end, no goroutine and no descriptor stays,
// and who counts connections hears of every end.
func TestStreamsLeaveNothing(t *testing.T) {
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		var mu sync.Mutex
		streaming, most := map[net.Conn]int{}, 0
		w := c.newWorld(t, func(s *settings) {
			s.sub.Streaming = func(conn net.Conn, begins bool) {
				mu.Lock()
				defer mu.Unlock()
				if begins {
					streaming[conn]++
				} else if streaming[conn]--; streaming[conn] == 0 {
					delete(streaming, conn)
				}
				most = max(most, len(streaming))
			}
		})
		w.feed.flood(20_000, 1000)
		round := func(n int) {
			t.Helper()
			b := c.browser(w, true)
			for i := range n {
				switch i % 4 {
				case 0: // with nothing to send
					b.open(w, "", asEvents...).cancel()
				case 1: // in the middle of a write
					b.open(w, "cursor=1").cancel()
				case 2: // after some events
					s := b.open(w, "cursor=1", asEvents...)
					s.line()
					s.resp.Body.Close()
				case 3:
					s := b.open(w, "cursor=1&wantedDids=did:plc:nobody")
					s.cancel()
				}
			}
			w.connected(0)
			b.CloseIdleConnections()
		}
		round(8) // whatever is made once is made
		goroutines, files := runtime.NumGoroutine(), descriptors(t)
		round(100)
		// A few more may come and go in the store and in net/http.
		const slack = 5
		eventually(t, "goroutines and descriptors are gone", func() bool {
			return runtime.NumGoroutine() <= goroutines+slack && descriptors(t) <= files+slack
		})
		eventually(t, "no connection carries a stream", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(streaming) == 0
		})
		if most == 0 {
			t.Error("nobody was told of a stream")
		}
		if left := w.srv.Interests(); left != 0 {
			t.Errorf("%d entries are left in the index", left)
		}
	})
}

// TestWithoutConnContext: a server that was put together wrongly says so at once.
func TestWithoutConnContext(t *testing.T) {
	var said testproc.Buffer
	w := newWorld(t, func(s *settings) {
		s.http = func(s *http.Server) { s.ConnContext = nil; s.ErrorLog = log.New(&said, "", 0) }
	})
	if resp, err := http.Get("http://" + w.addr + "/subscribe"); err == nil {
		t.Errorf("got %s", resp.Status)
	}
	eventually(t, "it says why", func() bool { return strings.Contains(said.String(), "ConnContext") })
	w.connected(0)
}

// TestCurl is the line of the README.
func TestCurl(t *testing.T) {
	for _, program := range []string{"curl", "jq"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	onEveryCarrier(t, func(t *testing.T, c carrier) {
		w := c.newWorld(t, func(s *settings) { s.sub.PingInterval = 50 * time.Millisecond }) // blank lines, too
		w.feed.mixed(rand.New(rand.NewPCG(3, 4)), 200)
		b := c.browser(w, false)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		proto := map[bool]string{false: "--http1.1", true: "--http2"}[c.h2]
		query := url.Values{"wantedCollections": {"app.bsky.feed.post"}, "cursor": {"1"}}.Encode()
		cmd := exec.CommandContext(ctx, "sh", "-c", `curl -skN "$1" "$2" | jq --unbuffered -c .time_us`, "sh", proto, b.base+"?"+query)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.dials.Add(1)
		lines := bufio.NewScanner(out)
		expect := func(facts []fact) {
			t.Helper()
			for _, f := range (plain{Collections: []string{"app.bsky.feed.post"}}).of(facts) {
				if !lines.Scan() || lines.Text() != f.cursor.String() {
					t.Fatalf("got %q, want %d", lines.Text(), f.cursor)
				}
			}
		}
		n := len(w.feed.all)
		expect(w.feed.all)
		w.begun()
		for sent := w.metric("slipstream_sent_bytes_total", ""); w.metric("slipstream_sent_bytes_total", "") < sent+3; {
			time.Sleep(5 * time.Millisecond) // until some blank lines are out
		}
		w.feed.mixed(rand.New(rand.NewPCG(5, 6)), 50)
		expect(w.feed.all[n:])
		w.stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the end of the stream is taken for %v", err)
		}
	})
}
