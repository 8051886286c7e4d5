package compat

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// fromNow: to @skyware/jetstream a cursor of 0 is none, and @atcute/jetstream without one
// makes one of the clock: both are live.
func fromNow(t *testing.T, n *network, c *client) {
	last := n.own.truths[v1].last()
	x := begin(t, c, n.own, v1, order{}, "")
	got, from, to := x.until(t, time.Second)
	if err := compare(got, x.expected(t, &x.order, from, to)); err != nil {
		t.Error(err)
	}
	if from <= last {
		t.Errorf("it begins at %d, but %d was there before it", from, last)
	}
}

// prompts: wscat prints a prompt into what it has received after it has sent a line.
func prompts(t *testing.T, n *network, c *client) {
	x := begin(t, c, n.own, v1, order{Cursor: 1, Update: &update{After: 10}}, "")
	wait(t, "its prompt", func() bool { return strings.Contains(x.log.String(), "there was a prompt") })
}

// staysOpen: websocat without --exit-on-eof waits for its standard input when the server has
// closed the connection.
func staysOpen(t *testing.T, _ *network, _ *client) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""))
		ws.ReadMessage()
	}))
	defer server.Close()
	ends := func(args ...string) bool {
		cmd := exec.Command(cargo.path("bin/websocat"), append(args, "ws"+strings.TrimPrefix(server.URL, "http"))...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
			return true
		case <-time.After(2 * time.Second):
			cmd.Process.Kill()
			<-done
			return false
		}
	}
	if ends() {
		t.Error("it ended without --exit-on-eof")
	}
	if !ends("--exit-on-eof") {
		t.Error("it stayed open with --exit-on-eof")
	}
}

// endsAtSync: the client of the Python SDK fails when a #sync event comes.
func endsAtSync(t *testing.T, n *network, c *client) {
	wait(t, "a #sync event", func() bool { return len(n.own.truths[v2].events()) > len(n.own.truths[v1].events()) })
	x := begin(t, c, n.own, v2, order{Cursor: 1, Kinds: []string{"commit", "sync"}}, "")
	wait(t, "its end", func() bool {
		select {
		case <-x.done:
			return true
		default:
			return false
		}
	})
	if text := x.log.String(); !strings.Contains(text, "validation errors for Sync") {
		t.Errorf("it ended otherwise: %s", text)
	}
}
