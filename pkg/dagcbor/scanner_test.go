package dagcbor_test

import (
	"bytes"
	"math"
	"testing"

	"slipstream/pkg/dagcbor"
)

func TestScanner(t *testing.T) {
	data := bytes.Join([][]byte{
		{0xa1}, encode("key"), {0x82}, encode(-7), encode([]byte{1, 2}),
		encode(true), encode(nil), encode(linkCID), encode(map[string]any{"a": []any{1.5, "x"}}), encode("rest"),
	}, nil)
	s := dagcbor.NewScanner(data)
	if n, err := s.Map(); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if b, err := s.Text(); string(b) != "key" || err != nil {
		t.Fatal(b, err)
	}
	if n, err := s.Array(); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if v, err := s.Int(); v != -7 || err != nil {
		t.Fatal(v, err)
	}
	if b, err := s.Bytes(); string(b) != "\x01\x02" || err != nil {
		t.Fatal(b, err)
	}
	if s.Null() {
		t.Fatal("true is null")
	}
	if v, err := s.Bool(); !v || err != nil {
		t.Fatal(v, err)
	}
	if !s.Null() {
		t.Fatal("null is not null")
	}
	if c, err := s.CID(); !bytes.Equal(c, linkCID) || err != nil {
		t.Fatal(c, err)
	}
	if err := s.Skip(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Rest(), encode("rest")) || s.Len() != len(s.Rest()) || s.Offset() != len(data)-s.Len() {
		t.Fatalf("rest %q at %d", s.Rest(), s.Offset())
	}
}

// calls are all ways to read one item.
var calls = map[string]func(s *dagcbor.Scanner) error{
	"Map":   func(s *dagcbor.Scanner) error { _, err := s.Map(); return err },
	"Array": func(s *dagcbor.Scanner) error { _, err := s.Array(); return err },
	"Text":  func(s *dagcbor.Scanner) error { _, err := s.Text(); return err },
	"Bytes": func(s *dagcbor.Scanner) error { _, err := s.Bytes(); return err },
	"Int":   func(s *dagcbor.Scanner) error { _, err := s.Int(); return err },
	"Bool":  func(s *dagcbor.Scanner) error { _, err := s.Bool(); return err },
	"CID":   func(s *dagcbor.Scanner) error { _, err := s.CID(); return err },
	"Skip":  (*dagcbor.Scanner).Skip,
}

func TestScannerFaults(t *testing.T) {
	type c struct {
		call, in string
		want     dagcbor.Reason
	}
	for _, c := range []c{
		{"Map", "", dagcbor.ReasonTruncated},
		{"Map", "\x80", dagcbor.ReasonUnexpectedType},
		{"Map", "\xa2\x61a\x01", dagcbor.ReasonTruncated},
		{"Map", "\xbf", dagcbor.ReasonIndefiniteLength},
		{"Array", "\x9b\xff\xff\xff\xff\xff\xff\xff\xff", dagcbor.ReasonTruncated},
		{"Text", "\x62a", dagcbor.ReasonTruncated},
		{"Text", "\x61\xff", dagcbor.ReasonInvalidUTF8},
		{"Text", "\x41a", dagcbor.ReasonUnexpectedType},
		{"Bytes", "\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", dagcbor.ReasonTruncated},
		{"Bytes", "\x5c", dagcbor.ReasonReserved},
		{"Int", "\x1b\x80\x00\x00\x00\x00\x00\x00\x00", dagcbor.ReasonIntegerRange},
		{"Int", "\x19\x00", dagcbor.ReasonTruncated},
		{"Int", "\xf9\x00\x00", dagcbor.ReasonFloat},
		{"Int", "\xf5", dagcbor.ReasonUnexpectedType},
		{"Bool", "\xf6", dagcbor.ReasonUnexpectedType},
		{"Bool", "", dagcbor.ReasonTruncated},
		{"CID", "\xc2\x40", dagcbor.ReasonTag},
		{"CID", "\xd8\x2a", dagcbor.ReasonTruncated},
		{"CID", "\xd8\x2a\x58\x25\x00", dagcbor.ReasonTruncated},
		{"Skip", "\x82\x01", dagcbor.ReasonTruncated},
		{"Skip", "\xa1\x01", dagcbor.ReasonTruncated},
		{"Skip", "\xfb\x00", dagcbor.ReasonTruncated},
		{"Skip", "\xff", dagcbor.ReasonIndefiniteLength},
		{"Skip", "\xfc", dagcbor.ReasonReserved},
		{"Skip", string(bytes.Repeat([]byte{0xc1}, 1000)), dagcbor.ReasonTooDeep},
		{"Skip", string(nested(dagcbor.MaxDepth + 1)), dagcbor.ReasonTooDeep},
		{"Skip", string(nested(dagcbor.MaxDepth)), taken},
	} {
		s := dagcbor.NewScanner([]byte(c.in))
		if got := reason(t, calls[c.call](&s)); got != c.want {
			t.Errorf("%s %.20q: got %v, want %v", c.call, c.in, got, c.want)
		}
		if c.want != taken && c.call != "Skip" && s.Offset() != 0 {
			t.Errorf("%s %.20q: failed and moved to %d", c.call, c.in, s.Offset())
		}
	}
}

func TestScannerInt(t *testing.T) {
	for in, want := range map[string]int64{
		"\x00": 0, "\x17": 23, "\x18\x18": 24, "\x20": -1, "\x38\xff": -256, "\x19\x01\x00": 256,
		"\x1a\xff\xff\xff\xff":                 math.MaxUint32,
		"\x1b\x7f\xff\xff\xff\xff\xff\xff\xff": math.MaxInt64,
		"\x3b\x7f\xff\xff\xff\xff\xff\xff\xff": math.MinInt64,
	} {
		s := dagcbor.NewScanner([]byte(in))
		if got, err := s.Int(); got != want || err != nil || s.Len() != 0 {
			t.Errorf("%x: got %d, %v", in, got, err)
		}
	}
}

// FuzzScanner reads the input by the calls that the first bytes choose. Nothing may
// panic, run past the end, or move where it failed.
func FuzzScanner(f *testing.F) {
	names := []string{"Map", "Array", "Text", "Bytes", "Int", "Bool", "CID", "Skip"}
	f.Add([]byte{0, 2, 7}, encode(map[string]any{"a": 1, "b": linkCID}))
	f.Add([]byte{6, 4, 1, 5, 3}, bytes.Join([][]byte{encode(linkCID), {5, 0x80, 0xf5, 0x41, 0}}, nil))
	f.Fuzz(func(t *testing.T, plan, data []byte) {
		s := dagcbor.NewScanner(data)
		for _, p := range plan {
			before := s.Offset()
			if p&0x80 != 0 {
				s.Null()
				continue
			}
			name := names[int(p)%len(names)]
			err := calls[name](&s)
			switch {
			case s.Offset() < before || s.Offset() > len(data):
				t.Fatalf("%s: from %d to %d of %d", name, before, s.Offset(), len(data))
			case err == nil && s.Offset() == before:
				t.Fatalf("%s read nothing", name)
			case err != nil && name != "Skip" && s.Offset() != before:
				t.Fatalf("%s failed and moved", name)
			}
			if err != nil {
				return
			}
		}
	})
}
