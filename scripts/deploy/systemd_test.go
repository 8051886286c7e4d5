package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// maxExposure is what systemd-analyze security may say of the unit, times ten; 0 is best, 10 is
// without any protection. What is left is the network, which the daemon is for.
const maxExposure = 15

func TestUnitAnalyzed(t *testing.T) {
	need(t, "systemd-analyze")
	unit := write(t, filepath.Join(t.TempDir(), "slipstream.service"), replaced(t, "slipstream.service", "/usr/local/bin/slipstream", binary(t)))
	if out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+strconv.Itoa(maxExposure), unit).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
}

// systemdScript makes systemd the first process of new namespaces, with only the units of a
// directory, and its own /run, /var/lib, /usr/local/bin and /etc/default. Its cgroups are below
// one of its own.
const systemdScript = `
set -e
for c in /sys/fs/cgroup /sys/fs/cgroup/*; do
	[ -w $c/cgroup.procs ] && mkdir -p $c/$GROUP && echo $$ >$c/$GROUP/cgroup.procs
done 2>/dev/null || true
exec unshare --fork --pid --mount --cgroup --uts --ipc --kill-child --mount-proc sh -c '
set -e
mount --make-rprivate /
for d in /run /var/lib /usr/local/bin /etc/default; do mount -t tmpfs -o mode=755 tmpfs $d; done
cp "$BINARY" /usr/local/bin/slipstream
chmod 755 /usr/local/bin/slipstream
cp "$DIR/default" /etc/default/slipstream
export container=unshare SYSTEMD_UNIT_PATH="$DIR/units"
exec /lib/systemd/systemd --system --log-target=console --log-level=notice --unit=default.target'
`

// manager is a running systemd.
type manager struct {
	t   *testing.T
	pid string // of its first process, here
}

// startSystemd runs a systemd of the test's own, with the unit as it is, a drop-in for it, and
// settings for the daemon.
func startSystemd(t *testing.T, dropIn, settings string) *manager {
	t.Helper()
	needRoot(t, "to run systemd in namespaces of its own")
	need(t, "systemctl", "unshare", "nsenter")
	dir := t.TempDir()
	units := filepath.Join(dir, "units")
	if err := os.MkdirAll(filepath.Join(units, "slipstream.service.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(units, "slipstream.service"), replaced(t, "slipstream.service"))
	write(t, filepath.Join(units, "slipstream.service.d", "test.conf"), dropIn)
	write(t, filepath.Join(units, "default.target"), "[Unit]\nDescription=The test's\nWants=slipstream.service\n")
	for _, target := range []string{"sysinit", "basic", "network-online", "shutdown"} { // which every service knows
		write(t, filepath.Join(units, target+".target"), "[Unit]\nDefaultDependencies=no\n")
	}
	write(t, filepath.Join(dir, "default"), settings)
	group := fmt.Sprintf("slipstream-deploy-%d", os.Getpid())
	cmd := exec.Command("sh", "-c", systemdScript)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "DIR="+dir, "BINARY="+binary(t), "GROUP="+group)
	t.Cleanup(func() { removeCgroups(group) })
	p := testproc.Start(t, cmd)
	m := &manager{t: t}
	for deadline := time.Now().Add(testproc.Patience); ; time.Sleep(50 * time.Millisecond) {
		select {
		case <-p.Done:
			t.Skipf("systemd cannot run here: %v\n%s", p.Err, p.Output)
		default:
		}
		out, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if m.pid = strings.TrimSpace(string(out)); m.pid != "" && m.do("is-active", "default.target") == "active" {
			return m
		}
		if time.Now().After(deadline) {
			t.Skipf("systemd does not come up here:\n%s", p.Output)
		}
	}
}

func removeCgroups(name string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		for range 50 { // its processes take a moment to be gone
			exec.Command("find", root, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run()
			if _, err := os.Stat(root); err != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// in makes a command that runs where systemd does.
func (m *manager) in(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", m.pid, "-m", "-p", "--"}, args...)...)
}

// do runs systemctl and returns what it prints.
func (m *manager) do(args ...string) string {
	out, _ := m.in(append([]string{"systemctl"}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

func (m *manager) property(name string) string {
	return m.do("show", "slipstream.service", "--value", "-p", name)
}

// mainPID returns the daemon's process id, as it is here.
func (m *manager) mainPID() int {
	m.t.Helper()
	inside := m.property("MainPID")
	statuses, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range statuses {
		b, _ := os.ReadFile(path)
		if f := nsPID.FindSubmatch(b); f != nil && string(f[2]) == inside && bytes.HasPrefix(b, []byte("Name:\tslipstream\n")) {
			pid, _ := strconv.Atoi(string(f[1]))
			return pid
		}
	}
	m.t.Fatalf("no process %s", inside)
	return 0
}

var nsPID = regexp.MustCompile(`(?m)^NSpid:\t(\d+)\t(\d+)$`)

// TestUnitRuns: systemd runs the unit. The daemon serves, behind all that is denied to it, says
// so, is started again when it is killed and when it hangs, and an upgrade costs consumers
// nothing.
func TestUnitRuns(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 7, Loop: 1000, Rate: 300, WallClock: true})
	addr, metrics := privilegedAddr(t), testproc.FreeAddr(t)
	m := startSystemd(t, "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nStandardOutput=append:/run/log\nStandardError=append:/run/log\n", readmeSettings(t)+fmt.Sprintf(
		"SLIPSTREAM_UPSTREAM_URL=%s\nSLIPSTREAM_UPSTREAM_CURSOR=0\nSLIPSTREAM_LISTEN_ADDR=%s\nSLIPSTREAM_METRICS_LISTEN_ADDR=%s\nSLIPSTREAM_LEGACY_DICTIONARY=off\n",
		upstream, addr, metrics))
	defer func() {
		if t.Failed() {
			out, _ := m.in("cat", "/run/log").CombinedOutput()
			t.Logf("%s\nthe daemon said:\n%s", m.do("status", "slipstream.service"), out)
		}
	}()
	active := func(restarts string) {
		t.Helper()
		testproc.WaitFor(t, "the unit is active", func() bool {
			return m.property("ActiveState") == "active" && m.property("NRestarts") == restarts && testproc.Answers("http://"+addr+"/xrpc/_health")
		})
	}
	active("0")

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.mainPID()))
	if err != nil {
		t.Fatal(err)
	}
	const bind = "0000000000000400" // CAP_NET_BIND_SERVICE
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t" + bind, "CapBnd:\t" + bind, "CapAmb:\t" + bind} {
		if !bytes.Contains(status, []byte(want+"\n")) {
			t.Errorf("/proc/PID/status lacks %q", want)
		}
	}
	if bytes.Contains(status, []byte("Uid:\t0")) {
		t.Error("the daemon runs as root")
	}
	var limit syscall.Rlimit // that even root has, in some containers
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	log, _ := m.in("cat", "/run/log").Output()
	if want := fmt.Sprintf("descriptors=%d", min(limit.Max, 65536)); !bytes.Contains(log, []byte(want)) && !bytes.Contains(log, []byte("descriptors=65536")) {
		t.Errorf("the log does not say %s:\n%s", want, log)
	}
	// The root of the machine looks into the buffer of a daemon that runs.
	if out, err := m.in("/usr/local/bin/slipstream", "verify", "--data-dir", "/var/lib/slipstream", "--metrics-listen-addr", metrics).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("no violation")) {
		t.Errorf("verify: %v: %s", err, out)
	}

	c := &consumer{t: t, url: "ws://" + addr + "/subscribe?"}
	c.read(500)

	// A reload changes a limit under those who are there, and says what it did; a file that is
	// wrong changes nothing, which systemctl status shows.
	settings := func(text string) {
		t.Helper()
		cmd := m.in("sh", "-c", "cat >/etc/default/slipstream")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	reload := func(status string) {
		t.Helper()
		if out := m.do("reload", "slipstream.service"); out != "" {
			t.Errorf("systemctl reload: %s", out)
		}
		testproc.WaitFor(t, "the unit is active, with "+status, func() bool {
			return m.property("ActiveState") == "active" && m.property("SubState") == "running" && strings.Contains(m.property("StatusText"), status)
		})
	}
	pid := m.mainPID()
	given, _ := m.in("cat", "/etc/default/slipstream").Output()
	settings(string(given) + "SLIPSTREAM_MAX_SUBSCRIBERS=a few\n")
	reload("SLIPSTREAM_MAX_SUBSCRIBERS in line")
	settings(string(given) + "SLIPSTREAM_MAX_SUBSCRIBERS=1\n")
	reload("")
	testproc.WaitFor(t, "the reload", func() bool {
		log, _ := m.in("cat", "/run/log").Output()
		return regexp.MustCompile(`changed="max-subscribers from \d+ to 1"`).Match(log)
	})
	if _, resp, err := websocket.DefaultDialer.Dial(c.url, nil); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a second consumer where one is allowed: %v", err)
	}
	if m.mainPID() != pid {
		t.Error("a reload is a restart")
	}
	for range 100 {
		if err := c.one(false); err != nil {
			t.Fatalf("the consumer that was there: %v", err)
		}
	}
	settings(string(given))
	reload("")

	// An upgrade, as the README has it.
	if out, err := m.in("sh", "-c", "cp /usr/local/bin/slipstream /run/new && install /run/new /usr/local/bin/slipstream").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	restarted := make(chan string, 1)
	go func() { restarted <- m.do("restart", "slipstream.service") }()
	closed := c.readUntilClosed()
	if closed.Code != websocket.CloseGoingAway {
		t.Errorf("at the restart a consumer gets %v", closed)
	}
	c.read(500)
	if out := <-restarted; out != "" {
		t.Errorf("systemctl restart: %s", out)
	}
	t.Logf("restart: %s without an event", c.silence.Round(time.Millisecond))
	active("0")

	// A crash.
	syscall.Kill(m.mainPID(), syscall.SIGKILL)
	c.silence = 0
	c.readUntilClosed()
	c.read(500)
	t.Logf("kill -9: %s without an event", c.silence.Round(time.Millisecond))
	active("1")

	// A hang: the watchdog sees it.
	syscall.Kill(m.mainPID(), syscall.SIGSTOP)
	c.silence = 0
	c.readUntilClosed()
	c.read(500)
	t.Logf("hang: %s without an event, with a watchdog of 2 s", c.silence.Round(time.Millisecond))
	active("2")

	// What systemd has seen is an orderly end.
	if out := m.do("stop", "slipstream.service"); out != "" || m.property("Result") != "success" {
		t.Errorf("systemctl stop: %s; the result is %s", out, m.property("Result"))
	}
}

// readmeSettings are those of the README's VPS, but for the name, for which nobody here gives a
// certificate.
func readmeSettings(t *testing.T) string {
	t.Helper()
	var settings []string
	for _, line := range readmeCode(t, "A $5 VPS in ten minutes") {
		if strings.HasPrefix(line, "SLIPSTREAM_") && !strings.HasPrefix(line, "SLIPSTREAM_TLS_DOMAIN=") {
			settings = append(settings, line)
		}
	}
	if len(settings) == 0 {
		t.Fatal("the README has no settings")
	}
	return strings.Join(settings, "\n") + "\n"
}

// privilegedAddr is one that takes a privilege to listen at, as --tls-domain does.
func privilegedAddr(t *testing.T) string {
	t.Helper()
	for port := 1023; port > 600; port-- {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
	return testproc.FreeAddr(t)
}

// consumer reads a v1 stream over connections that come and go. Against what it received last it
// holds that time_us grows, and that a resumed stream begins with the last event.
type consumer struct {
	t       *testing.T
	url     string
	ws      *websocket.Conn
	last    int64
	at      time.Time     // of the last event
	silence time.Duration // the longest between two
}

func (c *consumer) connect() {
	c.t.Helper()
	var ws *websocket.Conn
	testproc.WaitFor(c.t, "a consumer is let in", func() bool {
		var err error
		ws, _, err = websocket.DefaultDialer.Dial(fmt.Sprintf("%scursor=%d", c.url, c.last), nil)
		return err == nil
	})
	c.t.Cleanup(func() { ws.Close() })
	c.ws = ws
}

func (c *consumer) one(first bool) error {
	c.t.Helper()
	c.ws.SetReadDeadline(time.Now().Add(testproc.Patience))
	_, message, err := c.ws.ReadMessage()
	if err != nil {
		return err
	}
	us := position(message)
	if c.last != 0 && (first && us != c.last || !first && us <= c.last) {
		c.t.Fatalf("%d comes after %d", us, c.last)
	}
	if now := time.Now(); !first {
		if !c.at.IsZero() {
			c.silence = max(c.silence, now.Sub(c.at))
		}
		c.at = now
	}
	c.last = us
	return nil
}

// read reads n events, over a new connection.
func (c *consumer) read(n int) {
	c.t.Helper()
	c.connect()
	for i := range n {
		if err := c.one(i == 0); err != nil {
			c.t.Fatal(err)
		}
	}
}

// readUntilClosed reads on until the server ends the connection.
func (c *consumer) readUntilClosed() *websocket.CloseError {
	c.t.Helper()
	for begin := time.Now(); ; {
		if time.Since(begin) > testproc.Patience {
			c.t.Fatal("the connection does not end")
		}
		if err := c.one(false); err != nil {
			c.ws.Close()
			closed, ok := errors.AsType[*websocket.CloseError](err)
			if !ok {
				return &websocket.CloseError{Code: websocket.CloseAbnormalClosure, Text: err.Error()}
			}
			return closed
		}
	}
}
