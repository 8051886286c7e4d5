package main

import (
	"testing"

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
