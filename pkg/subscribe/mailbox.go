package subscribe

import (
	"encoding/binary"
	"sync"

	"github.com/gorilla/websocket"
)

// mailbox holds the control frames that wait for the writer, or what stands for them without
// a websocket. It is bounded: of several
// pongs only the last is owed (RFC 6455 section 5.5.3), and the first close is final.
type mailbox struct {
	// Immutable.
	wake     func() // called when something has come
	encoding encoding

	mu      sync.Mutex // guards everything below
	ping    []byte
	pong    []byte
	closing []byte // the close frame, and what goes out before it; not nil if that is nothing
}

// tooBig is why a message that is longer than maxOptions ends the connection.
const tooBig = "a message may have at most 1 MiB (1048576 bytes)"

// frame takes a control frame, which it copies.
func (m *mailbox) frame(f []byte) {
	if len(f) < 2 {
		return
	}
	f = append([]byte(nil), f...)
	m.mu.Lock()
	switch int(f[0] & 0x0f) {
	case websocket.PongMessage:
		m.pong = f
	case websocket.CloseMessage:
		if binary.BigEndian.Uint16(append(f[2:], 0, 0)) == websocket.CloseMessageTooBig {
			f = m.encoding.farewell(websocket.CloseMessageTooBig, tooBig) // gorilla's has no reason
		}
		if m.closing == nil {
			m.closing = f
		}
	}
	m.mu.Unlock()
	m.wake()
}

// keepAlive asks the writer to show that the connection lives. It wakes nobody.
func (m *mailbox) keepAlive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ping = m.encoding.keepAlive()
}

// control takes a control message. data is at most 125 bytes.
func (m *mailbox) control(kind int, data []byte) {
	m.frame(append([]byte{0x80 | byte(kind), byte(len(data))}, data...))
}

// close asks the writer to end the connection with a code and a reason, which is cut
// to what a close frame holds, if it goes into one.
func (m *mailbox) close(code int, reason string) { m.end(nil, code, reason) }

// end is close with a frame that goes out before the close frame; nil: none.
func (m *mailbox) end(final []byte, code int, reason string) {
	m.mu.Lock()
	if m.closing == nil {
		m.closing = append(append([]byte{}, final...), m.encoding.farewell(code, reason)...)
	}
	m.mu.Unlock()
	m.wake()
}

// take returns what is to be written now, and whether it is the last.
func (m *mailbox) take() (frames []byte, last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	frames = append(append(append(frames, m.pong...), m.ping...), m.closing...)
	m.pong, m.ping = nil, nil
	return frames, m.closing != nil
}

// pending reports whether take would return anything.
func (m *mailbox) pending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ping != nil || m.pong != nil || m.closing != nil
}

// isClosing reports whether the connection is to end, or has ended.
func (m *mailbox) isClosing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closing != nil
}
