package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"slipstream/pkg/testproc"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/gorilla/websocket"
)

// from returns the events from a time on.
func from(events []v2Event, cursor int64) []v2Event {
	return slices.DeleteFunc(slices.Clone(events), func(e v2Event) bool { return e.cursor < cursor })
}

// both runs a test for plain and for compressed frames, with the query to begin with.
func both(t *testing.T, name string, run func(t *testing.T, query string)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { run(t, "") })
	t.Run(name+" (compressed)", func(t *testing.T) { run(t, packed(t)+"&") })
}

// Where a consumer starts, in a buffer that retention has taken nothing of.
func TestV2Cursor(t *testing.T) {
	b := makeBuffer(t, 50, hoursAgo(3, 2, 1)...)
	all := b.events()
	f := newFeeder(t)
	d := serveV2(t, f.url, b.dir)
	tip := func(t *testing.T) *v2Frame { // of the moment: a beat, then that
		t.Helper()
		c := dialV2(t, d.addr, "")
		want := f.beat(t)
		fr := c.frame(t)
		if !strings.Contains(string(fr.identity), want) {
			t.Fatalf("got %s, want the beat %s", fr.text, want)
		}
		c.ws.Close()
		return fr
	}
	stored := func(t *testing.T, query string, want []v2Event) {
		t.Helper()
		c := dialV2(t, d.addr, query)
		c.expect(t, want)
		c.ws.Close()
	}

	both(t, "omitted: start at the live tip", func(t *testing.T, query string) {
		c := dialV2(t, d.addr, query)
		c.expectBeat(t, f.beat(t))
	})
	both(t, "0: from the first event if nothing was ever trimmed", func(t *testing.T, query string) {
		stored(t, query+"cursor=0", all)
	})
	both(t, "a seq is inclusive", func(t *testing.T, query string) {
		for _, i := range []int{0, 1, 49, 50, 77, len(all) - 1} {
			stored(t, query+fmt.Sprint("cursor=", all[i].seq()), all[i:])
		}
	})
	t.Run("a seq that no event has: from the next one", func(t *testing.T) {
		for _, i := range []int{1, 50, 77} {
			stored(t, fmt.Sprint("cursor=", all[i].seq()-1), all[i:])
		}
		stored(t, "cursor=1", all)
		stored(t, fmt.Sprint("cursor=", all[0].seq()-1), all)
	})
	both(t, "the tip's own seq sends that event again", func(t *testing.T, query string) {
		last := tip(t)
		c := dialV2(t, d.addr, query+fmt.Sprint("cursor=", last.seq))
		if got := c.frame(t); !bytes.Equal(got.text, last.text) {
			t.Fatalf("got %s, want %s", got.text, last.text)
		}
		c.expectBeat(t, f.beat(t))
	})
	both(t, "a seq greater than the tip: live", func(t *testing.T, query string) {
		for _, above := range []int64{1, 1_000_000, v2SeqLimit} {
			c := dialV2(t, d.addr, query+fmt.Sprint("cursor=", min(tip(t).seq+above, v2SeqLimit-1)))
			c.expectBeat(t, f.beat(t))
		}
	})
	t.Run("999999999999999 is a seq, and greater than the tip", func(t *testing.T) {
		c := dialV2(t, d.addr, "cursor=999999999999999")
		c.expectBeat(t, f.beat(t))
	})
	both(t, "a time: from the first event at that instant, without #info", func(t *testing.T, query string) {
		for _, i := range []int{0, 1, 49, 50, 77, len(all) - 1} {
			stored(t, query+fmt.Sprint("cursor=", all[i].cursor), all[i:])
		}
	})
	t.Run("a time between two events: from the first after that instant, without #info", func(t *testing.T) {
		for _, i := range []int{1, 50, 77} {
			stored(t, fmt.Sprint("cursor=", all[i].cursor-1), all[i:])
			stored(t, fmt.Sprint("cursor=", all[i-1].cursor+1), all[i:])
		}
	})
	both(t, "a time of the tip sends that event again", func(t *testing.T, query string) {
		last := tip(t)
		c := dialV2(t, d.addr, query+fmt.Sprint("cursor=", last.seq+v2Epoch))
		if got := c.frame(t); !bytes.Equal(got.text, last.text) {
			t.Fatalf("got %s, want %s", got.text, last.text)
		}
	})
	t.Run("a time after the tip: live, without #info", func(t *testing.T) {
		for _, cursor := range []int64{tip(t).seq + v2Epoch + 1, time.Now().Add(time.Hour).UnixMicro(), 1<<63 - 1} {
			c := dialV2(t, d.addr, fmt.Sprint("cursor=", cursor))
			c.expectBeat(t, f.beat(t))
		}
	})
	both(t, "a time before the oldest event, though nothing was ever trimmed: #info, then from that event", func(t *testing.T, query string) {
		for _, cursor := range []int64{all[0].cursor - 1, v2SeqLimit, v2Epoch} {
			c := dialV2(t, d.addr, query+fmt.Sprint("cursor=", cursor))
			checkOutdated(t, c.frame(t), b)
			c.expect(t, all)
			c.ws.Close()
		}
	})
	t.Run("replay flows into live", func(t *testing.T) {
		c := dialV2(t, d.addr, fmt.Sprint("cursor=", all[120].seq()))
		c.expect(t, all[120:])
		beats := f.beats
		for i := range beats {
			c.expectBeat(t, fmt.Sprintf("beat%d.example", i+1))
		}
		c.expectBeat(t, f.beat(t))
	})
}

// checkOutdated checks that a frame is the #info that a clamped time gets.
func checkOutdated(t testing.TB, f *v2Frame, b *v2Buffer) {
	t.Helper()
	if f.kind != "info" || f.infoName != "OutdatedCursor" {
		t.Fatalf("got %.300s, want #info OutdatedCursor", f.text)
	}
	floorIn(t, f.errorOrNotice, b)
	want := fmt.Sprintf(`{"$type":"message","payload":{"$type":"%s#info","name":"OutdatedCursor","message":%q}}`, v2Name, f.errorOrNotice)
	if string(f.text) != want {
		t.Errorf("got %s, want %s", f.text, want)
	}
}

// The same where retention has taken the oldest events.
func TestV2CursorOfTrimmed(t *testing.T) {
	b := makeBuffer(t, 40, hoursAgo(12, 8, 4)...)
	gone := b.blocks[0]
	b.trim(t, 1)
	all := b.events()
	f := newFeeder(t)
	// The trimmed-through cursor is stored: it is as good after a restart.
	for _, life := range []string{"", " after a restart"} {
		d := serveV2(t, f.url, b.dir)
		tooOld := func(t *testing.T, query string) {
			t.Helper()
			resp := handshake(t, d.addr, query, "Sec-WebSocket-Protocol: "+v2Subprotocol)
			if resp.StatusCode != http.StatusBadRequest {
				t.Fatalf("%s: got %d, want 400", query, resp.StatusCode)
			}
			name, message := envelope(t, resp)
			if name != "CursorTooOld" {
				t.Fatalf("%s: got %s: %s", query, name, message)
			}
			c := dialV2(t, d.addr, fmt.Sprint("cursor=", floorIn(t, message, b)))
			c.expect(t, all)
			c.ws.Close()
		}
		both(t, "0 is CursorTooOld with the floor"+life, func(t *testing.T, query string) { tooOld(t, query+"cursor=0") })
		t.Run("a seq that was trimmed, or comes before, is CursorTooOld with the floor"+life, func(t *testing.T) {
			for _, seq := range []int64{1, gone[0].seq() - 1, gone[0].seq(), gone[17].seq(), gone[17].seq() + 1, gone[39].seq()} {
				tooOld(t, fmt.Sprint("cursor=", seq))
			}
		})
		t.Run("CursorTooOld comes whatever the filter"+life, func(t *testing.T) {
			tooOld(t, "cursor=5&kinds=identity&dids="+bufferDIDs[0]+"&maxMessageSizeBytes=10000")
		})
		both(t, "a seq behind what was trimmed is none too old"+life, func(t *testing.T, query string) {
			for _, seq := range []int64{gone[39].seq() + 1, all[0].seq() - 1, all[0].seq()} {
				c := dialV2(t, d.addr, query+fmt.Sprint("cursor=", seq))
				c.expect(t, all)
				c.ws.Close()
			}
		})
		both(t, "a time below the buffer is clamped: the first frame is #info OutdatedCursor naming the seq"+life, func(t *testing.T, query string) {
			for _, cursor := range []int64{v2SeqLimit, v2Epoch, gone[0].cursor, gone[39].cursor} {
				c := dialV2(t, d.addr, query+fmt.Sprint("cursor=", cursor))
				checkOutdated(t, c.frame(t), b)
				c.expect(t, all)
				c.ws.Close()
			}
		})
		t.Run("a time at the oldest event is not clamped"+life, func(t *testing.T) {
			c := dialV2(t, d.addr, fmt.Sprint("cursor=", all[0].cursor))
			c.expect(t, all)
		})
		both(t, "#info is no event: no filter and no size keeps it back"+life, func(t *testing.T, query string) {
			c := dialV2(t, d.addr, query+fmt.Sprintf("cursor=%d&maxMessageSizeBytes=1&kinds=sync&dids=did:plc:none", gone[0].cursor))
			checkOutdated(t, c.frame(t), b)
			c.silent(t)
		})
		d.End(t)
	}
}

// And where it has taken all of them.
func TestV2CursorOfAllTrimmed(t *testing.T) {
	b := makeBuffer(t, 40, hoursAgo(12, 8)...)
	last := b.blocks[1][39]
	b.trim(t, 2)
	f := newFeeder(t)
	d := serveV2(t, f.url, b.dir)
	t.Run("a seq that was trimmed is CursorTooOld with the floor", func(t *testing.T) {
		for _, seq := range []int64{0, 1, last.seq() - 1, last.seq()} {
			resp := handshake(t, d.addr, fmt.Sprint("cursor=", seq))
			if resp.StatusCode != http.StatusBadRequest {
				t.Fatalf("cursor=%d: got %d, want 400", seq, resp.StatusCode)
			}
			name, message := envelope(t, resp)
			if name != "CursorTooOld" {
				t.Fatalf("cursor=%d: got %s: %s", seq, name, message)
			}
			floorIn(t, message, b)
		}
	})
	t.Run("a seq greater than the last: live, and no seq is used again", func(t *testing.T) {
		c := dialV2(t, d.addr, fmt.Sprint("cursor=", last.seq()+1))
		if seq := c.expectBeat(t, f.beat(t)); seq <= last.seq() {
			t.Errorf("the event after seq %d has seq %d", last.seq(), seq)
		}
	})
}

// In an empty log any cursor means live.
func TestV2CursorOfNothing(t *testing.T) {
	f := newFeeder(t)
	d := serveV2(t, f.url, t.TempDir())
	var clients []*v2Client
	var queries []string
	for _, query := range []string{"", packed(t) + "&"} {
		for _, cursor := range []int64{-1, 0, 1, 190_000_000_000_000, v2SeqLimit - 1, v2SeqLimit, v2Epoch, time.Now().UnixMicro(), time.Now().Add(time.Hour).UnixMicro()} {
			if cursor >= 0 {
				query := query + fmt.Sprint("cursor=", cursor)
				clients, queries = append(clients, dialV2(t, d.addr, query)), append(queries, query)
			}
		}
	}
	beat := f.beat(t)
	for i, c := range clients {
		t.Run(queries[i], func(t *testing.T) { c.expectBeat(t, beat) })
	}
}

// A seq is strictly growing and never reused, though the clock goes back.
func TestV2SeqAfterClockStep(t *testing.T) {
	b := makeBuffer(t, 20, time.Now().Add(time.Hour))
	f := newFeeder(t)
	last := b.events()[19].seq()
	for range 3 {
		d := serveV2(t, f.url, b.dir)
		c := dialV2(t, d.addr, "")
		seq := c.expectBeat(t, f.beat(t))
		if seq <= last {
			t.Errorf("the event after seq %d has seq %d", last, seq)
		}
		last = seq
		d.Kill(t)
	}
}

// Filters are independent predicates ANDed together.
func TestV2Filters(t *testing.T) {
	b := makeBuffer(t, 400, hoursAgo(1)...)
	all := b.events()
	f := newFeeder(t)
	d := serveV2(t, f.url, b.dir)
	size := make([]int, 0, len(all))
	for _, e := range all {
		size = append(size, len(e.v2))
	}
	slices.Sort(size)
	middle := fmt.Sprint(size[len(size)/2])
	strangers := bufferDIDs[2:3:3]
	for i := range 5000 {
		strangers = append(strangers, fmt.Sprintf("did:plc:%024d", i))
	}
	for _, tt := range []struct {
		name  string
		query url.Values
	}{
		{"each is match-all when omitted", url.Values{}},
		{"kinds=commit", url.Values{"kinds": {"commit"}}},
		{"kinds=identity", url.Values{"kinds": {"identity"}}},
		{"kinds=account", url.Values{"kinds": {"account"}}},
		{"kinds=sync", url.Values{"kinds": {"sync"}}},
		{"kinds: any of several", url.Values{"kinds": {"sync", "account"}}},
		{"dids applies to every event kind", url.Values{"dids": bufferDIDs[1:2]}},
		{"dids: any of several", url.Values{"dids": {bufferDIDs[0], bufferDIDs[3], "did:plc:none"}}},
		{"dids: none that there is", url.Values{"dids": {"did:plc:none"}}},
		{"dids: beside thousands that are not there", url.Values{"dids": strangers}},
		{"collections constrains commits, non-commit kinds are unaffected", url.Values{"collections": {"app.bsky.feed.post"}}},
		{"collections: any of several", url.Values{"collections": {"app.bsky.feed.post", "chat.test.message"}}},
		{"collections: a pattern x.y.*", url.Values{"collections": {"app.bsky.*"}}},
		{"collections: a pattern of three segments", url.Values{"collections": {"app.bsky.feed.*"}}},
		{"collections: patterns and names", url.Values{"collections": {"app.bsky.graph.*", "app.bskyx.feed.post"}}},
		{"collections: none that there is", url.Values{"collections": {"app.bsky.feed"}}}, // a name is no prefix
		{"collections with kinds=commit: a commits-only stream", url.Values{"collections": {"app.bsky.feed.*"}, "kinds": {"commit"}}},
		{"kinds AND dids", url.Values{"kinds": {"identity", "sync"}, "dids": bufferDIDs[:1]}},
		{"dids AND collections", url.Values{"dids": bufferDIDs[2:3], "collections": {"app.bsky.feed.like"}}},
		{"kinds AND dids AND collections", url.Values{"kinds": {"commit", "account"}, "dids": bufferDIDs[1:3], "collections": {"app.bsky.graph.*", "app.bsky.feed.like"}}},
		{"maxMessageSizeBytes=0: no limit", url.Values{"maxMessageSizeBytes": {"0"}}},
		{"maxMessageSizeBytes counts the whole frame", url.Values{"maxMessageSizeBytes": {middle}}},
		{"maxMessageSizeBytes: smaller than any", url.Values{"maxMessageSizeBytes": {"1"}}},
		{"all filters", url.Values{"kinds": {"commit", "sync"}, "dids": bufferDIDs[:3], "collections": {"app.bsky.feed.*"}, "maxMessageSizeBytes": {middle}}},
	} {
		both(t, tt.name, func(t *testing.T, query string) {
			var want []v2Event
			for _, e := range all {
				if wantsV2(tt.query, &e) {
					want = append(want, e)
				}
			}
			for _, start := range []int64{0, all[len(all)/3].seq()} {
				c := dialV2(t, d.addr, query+fmt.Sprintf("cursor=%d&", start)+tt.query.Encode())
				c.expect(t, from(want, start+v2Epoch))
				if start == 0 {
					c.silent(t)
				}
				c.ws.Close()
			}
		})
	}
	both(t, "maxMessageSizeBytes: a frame of exactly that many bytes is sent, one of a byte more is skipped", func(t *testing.T, query string) {
		kinds := map[string]bool{}
		for i, e := range all {
			if kinds[e.kind] {
				continue
			}
			kinds[e.kind] = true
			at := query + fmt.Sprintf("cursor=%d&maxMessageSizeBytes=", e.seq())
			c := dialV2(t, d.addr, at+fmt.Sprint(len(e.v2)))
			c.expect(t, all[i:i+1])
			c.ws.Close()
			c = dialV2(t, d.addr, at+fmt.Sprint(len(e.v2)-1))
			if got := c.frame(t); got.seq <= e.seq() || len(got.text) >= len(e.v2) {
				t.Errorf("%s of %d bytes, with one byte less: got %s", e.kind, len(e.v2), got.text)
			}
			c.ws.Close()
		}
		if len(kinds) != 4 {
			t.Errorf("only %v are tested", kinds)
		}
	})
	t.Run("filters hold live", func(t *testing.T) {
		wanting := map[string]*v2Client{}
		for _, kind := range []string{"identity", "account", "sync", "commit"} {
			wanting[kind] = dialV2(t, d.addr, "kinds="+kind)
			wanting[kind+" of a"] = dialV2(t, d.addr, "kinds="+kind+"&dids=did:plc:a")
		}
		wanting["likes"] = dialV2(t, d.addr, packed(t)+"&kinds=commit&collections=app.bsky.feed.like")
		const at = "2026-07-04T14:38:08.999Z"
		for i, did := range []string{"did:plc:b", "did:plc:a"} {
			f.push(func(seq int) []byte {
				return messageOf(t, "#identity", map[string]any{"did": did, "seq": seq, "time": at})
			})
			f.push(func(seq int) []byte {
				return messageOf(t, "#account", map[string]any{"did": did, "seq": seq, "time": at, "active": true})
			})
			f.push(func(seq int) []byte {
				return messageOf(t, "#sync", map[string]any{"did": did, "seq": seq, "time": at, "rev": "3mptbypluud2a", "blocks": atdata.Bytes("x")})
			})
			f.push(func(seq int) []byte {
				like := map[string]any{"$type": "app.bsky.feed.like"}
				return commitOf(t, seq, did, fmt.Sprintf("3mptbypluud2%d", i), at, [3]any{"create", "app.bsky.feed.post/a", map[string]any{"$type": "app.bsky.feed.post"}}, [3]any{"create", "app.bsky.feed.like/a", like})
			})
		}
		for name, c := range wanting {
			kind, of, only := strings.Cut(name, " of ")
			dids, collections := []string{"did:plc:b", "did:plc:a"}, []string{""}
			if only {
				dids = []string{"did:plc:" + of}
			}
			switch name {
			case "likes":
				kind, collections = "commit", []string{"app.bsky.feed.like"}
			case "commit", "commit of a":
				collections = []string{"app.bsky.feed.post", "app.bsky.feed.like"}
			}
			for _, did := range dids {
				for _, collection := range collections {
					if got := c.frame(t); got.kind != kind || got.did != did || got.collection != collection {
						t.Errorf("%s: got %s, want %s of %s %s", name, got.text, kind, did, collection)
					}
				}
			}
			c.silent(t)
		}
	})
}

// Any client data frame ends the connection with 1008.
func TestV2ClientData(t *testing.T) {
	b := makeBuffer(t, 4000, hoursAgo(1)...)
	f := newFeeder(t)
	d := serveV2(t, f.url, b.dir)
	for _, tt := range []struct {
		name string
		op   int
		data string
	}{
		{"text", websocket.TextMessage, "hello"},
		{"an options_update", websocket.TextMessage, `{"type":"options_update","payload":{}}`},
		{"an empty text", websocket.TextMessage, ""},
		{"binary", websocket.BinaryMessage, "\x00\x01"},
		{"an empty binary", websocket.BinaryMessage, ""},
		{"a large one", websocket.TextMessage, strings.Repeat("x", 300_000)},
	} {
		for _, when := range []string{"", "cursor=0"} {
			both(t, "a client data frame ends the connection with 1008: "+tt.name+" "+when, func(t *testing.T, query string) {
				c := dialV2(t, d.addr, query+when)
				if err := c.ws.WriteMessage(tt.op, []byte(tt.data)); err != nil {
					t.Log(err) // it was ended before all was written
				}
				if end := c.closed(t); end.Code != websocket.ClosePolicyViolation || end.Text == "" {
					t.Errorf("ended with %v", end)
				}
			})
		}
	}
	t.Run("control frames do not: a ping is answered, a pong is not minded", func(t *testing.T) {
		c := dialV2(t, d.addr, "")
		pong := make(chan string, 1)
		c.ws.SetPongHandler(func(s string) error { pong <- s; return nil })
		soon := time.Now().Add(20 * time.Second)
		for _, op := range []int{websocket.PongMessage, websocket.PingMessage} {
			if err := c.ws.WriteControl(op, []byte("p"), soon); err != nil {
				t.Fatal(err)
			}
		}
		testproc.WaitFor(t, "the pong", func() bool {
			beat := f.beat(t)
			c.expectBeat(t, beat)
			select {
			case got := <-pong:
				return got == "p"
			default:
				return false
			}
		})
	})
	t.Run("a close frame is answered", func(t *testing.T) {
		c := dialV2(t, d.addr, "")
		if err := c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if end := c.closed(t); end.Code != websocket.CloseNormalClosure {
			t.Errorf("ended with %v", end)
		}
	})
}

// 1001 on shutdown.
func TestV2Shutdown(t *testing.T) {
	b := makeBuffer(t, 4000, hoursAgo(1)...)
	f := newFeeder(t)
	d := serveV2(t, f.url, b.dir)
	beat := ""
	clients := map[string]*v2Client{}
	for _, name := range []string{"", packed(t), "kinds=sync", "dids=did:plc:none"} {
		clients["live "+name] = dialV2(t, d.addr, name)
	}
	beat = f.beat(t)
	clients["live "].expectBeat(t, beat)
	for _, name := range []string{"cursor=0", packed(t) + "&cursor=0"} {
		clients["replay "+name] = dialV2(t, d.addr, name)
	}
	d.Signal(t, syscall.SIGTERM)
	for name, c := range clients {
		t.Run("1001 on shutdown: "+name, func(t *testing.T) {
			if end := c.closed(t); end.Code != websocket.CloseGoingAway {
				t.Errorf("ended with %v", end)
			}
		})
	}
	if err := d.Wait(t); err != nil {
		t.Errorf("exit: %v; the process said:\n%s", err, d.Output)
	}
}

// narrow connects with a small receive buffer, so that what is not read soon is not sent. With
// a smaller one, loopback would send what is there in steps of 200 ms.
func narrow(t testing.TB, addr, query string) *v2Client {
	t.Helper()
	dialer := websocket.Dialer{NetDial: func(network, addr string) (net.Conn, error) {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.(*net.TCPConn).SetReadBuffer(64 << 10)
		}
		return c, err
	}}
	ws, resp, err := dialer.Dial("ws://"+addr+v2Path+"?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return newV2Client(t, ws, resp, query)
}

// ConsumerTooSlow only where a stalled consumer is closed; one that is slow but goes on is
// never dropped, and nobody else notices.
func TestV2TooSlow(t *testing.T) {
	b := makeBuffer(t, 12_000, hoursAgo(3, 2)...) // some 10 MB, more than the kernel takes for a consumer
	all := b.events()
	f := newFeeder(t)
	d := serveV2(t, f.url, b.dir, "--stall-timeout", "2s")
	both(t, "one that takes nothing is ended, with nothing but whole frames before", func(t *testing.T, query string) {
		t.Parallel()
		c := narrow(t, d.addr, query+"cursor=0")
		time.Sleep(6 * time.Second)
		for i := 0; ; i++ {
			fr, err := c.next(20 * time.Second)
			if err == nil && fr.kind == "error" {
				want := fmt.Sprintf(`{"$type":"error","error":"ConsumerTooSlow","message":%q}`, fr.errorOrNotice)
				if fr.errorName != "ConsumerTooSlow" || string(fr.text) != want {
					t.Errorf("got %s, want %s", fr.text, want)
				}
				if end := c.closed(t); end.Code != websocket.ClosePolicyViolation {
					t.Errorf("after the error frame it is ended with %v", end)
				}
				return
			}
			var end *websocket.CloseError
			switch {
			case errors.As(err, &end) && end.Code != websocket.CloseAbnormalClosure:
				t.Errorf("after %d frames it is ended with %v, and no error frame before", i, end)
				return
			case err != nil:
				if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
					t.Fatalf("after %d frames it is neither ended nor served: %v", i, err)
				}
				t.Logf("after %d frames it is cut off: %v", i, err) // there was no room for anything
				return
			case i >= len(all):
				t.Fatal("it was served to the end")
			case !bytes.Equal(fr.text, all[i].v2):
				t.Fatalf("event %d: got %s, want %s", i, fr.text, all[i].v2)
			}
		}
	})
	t.Run("one that is slow but goes on is not", func(t *testing.T) {
		t.Parallel()
		c := narrow(t, d.addr, "cursor=0")
		end := time.Now().Add(8 * time.Second)
		for i, read := 0, 0; i < len(all) && time.Now().Before(end); i++ {
			fr := c.frame(t)
			if !bytes.Equal(fr.text, all[i].v2) {
				t.Fatalf("event %d: got %s, want %s", i, fr.text, all[i].v2)
			}
			if read += len(fr.text); read > 256<<10 {
				read = 0
				time.Sleep(300 * time.Millisecond)
			}
		}
	})
	t.Run("one that has nothing to take is not", func(t *testing.T) {
		t.Parallel()
		c := dialV2(t, d.addr, "kinds=identity&dids="+beatDID)
		time.Sleep(5 * time.Second)
		c.expectBeat(t, f.beat(t))
	})
}

// A frame that is too large for a small header is as good as any.
func TestV2FrameSizes(t *testing.T) {
	f := newFeeder(t)
	d := serveV2(t, f.url, t.TempDir())
	both(t, "one JSON object per frame, of any length", func(t *testing.T, query string) {
		c := dialV2(t, d.addr, query)
		v1 := newReader(t, dial(t, d.addr, ""))
		for _, n := range []int{0, 1, 60, 65_000, 65_200, 65_536, 200_000} {
			f.push(func(seq int) []byte {
				rev := fmt.Sprintf("3mptbyp%06d", seq)
				return bigCommitOf(t, seq, rev, strings.Repeat("é", n/2)+strings.Repeat("x", n%2))
			})
			want := v2Of(t, v1.messages(t, 1)[0])
			if got := c.frame(t); !bytes.Equal(got.text, want) {
				t.Fatalf("a text of %d bytes: got %d bytes, want %d", n, len(got.text), len(want))
			}
		}
	})
}

// bigCommitOf is a commit of one post with that text.
func bigCommitOf(t testing.TB, seq int, rev, text string) []byte {
	return commitOf(t, seq, "did:plc:a", rev, "2026-07-04T14:38:08.999Z", [3]any{"create", "app.bsky.feed.post/" + rev, map[string]any{"$type": "app.bsky.feed.post", "text": text}})
}
