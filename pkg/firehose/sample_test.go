package firehose

import (
	"testing"
	"time"
)

// Whatever the age of samples, of those that are kept one is the newest that would have been
// resumed from, or the oldest there was.
func TestSamplesAreThinned(t *testing.T) {
	at := func(i int) time.Time { return time.Unix(int64(i)*60, 0) }
	for _, late := range []int{0, 1, 2, 5, 100, 1000} { // minutes that the stream is behind
		var r relay
		for i := range 500 {
			until := at(max(0, i-late-2))
			r.add(Position{Seq: Seq(i * 1000), Time: at(i)}, until)
			if len(r.samples) > keepSamples {
				t.Fatalf("%d samples", len(r.samples))
			}
			p, ok := newest(&r, until, time.Now())
			if !ok {
				t.Fatalf("late by %d, %d: nothing to resume from", late, i)
			}
			// Thinning while the stream stands still loses precision, never the position.
			if behind := until.Sub(p.Time); behind < 0 || late < 5 && behind > time.Minute {
				t.Fatalf("late by %d, %d: resumed %s before", late, i, behind)
			}
		}
	}
}

// A clock that is wrong does not make a sample older than those before it; numbers that fall end
// the life of those before.
func TestSamplesOfOddRelays(t *testing.T) {
	minute := func(n int) time.Time { return time.Unix(int64(n)*60, 0) }
	var r relay
	for i, m := range []int{10, 11, 3, 12, 13} {
		r.add(Position{Seq: Seq(i + 1), Time: minute(m)}, minute(8))
	}
	for until, want := range map[int]Seq{9: 0, 10: 1, 11: 3, 12: 4, 20: 5} {
		if p, _ := newest(&r, minute(until), time.Now()); p.Seq != want {
			t.Errorf("until %d: %d, want %d", until, p.Seq, want)
		}
	}
	// One far ahead spoils those behind it, not those before; the last frame always serves.
	r.add(Position{Seq: 6, Time: minute(9999)}, minute(8))
	r.add(Position{Seq: 7, Time: minute(14)}, minute(8))
	if p, ok := newest(&r, minute(20), time.Now()); !ok || p.Seq != 5 {
		t.Errorf("%v, want 5", p)
	}
	r.last = &Position{Seq: 6, Time: minute(19)}
	if p, ok := newest(&r, minute(20), time.Now()); !ok || p.Seq != 6 {
		t.Errorf("%v, want 6", p)
	}
	r.add(Position{Seq: 2, Time: minute(20)}, minute(18))
	if r.last != nil || len(r.samples) != 3 || r.samples[2].Seq != 2 {
		t.Errorf("after new numbers: %v, %v", r.last, r.samples)
	}
}

// What a standby sent when the active relay had failed already is not behind anything that the
// active one sent, however old it says that it is.
func TestSampleAfterTheFailure(t *testing.T) {
	failed := time.Now()
	var r relay
	r.add(Position{Seq: 100, Time: failed.Add(-3 * time.Minute)}, failed.Add(-2*time.Minute))
	r.samples[0].seen = failed.Add(-time.Minute)
	r.add(Position{Seq: 500, Time: failed.Add(-time.Hour)}, failed.Add(-2*time.Minute))
	if p, ok := newest(&r, failed.Add(-2*time.Minute), failed); !ok || p.Seq != 100 {
		t.Errorf("resumed after %d, %v", p.Seq, ok)
	}
}
