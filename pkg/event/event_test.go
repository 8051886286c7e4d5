package event_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/dagcbor"
	"slipstream/pkg/event"
)

const (
	did    = "did:plc:z72i7hdynmk6r22z27h6tvur"
	rev    = "3mptbypluud2a"
	cursor = event.Cursor(1_790_000_000_123_456)
)

// text returns a small record's DAG-CBOR: {"text": s}.
func text(s string) []byte {
	b := append([]byte{0xa1, 0x64}, "text"...)
	b = append(b, 0x7a, byte(len(s)>>24), byte(len(s)>>16), byte(len(s)>>8), byte(len(s)))
	return append(b, s...)
}

func someCID() dagcbor.CID {
	return append([]byte{0x01, 0x71, 0x12, 0x20}, bytes.Repeat([]byte{7}, 32)...)
}

// payloadOf checks that frame is exactly one unmasked frame, and returns what is in it.
func payloadOf(t *testing.T, frame []byte, first byte) []byte {
	t.Helper()
	if frame[0] != first {
		t.Fatalf("first byte %#x, want %#x", frame[0], first)
	}
	n, header := int(frame[1]), 2
	switch n {
	case 126:
		n, header = int(frame[2])<<8|int(frame[3]), 4
	case 127:
		n, header = 0, 10
		for _, b := range frame[2:10] {
			n = n<<8 | int(b)
		}
	}
	if len(frame) != header+n {
		t.Fatalf("frame of %d bytes, its header says %d+%d", len(frame), header, n)
	}
	if got := event.Payload(frame); !bytes.Equal(got, frame[header:]) || event.PayloadLen(len(frame)) != n {
		t.Fatalf("Payload finds %d bytes, the header says %d", len(got), n)
	}
	return frame[header:]
}

func equalJSON(t *testing.T, got []byte, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(g) != fmt.Sprint(w) {
		t.Fatalf("\n got %s\nwant %s", got, want)
	}
}

// Commits of every size of frame header: the envelope is as v1 clients know it, and what
// is found by offset is where it is said to be.
func TestAppendCommit(t *testing.T) {
	for _, size := range []int{0, 1, 40, 200, 65_000, 65_536, 70_000} {
		t.Run(fmt.Sprint("record=", size), func(t *testing.T) {
			op := event.Op{Operation: "update", Collection: []byte("app.bsky.feed.post"), RKey: []byte("3mptbyplj5d2a"),
				CID: someCID(), Record: text(strings.Repeat("é", size/2) + strings.Repeat("x", size%2))}
			before := []byte("before")
			out, canonical, err := event.AppendCommit(before, []byte(did), []byte(rev), &op)
			if err != nil {
				t.Fatal(err)
			}
			if canonical == (size < 1<<16) {
				t.Errorf("a length in more bytes than it needs: canonical=%v", canonical)
			}
			if string(out[:6]) != "before" {
				t.Fatal("what stood before is gone")
			}
			p := payloadOf(t, out[6:], 0x81)
			event.SetCursor(p, len(did), cursor)
			cid := string(dagcbor.AppendCID(nil, op.CID))
			equalJSON(t, p, fmt.Sprintf(`{"did":%q,"time_us":%d,"kind":"commit","commit":{"rev":%q,"operation":"update",
				"collection":"app.bsky.feed.post","rkey":"3mptbyplj5d2a","record":{"text":%q},"cid":%q}}`,
				did, cursor, rev, strings.Repeat("é", size/2)+strings.Repeat("x", size%2), cid))
			if got := string(p[event.DIDOffset:][:len(did)]); got != did {
				t.Errorf("DID at its offset: %q", got)
			}
			at := event.CollectionOffset([]byte(did), []byte(rev), "update")
			if got := string(p[at:][:len("app.bsky.feed.post")]); got != "app.bsky.feed.post" {
				t.Errorf("collection at its offset: %q", got)
			}
			if got := string(event.Rev(p, len(did))); got != rev {
				t.Errorf("rev: %q", got)
			}
		})
	}
}

func TestAppendDelete(t *testing.T) {
	out, _, err := event.AppendCommit(nil, []byte(did), []byte(rev), &event.Op{
		Operation: "delete", Collection: []byte("app.bsky.feed.like"), RKey: []byte("self")})
	if err != nil {
		t.Fatal(err)
	}
	p := payloadOf(t, out, 0x81)
	event.SetCursor(p, len(did), cursor)
	equalJSON(t, p, fmt.Sprintf(`{"did":%q,"time_us":%d,"kind":"commit","commit":{"rev":%q,"operation":"delete",
		"collection":"app.bsky.feed.like","rkey":"self"}}`, did, cursor, rev))
}

// A record that cannot be delivered leaves nothing behind.
func TestAppendCommitFault(t *testing.T) {
	float := []byte{0xa1, 0x61, 'f', 0xfb, 0, 0, 0, 0, 0, 0, 0, 0}
	out, _, err := event.AppendCommit([]byte("before"), []byte(did), []byte(rev), &event.Op{
		Operation: "create", Collection: []byte("a.b.c"), RKey: []byte("k"), CID: someCID(), Record: float})
	if err == nil || string(out) != "before" {
		t.Fatalf("got %q, %v", out, err)
	}
}

func TestAppendIdentityAndAccount(t *testing.T) {
	odd := "a\"\\\x01é"
	p := payloadOf(t, event.AppendIdentity(nil, []byte(did), []byte(odd), 12, []byte("2026-07-04T12:00:00Z")), 0x81)
	event.SetCursor(p, len(did), cursor)
	quoted, _ := json.Marshal(odd)
	equalJSON(t, p, fmt.Sprintf(`{"did":%q,"time_us":%d,"kind":"identity","identity":{"did":%[1]q,"handle":%[3]s,"seq":12,"time":"2026-07-04T12:00:00Z"}}`, did, cursor, quoted))
	p = payloadOf(t, event.AppendIdentity(nil, []byte(did), nil, 12, []byte("t")), 0x81)
	if bytes.Contains(p, []byte("handle")) {
		t.Errorf("a handle out of nothing: %s", p)
	}
	if event.Rev(p, len(did)) != nil {
		t.Error("a rev out of nothing")
	}

	p = payloadOf(t, event.AppendAccount(nil, []byte(did), false, 13, []byte("takendown"), []byte("t")), 0x81)
	event.SetCursor(p, len(did), cursor)
	equalJSON(t, p, fmt.Sprintf(`{"did":%q,"time_us":%d,"kind":"account","account":{"active":false,"did":%[1]q,"seq":13,"status":"takendown","time":"t"}}`, did, cursor))
	p = payloadOf(t, event.AppendAccount(nil, []byte(did), true, 13, nil, []byte("t")), 0x81)
	event.SetCursor(p, len(did), cursor)
	equalJSON(t, p, fmt.Sprintf(`{"did":%q,"time_us":%d,"kind":"account","account":{"active":true,"did":%[1]q,"seq":13,"time":"t"}}`, did, cursor))
}

func TestAppendSync(t *testing.T) {
	p, err := event.AppendSync(nil, []byte(did), text("x"))
	if err != nil {
		t.Fatal(err)
	}
	event.SetCursor(p, len(did), cursor)
	equalJSON(t, p, fmt.Sprintf(`{"did":%q,"time_us":%d,"kind":"sync","sync":{"text":"x"}}`, did, cursor))
}

// A v2 message is the v1 payload in another envelope, byte for byte, whatever the widths of
// header and seq.
func TestAppendMessage(t *testing.T) {
	commit := func(record string) []byte {
		out, _, err := event.AppendCommit(nil, []byte(did), []byte(rev), &event.Op{Operation: "create",
			Collection: []byte("app.bsky.feed.post"), RKey: []byte("3mptbyplj5d2a"), CID: someCID(), Record: text(record)})
		if err != nil {
			t.Fatal(err)
		}
		return event.Payload(out)
	}
	deletion, _, err := event.AppendCommit(nil, []byte(did), []byte(rev), &event.Op{Operation: "delete",
		Collection: []byte("app.bsky.feed.post"), RKey: []byte("3mptbyplj5d2a")})
	if err != nil {
		t.Fatal(err)
	}
	sync, err := event.AppendSync(nil, []byte(did), text("x"))
	if err != nil {
		t.Fatal(err)
	}
	const common = `"rev":"3mptbypluud2a","operation":"%s","collection":"app.bsky.feed.post","rkey":"3mptbyplj5d2a"`
	cid := string(dagcbor.AppendCID(nil, someCID()))
	for _, c := range []struct {
		name    string
		payload []byte
		kind    event.Kind
		body    string
	}{
		{"create", commit("hé"), event.KindCommit, fmt.Sprintf(common, "create") + `,"record":{"text":"hé"},"cid":"` + cid + `"`},
		{"large", commit(strings.Repeat("x", 70_000)), event.KindCommit, fmt.Sprintf(common, "create") + `,"record":{"text":"` + strings.Repeat("x", 70_000) + `"},"cid":"` + cid + `"`},
		{"delete", event.Payload(deletion), event.KindCommit, fmt.Sprintf(common, "delete")},
		{"identity", event.Payload(event.AppendIdentity(nil, []byte(did), []byte("a.b"), 12, []byte("t"))), event.KindIdentity,
			`"identity":{"did":"` + did + `","handle":"a.b","seq":12,"time":"t"}`},
		{"account", event.Payload(event.AppendAccount(nil, []byte(did), false, 12, []byte("takendown"), []byte("t"))), event.KindAccount,
			`"account":{"active":false,"did":"` + did + `","seq":12,"status":"takendown","time":"t"}`},
		{"sync", sync, event.KindSync, `"sync":{"text":"x"}`},
	} {
		for at, want := range map[event.Cursor]string{
			cursor:           `"seq":190000000123456,"did":"` + did + `","time":"2026-09-21T14:13:20.123456Z",`,
			event.Epoch + 1:  `"seq":1,"did":"` + did + `","time":"2020-09-13T12:26:40.000001Z",`,
			event.Epoch + 10: `"seq":10,"did":"` + did + `","time":"2020-09-13T12:26:40.000010Z",`,
		} {
			event.SetCursor(c.payload, len(did), at)
			before := bytes.Clone(c.payload)
			out, err := event.AppendMessage([]byte("before"), c.payload, at, c.kind)
			if err != nil {
				t.Fatal(err)
			}
			if string(out[:6]) != "before" || !bytes.Equal(before, c.payload) {
				t.Fatalf("%s: what stood before, or the payload, has changed", c.name)
			}
			got := payloadOf(t, out[6:], 0x81)
			want := `{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#` + c.kind.String() + `",` + want + c.body + `}}`
			if string(got) != want {
				t.Errorf("%s at %d:\n got %.400s\nwant %.400s", c.name, at, got, want)
			}
			if n := event.MessageLen(len(c.payload), at, c.kind); n != len(got) {
				t.Errorf("%s at %d: MessageLen %d, it has %d bytes", c.name, at, n, len(got))
			}
			if at.V2Seq() >= event.V2SeqLimit || event.CursorOfV2Seq(at.V2Seq()) != at {
				t.Errorf("cursor %d: seq %d", at, at.V2Seq())
			}
		}
	}
}

// What is no payload is no message either.
func TestAppendMessageRefuses(t *testing.T) {
	out, _, err := event.AppendCommit(nil, []byte(did), []byte(rev), &event.Op{Operation: "delete", Collection: []byte("a.b.c"), RKey: []byte("k")})
	if err != nil {
		t.Fatal(err)
	}
	for n := range event.CollectionOffset([]byte(did), nil, "") - len(`,"operation":"","collection":"`) - 10 {
		if got, err := event.AppendMessage([]byte("before"), event.Payload(out)[:n], cursor, event.KindCommit); err == nil || string(got) != "before" {
			t.Fatalf("of %d bytes it made %q, %v", n, got, err)
		}
	}
}

// What is no event on the v2 wire has its form, and is escaped.
func TestInfoAndError(t *testing.T) {
	equalJSON(t, payloadOf(t, event.AppendInfo(nil, "OutdatedCursor", `a "b"`), 0x81),
		`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#info","name":"OutdatedCursor","message":"a \"b\""}}`)
	equalJSON(t, payloadOf(t, event.AppendError(nil, "ConsumerTooSlow", `a "b"`), 0x81),
		`{"$type":"error","error":"ConsumerTooSlow","message":"a \"b\""}`)
}

func BenchmarkAppendMessage(b *testing.B) {
	out, _, err := event.AppendCommit(nil, []byte(did), []byte(rev), &event.Op{Operation: "create",
		Collection: []byte("app.bsky.feed.post"), RKey: []byte("3mptbyplj5d2a"), CID: someCID(), Record: text(strings.Repeat("x", 250))})
	if err != nil {
		b.Fatal(err)
	}
	event.SetCursor(event.Payload(out), len(did), cursor)
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = event.AppendMessage(dst[:0], event.Payload(out), cursor, event.KindCommit)
	}
}

// Both builds' frames name the dictionary and the size, and klauspost's decoder, which is
// what Go clients have, reads them. CI runs this with and without cgo.
func TestCompressor(t *testing.T) {
	c, err := event.NewCompressor(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.Current()), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	for _, payload := range []string{"x", strings.Repeat(`{"did":"did:plc:z72i7hdynmk6r22z27h6tvur"}`, 10), strings.Repeat("no two alike ", 50_000)} {
		frame := c.AppendBinary(nil, []byte(payload))
		if len(payload)%2 == 1 {
			frame = c.AppendQuick(nil, []byte(payload))
		}
		z := payloadOf(t, frame, 0x82)
		var header zstd.Header
		if err := header.Decode(z); err != nil {
			t.Fatal(err)
		}
		if header.DictionaryID != c.ID() {
			t.Errorf("%d bytes: dictionary %d, want %d", len(payload), header.DictionaryID, c.ID())
		}
		got, err := dec.DecodeAll(z, nil)
		if err != nil || string(got) != payload {
			t.Errorf("%d bytes came back as %d, %v", len(payload), len(got), err)
		}
	}
}

func TestNewCompressorRefuses(t *testing.T) {
	for name, d := range map[string][]byte{"empty": nil, "text": []byte("no dictionary at all"), "cut": dictionaries.Current()[:100]} {
		if _, err := event.NewCompressor(d); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Rendering into a buffer that is large enough allocates nothing.
func TestAppendAllocs(t *testing.T) {
	op := event.Op{Operation: "create", Collection: []byte("app.bsky.feed.post"), RKey: []byte("3mptbyplj5d2a"), CID: someCID(), Record: text("hello")}
	buf := make([]byte, 0, 4096)
	d, r := []byte(did), []byte(rev)
	if n := testing.AllocsPerRun(100, func() {
		out, _, err := event.AppendCommit(buf, d, r, &op)
		if err != nil {
			t.Fatal(err)
		}
		event.SetCursor(event.Payload(out), len(did), cursor)
	}); n != 0 {
		t.Errorf("%v allocations per event, want none", n)
	}
}

// A block comes back as it was, and what is none, or not of the size that is asked for, is
// an error.
func TestBlock(t *testing.T) {
	want := bytes.Repeat([]byte(`{"did":"did:plc:a"}`), 1000)
	packed := event.PackBlock([]byte("before"), want)
	if !bytes.HasPrefix(packed, []byte("before")) || len(packed) > len(want)/10 {
		t.Fatalf("%d bytes became %d", len(want), len(packed))
	}
	packed = packed[len("before"):]
	if got, err := event.UnpackBlock(nil, packed, len(want)); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	damaged := bytes.Clone(packed)
	damaged[0] ^= 1
	for name, b := range map[string][]byte{"nothing": nil, "damaged": damaged, "cut": packed[:len(packed)-1], "two": append(bytes.Clone(packed), packed...)} {
		if got, err := event.UnpackBlock(nil, b, len(want)); err == nil {
			t.Errorf("%s: got %d bytes", name, len(got))
		}
	}
	if _, err := event.UnpackBlock(nil, packed, len(want)+1); err == nil {
		t.Error("a block of another size was taken")
	}
}
