package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/api/bsky"
	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/client"
	"slipstream/pkg/testproc"
)

// script is a server that deals with its first, second, ... request by a step each, and with all others by
// the last one.
type script struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
}

type step func(t *testing.T, w http.ResponseWriter, r *http.Request)

func serveScript(t *testing.T, steps ...step) *script {
	s := &script{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		n := min(len(s.requests), len(steps)-1)
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		steps[n](t, w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// asked returns the values of a parameter in all requests.
func (s *script) asked(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, r := range s.requests {
		all = append(all, r.URL.Query().Get(name))
	}
	return all
}

// answer refuses.
func answer(status int, body string, header ...string) step {
	return func(_ *testing.T, w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		w.Write([]byte(body))
	}
}

// talk lets then do as it likes with a connection, which ends with it.
func talk(then func(ws *websocket.Conn)) step {
	return func(t *testing.T, w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.Close()
		then(ws)
	}
}

// send sends messages and breaks off.
func send(messages ...string) step {
	return talk(func(ws *websocket.Conn) {
		for _, m := range messages {
			ws.WriteMessage(websocket.TextMessage, []byte(m))
		}
	})
}

const base = 1_795_000_000_000_000

func event1(n int) string {
	return fmt.Sprintf(`{"did":"did:plc:x","time_us":%d,"kind":"identity","identity":{"did":"did:plc:x","seq":1,"time":"t"}}`, base+n)
}

func event2(n int) string {
	return fmt.Sprintf(`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#identity","seq":%d,"did":"did:plc:x","time":"2026-11-24T10:35:48.984691Z","identity":{"did":"did:plc:x","seq":1,"time":"t"}}}`, n)
}

// quick is a configuration that does not wait for long.
func quick(s *script) client.Config {
	return client.Config{URL: s.URL, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Timeout: testproc.Patience}
}

// run collects cursors until there are enough or Events ends, whose error it returns.
func run(t *testing.T, cfg client.Config, enough int) (got []int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testproc.Patience)
	defer cancel()
	for e, err := range newClient(t, cfg).Events(ctx) {
		if err != nil {
			return got, err
		}
		if got = append(got, int(e.Cursor)); len(got) == enough {
			return got, nil
		}
	}
	if ctx.Err() != nil {
		t.Fatalf("%d events came, and no end: %v", len(got), got)
	}
	return got, nil
}

func TestRefused(t *testing.T) {
	for _, test := range []struct {
		status int
		final  bool
	}{
		{200, true}, {301, true}, {400, true}, {401, true}, {403, true}, {404, true}, {410, true}, {426, true}, {501, true},
		{408, false}, {425, false}, {429, false}, {500, false}, {502, false}, {503, false}, {504, false},
	} {
		t.Run(strconv.Itoa(test.status), func(t *testing.T) {
			s := serveScript(t, answer(test.status, "a reason"), answer(test.status, "a reason"), send(event1(1)))
			retries := 0
			cfg := quick(s)
			cfg.OnRetry = func(err error, _ time.Duration) {
				if retries++; retries <= 2 && !strings.Contains(err.Error(), strconv.Itoa(test.status)) {
					t.Errorf("retry after %v", err)
				}
			}
			got, err := run(t, cfg, 1)
			var refused *client.RefusedError
			if test.final {
				if !errors.As(err, &refused) || refused.Status != test.status || retries != 0 || len(s.asked("")) != 1 {
					t.Errorf("%v, after %d retries and %d requests", err, retries, len(s.asked("")))
				}
			} else if err != nil || len(got) != 1 || retries != 2 {
				t.Errorf("%v, %d, after %d retries", err, got, retries)
			}
		})
	}
	t.Run("once", func(t *testing.T) {
		s := serveScript(t, answer(503, "full"))
		cfg := quick(s)
		cfg.Once = true
		if _, err := run(t, cfg, 1); err == nil || !strings.Contains(err.Error(), "full") || len(s.asked("")) != 1 {
			t.Errorf("%v after %d requests", err, len(s.asked("")))
		}
	})
	t.Run("Retry-After", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cfg := quick(serveScript(t, answer(429, "", "Retry-After", "100000")))
		cfg.OnRetry = func(_ error, wait time.Duration) {
			// What the server asks for, as far as it may ask.
			if wait < 5*time.Minute || wait > 7*time.Minute {
				t.Errorf("a wait of %s", wait)
			}
			cancel()
		}
		for _, err := range newClient(t, cfg).Events(ctx) {
			t.Error(err)
		}
	})
}

func TestCursorTooOld(t *testing.T) {
	tooOld := answer(400, `{"error":"CursorTooOld","message":"it begins at seq 7"}`)
	cfg := quick(serveScript(t, tooOld))
	cfg.Wire, cfg.Cursor = client.V2, 3
	if _, err := run(t, cfg, 1); !errors.Is(err, client.ErrCursorTooOld) || !strings.Contains(err.Error(), "seq 7") {
		t.Errorf("got %v", err)
	}
	s := serveScript(t, tooOld, send(event2(7)))
	cfg = quick(s)
	cfg.Wire, cfg.Cursor, cfg.FromOldest = client.V2, 3, true
	told := ""
	cfg.OnInfo = func(name, message string) { told += name + message }
	got, err := run(t, cfg, 1)
	if err != nil || !slices.Equal(got, []int{7}) || !strings.Contains(told, "OutdatedCursor") || !slices.Equal(s.asked("cursor"), []string{"3", "1000000000000000"}) {
		t.Errorf("got %v, %v; told %q; asked %q", got, err, told, s.asked("cursor"))
	}
}

// The event at the cursor comes again and is handed out once; one that merely comes first is handed out.
func TestResume(t *testing.T) {
	s := serveScript(t,
		answer(503, ""),                     // nothing has come: begin where it was to begin
		send(),                              // neither
		send(event1(1), event1(2)),          // breaks
		send(event1(2), event1(3)),          // as it should be
		send(event1(4), event1(5)),          // without the one at the cursor
		send(event1(5)),                     // nothing new
		send(event1(5), event1(6), "what?"), // and something that is no event
		send(event1(6), event1(7)),
	)
	cfg := quick(s)
	cfg.Cursor = base + 1 // which was not handed out before
	told := 0
	cfg.OnInfo = func(name, _ string) {
		if name == "Malformed" {
			told++
		}
	}
	got, err := run(t, cfg, 7)
	want := []int{base + 1, base + 2, base + 3, base + 4, base + 5, base + 6, base + 7}
	if err != nil || !slices.Equal(got, want) || told != 1 {
		t.Errorf("got %d, %v, and was told %d times; want %d", got, err, told, want)
	}
	var asked []string
	for _, n := range []int{1, 1, 1, 2, 3, 5, 5, 6} {
		asked = append(asked, strconv.Itoa(base+n))
	}
	if got := s.asked("cursor"); !slices.Equal(got, asked) {
		t.Errorf("asked %q, want %q", got, asked)
	}
}

// Who was live and lost the connection before the first event misses nothing that came meanwhile.
func TestResumeLive(t *testing.T) {
	before := time.Now().UnixMicro()
	s := serveScript(t, send(), send(event1(1)))
	if _, err := run(t, quick(s), 1); err != nil {
		t.Fatal(err)
	}
	asked := s.asked("cursor")
	if n, err := strconv.ParseInt(asked[1], 10, 64); asked[0] != "" || err != nil || n < before || n > time.Now().UnixMicro() {
		t.Errorf("asked %q, %v", asked, err)
	}
}

func TestProtocolErrors(t *testing.T) {
	binary := talk(func(ws *websocket.Conn) { ws.WriteMessage(websocket.BinaryMessage, []byte("x")) })
	closing := func(code int) step {
		return talk(func(ws *websocket.Conn) {
			ws.ReadMessage() // the options_update
			ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, "because"), time.Now().Add(testproc.Patience))
		})
	}
	var dids []string
	for i := range 1000 {
		dids = append(dids, fmt.Sprintf("did:plc:%024d", i))
	}
	for name, test := range map[string]struct {
		steps []step
		cfg   client.Config
		says  string // "": it is tried again
	}{
		"no JSON":          {[]step{send("hello")}, client.Config{}, "no event"},
		"another JSON":     {[]step{send(`{"a":1}`)}, client.Config{}, "no event"},
		"the other wire":   {[]step{send(event1(1))}, client.Config{Wire: client.V2}, "no event"},
		"binary":           {[]step{binary}, client.Config{}, "binary"},
		"too large":        {[]step{send(event1(1) + strings.Repeat(" ", 1000))}, client.Config{MaxMessage: 500}, "larger than 500 bytes"},
		"a refused filter": {[]step{closing(websocket.ClosePolicyViolation)}, client.Config{Filter: client.Filter{DIDs: dids}}, "refuses the filter: because"},
		"no room":          {[]step{closing(websocket.CloseTryAgainLater), send(event1(1))}, client.Config{Filter: client.Filter{DIDs: dids}}, ""},
		"going away": {[]step{talk(func(ws *websocket.Conn) {
			ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""))
		}), send(event1(1))}, client.Config{}, ""},
		"an error frame":           {[]step{send(`{"$type":"error","error":"ConsumerTooSlow","message":"m"}`), send(event2(1))}, client.Config{Wire: client.V2}, ""},
		"a stored v2 cursor":       {[]step{send()}, client.Config{Store: stored{5, nil}}, "v2"},
		"a store that cannot load": {[]step{send()}, client.Config{Store: stored{0, errors.New("no disk")}}, "no disk"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := quick(serveScript(t, test.steps...))
			cfg.Wire, cfg.Filter, cfg.MaxMessage, cfg.Store = test.cfg.Wire, test.cfg.Filter, test.cfg.MaxMessage, test.cfg.Store
			got, err := run(t, cfg, 1)
			if test.says == "" && (err != nil || len(got) != 1) || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("%d events, %v; want an error with %q", len(got), err, test.says)
			}
		})
	}
}

// stored is a store that holds a cursor and keeps none.
type stored struct {
	cursor client.Cursor
	err    error
}

func (s stored) LoadCursor(context.Context) (client.Cursor, error) { return s.cursor, s.err }
func (s stored) SaveCursor(context.Context, client.Cursor) error   { return errors.New("disk full") }

// A store that cannot save ends the stream, even one in which nothing happens.
func TestStoreFails(t *testing.T) {
	stop := make(chan struct{})
	cfg := quick(serveScript(t, talk(func(ws *websocket.Conn) {
		ws.WriteMessage(websocket.TextMessage, []byte(event1(1)))
		<-stop
	})))
	defer close(stop)
	cfg.Store, cfg.StoreInterval = stored{}, time.Millisecond
	c := newClient(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), testproc.Patience)
	defer cancel()
	n := 0
	for e, err := range c.Events(ctx) {
		if err == nil {
			c.Ack(e.Cursor)
			n++
			continue
		}
		if !strings.Contains(err.Error(), "disk full") || n != 1 {
			t.Errorf("%v after %d events", err, n)
		}
		return
	}
	t.Error("no error")
}

func TestFileCursor(t *testing.T) {
	store := client.FileCursor(filepath.Join(t.TempDir(), "cursor"))
	for _, want := range []client.Cursor{0, 5, base} {
		if want != 0 {
			if err := store.SaveCursor(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := store.LoadCursor(t.Context()); err != nil || got != want {
			t.Errorf("got %d, %v, want %d", got, err, want)
		}
	}
	for _, wrong := range []client.CursorStore{client.FileCursor("client_test.go"), client.FileCursor(t.TempDir())} {
		if _, err := wrong.LoadCursor(t.Context()); err == nil {
			t.Error("it was taken for a cursor")
		}
	}
}

// A server that says nothing is left; one that answers pings is not.
func TestSilence(t *testing.T) {
	const timeout = 2 * time.Second
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	t.Run("nothing at all", func(t *testing.T) {
		t.Parallel()
		cfg := quick(serveScript(t, talk(func(*websocket.Conn) { <-stop }), send(event1(1))))
		cfg.Timeout = timeout
		var why error
		cfg.OnRetry = func(err error, _ time.Duration) { why = err }
		if _, err := run(t, cfg, 1); err != nil || why == nil || !strings.Contains(why.Error(), "silent") {
			t.Errorf("%v; tried again because of %v", err, why)
		}
	})
	t.Run("pongs", func(t *testing.T) {
		t.Parallel()
		s := serveScript(t, talk(func(ws *websocket.Conn) {
			time.AfterFunc(2*timeout, func() { ws.WriteMessage(websocket.TextMessage, []byte(event1(1))) })
			for {
				if _, _, err := ws.ReadMessage(); err != nil { // answers pings
					return
				}
			}
		}))
		cfg := quick(s)
		cfg.Timeout = timeout
		if got, err := run(t, cfg, 1); err != nil || len(got) != 1 || len(s.asked("")) != 1 {
			t.Errorf("%d, %v after %d connections", got, err, len(s.asked("")))
		}
	})
}

// The end of the context and the end of the loop both end the connection, and neither is an error.
func TestEnd(t *testing.T) {
	for _, how := range []string{"context", "context, between events", "break"} {
		t.Run(how, func(t *testing.T) {
			ended := make(chan error, 1)
			s := serveScript(t, talk(func(ws *websocket.Conn) {
				ws.WriteMessage(websocket.TextMessage, []byte(event1(1)))
				_, _, err := ws.ReadMessage()
				ended <- err
			}))
			c := newClient(t, quick(s))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for _, err := range c.Events(ctx) {
				if err != nil {
					t.Fatal(err)
				}
				for _, err := range c.Events(ctx) {
					if err == nil || !strings.Contains(err.Error(), "running") {
						t.Errorf("a second loop: %v", err)
					}
				}
				if how == "break" {
					break
				}
				if how == "context" {
					cancel()
				} else {
					time.AfterFunc(50*time.Millisecond, cancel)
				}
			}
			select {
			case err := <-ended:
				if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
					t.Errorf("the server saw %v", err)
				}
			case <-time.After(testproc.Patience):
				t.Error("the connection stays")
			}
		})
	}
}

// A v2 dictionary that is retired between the question and the handshake is replaced.
func TestRetiredDictionary(t *testing.T) {
	all := dictionaries.All()
	id := func(b []byte) string {
		n, err := client.DictionaryID(b)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(n)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderDict(all[1]))
	if err != nil {
		t.Fatal(err)
	}
	s := serveScript(t,
		answer(200, string(all[0])),
		answer(400, `{"error":"UnknownZstdDictionary","message":"retired"}`),
		answer(200, string(all[1])),
		talk(func(ws *websocket.Conn) {
			ws.WriteMessage(websocket.BinaryMessage, enc.EncodeAll([]byte(event2(5)), nil))
		}),
		answer(400, `{"error":"UnknownZstdDictionary","message":"retired"}`))
	cfg := quick(s)
	cfg.Wire, cfg.Compress = client.V2, true
	if got, err := run(t, cfg, 1); err != nil || !slices.Equal(got, []int{5}) {
		t.Errorf("got %d, %v", got, err)
	}
	if got := s.asked("zstdDictionary"); !slices.Equal(got, []string{"", id(all[0]), "", id(all[1])}) {
		t.Errorf("asked %q", got)
	}
}

// Dictionaries that are not to be had, or not what they should be, are final.
func TestBadDictionary(t *testing.T) {
	damaged := slices.Clone(dictionaries.Current())
	copy(damaged[8:], make([]byte, 200))
	wrong := slices.Clone(dictionaries.Current())
	wrong[4]++
	naming := func(id string) step {
		return func(t *testing.T, w http.ResponseWriter, r *http.Request) {
			up := websocket.Upgrader{}
			if ws, err := up.Upgrade(w, r, http.Header{"Zstd-Dictionary-Id": {id}}); err == nil {
				defer ws.Close()
				ws.ReadMessage()
			}
		}
	}
	current, err := client.DictionaryID(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		body step
		says string
	}{
		"absent":                {answer(404, "none"), "404"},
		"no zstd":               {answer(200, "hello"), "not a zstd dictionary"},
		"another":               {answer(200, string(wrong)), "has the id"},
		"damaged":               {answer(200, string(damaged)), "damaged"},
		"too large":             {answer(200, strings.Repeat("x", 1<<20+1)), "larger than"},
		"no more than an error": {answer(503, "later"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := quick(serveScript(t, naming(fmt.Sprint(current)), test.body))
			cfg.Compress, cfg.Once = true, test.says == ""
			if _, err := run(t, cfg, 1); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
		})
	}
	cfg := quick(serveScript(t, send()))
	cfg.Compress = true
	if _, err := run(t, cfg, 1); !errors.Is(err, client.ErrNoDictionary) {
		t.Errorf("a server that names none: %v", err)
	}
}

func TestConfigErrors(t *testing.T) {
	for says, cfg := range map[string]client.Config{
		"scheme":          {URL: "ftp://host"},
		"101 collections": {Filter: client.Filter{Collections: make([]string, 101)}},
		"10001 DIDs":      {Filter: client.Filter{DIDs: make([]string, 10_001)}},
		"kind":            {Filter: client.Filter{Kinds: []client.Kind{"post"}}},
		"v2 wire only":    {Filter: client.Filter{Kinds: []client.Kind{client.KindSync}}},
		"size":            {Filter: client.Filter{MaxSize: -1}},
		"cursor -2":       {Cursor: -2},
		"not a zstd":      {Dictionaries: [][]byte{[]byte("x")}},
	} {
		if _, err := client.New(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	c := newClient(t, client.Config{})
	if c.URL() != "ws://127.0.0.1:6008/subscribe" || c.Wire() != client.V1 {
		t.Errorf("by default %s, v%d", c.URL(), c.Wire())
	}
	if err := c.SetFilter(client.Filter{DIDs: make([]string, 10_001)}); err == nil {
		t.Error("SetFilter takes too many DIDs")
	}
}

func TestRecord(t *testing.T) {
	commit := func(record string) *client.Event {
		return &client.Event{DID: "did:plc:x", Kind: client.KindCommit, Commit: &client.Commit{Collection: "app.bsky.feed.post", RKey: "k", Record: json.RawMessage(record)}}
	}
	e := commit(`{"$type":"app.bsky.feed.post","text":"hi","createdAt":"2026-11-24T10:35:48Z"}`)
	if e.URI() != "at://did:plc:x/app.bsky.feed.post/k" {
		t.Errorf("URI %s", e.URI())
	}
	if p, err := client.Record[bsky.FeedPost](e); err != nil || p.Text != "hi" {
		t.Errorf("got %v, %v", p, err)
	}
	if v, err := e.Commit.Decode(); err != nil || v.(*bsky.FeedPost).Text != "hi" {
		t.Errorf("got %v, %v", v, err)
	}
	for record, known := range map[string]bool{
		`{"$type":"com.example.unknown","text":1}`: false,
		`{"text":1}`: false,
		`{"$type":"app.bsky.feed.post","text":1}`: true,
	} {
		v, err := commit(record).Commit.Decode()
		raw, _ := v.(json.RawMessage)
		if known && err == nil || !known && (err != nil || string(raw) != record) {
			t.Errorf("%s: %v, %v", record, v, err)
		}
	}
	e.Commit.Record = nil
	if _, err := client.Record[bsky.FeedPost](e); err == nil {
		t.Error("a delete has a record")
	}
	if _, err := client.Record[bsky.FeedPost](&client.Event{}); err == nil {
		t.Error("an identity event has a record")
	}
}

// A small frame that is a large message is not unpacked.
func TestLargeWhenDecompressed(t *testing.T) {
	dictionary := dictionaries.Current()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderDict(dictionary))
	if err != nil {
		t.Fatal(err)
	}
	id, err := client.DictionaryID(dictionary)
	if err != nil {
		t.Fatal(err)
	}
	s := serveScript(t, func(_ *testing.T, w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{}
		if ws, err := up.Upgrade(w, r, http.Header{"Zstd-Dictionary-Id": {fmt.Sprint(id)}}); err == nil {
			defer ws.Close()
			ws.WriteMessage(websocket.BinaryMessage, enc.EncodeAll([]byte(event1(1)), nil))
			ws.WriteMessage(websocket.BinaryMessage, enc.EncodeAll([]byte(event1(2)+strings.Repeat(" ", 4<<20)), nil))
			ws.ReadMessage()
		}
	})
	cfg := quick(s)
	cfg.Compress, cfg.Dictionaries, cfg.MaxMessage = true, [][]byte{dictionary}, 1<<20
	got, err := run(t, cfg, 2)
	if len(got) != 1 || err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes") {
		t.Errorf("%d events, %v", len(got), err)
	}
	cfg.MaxMessage = 5 << 20
	if got, err := run(t, cfg, 2); len(got) != 2 || err != nil {
		t.Errorf("%d events, %v", len(got), err)
	}
}

// By TLS, the stream and the dictionary.
func TestTLS(t *testing.T) {
	dictionary := dictionaries.Current()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderDict(dictionary))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "getZstdDictionary") {
			w.Write(dictionary)
			return
		}
		talk(func(ws *websocket.Conn) {
			ws.WriteMessage(websocket.BinaryMessage, enc.EncodeAll([]byte(event2(1)), nil))
		})(t, w, r)
	}))
	defer s.Close()
	cfg := client.Config{URL: s.URL, Wire: client.V2, Compress: true, Once: true}
	if _, err := run(t, cfg, 1); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody's: %v", err)
	}
	cfg.TLS = s.Client().Transport.(*http.Transport).TLSClientConfig
	if got, err := run(t, cfg, 1); err != nil || len(got) != 1 {
		t.Errorf("%d events, %v", len(got), err)
	}
}
