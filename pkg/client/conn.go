package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"
)

// conn is one connection.
type conn struct {
	// Immutable after dial.
	ws      *websocket.Conn
	wire    Wire
	timeout time.Duration
	max     int
	decoder *zstd.Decoder // nil: nothing is compressed

	buf bytes.Buffer // owned by next

	heard  atomic.Bool            // an event came since the last options_update
	asked  atomic.Int64           // when that was sent, in unix ns; 0: never
	kinds  atomic.Pointer[[]Kind] // that the server does not filter
	filter atomic.Bool            // ended for another filter

	done    chan struct{} // closed by close
	closing sync.Once
	joined  sync.WaitGroup
}

// dial connects. Every error that is no use repeating is final.
func (c *Client) dial(ctx context.Context, filter *Filter, from Cursor, dictionaries *dictionaries) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*handshakeTimeout, errors.New("connecting takes too long"))
	defer cancel()
	id := c.server.fixed
	offered := c.server.wire == V2 && c.server.zstd && id == 0
	if offered {
		var err error
		if id, err = dictionaries.current(ctx); err != nil {
			return nil, err
		}
	}
	url, hello := c.server.dial(filter, from, id)
	ws, response, err := c.handshake(ctx, url)
	if refused := (*RefusedError)(nil); offered && errors.As(err, &refused) && refused.Name == "UnknownZstdDictionary" {
		// It was retired since, or another server behind the same name has it not yet.
		if id, err = dictionaries.current(ctx); err != nil {
			return nil, err
		}
		url, hello = c.server.dial(filter, from, id)
		ws, response, err = c.handshake(ctx, url)
	}
	if err != nil {
		return nil, err
	}
	k := &conn{ws: ws, wire: c.server.wire, timeout: c.cfg.Timeout, max: c.cfg.MaxMessage, done: make(chan struct{})}
	k.setKinds(filter)
	ws.SetReadLimit(int64(c.cfg.MaxMessage))
	if err := k.compression(ctx, c.server, id, response.Header, dictionaries); err != nil {
		ws.Close()
		return nil, err
	}
	if hello {
		k.send(filter)
	}
	k.live()
	k.joined.Go(func() { k.ping() })
	return k, nil
}

func (c *Client) handshake(ctx context.Context, url string) (*websocket.Conn, *http.Response, error) {
	dialer := websocket.Dialer{
		Proxy: http.ProxyFromEnvironment, HandshakeTimeout: handshakeTimeout, TLSClientConfig: c.cfg.TLS,
		ReadBufferSize: 64 << 10, WriteBufferSize: 4 << 10,
	}
	ws, response, err := dialer.DialContext(ctx, url, http.Header{"User-Agent": {c.cfg.UserAgent}})
	if err != nil && response != nil && errors.Is(err, websocket.ErrBadHandshake) {
		body, _ := io.ReadAll(response.Body) // gorilla reads 1,024 bytes and no more
		return nil, nil, refusal(response, body)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("connect to %s: %w", c.URL(), err)
	}
	return ws, response, nil
}

// compression finds out what the messages are compressed with.
func (k *conn) compression(ctx context.Context, server *endpoint, id uint32, header http.Header, dictionaries *dictionaries) (err error) {
	if !server.zstd {
		return nil
	}
	if named, err := strconv.ParseUint(header.Get(dictionaryHeader), 10, 32); err == nil && named != 0 {
		id = uint32(named)
	}
	if id == 0 {
		if dictionaries.given[LegacyDictionary] == nil && dictionaries.cached(LegacyDictionary) == nil {
			return finalError{ErrNoDictionary}
		}
		id = LegacyDictionary
	}
	k.decoder, err = dictionaries.decoder(ctx, id)
	return err
}

// refusal reads an answer that is not the one we want.
func refusal(response *http.Response, body []byte) error {
	e := &RefusedError{Status: response.StatusCode}
	var xrpc struct{ Error, Message string }
	if json.Unmarshal(body, &xrpc) == nil && xrpc.Error != "" {
		e.Name, e.Message = xrpc.Error, sentence([]byte(xrpc.Message))
	} else if location := response.Header.Get("Location"); location != "" {
		e.Message = "it is at " + sentence([]byte(location))
	} else if response.StatusCode == http.StatusOK {
		e.Message = "no websocket is served here"
	} else {
		e.Message = sentence(body)
	}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.retryAfter = time.Duration(min(seconds, int(maxRetryAfter/time.Second))) * time.Second
	}
	return e
}

// live sees to it that control frames count as signs of life.
func (k *conn) live() {
	k.ws.SetPongHandler(func(string) error { return k.ws.SetReadDeadline(time.Now().Add(k.timeout)) })
	k.ws.SetPingHandler(func(data string) error {
		// An error here shows when we read on.
		_ = k.ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(k.timeout))
		return k.ws.SetReadDeadline(time.Now().Add(k.timeout))
	})
}

// ping asks the server for a sign of life, until the connection is closed.
func (k *conn) ping() {
	tick := time.NewTicker(k.timeout / 3)
	defer tick.Stop()
	for {
		select {
		case <-k.done:
			return
		case <-tick.C:
			if k.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(k.timeout)) != nil {
				k.ws.Close()
				return
			}
		}
	}
}

// close ends the connection and waits for all that belongs to it.
func (k *conn) close() {
	k.shut()
	k.joined.Wait()
}

func (k *conn) shut() {
	k.closing.Do(func() {
		close(k.done)
		// As a courtesy; who does not take it is not waited for.
		_ = k.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		k.ws.Close()
	})
}

// next returns the next message, decompressed and for the caller to keep, and how many bytes it came in.
func (k *conn) next() (raw []byte, wireBytes int, err error) {
	// The deadline begins here: the time before was the consumer's.
	if err := k.ws.SetReadDeadline(time.Now().Add(k.timeout)); err != nil {
		return nil, 0, err
	}
	kind, r, err := k.ws.NextReader()
	if err != nil {
		return nil, 0, err
	}
	k.buf.Reset()
	if _, err := k.buf.ReadFrom(r); err != nil {
		return nil, 0, err
	}
	wireBytes = k.buf.Len()
	if k.buf.Cap() > 1<<20 {
		defer func() { k.buf = bytes.Buffer{} }() // one large message does not stay for ever
	}
	switch {
	case kind == websocket.TextMessage:
		return bytes.Clone(k.buf.Bytes()), wireBytes, nil
	case k.decoder == nil:
		return nil, 0, final("the server sends binary messages, which were not asked for: is that the address of a Jetstream?")
	}
	raw, err = k.decoder.DecodeAll(k.buf.Bytes(), nil)
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return nil, 0, websocket.ErrReadLimit
	}
	if err != nil {
		return nil, 0, final("a message cannot be decompressed: %w", err)
	}
	return raw, wireBytes, nil
}

// refusedUpdate is within which time of an options_update a policy violation is understood to be
// its answer.
const refusedUpdate = time.Minute

// explain makes of a read error what a person can use.
func (k *conn) explain(ctx context.Context, err error) error {
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case k.filter.Load():
		return errFilter
	case errors.Is(err, websocket.ErrReadLimit):
		return final("a message is larger than %d bytes", k.max)
	case errors.As(err, &closed):
		text := sentence([]byte(closed.Text))
		asked := k.asked.Load()
		if closed.Code == websocket.ClosePolicyViolation && asked != 0 && !k.heard.Load() && time.Since(time.Unix(0, asked)) < refusedUpdate {
			return final("the server refuses the filter: %s", text)
		}
		if closed.Code == websocket.CloseAbnormalClosure {
			return errors.New("the connection broke")
		}
		return fmt.Errorf("the server closed the connection: %d %s", closed.Code, text)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the server was silent for %s", k.timeout)
	case isFinal(err):
		return err
	}
	return fmt.Errorf("the connection broke: %w", err)
}

// setFilter makes the connection obey another filter. Callers hold Client.mu.
func (k *conn) setFilter(f *Filter) {
	if k.wire == V2 {
		k.filter.Store(true)
		k.ws.Close()
		return
	}
	k.setKinds(f)
	k.send(f)
}

// send sends an options_update. That it fails shows when we read on.
func (k *conn) send(f *Filter) {
	k.heard.Store(false)
	k.asked.Store(time.Now().UnixNano())
	_ = k.ws.SetWriteDeadline(time.Now().Add(k.timeout))
	if k.ws.WriteMessage(websocket.TextMessage, f.update()) != nil {
		k.ws.Close()
	}
}

func (k *conn) setKinds(f *Filter) {
	if k.wire == V1 {
		k.kinds.Store(&f.Kinds)
	}
}

// wants reports whether an event that came is one that was asked for.
func (k *conn) wants(e *Event) bool {
	kinds := k.kinds.Load()
	return kinds == nil || len(*kinds) == 0 || slices.Contains(*kinds, e.Kind)
}
