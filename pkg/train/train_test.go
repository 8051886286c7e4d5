package train_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"slipstream/pkg/event"
	"slipstream/pkg/train"
)

const secret = "somebody-s.own.words"

// madeUp returns n v1 events. Each author has a text of their own, and one text is one author's
// again and again.
func madeUp(n int) (events [][]byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	letters := func(of string, n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = of[rng.IntN(len(of))]
		}
		return string(b)
	}
	did := func() string { return "did:plc:" + letters("abcdefghijklmnopqrstuvwxyz234567", 24) }
	cid := func() string { return "bafyrei" + letters("abcdefghijklmnopqrstuvwxyz234567", 52) }
	tid := func() string { return "3n" + letters("234567abcdefghijklmnopqrstuvwxyz", 11) }
	cursor := event.Cursor(1_795_651_200_000_000)
	author := did()
	for i := range n {
		cursor += event.Cursor(rng.IntN(1_000_000))
		if rng.IntN(4) > 0 {
			author = did()
		}
		var collection, record string
		switch i % 10 {
		case 0:
			collection = "app.bsky.feed.post"
			record = fmt.Sprintf(`{"text":"%s %s","$type":"app.bsky.feed.post","langs":["en"],"tags":["famous.example.com"],"createdAt":"2026-11-26T01:02:03.%03dZ"}`, letters("abc", 20), author, rng.IntN(1000))
		case 1:
			collection = "app.bsky.graph.follow"
			record = fmt.Sprintf(`{"$type":"app.bsky.graph.follow","subject":"%s","createdAt":"2026-11-26T01:02:03.%03dZ"}`, did(), rng.IntN(1000))
		case 2:
			collection = "org.example.thing"
			record = fmt.Sprintf(`{"n":%d,"$type":"org.example.thing","state":"org.example.thing#usual","%s":"a"}`, rng.IntN(100_000), strings.Repeat("key", 20))
		case 3:
			author = "did:plc:234567234567234567234567"
			collection = "org.example.note"
			record = fmt.Sprintf(`{"$type":"org.example.note","about":"%s","link":"https://example.com/%s"}`, secret, secret)
		default:
			collection = "app.bsky.feed.like"
			record = fmt.Sprintf(`{"$type":"app.bsky.feed.like","subject":{"cid":"%s","uri":"at://%s/app.bsky.feed.post/%s"},"createdAt":"2026-11-26T01:02:03.%03dZ"}`, cid(), did(), tid(), rng.IntN(1000))
		}
		events = append(events, fmt.Appendf(nil, `{"did":"%s","time_us":%d,"kind":"commit","commit":{"rev":"%s","operation":"create","collection":"%s","rkey":"%s","record":%s,"cid":"%s"}}`,
			author, cursor, tid(), collection, tid(), record, cid()))
	}
	return events
}

func sourceOf(t testing.TB, events [][]byte) *train.Source {
	t.Helper()
	s := &train.Source{Name: "made up"}
	if err := s.AddJSON(bytes.NewReader(bytes.Join(events, []byte("\n")))); err != nil {
		t.Fatal(err)
	}
	return s
}

func needLibzstd(t testing.TB) {
	if err := train.Available(); err != nil {
		t.Skip(err)
	}
}

// A dictionary makes little of events that it has not seen, on both wires; the same events make
// the same one, whatever order they come in; and of what is somebody's own nothing is in it.
func TestTrain(t *testing.T) {
	needLibzstd(t)
	const id = 20991231
	params := train.Params{Size: 16_000, Whole: 0.001}
	events := madeUp(3000)
	trainer, err := train.New([]*train.Source{sourceOf(t, events)})
	if err != nil {
		t.Fatal(err)
	}
	d, err := trainer.Train(id, params)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := event.DictionaryID(d); got != id || err != nil {
		t.Errorf("id %d, %v", got, err)
	}
	r, err := trainer.Try(params)
	if err != nil {
		t.Fatal(err)
	}
	all := r.All()
	if v1, v2 := all.Live(0), all.Live(1); v1 > 0.42 || v2 > 0.42 {
		t.Errorf("events that were held back come in %.3f and %.3f of their JSON", v1, v2)
	}
	n := 0
	for _, s := range all {
		n += s.Events
	}
	if n != len(events) || trainer.Events() != n {
		t.Errorf("%d events were held back in turn, of %d", n, len(events))
	}
	for _, e := range events {
		did := e[event.DIDOffset+len("did:plc:"):][:24]
		if bytes.Contains(d, did) || bytes.Contains(d, e[len(e)-24:len(e)-3]) {
			t.Fatalf("the dictionary knows an identifier of %s", e)
		}
	}
	for _, own := range []string{secret, "example.com", strings.Repeat("key", 20), "org.example.note", "famous"} {
		if bytes.Contains(d, []byte(own)) {
			t.Errorf("the dictionary has %q in it", own)
		}
	}
	for _, common := range []string{`"langs":["en"]`, `"org.example.thing#usual"`, "subscribeEvents#commit"} {
		if !bytes.Contains(d, []byte(common)) {
			t.Errorf("the dictionary does not have %s in it", common)
		}
	}

	rand.New(rand.NewPCG(3, 4)).Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	trainer, err = train.New([]*train.Source{sourceOf(t, events)})
	if err != nil {
		t.Fatal(err)
	}
	again, err := trainer.Train(id, params)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, d) {
		t.Error("the same events make another dictionary")
	}
}

func TestRefused(t *testing.T) {
	good := string(madeUp(1)[0])
	for _, c := range []struct{ name, line, want string }{
		{"no JSON", "hello", "line 2: no v1 event: invalid character"},
		{"cut", good[:len(good)-1], "line 2: no v1 event: unexpected end"},
		{"v2", `{"$type":"message","payload":{}}`, "line 2: no v1 event as Slipstream writes it: did"},
		{"another order", strings.Replace(good, `"operation":"create",`, "", 1), "collection"},
		{"another kind", strings.Replace(good, `"kind":"commit"`, `"kind":"info"`, 1), "kind"},
	} {
		err := new(train.Source).AddJSON(strings.NewReader(good + "\n" + c.line + "\n"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	for name, car := range map[string][]byte{"empty": nil, "text": []byte("hello, this is no CAR"), "zeroes": make([]byte, 100)} {
		if err := new(train.Source).AddCAR(car); err == nil {
			t.Errorf("a CAR of %s was taken", name)
		}
	}
	for name, frames := range map[string][]byte{"text": []byte("hello, no frames"), "cut": {200, 0, 0, 0, 1}, "zeroes": make([]byte, 100)} {
		if err := new(train.Source).AddFrames(frames); err == nil {
			t.Errorf("frames of %s were taken", name)
		}
	}
	if train.Available() == nil {
		if _, err := train.New([]*train.Source{sourceOf(t, madeUp(50))}); err == nil {
			t.Error("50 events were enough")
		}
		one := sourceOf(t, madeUp(3000))
		one.One = true
		if _, err := train.New([]*train.Source{one}); err == nil {
			t.Error("a repo was enough, of which none can be held back")
		}
	}
}

// Of more events than are kept it is a sample, the same in any order.
func TestSample(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	events := madeUp(train.MaxEvents + 1000)
	var got [2]map[string]bool
	for i := range got {
		s := sourceOf(t, events)
		if got[i] = map[string]bool{}; len(s.Events()) != train.MaxEvents {
			t.Fatalf("%d events, want %d", len(s.Events()), train.MaxEvents)
		}
		for _, e := range s.Events() {
			got[i][string(e.V1)] = true
		}
		rand.New(rand.NewPCG(3, 4)).Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	}
	for e := range got[0] {
		if !got[1][e] {
			t.Fatal("another order makes another sample")
		}
	}
}

func shared(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "data", name))
	if err != nil {
		return nil
	}
	return b
}

// realEvents are the captured events as we render them; nil where they are not present.
func realEvents(t testing.TB) []train.Event {
	t.Helper()
	packed := shared(t, "frames/real-50.bin.zst")
	if packed == nil {
		return nil
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	b, err := dec.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &train.Source{Name: "real-50"}
	if err := s.AddFrames(b); err != nil {
		t.Fatal(err)
	}
	return s.Events()
}

// repoEvents are the records of real repos in made-up envelopes; nil where they are not present.
func repoEvents(t testing.TB) (events []train.Event) {
	t.Helper()
	for _, name := range []string{"calabro", "dart", "microcosm-little"} {
		if car := shared(t, "records/"+name+".car"); car != nil {
			s := &train.Source{Name: name, One: true}
			if err := s.AddCAR(car); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			events = append(events, s.Events()...)
		}
	}
	return events
}

// Real repos and frames are read, and their records are by as many authors.
func TestReal(t *testing.T) {
	events := repoEvents(t)
	if events == nil {
		t.Skip("the shared test data is not here")
	}
	dids := map[string]bool{}
	for _, e := range events {
		dids[string(e.V1[event.DIDOffset:][:32])] = true
	}
	if len(events) < 7000 || len(dids) != len(events) {
		t.Errorf("%d events of %d authors", len(events), len(dids))
	}
	if got := len(realEvents(t)); got != 50 {
		t.Errorf("%d real events, want 50", got)
	}
}
