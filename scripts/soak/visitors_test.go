package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/testproc"
)

// judge fails the soak for a stream that is wrong, and counts the rest.
func (s *soak) judge(c *consumer, what string, err error) {
	switch {
	case errors.Is(err, errWrong):
		s.fail("%s (%s): %v", what, c.name, err)
	case errors.Is(err, errFellOff):
		s.did.fellOff.Add(1)
	case errors.Is(err, errTooOld):
		s.did.tooOld.Add(1)
	}
}

// pause waits, and reports whether to go on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// visit is consumers that come, live or from the buffer's start, stay for some seconds, and half
// of which come back later.
func (s *soak) visit(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil {
		w := wire(rng.IntN(2))
		c := newConsumer(s.truth, "visitor", w, []string{"", s.zstd(w)}[rng.IntN(2)], s.anyFilter(rng, w))
		resumed := rng.IntN(4) == 0
		for range 1 + rng.IntN(3) {
			stay, cancel := context.WithTimeout(ctx, time.Duration(100+rng.IntN(8000))*time.Millisecond)
			err := c.session(stay, s.addr, resumed)
			cancel()
			s.judge(c, "a visitor", err)
			if errors.Is(err, errTooOld) {
				break
			}
			away := time.Duration(50+rng.IntN(3000)) * time.Millisecond
			if rng.IntN(20) == 0 {
				away = ttl + rand.N(ttl/2)
			}
			if !pause(ctx, away) {
				break
			}
			resumed = true
		}
		s.did.visits.Add(1)
		s.count(c)
	}
}

// crawl is a consumer that reads too slowly, until it falls off the buffer and begins again from there.
func (s *soak) crawl(ctx context.Context, rng *rand.Rand, w wire) {
	for ctx.Err() == nil {
		c := newConsumer(s.truth, "slow", w, []string{"", s.zstd(w)}[rng.IntN(2)], filter{})
		c.pace = 20 + rng.IntN(60)
		for resumed := false; ctx.Err() == nil; resumed = true {
			life := s.life.Load()
			err := c.session(ctx, s.addr, resumed)
			s.judge(c, "a slow consumer", err)
			if errors.Is(err, errTooOld) {
				break
			}
			if errors.Is(err, errBroken) && ctx.Err() == nil && serves(life) && s.life.Load() == life {
				s.did.reset.Add(1) // its socket had no room for the reason
			}
			pause(ctx, 100*time.Millisecond)
		}
		s.count(c)
	}
}

// doze is a consumer that reads nothing, which the daemon is to end.
func (s *soak) doze(ctx context.Context) {
	for pause(ctx, 100*time.Millisecond) {
		c := newConsumer(s.truth, "asleep", v1, "", filter{})
		c.pace = 1
		life := s.life.Load()
		ws, err := c.connect(ctx, s.addr, true)
		if err != nil {
			continue
		}
		if pause(ctx, 2*stall) {
			ws.SetReadDeadline(time.Now().Add(testproc.Patience))
			n, err := io.Copy(io.Discard, io.LimitReader(ws.NetConn(), 4<<20))
			switch {
			case !serves(life) || s.life.Load() != life:
			case err == nil && n == 4<<20 || errors.Is(err, os.ErrDeadlineExceeded):
				s.fail("a consumer that has taken nothing for %s was not ended, but sent %d bytes: %v", 2*stall, n, err)
			default:
				s.did.stalled.Add(1)
			}
		}
		ws.Close()
	}
}

// misbehave is consumers that break rules, each of which must be told so.
func (s *soak) misbehave(ctx context.Context, rng *rand.Rand) {
	for pause(ctx, time.Duration(100+rng.IntN(1500))*time.Millisecond) {
		life := s.life.Load()
		told, rule := true, rng.IntN(5)
		switch rule {
		case 0: // a parameter that makes no sense
			resp, err := http.Get("http://" + s.addr + "/subscribe?wantedCollections=nonsense..")
			if err == nil {
				resp.Body.Close()
			}
			told = err == nil && resp.StatusCode == http.StatusBadRequest
		case 1: // half a handshake
			conn, err := net.Dial("tcp", s.addr)
			if err == nil {
				fmt.Fprint(conn, "GET /subscribe HTTP/1.1\r\nHost: half\r\nUpgrade: webs")
				pause(ctx, rand.N(3*time.Second))
				conn.Close()
			}
		case 2: // many updates, without waiting for what they do
			if ws := s.raw(ctx); ws != nil {
				for range 50 {
					if ws.WriteMessage(websocket.TextMessage, []byte(`{"type":"options_update","payload":{"wantedCollections":["app.bsky.feed.like"]}}`)) != nil {
						break
					}
				}
				ws.Close()
			}
		case 3: // an update that makes no sense
			told = s.refused(ctx, []byte(`{"type":"options_update","payload":{"wantedDids":["nobody"]}}`))
		case 4: // one that is too large
			told = s.refused(ctx, make([]byte, 2<<20))
		}
		if !told && ctx.Err() == nil && serves(life) && s.life.Load() == life {
			s.fail("a consumer that broke rule %d was not told", rule)
		}
		s.did.rude.Add(1)
	}
}

// raw connects a consumer that is not checked; nil: there is no daemon.
func (s *soak) raw(ctx context.Context) *websocket.Conn {
	ws, _, err := websocket.DefaultDialer.DialContext(ctx, "ws://"+s.addr+"/subscribe", nil)
	if err != nil {
		return nil
	}
	return ws
}

// refused sends what ends a connection and reports whether a close frame says so.
func (s *soak) refused(ctx context.Context, message []byte) bool {
	ws := s.raw(ctx)
	if ws == nil {
		return false
	}
	defer ws.Close()
	defer context.AfterFunc(ctx, func() { ws.Close() })()
	ws.SetReadDeadline(time.Now().Add(testproc.Patience))
	ws.WriteMessage(websocket.TextMessage, message)
	for {
		_, _, err := ws.ReadMessage()
		if closed, ok := errors.AsType[*websocket.CloseError](err); ok {
			return closed.Text != "" || closed.Code == websocket.CloseMessageTooBig // which says it all
		}
		if err != nil {
			return false
		}
	}
}
