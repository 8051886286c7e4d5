package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v3"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// copyOf is where a daemon makes copies of its store.
func copyOf(dataDir string) string { return filepath.Join(dataDir, "slipstream", checkpointName) }

func awaitNoCopy(t testing.TB, dataDir string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(copyOf(dataDir)); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the copy of the store stays")
		}
	}
}

// holdCopy asks a daemon for a copy, as a process does that is then killed: end closes its
// connection. What is left of the answer can be read until the daemon ends it.
func holdCopy(t testing.TB, metrics, dataDir string) (end func(), answer io.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", metrics)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "POST /checkpoint?store=%s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", url.QueryEscape(filepath.Join(dataDir, "slipstream")), metrics)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(resp.Body)
	line, err := body.ReadBytes('\n')
	var made checkpointAnswer
	if err == nil {
		err = json.Unmarshal(line, &made)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("ask for a copy: %s %s: %v", resp.Status, line, err)
	}
	if _, err := os.Stat(made.Dir); err != nil || !filepath.IsAbs(made.Dir) || !sameDir(made.Dir, copyOf(dataDir)) {
		t.Fatalf("the copy is in %s: %v", made.Dir, err)
	}
	return func() { conn.Close() }, body
}

// Beside a daemon that takes events in as fast as it can, inspect and verify see a whole log,
// each time a longer one, and leave nothing behind.
func TestBesideDaemon(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 41, Loop: 500})
	dir, addr, metrics := t.TempDir(), testproc.FreeAddr(t), testproc.FreeAddr(t)
	p := serveProcess(t, upstream, dir, addr, metrics, "--log-level", "warn")
	rounds := 3 // the log grows by 100,000 events a second, and each round takes longer
	if testing.Short() {
		rounds = 1
	}
	flags := []string{"--data-dir", dir, "--metrics-listen-addr", metrics}
	events, newest := int64(0), int64(0)
	for round := range 4 * rounds {
		in := inspectJSON(t, flags...)
		if in.Events < events || int64(in.NewestCursor) < newest || !in.DaemonRunning || in.Store != filepath.Join(dir, "slipstream") {
			t.Fatalf("after %d events up to %d: %+v", events, newest, in)
		}
		events, newest = in.Events, int64(in.NewestCursor)
		if round%4 < 3 {
			continue
		}
		out, err := runCommand(t.Context(), append([]string{"verify"}, flags...)...)
		if err != nil {
			t.Fatalf("verify: %v; the daemon said:\n%s", err, p.Output)
		}
		var verified int64
		if _, err := fmt.Sscanf(out, "verified %d events", &verified); err != nil || verified < events {
			t.Fatalf("%d events, then %q", events, out)
		}
		events = verified
	}
	awaitNoCopy(t, dir)
	if events == 0 {
		t.Error("no event came meanwhile: this tests nothing")
	}
	p.Signal(t, syscall.SIGTERM)
	if err, said := p.Wait(t), p.Output.String(); err != nil || said != "" {
		t.Errorf("SIGTERM: %v; the daemon said:\n%s", err, said)
	}
	if in := inspectJSON(t, "--data-dir", dir); in.Events < events || in.DaemonRunning {
		t.Errorf("after %d events, and without the daemon: %+v", events, in)
	}
}

// A copy does not outlive its request, the daemon, or the next daemon's start; and there is one
// at a time.
func TestCopyEnds(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 42, Loop: 500, Total: 5000})
	dir, addr, metrics := t.TempDir(), testproc.FreeAddr(t), testproc.FreeAddr(t)
	serve := func() *testproc.Process { return serveProcess(t, upstream, dir, addr, metrics) }
	p := serve()
	flags := []string{"--data-dir", dir, "--metrics-listen-addr", metrics}

	end, _ := holdCopy(t, metrics, dir)
	if _, err := runCommand(t.Context(), append([]string{"inspect"}, flags...)...); err == nil || !strings.Contains(err.Error(), "another inspect or verify is at work") {
		t.Errorf("a second copy: %v", err)
	}
	end()
	awaitNoCopy(t, dir)

	// One who reads a copy is told that it is gone, whatever becomes of the files.
	lost := make(chan error, 1)
	reading := make(chan struct{})
	go func() { lost <- readUntilDone(t.Context(), flags, func() { close(reading) }) }()
	select {
	case <-reading:
	case err := <-lost:
		t.Fatalf("a copy was to be read: %v", err)
	}
	begin := time.Now()
	p.End(t)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the daemon took %s to end with a copy in use", took)
	}
	if err := <-lost; !errors.Is(err, errCopyLost) {
		t.Errorf("who read a copy got %v", err)
	}
	if _, err := os.Stat(copyOf(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the daemon's end: %v", err)
	}

	p = serve()
	end, answer := holdCopy(t, metrics, dir)
	p.Cmd.Process.Kill()
	p.Wait(t)
	if _, err := io.Copy(io.Discard, answer); err == nil {
		t.Error("the answer of a daemon that was killed ended in order")
	}
	end()
	if _, err := os.Stat(copyOf(dir)); err != nil {
		t.Errorf("after kill -9 there is no copy: this tests nothing: %v", err)
	}
	// It is no part of the store, nor of what that takes.
	if out, err := runCommand(t.Context(), append([]string{"verify"}, flags...)...); err != nil {
		t.Errorf("verify beside what was left: %q, %v", out, err)
	}
	p = serve()
	if _, err := os.Stat(copyOf(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the daemon's next start: %v", err)
	}
	if strings.Contains(p.Output.String(), "other files") {
		t.Errorf("the daemon takes its own files for others':\n%s", p.Output)
	}
}

// readUntilDone is a command that reads until its copy of the store is lost.
func readUntilDone(ctx context.Context, flags []string, reading func()) error {
	command := &cli.Command{Name: "read", Flags: bufferFlags(), Action: func(ctx context.Context, cmd *cli.Command) error {
		return withBuffer(ctx, cmd, func(ctx context.Context, b *buffer) error {
			reading()
			<-ctx.Done()
			return errInterrupted
		})
	}, ExitErrHandler: func(context.Context, *cli.Command, error) {}}
	return command.Run(ctx, append([]string{"read"}, flags...))
}

// A request for a copy that is not from inspect or verify here, or for another store, is
// refused; and the user is told what to do.
func TestCopyRefused(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 43, Loop: 100, Total: 200})
	a, b := testConfig(t, upstream), testConfig(t, upstream)
	startDaemon(t, a)
	startDaemon(t, b)
	request := func(method, origin, store string) (int, string) {
		r, err := http.NewRequest(method, "http://"+a.MetricsListenAddr+"/checkpoint?store="+url.QueryEscape(store), nil)
		if err != nil {
			t.Fatal(err)
		}
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text := ""
		if resp.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(resp.Body)
			text = string(b)
		}
		return resp.StatusCode, text
	}
	own := filepath.Join(a.DataDir, "slipstream")
	for _, c := range []struct {
		method, origin, store string
		status                int
	}{
		{"GET", "", own, http.StatusMethodNotAllowed},
		{"POST", "http://evil.example", own, http.StatusForbidden},
		{"POST", "null", own, http.StatusForbidden},
		{"POST", "", filepath.Join(b.DataDir, "slipstream"), http.StatusMisdirectedRequest},
		{"POST", "", "", http.StatusMisdirectedRequest},
		{"POST", "", own, http.StatusOK},
	} {
		if status, text := request(c.method, c.origin, c.store); status != c.status {
			t.Errorf("%s from %q for %s: got %d %s, want %d", c.method, c.origin, c.store, status, text, c.status)
		}
		awaitNoCopy(t, a.DataDir)
	}

	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	for _, c := range []struct{ addr, want string }{
		{b.MetricsListenAddr, b.DataDir},
		{testproc.FreeAddr(t), "refused"},
		{strings.TrimPrefix(other.URL, "http://"), "makes no copies"},
		{"nonsense", "use host:port"},
	} {
		_, err := runCommand(t.Context(), "verify", "--data-dir", a.DataDir, "--metrics-listen-addr", c.addr)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "--metrics-listen-addr") || strings.Contains(err.Error(), "\n") {
			t.Errorf("asking %s: got %v, want %q", c.addr, err, c.want)
		}
	}
	// The same directory by another name.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(own, link); err != nil {
		t.Fatal(err)
	}
	if status, text := request("POST", "", link); status != http.StatusOK {
		t.Errorf("through a symlink: %d %s", status, text)
	}
}

func TestFromHere(t *testing.T) {
	for _, c := range []struct {
		remote, local string
		want          bool
	}{
		{"127.0.0.1:5", "127.0.0.1", true},
		{"[::1]:5", "::1", true},
		{"10.0.0.5:5", "10.0.0.5", true},
		{"10.0.0.6:5", "10.0.0.5", false},
		{"172.17.0.1:5", "172.17.0.2", false},
		{"nonsense", "127.0.0.1", false},
	} {
		r := httptest.NewRequest("POST", "/checkpoint", nil)
		r.RemoteAddr = c.remote
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP(c.local)}))
		if got := fromHere(r); got != c.want {
			t.Errorf("from %s to %s: got %t", c.remote, c.local, got)
		}
	}
}

// Many who ask at once for the only copy: one gets it, the others are told, nobody waits.
func TestOneCopy(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 44, Loop: 100, Total: 2000})
	cfg := testConfig(t, upstream)
	d := startDaemon(t, cfg)
	var group sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	release := make(chan struct{})
	var asked sync.WaitGroup
	for range 12 {
		asked.Add(1)
		group.Go(func() {
			resp, err := http.Post("http://"+d.metrics+"/checkpoint?store="+url.QueryEscape(filepath.Join(cfg.DataDir, "slipstream")), "", nil)
			asked.Done()
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			statuses[resp.StatusCode]++
			mu.Unlock()
			<-release
			resp.Body.Close()
		})
	}
	asked.Wait()
	close(release)
	group.Wait()
	if statuses[http.StatusOK] != 1 || statuses[http.StatusConflict] != 11 {
		t.Errorf("got %v", statuses)
	}
	awaitNoCopy(t, cfg.DataDir)
}
