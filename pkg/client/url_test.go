package client

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

func TestEndpoint(t *testing.T) {
	for _, test := range []struct {
		text string
		wire Wire
		want string // the URL to dial from a cursor of 7; "": an error
	}{
		{"", 0, "ws://127.0.0.1:6008/subscribe?cursor=7"},
		{"", V2, "ws://127.0.0.1:6008/xrpc/network.bsky.jetstream.subscribeEvents?cursor=7"},
		{"localhost:6008", 0, "ws://localhost:6008/subscribe?cursor=7"},
		{"localhost:6008/", V1, "ws://localhost:6008/subscribe?cursor=7"},
		{"[::1]:6008", 0, "ws://[::1]:6008/subscribe?cursor=7"},
		{"192.168.1.2", 0, "ws://192.168.1.2/subscribe?cursor=7"},
		{"slipstream:6008", 0, "ws://slipstream:6008/subscribe?cursor=7"},
		{"jetstream2.us-east.bsky.network", 0, "wss://jetstream2.us-east.bsky.network/subscribe?cursor=7"},
		{"8.8.8.8", 0, "wss://8.8.8.8/subscribe?cursor=7"},
		{"https://host", V2, "wss://host/xrpc/network.bsky.jetstream.subscribeEvents?cursor=7"},
		{"http://host/subscribe?cursor=5", 0, "ws://host/subscribe?cursor=7"},
		{"ws://host/below/subscribe#x", 0, "ws://host/below/subscribe?cursor=7"},
		{"ws://host/subscribe?compress=true&wantedCollections=a.b.c,d.e.*&wantedDids=did:x:y&maxMessageSizeBytes=9&requireHello=true&other=1", 0,
			"ws://host/subscribe?compress=true&cursor=7&maxMessageSizeBytes=9&other=1&wantedCollections=a.b.c&wantedCollections=d.e.%2A&wantedDids=did%3Ax%3Ay"},
		{"ws://host/subscribe?zstdDictionary=3", 0, "ws://host/subscribe?cursor=7&zstdDictionary=3"},
		{"wss://host/xrpc/network.bsky.jetstream.subscribeEvents?kinds=commit&dids=did:x:y&collections=a.b.c", 0,
			"wss://host/xrpc/network.bsky.jetstream.subscribeEvents?collections=a.b.c&cursor=7&dids=did%3Ax%3Ay&kinds=commit"},
		{"wss://host/xrpc/network.bsky.jetstream.subscribeEvents", V1, ""},
		{"wss://host/subscribe", V2, ""},
		{"ftp://host", 0, ""},
		{"ws:///subscribe", 0, ""},
		{"ws://host/subscribe?cursor=yesterday", 0, ""},
		{"ws://host/subscribe?cursor=-1", 0, ""},
		{"ws://host/subscribe?zstdDictionary=best", 0, ""},
		{"ws://host/subscribe?maxMessageSizeBytes=-1", 0, ""},
		{"ws://host/subscribe?%", 0, ""},
		{"ws://ho st", 0, ""},
	} {
		e, err := parseEndpoint(test.text, test.wire)
		if test.want == "" {
			if err == nil {
				t.Errorf("%q: no error", test.text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		if got, _ := e.dial(&e.filter, 7, e.fixed); got != test.want {
			t.Errorf("%q\n got %s\nwant %s", test.text, got, test.want)
		}
	}
}

// A bot does not have to link the server: Pebble, libzstd, and what they bring.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		for _, bad := range []string{"slipstream/", "pebble", "DataDog/zstd", "gozstd", "prometheus", "urfave", "sqlite"} {
			if strings.Contains(name, bad) && name != "slipstream/pkg/client" {
				t.Errorf("it imports %s", name)
			}
		}
	}
}

// What a server sends is an event that keeps what Event promises, or an error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"did":"did:plc:x","time_us":1,"kind":"commit","commit":{"rev":"r","operation":"create","collection":"c","rkey":"k","record":{"$type":"x"},"cid":"b"}}`,
		`{"did":"did:plc:x","time_us":1,"kind":"identity","identity":{"did":"x","seq":1,"time":""}}`,
		`{"did":"did:plc:x","time_us":1,"kind":"account","account":null}`,
		`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#commit","seq":1,"did":"x","time":"2026-11-24T10:35:48.984691Z","rev":"r","operation":"delete","collection":"c","rkey":"k","record":null}}`,
		`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#sync","seq":1,"did":"x","time":"2026-11-24T10:35:48Z","sync":{}}}`,
		`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#info","name":"OutdatedCursor"}}`,
		`{"$type":"error","error":"x","message":"y"}`,
		`[]`, `null`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for wire, parse := range map[string]func([]byte) (message, error){"v1": parseV1, "v2": parseV2} {
			m, err := parse(bytes.Clone(b))
			if err != nil || m.event == nil {
				continue
			}
			e := m.event
			if e.DID == "" || e.Kind == "" || e.Cursor <= 0 || !bytes.Equal(e.Raw, b) {
				t.Fatalf("%s: %+v of %q", wire, e, b)
			}
			for kind, there := range map[Kind]bool{KindCommit: e.Commit != nil, KindIdentity: e.Identity != nil, KindAccount: e.Account != nil, KindSync: e.Sync != nil} {
				if there != (e.Kind == kind) {
					t.Fatalf("%s: body of %s: %v in %q", wire, kind, there, b)
				}
			}
			if e.Commit != nil && e.Commit.Record != nil && !json.Valid(e.Commit.Record) {
				t.Fatalf("%s: record %q", wire, e.Commit.Record)
			}
		}
	})
}
