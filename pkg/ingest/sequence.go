package ingest

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
)

// Checkpoint is what is stored as the log's: how far the upstream was taken in, and, where there
// are several, what is known of each.
type Checkpoint struct {
	URL    string           `json:"url"`
	Seq    firehose.Seq     `json:"seq"`
	Time   time.Time        `json:"time,omitzero"` // of the newest frames, by what they say themselves
	Relays []firehose.Relay `json:"relays,omitempty"`
}

// ParseCheckpoint reads one.
func ParseCheckpoint(b []byte) (c Checkpoint, err error) {
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read the stored upstream cursor: %w", err)
	}
	return c, nil
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

	upstream int                  // the index of the relay that seq is of, -1: none
	left     []*firehose.Position // of the others: their last frame; nil: none
	update   int                  // of the samples that were stored last
	clock    clock

	beginning *beginning // nil: there is none, or it is long ago
	began     time.Time  // what was reached then

	recent  recent
	repeats int // duplicates in a row

	current *run
}

// repeatLimit is how many duplicates in a row may come before they are taken for a new
// sequence: no relay sends as many old frames, but one that sent a damaged number would
// otherwise be ignored for ever.
const repeatLimit = 1000

// newSequencer reads the log's position and tail, and says where the upstream starts.
func (in *Ingester) newSequencer() (*sequencer, firehose.Resume, error) {
	urls := in.cfg.Upstreams.URLs()
	s := &sequencer{
		in: in, last: max(in.cfg.Log.Last(), in.cfg.Log.Trimmed()), seq: -1, stored: -1,
		left: make([]*firehose.Position, len(urls)), recent: recent{size: recentFrames},
	}
	if len(urls) > 1 {
		s.recent.size = switchFrames
	}
	from := firehose.Resume{Reached: in.reachedTime}
	var stored Checkpoint
	if b := in.cfg.Log.Checkpoint(); b != nil {
		var err error
		if stored, err = ParseCheckpoint(b); err != nil {
			return nil, from, err
		}
		if stored.Time.IsZero() { // by a version that did not store it
			stored.Time = in.cfg.Log.Last().Time()
		}
		// A relay's clock may be ahead; what is taken for reached must not be.
		s.clock.add(earlier(stored.Time, in.cfg.Now()))
		in.reached.Store(s.clock.median().UnixNano())
	}
	known := false // where a relay is to be resumed
	for i, url := range urls {
		r := firehose.Relay{URL: url}
		if at := slices.IndexFunc(stored.Relays, func(r firehose.Relay) bool { return r.URL == url }); at >= 0 {
			r = stored.Relays[at]
		}
		s.left[i] = r.Last
		from.Relays = append(from.Relays, r)
		known = known || r.Last != nil || r.Samples != nil
	}
	if began := from.Began(); !began.IsZero() && in.reachedTime().Sub(began).Abs() <= in.cfg.Upstreams.MaxOverlap() {
		s.beginning = &beginning{revs: make(map[uint64]string), filter: true}
	}
	if err := s.recent.fill(in.cfg.Log, s.beginning); err != nil {
		return nil, from, fmt.Errorf("read the log's tail: %w", err)
	}
	// A switch may have been a moment ago, its overlap not yet over.
	if len(urls) > 1 {
		s.recent.watch()
	}
	active := slices.Index(urls, stored.URL)
	switch {
	case in.cfg.Override != nil:
		s.recent.watch()
		if active >= 0 {
			s.left[active] = &firehose.Position{Seq: stored.Seq, Time: stored.Time}
			from.Relays[active].Last = s.left[active]
		}
		from.Start = firehose.Start{Cursor: *in.cfg.Override}
		return s, from, nil
	case stored.URL != "" && active >= 0:
		s.seq, s.stored, s.upstream = stored.Seq, stored.Seq, active
		from.Active, from.Start = active, firehose.Start{Cursor: stored.Seq, Known: true}
		return s, from, nil
	case known:
		s.recent.watch()
		in.log.Warn("the stored cursor belongs to a relay that is not among the upstreams; going on with one that was known beside it",
			"stored_url", stored.URL, "stored_cursor", stored.Seq)
		s.upstream, from.Active = -1, -1
		from.Start = firehose.Start{Live: true}
		return s, from, nil
	case stored.URL != "":
		s.recent.watch()
		in.log.Warn("the stored cursor belongs to another relay and means nothing here; set --override-upstream-cursor to choose where to start",
			"stored_url", stored.URL, "stored_cursor", stored.Seq, "url", urls[0])
	}
	// What was reached at another relay is of no use here.
	in.reached.Store(0)
	s.clock = clock{}
	from.Start = firehose.Start{Live: true}
	if in.cfg.From != nil {
		from.Start = firehose.Start{Cursor: *in.cfg.From}
	} else if len(urls) > 1 {
		s.beginning = &beginning{revs: make(map[uint64]string)}
	}
	return s, from, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// clock tells how far a stream is by the time in its frames. Single ones may be anywhere, so it
// is the median of the last few. Its zero value is ready for use.
type clock struct {
	ring [15]int64 // unix ns
	n    int       // times added
}

func (c *clock) add(t time.Time) {
	c.ring[c.n%len(c.ring)] = t.UnixNano()
	c.n++
}

// median is the earlier one of two.
func (c *clock) median() time.Time {
	sorted := c.ring
	n := min(c.n, len(sorted))
	slices.Sort(sorted[:n])
	return time.Unix(0, sorted[(n-1)/2])
}

// reachedTime is firehose.Resume.Reached.
func (in *Ingester) reachedTime() time.Time {
	if ns := in.reached.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
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
			if len(s.current.events) == 0 && (s.seq != s.stored || s.seq >= 0 && s.update != s.in.cfg.Upstreams.Update()) {
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
	if s.seq >= 0 && (s.seq != s.stored || s.update != s.in.cfg.Upstreams.Update()) {
		if b, err := json.Marshal(s.checkpoint()); err == nil {
			r.checkpoint, s.stored = b, s.seq
		} else {
			s.in.log.Error("the upstream cursor cannot be stored", "seq", s.seq, "error", err) // no field can fail to encode
		}
	}
	s.in.toCommit <- r
	s.in.toEncode <- r
}

func (s *sequencer) checkpoint() Checkpoint {
	urls := s.in.cfg.Upstreams.URLs()
	c := Checkpoint{URL: urls[s.upstream], Seq: s.seq, Time: s.in.reachedTime().UTC()}
	if len(urls) == 1 {
		return c
	}
	var samples [][]firehose.Position
	var anew []bool
	samples, anew, s.update = s.in.cfg.Upstreams.Samples()
	for i, url := range urls {
		if anew[i] && i != s.upstream {
			s.left[i] = nil
		}
		r := firehose.Relay{URL: url, Last: s.left[i], Samples: samples[i]}
		if i == s.upstream {
			r.Last = nil // Seq says it
		}
		c.Relays = append(c.Relays, r)
	}
	return c
}

func (s *sequencer) batch(b *batch) {
	from, json, extra := 0, b.json, b.extra
	now := s.in.cfg.Now()
	for i := range b.decoded {
		d := &b.decoded[i]
		events := b.events[from:d.events]
		from = d.events
		keep := s.admit(d)
		if keep && s.beginning != nil && len(events) > 0 && events[0].kind == event.KindCommit {
			payload, end := event.Payload(json[:events[0].size]), event.DIDOffset+int(events[0].didLen)
			if keep = s.beginning.admit(payload[event.DIDOffset:end], event.Rev(payload, int(events[0].didLen))); !keep {
				s.in.metrics.duplicates.Inc() // of what was before the beginning
			}
		}
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
		s.clock.add(earlier(b.newest, now))
		reached := s.clock.median()
		s.in.reached.Store(reached.UnixNano())
		if s.beginning != nil {
			if s.clock.n <= len(s.clock.ring) || reached.Before(s.began) { // until the median is one
				s.began = reached
			}
			if reached.Sub(s.began) > s.in.cfg.Upstreams.MaxOverlap() {
				s.beginning = nil
			}
		}
		s.in.metrics.newest.Store(b.newest.UnixNano())
	}
	s.in.metrics.seq.Set(float64(s.seq))
}

// admit says whether a frame's events go out, and moves the position.
func (s *sequencer) admit(d *decoded) bool {
	if d.bad {
		return false
	}
	if d.epoch != s.epoch || d.upstream != s.upstream {
		if d.upstream != s.upstream && s.upstream >= 0 && s.seq >= 0 {
			s.left[s.upstream] = &firehose.Position{Seq: s.seq, Time: s.in.reachedTime().UTC()}
		}
		if d.upstream != s.upstream {
			s.stored = -1 // a number of the other's
		}
		s.epoch, s.upstream, s.seq, s.repeats = d.epoch, d.upstream, -1, 0
		s.recent.watch()
		if s.beginning != nil {
			s.beginning.filter = true
		}
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
