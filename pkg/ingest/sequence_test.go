package ingest

import (
	"testing"
	"time"

	"slipstream/pkg/firehose"
)

func newTestSequencer() *sequencer {
	return &sequencer{in: New(Config{Upstreams: oneUpstream("")}), seq: -1, stored: -1, recent: recent{size: recentFrames}}
}

// Within one sequence of numbers a frame goes out once, whatever the order in which
// repeats come.
func TestAdmitDropsRepeats(t *testing.T) {
	s := newTestSequencer()
	for i, c := range []struct {
		frame decoded
		want  bool
	}{
		{decoded{seq: 5, id: 1}, true},
		{decoded{seq: 5, id: 1}, false},
		{decoded{seq: 6, id: 2}, true},
		{decoded{seq: 5, id: 1}, false},
		{decoded{seq: 7, bad: true}, false}, // not parsed: its number is not believed either
		{decoded{seq: 7, id: 2}, true},      // the same rev under another number is the relay's business
		{decoded{seq: 1 << 60, id: 3, leap: true}, true},
		{decoded{seq: 8, id: 4}, true},            // a leap is no position
		{decoded{seq: 3, id: 4, epoch: 1}, false}, // another sequence: known by what it holds
		{decoded{seq: 4, id: 5, epoch: 1}, true},
		{decoded{seq: 5, id: 0, epoch: 1}, true}, // without a rev there is nothing to compare
	} {
		if got := s.admit(&c.frame); got != c.want {
			t.Errorf("frame %d: admitted %v, want %v", i, got, c.want)
		}
	}
	if s.seq != 5 {
		t.Errorf("position %d, want 5", s.seq)
	}
}

// A number that was wrong and far ahead does not make the relay's frames look old for ever.
func TestAdmitRecovers(t *testing.T) {
	s := newTestSequencer()
	s.admit(&decoded{seq: 1 << 60, id: 1})
	lost := 0
	for seq := firehose.Seq(1); seq <= 2*repeatLimit; seq++ {
		if !s.admit(&decoded{seq: seq, id: uint64(seq) + 10}) {
			lost++
		}
	}
	if lost >= repeatLimit || s.seq != 2*repeatLimit {
		t.Errorf("%d frames lost, position %d", lost, s.seq)
	}
}

// Repeats are known from the frames before a watch, and what is remembered is bounded.
func TestRecent(t *testing.T) {
	r := recent{size: recentFrames}
	for id := uint64(1); id <= 3*recentFrames; id++ {
		if r.add(id) {
			t.Fatalf("%d is a repeat", id)
		}
	}
	if r.seen != nil || len(r.ring) != recentFrames {
		t.Errorf("a set of %d and %d ids, want none and %d", len(r.seen), len(r.ring), recentFrames)
	}
	if !r.has(3*recentFrames) || r.has(1) {
		t.Error("has is wrong")
	}
	r.watch()
	if !r.add(3*recentFrames) || !r.add(2*recentFrames+1) {
		t.Error("a repeat was not found")
	}
	if r.add(1) {
		t.Error("the first id is still there")
	}
	for id := uint64(4 * recentFrames); id < 5*recentFrames-2; id++ {
		if r.add(id) {
			t.Fatalf("%d is a repeat", id)
		}
	}
	if len(r.seen) != recentFrames || len(r.ring) != recentFrames || !r.add(1) {
		t.Errorf("a set of %d and %d ids, want %d", len(r.seen), len(r.ring), recentFrames)
	}
	r.add(2) // the last that could push one of before the watch out
	if r.seen != nil || r.add(1) {
		t.Error("it watches for ever")
	}
}

// The queue hands batches out in order, bounded, and gives the rest out after its close.
func TestQueueKeepsOrder(t *testing.T) {
	q := newQueue(3)
	ordered := make(chan *batch, 3)
	for seq := range firehose.Seq(150) {
		if err := q.put(firehose.Frame{Seq: seq, Body: make([]byte, 10)}); err != nil {
			t.Fatal(err)
		}
	}
	q.close()
	next := firehose.Seq(0)
	for b := q.take(ordered); b != nil; b = q.take(ordered) {
		if len(b.frames) > batchFrames {
			t.Fatalf("a batch of %d frames", len(b.frames))
		}
		if got := <-ordered; got != b {
			t.Fatal("another batch is next in order")
		}
		for _, f := range b.frames {
			if f.Seq != next {
				t.Fatalf("seq %d, want %d", f.Seq, next)
			}
			next++
		}
		q.release(b)
	}
	if next != 150 || q.bytes != 0 {
		t.Errorf("%d frames came out, %d bytes are left", next, q.bytes)
	}
}

// Decoding allocates nothing per frame once the buffers have grown.
func TestDecodeAllocs(t *testing.T) {
	frames := simulatedFrames(t, 300)
	d := decoder{in: &Ingester{metrics: newMetrics(nil)}}
	x := &batch{frames: frames}
	d.batch(x)
	if n := testing.AllocsPerRun(10, func() { d.batch(x) }); n > float64(len(frames))/10 {
		t.Errorf("%v allocations for %d frames", n, len(frames))
	}
	if len(x.events) < len(frames) {
		t.Errorf("%d events of %d frames", len(x.events), len(frames))
	}
}

// Making a chunk allocates what it keeps, not something for each event.
func TestEncodeAllocs(t *testing.T) {
	r, compressor := benchRun(t, simulatedFrames(t, 500))
	e := encoder{compressor: always(compressor)}
	chunk := func() {
		if _, err := e.chunk(r); err != nil {
			t.Fatal(err)
		}
	}
	chunk()
	// About 30, and a few times that under the race detector, where pools forget on purpose.
	if n := testing.AllocsPerRun(10, chunk); n > float64(len(r.events))/2 {
		t.Errorf("%v allocations for %d events", n, len(r.events))
	}
}

// A stream's beginning ends, although the clock of its first frames was ahead.
func TestBeginningEnds(t *testing.T) {
	u := firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: []string{"a", "b"}})
	now := time.Now()
	s := &sequencer{
		in: New(Config{Upstreams: u, Now: func() time.Time { return now.AddDate(2, 0, 0) }}), seq: -1, stored: -1,
		recent: recent{size: recentFrames}, beginning: &beginning{revs: map[uint64]string{}},
	}
	for range 3 {
		s.batch(&batch{newest: now.AddDate(1, 0, 0)})
	}
	for i := range 1000 {
		s.batch(&batch{newest: now.Add(time.Duration(i) * time.Second)})
	}
	if s.beginning != nil {
		t.Errorf("a quarter of an hour later it still is the beginning, of %s", s.began)
	}
}
