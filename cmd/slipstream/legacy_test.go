package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// legacyDictionary reads Bluesky's dictionary, and skips without it.
func legacyDictionary(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(shared(t, "dictionaries/legacy_subscribe.zdict"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ourID(t testing.TB) uint32 {
	t.Helper()
	id, err := event.DictionaryID(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// home is a public home that answers with b.
func home(t testing.TB, b []byte) *httptest.Server {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got, want := r.UserAgent(), "slipstream/"+buildVersion(); got != want {
			t.Errorf("User-Agent: %q, want %q", got, want)
		}
		w.Write(b)
	})
}

func serve(t testing.TB, f http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

// faultyHomes are all the ways in which the download can fail, and what is said of each.
func faultyHomes(t testing.TB) map[string]struct{ url, want string } {
	t.Helper()
	gone := httptest.NewServer(nil)
	gone.Close()
	other := otherDictionary(legacyID)
	return map[string]struct{ url, want string }{
		"nobody there": {gone.URL, "connection refused"},
		"404":          {serve(t, http.NotFound).URL, "404 Not Found"},
		"another file": {home(t, other).URL, fmt.Sprintf("not the dictionary: %d bytes with the SHA-256 %x", len(other), sha256.Sum256(other))},
		"empty":        {home(t, nil).URL, "not the dictionary: 0 bytes"},
		"too large":    {home(t, make([]byte, maxDictionary+1)).URL, "not the dictionary: more than 1048576 bytes"},
		"cut off": {serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Write(make([]byte, 10))
		}).URL, "unexpected EOF"},
		"to a file": {serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}).URL, "unsupported protocol scheme"},
		"a password": {strings.Replace(gone.URL, "http://", "http://user:secret@", 1), "user:xxxxx@"},
	}
}

// The command fetches the dictionary once and keeps it.
func TestFetchLegacy(t *testing.T) {
	legacy := legacyDictionary(t)
	dir := filepath.Join(t.TempDir(), "new")
	h := home(t, legacy)
	file := keptIn(dir).file(legacyID)
	for _, want := range []string{" now: ", " already\n"} {
		out, err := runCommand(t.Context(), "dictionary", "fetch-legacy", "--data-dir", dir, "--url", h.URL+"/zstd_dictionary")
		if err != nil || !strings.Contains(out, want) || !strings.Contains(out, file) {
			t.Errorf("%q, %v; want %q and %q in it", out, err, want, file)
		}
		if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, legacy) {
			t.Errorf("%d bytes are kept, %v", len(b), err)
		}
		h.Close() // the second time, it is not asked
	}
	// What is damaged is fetched again.
	if err := os.WriteFile(file, legacy[:1000], 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SLIPSTREAM_LEGACY_DICTIONARY_URL", home(t, legacy).URL)
	if out, err := runCommand(t.Context(), "dictionary", "fetch-legacy", "--data-dir", dir); err != nil {
		t.Errorf("%q, %v", out, err)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, legacy) {
		t.Errorf("%d bytes are kept instead of the damaged ones, %v", len(b), err)
	}
}

// When the command fails, it says so in one sentence, which says what to do, and leaves nothing.
func TestFetchLegacyFails(t *testing.T) {
	for name, c := range faultyHomes(t) {
		dir := t.TempDir()
		out, err := runCommand(t.Context(), "dictionary", "fetch-legacy", "--data-dir", dir, "--url", c.url)
		if err == nil || out != "" {
			t.Errorf("%s: %q, %v", name, out, err)
			continue
		}
		for _, want := range []string{c.want, "--legacy-dictionary FILE", "download Bluesky's dictionary from http"} {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q, want %q in it", name, err, want)
			}
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
			t.Errorf("%s: the data dir holds %v, %v", name, names, err)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"--url ftp://127.0.0.1/d", "--url"},
		{"--url dictionary", "--url"},
		{"--data-dir=", "--data-dir"},
		{"now", `"now"`},
	} {
		if _, err := runCommand(t.Context(), append([]string{"dictionary", "fetch-legacy"}, strings.Fields(c.args)...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	h := hanging(t, cancel)
	if _, err := runCommand(ctx, "dictionary", "fetch-legacy", "--data-dir", t.TempDir(), "--url", h); err != errInterrupted {
		t.Errorf("interrupted: %v", err)
	}
}

// hanging is the URL of a server that answers nothing, and calls asked when it is asked.
func hanging(t testing.TB, asked func()) string {
	t.Helper()
	end := make(chan struct{})
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		asked()
		select {
		case <-r.Context().Done():
		case <-end:
		}
	}).URL
	t.Cleanup(func() { close(end) })
	return url
}

// outcome runs what the daemon runs for one setting of the flag, and returns the line that
// it logs, and the primary dictionary.
func outcome(t testing.TB, ctx context.Context, cfg Config) (line string, primary uint32) {
	t.Helper()
	var said bytes.Buffer
	l, err := newLegacy(cfg, slog.New(slog.NewTextHandler(&said, nil)))
	if err == nil {
		err = l.keep(ctx)
	}
	if err == nil {
		err = l.run(ctx)
	}
	if err != nil {
		t.Fatalf("%+v: %v", cfg, err)
	}
	if strings.Count(said.String(), "\n") > 1 {
		t.Errorf("%s: more than one line:\n%s", cfg.LegacyDictionary, &said)
	}
	return said.String(), l.known.Primary().ID()
}

// Whatever comes of it, one line says so, a warning where consumers with the dictionary built
// in are left out, and what is the primary dictionary is kept.
func TestLegacyOutcome(t *testing.T) {
	ours := ourID(t)
	check := func(t *testing.T, cfg Config, primary uint32, wants ...string) {
		t.Helper()
		if cfg.DataDir == "" {
			cfg.DataDir = t.TempDir()
		}
		line, got := outcome(t, t.Context(), cfg)
		if got != primary {
			t.Errorf("%s: the primary dictionary is %d, want %d", cfg.LegacyDictionary, got, primary)
		}
		for _, want := range append(wants, fmt.Sprintf("dictionary=%d", primary), "compress=true") {
			if !strings.Contains(line, want) {
				t.Errorf("%s: it says %q, without %q", cfg.LegacyDictionary, line, want)
			}
		}
		if kept, err := keptIn(cfg.DataDir).load(func(file string, err error) { t.Error(file, err) }); err != nil || primary != ours && len(kept) != 1 {
			t.Errorf("%s: %d dictionaries are kept, %v", cfg.LegacyDictionary, len(kept), err)
		}
	}
	t.Run("off", func(t *testing.T) {
		check(t, Config{LegacyDictionary: legacyOff}, ours, "INFO", "cannot read", "set --legacy-dictionary to auto")
		check(t, Config{}, ours, "INFO")
	})
	for name, c := range faultyHomes(t) {
		t.Run(name, func(t *testing.T) {
			check(t, Config{LegacyDictionary: legacyAuto, LegacyDictionaryURL: c.url}, ours, "WARN", "cannot read", strings.ReplaceAll(c.want, `"`, `\"`), "--legacy-dictionary FILE")
		})
	}
	t.Run("another file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "other.zdict")
		if err := os.WriteFile(file, otherDictionary(4711), 0o600); err != nil {
			t.Fatal(err)
		}
		check(t, Config{LegacyDictionary: file}, 4711, "WARN", "cannot read", "file="+file)
	})
	t.Run("the file", func(t *testing.T) {
		legacyDictionary(t)
		check(t, Config{LegacyDictionary: shared(t, "dictionaries/legacy_subscribe.zdict")}, legacyID, "INFO", "can read")
	})
	t.Run("auto", func(t *testing.T) {
		legacy := legacyDictionary(t)
		cfg := Config{LegacyDictionary: legacyAuto, LegacyDictionaryURL: home(t, legacy).URL, DataDir: t.TempDir()}
		check(t, cfg, legacyID, "INFO", "can read", "from now on", "from="+cfg.LegacyDictionaryURL, "file="+keptIn(cfg.DataDir).file(legacyID))
		cfg.LegacyDictionaryURL = "http://127.0.0.1:0/"
		check(t, cfg, legacyID, "INFO", "can read")
		cfg.LegacyDictionary = legacyOff
		check(t, cfg, ours, "INFO", "cannot read")

		// What cannot be kept must not be used: nothing could read what is stored.
		cfg = Config{LegacyDictionary: legacyAuto, LegacyDictionaryURL: home(t, legacy).URL, DataDir: t.TempDir()}
		if err := os.MkdirAll(filepath.Join(keptIn(cfg.DataDir).file(legacyID), "in the way"), 0o755); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		l, err := newLegacy(cfg, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.run(t.Context()); err != nil || l.known.Primary().ID() != ours || !strings.Contains(said.String(), "cannot keep dictionary 1612007021") {
			t.Errorf("%v, primary %d; it says:\n%s", err, l.known.Primary().ID(), &said)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cfg := Config{LegacyDictionary: legacyAuto, LegacyDictionaryURL: hanging(t, cancel), DataDir: t.TempDir()}
		if line, _ := outcome(t, ctx, cfg); line != "" {
			t.Errorf("it says %q", line)
		}
	})
}

// A file that is no dictionary, or not what its id says, stops the start.
func TestLegacyFileRefused(t *testing.T) {
	dir := t.TempDir()
	taken := append(otherDictionary(ourID(t)), 0)
	for name, b := range map[string][]byte{
		"empty": {}, "text": []byte("a dictionary"), "cut": otherDictionary(4711)[:60], "damaged": otherDictionary(legacyID), "taken": taken, "absent": nil,
	} {
		file := filepath.Join(dir, name)
		if b != nil {
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		data := filepath.Join(dir, "data")
		line := refused(t, nil, append(serveArgs("ws://127.0.0.1:1", data), "--legacy-dictionary", file)...)
		if !strings.Contains(line, "--legacy-dictionary "+file+": ") {
			t.Errorf("%s: it says %q", name, line)
		}
		if _, err := os.Stat(filepath.Join(data, keptName)); err == nil {
			t.Errorf("%s was kept", name)
		}
	}
}

// A download that hangs does not hold up the end.
func TestLegacyShutdown(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 86, Loop: 100, Total: 100})
	cfg := testConfig(t, upstream)
	asked := make(chan struct{})
	cfg.LegacyDictionary, cfg.LegacyDictionaryURL = legacyAuto, hanging(t, func() { close(asked) })
	d := startDaemon(t, cfg)
	<-asked
	begin := time.Now()
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > fetchTimeout/3 {
		t.Errorf("the end took %s", took)
	}
}

// connect connects a consumer that has one dictionary only, and checks that the handshake
// names it. Frames name theirs, so it can read none that is made with another.
func connect(t testing.TB, addr, query string, dictionary []byte) *reader {
	t.Helper()
	want, err := event.DictionaryID(dictionary)
	if err != nil {
		t.Fatal(err)
	}
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+addr+"/subscribe?compress=true&"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	if got := resp.Header.Get("Zstd-Dictionary-Id"); got != fmt.Sprint(want) {
		t.Fatalf("%s: the handshake names dictionary %s, want %d", query, got, want)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionary), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dec.Close)
	return &reader{ws, dec}
}

func getDictionary(t testing.TB, addr, path string) []byte {
	t.Helper()
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return b
}

// The dictionary that v1 clients have built in comes while the daemon runs: whoever is
// connected keeps what the handshake said, whoever comes gets the new one, for the events of
// before as well; and after a restart it is there without a network.
func TestLegacyComesLate(t *testing.T) {
	legacy, ours := legacyDictionary(t), dictionaries.Current()
	frames, want := realFrames(t)
	const before = 20
	rest := make(chan struct{})
	upgrader := websocket.Upgrader{}
	upstream := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		for i, frame := range frames {
			if i == before {
				<-rest
			}
			if ws.WriteMessage(websocket.BinaryMessage, frame) != nil {
				return
			}
		}
		ws.ReadMessage()
	}))
	arrived := make(chan struct{})
	var asked atomic.Int64
	home := gate(arrived, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Write(legacy)
	}).Config.Handler)
	cfg := testConfig(t, upstream)
	cfg.LegacyDictionary, cfg.LegacyDictionaryURL = legacyAuto, serve(t, home.ServeHTTP).URL
	d := startDaemon(t, cfg)

	a := connect(t, d.addr, "cursor=0", ours)
	checkEvents(t, "before", a.messages(t, before), want)
	close(arrived)
	testproc.WaitFor(t, "the dictionary", func() bool { return bytes.Equal(getDictionary(t, d.addr, "/dictionary"), legacy) })
	if got := getDictionary(t, d.addr, fmt.Sprintf("/dictionary/%d", ourID(t))); !bytes.Equal(got, ours) {
		t.Errorf("our dictionary has become %d bytes", len(got))
	}
	b := connect(t, d.addr, "", legacy)
	close(rest)
	checkEvents(t, "after, connected before", a.messages(t, len(want)-before), want[before:])
	checkEvents(t, "after", b.messages(t, len(want)-before), want[before:])

	choose := fmt.Sprintf("cursor=0&zstdDictionary=%d", ourID(t))
	replay := func(when string) {
		t.Helper()
		checkEvents(t, when+", theirs", connect(t, d.addr, "cursor=0", legacy).messages(t, len(want)), want)
		checkEvents(t, when+", ours", connect(t, d.addr, choose, ours).messages(t, len(want)), want)
		// Few events of a chunk are made of their compressed form, on another way.
		one := "&wantedCollections=app.bsky.feed.post"
		theirs, our := connect(t, d.addr, "cursor=0"+one, legacy).messages(t, 5), connect(t, d.addr, choose+one, ours).messages(t, 5)
		sameMessages(t, when+", few", our, theirs)
	}
	replay("replay")
	flags := []string{"--data-dir", cfg.DataDir, "--metrics-listen-addr", cfg.MetricsListenAddr}
	look := func() {
		t.Helper()
		if out, err := runCommand(t.Context(), append([]string{"verify"}, flags...)...); err != nil || !strings.HasPrefix(out, "verified ") {
			t.Errorf("verify: %q, %v", out, err)
		}
		in := inspectJSON(t, flags...)
		if got, want := in.Dictionaries, []dictionaryShare{{ourID(t), before}, {legacyID, int64(len(want)) - before}}; !reflect.DeepEqual(got, want) {
			t.Errorf("inspect: dictionaries %v, want %v", got, want)
		}
	}
	look()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	look()

	var err error
	if cfg.UpstreamURLs[0], err = firehose.ParseURL(serveHandler(t, simrelay.Replay(frames))); err != nil {
		t.Fatal(err)
	}
	d = startDaemon(t, cfg)
	replay("after a restart")
	if n := asked.Load(); n != 1 {
		t.Errorf("the dictionary was asked for %d times", n)
	}
}
