package subscribe

import (
	"slices"
	"strings"
	"sync"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// interest is the index of who wants what: a chunk looks up its own DIDs and collections
// in it, and finds the subscribers concerned without asking the others.
//
// A subscriber is in it from its first to its last moment, under what its filter wants,
// whether it is caught up or not. Being parked is a state of its own (see parked), so that
// waking it and putting it back touches none of the sets: a filter may name 10,000 DIDs.
//
// The sets are slices. Walking them costs 1 to 4 ns for each subscriber that they name
// (BenchmarkDispatch), a thousandth of the write that follows. With RoaringBitmaps of
// subscriber numbers instead, uniting those of ten collections with the one of who is parked
// and walking the result took 10 to 19 ns for each, and taking one out of the parked and
// putting it back 46: nothing is left to win where the fastest part is the simplest.
type interest struct {
	// changing is held for a change, before mu: of all that want to change something, dispatch
	// waits for one at most.
	changing sync.Mutex

	mu sync.Mutex // guards everything below

	// Of those that name no DIDs:
	open        set                     // all of them
	kinds       [event.KindSync + 1]set // by the kinds that they want all events of
	collections map[string]set          // by exact NSID
	prefixes    map[string]set          // by prefix with its final dot

	// Of those that name DIDs, by each of them: the first who names it, and the others. Most
	// DIDs are named by one, and there may be millions.
	first  map[string]*subscriber
	others map[string]set

	// The smallest event of each collection of the chunk that is being dispatched.
	smallest []int
}

// set holds subscribers in no order.
type set []*subscriber

func (s set) without(sub *subscriber) set {
	i := slices.Index(s, sub)
	if i < 0 {
		return s
	}
	s[i] = s[len(s)-1]
	s[len(s)-1] = nil
	s = s[:len(s)-1]
	if cap(s) > 64 && len(s) < cap(s)/4 {
		s = slices.Clone(s) // after a crowd has left
	}
	return s
}

func newInterest() *interest {
	return &interest{collections: map[string]set{}, prefixes: map[string]set{}, first: map[string]*subscriber{}, others: map[string]set{}}
}

// set puts the subscriber under a filter instead of the one it had; nil: none. Every chunk
// is dispatched by either the old filter or the new one.
func (x *interest) set(sub *subscriber, f *Filter) {
	x.changing.Lock()
	defer x.changing.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := sub.filter.Load(); old != nil {
		for did := range old.dids {
			x.forget(did, sub)
		}
		x.each(old, func(s set) set { return s.without(sub) })
	}
	sub.filter.Store(f)
	if f != nil {
		for did := range f.dids {
			if x.first[did] == nil {
				x.first[did] = sub
			} else {
				x.others[did] = append(x.others[did], sub)
			}
		}
		x.each(f, func(s set) set { return append(s, sub) })
	}
}

// forget takes a subscriber out from under a DID.
func (x *interest) forget(did string, sub *subscriber) {
	others := x.others[did]
	switch {
	case x.first[did] != sub:
		others = others.without(sub)
	case len(others) > 0:
		x.first[did] = others[0]
		others = others.without(others[0])
	default:
		delete(x.first, did)
		return
	}
	if len(others) == 0 {
		delete(x.others, did)
	} else {
		x.others[did] = others
	}
}

// each changes every set that a filter without DIDs belongs in.
func (x *interest) each(f *Filter, change func(set) set) {
	if f.dids != nil {
		return
	}
	in := func(m map[string]set, key string) {
		if s := change(m[key]); len(s) > 0 {
			m[key] = s
		} else {
			delete(m, key)
		}
	}
	x.open = change(x.open)
	for kind := range x.kinds {
		if k := event.Kind(kind); f.kinds.has(k) && (k != event.KindCommit || f.anyCollection()) {
			x.kinds[kind] = change(x.kinds[kind])
		}
	}
	for name := range f.collections.Exact {
		in(x.collections, name)
	}
	for _, prefix := range f.collections.Prefixes {
		in(x.prefixes, prefix)
	}
}

// dispatch calls wake for the subscribers that want an event of the chunk, possibly
// several times for one.
func (x *interest) dispatch(c *eventlog.Chunk, wake func(*subscriber)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	// The size of the smallest event of each collection and of each kind; 0: there is none. (A
	// payload is never empty.)
	least := func(to *int, size int) {
		if *to == 0 || size < *to {
			*to = size
		}
	}
	x.smallest = append(x.smallest[:0], make([]int, len(c.Collections))...)
	var smallest [len(x.kinds)]int
	var dids []string
	if len(x.first) > 0 {
		dids = c.DIDs()
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		size := payloadSize(c, i)
		least(&smallest[e.Kind], size)
		if e.Kind == event.KindCommit {
			least(&x.smallest[e.Collection], size)
		}
		if dids == nil {
			continue
		}
		did := dids[e.DID]
		if sub := x.first[did]; sub != nil {
			ask := func(sub *subscriber) {
				if f := sub.filter.Load(); f.kinds.has(e.Kind) && f.fits(size, e.Cursor, e.Kind) && (e.Kind != event.KindCommit || f.wantsCollection(c.Collections[e.Collection])) {
					wake(sub)
				}
			}
			ask(sub)
			for _, sub := range x.others[did] {
				ask(sub)
			}
		}
	}
	all := func(s set, kind event.Kind, smallest int) {
		if smallest == 0 {
			return
		}
		for _, sub := range s {
			if sub.filter.Load().fits(smallest, c.First(), kind) {
				wake(sub)
			}
		}
	}
	for kind, s := range x.kinds {
		all(s, event.Kind(kind), smallest[kind])
	}
	for i, name := range c.Collections {
		all(x.collections[name], event.KindCommit, x.smallest[i])
		if len(x.prefixes) == 0 {
			continue
		}
		for at := 0; ; {
			dot := strings.IndexByte(name[at:], '.')
			if dot < 0 {
				break
			}
			at += dot + 1
			all(x.prefixes[name[:at]], event.KindCommit, x.smallest[i])
		}
	}
}

// everyone calls wake for all subscribers, possibly several times for one.
func (x *interest) everyone(wake func(*subscriber)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, sub := range x.open {
		wake(sub)
	}
	for did, sub := range x.first {
		wake(sub)
		for _, sub := range x.others[did] {
			wake(sub)
		}
	}
}
