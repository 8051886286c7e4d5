package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// A request's header is held in memory, several times over, before anybody has looked at it; and
// 10,000 wantedDids make half a megabyte of it. With a thousand connections in the lobby that
// would be gigabytes. So of the headers that are no longer small only a few are read at a time.
const (
	// smallHeader is enough for a hundred DIDs, in bytes.
	smallHeader = 8 << 10
	// largeHeaders are read at a time. Each takes up to 3.5 MB; an honest one takes
	// milliseconds to come.
	largeHeaders = 8
	// headerTimeout is how long one may take to come, turnPatience how long its turn may.
	headerTimeout = 10 * time.Second
	turnPatience  = 30 * time.Second
	// maxHeader has room for the largest query that is answered, and for a sentence about one
	// that is larger.
	maxHeader = 1<<20 + 128<<10
	// maxHeaderHTTP2 is for HTTP/2, where a connection may hold a header for as long as it likes.
	maxHeaderHTTP2 = 64 << 10
)

// visitor is a public connection. While net/http reads a request from it, it waits its turn when
// that is large.
type visitor struct {
	net.Conn
	lobby *lobby

	closed  atomic.Bool
	reading atomic.Bool // a header; on HTTP/2, while nothing is being answered
	read    int         // bytes since reading began; owned by the reader
	holding atomic.Bool // a turn
}

func newVisitor(c net.Conn, l *lobby) *visitor {
	v := &visitor{Conn: c, lobby: l}
	v.reading.Store(true)
	return v
}

// errLargeHeader ends a connection whose turn does not come within turnPatience.
var errLargeHeader = errors.New("too many large requests at a time")

// Read implements net.Conn.
func (v *visitor) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	if !v.reading.Load() {
		return n, err
	}
	if v.read += n; v.read > smallHeader && !v.holding.Load() && err == nil {
		err = v.await()
	}
	return n, err
}

// await waits for a turn. The time for the header begins when that has come.
func (v *visitor) await() error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; {
		select {
		case v.lobby.turns <- struct{}{}:
			v.holding.Store(true)
			return v.Conn.SetReadDeadline(time.Now().Add(headerTimeout))
		case now := <-tick.C:
			if v.closed.Load() {
				return net.ErrClosed
			}
			if now.Sub(begun) > turnPatience {
				v.lobby.refused.Inc()
				return errLargeHeader
			}
		}
	}
}

// state follows a server's ConnState. A turn lasts until the request has been answered: what its
// handler makes of a large query takes memory, too.
func (v *visitor) state(s http.ConnState) {
	switch s {
	case http.StateActive:
		v.reading.Store(false)
	case http.StateIdle:
		v.done()
		v.read = 0
		v.reading.Store(true)
	case http.StateHijacked, http.StateClosed:
		v.reading.Store(false)
		v.done()
	}
}

func (v *visitor) done() {
	if v.holding.Swap(false) {
		<-v.lobby.turns
	}
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	v.closed.Store(true)
	return v.Conn.Close()
}

// NetConn returns the connection below: see [subscribe.Server.Handler].
func (v *visitor) NetConn() net.Conn { return v.Conn }

// visitorOf returns the visitor that a server's connection is, or that it is below its TLS; nil:
// there is none.
func visitorOf(c net.Conn) *visitor {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	v, _ := c.(*visitor)
	return v
}

// limitHTTP2 gives a server's HTTP/2 the settings of another one, where net/http has only one for
// both. It is to be called before the server serves.
func limitHTTP2(server, settings *http.Server) error {
	//lint:ignore SA1019 what is to be used instead, Server.Protocols, has one limit for both
	if err := http2.ConfigureServer(server, nil); err != nil {
		return fmt.Errorf("HTTP/2: %w", err)
	}
	serve := server.TLSNextProto[http2.NextProtoTLS]
	server.TLSNextProto[http2.NextProtoTLS] = func(_ *http.Server, c *tls.Conn, h http.Handler) { serve(settings, c, h) }
	return nil
}
