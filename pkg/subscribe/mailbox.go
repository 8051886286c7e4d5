package subscribe

import (
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

// mailbox holds the control frames that wait for the writer. It is bounded: of several
// pongs only the last is owed (RFC 6455 section 5.5.3), and the first close is final.
type mailbox struct {
	wake func() // called when something has come; immutable

	mu      sync.Mutex // guards everything below
	ping    []byte
	pong    []byte
	closing []byte // the close frame, and what goes out before it
}

// frame takes a control frame, which it copies.
func (m *mailbox) frame(f []byte) {
	m.put(f)
	m.wake()
}

// put is frame without waking anybody.
func (m *mailbox) put(f []byte) {
	if len(f) < 2 {
		return
	}
	f = append([]byte(nil), f...)
	m.mu.Lock()
	switch int(f[0] & 0x0f) {
	case websocket.PingMessage:
		m.ping = f
	case websocket.PongMessage:
		m.pong = f
	case websocket.CloseMessage:
		if m.closing == nil {
			m.closing = f
		}
	}
	m.mu.Unlock()
}

// control takes a control message. data is at most 125 bytes.
func (m *mailbox) control(kind int, data []byte) {
	m.frame(append([]byte{0x80 | byte(kind), byte(len(data))}, data...))
}

// close asks the writer to end the connection with a code and a reason, which is cut
// to what a close frame holds.
func (m *mailbox) close(code int, reason string) { m.end(nil, code, reason) }

// end is close with a frame that goes out before the close frame; nil: none.
func (m *mailbox) end(final []byte, code int, reason string) {
	const limit = 123
	if len(reason) > limit {
		reason = reason[:limit]
		for !utf8.ValidString(reason) {
			reason = reason[:len(reason)-1]
		}
	}
	message := websocket.FormatCloseMessage(code, reason)
	m.mu.Lock()
	if m.closing == nil {
		m.closing = append(append(slices.Clone(final), 0x80|websocket.CloseMessage, byte(len(message))), message...)
	}
	m.mu.Unlock()
	m.wake()
}

// take returns what is to be written now, and whether a close frame is the last of it.
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

// isClosing reports whether a close frame has been taken in.
func (m *mailbox) isClosing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closing != nil
}
