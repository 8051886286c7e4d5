package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// limitedProcess starts the program with what ulimit is told, at most 4096.
func limitedProcess(t testing.TB, ulimit string, args ...string) *testproc.Process {
	t.Helper()
	if n := descriptorLimit(); n < 4096 {
		t.Skipf("the limit of file descriptors is %d here", n)
	}
	return startCommand(t, nil, exec.Command("sh", append([]string{"-c", "ulimit " + ulimit + ` && exec "$0" "$@"`, os.Args[0]}, args...)...))
}

func TestShareDescriptors(t *testing.T) {
	for _, c := range []struct {
		limit, wanted    int
		lobby, consumers int
		short            bool
	}{
		{0, 0, 1024, 0, false}, // not known
		{0, 10, 1024, 10, false},
		{1, 0, 1, 1, true},
		{256, 0, 32, 64, true},
		{1024, 0, 128, 256, true},
		{2047, 0, 255, 511, true},
		{2048, 0, 256, 692, false},
		{20_000, 0, 1024, 17_876, false},
		{1 << 20, 0, 1024, 1<<20 - 2124, false},
		{20_000, 17_876, 1024, 17_876, false},
		{20_000, 17_877, 1024, 17_877, true},
		{1024, 10, 128, 10, true}, // the store alone may need as many
	} {
		d := shareDescriptors(c.limit, c.wanted)
		if d.lobby != c.lobby || d.consumers != c.consumers || d.needed > d.limit != c.short {
			t.Errorf("limit %d, wanted %d: got %+v, want %+v", c.limit, c.wanted, d, c)
		}
	}
}

// What the limit is, and what is made of it, is in the log.
func TestDescriptorLimit(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 93, Loop: 10, Total: 10})
	for _, c := range []struct {
		ulimit string
		args   []string
		want   []string
		short  bool
	}{
		{"-S -n 300 && ulimit -H -n 4001", nil, []string{"descriptors=4000", "max_subscribers=2400"}, false}, // raised
		{"-n 400", nil, []string{"descriptors=400", "max_subscribers=100", "needed=2048"}, true},
		{"-n 4000", []string{"--max-subscribers", "2400"}, []string{"descriptors=4000", "max_subscribers=2400"}, false},
		{"-n 4000", []string{"--max-subscribers", "2401"}, []string{"descriptors=4000", "max_subscribers=2401", "needed=4001"}, true},
	} {
		t.Run(c.ulimit+strings.Join(c.args, " "), func(t *testing.T) {
			addr := testproc.FreeAddr(t)
			p := limitedProcess(t, c.ulimit, append([]string{"serve", "--upstream-url", upstream, "--data-dir", t.TempDir(),
				"--listen-addr", addr, "--metrics-listen-addr", "127.0.0.1:0"}, c.args...)...)
			waitHealthy(t, addr)
			said := ""
			testproc.WaitFor(t, "the line that says so", func() bool { said = p.Output.String(); return strings.Contains(said, "msg=listening") })
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("%s is not said:\n%s", want, said)
				}
			}
			if got := strings.Contains(said, "level=WARN msg=\"the limit of file descriptors is too low"); got != c.short {
				t.Errorf("it warns: %v, want %v:\n%s", got, c.short, said)
			}
		})
	}
}

// Without descriptors nobody new gets in, the log says why, once, and it goes on by
// itself.
func TestOutOfDescriptors(t *testing.T) {
	t.Parallel() // it waits, mostly
	const limit = 80
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 94, Loop: 10, Total: 10})
	addr := testproc.FreeAddr(t)
	p := limitedProcess(t, fmt.Sprint("-n ", limit), "serve", "--upstream-url", upstream, "--data-dir", t.TempDir(),
		"--listen-addr", addr, "--metrics-listen-addr", "127.0.0.1:0", "--max-subscribers", "1000", "--log-level", "debug")
	waitHealthy(t, addr)
	http.DefaultClient.CloseIdleConnections()
	dialer := websocket.Dialer{HandshakeTimeout: time.Second}
	var all []io.Closer
	defer func() {
		for _, ws := range all {
			ws.Close()
		}
	}()
	for len(all) < limit {
		ws, _, err := dialer.Dial("ws://"+addr+"/subscribe", nil)
		if err != nil {
			break
		}
		all = append(all, ws)
	}
	if len(all) == limit {
		t.Fatal("the limit has not been reached")
	}
	time.Sleep(time.Second)
	for _, ws := range all {
		ws.Close()
	}
	all = nil
	dialer.HandshakeTimeout = 10 * time.Second
	ws, _, err := dialer.Dial("ws://"+addr+"/subscribe", nil)
	if err != nil {
		t.Fatalf("nobody is served again: %v", err)
	}
	ws.Close()
	said := p.Output.String()
	if n := strings.Count(said, "level=ERROR msg=\"out of file descriptors"); n != 1 || strings.Count(said, "too many open files") != 1 ||
		!strings.Contains(said, "ulimit -n; LimitNOFILE=") || !strings.Contains(said, fmt.Sprint("limit=", limit)) {
		t.Errorf("it says:\n%s", said)
	}
}
