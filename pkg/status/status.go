package status

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/ingest"
	"slipstream/pkg/subscribe"
)

// interval is how often the figures are made.
const interval = time.Second

// shown is how many collections an answer names.
const shown = 50

// Config configures a Reporter. All of it is required.
type Config struct {
	Log          *eventlog.Log
	Dictionaries *event.Dictionaries
	Upstreams    *firehose.Upstreams
	Ingester     *ingest.Ingester
	Server       *subscribe.Server
	Version      string
}

// Status is the answer. Rates are per second, smoothed over some five seconds; totals count
// from the start of the process.
type Status struct {
	Version       string    `json:"version"`
	Time          time.Time `json:"time"` // of these figures
	UptimeSeconds float64   `json:"uptime_seconds"`
	Events        struct {
		Rate
		Kinds map[string]Rate `json:"kinds"`
		// Collections are the busiest, OtherCollections all that are not among them.
		Collections      []CollectionRate `json:"collections"`
		OtherCollections Rate             `json:"other_collections"`
	} `json:"events"` // taken in
	Consumers struct {
		Connected int  `json:"connected"`
		Events    Rate `json:"events"` // sent to them
		Bytes     Rate `json:"bytes"`  // sent to them
		Saved     Rate `json:"saved"`  // bytes that compression has made unnecessary
	} `json:"consumers"`
	Upstream struct {
		Connected bool      `json:"connected"`
		Since     time.Time `json:"since"` // since when that is so
		// LagSeconds is the age of the newest frame by the relay's own time; null: none has come.
		LagSeconds *float64 `json:"lag_seconds"`
	} `json:"upstream"`
	Replay struct {
		Oldest  event.Cursor `json:"oldest_cursor"` // 0: the buffer is empty
		Last    event.Cursor `json:"last_cursor"`   // 0: there has been no event
		Seconds float64      `json:"seconds"`       // age of the oldest
	} `json:"replay"`
	Dictionaries struct {
		Primary uint32 `json:"primary"` // that of compress=true
		Current uint32 `json:"current"` // the one with the smallest frames
	} `json:"dictionaries"`
	History *History `json:"history,omitempty"`
}

// Rate is a count and how fast it grows.
type Rate struct {
	Total     uint64  `json:"total"`
	PerSecond float64 `json:"per_second"`
}

// CollectionRate is the Rate of a collection, since it has been counted by itself.
type CollectionRate struct {
	Collection string `json:"collection"`
	Rate
}

func (r *rate) public() Rate { return Rate{r.total, round(r.second)} }

// round cuts off digits that say nothing.
func round(x float64) float64 { return math.Round(x*100) / 100 }

// Reporter makes the figures and answers with them.
type Reporter struct {
	cfg     Config
	started time.Time
	answer  atomic.Pointer[answer]

	// Owned by Run.
	counts  counts
	sent    [3]rate // events, bytes, bytes saved
	at      event.Cursor
	ticks   int
	looked  time.Time
	samples []*sample
}

// answer is what there is to say for a second, and its JSON, made when it is first asked for.
type answer struct{ short, long func() []byte }

// New makes a reporter. It starts nothing.
func New(cfg Config) *Reporter {
	r := &Reporter{cfg: cfg, started: time.Now(), counts: counts{known: map[string]*collection{}}, at: cfg.Log.Last()}
	r.looked = r.started
	r.answer.Store(r.figures(r.started, nil))
	return r
}

// Run keeps the figures up to date until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		grown := r.follow()
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			r.tick(now)
		case <-grown:
		}
	}
}

// follow counts what has come. It returns a channel that is closed when there is more, or nil
// if it is better to wait for the next tick.
func (r *Reporter) follow() <-chan struct{} {
	for {
		// What has left memory before it was counted stays uncounted: reading it from disk
		// would slow down who comes after it even more.
		if !r.cfg.Log.InMemory(r.at) {
			r.at = r.cfg.Log.Last()
		}
		c, grown, err := r.cfg.Log.Next(r.at)
		if err != nil {
			return nil // others see it too, and say so
		}
		if c == nil {
			return grown
		}
		r.counts.add(c, r.at)
		r.at = c.Last()
	}
}

// tick makes the figures of a moment.
func (r *Reporter) tick(now time.Time) {
	dt := now.Sub(r.looked)
	if dt <= 0 {
		return
	}
	r.looked = now
	sent := r.cfg.Server.Sent()
	for i, total := range []uint64{sent.Events, sent.Bytes, sent.JSON - min(sent.JSON, sent.Bytes)} {
		r.sent[i].set(total, dt)
	}
	busiest := r.counts.tick(dt)

	if r.ticks%historyTicks == 0 {
		latest := &sample{all: r.counts.all.second}
		for _, c := range busiest[:min(len(busiest), historyNames)] {
			latest.names, latest.rates = append(latest.names, c.name), append(latest.rates, c.second)
		}
		// A list of its own for each answer: somebody may still be reading the one before.
		r.samples = append(slices.Clone(r.samples), latest)
		r.samples = r.samples[max(0, len(r.samples)-historySamples):]
	}
	r.ticks++
	r.answer.Store(r.figures(now, busiest))
}

// figures makes the answer of a moment.
func (r *Reporter) figures(now time.Time, busiest []*collection) *answer {
	s := &Status{Version: r.cfg.Version, Time: now.UTC(), UptimeSeconds: math.Round(now.Sub(r.started).Seconds())}
	s.Events.Rate = r.counts.all.public()
	s.Events.Kinds = map[string]Rate{}
	for k := event.KindCommit; k <= event.KindSync; k++ {
		s.Events.Kinds[k.String()] = r.counts.kinds[k].public()
	}
	s.Events.Collections = make([]CollectionRate, 0, min(len(busiest), shown))
	others := r.counts.others
	for i, c := range busiest {
		if i < shown {
			s.Events.Collections = append(s.Events.Collections, CollectionRate{c.name, c.public()})
			continue
		}
		others.total += c.total
		others.second += c.second
	}
	s.Events.OtherCollections = others.public()
	s.Consumers.Connected = r.cfg.Server.Sent().Consumers
	s.Consumers.Events, s.Consumers.Bytes, s.Consumers.Saved = r.sent[0].public(), r.sent[1].public(), r.sent[2].public()
	s.Upstream.Connected, s.Upstream.Since = r.cfg.Upstreams.Connected()
	s.Upstream.Since = s.Upstream.Since.UTC()
	if lag, ok := r.cfg.Ingester.Lag(); ok {
		seconds := lag.Round(time.Millisecond).Seconds()
		s.Upstream.LagSeconds = &seconds
	}
	s.Replay.Last = r.cfg.Log.Last()
	if s.Replay.Oldest = r.cfg.Log.Oldest(); s.Replay.Oldest != 0 {
		s.Replay.Seconds = round(max(0, now.Sub(s.Replay.Oldest.Time()).Seconds()))
	}
	s.Dictionaries.Primary, s.Dictionaries.Current = r.cfg.Dictionaries.Primary().ID(), r.cfg.Dictionaries.Current().ID()

	samples := r.samples
	return &answer{
		short: sync.OnceValue(func() []byte { return encode(s) }),
		long: sync.OnceValue(func() []byte {
			with := *s
			with.History = newHistory(samples)
			return encode(&with)
		}),
	}
}

func encode(s *Status) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // of plain fields and finite numbers
	}
	return append(b, '\n')
}

// ServeHTTP answers with a Status; with the parameter history, whatever its value, it has a
// History.
func (r *Reporter) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	a := r.answer.Load()
	body := a.short()
	if req.URL.Query().Has("history") {
		body = a.long()
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "public, max-age=1")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}
