package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/ipfs/go-cid"

	"slipstream/pkg/event"
	"slipstream/pkg/simrelay"
)

// goldenCommit is what both wires have of the first event's commit, from "rev" on. {ls} is
// the line separator U+2028, which JSON does not escape.
const goldenCommit = `"rev":"3mptbypluud2a","operation":"create","collection":"app.bsky.feed.post","rkey":"3mptbyplj5d2a",` +
	`"record":{"n":-9007199254740991,"raw":{"$bytes":"AP8"},"yes":true,"list":[],"none":null,` +
	`"root":{"$link":"bafyreicicneu2e36cyy3xiyb2wwkw3t3w6vhjtqrqxkfmvs66uoxg5txwi"},` +
	`"text":"é 😀 \"q\" \\ / <b>&{ls}\n\t\u0001","$type":"app.bsky.feed.post","empty":{},"langs":["en","ja"],` +
	`"createdAt":"2026-07-04T14:38:08.999Z"},"cid":"bafyreiarcodx6h2nn3hazbfijix6ewpukhgrfplcdok52rl5j5hja2s254"}}`

// goldenFrames are the text frames of either wire for goldenMessages, with what the daemon
// assigns in braces: {us}, the time_us, {seq}, which is that less the epoch, and {time}.
var goldenFrames = []struct{ v1, v2 string }{{
	`{"did":"did:plc:wq4aajammjtxdomz3e23667t","time_us":{us},"kind":"commit","commit":{` + goldenCommit,
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#commit","seq":{seq},"did":"did:plc:wq4aajammjtxdomz3e23667t","time":"{time}",` + goldenCommit,
}, {
	`{"did":"did:plc:wq4aajammjtxdomz3e23667t","time_us":{us},"kind":"commit","commit":{"rev":"3mptbypluud2a","operation":"delete","collection":"app.bsky.graph.follow","rkey":"3mptbyplj5d2b"}}`,
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#commit","seq":{seq},"did":"did:plc:wq4aajammjtxdomz3e23667t","time":"{time}","rev":"3mptbypluud2a","operation":"delete","collection":"app.bsky.graph.follow","rkey":"3mptbyplj5d2b"}}`,
}, {
	`{"did":"did:plc:wq4aajammjtxdomz3e23667t","time_us":{us},"kind":"commit","commit":{"rev":"3mptbypluud2a","operation":"update","collection":"app.bsky.actor.profile","rkey":"self","record":{"$type":"app.bsky.actor.profile","displayName":"Ann"},"cid":"bafyreict3dhdiplxpjaap4frqfvzw3hbfdcej57v4e2jp4bvb4jxedlc3e"}}`,
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#commit","seq":{seq},"did":"did:plc:wq4aajammjtxdomz3e23667t","time":"{time}","rev":"3mptbypluud2a","operation":"update","collection":"app.bsky.actor.profile","rkey":"self","record":{"$type":"app.bsky.actor.profile","displayName":"Ann"},"cid":"bafyreict3dhdiplxpjaap4frqfvzw3hbfdcej57v4e2jp4bvb4jxedlc3e"}}`,
}, {
	`{"did":"did:web:a.example%3A8080","time_us":{us},"kind":"identity","identity":{"did":"did:web:a.example%3A8080","handle":"ann.example","seq":2,"time":"2026-07-04T14:38:09.001Z"}}`,
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#identity","seq":{seq},"did":"did:web:a.example%3A8080","time":"{time}","identity":{"did":"did:web:a.example%3A8080","handle":"ann.example","seq":2,"time":"2026-07-04T14:38:09.001Z"}}}`,
}, {
	`{"did":"did:plc:wq4aajammjtxdomz3e23667t","time_us":{us},"kind":"identity","identity":{"did":"did:plc:wq4aajammjtxdomz3e23667t","seq":3,"time":"2026-07-04T14:38:09.002Z"}}`,
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#identity","seq":{seq},"did":"did:plc:wq4aajammjtxdomz3e23667t","time":"{time}","identity":{"did":"did:plc:wq4aajammjtxdomz3e23667t","seq":3,"time":"2026-07-04T14:38:09.002Z"}}}`,
}, {
	`{"did":"did:plc:wq4aajammjtxdomz3e23667t","time_us":{us},"kind":"account","account":{"active":true,"did":"did:plc:wq4aajammjtxdomz3e23667t","seq":4,"time":"2026-07-04T14:38:09.003Z"}}`,
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#account","seq":{seq},"did":"did:plc:wq4aajammjtxdomz3e23667t","time":"{time}","account":{"active":true,"did":"did:plc:wq4aajammjtxdomz3e23667t","seq":4,"time":"2026-07-04T14:38:09.003Z"}}}`,
}, {
	`{"did":"did:plc:wq4aajammjtxdomz3e23667t","time_us":{us},"kind":"account","account":{"active":false,"did":"did:plc:wq4aajammjtxdomz3e23667t","seq":5,"status":"takendown","time":"2026-07-04T14:38:09.004Z"}}`,
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#account","seq":{seq},"did":"did:plc:wq4aajammjtxdomz3e23667t","time":"{time}","account":{"active":false,"did":"did:plc:wq4aajammjtxdomz3e23667t","seq":5,"status":"takendown","time":"2026-07-04T14:38:09.004Z"}}}`,
}, {
	``, // #sync goes out on the second wire only
	`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#sync","seq":{seq},"did":"did:plc:wq4aajammjtxdomz3e23667t","time":"{time}","sync":{"did":"did:plc:wq4aajammjtxdomz3e23667t","rev":"3mptbypluud2c","seq":6,"time":"2026-07-04T14:38:09.005Z","blocks":{"$bytes":"YmxvY2tzIQ"}}}}`,
}}

// goldenMessages are what the relay sends of them, the first three in one commit.
func goldenMessages(t testing.TB) [][]byte {
	t.Helper()
	const did, web = "did:plc:wq4aajammjtxdomz3e23667t", "did:web:a.example%3A8080"
	root, err := cid.Decode("bafyreicicneu2e36cyy3xiyb2wwkw3t3w6vhjtqrqxkfmvs66uoxg5txwi")
	if err != nil {
		t.Fatal(err)
	}
	post := map[string]any{
		"$type": "app.bsky.feed.post", "text": "é 😀 \"q\" \\ / <b>&\u2028\n\t\x01", "langs": []any{"en", "ja"}, "createdAt": "2026-07-04T14:38:08.999Z",
		"n": int64(-9007199254740991), "raw": atdata.Bytes{0x00, 0xff}, "root": atdata.CIDLink(root), "none": nil, "yes": true,
		"empty": map[string]any{}, "list": []any{},
	}
	return [][]byte{
		commitOf(t, 1, did, "3mptbypluud2a", "2026-07-04T14:38:09.000Z",
			[3]any{"create", "app.bsky.feed.post/3mptbyplj5d2a", post},
			[3]any{"delete", "app.bsky.graph.follow/3mptbyplj5d2b", nil},
			[3]any{"update", "app.bsky.actor.profile/self", map[string]any{"$type": "app.bsky.actor.profile", "displayName": "Ann"}}),
		messageOf(t, "#identity", map[string]any{"did": web, "seq": 2, "time": "2026-07-04T14:38:09.001Z", "handle": "ann.example"}),
		messageOf(t, "#identity", map[string]any{"did": did, "seq": 3, "time": "2026-07-04T14:38:09.002Z"}),
		messageOf(t, "#account", map[string]any{"did": did, "seq": 4, "time": "2026-07-04T14:38:09.003Z", "active": true}),
		messageOf(t, "#account", map[string]any{"did": did, "seq": 5, "time": "2026-07-04T14:38:09.004Z", "active": false, "status": "takendown"}),
		messageOf(t, "#sync", map[string]any{"did": did, "seq": 6, "time": "2026-07-04T14:38:09.005Z", "rev": "3mptbypluud2c", "blocks": atdata.Bytes("blocks!")}),
	}
}

// The frames of either wire, byte for byte, live and replayed, plain and compressed.
func TestGoldenFrames(t *testing.T) {
	f := newFeeder(t)
	d := serveV2(t, f.url, t.TempDir())
	const before, after = "live", "replayed"
	v1 := map[string]*reader{before: newReader(t, dial(t, d.addr, "")), before + ", compressed": newReader(t, dial(t, d.addr, "compress=true"))}
	v2 := map[string]*v2Client{before: dialV2(t, d.addr, ""), before + ", compressed": dialV2(t, d.addr, packed(t))}
	for _, m := range goldenMessages(t) {
		f.push(func(int) []byte { return m })
	}
	v2[before].frames(t, len(goldenFrames)) // and again, as everyone's
	v2[before] = dialV2(t, d.addr, "cursor=0")
	v2[after] = dialV2(t, d.addr, "cursor=0")
	v2[after+", compressed"] = dialV2(t, d.addr, packed(t)+"&cursor=0")
	v1[after] = newReader(t, dial(t, d.addr, "cursor=0"))
	v1[after+", compressed"] = newReader(t, dial(t, d.addr, "cursor=0&compress=true"))

	var times []int64 // time_us, by the first that is looked at
	for name, c := range v2 {
		t.Run("v2 "+name, func(t *testing.T) {
			last := int64(0)
			for i, fr := range c.frames(t, len(goldenFrames)) {
				us := fr.seq + v2Epoch
				if fr.seq <= last {
					t.Errorf("seq %d after %d", fr.seq, last)
				}
				last = fr.seq
				if i == len(times) {
					times = append(times, us)
				}
				if want := golden(goldenFrames[i].v2, times[i]); string(fr.text) != want {
					t.Errorf("frame %d:\n got %s\nwant %s", i, fr.text, want)
				}
			}
		})
	}
	for name, r := range v1 {
		t.Run("v1 "+name, func(t *testing.T) {
			for i, g := range goldenFrames {
				if g.v1 == "" {
					continue
				}
				if got, want := string(r.messages(t, 1)[0]), golden(g.v1, times[i]); got != want {
					t.Errorf("frame %d:\n got %s\nwant %s", i, got, want)
				}
			}
			if m, err := r.next(200 * time.Millisecond); err == nil {
				t.Errorf("one frame too many: %s", m)
			}
		})
	}
}

// golden puts into a golden frame what the daemon assigns.
func golden(frame string, us int64) string {
	return strings.NewReplacer("{us}", fmt.Sprint(us), "{seq}", fmt.Sprint(us-v2Epoch), "{ls}", "\u2028",
		"{time}", time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.000000Z")).Replace(frame)
}

// Of events whose time is known the whole frame is: time has exactly six decimals, also when
// they are zeros, and seq is time_us less 1_600_000_000_000_000.
func TestGoldenTimes(t *testing.T) {
	b := &v2Buffer{dir: t.TempDir()}
	var block []v2Event
	var forms [][3][]byte
	want := []string{
		`"seq":1,"did":"did:plc:a","time":"2020-09-13T12:26:40.000001Z"`,
		`"seq":190000000000000,"did":"did:plc:a","time":"2026-09-21T14:13:20.000000Z"`,
		`"seq":190000000000100,"did":"did:plc:a","time":"2026-09-21T14:13:20.000100Z"`,
		`"seq":190000000123456,"did":"did:plc:a","time":"2026-09-21T14:13:20.123456Z"`,
		`"seq":190000000500000,"did":"did:plc:a","time":"2026-09-21T14:13:20.500000Z"`,
	}
	for i, us := range []event.Cursor{1_600_000_000_000_001, 1_790_000_000_000_000, 1_790_000_000_000_100, 1_790_000_000_123_456, 1_790_000_000_500_000} {
		text := event.AppendIdentity(nil, []byte("did:plc:a"), nil, int64(i), []byte("2026-07-04T14:38:09Z"))
		event.SetCursor(event.Payload(text), len("did:plc:a"), us)
		block = append(block, v2Event{cursor: int64(us), kind: "identity", did: "did:plc:a"})
		forms = append(forms, [3][]byte{text, v2Compressor().AppendBinary(nil, event.Payload(text)), nil})
	}
	b.append(t, block, forms)
	d := serveV2(t, newFeeder(t).url, b.dir, "--event-ttl", "200000h")
	both(t, "time is RFC 3339 with exactly six decimals and Z", func(t *testing.T, query string) {
		for i, f := range dialV2(t, d.addr, query+"cursor=0").frames(t, len(want)) {
			frame := fmt.Sprintf(`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#identity",%s,"identity":{"did":"did:plc:a","seq":%d,"time":"2026-07-04T14:38:09Z"}}}`, want[i], i)
			if string(f.text) != frame {
				t.Errorf("got %s, want %s", f.text, frame)
			}
		}
	})
}

// Real events on the second wire are those that production served on the first, in the
// second's form.
func TestV2RealFrames(t *testing.T) {
	frames, want := realFrames(t)
	d := serveV2(t, serveHandler(t, simrelay.Replay(frames)), t.TempDir())
	v1 := newReader(t, dial(t, d.addr, "cursor=0")).messages(t, len(want))
	checkEvents(t, "v1", v1, want)
	both(t, "the v2 form is spliced out of the v1 form, the record's bytes are never re-encoded", func(t *testing.T, query string) {
		c := dialV2(t, d.addr, query+"cursor=0")
		for i := 0; i < len(v1); {
			f := c.frame(t)
			if f.kind == "sync" {
				continue
			}
			if got, want := f.text, v2Of(t, v1[i]); !bytes.Equal(got, want) {
				t.Fatalf("event %d:\n got %s\nwant %s", i, got, want)
			}
			if f.kind == "commit" {
				checkTail(t, v1[i], f.text)
			}
			i++
		}
	})
}

// checkTail checks that a commit is the same on both wires from "rev" on.
func checkTail(t testing.TB, v1, v2 []byte) {
	t.Helper()
	at1, at2 := bytes.Index(v1, []byte(`"rev":`)), bytes.Index(v2, []byte(`"rev":`))
	if at1 < 0 || at2 < 0 || !bytes.Equal(v1[at1:], v2[at2:]) {
		t.Fatalf("from \"rev\" on:\nv1 %s\nv2 %s", v1, v2)
	}
}
