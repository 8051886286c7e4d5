package subscribe

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// Config configures a Server. Log and Dictionaries are required.
type Config struct {
	Log *eventlog.Log
	// Dictionaries are those that can be chosen and downloaded. The primary one is what
	// compress=true means on the v1 wire, the current one is what the v2 wire offers.
	Dictionaries *event.Dictionaries
	// Version is what /xrpc/_health says.
	Version string
	// PingInterval is how often consumers are pinged. Default 30 s.
	PingInterval time.Duration
	Limits       // to begin with: see SetLimits
	// Streaming is told when a connection begins to carry a consumer without a websocket, and
	// when that has ended; on HTTP/2 there may be several at a time. What has a websocket is
	// hijacked, which http.Server tells by itself. nil: nobody is told.
	Streaming func(c net.Conn, begins bool)

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none
}

// Limits are what consumers are held to.
type Limits struct {
	// StallTimeout is how long a consumer may take nothing at all while there is
	// something for it. Default 120 s.
	StallTimeout time.Duration
	// MaxRate limits each consumer, in events per second; 0: no limit.
	MaxRate float64
	// MaxSubscribers limits how many there are at a time, MaxSubscribersPerIP how many of
	// one address (of IPv6: of a /64 network); 0: no limit.
	MaxSubscribers, MaxSubscribersPerIP int
	// MaxFilterDIDs limits how many DIDs the filters of all consumers name together. Default
	// 2,000,000.
	MaxFilterDIDs int
	// TrustedProxies are the peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
}

// withDefaults fills in what is left out.
func (l Limits) withDefaults() *Limits {
	if l.StallTimeout <= 0 {
		l.StallTimeout = 120 * time.Second
	}
	if l.MaxFilterDIDs <= 0 {
		l.MaxFilterDIDs = defaultFilterDIDs
	}
	l.MaxRate = max(l.MaxRate, 0)
	return &l
}

// sendBuffer is what the kernel may hold of a consumer's stream, in bytes (Linux
// doubles it for its own use): enough for a good distance, little enough that ten
// thousand slow consumers do not fill the machine.
const sendBuffer = 128 << 10

// Server serves subscribers. Handler may be used only while Run runs, and by an http.Server
// whose ConnContext is [ConnContext].
type Server struct {
	// Immutable after New.
	cfg            Config
	log            *slog.Logger
	metrics        *metrics
	upgraders      [2]websocket.Upgrader // by wire
	admission      *admission
	interest       *interest
	fan            *fanout
	turns          chan struct{} // taken by who reads from disk, for a step
	large          chan struct{} // taken by who reads a large message
	messageTimeout time.Duration // the constant, but for tests
	keepLimit      int64         // keepBytes, but for tests

	limits     atomic.Pointer[Limits] // complete
	complained atomic.Int64           // unix ns
	closing    atomic.Bool            // Run is about to end: every subscriber is told
	kept       atomic.Int64           // bytes of payloads that wait for full sockets

	lag lagLog // owned by Run

	mu          sync.Mutex // guards everything below
	subscribers map[*subscriber]struct{}
	closed      bool
	gone        sync.WaitGroup
}

// New makes a server. It starts nothing.
func New(cfg Config) *Server {
	if cfg.PingInterval <= 0 {
		cfg.PingInterval = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:            cfg,
		log:            cfg.Logger,
		subscribers:    map[*subscriber]struct{}{},
		admission:      &admission{addresses: map[netip.Addr]int{}},
		interest:       newInterest(),
		keepLimit:      keepBytes,
		messageTimeout: messageTimeout,
		turns:          make(chan struct{}, turns()),
		large:          make(chan struct{}, largeMessages),
	}
	s.SetLimits(cfg.Limits)
	s.fan = &fanout{srv: s, share: 1}
	s.fan.published.Store(int64(cfg.Log.Last()))
	s.fan.judged.Store(int64(cfg.Log.Last()))
	for w := range s.upgraders {
		s.upgraders[w] = websocket.Upgrader{
			// Consumers are public; there is nothing that an origin could steal.
			CheckOrigin:      func(*http.Request) bool { return true },
			HandshakeTimeout: 10 * time.Second,
			// Instead of net/http's buffers of 4 KB each: a consumer sends little and rarely,
			// and gorilla writes nothing but control frames, which have none.
			ReadBufferSize:  512,
			WriteBufferPool: &sync.Pool{},
		}
	}
	s.upgraders[v2].Subprotocols = []string{subprotocol}
	s.upgraders[v2].Error = func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
		answerXRPC(w, status, invalidRequest, reason.Error())
	}
	s.metrics = newMetrics(cfg.Registerer, s)
	return s
}

// SetLimits holds consumers to other limits from now on. Nobody who is there is disconnected
// because of lower ones: where there are too many, nobody is let in until enough have left. The
// rate and the timeout change for everybody.
func (s *Server) SetLimits(l Limits) {
	complete := l.withDefaults()
	s.limits.Store(complete)
	s.admission.set(complete)
}

// closeTimeout is how long consumers get at shutdown to take what is being written to
// them and the close frame. Those who have been told to come again find the door closed as
// long as one who does not read is waited for; who is cut off loses no more than the reason.
const closeTimeout = time.Second

// Run brings the subscribers what is new and looks after them until ctx ends, then ends
// them all with a close frame and returns when they are gone.
func (s *Server) Run(ctx context.Context) error {
	var fan sync.WaitGroup
	fan.Go(func() { s.fan.run(ctx) })
	defer fan.Wait()
	every := s.checkInterval()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			w := newWriter()
			for _, sub := range s.all() {
				s.check(sub, now, w)
			}
			w.release()
			s.lag.tell(s, now)
			if e := s.checkInterval(); e != every {
				every = e
				tick.Reset(every)
			}
		case <-ctx.Done():
			s.mu.Lock()
			s.closed = true
			s.mu.Unlock()
			s.closing.Store(true)
			w := newWriter()
			for _, sub := range s.all() {
				if sub.take() {
					sub.step(w)
				}
			}
			w.release()
			late := time.AfterFunc(closeTimeout, func() {
				for _, sub := range s.all() {
					sub.abort(true)
				}
			})
			defer late.Stop()
			s.gone.Wait()
			return nil
		}
	}
}

// checkInterval is how often Run checks everyone.
func (s *Server) checkInterval() time.Duration {
	return min(s.limits.Load().StallTimeout, s.cfg.PingInterval, 8*time.Second) / 4
}

func (s *Server) all() []*subscriber {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*subscriber, 0, len(s.subscribers))
	for sub := range s.subscribers {
		all = append(all, sub)
	}
	return all
}

func (s *Server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subscribers)
}

// check judges one subscriber: see the package comment on who is ended.
func (s *Server) check(sub *subscriber, now time.Time, w *writer) {
	p := &sub.progress
	sent, stuck := sub.sentBytes.Load(), sub.stuck.Load()
	waiting := stuck
	if sub.queued.Load() {
		p.since, p.asked = now, now // it is our turn, not the peer's
		return
	}
	// Nothing can be unsent where nothing was and nothing has been written since: that saves
	// two calls into the kernel for each idle consumer.
	if stuck || p.unsent > 0 || sent != p.sent {
		unsent, acked, ok := outbound(sub.raw)
		if stuck && sub.shares() {
			unsent, ok = p.unsent, false // what the connection takes may be somebody else's
		}
		if !ok {
			acked = uint64(sent)
		}
		waiting = waiting || unsent > 0
		if !waiting || acked != p.acked || !ok && unsent != p.unsent {
			p.since = now
		}
		p.acked, p.unsent = acked, unsent
	} else {
		p.since = now
	}
	if sub.response != nil && sent != p.sent {
		p.pinged = now
	}
	p.sent = sent
	heard, timeout := time.Unix(0, sub.heard.Load()), s.limits.Load().StallTimeout
	if waiting || heard.After(p.asked) {
		// A ping that is stuck behind data, here or in what the peer has yet to read, is no
		// silence: the time counts from when nothing was in its way.
		p.asked = now
	}
	switch {
	case waiting && now.Sub(p.since) > timeout:
		sub.blame(endedStalled)
		s.log.Debug("consumer ended: it took nothing for too long", "consumer", sub.raw.RemoteAddr(),
			"timeout", timeout, "unsent_bytes", p.unsent)
		sub.abort(p.reset)
		p.reset, p.since = true, now
	case sub.box.isClosing():
	case sub.response != nil:
		// Whether anybody is there shows by what is acknowledged.
		if !stuck && now.Sub(p.pinged) >= s.cfg.PingInterval {
			sub.keepAlive(now, w)
		}
	case !waiting && p.pinged.After(heard) && now.Sub(p.asked) > timeout+s.cfg.PingInterval:
		sub.blame(endedSilent)
		sub.box.close(websocket.ClosePolicyViolation, "no answer to pings")
	// Who is heard of needs no ping, but what is heard may be old: messages are read at a rate, and
	// a write is what tells of a peer that has long gone.
	case !waiting && (now.Sub(p.pinged) >= s.cfg.PingInterval && now.Sub(heard) >= s.cfg.PingInterval/2 || now.Sub(p.pinged) >= 4*s.cfg.PingInterval):
		sub.keepAlive(now, w)
	}
}

// keepAlive pings a subscriber, or sends what stands for that.
func (s *subscriber) keepAlive(now time.Time, w *writer) {
	s.progress.pinged = now
	s.box.keepAlive()
	// Here and now: those who came together are pinged together, and a goroutine for each
	// would take more memory than they do.
	if s.take() {
		s.step(w)
	}
}

// complain logs that the event log cannot be read. Consumers come back at once, so it is
// said no more than every complainInterval.
func (s *Server) complain(at event.Cursor, err error) {
	now := time.Now().UnixNano()
	if last := s.complained.Load(); now-last >= int64(complainInterval) && s.complained.CompareAndSwap(last, now) {
		s.log.Error("cannot read the event log for a consumer", "cursor", at, "error", err)
	}
}

const complainInterval = 10 * time.Second

// subscribe is GET /subscribe.
func (s *Server) subscribe(w http.ResponseWriter, r *http.Request) {
	if refused := s.refuseLarge(r); refused != nil {
		refused.answer(w)
		return
	}
	serve := s.accept
	o, err := parseOptions(r, s.cfg.Dictionaries)
	if !websocket.IsWebSocketUpgrade(r) {
		if meansWebsocket(r) {
			askForUpgrade(w)
			http.Error(w, "a proxy between us has dropped the header Upgrade of this websocket handshake, or half of it: it must pass on Upgrade and Connection", http.StatusUpgradeRequired)
			return
		}
		serve = s.respond
		if err == nil {
			err = o.withoutWebsocket(r)
		}
	}
	if err != nil {
		s.metrics.refused[refusedRequest].Inc()
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if refused := serve(w, r, o); refused != nil {
		refused.answer(w)
	}
}

// largeQuery is the size in bytes above which a query is not read for somebody for whom there
// is no place anyway: it costs a megabyte or two and milliseconds.
const largeQuery = 16 << 10

// refuseLarge refuses a request with a large query if there is no place for whom it comes from.
func (s *Server) refuseLarge(r *http.Request) *refusedError {
	if len(r.URL.RawQuery) <= largeQuery {
		return nil
	}
	refused := s.admission.full(s.admission.client(r))
	if refused != nil {
		s.metrics.refused[refused.reason].Inc()
	}
	return refused
}

// askForUpgrade adds what RFC 9110, section 7.8, asks of a 426.
func askForUpgrade(w http.ResponseWriter) {
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "websocket")
}

// websocketOnly tells who came without a websocket how to come with one.
func websocketOnly(r *http.Request) string {
	host, uri := r.Host, r.URL.RequestURI()
	return "this is a websocket endpoint; try: websocat \"ws://" + host[:min(len(host), 255)] + uri[:min(len(uri), 200)] + "\""
}

// accept makes a subscriber of a request whose options are valid. A refusal is for the
// caller to answer; everything else is answered.
func (s *Server) accept(w http.ResponseWriter, r *http.Request, o options) *refusedError {
	sub, refused := s.admit(r, o)
	if refused != nil {
		return refused
	}
	header := http.Header{}
	if o.zstd != nil {
		header.Set(dictionaryHeader, strconv.FormatUint(uint64(o.zstd.ID()), 10))
	}
	h := &hijacker{ResponseWriter: w, box: &sub.box}
	ws, err := s.upgraders[o.wire].Upgrade(h, r, header)
	if err != nil {
		sub.place.leave()
		s.gone.Done()
		return nil // answered already
	}
	h.conn.capture()
	sub.ws, sub.raw, sub.socket = ws, h.conn.Conn, newSocket(h.conn.Conn)
	s.metrics.handshakes[o.wire].Inc()
	s.show(sub, o.filter)
	// Apart, so that net/http's part of the connection, some 10 KB, is not kept.
	go func() {
		defer s.leave(sub)
		sub.serve()
	}()
	return nil
}

// admit makes a subscriber that has its place, and which Run waits for; one that is not shown
// must leave both. A refusal is for the caller to answer.
func (s *Server) admit(r *http.Request, o options) (*subscriber, *refusedError) {
	sub := s.newSubscriber(o)
	var refused *refusedError
	if sub.place, refused = s.admission.enter(s.admission.client(r), o.filter.cost()); refused != nil {
		s.metrics.refused[refused.reason].Inc()
		return nil, refused
	}
	if !s.enter() {
		sub.place.leave()
		return nil, errShuttingDown
	}
	return sub, nil
}

// enter makes Run wait for one subscriber more. It reports whether the server is open.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.gone.Add(1)
	return true
}

// show makes a subscriber that has its socket visible to the fan-out and the sweep.
func (s *Server) show(sub *subscriber, f *Filter) {
	if tcp := tcpOf(sub.raw); tcp != nil {
		tcp.SetWriteBuffer(sendBuffer)
	}
	now := time.Now()
	sub.heard.Store(now.UnixNano())
	sub.progress = progress{since: now, pinged: now, asked: now}
	s.interest.set(sub, f)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[sub] = struct{}{}
}

// leave forgets a subscriber that is over.
func (s *Server) leave(sub *subscriber) {
	s.interest.set(sub, nil)
	sub.place.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subscribers, sub)
	s.gone.Done()
}
