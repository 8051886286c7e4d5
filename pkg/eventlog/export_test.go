package eventlog

// ParseIndex is for the fuzz test.
var ParseIndex = parseIndex

// Index returns a chunk's encoded index.
func (c *Chunk) Index() []byte { return c.index }
