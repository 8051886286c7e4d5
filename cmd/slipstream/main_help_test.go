package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"
)

// everyCommand calls f with each command and its arguments, less those that the library adds.
func everyCommand(c *cli.Command, words []string, f func(*cli.Command, []string)) {
	f(c, words)
	for _, sub := range c.Commands {
		if sub.Name != "help" {
			everyCommand(sub, append(words[:len(words):len(words)], sub.Name), f)
		}
	}
}

// onceIsEnough skips what starts the program again and again, one after the other, where a start takes
// a second and there is nothing to be found: in the short run that the race detector has.
func onceIsEnough(t *testing.T) {
	if testing.Short() {
		t.Skip("the program is started many times: not with -short")
	}
}

// Whoever types no more than the name is told what there is, in groups; each command explains itself in both
// ways of asking, with all of its options.
func TestHelp(t *testing.T) {
	onceIsEnough(t)
	alone, stderr, status := output(t, slipstream(t, nil))
	asked, _, _ := output(t, slipstream(t, nil, "--help"))
	if status != 0 || stderr != "" || alone != asked {
		t.Errorf("status %d, %q; alone it says\n%s\nand asked\n%s", status, stderr, alone, asked)
	}
	for _, want := range []string{"slipstream serve", "slipstream tail --collection", categoryDaemon + ":", categoryConsume + ":", categoryStorage + ":", categoryProgram + ":"} {
		if !strings.Contains(alone, want) {
			t.Errorf("the help does not have %q:\n%s", want, alone)
		}
	}
	everyCommand(command(), nil, func(c *cli.Command, words []string) {
		if len(words) == 0 {
			return
		}
		if len(words) == 1 {
			if c.Category == "" {
				t.Errorf("%s is in no category", c.Name)
			}
			if !regexp.MustCompile(`(?m)^ +` + c.Name + ` .*` + regexp.QuoteMeta(c.Usage) + `$`).MatchString(alone) {
				t.Errorf("the help does not have %s:\n%s", c.Name, alone)
			}
		}
		help, _, status := output(t, slipstream(t, nil, append(words, "--help")...))
		if status != 0 || !strings.Contains(help, "slipstream "+strings.Join(words, " ")) {
			t.Errorf("%v: status %d:\n%s", words, status, help)
		}
		if len(words) == 1 {
			if again, _, _ := output(t, slipstream(t, nil, append([]string{"help"}, words...)...)); again != help {
				t.Errorf("help %v says something else than %[1]v --help", words)
			}
		}
		for _, f := range c.Flags {
			if name := f.Names()[0]; !strings.Contains(help, "--"+name) {
				t.Errorf("%v: --%s is not in its help", words, name)
			}
		}
	})
	for _, args := range [][]string{{"taill"}, {"--nonsense"}, {"tail", "--nonsense"}, {"serve", "--nonsense"}, {"help", "nonsense"}} {
		stdout, stderr, status := output(t, slipstream(t, nil, args...))
		if status == 0 || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: status %d, %q, %q", args, status, stdout, stderr)
		}
	}
}

func TestMan(t *testing.T) {
	onceIsEnough(t)
	page, stderr, status := output(t, slipstream(t, nil, "man"))
	if status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	everyCommand(command(), nil, func(c *cli.Command, words []string) {
		if !strings.Contains(page, "\n.SH "+c.Name) && !strings.Contains(page, "\n.SS "+c.Name) && c.Name != "slipstream" {
			t.Errorf("it does not have %v", words)
		}
		for _, f := range c.Flags {
			if !strings.Contains(page, "--"+f.Names()[0]) {
				t.Errorf("it does not have --%s of %v", f.Names()[0], words)
			}
		}
	})
	if !strings.Contains(page, "Exit status") {
		t.Error("it does not have the exit statuses of tail")
	}
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("there is no groff to read it with")
	}
	file := filepath.Join(t.TempDir(), "slipstream.1")
	if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("groff", "-man", "-Tutf8", "-ww", "-z", file).CombinedOutput(); err != nil || strings.Contains(string(out), "error") {
		t.Errorf("groff: %v: %s", err, out)
	}
}

// Real shells complete commands and options.
func TestCompletion(t *testing.T) {
	onceIsEnough(t)
	dir := t.TempDir()
	if err := os.Symlink(os.Args[0], filepath.Join(dir, "slipstream")); err != nil {
		t.Fatal(err)
	}
	shell := func(t *testing.T, name string, args ...string) string {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("there is no %s", name)
		}
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "SLIPSTREAM_TEST_MAIN=1", "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	check := func(t *testing.T, out string) {
		for _, want := range []string{"tail", "--compress"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not among %q", want, out)
			}
		}
		if regexp.MustCompile(`(^|\s)(serve|--count)(:|\s)`).MatchString(out) {
			t.Errorf("more than what fits: %q", out)
		}
	}
	t.Run("bash", func(t *testing.T) {
		const library = "/usr/share/bash-completion/bash_completion"
		if _, err := os.Stat(library); err != nil {
			t.Skip("there is no bash-completion, which the script needs")
		}
		check(t, shell(t, "bash", "-c", `source `+library+`; source <(slipstream completion bash)
			try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; __slipstream_bash_autocomplete; echo "${COMPREPLY[@]}"; }
			try slipstream ta; try slipstream tail --comp`))
	})
	t.Run("fish", func(t *testing.T) {
		check(t, shell(t, "fish", "-c", `slipstream completion fish | source; complete -C "slipstream ta"; complete -C "slipstream tail --comp"`))
	})
	t.Run("zsh", func(t *testing.T) {
		// Its completion works in its line editor only, so the function is called with what that would give it.
		check(t, shell(t, "zsh", "-f", "-c", `compdef() { }; _files() { }; _describe() { print -l -- ${(M)${(P)2}:#$current*} }
			source <(slipstream completion zsh)
			words=(slipstream ta) _slipstream; words=(slipstream tail --comp) _slipstream`))
	})
}
