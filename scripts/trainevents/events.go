package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"

	"slipstream/pkg/event"
	"slipstream/pkg/firehose"
	"slipstream/pkg/repo"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/train"
)

// start is the time of the first event, in November 2026. The simulated relay's own clock goes
// by milliseconds; with half a minute between two events, all digits vary.
const start event.Cursor = 1_795_651_200_000_000

const step = 40_000_000 // at most, in microseconds

// toNovember moves the relay's clock, which starts in July 2026.
var toNovember = strings.NewReplacer(`"2026-07-0`, `"2026-11-2`, `"3mp`, `"3n3`, `/3mp`, `/3n3`)

var errEnough = errors.New("enough")

// simulate makes n events of a simulated relay, mixed as live traffic is.
func simulate(n int, seed uint64, add func(payload []byte)) error {
	relay, err := simrelay.New(simrelay.Config{Seed: seed, Accounts: 2000})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: relay.Handler()}
	defer server.Close()
	go server.Serve(listener)

	url, err := firehose.ParseURL("ws://" + listener.Addr().String())
	if err != nil {
		return err
	}
	var commit repo.Commit
	rng := rand.New(rand.NewPCG(seed, 0))
	cursor := start
	err = firehose.New(firehose.Config{URL: url}).Run(ctx, firehose.Start{}, func(f firehose.Frame) error {
		defer f.Release()
		for _, payload := range train.Render(&commit, f.Type, f.Body) {
			if n--; n < 0 {
				return errEnough
			}
			cursor += event.Cursor(rng.IntN(step))
			event.SetCursor(payload, bytes.IndexByte(payload[event.DIDOffset:], '"'), cursor)
			add([]byte(toNovember.Replace(string(payload))))
		}
		return nil
	})
	cancel()
	if !errors.Is(err, errEnough) {
		return err
	}
	return <-done
}
