package subscribe_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"slipstream/pkg/subscribe"
)

// FuzzQuery holds the reading of a query against net/url's.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		"", "wantedCollections=app.bsky.feed.post&wantedDids=did:plc:a,did:plc:b&cursor=5&compress=true",
		"wantedCollections=app.bsky.graph.*&requireHello=true&maxMessageSizeBytes=1000", "wanted%44ids=did%3Aplc%3aa+",
		"&&=&a=%zz&wantedDids=%zz", "cursor=x;y", "wantedDids", "wantedDids=,", "%=1", "x%3D=2&cursor=%31",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, filter, err := subscribe.ParseQuery(raw)
		if err != nil {
			if text := err.Error(); text == "" || !utf8.ValidString(text) || len(text) > 500 {
				t.Fatalf("the consumer is told %.600q", text)
			}
			return
		}
		if filter[0]+filter[1] > 100 || filter[2] > 10_000 {
			t.Fatalf("a filter of %v names", filter)
		}
		want, err := url.ParseQuery(raw)
		if err != nil {
			return // a parameter that is not ours, or a semicolon
		}
		for name, values := range want {
			if ours := got[name]; ours != nil && strings.Join(ours, "&") != strings.Join(values, "&") || ours == nil && known[name] {
				t.Fatalf("%s: got %q, want %q", name, ours, values)
			}
		}
	})
}

// known are the parameters of /subscribe.
var known = map[string]bool{"wantedCollections": true, "wantedDids": true, "cursor": true, "compress": true, "maxMessageSizeBytes": true, "requireHello": true}

// FuzzUpdate: whatever a consumer sends, it is ignored, or refused with a reason, or a
// filter within the limits that names what was sent.
func FuzzUpdate(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"type":"options_update"}`, `{"type":"options_update","payload":{"wantedCollections":["app.bsky.feed.post","app.*"],"wantedDids":["did:plc:a"],"maxMessageSizeBytes":5}}`,
		`{"type":"options_update","payload":{"wantedDids":null}}`, `{"type":"options_update","payload":[]}`, `{"type":5}`,
		`{"type":"options_update","payload":{"maxMessageSizeBytes":1e3}}`, "\xff", `{"type":"options_update","payload":{"wantedDids":["\ud800"]}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		got, ignored, err := subscribe.ParseUpdate(message)
		if ignored {
			return
		}
		if err != nil {
			if text := err.Error(); text == "" || !utf8.ValidString(text) {
				t.Fatalf("the consumer is told %q", text)
			}
			return
		}
		var want struct{ Payload plain }
		if err := json.Unmarshal(message, &want); err != nil {
			t.Fatalf("taken, though %v", err)
		}
		if got[0]+got[1] > len(want.Payload.Collections) || got[0]+got[1] > 100 || got[2] > len(want.Payload.DIDs) || got[2] > 10_000 ||
			(got[0]+got[1] == 0) != (len(want.Payload.Collections) == 0) || (got[2] == 0) != (len(want.Payload.DIDs) == 0) {
			t.Fatalf("a filter of %v names for %+v", got, want.Payload)
		}
	})
}
