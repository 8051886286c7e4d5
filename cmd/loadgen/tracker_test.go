package main

import (
	"fmt"
	"strings"
	"testing"
)

func eventAt(at int64) []byte {
	return fmt.Appendf(nil, `{"did":"did:plc:abcdefghijklmnopqrstuvwx","time_us":%d,"kind":"commit"}`, at)
}

// see feeds events and returns the first error.
func (t *tracker) see(at ...int64) error {
	for _, at := range at {
		event := eventAt(at)
		if err := t.saw(event, 2+len(event)); err != nil {
			return err
		}
	}
	return nil
}

func TestTrackerIsTheSameOverAnyConnections(t *testing.T) {
	once := tracker{last: 10}
	if got, want := once.resume(), int64(10); got != want {
		t.Errorf("the first cursor is %d, want %d", got, want)
	}
	if err := once.see(10, 11, 12, 15, 20); err != nil {
		t.Fatal(err)
	}
	often := tracker{last: 10}
	for _, events := range [][]int64{{}, {10}, {10, 11}, {11}, {}, {11, 12, 15}, {15, 20}} {
		often.resume()
		if err := often.see(events...); err != nil {
			t.Fatal(err)
		}
	}
	if often != once {
		t.Errorf("got %+v, want %+v", often, once)
	}
	if once.count != 4 || once.last != 20 {
		t.Errorf("got %d events until %d, want 4 until 20", once.count, once.last)
	}
}

func TestTrackerTellsStreamsApart(t *testing.T) {
	var a, b, c tracker
	a.see(1, 2, 4)
	b.see(1, 3, 4)
	c.saw(eventAt(1), 100)
	c.saw(eventAt(2), 101)
	c.saw(eventAt(4), 100)
	if a == b || a == c {
		t.Errorf("%+v, %+v and %+v are the same", a, b, c)
	}
}

func TestTrackerFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		resume bool
		events []int64
		want   string
	}{
		{"twice", false, []int64{11, 11}, "time_us 11 came after 11"},
		{"backwards", false, []int64{11, 12, 11}, "time_us 11 came after 12"},
		{"the cursor's event is missing", true, []int64{11}, "resumed at cursor 10, but 11 came first"},
		{"the cursor's event comes twice", true, []int64{10, 10}, "time_us 10 came after 10"},
	} {
		track := tracker{last: 10}
		if c.resume {
			track.resume()
		}
		if err := track.see(c.events...); err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	var track tracker
	if err := track.saw([]byte(`{"kind":"commit"}`), 19); err == nil || !strings.Contains(err.Error(), "without time_us") {
		t.Errorf("got %v, want an error that time_us is missing", err)
	}
	if got := track.resume(); got != 0 || track.again {
		t.Errorf("a consumer without a cursor resumes at %d, want 0", got)
	}
}
