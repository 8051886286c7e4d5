package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
)

// runRelay runs a relay until the returned function is called.
func runRelay(t testing.TB, relay *simrelay.Relay) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// rawFrames takes a relay's first n messages as they are.
func rawFrames(t testing.TB, relay *simrelay.Relay, n int) [][]byte {
	t.Helper()
	defer runRelay(t, relay)()
	server := httptest.NewServer(relay.Handler())
	defer server.Close()
	ws, _, err := websocket.DefaultDialer.Dial(strings.Replace(server.URL, "http", "ws", 1)+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	var frames [][]byte
	for range n {
		_, message, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, message)
	}
	return frames
}

// rawRelay sends the given messages to whoever connects, and then nothing.
func rawRelay(messages [][]byte) http.Handler { return scriptedRelay([][][]byte{messages}) }

// scriptedRelay sends each connection the next list of messages and ends it, but for the
// last one, which stays open. It takes no notice of cursors.
func scriptedRelay(script [][][]byte) http.Handler {
	upgrader := websocket.Upgrader{}
	var connections atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		n := int(connections.Add(1))
		for _, m := range script[min(n, len(script))-1] {
			if ws.WriteMessage(websocket.BinaryMessage, m) != nil {
				return
			}
		}
		if n >= len(script) {
			ws.ReadMessage()
		}
	})
}
