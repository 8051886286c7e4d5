package subscribe

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// Blocked returns how many subscribers have a write under way for which the socket has
// no room: the kernel holds as much of theirs as it takes.
func (s *Server) Blocked() int {
	n := 0
	for _, sub := range s.all() {
		if unsent, _, _ := outbound(sub.raw); unsent > sendBuffer/2 && sub.stuck.Load() {
			n++
		}
	}
	return n
}

// Kept returns how many bytes wait for full sockets.
func (s *Server) Kept() int64 { return s.kept.Load() }

// SetMessageTimeout says how long a large message may take.
func (s *Server) SetMessageTimeout(d time.Duration) { s.messageTimeout = d }

// Judged returns the newest event that the fan-out has judged.
func (s *Server) Judged() event.Cursor { return event.Cursor(s.fan.judged.Load()) }

// KeepNothing makes subscribers whose sockets are full give up what they hold.
func (s *Server) KeepNothing() { s.keepLimit = 0 }

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

// Behind returns how many subscribers are behind by any class.
func (s *Server) Behind() (n int) {
	for _, k := range s.lags().classes {
		n += k
	}
	return n
}

// TellLag logs who is behind.
func (s *Server) TellLag() {
	new(lagLog).tell(s, time.Now())
}

// Puller is the writing role of a subscriber without a connection.
type Puller struct {
	s *subscriber
	w *writer
}

// ControlRate and MessageRate are the constants.
const (
	ControlRate = controlRate
	MessageRate = messageRate
)

// NewPuller makes one for a query of either wire, which must be valid.
func (s *Server) NewPuller(query string, rate float64, onV2 bool) *Puller {
	return s.NewPullerThen(query, rate, onV2, func() {})
}

// NewPullerThen makes one for which something happens between the handshake and the first
// look at the log.
func (s *Server) NewPullerThen(query string, rate float64, onV2 bool, between func()) *Puller {
	r := &http.Request{URL: &url.URL{RawQuery: query}, Header: http.Header{}}
	o, err := parseOptions(r, s.cfg.Dictionaries)
	if onV2 {
		o, err = s.parseV2(r)
	}
	if err != nil {
		panic(err)
	}
	sub := s.newSubscriber(o)
	limits := *s.limits.Load()
	limits.MaxRate = rate
	s.SetLimits(limits)
	sub.filter.Store(o.filter)
	between()
	sub.at, sub.tail = sub.begin()
	sub.from = sub.at
	return &Puller{sub, &writer{turn: true}}
}

// Pull writes once, and returns what a socket got that takes as much as room says of a
// write's size, and whether there is nothing more to read. Time that the rate limit asks for
// has passed at the next call.
func (p *Puller) Pull(room func(size int) int) (got []byte, runs int, parked bool, err error) {
	if tail := p.s.tail; len(tail) > 0 {
		n := room(len(tail))
		p.s.tail = tail[n:]
		return tail[:n], 1, false, nil
	}
	wait, end, err := p.w.gather(p.s)
	if wait > 0 {
		p.s.rate.last = p.s.rate.last.Add(-wait)
	}
	if err != nil {
		return nil, 0, false, err
	}
	p.w.prepare()
	got, runs = slices.Concat(p.w.bufs...), len(p.w.runs)
	n := room(len(got))
	if p.w.out(n); n < len(got) {
		p.w.cut(p.s)
		return got[:n], runs, false, nil
	}
	if p.w.commit(p.s); end && runs == 0 {
		p.w.drop()
	}
	return got, runs, end && runs == 0, nil
}

// Owes reports whether the socket has got a part of a message.
func (p *Puller) Owes() bool { return len(p.s.tail) > 0 }

// At returns the position.
func (p *Puller) At() event.Cursor { return p.s.at }

// InExcerpt reports whether it is in the middle of one.
func (p *Puller) InExcerpt() bool { return p.w.chunk != nil && p.w.chunk.IsExcerpt() }

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
	for _, b := range p.w.bufs[:cap(p.w.bufs)] {
		if b != nil {
			return true
		}
	}
	for _, r := range p.w.runs[:cap(p.w.runs)] {
		if r.chunk != nil || r.bytes != nil {
			return true
		}
	}
	return p.w.chunk != nil || p.w.matcher.chunk != nil || p.w.data != nil || p.w.ends != nil
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

// Interests returns how many entries the index has: 0 with no subscriber.
func (s *Server) Interests() int {
	x := s.interest
	x.mu.Lock()
	defer x.mu.Unlock()
	kinds := 0
	for _, s := range x.kinds {
		kinds += len(s)
	}
	return len(x.open) + kinds + len(x.collections) + len(x.prefixes) + len(x.first) + len(x.others)
}

// Join puts the puller into the interest index.
func (p *Puller) Join() {
	f := p.s.filter.Swap(nil)
	p.s.srv.interest.set(p.s, f)
}

// DeriveV2 makes the v2 form of a chunk.
func (s *Server) DeriveV2(c *eventlog.Chunk, zstd bool) error {
	e := encoding{wire: v2}
	if zstd {
		e.zstd = s.cfg.Dictionaries.Current()
	}
	_, err := e.derive(s.cfg.Log, c)
	return err
}

// Dispatch looks a chunk up in the interest index and returns how many it names,
// possibly several times each.
func (s *Server) Dispatch(c *eventlog.Chunk) (n int) {
	s.interest.dispatch(c, func(*subscriber) { n++ })
	return n
}

// Match returns how many events of a chunk the puller's filter wants.
func (p *Puller) Match(c *eventlog.Chunk) (n int) {
	p.w.matcher.reset(p.s.filter.Load(), c)
	for i := range c.Entries {
		if p.w.matcher.wants(i) {
			n++
		}
	}
	return n
}

// Socket is a connection as the writing role sees it.
type Socket struct{ s socket }

// NewSocket makes one.
func NewSocket(c net.Conn) Socket { return Socket{newSocket(c)} }

// Write writes everything.
func (s Socket) Write(bufs net.Buffers) error {
	for len(bufs) > 0 {
		n, full, err := s.s.write(bufs)
		if err != nil {
			return err
		}
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n, bufs = n-len(bufs[0]), bufs[1:]
		}
		if n > 0 {
			bufs[0] = bufs[0][n:]
		}
		if full {
			if err := s.s.wait(); err != nil {
				return err
			}
		}
	}
	return nil
}

// HoldTurns takes every turn to read from disk until the returned function is called.
func (s *Server) HoldTurns() (release func()) {
	for range cap(s.turns) {
		s.turns <- struct{}{}
	}
	return func() {
		for range cap(s.turns) {
			<-s.turns
		}
	}
}

// Queued returns how many subscribers wait for a turn.
func (s *Server) Queued() (n int) {
	for _, sub := range s.all() {
		if sub.queued.Load() {
			n++
		}
	}
	return n
}

// Reading returns how many large messages are being read.
func (s *Server) Reading() int { return len(s.large) }

// LargeMessages is how many large messages are read at a time.
const LargeMessages = largeMessages

// Fanout is a fan-out that a test drives step by step.
type Fanout struct{ f *fanout }

// NewFanout makes one for the subscribers of NewPuller. Run must not be running.
func (s *Server) NewFanout() Fanout { return Fanout{s.fan} }

// Dispatch dispatches what there is and returns how many are due.
func (f Fanout) Dispatch() int {
	f.f.due = nil
	f.f.dispatch()
	return len(f.f.due)
}

// Publish is the first half of Dispatch for the next chunk, Ask the second.
func (f Fanout) Publish() *eventlog.Chunk {
	c, _, err := f.f.srv.cfg.Log.Next(event.Cursor(f.f.published.Load()))
	if err != nil {
		panic(err)
	}
	f.f.published.Store(int64(c.Last()))
	return c
}

// Ask is the second half of Dispatch for a chunk.
func (f Fanout) Ask(c *eventlog.Chunk) int {
	f.f.due = nil
	f.f.srv.interest.dispatch(c, func(sub *subscriber) { f.f.wake(sub, c.Prev, c.Last()) })
	f.f.judged.Store(int64(c.Last()))
	return len(f.f.due)
}

// Park is the subscriber's. It reports whether the role was given back.
func (p *Puller) Park() bool { return p.s.park() == rested }

// BeginParking is the first moment of Park, EndParking the rest of it.
func (p *Puller) BeginParking() { p.s.state.Store(parking) }

// EndParking reports whether the role was given back.
func (p *Puller) EndParking() bool { return p.s.state.CompareAndSwap(parking, parked) }

// Take is the subscriber's.
func (p *Puller) Take() bool { return p.s.take() }

var noDictionaries = sync.OnceValue(func() *event.Dictionaries {
	d, err := event.NewDictionaries(dictionaries.Current())
	if err != nil {
		panic(err)
	}
	return d
})

// ParseQuery reads a query and returns the parameters that it took, and the filter's numbers
// of collections, prefixes and DIDs.
func ParseQuery(raw string) (query url.Values, filter [3]int, err error) {
	o, err := parseOptions(&http.Request{URL: &url.URL{RawQuery: raw}, Header: http.Header{}}, noDictionaries())
	if err != nil {
		return nil, filter, err
	}
	query, err = parseQuery(raw)
	return query, sizes(o.filter), err
}

// ParseUpdate reads a message and returns the same of its filter; ignored: it is no
// options_update.
func ParseUpdate(message []byte) (filter [3]int, ignored bool, err error) {
	f, err := parseUpdate(message)
	if err != nil {
		return filter, err == errIgnored, err
	}
	return sizes(f), false, nil
}

func sizes(f *Filter) [3]int {
	return [3]int{len(f.collections.Exact), len(f.collections.Prefixes), len(f.dids)}
}
