package subscribe

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// Config configures a Server. Log and Compressor are required.
type Config struct {
	Log *eventlog.Log
	// Compressor holds the primary dictionary: what compress=true means.
	Compressor *event.Compressor
	// Dictionaries are those that can be downloaded besides the primary one.
	Dictionaries [][]byte
	// Version is what /xrpc/_health says.
	Version string
	// StallTimeout is how long a consumer may take nothing at all while there is
	// something for it. Default 120 s.
	StallTimeout time.Duration
	// PingInterval is how often consumers are pinged. Default 30 s.
	PingInterval time.Duration
	// MaxRate limits each consumer, in events per second; 0: no limit.
	MaxRate    float64
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none
}

// sendBuffer is what the kernel may hold of a consumer's stream, in bytes (Linux
// doubles it for its own use): enough for a good distance, little enough that ten
// thousand slow consumers do not fill the machine.
const sendBuffer = 128 << 10

// Server serves subscribers. Handler may be used only while Run runs.
type Server struct {
	cfg          Config
	log          *slog.Logger
	metrics      *metrics
	dictionaries map[uint32]dictionary
	upgrader     websocket.Upgrader
	complained   atomic.Int64 // unix ns

	mu          sync.Mutex // guards everything below
	subscribers map[*subscriber]struct{}
	closed      bool
	ctx         context.Context // ends with Run; every subscriber's parent
	stop        context.CancelFunc
	gone        sync.WaitGroup
}

// New makes a server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = 120 * time.Second
	}
	if cfg.PingInterval <= 0 {
		cfg.PingInterval = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:         cfg,
		log:         cfg.Logger,
		subscribers: map[*subscriber]struct{}{},
		upgrader: websocket.Upgrader{
			// Consumers are public; there is nothing that an origin could steal.
			CheckOrigin: func(*http.Request) bool { return true },
			// net/http's own buffers are used on.
			HandshakeTimeout: 10 * time.Second,
		},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	var err error
	if s.dictionaries, err = indexDictionaries(cfg.Compressor, cfg.Dictionaries); err != nil {
		return nil, err
	}
	s.metrics = newMetrics(cfg.Registerer, s)
	return s, nil
}

// closeTimeout is how long consumers get at shutdown to take what is being written to
// them and the close frame.
const closeTimeout = 3 * time.Second

// Run looks after the subscribers until ctx ends, then ends them all with a close
// frame and returns when they are gone.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(min(s.cfg.StallTimeout, s.cfg.PingInterval, 8*time.Second) / 4)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, sub := range s.all() {
				s.check(sub, now)
			}
		case <-ctx.Done():
			s.mu.Lock()
			s.closed = true
			s.mu.Unlock()
			s.stop()
			late := time.AfterFunc(closeTimeout, func() {
				for _, sub := range s.all() {
					abort(sub.raw)
				}
			})
			defer late.Stop()
			s.gone.Wait()
			return nil
		}
	}
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

func (s *Server) behind() int {
	limit := s.cfg.Log.Last() - event.Cursor(10*time.Second/time.Microsecond)
	n := 0
	for _, sub := range s.all() {
		if at := sub.position.Load(); at != unbegun && event.Cursor(at) < limit {
			n++
		}
	}
	return n
}

// check judges one subscriber: see the package comment on who is ended.
func (s *Server) check(sub *subscriber, now time.Time) {
	p := &sub.progress
	unsent, acked, ok := outbound(sub.raw)
	if !ok {
		acked = uint64(sub.written.Load())
	}
	waiting := unsent > 0 || sub.writing.Load()
	if !waiting || acked != p.acked || !ok && unsent != p.unsent {
		p.acked, p.unsent, p.since = acked, unsent, now
	}
	heard := time.Unix(0, sub.heard.Load())
	if waiting || heard.After(p.asked) {
		// A ping that is stuck behind data, here or in what the peer has yet to read, is no
		// silence: the time counts from when nothing was in its way.
		p.asked = now
	}
	switch {
	case waiting && now.Sub(p.since) > s.cfg.StallTimeout:
		sub.ended(endedStalled)
		s.log.Debug("consumer ended: it took nothing for too long", "consumer", sub.raw.RemoteAddr(),
			"timeout", s.cfg.StallTimeout, "unsent_bytes", unsent)
		abort(sub.raw)
	case sub.box.isClosing():
	case !waiting && p.pinged.After(heard) && now.Sub(p.asked) > s.cfg.StallTimeout+s.cfg.PingInterval:
		sub.ended(endedSilent)
		sub.box.close(websocket.ClosePolicyViolation, "no answer to pings")
	case !waiting && now.Sub(p.pinged) >= s.cfg.PingInterval && now.Sub(heard) >= s.cfg.PingInterval/2:
		p.pinged = now
		sub.box.control(websocket.PingMessage, nil)
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

// abort ends a connection whose peer takes nothing: what the kernel still holds for it
// is given up.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// subscribe is GET /subscribe.
func (s *Server) subscribe(w http.ResponseWriter, r *http.Request) {
	o, err := parseOptions(r)
	if err != nil {
		s.metrics.refused.Inc()
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !websocket.IsWebSocketUpgrade(r) {
		w.Header().Set("Connection", "Upgrade") // RFC 9110 section 7.8
		w.Header().Set("Upgrade", "websocket")
		http.Error(w, "this is a websocket endpoint; try: websocat \"ws://"+r.Host+r.URL.RequestURI()[:min(len(r.URL.RequestURI()), 200)]+"\"", http.StatusUpgradeRequired)
		return
	}
	sub := &subscriber{srv: s, box: newMailbox(), options: o, hello: make(chan struct{}), rate: limiter{rate: max(s.cfg.MaxRate, 0)}}
	sub.position.Store(unbegun)
	sub.tip = s.cfg.Log.Last()
	sub.filter.Store(o.filter)
	sub.options.filter = nil // an update may replace it: nothing else holds it then
	if !o.hello {
		close(sub.hello)
	}
	if !s.enter(sub) {
		http.Error(w, "the server is shutting down", http.StatusServiceUnavailable)
		return
	}
	defer s.leave(sub)
	header := http.Header{}
	if o.compress {
		header.Set("Zstd-Dictionary-Id", fmt.Sprint(s.cfg.Compressor.ID()))
	}
	h := &hijacker{ResponseWriter: w, box: sub.box}
	ws, err := s.upgrader.Upgrade(h, r, header)
	if err != nil {
		return // answered already
	}
	h.conn.capture()
	sub.ws, sub.raw = ws, h.conn.Conn
	if tcp, ok := sub.raw.(*net.TCPConn); ok {
		tcp.SetWriteBuffer(sendBuffer)
	}
	now := time.Now()
	sub.heard.Store(now.UnixNano())
	sub.progress = progress{since: now, pinged: now, asked: now}
	s.show(sub)
	s.metrics.handshakes.Inc()
	sub.serve(s.ctx)
}

// enter makes Run wait for the subscriber. It reports whether the server is open.
func (s *Server) enter(sub *subscriber) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.gone.Add(1)
	return true
}

// show makes a subscriber that has its socket visible to the sweep.
func (s *Server) show(sub *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[sub] = struct{}{}
}

func (s *Server) leave(sub *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subscribers, sub)
	s.gone.Done()
}
