package deploy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Most of what is here needs root and minutes, so it is asked for.
func TestMain(m *testing.M) {
	if os.Getenv("SLIPSTREAM_DEPLOY") == "" {
		fmt.Println("skipped without SLIPSTREAM_DEPLOY: see make deploy-test")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

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
