package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// bench holds the processes that scenarios measure.
type bench struct {
	// Immutable after newBench.
	bin     string        // where slipstream and simrelay are
	port    int           // of the relay; the daemon has the next two
	seconds time.Duration // measured time of a scenario
	settle  time.Duration
	smoke   bool
	only    *regexp.Regexp // which scenarios
	flags   []string       // of the daemon, besides those that it needs

	dir    string
	relay  *child
	rate   float64 // events per second that relay was started with; negative: of its own kind
	daemon *child
	wrong  []string           // what no timing excuses
	cost   map[string]float64 // of a delivery in µs, by scenario
}

// newBench starts nothing yet. It must be called by the main goroutine.
func newBench(cfg benchConfig) (*bench, error) {
	only, err := regexp.Compile(cfg.only)
	if err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	// The kernel kills children with the thread that started them. The main goroutine's
	// lasts until the end.
	runtime.LockOSThread()
	b := &bench{bin: cfg.bin, port: cfg.port, seconds: time.Duration(cfg.seconds) * time.Second, only: only,
		settle: 3 * time.Second, smoke: cfg.smoke, flags: cfg.flags, cost: map[string]float64{}}
	if b.smoke {
		b.settle = 200 * time.Millisecond
	}
	if cfg.seconds <= 0 {
		b.seconds = 20 * time.Second
		if b.smoke {
			b.seconds = 500 * time.Millisecond
		}
	}
	b.dir, err = os.MkdirTemp("", "loadgen-")
	return b, err
}

// fail notes what no timing excuses.
func (b *bench) fail(scenario, format string, args ...any) {
	what := scenario + ": " + fmt.Sprintf(format, args...)
	fmt.Fprintln(os.Stderr, "loadgen: wrong:", what)
	b.wrong = append(b.wrong, what)
}

// verdict prints what was noted.
func (b *bench) verdict(w io.Writer) error {
	if len(b.wrong) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nWrong:")
	for _, what := range b.wrong {
		fmt.Fprintln(w, "-", what)
	}
	return errors.New("something was wrong")
}

// child is a process that was started.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why; set before done is closed
}

// start starts one of the programs that are measured.
func (b *bench) start(name string, args ...string) (*child, error) {
	cmd := exec.Command(filepath.Join(b.bin, name), args...)
	if name != "simrelay" { // it tells of every connection
		cmd.Stderr = os.Stderr
	}
	return launch(cmd)
}

// launch starts a program. Should loadgen be killed, the kernel kills the child, as long as
// the thread that started it is the one that lives longest: see newBench.
func launch(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	// A process group of its own: an interrupt at the terminal is for loadgen to pass on.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop sends a signal and waits for the end. What takes too long is killed.
func (c *child) stop(signal syscall.Signal) {
	if c == nil {
		return
	}
	c.cmd.Process.Signal(signal)
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		c.cmd.Process.Kill()
		<-c.done
	}
}

func (b *bench) relayURL() string   { return fmt.Sprintf("ws://127.0.0.1:%d", b.port) }
func (b *bench) metricsURL() string { return fmt.Sprintf("http://127.0.0.1:%d/metrics", b.port+2) }

// eventsPerFrame is what the simulated relay's frames hold in the mean.
const eventsPerFrame = 1.068

// relayAt has the relay send so many events per second. One that does already is kept.
func (b *bench) relayAt(ctx context.Context, rate float64) error {
	if b.relay != nil && b.rate == rate {
		return nil
	}
	if err := b.relayWith(ctx, "--rate", fmt.Sprint(rate/eventsPerFrame)); err != nil {
		return err
	}
	b.rate = rate
	return nil
}

// relayWith starts a relay in place of the one that runs.
func (b *bench) relayWith(ctx context.Context, flags ...string) (err error) {
	b.relay.stop(syscall.SIGTERM)
	b.rate = -1
	loop := []string{"--loop", "4000", "--records", "100"}
	if b.smoke {
		loop = []string{"--loop", "1000", "--records", "20"} // is made sooner
	}
	flags = slices.Concat([]string{"--listen-addr", fmt.Sprintf("127.0.0.1:%d", b.port)}, loop, flags)
	if b.relay, err = b.start("simrelay", flags...); err != nil {
		return err
	}
	return b.answers(ctx, b.relay, fmt.Sprintf("http://127.0.0.1:%d/xrpc/_health", b.port))
}

// freshDaemon starts a daemon with an empty data dir in place of the one that runs, and
// returns when it has events.
func (b *bench) freshDaemon(ctx context.Context, flags ...string) error {
	b.daemon.stop(syscall.SIGTERM)
	b.daemon = nil
	if err := os.RemoveAll(b.dataDir()); err != nil {
		return err
	}
	if err := b.startDaemon(ctx, flags...); err != nil {
		return err
	}
	_, err := b.until(ctx, 20*time.Second, "the daemon has events", func(s sample) bool { return s.events > 0 })
	return err
}

func (b *bench) dataDir() string { return filepath.Join(b.dir, "data") }

// startDaemon starts a daemon with the data dir as it is.
func (b *bench) startDaemon(ctx context.Context, flags ...string) (err error) {
	args := []string{"serve", "--upstream-url", b.relayURL(), "--data-dir", b.dataDir(), "--log-level", "error", "--legacy-dictionary", "off",
		"--listen-addr", fmt.Sprintf("127.0.0.1:%d", b.port+1), "--metrics-listen-addr", fmt.Sprintf("127.0.0.1:%d", b.port+2)}
	if b.daemon, err = b.start("slipstream", slices.Concat(args, flags, b.flags)...); err != nil {
		return err
	}
	return b.answers(ctx, b.daemon, fmt.Sprintf("http://127.0.0.1:%d/healthz", b.port+2))
}

// close ends the processes and removes their files.
func (b *bench) close() {
	b.daemon.stop(syscall.SIGTERM)
	b.relay.stop(syscall.SIGTERM)
	os.RemoveAll(b.dir)
}

// answers waits until a child's URL does.
func (b *bench) answers(ctx context.Context, c *child, url string) error {
	late := time.After(30 * time.Second)
	for {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.done:
			return fmt.Errorf("%s ended by itself: %v", filepath.Base(c.cmd.Path), c.err)
		case <-late:
			return fmt.Errorf("no answer from %s: %w", url, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// look takes a sample of the daemon.
func (b *bench) look(ctx context.Context) (sample, error) {
	return look(ctx, b.daemon.pid(), b.metricsURL())
}

// until looks at the daemon until it is as it should be.
func (b *bench) until(ctx context.Context, within time.Duration, what string, is func(sample) bool) (sample, error) {
	for late := time.Now().Add(within); ; {
		s, err := b.look(ctx)
		if err != nil {
			return s, err
		}
		if is(s) {
			return s, nil
		}
		if time.Now().After(late) {
			return s, fmt.Errorf("%s: not within %s", what, within)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return s, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
