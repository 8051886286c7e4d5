package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// scrape reads the daemon's metrics: name with labels to value.
func scrape(t testing.TB, addr string) map[string]float64 {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	values := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return values
}

// reconnects counts those to the relay.
func reconnects(m map[string]float64) (n float64) {
	for name, v := range m {
		if strings.HasPrefix(name, "slipstream_upstream_reconnects_total{") {
			n += v
		}
	}
	return n
}

// receiveExactly checks that a consumer from the start receives what is expected, and
// nothing else.
func receiveExactly(t testing.TB, addr string, want []simrelay.Expected) {
	t.Helper()
	r := newReader(t, dial(t, addr, "cursor=0"))
	defer r.ws.Close()
	last := int64(0)
	for i := range want {
		message, err := r.next(30 * time.Second)
		if err != nil {
			t.Fatalf("event %d of %d: %v", i, len(want), err)
		}
		e := parseEvent(t, message)
		if diff := e.matches(&want[i]); diff != "" {
			t.Fatalf("event %d: %s", i, diff)
		}
		if want[i].RecordJSON != nil && !equalValues(t, e.Commit.Record, want[i].RecordJSON) {
			t.Fatalf("event %d: record %s, want %s", i, e.Commit.Record, want[i].RecordJSON)
		}
		if e.TimeUS <= last {
			t.Fatalf("event %d: time_us %d after %d", i, e.TimeUS, last)
		}
		last = e.TimeUS
	}
	if message, err := r.next(300 * time.Millisecond); err == nil {
		t.Fatalf("one event too many: %s", message)
	}
}

// How late the stream is grows while the relay is silent, and is not a number before it has said
// anything.
func TestLag(t *testing.T) {
	const lag = "slipstream_upstream_lag_seconds"
	relay, _ := testproc.Relay(t, simrelay.Config{Seed: 31, Total: 20, WallClock: true})
	open := make(chan struct{})
	d := startDaemon(t, testConfig(t, serveHandler(t, gate(open, relay.Handler()))))
	if got, ok := scrape(t, d.metrics)[lag]; !ok || !math.IsNaN(got) {
		t.Errorf("without a frame it is %v", got)
	}
	close(open)
	waitSeq(t, d, simrelay.DefaultFirstSeq+19)
	before := scrape(t, d.metrics)[lag]
	testproc.WaitFor(t, "the lag of a silent relay", func() bool { return scrape(t, d.metrics)[lag] > before+1 })
	if before < 0 || before > 600 {
		t.Errorf("it was %v seconds", before)
	}
}

// Whatever is wrong with a frame, its siblings and all later events arrive, and what was
// dropped is counted by reason, each time.
func TestRelayFaults(t *testing.T) {
	const (
		ops     = "slipstream_ops_dropped_total"
		frames  = "slipstream_frames_dropped_total"
		message = "slipstream_upstream_messages_dropped_total"
	)
	reasons := map[simrelay.Fault][]string{ // the metrics whose sum grows
		simrelay.WrongCID:     {ops + `{reason="cid_mismatch"}`},
		simrelay.MissingBlock: {ops + `{reason="missing_block"}`},
		simrelay.Float:        {ops + `{reason="record_float"}`},
		simrelay.BadUTF8:      {ops + `{reason="record_invalid_utf8"}`},
		simrelay.Trailing:     {ops + `{reason="record_trailing_bytes"}`},
		simrelay.BadCBOR:      {ops + `{reason="record_truncated"}`},
		simrelay.TooBig:       {frames + `{reason="too_big"}`},
		simrelay.Garbage:      {message + `{reason="bad_header"}`},
		// Half a frame may still have its seq, or not.
		simrelay.Truncated:   {frames + `{reason="bad_cbor"}`, message + `{reason="bad_seq"}`},
		simrelay.GarbageBody: {message + `{reason="bad_seq"}`},
		simrelay.TextFrame:   {message + `{reason="not_binary"}`},
		simrelay.Duplicate:   {"slipstream_frames_duplicate_total"},
		simrelay.OldSeq:      {"slipstream_frames_duplicate_total"},
		simrelay.ErrorFrame:  {"slipstream_upstream_error_frames_total"},
		simrelay.UnknownType: {message + `{reason="unknown_type"}`},
		simrelay.UnknownInfo: {"slipstream_upstream_notices_total"},
		// 6 MiB are below what a message may have: it is read, and found to lack all else.
		simrelay.Oversized: {frames + `{reason="missing_field"}`},
	}
	const total, first = 300, int64(simrelay.DefaultFirstSeq)
	relay, err := simrelay.New(simrelay.Config{Seed: 31, Total: total})
	if err != nil {
		t.Fatal(err)
	}
	rawFrames(t, relay, total) // so that it has made them all
	for _, fault := range simrelay.AllFaults {
		metrics, ok := reasons[fault]
		if !ok {
			t.Errorf("fault %s is not tested", fault)
		}
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			at := map[int64]simrelay.Fault{}
			for _, n := range []int64{20, 21, 150, total - 1} {
				at[first+n] = fault
			}
			faulty, upstream := testproc.Relay(t, simrelay.Config{Seed: 31, Total: total, Faults: simrelay.Faults{At: at}})
			d := startDaemon(t, testConfig(t, upstream))
			waitSeq(t, d, first+total-1)
			receiveExactly(t, d.addr, expectedEvents(faulty, first, first+total-1))

			// A fault that breaks ops is not where there is none to break.
			want := 0.0
			for seq := range at {
				switch missing := len(relay.Expected(seq)) - len(faulty.Expected(seq)); {
				case fault == simrelay.TooBig && missing > 0, strings.HasPrefix(metrics[0], ops) && missing == 1:
					want++
				case fault != simrelay.TooBig && !strings.HasPrefix(metrics[0], ops):
					want++
				}
			}
			if want == 0 {
				t.Fatal("no frame has the fault")
			}
			count := func() (got float64) {
				all := scrape(t, d.metrics)
				for _, name := range metrics {
					got += all[name]
				}
				return got
			}
			testproc.WaitFor(t, fmt.Sprintf("%v to be %v", metrics, want), func() bool { return count() >= want })
			if got := count(); got != want {
				t.Errorf("%v: %v, want %v", metrics, got, want)
			}
		})
	}
	// All of them, with cuts and stalls in between: a connection of its own after each.
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		const total = 4000
		relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 32, Loop: 600, Total: total, Faults: simrelay.Faults{
			Rate: 0.05, Kinds: without(simrelay.AllFaults, simrelay.ErrorFrame), CutAfter: 1100, StallAfter: 700, StallFor: 200 * time.Millisecond,
		}})
		d := startDaemon(t, testConfig(t, upstream))
		waitSeq(t, d, simrelay.DefaultFirstSeq+total-1)
		receiveExactly(t, d.addr, expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+total-1))
		if got := reconnects(scrape(t, d.metrics)); got < 3 {
			t.Errorf("%v reconnects", got)
		}
	})
	t.Run("larger than any limit", func(t *testing.T) {
		t.Parallel()
		relay, err := simrelay.New(simrelay.Config{Seed: 33, Total: 40})
		if err != nil {
			t.Fatal(err)
		}
		sent := rawFrames(t, relay, 40)
		sent = slices.Insert(sent, 20, make([]byte, 40<<20))
		d := startDaemon(t, testConfig(t, serveHandler(t, rawRelay(sent))))
		waitSeq(t, d, simrelay.DefaultFirstSeq+39)
		receiveExactly(t, d.addr, expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+39))
		m := scrape(t, d.metrics)
		if got := m[message+`{reason="message_too_large"}`]; got != 1 || reconnects(m) != 0 {
			t.Errorf("%v messages too large, %v reconnects", got, reconnects(m))
		}
	})
}

func without(all []simrelay.Fault, one simrelay.Fault) (rest []simrelay.Fault) {
	for _, f := range all {
		if f != one {
			rest = append(rest, f)
		}
	}
	return rest
}

// waitSeq waits until the daemon has sequenced a frame.
func waitSeq(t testing.TB, d *daemon, seq int64) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got := int64(scrape(t, d.metrics)["slipstream_upstream_seq"])
		if got >= seq {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon is at seq %d, not %d", got, seq)
		}
	}
}

// A relay that lost its numbers starts anew, below the stored cursor. Whether it says so or
// not, the daemon takes its stream from the oldest frame and drops what it holds already.
func TestRelayStartsAnew(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent=", silent), func(t *testing.T) {
			t.Parallel()
			// The same network, under numbers that are lower the second time and reach further.
			// It goes on while the daemon reconnects: a silent relay that has nothing more to
			// send gives nothing away.
			const before, after, rate = 200, 500, 150
			old, _ := simrelay.New(simrelay.Config{Seed: 41, FirstSeq: 9_000_000, Total: before, Rate: rate})
			current := newSwitch(t, old)
			cfg := testConfig(t, current.url)
			d := startDaemon(t, cfg)
			waitSeq(t, d, 9_000_000+before-1)

			fresh, err := simrelay.New(simrelay.Config{Seed: 41, FirstSeq: 1_000, Total: after, Rate: rate, Silent: silent})
			if err != nil {
				t.Fatal(err)
			}
			current.use(t, fresh)
			testproc.WaitFor(t, "the new sequence", func() bool {
				return int64(scrape(t, d.metrics)["slipstream_upstream_seq"]) == 1_000+after-1
			})
			// Commits come once. Identity and account events have no rev and come again.
			want := expectedEvents(old, 9_000_000, 9_000_000+before-1)
			for seq := int64(1_000); seq < 1_000+after; seq++ {
				for _, e := range fresh.Expected(seq) {
					if e.Kind == "commit" && seq < 1_000+before || e.Kind == "sync" {
						continue
					}
					want = append(want, e)
				}
			}
			receiveExactly(t, d.addr, want)
			m := scrape(t, d.metrics)
			if m["slipstream_upstream_resets_total"] != 1 || m["slipstream_frames_duplicate_total"] < before*9/10 {
				t.Errorf("%v resets, %v duplicates", m["slipstream_upstream_resets_total"], m["slipstream_frames_duplicate_total"])
			}
		})
	}
}

// What the relay has forgotten is a gap: counted whether it is announced or not.
func TestGapIsCounted(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent=", silent), func(t *testing.T) {
			t.Parallel()
			old, _ := simrelay.New(simrelay.Config{Seed: 51, FirstSeq: 1_000, Total: 100})
			current := newSwitch(t, old)
			d := startDaemon(t, testConfig(t, current.url))
			waitSeq(t, d, 1_099)
			fresh, err := simrelay.New(simrelay.Config{Seed: 52, FirstSeq: 2_000, Total: 100, Silent: silent})
			if err != nil {
				t.Fatal(err)
			}
			current.use(t, fresh)
			waitSeq(t, d, 2_099)
			receiveExactly(t, d.addr, append(expectedEvents(old, 1_000, 1_099), expectedEvents(fresh, 2_000, 2_099)...))
			if got := scrape(t, d.metrics)["slipstream_upstream_gaps_total"]; got < 1 {
				t.Errorf("%v gaps are counted", got)
			}
		})
	}
}

// One frame with an absurd number does not make everything after it look old, whether it is
// good or damaged, in the middle of the stream or behind a reconnect; and a relay that sends
// it again after each reconnect, because by number it comes last, has it delivered once.
func TestAbsurdSeq(t *testing.T) {
	relay, err := simrelay.New(simrelay.Config{Seed: 61, FirstSeq: 1_000, Total: 90})
	if err != nil {
		t.Fatal(err)
	}
	frames := rawFrames(t, relay, 90)
	const seq = 1 << 40
	far, err := simrelay.New(simrelay.Config{Seed: 62, FirstSeq: seq, Total: 1})
	if err != nil {
		t.Fatal(err)
	}
	// As far as a number can go.
	odd := bytes.Replace(rawFrames(t, far, 1)[0], binary.BigEndian.AppendUint64([]byte{0x1b}, seq), binary.BigEndian.AppendUint64([]byte{0x1b}, math.MaxInt64), 1)
	if far.Expected(seq)[0].Kind != "commit" {
		t.Fatal("the odd frame is no commit")
	}
	for _, damaged := range []bool{false, true} {
		t.Run(fmt.Sprint("damaged=", damaged), func(t *testing.T) {
			t.Parallel()
			between := expectedEvents(far, seq, seq)
			odd := odd
			if damaged { // behind the seq
				odd, between = odd[:len(odd)-20], nil
			}
			d := startDaemon(t, testConfig(t, serveHandler(t, scriptedRelay([][][]byte{
				append(append(slices.Clone(frames[:30]), odd), frames[30:60]...),
				append([][]byte{odd}, frames[60:70]...),
				append(slices.Clone(frames[70:90]), odd),
			}))))
			waitSeq(t, d, 1_089)
			want := slices.Concat(expectedEvents(relay, 1_000, 1_029), between, expectedEvents(relay, 1_030, 1_089))
			receiveExactly(t, d.addr, want)
		})
	}
}

// A relay that takes a cursor for the first seq wanted, not for the last one had, sends one
// frame twice after every reconnect; one that goes back further is taken for a relay that
// counts anew. Neither makes a commit come twice.
func TestRepeatsAfterReconnect(t *testing.T) {
	relay, err := simrelay.New(simrelay.Config{Seed: 71, FirstSeq: 1_000, Total: 100})
	if err != nil {
		t.Fatal(err)
	}
	frames := rawFrames(t, relay, 100)
	t.Run("one", func(t *testing.T) {
		t.Parallel()
		d := startDaemon(t, testConfig(t, serveHandler(t, scriptedRelay([][][]byte{frames[:30], frames[29:60], frames[59:]}))))
		waitSeq(t, d, 1_099)
		receiveExactly(t, d.addr, expectedEvents(relay, 1_000, 1_099))
		m := scrape(t, d.metrics)
		if m["slipstream_frames_duplicate_total"] != 2 || m["slipstream_upstream_gaps_total"] != 0 || m["slipstream_upstream_resets_total"] != 0 {
			t.Errorf("%v duplicates, %v gaps, %v resets", m["slipstream_frames_duplicate_total"], m["slipstream_upstream_gaps_total"], m["slipstream_upstream_resets_total"])
		}
	})
	t.Run("many", func(t *testing.T) {
		t.Parallel()
		d := startDaemon(t, testConfig(t, serveHandler(t, scriptedRelay([][][]byte{frames[:60], frames[40:], frames}))))
		waitSeq(t, d, 1_099)
		// Identity and account events have no rev by which they could be told apart.
		want := expectedEvents(relay, 1_000, 1_059)
		for _, e := range expectedEvents(relay, 1_000, 1_099) {
			if e.Seq >= 1_060 || e.Kind != "commit" {
				want = append(want, e)
			}
		}
		receiveExactly(t, d.addr, want)
		if got := scrape(t, d.metrics)["slipstream_upstream_resets_total"]; got != 1 {
			t.Errorf("%v resets", got)
		}
	})
}

// switchable is an address at which one relay takes another's place.
type switchable struct {
	url     string
	mu      sync.Mutex
	handler http.Handler
	relay   *simrelay.Relay
	stop    func()
}

func newSwitch(t testing.TB, relay *simrelay.Relay) *switchable {
	t.Helper()
	s := &switchable{}
	s.url = serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		h := s.handler
		s.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	s.use(t, relay)
	t.Cleanup(func() { s.stop() })
	return s
}

// use ends the relay of before, with its connections, and puts another in its place.
func (s *switchable) use(t testing.TB, relay *simrelay.Relay) {
	t.Helper()
	if s.stop != nil {
		s.stop()
	}
	stop := runRelay(t, relay)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler, s.relay, s.stop = relay.Handler(), relay, stop
}
