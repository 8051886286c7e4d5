package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slipstream/dictionaries"
)

// otherDictionary is our own under another id.
func otherDictionary(id uint32) []byte {
	b := bytes.Clone(dictionaries.Current())
	binary.LittleEndian.PutUint32(b[4:], id)
	return b
}

// What is kept is there again, once; what is no dictionary is named and does no harm.
func TestKept(t *testing.T) {
	dataDir := t.TempDir()
	kept := keptIn(dataDir)
	load := func() (all [][]byte, warnings string) {
		t.Helper()
		all, err := kept.load(func(file string, err error) { warnings += fmt.Sprintf("%s: %v\n", filepath.Base(file), err) })
		if err != nil {
			t.Fatal(err)
		}
		return all, warnings
	}
	if all, warnings := load(); all != nil || warnings != "" {
		t.Errorf("without the directory: %d dictionaries, %q", len(all), warnings)
	}
	for range 2 {
		for _, b := range [][]byte{otherDictionary(4711), otherDictionary(4712), dictionaries.Current()} {
			if err := kept.keep(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	all, warnings := load()
	if len(all) != 2 || !bytes.Equal(all[0], otherDictionary(4711)) || !bytes.Equal(all[1], otherDictionary(4712)) || warnings != "" {
		t.Errorf("%d dictionaries, %q", len(all), warnings)
	}
	if names, err := os.ReadDir(kept.dir); err != nil || len(names) != 3 {
		t.Errorf("the directory holds %v, %v", names, err)
	}

	currentID := binary.LittleEndian.Uint32(dictionaries.Current()[4:])
	changed := func(b []byte) []byte { return append(bytes.Clone(b), 0) }
	want := 0
	for name, b := range map[string][]byte{
		".4711-12345":     nil, // cut by a crash: nobody's business
		"copy.zdict":      otherDictionary(4711),
		"4713.zdict":      otherDictionary(4713)[:60],
		"README":          []byte("not a dictionary"),
		"zero.zdict":      otherDictionary(0),
		"large.zdict":     append(otherDictionary(4714), make([]byte, maxDictionary)...),
		"legacy.zdict":    otherDictionary(legacyID),
		"ours.zdict":      changed(otherDictionary(currentID)),
		"z-changed.zdict": changed(otherDictionary(4712)),
	} {
		if err := os.WriteFile(filepath.Join(kept.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if name[0] != '.' && name != "copy.zdict" {
			want++
		}
	}
	if err := os.Mkdir(filepath.Join(kept.dir, "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	want++
	all, warnings = load()
	if len(all) != 2 || strings.Count(warnings, "\n") != want {
		t.Errorf("%d dictionaries, want 2, and these warnings, want %d:\n%s", len(all), want, warnings)
	}
}

// That a dictionary cannot be kept is one sentence, with the place, and leaves nothing behind.
func TestKeptNowhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keptIn(file).keep(otherDictionary(4711)); err == nil || !strings.Contains(err.Error(), "dictionary 4711 in "+filepath.Join(file, keptName)) {
		t.Errorf("below a file: %v", err)
	}
	kept := keptIn(t.TempDir())
	if err := os.MkdirAll(filepath.Join(kept.file(4711), "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := kept.keep(otherDictionary(4711)); err == nil {
		t.Error("it was kept where a directory is")
	}
	if names, err := os.ReadDir(kept.dir); err != nil || len(names) != 1 {
		t.Errorf("the directory holds %v, %v", names, err)
	}
}
