package subscribe

import (
	"bufio"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// conn stands between gorilla and the socket. Until capture it is the socket; from
// then on gorilla reads through it, but what it writes goes to the mailbox, and its
// deadlines nowhere.
type conn struct {
	net.Conn
	box      *mailbox
	captured atomic.Bool
}

// capture is called when the handshake is done.
func (c *conn) capture() { c.captured.Store(true) }

// Write is gorilla's: once captured, always one complete control frame.
func (c *conn) Write(p []byte) (int, error) {
	if !c.captured.Load() {
		return c.Conn.Write(p)
	}
	c.box.frame(p)
	return len(p), nil
}

// SetWriteDeadline is gorilla's.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if c.captured.Load() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline is gorilla's.
func (c *conn) SetDeadline(t time.Time) error {
	if c.captured.Load() {
		return nil
	}
	return c.Conn.SetDeadline(t)
}

// hijacker hands gorilla a conn instead of the socket.
type hijacker struct {
	http.ResponseWriter
	box  *mailbox
	conn *conn // set by Hijack
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if _, encrypted := raw.(*tls.Conn); !encrypted && tcpOf(raw) != nil {
		raw = tcpOf(raw) // without what a listener has put around it for the handshake
	}
	h.conn = &conn{Conn: raw, box: h.box}
	return h.conn, rw, nil
}
