package status_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/ingest"
	"slipstream/pkg/status"
	"slipstream/pkg/subscribe"
)

// world is a reporter on a log that the test fills.
type world struct {
	t      testing.TB
	log    *eventlog.Log
	report *status.Reporter
	now    time.Time
	last   event.Cursor
}

func newWorld(t testing.TB, window int64) *world {
	t.Helper()
	log, err := eventlog.Open(eventlog.Config{Dir: "log", FS: vfs.NewMem(), WindowBytes: window, Ballast: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	known, err := event.NewDictionaries(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	relays := firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: []string{"wss://user:secret@relay.example"}})
	server := subscribe.New(subscribe.Config{Log: log, Dictionaries: known})
	report := status.New(status.Config{
		Log: log, Dictionaries: known, Upstreams: relays, Server: server, Version: "v1.2.3",
		Ingester: ingest.New(ingest.Config{Log: log, Upstreams: relays, Compressor: known.Primary}),
	})
	return &world{t: t, log: log, report: report, now: time.Now(), last: event.CursorAt(time.Now())}
}

const did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"

// chunk makes a chunk of commits, one of each collection, and as many identity events.
func (w *world) chunk(identities int, collections ...string) *eventlog.Chunk {
	w.t.Helper()
	var b eventlog.Builder
	end := uint32(0)
	prev := w.log.Last()
	add := func(kind event.Kind, collection string) {
		w.last++
		end++
		b.Add(w.last, kind, []byte(did), []byte(collection), [3]uint32{end, end, 0})
	}
	for _, c := range collections {
		add(event.KindCommit, c)
	}
	for range identities {
		add(event.KindIdentity, "")
	}
	payload := []byte(strings.Repeat("x", int(end)))
	c, err := b.Seal(prev, 1, payload, payload, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) append(identities int, collections ...string) {
	w.t.Helper()
	if err := w.log.Append(context.Background(), []*eventlog.Chunk{w.chunk(identities, collections...)}, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tick() {
	w.now = w.now.Add(time.Second)
	w.report.Tick(w.now)
}

func (w *world) get(target string) (status.Status, *httptest.ResponseRecorder) {
	w.t.Helper()
	rec := httptest.NewRecorder()
	w.report.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, target, nil))
	var s status.Status
	if err := json.Unmarshal(rec.Body.Bytes(), &s); err != nil {
		w.t.Fatalf("%s: %v", rec.Body, err)
	}
	return s, rec
}

func repeat(name string, n int) (out []string) {
	for range n {
		out = append(out, name)
	}
	return out
}

func TestStatus(t *testing.T) {
	w := newWorld(t, 0)
	if s, _ := w.get("/status"); s.Events.Total != 0 || s.Replay.Oldest != 0 || s.Upstream.LagSeconds != nil || s.Version != "v1.2.3" {
		t.Errorf("before anything: %+v", s)
	}
	for range 60 {
		w.append(2, append(repeat("app.bsky.feed.like", 30), repeat("app.bsky.feed.post", 10)...)...)
		w.tick()
	}
	s, rec := w.get("/status")
	if s.Events.Total != 60*42 || s.Events.Kinds["commit"].Total != 60*40 || s.Events.Kinds["identity"].Total != 60*2 || s.Events.Kinds["sync"].Total != 0 {
		t.Errorf("totals: %+v", s.Events)
	}
	near := func(name string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > want/100 {
			t.Errorf("%s: got %v/s, want %v", name, got, want)
		}
	}
	near("all", s.Events.PerSecond, 42)
	if got := s.Events.Collections; len(got) != 2 || got[0].Collection != "app.bsky.feed.like" || got[1].Collection != "app.bsky.feed.post" {
		t.Fatalf("collections: %+v", got)
	}
	near("likes", s.Events.Collections[0].PerSecond, 30)
	near("posts", s.Events.Collections[1].PerSecond, 10)
	if s.Replay.Oldest == 0 || s.Replay.Last != w.last || s.Replay.Seconds <= 0 {
		t.Errorf("replay: %+v", s.Replay)
	}
	if s.Dictionaries.Current == 0 || s.Dictionaries.Current != s.Dictionaries.Primary {
		t.Errorf("dictionaries: %+v", s.Dictionaries)
	}
	if s.History != nil {
		t.Error("a history that nobody asked for")
	}
	if got := rec.Header().Get("Access-Control-Allow-Origin"); got != "*" {
		t.Errorf("Access-Control-Allow-Origin: %q", got)
	}
	// It is for everyone.
	for _, private := range []string{did, "relay.example", "secret"} {
		if strings.Contains(rec.Body.String(), private) {
			t.Errorf("the answer has %q", private)
		}
	}
	// What has stopped fades.
	for range 60 {
		w.tick()
	}
	if s, _ = w.get("/status"); s.Events.PerSecond > 0.1 || s.Events.Total != 60*42 {
		t.Errorf("a minute of silence later: %+v", s.Events)
	}
}

func TestHistory(t *testing.T) {
	w := newWorld(t, 0)
	for range 10 {
		w.append(0, repeat("a.b.c", 10)...)
		w.tick()
	}
	for range status.HistoryTicks * status.HistorySamples {
		w.append(0, append(repeat("a.b.c", 10), "d.e.f", "d.e.f")...)
		w.tick()
	}
	s, _ := w.get("/status?history")
	h := s.History
	if h == nil || len(h.PerSecond) != status.HistorySamples || len(h.Collections) != 2 || h.Collections[1].Collection != "d.e.f" ||
		len(h.Collections[1].PerSecond) != status.HistorySamples {
		t.Fatalf("history: %+v", h)
	}
	if newest := h.Collections[1].PerSecond[status.HistorySamples-1]; math.Abs(newest-2) > 0.05 {
		t.Errorf("the newest value is %v, want 2", newest)
	}
}

// TestBounds: names that a hostile network makes up take neither memory nor the place of the
// collections that are busy.
func TestBounds(t *testing.T) {
	w := newWorld(t, 0)
	total := 0
	for i := range 20 {
		names := repeat("app.bsky.feed.like", 5)
		for k := range 3 * status.MaxTracked {
			names = append(names, fmt.Sprintf("evil.name%d.of%d", k, i))
		}
		total += len(names)
		w.append(0, names...)
		w.tick()
	}
	s, rec := w.get("/status?history")
	if got := s.Events.Collections; len(got) != status.Shown || got[0].Collection != "app.bsky.feed.like" || got[0].Total != 100 {
		t.Errorf("%d collections, first %+v", len(got), got[0])
	}
	sum := s.Events.OtherCollections.Total
	for _, c := range s.Events.Collections {
		sum += c.Total
	}
	if s.Events.Total != uint64(total) || sum != s.Events.Total {
		t.Errorf("total %d, of all collections %d, want %d", s.Events.Total, sum, total)
	}
	if s.Events.OtherCollections.PerSecond <= 0 || rec.Body.Len() > 64<<10 {
		t.Errorf("others: %+v, %d bytes", s.Events.OtherCollections, rec.Body.Len())
	}
}

// TestBehind: what left memory before it was counted is passed over.
func TestBehind(t *testing.T) {
	w := newWorld(t, 1)
	for range 200 {
		w.append(0, repeat("a.b.c", 20)...)
	}
	w.tick()
	w.append(0, "a.b.c")
	w.tick()
	s, _ := w.get("/status")
	if s.Events.Total == 0 || s.Events.Total > 200*20+1 {
		t.Errorf("total %d", s.Events.Total)
	}
}

func TestRun(t *testing.T) {
	w := newWorld(t, 0)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.report.Run(ctx) }()
	w.append(0, "a.b.c", "a.b.c", "a.b.c")
	deadline := time.Now().Add(time.Minute)
	for s, _ := w.get("/status"); s.Events.Total != 3; s, _ = w.get("/status") {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// BenchmarkCount is what counting costs an event, in chunks as 500 events/s make them and as
// they are when the daemon catches up.
func BenchmarkCount(b *testing.B) {
	for _, size := range []int{10, 2000} {
		b.Run(fmt.Sprintf("events=%d", size), func(b *testing.B) {
			w := newWorld(b, 0)
			var names []string
			for i := range size {
				names = append(names, fmt.Sprintf("app.bsky.feed.name%d", i*i%17))
			}
			chunk, n := w.chunk(0, names...), status.NewCounter()
			b.ReportAllocs()
			for b.Loop() {
				n.Count(chunk)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/event")
		})
	}
}

// BenchmarkAnswer is what a request costs, and BenchmarkTick what there is to do once a second,
// with as many collections as are ever counted.
func BenchmarkAnswer(b *testing.B) {
	w := crowded(b)
	req := httptest.NewRequest(http.MethodGet, "/status", nil)
	for b.Loop() {
		w.report.ServeHTTP(httptest.NewRecorder(), req)
	}
}

func BenchmarkTick(b *testing.B) {
	w := crowded(b)
	for b.Loop() {
		w.tick()
		w.report.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/status?history", nil))
	}
}

// crowded is a world with a history of many collections.
func crowded(t testing.TB) *world {
	w := newWorld(t, 0)
	for range status.HistoryTicks * status.HistorySamples {
		var names []string
		for i := range status.MaxTracked {
			names = append(names, fmt.Sprintf("org.example.of%d.name%d", i%7, i))
		}
		w.append(0, names...)
		w.tick()
	}
	return w
}
