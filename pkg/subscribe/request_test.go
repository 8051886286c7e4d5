package subscribe_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
)

// repeat returns n values of a parameter.
func repeat(name, format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "&%s="+format, name, i)
	}
	return b.String()[1:]
}

func TestRefusedBeforeTheUpgrade(t *testing.T) {
	w := newWorld(t, nil)
	tests := []struct{ name, query, want string }{
		{"cursor of letters", "cursor=yesterday", "cursor: "},
		{"cursor with a fraction", "cursor=1725519626134432.5", "cursor: "},
		{"cursor too large", "cursor=99999999999999999999", "cursor: "},
		{"collection without dots", "wantedCollections=post", "wantedCollections: "},
		{"empty collection", "wantedCollections=", "wantedCollections: "},
		{"empty among joined collections", "wantedCollections=app.bsky.feed.post,", "wantedCollections: "},
		{"all collections", "wantedCollections=*", "wantedCollections: "},
		{"empty prefix", "wantedCollections=.*", "wantedCollections: "},
		{"prefix within a segment", "wantedCollections=app.bsky.feed.po*", "wantedCollections: "},
		{"prefix with an empty segment", "wantedCollections=app..feed.*", "wantedCollections: "},
		{"prefix with a slash", "wantedCollections=app.bsky/feed.*", "wantedCollections: "},
		{"prefix of 400 bytes", "wantedCollections=" + strings.Repeat("a.", 200) + "*", "wantedCollections: "},
		{"101 collections", repeat("wantedCollections", "app.test.c%d.x", 101), "wantedCollections: 101 values, at most 100"},
		{"no DID", "wantedDids=alice.example", "wantedDids: "},
		{"empty DID", "wantedDids=", "wantedDids: "},
		{"10,001 DIDs", repeat("wantedDids", "did:plc:%024d", 10_001), "wantedDids: 10001 values, at most 10000"},
		{"query of more than a megabyte", "wantedDids=" + strings.Repeat("x", 1<<20), "the query has 1048587 bytes"},
		{"a broken escape", "wantedDids=%zz", "query"},
		{"quotes and control bytes", "wantedDids=%0a%22%ff" + strings.Repeat("%e2%82%ac", 60), `wantedDids: "\n\"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, resp, err := websocket.DefaultDialer.Dial("ws://"+w.addr+"/subscribe?"+tt.query, nil)
			if resp == nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), tt.want) || len(body) > 400 {
				t.Errorf("got %d %.500q, want 400 and %q", resp.StatusCode, body, tt.want)
			}
		})
	}
	if got := w.metric("slipstream_subscribes_refused_total", "bad_request"); got != float64(len(tests)) {
		t.Errorf("%v requests counted as refused, want %d", got, len(tests))
	}
}

func TestLenientRequests(t *testing.T) {
	w := newWorld(t, nil)
	f := w.feed
	f.post(5)
	f.add(event.KindCommit, "did:plc:bob", "app.bsky.graph.follow", "")
	f.commit()
	all := f.all
	only := func(name string) (facts []fact) {
		for _, x := range all {
			if x.collection == name {
				facts = append(facts, x)
			}
		}
		return facts
	}
	tests := []struct {
		name, query string
		want        []fact
	}{
		{"size not a number", "maxMessageSizeBytes=big", all},
		{"size with a unit", "maxMessageSizeBytes=1k", all},
		{"negative size", "maxMessageSizeBytes=-5", all},
		{"size too large for a number", "maxMessageSizeBytes=99999999999999999999", all},
		{"empty size", "maxMessageSizeBytes=", all},
		{"unknown parameters", "wantedEvents=x&wanteddids=y&=&z", all},
		{"no compression after all", "compress=1", all},
		{"joined collections", "wantedCollections=app.bsky.feed.like,app.bsky.graph.follow", only("app.bsky.graph.follow")},
		{"joined DIDs", "wantedDids=did:plc:x,did:plc:bob", only("app.bsky.graph.follow")},
		{"100 collections", repeat("wantedCollections", "app.test.c%d.x", 99) + "&wantedCollections=app.bsky.graph.*", only("app.bsky.graph.follow")},
		{"10,000 DIDs", repeat("wantedDids", "did:plc:%024d", 9_999) + "&wantedDids=did:plc:bob", all},
		{"10,000 escaped DIDs", url.Values{"wantedDids": strings.Split(strings.ReplaceAll(repeat("x", "did:plc:%024d", 10_000), "x=", ""), "&")}.Encode(), only("app.bsky.feed.post")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := w.dial("cursor=1&" + tt.query)
			c.t = t
			c.expect(tt.want)
		})
	}
	for _, cursor := range []string{"0", "-1", "-9223372036854775808", "1"} {
		t.Run("cursor "+cursor, func(t *testing.T) {
			c := w.dial("cursor=" + cursor)
			c.t = t
			c.expect(all)
		})
	}
	t.Run("empty cursor", func(t *testing.T) {
		c := w.dial("cursor=")
		c.t = t
		w.feed.posts(1, 1)
		c.expect(w.feed.all[len(w.feed.all)-1:])
	})
}

func TestHandshake(t *testing.T) {
	w := newWorld(t, nil)
	w.feed.posts(3, 3)
	t.Run("any origin", func(t *testing.T) {
		w.dial("cursor=1", "Origin", "https://elsewhere.example").expect(w.feed.all)
	})
	t.Run("permessage-deflate is declined", func(t *testing.T) {
		d := websocket.Dialer{EnableCompression: true} // offers it
		ws, resp, err := d.Dial("ws://"+w.addr+"/subscribe?cursor=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		if got := resp.Header.Values("Sec-WebSocket-Extensions"); got != nil {
			t.Errorf("extensions %q", got)
		}
		(&client{t: t, ws: ws}).expect(w.feed.all)
	})
	t.Run("half a handshake", func(t *testing.T) {
		for _, header := range [][]string{{"Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version", "13"}, {"Upgrade", "websocket"}} {
			resp, body := get(t, "http://"+w.addr+"/subscribe?wantedCollections=app.bsky.feed.post", header...)
			if resp.StatusCode != http.StatusUpgradeRequired || resp.Header.Get("Upgrade") != "websocket" ||
				!strings.Contains(body, "proxy") {
				t.Errorf("%s: got %d %v %q", header[0], resp.StatusCode, resp.Header, body)
			}
		}
	})
	for _, path := range []string{"/subscribe/", "/nothing", "/subscribe2"} {
		if resp, _ := get(t, "http://"+w.addr+path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, resp.StatusCode)
		}
	}
	resp, err := http.Post("http://"+w.addr+"/subscribe", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}

// get is an HTTP GET without any of Go's own headers that matter here.
func get(t testing.TB, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}
