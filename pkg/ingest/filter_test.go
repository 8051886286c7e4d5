package ingest

import (
	"bytes"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
)

// collections is a set of what the texts name.
func collections(t testing.TB, texts ...string) (set event.Collections) {
	for _, text := range texts {
		if err := set.Add(text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	return set
}

func TestExcludes(t *testing.T) {
	for _, c := range []struct {
		collections, exclude []string
		in, out              []string
	}{
		{[]string{"a.b.c", "x.*"}, nil, []string{"a.b.c", "x.y.z", "x.y.z.z"}, []string{"a.b.d", "a.b.c.d", "a.b.cc", "xx.y.z"}},
		{nil, []string{"a.b.c", "x.*"}, []string{"a.b.d", "a.b.c.d", "xx.y.z"}, []string{"a.b.c", "x.y.z"}},
		{[]string{"x.*"}, []string{"x.y.*", "x.z.z"}, []string{"x.a.a", "x.yy.a", "x.z.a"}, []string{"x.y.a", "x.z.z", "a.b.c"}},
		{nil, nil, []string{"a.b.c"}, nil},
	} {
		f := Filter{Collections: collections(t, c.collections...), ExcludeCollections: collections(t, c.exclude...)}
		for _, name := range slices.Concat(c.in, c.out) {
			if got, want := !f.excludes([]byte(name)), slices.Contains(c.in, name); got != want {
				t.Errorf("%+v: %s: %v, want %v", f, name, got, want)
			}
		}
	}
	in := New(Config{Upstreams: oneUpstream(""), Filter: Filter{NoIdentity: true}})
	if d := newDecoder(in); d.commit.Skip != nil {
		t.Error("collections are looked at without need")
	}
}

// What is excluded is not there, the rest is as it was, byte for byte; and it costs nothing that
// is allocated, and little time.
func TestFilter(t *testing.T) {
	frames := simulatedFrames(t, 1000)
	reg := prometheus.NewRegistry()
	decode := func(f Filter, reg prometheus.Registerer) (*batch, *Ingester) {
		in := New(Config{Upstreams: oneUpstream(""), Filter: f, Registerer: reg})
		d := newDecoder(in)
		b := &batch{frames: slices.Clone(frames)}
		d.batch(b)
		return b, in
	}
	each := func(b *batch, f func(kind event.Kind, collection string, payload []byte)) {
		json := b.json
		for _, e := range b.events {
			var payload []byte
			if e.kind != event.KindSync {
				payload, json = event.Payload(json[:e.size]), json[e.size:]
			}
			f(e.kind, string(payload[e.collectionOff:][:e.collectionLen]), payload)
		}
	}
	all, _ := decode(Filter{}, nil)
	filter := Filter{Collections: collections(t, "app.bsky.feed.*"), ExcludeCollections: collections(t, "app.bsky.feed.like"), NoIdentity: true}
	some, in := decode(filter, reg)
	var want, got [][]byte
	kinds := map[event.Kind]int{}
	each(all, func(kind event.Kind, collection string, payload []byte) {
		if kind == event.KindIdentity || kind == event.KindCommit &&
			(!bytes.HasPrefix([]byte(collection), []byte("app.bsky.feed.")) || collection == "app.bsky.feed.like") {
			return
		}
		kinds[kind]++
		want = append(want, payload)
	})
	each(some, func(_ event.Kind, _ string, payload []byte) { got = append(got, payload) })
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	if len(kinds) != 3 || len(want) > len(all.events)/2 {
		t.Errorf("it shows little: %v of %d", kinds, len(all.events))
	}
	if len(some.decoded) != len(frames) || some.decoded[999].seq != frames[999].Seq {
		t.Error("frames without events are lost: the position would not move")
	}
	excluded := 0
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "slipstream_events_excluded_total" {
				excluded += int(m.GetCounter().GetValue())
			}
		}
	}
	if want := len(all.events) - len(some.events); excluded != want {
		t.Errorf("%d are counted, want %d", excluded, want)
	}
	d := newDecoder(in)
	if n := testing.AllocsPerRun(10, func() { d.batch(some) }); n > float64(len(frames))/10 {
		t.Errorf("%v allocations for %d frames", n, len(frames))
	}
}
