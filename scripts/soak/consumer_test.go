package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/testproc"
)

// decoder is everybody's.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.All()...), zstd.WithDecoderConcurrency(2))
	if err != nil {
		panic(err)
	}
	return d
})

// A consumer is one stream, over any number of connections.
type consumer struct {
	name  string
	query string     // compression
	pace  int        // events that it reads a second; 0: as they come
	first bool       // it is the witness
	rng   *rand.Rand // to change its filter with; nil: it keeps it

	mu    sync.Mutex // guards check
	check checker

	ws    atomic.Pointer[websocket.Conn] // the connection, to write to
	lives *atomic.Int64                  // the soak's
	life  atomic.Int64                   // that it has connected to

	at      atomic.Int64 // when something came last, unix nanoseconds
	silence atomic.Int64 // the longest time between two, since somebody set it to 0
}

func newConsumer(t *truth, name string, w wire, query string, f filter) *consumer {
	return &consumer{name: name, query: query, check: checker{truth: t, wire: w, filter: f, pos: -1}}
}

// Why a connection ended.
var (
	errGoingAway = errors.New("the daemon said that it is shutting down")
	errFellOff   = errors.New("the daemon said that the buffer no longer holds what follows")
	errBroken    = errors.New("the connection broke")
	errRefused   = errors.New("no daemon took the connection")
	errTooOld    = errors.New("the cursor was refused as too old")
	errWrong     = errors.New("the stream is wrong")
)

// target is the URL of the consumer's next connection.
func (c *consumer) target(addr string, resumed bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	path, q := "/subscribe", url.Values{}
	collections, dids := "wantedCollections", "wantedDids"
	if c.check.wire == v2 {
		path, collections, dids = "/xrpc/network.bsky.jetstream.subscribeEvents", "collections", "dids"
	}
	for _, name := range c.check.filter.collections {
		q.Add(collections, name)
	}
	for did := range c.check.filter.dids {
		q.Add(dids, did)
	}
	for _, kind := range c.check.filter.kinds {
		q.Add("kinds", kind)
	}
	if resumed {
		cursor := int64(0)
		if c.check.pos >= 0 {
			cursor = c.check.us
			if c.check.wire == v2 {
				cursor -= int64(event.Epoch)
			}
		} else if c.check.wire == v2 {
			cursor = int64(event.Epoch) // as a time, which is before the buffer and no error
		}
		q.Set("cursor", fmt.Sprint(cursor))
	}
	c.check.connects(resumed)
	return "ws://" + addr + path + "?" + q.Encode() + c.query
}

// connect dials, resumed from the newest event or, if there is none, the buffer's start; or live.
func (c *consumer) connect(ctx context.Context, addr string, resumed bool) (*websocket.Conn, error) {
	dialer := websocket.Dialer{HandshakeTimeout: testproc.Patience}
	if c.pace > 0 {
		dialer.NetDialContext = narrow
	}
	target := c.target(addr, resumed)
	ws, resp, err := dialer.DialContext(ctx, target, nil)
	if err == nil {
		return ws, nil
	}
	if resp == nil {
		return nil, fmt.Errorf("%w: %v", errRefused, err)
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable:
		return nil, fmt.Errorf("%w: %s", errRefused, body) // it is about to end
	case strings.Contains(string(body), "CursorTooOld"):
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.check.fallen(time.Now()); err != nil {
			return nil, fmt.Errorf("%w: %w", errWrong, err)
		}
		return nil, errTooOld
	}
	return nil, fmt.Errorf("%w: %s: %s", errWrong, resp.Status, body)
}

// narrow dials with a small receive buffer, so that it is the server that has to wait and not the
// kernel that reads for the consumer.
func narrow(ctx context.Context, network, addr string) (net.Conn, error) {
	// Before the connection there is: a window that has been offered cannot be taken back, and a
	// reset that falls into it is not believed.
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) }); e != nil {
			return e
		}
		return err
	}}
	return d.DialContext(ctx, network, addr)
}

// session is one connection, until it ends or ctx does. The error is one of those above.
func (c *consumer) session(ctx context.Context, addr string, resumed bool) error {
	ws, err := c.connect(ctx, addr, resumed)
	if err != nil {
		return err
	}
	defer ws.Close()
	if c.lives != nil {
		c.life.Store(c.lives.Load())
	}
	c.ws.Store(ws)
	defer c.ws.Store(nil)
	defer context.AfterFunc(ctx, func() { ws.Close() })()
	// Checking may have to wait for the witness. A daemon that ends is not to wait for that.
	messages, checked := make(chan packet, 4096), make(chan error, 1)
	go func() {
		var err error
		for p := range messages {
			if err == nil {
				if err = c.hold(p); err != nil {
					ws.Close()
				}
			}
		}
		checked <- err
	}()
	end := c.read(ctx, ws, messages)
	close(messages)
	if err := <-checked; err != nil {
		return fmt.Errorf("%w: %w", errWrong, err)
	}
	if closed, ok := errors.AsType[*websocket.CloseError](end); ok {
		return c.closed(closed)
	}
	return fmt.Errorf("%w: %v", errBroken, end)
}

// packet is a message as it was received.
type packet struct {
	data   []byte
	packed bool
}

// read hands on what comes until the connection ends, and returns why it did.
func (c *consumer) read(ctx context.Context, ws *websocket.Conn, messages chan<- packet) error {
	for {
		kind, data, err := ws.ReadMessage()
		if err != nil {
			return err
		}
		c.heard()
		messages <- packet{data, kind == websocket.BinaryMessage}
		if c.pace > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second / time.Duration(c.pace)):
			}
		}
	}
}

func (c *consumer) closed(closed *websocket.CloseError) error {
	switch {
	case closed.Code == websocket.CloseGoingAway:
		return errGoingAway
	case closed.Code == websocket.CloseAbnormalClosure:
		return fmt.Errorf("%w: %v", errBroken, closed)
	case closed.Code == websocket.ClosePolicyViolation && strings.Contains(closed.Text, "the buffer no longer holds"):
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.check.fallen(time.Now()); err != nil {
			return fmt.Errorf("%w: %w", errWrong, err)
		}
		return errFellOff
	}
	return fmt.Errorf("%w: %v", errWrong, closed)
}

// note reports whether a message of the v2 wire is no event.
func note(message []byte) bool {
	head := string(message[:min(len(message), 120)])
	return strings.Contains(head, `subscribeEvents#info"`) || strings.Contains(head, `"$type":"error"`)
}

// hold holds one message against the truth.
func (c *consumer) hold(p packet) (err error) {
	message := p.data
	if p.packed {
		if message, err = decoder().DecodeAll(message, nil); err != nil {
			return err
		}
	}
	if c.check.wire == v2 && note(message) {
		return nil // a close frame follows, or the buffer's first event
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first {
		if us, err := position(c.check.wire, message); err == nil && us > c.check.truth.newest() {
			if err := c.check.truth.witness(us, c.check.wire, message); err != nil {
				return err
			}
		}
	}
	return c.check.took(message, time.Now())
}

// heard notes that something has come.
func (c *consumer) heard() {
	now := time.Now().UnixNano()
	if before := c.at.Swap(now); before != 0 && now-before > c.silence.Load() {
		c.silence.Store(now - before)
	}
}

func (c *consumer) counts() (events, turns, skipped int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.check.count, c.check.turns, c.check.skipped
}
