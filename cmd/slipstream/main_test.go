package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/firehose"
	"slipstream/pkg/testproc"
)

// The test binary is also the program, for the tests that need a process to kill.
// Neither asks the network for anything.
func TestMain(m *testing.M) {
	if _, set := os.LookupEnv("SLIPSTREAM_LEGACY_DICTIONARY"); !set {
		os.Setenv("SLIPSTREAM_LEGACY_DICTIONARY", legacyOff)
	}
	if os.Getenv("SLIPSTREAM_TEST_MAIN") != "" {
		if every, err := time.ParseDuration(os.Getenv(samplesEnv)); err == nil {
			sampleInterval = every
		}
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// shared returns the path of a file of the shared test data, and skips without it.
func shared(t testing.TB, name string) string {
	path := filepath.Join("..", "..", "..", "shared", "data", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("the shared test data is not here: %v", err)
	}
	return path
}

// daemon is a run of the daemon inside the test.
type daemon struct {
	t       testing.TB
	addr    string
	metrics string
	stop    func() error // ends it in order and returns what run returned
}

// testConfig is what the tests run with unless they say otherwise.
func testConfig(t testing.TB, upstream string) Config {
	t.Helper()
	url, err := firehose.ParseURL(upstream)
	if err != nil {
		t.Fatal(err)
	}
	start := firehose.Seq(0)
	return Config{
		UpstreamURLs: []string{url}, UpstreamCursor: &start,
		ListenAddr: testproc.FreeAddr(t), MetricsListenAddr: testproc.FreeAddr(t), DataDir: t.TempDir(),
		EventTTL: 24 * time.Hour, Linger: 20 * time.Millisecond, WindowBytes: 16 << 20, StallTimeout: 2 * time.Minute,
		LogLevel: slog.LevelInfo, LogFormat: "text",
	}
}

// testLog writes the daemon's log to the test's.
type testLog struct{ t testing.TB }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func startDaemon(t testing.TB, cfg Config) *daemon {
	t.Helper()
	d := launchDaemon(t, cfg)
	waitHealthy(t, cfg.ListenAddr)
	return d
}

// startDaemonUntil is startDaemon with another sign of life.
func startDaemonUntil(t testing.TB, cfg Config, up func() bool) *daemon {
	t.Helper()
	d := launchDaemon(t, cfg)
	for deadline := time.Now().Add(15 * time.Second); !up(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the daemon does not answer")
		}
	}
	return d
}

func launchDaemon(t testing.TB, cfg Config) *daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, cfg, newLogger(testLog{t}, cfg.LogFormat, cfg.LogLevel), nil) }()
	stopped := false
	d := &daemon{t: t, addr: cfg.ListenAddr, metrics: cfg.MetricsListenAddr, stop: func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Second):
			return errors.New("the daemon did not stop")
		}
	}}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func waitHealthy(t testing.TB, addr string) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/xrpc/_health")
		if err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not answer: %v", err)
		}
	}
}

// dial connects a consumer.
func dial(t testing.TB, addr, query string) *websocket.Conn {
	t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+addr+"/subscribe?"+query, nil)
	if err != nil {
		if resp != nil {
			body, _ := io.ReadAll(resp.Body)
			t.Fatalf("dial %s: %v: %s", query, err, body)
		}
		t.Fatalf("dial %s: %v", query, err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

// reader reads messages, decompressing them where they are compressed.
type reader struct {
	ws  *websocket.Conn
	dec *zstd.Decoder
}

func newReader(t testing.TB, ws *websocket.Conn, dicts ...[]byte) *reader {
	t.Helper()
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(append(dicts, dictionaries.All()...)...), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dec.Close)
	return &reader{ws, dec}
}

func (r *reader) next(timeout time.Duration) ([]byte, error) {
	r.ws.SetReadDeadline(time.Now().Add(timeout))
	kind, message, err := r.ws.ReadMessage()
	if err != nil || kind == websocket.TextMessage {
		return message, err
	}
	return r.dec.DecodeAll(message, nil)
}

// messages reads n messages.
func (r *reader) messages(t testing.TB, n int) [][]byte {
	t.Helper()
	var all [][]byte
	for len(all) < n {
		m, err := r.next(20 * time.Second)
		if err != nil {
			t.Fatalf("message %d of %d: %v", len(all), n, err)
		}
		all = append(all, m)
	}
	return all
}

// withoutTime returns a v1 event as a value, less its time_us, and that.
func withoutTime(t testing.TB, message []byte) (map[string]any, int64) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(message))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, message)
	}
	n, ok := v["time_us"].(json.Number)
	if !ok {
		t.Fatalf("no time_us in %s", message)
	}
	us, err := n.Int64()
	if err != nil {
		t.Fatal(err)
	}
	delete(v, "time_us")
	return v, us
}

// realFrames reads the captured frames, and the events that production served for them.
func realFrames(t testing.TB) (frames [][]byte, events []string) {
	t.Helper()
	packed, err := os.ReadFile(shared(t, "frames/real-50.bin.zst"))
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	b, err := dec.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 {
		n := binary.LittleEndian.Uint32(b)
		frames, b = append(frames, b[4:4+n]), b[4+n:]
	}
	text, err := os.ReadFile(shared(t, "frames/real-50.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return frames, strings.Split(strings.TrimSpace(string(text)), "\n")
}

func checkEvents(t testing.TB, what string, got [][]byte, want []string) {
	t.Helper()
	last := int64(0)
	for i, message := range got {
		g, us := withoutTime(t, message)
		w, _ := withoutTime(t, []byte(want[i]))
		if !reflect.DeepEqual(g, w) {
			t.Fatalf("%s: event %d\n got %s\nwant %s", what, i, message, want[i])
		}
		if us <= last {
			t.Fatalf("%s: event %d: time_us %d after %d", what, i, us, last)
		}
		last = us
	}
}

func serveHandler(t testing.TB, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return strings.Replace(server.URL, "http://", "ws://", 1)
}

// gate holds a handler's requests back until open is closed.
func gate(open <-chan struct{}, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-open
		h.ServeHTTP(w, r)
	})
}
