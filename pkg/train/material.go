package train

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"

	"slipstream/pkg/event"
)

// Event is one event to learn from, or to measure with.
type Event struct {
	V1, V2 []byte // its payload on either wire

	// Name is what it is counted as: a commit's collection, or the kind.
	Name string

	cursor event.Cursor
	unit   string // whose it is: events of one unit are learnt from together, or not at all
	hash   uint64 // of V1
}

// Source gathers the events of one file or data dir. Of more than [MaxEvents] it keeps a
// sample, the same in whatever order they come. It is safe for concurrent use.
type Source struct {
	Name string
	// One says that all events are of one author, whatever the DIDs in them.
	One bool

	// Guarded by mu.
	mu     sync.Mutex
	events []Event
}

// MaxEvents is how many events of a source are kept: more change the fourth digit of no ratio,
// and a data dir has forty million.
const MaxEvents = 50_000

// Add parses a v1 payload and keeps a copy. Anything but what Slipstream writes is an error: a
// dictionary of other bytes would be of no use.
func (s *Source) Add(payload []byte) error {
	var p struct {
		DID    string       `json:"did"`
		Cursor event.Cursor `json:"time_us"`
		Kind   string       `json:"kind"`
		Commit struct {
			Collection string `json:"collection"`
		} `json:"commit"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return fmt.Errorf("no v1 event: %w", err)
	}
	kind := event.KindCommit
	for kind <= event.KindAccount && kind.String() != p.Kind {
		kind++
	}
	if err := event.Check(payload, p.DID, p.Cursor, kind, p.Commit.Collection); err != nil {
		return fmt.Errorf("no v1 event as Slipstream writes it: %w", err)
	}
	h := fnv.New64a()
	h.Write(payload)
	e := Event{V1: bytes.Clone(payload), Name: cmp.Or(p.Commit.Collection, p.Kind), cursor: p.Cursor, unit: p.DID, hash: h.Sum64()}
	message, err := event.AppendMessage(nil, e.V1, p.Cursor, kind)
	if err != nil {
		return err
	}
	e.V2 = event.Payload(message)
	if s.One {
		e.unit = s.Name
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.events = append(s.events, e); len(s.events) >= 2*MaxEvents {
		s.cut()
	}
	return nil
}

// Events returns what was kept, in an order of its own.
func (s *Source) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut()
	return s.events
}

func (s *Source) cut() {
	slices.SortFunc(s.events, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), bytes.Compare(a.V1, b.V1))
	})
	s.events = s.events[:min(len(s.events), MaxEvents)]
}

// fold returns which of k parts an author's events are in.
func fold(unit string, k int) int {
	h := fnv.New64a()
	h.Write([]byte(unit))
	return int(h.Sum64() >> 8 % uint64(k))
}

// live is what share of the live network's events is of the collections that are most of it, by
// Jetstream's own count in 2026. Material is weighed by it, and so are ratios: what a source has
// many of need not be what consumers receive.
var live = map[string]float64{
	"app.bsky.feed.like": 0.70, "app.bsky.feed.post": 0.12, "app.bsky.feed.repost": 0.10, "app.bsky.graph.follow": 0.06,
}

const (
	rest      = "others" // everything that live does not name
	restShare = 0.02
)

// groupNames are in a fixed order, which sums of floats depend on.
var groupNames = append(slices.Sorted(maps.Keys(live)), rest)

// group returns what an event is weighed as, and the share of that.
func group(name string) (string, float64) {
	if share, ok := live[name]; ok {
		return name, share
	}
	return rest, restShare
}

// weigh returns what each event counts, all together 1 if no group is missing.
func weigh(events []Event) []float64 {
	count := map[string]float64{}
	for i := range events {
		g, _ := group(events[i].Name)
		count[g]++
	}
	weights := make([]float64, len(events))
	for i := range events {
		g, share := group(events[i].Name)
		weights[i] = share / count[g]
	}
	return weights
}

// drawn returns n events or so in the live network's proportions, some of them often.
func drawn(events []Event, n int) []Event {
	groups := map[string][]Event{}
	for i := range events {
		g, _ := group(events[i].Name)
		groups[g] = append(groups[g], events[i])
	}
	var all []Event
	for _, name := range groupNames {
		_, share := group(name)
		for i := range int(share * float64(n)) {
			if g := groups[name]; g != nil {
				all = append(all, g[i%len(g)])
			}
		}
	}
	return all
}

// Tally sums up what events took, by name.
type Tally map[string]*Sum

// Sum is of events of one name.
type Sum struct {
	Events        int
	Plain, Packed [2]int // bytes on the v1 and v2 wires
}

// Measure adds what a compressor makes of the events.
func (t Tally) Measure(c *event.Compressor, events []Event) {
	var frame []byte
	for i := range events {
		e := &events[i]
		s := t[e.Name]
		if s == nil {
			s = &Sum{}
			t[e.Name] = s
		}
		s.Events++
		for wire, payload := range [][]byte{e.V1, e.V2} {
			frame = c.Append(frame[:0], payload)
			s.Plain[wire] += len(payload)
			s.Packed[wire] += len(frame)
		}
	}
}

func (t Tally) add(o Tally) {
	for name, s := range o {
		if t[name] == nil {
			t[name] = &Sum{}
		}
		t[name].Events += s.Events
		for wire := range s.Plain {
			t[name].Plain[wire] += s.Plain[wire]
			t[name].Packed[wire] += s.Packed[wire]
		}
	}
}

// Ratio returns what is left of the JSON on a wire, 0 for v1 and 1 for v2, of events as they
// are counted.
func (t Tally) Ratio(wire int) float64 {
	plain, packed := 0, 0
	for _, s := range t {
		plain += s.Plain[wire]
		packed += s.Packed[wire]
	}
	return float64(packed) / float64(plain)
}

// Live returns the ratio in the live network's proportions, as far as there are events.
func (t Tally) Live(wire int) float64 {
	groups := map[string]*Sum{}
	for name, s := range t {
		g, _ := group(name)
		if groups[g] == nil {
			groups[g] = &Sum{}
		}
		groups[g].Events += s.Events
		groups[g].Plain[wire] += s.Plain[wire]
		groups[g].Packed[wire] += s.Packed[wire]
	}
	plain, packed := 0.0, 0.0
	for _, name := range groupNames {
		if s := groups[name]; s != nil {
			_, share := group(name)
			plain += share * float64(s.Plain[wire]) / float64(s.Events)
			packed += share * float64(s.Packed[wire]) / float64(s.Events)
		}
	}
	return packed / plain
}

// era is what the identifiers and times of a time have in common, and will for a while: the
// year, and the first digits of what counts microseconds.
type era struct{ year, cursor, seq, tid string }

// eraOf returns that of the newest event.
func eraOf(events []Event) era {
	newest := event.Epoch
	for i := range events {
		newest = max(newest, events[i].cursor)
	}
	return era{
		year:   newest.Time().UTC().Format("2006"),
		cursor: newest.String()[:2],                          // for 116 days
		seq:    fmt.Sprintf("%015d", newest.V2Seq())[:2],     // as long
		tid:    string(appendTID(nil, int64(newest), 0)[:2]), // for 407 days
	}
}

const tidAlphabet = "234567abcdefghijklmnopqrstuvwxyz"

// appendTID appends the record key of a microsecond.
func appendTID(dst []byte, us int64, clock uint16) []byte {
	v := uint64(us)<<10 | uint64(clock&1023)
	for shift := 60; shift >= 0; shift -= 5 {
		dst = append(dst, tidAlphabet[v>>shift&31])
	}
	return dst
}
