package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/testproc"
)

// Of one message there are ten lines a minute; how many there were besides is said later. Debug
// is for who wants all.
func TestBoundedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		log := newLogger(&b, "text", slog.LevelDebug)
		said := func() (lines []string) {
			lines = strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
			b.Reset()
			return lines
		}
		for i := range 1000 {
			log.Warn("flood", "i", i)
			log.With("upstream", i).Info("flood")
			log.Debug("detail")
		}
		log.Info("other")
		if lines := said(); len(lines) != logBurst+1000+1 || !strings.Contains(lines[len(lines)-1], "msg=other") {
			t.Errorf("%d lines, the last %s", len(lines), lines[len(lines)-1])
		}
		time.Sleep(logInterval)
		log.Warn("flood")
		log.Warn("flood")
		if lines := said(); len(lines) != 2 || !strings.HasSuffix(lines[0], " msg=flood left_out_before=1990") || !strings.HasSuffix(lines[1], "msg=flood") {
			t.Errorf("a minute later:\n%s", lines)
		}
		// Messages that are made of something are not worth memory.
		for i := range 10 * logMessages {
			log.Error(fmt.Sprint("message ", i))
		}
		if n := len(said()); n > logMessages+logBurst {
			t.Errorf("%d lines of as many messages", n)
		}
	})
}

// What others wrote is no more than text: neither long, nor with a line of its own, nor obeyed by
// a terminal.
func TestSafeLog(t *testing.T) {
	evil := "\x1b]0;title\x07\x1b[2J\u009b31m\nlevel=ERROR msg=forged " + strings.Repeat("é", 10_000)
	for _, format := range []string{"text", "json", "colour"} {
		var b strings.Builder
		log := newLogger(&b, format, slog.LevelInfo)
		if format == "colour" {
			log = slog.New(&boundedHandler{colourHandler(&b, slog.LevelInfo), newLineCounts()})
		}
		log.Warn("a"+evil, "b", evil, "c", errors.New(evil), "d", 7)
		got := b.String()
		if len(got) > 4*logValue+200 || strings.Count(got, "\n") != 1 || !strings.Contains(got, "…") {
			t.Errorf("%s: %d bytes: %q", format, len(got), got)
		}
		for _, control := range []string{"\x07", "\u009b", "\x1b]", "\x1b[2J"} {
			if strings.Contains(got, control) {
				t.Errorf("%s: it has %q: %q", format, control, got)
			}
		}
		if colours := strings.Contains(got, "\x1b["); colours != (format == "colour") {
			t.Errorf("%s: colours: %v", format, colours)
		}
	}
}

// A relay that does whatever it can to be written of, and consumers that do nothing right, make
// thousands of things happen and a bounded number of lines.
func TestHostileLog(t *testing.T) {
	t.Parallel() // it waits, mostly
	long := strings.Repeat("x", 100_000)
	identity := func(seq int) []byte {
		return messageOf(t, "#identity", map[string]any{"seq": seq, "did": "did:plc:abcdefghijklmnopqrstuvwx", "time": "2026-01-01T00:00:00Z"})
	}
	errorFrame := func(name string) []byte {
		return append(cborOf(t, map[string]any{"op": -1}), cborOf(t, map[string]any{"error": name, "message": long})...)
	}
	notice := messageOf(t, "#info", map[string]any{"name": "OutdatedCursor" + long, "message": "\x1b[2J\n" + long})
	gap := messageOf(t, "#info", map[string]any{"name": "OutdatedCursor"})
	var connections atomic.Int64
	relay := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(connections.Add(1))
		if n%5 == 0 {
			http.Error(w, long, http.StatusTeapot)
			return
		}
		ws, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		// With a frame each connection is progress, and the next one comes soon.
		script := [][]byte{identity(1000 * n)}
		for range 200 {
			script = append(script, notice, gap, []byte("garbage"), []byte{0xa0}, messageOf(t, "#new"+long[:1000], nil), messageOf(t, "#commit", map[string]any{"seq": 1000*n + 1}))
		}
		for i := range 10 {
			script = append(script, identity(i)) // the numbers go back
		}
		switch n % 5 {
		case 1:
			script = append(script, errorFrame("FutureCursor"))
		case 2:
			script = append(script, errorFrame("ConsumerTooSlow"))
		}
		for _, m := range script {
			if ws.WriteMessage(websocket.BinaryMessage, m) != nil {
				return
			}
		}
	}))
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	p := serveProcess(t, relay, t.TempDir(), addr, metrics, "--max-subscribers", "20", "--max-filter-dids", "100", "--stall-timeout", "1s")

	const each = 60
	var swarm sync.WaitGroup
	consumer := func(f func()) {
		swarm.Go(func() {
			for range each {
				f()
			}
		})
	}
	get := func(path string) {
		if resp, err := http.Get("http://" + addr + path); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	raw := func(text string) {
		if c, err := net.Dial("tcp", addr); err == nil {
			io.WriteString(c, text)
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			io.Copy(io.Discard, c)
			c.Close()
		}
	}
	stream := func(messages ...string) {
		ws, _, err := websocket.DefaultDialer.Dial("ws://"+addr+"/subscribe?cursor=1", nil)
		if err != nil {
			return
		}
		defer ws.Close()
		for _, m := range messages {
			ws.WriteMessage(websocket.TextMessage, []byte(m))
		}
		ws.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		for err == nil {
			_, _, err = ws.ReadMessage()
		}
	}
	consumer(func() { get("/subscribe?wantedDids=" + long[:5000]) })
	consumer(func() { get("/xrpc/network.bsky.jetstream.subscribeEvents?cursor=%1b") })
	consumer(func() { get("/" + long[:5000]) })
	consumer(func() { raw("\x16\x03\x01\x02garbage\r\n\r\n") })
	consumer(func() { raw("GET /subscribe HTTP/1.1\r\nHost: " + long + "\r\n") })
	consumer(func() { raw("GET /subscribe HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n") })
	consumer(func() { stream("no options") })
	consumer(func() { stream(`{"type":"options_update","payload":{"wantedDids":"x"}}`, strings.Repeat("{", 1000)) })
	consumer(func() { stream(fmt.Sprintf(`{"type":"options_update","payload":{"wantedDids":["did:web:%s"]}}`, long)) })
	swarm.Wait()

	// That all of it has happened is told by the metrics.
	testproc.WaitFor(t, "what the relay does", func() bool { return connections.Load() > 10 })
	m := scrape(t, metrics)
	for name, least := range map[string]float64{
		"slipstream_upstream_notices_total":                                 1000,
		"slipstream_upstream_gaps_total":                                    1000,
		`slipstream_upstream_messages_dropped_total{reason="bad_header"}`:   1000,
		`slipstream_upstream_messages_dropped_total{reason="unknown_type"}`: 1000,
		`slipstream_subscribes_refused_total{reason="bad_request"}`:         2 * each,
		`slipstream_subscribers_ended_total{reason="bad_options_update"}`:   each / 2,
	} {
		if m[name] < least {
			t.Errorf("%s is %v, less than %v", name, m[name], least)
		}
	}
	p.End(t)
	lines := strings.Split(strings.TrimSpace(p.Output.String()), "\n")
	if len(lines) > 100 {
		t.Errorf("%d lines were written", len(lines))
	}
	for _, line := range lines {
		if len(line) > 2000 || !strings.HasPrefix(line, "time=2") {
			t.Errorf("a line of %d bytes: %.2000s", len(line), line)
		}
	}
	t.Logf("%d connections to the relay, %d lines", connections.Load(), len(lines))
}
