package train

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/dict"
	"github.com/klauspost/compress/zstd"
)

// Builder is another way to make a dictionary of the same events. It is here to be compared
// with: what it makes has strangers' posts in it.
type Builder struct {
	Name  string
	build func(samples [][]byte, size int) ([]byte, error)
}

// Builders are the zstd program's, which must be installed, and klauspost's.
var Builders = []Builder{
	{"zstd --train-fastcover", trainCLI("--train-fastcover")},
	{"zstd --train-cover", trainCLI("--train-cover=k=256,d=8")}, // looking for k and d itself, it takes half an hour
	{"klauspost", func(samples [][]byte, size int) ([]byte, error) {
		return dict.BuildZstdDict(samples, dict.Options{
			MaxDictSize: size, HashBytes: 6, ZstdDictID: tryID, ZstdDictCompat: true, ZstdLevel: zstd.SpeedDefault})
	}},
}

// TryBuilder cross-validates a builder's dictionaries of that size.
func (t *Trainer) TryBuilder(b Builder, size int) (Result, error) {
	return t.measure(func(l *lesson) ([]byte, error) { return b.build(l.payloads(), size) })
}

func trainCLI(how string) func(samples [][]byte, size int) ([]byte, error) {
	return func(samples [][]byte, size int) ([]byte, error) {
		dir, err := os.MkdirTemp("", "slipstream-train-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		in, out := filepath.Join(dir, "samples"), filepath.Join(dir, "out")
		if err := os.Mkdir(in, 0o700); err != nil {
			return nil, err
		}
		for i, s := range samples {
			if err := os.WriteFile(filepath.Join(in, strconv.Itoa(i)), s, 0o600); err != nil {
				return nil, err
			}
		}
		c := exec.Command("zstd", how, "-q", "-r", in, "-3", "--maxdict="+strconv.Itoa(size), "--dictID="+strconv.Itoa(tryID), "-o", out)
		if said, err := c.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("zstd %s: %w: %s", how, err, bytes.TrimSpace(said))
		}
		return os.ReadFile(out)
	}
}
