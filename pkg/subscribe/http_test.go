package subscribe_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/subscribe"
)

// otherDictionary is the current dictionary under another id.
func otherDictionary() ([]byte, uint32) {
	d := bytes.Clone(dictionaries.Current())
	id := compressor().ID() + 1
	binary.LittleEndian.PutUint32(d[4:], id)
	return d, id
}

func TestDictionaries(t *testing.T) {
	other, otherID := otherDictionary()
	all, err := event.NewDictionaries(dictionaries.Current(), other)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(s *settings) { s.sub.Dictionaries = all })
	id := compressor().ID()
	base := "http://" + w.addr
	for _, tt := range []struct {
		path string
		want []byte
		id   uint32
	}{
		{"/dictionary", dictionaries.Current(), id},
		{fmt.Sprint("/dictionary/", id), dictionaries.Current(), id},
		{fmt.Sprint("/dictionary/", otherID), other, otherID},
	} {
		resp, body := get(t, base+tt.path)
		if resp.StatusCode != http.StatusOK || body != string(tt.want) {
			t.Errorf("GET %s: %d, %d bytes", tt.path, resp.StatusCode, len(body))
		}
		if got := resp.Header.Get("Zstd-Dictionary-Id"); got != fmt.Sprint(tt.id) {
			t.Errorf("GET %s: Zstd-Dictionary-Id %q", tt.path, got)
		}
		if got := resp.Header.Get("Content-Type"); got != "application/octet-stream" {
			t.Errorf("GET %s: Content-Type %q", tt.path, got)
		}
		etag := resp.Header.Get("ETag")
		for _, match := range []string{etag, "W/" + etag, `"x", ` + etag, "*"} {
			if resp, body := get(t, base+tt.path, "If-None-Match", match); resp.StatusCode != http.StatusNotModified || body != "" {
				t.Errorf("GET %s with %s: %d %.20q", tt.path, match, resp.StatusCode, body)
			}
		}
		if resp, _ := get(t, base+tt.path, "If-None-Match", `"x"`); resp.StatusCode != http.StatusOK {
			t.Errorf("GET %s with another tag: %d", tt.path, resp.StatusCode)
		}
	}
	for path, status := range map[string]int{
		"/dictionary/5": http.StatusNotFound, "/dictionary/five": http.StatusBadRequest, "/dictionary/-1": http.StatusBadRequest,
		"/dictionary/4294967296": http.StatusBadRequest, "/dictionary/": http.StatusNotFound,
	} {
		resp, body := get(t, base+path)
		if resp.StatusCode != status {
			t.Errorf("GET %s: %d, want %d", path, resp.StatusCode, status)
		}
		if path != "/dictionary/" && !strings.Contains(body, fmt.Sprint(id)) {
			t.Errorf("GET %s: %q does not name the current one", path, body)
		}
		if got := resp.Header.Get("Cache-Control"); got != "" {
			t.Errorf("GET %s: an error with Cache-Control %q", path, got)
		}
	}
}

func TestHomeAndHealth(t *testing.T) {
	w := newWorld(t, nil)
	resp, body := get(t, "http://"+w.addr+"/")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, "The buffer is empty") || !strings.Contains(body, fmt.Sprint(compressor().ID())) {
		t.Errorf("GET /: %d %s", resp.StatusCode, body)
	}
	for _, line := range []string{`websocat "ws://%s/subscribe?wantedCollections=app.bsky.feed.post"`, `curl -N "http://%s/subscribe?wantedCollections=app.bsky.feed.post"`} {
		if line = fmt.Sprintf(line, w.addr); !strings.Contains(body, line) {
			t.Errorf("GET /: it lacks %s", line)
		}
	}
	w.feed.posts(3, 1)
	if _, body := get(t, "http://"+w.addr+"/"); !strings.Contains(body, w.feed.all[0].cursor.String()) {
		t.Errorf("GET /: the buffer's start is not in %s", body)
	}
	resp, body = get(t, "http://"+w.addr+"/xrpc/_health")
	var health map[string]string
	if err := json.Unmarshal([]byte(body), &health); err != nil || health["version"] != "test" || resp.StatusCode != http.StatusOK {
		t.Errorf("GET /xrpc/_health: %d %q %v", resp.StatusCode, body, err)
	}
	for _, path := range []string{"/", "/xrpc/_health", "/dictionary", "/subscribe?requireHello=true", "/subscribe?cursor=x", "/nothing"} {
		if resp, _ := get(t, "http://"+w.addr+path); resp.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("GET %s: no CORS header", path)
		}
	}
}

// TestAnotherDictionaryOnDisk: what was stored under another dictionary is compressed
// again: a consumer of compress=true needs one dictionary.
func TestAnotherDictionaryOnDisk(t *testing.T) {
	other, _ := otherDictionary()
	z, err := event.NewCompressor(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, window := range []int64{16 << 20, 4 << 10} { // from memory, and from disk
		w := newWorld(t, func(s *settings) { s.log.WindowBytes = window })
		f := w.feed
		chunk := func() {
			f.post(20)
			f.add(event.KindSync, "did:plc:a", "", "")
			f.add(event.KindIdentity, "did:plc:a", "", "")
			f.add(event.KindCommit, "did:plc:a", "com.example.thing", strings.Repeat("thing ", 5000))
			f.commit()
		}
		for i := range 10 {
			f.z = compressor()
			if i%3 != 2 {
				f.z = z
			}
			chunk()
		}
		for _, header := range [][]string{nil, {"Socket-Encoding", "zstd"}} {
			for _, filter := range []plain{{}, {Collections: []string{"com.example.*"}}, {DIDs: []string{"did:plc:a"}}} {
				query := "cursor=1&" + filter.query()
				if header == nil {
					query += "&compress=true"
				}
				c := w.dial(query, header...)
				if got := c.resp.Header.Get("Zstd-Dictionary-Id"); got != fmt.Sprint(compressor().ID()) {
					t.Fatalf("Zstd-Dictionary-Id: %q", got)
				}
				for i, want := range filter.of(f.all) {
					kind, m, err := c.ws.ReadMessage()
					if err != nil {
						t.Fatal(err)
					}
					var h zstd.Header
					if err := h.Decode(m); err != nil || kind != websocket.BinaryMessage || h.DictionaryID != compressor().ID() {
						t.Fatalf("message %d: kind %d, dictionary %d, %v", i, kind, h.DictionaryID, err)
					}
					dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.Current()), zstd.WithDecoderConcurrency(1))
					if err != nil {
						t.Fatal(err)
					}
					got, err := dec.DecodeAll(m, nil)
					dec.Close()
					if err != nil || string(got) != want.payload {
						t.Fatalf("message %d: %v, %.100q, want %.100q", i, err, got, want.payload)
					}
				}
			}
		}
		if c := w.dial("cursor=1"); c.resp.Header.Get("Zstd-Dictionary-Id") != "" {
			t.Error("a dictionary is named to who did not ask for compression")
		}
	}
}

// TestLimiter runs on a clock of its own.
func TestLimiter(t *testing.T) {
	for _, rate := range []float64{0.01, 0.3, 1, 7.5, 1000, 1e6} {
		l := subscribe.NewLimiter(rate)
		begin, sent := l.Now, 0
		for i := 0; i < 200; i++ {
			n, wait := l.Quota()
			if n == 0 {
				if wait <= 0 {
					t.Fatalf("rate %g: nothing to send and no time to wait", rate)
				}
				l.Now = l.Now.Add(wait)
				continue
			}
			l.Take(n)
			sent += n
			// A burst of a second's worth, or of one event, is saved up at most.
			if most := max(rate, 1) + rate*l.Now.Sub(begin).Seconds() + 1e-6; float64(sent) > most {
				t.Fatalf("rate %g: %d events after %s", rate, sent, l.Now.Sub(begin))
			}
		}
		if least := 0.9 * rate * l.Now.Sub(begin).Seconds(); float64(sent) < least {
			t.Errorf("rate %g: only %d events after %s", rate, sent, l.Now.Sub(begin))
		}
	}
	if n, wait := subscribe.NewLimiter(0).Quota(); n == 0 || wait != 0 {
		t.Errorf("without a limit: %d, %s", n, wait)
	}
}

// TestControlFramesBelowARate: one event in 200 s is all it may have, but a ping is
// answered and a filter taken at once.
func TestControlFramesBelowARate(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.sub.MaxRate = 0.005 })
	w.feed.posts(10, 3)
	c := w.dial("cursor=1")
	c.expect(w.feed.all[:1])
	w.pingPong(c)
	c.send("no options")
	deadline := time.Now().Add(patience)
	c.expectClose(websocket.ClosePolicyViolation, "JSON")
	if time.Now().After(deadline) {
		t.Error("the close frame waited for the rate limit")
	}
}
