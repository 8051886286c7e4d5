//go:build compat

package pds

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// minNode is the oldest major version of Node.js on which the PDS runs.
const minNode = 20

// manifests say what is installed, to the version and hash of each package.
var manifests = []string{"package.json", "package-lock.json", ".npmrc"}

// install returns a node_modules with the PDS in it. It is made once for each state of the
// manifests and kept in the user's cache: SQLite is compiled, which takes minutes.
func install(t testing.TB) (modules string) {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no PDS: %s is missing: %v", program, err)
		}
	}
	// The ABI is in it because the compiled part is for one.
	out, err := exec.Command("node", "-p", "[process.versions.node, process.versions.modules, process.platform, process.arch, process.execPath].join('\\n')").Output()
	if err != nil {
		t.Fatalf("node: %v", err)
	}
	node := strings.Split(strings.TrimSpace(string(out)), "\n")
	major, _, _ := strings.Cut(node[0], ".")
	if n, err := strconv.Atoi(major); err != nil || n < minNode {
		t.Skipf("no PDS: node is %s, it takes %d or newer", node[0], minNode)
	}
	hash := sha256.New()
	fmt.Fprintln(hash, node[1:4])
	for _, name := range manifests {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(hash, name, len(b))
		hash.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "slipstream-compat-pds", fmt.Sprintf("%x", hash.Sum(nil)[:8]))
	modules = filepath.Join(dir, "node_modules")
	if _, err := os.Stat(modules); err == nil {
		t.Logf("the PDS is there already: %s", modules)
		return modules
	}

	// Beside its place, so that only what is complete is ever there.
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), "install-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	for _, name := range manifests {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund")
	cmd.Dir, cmd.Env = work, os.Environ()
	// Where Node.js comes with its headers, nothing but the registry is asked.
	prefix := filepath.Dir(filepath.Dir(node[4]))
	if _, err := os.Stat(filepath.Join(prefix, "include", "node", "node.h")); err == nil {
		cmd.Env = append(cmd.Env, "npm_config_build_from_source=true", "npm_config_nodedir="+prefix)
	}
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out[max(0, len(out)-4000):])
	}
	if err := os.Rename(work, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, there := os.Stat(modules); there != nil { // nor has another run been faster
			t.Fatal(err)
		}
	}
	t.Logf("installed the PDS in %s: %s", time.Since(begin).Round(time.Second), modules)
	return modules
}
