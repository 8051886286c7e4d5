package eventlog

import "time"

// ParseIndex is for the fuzz test.
var ParseIndex = parseIndex

// Index returns a chunk's encoded index.
func (c *Chunk) Index() []byte { return c.index }

// StoreMetrics returns Pebble's.
func (l *Log) StoreMetrics() string { return l.store.db.Metrics().String() }

// SetTableBytes makes tables of another size.
func (c *Config) SetTableBytes(n int) { c.tableBytes = n }

// SlowClock is the clock of retention.
type SlowClock struct{ c slowClock }

// NewSlowClock returns one that shows now when the machine's clock shows machine.
func NewSlowClock(now, machine time.Time) *SlowClock {
	return &SlowClock{slowClock{now: now, read: machine}}
}

// Advance looks at the machine's clock.
func (c *SlowClock) Advance(machine time.Time) time.Time { return c.c.advance(machine) }

// SetKeptBytes changes what want of free space leaves in the buffer.
func (c *Config) SetKeptBytes(n int64) { c.keptBytes = n }

// SpareBytes is what MaxBytes has to allow for besides events.
const SpareBytes = spareBytes
