package simrelay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/events"
	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
)

// start runs a relay for the length of the test and returns the websocket URL of its stream.
func start(t testing.TB, cfg simrelay.Config) (*simrelay.Relay, string) {
	t.Helper()
	relay, err := simrelay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(relay.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		server.Close()
	})
	return relay, "ws" + strings.TrimPrefix(server.URL, "http") + "/xrpc/com.atproto.sync.subscribeRepos"
}

func dial(t testing.TB, url string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	return conn
}

// next reads one message and decodes it with indigo.
func next(conn *websocket.Conn) (raw []byte, event *events.XRPCStreamEvent, err error) {
	kind, raw, err := conn.ReadMessage()
	if err != nil {
		return nil, nil, err
	}
	if kind != websocket.BinaryMessage {
		return raw, nil, errors.New("not a binary message")
	}
	event = &events.XRPCStreamEvent{}
	r := bytes.NewReader(raw)
	if err := event.Deserialize(r); err != nil {
		return raw, nil, err
	}
	if r.Len() > 0 {
		return raw, nil, fmt.Errorf("%d bytes behind the message", r.Len())
	}
	return raw, event, nil
}

func TestEveryFrameDecodes(t *testing.T) {
	const total = 2000
	relay, url := start(t, simrelay.Config{Seed: 1, Accounts: 50, Total: total})
	conn := dial(t, url+"?cursor=0")
	size := 0
	for i := range int64(total) {
		raw, event, err := next(conn)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		size += len(raw)
		// Written again by indigo it is the same: the message is canonical, key order and all.
		var again bytes.Buffer
		if err := event.Serialize(&again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Bytes(), raw) {
			t.Fatalf("frame %d is not canonical:\n%x\nindigo writes\n%x", i, raw, again.Bytes())
		}
		if got, want := event.Sequence(), simrelay.DefaultFirstSeq+i; got != want {
			t.Fatalf("seq %d, want %d", got, want)
		}
	}
	t.Logf("mean frame %d bytes", size/total)
	if got, want := relay.LastSeq(), int64(simrelay.DefaultFirstSeq+total-1); got != want {
		t.Errorf("LastSeq %d, want %d", got, want)
	}
}
