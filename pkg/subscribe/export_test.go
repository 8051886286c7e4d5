package subscribe

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"slipstream/pkg/event"
)

// Blocked returns how many subscribers have a write under way for which the socket has
// no room: the kernel holds as much of theirs as it takes.
func (s *Server) Blocked() int {
	n := 0
	for _, sub := range s.all() {
		if unsent, _, _ := outbound(sub.raw); unsent > sendBuffer/2 && sub.writing.Load() {
			n++
		}
	}
	return n
}

// Count returns how many subscribers are connected.
func (s *Server) Count() int { return s.count() }

// Waiting returns how many subscribers have not looked up their cursor yet.
func (s *Server) Waiting() int {
	n := 0
	for _, sub := range s.all() {
		if sub.position.Load() == unbegun {
			n++
		}
	}
	return n
}

// Closing returns how many subscribers have a close frame that is written or waits to be.
func (s *Server) Closing() int {
	n := 0
	for _, sub := range s.all() {
		if sub.box.isClosing() {
			n++
		}
	}
	return n
}

// Behind is the metric.
func (s *Server) Behind() int { return s.behind() }

// Puller is a subscriber's pull loop without a connection.
type Puller struct{ s *subscriber }

// NewPuller makes one for a query, which must be valid.
func (s *Server) NewPuller(query string, rate float64) *Puller {
	o, err := parseOptions(&http.Request{URL: &url.URL{RawQuery: query}, Header: http.Header{}})
	if err != nil {
		panic(err)
	}
	sub := &subscriber{srv: s, options: o, rate: limiter{rate: rate}, tip: s.cfg.Log.Last()}
	sub.filter.Store(o.filter)
	sub.at = sub.begin()
	return &Puller{sub}
}

// Pull returns what one write would send, and whether there is nothing more to read.
// Time that the rate limit asks for has passed at the next call.
func (p *Puller) Pull() (bufs [][]byte, parked bool, err error) {
	grown, wait, err := p.s.gather()
	if wait > 0 {
		p.s.rate.last = p.s.rate.last.Add(-wait)
	}
	p.s.sent = p.s.sent || len(p.s.bufs) > 0
	bufs = slices.Clone(p.s.bufs)
	sent := p.s.bufs
	sent.WriteTo(io.Discard) // as send does: what is written is forgotten
	return bufs, grown != nil && len(bufs) == 0, err
}

// At returns the position.
func (p *Puller) At() event.Cursor { return p.s.at }

// Update applies an options_update.
func (p *Puller) Update(message string) {
	f, err := parseUpdate([]byte(message))
	if err != nil {
		panic(err)
	}
	p.s.filter.Store(f)
}

// Holds reports whether the subscriber keeps anything of a chunk in memory.
func (p *Puller) Holds() bool {
	for _, b := range p.s.bufs[:cap(p.s.bufs)] {
		if b != nil {
			return true
		}
	}
	return p.s.chunk != nil || p.s.matcher.chunk != nil || p.s.data != nil || p.s.ends != nil
}

// Bounds of one write.
const (
	WriteBytes   = writeBytes
	WriteRuns    = writeRuns
	CloseTimeout = closeTimeout
)

// Limiter is a limiter on a clock of the test's.
type Limiter struct {
	limiter
	Now time.Time
}

// NewLimiter returns a limiter of so many events per second.
func NewLimiter(rate float64) *Limiter {
	return &Limiter{limiter{rate: rate}, time.Unix(1_790_000_000, 0)}
}

// Quota and Take are the limiter's.
func (l *Limiter) Quota() (int, time.Duration) { return l.quota(l.Now) }
func (l *Limiter) Take(n int)                  { l.take(n) }
