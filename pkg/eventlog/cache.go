package eventlog

import (
	"container/list"
	"sync"

	"slipstream/pkg/event"
)

// cache keeps what readers of the store share (indexes, payloads, derived forms),
// least recently used out first, within one budget. What is asked for by several at
// once is made once.
type cache struct {
	budget int64
	spare  spare

	mu    sync.Mutex // guards everything below
	used  int64
	order *list.List // of *cached, most recently used first
	items map[cacheKey]*list.Element
}

// cacheKey names an item: what it is, and the cursor it is found by.
type cacheKey struct {
	what   uint64
	at     event.Cursor
	events int // of a derived form: a block and the last of the chunks it was made of end alike
}

// What a cacheKey names: a Form, the index, the excerpt, or a derived form together with its key.
const (
	whatIndex   = uint64(forms)   // found by Chunk.Prev: where a reader stands who finished the chunk before
	whatExcerpt = whatIndex + 1   // likewise
	whatDerived = uint64(1) << 63 // the key is below
)

type cached struct {
	key   cacheKey
	ready chan struct{} // closed when value or err is set
	value any
	err   error
	cost  int64 // guarded by cache.mu; 0 until ready
}

func newCache(budget int64) *cache {
	return &cache{budget: budget, order: list.New(), items: map[cacheKey]*list.Element{}}
}

// get returns an item, or nil if it is not there or not ready.
func (c *cache) get(k cacheKey) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.items[k]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	select {
	case <-e.Value.(*cached).ready:
		return e.Value.(*cached).value
	default:
		return nil
	}
}

// put adds an item unless it is there.
func (c *cache) put(k cacheKey, value any, cost int64) {
	x := &cached{key: k, ready: make(chan struct{}), value: value, cost: cost}
	close(x.ready)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.items[k] != nil {
		return
	}
	c.items[k] = c.order.PushFront(x)
	c.used += cost
	c.evictLocked()
}

// make returns an item, made by the given function if it is not there. Whoever asks
// for the same item meanwhile waits. An error is not kept.
func (c *cache) make(k cacheKey, build func() (value any, cost int64, err error)) (any, error) {
	c.mu.Lock()
	if e := c.items[k]; e != nil {
		c.order.MoveToFront(e)
		c.mu.Unlock()
		x := e.Value.(*cached)
		<-x.ready
		return x.value, x.err
	}
	x := &cached{key: k, ready: make(chan struct{})}
	e := c.order.PushFront(x)
	c.items[k] = e
	c.mu.Unlock()

	value, cost, err := build()
	c.mu.Lock()
	defer c.mu.Unlock()
	x.value, x.err = value, err
	close(x.ready)
	if c.items[k] != e { // evicted meanwhile
		letGo(value)
		return value, err
	}
	if err != nil {
		c.order.Remove(e)
		delete(c.items, k)
		return nil, err
	}
	x.cost = cost
	c.used += cost
	c.evictLocked()
	return value, nil
}

func (c *cache) evictLocked() {
	for c.used > c.budget && c.order.Len() > 1 {
		e := c.order.Back()
		x := e.Value.(*cached)
		c.order.Remove(e)
		delete(c.items, x.key)
		c.used -= x.cost
		letGo(x.value)
	}
}

// letGo is called for a value that the cache has no longer.
func letGo(value any) {
	if s, ok := value.(*shared); ok {
		s.drop()
	}
}

func (c *cache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}
