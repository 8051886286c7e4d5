package deploy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// one and other are addresses that count for a limit, by RFC 5737 nobody's.
const one, other = "203.0.113.7", "203.0.113.8"

const v2Path = "/xrpc/network.bsky.jetstream.subscribeEvents"

// stallTimeout is the daemon's in these tests. A third of it is too little for slow: the kernel
// moves what is between two programs on one machine in pieces of 64 KB and more.
const stallTimeout = 6 * time.Second

// proxies serve the daemon at an address, by a configuration of ours.
var proxies = map[string]func(t *testing.T, dir, daemon, port, cert, key string) *exec.Cmd{
	"caddy": func(t *testing.T, dir, daemon, port, cert, key string) *exec.Cmd {
		config := write(t, filepath.Join(dir, "Caddyfile"), "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"+replaced(t, "Caddyfile",
			"relay.example.org {", "localhost:"+port+" {\n\ttls "+cert+" "+key, "127.0.0.1:6008", daemon))
		cmd := exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", config)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		return cmd
	},
	"nginx": func(t *testing.T, dir, daemon, port, cert, key string) *exec.Cmd {
		return nginx(t, dir, daemon, port, cert, key)
	},
}

func nginx(t *testing.T, dir, daemon, port, cert, key string, more ...string) *exec.Cmd {
	t.Helper()
	config := write(t, filepath.Join(dir, "nginx.conf"), replaced(t, "nginx.conf", append([]string{
		"/run/nginx.pid", filepath.Join(dir, "nginx.pid"), "/var/log/nginx/error.log", filepath.Join(dir, "error.log"),
		"listen 443", "listen 127.0.0.1:" + port, "listen [::]:443", "listen [::1]:" + port, "relay.example.org;", "localhost;",
		"/etc/letsencrypt/live/relay.example.org/fullchain.pem", cert, "/etc/letsencrypt/live/relay.example.org/privkey.pem", key,
		"127.0.0.1:6008", daemon}, more...)...))
	return exec.Command("nginx", "-g", "daemon off;", "-e", filepath.Join(dir, "error.log"), "-c", config)
}

// TestProxy holds both configurations against what a consumer may expect, in a network
// namespace with the setting that the README asks for, and addresses that count.
func TestProxy(t *testing.T) {
	if os.Getenv("SLIPSTREAM_DEPLOY_NAMESPACE") == "" {
		needRoot(t, "for a network namespace, and nginx's directories")
		need(t, "caddy", "nginx", "unshare", "ip")
		setting := regexp.MustCompile(`net\.ipv4\.tcp_notsent_lowat=\d+`).FindString(replaced(t, "README.md"))
		script := `ip link set lo up && ip addr add ` + one + `/32 dev lo && ip addr add ` + other + `/32 dev lo && sysctl -qw ` + setting + ` && exec "$0" "$@"`
		cmd := exec.Command("unshare", "--net", "sh", "-c", script, os.Args[0], "-test.run=^TestProxy$", "-test.v", "-test.timeout=5m", "-test.parallel=6")
		cmd.Env = append(os.Environ(), "SLIPSTREAM_DEPLOY_NAMESPACE=1")
		out, err := cmd.CombinedOutput()
		if t.Logf("\n%s", out); err != nil {
			t.Fatal(err)
		}
		return
	}
	for name, command := range proxies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A replay that fills every buffer on the way, and then a stream.
			_, upstream := testproc.Relay(t, simrelay.Config{Seed: 5, Loop: 2000, Total: 60_000, WallClock: true})
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			d := testproc.Serve(t, binary(t), upstream, filepath.Join(dir, "data"), "--log-level", "warn",
				"--trusted-proxies", "127.0.0.1", "--max-subscribers-per-ip", "3", "--stall-timeout", stallTimeout.String())
			testproc.WaitFor(t, "the relay's frames are stored", func() bool {
				return d.Metrics(t)["slipstream_upstream_seq"] == float64(simrelay.DefaultFirstSeq+59_999)
			})
			cert, key, pool := certificate(t, dir)
			port := testproc.Port(testproc.FreeAddr(t))
			proxy := testproc.Start(t, command(t, dir, d.Addr, port, cert, key))
			p := &front{"localhost:" + port, pool, d}
			testproc.WaitFor(t, name+" answers", func() bool {
				select {
				case <-proxy.Done:
					t.Fatalf("%s has ended", name)
				default:
				}
				resp, err := p.client().Get("https://" + p.host + "/xrpc/_health")
				if err == nil {
					resp.Body.Close()
				}
				return err == nil
			})
			t.Run("dead", p.dead)
			// Those that take their time go on beside the others.
			t.Run("parts", func(t *testing.T) {
				t.Run("idle", p.idle)
				t.Run("slow", p.slow)
				t.Run("streams", p.streams)
				t.Run("http", p.http)
				t.Run("limit", p.limit)
			})
			p.restart(t, upstream, filepath.Join(dir, "data"))
		})
	}
}

// front is a proxy with the daemon behind it.
type front struct {
	host   string
	pool   *x509.CertPool
	daemon *testproc.Daemon
}

func (p *front) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.pool}, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
}

// dialer connects from an address, with a receive buffer; the zero values leave it to the kernel.
func (p *front) dialer(from string, buffer int) *websocket.Dialer {
	d := &websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: p.pool}, HandshakeTimeout: testproc.Patience}
	d.NetDial = func(network, addr string) (net.Conn, error) {
		dialer := net.Dialer{}
		if from != "" {
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := dialer.Dial("tcp4", addr)
		if err == nil && buffer > 0 {
			c.(*net.TCPConn).SetReadBuffer(buffer)
		}
		return c, err
	}
	return d
}

func (p *front) dial(t *testing.T, d *websocket.Dialer, path string) *websocket.Conn {
	t.Helper()
	ws, resp, err := d.Dial("wss://"+p.host+path, nil)
	if err != nil {
		if resp != nil {
			body, _ := io.ReadAll(resp.Body)
			err = fmt.Errorf("%w: %s %s", err, resp.Status, body)
		}
		t.Fatalf("dial %s: %v", path, err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

func next(t *testing.T, ws *websocket.Conn) []byte {
	t.Helper()
	ws.SetReadDeadline(time.Now().Add(testproc.Patience))
	_, m, err := ws.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// streams: on both wires, plain and compressed, a replay comes through as it is.
func (p *front) streams(t *testing.T) {
	dictionary := smallest(t, p.daemon)
	for _, path := range []string{"/subscribe?cursor=1", "/subscribe?cursor=1&compress=true",
		v2Path + "?cursor=1600000000000000", v2Path + "?cursor=1600000000000000&zstdDictionary=" + dictionary} {
		direct, _, err := websocket.DefaultDialer.Dial("ws://"+p.daemon.Addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer direct.Close()
		ws := p.dial(t, p.dialer("", 0), path)
		for i := range 20_000 {
			if want, got := next(t, direct), next(t, ws); !bytes.Equal(got, want) {
				t.Fatalf("%s: message %d\n got %.200q\nwant %.200q", path, i, got, want)
			}
		}
		ws.Close()
		direct.Close()
	}
}

// smallest returns the id of the dictionary that makes the smallest frames.
func smallest(t *testing.T, d *testproc.Daemon) string {
	_, header := get(t, http.DefaultClient, "http://"+d.Addr+"/dictionary")
	return header.Get("Zstd-Dictionary-Id")
}

// http: whatever else there is comes through as it is.
func (p *front) http(t *testing.T) {
	want, header := get(t, http.DefaultClient, "http://"+p.daemon.Addr+"/dictionary")
	request, err := http.NewRequest(http.MethodGet, "https://"+p.host+"/dictionary", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept-Encoding", "gzip, zstd, br")
	resp, err := p.client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, want) || resp.Header.Get("Content-Encoding") != "" {
		t.Errorf("/dictionary: %d bytes, %v, encoding %q; want %d as they are", len(got), err, resp.Header.Get("Content-Encoding"), len(want))
	}
	for _, name := range []string{"Zstd-Dictionary-Id", "Etag", "Access-Control-Allow-Origin"} {
		if got, want := resp.Header.Get(name), header.Get(name); got != want || want == "" {
			t.Errorf("/dictionary: %s is %q, want %q", name, got, want)
		}
	}
	// As many DIDs as one connection may have make a long request line.
	var dids []string
	for i := range 10_000 {
		dids = append(dids, fmt.Sprintf("did:plc:%024d", i))
	}
	p.dial(t, p.dialer("", 0), "/subscribe?wantedDids="+strings.Join(dids, "%2C")).Close()
	// Other answers have their status and words.
	resp, err = p.client().Get("https://" + p.host + "/subscribe?wantedCollections=!")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest || !bytes.Contains(text, []byte("wantedCollections")) {
		t.Errorf("a bad parameter gets %s: %s", resp.Status, text)
	}
}

// limit: connections count for who is behind the proxy, whatever that claims to be.
func (p *front) limit(t *testing.T) {
	const path = "/subscribe?wantedDids=did:plc:nobody"
	for range 3 {
		p.dial(t, p.dialer(one, 0), path)
	}
	for _, claim := range []string{"", "198.51.100.1", "127.0.0.1"} {
		header := http.Header{}
		if claim != "" {
			header.Set("X-Forwarded-For", claim)
			header.Set("X-Real-IP", claim)
			header.Set("Forwarded", "for="+claim)
		}
		ws, resp, err := p.dialer(one, 0).Dial("wss://"+p.host+path, header)
		if err == nil {
			ws.Close()
			t.Fatalf("a fourth connection that claims to be %q is let in", claim)
		}
		if resp == nil || resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
			t.Errorf("a fourth connection that claims to be %q: %v, %+v", claim, err, resp)
		}
	}
	p.dial(t, p.dialer(other, 0), path)
}

// idle: nobody is cut for having nothing to be sent.
func (p *front) idle(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/subscribe?wantedDids=did:plc:nobody", v2Path + "?dids=did:plc:nobody"} {
		ws := p.dial(t, p.dialer("", 0), path)
		ws.SetReadDeadline(time.Now().Add(2 * stallTimeout))
		_, _, err := ws.ReadMessage()
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			t.Errorf("an idle consumer: %v", err)
		}
	}
}

// slow: who reads a little at a time keeps its connection, though what is on its way to it
// fills every buffer.
func (p *front) slow(t *testing.T) {
	t.Parallel()
	ws := p.dial(t, p.dialer("", 4<<10), "/subscribe?cursor=1")
	begin, bytes := time.Now(), 0
	for time.Since(begin) < 5*stallTimeout {
		for range 20 {
			bytes += len(next(t, ws))
		}
		time.Sleep(200 * time.Millisecond)
	}
	if n := p.daemon.Metrics(t)[stalled]; n != 1 { // that of dead
		t.Errorf("the daemon has ended who is slow: %v are", n)
	}
	t.Logf("read %.0f KB/s for %s", float64(bytes)/1e3/time.Since(begin).Seconds(), time.Since(begin).Round(time.Second))
}

const stalled = `slipstream_subscribers_ended_total{reason="stalled"}`

// dead: who reads nothing is ended by the daemon, through the proxy.
func (p *front) dead(t *testing.T) {
	p.dial(t, p.dialer("", 4<<10), "/subscribe?cursor=1")
	begin := time.Now()
	testproc.WaitFor(t, "who reads nothing is ended", func() bool { return p.daemon.Metrics(t)[stalled] > 0 })
	if n := p.daemon.Metrics(t)[stalled]; n != 1 {
		t.Errorf("%v consumers are ended, want 1", n)
	}
	t.Logf("ended after %s", time.Since(begin).Round(time.Second/10))
}

// restart: consumers are told, come again with their cursor, and miss nothing.
func (p *front) restart(t *testing.T, upstream, data string) {
	type end struct {
		path string
		err  error
		last int64
	}
	ends := make(chan end)
	var reading sync.WaitGroup
	for _, path := range []string{"/subscribe?", v2Path + "?"} {
		ws := p.dial(t, p.dialer("", 0), path+"cursor=1600000000000000")
		reading.Add(1)
		go func() {
			e := end{path: path}
			for n := 0; ; n++ {
				if n == 5_000 {
					reading.Done()
				}
				ws.SetReadDeadline(time.Now().Add(testproc.Patience))
				_, m, err := ws.ReadMessage()
				if err != nil {
					e.err = err
					ends <- e
					return
				}
				e.last = position(m)
			}
		}()
	}
	reading.Wait()
	p.daemon.End(t)
	var last []end
	for range 2 {
		e := <-ends
		if closed, ok := errors.AsType[*websocket.CloseError](e.err); !ok || closed.Code != websocket.CloseGoingAway || !strings.Contains(closed.Text, "reconnect") {
			t.Errorf("%s ends with: %v", e.path, e.err)
		}
		last = append(last, e)
	}
	// They are at the door before the daemon is.
	came := make(chan error, len(last))
	for _, e := range last {
		go func() {
			for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
				ws, _, err := p.dialer("", 0).Dial("wss://"+p.host+e.path+fmt.Sprintf("cursor=%d", e.last), nil)
				if err != nil && time.Since(begin) < testproc.Patience {
					continue
				}
				if err == nil {
					ws.SetReadDeadline(time.Now().Add(testproc.Patience))
					var m []byte
					if _, m, err = ws.ReadMessage(); err == nil && position(m) != e.last {
						err = fmt.Errorf("goes on with %.200s after %d", m, e.last)
					}
					ws.Close()
				}
				came <- err
				return
			}
		}()
	}
	time.Sleep(500 * time.Millisecond)
	p.daemon.Start(t)
	for range last {
		if err := <-came; err != nil {
			t.Errorf("after the restart: %v", err)
		}
	}
}

// position returns a message's time_us or seq.
func position(message []byte) int64 {
	var m struct {
		TimeUS  int64 `json:"time_us"`
		Payload struct{ Seq int64 }
	}
	json.Unmarshal(message, &m)
	return max(m.TimeUS, m.Payload.Seq)
}

// Without nginx.conf's timeouts who is idle is cut: what TestProxy sees is theirs.
func TestNginxTimeouts(t *testing.T) {
	needRoot(t, "for nginx's directories")
	need(t, "nginx")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 5, Loop: 100, Rate: 10})
	d := testproc.Serve(t, binary(t), upstream, filepath.Join(dir, "data"), "--log-level", "warn")
	cert, key, pool := certificate(t, dir)
	port := testproc.Port(testproc.FreeAddr(t))
	testproc.Start(t, nginx(t, dir, d.Addr, port, cert, key, "proxy_read_timeout 1h;", "proxy_read_timeout 2s;"))
	p := &front{"localhost:" + port, pool, d}
	testproc.WaitFor(t, "nginx answers", func() bool {
		resp, err := p.client().Get("https://" + p.host + "/xrpc/_health")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	ws := p.dial(t, p.dialer("", 0), "/subscribe?wantedDids=did:plc:nobody")
	ws.SetReadDeadline(time.Now().Add(testproc.Patience))
	begin := time.Now()
	_, _, err := ws.ReadMessage()
	if timeout, ok := errors.AsType[net.Error](err); err == nil || ok && timeout.Timeout() || time.Since(begin) > 4*stallTimeout {
		t.Errorf("an idle consumer after %s: %v", time.Since(begin), err)
	}
	want := []string{"proxy_read_timeout 1h", "proxy_send_timeout 1h", "send_timeout 1h"}
	text := replaced(t, "nginx.conf")
	if missing := slices.DeleteFunc(want, func(s string) bool { return strings.Contains(text, s) }); len(missing) > 0 {
		t.Errorf("nginx.conf lacks %q", missing)
	}
}
