package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/urfave/cli/v3"

	"slipstream/pkg/eventlog"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// serveProcess runs the daemon as a process that serves consumers at addr.
func serveProcess(t testing.TB, upstream, dir, addr, metrics string, more ...string) *testproc.Process {
	t.Helper()
	p := startProcess(t, nil, append([]string{"serve", "--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", dir,
		"--listen-addr", addr, "--metrics-listen-addr", metrics}, more...)...)
	waitHealthy(t, addr)
	return p
}

// stored reads what a daemon that is not running has stored: the upstream position, and how
// many events.
func stored(t testing.TB, dataDir string) (seq int64, events int) {
	t.Helper()
	log, err := eventlog.Open(eventlog.Config{Dir: filepath.Join(dataDir, "slipstream")})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if log.Checkpoint() == nil {
		return 0, 0
	}
	var position struct{ Seq int64 }
	if err := json.Unmarshal(log.Checkpoint(), &position); err != nil {
		t.Fatal(err)
	}
	for at := log.Trimmed(); at < log.Last(); {
		c, _, err := log.Next(at)
		if err != nil {
			t.Fatal(err)
		}
		events += len(c.Entries)
		at = c.Last()
	}
	return position.Seq, events
}

// Asked to end under full load, the daemon stores what it has read, tells its consumers
// between two messages, does not wait for one that reads nothing, and goes on where it was.
func TestShutdown(t *testing.T) {
	const first, total = int64(simrelay.DefaultFirstSeq), 40_000
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 81, Loop: 600, Total: total, Rate: 20_000})
	dir, addr, metrics := t.TempDir(), testproc.FreeAddr(t), testproc.FreeAddr(t)
	p := serveProcess(t, upstream, dir, addr, metrics)

	type received struct {
		messages [][]byte
		err      error
	}
	done := make(chan received)
	enough := make(chan struct{})
	for _, query := range []string{"cursor=0", "cursor=0&compress=true"} {
		r := newReader(t, dial(t, addr, query))
		go func() {
			var got received
			for {
				m, err := r.next(30 * time.Second)
				if err != nil {
					got.err = err
					done <- got
					return
				}
				if got.messages = append(got.messages, m); len(got.messages) == 8_000 {
					enough <- struct{}{}
				}
			}
		}()
	}
	<-enough
	<-enough
	// More than the kernel takes for it is waiting for this one.
	dialer := websocket.Dialer{NetDial: func(network, addr string) (net.Conn, error) {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.(*net.TCPConn).SetReadBuffer(8 << 10)
		}
		return c, err
	}}
	blocked, _, err := dialer.Dial("ws://"+addr+"/subscribe?cursor=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer blocked.Close()

	p.End(t)
	var before [][]byte
	for range 2 {
		got := <-done
		var closed *websocket.CloseError
		if !errors.As(got.err, &closed) || closed.Code != websocket.CloseGoingAway || closed.Text == "" {
			t.Errorf("a consumer's connection ended with: %v", got.err)
		}
		if len(got.messages) > len(before) {
			before = got.messages
		}
	}
	seq, events := stored(t, dir)
	if seq >= first+total-1 {
		t.Error("the stream was over before the end came: the test does not test much")
	}
	want := 0
	for s := first; s <= seq; s++ {
		want += len(relay.Expected(s))
	}
	if events != want || events < len(before) {
		t.Errorf("%d events are stored, the relay sent %d up to the stored cursor", events, want)
	}

	p = serveProcess(t, upstream, dir, addr, metrics)
	testproc.WaitFor(t, "the end of the stream", func() bool { return int64(scrape(t, metrics)["slipstream_upstream_seq"]) == first+total-1 })
	receiveExactly(t, addr, expectedEvents(relay, first, first+total-1))
	r := newReader(t, dial(t, addr, "cursor=0"))
	sameMessages(t, "after the restart", r.messages(t, len(before)), before)
	r.ws.Close()
	m := scrape(t, metrics)
	if m["slipstream_upstream_gaps_total"]+m["slipstream_frames_duplicate_total"] != 0 {
		t.Errorf("the restart made %v gaps and %v duplicates", m["slipstream_upstream_gaps_total"], m["slipstream_frames_duplicate_total"])
	}
	p.Signal(t, syscall.SIGINT)
	if err := p.Wait(t); err != nil {
		t.Errorf("SIGINT: %v; the process said:\n%s", err, p.Output)
	}
}

// Frames that yield no event move the stored position too, every few seconds and at the
// end; otherwise a quiet hour would be asked for again after each start.
func TestCheckpointWithoutEvents(t *testing.T) {
	const first, total = int64(1_000), 200
	relay, err := simrelay.New(simrelay.Config{Seed: 82, FirstSeq: first, Total: total, Faults: simrelay.Faults{Rate: 1, Kinds: []simrelay.Fault{simrelay.TooBig}}})
	if err != nil {
		t.Fatal(err)
	}
	var empty [][]byte
	last := int64(0)
	for i, frame := range rawFrames(t, relay, total) {
		if seq := first + int64(i); len(relay.Expected(seq)) == 0 {
			empty, last = append(empty, frame), seq
		}
	}
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(end.String(), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var cursors []string
			send := rawRelay(empty)
			upstream := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				cursors = append(cursors, r.URL.Query().Get("cursor"))
				mu.Unlock()
				send.ServeHTTP(w, r)
			}))
			dir, addr, metrics := t.TempDir(), testproc.FreeAddr(t), testproc.FreeAddr(t)
			p := serveProcess(t, upstream, dir, addr, metrics)
			testproc.WaitFor(t, "the last frame", func() bool { return int64(scrape(t, metrics)["slipstream_upstream_seq"]) == last })
			if end == syscall.SIGKILL {
				testproc.WaitFor(t, "a commit", func() bool { return scrape(t, metrics)["slipstream_commit_seconds_count"] > 0 })
			}
			p.Signal(t, end)
			p.Wait(t)
			if seq, events := stored(t, dir); seq != last || events != 0 {
				t.Errorf("position %d with %d events is stored, want %d without any", seq, events, last)
			}
			p = serveProcess(t, upstream, dir, addr, metrics)
			testproc.WaitFor(t, "the second connection", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(cursors) == 2
			})
			if want := fmt.Sprint(last); cursors[1] != want {
				t.Errorf("after the restart the relay is asked for %q, want %q", cursors[1], want)
			}
			p.End(t)
		})
	}
}

// refused runs the program, which must refuse to start, and returns the one line it says.
func refused(t testing.TB, env []string, args ...string) string {
	t.Helper()
	p := startProcess(t, env, args...)
	err := p.Wait(t)
	said := p.Output.String()
	line, rest, _ := strings.Cut(said, "\n")
	if p.Cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v %v: %v, want exit status 1; it said:\n%s", env, args, err, said)
	}
	if rest != "" || len(line) > 300 {
		t.Errorf("%v %v: it says more than one line:\n%s", env, args, said)
	}
	return line
}

// A value that makes no sense stops the start with one line that names the flag, whether
// it came as a flag or from the environment, in our spelling or in Jetstream's.
func TestBadFlags(t *testing.T) {
	onceIsEnough(t)
	// Whatever a case gets past, it goes no further than here.
	nowhere := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(nowhere, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tried := map[string]bool{}
	for _, c := range []struct {
		flag, value string
		env         []string
	}{
		{"upstream-url", "ftp://bsky.network", []string{"SLIPSTREAM_UPSTREAM_URL", "JETSTREAM_WS_URL"}},
		{"upstream-url", "wss://", nil},
		{"upstream-url", "a.example,", []string{"SLIPSTREAM_UPSTREAM_URL"}},
		{"upstream-url", "a.example,wss://a.example", []string{"SLIPSTREAM_UPSTREAM_URL"}},
		{"failover-after", "30", []string{"SLIPSTREAM_FAILOVER_AFTER"}},
		{"failover-after", "0s", nil},
		{"liveness-ttl", "on", []string{"SLIPSTREAM_LIVENESS_TTL"}},
		{"liveness-ttl", "1s", nil},
		{"liveness-ttl", "-1m", nil},
		{"collections", "app.bsky", []string{"SLIPSTREAM_COLLECTIONS"}},
		{"collections", "app.bsky.feed.post,*", nil},
		{"exclude-collections", "app.bsky.feed.p*", []string{"SLIPSTREAM_EXCLUDE_COLLECTIONS"}},
		{"exclude-collections", ".*", nil},
		{"no-identity", "perhaps", []string{"SLIPSTREAM_NO_IDENTITY"}},
		{"no-account", "perhaps", []string{"SLIPSTREAM_NO_ACCOUNT"}},
		{"upstream-cursor", "soon", []string{"SLIPSTREAM_UPSTREAM_CURSOR"}},
		{"upstream-cursor", "-2", nil},
		{"override-upstream-cursor", "1.5", []string{"SLIPSTREAM_OVERRIDE_UPSTREAM_CURSOR", "JETSTREAM_OVERRIDE_RELAY_CURSOR"}},
		{"override-upstream-cursor", "99999999999999999999", nil},
		{"listen-addr", "6008", []string{"SLIPSTREAM_LISTEN_ADDR", "JETSTREAM_LISTEN_ADDR"}},
		{"listen-addr", ":65536", nil},
		{"listen-addr", ":http", nil},
		{"metrics-listen-addr", "localhost", []string{"SLIPSTREAM_METRICS_LISTEN_ADDR", "JETSTREAM_METRICS_LISTEN_ADDR"}},
		{"data-dir", "", nil}, // an empty variable is one that is not set
		{"event-ttl", "a day", []string{"SLIPSTREAM_EVENT_TTL", "JETSTREAM_EVENT_TTL"}},
		{"event-ttl", "59s", []string{"SLIPSTREAM_EVENT_TTL", "JETSTREAM_EVENT_TTL"}},
		{"event-ttl", "-24h", nil},
		{"linger", "20", []string{"SLIPSTREAM_LINGER"}},
		{"linger", "11s", []string{"SLIPSTREAM_LINGER"}},
		{"linger", "0s", nil},
		{"worker-count", "many", []string{"SLIPSTREAM_WORKER_COUNT", "JETSTREAM_WORKER_COUNT"}},
		{"worker-count", "-1", []string{"SLIPSTREAM_WORKER_COUNT", "JETSTREAM_WORKER_COUNT"}},
		{"window-bytes", "16MiB", []string{"SLIPSTREAM_WINDOW_BYTES"}},
		{"window-bytes", "1000", []string{"SLIPSTREAM_WINDOW_BYTES"}},
		{"max-sub-rate", "fast", []string{"SLIPSTREAM_MAX_SUB_RATE", "JETSTREAM_MAX_SUB_RATE"}},
		{"max-sub-rate", "-1", []string{"SLIPSTREAM_MAX_SUB_RATE", "JETSTREAM_MAX_SUB_RATE"}},
		{"max-sub-rate", "NaN", nil},
		{"max-sub-rate", "+Inf", nil},
		{"max-subscribers", "many", []string{"SLIPSTREAM_MAX_SUBSCRIBERS"}},
		{"max-subscribers", "-1", []string{"SLIPSTREAM_MAX_SUBSCRIBERS"}},
		{"max-subscribers-per-ip", "1e3", []string{"SLIPSTREAM_MAX_SUBSCRIBERS_PER_IP"}},
		{"max-subscribers-per-ip", "-1", []string{"SLIPSTREAM_MAX_SUBSCRIBERS_PER_IP"}},
		{"max-filter-dids", "2M", []string{"SLIPSTREAM_MAX_FILTER_DIDS"}},
		{"max-filter-dids", "0", []string{"SLIPSTREAM_MAX_FILTER_DIDS"}},
		{"max-disk", "15", []string{"SLIPSTREAM_MAX_DISK"}},
		{"max-disk", "100MB", []string{"SLIPSTREAM_MAX_DISK"}},
		{"max-disk", "much", nil},
		{"min-free-disk", "95%", []string{"SLIPSTREAM_MIN_FREE_DISK"}},
		{"min-free-disk", "-1%", nil},
		{"min-free-disk", "a tenth", nil},
		{"trusted-proxies", "proxy.example", []string{"SLIPSTREAM_TRUSTED_PROXIES"}},
		{"trusted-proxies", "10.0.0.0/8,10.0.0.0/33", []string{"SLIPSTREAM_TRUSTED_PROXIES"}},
		{"trusted-proxies", "10.0.0.1:80", nil},
		{"trusted-proxies", "fe80::1%eth0", nil},
		{"trusted-proxies", "::ffff:0.0.0.0/95", nil},
		{"trusted-proxies", "10.0.0.1,", nil},
		{"stall-timeout", "2", []string{"SLIPSTREAM_STALL_TIMEOUT"}},
		{"stall-timeout", "10ms", []string{"SLIPSTREAM_STALL_TIMEOUT"}},
		{"tls-domain", "localhost", []string{"SLIPSTREAM_TLS_DOMAIN"}},
		{"tls-domain", "relay.example.org,203.0.113.5", nil},
		{"tls-cert", "cert.pem", []string{"SLIPSTREAM_TLS_CERT"}},
		{"tls-key", "key.pem", []string{"SLIPSTREAM_TLS_KEY"}},
		{"acme-directory", "letsencrypt", []string{"SLIPSTREAM_ACME_DIRECTORY"}},
		{"legacy-dictionary", "", nil},
		{"legacy-dictionary-url", "ftp://dictionaries.example/d", []string{"SLIPSTREAM_LEGACY_DICTIONARY_URL"}},
		{"legacy-dictionary-url", "dictionary", nil},
		{"log-level", "loud", []string{"SLIPSTREAM_LOG_LEVEL"}},
		{"log-format", "xml", []string{"SLIPSTREAM_LOG_FORMAT"}},
		{"env-file", "/nowhere/default", []string{"SLIPSTREAM_ENV_FILE"}},
	} {
		tried[c.flag] = true
		base := []string{"serve", "--data-dir", nowhere}
		if c.flag == "data-dir" {
			base = base[:1]
		}
		check := func(env []string, args ...string) {
			t.Helper()
			if line := refused(t, env, args...); !strings.HasPrefix(line, "slipstream: ") || !strings.Contains(line, c.flag) {
				t.Errorf("%v %v: it says %q, which does not name the flag", env, args, line)
			}
		}
		check(nil, append(base, "--"+c.flag+"="+c.value)...)
		for _, name := range c.env {
			check([]string{name + "=" + c.value}, base...)
		}
	}
	for _, f := range serveCommand().Flags {
		if name := f.Names()[0]; !tried[name] {
			t.Errorf("no bad value of --%s is tried", name)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"serve --no-such-flag", "no-such-flag"},
		{"serve --listen-addr", "listen-addr"},
		{"serve now", `"now"`},
	} {
		if line := refused(t, nil, strings.Fields(c.args)...); !strings.Contains(line, c.want) {
			t.Errorf("%s: it says %q, which does not name %s", c.args, line, c.want)
		}
	}
}

// Every flag can be set by the environment; our spelling goes before Jetstream's.
func TestEnvironment(t *testing.T) {
	config := func(t *testing.T, args ...string) Config {
		t.Helper()
		var cfg Config
		cmd := serveCommand()
		cmd.Action = func(_ context.Context, cmd *cli.Command) (err error) {
			cfg, err = configOf(cmd)
			return err
		}
		if err := cmd.Run(t.Context(), append([]string{"serve"}, args...)); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	for _, c := range []struct {
		env, value string
		get        func(Config) any
		want       any
	}{
		{"SLIPSTREAM_UPSTREAM_URL", "http://127.0.0.1:1", func(c Config) any { return strings.Join(c.UpstreamURLs, " ") }, "ws://127.0.0.1:1/xrpc/com.atproto.sync.subscribeRepos"},
		{"JETSTREAM_WS_URL", "wss://relay.example/xrpc/com.atproto.sync.subscribeRepos", func(c Config) any { return strings.Join(c.UpstreamURLs, " ") }, "wss://relay.example/xrpc/com.atproto.sync.subscribeRepos"},
		{"SLIPSTREAM_UPSTREAM_URL", "a.example, ws://b.example/x", func(c Config) any { return strings.Join(c.UpstreamURLs, " ") },
			"wss://a.example/xrpc/com.atproto.sync.subscribeRepos ws://b.example/x"},
		{"SLIPSTREAM_FAILOVER_AFTER", "2m", func(c Config) any { return c.FailoverAfter }, 2 * time.Minute},
		{"SLIPSTREAM_LIVENESS_TTL", "15m", func(c Config) any { return c.LivenessTTL }, 15 * time.Minute},
		{"SLIPSTREAM_COLLECTIONS", "app.bsky.feed.post, app.*", func(c Config) any { return fmt.Sprint(c.Filter.Collections) }, "{map[app.bsky.feed.post:{}] [app.]}"},
		{"SLIPSTREAM_EXCLUDE_COLLECTIONS", "app.bsky.feed.like", func(c Config) any { return fmt.Sprint(c.Filter.ExcludeCollections) }, "{map[app.bsky.feed.like:{}] []}"},
		{"SLIPSTREAM_NO_IDENTITY", "true", func(c Config) any { return c.Filter.NoIdentity }, true},
		{"SLIPSTREAM_NO_ACCOUNT", "1", func(c Config) any { return c.Filter.NoAccount }, true},
		{"SLIPSTREAM_UPSTREAM_CURSOR", "0", func(c Config) any { return *c.UpstreamCursor }, 0},
		{"SLIPSTREAM_OVERRIDE_UPSTREAM_CURSOR", "17", func(c Config) any { return *c.OverrideCursor }, 17},
		{"JETSTREAM_OVERRIDE_RELAY_CURSOR", "17", func(c Config) any { return *c.OverrideCursor }, 17},
		{"JETSTREAM_OVERRIDE_RELAY_CURSOR", "-1", func(c Config) any { return c.OverrideCursor == nil }, true},
		{"SLIPSTREAM_LISTEN_ADDR", ":1", func(c Config) any { return c.ListenAddr }, ":1"},
		{"JETSTREAM_LISTEN_ADDR", ":1", func(c Config) any { return c.ListenAddr }, ":1"},
		{"SLIPSTREAM_METRICS_LISTEN_ADDR", ":2", func(c Config) any { return c.MetricsListenAddr }, ":2"},
		{"JETSTREAM_METRICS_LISTEN_ADDR", "0.0.0.0:6009", func(c Config) any { return c.MetricsListenAddr }, "0.0.0.0:6009"},
		{"SLIPSTREAM_DATA_DIR", "/a", func(c Config) any { return c.DataDir }, "/a"},
		{"JETSTREAM_DATA_DIR", "/b", func(c Config) any { return c.DataDir }, "/b"},
		{"SLIPSTREAM_EVENT_TTL", "1h30m", func(c Config) any { return c.EventTTL }, 90 * time.Minute},
		{"JETSTREAM_EVENT_TTL", "72h", func(c Config) any { return c.EventTTL }, 72 * time.Hour},
		{"SLIPSTREAM_LINGER", "5ms", func(c Config) any { return c.Linger }, 5 * time.Millisecond},
		{"SLIPSTREAM_WORKER_COUNT", "3", func(c Config) any { return c.Workers }, 3},
		{"JETSTREAM_WORKER_COUNT", "100", func(c Config) any { return c.Workers }, 100},
		{"SLIPSTREAM_WINDOW_BYTES", "2097152", func(c Config) any { return c.WindowBytes }, 2 << 20},
		{"SLIPSTREAM_MAX_SUB_RATE", "0.5", func(c Config) any { return c.MaxSubRate }, 0.5},
		{"JETSTREAM_MAX_SUB_RATE", "5000", func(c Config) any { return c.MaxSubRate }, 5000},
		{"SLIPSTREAM_MAX_SUBSCRIBERS", "500", func(c Config) any { return c.MaxSubscribers }, 500},
		{"SLIPSTREAM_MAX_SUBSCRIBERS_PER_IP", "0", func(c Config) any { return c.MaxSubscribersPerIP }, 0},
		{"SLIPSTREAM_MAX_FILTER_DIDS", "10000", func(c Config) any { return c.MaxFilterDIDs }, 10_000},
		{"SLIPSTREAM_TRUSTED_PROXIES", "10.1.2.3/8, ::1,::ffff:192.0.2.1,::ffff:172.16.0.0/108", func(c Config) any { return c.TrustedProxies },
			"[10.0.0.0/8 ::1/128 192.0.2.1/32 172.16.0.0/12]"},
		{"SLIPSTREAM_STALL_TIMEOUT", "9s", func(c Config) any { return c.StallTimeout }, 9 * time.Second},
		{"SLIPSTREAM_TLS_DOMAIN", "a.example,b.example", func(c Config) any { return fmt.Sprint(c.TLSDomains) + c.ListenAddr }, "[a.example b.example]:443"},
		{"SLIPSTREAM_ACME_DIRECTORY", "https://127.0.0.1:1/dir", func(c Config) any { return c.ACMEDirectory }, "https://127.0.0.1:1/dir"},
		{"SLIPSTREAM_LEGACY_DICTIONARY", "/d", func(c Config) any { return c.LegacyDictionary }, "/d"},
		{"SLIPSTREAM_LEGACY_DICTIONARY_URL", "http://127.0.0.1:1/d", func(c Config) any { return c.LegacyDictionaryURL }, "http://127.0.0.1:1/d"},
		{"SLIPSTREAM_LOG_LEVEL", "DEBUG", func(c Config) any { return c.LogLevel }, slog.LevelDebug},
		{"SLIPSTREAM_LOG_FORMAT", "json", func(c Config) any { return c.LogFormat }, "json"},
	} {
		t.Run(c.env+"="+c.value, func(t *testing.T) {
			t.Setenv(c.env, c.value)
			if got := c.get(config(t)); fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	t.Run("repeated", func(t *testing.T) {
		cfg := config(t, "--trusted-proxies", "10.0.0.0/8", "--trusted-proxies", "192.0.2.1,192.0.2.2")
		if got, want := fmt.Sprint(cfg.TrustedProxies), "[10.0.0.0/8 192.0.2.1/32 192.0.2.2/32]"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("certificate", func(t *testing.T) {
		t.Setenv("SLIPSTREAM_TLS_CERT", "/c")
		t.Setenv("SLIPSTREAM_TLS_KEY", "/k")
		if cfg := config(t); cfg.TLSCert != "/c" || cfg.TLSKey != "/k" || cfg.ListenAddr != ":6008" {
			t.Errorf("got %q, %q on %s", cfg.TLSCert, cfg.TLSKey, cfg.ListenAddr)
		}
		if cfg := config(t, "--tls-domain", "a.example", "--tls-cert", "", "--tls-key", "", "--listen-addr", ":8443"); cfg.ListenAddr != ":8443" {
			t.Errorf("an address that was given became %s", cfg.ListenAddr)
		}
	})
	t.Run("legacy dictionary", func(t *testing.T) {
		t.Setenv("SLIPSTREAM_LEGACY_DICTIONARY", "") // to be put back
		os.Unsetenv("SLIPSTREAM_LEGACY_DICTIONARY")
		if cfg := config(t); cfg.LegacyDictionary != legacyAuto || cfg.LegacyDictionaryURL != legacyURL {
			t.Errorf("the default is %s, %s", cfg.LegacyDictionary, cfg.LegacyDictionaryURL)
		}
	})
	t.Run("order", func(t *testing.T) {
		t.Setenv("JETSTREAM_EVENT_TTL", "2h")
		t.Setenv("SLIPSTREAM_EVENT_TTL", "3h")
		if got := config(t).EventTTL; got != 3*time.Hour {
			t.Errorf("both spellings: %v, want 3h", got)
		}
		if got := config(t, "--event-ttl", "4h").EventTTL; got != 4*time.Hour {
			t.Errorf("both spellings and the flag: %v, want 4h", got)
		}
	})
}

// A data dir that cannot be written, or is another daemon's, is refused in one sentence;
// what else lies in it is left alone, and named.
func TestDataDir(t *testing.T) {
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 83, Loop: 100, Total: 500})
	args := func(dir string) []string {
		return []string{"serve", "--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", dir,
			"--listen-addr", "127.0.0.1:0", "--metrics-listen-addr", "127.0.0.1:0", "--log-level", "warn"}
	}
	// Root may write anywhere, but not below a file.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below"), filepath.Join(file, "below", "that")} {
		line := refused(t, nil, args(dir)...)
		for _, want := range []string{"--data-dir", dir + " ", fmt.Sprintf("uid %d", os.Getuid()), "not a directory"} {
			if !strings.Contains(line, want) {
				t.Errorf("data dir %s: it says %q, without %q", dir, line, want)
			}
		}
	}

	// A Jetstream v1 keeps a Pebble store and its cursor in files like these.
	dir := t.TempDir()
	old := map[string]string{
		"jetstream.db/CURRENT":         "MANIFEST-000001\n",
		"jetstream.db/MANIFEST-000001": "not ours to read",
		"cursor.json":                  `{"last_cursor":1}`,
	}
	for name, text := range old {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	p := serveProcess(t, upstream, dir, addr, metrics)
	if line := refused(t, nil, args(dir)...); !strings.Contains(line, filepath.Join(dir, "slipstream")+" is in use by another process") {
		t.Errorf("a second daemon says %q", line)
	}
	receiveExactly(t, addr, expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+499))
	p.End(t)
	if !slices.ContainsFunc(strings.Split(p.Output.String(), "\n"), func(line string) bool {
		return strings.Contains(line, "left alone") && strings.Contains(line, "jetstream.db") && strings.Contains(line, "cursor.json")
	}) {
		t.Errorf("no line names the files that were there before:\n%s", p.Output)
	}
	for name, text := range old {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
			t.Errorf("%s has become %q, %v", name, got, err)
		}
	}
}
