// Command traindict trains the dictionary that is shipped: see scripts/train-dictionary.sh.
//
// The dictionary's content is the commonest forms of a simulated relay's events, in which what
// differs from event to event is blanked at its width. So an event of such a form is a chain of
// matches at one distance, which costs zstd a bit each. Nobody's words are in it. Pieces of real
// posts in front of the forms, as zstd --train-fastcover chooses them, save 0.3 % of 50 events of
// the live network, and are strangers' posts. Content over 32 KB saves nothing.
//
// libzstd then adds entropy tables. In its own, each symbol has a code, so that its encoder takes
// them as they are; with those of klauspost's builder it makes new ones for each event.
package main

import (
	"flag"
	"fmt"
	"log"
	"math"
	"os"

	"slipstream/pkg/event"
)

func main() {
	log.SetFlags(0)
	out := flag.String("out", "", "dictionary `file` to write")
	id := flag.Uint("id", 0, "dictionary `id`, by convention the date as YYYYMMDD")
	size := flag.Int("size", 32_000, "at most how many `bytes` of content")
	events := flag.Int("events", 20_000, "how many `events` to train on")
	seed := flag.Uint64("seed", 1, "`seed` of the simulated relay")
	flag.Parse()
	if *out == "" || *id == 0 {
		log.Fatal("traindict: -out and -id are needed")
	}
	if err := train(*out, uint32(*id), *size, *events, *seed); err != nil {
		log.Fatal("traindict: ", err)
	}
}

func train(out string, id uint32, size, events int, seed uint64) error {
	all, err := simulated(events+events/10, seed)
	if err != nil {
		return err
	}
	samples, unseen := all[:events], all[events:]
	d, err := build(samples, size, id)
	if err != nil {
		return err
	}
	ratio, err := measure(d, unseen)
	if err != nil {
		return err
	}
	fmt.Printf("%d bytes, id %d, from %d events; %d others: %.4f of the JSON (%s)\n",
		len(d), id, len(samples), len(unseen), ratio, event.Library)
	return os.WriteFile(out, d, 0o644)
}

// build returns the best of three dictionaries: libzstd indexes every third position first,
// and it depends on which those are whether an event finds the form that it has.
func build(samples [][]byte, size int, id uint32) (best []byte, err error) {
	c := content(samples, size)
	least := math.Inf(1)
	for range 3 {
		d, err := finalize(c, samples, id)
		if err != nil {
			return nil, err
		}
		ratio, err := measure(d, samples)
		if err != nil {
			return nil, err
		}
		if ratio < least {
			best, least = d, ratio
		}
		c = append([]byte{' '}, c...)
	}
	return best, nil
}

// measure returns what the events' frames have of the size of their JSON.
func measure(dictionary []byte, events [][]byte) (float64, error) {
	compressor, err := event.NewCompressor(dictionary)
	if err != nil {
		return 0, err
	}
	var frame []byte
	plain, packed := 0, 0
	for _, e := range events {
		frame = compressor.Append(frame[:0], e)
		plain += len(e)
		packed += len(frame)
	}
	return float64(packed) / float64(plain), nil
}
