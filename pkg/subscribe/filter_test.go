package subscribe_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/subscribe"
)

// plain is a filter, the slow and obvious way.
type plain struct {
	Collections []string `json:"wantedCollections,omitempty"`
	DIDs        []string `json:"wantedDids,omitempty"`
	MaxSize     int      `json:"maxMessageSizeBytes,omitempty"`

	V2    bool     `json:"-"`
	Kinds []string `json:"-"` // of v2
}

func (p plain) wants(f fact) bool {
	if f.kind == event.KindSync && !p.V2 || len(p.Kinds) > 0 && !slices.Contains(p.Kinds, f.kind.String()) {
		return false
	}
	if len(p.DIDs) > 0 && !slices.Contains(p.DIDs, f.did) {
		return false
	}
	if p.MaxSize > 0 && len(f.text(p.V2)) > p.MaxSize {
		return false
	}
	if f.kind != event.KindCommit || len(p.Collections) == 0 {
		return true
	}
	for _, c := range p.Collections {
		if c == f.collection || strings.HasSuffix(c, ".*") && strings.HasPrefix(f.collection, c[:len(c)-1]) {
			return true
		}
	}
	return false
}

func (p plain) of(facts []fact) (wanted []fact) {
	for _, f := range facts {
		if p.wants(f) {
			wanted = append(wanted, f)
		}
	}
	return wanted
}

func (p plain) query() string {
	v := url.Values{"wantedCollections": p.Collections, "wantedDids": p.DIDs}
	if p.V2 {
		v = url.Values{"collections": p.Collections, "dids": p.DIDs, "kinds": p.Kinds}
	}
	if p.MaxSize > 0 {
		v.Set("maxMessageSizeBytes", fmt.Sprint(p.MaxSize))
	}
	return v.Encode()
}

func (p plain) update() string {
	b, _ := json.Marshal(map[string]any{"type": "options_update", "payload": p})
	return string(b)
}

// randomKinds makes the filter one of the v2 wire, of any kinds that its collections allow.
func (p *plain) randomKinds(rng *rand.Rand) {
	p.V2 = true
	for _, kind := range []string{"commit", "identity", "account", "sync"} {
		if rng.IntN(4) == 0 || kind == "commit" && len(p.Collections) > 0 && len(p.Kinds) == 0 && rng.IntN(2) == 0 {
			p.Kinds = append(p.Kinds, kind)
		}
	}
	if len(p.Kinds) > 0 && !slices.Contains(p.Kinds, "commit") {
		p.Collections = nil
	}
}

func TestFilters(t *testing.T) { onBothWires(t, testFilters) }

func testFilters(t *testing.T, v2 bool) {
	w := newWorld(t, nil)
	w.v2 = v2
	f := w.feed
	for _, did := range []string{"did:plc:alice", "did:plc:bob", "did:web:carol.example"} {
		f.add(event.KindCommit, did, "app.bsky.feed.post", "short")
		f.add(event.KindCommit, did, "app.bsky.feed.like", strings.Repeat("long", 100))
		f.add(event.KindIdentity, did, "", "")
		f.commit()
		f.add(event.KindCommit, did, "app.bsky.feedx.y", "")
		f.add(event.KindSync, did, "", "")
		f.add(event.KindAccount, did, "", "")
		f.add(event.KindCommit, did, "app.bsky.graph.follow", "")
		f.commit()
	}
	size := len(f.all[1].text(v2))
	tests := []struct {
		name   string
		filter plain
	}{
		{"everything", plain{}},
		{"one collection", plain{Collections: []string{"app.bsky.feed.post"}}},
		{"a prefix ends at a dot", plain{Collections: []string{"app.bsky.feed.*"}}},
		{"a prefix of one segment", plain{Collections: []string{"app.*"}}},
		{"a prefix is no collection of its own", plain{Collections: []string{"app.bsky.feed.post.*"}}},
		{"prefix and collection", plain{Collections: []string{"app.bsky.graph.*", "app.bsky.feed.like"}}},
		{"no such collection: identity and account only", plain{Collections: []string{"com.example.none"}}},
		{"a DID", plain{DIDs: []string{"did:plc:bob"}}},
		{"DIDs", plain{DIDs: []string{"did:plc:bob", "did:web:carol.example"}}},
		{"DID and collection", plain{Collections: []string{"app.bsky.feed.*"}, DIDs: []string{"did:plc:alice"}}},
		{"nobody", plain{DIDs: []string{"did:plc:nobody"}}},
		{"exactly as large", plain{MaxSize: size}},
		{"a byte too large", plain{MaxSize: size - 1}},
	}
	if v2 {
		tests = append(tests, []struct {
			name   string
			filter plain
		}{
			{"commits", plain{Kinds: []string{"commit"}}},
			{"syncs", plain{Kinds: []string{"sync"}}},
			{"syncs of a DID", plain{Kinds: []string{"sync"}, DIDs: []string{"did:plc:bob"}}},
			{"all but commits", plain{Kinds: []string{"sync", "account", "identity"}}},
			{"all kinds", plain{Kinds: []string{"sync", "account", "identity", "commit"}}},
			{"commits of a collection", plain{Kinds: []string{"commit"}, Collections: []string{"app.bsky.feed.*"}}},
			{"a sync exactly as large", plain{Kinds: []string{"sync"}, MaxSize: len(f.all[4].message)}},
			{"a sync a byte too large", plain{Kinds: []string{"sync"}, MaxSize: len(f.all[4].message) - 1}},
		}...)
	}
	compressed := "&compress=true"
	if v2 {
		compressed = fmt.Sprint("&zstdDictionary=", compressor().ID())
	}
	for _, tt := range tests {
		tt.filter.V2 = v2
		want := tt.filter.of(f.all)
		for _, form := range []string{"", compressed} {
			t.Run(tt.name+form, func(t *testing.T) {
				c := w.dial("cursor=1&" + tt.filter.query() + form)
				c.t = t
				c.expect(want)
			})
		}
	}
	// What had no match was not merely late: the next event is the first to come.
	c := w.dial("cursor=1&" + plain{V2: v2, DIDs: []string{"did:plc:nobody", "did:plc:late"}}.query())
	eventually(t, "the replay is done", func() bool { return w.srv.Behind() == 0 })
	f.add(event.KindIdentity, "did:plc:late", "", "")
	f.commit()
	c.expect(f.all[len(f.all)-1:])
	if len(plain{Collections: []string{"app.bsky.feed.*"}}.of(f.all[:7])) != 4 {
		t.Error("the oracle is wrong")
	}
}

// TestGather holds the pull loop against the obvious filter, on random logs.
func TestGather(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.All()...), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	var ids []uint32
	for _, d := range dictionaries.All() {
		id, err := event.DictionaryID(d)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 1))
			// A small window and cache: most of it comes from disk.
			w := newWorld(t, func(s *settings) {
				s.log.WindowBytes, s.log.CacheBytes, s.log.BlockEvents = 100<<10, 100<<10, 20+100*(seed%2)
			})
			f := w.feed
			// For blocks to have excerpts, nearly all are posts: so many of a hundred commits.
			usual := rng.IntN(2) * (90 + rng.IntN(10))
			collections := []string{"app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.feedx.y", "app.bsky.graph.follow", "com.example.a.b"}
			dids := []string{"did:plc:a", "did:plc:b", "did:plc:c", "did:web:d.example"}
			grow := func() {
				for range 1 + rng.IntN(40) {
					text := strings.Repeat("x", rng.IntN(300))
					switch rng.IntN(200) {
					case 0:
						text = strings.Repeat("y", rng.IntN(600<<10))
					case 1, 2, 3, 4:
						text = strings.Repeat("z", rng.IntN(80<<10))
					}
					kind := [...]event.Kind{event.KindIdentity, event.KindAccount, event.KindSync, event.KindSync, event.KindCommit}[min(rng.IntN(12+3*usual), 4)]
					collection := ""
					if kind == event.KindCommit {
						collection = collections[rng.IntN(len(collections))]
						if rng.IntN(100) < usual {
							collection = collections[0]
						}
					}
					f.add(kind, dids[rng.IntN(len(dids))], collection, text)
				}
				f.commit()
			}
			for range 1 + rng.IntN(40) {
				grow()
			}
			random := func() plain {
				var p plain
				for range rng.IntN(3) {
					p.Collections = append(p.Collections, append(collections, "app.bsky.feed.*", "app.*", "com.example.*", "org.none.*")[rng.IntN(9)])
				}
				for range max(rng.IntN(6)-3, 0) {
					p.DIDs = append(p.DIDs, dids[rng.IntN(len(dids))])
				}
				if rng.IntN(3) == 0 {
					p.MaxSize = 1 + rng.IntN(1000)
				}
				return p
			}
			for range 6 {
				filter := random()
				v2 := rng.IntN(2) == 0
				if v2 {
					filter.randomKinds(rng)
				}
				query, from := filter.query(), 0
				if rng.IntN(4) > 0 {
					from = rng.IntN(len(f.all) + 1)
					query += fmt.Sprintf("&cursor=%d", start+1+event.Cursor(from))
				} else {
					from = len(f.all)
				}
				compress := rng.IntN(2) == 0
				switch {
				case compress && (v2 || rng.IntN(3) == 0):
					// The other one is not what the chunks are stored with.
					query += fmt.Sprint("&zstdDictionary=", ids[rng.IntN(len(ids))])
				case compress:
					query += "&compress=true"
				}
				rate := 0.0
				if rng.IntN(3) == 0 {
					rate = 0.5 * math.Pow(1000, rng.Float64())
				}
				p := w.srv.NewPuller(query, rate, v2)
				var got []string
				var stream []byte // what is not yet whole messages
				var want []fact
				judged := from // of f.all, with the filter of its time
				for changes := rng.IntN(6); ; {
					size := 0
					bytes, runs, parked, err := p.Pull(func(n int) int {
						if size = n; n > 0 && rng.IntN(3) == 0 {
							return rng.IntN(n + 1) // the socket is full
						}
						return n
					})
					if err != nil {
						t.Fatal(err)
					}
					if size == len(bytes) && len(stream) == 0 {
						messages := len(frames(t, bytes))
						if size > subscribe.WriteBytes && messages > 1 || runs > subscribe.WriteRuns {
							t.Fatalf("a write of %d bytes, %d messages in %d runs", size, messages, runs)
						}
						if rate > 0 && messages > int(max(rate, 1)) {
							t.Fatalf("%d messages at once, %g per second are allowed", messages, rate)
						}
					}
					if stream = append(stream, bytes...); !p.Owes() {
						for _, m := range frames(t, stream) {
							if compress {
								if m, err = dec.DecodeAll(m, nil); err != nil {
									t.Fatal(err)
								}
							}
							got = append(got, string(m))
						}
						stream = stream[:0]
					}
					at := min(int(p.At()-start), len(f.all))
					want = append(want, filter.of(f.all[judged:max(at, judged)])...)
					judged = max(at, judged)
					if parked {
						if p.Holds() {
							t.Fatal("a parked subscriber holds a chunk")
						}
						if changes == 0 {
							break
						}
					}
					if changes > 0 && (parked || rng.IntN(5) == 0) {
						changes--
						if !v2 {
							filter = random()
							p.Update(filter.update())
						}
						grow()
					}
				}
				if judged != len(f.all) {
					t.Fatalf("stopped at %d of %d events", judged, len(f.all))
				}
				if len(got) != len(want) {
					t.Fatalf("%s: %d events, want %d", query, len(got), len(want))
				}
				for i := range got {
					if got[i] != want[i].text(v2) {
						t.Fatalf("%s: event %d\n got %.200s\nwant %.200s", query, i, got[i], want[i].text(v2))
					}
				}
			}
		})
	}
}

// everything is a socket that always has room.
func everything(n int) int { return n }

// frames takes whole server frames apart.
func frames(t testing.TB, b []byte) (payloads [][]byte) {
	t.Helper()
	for len(b) > 0 {
		header, n := 2, int(b[1])
		switch n {
		case 126:
			header, n = 4, int(b[2])<<8|int(b[3])
		case 127:
			header, n = 10, int(b[6])<<24|int(b[7])<<16|int(b[8])<<8|int(b[9])
		}
		if len(b) < header+n {
			t.Fatal("a message is cut")
		}
		payloads = append(payloads, b[header:header+n])
		b = b[header+n:]
	}
	return payloads
}

// TestSparseFilterFindsItsEvent: among many that it passes without a word.
func TestSparseFilterFindsItsEvent(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.log.WindowBytes = 64 << 10 })
	w.feed.posts(5000, 100)
	w.feed.add(event.KindCommit, "did:plc:rare", "com.example.rare", "")
	w.feed.commit()
	w.feed.posts(1000, 200)
	p := w.srv.NewPuller("cursor=1&wantedDids=did:plc:rare", 0, false)
	for pulls := 1; ; pulls++ {
		bytes, _, parked, err := p.Pull(everything)
		if err != nil || parked || pulls > 100 {
			t.Fatalf("pull %d: parked %v, %v", pulls, parked, err)
		}
		if len(bytes) > 0 {
			if got := frames(t, bytes); len(got) != 1 || !strings.Contains(string(got[0]), "com.example.rare") {
				t.Errorf("got %.200q", got)
			}
			return
		}
	}
}

// TestThinFilterHoldsLittle: a write of few bytes must not keep many payloads alive, nor many
// excerpts.
func TestThinFilterHoldsLittle(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.log.WindowBytes, s.log.CacheBytes = 64<<10, 64<<10 })
	for range 40 {
		w.feed.post(2000) // some 150 KB
		w.feed.add(event.KindCommit, "did:plc:rare", "com.example.rare", "")
		w.feed.commit()
	}
	for query, need := range map[string]eventlog.Need{"wantedDids=did:plc:rare": eventlog.Everything, "wantedCollections=com.example.rare": eventlog.Excerpt} {
		p := w.srv.NewPuller("cursor=1&compress=true&"+query, 0, false)
		chunk := 0
		for c, at := (*eventlog.Chunk)(nil), event.Cursor(0); c == nil; at = c.Last() {
			var err error
			if c, _, _, err = w.log.NextUnless(at, func(*eventlog.Summary) eventlog.Need { return need }); err != nil {
				t.Fatal(err)
			}
			chunk = c.Size(eventlog.Zstd)
			if got := c.IsExcerpt(); got != (need == eventlog.Excerpt) {
				t.Fatalf("%s: an excerpt %v", query, got)
			}
		}
		total := 0
		for total < 40 {
			_, runs, _, err := p.Pull(everything)
			if err != nil {
				t.Fatal(err)
			}
			if got := runs * chunk; runs == 0 || runs > 16 || got > 1<<20+2*chunk {
				t.Fatalf("%s: a write holds %d payloads of %d bytes", query, runs, chunk)
			}
			total += runs
		}
	}
}

// TestExcerptOfAnotherFilter: an excerpt is only good for the filter that it was read for.
func TestExcerptOfAnotherFilter(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.log.WindowBytes = 64 << 10 })
	for i := range 300 {
		w.feed.post(1)
		if i%100 == 50 {
			w.feed.add(event.KindCommit, "did:plc:rare", "com.example.rare", "")
		}
	}
	w.feed.commit()
	w.feed.posts(1000, 200)
	p := w.srv.NewPuller("cursor=1&wantedCollections=com.example.rare", 1, false) // one at a time
	pull := func(n int) (got []string) {
		for len(got) < n {
			bytes, _, _, err := p.Pull(everything)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range frames(t, bytes) {
				got = append(got, string(f))
			}
		}
		return got
	}
	if got := pull(1)[0]; !p.InExcerpt() || got != w.feed.all[51].payload {
		t.Fatalf("of an excerpt %v, got %s", p.InExcerpt(), got)
	}
	p.Update(plain{}.update())
	for i, got := range pull(100) {
		if want := w.feed.all[52+i].payload; got != want {
			t.Fatalf("event %d after the change: got %s, want %s", i, got, want)
		}
	}
}

// TestManyRuns: every other event is wanted, and a write is of bounded slices.
func TestManyRuns(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 2000 {
		w.feed.add(event.KindIdentity, fmt.Sprintf("did:plc:%d", i%2), "", "")
	}
	w.feed.commit()
	p := w.srv.NewPuller("cursor=1&wantedDids=did:plc:1", 0, false)
	for total := 0; total < 1000; {
		_, runs, _, err := p.Pull(everything)
		if err != nil || runs == 0 || runs > subscribe.WriteRuns {
			t.Fatalf("after %d events: %d runs, %v", total, runs, err)
		}
		total += runs
	}
}
