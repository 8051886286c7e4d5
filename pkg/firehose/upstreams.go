package firehose

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// UpstreamsConfig configures Upstreams. Only URLs is required.
type UpstreamsConfig struct {
	// URLs of the relays, complete, the preferred one first.
	URLs []string
	// FailoverAfter is how long without a working connection makes another relay's turn.
	// Default 30 s: a relay's restart should be over by then.
	FailoverAfter time.Duration
	// SampleInterval is how often each standby is sampled. Default 1 min.
	SampleInterval time.Duration
	// Margin is by how much a relay may be late against another without anything being lost
	// between them. Default 2 min.
	Margin time.Duration
	// Client is how to connect to each; its URL is not used.
	Client Config
}

// Upstreams are relays that carry the same network, of which one is connected to at a time.
type Upstreams struct {
	cfg     UpstreamsConfig
	client  *Client
	metrics *upstreamMetrics
	reached func() time.Time // set by Run

	mu     sync.Mutex // guards everything below
	active int
	leave  context.CancelFunc // ends the active session, to go back to the relay next
	next   int
	relays []relay
	update int  // counts the changes of samples
	quiet  bool // the active relay has sent nothing between the last two rounds of samples
}

// relay is what is known of one.
type relay struct {
	last    *Position  // up to where its frames were taken; nil: none
	anew    bool       // its numbers have begun anew since
	samples []Position // oldest first; never written to once it is here

	reachable bool
	behind    bool      // too far to go over to it
	good      int       // samples in a row that succeeded
	need      int       // of them, to go back to it
	returned  bool      // it is, or was last, active because it was gone back to
	sampled   time.Time // when the last sample was taken
}

// Position is a place in a relay's stream.
type Position struct {
	Seq   Seq       `json:"seq"`             // go on after this one
	Time  time.Time `json:"time"`            // of the frames there, by what they say themselves
	Start bool      `json:"start,omitempty"` // nothing before it was ever wanted

	seen time.Time // when, by our clock; zero: before the process was started
}

func (p Position) start() Start { return Start{Cursor: p.Seq, Known: p.Seq > 0} }

// Relay is what is kept of one, to be known again after a restart.
type Relay struct {
	URL     string     `json:"url"`
	Last    *Position  `json:"last,omitempty"` // up to where its frames were taken
	Samples []Position `json:"samples,omitempty"`
}

// Resume says where a stream goes on.
type Resume struct {
	// Active is the index of the relay to begin with, at Start; -1: with the first that can
	// be reached, as after the loss of another.
	Active int
	Start  Start
	// Relays are what was stored, one for each URL or none at all.
	Relays []Relay
	// Reached returns the time of the newest frames that were dealt with, by what they say
	// themselves; zero: none were. It may be called by any goroutine. nil: never any.
	Reached func() time.Time
}

// Began returns when the stream began, if what is stored says so; zero: it does not.
func (r *Resume) Began() time.Time {
	for i := range r.Relays {
		for _, p := range r.Relays[i].Samples {
			if p.Start {
				return p.Time
			}
		}
	}
	return time.Time{}
}

// keepSamples is how many are kept of a relay: twice what lies between now and the oldest one
// that is resumed from. They are stored with every chunk, in some 55 bytes each.
const keepSamples = 8

// NewUpstreams makes them. It does not connect.
func NewUpstreams(cfg UpstreamsConfig) *Upstreams {
	if cfg.FailoverAfter <= 0 {
		cfg.FailoverAfter = 30 * time.Second
	}
	if cfg.SampleInterval <= 0 {
		cfg.SampleInterval = time.Minute
	}
	if cfg.Margin <= 0 {
		cfg.Margin = 2 * time.Minute
	}
	u := &Upstreams{cfg: cfg, client: New(cfg.Client), relays: make([]relay, len(cfg.URLs))}
	for i := range u.relays {
		u.relays[i].need, u.relays[i].reachable = needSamples, true
	}
	if u.several() {
		u.metrics = newUpstreamMetrics(cfg.Client.Registerer, u)
	}
	return u
}

func (u *Upstreams) several() bool { return len(u.cfg.URLs) > 1 }

// URLs returns the relays', the preferred one first.
func (u *Upstreams) URLs() []string { return u.cfg.URLs }

// Connected reports whether there is a connection, and since when that is so.
func (u *Upstreams) Connected() (bool, time.Time) { return u.client.Connected() }

// Samples returns those of each relay, whether its numbers have begun anew since frames were
// taken from it, and a number that changes when any of it does. They must not be written to.
func (u *Upstreams) Samples() (samples [][]Position, anew []bool, update int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.relays {
		samples, anew = append(samples, u.relays[i].samples), append(anew, u.relays[i].anew)
	}
	return samples, anew, u.update
}

// Update returns the number that Samples does.
func (u *Upstreams) Update() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.update
}

// Run delivers the frames of one relay after the other until ctx ends (it then returns nil) or
// handle returns an error (which it returns). handle is called as by Client.Run.
func (u *Upstreams) Run(ctx context.Context, from Resume, handle func(Frame) error) error {
	u.reached = func() time.Time { return time.Time{} }
	if from.Reached != nil {
		u.reached = func() time.Time { return earlier(from.Reached(), time.Now()) } // clocks may be ahead
	}
	u.mu.Lock()
	for i := range from.Relays {
		u.relays[i].last, u.relays[i].samples = from.Relays[i].Last, from.Relays[i].Samples
	}
	u.active = from.Active
	u.mu.Unlock()
	if u.several() {
		u.sampleFirst(ctx, from)
		watching, stop := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { u.watch(watching) })
		defer watch.Wait()
		defer stop()
	}
	active, start, epoch := from.Active, from.Start, 0
	for pause := u.client.cfg.MinBackoff; active < 0; pause = min(2*pause, u.client.cfg.MaxBackoff) {
		if active, start = u.findNext(ctx, u.client.log, -1, from.Start, time.Now()); active >= 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
	}
	for ctx.Err() == nil {
		begun := time.Now()
		end, next, err := u.deliver(ctx, active, start, epoch, from.Start, handle)
		if err != nil || ctx.Err() != nil {
			return err
		}
		u.mu.Lock()
		u.relays[next.index].returned = next.back
		if r := &u.relays[active]; !next.back {
			// One that fails soon after it was gone back to is waited for twice as long.
			if r.good = 0; r.returned && time.Since(begun) < 10*u.cfg.SampleInterval {
				r.need = min(2*r.need, maxNeedSamples)
			} else {
				r.need = needSamples
			}
		}
		u.mu.Unlock()
		active, start, epoch = next.index, next.start, end.epoch+1
	}
	return nil
}

// change is a switch to another relay.
type change struct {
	index int
	start Start
	back  bool // to a preferred one, not because of a failure
}

// deliver takes frames from one relay until there is another to take them from.
func (u *Upstreams) deliver(ctx context.Context, active int, start Start, epoch int, fresh Start, handle func(Frame) error) (end *session, next change, err error) {
	s := u.client.session(u.cfg.URLs[active], start, handle)
	defer s.arena.close()
	s.index, s.epoch = active, epoch
	if u.several() {
		s.giveUp = u.cfg.FailoverAfter
	}
	for {
		session, leave := context.WithCancel(ctx)
		u.mu.Lock()
		u.active, u.leave, u.next = active, leave, -1
		u.mu.Unlock()
		err := s.run(session)
		u.mu.Lock()
		leave()
		u.leave = nil
		back := u.next
		if s.start.Known && s.handled > 0 {
			u.relays[active].last, u.relays[active].anew = &Position{Seq: s.start.Cursor, Time: u.reached()}, false
		}
		u.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return s, next, nil
		case err == nil: // told to leave
			reached := u.reached()
			start, ok := u.fit(back, time.Now())
			if behind, _ := u.behind(back, reached); !ok && !behind { // as where frames are rare
				start, ok = u.search(ctx, s.log.With("to", u.cfg.URLs[back]), back, reached, time.Now())
			}
			if ok {
				u.metrics.switches[reasonBack].Inc()
				s.log.Info("going back to a preferred relay", "to", u.cfg.URLs[back], "cursor", start.Seq, "overlap", u.overlap(start))
				return s, change{back, start.start(), true}, nil
			}
			u.mu.Lock()
			r := &u.relays[back]
			r.good, r.need = 0, min(2*r.need, maxNeedSamples)
			u.mu.Unlock()
		case !errors.Is(err, errGivenUp):
			return s, next, err
		default:
			if i, start := u.findNext(ctx, s.log, active, fresh, s.down); i >= 0 {
				u.metrics.switches[reasonFailover].Inc()
				return s, change{i, start, false}, nil
			}
		}
	}
}

// findNext finds the first relay but one that can be reached and resumed, and says where; -1:
// there is none. fresh is where to begin if there were no frames yet, down when the last
// connection was that worked.
func (u *Upstreams) findNext(ctx context.Context, from *slog.Logger, but int, fresh Start, down time.Time) (int, Start) {
	for i, url := range u.cfg.URLs {
		if i == but || !u.sample(ctx, i, false) {
			continue
		}
		log := from.With("to", url)
		reached := u.reached()
		if reached.IsZero() {
			start := fresh
			if fresh.Cursor > 0 {
				start = Start{Live: true} // a number of the preferred relay's
			}
			if fresh.Known {
				u.client.metrics.gaps.Inc() // or its frames have no time
			}
			log.Warn("beginning with another relay", "live", start.Live)
			return i, start
		}
		if behind, news := u.behind(i, reached); behind {
			if news {
				log.Warn("another relay is too far behind to go over to it")
			}
			continue
		}
		p, ok := u.fit(i, down)
		if ok {
			log.Warn("going over to another relay", "cursor", p.Seq, "overlap", u.overlap(p))
		} else if p, ok = u.search(ctx, log, i, reached, down); !ok {
			continue
		}
		return i, p.start()
	}
	return -1, Start{}
}

func (u *Upstreams) overlap(p Position) time.Duration {
	return u.reached().Sub(p.Time).Round(time.Second)
}

// behind reports whether a relay is so far behind that what was sent already would come again
// for longer than it can be told apart, and whether that is news. It catches up, or another is
// taken.
func (u *Upstreams) behind(i int, reached time.Time) (behind, news bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := &u.relays[i]
	if n := len(r.samples); n > 0 && time.Since(r.sampled) < u.cfg.SampleInterval/2 {
		behind = reached.Sub(r.samples[n-1].Time) > u.MaxOverlap()
	}
	news = behind != r.behind
	r.behind = behind
	return behind, news
}

// MaxOverlap is how long ago the oldest position is that is resumed from without a search for a
// newer one: the receiver must recognise what comes twice.
func (u *Upstreams) MaxOverlap() time.Duration { return 2 * u.cfg.Margin }

// fit returns where a relay can be resumed so that nothing is lost and little comes twice: the
// last frame that was taken from it, or the newest sample that is older by Margin than what was
// reached, whichever is newer. Samples that were taken after the moment are not looked at:
// what has come since then only this relay has sent.
func (u *Upstreams) fit(i int, moment time.Time) (best Position, ok bool) {
	reached := u.reached()
	u.mu.Lock()
	defer u.mu.Unlock()
	r := &u.relays[i]
	best, ok = newest(r, reached.Add(-u.cfg.Margin), moment)
	if ok && reached.Sub(best.Time) <= u.MaxOverlap() {
		return best, true
	}
	for _, p := range r.samples {
		if p.Start && reached.Sub(p.Time).Abs() <= u.MaxOverlap() {
			return p, true
		}
	}
	return best, false
}

// newest returns the newest position up to a time, as the frames have it, that was seen before a
// moment. One frame with a clock that is behind makes a sample look older than it is, so none
// counts as older than one before it.
func newest(r *relay, until, moment time.Time) (best Position, ok bool) {
	if r.last != nil {
		best, ok = *r.last, true
	}
	var growing time.Time
	for _, p := range r.samples {
		if growing = later(growing, p.Time); growing.After(until) || p.seen.After(moment) {
			break
		}
		if !ok || p.Seq > best.Seq {
			best, ok = Position{Seq: p.Seq, Time: growing}, true
		}
	}
	return best, ok
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// searchSteps bounds a search; halving three days of the whole network down to a minute takes
// a dozen.
const searchSteps = 40

// searchTimeout is for a relay that answers each of them slowly: there may be a better one.
const searchTimeout = time.Minute

// search finds a position where no sample serves, by halving: it connects with a cursor and
// looks at the time of what comes.
func (u *Upstreams) search(ctx context.Context, log *slog.Logger, i int, reached, moment time.Time) (low Position, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	url, target := u.cfg.URLs[i], reached.Add(-u.cfg.Margin)
	u.mu.Lock()
	low, known := newest(&u.relays[i], target, moment)
	var high Seq = -1
	if n := len(u.relays[i].samples); n > 0 {
		high = u.relays[i].samples[n-1].Seq
	}
	u.mu.Unlock()
	if oldest, err := u.client.probe(ctx, url, Start{}); err == nil && (!known || oldest.Seq > low.Seq) {
		low = oldest
		if oldest.Time.After(reached) {
			u.client.metrics.gaps.Inc()
			log.Warn("going over to another relay, which has nothing as old as what was sent last: events are lost between them",
				"cursor", low.Seq, "reached", reached, "oldest", oldest.Time)
			return low, true
		}
	} else if !known {
		if !errors.Is(err, errIdle) || high >= 0 {
			log.Warn("another relay cannot be resumed, its oldest frame does not come", "error", err)
			return low, false
		}
		log.Warn("going over to another relay, of which no position is known: taking all that it has")
		return Position{}, true
	}
	for steps := 0; steps < searchSteps && target.Sub(low.Time) > u.cfg.Margin/2 && high-low.Seq > 1; steps++ {
		middle := low.Seq + (high-low.Seq)/2
		p, err := u.client.probe(ctx, url, Start{Cursor: middle})
		if err != nil {
			break // what was found by now is only longer ago
		}
		if p.Seq < high && !p.Time.After(target) {
			low = Position{Seq: max(p.Seq, middle), Time: p.Time}
		} else {
			high = middle
		}
	}
	log.Warn("going over to another relay, where no sample serves, at a position that was searched for", "cursor", low.Seq, "overlap", u.overlap(low))
	return low, true
}
