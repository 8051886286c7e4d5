package deploy

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// instructions returns a Dockerfile's, by stage.
func instructions(t *testing.T) (stages [][][2]string) {
	t.Helper()
	b, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		name, rest, _ := strings.Cut(line, " ")
		switch {
		case name == "" || strings.HasPrefix(name, "#"):
			continue
		case strings.HasSuffix(line, "\\"):
			t.Fatalf("the test reads no instruction of several lines: %s", line)
		case name == "FROM":
			stages = append(stages, nil)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], [2]string{name, rest})
	}
	return stages
}

// TestDockerfile runs the image's steps outside a container, and then its program in a
// directory that has what the image would have, and nothing else.
func TestDockerfile(t *testing.T) {
	needRoot(t, "for chroot, and the image's user")
	need(t, "git", "make", "chroot")
	stages := instructions(t)
	if len(stages) != 2 {
		t.Fatalf("%d stages, want one that builds and one that runs", len(stages))
	}
	// What the build is given: what git knows, less .dockerignore's.
	src, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	list, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.Trim(string(list), "\x00"), "\x00") {
		if b, err := os.ReadFile(filepath.Join("../..", name)); err == nil {
			copyFile(t, filepath.Join(src, name), b, 0o755)
		}
	}
	arguments := map[string]string{}
	for _, in := range stages[0] {
		switch in[0] {
		case "ARG":
			name, value, _ := strings.Cut(in[1], "=")
			arguments[name] = value
		case "RUN":
			if !regexp.MustCompile(`^(go mod download|make \w+( \w+=\$\w+)?( && mkdir -p /out/data)?)$`).MatchString(in[1]) {
				t.Errorf("a step that is not the Makefile's: %s", in[1])
			}
			cmd := exec.Command("sh", "-c", strings.ReplaceAll(in[1], "/out/", out+"/"))
			cmd.Dir = src
			cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false")
			for name, value := range arguments {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			if output, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v\n%s", in[1], err, output)
			}
		}
	}

	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	var env, entry, serve, health []string
	var user string
	for _, in := range stages[1] {
		words := strings.Fields(in[1])
		switch in[0] {
		case "COPY":
			words = slices.DeleteFunc(words, func(w string) bool { return strings.HasPrefix(w, "--") })
			from, to := words[0], filepath.Join(root, words[1])
			if strings.HasSuffix(words[1], "/") {
				to = filepath.Join(to, filepath.Base(from))
			}
			from = strings.NewReplacer("/src/", src+"/", "/out/", out+"/").Replace(from)
			info, err := os.Stat(from)
			if err != nil {
				t.Fatalf("COPY %s: %v", in[1], err)
			}
			if info.IsDir() {
				err = os.MkdirAll(to, 0o755)
			} else {
				var b []byte
				b, err = os.ReadFile(from)
				copyFile(t, to, b, 0o755)
			}
			if err == nil && strings.Contains(in[1], "--chown=65532:65532") {
				err = os.Chown(to, 65532, 65532)
			}
			if err != nil {
				t.Fatal(err)
			}
		case "ENV":
			env = append(env, in[1])
		case "USER":
			user = in[1]
		case "ENTRYPOINT":
			entry = jsonList(t, in[1])
		case "CMD":
			serve = jsonList(t, in[1])
		case "HEALTHCHECK":
			_, command, _ := strings.Cut(in[1], "CMD ")
			health = jsonList(t, command)
		}
	}
	if user == "" || len(entry) == 0 || len(serve) == 0 || len(health) == 0 {
		t.Fatalf("the image has user %q, entry %q, command %q, health check %q", user, entry, serve, health)
	}
	if n := 0; filepath.WalkDir(root, func(_ string, d fs.DirEntry, _ error) error {
		if d.Type().IsRegular() {
			n++
		}
		return nil
	}) != nil || n != 2 {
		t.Errorf("the image has %d files, want the program and the certificates", n)
	}

	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 11, Loop: 200, Rate: 100})
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command("chroot", append([]string{"--userspec=" + user, root}, args...)...)
		cmd.Env = append(slices.Clone(env), "SLIPSTREAM_UPSTREAM_URL="+upstream, "SLIPSTREAM_LISTEN_ADDR="+addr,
			"SLIPSTREAM_METRICS_LISTEN_ADDR="+metrics, "SLIPSTREAM_LEGACY_DICTIONARY=off")
		return cmd
	}
	if output, err := command(append(entry, "version")...).CombinedOutput(); err != nil || !bytes.Contains(output, []byte(arguments["VERSION"]+" (zstd by libzstd)")) {
		t.Errorf("version: %v: %s", err, output)
	}
	if output, err := command(health...).CombinedOutput(); err == nil {
		t.Errorf("the health check finds a daemon that there is not: %s", output)
	}
	p := testproc.Start(t, command(append(entry, serve...)...))
	testproc.WaitFor(t, "the image's program serves", func() bool { return testproc.Answers("http://" + addr + "/xrpc/_health") })
	if output, err := command(health...).CombinedOutput(); err != nil {
		t.Errorf("health check: %v: %s", err, output)
	}
	if output, err := command(append(entry, "tail", "--count", "50", "ws://"+addr+"/subscribe?cursor=1")...).CombinedOutput(); err != nil || bytes.Count(output, []byte("\n")) != 50 {
		t.Errorf("tail: %v: %.300s", err, output)
	}
	if output, err := command(append(entry, "inspect")...).CombinedOutput(); err != nil || !bytes.Contains(output, []byte("in use by a daemon")) {
		t.Errorf("inspect: %v: %s", err, output)
	}
	p.End(t)
}

func copyFile(t *testing.T, path string, b []byte, mode os.FileMode) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, b, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func jsonList(t *testing.T, s string) (list []string) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &list); err != nil {
		t.Fatalf("%v: %s is not in the exec form, and the image has no shell", err, s)
	}
	return list
}

// TestCompose: the compose file is one, and what it names is there.
func TestCompose(t *testing.T) {
	need(t, "docker-compose")
	out, err := exec.Command("docker-compose", "-f", "docker-compose.yaml", "--profile", "watch", "config").CombinedOutput()
	if err != nil {
		t.Fatalf("docker-compose config: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "WARN") {
		t.Errorf("docker-compose config:\n%s", out)
	}
	text := replaced(t, "docker-compose.yaml")
	for _, m := range regexp.MustCompile(`- \./([\w.]+):`).FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(m[1]); err != nil {
			t.Error(err)
		}
	}
	// Each variable is one of the daemon's.
	help, err := exec.Command(binary(t), "serve", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`SLIPSTREAM_\w+`).FindAllString(text, -1) {
		if !bytes.Contains(help, []byte("$"+name)) {
			t.Errorf("the daemon knows no %s", name)
		}
	}
	// What makes Prometheus's configuration fit makes it fit.
	sed := exec.Command("sed", regexp.MustCompile(`sed (\S+)`).FindStringSubmatch(text)[1], "prometheus.yml")
	if out, err := sed.Output(); err != nil || !bytes.Contains(out, []byte("slipstream:6009")) {
		t.Errorf("sed: %v\n%s", err, out)
	}
}
