package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"

	"slipstream/pkg/event"
	"slipstream/pkg/firehose"
	"slipstream/pkg/repo"
	"slipstream/pkg/simrelay"
)

var errEnough = errors.New("enough")

// simulated returns the payloads of n events of a simulated relay, mixed as live traffic is.
func simulated(n int, seed uint64) ([][]byte, error) {
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
	cursor := event.Cursor(1_795_000_000_000_000) // November 2026; 20 s between two events, for all digits to vary
	add := func(frame, did []byte) {
		payload := event.Payload(frame)
		cursor += event.Cursor(rng.IntN(40_000_000))
		event.SetCursor(payload, len(did), cursor)
		all = append(all, payload)
	}
	err = firehose.New(firehose.Config{URL: url}).Run(ctx, firehose.Start{}, func(f firehose.Frame) error {
		defer f.Release()
		switch f.Type {
		case "#commit":
			if commit.Parse(f.Body) != nil {
				return nil
			}
			for _, op := range commit.Ops {
				frame, _, err := event.AppendCommit(nil, commit.Repo, commit.Rev, &event.Op{
					Operation: op.Action.String(), Collection: op.Collection, RKey: op.RKey, CID: op.CID, Record: op.Record,
				})
				if op.Fault == 0 && err == nil {
					add(frame, commit.Repo)
				}
			}
		case "#identity":
			if i, err := repo.ParseIdentity(f.Body); err == nil {
				add(event.AppendIdentity(nil, i.DID, i.Handle, int64(i.Seq), i.Time), i.DID)
			}
		case "#account":
			if a, err := repo.ParseAccount(f.Body); err == nil {
				add(event.AppendAccount(nil, a.DID, a.Active, int64(a.Seq), a.Status, a.Time), a.DID)
			}
		}
		if len(all) >= n {
			return errEnough
		}
		return nil
	})
	cancel()
	if !errors.Is(err, errEnough) {
		return nil, err
	}
	return all, <-done
}
