package main

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// lobbyPlaces bounds the connections in the lobby. A handshake takes the server less
	// than a millisecond, so this many at a time are more than it can get done. Each costs
	// a few KB of buffers and a descriptor, and up to MaxHeaderBytes if it is out for harm.
	lobbyPlaces = 1024
	// lobbyPatience is how long a connection may keep its place in a full lobby: a second
	// for the request, which an honest client sends right after it has connected, if its
	// first packet is lost; and another for a server that is short of CPU because everyone
	// comes back at once. A kernel's queue full of silent connections (4,096 on Linux) is
	// let through in eight, less than the header timeout.
	lobbyPatience = 2 * time.Second
)

// lobby holds the public connections that carry no subscriber: those whose request has yet
// to come or is being answered, and those kept alive after one. A crowd that connects and
// then asks for nothing, or does so byte by byte, could otherwise take every descriptor.
// When the lobby is full the server accepts no more: newcomers wait in the kernel's queue,
// so that a storm of honest handshakes is served in turn and in full. Only when those
// inside do not move on within lobbyPatience is the oldest closed to make room.
type lobby struct {
	places  int // at least 1
	log     *slog.Logger
	refused prometheus.Counter
	told    throttle
	turns   chan struct{} // taken by visitors with a large request
	left    chan struct{} // from leave to admit, when somebody has left; capacity 1: once is enough

	mu    sync.Mutex // guards everything below
	order list.List  // of *guest, those inside, the oldest first
	index map[net.Conn]*guest
}

// guest is a connection in the lobby, or one that has left it to carry subscribers without
// websockets: such a connection may come back.
type guest struct {
	conn    net.Conn
	since   time.Time
	inside  *list.Element // nil: it carries subscribers
	streams int           // which it carries
}

func newLobby(places int, reg prometheus.Registerer, log *slog.Logger) *lobby {
	l := &lobby{
		places: places, log: log, turns: make(chan struct{}, largeHeaders), left: make(chan struct{}, 1), index: map[net.Conn]*guest{},
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_http_connections_refused_total", Help: "Public connections closed for taking a place without becoming a consumer, while others waited.",
		}),
	}
	reg.MustRegister(l.refused)
	return l
}

// state is a server's ConnState. The goroutine that accepts calls it with StateNew and
// goes on when it returns.
func (l *lobby) state(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		l.admit(c)
	case http.StateHijacked, http.StateClosed:
		l.leave(c)
	}
}

// admit returns when there is room for c, and it is inside.
func (l *lobby) admit(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.order.Len() >= l.places {
		oldest := l.order.Front().Value.(*guest)
		wait := lobbyPatience - time.Since(oldest.since)
		if wait <= 0 {
			l.removeLocked(oldest.conn)
			oldest.conn.Close()
			l.refused.Inc()
			if l.told.ok() {
				l.log.Warn("many connections ask for nothing: the oldest are closed to let others in", "at_a_time", l.places)
			}
			continue
		}
		l.mu.Unlock()
		select {
		case <-l.left:
		case <-time.After(wait):
		}
		l.mu.Lock()
	}
	g := &guest{conn: c}
	l.index[c] = g
	l.enterLocked(g)
}

func (l *lobby) enterLocked(g *guest) {
	g.since = time.Now()
	g.inside = l.order.PushBack(g)
}

// streaming is a subscribe.Config's: connections leave the lobby as long as they carry
// subscribers, which are counted elsewhere. Who comes back finds room in any case: the lobby
// may be too full then, but all connections together are no more than before, and newcomers
// wait.
func (l *lobby) streaming(c net.Conn, begins bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.index[c]
	if g == nil {
		return // it is closed
	}
	if begins {
		if v := visitorOf(c); v != nil {
			v.done() // the request has been read, and is forgotten
		}
		g.streams++
	} else {
		g.streams--
	}
	switch {
	case g.streams == 0:
		l.enterLocked(g)
	case g.inside != nil:
		l.order.Remove(g.inside)
		g.inside = nil
		l.tellLocked()
	}
}

// tellLocked lets who waits in admit look again.
func (l *lobby) tellLocked() {
	select {
	case l.left <- struct{}{}:
	default:
	}
}

func (l *lobby) leave(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeLocked(c)
	l.tellLocked()
}

func (l *lobby) removeLocked(c net.Conn) {
	g := l.index[c]
	if g == nil {
		return
	}
	if g.inside != nil {
		l.order.Remove(g.inside)
	}
	delete(l.index, c)
}
