package ingest

import (
	"encoding/json"
	"fmt"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
)

// checkpoint is the upstream position as it is stored.
type checkpoint struct {
	URL string       `json:"url"`
	Seq firehose.Seq `json:"seq"`
}

// ParseCheckpoint reads what is stored as the log's checkpoint: which relay, and where it
// goes on.
func ParseCheckpoint(b []byte) (url string, seq firehose.Seq, err error) {
	var c checkpoint
	if err := json.Unmarshal(b, &c); err != nil {
		return "", 0, fmt.Errorf("read the stored upstream cursor: %w", err)
	}
	return c.URL, c.Seq, nil
}

// run is a chunk in the making: it belongs to the sequencer while it fills, to an
// encode worker until done, then to the committer.
type run struct {
	events     []placed
	json       []byte // text frames, back to back, as in the chunk
	extra      []byte
	prev       event.Cursor // the last event before the run
	checkpoint []byte       // nil: unchanged

	done  chan struct{} // receives one value per use, when encoded; capacity 1
	chunk *eventlog.Chunk
	err   error
}

// placed is one event of a run.
type placed struct {
	rendered
	cursor            event.Cursor
	jsonEnd, extraEnd int
}

func (r *run) reset(prev event.Cursor) {
	if cap(r.json) > retained {
		r.json = nil
	}
	if cap(r.extra) > retained {
		r.extra = nil
	}
	r.events, r.json, r.extra = r.events[:0], r.json[:0], r.extra[:0]
	r.prev, r.checkpoint, r.chunk, r.err = prev, nil, nil, nil
}

func (r *run) full() bool { return len(r.json) >= runBytes || len(r.events) >= runEvents }

// sequencer gives every event its place and its cursor. It is owned by one goroutine.
type sequencer struct {
	in *Ingester

	last   event.Cursor // the last cursor given out
	seq    firehose.Seq // the last frame's, -1: none yet in this epoch
	epoch  int
	stored firehose.Seq // what the last sealed run's checkpoint said

	recent  recent
	repeats int // duplicates in a row

	current *run
}

// repeatLimit is how many duplicates in a row may come before they are taken for a new
// sequence: no relay sends as many old frames, but one that sent a damaged number would
// otherwise be ignored for ever.
const repeatLimit = 1000

// newSequencer reads the log's position and tail, and says where the upstream starts.
func (in *Ingester) newSequencer() (*sequencer, firehose.Start, error) {
	s := &sequencer{in: in, last: max(in.cfg.Log.Last(), in.cfg.Log.Trimmed()), seq: -1, stored: -1}
	if err := s.recent.fill(in.cfg.Log); err != nil {
		return nil, firehose.Start{}, fmt.Errorf("read the log's tail: %w", err)
	}
	var stored *checkpoint
	if b := in.cfg.Log.Checkpoint(); b != nil {
		url, seq, err := ParseCheckpoint(b)
		if err != nil {
			return nil, firehose.Start{}, err
		}
		stored = &checkpoint{url, seq}
	}
	switch {
	case in.cfg.Override != nil:
		s.recent.watch()
		return s, firehose.Start{Cursor: *in.cfg.Override}, nil
	case stored != nil && stored.URL == in.cfg.URL:
		s.seq, s.stored = stored.Seq, stored.Seq
		return s, firehose.Start{Cursor: stored.Seq, Known: true}, nil
	case stored != nil:
		s.recent.watch()
		in.log.Warn("the stored cursor belongs to another relay and means nothing here; set --override-upstream-cursor to choose where to start",
			"stored_url", stored.URL, "stored_cursor", stored.Seq, "url", in.cfg.URL)
	}
	if in.cfg.From != nil {
		return s, firehose.Start{Cursor: *in.cfg.From}, nil
	}
	return s, firehose.Start{Live: true}, nil
}

// run sequences until there are no more batches, and seals what is left.
func (s *sequencer) run() {
	s.next(<-s.in.freeRuns)
	linger := time.NewTimer(time.Hour)
	linger.Stop()
	ticker := time.NewTicker(checkpointInterval)
	defer ticker.Stop()
	lingering := false        // linger is running
	var freeRuns chan *run    // freeRuns if the current run is due, else nil
	seal := func(next *run) { // hands the current run on
		s.seal()
		s.next(next)
		linger.Stop()
		lingering, freeRuns = false, nil
	}
	for {
		select {
		case b, ok := <-s.in.batches:
			if !ok {
				s.seal()
				return
			}
			<-b.done
			s.batch(b)
			s.in.queue.release(b)
			if s.current.full() {
				seal(<-s.in.freeRuns)
			} else if len(s.current.events) > 0 && !lingering {
				linger.Reset(s.in.cfg.Linger)
				lingering = true
			}
		case <-linger.C:
			freeRuns = s.in.freeRuns
		case next := <-freeRuns:
			seal(next)
		case <-ticker.C:
			if len(s.current.events) == 0 && s.seq != s.stored {
				freeRuns = s.in.freeRuns
			}
		}
	}
}

func (s *sequencer) next(r *run) {
	r.reset(s.last)
	s.current = r
}

// seal hands the current run on to be encoded and committed. A run without events
// still carries its checkpoint.
func (s *sequencer) seal() {
	r := s.current
	if s.seq >= 0 && s.seq != s.stored {
		// Neither field can fail to encode.
		r.checkpoint, _ = json.Marshal(checkpoint{URL: s.in.cfg.URL, Seq: s.seq})
		s.stored = s.seq
	}
	s.in.toCommit <- r
	s.in.toEncode <- r
}

func (s *sequencer) batch(b *batch) {
	from, json, extra := 0, b.json, b.extra
	now := s.in.cfg.Now()
	for i := range b.decoded {
		d := &b.decoded[i]
		events := b.events[from:d.events]
		from = d.events
		keep := s.admit(d)
		for j := range events {
			e := &events[j]
			if e.kind == event.KindSync {
				if keep {
					s.place(now, e, nil, extra[:e.size])
				}
				extra = extra[e.size:]
				continue
			}
			if keep {
				s.place(now, e, json[:e.size], nil)
			}
			json = json[e.size:]
		}
	}
	if !b.newest.IsZero() {
		s.in.metrics.lag.Set(now.Sub(b.newest).Seconds())
	}
	s.in.metrics.seq.Set(float64(s.seq))
}

// admit says whether a frame's events go out, and moves the position.
func (s *sequencer) admit(d *decoded) bool {
	if d.bad {
		return false
	}
	if d.epoch != s.epoch {
		s.epoch, s.seq, s.repeats = d.epoch, -1, 0
		s.recent.watch()
	}
	if d.seq <= s.seq {
		s.repeats++
		if s.repeats < repeatLimit {
			s.in.metrics.duplicates.Inc()
			return false
		}
		s.in.log.Warn("the relay's numbers stay below the last one; taking them for a new sequence", "last", s.seq, "seq", d.seq)
		s.recent.watch()
	}
	s.repeats = 0
	if !d.leap {
		s.seq = d.seq
	}
	// A leap does not move the position, so the relay may send it again after a reconnect.
	if d.id != 0 && (d.leap && s.recent.has(d.id) || s.recent.add(d.id)) {
		s.in.metrics.duplicates.Inc()
		return false
	}
	return true
}

// place gives an event its cursor and copies it into the current run.
func (s *sequencer) place(now time.Time, e *rendered, frame, extra []byte) {
	s.last = max(event.CursorAt(now), s.last+1, event.Epoch+1)
	r := s.current
	payload := extra
	if frame != nil {
		r.json = append(r.json, frame...)
		payload = event.Payload(r.json[len(r.json)-len(frame):])
	} else {
		r.extra = append(r.extra, extra...)
		payload = r.extra[len(r.extra)-len(extra):]
	}
	event.SetCursor(payload, int(e.didLen), s.last)
	r.events = append(r.events, placed{rendered: *e, cursor: s.last, jsonEnd: len(r.json), extraEnd: len(r.extra)})
}
