package subscribe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"slipstream/pkg/event"
)

// Who comes to /subscribe without a websocket: see the package comment.

// connKey is under which ConnContext keeps a connection.
type connKey struct{}

// ConnContext is an http.Server's: responses that stream are judged by what their
// connection takes.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// maxQueryWithout bounds a query without a websocket, in bytes, as the daemon does on HTTP/2: net/http
// keeps it for as long as the stream lasts.
const maxQueryWithout = 64 << 10

// withoutWebsocket adds to the options of a request what its headers ask for. Its errors are
// meant for the consumer: what needs a websocket is refused, since who asked for it would get
// something else.
func (o *options) withoutWebsocket(r *http.Request) error {
	switch {
	case len(r.URL.RawQuery) > maxQueryWithout:
		return fmt.Errorf("the query has %d bytes, without a websocket at most %d are allowed", len(r.URL.RawQuery), maxQueryWithout)
	case o.hello:
		return errors.New("requireHello: waits for an options_update, which only a websocket can bring; leave it out")
	case o.zstd != nil:
		return errors.New("compress, zstdDictionary, Socket-Encoding: compressed events need a websocket; leave them out")
	case r.ContentLength != 0:
		return errors.New("the request has a body, and there is no use for one; parameters go into the URL")
	}
	o.framing = lines
	if accepts(r, eventStream) {
		o.framing = sentEvents
	}
	if text := r.Header.Get("Last-Event-ID"); text != "" {
		// It names the last event that the consumer has got, not the first that it wants.
		last, err := strconv.ParseInt(text, 10, 64)
		if err != nil || last < 0 {
			return fmt.Errorf("Last-Event-ID: %s is not the id of an event, a number of microseconds since 1970, like 1725519626134432", quote(text))
		}
		o.cursor, o.live = event.Cursor(last)+1, false
	}
	return nil
}

// What a response may be.
const (
	eventStream = "text/event-stream"
	ndjson      = "application/x-ndjson"
)

// accepts reports whether a request names a media type among those that it accepts.
func accepts(r *http.Request, mediaType string) bool {
	for _, line := range r.Header["Accept"] {
		for entry := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(entry, ";")
			if strings.EqualFold(strings.TrimSpace(name), mediaType) {
				return true
			}
		}
	}
	return false
}

// meansWebsocket reports whether a request was a websocket's handshake once. What proxies
// take out by default are Upgrade and Connection; the rest they pass on.
func meansWebsocket(r *http.Request) bool {
	return r.Header.Get("Sec-WebSocket-Key") != "" || strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// describe sets the header of a response.
func (f framing) describe(h http.Header) {
	h.Set("Content-Type", [...]string{lines: ndjson, sentEvents: eventStream}[f])
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // asks nginx to pass on what comes as it comes
}

// opening returns how a response begins.
func (f framing) opening() []byte {
	if f != sentEvents {
		return nil
	}
	// In how many milliseconds an EventSource shall come back when its stream has ended: after
	// a restart, not in the same as all others.
	return fmt.Appendf(nil, "retry: %d\n\n", 2000+rand.IntN(3000))
}

// respond makes a subscriber of a request without a websocket, and returns when it is over.
// A refusal is for the caller to answer.
func (s *Server) respond(w http.ResponseWriter, r *http.Request, o options) *refusedError {
	conn, ok := r.Context().Value(connKey{}).(net.Conn)
	if !ok {
		panic("subscribe: the http.Server's ConnContext is not subscribe.ConnContext")
	}
	if r.Method == http.MethodHead {
		o.framing.describe(w.Header())
		return nil
	}
	sub, refused := s.admit(r, o)
	if refused != nil {
		return refused
	}
	defer s.leave(sub)
	o.framing.describe(w.Header())
	if s.cfg.Streaming != nil {
		s.cfg.Streaming(conn, true)
		defer s.cfg.Streaming(conn, false)
	}
	sub.raw, sub.response = conn, newResponse(w, r, conn)
	clear(r.Header) // the http.Server has the request until it is answered, and this may be a megabyte
	defer sub.response.leave()
	// It begins with its head, whether or not there is anything to say.
	sub.socket = &responding{stream{out: sub.response, pending: o.framing.opening()}, sub.response}
	s.metrics.streams[o.framing].Inc()
	s.show(sub, o.filter)
	go sub.run(blocked)
	select {
	case <-sub.written:
	case <-r.Context().Done():
		// The peer is gone: a write to it must not block any longer.
		sub.dead.Store(true)
		sub.abort(!sub.response.shared)
		if sub.take() {
			sub.finish()
		}
		<-sub.written
	}
	if sub.ended.Load() && o.framing == lines {
		panic(http.ErrAbortHandler) // the consumer is not to take it for a good end
	}
	return nil
}

// response is what carries a subscriber without a websocket.
type response struct {
	// Immutable.
	conn   net.Conn
	shared bool // HTTP/2: the connection is not its own
	http   *http.ResponseController

	w http.ResponseWriter // the writing role's

	mu   sync.Mutex // guards over, and is held while the response is aborted
	over bool       // the request is answered, and what it was made of is no longer ours
}

func newResponse(w http.ResponseWriter, r *http.Request, conn net.Conn) *response {
	p := &response{conn: conn, shared: r.ProtoMajor > 1, http: http.NewResponseController(w), w: w}
	// However the http.Server limits other responses, this one lasts.
	p.http.SetReadDeadline(time.Time{})
	p.http.SetWriteDeadline(time.Time{})
	return p
}

// Write writes, and waits until the connection has taken everything.
func (p *response) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err == nil {
		err = p.http.Flush()
	}
	return n, err
}

// responding is the socket of a response.
type responding struct {
	stream
	response *response
}

// write does not leave it to wait where that would be over at once: nothing of what the
// connection has taken before is still there. So the fan-out knows what a delivery costs.
func (s *responding) write(bufs net.Buffers) (n int, full bool, err error) {
	if s.response.shared || !drained(s.response.conn) {
		return s.stream.write(bufs)
	}
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	if len(bufs) == 1 {
		n, err = s.response.Write(bufs[0][:min(total, streamBytes)])
	} else {
		n, _, _ = s.stream.write(bufs)
		err = s.wait()
	}
	return n, n < total, err
}

// abort makes what is being written fail. Of a shared connection only the stream is ended,
// unless the whole of it is to be.
func (p *response) abort(whole bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.over:
	case p.shared && !whole:
		p.http.SetWriteDeadline(time.Unix(1, 0)) // one that has passed resets the stream
	default:
		abort(p.conn)
	}
}

// leave is called when nobody writes any more, and before the request is answered.
func (p *response) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
}

// abort ends a subscriber that takes nothing. It may spare a connection that others share.
func (s *subscriber) abort(whole bool) {
	if s.response != nil {
		s.response.abort(whole)
		return
	}
	abort(s.raw)
}

// shares reports whether others may use the subscriber's connection.
func (s *subscriber) shares() bool { return s.response != nil && s.response.shared }
