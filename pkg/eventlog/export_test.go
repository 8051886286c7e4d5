package eventlog

// ParseIndex is for the fuzz test.
var ParseIndex = parseIndex

// Index returns a chunk's encoded index.
func (c *Chunk) Index() []byte { return c.index }

// StoreMetrics returns Pebble's.
func (l *Log) StoreMetrics() string { return l.store.db.Metrics().String() }
