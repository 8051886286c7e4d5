package client_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/api/bsky"
	"github.com/gorilla/websocket"

	"slipstream/pkg/client"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// frames is how many the relay sends in all.
const frames = 1500

// served is a daemon that has taken in a whole stream, and all that it serves, read without the client.
type served struct {
	*testproc.Daemon
	v1, v2 [][]byte
	posts  map[string]string // text by URI, of creates
}

func serve(t *testing.T, binary string) *served {
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 3, Accounts: 60, Total: frames, FirstSeq: 1 << 33})
	s := &served{posts: map[string]string{}}
	s.Daemon = testproc.Serve(t, binary, upstream, t.TempDir(), "--log-level", "warn")
	testproc.WaitFor(t, "the relay to send everything", func() bool { return relay.LastSeq() == 1<<33+frames-1 })
	v1, syncs := 0, 0
	for seq := int64(1 << 33); seq < 1<<33+frames; seq++ {
		for _, e := range relay.Expected(seq) {
			if e.Kind == "sync" {
				syncs++
			} else {
				v1++
			}
			if e.Collection == "app.bsky.feed.post" && e.Action == client.Create {
				s.posts["at://"+e.DID+"/"+e.Collection+"/"+e.RKey] = ""
			}
		}
	}
	s.v1 = readAll(t, "ws://"+s.Addr+"/subscribe?cursor=0", v1)
	s.v2 = readAll(t, "ws://"+s.Addr+"/xrpc/network.bsky.jetstream.subscribeEvents?cursor=0", v1+syncs)
	for _, raw := range s.v1 {
		var e struct {
			DID    string
			Commit struct {
				Operation, Collection, RKey string
				Record                      struct{ Text string }
			}
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		if c := e.Commit; c.Collection == "app.bsky.feed.post" && c.Operation == client.Create {
			s.posts["at://"+e.DID+"/"+c.Collection+"/"+c.RKey] = c.Record.Text
		}
	}
	if len(s.posts) < 20 {
		t.Fatalf("the stream has %d posts only", len(s.posts))
	}
	return s
}

// readAll reads n messages.
func readAll(t *testing.T, url string, n int) [][]byte {
	t.Helper()
	ws, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	var all [][]byte
	for len(all) < n {
		ws.SetReadDeadline(time.Now().Add(testproc.Patience))
		_, m, err := ws.ReadMessage()
		if err != nil {
			t.Fatalf("message %d of %d: %v", len(all), n, err)
		}
		all = append(all, m)
	}
	return all
}

// take reads n events and leaves the loop.
func take(t *testing.T, c *client.Client, n int, each func(*client.Event)) []*client.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testproc.Patience)
	defer cancel()
	var all []*client.Event
	for e, err := range c.Events(ctx) {
		if err != nil {
			t.Fatalf("event %d of %d: %v", len(all), n, err)
		}
		if each != nil {
			each(e)
		}
		if all = append(all, e); len(all) == n {
			return all
		}
	}
	t.Fatalf("%d of %d events came", len(all), n)
	return nil
}

func newClient(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func same(t *testing.T, got []*client.Event, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d", len(got), len(want))
	}
	for i, e := range got {
		if !bytes.Equal(e.Raw, want[i]) {
			t.Fatalf("event %d\n got %s\nwant %s", i, e.Raw, want[i])
		}
	}
}

// matching are those messages that have all the texts.
func matching(messages [][]byte, texts ...string) [][]byte {
	var some [][]byte
	for _, m := range messages {
		if !slices.ContainsFunc(texts, func(text string) bool { return !bytes.Contains(m, []byte(text)) }) {
			some = append(some, m)
		}
	}
	return some
}

func TestDaemon(t *testing.T) {
	binary := testproc.Build(t, "slipstream", "")
	t.Run("SetFilter", func(t *testing.T) { testSetFilter(t, binary) })
	s := serve(t, binary)
	for _, wire := range []client.Wire{client.V1, client.V2} {
		all := map[client.Wire][][]byte{client.V1: s.v1, client.V2: s.v2}[wire]
		for _, zstd := range []bool{false, true} {
			t.Run(fmt.Sprintf("v%d/zstd=%v", wire, zstd), func(t *testing.T) {
				c := newClient(t, client.Config{URL: s.Addr, Wire: wire, Cursor: client.Oldest, Compress: zstd, CacheDir: t.TempDir()})
				got := take(t, c, len(all), nil)
				same(t, got, all)
				for i, e := range got {
					checkParsed(t, e, wire)
					if i > 0 && e.Cursor <= got[i-1].Cursor {
						t.Fatalf("cursor %d after %d", e.Cursor, got[i-1].Cursor)
					}
				}
				stats := c.Stats()
				if stats.Events != int64(len(all)) || stats.Connects != 1 || stats.Malformed != 0 {
					t.Errorf("stats %+v", stats)
				}
				if compressed := stats.WireBytes < stats.Bytes/2; compressed != zstd {
					t.Errorf("%d bytes came for %d", stats.WireBytes, stats.Bytes)
				}
			})
		}
		t.Run(fmt.Sprintf("v%d/filter", wire), func(t *testing.T) { testFilter(t, s, wire, all) })
		t.Run(fmt.Sprintf("v%d/store", wire), func(t *testing.T) { testStore(t, s, wire, all) })
		t.Run(fmt.Sprintf("v%d/cached dictionary", wire), func(t *testing.T) { testCache(t, s, wire) })
		t.Run(fmt.Sprintf("v%d/restart", wire), func(t *testing.T) { testRestart(t, s, wire, all) })
	}
	t.Run("query", func(t *testing.T) {
		want := matching(s.v1, `"collection":"app.bsky.feed.post"`)
		c := newClient(t, client.Config{
			URL:    "http://" + s.Addr + "/subscribe?wantedCollections=app.bsky.feed.post&compress=true&cursor=1&requireHello=true",
			Filter: client.Filter{Kinds: []client.Kind{client.KindCommit}},
		})
		same(t, take(t, c, len(want), nil), want)
		if stats := c.Stats(); stats.WireBytes >= stats.Bytes {
			t.Error("compress=true was not understood")
		}
	})
	t.Run("keyword bot", func(t *testing.T) { testKeywordBot(t, s) })
	t.Run("follower counter", func(t *testing.T) { testFollowerCounter(t, s) })
	t.Run("feed indexer", func(t *testing.T) { testFeedIndexer(t, s) })
}

// checkParsed compares an event with its message, read in another way.
func checkParsed(t *testing.T, e *client.Event, wire client.Wire) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(e.Raw))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	commit, cursor := m["commit"], "time_us"
	if wire == client.V2 {
		m = m["payload"].(map[string]any)
		commit, cursor = m, "seq"
	}
	if m["did"] != e.DID || fmt.Sprint(m[cursor]) != fmt.Sprint(int64(e.Cursor)) {
		t.Fatalf("did %s, cursor %d of %s", e.DID, e.Cursor, e.Raw)
	}
	us := int64(e.Cursor)
	if wire == client.V2 {
		us += 1_600_000_000_000_000
	}
	if e.Time.UnixMicro() != us {
		t.Fatalf("time %s of %s", e.Time, e.Raw)
	}
	text := func(v any, key string) string { s, _ := v.(map[string]any)[key].(string); return s }
	switch e.Kind {
	case client.KindCommit:
		c := *e.Commit
		var record any
		if c.Record != nil {
			d := json.NewDecoder(bytes.NewReader(c.Record))
			d.UseNumber()
			if err := d.Decode(&record); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(record, commit.(map[string]any)["record"]) {
			t.Fatalf("record %s of %s", c.Record, e.Raw)
		}
		c.Record = nil
		want := client.Commit{Rev: text(commit, "rev"), Operation: text(commit, "operation"), Collection: text(commit, "collection"), RKey: text(commit, "rkey"), CID: text(commit, "cid")}
		if !reflect.DeepEqual(c, want) {
			t.Fatalf("commit %+v of %s", c, e.Raw)
		}
	case client.KindIdentity:
		if e.Identity.DID != e.DID || e.Identity.Handle != text(m["identity"], "handle") || e.Identity.Seq == 0 || e.Identity.Time == "" {
			t.Fatalf("identity %+v of %s", e.Identity, e.Raw)
		}
	case client.KindAccount:
		if e.Account.DID != e.DID || e.Account.Active != m["account"].(map[string]any)["active"] || e.Account.Status != text(m["account"], "status") || e.Account.Seq == 0 {
			t.Fatalf("account %+v of %s", e.Account, e.Raw)
		}
	case client.KindSync:
		if e.Sync.DID != e.DID || e.Sync.Rev == "" || wire == client.V1 {
			t.Fatalf("sync %+v of %s", e.Sync, e.Raw)
		}
	default:
		t.Fatalf("kind %q of %s", e.Kind, e.Raw)
	}
}

func testFilter(t *testing.T, s *served, wire client.Wire, all [][]byte) {
	// The author of the first like, and what else they did.
	like := take(t, newClient(t, client.Config{URL: s.Addr, Wire: wire, Cursor: client.Oldest,
		Filter: client.Filter{Collections: []string{"app.bsky.feed.like"}, Kinds: []client.Kind{client.KindCommit}}}), 1, nil)[0]
	of := `"did":"` + like.DID + `"`
	commits := matching(all, of, `"rkey":`)
	size := 0
	for _, m := range commits {
		size += len(m)
	}
	size /= len(commits)
	small := slices.DeleteFunc(slices.Clone(commits), func(m []byte) bool { return len(m) > size })
	others := slices.DeleteFunc(slices.Clone(all), func(m []byte) bool { return bytes.Contains(m, []byte(`"rkey":`)) })
	many := []string{like.DID}
	for i := range 9_999 {
		many = append(many, fmt.Sprintf("did:plc:%024d", i))
	}
	for name, test := range map[string]struct {
		filter client.Filter
		want   [][]byte
	}{
		"collection and DID":     {client.Filter{Collections: []string{like.Commit.Collection}, DIDs: []string{like.DID}, Kinds: []client.Kind{"commit"}}, matching(commits, `"collection":"app.bsky.feed.like"`)},
		"size":                   {client.Filter{DIDs: []string{like.DID}, MaxSize: size, Kinds: []client.Kind{"commit"}}, small},
		"kinds":                  {client.Filter{Kinds: []client.Kind{"identity", "account", "sync"}}, others},
		"as many DIDs as may be": {client.Filter{DIDs: many, Kinds: []client.Kind{"commit"}}, commits},
	} {
		t.Run(name, func(t *testing.T) {
			if len(test.want) == 0 || len(test.want) == len(all) {
				t.Fatalf("the filter lets %d of %d pass: that shows nothing", len(test.want), len(all))
			}
			// The last event of all is let pass by none of them, so ask no more than there is.
			got := take(t, newClient(t, client.Config{URL: s.Addr, Wire: wire, Cursor: client.Oldest, Filter: test.filter}), len(test.want), nil)
			same(t, got, test.want)
		})
	}
}

// What is acknowledged does not come again, what is not does, in another run as well.
func testStore(t *testing.T, s *served, wire client.Wire, all [][]byte) {
	file := filepath.Join(t.TempDir(), "cursor")
	cfg := client.Config{URL: s.Addr, Wire: wire, Cursor: client.Oldest, Store: client.FileCursor(file)}
	c := newClient(t, cfg)
	n := 0
	first := take(t, c, 100, func(e *client.Event) {
		if n++; n <= 60 {
			c.Ack(e.Cursor)
		}
	})
	c = newClient(t, cfg)
	n = 0
	again := take(t, c, len(all)-60, func(e *client.Event) { c.Ack(e.Cursor) })
	same(t, append(first[:60:60], again...), all)
	if got, err := client.FileCursor(file).LoadCursor(t.Context()); err != nil || got != again[len(again)-1].Cursor {
		t.Errorf("the file holds %d, %v; want %d", got, err, again[len(again)-1].Cursor)
	}
}

// A dictionary that is in the cache is not sent again.
func testCache(t *testing.T, s *served, wire client.Wire) {
	var mu sync.Mutex
	var fetched []int // the status of each answer with a dictionary, or without
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.Addr})
	proxy.ModifyResponse = func(r *http.Response) error {
		if strings.Contains(strings.ToLower(r.Request.URL.Path), "dictionary") {
			mu.Lock()
			defer mu.Unlock()
			fetched = append(fetched, r.StatusCode)
		}
		return nil
	}
	server := httptest.NewServer(proxy)
	defer server.Close()
	want := []int{200}
	if wire == client.V2 { // which has to ask what is current
		want = append(want, 304)
	}
	cfg := client.Config{URL: server.URL, Wire: wire, Cursor: client.Oldest, Compress: true, CacheDir: filepath.Join(t.TempDir(), "made")}
	take(t, newClient(t, cfg), 10, nil)
	take(t, newClient(t, cfg), 10, nil)
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(fetched, want) {
		t.Fatalf("answers about dictionaries: %d, want %d", fetched, want)
	}
	// A file that is damaged is not believed.
	files, _ := filepath.Glob(filepath.Join(cfg.CacheDir, "*"))
	if len(files) != 1 {
		t.Fatalf("the cache holds %q", files)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1]++
	if err := os.WriteFile(files[0], b, 0o644); err != nil {
		t.Fatal(err)
	}
	mu.Unlock()
	take(t, newClient(t, cfg), 10, nil)
	mu.Lock()
	if want = append(want, 200); !slices.Equal(fetched, want) {
		t.Fatalf("answers about dictionaries: %d, want %d", fetched, want)
	}
}

// Connections that break wherever they like, and a daemon that dies meanwhile, cost nothing and double nothing.
func testRestart(t *testing.T, s *served, wire client.Wire, all [][]byte) {
	const enough = 70_000 // bytes, somewhere in a message; less than there is of any wire, compressed
	retries := 0
	c := newClient(t, client.Config{
		URL: cutter(t, s.Addr, enough), Wire: wire, Cursor: client.Oldest, Compress: true,
		MinBackoff: time.Millisecond, MaxBackoff: 50 * time.Millisecond,
		OnRetry: func(error, time.Duration) {
			switch retries++; retries {
			case 1:
				s.Kill(t)
				s.Start(t)
			case 2:
				s.End(t)
				s.Start(t)
			}
		},
	})
	same(t, take(t, c, len(all), nil), all)
	if retries < 2 {
		t.Errorf("the connection broke %d times only", retries)
	}
}

// cutter forwards connections to addr, each until the server has sent so many bytes.
func cutter(t *testing.T, addr string, enough int64) (url string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				client.Close()
				continue
			}
			conns.Go(func() {
				io.Copy(server, client)
				server.Close()
			})
			conns.Go(func() {
				io.CopyN(client, server, enough)
				client.Close()
				server.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

func testKeywordBot(t *testing.T, s *served) {
	// A word that some have and others have not.
	word, want := "", map[string]string{}
	for _, text := range s.posts {
		for _, word = range strings.Fields(strings.ToLower(text)) {
			clear(want)
			for uri, text := range s.posts {
				if strings.Contains(strings.ToLower(text), word) {
					want[uri] = text
				}
			}
			if len(want) > 3 && len(want) < len(s.posts)/2 {
				break
			}
		}
		if len(want) > 3 && len(want) < len(s.posts)/2 {
			break
		}
	}
	file := filepath.Join(t.TempDir(), "cursor")
	ctx, cancel := context.WithTimeout(t.Context(), testproc.Patience)
	defer cancel()
	got := map[string]string{}
	err := keywordBot(ctx, s.Addr, file, word, func(uri, text string) {
		if got[uri] = text; len(got) == len(want) {
			cancel()
		}
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v; posts with %q: %d, want %d", err, word, len(got), len(want))
	}
}

func testFollowerCounter(t *testing.T, s *served) {
	want := map[string]int{}
	follows := map[string]string{}
	changes := 0
	for _, raw := range matching(s.v1, `"collection":"app.bsky.graph.follow"`) {
		var e struct {
			DID    string
			Commit struct {
				Operation, RKey string
				Record          bsky.GraphFollow
			}
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		key := e.DID + e.Commit.RKey
		if e.Commit.Operation == client.Create {
			follows[key] = e.Commit.Record.Subject
			want[e.Commit.Record.Subject]++
			changes++
		} else if subject, ok := follows[key]; ok {
			want[subject]--
			changes++
		}
	}
	if changes < 10 {
		t.Fatalf("the stream has %d follows only", changes)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testproc.Patience)
	defer cancel()
	got := map[string]int{}
	err := countFollowers(ctx, s.Addr, client.Oldest, func(did string, change int) {
		got[did] = change
		if changes--; changes == 0 {
			cancel()
		}
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v; got %v, want %v", err, got, want)
	}
}

func testFeedIndexer(t *testing.T, s *served) {
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(t.TempDir(), "feed.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// What is in the database after each post, in the end.
	want := map[string]string{}
	posts := matching(s.v1, `"collection":"app.bsky.feed.post"`)
	for _, raw := range posts {
		var e struct {
			DID    string
			Commit struct {
				RKey   string
				Record *bsky.FeedPost
			}
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		uri := "at://" + e.DID + "/app.bsky.feed.post/" + e.Commit.RKey
		if delete(want, uri); e.Commit.Record != nil && e.Commit.Record.Reply == nil {
			want[uri] = e.Commit.Record.Text
		}
	}
	if len(want) < 5 || len(want) == len(posts) {
		t.Fatalf("%d of %d posts belong to the feed: that shows nothing", len(want), len(posts))
	}
	// In two runs, the first of which ends in the middle.
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	err = indexFeed(ctx, s.Addr, db, func(p *bsky.FeedPost) bool {
		if seen++; seen == len(posts)/2 {
			cancel()
		}
		return p.Reply == nil
	})
	if err != nil || seen != len(posts)/2 {
		t.Fatalf("%v; the first run has seen %d posts, and was to end at %d", err, seen, len(posts)/2)
	}
	var last struct {
		TimeUS int64 `json:"time_us"`
	}
	if err := json.Unmarshal(posts[len(posts)-1], &last); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- indexFeed(ctx, s.Addr, db, func(p *bsky.FeedPost) bool { return p.Reply == nil })
	}()
	testproc.WaitFor(t, "the index to be complete", func() bool {
		var at int64
		return db.QueryRow("SELECT cursor FROM stream").Scan(&at) == nil && at >= last.TimeUS
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query("SELECT uri, text FROM posts")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	got := map[string]string{}
	for rows.Next() {
		var uri, text string
		if err := rows.Scan(&uri, &text); err != nil {
			t.Fatal(err)
		}
		got[uri] = text
	}
	if err := rows.Err(); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v; %d posts, want %d", err, len(got), len(want))
	}
}

// Another filter takes effect on the running stream, and nothing is lost that the new one wants.
func testSetFilter(t *testing.T, binary string) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 4, Accounts: 60, Rate: 300, WallClock: true})
	d := testproc.Serve(t, binary, upstream, t.TempDir(), "--log-level", "warn")
	commits := func(collection string) client.Filter {
		return client.Filter{Collections: []string{collection}, Kinds: []client.Kind{client.KindCommit}}
	}
	for _, wire := range []client.Wire{client.V1, client.V2} {
		t.Run(fmt.Sprintf("v%d", wire), func(t *testing.T) {
			c := newClient(t, client.Config{URL: d.Addr, Wire: wire, Compress: true, Filter: commits("app.bsky.feed.like")})
			ctx, cancel := context.WithTimeout(context.Background(), testproc.Patience)
			defer cancel()
			var posts []*client.Event
			likes := 0
			var last *client.Event // the last like
			for e, err := range c.Events(ctx) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Commit.Collection == "app.bsky.feed.like" {
					if len(posts) > 0 {
						t.Fatal("a like behind a post")
					}
					if likes++; likes == 3 {
						if err := c.SetFilter(commits("app.bsky.feed.post")); err != nil {
							t.Fatal(err)
						}
					}
					last = e
					continue
				}
				if posts = append(posts, e); len(posts) == 10 {
					break
				}
			}
			if len(posts) != 10 {
				t.Fatalf("%d posts came", len(posts))
			}
			// On v1 the server changes over somewhere behind the last like; on v2 we do, there.
			from := posts[0].Cursor
			if wire == client.V2 {
				from = last.Cursor
			}
			want := take(t, newClient(t, client.Config{URL: d.Addr, Wire: wire, Cursor: from, Filter: commits("app.bsky.feed.post")}), 10, nil)
			for i := range want {
				if !bytes.Equal(want[i].Raw, posts[i].Raw) {
					t.Fatalf("post %d\n got %s\nwant %s", i, posts[i].Raw, want[i].Raw)
				}
			}
		})
	}
}
