//go:build compat

package pds

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program that is ended and started again.
type process struct {
	cmd    *exec.Cmd
	stdin  io.Closer // its end, should the test be killed, is that of the PDS
	output *lockedBuffer
	done   chan struct{} // closed at its end
	err    error         // its exit error, once done is closed
}

// lockedBuffer can be read while the process still writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startProcess(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, output: &lockedBuffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.output, p.output
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// kill ends it if it still runs. It is for the end of the test.
func (p *process) kill() {
	if p != nil {
		p.cmd.Process.Kill()
		<-p.done
	}
}

func (p *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%v: %v; the process said:\n%s", s, err, p.output)
	}
}

// wait waits for the end after a signal; after SIGTERM the exit status has to be 0.
func (p *process) wait(t testing.TB, s syscall.Signal) {
	t.Helper()
	select {
	case <-p.done:
		if p.err != nil && s == syscall.SIGTERM {
			t.Fatalf("%v: %v; the process said:\n%s", s, p.err, p.output)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%v: the process does not end; it said:\n%s", s, p.output)
	}
}

func (p *process) end(t testing.TB, s syscall.Signal) {
	t.Helper()
	p.signal(t, s)
	p.wait(t, s)
}

// eventually waits until f returns "", and fails with what it returned last.
func eventually(t testing.TB, within time.Duration, f func() string) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		problem := f()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", within, problem)
		}
	}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// upstream is a PDS and its directory.
type upstream struct {
	modules, dir string
	plc, addr    string        // host:port
	kept         time.Duration // how long it keeps events; 0: as long as it is used to
	password     string        // of the admin
	*process
}

func (u *upstream) start(t testing.TB) {
	t.Helper()
	args := []string{"pds.js", portOf(u.plc), portOf(u.addr), u.dir}
	if u.kept != 0 {
		args = append(args, strconv.FormatInt(u.kept.Milliseconds(), 10))
	}
	cmd := exec.Command("node", args...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+u.modules)
	u.process = startProcess(t, cmd)
	eventually(t, time.Minute, func() string {
		var ready struct{ PDS, AdminPassword string }
		line, _, _ := strings.Cut(u.output.String(), "\n")
		if err := json.Unmarshal([]byte(line), &ready); err != nil {
			return fmt.Sprintf("the PDS is not ready; it said:\n%s", u.output)
		}
		u.password = ready.AdminPassword
		return ""
	})
}

// daemon is Slipstream with the PDS as its upstream.
type daemon struct {
	binary, upstream, dir string
	addr, admin           string // host:port
	*process
}

// build builds the program.
func build(t testing.TB) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "slipstream")
	if out, err := exec.Command("go", "build", "-o", binary, "slipstream/cmd/slipstream").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// start does not wait until it is ready.
func (d *daemon) start(t testing.TB) {
	t.Helper()
	d.process = startProcess(t, exec.Command(d.binary, "serve", "--upstream-url", d.upstream, "--upstream-cursor", "0",
		"--data-dir", d.dir, "--listen-addr", d.addr, "--metrics-listen-addr", d.admin, "--legacy-dictionary", "off"))
}

func (d *daemon) waitReady(t testing.TB) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		if problem := d.notReady(); problem != "" {
			return fmt.Sprintf("/readyz: %s; the daemon said:\n%s", problem, d.output)
		}
		if d.metrics(t)["slipstream_upstream_connected"] != 1 {
			return fmt.Sprintf("not connected to the PDS; the daemon said:\n%s", d.output)
		}
		return ""
	})
}

// notReady returns what /readyz has to say, or "".
func (d *daemon) notReady() string {
	resp, err := http.Get("http://" + d.admin + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%s: %s", resp.Status, b)
	}
	return ""
}

// metrics returns every metric, the labels in its name.
func (d *daemon) metrics(t testing.TB) map[string]float64 {
	t.Helper()
	resp, err := http.Get("http://" + d.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	values := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			values[name] = v
		}
	}
	return values
}

// withoutLegacy is in a line that --legacy-dictionary off brings with it.
const withoutLegacy = "Bluesky's dictionary"

// alarms returns what the log has above info, but for the lines that contain something
// expected, and the metrics that stand for something lost or refused.
func (d *daemon) alarms(t testing.TB, expected ...string) (all []string) {
	t.Helper()
	expected = append(expected, " level=INFO ", withoutLegacy)
	for line := range strings.Lines(d.output.String()) {
		if !slices.ContainsFunc(expected, func(s string) bool { return strings.Contains(line, s) }) {
			all = append(all, strings.TrimSpace(line))
		}
	}
	metrics := d.metrics(t)
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		base, _, _ := strings.Cut(name, "{")
		switch base {
		case "slipstream_upstream_gaps_total", "slipstream_upstream_resets_total", "slipstream_upstream_error_frames_total",
			"slipstream_upstream_notices_total", "slipstream_upstream_messages_dropped_total",
			"slipstream_ops_dropped_total", "slipstream_frames_dropped_total":
			if v := metrics[name]; v != 0 {
				all = append(all, fmt.Sprintf("%s %v", name, v))
			}
		}
	}
	return all
}
