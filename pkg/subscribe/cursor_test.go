package subscribe_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
)

func TestCursors(t *testing.T) {
	w := newWorld(t, func(s *settings) { s.log.WindowBytes = 10 << 10 }) // most of it is on disk
	f := w.feed
	f.posts(300, 7)
	marker := func() []fact { // one more event, which a live consumer gets first
		f.posts(1, 1)
		return f.all[len(f.all)-1:]
	}
	for _, i := range []int{0, 1, 6, 7, 8, 150, 298, 299} {
		w.dial(fmt.Sprintf("cursor=%d", f.all[i].cursor)).expect(f.all[i:])
	}
	t.Run("last", func(t *testing.T) {
		w.dial(fmt.Sprintf("cursor=%d", w.log.Last())).expect(f.all[len(f.all)-1:])
	})
	t.Run("before the first", func(t *testing.T) {
		w.dial(fmt.Sprintf("cursor=%d", start)).expect(f.all)
	})
	t.Run("absent", func(t *testing.T) {
		c := w.dial("")
		w.begun()
		c.expect(marker())
	})
	for _, future := range []event.Cursor{w.log.Last() + 1, w.log.Last() + 1_000_000_000, 1<<63 - 1} {
		t.Run("future", func(t *testing.T) {
			c := w.dial(fmt.Sprintf("cursor=%d", max(future, w.log.Last()+1)))
			w.begun()
			c.expect(marker())
		})
	}
	t.Run("between two events", func(t *testing.T) {
		f.last += 1000
		c := w.dial(fmt.Sprintf("cursor=%d", f.last-500))
		w.begun()
		c.expect(marker()) // it was the future when it was asked for
		f.last += 1000
		marker()
		n := len(f.all)
		w.dial(fmt.Sprintf("cursor=%d", f.all[n-2].cursor+500)).expect(f.all[n-1:])
		w.dial(fmt.Sprintf("cursor=%d", f.all[n-2].cursor)).expect(f.all[n-2:])
	})
}

// handshakes returns how many consumers have connected.
func (w *world) handshakes() float64 {
	w.t.Helper()
	n := 0.0
	for _, protocol := range []string{"v1", "v2", "sse", "ndjson"} {
		n += w.metric("slipstream_subscribes_total", protocol)
	}
	return n
}

// begun returns when every subscriber has looked up its cursor.
func (w *world) begun() { w.begunBut(0) }

// begunBut returns when every subscriber but n, which wait for their hello, has.
func (w *world) begunBut(n int) {
	w.t.Helper()
	eventually(w.t, "every subscriber knows its position", func() bool {
		return w.handshakes() == float64(w.dials.Load()) && w.srv.Waiting() == n
	})
}

func TestEmptyLog(t *testing.T) {
	w := newWorld(t, nil)
	var clients []*client
	for _, query := range []string{"", "cursor=0", "cursor=-1", "cursor=1790000000000000", "cursor=9223372036854775807", "compress=true"} {
		clients = append(clients, w.dial(query))
	}
	w.begun()
	w.feed.posts(5, 2)
	for _, c := range clients {
		c.expect(w.feed.all)
	}
}

func TestTrimmed(t *testing.T) {
	var now atomic.Int64
	now.Store(start.Time().UnixNano())
	w := newWorld(t, func(s *settings) {
		s.log.Now = func() time.Time { return time.Unix(0, now.Load()) }
		s.log.Retention = time.Hour
		s.log.WindowBytes = 20 << 10
	})
	f := w.feed
	f.posts(500, 10)
	hello := w.dial("cursor=1&requireHello=true")
	// Everything up to event 250 is now more than an hour old: 25 chunks go.
	now.Store(f.all[250].cursor.Time().Add(time.Hour).UnixNano())
	if err := w.log.Trim(); err != nil {
		t.Fatal(err)
	}
	for _, cursor := range []string{"-9223372036854775808", "0", "1", f.all[0].cursor.String(), f.all[249].cursor.String(), f.all[250].cursor.String()} {
		w.dial("cursor=" + cursor).expect(f.all[250:])
	}
	w.dial("cursor=" + f.all[251].cursor.String()).expect(f.all[251:])
	hello.send(`{"type":"options_update"}`)
	hello.expect(f.all[250:])

	// All of it goes: what is left is live.
	parked := w.dial("")
	hello = w.dial("cursor=1&requireHello=true")
	w.begunBut(1)
	now.Store(f.all[499].cursor.Time().Add(2 * time.Hour).UnixNano())
	if err := w.log.Trim(); err != nil {
		t.Fatal(err)
	}
	c := w.dial("cursor=1")
	hello.send(`{"type":"options_update"}`)
	w.begun()
	f.last = start + event.Cursor(3*time.Hour/time.Microsecond)
	f.posts(3, 2)
	for _, c := range []*client{c, parked, hello} {
		c.expect(f.all[500:])
	}
	if n := w.ended("fell_off_the_buffer"); n != 0 {
		t.Errorf("%v consumers fell off the buffer", n)
	}
}

func TestRequireHello(t *testing.T) {
	w := newWorld(t, nil)
	f := w.feed
	f.posts(10, 3)
	past := w.dial("requireHello=true&cursor=" + f.all[4].cursor.String())
	live := w.dial("requireHello=true")
	future := w.dial(fmt.Sprintf("requireHello=true&cursor=%d", f.last+3))
	w.connected(3)
	f.posts(10, 3) // the future's cursor is now the past
	for _, c := range []*client{past, live, future} {
		// Neither is a hello.
		c.send(`{"type":"ping"}`)
		c.send(`null`)
	}
	if n := w.srv.Waiting(); n != 3 {
		t.Errorf("%d of 3 wait for their hello", n)
	}
	past.send(`{"type":"options_update","payload":{}}`)
	past.expect(f.all[4:])
	live.send(`{"type":"options_update","payload":{"wantedDids":["did:plc:x"]}}`)
	future.send(`{"type":"options_update"}`)
	future.expect(f.all[12:])
	w.begun()
	f.add(event.KindIdentity, "did:plc:y", "", "")
	f.add(event.KindIdentity, "did:plc:x", "", "")
	f.commit()
	live.expect(f.all[21:])
}

func TestOptionsUpdate(t *testing.T) {
	w := newWorld(t, nil)
	f := w.feed
	f.posts(1, 1)
	// A filter is in force when an event that the old one refuses arrives.
	c := w.dial("wantedDids=did:plc:nobody&cursor=1")
	last := 0
	step := func(message, did string) {
		t.Helper()
		c.send(message)
		// Messages are taken in order: a ping's answer says that the update before it is in.
		w.pingPong(c)
		f.add(event.KindCommit, did, "app.bsky.feed.post", "long enough to be left out")
		f.add(event.KindIdentity, "did:plc:nobody", "", "")
		f.commit()
		last = len(f.all)
	}
	step(`{"type":"options_update","payload":{"wantedDids":["did:plc:a","did:plc:nobody"]}}`, "did:plc:a")
	c.expect(f.all[last-2:])
	step(`{"type":"options_update","payload":{"wantedDids":["did:plc:b"]}}`, "did:plc:b")
	c.expect(f.all[last-2 : last-1])
	step(`{"type":"options_update","payload":{"maxMessageSizeBytes":180}}`, "did:plc:c")
	c.expect(f.all[last-1:])
	step(`{"type":"options_update","payload":{"wantedCollections":["com.example.none"]}}`, "did:plc:c")
	c.expect(f.all[last-1:])
	step(`{"type":"options_update","payload":{}}`, "did:plc:d")
	c.expect(f.all[last-2:])
	step(`{"type":"options_update","payload":{"wantedDids":["did:plc:nobody"]}}`, "did:plc:d")
	c.expect(f.all[last-1:])
	step(`{"type":"options_update"}`, "did:plc:d")
	c.expect(f.all[last-2:])
	step(`{"type":"options_update","payload":{"wantedDids":["did:plc:nobody"]}}`, "did:plc:d")
	c.expect(f.all[last-1:])
	step(`{"type":"options_update","payload":null}`, "did:plc:e")
	c.expect(f.all[last-2:])
	for _, ignored := range []string{`{"type":"something_else","payload":{"wantedDids":"all"}}`, `{"payload":5}`, `{}`, `null`} {
		step(ignored, "did:plc:f")
		c.expect(f.all[last-2:])
	}
	if err := c.ws.WriteMessage(websocket.BinaryMessage, []byte(`{"type":"options_update","payload":{"wantedDids":["did:plc:nobody"]}}`)); err != nil {
		t.Fatal(err)
	}
	step(`{}`, "did:plc:f")
	c.expect(f.all[last-1:])
	dids := `"` + strings.ReplaceAll(strings.ReplaceAll(repeat("x", "did:plc:%024d", 9_999), "x=", ""), "&", `","`) + `"`
	step(`{"type":"options_update","payload":{"wantedDids":["did:plc:nobody",`+dids+`]}}`, "did:plc:f")
	c.expect(f.all[last-1:])
	// A message of exactly a megabyte.
	message := `{"type":"options_update","payload":{"wantedDids":["did:plc:f"]}}`
	step(message+strings.Repeat(" ", 1<<20-len(message)), "did:plc:f")
	c.expect(f.all[last-2 : last-1])
}

// pingPong returns when the server has answered a ping. The client must have nothing
// else to read.
func (w *world) pingPong(c *client) {
	w.t.Helper()
	pong := make(chan struct{})
	c.ws.SetPongHandler(func(string) error { close(pong); return websocket.ErrReadLimit })
	// The handler's error would end gorilla's reader for good: the pong is read by hand.
	if err := c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	var pongFrame [2]byte
	conn := c.ws.UnderlyingConn()
	conn.SetReadDeadline(time.Now().Add(patience))
	for n := 0; n < 2; {
		k, err := conn.Read(pongFrame[n:])
		if err != nil {
			w.t.Fatal(err)
		}
		n += k
	}
	if pongFrame != [2]byte{0x8a, 0} {
		w.t.Fatalf("% x is no empty pong", pongFrame)
	}
}

func TestUpdatesThatEndTheConnection(t *testing.T) {
	w := newWorld(t, nil)
	w.feed.posts(1, 1)
	many := func(format string, n int) string {
		return `"` + strings.ReplaceAll(strings.ReplaceAll(repeat("x", format, n), "x=", ""), "&", `","`) + `"`
	}
	update := func(payload string) string { return `{"type":"options_update","payload":` + payload + `}` }
	tests := []struct{ name, message, want string }{
		{"no JSON", "hello", "JSON"},
		{"an array", "[]", "JSON object"},
		{"an empty message", "", "JSON"},
		{"two objects", "{}{}", "JSON"},
		{"invalid UTF-8", "\xff", "JSON"},
		{"type of another type", `{"type":5}`, "type"},
		{"deep nesting", strings.Repeat("[", 1<<19), "JSON"},
		{"payload of another type", update(`5`), "payload"},
		{"a list of another type", update(`{"wantedDids":"did:plc:a"}`), "wantedDids"},
		{"size of another type", update(`{"maxMessageSizeBytes":"5"}`), "maxMessageSizeBytes"},
		{"a collection", update(`{"wantedCollections":["post"]}`), "wantedCollections"},
		{"an empty collection", update(`{"wantedCollections":[""]}`), "wantedCollections"},
		{"a prefix", update(`{"wantedCollections":["app..*"]}`), "wantedCollections"},
		{"joined collections", update(`{"wantedCollections":["app.bsky.feed.post,app.bsky.feed.like"]}`), "wantedCollections"},
		{"a DID", update(`{"wantedDids":["alice"]}`), "wantedDids"},
		{"a DID of many bytes", update(`{"wantedDids":["` + strings.Repeat("€", 5000) + `"]}`), "wantedDids"},
		{"a DID of wide runes", update(`{"wantedDids":["x` + strings.Repeat("😀", 20) + `"]}`), "wantedDids"},
		{"101 collections", update(`{"wantedCollections":[` + many("app.test.c%d.x", 101) + `]}`), "wantedCollections: 101"},
		{"10,001 DIDs", update(`{"wantedDids":[` + many("did:plc:%024d", 10_001) + `]}`), "wantedDids: 10001"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := w.dial("cursor=1")
			c.t = t
			c.expect(w.feed.all)
			c.send(tt.message)
			_, err := c.next()
			e, ok := err.(*websocket.CloseError)
			if !ok || e.Code != websocket.ClosePolicyViolation || !strings.Contains(e.Text, tt.want) {
				t.Fatalf("got %v, want close 1008 %q", err, tt.want)
			}
			if len(e.Text) > 123 || !utf8.ValidString(e.Text) {
				t.Errorf("reason of %d bytes: %q", len(e.Text), e.Text)
			}
			if n := w.ended("bad_options_update"); n != float64(i+1) {
				t.Errorf("counted %v, want %d", n, i+1)
			}
		})
	}
	t.Run("larger than a megabyte", func(t *testing.T) {
		c := w.dial("cursor=1")
		c.expect(w.feed.all)
		c.ws.WriteMessage(websocket.TextMessage, make([]byte, 1<<20+1))
		c.expectClose(websocket.CloseMessageTooBig, "1 MiB")
	})
	t.Run("larger than a megabyte in pieces", func(t *testing.T) {
		c := w.dialRaw("cursor=1", 0)
		c.frame()
		piece := make([]byte, 1<<19)
		c.write(masked(0x01, piece))
		c.write(masked(0x00, piece))
		c.write(masked(0x80, []byte{' '}))
		if op, p, err := c.frame(); op != websocket.CloseMessage || !strings.HasPrefix(string(p), "\x03\xf1a message may have") {
			t.Errorf("got %d %q %v, want close 1009 with a reason", op, p, err)
		}
	})
}

// TestJudgedOnce: what came while the filter was another is not sent when it has changed,
// and who has been passed by for long is still at the end of the log.
func TestJudgedOnce(t *testing.T) {
	now := start.Time()
	w := newWorld(t, func(s *settings) {
		s.log.Now = func() time.Time { return now }
		s.log.Retention = time.Hour
		s.log.WindowBytes = 64 << 10
	})
	f := w.feed
	f.posts(1, 1)
	c := w.dial("wantedDids=did:plc:nobody")
	w.begun()
	w.pingPong(c)
	f.posts(1000, 10)
	eventually(t, "all are judged", func() bool { return w.srv.Judged() == f.last })
	c.send(`{"type":"options_update","payload":{}}`)
	w.pingPong(c)
	f.posts(2, 1)
	c.expect(f.all[len(f.all)-2:])
	// Retention passes where it last got something.
	c.send(`{"type":"options_update","payload":{"wantedDids":["did:plc:nobody"]}}`)
	w.pingPong(c)
	f.posts(1000, 10)
	eventually(t, "all are judged", func() bool { return w.srv.Judged() == f.last })
	now = f.last.Time().Add(time.Hour)
	if err := w.log.Trim(); err != nil {
		t.Fatal(err)
	}
	w.pingPong(c)
	f.last = event.CursorAt(now)
	f.add(event.KindIdentity, "did:plc:nobody", "", "")
	f.commit()
	c.expect(f.all[len(f.all)-1:])
}
