package eventlog_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// A chunk that parses can be walked without a bounds check, whatever the bytes.
func FuzzIndex(f *testing.F) {
	var b eventlog.Builder
	b.Add(start, event.KindCommit, []byte("did:plc:a"), []byte("app.test.a"), [3]uint32{10, 5, 0})
	b.Add(start+1, event.KindSync, []byte("did:plc:b"), nil, [3]uint32{10, 5, 4})
	c, err := b.Seal(start-1, 7, make([]byte, 10), make([]byte, 5), make([]byte, 4))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Index())
	// Lengths whose sum wraps around to what it should be.
	for range 3 {
		b.Add(start+event.Cursor(b.Len()), event.KindIdentity, []byte("a"), nil, [3]uint32{10})
	}
	if c, err = b.Seal(start-1, 7, make([]byte, 10), nil, nil); err != nil {
		f.Fatal(err)
	}
	const row = 5 // kind, cursor, two lengths, DID: a byte each
	rows := c.Index()[len(c.Index())-3*row:]
	x := slices.Clone(c.Index()[:len(c.Index())-3*row])
	for i, n := range []uint64{10, 1<<64 - 5, 5} {
		r := rows[i*row:][:row]
		x = append(binary.AppendUvarint(append(x, r[:2]...), n), r[3:]...)
	}
	if _, err := eventlog.ParseIndex(x); err == nil {
		f.Fatal("lengths that wrap around were taken")
	}
	f.Add(x)
	for i := range 40 {
		name := "app.test.a"
		if i == 30 {
			name = "app.test.rare"
		}
		n := uint32(i + 1)
		b.Add(start+event.Cursor(i), event.KindCommit, []byte("did:plc:a"), []byte(name), [3]uint32{10 * n, 5 * n, 0})
	}
	if c, err = b.Seal(start-1, 7, make([]byte, 400), make([]byte, 200), nil); err != nil {
		f.Fatal(err)
	}
	if x, err = c.Head(); err != nil {
		f.Fatal(err)
	}
	if c, err = eventlog.ParseExcerpt(x); err != nil || len(c.Entries) != 1 || c.Collections[0] != "app.test.rare" {
		f.Fatalf("the excerpt is %+v, %v", c, err)
	}
	f.Add(x)
	f.Fuzz(func(t *testing.T, x []byte) {
		c, err := eventlog.ParseIndex(x)
		if err != nil {
			if c, err = eventlog.ParseExcerpt(x); err != nil {
				return
			}
			if c.Last() < c.Entries[len(c.Entries)-1].Cursor || c.First() <= c.Prev {
				t.Fatal("an excerpt is not within its block")
			}
			if x = c.Index(); c.After(c.Last()) != len(c.Entries) {
				t.Fatal("After is wrong at the end")
			}
			if c, err = eventlog.ParseIndex(x); err != nil {
				t.Fatal(err)
			}
		}
		last, end := c.Prev, uint32(0)
		for i, e := range c.Entries {
			if e.Cursor <= last || c.Start(i, eventlog.JSON) != end || e.End[eventlog.JSON] < end {
				t.Fatalf("entry %d out of order", i)
			}
			last, end = e.Cursor, e.End[eventlog.JSON]
			_ = c.DIDs()[e.DID]
			if e.Collection != eventlog.NoCollection {
				_ = c.Collections[e.Collection]
			}
		}
		sum, err := eventlog.ParseSummary(x)
		if err != nil || sum.Events() != len(c.Entries) || sum.First != c.First() || sum.Last != c.Last() {
			t.Fatalf("the summary is another: %+v, %v", sum, err)
		}
		names := 0
		for range sum.Collections {
			names++
		}
		if names != len(c.Collections) || !sum.HasAny(c.Hashes) || !sum.HasAny(c.Hashes[:1]) || sum.HasAny(nil) {
			t.Fatal("the summary's tables are others")
		}
		if c.After(c.Last()) != len(c.Entries) || c.After(c.First()-1) != 0 {
			t.Fatal("After is wrong at the ends")
		}
	})
}

// The index is a part of the stored format: its bytes change only with its version.
func TestIndexFormat(t *testing.T) {
	var b eventlog.Builder
	b.Add(0x1122, event.KindCommit, []byte("did:plc:aaaaaaaaaaaaaaaaaaaaaaa7"), []byte("c"), [3]uint32{0x10, 0x20, 0})
	b.Add(0x1123, event.KindSync, []byte("did:web:x"), nil, [3]uint32{0x10, 0x20, 0x300})
	c, err := b.Seal(0x11, 0x22, make([]byte, 0x10), make([]byte, 0x20), make([]byte, 0x300))
	if err != nil {
		t.Fatal(err)
	}
	want := "SLCK\x02\x00\x00\x00" + "\x22\x00\x00\x00" +
		"\x01\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x01\x00\x00\x00" + // kinds
		"\x01\x00\x00\x00" + "\x02\x00\x00\x00" + // collections, DIDs
		"\x11\x00\x00\x00\x00\x00\x00\x00" + "\x22\x11\x00\x00\x00\x00\x00\x00" + "\x23\x11\x00\x00\x00\x00\x00\x00" + // cursors
		"\x10\x00\x00\x00" + "\x20\x00\x00\x00" + "\x00\x03\x00\x00" + // sizes
		strings.Repeat("\x00", 24) + // what the store fills in
		"HASH" + "\x01\x00c" + "DIDS" +
		"\x01" + "\x00" + "\x10" + "\x20" + "A" + "\x00" +
		"\x84" + "\x01" + "\x00" + "\x00" + "\x80\x06" + "B"
	plc, web := eventlog.HashDID("did:plc:aaaaaaaaaaaaaaaaaaaaaaa7"), eventlog.HashDID("did:web:x")
	if plc != 0x156f3546 || web != 0xc2d138b5 {
		t.Fatalf("hashes %#x and %#x", plc, web)
	}
	short := "\x00" + strings.Repeat("\x00", 14) + "\x1f"
	hashes, dids, numbers := []uint32{plc, web}, short+"\x09did:web:x", "\x00\x01"
	if web < plc {
		hashes, dids, numbers = []uint32{web, plc}, "\x09did:web:x"+short, "\x01\x00"
	}
	want = strings.NewReplacer("HASH", string(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, hashes[0]), hashes[1])),
		"DIDS", dids, "A", numbers[:1], "B", numbers[1:]).Replace(want)
	if got := string(c.Index()); got != want {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	if got := c.DIDs(); got[c.Entries[0].DID] != "did:plc:aaaaaaaaaaaaaaaaaaaaaaa7" || got[c.Entries[1].DID] != "did:web:x" {
		t.Errorf("DIDs: %q", got)
	}
}

func TestSealRefuses(t *testing.T) {
	var b eventlog.Builder
	if _, err := b.Seal(0, 1, nil, nil, nil); err == nil {
		t.Error("an empty chunk was sealed")
	}
	b.Add(start, event.KindCommit, []byte("did:plc:a"), []byte("c"), [3]uint32{1, 1, 0})
	if _, err := b.Seal(start, 1, make([]byte, 1), make([]byte, 1), nil); err == nil {
		t.Error("a cursor that does not grow was sealed")
	}
	b.Add(start, event.KindCommit, []byte("did:plc:a"), []byte("c"), [3]uint32{1, 1, 0})
	if _, err := b.Seal(0, 1, make([]byte, 2), make([]byte, 1), nil); err == nil {
		t.Error("a payload that is longer than its index says was sealed")
	}
}
