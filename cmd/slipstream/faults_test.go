package main

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
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

// receiveExactly checks that a consumer from the start receives what is expected, and
// nothing else.
func receiveExactly(t testing.TB, addr string, want []simrelay.Expected) {
	t.Helper()
	r := newReader(t, dial(t, addr, "cursor=0"))
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

// Whatever is wrong with a frame, its siblings and all later events arrive, and what was
// dropped is counted by reason.
func TestRelayFaults(t *testing.T) {
	reasons := map[simrelay.Fault]string{
		simrelay.WrongCID:     `slipstream_ops_dropped_total{reason="cid_mismatch"}`,
		simrelay.MissingBlock: `slipstream_ops_dropped_total{reason="missing_block"}`,
		simrelay.Float:        `slipstream_ops_dropped_total{reason="record_float"}`,
		simrelay.BadUTF8:      `slipstream_ops_dropped_total{reason="record_invalid_utf8"}`,
		simrelay.Trailing:     `slipstream_ops_dropped_total{reason="record_trailing_bytes"}`,
		simrelay.BadCBOR:      `slipstream_ops_dropped_total{reason="record_truncated"}`,
		simrelay.TooBig:       `slipstream_frames_dropped_total{reason="too_big"}`,
		simrelay.Garbage:      `slipstream_upstream_messages_dropped_total{reason="bad_header"}`,
		simrelay.Truncated:    "slipstream_frames_dropped_total",
		simrelay.GarbageBody:  `slipstream_upstream_messages_dropped_total{reason="bad_seq"}`,
		simrelay.TextFrame:    `slipstream_upstream_messages_dropped_total{reason="not_binary"}`,
		simrelay.Duplicate:    `slipstream_frames_duplicate_total`,
		simrelay.OldSeq:       `slipstream_frames_duplicate_total`,
		simrelay.ErrorFrame:   `slipstream_upstream_error_frames_total`,
		simrelay.UnknownType:  `slipstream_upstream_messages_dropped_total{reason="unknown_type"}`,
		simrelay.UnknownInfo:  `slipstream_upstream_notices_total`,
		simrelay.Oversized:    `slipstream_frames_dropped_total{reason="missing_field"}`, // 6 MiB are below the limit of a message
	}
	for _, fault := range simrelay.AllFaults {
		if _, ok := reasons[fault]; !ok {
			t.Errorf("fault %s is not tested", fault)
		}
	}
	for fault, metric := range reasons {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			const total = 300
			first := int64(simrelay.DefaultFirstSeq)
			faults := simrelay.Faults{At: map[int64]simrelay.Fault{first + 20: fault, first + 21: fault, first + 150: fault, first + total - 1: fault}}
			relay, upstream := startRelay(t, simrelay.Config{Seed: 31, Total: total, Faults: faults})
			d := startDaemon(t, testConfig(t, upstream))
			waitSeq(t, d, first+total-1)
			receiveExactly(t, d.addr, expectedEvents(relay, first, first+total-1))
			got := 0.0
			for name, value := range scrape(t, d.metrics) {
				if strings.HasPrefix(name, metric) {
					got += value
				}
			}
			// The fault is four times in the stream; not every frame has an op to break.
			if got < 1 || got > 4 {
				t.Errorf("%s is %v after four faults", metric, got)
			}
		})
	}
	t.Run("all, with cuts", func(t *testing.T) {
		t.Parallel()
		const total = 3000
		relay, upstream := startRelay(t, simrelay.Config{Seed: 32, Loop: 600, Total: total,
			Faults: simrelay.Faults{Rate: 0.05, Kinds: without(simrelay.AllFaults, simrelay.ErrorFrame), CutAfter: 1100}})
		d := startDaemon(t, testConfig(t, upstream))
		waitSeq(t, d, simrelay.DefaultFirstSeq+total-1)
		receiveExactly(t, d.addr, expectedEvents(relay, simrelay.DefaultFirstSeq, simrelay.DefaultFirstSeq+total-1))
		if got := scrape(t, d.metrics)["slipstream_upstream_reconnects_total"]; got < 2 {
			t.Errorf("%v reconnects", got)
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
			waitFor(t, "the new sequence", func() bool {
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

// One frame with an absurd number does not make everything after it look old.
func TestAbsurdSeq(t *testing.T) {
	relay, err := simrelay.New(simrelay.Config{Seed: 61, FirstSeq: 1_000, Total: 60})
	if err != nil {
		t.Fatal(err)
	}
	frames := rawFrames(t, relay, 60)
	far, err := simrelay.New(simrelay.Config{Seed: 62, FirstSeq: 1 << 60, Total: 1})
	if err != nil {
		t.Fatal(err)
	}
	odd := rawFrames(t, far, 1)
	sent := append(append(append([][]byte{}, frames[:30]...), odd[0]), frames[30:]...)
	upstream := serveHandler(t, rawRelay(sent))
	d := startDaemon(t, testConfig(t, upstream))
	want := append(append(expectedEvents(relay, 1_000, 1_029), expectedEvents(far, 1<<60, 1<<60)...), expectedEvents(relay, 1_030, 1_059)...)
	waitSeq(t, d, 1_059)
	receiveExactly(t, d.addr, want)
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

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", what)
		}
	}
}
