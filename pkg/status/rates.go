package status

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

const (
	// smoothing is the time constant of every rate.
	smoothing = 5 * time.Second
	// maxTracked is how many collections have a count of their own. The network has some
	// hundreds, most of them all but idle.
	maxTracked = 256
)

// rate is a count, and how fast it grows.
type rate struct {
	total  uint64
	before uint64  // total when it was last looked at
	second float64 // per second: sum/weight

	sum    float64 // of what it was lately, the newest weighing most
	weight float64 // of all that is in sum; it is 1 after a while
}

// tick brings the rate up to date, dt after it was last.
func (r *rate) tick(dt time.Duration) {
	now := float64(r.total-r.before) / dt.Seconds()
	r.before = r.total
	share := 1 - math.Exp(-dt.Seconds()/smoothing.Seconds())
	r.sum += (now - r.sum) * share
	r.weight += (1 - r.weight) * share
	r.second = r.sum / r.weight
}

// set is tick for a count that is kept elsewhere and never falls.
func (r *rate) set(total uint64, dt time.Duration) {
	r.total = max(total, r.total)
	r.tick(dt)
}

// collection is one that is counted.
type collection struct {
	name string
	rate
}

// counts are those of the log.
type counts struct {
	kinds  [event.KindSync + 1]rate
	known  map[string]*collection
	others rate // of collections that are not known
	all    rate

	scratch []uint64
}

// add counts the events of a chunk after a cursor.
func (n *counts) add(c *eventlog.Chunk, after event.Cursor) {
	entries := c.Entries[c.After(after):]
	n.scratch = slices.Grow(n.scratch[:0], len(c.Collections))[:len(c.Collections)]
	clear(n.scratch)
	for i := range entries {
		e := &entries[i]
		n.kinds[min(e.Kind, event.KindSync)].total++
		if int(e.Collection) < len(n.scratch) {
			n.scratch[e.Collection]++
		}
	}
	n.all.total += uint64(len(entries))
	for i, name := range c.Collections {
		if n.scratch[i] > 0 {
			n.of(name).total += n.scratch[i]
		}
	}
}

// of returns what a collection is counted in.
func (n *counts) of(name string) *rate {
	if known := n.known[name]; known != nil {
		return &known.rate
	}
	if len(n.known) >= 2*maxTracked {
		return &n.others
	}
	known := &collection{name: strings.Clone(name)} // not the index that it is part of
	known.weight = n.all.weight                     // so far there was nothing of it
	n.known[known.name] = known
	return &known.rate
}

// tick brings all rates up to date and returns the known collections, the busiest first.
func (n *counts) tick(dt time.Duration) []*collection {
	for k := range n.kinds {
		n.kinds[k].tick(dt)
	}
	n.all.tick(dt)
	n.others.tick(dt)
	busiest := make([]*collection, 0, len(n.known))
	for _, c := range n.known {
		c.tick(dt)
		busiest = append(busiest, c)
	}
	slices.SortFunc(busiest, func(a, b *collection) int {
		return cmp.Or(cmp.Compare(b.second, a.second), cmp.Compare(b.total, a.total), cmp.Compare(a.name, b.name))
	})
	for len(busiest) > maxTracked {
		last := busiest[len(busiest)-1]
		delete(n.known, last.name)
		n.others.total += last.total
		n.others.before += last.total
		busiest = busiest[:len(busiest)-1]
	}
	return busiest
}
