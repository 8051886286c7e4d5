package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
)

// keptName is where in the data dir the dictionaries are kept that are not built in, each in
// a file <id>.zdict, beside the store. A dictionary is there before the first event is
// compressed with it and stays there, so that what was ever stored remains readable.
const keptName = "dictionaries"

// maxDictionary is ten times what a dictionary for short JSON has any use for.
const maxDictionary = 1 << 20

// keptDictionaries are those of a data dir.
type keptDictionaries struct{ dir string }

func keptIn(dataDir string) keptDictionaries {
	return keptDictionaries{filepath.Join(dataDir, keptName)}
}

func (k keptDictionaries) file(id uint32) string {
	return filepath.Join(k.dir, fmt.Sprintf("%d.zdict", id))
}

// load returns what is kept, less what is built in. It tells warn of each file that is of no
// use, and why.
func (k keptDictionaries) load(warn func(file string, err error)) ([][]byte, error) {
	entries, err := os.ReadDir(k.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	known := map[uint32][]byte{}
	for _, b := range dictionaries.All() {
		id, err := event.DictionaryID(b)
		if err != nil {
			return nil, err
		}
		known[id] = b
	}
	var all [][]byte
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // being written: see keep
		}
		file := filepath.Join(k.dir, e.Name())
		b, id, err := readDictionary(file)
		if other, there := known[id]; err == nil && there {
			if !bytes.Equal(b, other) {
				warn(file, fmt.Errorf("another dictionary has its id, %d", id))
			}
			continue
		}
		if err != nil {
			warn(file, err)
			continue
		}
		known[id], all = b, append(all, b)
	}
	return all, nil
}

// keep keeps a dictionary, unless it is there already. When it returns without error, the
// file outlasts a loss of power.
func (k keptDictionaries) keep(dictionary []byte) error {
	id, err := event.DictionaryID(dictionary)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(k.file(id))
	if err != nil || !bytes.Equal(b, dictionary) {
		err = k.write(id, dictionary)
	}
	if err == nil {
		err = errors.Join(syncDir(k.dir), syncDir(filepath.Dir(k.dir)))
	}
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fmt.Errorf("cannot keep dictionary %d in %s as uid %d: %w", id, k.dir, os.Getuid(), err)
	}
	return nil
}

func (k keptDictionaries) write(id uint32, dictionary []byte) error {
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(k.dir, fmt.Sprintf(".%d-*", id))
	if err != nil {
		return err
	}
	_, err = f.Write(dictionary)
	// Whoever else runs verify is to read it.
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), k.file(id))
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readDictionary reads a file that must hold a dictionary. Its errors do not name the file.
func readDictionary(file string) (dictionary []byte, id uint32, err error) {
	f, err := os.Open(file)
	if err == nil {
		defer f.Close()
		dictionary, err = io.ReadAll(io.LimitReader(f, maxDictionary+1))
	}
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, 0, err
	}
	if len(dictionary) > maxDictionary {
		return nil, 0, fmt.Errorf("larger than %d bytes", maxDictionary)
	}
	if id, err = event.DictionaryID(dictionary); err != nil {
		return nil, 0, err
	}
	if _, err = event.NewDecompressor(dictionary); err != nil {
		return nil, 0, fmt.Errorf("a damaged zstd dictionary: %w", err)
	}
	if id == legacyID && !isLegacy(dictionary) {
		return nil, 0, fmt.Errorf("it has the id of Bluesky's dictionary, %d, and other contents", id)
	}
	return dictionary, id, nil
}
