package subscribe_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
)

// small is a receive buffer that makes the server's writes block early.
const small = 4 << 10

// drainFrames reads frames until the close frame, or until n messages have come if n is
// not 0. It holds messages against facts in order, and returns the pongs' payloads and
// the close frame's.
func (r *raw) drainFrames(facts []fact, n int) (messages int, pongs []string, closing []byte) {
	r.t.Helper()
	for n == 0 || messages < n {
		op, p, err := r.frame()
		if err != nil {
			r.t.Fatalf("after %d messages and %d pongs: %v", messages, len(pongs), err)
		}
		switch op {
		case websocket.TextMessage:
			if messages == len(facts) || string(p) != facts[messages].text(r.v2) {
				r.t.Fatalf("message %d is %.200q", messages, p)
			}
			messages++
		case websocket.PongMessage:
			pongs = append(pongs, string(p))
		case websocket.CloseMessage:
			return messages, pongs, p
		default:
			r.t.Fatalf("opcode %d", op)
		}
	}
	return messages, pongs, nil
}

// expectEnd reads the end of the stream: a FIN, not a reset.
func (r *raw) expectEnd() {
	r.t.Helper()
	if b, err := r.br.ReadByte(); err != io.EOF {
		r.t.Errorf("after the close frame: byte %x, %v; want the end", b, err)
	}
}

// TestPongWhileAWriteIsBlocked: nothing comes into the middle of a message, and nothing is
// lost, whether or not what is blocked keeps what it was to write.
func TestPongWhileAWriteIsBlocked(t *testing.T) {
	t.Run("kept", func(t *testing.T) { pongWhileAWriteIsBlocked(t, true) })
	t.Run("given up", func(t *testing.T) { pongWhileAWriteIsBlocked(t, false) })
}

func pongWhileAWriteIsBlocked(t *testing.T, keep bool) {
	w := newWorld(t, nil)
	if !keep {
		w.srv.KeepNothing()
	}
	w.feed.posts(6000, 500) // more than any buffer between us
	r := w.dialRaw("cursor=1", small)
	w.blocked(1)
	if kept := w.srv.Kept(); keep != (kept > 0) {
		t.Errorf("%d bytes are kept", kept)
	}
	for i := range 5 {
		r.write(masked(0x89, fmt.Appendf(nil, "ping %d", i)))
	}
	// One in the middle of a message of the client's own.
	r.write(masked(0x01, []byte(`{"type":`)))
	r.write(masked(0x89, []byte("the last")))
	r.write(masked(0x80, []byte(`"nothing"}`)))
	_, pongs, _ := r.drainFrames(w.feed.all, len(w.feed.all))
	if len(pongs) == 0 || pongs[len(pongs)-1] != "the last" {
		t.Errorf("pongs %q", pongs)
	}
	// Live again, and answered.
	w.feed.posts(1, 1)
	r.drainFrames(w.feed.all[6000:], 1)
	r.write(masked(0x89, nil))
	if op, p, err := r.frame(); op != websocket.PongMessage || len(p) != 0 || err != nil {
		t.Errorf("got %d %q %v, want an empty pong", op, p, err)
	}
	if kept := w.srv.Kept(); kept != 0 {
		t.Errorf("%d bytes are still kept", kept)
	}
}

// faults are what a client may do wrong, and what it is told.
var faults = []struct {
	name  string
	bytes []byte
	code  int
}{
	{"unmasked", []byte{0x81, 0x02, '{', '}'}, websocket.CloseProtocolError},
	{"RSV1", masked(0xc1, []byte("{}")), websocket.CloseProtocolError},
	{"RSV2", masked(0xa1, []byte("{}")), websocket.CloseProtocolError},
	{"RSV3", masked(0x91, []byte("{}")), websocket.CloseProtocolError},
	{"bad opcode", masked(0x83, nil), websocket.CloseProtocolError},
	{"bad control opcode", masked(0x8b, nil), websocket.CloseProtocolError},
	{"continuation of nothing", masked(0x80, []byte("{}")), websocket.CloseProtocolError},
	{"ping in two frames", masked(0x09, nil), websocket.CloseProtocolError},
	{"ping of 126 bytes", masked(0x89, make([]byte, 126)), websocket.CloseProtocolError},
	{"everything at once", []byte{0x73, 0x7f}, websocket.CloseProtocolError},
	{"invalid UTF-8 in a close reason", masked(0x88, []byte("\x03\xe8\xff")), websocket.CloseProtocolError},
	{"invalid close code", masked(0x88, []byte{0x03, 0xed}), websocket.CloseProtocolError}, // 1005
	{"a length of 64 bits", append([]byte{0x81, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 1}, 0, 0, 0, 0), websocket.CloseMessageTooBig},
	{"a megabyte and a byte", masked(0x81, make([]byte, 1<<20+1)), websocket.CloseMessageTooBig},
	{"eight megabytes", masked(0x82, make([]byte, 8<<20)), websocket.CloseMessageTooBig},
	{"no options", masked(0x81, []byte("x")), websocket.ClosePolicyViolation},
}

// TestFaultWhileAWriteIsBlocked: what a client does wrong while it reads nothing ends
// its connection between two messages, and it learns why.
func TestFaultWhileAWriteIsBlocked(t *testing.T) {
	w := newWorld(t, nil)
	w.feed.posts(3000, 500)
	for _, tt := range faults {
		for _, blocked := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, blocked %v", tt.name, blocked), func(t *testing.T) {
				query := "cursor=1"
				if !blocked {
					query = ""
				}
				r := w.dialRaw(query, small)
				r.t = t
				if blocked {
					w.blocked(1)
				}
				// It writes all of it before it reads anything, as a simple client does.
				r.write(tt.bytes)
				if blocked {
					// Or it might read everything before the server sees the fault.
					eventually(t, "the server sees it", func() bool { return w.srv.Closing() == 1 })
				}
				n, _, closing := r.drainFrames(w.feed.all, 0)
				if len(closing) < 2 || int(closing[0])<<8|int(closing[1]) != tt.code {
					t.Errorf("close %q, want %d", closing, tt.code)
				}
				if blocked && (n == 0 || n == len(w.feed.all)) {
					t.Errorf("%d messages came before the close frame", n)
				}
				r.expectEnd()
				r.conn.Close()
				w.connected(0)
			})
		}
	}
}

func TestClientCloses(t *testing.T) {
	w := newWorld(t, nil)
	w.feed.posts(3000, 500)
	for _, tt := range []struct{ name, sent, want string }{
		{"normal", "\x03\xe8", "\x03\xe8"},
		{"with a reason", "\x03\xe9bye", "\x03\xe9"},
		{"own code", "\x0f\xa1mine", "\x0f\xa1"},
		{"no code", "", ""},
		{"half a code", "\x03", ""},
	} {
		for _, query := range []string{"", "cursor=1"} {
			t.Run(tt.name+" "+query, func(t *testing.T) {
				r := w.dialRaw(query, small)
				r.t = t
				if query != "" {
					w.blocked(1)
				}
				r.write(masked(0x88, []byte(tt.sent)))
				_, _, closing := r.drainFrames(w.feed.all, 0)
				if string(closing) != tt.want {
					t.Errorf("closed with %q, want %q", closing, tt.want)
				}
				r.expectEnd()
				r.conn.Close()
				w.connected(0)
			})
		}
	}
	for _, how := range []string{"FIN", "RST"} {
		t.Run(how+" while a write is blocked", func(t *testing.T) {
			r := w.dialRaw("cursor=1", small)
			w.blocked(1)
			if how == "RST" {
				r.conn.SetLinger(0)
			}
			r.conn.Close()
			w.connected(0)
		})
	}
}

// watched is a connection that tells who writes to it and who sets its deadlines.
type watched struct {
	net.Conn
	log *watch
}

type watch struct {
	mu     sync.Mutex
	on     bool // the handshake is over
	writes map[string]int
	faults []string
}

func (w *watch) saw(what string) {
	pcs := make([]uintptr, 50)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var who []string
	for {
		f, more := frames.Next()
		who = append(who, f.Function)
		if !more {
			break
		}
	}
	stack := strings.Join(who, " < ")
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.on, strings.Contains(stack, "(*Upgrader).Upgrade"):
	case strings.Contains(stack, "gorilla"), !strings.Contains(stack, "subscribe.(*stream).wait < slipstream/pkg/subscribe.(*subscriber).run"):
		w.faults = append(w.faults, what+" by "+stack)
	default:
		w.writes[what]++
	}
}

func (c watched) Write(p []byte) (int, error) {
	c.log.saw("Write")
	n, err := c.Conn.Write(p)
	if strings.HasPrefix(string(p), "HTTP/1.1 101") {
		c.log.mu.Lock()
		c.log.on = true
		c.log.mu.Unlock()
	}
	return n, err
}

func (c watched) SetDeadline(t time.Time) error {
	c.log.saw("SetDeadline")
	return c.Conn.SetDeadline(t)
}

func (c watched) SetWriteDeadline(t time.Time) error {
	c.log.saw("SetWriteDeadline")
	return c.Conn.SetWriteDeadline(t)
}

type watchedListener struct {
	net.Listener
	log *watch
}

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return watched{c, l.log}, nil
}

// TestOnlyTheWriterWrites: gorilla's own pongs and close frames, and their deadlines,
// do not reach the socket.
func TestOnlyTheWriterWrites(t *testing.T) {
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			log := &watch{writes: map[string]int{}}
			w := newWorld(t, func(s *settings) {
				s.wrap = func(l net.Listener) net.Listener { return watchedListener{l, log} }
			})
			w.feed.posts(3, 1)
			r := w.dialRaw("cursor=1", 0)
			r.drainFrames(w.feed.all, 3)
			r.write(masked(0x89, []byte("ping")))
			if op, _, err := r.frame(); op != websocket.PongMessage {
				t.Fatal(op, err)
			}
			r.write(tt.bytes)
			r.drainFrames(nil, 0)
			r.conn.Close()
			w.connected(0)
			log.mu.Lock()
			defer log.mu.Unlock()
			if log.faults != nil || log.writes["Write"] < 3 || len(log.writes) != 1 {
				t.Errorf("writes %v, faults %q", log.writes, log.faults)
			}
		})
	}
}

// TestLargeEvents: each goes out whole, whatever its size.
func TestLargeEvents(t *testing.T) {
	w := newWorld(t, nil)
	f := w.feed
	// Around every length of a frame header, and far beyond one write.
	for _, n := range []int{0, 100, 65_000, 65_200, 65_300, 65_400, 65_600, 300 << 10, 1, 900 << 10, 5} {
		f.add(event.KindCommit, "did:plc:a", "app.bsky.feed.post", strings.Repeat("x", n))
	}
	f.commit()
	for _, query := range []string{"cursor=1", "cursor=1&compress=true"} {
		w.dial(query).expect(f.all)
	}
	// A reader that loses the connection in the middle of one is nobody's problem.
	r := w.dialRaw("cursor="+f.all[9].cursor.String(), small)
	w.blocked(1)
	io.CopyN(io.Discard, r.conn, 100)
	r.conn.Close()
	w.connected(2)
	if _, err := r.conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
