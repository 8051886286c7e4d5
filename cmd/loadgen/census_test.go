package main

import (
	"fmt"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestCensus(t *testing.T) {
	c := census{some: map[string]*wanted{"posts": {collections: []string{"a.post", "a.gate"}}, "never": {collections: []string{"a.never"}}}, byDID: map[string]*wanted{}}
	commit := func(at int, did, collection string) []byte {
		return fmt.Appendf(nil, `{"did":%q,"time_us":%d,"kind":"commit","commit":{"rev":"r","operation":"create","collection":%q,"rkey":"k"`, did, at, collection)
	}
	for i, event := range [][]byte{
		commit(11, "did:a", "a.post"),
		commit(12, "did:b", "a.like"),
		[]byte(`{"did":"did:b","time_us":13,"kind":"identity","identity":{"did":"did:b"`),
		commit(14, "did:a", "a.gate"),
		commit(15, "did:c", "a.like"),
	} {
		c.saw(event, 100+i)
	}
	if c.err != nil {
		t.Fatal(c.err)
	}
	for _, x := range []struct {
		name          string
		got           *wanted
		count, passed int64
		last          int64
	}{
		{"everything", &c.all, 5, 5, 15},
		{"posts", c.some["posts"], 3, 4, 14},
		{"never", c.some["never"], 1, 3, 13},
		{"did:a", c.byDID["did:a"], 2, 4, 14},
		{"did:b", c.byDID["did:b"], 2, 3, 13},
		{"did:c", c.byDID["did:c"], 1, 5, 15},
	} {
		if x.got.tracker.count != x.count || x.got.passed != x.passed || x.got.tracker.last != x.last {
			t.Errorf("%s: got %d until %d, %d passed, want %d until %d, %d passed", x.name,
				x.got.tracker.count, x.got.tracker.last, x.got.passed, x.count, x.last, x.passed)
		}
	}
	if got := c.someone(); got != "did:a" {
		t.Errorf("someone is %s, want did:a: of the two with two events its last is later", got)
	}
	for _, bad := range []string{`{"did":"did:a","kind":"commit"`, `{"did":"did:a","time_us":16,"kind":"commit","commit":{}}`} {
		c.err = nil
		if c.saw([]byte(bad), 1); c.err == nil {
			t.Errorf("%s: got no error", bad)
		}
	}
}

func TestUnpackerSeesThePlainEvents(t *testing.T) {
	var plain tracker
	u, err := newUnpacker(nil)
	if err == nil {
		t.Fatal("a dictionary of no bytes was taken")
	}
	if u.decoder, err = zstd.NewReader(nil); err != nil {
		t.Fatal(err)
	}
	packer, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for at := range int64(200) {
		event := append(eventAt(at+1), make([]byte, at*at*4)...)
		if err := plain.saw(event, len(serverFrame(nil, opText, event))); err != nil {
			t.Fatal(err)
		}
		u.saw(packer.EncodeAll(event, nil), 0)
	}
	if u.err != nil || u.tracker != plain {
		t.Errorf("got %+v, %v, want %+v", u.tracker, u.err, plain)
	}
	if u.saw([]byte("no frame"), 8); u.err == nil {
		t.Error("what is no zstd frame was taken")
	}
}

func TestShort(t *testing.T) {
	for _, c := range []struct {
		v    float64
		want string
	}{{0, "0"}, {0.0000851, "0.0000851"}, {0.181, "0.181"}, {1, "1.00"}, {28.12, "28.1"}, {2345, "2345"}, {19_700, "19.7k"}, {351_000, "351k"}, {32_160_000, "32.2M"}} {
		if got := short(c.v); got != c.want {
			t.Errorf("%g: got %s, want %s", c.v, got, c.want)
		}
	}
}
