package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A swarm is many consumers on a few threads. Where a goroutine each, woken for every
// packet, would cost more than the server that is measured, a loop asks for all sockets
// that have something, reads them one after the other into the one buffer that it has, and
// sleeps a little: the server's packets then find nobody to wake.
type swarm struct {
	// Immutable after newSwarm.
	config swarmConfig
	loops  []*loop

	open atomic.Int64 // consumers that are connected
	over atomic.Int64 // those that were ended or refused and do not come back

	finished atomic.Int64  // consumers that have as many events as they were to get
	complete chan struct{} // closed when all have

	mu     sync.Mutex     // guards everything below
	ended  map[string]int // connections that the server ended or refused, by reason
	faults []string       // streams that are not what was promised
	began  time.Time
	opened time.Time // when the last consumer to connect did
}

type swarmConfig struct {
	target *url.URL // ws://host:port/path
	rate   float64  // handshakes per second; 0: all at once
	resume bool     // consumers that lose their connection come back
	loops  int      // threads; 0: one
	// pause is how long a loop sleeps after a round in which no socket held much. With 0
	// it is woken for each packet, which is what timing asks for.
	pause time.Duration
}

// swarmPause makes batches of what comes in a few milliseconds, a fraction of what the
// daemon itself lets an event wait.
const swarmPause = 3 * time.Millisecond

// spec is what one consumer asks for and how it behaves.
type spec struct {
	query  string  // without the cursor
	v2     bool    // of subscribeEvents
	cursor int64   // 0: live
	since  bool    // cursor may be no event that it wants; what comes from there on is new to it
	track  bool    // check its stream: see tracker
	sizes  bool    // the same for one that is compressed, of which only sizes are seen
	most   int64   // events after which it is finished, of one that is checked; 0: never
	again  bool    // when it is, it connects again, from the start
	whole  bool    // saw is shown all of each event
	paced  bool    // reads only so many events per second
	pace   float64 // 0: none at all

	// saw is shown the beginning of each event, and the size of its frame; nil: nobody looks.
	saw func(head []byte, size int)
}

// A loop is one thread's consumers.
type loop struct {
	swarm *swarm

	// Owned by run.
	epoll   int
	conns   []*conn
	waiting []*conn // to be dialled, in this order
	paced   []*conn
	buf     []byte
	current *conn
	visit   visit
	// What the read that is under way has got.
	gotEvents, gotBytes int64

	calls chan func()   // sent by each; never closed
	gone  chan struct{} // closed when run returns

	events, bytes atomic.Int64
}

// newSwarm makes a swarm whose consumers connect when it runs.
func newSwarm(config swarmConfig, specs []spec) (*swarm, error) {
	if config.target.Scheme != "ws" {
		return nil, fmt.Errorf("%s: use ws://host:port/path", config.target)
	}
	addr, err := net.ResolveTCPAddr("tcp", config.target.Host)
	if err != nil {
		return nil, err
	}
	s := &swarm{config: config, ended: map[string]int{}, complete: make(chan struct{})}
	for range max(config.loops, 1) {
		l := &loop{swarm: s, calls: make(chan func()), gone: make(chan struct{})}
		l.visit = l.frame
		s.loops = append(s.loops, l)
	}
	s.began = time.Now()
	for i, spec := range specs {
		c := &conn{spec: spec, fd: -1, addr: addr, due: s.began}
		if config.rate > 0 {
			c.due = s.began.Add(time.Duration(float64(i) / config.rate * float64(time.Second)))
		}
		if !spec.since {
			c.tracker.last = spec.cursor
		}
		l := s.loops[i%len(s.loops)]
		l.conns = append(l.conns, c)
	}
	return s, nil
}

// run keeps the consumers until ctx ends, when they leave.
func (s *swarm) run(ctx context.Context) error {
	var group sync.WaitGroup
	errs := make([]error, len(s.loops))
	for i, l := range s.loops {
		group.Go(func() { errs[i] = l.run(ctx) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// size returns how many consumers there are.
func (s *swarm) size() (n int) {
	for _, l := range s.loops {
		n += len(l.conns)
	}
	return n
}

// connected waits until all consumers are, and returns how long that took.
func (s *swarm) connected(ctx context.Context, within time.Duration) (time.Duration, error) {
	late := time.After(within)
	for s.open.Load() < int64(s.size()) {
		if !s.config.resume && s.open.Load()+s.over.Load() >= int64(s.size()) {
			return 0, fmt.Errorf("%d of %d consumers were not served: %s", s.over.Load(), s.size(), tally(s.endings()))
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-late:
			return 0, fmt.Errorf("%d of %d consumers are connected after %s; ended: %s", s.open.Load(), s.size(), within, tally(s.endings()))
		case <-time.After(2 * time.Millisecond):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened.Sub(s.began), nil
}

// totals returns how many messages all consumers got, and their bytes with headers.
func (s *swarm) totals() (events, bytes int64) {
	for _, l := range s.loops {
		events += l.events.Load()
		bytes += l.bytes.Load()
	}
	return events, bytes
}

// streams returns the trackers of all consumers.
func (s *swarm) streams() (all []tracker) {
	s.each(func(_ *loop, c *conn) { all = append(all, c.tracker) })
	return all
}

// unheard forgets how long consumers have waited for events.
func (s *swarm) unheard() { s.each(func(_ *loop, c *conn) { c.silence = 0 }) }

// silence returns the longest time that a consumer of everything has been without an event.
func (s *swarm) silence() (longest time.Duration) {
	s.each(func(_ *loop, c *conn) {
		if c.query == "" && !c.paced {
			longest = max(longest, c.silence)
		}
	})
	return longest
}

// hurry makes paced consumers read as fast as they can.
func (s *swarm) hurry() {
	s.each(func(l *loop, c *conn) {
		if c.paced && c.fd >= 0 {
			l.unleash(c)
		}
	})
}

// each calls f for every consumer while its loop waits. The swarm must run, or have run.
func (s *swarm) each(f func(*loop, *conn)) {
	for _, l := range s.loops {
		done := make(chan struct{})
		call := func() {
			defer close(done)
			for _, c := range l.conns {
				f(l, c)
			}
		}
		select {
		case l.calls <- call:
		case <-l.gone:
			call()
		}
		<-done
	}
}

func (s *swarm) endings() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]int, len(s.ended))
	for why, n := range s.ended {
		all[why] = n
	}
	return all
}

// inexact returns what was wrong with streams.
func (s *swarm) inexact() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults)
}

// maxReasons bounds what a server can make of endings and faults.
const maxReasons = 20

func (s *swarm) count(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.ended[why]; !known && len(s.ended) >= maxReasons {
		why = "other reasons"
	}
	s.ended[why]++
}

func (s *swarm) fault(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) < maxReasons {
		s.faults = append(s.faults, err.Error())
	}
}

// finish notes a consumer that has all that it was to get.
func (s *swarm) finish() {
	if s.finished.Add(1) == int64(s.size()) {
		close(s.complete)
	}
}

// opens notes a consumer that has connected.
func (s *swarm) opens() {
	s.mu.Lock()
	s.opened = time.Now()
	s.mu.Unlock()
	s.open.Add(1)
}

const (
	// readBytes is what one read takes at most. It stays within a core's own cache.
	readBytes = 256 << 10
	// busyBytes in one socket are a sign that the loop is what the server waits for: a
	// kernel takes 64 KiB for a reader that it does not know yet.
	busyBytes = 32 << 10
	// idleWait is how long a loop with nothing to read waits for it.
	idleWait = 20 * time.Millisecond
	// chores is the same for a loop that has something else to do.
	chores = 2 * time.Millisecond
	// redial is how long a consumer that has lost its connection waits.
	redial = 100 * time.Millisecond
)

func (l *loop) run(ctx context.Context) (err error) {
	defer close(l.gone)
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	defer unix.Close(l.epoll)
	l.buf = make([]byte, readBytes)
	l.waiting = slices.Clone(l.conns)
	defer func() {
		for _, c := range l.conns {
			if c.fd >= 0 {
				l.hangUp(c)
			}
		}
	}()
	index := make(map[int32]*conn, len(l.conns)) // by fd
	ready := make([]unix.EpollEvent, 512)
	for ctx.Err() == nil {
		now := time.Now()
		for len(l.waiting) > 0 && !l.waiting[0].due.After(now) {
			c := l.waiting[0]
			l.waiting = l.waiting[1:]
			if l.dial(c) {
				index[int32(c.fd)] = c
			}
		}
		for _, c := range l.paced {
			l.readPaced(c, now)
		}
		l.paced = slices.DeleteFunc(l.paced, func(c *conn) bool { return c.fd < 0 || !c.paced })
		select {
		case call := <-l.calls:
			call()
		default:
		}
		wait := idleWait
		if len(l.waiting)+len(l.paced) > 0 {
			wait = chores
		}
		n, err := unix.EpollWait(l.epoll, ready, int(wait.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		busy := n == len(ready)
		for _, e := range ready[:max(n, 0)] {
			if c := index[e.Fd]; c != nil && c.fd == int(e.Fd) {
				busy = l.serve(c, e.Events) || busy
			}
		}
		if n > 0 && !busy && l.config().pause > 0 {
			time.Sleep(l.config().pause)
		}
	}
	return nil
}

func (l *loop) config() *swarmConfig { return &l.swarm.config }
