// Package testproc runs real programs in tests: the daemon, what it is tested with, and
// simulated relays for it. It is for tests only.
//
// Nothing here measures time; what has to come is waited for, with a patience that a busy
// machine under the race detector does not use up.
package testproc

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
)

// Patience is how long anything may take before a test gives up.
const Patience = 60 * time.Second

// Buffer collects what a program writes, and can be read meanwhile.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Process is a program that runs until it ends, is ended, or the test is over.
type Process struct {
	Cmd    *exec.Cmd
	Output *Buffer       // stdout and stderr
	Done   chan struct{} // closed when it has ended
	Err    error         // its exit error, once Done is closed
}

// Start starts a command, whose stdout and stderr it sets. At the end of the test the process is
// killed if it still runs, and what it said is shown if the test has failed.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Output: &Buffer{}, Done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.Output, p.Output
	cmd.WaitDelay = time.Second // its children may have inherited the pipe
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Err = cmd.Wait()
		close(p.Done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.Done
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), p.Output)
		}
	})
	return p
}

// Signal sends a signal, which a process that has ended fails the test for.
func (p *Process) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		t.Fatalf("%v to %s: %v", s, filepath.Base(p.Cmd.Path), err)
	}
}

// Wait waits for the end and returns the exit error.
func (p *Process) Wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.Done:
		return p.Err
	case <-time.After(Patience):
		t.Fatalf("%s does not end; it said:\n%s", filepath.Base(p.Cmd.Path), p.Output)
		return nil
	}
}

// End asks for an orderly end, as a service manager does. The exit status has to be 0.
func (p *Process) End(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	if err := p.Wait(t); err != nil {
		t.Fatalf("SIGTERM to %s: %v; it said:\n%s", filepath.Base(p.Cmd.Path), err, p.Output)
	}
}

// Kill ends the process without asking.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGKILL)
	p.Wait(t)
}

// WaitFor waits until ok, which is called again and again from the test's goroutine.
func WaitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// FreeAddr returns an address of this machine, host and port, that nobody listened at a moment ago.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Port returns the port of an address as text.
func Port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// Relay runs a simulated relay for the length of the test and returns it with its URL (ws://).
func Relay(t testing.TB, cfg simrelay.Config) (*simrelay.Relay, string) {
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
	return relay, strings.Replace(server.URL, "http://", "ws://", 1)
}

// Build builds a command of this module, such as "slipstream", and returns the path of the program. ldflags
// are the linker's; "": none.
func Build(t testing.TB, command, ldflags string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), command)
	if out, err := exec.Command("go", "build", "-ldflags", ldflags, "-o", binary, "slipstream/cmd/"+command).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// Daemon is the real program, serving.
type Daemon struct {
	*Process
	Addr  string // for consumers, host and port
	Admin string // for metrics
	args  []string
	life  testing.TB // the test that it lasts for
}

// Serve starts binary, a slipstream, on free addresses and on the given relay from its beginning on, without
// the legacy dictionary; flags can say otherwise. It returns when consumers are served.
func Serve(t testing.TB, binary, upstream, dataDir string, flags ...string) *Daemon {
	t.Helper()
	d := &Daemon{Addr: FreeAddr(t), Admin: FreeAddr(t), life: t}
	d.args = append([]string{binary, "serve", "--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", dataDir,
		"--listen-addr", d.Addr, "--metrics-listen-addr", d.Admin, "--legacy-dictionary", "off"}, flags...)
	d.Start(t)
	return d
}

// Start starts a daemon that has ended once more, at the same addresses and with the same data. t may be
// a part of the test that called Serve: the daemon outlasts it.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	d.Process = Start(d.life, exec.Command(d.args[0], d.args[1:]...))
	WaitFor(t, "the daemon to answer", func() bool {
		select {
		case <-d.Done:
			t.Fatalf("the daemon has ended: %v", d.Err)
		default:
		}
		return Answers("http://" + d.Addr + "/xrpc/_health")
	})
}

// Answers reports whether a URL answers with status 200.
func Answers(url string) bool {
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Metrics scrapes the daemon and returns every sample by its name and labels as they are there.
func (d *Daemon) Metrics(t testing.TB) map[string]float64 {
	t.Helper()
	resp, err := http.Get("http://" + d.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	values := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if i := strings.LastIndexByte(lines.Text(), ' '); i > 0 && lines.Text()[0] != '#' {
			v, err := strconv.ParseFloat(lines.Text()[i+1:], 64)
			if err != nil {
				t.Fatal(fmt.Errorf("/metrics: %w", err))
			}
			values[lines.Text()[:i]] = v
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return values
}
