//go:build compat

// Package acme has the daemon fetch its certificate from a certificate authority that somebody
// else wrote: Let's Encrypt's own test server, pebble, on loopback.
package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slipstream/pkg/testproc"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// pebble is the version of the authority.
const pebble = "v2.10.3"

const domain = "relay.slipstream.example"

func freePort(t *testing.T) int {
	t.Helper()
	port, err := strconv.Atoi(testproc.Port(testproc.FreeAddr(t)))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// start runs a program until the test ends.
func start(t *testing.T, env []string, program string, args ...string) *testproc.Process {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	return testproc.Start(t, cmd)
}

// install builds a program of pebble's.
func install(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "install", "github.com/letsencrypt/pebble/v2/cmd/"+name+"@"+pebble)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("skipped: %s %s cannot be installed: %v\n%s", name, pebble, err, out)
	}
	return filepath.Join(dir, name)
}

// authority writes a key pair for localhost and returns a pool that trusts it.
func authority(t *testing.T, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for file, b := range map[string][]byte{certFile: chain, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(chain)
	return pool
}

// fetch gets a URL as soon as it answers.
func fetch(t *testing.T, client *http.Client, url string) []byte {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := client.Get(url)
		if err == nil {
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s, %v", url, resp.Status, err)
			}
			return body
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// asLetsEncrypt puts in front of pebble what adds what the real authority has and autocert
// counts on: the order's URL in the answer to its finalization. It returns its own URL.
func asLetsEncrypt(t *testing.T, acmePort int, trusting http.RoundTripper, certFile, keyFile string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf("https://localhost:%d", l.Addr().(*net.TCPAddr).Port)
	proxy := &httputil.ReverseProxy{
		Transport: trusting,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: fmt.Sprintf("localhost:%d", acmePort)})
			r.Out.Host = r.In.Host // pebble's URLs are made of it
		},
		ModifyResponse: func(resp *http.Response) error {
			if id, ok := strings.CutPrefix(resp.Request.URL.Path, "/finalize-order/"); ok {
				resp.Header.Set("Location", own+"/my-order/"+id)
			}
			return nil
		},
	}
	server := &http.Server{Handler: proxy}
	done := make(chan struct{})
	go func() { defer close(done); server.ServeTLS(l, certFile, keyFile) }()
	t.Cleanup(func() { server.Close(); <-done })
	return own
}

// The daemon gets a certificate for its name when the first consumer asks for it by that name,
// keeps it in the data dir, and has it at once after a restart.
func TestDomain(t *testing.T) {
	dir := t.TempDir()
	slipstream := testproc.Build(t, "slipstream", "")
	ca, dns := install(t, "pebble"), install(t, "pebble-challtestsrv")
	acmePort, managePort, dnsPort, port := freePort(t), freePort(t), freePort(t), freePort(t)
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	trusting := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority(t, certFile, keyFile)}}
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", acmePort), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", managePort),
		"certificate": certFile, "privateKey": keyFile, "httpPort": freePort(t), "tlsPort": port, "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "the only one", "validityPeriod": 7776000}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	configFile := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(configFile, config, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, nil, dns, "-dnsserver", fmt.Sprintf("127.0.0.1:%d", dnsPort), "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
		"-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-management", fmt.Sprintf("127.0.0.1:%d", freePort(t)))
	// It looks in vain for a while otherwise, and refuses some of what is right, to teach clients.
	start(t, []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"}, ca, "-config", configFile, "-dnsserver", fmt.Sprintf("127.0.0.1:%d", dnsPort))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(fetch(t, &http.Client{Transport: trusting}, fmt.Sprintf("https://localhost:%d/roots/0", managePort))) {
		t.Fatal("pebble has no root certificate")
	}

	data := filepath.Join(dir, "data")
	serve := func(directory string) *testproc.Process {
		return start(t, []string{"SSL_CERT_FILE=" + certFile}, slipstream, "serve", "--tls-domain", domain, "--acme-directory", directory,
			"--listen-addr", fmt.Sprintf("127.0.0.1:%d", port), "--metrics-listen-addr", "127.0.0.1:0", "--data-dir", data,
			"--upstream-url", "ws://127.0.0.1:1", "--legacy-dictionary", "off", "--log-level", "warn")
	}
	dialer := websocket.Dialer{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: domain}, HandshakeTimeout: 20 * time.Second,
		NetDial: func(network, _ string) (net.Conn, error) { return net.Dial(network, fmt.Sprintf("127.0.0.1:%d", port)) },
	}
	connect := func() {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			ws, _, err := dialer.Dial("wss://"+domain+"/subscribe", nil)
			if err == nil {
				ws.Close()
				return
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	first := serve(asLetsEncrypt(t, acmePort, trusting, certFile, keyFile) + "/dir")
	connect()
	kept, err := filepath.Glob(filepath.Join(data, "certificates", domain+"*"))
	if err != nil || len(kept) == 0 {
		t.Fatalf("nothing is kept: %v", err)
	}
	if info, err := os.Stat(kept[0]); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others can read %s", strings.TrimPrefix(kept[0], data))
	}
	first.End(t)
	serve("https://127.0.0.1:1/") // where nobody is
	connect()
}
