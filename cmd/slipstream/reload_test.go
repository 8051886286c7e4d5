//go:build unix

package main

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// SIGHUP changes what can be changed, and says so; a file that is wrong changes nothing; nobody
// is disconnected.
func TestReload(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 62, Loop: 100})
	dir := t.TempDir()
	notify := filepath.Join(dir, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	file := filepath.Join(dir, "default")
	set := func(lines ...string) { writeFile(t, file, strings.Join(lines, "\n")+"\n") }
	set("SLIPSTREAM_MAX_SUBSCRIBERS=1", "SLIPSTREAM_MAX_SUB_RATE=5000", "SLIPSTREAM_DATA_DIR=/nowhere")
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	p := startProcess(t, []string{"NOTIFY_SOCKET=" + notify}, "serve", "--env-file", file, "--upstream-url", upstream, "--data-dir", filepath.Join(dir, "data"),
		"--listen-addr", addr, "--metrics-listen-addr", metrics, "--liveness-ttl", "1h")
	waitHealthy(t, addr)
	testproc.WaitFor(t, "the relay's connection", func() bool { return strings.Contains(p.Output.String(), "connected to the relay") })

	told := func() string {
		t.Helper()
		b := make([]byte, 2048)
		systemd.SetReadDeadline(time.Now().Add(testproc.Patience))
		n, err := systemd.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := told(); got != "READY=1" {
		t.Errorf("systemd is told %q", got)
	}
	// reload returns what the log has said meanwhile, of so many lines.
	reload := func(n int) (lines, status string) {
		t.Helper()
		before := len(p.Output.String())
		p.Signal(t, syscall.SIGHUP)
		if got := told(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("systemd is told %q", got)
		}
		got := told()
		ready, status, _ := strings.Cut(got, "\n")
		if ready != "READY=1" {
			t.Errorf("systemd is told %q", got)
		}
		testproc.WaitFor(t, "its lines", func() bool { return strings.Count(p.Output.String()[before:], "\n") >= n })
		return p.Output.String()[before:], status
	}
	check := func(lines string, want ...string) {
		t.Helper()
		if n := strings.Count(lines, "\n"); n != len(want) {
			t.Errorf("%d lines, want %d:\n%s", n, len(want), lines)
		}
		for _, w := range want {
			if !strings.Contains(lines, w) {
				t.Errorf("it does not say %s:\n%s", w, lines)
			}
		}
	}
	come := func() (*websocket.Conn, int) {
		ws, resp, err := websocket.DefaultDialer.Dial("ws://"+addr+"/subscribe", nil)
		if err == nil {
			t.Cleanup(func() { ws.Close() })
		} else if resp == nil {
			t.Fatal(err)
		}
		return ws, resp.StatusCode
	}
	if !strings.Contains(p.Output.String(), "settings in the file have no effect") || !strings.Contains(p.Output.String(), "settings=SLIPSTREAM_DATA_DIR") {
		t.Errorf("it does not say which setting has no effect:\n%s", p.Output)
	}
	first, _ := come()
	if _, status := come(); status != http.StatusServiceUnavailable {
		t.Fatalf("a second consumer, where one is allowed: %d", status)
	}

	set("SLIPSTREAM_MAX_SUBSCRIBERS=2", "SLIPSTREAM_LOG_LEVEL=warn", "SLIPSTREAM_EVENT_TTL=90m", "SLIPSTREAM_WINDOW_BYTES=2097152", "SLIPSTREAM_LINGER=30ms")
	lines, status := reload(2)
	check(lines, `level=INFO msg=reloaded file=`+file+` changed="event-ttl from 24h0m0s to 1h30m0s; max-sub-rate from 5000 to 0; max-subscribers from 1 to 2; log-level from info to warn"`,
		`level=WARN msg="what else has changed takes a restart" settings="linger, window-bytes"`)
	if status != "STATUS=" {
		t.Errorf("the status is %q", status)
	}
	second, code := come()
	if code != http.StatusSwitchingProtocols {
		t.Fatalf("a second consumer, where two are allowed: %d", code)
	}
	if got := scrape(t, metrics)["slipstream_retention_seconds"]; got != 5400 {
		t.Errorf("the retention is %v seconds", got)
	}

	// All or nothing.
	for text, want := range map[string]string{
		"SLIPSTREAM_MAX_SUBSCRIBERS=9\nSLIPSTREAM_LOG_LEVEL=loud": "--log-level",
		"SLIPSTREAM_MAX_SUBSCRIBERS=9\nSLIPSTREAM_LOG_LVL=info":   "line 2",
		"SLIPSTREAM_MAX_SUBSCRIBERS=9\nSLIPSTREAM_EVENT_TTL=day":  "line 2",
		"SLIPSTREAM_MAX_SUBSCRIBERS=9\nSLIPSTREAM_MAX_DISK=1MB":   "--max-disk",
	} {
		set(text)
		lines, status := reload(1)
		check(lines, `level=ERROR msg="reload refused, nothing has changed" file=`+file+` error=`)
		if !strings.Contains(lines, want) || !strings.Contains(status, "STATUS=reload refused") || !strings.Contains(status, want) {
			t.Errorf("%q: it does not name %s:\n%s%s", text, want, lines, status)
		}
	}
	if _, status := come(); status != http.StatusServiceUnavailable {
		t.Errorf("a third consumer after a reload that was refused: %d", status)
	}

	// A lower limit lets nobody in, and those who are there alone; the line comes though the log
	// was quiet.
	set("SLIPSTREAM_MAX_SUBSCRIBERS=1")
	lines, _ = reload(1)
	check(lines, `log-level from warn to info"`)
	if !strings.Contains(lines, "max-subscribers from 2 to 1") {
		t.Errorf("it says\n%s", lines)
	}
	if _, status := come(); status != http.StatusServiceUnavailable {
		t.Errorf("a third consumer: %d", status)
	}
	lines, _ = reload(1)
	check(lines, "changed=nothing")
	for i, ws := range []*websocket.Conn{first, second} {
		r := newReader(t, ws)
		pong := make(chan struct{})
		ws.SetPongHandler(func(string) error { close(pong); return fmt.Errorf("enough") })
		if err := ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(testproc.Patience)); err != nil {
			t.Errorf("consumer %d: %v", i, err)
		}
		for {
			if _, err := r.next(testproc.Patience); err != nil {
				break
			}
		}
		select {
		case <-pong:
		default:
			t.Errorf("consumer %d is gone", i)
		}
	}
	p.End(t)
}

// Without a file, SIGHUP is what it is for every program.
func TestHangup(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 63, Loop: 100})
	p := serveProcess(t, upstream, t.TempDir(), testproc.FreeAddr(t), testproc.FreeAddr(t))
	p.Signal(t, syscall.SIGHUP)
	if err := p.Wait(t); err == nil || p.Cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGHUP {
		t.Errorf("it ended with %v", err)
	}
}
