//go:build cgo

package train_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/valyala/gozstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/train"
)

// codec is a library at one level, with one dictionary.
type codec struct {
	name  string
	level int
	pack  func(dst, src []byte) []byte
}

func codecs(t *testing.T, dictionary []byte) (all []codec) {
	for _, level := range []int{1, 3, 6} {
		d, err := gozstd.NewCDictLevel(dictionary, level)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, codec{"libzstd", level, func(dst, src []byte) []byte { return gozstd.CompressDict(dst, src, d) }})
	}
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression} {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderDict(dictionary), zstd.WithEncoderLevel(level),
			zstd.WithWindowSize(128<<10), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, codec{"klauspost", int(level), func(dst, src []byte) []byte { return z.EncodeAll(src, dst) }})
	}
	return all
}

// corpus is events on both wires.
type corpus struct {
	name  string
	wires [2][][]byte
}

func corpusOf(name string, events []train.Event) *corpus {
	c := &corpus{name: name}
	for i := range events {
		c.wires[0] = append(c.wires[0], events[i].V1)
		c.wires[1] = append(c.wires[1], events[i].V2)
	}
	return c
}

func (c codec) ratio(payloads [][]byte) float64 {
	plain, packed := 0, 0
	for _, p := range payloads {
		plain += len(p)
		packed += len(c.pack(nil, p))
	}
	return float64(packed) / float64(plain)
}

// rounds are as many for all; the fastest counts, which a busy machine disturbs least.
const rounds = 7

// passes returns how long each of the codecs takes for one event, in turn.
func passes(all []codec, payloads [][]byte) []time.Duration {
	fastest := make([]time.Duration, len(all))
	dst := make([]byte, 0, 1<<20)
	for range rounds {
		for i, c := range all {
			n := max(1, 2000/len(payloads))
			began := time.Now()
			for range n {
				for _, p := range payloads {
					dst = c.pack(dst[:0], p)
				}
			}
			took := time.Since(began) / time.Duration(n*len(payloads))
			if fastest[i] == 0 || took < fastest[i] {
				fastest[i] = took
			}
		}
	}
	return fastest
}

// TestBenchDictionary prints what each dictionary makes of each corpus, and how fast.
func TestBenchDictionary(t *testing.T) {
	if os.Getenv("SLIPSTREAM_BENCH_DICTIONARY") == "" {
		t.Skip("takes a minute and an idle machine: run `make bench-dictionary`")
	}
	var corpora []*corpus
	if events := realEvents(t); events != nil {
		corpora = append(corpora, corpusOf("real-50", events))
	}
	if events := repoEvents(t); events != nil {
		var some []train.Event // of all repos
		for i := 0; i < len(events); i += 2 {
			some = append(some, events[i])
		}
		corpora = append(corpora, corpusOf("records", some))
	}
	if corpora == nil {
		fmt.Println("The shared test data is not here: made-up events instead.")
		corpora = append(corpora, corpusOf("made up", sourceOf(t, madeUp(3000)).Events()))
	}
	type row struct {
		dictionary string
		codec      codec
	}
	var rows []row
	current, _ := event.DictionaryID(dictionaries.Current())
	add := func(name string, d []byte) {
		for _, c := range codecs(t, d) {
			rows = append(rows, row{name, c})
		}
	}
	add(fmt.Sprintf("ours, %d", current), dictionaries.Current())
	for _, d := range dictionaries.All() {
		if id, _ := event.DictionaryID(d); id != current {
			add(fmt.Sprintf("ours, %d", id), d)
		}
	}
	others, _ := filepath.Glob(filepath.Join("..", "..", "..", "shared", "data", "dictionaries", "*.zdict"))
	for _, file := range others {
		d, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		add(strings.TrimSuffix(filepath.Base(file), ".zdict"), d)
	}
	var all []codec
	for _, r := range rows {
		all = append(all, r.codec)
	}
	const reference = 1 // libzstd 3 with the dictionary in use
	fmt.Printf("Compressed size as a share of the JSON, and the time for one v1 event: the fastest of %d rounds in\n"+
		"which all take turns. x is that time in times what libzstd 3 takes with the first dictionary.\n", rounds)
	for _, c := range corpora {
		took := passes(all, c.wires[0])
		fmt.Printf("\n%-32s %-12s %7s %7s %7s %6s\n", c.name+", "+fmt.Sprint(len(c.wires[0]))+" events", "codec, level", "v1", "v2", "µs", "x")
		for i, r := range rows {
			fmt.Printf("%-32s %-10s %d %7.4f %7.4f %7.2f %6.2f\n", r.dictionary, r.codec.name, r.codec.level,
				r.codec.ratio(c.wires[0]), r.codec.ratio(c.wires[1]), float64(took[i])/1e3, float64(took[i])/float64(took[reference]))
		}
	}
}
