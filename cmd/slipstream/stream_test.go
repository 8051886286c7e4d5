package main

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// eventSource does what a browser's does: it comes back with the id of the last event.
type eventSource struct {
	last  string
	datas []string
}

// read connects and reads until the stream ends or there are n events; it reports whether
// there are.
func (s *eventSource) read(t testing.TB, addr string, n int) bool {
	t.Helper()
	req, err := http.NewRequest("GET", "http://"+addr+"/subscribe?cursor=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if s.last != "" {
		req.Header.Set("Last-Event-ID", s.last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	id, data := "", ""
	for lines := bufio.NewScanner(resp.Body); len(s.datas) < n; {
		if !lines.Scan() {
			return false // an event that is not complete is none
		}
		switch name, value, _ := strings.Cut(lines.Text(), ": "); name {
		case "id":
			id = value
		case "data":
			data = value
		case "":
			if data != "" {
				s.last, s.datas, data = id, append(s.datas, data), ""
			}
		}
	}
	return true
}

// An EventSource gets every event once and in order, however the daemon ends meanwhile, and
// those are the lines that one gets who asks for everything.
func TestStreamResumes(t *testing.T) {
	const events = 3000
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 77, Loop: 500, Total: events, Rate: 1500})
	addr, metrics, dir := testproc.FreeAddr(t), testproc.FreeAddr(t), t.TempDir()
	var s eventSource
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
		p := serveProcess(t, upstream, dir, addr, metrics)
		have := len(s.datas)
		ended := make(chan bool)
		go func() { ended <- s.read(t, addr, events) }()
		testproc.WaitFor(t, "some events", func() bool { return scrape(t, metrics)["slipstream_sent_events_total"] >= 300 })
		p.Signal(t, end)
		p.Wait(t)
		if <-ended {
			break
		}
		t.Logf("%d events before signal %v", len(s.datas)-have, end)
	}
	serveProcess(t, upstream, dir, addr, metrics)
	if !s.read(t, addr, events) {
		t.Fatalf("the stream ends after %d events", len(s.datas))
	}
	resp, err := http.Get("http://" + addr + "/subscribe?cursor=0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	late := time.AfterFunc(testproc.Patience, func() { resp.Body.Close() })
	defer late.Stop()
	lines := bufio.NewReader(resp.Body)
	for i := range events {
		line, err := lines.ReadString('\n')
		if err != nil || line != s.datas[i]+"\n" {
			t.Fatalf("event %d: %v\n got %s\nwant %s", i, err, s.datas[i], line)
		}
	}
	resp.Body.Close()
	io.Copy(io.Discard, lines)
}
