package eventlog_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// block makes a chunk of the size that blocks have, whose lengths and repetitions are like the
// live network's.
func block(b *testing.B) *eventlog.Chunk {
	rng := rand.New(rand.NewPCG(1, 2))
	var builder eventlog.Builder
	var end [3]uint32
	cursor := event.Cursor(start)
	for i := range 1000 {
		cursor += event.Cursor(1 + rng.IntN(4000))
		end[eventlog.JSON] += uint32(300 + rng.IntN(500))
		end[eventlog.Zstd] += uint32(100 + rng.IntN(150))
		kind, collection := event.KindCommit, []byte(fmt.Sprintf("app.bsky.feed.c%d", rng.IntN(30)))
		if i%110 == 0 {
			kind, collection = event.KindIdentity, nil
		}
		builder.Add(cursor, kind, []byte(fmt.Sprintf("did:plc:%024d", rng.IntN(1200))), collection, end)
	}
	c, err := builder.Seal(start-1, 7, make([]byte, end[eventlog.JSON]), make([]byte, end[eventlog.Zstd]), nil)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkParseIndex is what each block costs a replay that cannot pass over it: 1,000 events.
func BenchmarkParseIndex(b *testing.B) {
	x := block(b).Index()
	b.SetBytes(int64(len(x)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := eventlog.ParseIndex(x); err != nil {
			b.Fatal(err)
		}
	}
}
