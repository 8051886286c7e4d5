package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// readStatus asks for a status and holds it against its form.
func readStatus(t *testing.T, url string) (s condition, code int) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%s: %v", url, err)
	}
	return s, resp.StatusCode
}

func TestStatus(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 71, Loop: 100, Total: 200})
	d := startDaemon(t, testConfig(t, upstream))
	newReader(t, dial(t, d.addr, "cursor=1")).messages(t, 150)
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready"} {
		s, code := readStatus(t, "http://"+d.metrics+path)
		if code != http.StatusOK || s.Status != want || s.Reasons != nil || !s.Upstream.Connected || s.LastCursor == 0 || s.ReplaySeconds <= 0 || s.Version == "" {
			t.Errorf("%s: %d, %+v", path, code, s)
		}
	}
}

// A relay that is away makes the daemon not ready after a minute, not sooner, and never
// unhealthy.
func TestNotReady(t *testing.T) {
	events, err := eventlog.Open(eventlog.Config{Dir: "log", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	now := time.Now()
	h := health{firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: []string{"ws://127.0.0.1:1"}}), events, func() time.Time { return now }}
	ask := func(handler http.HandlerFunc) (int, string) {
		w := httptest.NewRecorder()
		handler(w, nil)
		return w.Code, w.Body.String()
	}
	if code, body := ask(h.ready); code != http.StatusOK {
		t.Errorf("at the start: %d %s", code, body)
	}
	now = now.Add(61 * time.Second)
	if code, body := ask(h.ready); code != http.StatusServiceUnavailable || !strings.Contains(body, `"status":"not ready"`) || !strings.Contains(body, "not connected to the relay for 1m1s") {
		t.Errorf("after a minute: %d %s", code, body)
	}
	if code, body := ask(h.alive); code != http.StatusOK || !strings.Contains(body, `"connected":false`) {
		t.Errorf("/healthz after a minute: %d %s", code, body)
	}
}
