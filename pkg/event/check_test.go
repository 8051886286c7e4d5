package event_test

import (
	"strings"
	"testing"

	"slipstream/pkg/event"
)

// What the Append functions make passes Check, and nothing else does.
func TestCheck(t *testing.T) {
	const did, cursor = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", event.Epoch + 5
	commit := func() []byte {
		frame, _, err := event.AppendCommit(nil, []byte(did), []byte("rev"), &event.Op{Operation: "delete", Collection: []byte("a.b.c"), RKey: []byte("key")})
		if err != nil {
			t.Fatal(err)
		}
		return event.Payload(frame)
	}()
	sync, err := event.AppendSync(nil, []byte(did), []byte{0xa0})
	if err != nil {
		t.Fatal(err)
	}
	payloads := map[event.Kind][]byte{
		event.KindCommit:   commit,
		event.KindIdentity: event.Payload(event.AppendIdentity(nil, []byte(did), nil, 1, []byte("now"))),
		event.KindAccount:  event.Payload(event.AppendAccount(nil, []byte(did), true, 1, nil, []byte("now"))),
		event.KindSync:     sync,
	}
	for kind, p := range payloads {
		event.SetCursor(p, len(did), cursor)
		if err := event.Check(p, did, cursor, kind, "a.b.c"); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		for n := range p {
			if event.Check(p[:n], did, cursor, kind, "a.b.c") == nil {
				t.Errorf("%s passes for a %s", p[:n], kind)
			}
		}
		for other, q := range payloads {
			if other != kind && event.Check(q, did, cursor, kind, "a.b.c") == nil {
				t.Errorf("%s passes for a %s", q, kind)
			}
		}
	}
	for what, err := range map[string]error{
		"did: ":        event.Check(commit, did[:len(did)-1], cursor, event.KindCommit, "a.b.c"),
		"time_us: ":    event.Check(commit, did, cursor+1, event.KindCommit, "a.b.c"),
		"kind: ":       event.Check(commit, did, cursor, 0, "a.b.c"),
		"collection: ": event.Check(commit, did, cursor, event.KindCommit, "a.b"),
		"not JSON":     event.Check(append(commit[:len(commit):len(commit)], '}'), did, cursor, event.KindCommit, "a.b.c"),
		"not UTF-8":    event.Check([]byte(strings.Replace(string(commit), `:"key"`, ":\"k\xc0y\"", 1)), did, cursor, event.KindCommit, "a.b.c"),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want %q", err, what)
		}
	}
}

// CheckBinary takes what AppendBinary makes, at each size of header, and no other frame.
func TestCheckBinary(t *testing.T) {
	for _, size := range []int{0, 1, 125, 126, 127, 65535, 65536} {
		payload := make([]byte, size)
		var frame []byte
		switch {
		case size < 126:
			frame = append([]byte{0x82, byte(size)}, payload...)
		case size < 65536:
			frame = append([]byte{0x82, 126, byte(size >> 8), byte(size)}, payload...)
		default:
			frame = append([]byte{0x82, 127, 0, 0, 0, 0, 0, byte(size >> 16), byte(size >> 8), byte(size)}, payload...)
		}
		if err := event.CheckBinary(frame); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		for _, wrong := range [][]byte{append(frame[:len(frame):len(frame)], 0), frame[:len(frame)-1], nil} {
			if event.CheckBinary(wrong) == nil {
				t.Errorf("%d bytes: a frame of %d bytes passes", size, len(wrong))
			}
		}
		for at := range 2 {
			frame[at] ^= 0x80
			if event.CheckBinary(frame) == nil {
				t.Errorf("%d bytes: %x passes", size, frame[:min(10, len(frame))])
			}
			frame[at] ^= 0x80
		}
	}
	// A short payload with a longer header than it needs.
	if event.CheckBinary([]byte{0x82, 126, 0, 1, 'a'}) == nil {
		t.Error("a header that is too long passes")
	}
}
