package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// startProcess runs the program with the given arguments.
func startProcess(t testing.TB, env []string, args ...string) *testproc.Process {
	t.Helper()
	return startCommand(t, env, exec.Command(os.Args[0], args...))
}

// startCommand runs a command that ends up as the program.
func startCommand(t testing.TB, env []string, cmd *exec.Cmd) *testproc.Process {
	t.Helper()
	cmd.Env = append(append(os.Environ(), "SLIPSTREAM_TEST_MAIN=1"), env...)
	return testproc.Start(t, cmd)
}

// expectedEvents lists what a v1 consumer must receive of frames first to last.
func expectedEvents(relay *simrelay.Relay, first, last int64) []simrelay.Expected {
	var all []simrelay.Expected
	for seq := first; seq <= last; seq++ {
		for _, e := range relay.Expected(seq) {
			if e.Kind != "sync" { // not on this wire
				all = append(all, e)
			}
		}
	}
	return all
}

// v1Event is a v1 event as a client library sees it.
type v1Event struct {
	DID    string `json:"did"`
	TimeUS int64  `json:"time_us"`
	Kind   string `json:"kind"`
	Commit struct {
		Rev, Operation, Collection, RKey, CID string
		Record                                json.RawMessage
	}
	Identity struct {
		Seq    int64
		Handle string
	}
	Account struct {
		Seq    int64
		Active bool
		Status string
	}
}

func parseEvent(t testing.TB, message []byte) v1Event {
	t.Helper()
	var e v1Event
	if err := json.Unmarshal(message, &e); err != nil {
		t.Fatalf("%v in %s", err, message)
	}
	return e
}

// matches reports how an event differs from what the relay knows it sent, or "".
func (e *v1Event) matches(want *simrelay.Expected) string {
	got := simrelay.Expected{Seq: want.Seq, Kind: e.Kind, DID: e.DID, Time: want.Time}
	switch e.Kind {
	case "commit":
		got.Rev, got.Collection, got.RKey, got.Action, got.CID = e.Commit.Rev, e.Commit.Collection, e.Commit.RKey, e.Commit.Operation, e.Commit.CID
	case "identity":
		got.Seq, got.Handle = e.Identity.Seq, e.Identity.Handle
	case "account":
		got.Seq, got.Active, got.Status = e.Account.Seq, e.Account.Active, e.Account.Status
	}
	w := *want
	w.RecordJSON = nil
	if fmt.Sprint(got) != fmt.Sprint(w) {
		return fmt.Sprintf("got %+v, want %+v", got, w)
	}
	return ""
}

// v2Witness is a consumer of the v2 wire, over any number of connections.
type v2Witness struct {
	last    int64 // the newest seq
	message []byte
	seqs    []int64 // of all events that v1 has, too
}

// watch goes on from the last seq until the connection ends, or until a seq has come.
func (w *v2Witness) watch(t testing.TB, addr string, until int64) {
	ws, _, err := websocket.DefaultDialer.Dial(fmt.Sprintf("ws://%s%s?cursor=%d", addr, v2Path, w.last), nil)
	if err != nil {
		return // killed meanwhile; what is missing is seen at the end
	}
	defer ws.Close()
	for resumed := w.last != 0; w.last < until; resumed = false {
		ws.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, message, err := ws.ReadMessage()
		if err != nil {
			return
		}
		// What a message is made of is for other tests: this one reads a million of them.
		_, rest, _ := bytes.Cut(message, []byte(`"seq":`))
		digits, _, _ := bytes.Cut(rest, []byte{','})
		seq, err := strconv.ParseInt(string(digits), 10, 64)
		switch {
		case err != nil:
			t.Errorf("v2: %v in %s", err, message)
			return
		case resumed && !bytes.Equal(message, w.message):
			t.Errorf("v2: after a kill the last event comes back as\n%s, it was\n%s", message, w.message)
			return
		case resumed:
			continue
		case seq <= w.last:
			t.Errorf("v2: seq %d after %d", seq, w.last)
			return
		}
		w.last, w.message = seq, message
		if !bytes.Contains(message[:min(len(message), 100)], []byte("#sync")) {
			w.seqs = append(w.seqs, seq)
		}
	}
}

// killsEnv is how often TestKill kills the daemon, other than twenty times: make soak.
const killsEnv = "SLIPSTREAM_TEST_KILLS"

// Killed twenty times at random moments of ingest at full speed, the daemon loses
// nothing: a consumer that resumes from its cursor sees every op in order, and what it
// saw before a kill comes back under the same time_us with the same bytes.
func TestKill(t *testing.T) {
	kills, rate := 20, 0.0
	if testing.Short() {
		kills, rate = 3, 6000 // the race detector has no eye for how fast it goes
	}
	if n, err := strconv.Atoi(os.Getenv(killsEnv)); err == nil {
		kills = n
	}
	total := int64(kills) * 20_000
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 11, Loop: 500, Total: total, Rate: rate})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	addr, metrics := testproc.FreeAddr(t), testproc.FreeAddr(t)
	launch := func() *testproc.Process {
		return startProcess(t, nil, "serve", "--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", dir,
			"--listen-addr", addr, "--metrics-listen-addr", metrics, "--log-level", "warn")
	}

	seq := int64(simrelay.DefaultFirstSeq) // of the next expected frame
	var queue []simrelay.Expected          // expected of the frames before seq, not yet received
	more := func() bool {                  // reports whether an event is expected at all
		for len(queue) == 0 && seq < simrelay.DefaultFirstSeq+total {
			if seq > relay.LastSeq() {
				return true // the relay will tell when it gets there
			}
			queue = expectedEvents(relay, seq, seq)
			seq++
		}
		return len(queue) > 0
	}
	next := func() *simrelay.Expected {
		if !more() || len(queue) == 0 {
			t.Fatalf("event %d is one too many", seq)
		}
		e := &queue[0]
		queue = queue[1:]
		return e
	}
	// Of every event received: its time_us and the hash of its bytes.
	type seen struct {
		us  int64
		sum uint64
	}
	var history []seen
	hash := maphash.MakeSeed()
	var lastMessage []byte
	last := int64(0)
	// receive reads until a moment has come or the connection ends.
	receive := func(until time.Time) {
		ws, _, err := websocket.DefaultDialer.Dial(fmt.Sprintf("ws://%s/subscribe?cursor=%d", addr, last), nil)
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			return // killed in the middle of the handshake; a daemon that never answers is seen at the end
		}
		defer ws.Close()
		r := newReader(t, ws)
		for first := last != 0; time.Now().Before(until); first = false {
			message, err := r.next(time.Until(until) + time.Millisecond)
			if err != nil {
				return
			}
			e := parseEvent(t, message)
			if first {
				if !bytes.Equal(message, lastMessage) {
					t.Fatalf("after a kill the last event comes back as\n%s, it was\n%s", message, lastMessage)
				}
				continue
			}
			if e.TimeUS <= last {
				t.Fatalf("time_us %d after %d", e.TimeUS, last)
			}
			if diff := e.matches(next()); diff != "" {
				t.Fatalf("event %d: %s", len(history), diff)
			}
			last, lastMessage = e.TimeUS, message
			history = append(history, seen{last, maphash.Bytes(hash, message)})
		}
	}
	// A consumer of the other wire comes with it to every life.
	var other v2Witness
	interrupted := 0
	for i := range kills {
		p := launch()
		if i%5 == 4 { // while it opens the store, or takes up the stream again
			time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond)
			p.Cmd.Process.Kill()
			p.Wait(t)
			p = launch()
		}
		waitHealthy(t, addr)
		time.AfterFunc(time.Duration(5+rng.IntN(120))*time.Millisecond, func() { p.Cmd.Process.Kill() })
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			other.watch(t, addr, math.MaxInt64)
		}()
		receive(time.Now().Add(10 * time.Second)) // until the kill ends the connection
		p.Wait(t)
		<-watched
		if relay.LastSeq() < simrelay.DefaultFirstSeq+total-1 {
			interrupted++
		}
	}
	if interrupted < kills*3/4 {
		t.Errorf("only %d of %d kills came before the stream's end: the test does not test much", interrupted, kills)
	}

	// A last life, to the end; then the whole stream again, from the start.
	p := launch()
	waitHealthy(t, addr)
	for idle := 0; more(); {
		before := len(history)
		receive(time.Now().Add(time.Second))
		if idle++; len(history) > before {
			idle = 0
		}
		if idle > 30 {
			t.Fatalf("%d events have come, and no more", len(history))
		}
	}
	r := newReader(t, dial(t, addr, "cursor=0&compress=true"))
	seq, queue = simrelay.DefaultFirstSeq, nil
	for i := range history {
		want := next()
		message, err := r.next(20 * time.Second)
		if err != nil {
			t.Fatalf("event %d of %d: %v", i, len(history), err)
		}
		if maphash.Bytes(hash, message) != history[i].sum {
			t.Fatalf("replay, event %d: these are not the bytes that were sent before, at time_us %d: %s", i, history[i].us, message)
		}
		// The CID stands for the record in every event; here and there it is looked at itself.
		if i%100 == 0 && want.RecordJSON != nil {
			e := parseEvent(t, message)
			if !equalValues(t, e.Commit.Record, want.RecordJSON) {
				t.Fatalf("replay, event %d: record %s, want %s", i, e.Commit.Record, want.RecordJSON)
			}
		}
	}
	if message, err := r.next(300 * time.Millisecond); err == nil {
		t.Fatalf("replay: one event too many: %s", message)
	}
	other.watch(t, addr, last-v2Epoch)
	for i, seq := range other.seqs {
		if i >= len(history) || seq != history[i].us-v2Epoch {
			t.Fatalf("v2: event %d has seq %d; v1 had %d events, this one at another time_us", i, seq, len(history))
		}
	}
	if len(other.seqs) != len(history) {
		t.Errorf("v2: %d events but syncs, v1 had %d", len(other.seqs), len(history))
	}
	p.End(t)
	report, err := runCommand(t.Context(), "verify", "--data-dir", dir)
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	t.Log(report)
	t.Logf("%d events, %d of %d kills interrupted ingest", len(history), interrupted, kills)
}
