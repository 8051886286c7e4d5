package status

import (
	"time"

	"slipstream/pkg/eventlog"
)

// Tick is what Run does once a second, at a moment of the test's choice.
func (r *Reporter) Tick(now time.Time) {
	r.follow()
	r.tick(now)
}

// What the tests hold the answers against.
const (
	MaxTracked     = maxTracked
	Shown          = shown
	HistorySamples = historySamples
	HistoryTicks   = historyTicks
)

// Counter counts chunks as a Reporter does.
type Counter struct{ counts }

// NewCounter returns one that has counted nothing.
func NewCounter() *Counter { return &Counter{counts{known: map[string]*collection{}}} }

// Count counts a chunk.
func (c *Counter) Count(chunk *eventlog.Chunk) { c.add(chunk, 0) }
