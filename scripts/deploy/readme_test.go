package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// readmeCode returns the lines of code in a section of this directory's README or, if it has none
// such, of the project's.
func readmeCode(t *testing.T, title string) (code []string) {
	t.Helper()
	_, section, found := strings.Cut(replaced(t, "README.md"), "\n## "+title+"\n")
	if !found {
		_, section, found = strings.Cut(replaced(t, "../../README.md"), "\n## "+title+"\n")
	}
	if !found {
		t.Fatalf("no README has %q", title)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.SplitSeq(section, "\n") {
		if text, ok := strings.CutPrefix(line, "    "); ok {
			code = append(code, text)
		}
	}
	return code
}

// TestReadme checks what can be checked of the README's commands on a machine that is to stay as it
// is: the shell reads them, files, packages, settings and targets are there, and ufw understands
// its rules.
func TestReadme(t *testing.T) {
	help, err := exec.Command(binary(t), "serve", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	makefile := replaced(t, "../../Makefile")
	for _, title := range []string{"A $5 VPS in ten minutes", "Behind a proxy", "Watching it"} {
		code := readmeCode(t, title)
		if len(code) == 0 {
			t.Errorf("%s: there is no code", title)
		}
		sh := exec.Command("sh", "-n")
		sh.Stdin = strings.NewReader(strings.Join(code, "\n"))
		if out, err := sh.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", title, err, out)
		}
		for _, line := range code {
			if name, _, ok := strings.Cut(line, "="); ok && strings.HasPrefix(name, "SLIPSTREAM_") && !bytes.Contains(help, []byte("$"+name)) {
				t.Errorf("the daemon knows no %s", name)
			}
			if target, ok := strings.CutPrefix(line, "make "); ok && !strings.Contains(makefile, "\n"+target+":") {
				t.Errorf("there is no %s", line)
			}
			for _, name := range regexp.MustCompile(`\b[\w/.-]+\.(service|yml|yaml)\b`).FindAllString(line, -1) {
				if _, err := os.Stat(filepath.Base(name)); err != nil {
					t.Errorf("%s: %v", line, err)
				}
			}
			for _, m := range regexp.MustCompile(`apt-get install -y (\w+)`).FindAllStringSubmatch(line, -1) {
				if exec.Command("apt-cache", "show", m[1]).Run() != nil {
					t.Errorf("%s: Debian has no such package", line)
				}
			}
		}
	}
	t.Run("ufw", func(t *testing.T) {
		needRoot(t, "for ufw")
		need(t, "ufw")
		rules := 0
		for _, line := range readmeCode(t, "A $5 VPS in ten minutes") {
			for _, rule := range regexp.MustCompile(`ufw (allow \S+)`).FindAllStringSubmatch(line, -1) {
				rules++
				out, err := exec.Command("ufw", append([]string{"--dry-run"}, strings.Fields(rule[1])...)...).CombinedOutput()
				if err != nil || !bytes.Contains(out, []byte("ACCEPT")) {
					t.Errorf("%s: %v: %s", rule[0], err, out)
				}
			}
		}
		if rules != 2 {
			t.Errorf("%d rules, want those of ssh and of consumers", rules)
		}
	})
}
