package deploy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
)

// Most of what is here needs root and minutes, so it is asked for.
func TestMain(m *testing.M) {
	if os.Getenv("SLIPSTREAM_DEPLOY") == "" {
		fmt.Println("skipped without SLIPSTREAM_DEPLOY: see make deploy-test")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is how long anything may take before a test gives up.
const patience = 30 * time.Second

// packages are Debian's packages by the commands that they bring.
var packages = map[string]string{
	"caddy": "caddy", "nginx": "nginx-light", "prometheus": "prometheus", "promtool": "prometheus",
	"systemd-analyze": "systemd", "systemctl": "systemd", "unshare": "util-linux", "nsenter": "util-linux",
	"docker-compose": "docker-compose", "ip": "iproute2", "ufw": "ufw", "chroot": "coreutils", "git": "git", "make": "make",
}

var installing sync.Mutex

// need skips a test for which a command is missing and cannot be installed.
func need(t *testing.T, commands ...string) {
	t.Helper()
	installing.Lock()
	defer installing.Unlock()
	for _, c := range commands {
		if _, err := exec.LookPath(c); err == nil {
			continue
		}
		if os.Getuid() != 0 {
			t.Skipf("%s is missing (Debian's package %s), and only root can install it", c, packages[c])
		}
		t.Logf("installing %s", packages[c])
		run := func(args ...string) ([]byte, error) {
			cmd := exec.Command("apt-get", args...)
			cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
			return cmd.CombinedOutput()
		}
		run("update", "-q") // what fails here is missed below
		if out, err := run("install", "-y", "-q", "--no-install-recommends", packages[c]); err != nil {
			t.Skipf("%s is missing, and Debian's package %s cannot be installed: %v\n%s", c, packages[c], err, out)
		}
	}
}

func needRoot(t *testing.T, what string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("root is missing, %s", what)
	}
}

// binary is the real one, which make build has made.
func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/slipstream")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("make build comes first: %v", err)
	}
	return path
}

// replaced returns a file of this directory with some of its text replaced. Each old text must
// be there, once.
func replaced(t *testing.T, file string, oldNew ...string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(oldNew); i += 2 {
		if n := strings.Count(text, oldNew[i]); n != 1 {
			t.Fatalf("%s has %q %d times, the test replaces one", file, oldNew[i], n)
		}
		text = strings.Replace(text, oldNew[i], oldNew[i+1], 1)
	}
	return text
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// startRelay runs a simulated relay for the length of the test and returns its URL.
func startRelay(t *testing.T, cfg simrelay.Config) string {
	t.Helper()
	relay, err := simrelay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	server := httptest.NewServer(relay.Handler())
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return strings.Replace(server.URL, "http://", "ws://", 1)
}

// process is a program that runs for the length of the test, or until its end.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  lockedBuffer
	done chan struct{} // closed when it has ended
	err  error         // of its end
}

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

// start starts a command, which a failing test shows the output of.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), p.out.String())
		}
	})
	return p
}

// end asks for the end, and waits for it.
func (p *process) end() error {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(patience):
		p.t.Fatalf("%s does not end", p.cmd.Path)
		return nil
	}
}

// daemon is the real binary.
type daemon struct {
	*process
	addr, metrics string
}

func startDaemon(t *testing.T, upstream, dir, addr, metrics string, flags ...string) *daemon {
	t.Helper()
	cmd := exec.Command(binary(t), append([]string{"serve", "--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", dir,
		"--listen-addr", addr, "--metrics-listen-addr", metrics, "--legacy-dictionary", "off", "--log-level", "warn"}, flags...)...)
	d := &daemon{start(t, cmd), addr, metrics}
	eventually(t, "the daemon answers", func() bool { return answers("http://" + addr + "/xrpc/_health") })
	return d
}

func answers(url string) bool {
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func get(t *testing.T, client *http.Client, url string) (body []byte, header http.Header) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v: %.300s", url, resp.Status, err, body)
	}
	return body, resp.Header
}

func getJSON(t *testing.T, url string, v any) {
	t.Helper()
	body, _ := get(t, http.DefaultClient, url)
	if err := json.Unmarshal(body, v); err != nil {
		t.Fatalf("%s: %v in %.300s", url, err, body)
	}
}

// metric returns the value of a sample in a scrape, by its name and labels as they are there.
func (d *daemon) metric(sample string) string {
	d.t.Helper()
	body, _ := get(d.t, http.DefaultClient, "http://"+d.metrics+"/metrics")
	for line := range strings.SplitSeq(string(body), "\n") {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			return value
		}
	}
	d.t.Fatalf("no metric %s", sample)
	return ""
}

// certificate writes a certificate for this machine, and its key, and returns who trusts it.
func certificate(t *testing.T, dir string) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return write(t, filepath.Join(dir, "cert.pem"), string(certPEM)),
		write(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))), pool
}
