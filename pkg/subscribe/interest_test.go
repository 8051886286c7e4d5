package subscribe_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/subscribe"
)

// member is a consumer that keeps what it gets, and knows what it should.
type member struct {
	ws     *websocket.Conn
	phases []phase
	dec    *zstd.Decoder
	pongs  chan string
	done   chan error // closed by an event of finale, or an error

	got []string // owned by its reader until done
}

// phase is a filter, and among which events it came into force: the exact moment is the
// server's.
type phase struct {
	filter   plain
	from, to int // places in feed.all
}

// finale is the DID whose event everybody wants, and which comes last.
const finale = "did:plc:finale"

func (m *member) read() {
	for {
		kind, message, err := m.ws.ReadMessage()
		if err == nil && kind == websocket.BinaryMessage {
			message, err = m.dec.DecodeAll(message, nil)
		}
		if err == nil {
			m.got = append(m.got, string(message))
		}
		if err != nil || strings.Contains(string(message), `"identity":{"did":"`+finale) {
			m.done <- err
			return
		}
	}
}

// explain reports whether some moments for the changes of the filter explain exactly what
// the member got.
func (m *member) explain(all []fact) error {
	// How many messages may have been got when the event at a place comes to be judged.
	counts := map[int]map[int]bool{}
	note := func(m map[int]map[int]bool, at, got int) {
		if m[at] == nil {
			m[at] = map[int]bool{}
		}
		m[at][got] = true
	}
	for at := m.phases[0].from; at <= m.phases[0].to; at++ {
		note(counts, at, 0)
	}
	for i, p := range m.phases {
		next := phase{from: len(all), to: len(all)}
		if i+1 < len(m.phases) {
			next = m.phases[i+1]
		}
		after := map[int]map[int]bool{}
		for at := p.from; at <= next.to; at++ {
			for got := range counts[at] {
				if at >= next.from {
					note(after, at, got)
				}
				switch {
				case at == len(all):
				case !p.filter.wants(all[at]):
					note(counts, at+1, got)
				case got < len(m.got) && m.got[got] == all[at].text(p.filter.V2):
					note(counts, at+1, got+1)
				}
			}
		}
		if counts = after; len(counts) == 0 {
			return fmt.Errorf("phase %d, %+v, does not lead to phase %+v", i, p, next)
		}
	}
	if !counts[len(all)][len(m.got)] {
		return fmt.Errorf("%d messages, which is not what all phases want", len(m.got))
	}
	return nil
}

// TestInterest holds the index, and everything on the way to the socket, against the
// obvious filter: consumers come, change their minds and go while events keep coming, and
// each gets exactly what it asked for, in order.
func TestInterest(t *testing.T) {
	steps := 800
	if testing.Short() {
		steps = 300
	}
	w := newWorld(t, func(s *settings) { s.log.WindowBytes = 256 << 10 })
	f := w.feed
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.All()...))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	collections := []string{"app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.feedx.y", "app.bsky.graph.follow", "com.example.a.b", "org.rare.thing"}
	var dids []string
	for i := range 30 {
		dids = append(dids, fmt.Sprintf("did:plc:%d", i))
	}
	// Events come all the time, and what has come is counted after it can be read.
	var mu sync.Mutex // guards f
	var count atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		rng := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(3000)) * time.Microsecond):
			}
			mu.Lock()
			for range 1 + rng.IntN(12) {
				kind := [...]event.Kind{event.KindIdentity, event.KindAccount, event.KindSync, event.KindCommit}[min(rng.IntN(14), 3)]
				collection := ""
				if kind == event.KindCommit {
					collection = collections[min(rng.IntN(40)/6, 5)]
				}
				f.add(kind, dids[rng.IntN(len(dids))], collection, strings.Repeat("x", rng.IntN(300)))
			}
			f.commit()
			count.Store(int64(len(f.all)))
			mu.Unlock()
		}
	}()
	rng := rand.New(rand.NewPCG(3, 4))
	random := func() plain {
		var p plain
		for range max(rng.IntN(5)-2, 0) {
			p.Collections = append(p.Collections, append(slices.Clone(collections), "app.bsky.feed.*", "app.*", "com.example.*", "org.none.*")[rng.IntN(10)])
		}
		if rng.IntN(2) == 0 {
			p.DIDs = append(p.DIDs, finale)
			for range rng.IntN(4) {
				p.DIDs = append(p.DIDs, dids[rng.IntN(len(dids))])
			}
			if rng.IntN(10) == 0 {
				for i := range 2000 {
					p.DIDs = append(p.DIDs, fmt.Sprintf("did:plc:none%d", i))
				}
			}
		}
		if rng.IntN(4) == 0 {
			p.MaxSize = 250 + rng.IntN(300)
		}
		return p
	}
	var members []*member
	connect := func() {
		m := &member{dec: dec, pongs: make(chan string, 1), done: make(chan error, 1)}
		p := phase{filter: random(), from: int(count.Load())}
		if rng.IntN(3) == 0 {
			p.filter.randomKinds(rng)
			if len(p.filter.Kinds) > 0 && !slices.Contains(p.filter.Kinds, "identity") {
				p.filter.Kinds = append(p.filter.Kinds, "identity") // as the last event is
			}
		}
		query := p.filter.query()
		replay := rng.IntN(3) == 0
		if replay {
			p.from = rng.IntN(p.from + 1)
			query += fmt.Sprintf("&cursor=%d", start+1+event.Cursor(p.from))
		}
		switch {
		case rng.IntN(3) > 0:
		case p.filter.V2:
			query += fmt.Sprint("&zstdDictionary=", compressor().ID())
		default:
			query += "&compress=true"
		}
		ws, _, err := websocket.DefaultDialer.Dial("ws://"+w.addr+paths[p.filter.V2]+"?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.Close() })
		if p.to = p.from; !replay {
			// An event may be in the log before it is counted.
			mu.Lock()
			p.to = len(f.all)
			mu.Unlock()
		}
		ws.SetPongHandler(func(data string) error { m.pongs <- data; return nil })
		m.ws, m.phases = ws, []phase{p}
		members = append(members, m)
		go m.read()
	}
	for step := range steps {
		switch what := rng.IntN(10); {
		case len(members) < 5 || what < 2 && len(members) < 60:
			connect()
		case what < 3 && len(members) > 20:
			i := rng.IntN(len(members))
			members[i].ws.Close()
			members = slices.Delete(members, i, i+1)
		default:
			m := members[rng.IntN(len(members))]
			if m.phases[0].filter.V2 {
				continue // it never changes its mind
			}
			p := phase{filter: random(), from: int(count.Load())}
			last := m.phases[len(m.phases)-1]
			// A replay may still be where the filter before came into force.
			p.from = last.from
			if err := m.ws.WriteMessage(websocket.TextMessage, []byte(p.filter.update())); err != nil {
				t.Fatal(err)
			}
			if err := m.ws.WriteControl(websocket.PingMessage, fmt.Append(nil, step), time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			select {
			case <-m.pongs:
			case err := <-m.done:
				t.Fatalf("the connection ended: %v", err)
			case <-time.After(patience):
				t.Fatal("no pong")
			}
			mu.Lock()
			p.to = len(f.all)
			mu.Unlock()
			m.phases = append(m.phases, p)
		}
	}
	close(stop)
	<-stopped
	f.add(event.KindIdentity, finale, "", "")
	f.commit()
	for i, m := range members {
		select {
		case err := <-m.done:
			if err != nil {
				t.Fatalf("member %d: %v", i, err)
			}
		case <-time.After(patience):
			t.Fatalf("member %d does not get the last event", i)
		}
		if err := m.explain(f.all); err != nil {
			t.Errorf("member %d: %v", i, err)
		}
	}
	if len(members) < 20 || len(f.all) < steps {
		t.Errorf("%d members and %d events at the end: the test tests little", len(members), len(f.all))
	}
	for _, m := range members {
		m.ws.Close()
	}
	w.connected(0)
	if n := w.srv.Interests(); n != 0 {
		t.Errorf("%d entries are left in the index", n)
	}
}

// TestPark: a chunk that is published at any moment of parking is neither missed nor taken
// for judged.
func TestPark(t *testing.T) {
	setup := func(t *testing.T) (*world, subscribe.Fanout, *subscribe.Puller) {
		w := newWorld(t, func(s *settings) { s.idle = true })
		w.feed.posts(1, 1)
		fan := w.srv.NewFanout()
		fan.Dispatch()
		p := w.srv.NewPuller("", 0, false)
		p.Join()
		return w, fan, p
	}
	t.Run("before", func(t *testing.T) {
		w, fan, p := setup(t)
		w.feed.posts(2, 1)
		first := fan.Publish()
		if fan.Ask(first) != 0 || p.Park() {
			t.Error("it parks, and nobody will tell it")
		}
	})
	t.Run("between publishing and asking", func(t *testing.T) {
		w, fan, p := setup(t)
		w.feed.posts(2, 1)
		fan.Ask(fan.Publish())
		second := fan.Publish()
		if p.Park() || fan.Ask(second) != 0 {
			t.Error("the second chunk hides the first")
		}
	})
	t.Run("while it parks", func(t *testing.T) {
		w, fan, p := setup(t)
		p.BeginParking()
		w.feed.posts(2, 1)
		if fan.Dispatch() != 0 || p.EndParking() {
			t.Error("the role is in two hands, or in none")
		}
	})
	t.Run("parked", func(t *testing.T) {
		w, fan, p := setup(t)
		if !p.Park() {
			t.Fatal("it does not park")
		}
		w.feed.posts(2, 1)
		if fan.Dispatch() != 1 || p.At() != start+1 {
			t.Errorf("it is not due, or not at %d but %d", start+1, p.At())
		}
	})
	t.Run("judged", func(t *testing.T) {
		w, fan, _ := setup(t)
		p := w.srv.NewPuller("wantedDids=did:plc:nobody", 0, false)
		p.Join()
		if !p.Park() {
			t.Fatal("it does not park")
		}
		w.feed.posts(2, 1)
		if fan.Dispatch(); !p.Take() || p.At() != w.feed.last {
			t.Errorf("it is to look at events after %d again", p.At())
		}
	})
}
