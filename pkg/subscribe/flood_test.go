package subscribe_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/subscribe"
)

// TestPingFlood: pings are answered at a rate, however many come; the peer's own socket holds the
// others. Nobody else notices.
func TestPingFlood(t *testing.T) {
	w := newWorld(t, nil)
	flooder, other := w.dialRaw("", 0), w.dial("")
	const pings = 200_000
	go func() {
		var b []byte
		for i := range uint32(pings) {
			b = append(b, masked(0x89, binary.BigEndian.AppendUint32(nil, i))...)
		}
		flooder.conn.Write(b) // until the test ends the connection
	}()
	begun, last := time.Now(), uint32(0)
	for time.Since(begun) < time.Second {
		op, p, err := flooder.frame()
		if err != nil || op != websocket.PongMessage {
			t.Fatalf("got %d %q %v", op, p, err)
		}
		last = binary.BigEndian.Uint32(p)
	}
	// A second's worth may come at once.
	if most := subscribe.ControlRate * (2 + time.Since(begun).Seconds()); float64(last) > most {
		t.Errorf("ping %d is answered after %s, at most %.0f should be", last, time.Since(begun), most)
	}
	w.feed.posts(5, 5)
	other.expect(w.feed.all)
	w.pingPong(other)
	flooder.conn.Close()
	w.connected(1)
}

// TestOptionsFlood: of options updates a few a second take effect, in order, however many come.
func TestOptionsFlood(t *testing.T) {
	w := newWorld(t, nil)
	flooder, other := w.dialRaw("wantedDids=did:plc:none", 0), w.dial("wantedDids=did:plc:other")
	const updates = 20_000
	begun := time.Now()
	go func() {
		var b []byte
		for i := range updates {
			b = append(b, masked(0x81, fmt.Appendf(nil, `{"type":"options_update","payload":{"wantedDids":["did:plc:u%d"]}}`, i))...)
		}
		flooder.conn.Write(b)
	}()
	time.Sleep(time.Second)
	// Which filter is in force, its event tells.
	for i := range updates {
		w.feed.add(event.KindIdentity, fmt.Sprint("did:plc:u", i), "", "")
	}
	w.feed.add(event.KindIdentity, "did:plc:other", "", "")
	w.feed.commit()
	other.expect(w.feed.all[updates:])
	_, p, err := flooder.frame()
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(p), "did:plc:u")
	text, _, _ = strings.Cut(text, `"`)
	n, err := strconv.Atoi(text)
	if most := subscribe.MessageRate * (2 + time.Since(begun).Seconds()); err != nil || float64(n) > most {
		t.Errorf("update %d is in force after %s, at most %.0f should be: %s", n, time.Since(begun), most, p)
	}
}

// TestGoneAfterAFlood: a peer that leaves more messages than are read in an hour, and goes, does
// not stay for that.
func TestGoneAfterAFlood(t *testing.T) {
	t.Parallel() // it waits, mostly
	w := newWorld(t, func(s *settings) { s.sub.PingInterval, s.sub.StallTimeout = 2*time.Second, 2*time.Second })
	flooder := w.dialRaw("", 0)
	flooder.conn.SetWriteBuffer(1 << 20)
	flooder.conn.SetWriteDeadline(time.Now().Add(time.Second))
	flooder.conn.Write(bytes.Repeat(masked(0x81, []byte(`{"type":"none"}`)), 50_000))
	flooder.conn.Close()
	w.connected(0)
}

// TestFragmentsWithoutEnd: a message may come in as many fragments as its peer likes. While it
// does not end it holds no more than it has, and what comes between is answered.
func TestFragmentsWithoutEnd(t *testing.T) {
	w := newWorld(t, nil)
	w.feed.posts(1, 1)
	before := heapAfterGC()
	const peers, fragments = 20, 20_000
	var all []*raw
	message := `{"type":"options_update","payload":{"wantedDids":["did:plc:a"]}}`
	for range peers {
		r := w.dialRaw("wantedDids=did:plc:none", 0)
		all = append(all, r)
		r.write(masked(0x01, []byte(message[:10])))
		r.write(bytes.Repeat(masked(0x00, nil), fragments))
		r.write(masked(0x89, []byte("there?")))
		if op, p, err := r.frame(); err != nil || op != websocket.PongMessage || string(p) != "there?" {
			t.Fatalf("got %d %q %v", op, p, err)
		}
	}
	if grown := int64(heapAfterGC()) - int64(before); grown > peers*64<<10 {
		t.Errorf("%d peers in the middle of a message take %d bytes", peers, grown)
	}
	for _, r := range all {
		r.write(masked(0x80, []byte(message[10:])))
		r.write(masked(0x89, []byte("done?")))
		if op, p, err := r.frame(); err != nil || op != websocket.PongMessage || string(p) != "done?" {
			t.Fatalf("got %d %q %v", op, p, err)
		}
	}
}

// TestLongRequestsAreForgotten: what a consumer's request was made of is not kept for as long as the
// consumer stays, whatever it came over.
func TestLongRequestsAreForgotten(t *testing.T) {
	w := newWorld(t, nil)
	const consumers = 20
	for size, upgrade := range map[int]string{60_000: "", 500_000: "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"} {
		before := heapAfterGC()
		for range consumers {
			c, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(c, "GET /subscribe?wantedDids=did:plc:a&wantedCollections=app.test.a&wantedCollections=app.test.*&x=%s HTTP/1.1\r\nHost: x\r\n%sX: %s\r\n\r\n",
				strings.Repeat("x", size), upgrade, strings.Repeat("x", 500_000))
			if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") && !strings.HasPrefix(line, "HTTP/1.1 101") {
				t.Fatalf("%q, %v", line, err)
			}
		}
		if grown := int64(heapAfterGC()) - int64(before); grown > consumers*100<<10 {
			t.Errorf("%.10s: %d bytes for each consumer", upgrade, grown/consumers)
		}
	}
	resp, err := http.Get("http://" + w.addr + "/subscribe?x=" + strings.Repeat("x", 64<<10))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "without a websocket at most 65536") {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestFiltersAtTheLimit: as many consumers as the budget has room for, each with all that one may
// ask for, take the memory that is said of them, and leave none behind.
func TestFiltersAtTheLimit(t *testing.T) {
	const consumers, dids, collections = 20, 10_000, 100
	w := newWorld(t, func(s *settings) { s.sub.MaxFilterDIDs = consumers * (dids + collections) })
	update := func(n int) string {
		list := func(format string, of int) string {
			all := make([]string, of)
			for i := range all {
				all[i] = fmt.Sprintf(format, n, i)
			}
			return `["` + strings.Join(all, `","`) + `"]`
		}
		return fmt.Sprintf(`{"type":"options_update","payload":{"wantedDids":%s,"wantedCollections":%s}}`,
			list("did:plc:aaaaaaaaaaaaaa%03d%07d", dids), list("app.test.c%d.x%d", collections))
	}
	before := heapAfterGC()
	var all []*client
	for n := range consumers {
		c := w.dial("requireHello=true")
		c.send(update(n))
		w.pingPong(c)
		all = append(all, c)
	}
	extra := w.dial("requireHello=true")
	extra.send(update(consumers))
	extra.expectClose(websocket.CloseTryAgainLater, "wantedDids: the filters")
	grown := int64(heapAfterGC()) - int64(before)
	// Some 160 bytes for a name, and for a consumer, both ends of which are here, a few KB.
	if most := int64(consumers * ((dids+collections)*240 + 64<<10)); grown > most {
		t.Errorf("%d bytes, %d for each name; at most %d should be", grown, grown/(consumers*(dids+collections)), most)
	}
	t.Logf("%d bytes for each name", grown/(consumers*(dids+collections)))
	for n, c := range all {
		w.feed.add(event.KindIdentity, fmt.Sprintf("did:plc:aaaaaaaaaaaaaa%03d%07d", n, dids-1), "", "")
		w.feed.commit()
		c.expect(w.feed.all[n:])
	}
	for _, c := range all {
		c.ws.Close()
	}
	w.connected(0)
	// The index's tables stay as large as they once were, but empty.
	if after := int64(heapAfterGC()); after > int64(before)+grown/2 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
}
