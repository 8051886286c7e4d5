package eventlog_test

import (
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
	f.Fuzz(func(t *testing.T, x []byte) {
		c, err := eventlog.ParseIndex(x)
		if err != nil {
			return
		}
		last, end := c.Prev, uint32(0)
		for i, e := range c.Entries {
			if e.Cursor <= last || c.Start(i, eventlog.JSON) != end || e.End[eventlog.JSON] < end {
				t.Fatalf("entry %d out of order", i)
			}
			last, end = e.Cursor, e.End[eventlog.JSON]
			_ = c.DIDs[e.DID]
			if e.Collection != eventlog.NoCollection {
				_ = c.Collections[e.Collection]
			}
		}
		if c.After(c.Last()) != len(c.Entries) || c.After(c.First()-1) != 0 {
			t.Fatal("After is wrong at the ends")
		}
	})
}

// The index is a part of the stored format: its bytes change only with its version.
func TestIndexFormat(t *testing.T) {
	var b eventlog.Builder
	b.Add(0x0102030405060708, event.KindCommit, []byte("d"), []byte("c"), [3]uint32{0x10, 0x20, 0})
	c, err := b.Seal(0x11, 0x22, make([]byte, 0x10), make([]byte, 0x20), nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = "SLCK\x01\x00\x00\x00" + "\x22\x00\x00\x00" + "\x01\x00\x00\x00" + "\x01\x00\x00\x00" + "\x01\x00\x00\x00" +
		"\x11\x00\x00\x00\x00\x00\x00\x00" + "\x01\x00c" + "\x01\x00d" +
		"\x08\x07\x06\x05\x04\x03\x02\x01" + "\x10\x00\x00\x00" + "\x20\x00\x00\x00" + "\x00\x00\x00\x00" +
		"\x00\x00\x00\x00" + "\x00\x00" + "\x01" + "\x00\x00\x00\x00\x00"
	if got := string(c.Index()); got != want {
		t.Errorf("got  %x\nwant %x", got, want)
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
