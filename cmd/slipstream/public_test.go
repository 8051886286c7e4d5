package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/status"
	"slipstream/pkg/testproc"
)

// TestPublic: the daemon says of itself what it has taken in and sent, and of nobody else
// anything; and shows the page to browsers.
func TestPublic(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 72, Loop: 100, Total: 300})
	d := startDaemon(t, testConfig(t, upstream))
	get := func(path, accept string) (string, http.Header) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, "http://"+d.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", path, resp.Status, err)
		}
		return string(body), resp.Header
	}
	const wanted = 200
	plain, packed := dial(t, d.addr, "cursor=1"), dial(t, d.addr, "cursor=1&compress=true")
	newReader(t, plain).messages(t, wanted)
	for range wanted {
		if _, _, err := packed.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	var s status.Status
	testproc.WaitFor(t, "the status to say what has happened", func() bool {
		body, _ := get("/status", "")
		s = status.Status{}
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatal(err)
		}
		for _, private := range []string{"did:", "127.0.0.1", upstream} {
			if strings.Contains(body, private) {
				t.Fatalf("the status names %s: %s", private, body)
			}
		}
		return s.Consumers.Events.Total >= 2*wanted && s.Consumers.Connected == 2
	})
	metrics := scrape(t, d.metrics)
	var events float64
	for name, n := range metrics {
		if strings.HasPrefix(name, "slipstream_events_total{") {
			events += n
		}
	}
	if s.Events.Total == 0 || float64(s.Events.Total) > events || !s.Upstream.Connected || s.Upstream.LagSeconds == nil || s.Replay.Seconds <= 0 {
		t.Errorf("%+v, and %v events by the metrics", s, events)
	}
	if s.Consumers.Saved.Total == 0 || s.Consumers.Bytes.Total == 0 {
		t.Errorf("consumers: %+v", s.Consumers)
	}

	page, header := get("/", "text/html")
	if !strings.Contains(page, "<!doctype html>") || header.Get("Content-Security-Policy") == "" {
		t.Errorf("to a browser: %v %.200s", header, page)
	}
	if text, _ := get("/", "*/*"); !strings.HasPrefix(text, "This is Slipstream") {
		t.Errorf("to curl: %.200s", text)
	}
}
