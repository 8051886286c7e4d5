package subscribe

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// Limits of both wires.
const (
	maxCollections = 100
	maxDIDs        = 10_000
)

// Filter says which events a subscriber wants. It is immutable; nil fields match all.
type Filter struct {
	wire        wire
	kinds       kinds
	collections event.Collections // of commits
	dids        map[string]struct{}
	hashes      []uint32 // of dids, ascending
	maxSize     int      // of the JSON payload in bytes; 0: no limit
}

// NewFilter makes a filter of the v1 wire, of the values of wantedCollections, wantedDids
// and maxMessageSizeBytes. Its errors name the parameter and are meant for the consumer.
func NewFilter(collections, dids []string, maxSize int) (*Filter, error) {
	f := &Filter{wire: v1, kinds: wireKinds[v1], maxSize: max(maxSize, 0)}
	if err := f.wantCollections("wantedCollections", collections); err != nil {
		return nil, err
	}
	if err := f.wantDIDs("wantedDids", dids); err != nil {
		return nil, err
	}
	return f, nil
}

// newFilterV2 makes a filter of the v2 wire, of the values of kinds, dids and collections. Its
// errors name the parameter and are meant for the consumer.
func newFilterV2(names, dids, collections []string) (*Filter, error) {
	f := &Filter{wire: v2, kinds: wireKinds[v2]}
	if err := checkCount("kinds", len(names), 4); err != nil {
		return nil, err
	}
	if len(names) > 0 {
		f.kinds = 0
	}
	for _, name := range names {
		kind, ok := event.ParseKind(name)
		if !ok {
			return nil, fmt.Errorf("kinds: %s is none of commit, identity, account and sync", quote(name))
		}
		f.kinds |= kindsOf(kind)
	}
	if len(collections) > 0 && !f.kinds.has(event.KindCommit) {
		return nil, errors.New("collections: only commits have one, and kinds leaves them out; leave out collections, or add kinds=commit")
	}
	if err := f.wantCollections("collections", collections); err != nil {
		return nil, err
	}
	if err := f.wantDIDs("dids", dids); err != nil {
		return nil, err
	}
	return f, nil
}

// wantCollections sets the collections to the values of a parameter.
func (f *Filter) wantCollections(name string, values []string) error {
	if err := checkCount(name, len(values), maxCollections); err != nil {
		return err
	}
	for _, c := range values {
		if err := f.collections.Add(c); err != nil {
			return fmt.Errorf("%s: %s %w", name, quote(c), err)
		}
	}
	return nil
}

// wantDIDs sets the DIDs to the values of a parameter.
func (f *Filter) wantDIDs(name string, values []string) error {
	if err := checkCount(name, len(values), maxDIDs); err != nil {
		return err
	}
	for _, d := range values {
		if _, err := syntax.ParseDID(d); err != nil {
			return fmt.Errorf("%s: %s is not a DID, like did:plc:z72i7hdynmk6r22z27h6tvur", name, quote(d))
		}
		if f.dids == nil {
			f.dids = make(map[string]struct{}, len(values))
		}
		f.dids[strings.Clone(d)] = struct{}{} // the query that it is a part of may be long
	}
	for d := range f.dids {
		f.hashes = append(f.hashes, eventlog.HashDID(d))
	}
	slices.Sort(f.hashes)
	return nil
}

// checkCount refuses more values than a limit.
func checkCount(name string, n, limit int) error {
	if n > limit {
		return fmt.Errorf("%s: %d values, at most %d are allowed", name, n, limit)
	}
	return nil
}

// quote quotes what a consumer sent, cut to what fits into a sentence.
func quote(s string) string {
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}

// anyCollection reports whether the filter names no collections.
func (f *Filter) anyCollection() bool { return f.collections.Empty() }

// wantsCollection reports whether the filter wants commits to a collection.
func (f *Filter) wantsCollection(name string) bool {
	return f.kinds.has(event.KindCommit) && (f.anyCollection() || f.collections.Has(name))
}

// cost is what a filter takes of the budget that all share: one for each collection and DID,
// and more for long ones, since it is memory that is bounded.
func (f *Filter) cost() (n int) {
	for name := range f.collections.Exact {
		n += 1 + len(name)/64
	}
	for _, prefix := range f.collections.Prefixes {
		n += 1 + len(prefix)/64
	}
	for did := range f.dids {
		n += 1 + len(did)/64
	}
	return n
}

// fits reports whether an event is small enough: maxMessageSizeBytes is about the JSON that
// a consumer gets, whatever the compression. size is that of its payload: see payloadSize.
func (f *Filter) fits(size int, at event.Cursor, kind event.Kind) bool {
	if f.maxSize == 0 {
		return true
	}
	if f.wire == v2 {
		size = event.MessageLen(size, at, kind)
	}
	return size <= f.maxSize
}

// payloadSize returns the length of an event's JSON on the v1 wire or, for a sync event, of
// what stands for it.
func payloadSize(c *eventlog.Chunk, i int) int {
	e := &c.Entries[i]
	if e.Kind == event.KindSync {
		return int(e.End[eventlog.Extra] - c.Start(i, eventlog.Extra))
	}
	return event.PayloadLen(int(e.End[eventlog.JSON] - c.Start(i, eventlog.JSON)))
}

// takesAll reports whether there is hardly a chunk that has nothing for the filter.
func (f *Filter) takesAll() bool {
	return f.anyCollection() && f.dids == nil && f.kinds.has(event.KindCommit)
}

// need returns how much the filter needs of the chunk that is summed up: a chunk on disk that
// has nothing for it is passed over unread.
func (f *Filter) need(s *eventlog.Summary) eventlog.Need {
	if f.dids != nil && !s.HasAny(f.hashes) {
		return eventlog.Nothing
	}
	some := false
	for kind, n := range s.Kinds {
		// What is no commit is wanted whatever the collections.
		some = some || n > 0 && event.Kind(kind) != event.KindCommit && f.kinds.has(event.Kind(kind))
	}
	for name, excerpted := range s.Collections {
		if f.wantsCollection(string(name)) {
			if !excerpted {
				return eventlog.Everything
			}
			some = true
		}
	}
	if some {
		return eventlog.Excerpt
	}
	return eventlog.Nothing
}

// matcher is a filter looked up in one chunk's tables of collections and DIDs. It belongs to
// one writer.
type matcher struct {
	filter *Filter
	chunk  *eventlog.Chunk
	wanted []bool // per collection of the chunk
	dids   []bool // per DID of the chunk, if the filter names any
	some   bool   // there is such a DID
	all    bool   // the filter wants every event that its wire has
}

// reset prepares the matcher for a chunk.
func (m *matcher) reset(f *Filter, c *eventlog.Chunk) {
	m.filter, m.chunk = f, c
	m.all = f.anyCollection() && f.dids == nil && f.maxSize == 0 && f.kinds == wireKinds[f.wire]
	m.wanted, m.dids, m.some = m.wanted[:0], m.dids[:0], f.dids == nil
	if m.all {
		return
	}
	if f.dids != nil {
		m.findDIDs()
	}
	for _, name := range c.Collections {
		m.wanted = append(m.wanted, m.some && f.wantsCollection(name))
	}
}

// findDIDs looks up which of the chunk's DIDs the filter names. Hashes are compared, so as
// not to look at every name, nor even make the chunk's names of its index: where one is the
// same, the name decides.
func (m *matcher) findDIDs() {
	hashes, own := m.filter.hashes, m.chunk.Hashes
	m.dids = append(m.dids, make([]bool, len(own))...)
	found := func(i int) {
		if _, ok := m.filter.dids[m.chunk.DIDs()[i]]; ok {
			m.dids[i], m.some = true, true
		}
	}
	// Of a few in one and many in the other, the few are looked up; else it is cheaper to
	// walk along both. Several DIDs may have one hash.
	switch {
	case 8*len(hashes) < len(own):
		for _, h := range hashes {
			for i, _ := slices.BinarySearch(own, h); i < len(own) && own[i] == h; i++ {
				found(i)
			}
		}
	case 8*len(own) < len(hashes):
		for i, h := range own {
			if _, ok := slices.BinarySearch(hashes, h); ok {
				found(i)
			}
		}
	default:
		for i, j := 0, 0; i < len(own) && j < len(hashes); {
			switch {
			case own[i] < hashes[j]:
				i++
			case own[i] > hashes[j]:
				j++
			default:
				found(i)
				i++
			}
		}
	}
}

// none reports whether the chunk has nothing for the filter, as far as its collections and
// DIDs tell.
func (m *matcher) none() bool {
	if m.all || slices.Contains(m.wanted, true) {
		return false
	}
	if !m.some {
		return true
	}
	for i := range m.chunk.Entries {
		if kind := m.chunk.Entries[i].Kind; kind != event.KindCommit && m.filter.kinds.has(kind) {
			return false
		}
	}
	return true
}

// wants reports whether event i of the chunk is wanted. What is no commit passes any filter
// of collections.
func (m *matcher) wants(i int) bool {
	e := &m.chunk.Entries[i]
	if !m.filter.kinds.has(e.Kind) {
		return false
	}
	if m.all {
		return true
	}
	if e.Kind == event.KindCommit && !m.wanted[e.Collection] {
		return false
	}
	if len(m.dids) > 0 && !m.dids[e.DID] {
		return false
	}
	return m.filter.maxSize == 0 || m.filter.fits(payloadSize(m.chunk, i), e.Cursor, e.Kind)
}
