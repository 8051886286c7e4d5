package simrelay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/pkg/simrelay"
)

const first = simrelay.DefaultFirstSeq

// collect returns n raw messages from the oldest frame on.
func collect(t testing.TB, url string, n int) [][]byte {
	t.Helper()
	conn := dial(t, url+"?cursor=0")
	out := make([][]byte, n)
	for i := range out {
		_, raw, err := conn.ReadMessage()
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		out[i] = raw
	}
	return out
}

// waitFor waits until the relay has made the frame of seq.
func waitFor(t testing.TB, relay *simrelay.Relay, seq int64) {
	t.Helper()
	for end := time.Now().Add(time.Minute); relay.LastSeq() < seq; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("LastSeq is %d, want %d", relay.LastSeq(), seq)
		}
	}
}

func TestSeedDecides(t *testing.T) {
	for _, loop := range []int{0, 150} {
		t.Run(fmt.Sprintf("loop=%d", loop), func(t *testing.T) {
			const n = 400
			stream := func(seed uint64) []byte {
				_, url := start(t, simrelay.Config{
					Seed: seed, Accounts: 30, Loop: loop, Records: 5, Total: n, Faults: simrelay.Faults{Rate: 0.05, Kinds: []simrelay.Fault{simrelay.Duplicate, simrelay.Garbage}},
				})
				return bytes.Join(collect(t, url, n), nil)
			}
			one := stream(1)
			if !bytes.Equal(one, stream(1)) {
				t.Error("one seed gives two streams")
			}
			if bytes.Equal(one, stream(2)) {
				t.Error("two seeds give one stream")
			}
		})
	}
}

func TestReadersSeeOneStream(t *testing.T) {
	for _, loop := range []int{0, 100} {
		_, url := start(t, simrelay.Config{Seed: 5, Accounts: 20, Loop: loop, Total: 500})
		var streams [4][]byte
		var wg sync.WaitGroup
		for i := range streams {
			wg.Go(func() { streams[i] = bytes.Join(collect(t, url, 500), nil) })
		}
		wg.Wait()
		for i := range streams {
			if !bytes.Equal(streams[0], streams[i]) {
				t.Errorf("loop=%d: reader %d saw another stream", loop, i)
			}
		}
	}
}

func TestMix(t *testing.T) {
	const n = 4000
	relay, _ := start(t, simrelay.Config{Seed: 9, Accounts: 100, Records: 10, Loop: n, Total: n})
	waitFor(t, relay, first+n-1)
	kinds, actions, creates, statuses := map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	frames, ops, multi, web, bytesLinks := 0, 0, 0, 0, 0
	for seq := int64(first); seq < first+n; seq++ {
		expected := relay.Expected(seq)
		if len(expected) == 0 {
			t.Fatalf("nothing expected of seq %d", seq)
		}
		frames++
		if len(expected) > 1 {
			multi++
		}
		for _, e := range expected {
			kinds[e.Kind]++
			if e.Kind == "account" {
				statuses[e.Status]++
				if e.Active != (e.Status == "") {
					t.Errorf("seq %d: active %t with status %q", seq, e.Active, e.Status)
				}
			}
			if strings.HasPrefix(e.DID, "did:web:") {
				web++
			}
			if e.Kind != "commit" {
				continue
			}
			ops++
			actions[e.Action]++
			if e.Action == "create" {
				creates[e.Collection]++
			}
			if (e.RecordJSON == nil) != (e.Action == "delete") {
				t.Fatalf("seq %d: %s of %s with record %s", seq, e.Action, e.Collection, e.RecordJSON)
			}
			if bytes.Contains(e.RecordJSON, []byte(`"$bytes"`)) && bytes.Contains(e.RecordJSON, []byte(`"$link"`)) {
				bytesLinks++
			}
		}
	}
	for collection, want := range map[string]float64{
		"app.bsky.feed.like": 0.70, "app.bsky.feed.post": 0.12, "app.bsky.feed.repost": 0.10, "app.bsky.graph.follow": 0.06,
	} {
		if got := float64(creates[collection]) / float64(actions["create"]); got < want*0.8 || got > want*1.2 {
			t.Errorf("%s is %.3f of creates, want about %.2f", collection, got, want)
		}
	}
	for _, collection := range []string{
		"app.bsky.graph.block", "app.bsky.actor.profile", "app.bsky.graph.list", "app.bsky.graph.listitem", "app.bsky.feed.threadgate",
		"fm.teal.alpha.feed.play", "sh.tangled.feed.star", "sh.tangled.git.refUpdate", "com.whtwnd.blog.entry", "org.example.sample.opaque",
	} {
		if creates[collection] == 0 {
			t.Errorf("no %s", collection)
		}
	}
	for _, kind := range []string{"commit", "identity", "account", "sync"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s", kind)
		}
	}
	for _, status := range []string{"", "takendown", "suspended", "deleted", "deactivated", "desynchronized", "throttled"} {
		if statuses[status] == 0 {
			t.Errorf("no account event with status %q", status)
		}
	}
	if actions["delete"]*100 < ops || actions["update"]*1000 < ops || multi*1000 < frames || web == 0 || bytesLinks == 0 {
		t.Errorf("too few of something: %v, %d frames of several ops, %d of did:web, %d with bytes and links", actions, multi, web, bytesLinks)
	}
}

func TestCursor(t *testing.T) {
	const total, history = 100, 40
	const oldest, last = first + total - history, first + total - 1
	type want struct {
		status  int    // of the handshake; zero: 101
		info    string // announced first
		refusal string // an error frame, then the end
		seq     int64  // of the first frame; zero: none comes
	}
	tests := []struct {
		query      string
		want       want
		wantSilent want
	}{
		{"", want{}, want{}},
		{"?cursor=0", want{seq: oldest}, want{seq: oldest}},
		{fmt.Sprintf("?cursor=%d", first+3), want{info: "OutdatedCursor", seq: oldest}, want{seq: oldest}},
		{fmt.Sprintf("?cursor=%d", oldest-2), want{info: "OutdatedCursor", seq: oldest}, want{seq: oldest}},
		{fmt.Sprintf("?cursor=%d", oldest-1), want{seq: oldest}, want{seq: oldest}},
		{fmt.Sprintf("?cursor=%d", last-1), want{seq: last}, want{seq: last}},
		{fmt.Sprintf("?cursor=%d", last), want{}, want{}},
		{fmt.Sprintf("?cursor=%d", last+1), want{refusal: "FutureCursor"}, want{}},
		{"?cursor=-1", want{status: 400}, want{status: 400}},
		{"?cursor=soon", want{status: 400}, want{status: 400}},
		{"?cursor=", want{status: 400}, want{status: 400}},
	}
	for _, silent := range []bool{false, true} {
		relay, url := start(t, simrelay.Config{Seed: 2, Accounts: 10, Rate: 1e6, Total: total, History: history, Silent: silent})
		waitFor(t, relay, last)
		for _, test := range tests {
			t.Run(fmt.Sprintf("silent=%t%s", silent, test.query), func(t *testing.T) {
				want := test.want
				if silent {
					want = test.wantSilent
				}
				if want.status != 0 {
					_, resp, err := websocket.DefaultDialer.Dial(url+test.query, nil)
					if err == nil || resp.StatusCode != want.status {
						t.Fatalf("got %v, %v, want status %d", resp, err, want.status)
					}
					return
				}
				conn := dial(t, url+test.query)
				if want.seq == 0 && want.refusal == "" {
					conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
				}
				_, event, err := next(conn)
				if want.info != "" {
					if err != nil || event.RepoInfo == nil || event.RepoInfo.Name != want.info {
						t.Fatalf("got %+v, %v, want #info %s", event, err, want.info)
					}
					_, event, err = next(conn)
				}
				switch {
				case want.refusal != "":
					if err != nil || event.Error == nil || event.Error.Error != want.refusal {
						t.Fatalf("got %+v, %v, want the error frame %s", event, err, want.refusal)
					}
					if _, _, err := next(conn); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) {
						t.Errorf("behind the error frame: %v, want a close", err)
					}
				case want.seq == 0:
					if err == nil {
						t.Errorf("got seq %d, want nothing", event.Sequence())
					}
				case err != nil:
					t.Error(err)
				case event.Sequence() != want.seq:
					t.Errorf("got seq %d, want %d", event.Sequence(), want.seq)
				}
			})
		}
	}
}

// The loop holds every seq from the first on; the same frame comes wherever the reader starts.
func TestLoopServesAnyCursor(t *testing.T) {
	const total = 1000
	relay, url := start(t, simrelay.Config{Seed: 4, Accounts: 20, Loop: 70, Total: total})
	waitFor(t, relay, first+total-1)
	all := collect(t, url, total)
	for _, skip := range []int{1, 69, 70, 71, 500, total - 1} {
		conn := dial(t, fmt.Sprintf("%s?cursor=%d", url, first+int64(skip)-1))
		_, raw, err := conn.ReadMessage()
		if err != nil || !bytes.Equal(raw, all[skip]) {
			t.Errorf("skip %d: got another frame, %v", skip, err)
		}
	}
}

// Without a cursor and without a rate nobody but the reader itself drives the stream.
func TestLiveTailWithoutRate(t *testing.T) {
	for _, loop := range []int{0, 50} {
		relay, url := start(t, simrelay.Config{Seed: 4, Accounts: 20, Loop: loop, History: 200})
		waitFor(t, relay, first)
		conn := dial(t, url)
		var before int64
		for i := range 300 {
			_, event, err := next(conn)
			if err != nil {
				t.Fatalf("loop=%d, frame %d: %v", loop, i, err)
			}
			if i > 0 && event.Sequence() != before+1 {
				t.Fatalf("loop=%d: seq %d after %d", loop, event.Sequence(), before)
			}
			before = event.Sequence()
		}
	}
}

func TestRate(t *testing.T) {
	for _, loop := range []int{0, 50} {
		begin := time.Now()
		relay, url := start(t, simrelay.Config{Seed: 4, Accounts: 20, Loop: loop, Rate: 500})
		collect(t, url, 100)
		if took := time.Since(begin); took < 190*time.Millisecond {
			t.Errorf("loop=%d: 100 frames at 500/s took %v", loop, took)
		}
		if ahead := relay.LastSeq() - first; ahead > int64(time.Since(begin).Seconds()*500)+1 {
			t.Errorf("loop=%d: %d frames after %v", loop, ahead, time.Since(begin))
		}
	}
}

// What is expected stays known, less the records, when the frame is no longer held.
func TestExpectedOutlivesHistory(t *testing.T) {
	const total = 400
	long, urlLong := start(t, simrelay.Config{Seed: 8, Accounts: 20, Total: total})
	short, urlShort := start(t, simrelay.Config{Seed: 8, Accounts: 20, Total: total, History: 20})
	collect(t, urlLong, total)
	collect(t, urlShort, total)
	for seq := int64(first); seq < first+total; seq++ {
		want, got := long.Expected(seq), short.Expected(seq)
		for i := range want {
			if seq < first+total-20 {
				want[i].RecordJSON = nil
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("seq %d: got %v, want %v", seq, got, want)
		}
	}
	if got := short.Expected(first + total); got != nil {
		t.Errorf("expected of a frame not made: %v", got)
	}
	if got := short.Expected(first - 1); got != nil {
		t.Errorf("expected of a frame before the first: %v", got)
	}
}

func TestSlowReaderIsTold(t *testing.T) {
	relay, url := start(t, simrelay.Config{Seed: 4, Accounts: 20, History: 50, Rate: 1e6})
	conn := dial(t, url+"?cursor=0")
	waitFor(t, relay, first+3000)
	for {
		_, event, err := next(conn)
		if err != nil {
			t.Fatalf("ended without a word: %v", err)
		}
		if event.Error != nil {
			if event.Error.Error != "ConsumerTooSlow" {
				t.Errorf("got %q", event.Error.Error)
			}
			return
		}
	}
}

func TestRunEndsConnections(t *testing.T) {
	relay, err := simrelay.New(simrelay.Config{Seed: 1, Accounts: 5, Loop: 20})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(relay.Handler())
	defer server.Close()
	url := "ws" + strings.TrimPrefix(server.URL, "http") + "/xrpc/com.atproto.sync.subscribeRepos?cursor=0"
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	dial(t, url) // reads nothing: its connection is full and blocks
	time.Sleep(20 * time.Millisecond)
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Run waits for a reader that does not read")
	}
	if err := relay.Run(context.Background()); err == nil {
		t.Error("a second Run is not refused")
	}
	if _, resp, err := websocket.DefaultDialer.Dial(url, nil); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a connection after Run: %v, %v", resp, err)
	}
}

func TestGoodbye(t *testing.T) {
	relay, err := simrelay.New(simrelay.Config{Seed: 1, Accounts: 5, Total: 3})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(relay.Handler())
	defer server.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	conn := dial(t, "ws"+strings.TrimPrefix(server.URL, "http")+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0")
	for range 3 {
		if _, _, err := next(conn); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if _, _, err := next(conn); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("got %v, want going away", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHealth(t *testing.T) {
	_, url := start(t, simrelay.Config{Total: 1})
	base, _, _ := strings.Cut(strings.Replace(url, "ws", "http", 1), "/xrpc")
	resp, err := http.Get(base + "/xrpc/_health")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !bytes.Contains(body, []byte("version")) {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
}

func TestReplay(t *testing.T) {
	_, url := start(t, simrelay.Config{Seed: 6, Accounts: 10, Total: 60})
	frames := collect(t, url, 60)
	// Seqs need not be dense.
	frames = append(frames[:10:10], frames[20:]...)
	server := httptest.NewServer(simrelay.Replay(frames))
	defer server.Close()
	replayed := "ws" + strings.TrimPrefix(server.URL, "http") + "/xrpc/com.atproto.sync.subscribeRepos"
	for i, raw := range collect(t, replayed, len(frames)) {
		if !bytes.Equal(raw, frames[i]) {
			t.Fatalf("message %d is another", i)
		}
	}
	for cursor, want := range map[int64]int64{first + 4: first + 5, first + 9: first + 20, first + 12: first + 20, first + 58: first + 59} {
		_, event, err := next(dial(t, fmt.Sprintf("%s?cursor=%d", replayed, cursor)))
		if err != nil || event.Sequence() != want {
			t.Errorf("cursor %d: got %+v, %v, want seq %d", cursor, event, err, want)
		}
	}
}

func TestReplayRealFrames(t *testing.T) {
	const file = "../../../shared/data/frames/real-50.bin.zst"
	packed, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("no captured frames at " + file)
	}
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	data, err := dec.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	for len(data) > 0 {
		n := 4 + int(binary.LittleEndian.Uint32(data))
		frames, data = append(frames, data[4:n]), data[n:]
	}
	relay, url := start(t, simrelay.Config{Frames: frames})
	for i, raw := range collect(t, url, len(frames)) {
		if !bytes.Equal(raw, frames[i]) {
			t.Fatalf("message %d is another", i)
		}
	}
	if len(frames) != 50 || relay.LastSeq() == 0 {
		t.Errorf("%d frames, the last %d", len(frames), relay.LastSeq())
	}
}

func TestConfigErrors(t *testing.T) {
	for field, cfg := range map[string]simrelay.Config{
		"accounts":    {Accounts: -1},
		"records":     {Records: -1},
		"first-seq":   {FirstSeq: -1},
		"rate":        {Rate: -1},
		"total":       {Total: -1},
		"loop":        {Loop: -1},
		"history":     {History: -1},
		"remember":    {Remember: -1},
		"fault-rate":  {Faults: simrelay.Faults{Rate: 2}},
		"cut-after":   {Faults: simrelay.Faults{CutAfter: -1}},
		"stall-after": {Faults: simrelay.Faults{StallAfter: -1}},
		"stall-for":   {Faults: simrelay.Faults{StallFor: -1}},
		"faults":      {Faults: simrelay.Faults{Kinds: []simrelay.Fault{"bad-luck"}}},
	} {
		_, err := simrelay.New(cfg)
		if bad := (*simrelay.ConfigError)(nil); !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
	for name, cfg := range map[string]simrelay.Config{
		"loop with short seqs": {Loop: 1, FirstSeq: 1},
		"endless slowness":     {Rate: 1e-9},
		"garbage captured":     {Frames: [][]byte{{1, 2, 3}}},
		"nothing captured":     {Frames: [][]byte{}},
	} {
		if _, err := simrelay.New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
