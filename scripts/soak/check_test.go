package soak

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
)

// ledger is a relay's, one event for each seq.
type ledger []simrelay.Expected

func (l ledger) LastSeq() int64 { return simrelay.DefaultFirstSeq + int64(len(l)) - 1 }

func (l ledger) Expected(seq int64) []simrelay.Expected {
	i := seq - simrelay.DefaultFirstSeq
	return l[i : i+1]
}

// TestChecker: what checks the soak's consumers sees each thing that can be wrong with a stream,
// and nothing wrong with those that are right. Streams are written as letters, one for each event:
// a's and b's are commits of two collections; filters are the letters that are wanted.
func TestChecker(t *testing.T) {
	const (
		stream = "abaabbaabb"
		age    = 30 * time.Second // of the first event; the others follow by a second each
	)
	began := time.Now().Add(-age)
	at := func(i int) int64 { return began.Add(time.Duration(i) * time.Second).UnixMicro() }
	message := func(i, rev int, letter byte) []byte {
		return fmt.Appendf(nil, `{"did":"did:plc:%c","time_us":%d,"kind":"commit","commit":{"rev":"%d","operation":"create","collection":"x.y.%c","rkey":"k","cid":"c"}}`, letter, at(i), rev, letter)
	}
	make := func(ttl time.Duration) *truth {
		var l ledger
		for i := range len(stream) {
			l = append(l, simrelay.Expected{Kind: "commit", DID: fmt.Sprintf("did:plc:%c", stream[i]), Rev: fmt.Sprint(i), Action: "create", Collection: fmt.Sprintf("x.y.%c", stream[i]), RKey: "k", CID: "c"})
		}
		tr := newTruth(nil, ttl, nil)
		tr.relay = l
		for i := range len(stream) {
			if err := tr.witness(at(i), v1, message(i, i, stream[i])); err != nil {
				t.Fatal(err)
			}
		}
		if !tr.complete() {
			t.Fatal("the truth is not complete")
		}
		return tr
	}
	wants := func(letters string) filter {
		f := filter{}
		for _, c := range letters {
			f.collections = append(f.collections, "x.y."+string(c))
		}
		return f
	}
	// Steps: a number is an event that comes; "live", "start" and "resume" are new connections; ">b"
	// asks for another filter.
	for _, c := range []struct {
		steps string
		first string // filter
		ttl   time.Duration
		wrong string // "": nothing
	}{
		{steps: "live 3 4 5 6", ttl: time.Hour},
		{steps: "live 3 5", ttl: time.Hour, wrong: "lost"},
		{steps: "live 3 4 4", ttl: time.Hour, wrong: "comes after"},
		{steps: "live 3 4 2", ttl: time.Hour, wrong: "comes after"},
		{steps: "start 0 1 2", ttl: time.Hour},
		{steps: "start 2", ttl: time.Hour, wrong: "lost"},
		{steps: "start 2", ttl: age - 1500*time.Millisecond},
		{steps: "start 2", ttl: age - 500*time.Millisecond, wrong: "lost"},
		{steps: "live 3 resume 3 4", ttl: time.Hour},
		{steps: "live 3 resume 4", ttl: time.Hour, wrong: "lost"},
		{steps: "live 3 resume 2", ttl: time.Hour, wrong: "comes first"},
		{steps: "live 3 resume 3 3", ttl: time.Hour, wrong: "comes after"},
		{steps: "start 0 2 3 6 7", first: "a", ttl: time.Hour},
		{steps: "start 0 3", first: "a", ttl: time.Hour, wrong: "lost"},
		{steps: "start 0 1", first: "a", ttl: time.Hour, wrong: "does not want"},
		{steps: "live 1", first: "a", ttl: time.Hour, wrong: "does not want"},
		// The turn may be anywhere, but once.
		{steps: "start 0 >b 1 4 5", first: "a", ttl: time.Hour},
		{steps: "start 0 >b 2 4 5", first: "a", ttl: time.Hour},
		{steps: "start 0 >b 2 3 4 5 8", first: "a", ttl: time.Hour},
		{steps: "start 0 >b 2 3 5 8", first: "a", ttl: time.Hour},
		{steps: "start 0 >b 2 3 9", first: "a", ttl: time.Hour, wrong: "neither"},
		{steps: "start 0 >b 3", first: "a", ttl: time.Hour, wrong: "neither"},
		{steps: "start 0 >b 4 5", first: "a", ttl: time.Hour},
		{steps: "start 0 >b 5", first: "a", ttl: time.Hour, wrong: "neither"},
		{steps: "start 0 >b 1 2", first: "a", ttl: time.Hour, wrong: "does not want"},
		{steps: "start 0 >ab 1 2 3 4", first: "a", ttl: time.Hour},
		{steps: "start 0 >ab 2 3 4", first: "a", ttl: time.Hour},
		{steps: "start 0 >ab 2 4", first: "a", ttl: time.Hour, wrong: "neither"},
		// A new connection has the new filter.
		{steps: "start 0 >b resume 1 4", first: "a", ttl: time.Hour},
		{steps: "start 0 >b resume 2", first: "a", ttl: time.Hour, wrong: "does not want"},
	} {
		check := &checker{truth: make(c.ttl), filter: wants(c.first), pos: -1}
		got := ""
		for step := range strings.FieldsSeq(c.steps) {
			switch {
			case step == "live":
				check.connects(false)
			case step == "start" || step == "resume":
				check.connects(true)
			case step[0] == '>':
				check.turn(wants(step[1:]))
			default:
				i := int(step[0] - '0')
				if err := check.took(message(i, i, stream[i]), time.Now()); err != nil {
					got += err.Error()
				}
			}
		}
		if (got == "") != (c.wrong == "") || !strings.Contains(got, c.wrong) {
			t.Errorf("%s, filter %q, kept for %s: got %q, want %q", c.steps, c.first, c.ttl, got, c.wrong)
		}
	}
	check := &checker{truth: make(time.Hour), pos: -1}
	check.connects(true)
	if err := check.took(message(0, 7, 'a'), time.Now()); err == nil {
		t.Error("other bytes for an event are not seen")
	}
	if check.pos = 8; check.atEnd() {
		t.Error("a lost end is not seen")
	}
	if check.pos, check.filter = 7, wants("a"); !check.atEnd() {
		t.Error("the end of what is wanted is not seen")
	}
	check.turn(wants("b"))
	if !check.atEnd() {
		t.Error("a turn behind the end is not seen")
	}
	if check.pos = 6; check.atEnd() {
		t.Error("a lost end is not seen before a turn")
	}
	check.connects(true)
	if check.pos = 9; !check.atEnd() {
		t.Error("the end is not seen")
	}
	if err := check.fallen(time.Now()); err == nil {
		t.Error("falling off a buffer that holds everything is not seen")
	}
	tr := make(time.Second)
	tr.base, tr.entries = 5, tr.entries[5:]
	check = &checker{truth: tr, pos: 2, us: at(2)}
	check.connects(true)
	if err := check.took(message(6, 6, 'a'), time.Now()); err != nil || check.skipped != 1 {
		t.Errorf("a consumer that comes back when even the truth has forgotten where it was: %v, %d skipped", err, check.skipped)
	}
	if err := check.fallen(time.Now()); err != nil {
		t.Error(err)
	}
	tr = make(time.Hour)
	if err := tr.witness(at(10), v1, message(10, 10, 'a')); err == nil {
		t.Error("an event that the relay has not sent is not seen")
	}
}

// TestGrown: what grows is seen, what wavers is not.
func TestGrown(t *testing.T) {
	for _, c := range []struct {
		what string
		grow func(i int, l *look, disk *int64)
		want string // "": nothing
	}{
		{"nothing", func(int, *look, *int64) {}, ""},
		{"it wavers", func(i int, l *look, disk *int64) {
			wave := float64(i % 3)
			l.goroutines, l.descriptors, l.heap, l.rss, *disk = 60+4*wave, 50+6*wave, 30+5*wave, 90+9*wave, 90e6+int64(10e6*wave)
		}, ""},
		{"it warms up", func(i int, l *look, disk *int64) { l.rss, *disk = 60+30*min(float64(i), 1), 70e6+20e6*min(int64(i), 1) }, ""},
		{"goroutines", func(i int, l *look, _ *int64) { l.goroutines += float64(i) }, "goroutines have grown"},
		{"descriptors", func(i int, l *look, _ *int64) { l.descriptors += 2 * float64(i) }, "descriptors have grown"},
		{"heap", func(i int, l *look, _ *int64) { l.heap += float64(i) }, "MB of heap have grown"},
		{"memory", func(i int, l *look, _ *int64) { l.rss += 3 * float64(i) }, "MB resident have grown"},
		{"disk", func(i int, _ *look, disk *int64) { *disk += 10e6 * int64(i) }, "the data dir has grown"},
	} {
		var looks []look
		var disk []int64
		for i := range 12 {
			l, d := look{goroutines: 60, descriptors: 50, heap: 30, rss: 90}, int64(90e6)
			c.grow(i, &l, &d)
			looks, disk = append(looks, l), append(disk, d)
		}
		got := strings.Join(grown(looks, disk), "; ")
		if (got == "") != (c.want == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
}
