// Package dictionaries embeds the zstd dictionaries that Slipstream ships. A file is
// never changed or removed once a release contained it: stored chunks and consumers
// name dictionaries by id. scripts/train-dictionary.sh makes a new one.
package dictionaries

import (
	"embed"
	"io/fs"
)

//go:embed *.zdict
var files embed.FS

// current is the file that new events are compressed with, unless the data dir has the
// dictionary of Jetstream v1's clients.
const current = "events-2026-11-26.zdict"

// Current returns our newest dictionary.
func Current() []byte {
	b, err := files.ReadFile(current)
	if err != nil {
		panic(err) // embedded above
	}
	return b
}

// All returns every dictionary that was ever shipped.
func All() [][]byte {
	names, err := fs.Glob(files, "*.zdict")
	if err != nil {
		panic(err) // the pattern is well formed
	}
	var all [][]byte
	for _, name := range names {
		b, err := files.ReadFile(name)
		if err != nil {
			panic(err) // embedded above
		}
		all = append(all, b)
	}
	return all
}
