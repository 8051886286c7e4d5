package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// serverOf serves websockets; f has each connection.
func serverOf(t *testing.T, f func(conn *websocket.Conn, r *http.Request)) *url.URL {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		f(conn, r)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(strings.Replace(server.URL, "http", "ws", 1) + "/subscribe")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func startSwarm(t *testing.T, config swarmConfig, specs []spec) *swarm {
	t.Helper()
	s, err := newSwarm(config, specs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestSwarmResumes has a server that ends each connection after ten events.
func TestSwarmResumes(t *testing.T) {
	const consumers, end = 20, 60
	var pongs atomic.Int64
	target := serverOf(t, func(conn *websocket.Conn, r *http.Request) {
		conn.SetPongHandler(func(data string) error {
			if data == "are you there" {
				pongs.Add(1)
			}
			return nil
		})
		conn.WriteMessage(websocket.PingMessage, []byte("are you there"))
		at, _ := strconv.ParseInt(r.URL.Query().Get("cursor"), 10, 64)
		for n := 0; n < 10 && at <= end; n++ {
			conn.WriteMessage(websocket.TextMessage, eventAt(at))
			at++
		}
		if at <= end {
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1001, "come back"))
		}
		for {
			if _, _, err := conn.ReadMessage(); err != nil {
				return
			}
		}
	})
	specs := make([]spec, consumers)
	for i := range specs {
		specs[i] = spec{track: true, cursor: 1}
	}
	s := startSwarm(t, swarmConfig{target: target, resume: true, loops: 2, pause: time.Millisecond}, specs)
	eventually(t, "all are at the end", func() bool {
		for _, track := range s.streams() {
			if track.last != end {
				return false
			}
		}
		return true
	})
	want := tracker{last: 1}
	for at := int64(2); at <= end; at++ {
		want.see(at)
	}
	for _, got := range s.streams() {
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	// 1 to 10, then 10 to 19, and so on: the seventh connection ends with the sixtieth.
	if got, want := tally(s.endings()), fmt.Sprintf("%d × 1001 come back", 6*consumers); got != want {
		t.Errorf("ended: got %q, want %q", got, want)
	}
	if got := s.inexact(); len(got) > 0 {
		t.Errorf("got faults %q, want none", got)
	}
	eventually(t, "every ping is answered", func() bool { return pongs.Load() == 7*consumers })
}

// TestSwarmFinishes has a server that sends ten events to each connection.
func TestSwarmFinishes(t *testing.T) {
	var connections atomic.Int64
	target := serverOf(t, func(conn *websocket.Conn, _ *http.Request) {
		connections.Add(1)
		for at := range int64(10) {
			conn.WriteMessage(websocket.TextMessage, eventAt(at+1))
		}
		conn.ReadMessage() // until the consumer leaves
	})
	for _, c := range []spec{{track: true, most: 10}, {sizes: true, most: 10}} {
		s := startSwarm(t, swarmConfig{target: target}, []spec{c, c, c})
		select {
		case <-s.complete:
		case <-time.After(10 * time.Second):
			t.Fatal("they are not finished")
		}
		for _, got := range s.streams() {
			if got.count != 10 {
				t.Errorf("a consumer has %d events, want 10", got.count)
			}
		}
		if got := s.endings(); len(got) > 0 {
			t.Errorf("ended: %s, want none", tally(got))
		}
	}

	connections.Store(0)
	again := startSwarm(t, swarmConfig{target: target}, []spec{{sizes: true, most: 10, again: true}})
	eventually(t, "it connects again and again", func() bool { return connections.Load() > 5 })
	if got := again.over.Load(); got != 0 {
		t.Errorf("%d consumers are over, want none", got)
	}

	tooMany := startSwarm(t, swarmConfig{target: target}, []spec{{sizes: true, most: 9}})
	eventually(t, "one event too many is seen", func() bool { return len(tooMany.inexact()) > 0 })
	if got, want := tooMany.inexact()[0], "more came than 9 events"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestPacedConsumers have a server that sends as fast as it can.
func TestPacedConsumers(t *testing.T) {
	message := make([]byte, 1000)
	target := serverOf(t, func(conn *websocket.Conn, _ *http.Request) {
		for conn.WriteMessage(websocket.BinaryMessage, message) == nil {
		}
	})
	s := startSwarm(t, swarmConfig{target: target}, []spec{{paced: true, pace: 100}, {paced: true, pace: 0}})
	if _, err := s.connected(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	got, _ := s.totals() // of the first alone
	if most := 1 + int64(100*time.Since(s.began).Seconds()); got < 5 || got > most {
		t.Errorf("at 100 events per second there were %d, want 5 to %d", got, most)
	}
	s.hurry()
	eventually(t, "they read all that there is", func() bool { got, _ := s.totals(); return got > 5000 })
	if got := s.open.Load(); got != 2 {
		t.Errorf("%d consumers are connected, want 2", got)
	}
}

func TestSwarmIsRefused(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too many from your address", http.StatusTooManyRequests)
	}))
	t.Cleanup(server.Close)
	target, _ := url.Parse(strings.Replace(server.URL, "http", "ws", 1))
	s := startSwarm(t, swarmConfig{target: target}, make([]spec, 3))
	_, err := s.connected(t.Context(), 10*time.Second)
	if want := "3 × handshake: 429 Too Many Requests: too many from your address"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want an error with %q", err, want)
	}
}
