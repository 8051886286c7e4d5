package ingest

import (
	"reflect"
	"testing"
	"time"

	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
)

// Where a stream begins depends on what is stored, by this version or an older one, and on which
// relays there are now.
func TestResume(t *testing.T) {
	at := time.Date(2026, 7, 4, 12, 0, 0, 0, time.UTC)
	b := firehose.Relay{URL: "b", Samples: []firehose.Position{{Seq: 7, Time: at}}}
	c := firehose.Relay{URL: "c", Last: &firehose.Position{Seq: 9, Time: at}}
	from := firehose.Seq(3)
	live, known := firehose.Start{Live: true}, firehose.Start{Cursor: 5, Known: true}
	for i, x := range []struct {
		stored         string
		urls           []string
		from, override *firehose.Seq
		want           firehose.Resume
		reached        bool
	}{
		{``, []string{"a"}, nil, nil, firehose.Resume{Start: live, Relays: []firehose.Relay{{URL: "a"}}}, false},
		{``, []string{"a"}, &from, nil, firehose.Resume{Start: firehose.Start{Cursor: 3}, Relays: []firehose.Relay{{URL: "a"}}}, false},
		{`{"url":"a","seq":5}`, []string{"a"}, &from, nil, firehose.Resume{Start: known, Relays: []firehose.Relay{{URL: "a"}}}, false}, // nor are there events
		{`{"url":"a","seq":5,"time":"2026-07-04T12:00:00Z","relays":[{"url":"b","samples":[{"seq":7,"time":"2026-07-04T12:00:00Z"}]},{"url":"c","last":{"seq":9,"time":"2026-07-04T12:00:00Z"}}]}`,
			[]string{"c", "a", "b"}, nil, nil, firehose.Resume{Active: 1, Start: known, Relays: []firehose.Relay{c, {URL: "a"}, b}}, true},
		{`{"url":"x","seq":5}`, []string{"a", "b"}, nil, nil, firehose.Resume{Start: live, Relays: []firehose.Relay{{URL: "a"}, {URL: "b"}}}, false},
		{`{"url":"x","seq":5}`, []string{"a"}, &from, nil, firehose.Resume{Start: firehose.Start{Cursor: 3}, Relays: []firehose.Relay{{URL: "a"}}}, false},
		// The relay was taken off the list; another is known.
		{`{"url":"a","seq":5,"time":"2026-07-04T12:00:00Z","relays":[{"url":"a"},{"url":"b","samples":[{"seq":7,"time":"2026-07-04T12:00:00Z"}]}]}`,
			[]string{"b"}, &from, nil, firehose.Resume{Active: -1, Start: live, Relays: []firehose.Relay{b}}, true},
		{`{"url":"a","seq":5,"time":"2026-07-04T12:00:00Z"}`, []string{"a", "b"}, nil, &from,
			firehose.Resume{Start: firehose.Start{Cursor: 3}, Relays: []firehose.Relay{{URL: "a", Last: &firehose.Position{Seq: 5, Time: at}}, {URL: "b"}}}, true},
	} {
		log, err := eventlog.Open(eventlog.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		if x.stored != "" {
			if err := log.Append(t.Context(), nil, []byte(x.stored)); err != nil {
				t.Fatal(err)
			}
		}
		in := New(Config{Log: log, Upstreams: firehose.NewUpstreams(firehose.UpstreamsConfig{URLs: x.urls}), From: x.from, Override: x.override})
		s, got, err := in.newSequencer()
		if err != nil {
			t.Fatal(err)
		}
		// The overlap of a switch may not be over, whichever relay it is that goes on.
		if watching := s.recent.seen != nil; len(x.urls) > 1 && !watching {
			t.Errorf("%d: repeats are not looked out for", i)
		}
		if reached := got.Reached(); !reached.IsZero() != x.reached {
			t.Errorf("%d: reached %v", i, reached)
		}
		if got.Reached = nil; !reflect.DeepEqual(got, x.want) {
			t.Errorf("%d: got %+v, want %+v", i, got, x.want)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The time of a stream is that of most of its frames, whatever the clocks of single ones.
func TestClockIgnoresOddOnes(t *testing.T) {
	var c clock
	now := time.Date(2026, 7, 4, 12, 0, 0, 0, time.UTC)
	for i := range 1000 {
		at := now.Add(time.Duration(i) * time.Second)
		switch i % 5 {
		case 1:
			c.add(time.Unix(0, 0))
		case 3:
			c.add(at.AddDate(500, 0, 0)) // beyond what fits in nanoseconds
		default:
			c.add(at)
		}
		if d := at.Sub(c.median()); i > 20 && (d < 0 || d > 15*time.Second) {
			t.Fatalf("%d: off by %s", i, d)
		}
	}
}
