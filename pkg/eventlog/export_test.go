package eventlog

// ParseIndex is for the fuzz test.
var ParseIndex = parseIndex

// ParseSummary is, too.
var ParseSummary = parseSummary

// ParseExcerpt is, too.
var ParseExcerpt = parseExcerpt

// Head returns what is stored of a chunk, whose payloads are there, as a block's head.
func (c *Chunk) Head() ([]byte, error) {
	var x excerpter
	head, _, err := x.split(c)
	return head, err
}

// Index returns a chunk's encoded index.
func (c *Chunk) Index() []byte { return c.index }

// StoreMetrics returns Pebble's.
func (l *Log) StoreMetrics() string { return l.store.db.Metrics().String() }

// SetTableBytes makes tables of another size.
func (c *Config) SetTableBytes(n int) { c.tableBytes = n }

// AgeLimit is up to where events are too old.
var AgeLimit = ageLimit

// SetKeptBytes changes what want of free space leaves in the buffer.
func (c *Config) SetKeptBytes(n int64) { c.keptBytes = n }

// SpareBytes is what MaxBytes has to allow for besides events.
const SpareBytes = spareBytes
