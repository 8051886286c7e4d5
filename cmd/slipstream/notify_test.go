//go:build unix

package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// systemd is told when the daemon serves, then at least twice in each of the watchdog's
// times that it is alive, and when it is about to end.
func TestServiceManager(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 61, Loop: 100})
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	addr := testproc.FreeAddr(t)
	p := startProcess(t, []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=600000"}, "serve", "--upstream-url", upstream,
		"--data-dir", t.TempDir(), "--listen-addr", addr, "--metrics-listen-addr", testproc.FreeAddr(t), "--log-level", "warn")
	next := func() string {
		t.Helper()
		b := make([]byte, 1024)
		socket.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := socket.Read(b)
		if err != nil {
			t.Fatalf("%v; the process said:\n%s", err, p.Output)
		}
		return string(b[:n])
	}
	var told []string
	for slices.Index(told, "READY=1") < 0 || strings.Count(strings.Join(told, " "), "WATCHDOG=1") < 4 {
		told = append(told, next())
		if told[len(told)-1] == "READY=1" {
			waitHealthy(t, addr)
		}
	}
	p.Signal(t, syscall.SIGTERM)
	for last := ""; last != "STOPPING=1"; {
		last = next()
		told = append(told, last)
	}
	if err := p.Wait(t); err != nil {
		t.Error(err)
	}
	for _, state := range told {
		if state != "READY=1" && state != "WATCHDOG=1" && state != "STOPPING=1" {
			t.Errorf("systemd is told %q", state)
		}
	}
}

// Where /healthz does not answer, systemd is not told that all is well.
func TestWatchdogWithoutAnAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "300000")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	m := serviceManager{log: newLogger(testLog{t}, "text", slog.LevelInfo), health: "http://" + silent.Addr().String() + "/healthz"}
	go func() { done <- m.watch(ctx) }()
	socket.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 64)
	if n, err := socket.Read(b); err == nil {
		t.Errorf("systemd is told %q", b[:n])
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
