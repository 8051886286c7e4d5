package firehose_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
)

func TestParseURL(t *testing.T) {
	const path = "/xrpc/com.atproto.sync.subscribeRepos"
	for in, want := range map[string]string{
		"wss://bsky.network":                "wss://bsky.network" + path,
		"bsky.network":                      "wss://bsky.network" + path,
		"https://bsky.network/":             "wss://bsky.network" + path,
		"http://127.0.0.1:2583":             "ws://127.0.0.1:2583" + path,
		"ws://localhost:1" + path:           "ws://localhost:1" + path,
		"wss://relay.example/other?cursor=": "wss://relay.example/other",
	} {
		if got, err := firehose.ParseURL(in); err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "ftp://bsky.network", "wss://", "wss://a b", "://x"} {
		if got, err := firehose.ParseURL(in); err == nil {
			t.Errorf("%q: got %s, want an error", in, got)
		}
	}
}

// server runs a handler and returns its websocket URL.
func server(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.Replace(s.URL, "http", "ws", 1) + "/xrpc/com.atproto.sync.subscribeRepos"
}

func relayHandler(t *testing.T, cfg simrelay.Config) http.Handler {
	t.Helper()
	relay, err := simrelay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return relay.Handler()
}

func counter(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

var errEnough = errors.New("enough")

// run runs a client until it has handled n frames.
func run(t *testing.T, cfg firehose.Config, start firehose.Start, n int) (seqs []firehose.Seq) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = time.Millisecond
	}
	err := firehose.New(cfg).Run(ctx, start, func(f firehose.Frame) error {
		seqs = append(seqs, f.Seq)
		f.Release()
		if len(seqs) == n {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("%d of %d frames, then %v", len(seqs), n, err)
	}
	return seqs
}

// A connection that is cut goes on after the last frame that was handed on.
func TestResumesAfterCuts(t *testing.T) {
	reg := prometheus.NewRegistry()
	url := server(t, relayHandler(t, simrelay.Config{Seed: 1, Total: 200, FirstSeq: 100, Faults: simrelay.Faults{CutAfter: 37}}))
	for i, seq := range run(t, firehose.Config{URL: url, Registerer: reg}, firehose.Start{}, 200) {
		if want := firehose.Seq(100 + i); seq != want {
			t.Fatalf("frame %d has seq %d, want %d", i, seq, want)
		}
	}
	if got := counter(t, reg, "slipstream_upstream_reconnects_total"); got < 5 {
		t.Errorf("%v reconnects, want 5 or more", got)
	}
	if got := counter(t, reg, "slipstream_upstream_gaps_total"); got != 0 {
		t.Errorf("%v gaps out of nothing", got)
	}
}

// Whatever ends a connection is counted by its name.
func TestReconnectReasons(t *testing.T) {
	frame := []byte("\xa2bop\x01at\x67#commit\xa1cseq\x05")
	errorFrame := func(name string) []byte {
		return append([]byte("\xa1bop\x20\xa1eerror"+string(rune(0x60+len(name)))), name...)
	}
	for reason, serve := range map[string]func(*websocket.Conn){
		"cannot_connect":  nil,
		"connection_lost": func(ws *websocket.Conn) { ws.WriteMessage(websocket.BinaryMessage, frame) },
		"error_frame":     func(ws *websocket.Conn) { ws.WriteMessage(websocket.BinaryMessage, errorFrame("TooSlow")) },
		"new_sequence":    func(ws *websocket.Conn) { ws.WriteMessage(websocket.BinaryMessage, errorFrame("FutureCursor")) },
		"no_pong":         func(ws *websocket.Conn) { time.Sleep(time.Second) },
		"no_frame":        func(ws *websocket.Conn) { ws.ReadMessage() },
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			url := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if serve == nil {
					http.Error(w, "no", http.StatusForbidden)
				} else if ws, err := new(websocket.Upgrader).Upgrade(w, r, nil); err == nil {
					defer ws.Close()
					serve(ws)
				}
			}))
			reg := prometheus.NewRegistry()
			cfg := firehose.Config{URL: url, Registerer: reg, PingInterval: 50 * time.Millisecond, PongGrace: 50 * time.Millisecond, MinBackoff: time.Millisecond}
			if reason == "no_frame" {
				cfg.LivenessTTL = 20 * time.Millisecond
			}
			client := firehose.New(cfg)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				done <- client.Run(ctx, firehose.Start{}, func(f firehose.Frame) error { f.Release(); return nil })
			}()
			for deadline := time.Now().Add(time.Minute); counter(t, reg, "slipstream_upstream_reconnects_total") == 0 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					if f.GetName() != "slipstream_upstream_reconnects_total" {
						continue
					}
					if got := m.GetLabel()[0].GetValue(); (got == reason) != (m.GetCounter().GetValue() > 0) {
						t.Errorf("%s is %v", got, m.GetCounter().GetValue())
					}
				}
			}
		})
	}
}

// A relay that is silent is alive as long as it answers pings, and dead when it does not.
func TestLiveness(t *testing.T) {
	for _, dead := range []bool{false, true} {
		reg := prometheus.NewRegistry()
		url := server(t, relayHandler(t, simrelay.Config{Seed: 1, Total: 5, Faults: simrelay.Faults{NoPong: dead}}))
		ctx, cancel := context.WithCancel(context.Background())
		client := firehose.New(firehose.Config{URL: url, Registerer: reg, PingInterval: 50 * time.Millisecond,
			MinBackoff: time.Millisecond, PongGrace: 50 * time.Millisecond})
		done := make(chan error, 1)
		go func() {
			done <- client.Run(ctx, firehose.Start{}, func(f firehose.Frame) error { f.Release(); return nil })
		}()
		reconnects := func() float64 { return counter(t, reg, "slipstream_upstream_reconnects_total") }
		deadline := time.Now().Add(15 * time.Second)
		if !dead {
			deadline = time.Now().Add(time.Second) // twenty pings' time
		}
		for reconnects() == 0 && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		if got := reconnects(); (got > 0) != dead {
			t.Errorf("dead=%v: %v reconnects", dead, got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A message above the limit is read over: the ones behind it arrive on the same connection.
func TestTooLargeIsSkipped(t *testing.T) {
	relay, err := simrelay.New(simrelay.Config{Seed: 1, Total: 20, FirstSeq: 100, Faults: simrelay.Faults{At: map[int64]simrelay.Fault{105: simrelay.Oversized}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go relay.Run(ctx)
	reg := prometheus.NewRegistry()
	seqs := run(t, firehose.Config{URL: server(t, relay.Handler()), MaxMessage: 1 << 20, Registerer: reg}, firehose.Start{}, 20)
	if seqs[19] != 119 {
		t.Errorf("the last frame is %d", seqs[19])
	}
	if got := counter(t, reg, "slipstream_upstream_messages_dropped_total"); got != 1 {
		t.Errorf("%v messages dropped, want 1", got)
	}
	if got := counter(t, reg, "slipstream_upstream_reconnects_total"); got != 0 {
		t.Errorf("%v reconnects", got)
	}
}

// Whatever the message, its header, seq and texts are read or refused; nothing panics.
func FuzzMessage(f *testing.F) {
	f.Add([]byte("\xa2bop\x01at\x67#commit\xa1cseq\x01"))
	f.Add([]byte("\xa1bop\x20\xa2eerrorlFutureCursorgmessageax"))
	f.Add([]byte("\xa2at\x65#infobop\x01\xa1dnameoOutdatedCursor"))
	f.Fuzz(func(t *testing.T, m []byte) {
		typ, seq, err := firehose.ParseMessage(m)
		if err == nil && (seq < 0 || !strings.HasPrefix(typ, "#")) {
			t.Fatalf("type %q, seq %d", typ, seq)
		}
	})
}

// A start at the relay's oldest frame that the relay calls outdated misses nothing that was
// ever ours: no gap, and nothing to warn of.
func TestOldestIsNoGap(t *testing.T) {
	reg := prometheus.NewRegistry()
	upgrader := websocket.Upgrader{}
	url := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		ws.WriteMessage(websocket.BinaryMessage, []byte("\xa2at\x65#infobop\x01\xa1dnamenOutdatedCursor"))
		ws.WriteMessage(websocket.BinaryMessage, []byte("\xa2bop\x01at\x67#commit\xa1cseq\x18\x64"))
		ws.ReadMessage()
	}))
	var log bytes.Buffer
	run(t, firehose.Config{URL: url, Registerer: reg, Logger: slog.New(slog.NewTextHandler(&log, nil))}, firehose.Start{}, 1)
	if got := counter(t, reg, "slipstream_upstream_gaps_total"); got != 0 {
		t.Errorf("%v gaps", got)
	}
	if strings.Contains(log.String(), "level=WARN") {
		t.Errorf("the log warns:\n%s", &log)
	}
}

// A relay that counts anew is there: it is asked again at once, however long the relay was
// away before.
func TestNewSequenceDoesNotWait(t *testing.T) {
	upgrader := websocket.Upgrader{}
	var calls atomic.Int64
	url := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		if n <= 5 {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		if n == 6 {
			ws.WriteMessage(websocket.BinaryMessage, []byte("\xa1bop\x20\xa2eerrorlFutureCursorgmessageax"))
			return
		}
		ws.WriteMessage(websocket.BinaryMessage, []byte("\xa2bop\x01at\x67#commit\xa1cseq\x01"))
		ws.ReadMessage()
	}))
	var log bytes.Buffer
	run(t, firehose.Config{URL: url, MinBackoff: 3 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}, firehose.Start{Cursor: 100, Known: true}, 1)
	if !strings.Contains(log.String(), "start anew") || !strings.Contains(log.String(), "cursor=100 pause=3ms") {
		t.Errorf("the log says\n%s", &log)
	}
}
