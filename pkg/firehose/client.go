package firehose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
)

// Config configures a Client. Only URL is required.
type Config struct {
	// URL of the endpoint, complete: see ParseURL.
	URL string
	// UserAgent is sent with the handshake.
	UserAgent string
	// MaxMessage is the size in bytes above which a message is dropped. Default 16 MiB:
	// a commit's blocks are at most 2 MB by the lexicon.
	MaxMessage int
	// PingInterval is how often the relay is pinged. Default 30 s. A relay that has
	// nothing to send but answers is alive.
	PingInterval time.Duration
	// PongGrace is how long beyond two pings nothing may come before the connection
	// counts as dead. Default 5 s.
	PongGrace time.Duration
	// LivenessTTL is how long no frame may come before the connection is made anew although
	// the relay answers pings. Default 0: for ever, since an idle PDS is nothing wrong.
	LivenessTTL time.Duration
	// MinBackoff and MaxBackoff bound the pause before another attempt to connect.
	// Default 500 ms and 30 s.
	MinBackoff, MaxBackoff time.Duration
	Logger                 *slog.Logger          // nil: none
	Registerer             prometheus.Registerer // nil: none
}

// Start says where a stream begins.
type Start struct {
	Live   bool // at the relay's newest frame; Cursor is not used
	Cursor Seq  // after this seq; 0: at the relay's oldest frame
	Known  bool // Cursor is a seq that this relay has sent before, so what it sends first is held against it
}

// Client is one upstream.
type Client struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	sampleIdle time.Duration // the constant, but for tests

	connected atomic.Bool
	changed   atomic.Int64 // unix ns of the last change of connected
}

// ParseURL completes what a person types to a full endpoint: scheme wss, path
// /xrpc/com.atproto.sync.subscribeRepos.
func ParseURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "wss://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New("not a URL")
	}
	switch u.Scheme {
	case "https":
		u.Scheme = "wss"
	case "http":
		u.Scheme = "ws"
	case "ws", "wss":
	default:
		return "", fmt.Errorf("scheme %q; use wss:// or ws://", u.Scheme)
	}
	if u.Hostname() == "" {
		return "", errors.New("no host")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/xrpc/com.atproto.sync.subscribeRepos"
	}
	u.RawQuery, u.Fragment = "", ""
	return u.String(), nil
}

// New makes a client. It does not connect.
func New(cfg Config) *Client {
	if cfg.MaxMessage <= 0 {
		cfg.MaxMessage = 16 << 20
	}
	if cfg.PingInterval <= 0 {
		cfg.PingInterval = 30 * time.Second
	}
	if cfg.PongGrace <= 0 {
		cfg.PongGrace = 5 * time.Second
	}
	if cfg.MinBackoff <= 0 {
		cfg.MinBackoff = 500 * time.Millisecond
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, log: cfg.Logger, sampleIdle: sampleIdle}
	c.changed.Store(time.Now().UnixNano())
	c.metrics = newMetrics(cfg.Registerer, c)
	return c
}

// Connected reports whether there is a connection, and since when that is so.
func (c *Client) Connected() (bool, time.Time) {
	return c.connected.Load(), time.Unix(0, c.changed.Load())
}

func (c *Client) setConnected(on bool) {
	if c.connected.Swap(on) != on {
		c.changed.Store(time.Now().UnixNano())
	}
}

// errNewSequence ends a connection whose relay counts anew.
var errNewSequence = errors.New("the relay's sequence numbers start anew")

// errGivenUp ends a session that has had no working connection for as long as it may.
var errGivenUp = errors.New("no connection to the relay")

// errSilent ends a connection over which no frame came for Config.LivenessTTL.
var errSilent = errors.New("no frame")

// errNoAnswer ends a connection over which nothing comes.
var errNoAnswer = errors.New("the relay sends nothing and answers no ping")

// errConnect marks that there was no connection, errSaid an error frame.
type (
	errConnect struct{ error }
	errSaid    struct{ error }
)

// lossOf classifies the end of a connection.
func lossOf(err error) loss {
	var connect errConnect
	var said errSaid
	switch {
	case errors.As(err, &connect):
		return lostConnect
	case errors.As(err, &said):
		return lostErrorFrame
	case errors.Is(err, errNewSequence):
		return lostNewSequence
	case errors.Is(err, errNoAnswer):
		return lostPong
	case errors.Is(err, errSilent):
		return lostFrames
	}
	return lostRead
}

// errHandler marks an error of the receiver's.
type errHandler struct{ error }

// Run connects, and connects again, until ctx ends (it then returns nil) or handle
// returns an error (which it returns). handle is called by one goroutine, in order;
// it owns the frame.
func (c *Client) Run(ctx context.Context, start Start, handle func(Frame) error) error {
	s := c.session(c.cfg.URL, start, handle)
	defer s.arena.close()
	return s.run(ctx)
}

func (c *Client) session(url string, start Start, handle func(Frame) error) *session {
	return &session{Client: c, url: url, log: c.log.With("upstream", url), start: start, handle: handle, backoff: c.cfg.MinBackoff}
}

// run is Run, which also returns errGivenUp.
func (s *session) run(ctx context.Context) error {
	s.down = time.Now()
	for {
		began, before := time.Now(), s.start
		err := s.connect(ctx)
		s.setConnected(false)
		moved := s.start != before // the same frame over and over is no progress
		var fatal errHandler
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &fatal):
			return fatal.error
		case errors.Is(err, errNewSequence):
			s.metrics.resets.Inc()
			if moved || s.start.Known { // it is there; but not over and over
				s.backoff = s.cfg.MinBackoff
			}
			s.log.Warn("the relay's sequence numbers start anew; taking them from its oldest frame", "cursor", s.start.Cursor, "pause", s.backoff)
			s.start = Start{}
			s.epoch++
		default:
			if moved || time.Since(began) > time.Minute {
				s.backoff, s.failing = s.cfg.MinBackoff, false
			}
			// One line per state change: the first failure in a row is news, the rest are not.
			level := slog.LevelWarn
			if s.failing {
				level = slog.LevelDebug
			}
			s.failing = true
			s.log.Log(ctx, level, "connection to the relay ended, trying again", "error", err, "pause", s.backoff.Round(time.Millisecond))
		}
		// To have been let in is nothing yet; a frame is, or an answer to a ping where silence
		// is no fault.
		if moved || s.answered && !errors.Is(err, errSilent) {
			s.down = time.Now()
		}
		pause := s.backoff/2 + rand.N(s.backoff/2+1)
		if s.giveUp > 0 {
			left := s.giveUp - time.Since(s.down)
			if left <= 0 {
				return errGivenUp
			}
			pause = min(pause, left) // one last attempt
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		s.backoff = min(2*s.backoff, s.cfg.MaxBackoff)
		s.metrics.reconnects[lossOf(err)].Inc()
	}
}

// session is a stream of frames from one relay, over any number of connections. It is owned
// by run.
type session struct {
	*Client
	url    string
	index  int // of url among the upstreams
	log    *slog.Logger
	handle func(Frame) error
	giveUp time.Duration // how long without a working connection ends run; 0: no time does

	start    Start // where the next connection goes on
	epoch    int
	handled  uint64    // frames handed on
	leapt    Seq       // the last frame's seq if it was a leap, else 0
	down     time.Time // the end of the last connection that worked, or the beginning
	answered bool      // the relay has answered a ping on this connection
	backoff  time.Duration
	failing  bool // the last connection failed, and that has been said
	arena    arena
}

// dial opens a connection at a position.
func (c *Client) dial(ctx context.Context, target string, start Start, timeout time.Duration, buffer int) (*websocket.Conn, error) {
	if !start.Live {
		target += "?cursor=" + strconv.FormatInt(int64(start.Cursor), 10)
	}
	header := http.Header{}
	if c.cfg.UserAgent != "" {
		header.Set("User-Agent", c.cfg.UserAgent)
	}
	// gorilla looks at ctx until there is a connection, and not while the answer does not come.
	stop := func() bool { return true }
	dialer := websocket.Dialer{
		HandshakeTimeout: timeout, ReadBufferSize: buffer, Proxy: http.ProxyFromEnvironment,
		NetDialContext: func(dialing context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(dialing, network, addr)
			if err == nil {
				stop = context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		},
	}
	conn, resp, err := dialer.DialContext(ctx, target, header)
	if !stop() && err == nil {
		conn.Close()
		err = ctx.Err()
	}
	if err != nil {
		if resp != nil {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
			return nil, errConnect{fmt.Errorf("connect: %w: status %d %q", err, resp.StatusCode, text)}
		}
		return nil, errConnect{fmt.Errorf("connect: %w", err)}
	}
	return conn, nil
}

// connect makes one connection and reads it to its end.
func (s *session) connect(ctx context.Context) error {
	s.answered = false
	timeout := 20 * time.Second
	if s.giveUp > 0 {
		timeout = min(timeout, max(s.giveUp, time.Second))
	}
	// Large reads: catching up, a relay sends as fast as we take it.
	conn, err := s.dial(ctx, s.url, s.start, timeout, 256<<10)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.keepAlive(ctx, conn, done)
	}()
	defer func() {
		close(done)
		conn.Close()
		<-finished
	}()
	s.setConnected(true)
	s.log.Info("connected to the relay", "cursor", s.cursorText())
	return s.read(ctx, conn)
}

func (s *session) cursorText() string {
	if s.start.Live {
		return "live"
	}
	return strconv.FormatInt(int64(s.start.Cursor), 10)
}

// keepAlive pings until done, and ends the connection with ctx.
func (s *session) keepAlive(ctx context.Context, conn *websocket.Conn, done <-chan struct{}) {
	tick := time.NewTicker(s.cfg.PingInterval)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			message := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
			conn.WriteControl(websocket.CloseMessage, message, time.Now().Add(time.Second))
			conn.Close()
			return
		case <-tick.C:
			conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(5*time.Second))
		}
	}
}

func (s *session) read(ctx context.Context, conn *websocket.Conn) error {
	// Whatever arrives is a sign of life. The deadline moves at most once a second: it
	// costs a lock and a timer.
	extended := time.Now()
	frame := extended // when one came, within a second
	alive := func() {
		deadline := time.Now().Add(2*s.cfg.PingInterval + s.cfg.PongGrace)
		if s.cfg.LivenessTTL > 0 {
			deadline = earlier(deadline, frame.Add(s.cfg.LivenessTTL))
		}
		conn.SetReadDeadline(deadline)
	}
	alive()
	conn.SetPongHandler(func(string) error { s.answered = true; alive(); return nil })
	conn.SetPingHandler(func(data string) error {
		alive()
		conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(5*time.Second))
		return nil
	})
	first := true
	for {
		kind, r, err := conn.NextReader()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				if s.cfg.LivenessTTL > 0 && time.Since(frame) >= s.cfg.LivenessTTL {
					return fmt.Errorf("%w for %s", errSilent, s.cfg.LivenessTTL)
				}
				return errNoAnswer
			}
			return fmt.Errorf("read: %w", err)
		}
		if now := time.Now(); now.Sub(extended) > time.Second {
			frame = now
			alive()
			extended = now
		}
		message, err := s.arena.read(r, s.cfg.MaxMessage)
		switch {
		case errors.Is(err, errTooLarge):
			s.drop(reasonTooLarge)
			if _, err := io.Copy(io.Discard, r); err != nil {
				return fmt.Errorf("read: %w", err)
			}
			continue
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case kind != websocket.BinaryMessage:
			s.drop(reasonNotBinary)
			continue
		}
		s.metrics.bytes.Add(float64(len(message)))
		h, body, err := parseHeader(message)
		switch {
		case err != nil:
			s.drop(reasonHeader)
			continue
		case h.op == -1:
			name, text := parsePair(body, "error", "message")
			s.metrics.errorFrames.Inc()
			if name == "FutureCursor" && !s.start.Live {
				return errNewSequence
			}
			return errSaid{fmt.Errorf("the relay says %s: %q", name, text)}
		case h.typ == "#info":
			name, text := parsePair(body, "name", "message")
			s.metrics.notices.Inc()
			level := slog.LevelWarn
			if name == "OutdatedCursor" {
				if s.start.Cursor > 0 {
					s.metrics.gaps.Inc()
				} else {
					level = slog.LevelInfo // its oldest frame was asked for, and comes
				}
			}
			s.log.Log(ctx, level, "notice from the relay", "name", name, "message", text)
			continue
		case h.typ == "#unknown":
			s.drop(reasonType)
			continue
		}
		seq, err := parseSeq(body)
		if err != nil {
			s.drop(reasonSeq)
			continue
		}
		if first {
			first = false
			if s.start.Known && !s.start.Live && seq < s.start.Cursor {
				return errNewSequence
			}
			if s.start.Known && !s.start.Live && seq > s.start.Cursor+1 {
				s.metrics.gaps.Inc()
				s.log.Warn("possible gap: the relay goes on after a jump in its numbers", "cursor", s.start.Cursor, "first_seq", seq)
			}
		}
		s.metrics.frames.Inc()
		leap := s.leaps(seq)
		if err := s.handle(Frame{Seq: seq, Type: h.typ, Body: body, Upstream: s.index, Epoch: s.epoch, Leap: leap, slab: s.arena.keep(message)}); err != nil {
			return errHandler{err}
		}
		s.handled++
		// A repeated frame does not move the position back. A first one does set it.
		if s.start.Live || !s.start.Known || seq > s.start.Cursor && !leap {
			s.start = Start{Cursor: seq, Known: true}
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// leapSeqs is how far a seq may be ahead of the one before without a second frame
// that confirms it: about twenty minutes of the whole network.
const leapSeqs = 1_000_000

// leaps reports whether seq is implausibly far ahead. One damaged number must not
// become the position, from which everything true would look old; a relay that really
// leaps goes on from there with its next frame.
func (s *session) leaps(seq Seq) bool {
	if s.start.Live || !s.start.Known || seq-s.start.Cursor <= leapSeqs {
		s.leapt = 0
		return false
	}
	confirmed := s.leapt > 0 && seq > s.leapt && seq-s.leapt <= leapSeqs
	s.leapt = seq
	return !confirmed
}

// drop counts a message that could not be read.
func (s *session) drop(r reason) {
	s.metrics.dropped[r].Inc()
	s.log.Debug("message dropped", "reason", r.String())
}
