package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

// envFile is what --env-file has read: settings by the names of their environment variables. A
// nil one has none. Its syntax is the plain part of what systemd takes as an EnvironmentFile, so
// that one file serves both; what systemd would read in another way is refused.
type envFile struct {
	path    string
	entries map[string]*envEntry
	known   map[string]bool // the names that a flag has asked for
}

// envEntry is a line of the file.
type envEntry struct {
	file  *envFile
	name  string
	value string
	line  int
	used  bool
}

// maxEnvFile is far more than all settings take.
const maxEnvFile = 1 << 20

// readEnvFile reads a file. As with systemd, a minus in front of the path says that the file may
// be missing. Its errors name the file, and the line.
func readEnvFile(path string) (*envFile, error) {
	optional := strings.HasPrefix(path, "-")
	f := &envFile{path: strings.TrimPrefix(path, "-"), entries: map[string]*envEntry{}, known: map[string]bool{}}
	if f.path == "" {
		return f, nil
	}
	file, err := os.Open(f.path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	var text []byte
	if err == nil {
		defer file.Close()
		text, err = io.ReadAll(io.LimitReader(file, maxEnvFile+1))
	}
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	if err == nil && len(text) > maxEnvFile {
		err = fmt.Errorf("it has more than %d bytes", maxEnvFile)
	}
	if err != nil {
		return nil, fmt.Errorf("--env-file %s: cannot be read as uid %d: %w", f.path, os.Getuid(), err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if err := f.add(n, strings.TrimSpace(line)); err != nil {
			return nil, fmt.Errorf("--env-file %s, line %d: %w", f.path, n, err)
		}
	}
	return f, nil
}

// add reads a line. Of lines with one name the last counts.
func (f *envFile) add(n int, line string) error {
	if line == "" || line[0] == '#' || line[0] == ';' {
		return nil
	}
	name, value, ok := strings.Cut(line, "=")
	if !ok {
		return fmt.Errorf("%.60q is not NAME=value", line)
	}
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if q := value; len(q) >= 2 && (q[0] == '"' || q[0] == '\'') && q[0] == q[len(q)-1] {
		value = q[1 : len(q)-1]
	}
	if strings.ContainsAny(value, "\"'\\\x00") {
		return fmt.Errorf("%.60s: write the value without backslashes, and without quotes but for a pair around it", name)
	}
	f.entries[name] = &envEntry{file: f, name: name, value: value, line: n}
	return nil
}

// sources names a flag's environment variables, as env does, and after them the file's entries
// of the same names.
func (f *envFile) sources(name string, v1 ...string) cli.ValueSourceChain {
	chain := env(name, v1...)
	if f == nil {
		return chain
	}
	for _, key := range chain.EnvKeys() {
		f.known[key] = true
		if e := f.entries[key]; e != nil {
			chain.Chain = append(chain.Chain, e)
		}
	}
	return chain
}

// Lookup implements cli.ValueSource. It is asked only if nothing that goes before the file, a
// flag or a real environment variable, has a value.
func (e *envEntry) Lookup() (string, bool) {
	e.used = true
	return e.value, true
}

// String says where a value is from.
func (e *envEntry) String() string {
	return fmt.Sprintf("%s in line %d of %s", e.name, e.line, e.file.path)
}

// GoString implements cli.ValueSource.
func (e *envEntry) GoString() string { return e.String() }

// check refuses names that no flag has. That of a variable which the Go runtime or a library
// reads would have no effect either: it has to be in the process's environment.
func (f *envFile) check() error {
	for _, e := range f.sorted() {
		if !f.known[e.name] {
			return fmt.Errorf("--env-file %s, line %d: %.60q is no setting of slipstream serve; serve --help has their names", f.path, e.line, e.name)
		}
	}
	return nil
}

// overridden returns the names of entries without effect, when the flags have been read.
func (f *envFile) overridden() (names []string) {
	for _, e := range f.sorted() {
		if !e.used {
			names = append(names, e.name)
		}
	}
	return names
}

// sorted returns the entries by line.
func (f *envFile) sorted() (all []*envEntry) {
	for _, e := range f.entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *envEntry) int { return a.line - b.line })
	return all
}

// settings are where a Config comes from: flags and environment, which a process has for its
// life, and a file, which can be read again.
type settings struct {
	args []string // the program's, its name first
	file string   // --env-file; "": none
}

// reading is what settings said at one time.
type reading struct {
	cfg        Config
	values     map[string]string // by flag, for people
	overridden []string          // names in the file that have no effect
}

// read reads the file, and the flags with it.
func (s settings) read(ctx context.Context) (reading, error) {
	var r reading
	file, err := readEnvFile(s.file)
	if err != nil {
		return r, err
	}
	serve := serveCommandFrom(file)
	if err := file.check(); err != nil {
		return r, err
	}
	serve.Action = func(_ context.Context, cmd *cli.Command) (err error) {
		r.values = map[string]string{}
		for _, f := range cmd.Flags {
			r.values[f.Names()[0]] = valueText(cmd.Value(f.Names()[0]))
		}
		r.cfg, err = configOf(cmd)
		return err
	}
	root := command()
	for i, c := range root.Commands {
		if c.Name == serve.Name {
			root.Commands[i] = serve
		}
	}
	if err := root.Run(ctx, s.args); err != nil {
		return r, err
	}
	r.overridden = file.overridden()
	return r, nil
}

// valueText is a flag's value as the log shows it.
func valueText(v any) string {
	if list, ok := v.([]string); ok {
		v = strings.Join(list, ",")
	}
	if v == "" {
		return "unset"
	}
	return fmt.Sprint(v)
}
