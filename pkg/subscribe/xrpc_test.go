package subscribe_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// trimmedWorld is a world with 500 events, an hour of retention and a clock to move.
func trimmedWorld(t *testing.T) (w *world, now *time.Time) {
	now = new(time.Time)
	*now = start.Time()
	w = newWorld(t, func(s *settings) {
		s.log.Now = func() time.Time { return *now }
		s.log.Retention = time.Hour
		s.log.WindowBytes = 20 << 10
	})
	w.feed.posts(500, 10)
	return w, now
}

func (w *world) trim() {
	w.t.Helper()
	if err := w.log.Trim(); err != nil {
		w.t.Fatal(err)
	}
}

// A time before the buffer is never moved without a word, not even where retention has taken
// everything, and what is said is where it goes on.
func TestV2TimeBeforeTheBuffer(t *testing.T) {
	t.Run("all is gone", func(t *testing.T) {
		w, now := trimmedWorld(t)
		*now = w.feed.last.Time().Add(2 * time.Hour)
		w.trim()
		p := w.srv.NewPuller(fmt.Sprint("cursor=", w.feed.all[0].cursor), 0, true)
		got, _, _, err := p.Pull(everything)
		if err != nil || !strings.Contains(string(got), "OutdatedCursor") || !strings.Contains(string(got), fmt.Sprint("seq ", (w.feed.last+1).V2Seq())) {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("retention passes it before the first event", func(t *testing.T) {
		w, now := trimmedWorld(t)
		w.v2 = true
		release := w.srv.HoldTurns()
		c := w.dial("cursor=1000000000000000")
		eventually(t, "it waits for its turn", func() bool { return w.srv.Queued() == 1 })
		*now = w.feed.all[250].cursor.Time().Add(time.Hour)
		w.trim()
		release()
		for _, seq := range []int64{w.feed.all[0].cursor.V2Seq(), w.feed.all[250].cursor.V2Seq()} {
			if got, err := c.next(); err != nil || !strings.Contains(got, "OutdatedCursor") || !strings.Contains(got, fmt.Sprint("seq ", seq, `"`)) {
				t.Fatalf("got %q, %v; want to be told of seq %d", got, err, seq)
			}
		}
		c.expect(w.feed.all[250:])
	})
}

// A seq that retention passes after the handshake is not moved.
func TestV2SeqTrimmedAfterTheHandshake(t *testing.T) {
	w, now := trimmedWorld(t)
	p := w.srv.NewPullerThen(fmt.Sprint("cursor=", w.feed.all[0].cursor.V2Seq()), 0, true, func() {
		*now = w.feed.all[250].cursor.Time().Add(time.Hour)
		w.trim()
	})
	if got, _, _, err := p.Pull(everything); !errors.Is(err, eventlog.ErrTrimmed) {
		t.Errorf("got %.200q, %v", got, err)
	}
}

// Clients read the first 1,024 bytes of an answer.
func TestV2AnswersAreShort(t *testing.T) {
	w := newWorld(t, nil)
	long := strings.Repeat("<&>\"\x01", 1000)
	for name, change := range map[string]func(*http.Request){
		"host":        func(r *http.Request) { r.Host = strings.Repeat("h", 3000) },
		"empty pairs": func(r *http.Request) { r.URL.RawQuery = strings.Repeat("&", 3000) },
		"method":      func(r *http.Request) { r.Method = strings.Repeat("M", 3000) },
		"path":        func(r *http.Request) { r.URL.Path = "/xrpc/" + strings.Repeat("p", 3000) },
		"name":        func(r *http.Request) { r.URL.RawQuery = url.QueryEscape(long) + "=x" },
		"kind":        func(r *http.Request) { r.URL.RawQuery = "kinds=" + url.QueryEscape(long) },
		"did":         func(r *http.Request) { r.URL.RawQuery = "dids=" + url.QueryEscape(long) },
		"collection":  func(r *http.Request) { r.URL.RawQuery = "collections=" + url.QueryEscape(long) },
		"cursor":      func(r *http.Request) { r.URL.RawQuery = "cursor=" + url.QueryEscape(long) },
		"dictionary":  func(r *http.Request) { r.URL.RawQuery = "zstdDictionary=" + url.QueryEscape(long) },
	} {
		r, err := http.NewRequest(http.MethodGet, "http://"+w.addr+paths[true], nil)
		if err != nil {
			t.Fatal(err)
		}
		change(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var answer struct{ Error, Message string }
		if err := json.Unmarshal(body, &answer); err != nil || answer.Error == "" || answer.Message == "" || resp.StatusCode < 400 {
			t.Errorf("%s: %s %q, %v", name, resp.Status, body, err)
		}
		if len(body) > 1024 {
			t.Errorf("%s: the answer has %d bytes", name, len(body))
		}
	}
}

// What is damaged in a way that the index does not show ends who asks for it, not the server.
func TestV2DamagedJSON(t *testing.T) {
	w := newWorld(t, nil)
	w.v2 = true
	w.feed.posts(3, 1)
	w.feed.json = append(w.feed.json, 0x81, 3, 'n', 'o', '!')
	w.feed.last++
	w.feed.b.Add(w.feed.last, event.KindIdentity, []byte("did:plc:a"), nil, [3]uint32{5, 0, 0})
	w.feed.commit()
	c := w.dial("cursor=0")
	c.expect(w.feed.all)
	c.expectClose(websocket.CloseInternalServerErr, "cannot read its events")
	if n := w.ended("unreadable_events"); n != 1 {
		t.Errorf("%v are ended for that, want 1", n)
	}
	w.dial("").ws.Close()
}
