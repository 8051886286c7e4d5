// Command trainevents writes made-up v1 events, one a line, for a dictionary to be trained on:
// see scripts/train-dictionary.sh. Most are a simulated relay's, in the live network's
// proportions. The others are records whose shapes package simrelay does not have: see shapes.go.
package main

import (
	"bufio"
	"flag"
	"log"
	"os"
)

func main() {
	log.SetFlags(0)
	simulated := flag.Int("simulated", 22_000, "how many `events` of a simulated relay")
	shaped := flag.Int("shaped", 8_000, "how many `events` of other shapes")
	seed := flag.Uint64("seed", 1, "`seed` of both")
	flag.Parse()
	if err := write(*simulated, *shaped, *seed); err != nil {
		log.Fatal("trainevents: ", err)
	}
}

func write(simulated, shaped int, seed uint64) error {
	out := bufio.NewWriter(os.Stdout)
	add := func(payload []byte) {
		out.Write(payload)
		out.WriteByte('\n')
	}
	if err := simulate(simulated, seed, add); err != nil {
		return err
	}
	if err := shape(shaped, seed, add); err != nil {
		return err
	}
	return out.Flush()
}
