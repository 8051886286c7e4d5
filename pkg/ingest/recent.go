package ingest

import (
	"encoding/json"
	"errors"
	"slices"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// How many frames are remembered. After a switch of relays the overlap is two to four minutes,
// which is as many frames of the whole network at 1,000 a second; where there is one relay, it
// may start its numbers anew, and a quarter has to do.
const (
	recentFrames = 1 << 16 // 0.5 MB, and 2.5 MB while watching; 0.1 s to read from the log's tail
	switchFrames = 1 << 18 // four times as much
)

// recent remembers the ids of the most recent frames. Remembering costs next to nothing;
// the set to look ids up in exists only while there may be something to find: keeping it
// at all times took 3 percent of the pipeline's CPU.
type recent struct {
	size int // the most that are remembered

	ring []uint64
	next int // where the oldest is, once the ring is full

	seen map[uint64]struct{} // what is in ring; nil unless watching
	left int                 // frames until all that are remembered came after watch
}

// watch makes add look out for repeats, until as many frames have come as are remembered:
// then nothing of what was before is left to be repeated.
func (r *recent) watch() {
	r.left = r.size
	if r.seen != nil {
		return
	}
	r.seen = make(map[uint64]struct{}, r.size)
	for _, id := range r.ring {
		r.seen[id] = struct{}{}
	}
}

// add remembers an id and reports whether it is known to be a repeat, which it is only
// while watching.
func (r *recent) add(id uint64) (repeat bool) {
	if r.seen != nil {
		if _, repeat = r.seen[id]; repeat {
			return true
		}
		if r.left--; r.left <= 0 {
			r.seen = nil
		} else {
			r.seen[id] = struct{}{}
		}
	}
	if len(r.ring) < r.size {
		r.ring = append(r.ring, id)
		return false
	}
	if r.seen != nil {
		delete(r.seen, r.ring[r.next])
	}
	r.ring[r.next] = id
	r.next = (r.next + 1) % r.size
	return false
}

// has looks an id up whether or not watching. It goes through all that is remembered.
func (r *recent) has(id uint64) bool { return slices.Contains(r.ring, id) }

// beginning keeps a stream that began live from growing backwards. Relays differ in their order,
// so after the first failover the other one sends commits that were before the beginning for the
// first one, behind later ones of the same repo.
type beginning struct {
	revs   map[uint64]string // by the DID's hash: the rev that the repo began with
	filter bool              // there was a switch, or may have been
}

// beginningRepos bounds it: 8 MB in the worst case, for the first minutes.
const beginningRepos = 1 << 16

// admit remembers a commit that is the first of its repo, and reports whether it is none from
// before that.
func (b *beginning) admit(did, rev []byte) bool {
	id := frameID(0, did, nil)
	if first, ok := b.revs[id]; ok {
		return !b.filter || string(rev) >= first
	}
	if len(b.revs) < beginningRepos {
		b.revs[id] = string(rev)
	}
	return true
}

// fill adds the frames that the log's tail came from, also to a beginning if there is one.
func (r *recent) fill(log *eventlog.Log, b *beginning) error {
	// There are more events than frames, though not by as much.
	position, err := log.Tail(r.size + r.size/4)
	if err != nil {
		return err
	}
	last := uint64(0) // all events of a commit have the same id
	remember := func(id uint64) {
		if id != last {
			r.add(id)
		}
		last = id
	}
	for position < log.Last() {
		c, _, err := log.Next(position)
		if c == nil && err == nil {
			return nil
		}
		var frames, extra []byte
		if err == nil {
			frames, err = log.Payload(c, eventlog.JSON)
		}
		if err == nil {
			extra, err = log.Payload(c, eventlog.Extra)
		}
		if errors.Is(err, eventlog.ErrTrimmed) {
			position = max(position+1, log.Trimmed()) // retention runs meanwhile
			continue
		}
		if err != nil {
			return err
		}
		dids := c.DIDs()
		for i := range c.Entries {
			e := &c.Entries[i]
			did := dids[e.DID]
			switch e.Kind {
			case event.KindCommit:
				payload := event.Payload(frames[c.Start(i, eventlog.JSON):e.End[eventlog.JSON]])
				rev := event.Rev(payload, len(did))
				remember(frameID(e.Kind, []byte(did), rev))
				if b != nil {
					b.admit([]byte(did), rev)
				}
			case event.KindSync:
				var sync struct{ Sync struct{ Rev string } }
				if err := json.Unmarshal(extra[c.Start(i, eventlog.Extra):e.End[eventlog.Extra]], &sync); err != nil {
					return err
				}
				remember(frameID(e.Kind, []byte(did), []byte(sync.Sync.Rev)))
			}
		}
		position = c.Last()
	}
	return nil
}
