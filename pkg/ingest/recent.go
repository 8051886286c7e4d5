package ingest

import (
	"encoding/json"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// recentFrames is how many frames the recent set holds: about two minutes of the whole
// network, which is what an overlap after a switch amounts to. Some 4 MB.
const recentFrames = 1 << 16

// recent is a bounded set of the ids of the most recent frames.
type recent struct {
	seen map[uint64]struct{}
	ring []uint64
	next int
}

func newRecent() *recent {
	return &recent{seen: map[uint64]struct{}{}}
}

// add puts an id in and reports whether it was there already.
func (r *recent) add(id uint64) bool {
	if _, ok := r.seen[id]; ok {
		return true
	}
	r.seen[id] = struct{}{}
	if len(r.ring) < recentFrames {
		r.ring = append(r.ring, id)
		return false
	}
	delete(r.seen, r.ring[r.next])
	r.ring[r.next] = id
	r.next = (r.next + 1) % recentFrames
	return false
}

// fill adds the frames that the log's tail came from.
func (r *recent) fill(log *eventlog.Log) error {
	position, err := log.Tail(recentFrames)
	if err != nil {
		return err
	}
	for position < log.Last() {
		c, _, err := log.Next(position)
		if err != nil {
			return err
		}
		if c == nil {
			return nil
		}
		frames, err := log.Payload(c, eventlog.JSON)
		if err != nil {
			return err
		}
		extra, err := log.Payload(c, eventlog.Extra)
		if err != nil {
			return err
		}
		for i := range c.Entries {
			e := &c.Entries[i]
			did := c.DIDs[e.DID]
			switch e.Kind {
			case event.KindCommit:
				payload := event.Payload(frames[c.Start(i, eventlog.JSON):e.End[eventlog.JSON]])
				r.add(frameID(e.Kind, []byte(did), event.Rev(payload, len(did))))
			case event.KindSync:
				var sync struct{ Sync struct{ Rev string } }
				if err := json.Unmarshal(extra[c.Start(i, eventlog.Extra):e.End[eventlog.Extra]], &sync); err != nil {
					return err
				}
				r.add(frameID(e.Kind, []byte(did), []byte(sync.Sync.Rev)))
			}
		}
		position = c.Last()
	}
	return nil
}
