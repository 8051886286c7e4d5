package simrelay_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/events"
	"github.com/gorilla/websocket"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car"

	"slipstream/pkg/simrelay"
)

// good finds a seq whose frame has a record and is a commit of at least the given number of ops.
func good(t *testing.T, relay *simrelay.Relay, from int64, ops int) int64 {
	t.Helper()
	for seq := from; seq <= relay.LastSeq(); seq++ {
		if e := relay.Expected(seq); len(e) >= ops && e[0].CID != "" {
			return seq
		}
	}
	t.Fatal("no such frame")
	return 0
}

// record returns the bytes of a record as any reader of CARs finds them; checked tells that the
// hash was compared.
func record(msg *events.XRPCStreamEvent, op int) (data []byte, err error) {
	reader, err := car.NewCarReader(bytes.NewReader(msg.RepoCommit.Blocks))
	if err != nil {
		return nil, err
	}
	for {
		block, err := reader.Next()
		if err == io.EOF {
			return nil, errors.New("missing")
		}
		if err != nil {
			return nil, err
		}
		if block.Cid() == cid.Cid(*msg.RepoCommit.Ops[op].Cid) {
			return block.RawData(), nil
		}
	}
}

// Each fault is at its place and of its kind; the frames around it are those of the stream
// without faults; and exactly the broken ops are expected no more.
func TestFrameFaults(t *testing.T) {
	const total = 400
	for _, loop := range []int{0, 250} {
		cfg := simrelay.Config{Seed: 21, Accounts: 30, Loop: loop, Records: 10, Total: total}
		clean, url := start(t, cfg)
		want := collect(t, url, total)
		seq := good(t, clean, first+20, 2) // a sibling must survive
		at := int(seq - first)
		for _, fault := range simrelay.AllFaults {
			t.Run(fmt.Sprintf("loop=%d/%s", loop, fault), func(t *testing.T) {
				faulty := cfg
				faulty.Total = int64(at + 10)
				faulty.Faults.At = map[int64]simrelay.Fault{seq: fault}
				relay, url := start(t, faulty)
				conn := dial(t, url+"?cursor=0")
				for i := range at {
					if _, raw, err := conn.ReadMessage(); err != nil || !bytes.Equal(raw, want[i]) {
						t.Fatalf("frame %d before the fault is another, %v", i, err)
					}
				}
				_, raw, err := conn.ReadMessage()
				if err != nil {
					t.Fatal(err)
				}
				broken := checkBroken(t, fault, raw)
				if !broken {
					if !bytes.Equal(raw, want[at]) {
						t.Error("the good frame was changed")
					}
					kind, raw, err := conn.ReadMessage()
					if err != nil {
						t.Fatal(err)
					}
					checkBehind(t, fault, kind, raw, want, at)
				}
				before, after := clean.Expected(seq), relay.Expected(seq)
				switch {
				case fault == simrelay.TooBig:
					before = nil
				case broken:
					before = before[1:]
				}
				if fmt.Sprint(before) != fmt.Sprint(after) {
					t.Errorf("expected %v, want %v", after, before)
				}
				if fault == simrelay.ErrorFrame {
					if _, _, err := conn.ReadMessage(); err == nil {
						t.Error("the connection goes on behind an error frame")
					}
					conn = dial(t, fmt.Sprintf("%s?cursor=%d", url, seq))
				}
				for i := at + 1; i < at+10; i++ {
					if _, raw, err := conn.ReadMessage(); err != nil || !bytes.Equal(raw, want[i]) {
						t.Fatalf("frame %d behind the fault is another, %v", i, err)
					}
				}
			})
		}
	}
}

// checkBroken checks a frame with a broken op; false says that the fault is not of that group.
func checkBroken(t *testing.T, fault simrelay.Fault, raw []byte) bool {
	t.Helper()
	switch fault {
	case simrelay.WrongCID, simrelay.MissingBlock, simrelay.Float, simrelay.BadUTF8, simrelay.Trailing, simrelay.BadCBOR, simrelay.TooBig:
	default:
		return false
	}
	var event events.XRPCStreamEvent
	if err := event.Deserialize(bytes.NewReader(raw)); err != nil {
		t.Fatalf("the message itself is broken: %v", err)
	}
	msg := event.RepoCommit
	if fault == simrelay.TooBig {
		if !msg.TooBig || len(msg.Blocks) > 0 || len(msg.Ops) > 0 {
			t.Errorf("tooBig %t with %d bytes and %d ops", msg.TooBig, len(msg.Blocks), len(msg.Ops))
		}
		return true
	}
	data, err := record(&event, 0)
	_, refused := atdata.UnmarshalCBOR(data)
	switch fault {
	case simrelay.WrongCID, simrelay.MissingBlock:
		// The CAR reader checks each block's hash; only a wrong one stops it short.
		if err == nil || (err.Error() == "missing") != (fault == simrelay.MissingBlock) {
			t.Errorf("looking for the record: %v", err)
		}
		return true
	case simrelay.Float, simrelay.BadCBOR:
		if refused == nil {
			t.Error("indigo takes the record")
		}
	case simrelay.BadUTF8, simrelay.Trailing:
		// indigo takes these.
	}
	if err != nil {
		t.Errorf("looking for the record: %v", err)
	}
	if msg.Ops[1].Cid != nil {
		if _, err := record(&event, 1); err != nil {
			t.Errorf("looking for its sibling: %v", err)
		}
	}
	return true
}

func checkBehind(t *testing.T, fault simrelay.Fault, kind int, raw []byte, want [][]byte, at int) {
	t.Helper()
	var event events.XRPCStreamEvent
	err := event.Deserialize(bytes.NewReader(raw))
	ok := kind == websocket.BinaryMessage
	switch fault {
	case simrelay.Garbage, simrelay.GarbageBody:
		ok = ok && err != nil
	case simrelay.Truncated:
		ok = ok && err != nil && bytes.HasPrefix(want[at], raw)
	case simrelay.TextFrame:
		ok = kind == websocket.TextMessage
	case simrelay.Duplicate:
		ok = ok && bytes.Equal(raw, want[at])
	case simrelay.OldSeq:
		ok = ok && bytes.Equal(raw, want[at-1])
	case simrelay.ErrorFrame:
		ok = ok && err == nil && event.Error != nil
	case simrelay.UnknownType:
		ok = ok && bytes.Contains(raw, []byte("#future"))
	case simrelay.UnknownInfo:
		ok = ok && err == nil && event.RepoInfo != nil && event.RepoInfo.Name != "OutdatedCursor"
	case simrelay.Oversized:
		ok = ok && len(raw) > 5<<20
	default:
		t.Fatalf("no check for %s", fault)
	}
	if !ok {
		t.Errorf("behind the frame: kind %d, %d bytes, %v", kind, len(raw), err)
	}
}

// At a rate, every kind asked for turns up, and Expected agrees with what indigo can read.
func TestFaultRate(t *testing.T) {
	const total = 800
	relay, url := start(t, simrelay.Config{Seed: 22, Accounts: 30, Records: 10, Loop: 300, Total: total, Faults: simrelay.Faults{
		Rate: 0.2, Kinds: []simrelay.Fault{simrelay.WrongCID, simrelay.MissingBlock, simrelay.TooBig},
	}})
	conn := dial(t, url+"?cursor=0")
	lost := 0
	for seq := int64(first); seq < first+total; seq++ {
		_, event, err := next(conn)
		if err != nil {
			t.Fatal(err)
		}
		expected := relay.Expected(seq)
		if event.RepoCommit == nil {
			continue
		}
		for i, op := range event.RepoCommit.Ops {
			if op.Cid != nil {
				if _, err := record(event, i); err != nil {
					lost++
					continue
				}
			}
			if len(expected) == 0 || expected[0].Collection+"/"+expected[0].RKey != op.Path {
				t.Fatalf("seq %d: op %s can be read but is not expected", seq, op.Path)
			}
			expected = expected[1:]
		}
		if len(expected) > 0 && !errors.Is(err, io.EOF) {
			t.Fatalf("seq %d: %v is expected but cannot be read", seq, expected)
		}
	}
	if lost < total/20 {
		t.Errorf("only %d ops were lost", lost)
	}
}

func TestSetFaults(t *testing.T) {
	for _, loop := range []int{0, 100} {
		relay, url := start(t, simrelay.Config{Seed: 23, Accounts: 30, Loop: loop, Rate: 2000})
		conn := dial(t, url+"?cursor=0")
		for range 100 {
			if _, _, err := next(conn); err != nil {
				t.Fatal(err)
			}
		}
		from, err := relay.SetFaults(simrelay.Faults{Rate: 1, Kinds: []simrelay.Fault{simrelay.TooBig}})
		if err != nil {
			t.Fatal(err)
		}
		for seq := int64(first + 100); seq < from+100; seq++ {
			_, event, err := next(conn)
			if err != nil {
				t.Fatal(err)
			}
			if msg := event.RepoCommit; msg != nil && msg.TooBig && seq < from {
				t.Fatalf("loop=%d: a fault at %d, before %d", loop, seq, from)
			} else if msg != nil && !msg.TooBig && seq >= from && msg.Ops[0].Action != "delete" {
				t.Fatalf("loop=%d: no fault at %d, from %d on", loop, seq, from)
			} else if msg != nil && msg.TooBig != (relay.Expected(seq) == nil || len(relay.Expected(seq)) == 0) {
				t.Fatalf("loop=%d: tooBig %t, expected %v", loop, msg.TooBig, relay.Expected(seq))
			}
		}
		if _, err := relay.SetFaults(simrelay.Faults{Rate: 7}); err == nil {
			t.Error("a rate of 7 is not refused")
		}
	}
}

func TestCutAfter(t *testing.T) {
	for _, loop := range []int{0, 100} {
		_, url := start(t, simrelay.Config{Seed: 24, Accounts: 30, Loop: loop, Faults: simrelay.Faults{CutAfter: 70}})
		cursor := int64(first - 1)
		for range 3 {
			conn := dial(t, fmt.Sprintf("%s?cursor=%d", url, cursor))
			for range 70 {
				_, event, err := next(conn)
				if err != nil {
					t.Fatal(err)
				}
				if cursor++; event.Sequence() != cursor {
					t.Fatalf("seq %d, want %d", event.Sequence(), cursor)
				}
			}
			if _, _, err := next(conn); err == nil || websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway) {
				t.Fatalf("got %v, want a cut", err)
			}
		}
	}
}

func TestCut(t *testing.T) {
	relay, url := start(t, simrelay.Config{Seed: 25, Accounts: 30, Total: 10})
	conn := dial(t, url+"?cursor=0")
	for range 10 {
		if _, _, err := next(conn); err != nil {
			t.Fatal(err)
		}
	}
	relay.Cut()
	if _, _, err := next(conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want a cut", err)
	}
	if _, _, err := next(dial(t, url+"?cursor=0")); err != nil {
		t.Errorf("after the cut: %v", err)
	}
}

func TestStall(t *testing.T) {
	const d = 150 * time.Millisecond
	_, url := start(t, simrelay.Config{Seed: 26, Accounts: 30, Faults: simrelay.Faults{StallAfter: 5, StallFor: d}})
	conn := dial(t, url+"?cursor=0")
	begin := time.Now()
	for range 6 {
		if _, _, err := next(conn); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took < d-20*time.Millisecond {
		t.Errorf("the sixth frame came after %v", took)
	}

	relay, url := start(t, simrelay.Config{Seed: 26, Accounts: 30})
	relay.Stall(d)
	begin = time.Now()
	if _, _, err := next(dial(t, url+"?cursor=0")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < d-50*time.Millisecond {
		t.Errorf("the first frame came after %v", took)
	}
}

func TestPong(t *testing.T) {
	for _, mute := range []bool{false, true} {
		_, url := start(t, simrelay.Config{Seed: 27, Accounts: 30, Total: 1, Faults: simrelay.Faults{NoPong: mute}})
		conn := dial(t, url)
		pongs := make(chan string, 1)
		conn.SetPongHandler(func(data string) error { pongs <- data; return nil })
		go func() { // the frame may come before the pong
			for {
				if _, _, err := conn.ReadMessage(); err != nil {
					return
				}
			}
		}()
		if err := conn.WriteControl(websocket.PingMessage, []byte("hello"), time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		wait := time.Minute
		if mute {
			wait = 50 * time.Millisecond
		}
		select {
		case data := <-pongs:
			if mute || data != "hello" {
				t.Errorf("mute %t: pong %q", mute, data)
			}
		case <-time.After(wait):
			if !mute {
				t.Error("no pong")
			}
		}
	}
}
