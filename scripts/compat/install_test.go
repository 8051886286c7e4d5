package compat

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// pins are the files that say which versions.
var pins = []string{"node/package.json", "python/requirements.txt", "rust/Cargo.toml", "../../go.mod"}

// A toolchain builds the clients of one language from their registry.
type toolchain struct {
	needs     []string // commands
	manifests []string // what it is built from
	install   func(dir string) error
	build     func(dir string) error // what is ours, each time; may be nil

	// Set by installAll.
	dir     string
	missing string // the command that is not there
}

var npm = &toolchain{
	needs: []string{"node", "npm"}, manifests: []string{"node/package.json", "node/package-lock.json"},
	install: func(dir string) error {
		if err := copyTo(dir, "node/package.json", "node/package-lock.json"); err != nil {
			return err
		}
		return run(dir, nil, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	},
	build: func(dir string) error {
		// Node looks for modules from where the source is.
		return copyTo(dir, "node/order.mjs", "node/skyware.mjs", "node/atcute.mjs", "node/ws.mjs", "node/eventsource.mjs")
	},
}

var python = &toolchain{
	needs: []string{"python3"}, manifests: []string{"python/requirements.txt"},
	install: func(dir string) error {
		requirements, err := filepath.Abs("python/requirements.txt")
		if err != nil {
			return err
		}
		if err := run(dir, nil, "python3", "-m", "venv", "."); err != nil {
			return err
		}
		return run(dir, nil, "bin/pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements)
	},
}

var cargo = &toolchain{
	needs: []string{"cargo", "cc"}, manifests: []string{"rust/Cargo.toml", "rust/Cargo.lock"},
	install: func(dir string) error {
		// Without TLS, which on loopback would only have to be built.
		return run(dir, cargoEnv(dir), "cargo", "install", "--quiet", "--locked", "--debug", "--root", dir,
			"--no-default-features", "--features", "signal_handler,unix_stdio", "websocat", "--version", "="+version("websocat"))
	},
	build: func(dir string) error {
		manifest, err := filepath.Abs("rust/Cargo.toml")
		if err != nil {
			return err
		}
		return run(dir, cargoEnv(dir), "cargo", "build", "--quiet", "--locked", "--manifest-path", manifest)
	},
}

// cargoEnv makes cargo build what is soon built: it runs for a minute.
func cargoEnv(dir string) []string {
	return []string{"CARGO_TARGET_DIR=" + filepath.Join(dir, "target"), "CARGO_PROFILE_DEV_DEBUG=0", "CARGO_INCREMENTAL=0"}
}

// path returns where a program is that is named from the toolchain's directory.
func (c *toolchain) path(name string) string { return filepath.Join(c.dir, name) }

// installAll installs what is not in the cache yet. A toolchain that is missing is noted; one
// that fails is a failure.
func installAll(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, c := range []*toolchain{npm, python, cargo} {
		for _, name := range c.needs {
			if _, err := exec.LookPath(name); err != nil {
				c.missing = name
			}
		}
		if c.missing != "" {
			continue
		}
		wg.Go(func() {
			start := time.Now()
			if err := c.prepare(filepath.Join(cache, "slipstream-compat")); err != nil {
				t.Errorf("%s: %v", c.needs[0], err)
				return
			}
			t.Logf("%s: clients ready in %v", c.needs[0], time.Since(start).Round(time.Second/10))
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// prepare makes the directory for these manifests, once.
func (c *toolchain) prepare(cache string) error {
	hash := sha256.New()
	for _, name := range c.manifests {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		hash.Write(b)
	}
	c.dir = filepath.Join(cache, fmt.Sprintf("%s-%.6x", c.needs[0], hash.Sum(nil)))
	ready := c.path("ready")
	if _, err := os.Stat(ready); err != nil {
		if err := errors.Join(os.RemoveAll(c.dir), os.MkdirAll(c.dir, 0o755)); err != nil {
			return err
		}
		if err := c.install(c.dir); err != nil {
			return err
		}
		if err := os.WriteFile(ready, nil, 0o644); err != nil {
			return err
		}
	}
	if c.build == nil {
		return nil
	}
	return c.build(c.dir)
}

func run(dir string, env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// copyTo copies files, with their modes.
func copyTo(dir string, files ...string) error {
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), b, info.Mode()); err != nil {
			return err
		}
	}
	return nil
}

// version returns the version of a package that a manifest pins.
func version(name string) string {
	pinned := regexp.MustCompile(`(?m)^\s*"?` + regexp.QuoteMeta(name) + `"?\s*[:=]?[="\s]+(v?[0-9][^\s"]*)`)
	for _, manifest := range pins {
		b, err := os.ReadFile(manifest)
		if err != nil {
			panic(err)
		}
		if m := pinned.FindSubmatch(b); m != nil {
			return string(m[1])
		}
	}
	panic("no manifest pins " + name)
}
