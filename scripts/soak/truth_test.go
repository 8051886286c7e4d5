package soak

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// wire is a protocol.
type wire int

const (
	v1 wire = iota
	v2
)

// entry is one event as everybody must receive it.
type entry struct {
	us              int64 // time_us
	kind            string
	did, collection string
	key             uint64    // what the relay says of it
	sums            [2]uint64 // of its bytes, by wire; 0: nobody has received it there. Atomic
}

// A truth is the stream: the relay's order, and the time_us that the daemon has given. A witness
// that receives everything makes it, held against the relay's ledger; all others are held
// against the truth.
type truth struct {
	relay interface {
		LastSeq() int64
		Expected(seq int64) []simrelay.Expected
	}
	ttl  time.Duration // that the daemon keeps events for at least
	seed maphash.Seed
	over <-chan struct{} // closed when nobody is to wait any more

	mu      sync.RWMutex // guards everything below
	base    int          // the number of the first entry
	entries []entry
	seq     int64               // of the next frame to be expected
	queue   []simrelay.Expected // of the frames before it, not received yet
	names   map[string]string
}

// keepEntries is how many events the truth remembers at least: more than any consumer is behind.
const keepEntries = 200_000

func newTruth(relay *simrelay.Relay, ttl time.Duration, over <-chan struct{}) *truth {
	return &truth{relay: relay, ttl: ttl, over: over, seed: maphash.MakeSeed(), seq: simrelay.DefaultFirstSeq, names: map[string]string{}}
}

// witness takes an event that the witness has received. The caller has found that it is newer
// than all before.
func (t *truth) witness(us int64, w wire, message []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.queue) == 0 {
		if t.seq > t.relay.LastSeq() {
			return fmt.Errorf("one event too many, at %d: %s", us, message)
		}
		t.queue = t.relay.Expected(t.seq)
		t.seq++
	}
	want := &t.queue[0]
	key := expectedKey(want)
	if got, err := receivedKey(w, message); err != nil || got != key {
		return fmt.Errorf("an event is lost, too many or in the wrong place, at %d: %v: got %s in %s, want %s", us, err, got, message, key)
	}
	if len(t.entries) >= 2*keepEntries {
		t.base += keepEntries
		t.entries = append([]entry(nil), t.entries[keepEntries:]...)
	}
	e := entry{us: us, kind: want.Kind, did: t.name(want.DID), collection: t.name(want.Collection), key: maphash.String(t.seed, key)}
	e.sums[w] = maphash.Bytes(t.seed, message)
	t.entries = append(t.entries, e)
	t.queue = t.queue[1:]
	return nil
}

func (t *truth) name(s string) string {
	if known, ok := t.names[s]; ok {
		return known
	}
	t.names[s] = s
	return s
}

// complete reports whether everything that the relay has sent is there.
func (t *truth) complete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.queue) == 0 && t.seq <= t.relay.LastSeq() {
		t.queue = t.relay.Expected(t.seq)
		t.seq++
	}
	return len(t.queue) == 0
}

// dids returns some repositories that there were events of.
func (t *truth) dids(skip, n int) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	seen := map[string]bool{}
	var all []string
	for i := skip; i < len(t.entries) && len(all) < n; i++ {
		if did := t.entries[i].did; !seen[did] {
			seen[did] = true
			all = append(all, did)
		}
	}
	return all
}

// size returns how many events there were.
func (t *truth) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base + len(t.entries)
}

// newest returns the time_us of the newest event; 0: there is none.
func (t *truth) newest() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.entries) == 0 {
		return 0
	}
	return t.entries[len(t.entries)-1].us
}

// wait waits until the witness has received what another consumer has.
func (t *truth) wait(us int64) error {
	late := time.After(testproc.Patience)
	for t.newest() < us {
		select {
		case <-t.over:
			return errors.New("the soak is over")
		case <-late:
			return fmt.Errorf("the witness has not received %d", us)
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// findLocked returns the number of an event.
func (t *truth) findLocked(us int64) (int, bool) {
	i := sort.Search(len(t.entries), func(i int) bool { return t.entries[i].us >= us })
	return t.base + i, i < len(t.entries) && t.entries[i].us == us
}

func (t *truth) atLocked(i int) *entry { return &t.entries[i-t.base] }

// sameLocked holds what a consumer has received against an entry: who is the first to receive it
// on this wire against the relay's ledger, all others against its bytes.
func (t *truth) sameLocked(e *entry, w wire, message []byte) error {
	sum := maphash.Bytes(t.seed, message)
	if atomic.LoadUint64(&e.sums[w]) == 0 {
		key, err := receivedKey(w, message)
		if err != nil || maphash.String(t.seed, key) != e.key {
			return fmt.Errorf("not what the relay sent: %v: %s", err, message)
		}
		atomic.CompareAndSwapUint64(&e.sums[w], 0, sum)
	}
	if atomic.LoadUint64(&e.sums[w]) != sum {
		return fmt.Errorf("not the bytes that others were sent: %s", message)
	}
	return nil
}

// expectedKey is all that the relay's ledger says of an event but its record, for which the CID
// stands.
func expectedKey(e *simrelay.Expected) string {
	switch e.Kind {
	case "commit":
		return strings.Join([]string{e.DID, e.Kind, e.Rev, e.Action, e.Collection, e.RKey, e.CID}, " ")
	case "identity":
		return fmt.Sprint(e.DID, " ", e.Kind, " ", e.Seq, " ", e.Handle)
	case "account":
		return fmt.Sprint(e.DID, " ", e.Kind, " ", e.Seq, " ", e.Active, " ", e.Status)
	}
	return fmt.Sprint(e.DID, " ", e.Kind, " ", e.Seq, " ", e.Rev)
}

type commit struct{ Rev, Operation, Collection, RKey, CID string }

// received is an event of either wire.
type received struct {
	DID      string
	Kind     string
	Type     string `json:"$type"`
	Commit   commit
	Identity struct {
		Seq    int64
		Handle string
	}
	Account struct {
		Seq    int64
		Active bool
		Status string
	}
	Sync struct {
		Seq int64
		Rev string
	}
}

// receivedKey is expectedKey of a message.
func receivedKey(w wire, message []byte) (string, error) {
	var e received
	if w == v2 {
		var outer struct {
			Payload struct {
				received
				commit
			}
		}
		if err := json.Unmarshal(message, &outer); err != nil {
			return "", err
		}
		e = outer.Payload.received
		e.Commit = outer.Payload.commit
		_, e.Kind, _ = strings.Cut(e.Type, "#")
	} else if err := json.Unmarshal(message, &e); err != nil {
		return "", err
	}
	switch e.Kind {
	case "commit":
		return strings.Join([]string{e.DID, e.Kind, e.Commit.Rev, e.Commit.Operation, e.Commit.Collection, e.Commit.RKey, e.Commit.CID}, " "), nil
	case "identity":
		return fmt.Sprint(e.DID, " ", e.Kind, " ", e.Identity.Seq, " ", e.Identity.Handle), nil
	case "account":
		return fmt.Sprint(e.DID, " ", e.Kind, " ", e.Account.Seq, " ", e.Account.Active, " ", e.Account.Status), nil
	}
	return fmt.Sprint(e.DID, " ", e.Kind, " ", e.Sync.Seq, " ", e.Sync.Rev), nil
}

// position returns a message's time_us. That field, or the v2 wire's seq, stands near the beginning.
func position(w wire, message []byte) (int64, error) {
	field, epoch := `"time_us":`, int64(0)
	if w == v2 {
		field, epoch = `"seq":`, int64(event.Epoch)
	}
	_, rest, found := bytes.Cut(message[:min(len(message), 300)], []byte(field))
	end := bytes.IndexByte(rest, ',')
	if !found || end < 0 {
		return 0, errors.New("no event: " + string(message))
	}
	n, err := strconv.ParseInt(string(rest[:end]), 10, 64)
	return n + epoch, err
}

// filter is what a consumer wants. Empty lists want all.
type filter struct {
	kinds       []string // on the v2 wire
	collections []string // or prefixes, with .* at the end
	dids        map[string]bool
}

func (f *filter) wants(w wire, e *entry) bool {
	if len(f.dids) > 0 && !f.dids[e.did] || w == v1 && e.kind == "sync" {
		return false
	}
	if len(f.kinds) > 0 && !slices.Contains(f.kinds, e.kind) {
		return false
	}
	if e.kind != "commit" || len(f.collections) == 0 {
		return true
	}
	for _, c := range f.collections {
		prefix, isPrefix := strings.CutSuffix(c, "*")
		if e.collection == c || isPrefix && strings.HasPrefix(e.collection, prefix) {
			return true
		}
	}
	return false
}

// A checker holds one consumer's stream, over all its connections, against the truth.
type checker struct {
	truth  *truth
	wire   wire
	filter filter // the newest that it has asked for

	// Where the server turns from one filter to another within a connection it does not say: until
	// events have shown it, both may be true.
	old     *filter // the one before; nil: the turn is behind
	turned  bool    // that it is behind is possible, too
	turns   int     // that events have shown
	pos     int     // number of the newest event received; -1: none
	us      int64   // its time_us
	fresh   bool    // the next event is the connection's first
	resumed bool    // which begins at a cursor: that of pos, or the buffer's start
	count   int     // events, without those that came once more
	skipped int     // that the buffer no longer had
}

// connects notes a new connection.
func (c *checker) connects(resumed bool) { c.fresh, c.resumed, c.old = true, resumed, nil }

// turn notes that another filter is about to be asked for.
func (c *checker) turn(next filter) {
	before := c.filter
	c.old, c.turned, c.filter = &before, false, next
}

// settled reports whether it is clear which filter the server has.
func (c *checker) settled() bool { return c.old == nil && !c.fresh }

// took holds the next event against the truth. now is a moment before which the connection began.
func (c *checker) took(message []byte, now time.Time) error {
	us, err := position(c.wire, message)
	if err != nil {
		return err
	}
	t := c.truth
	if err := t.wait(us); err != nil {
		return err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	i, ok := t.findLocked(us)
	if !ok {
		return fmt.Errorf("nobody else has an event at %d: %s", us, message)
	}
	if err := t.sameLocked(t.atLocked(i), c.wire, message); err != nil {
		return fmt.Errorf("at %d: %w", us, err)
	}
	if c.fresh {
		return c.firstLocked(i, now)
	}
	if i <= c.pos {
		return fmt.Errorf("%d comes after %d", us, c.us)
	}
	if err := c.nextLocked(i); err != nil {
		return err
	}
	c.pos, c.us, c.count = i, us, c.count+1
	return nil
}

// firstLocked takes the first event of a connection.
func (c *checker) firstLocked(i int, now time.Time) error {
	t := c.truth
	c.fresh = false
	if !c.filter.wants(c.wire, t.atLocked(i)) {
		return fmt.Errorf("an event that it does not want, at %d", t.atLocked(i).us)
	}
	if c.resumed {
		if i < c.pos {
			return fmt.Errorf("resumed at %d, but %d comes first", c.us, t.atLocked(i).us)
		}
		limit := now.Add(-t.ttl).UnixMicro()
		for j := max(c.pos, t.base); j < i; j++ {
			e := t.atLocked(j)
			if !c.filter.wants(c.wire, e) {
				continue
			}
			if e.us > limit {
				return fmt.Errorf("lost: resumed after event %d of %d, event %d comes first, but it wants %d of %d, %s old", c.pos, t.base+len(t.entries), i, j, e.us, now.Sub(time.UnixMicro(e.us)))
			}
			if c.pos >= 0 {
				c.skipped++
			}
		}
		if i == c.pos {
			return nil // a cursor is inclusive
		}
	}
	c.pos, c.us, c.count = i, t.atLocked(i).us, c.count+1
	return nil
}

// nextLocked holds against each filter that may be in force that i is what comes after pos.
func (c *checker) nextLocked(i int) error {
	e := c.truth.atLocked(i)
	old, turned, lost := c.betweenLocked(i)
	wanted := c.filter.wants(c.wire, e)
	if c.old == nil {
		switch {
		case !wanted:
			return fmt.Errorf("an event that it does not want, at %d", e.us)
		case !turned:
			return fmt.Errorf("lost: %d, which it wants, before %d", c.truth.atLocked(lost).us, e.us)
		}
		return nil
	}
	old = old && c.old.wants(c.wire, e)
	turned = turned && wanted
	if !old && !turned {
		return fmt.Errorf("at %d: neither the old filter nor the new one, wherever it took its turn", e.us)
	}
	if c.turned = turned; !old {
		c.old, c.turns = nil, c.turns+1
	}
	return nil
}

// betweenLocked looks at the events between pos and i, which were not received: whether that is right
// if the old filter is in force, and if the new one is, having taken its turn anywhere. If not,
// lost is an event that is missing.
func (c *checker) betweenLocked(i int) (old, turned bool, lost int) {
	// The first event that the old filter wants, and the last that the new one does.
	firstOld, lastNew := i, c.pos
	for j := max(c.pos+1, c.truth.base); j < i; j++ {
		e := c.truth.atLocked(j)
		if c.old != nil && firstOld == i && c.old.wants(c.wire, e) {
			firstOld = j
		}
		if c.filter.wants(c.wire, e) {
			lastNew = j
		}
	}
	if c.old == nil {
		return false, lastNew == c.pos, lastNew
	}
	return firstOld == i, c.turned && lastNew == c.pos || lastNew < firstOld, lastNew
}

// fallen holds a consumer that was told that it has fallen off the buffer against the buffer's age.
func (c *checker) fallen(now time.Time) error {
	t := c.truth
	t.mu.RLock()
	defer t.mu.RUnlock()
	if c.pos < t.base {
		return nil
	}
	if e := t.atLocked(c.pos); e.us > now.Add(-t.ttl).UnixMicro() {
		return fmt.Errorf("told that it has fallen off the buffer after %d, which is %s old", e.us, now.Sub(time.UnixMicro(e.us)))
	}
	return nil
}

// atEnd reports whether everything that there is has been received.
func (c *checker) atEnd() bool {
	c.truth.mu.RLock()
	defer c.truth.mu.RUnlock()
	old, turned, _ := c.betweenLocked(c.truth.base + len(c.truth.entries))
	return old || turned
}
