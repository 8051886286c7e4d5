// Command traindict trains the dictionary that is shipped, from events of the simulated
// relay: see scripts/train-dictionary.sh.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"

	"github.com/klauspost/compress/dict"
	"github.com/klauspost/compress/zstd"

	"slipstream/pkg/event"
	"slipstream/pkg/firehose"
	"slipstream/pkg/repo"
	"slipstream/pkg/simrelay"
)

func main() {
	log.SetFlags(0)
	out := flag.String("out", "", "dictionary `file` to write")
	id := flag.Uint("id", 0, "dictionary `id`, by convention the date as YYYYMMDD")
	size := flag.Int("size", 64<<10, "dictionary size in `bytes`")
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
	all, err := collect(events+events/10, seed)
	if err != nil {
		return err
	}
	samples, held := all[:events], all[events:]
	d, err := dict.BuildZstdDict(samples, dict.Options{
		MaxDictSize: size, HashBytes: 6, ZstdDictID: id, ZstdDictCompat: true, ZstdLevel: zstd.SpeedBestCompression,
	})
	if err != nil {
		return fmt.Errorf("build dictionary: %w", err)
	}
	compressor, err := event.NewCompressor(d)
	if err != nil {
		return err
	}
	plain, packed := 0, 0
	for _, e := range held {
		plain += len(e)
		packed += len(compressor.Append(nil, e))
	}
	fmt.Printf("%d bytes, id %d, %d events held out: %.3f of the JSON (%s)\n",
		len(d), id, len(held), float64(packed)/float64(plain), event.Library)
	return os.WriteFile(out, d, 0o644)
}

var errEnough = errors.New("enough")

// collect returns the payloads of n events of a simulated relay with many accounts: a
// dictionary that learns a DID has learnt nothing.
func collect(n int, seed uint64) ([][]byte, error) {
	relay, err := simrelay.New(simrelay.Config{Seed: seed, Accounts: 2000})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: relay.Handler()}
	defer server.Close()
	go server.Serve(listener)

	url, err := firehose.ParseURL("ws://" + listener.Addr().String())
	if err != nil {
		return nil, err
	}
	var all [][]byte
	var commit repo.Commit
	rng := rand.New(rand.NewPCG(seed, 0))
	cursor := event.Cursor(1_790_000_000_000_000)
	err = firehose.New(firehose.Config{URL: url}).Run(ctx, firehose.Start{}, func(f firehose.Frame) error {
		defer f.Release()
		if f.Type != "#commit" || commit.Parse(f.Body) != nil {
			return nil
		}
		for _, op := range commit.Ops {
			if op.Fault != 0 {
				continue
			}
			frame, _, err := event.AppendCommit(nil, commit.Repo, commit.Rev, &event.Op{
				Operation: op.Action.String(), Collection: op.Collection, RKey: op.RKey, CID: op.CID, Record: op.Record,
			})
			if err != nil {
				continue
			}
			cursor += event.Cursor(rng.IntN(40_000_000))
			payload := event.Payload(frame)
			event.SetCursor(payload, len(commit.Repo), cursor)
			if all = append(all, payload); len(all) == n {
				return errEnough
			}
		}
		return nil
	})
	cancel()
	if !errors.Is(err, errEnough) {
		return nil, err
	}
	return all, <-done
}
