package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// serveArgs is a start that says nothing but errors.
func serveArgs(upstream, dir string) []string {
	return []string{"serve", "--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", dir,
		"--listen-addr", "127.0.0.1:0", "--metrics-listen-addr", "127.0.0.1:0", "--log-level", "error"}
}

// A store that this program cannot use is refused in one sentence, and left as it is.
func TestRefusedStore(t *testing.T) {
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 84, Loop: 100, Total: 500})
	good := t.TempDir()
	addr := testproc.FreeAddr(t)
	d := serveProcess(t, upstream, good, addr, testproc.FreeAddr(t))
	receiveExactly(t, addr, expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+499))
	d.End(t)
	only := func(t *testing.T, dir, pattern string) string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) == 0 {
			t.Fatal(pattern, names, err)
		}
		return names[len(names)-1]
	}
	flip := func(t *testing.T, name string, at int) {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[(at+len(b))%len(b)] ^= 8
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir string) // the store's, a copy of a good one
		want  string
	}{
		{"a file in its place", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "not a directory"},
		{"another program's", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			db, err := pebble.Open(dir, &pebble.Options{Logger: noPebbleLog{}})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Set([]byte("key"), []byte("value"), pebble.Sync); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}, "holds the store of another program"},
		{"a newer version's", func(t *testing.T, dir string) {
			name := only(t, dir, "marker.format-version.*")
			if err := os.Rename(name, filepath.Join(dir, "marker.format-version.000099.999")); err != nil {
				t.Fatal(err)
			}
		}, "was written by a newer version"},
		{"without its marker", func(t *testing.T, dir string) {
			if err := os.Remove(only(t, dir, "marker.manifest.*")); err != nil {
				t.Fatal(err)
			}
		}, "the store is damaged: marker.manifest.* in "},
		{"without its manifest", func(t *testing.T, dir string) {
			if err := os.Remove(only(t, dir, "MANIFEST-*")); err != nil {
				t.Fatal(err)
			}
		}, "the store is damaged: MANIFEST-"},
		{"damaged WAL", func(t *testing.T, dir string) { flip(t, only(t, dir, "*.log"), 100) }, ".log in "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dataDir := t.TempDir()
			dir := filepath.Join(dataDir, "slipstream")
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(good, "slipstream"))); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, dir)
			before := listing(t, dir)
			line := refused(t, nil, serveArgs(upstream, dataDir)...)
			if !strings.Contains(line, c.want) || !strings.Contains(line, dataDir) || strings.Contains(line, "pebble") {
				t.Errorf("it says %q, want %q", line, c.want)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("the store was changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

type noPebbleLog struct{}

func (noPebbleLog) Infof(string, ...any)  {}
func (noPebbleLog) Errorf(string, ...any) {}
func (noPebbleLog) Fatalf(string, ...any) {}

// listing is what a directory holds: names and sizes.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, filepath.Base(name), info.Size())
	}
	return b.String()
}

// Who may not write the data dir is told so, with the user it runs as.
func TestUnwritableDataDir(t *testing.T) {
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 85, Loop: 100, Total: 100})
	// Below a directory that everybody may pass, which t.TempDir is not.
	base, err := os.MkdirTemp("", "slipstream-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	self, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	uid := os.Getuid()
	for _, c := range []struct {
		name string
		dir  string
		mode os.FileMode // of the data dir
		sub  os.FileMode // of the store's directory in it; 0: there is none
		want string
	}{
		{"data dir", "data", 0o555, 0, "cannot write to "},
		{"above it", "above/data", 0, 0, "cannot write to "},
		{"the store's directory", "store", 0o755, 0o555, "cannot write to "},
		{"unreadable", "unreadable", 0o000, 0, "cannot write to "},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(base, c.dir)
			if c.mode == 0 && filepath.Dir(dir) != base {
				if err := os.Mkdir(filepath.Dir(dir), 0o555); err != nil {
					t.Fatal(err)
				}
			} else if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if c.sub != 0 {
				if err := os.Mkdir(filepath.Join(dir, "slipstream"), c.sub); err != nil {
					t.Fatal(err)
				}
			}
			for path, mode := range map[string]os.FileMode{base: 0o755, dir: c.mode} {
				if _, err := os.Stat(path); err == nil {
					if err := os.Chmod(path, mode); err != nil {
						t.Fatal(err)
					}
				}
			}
			// Root may write anywhere, and nobody may not read where the test binary is.
			cmd := exec.Command(os.Args[0], serveArgs(upstream, dir)...)
			if uid == 0 {
				cmd = exec.Command("/proc/self/fd/3", serveArgs(upstream, dir)...)
				cmd.ExtraFiles, cmd.Dir = []*os.File{self}, "/"
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			}
			p := startCommand(t, nil, cmd)
			p.Wait(t)
			said := p.Output.String()
			if p.Cmd.ProcessState.ExitCode() != 1 || strings.Count(said, "\n") != 1 {
				t.Fatalf("%v; it said:\n%s", p.Cmd.ProcessState, said)
			}
			who := uid
			if uid == 0 {
				who = 65534
			}
			for _, want := range []string{"--data-dir: ", c.want + dir + " ", fmt.Sprintf("uid %d", who), "permission denied"} {
				if !strings.Contains(said, want) {
					t.Errorf("it says %q, without %q", said, want)
				}
			}
		})
	}
}
