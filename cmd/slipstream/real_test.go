package main

import (
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"

	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
)

// Real frames come out as the events that production served for them, in the same
// order, live and replayed, plain and compressed.
func TestRealFrames(t *testing.T) {
	frames, want := realFrames(t)
	relay := make(chan struct{})
	upstream := serveHandler(t, gate(relay, simrelay.Replay(frames)))
	d := startDaemon(t, testConfig(t, upstream))

	plain := newReader(t, dial(t, d.addr, ""))
	packed := newReader(t, dial(t, d.addr, "compress=true"))
	close(relay)
	checkEvents(t, "live", plain.messages(t, len(want)), want)
	checkEvents(t, "live, compressed", packed.messages(t, len(want)), want)

	plain = newReader(t, dial(t, d.addr, "cursor=0"))
	packed = newReader(t, dial(t, d.addr, "cursor=1&compress=true"))
	checkEvents(t, "replayed", plain.messages(t, len(want)), want)
	checkEvents(t, "replayed, compressed", packed.messages(t, len(want)), want)
}

// With the dictionary that v1 clients have built in as the primary one, they read
// everything: what is stored under it and what was stored before under another.
func TestLegacyDictionary(t *testing.T) {
	file := shared(t, "dictionaries/legacy_subscribe.zdict")
	legacy, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	frames, want := realFrames(t)
	upstream := serveHandler(t, simrelay.Replay(frames[:20]))
	cfg := testConfig(t, upstream)
	d := startDaemon(t, cfg)
	newReader(t, dial(t, d.addr, "cursor=0")).messages(t, 20)
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}

	// The other thirty come after the change.
	upstream = serveHandler(t, simrelay.Replay(frames))
	if cfg.UpstreamURLs[0], err = firehose.ParseURL(upstream); err != nil {
		t.Fatal(err)
	}
	cfg.LegacyDictionary = file
	d = startDaemon(t, cfg)
	ws := dial(t, d.addr, "cursor=0&compress=true")
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(legacy), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	checkEvents(t, "legacy dictionary", (&reader{ws, dec}).messages(t, len(want)), want)
}
