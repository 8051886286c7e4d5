package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// terminal returns both ends of a terminal.
func terminal(t testing.TB) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	t.Cleanup(func() { ours.Close() })
	fd := int(ours.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		theirs, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skipf("a terminal cannot be opened here: %v", err)
	}
	return ours, theirs
}

// Colours are for terminals, and for who wants them.
func TestColours(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 64, Loop: 100})
	for _, c := range []struct {
		format, env string
		want        string
		colours     bool
	}{
		{"text", "NO_COLOR=", "listening", true},
		{"text", "NO_COLOR=1", "level=INFO msg=listening", false},
		{"json", "NO_COLOR=", `"msg":"listening"`, false},
	} {
		ours, theirs := terminal(t)
		cmd := exec.Command(os.Args[0], "serve", "--upstream-url", upstream, "--data-dir", t.TempDir(), "--log-format", c.format,
			"--listen-addr", "127.0.0.1:0", "--metrics-listen-addr", "127.0.0.1:0")
		cmd.Env = append(os.Environ(), "SLIPSTREAM_TEST_MAIN=1", c.env)
		cmd.Stderr = theirs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		said := &testproc.Buffer{}
		go io.Copy(said, ours)
		testproc.WaitFor(t, "its first lines", func() bool { return strings.Contains(said.String(), "connected to the relay") })
		cmd.Process.Kill()
		cmd.Wait()
		if got := strings.Contains(said.String(), "\x1b["); got != c.colours || !strings.Contains(said.String(), c.want) {
			t.Errorf("%s with %s: it says\n%q", c.format, c.env, said)
		}
	}
}
