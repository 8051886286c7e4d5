package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/testproc"
)

// many returns a query that repeats a parameter, with values made of 0 to n-1.
func many(name, format string, n int) string {
	var all []string
	for i := range n {
		all = append(all, name+"="+fmt.Sprintf(format, i))
	}
	return strings.Join(all, "&")
}

// handshake sends an upgrade request byte for byte, with more header lines, and returns the
// answer.
func handshake(t testing.TB, addr, query string, lines ...string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	lines = append([]string{"GET " + v2Path + "?" + query + " HTTP/1.1", "Host: " + addr, "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}, lines...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func request(t testing.TB, method, url string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// What is agreed on in the handshake.
func TestV2Handshake(t *testing.T) {
	d := serveV2(t, newFeeder(t).url, t.TempDir())
	const offer = "Sec-WebSocket-Protocol: "
	for _, tt := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"xrpc.v1.json offered is echoed exactly", []string{offer + v2Subprotocol}, []string{v2Subprotocol}},
		{"xrpc.v1.json offered behind another is echoed alone", []string{offer + "chat, xrpc.v1.json"}, []string{v2Subprotocol}},
		{"xrpc.v1.json offered before another is echoed alone", []string{offer + "xrpc.v1.json,xrpc.v2.cbor"}, []string{v2Subprotocol}},
		{"xrpc.v1.json offered in a line of its own is echoed", []string{offer + "chat", offer + v2Subprotocol}, []string{v2Subprotocol}},
		{"no subprotocol is echoed where none is offered", nil, nil},
		{"another subprotocol is not echoed", []string{offer + "xrpc.v1.json2, chat"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, query := range []string{"", packed(t)} {
				resp := handshake(t, d.addr, query, tt.lines...)
				got := resp.Header["Sec-Websocket-Protocol"]
				if resp.StatusCode != http.StatusSwitchingProtocols || fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("%s: got %d and %q, want %q", query, resp.StatusCode, got, tt.want)
				}
			}
		})
	}
	for _, offer := range []string{
		"permessage-deflate", "permessage-deflate; client_max_window_bits", "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
		"x-webkit-deflate-frame, permessage-deflate",
	} {
		t.Run("permessage-deflate is never negotiated: "+offer, func(t *testing.T) {
			for _, query := range []string{"", packed(t)} {
				resp := handshake(t, d.addr, query, "Sec-WebSocket-Extensions: "+offer)
				if got := resp.Header["Sec-Websocket-Extensions"]; resp.StatusCode != http.StatusSwitchingProtocols || got != nil {
					t.Errorf("%s: got %d and %q", query, resp.StatusCode, got)
				}
			}
		})
	}
	t.Run("Zstd-Dictionary-Id is in the response when compressed, and only then", func(t *testing.T) {
		if got, want := handshake(t, d.addr, packed(t)).Header.Get("Zstd-Dictionary-Id"), fmt.Sprint(currentID(t)); got != want {
			t.Errorf("compressed: %q, want %q", got, want)
		}
		if got := handshake(t, d.addr, "").Header["Zstd-Dictionary-Id"]; got != nil {
			t.Errorf("plain: %q", got)
		}
	})
	t.Run("the websocket key is answered", func(t *testing.T) { // RFC 6455's own example
		if got := handshake(t, d.addr, "").Header.Get("Sec-WebSocket-Accept"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
			t.Errorf("Sec-WebSocket-Accept %q", got)
		}
	})
	t.Run("a page of any origin may connect", func(t *testing.T) {
		if got := handshake(t, d.addr, "", "Origin: https://elsewhere.example").StatusCode; got != http.StatusSwitchingProtocols {
			t.Errorf("got %d", got)
		}
	})
	t.Run("a request without an upgrade gets 426 with the XRPC envelope", func(t *testing.T) {
		resp := request(t, "GET", "http://"+d.addr+v2Path+"?kinds=commit")
		if resp.StatusCode != http.StatusUpgradeRequired || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
			t.Errorf("got %d, Upgrade: %q", resp.StatusCode, resp.Header.Get("Upgrade"))
		}
		envelope(t, resp)
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
			t.Errorf("Access-Control-Allow-Origin %q", got)
		}
	})
}

// What is refused before the upgrade with 400, which clients take for final.
func TestV2Refusals(t *testing.T) {
	f := newFeeder(t)
	d := serveV2(t, f.url, t.TempDir())
	const invalid, unknown = "InvalidRequest", "UnknownZstdDictionary"
	current := fmt.Sprint(currentID(t))
	long := strings.Repeat("x", 50_000)
	for _, tt := range []struct {
		name, query, header string
		want, says          string // the error's name, and what is in its message
	}{
		{"kinds: a value outside the enum", "kinds=post", "", invalid, "post"},
		{"kinds: a value outside the enum beside one that is in it", "kinds=commit&kinds=post", "", invalid, "post"},
		{"kinds: info is no kind", "kinds=info", "", invalid, ""},
		{"kinds: the case counts", "kinds=Commit", "", invalid, ""},
		{"kinds: the $type fragment has no #", "kinds=%23commit", "", invalid, ""},
		{"kinds: repeated, not joined with commas", "kinds=commit,sync", "", invalid, "commit,sync"},
		{"kinds: more than 4 values", "kinds=commit&kinds=identity&kinds=account&kinds=sync&kinds=commit", "", invalid, ""},
		{"cursor: negative", "cursor=-1", "", invalid, "cursor"},
		{"cursor: very negative", "cursor=-9223372036854775808", "", invalid, "cursor"},
		{"cursor: a word", "cursor=now", "", invalid, "cursor"},
		{"cursor: empty", "cursor=", "", invalid, "cursor"},
		{"cursor: a fraction", "cursor=1.5", "", invalid, "cursor"},
		{"cursor: an exponent", "cursor=1e15", "", invalid, "cursor"},
		{"cursor: hexadecimal", "cursor=0x10", "", invalid, "cursor"},
		{"cursor: a space", "cursor=%201", "", invalid, "cursor"},
		{"cursor: a time", "cursor=2026-07-04T12:00:00Z", "", invalid, "cursor"},
		{"cursor: beyond 64 bits", "cursor=9223372036854775808", "", invalid, "cursor"},
		{"cursor: given twice", "cursor=1&cursor=1", "", invalid, "cursor"},
		{"dids: no DID", "dids=alice.example", "", invalid, "dids"},
		{"dids: a DID without an identifier", "dids=did:plc:", "", invalid, "dids"},
		{"dids: repeated, not joined with commas", "dids=did:plc:aaaaaaaaaaaaaaaaaaaaaaaa,did:plc:bbbbbbbbbbbbbbbbbbbbbbbb", "", invalid, "dids"},
		{"dids: one that is bad among good ones", many("dids", "did:plc:%024d", 20) + "&dids=x", "", invalid, "dids"},
		{"dids: more than 10,000 values", many("dids", "did:plc:%024d", 10_001), "", invalid, "dids"},
		{"dids: a very long value", "dids=" + long, "", invalid, "dids"},
		{"collections: no NSID", "collections=post", "", invalid, "collections"},
		{"collections: an NSID of two parts", "collections=app.bsky", "", invalid, "collections"},
		{"collections: repeated, not joined with commas", "collections=app.bsky.feed.post,app.bsky.feed.like", "", invalid, "collections"},
		{"collections: a pattern of the star alone", "collections=*", "", invalid, "collections"},
		{"collections: a pattern without a prefix", "collections=.*", "", invalid, "collections"},
		{"collections: a star inside a segment", "collections=app.bsky.feed.po*", "", invalid, "collections"},
		{"collections: a star without its dot", "collections=app.bsky.feed*", "", invalid, "collections"},
		{"collections: a star in the middle", "collections=app.*.post", "", invalid, "collections"},
		{"collections: an empty segment", "collections=app..feed.*", "", invalid, "collections"},
		{"collections: two stars", "collections=app.bsky.*.*", "", invalid, "collections"},
		{"collections: more than 100 values", many("collections", "app.test.c%d.x", 101), "", invalid, "collections"},
		{"collections: a very long value", "collections=" + long, "", invalid, "collections"},
		{"collections: kinds is set and excludes commit", "collections=app.bsky.feed.post&kinds=identity", "", invalid, "collections"},
		{"collections: kinds is set to all others and excludes commit", "kinds=identity&kinds=account&kinds=sync&collections=app.bsky.*", "", invalid, "collections"},
		{"maxMessageSizeBytes: a word", "maxMessageSizeBytes=big", "", invalid, "maxMessageSizeBytes"},
		{"maxMessageSizeBytes: with a unit", "maxMessageSizeBytes=1k", "", invalid, "maxMessageSizeBytes"},
		{"maxMessageSizeBytes: empty", "maxMessageSizeBytes=", "", invalid, "maxMessageSizeBytes"},
		{"maxMessageSizeBytes: below the minimum", "maxMessageSizeBytes=-1", "", invalid, "maxMessageSizeBytes"},
		{"maxMessageSizeBytes: above the maximum", "maxMessageSizeBytes=4294967296", "", invalid, "maxMessageSizeBytes"},
		{"maxMessageSizeBytes: given twice", "maxMessageSizeBytes=1&maxMessageSizeBytes=2", "", invalid, "maxMessageSizeBytes"},
		{"zstdDictionary: a word", "zstdDictionary=true", "", invalid, "zstdDictionary"},
		{"zstdDictionary: empty", "zstdDictionary=", "", invalid, "zstdDictionary"},
		{"zstdDictionary: below the minimum", "zstdDictionary=0", "", invalid, "zstdDictionary"},
		{"zstdDictionary: negative", "zstdDictionary=-1", "", invalid, "zstdDictionary"},
		{"zstdDictionary: given twice", packed(t) + "&" + packed(t), "", invalid, "zstdDictionary"},
		{"zstdDictionary: an unknown id, with the current id", "zstdDictionary=1", "", unknown, current},
		{"zstdDictionary: an id beyond 32 bits, with the current id", "zstdDictionary=4294967297", "", unknown, current},
		{"zstdDictionary: the current id and 2^32", fmt.Sprintf("zstdDictionary=%d", uint64(currentID(t))+1<<32), "", unknown, current},
		{"wantedDids", "wantedDids=did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "", invalid, "wantedDids"},
		{"wantedCollections", "wantedCollections=app.bsky.feed.post", "", invalid, "wantedCollections"},
		{"requireHello=true", "requireHello=true", "", invalid, "requireHello"},
		{"compress=true", "compress=true", "", invalid, "compress"},
		{"compress=true beside zstdDictionary", packed(t) + "&compress=true", "", invalid, "compress"},
		{"Socket-Encoding: zstd", "", "zstd", invalid, "Socket-Encoding"},
		{"Socket-Encoding: zstd beside zstdDictionary", packed(t), "zstd", invalid, "Socket-Encoding"},
		{"a parameter that the lexicon does not name", "kind=commit", "", invalid, "kind"},
		{"a parameter that the lexicon spells otherwise", "maxmessagesizebytes=1", "", invalid, "maxmessagesizebytes"},
		{"a very long parameter", long + "=1", "", invalid, ""},
		{"a query that is not well formed", "kinds=%zz", "", invalid, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var lines []string
			if tt.header != "" {
				lines = append(lines, "Socket-Encoding: "+tt.header)
			}
			resp := handshake(t, d.addr, tt.query, append(lines, "Sec-WebSocket-Protocol: "+v2Subprotocol)...)
			if resp.StatusCode != http.StatusBadRequest {
				t.Fatalf("got %d, want 400", resp.StatusCode)
			}
			name, message := envelope(t, resp)
			if name != tt.want || !strings.Contains(message, tt.says) {
				t.Errorf("got %s: %q; want %s and %q", name, message, tt.want, tt.says)
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("Access-Control-Allow-Origin %q", got)
			}
			if got := resp.Header.Get("Retry-After"); got != "" {
				t.Errorf("what is final has Retry-After %q", got)
			}
		})
	}
}

// What is just within the limits.
func TestV2Accepts(t *testing.T) {
	f := newFeeder(t)
	d := serveV2(t, f.url, t.TempDir())
	for _, tt := range []struct{ name, query string }{
		{"no parameter at all: all kinds, repos and collections, any size, plain", ""},
		{"kinds: each of the four, repeated", "kinds=commit&kinds=identity&kinds=account&kinds=sync"},
		{"kinds: the same twice", "kinds=identity&kinds=identity"},
		{"dids: 10,000", many("dids", "did:plc:%024d", 9_999) + "&dids=" + beatDID},
		{"dids: escaped", "dids=" + strings.ReplaceAll(beatDID, ":", "%3A")},
		{"dids: of any method", "dids=did:web:a.example%253A8080&dids=" + beatDID},
		{"collections: 100", many("collections", "app.test.c%d.x", 100)},
		{"collections: 100 patterns", many("collections", "app.test.c%d.*", 100)},
		{"collections: kinds is set and includes commit", "collections=app.bsky.feed.post&kinds=identity&kinds=commit"},
		{"maxMessageSizeBytes: 0 means no limit", "maxMessageSizeBytes=0"},
		{"maxMessageSizeBytes: the maximum", "maxMessageSizeBytes=4294967295"},
		{"zstdDictionary: the current id", packed(t)},
		{"all at once", packed(t) + "&cursor=999999999999999&kinds=identity&kinds=commit&collections=app.bsky.*&maxMessageSizeBytes=100000&dids=" + beatDID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dialV2(t, d.addr, tt.query, "Sec-WebSocket-Protocol", v2Subprotocol)
			c.expectBeat(t, f.beat(t))
		})
	}
	t.Run("kinds: an empty value does not silently match nothing", func(t *testing.T) {
		ws, resp, err := tryV2(d.addr, "kinds=")
		if err != nil { // a value outside the enum
			if name, _ := envelope(t, resp); resp.StatusCode != http.StatusBadRequest || name != "InvalidRequest" {
				t.Errorf("got %d %s", resp.StatusCode, name)
			}
			return
		}
		defer ws.Close()
		newV2Client(t, ws, resp, "").expectBeat(t, f.beat(t)) // or none at all
	})
	t.Run("a dictionary that is offered is one that frames can be had with", func(t *testing.T) {
		for _, dictionary := range dictionaries.All() {
			id, err := event.DictionaryID(dictionary)
			if err != nil {
				t.Fatal(err)
			}
			query := fmt.Sprintf("zstdDictionary=%d", id)
			ws, resp, err := tryV2(d.addr, query)
			if err == nil {
				newV2Client(t, ws, resp, query).expectBeat(t, f.beat(t))
				ws.Close()
			} else if name, message := envelope(t, resp); id == currentID(t) || resp.StatusCode != 400 || name != "UnknownZstdDictionary" || !names(message, int64(currentID(t))) {
				t.Errorf("%d: got %d %s: %s", id, resp.StatusCode, name, message)
			}
		}
	})
}

// What may pass is refused with 503, so that clients come again.
func TestV2Unavailable(t *testing.T) {
	refused := func(t *testing.T, addr, query string, lines ...string) {
		t.Helper()
		resp := handshake(t, addr, query, lines...)
		name, message := envelope(t, resp)
		if resp.StatusCode != http.StatusServiceUnavailable || name != "ServiceUnavailable" || resp.Header.Get("Retry-After") == "" {
			t.Errorf("got %d %s: %s, Retry-After %q; want 503 ServiceUnavailable", resp.StatusCode, name, message, resp.Header.Get("Retry-After"))
		}
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
			t.Errorf("Access-Control-Allow-Origin %q", got)
		}
	}
	t.Run("503 when the server is full", func(t *testing.T) {
		d := serveV2(t, newFeeder(t).url, t.TempDir(), "--max-subscribers", "2")
		dial(t, d.addr, "") // those of both wires count
		c := dialV2(t, d.addr, "")
		refused(t, d.addr, "")
		refused(t, d.addr, packed(t), "Sec-WebSocket-Protocol: "+v2Subprotocol)
		// Which 400 is not: it is final however full the server.
		if resp := handshake(t, d.addr, "kinds=post"); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("a bad request gets %d", resp.StatusCode)
		}
		c.ws.Close()
		testproc.WaitFor(t, "the place of one who left", func() bool {
			ws, _, err := tryV2(d.addr, "")
			if err == nil {
				ws.Close()
			}
			return err == nil
		})
	})
	t.Run("503 when the filters of all are full", func(t *testing.T) {
		d := serveV2(t, newFeeder(t).url, t.TempDir(), "--max-filter-dids", "5")
		dialV2(t, d.addr, many("dids", "did:plc:%024d", 4))
		refused(t, d.addr, many("dids", "did:plc:%024d", 4))
		dialV2(t, d.addr, many("dids", "did:plc:%024d", 1))
	})
	t.Run("503 when the client's address has as many connections as it may", func(t *testing.T) {
		d := serveV2(t, newFeeder(t).url, t.TempDir(), "--max-subscribers-per-ip", "1", "--trusted-proxies", "127.0.0.1")
		dialV2(t, d.addr, "", "X-Forwarded-For", "192.0.2.7")
		refused(t, d.addr, "", "X-Forwarded-For: 192.0.2.7")
		dialV2(t, d.addr, "", "X-Forwarded-For", "192.0.2.8")
	})
}

// All that is not implemented.
func TestV2Methods(t *testing.T) {
	d := serveV2(t, newFeeder(t).url, t.TempDir())
	for _, tt := range []struct{ name, method, path string }{
		{"planSnapshot answers 501 MethodNotImplemented", "GET", "/xrpc/network.bsky.jetstream.planSnapshot"},
		{"planSnapshot with parameters, too", "GET", "/xrpc/network.bsky.jetstream.planSnapshot?dids=did:plc:x&cursor=1"},
		{"another method of Jetstream's", "GET", "/xrpc/network.bsky.jetstream.getSegment"},
		{"a method of another service", "GET", "/xrpc/com.atproto.sync.subscribeRepos"},
		{"a procedure", "POST", "/xrpc/com.atproto.server.createSession"},
		{"a name that begins with one that there is", "GET", v2Path + "2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp := request(t, tt.method, "http://"+d.addr+tt.path)
			name, message := envelope(t, resp)
			if resp.StatusCode != http.StatusNotImplemented || name != "MethodNotImplemented" {
				t.Errorf("got %d %s: %s", resp.StatusCode, name, message)
			}
		})
	}
	t.Run("v1's own paths are as they were", func(t *testing.T) {
		for path, want := range map[string]int{"/xrpc/_health": 200, "/": 200, "/dictionary": 200, "/subscribe": 200} {
			if got := request(t, "GET", "http://"+d.addr+path).StatusCode; got != want {
				t.Errorf("%s: %d, want %d", path, got, want)
			}
		}
	})
}

// The dictionary's endpoint.
func TestV2Dictionary(t *testing.T) {
	d := serveV2(t, newFeeder(t).url, t.TempDir())
	get := func(t *testing.T, query string, header ...string) (*http.Response, []byte) {
		t.Helper()
		resp := request(t, "GET", "http://"+d.addr+v2DictPath+query, header...)
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
			t.Errorf("%s: Access-Control-Allow-Origin %q", query, got)
		}
		resp.Body = io.NopCloser(bytes.NewReader(body)) // for envelope
		return resp, body
	}
	id := currentID(t)
	of := fmt.Sprintf("?id=%d", id)
	t.Run("id omitted: the server's current dictionary, application/octet-stream", func(t *testing.T) {
		resp, body := get(t, "")
		if resp.StatusCode != http.StatusOK || !bytes.Equal(body, dictionaries.Current()) || resp.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("got %d, %d bytes of %q", resp.StatusCode, len(body), resp.Header.Get("Content-Type"))
		}
		if got := resp.Header.Get("Cache-Control"); strings.Contains(got, "immutable") {
			t.Errorf("which one is current may change, and it has Cache-Control %q", got)
		}
	})
	t.Run("the response is a raw zstd structured dictionary, under the id that is asked for", func(t *testing.T) {
		_, body := get(t, of)
		if len(body) < 8 || binary.LittleEndian.Uint32(body) != 0xEC30A437 || binary.LittleEndian.Uint32(body[4:]) != id {
			t.Errorf("it begins with %x", body[:min(len(body), 8)])
		}
	})
	t.Run("immutable for a given id and CDN-cacheable, with ETag", func(t *testing.T) {
		resp, body := get(t, of)
		if resp.StatusCode != http.StatusOK || !bytes.Equal(body, dictionaries.Current()) || resp.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("got %d, %d bytes of %q", resp.StatusCode, len(body), resp.Header.Get("Content-Type"))
		}
		cache := resp.Header.Get("Cache-Control")
		for _, want := range []string{"public", "max-age=", "immutable"} {
			if !strings.Contains(cache, want) {
				t.Errorf("Cache-Control %q lacks %s", cache, want)
			}
		}
		if resp.Header.Get("ETag") == "" {
			t.Error("no ETag")
		}
	})
	t.Run("If-None-Match is answered with 304", func(t *testing.T) {
		for _, query := range []string{"", of} {
			resp, _ := get(t, query)
			etag := resp.Header.Get("ETag")
			for _, match := range []string{etag, "W/" + etag, `"x", ` + etag, "*"} {
				if resp, body := get(t, query, "If-None-Match", match); resp.StatusCode != http.StatusNotModified || len(body) != 0 {
					t.Errorf("%s with %s: got %d and %d bytes", query, match, resp.StatusCode, len(body))
				}
			}
			if resp, _ := get(t, query, "If-None-Match", `"x"`); resp.StatusCode != http.StatusOK {
				t.Errorf("%s with another tag: got %d", query, resp.StatusCode)
			}
		}
	})
	t.Run("a dictionary that was once shipped is still there", func(t *testing.T) {
		for _, dictionary := range dictionaries.All() {
			id, err := event.DictionaryID(dictionary)
			if err != nil {
				t.Fatal(err)
			}
			if resp, body := get(t, fmt.Sprintf("?id=%d", id)); resp.StatusCode != http.StatusOK || !bytes.Equal(body, dictionary) {
				t.Errorf("%d: got %d and %d bytes", id, resp.StatusCode, len(body))
			}
		}
	})
	for _, query := range []string{"?id=1", "?id=4294967295", fmt.Sprintf("?id=%d", uint64(id)+1<<32)} {
		t.Run("404 DictionaryNotFound: "+query, func(t *testing.T) {
			resp, _ := get(t, query)
			if name, message := envelope(t, resp); resp.StatusCode != http.StatusNotFound || name != "DictionaryNotFound" {
				t.Errorf("got %d %s: %s", resp.StatusCode, name, message)
			}
			if got := resp.Header.Get("Cache-Control"); strings.Contains(got, "immutable") || strings.Contains(got, "max-age") {
				t.Errorf("Cache-Control %q", got)
			}
		})
	}
	for _, query := range []string{"?id=", "?id=0", "?id=-1", "?id=x", "?id=1.5", of + "&id=1", of + "&lang=en", "?ID=1"} {
		t.Run("400 InvalidRequest: "+query, func(t *testing.T) {
			resp, _ := get(t, query)
			if name, message := envelope(t, resp); resp.StatusCode != http.StatusBadRequest || name != "InvalidRequest" {
				t.Errorf("got %d %s: %s", resp.StatusCode, name, message)
			}
		})
	}
}

// Where the dictionary of v1 is another one, that of v2 still is our own.
func TestV2DictionaryBesideLegacy(t *testing.T) {
	other := bytes.Clone(dictionaries.Current())
	otherID := currentID(t) + 1_000_000
	binary.LittleEndian.PutUint32(other[4:], otherID)
	file := filepath.Join(t.TempDir(), "other.zdict")
	if err := os.WriteFile(file, other, 0o644); err != nil {
		t.Fatal(err)
	}
	// What is stored before is compressed with ours, what comes then with the other.
	b := makeBuffer(t, 30, hoursAgo(1)...)
	f := newFeeder(t)
	d := serveV2(t, f.url, b.dir, "--legacy-dictionary", file)

	t.Run("v1 has the other one", func(t *testing.T) {
		ws := dial(t, d.addr, "compress=true")
		f.beat(t)
		ws.SetReadDeadline(time.Now().Add(20 * time.Second))
		op, message, err := ws.ReadMessage()
		if err != nil || op != websocket.BinaryMessage || len(message) < 9 {
			t.Fatalf("opcode %d, %d bytes: %v", op, len(message), err)
		}
		if !bytes.Contains(message[:12], binary.LittleEndian.AppendUint32(nil, otherID)) {
			t.Errorf("the frame begins with %x", message[:12])
		}
	})
	t.Run("the current dictionary is our own", func(t *testing.T) {
		resp := request(t, "GET", "http://"+d.addr+v2DictPath)
		if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, dictionaries.Current()) {
			t.Errorf("%d bytes, %v", len(body), err)
		}
	})
	t.Run("frames carry its id, of old events and new ones", func(t *testing.T) {
		c := dialV2(t, d.addr, packed(t)+"&cursor=0")
		c.expect(t, b.events())
		c.frame(t) // the beat of before
		c.expectBeat(t, f.beat(t))
	})
	t.Run("UnknownZstdDictionary names it", func(t *testing.T) {
		resp := handshake(t, d.addr, url.Values{"zstdDictionary": {"7"}}.Encode())
		name, message := envelope(t, resp)
		if resp.StatusCode != http.StatusBadRequest || name != "UnknownZstdDictionary" || !names(message, int64(currentID(t))) {
			t.Errorf("got %d %s: %s", resp.StatusCode, name, message)
		}
	})
}
