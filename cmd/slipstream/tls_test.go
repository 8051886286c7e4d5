package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// writePair writes a certificate for loopback with a serial number, and its key.
func writePair(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"relay.example"},
		IPAddresses: []net.IP{{127, 0, 0, 1}}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// With a certificate consumers of both wires come by TLS, and so does everything else, in
// HTTP/2 where the client has it. The relay's side and the metrics are as before.
func TestServeTLS(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 51, Loop: 200, Total: 500})
	dir := t.TempDir()
	cfg := testConfig(t, upstream)
	cfg.TLSCert, cfg.TLSKey = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, cfg.TLSCert, cfg.TLSKey, 1)
	encryption := &tls.Config{RootCAs: x509.NewCertPool()}
	chain, err := os.ReadFile(cfg.TLSCert)
	if err != nil || !encryption.RootCAs.AppendCertsFromPEM(chain) {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: encryption.Clone(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	d := startDaemonUntil(t, cfg, func() bool {
		resp, err := client.Get("https://" + cfg.ListenAddr + "/xrpc/_health")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK && resp.ProtoMajor == 2
	})
	dialer := websocket.Dialer{TLSClientConfig: encryption}
	for _, path := range []string{"/subscribe?cursor=1", "/subscribe?cursor=1&compress=true", v2Path + "?cursor=0"} {
		ws, _, err := dialer.Dial("wss://"+d.addr+path, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		defer ws.Close()
		for i := range 500 {
			ws.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, _, err := ws.ReadMessage(); err != nil {
				t.Fatalf("%s: message %d: %v", path, i, err)
			}
		}
	}
	// Who offers HTTP/2 gets it, be it a browser's stream; who does not, as no websocket does,
	// gets HTTP/1.1.
	for offer, want := range map[string]string{"h2 http/1.1": "h2", "http/1.1": "http/1.1", "": ""} {
		hello := encryption.Clone()
		hello.NextProtos = strings.Fields(offer)
		c, err := tls.Dial("tcp", d.addr, hello)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("to who offers %q it speaks %q", offer, got)
		}
		c.Close()
	}
	stream, err := client.Get("https://" + cfg.ListenAddr + "/subscribe?cursor=1")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	for i := range 500 {
		if !lines.Scan() || !strings.Contains(lines.Text(), "time_us") {
			t.Fatalf("%s: line %d: %q %v", stream.Proto, i, lines.Text(), lines.Err())
		}
	}
	if stream.ProtoMajor != 2 {
		t.Errorf("a stream came by %s", stream.Proto)
	}
	resp, err := http.Get("http://" + d.addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP gets %s", resp.Status)
	}
	if resp, err := http.Get("http://" + d.metrics + "/healthz"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("/healthz: %v", err)
	}
}

// A renewed pair is taken when it is whole; until then, and if it never is, the old one goes on.
func TestCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	var log strings.Builder
	f := &certificateFiles{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), log: slog.New(slog.NewTextHandler(&log, nil))}
	if _, err := f.certificate(nil); err == nil || !strings.Contains(err.Error(), f.cert) {
		t.Errorf("without files: %v", err)
	}
	serial := func() int64 {
		t.Helper()
		c, err := f.certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.Int64()
	}
	at := time.Now().Add(-time.Hour)
	age := func(file string) { // the file system's clock may be coarse
		at = at.Add(time.Second)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	writePair(t, f.cert, f.key, 1)
	age(f.cert)
	age(f.key)
	if n := serial(); n != 1 {
		t.Errorf("serial %d", n)
	}
	// The new certificate is there, its key is not yet.
	next := filepath.Join(dir, "next.pem")
	writePair(t, f.cert, next, 2)
	age(f.cert)
	if n := serial(); n != 1 || !strings.Contains(log.String(), "the old one goes on") {
		t.Errorf("half a pair: serial %d, the log says %q", n, log.String())
	}
	if err := os.Rename(next, f.key); err != nil {
		t.Fatal(err)
	}
	age(f.key)
	if n := serial(); n != 2 {
		t.Errorf("the new pair: serial %d", n)
	}
	if err := os.Remove(f.cert); err != nil {
		t.Fatal(err)
	}
	if n := serial(); n != 2 {
		t.Errorf("without files: serial %d", n)
	}
	// They are not looked at each time.
	f.every = time.Hour
	writePair(t, f.cert, f.key, 3)
	if n := serial(); n != 2 {
		t.Errorf("looked at again: serial %d", n)
	}
}

func TestTLSDomains(t *testing.T) {
	for name, valid := range map[string]bool{
		"relay.example.org": true, "xn--bcher-kva.example": true, "localhost": false, "relay.example.org.": false, "Relay.example": false,
		"127.0.0.1": false, "relay example": false, "https://relay.example": false, "*.example.org": false, "": false,
	} {
		if validDomain(name) != valid {
			t.Errorf("%q: valid is %v", name, !valid)
		}
	}
	// Who asks for another name, or for none, gets nothing, and the log stays silent.
	var log strings.Builder
	c, err := newTLS(Config{TLSDomains: []string{"relay.example"}, DataDir: t.TempDir(), ACMEDirectory: "https://127.0.0.1:1/"},
		slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "elsewhere.example"} {
		if _, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); err == nil {
			t.Errorf("there is a certificate for %q", name)
		}
	}
	if log.Len() > 0 {
		t.Errorf("the log says %s", log.String())
	}
	for range 3 {
		if _, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: "relay.example", SupportedCurves: []tls.CurveID{tls.CurveP256}}); err == nil {
			t.Error("there is a certificate out of nothing")
		}
	}
	if n := strings.Count(log.String(), "cannot get a certificate"); n != 1 {
		t.Errorf("it is said %d times: %s", n, log.String())
	}
}
