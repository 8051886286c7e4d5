package simrelay

import (
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	// batchBytes is what one write hands to the kernel. Beyond 128 KiB nothing was gained on
	// loopback, and the batch falls out of the second-level cache.
	batchBytes = 128 << 10
	pingEvery  = 30 * time.Second
)

// No compression: relays offer none.
var upgrader = websocket.Upgrader{
	ReadBufferSize:  1024,
	WriteBufferSize: 1024,
	CheckOrigin:     func(*http.Request) bool { return true },
}

// A reader is one connection. gorilla shakes hands and parses what the client sends; everything
// that goes out is written here.
type reader struct {
	relay *Relay
	nc    net.Conn
	next  int64 // the seq to send next
	sent  int64 // messages
	f     Faults

	stall time.Time // for this connection's own stall

	gone chan struct{} // closed when the client's side has ended

	mu sync.Mutex // held while writing to nc
}

func (r *Relay) subscribe(w http.ResponseWriter, req *http.Request) {
	cursor, hasCursor := int64(0), req.URL.Query().Has("cursor")
	if hasCursor {
		var err error
		if cursor, err = strconv.ParseInt(req.URL.Query().Get("cursor"), 10, 64); err != nil || cursor < 0 {
			http.Error(w, `{"error":"InvalidRequest","message":"cursor must be a non-negative integer"}`, http.StatusBadRequest)
			return
		}
	}
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		http.Error(w, "the relay has stopped", http.StatusServiceUnavailable)
		return
	}
	r.readers.Add(1)
	c := &reader{relay: r, f: r.cfg.Faults, gone: make(chan struct{})}
	r.mu.Unlock()
	defer r.readers.Done()

	ws, err := upgrader.Upgrade(w, req, nil)
	if err != nil {
		r.log.Info("handshake refused", "err", err)
		return
	}
	c.nc = ws.NetConn()
	r.mu.Lock()
	r.open[c] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.open, c)
		r.mu.Unlock()
	}()
	var control sync.WaitGroup
	control.Go(func() { c.readControl(ws) })
	control.Go(c.watch)
	defer control.Wait()
	defer c.nc.Close()

	opening, ok := c.seek(cursor, hasCursor)
	if len(opening) > 0 && c.write(opening) != nil || !ok {
		return
	}
	r.noteRead(c.next - 1)
	r.log.Debug("reader connected", "cursor", cursor, "next", c.next)
	c.send()
}

// seek decides where to start and returns what to say first, and whether to go on.
func (c *reader) seek(cursor int64, hasCursor bool) (opening []byte, ok bool) {
	oldest, newest := c.relay.src.bounds()
	silent := c.relay.cfg.Silent
	switch {
	case !hasCursor || cursor > newest && silent:
		c.next = newest + 1
	case cursor > newest:
		opening = appendWS(nil, wsBinary, errorMessage("FutureCursor", "Cursor in the future."))
		return appendClose(opening, websocket.ClosePolicyViolation, "FutureCursor"), false
	case cursor < oldest-1:
		c.next = oldest
		if cursor != 0 && !silent {
			opening = appendWS(nil, wsBinary, infoMessage("OutdatedCursor", "Requested cursor exceeded limit. Possibly missing events"))
		}
	default:
		c.next = cursor + 1
	}
	return opening, true
}

func appendClose(dst []byte, code int, reason string) []byte {
	return appendWS(dst, wsClose, append([]byte{byte(code >> 8), byte(code)}, reason...))
}

// readControl answers pings and notices the end. It returns when the connection is closed.
func (c *reader) readControl(ws *websocket.Conn) {
	defer close(c.gone)
	ws.SetReadLimit(64 << 10)
	ws.SetPingHandler(func(data string) error {
		if c.f.NoPong {
			return nil
		}
		return c.write(appendWS(nil, wsPong, []byte(data)))
	})
	ws.SetCloseHandler(func(code int, _ string) error {
		c.write(appendClose(nil, websocket.CloseNormalClosure, ""))
		return nil
	})
	for {
		if _, _, err := ws.NextReader(); err != nil {
			return
		}
	}
}

func (c *reader) write(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.nc.Write(b)
	return err
}

// watch frees a blocked write when the relay ends or the client has left.
func (c *reader) watch() {
	select {
	case <-c.relay.stop:
		c.nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	case <-c.gone:
		c.nc.Close()
	}
}

// send writes frames until the connection ends. The end of the relay, a cut and the client's
// leaving interrupt every wait.
func (c *reader) send() {
	r := c.relay
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	buf := make([]byte, 0, batchBytes+64<<10)
	for {
		r.mu.Lock()
		wake, until := r.wake, r.stall
		r.mu.Unlock()
		if c.f.CutAfter > 0 && c.sent >= c.f.CutAfter {
			return
		}
		if c.f.StallAfter > 0 && c.sent >= c.f.StallAfter {
			c.f.StallAfter = 0
			c.stall = time.Now().Add(c.f.StallFor)
		}
		if until.Before(c.stall) {
			until = c.stall
		}
		stall := time.Until(until)
		var b batch
		if stall <= 0 {
			b = r.src.read(buf[:0], c.next, batchBytes, c.room())
			buf = b.buf
		}
		if b.lost {
			c.write(appendClose(appendWS(nil, wsBinary, errorMessage("ConsumerTooSlow", "Stream consumer too slow")), websocket.ClosePolicyViolation, "ConsumerTooSlow"))
			return
		}
		if len(b.buf) > 0 {
			if c.write(b.buf) != nil {
				return
			}
			c.next = b.next
			c.sent += int64(b.messages)
			r.noteRead(c.next - 1)
			if b.hangUp {
				return
			}
			select {
			case <-r.stop:
				c.goodbye()
				return
			default:
			}
			continue
		}
		var over <-chan time.Time
		if stall > 0 {
			over = time.After(stall)
		}
		select {
		case <-wake:
		case <-over:
		case <-ping.C:
			if stall <= 0 && c.write(appendWS(nil, wsPing, nil)) != nil {
				return
			}
		case <-c.gone:
			return
		case <-r.stop:
			c.goodbye()
			return
		}
	}
}

func (c *reader) goodbye() {
	c.write(appendClose(nil, websocket.CloseGoingAway, "the relay is shutting down"))
}

// room is how many messages may be sent before the next fault of the connection.
func (c *reader) room() int {
	room := int64(1 << 30)
	for _, after := range []int64{c.f.CutAfter, c.f.StallAfter} {
		if after > 0 {
			room = min(room, after-c.sent)
		}
	}
	return int(room)
}

// noteRead tells Run how far the fastest reader is, before it runs out of frames.
func (r *Relay) noteRead(seq int64) {
	for {
		old := r.read.Load()
		if seq <= old {
			return
		}
		if r.read.CompareAndSwap(old, seq) {
			break
		}
	}
	if r.cfg.Rate > 0 || r.LastSeq()-seq > r.cfg.lead()/2 {
		return
	}
	select {
	case r.progress <- struct{}{}:
	default:
	}
}
