package dagcbor_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"slipstream/pkg/dagcbor"
)

// sample is a post with a bit of everything, of the size that records usually have.
var sample = encode(map[string]any{
	"$type":     "app.bsky.feed.post",
	"createdAt": "2026-07-04T14:38:06.240Z",
	"langs":     []any{"en"},
	"text":      "A walk along the river, and then \"home\" ☕ before the rain.",
	"embed": map[string]any{
		"$type": "app.bsky.embed.images",
		"images": []any{map[string]any{
			"alt":   "a river",
			"image": blob(),
		}},
	},
})

// records returns the records of the real repos: the blocks that are maps with a $type.
func records(tb testing.TB) [][]byte {
	var all [][]byte
	for _, name := range []string{"calabro", "dart", "microcosm-little"} {
		car := readShared(tb, "records/"+name+".car")
		for first := true; len(car) > 0; first = false {
			n, size := binary.Uvarint(car)
			section := car[size : size+int(n)]
			car = car[size+int(n):]
			if first {
				continue
			}
			c, n36, err := dagcbor.ParseCID(section)
			if err != nil {
				tb.Fatal(err)
			}
			data := section[n36:]
			if !c.Matches(data) {
				tb.Fatalf("%v does not match", c)
			}
			if c.IsDagCBOR() && bytes.Contains(data, []byte("\x65$type")) {
				all = append(all, data)
			}
		}
	}
	return all
}

func TestRealRecords(t *testing.T) {
	all := records(t)
	if len(all) < 7000 {
		t.Fatalf("only %d records", len(all))
	}
	if testing.Short() {
		all = all[:500]
	}
	for _, data := range all {
		got, canonical, err := dagcbor.AppendRecordJSON(nil, data)
		want, oracleErr := oracleJSON(data)
		if err != nil || !canonical || oracleErr != nil {
			t.Fatalf("canonical %v, %v, oracle %v\n%x", canonical, err, oracleErr, data)
		}
		sameJSON(t, got, want)
	}
}

func TestNoAllocs(t *testing.T) {
	dst := make([]byte, 0, 8192)
	bin := encode([]byte("abcde"))
	for name, f := range map[string]func(){
		"record":  func() { dagcbor.AppendRecordJSON(dst, sample) },
		"bytes":   func() { dagcbor.AppendJSON(dst, bin) },
		"cid":     func() { dagcbor.AppendCID(dst, linkCID) },
		"string":  func() { dagcbor.AppendJSONString(dst, []byte("a\n\u2028")) },
		"matches": func() { linkCID.Matches(sample) },
		"skip": func() {
			s := dagcbor.NewScanner(sample)
			s.Skip()
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	for name, data := range map[string][]byte{
		"an error":          wrap(encode(1.5)),
		"keys out of order": manyKeys(50, func(i int) int { return 50 - i }),
	} {
		if n := testing.AllocsPerRun(100, func() { dagcbor.AppendRecordJSON(dst, data) }); n > 1 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestAppendJSONString(t *testing.T) {
	// Every character at every distance from a word's edge.
	for pad := range 10 {
		for c := rune(0); c < 0x120; c++ {
			in := strings.Repeat("a", pad) + string(c) + strings.Repeat("é", 10-pad) + string(c)
			out := dagcbor.AppendJSONString(nil, []byte(in))
			var got string
			if err := json.Unmarshal(out, &got); err != nil || got != in {
				t.Fatalf("%q: %s, %v", in, out, err)
			}
			via, _, err := dagcbor.AppendJSON(nil, encode(in))
			if err != nil || !bytes.Equal(via, out) {
				t.Fatalf("%q: %s and %s", in, out, via)
			}
		}
	}
}

// TestHostileTime has the inputs that would be slow if anything were quadratic.
func TestHostileTime(t *testing.T) {
	depth := dagcbor.MaxDepth - 1
	var tower []byte // maps in maps, all unsorted, with much in the innermost
	for range depth {
		tower = append(tower, 0xa2, 0x61, 'b')
	}
	tower = append(tower, appendHead(nil, 4, 128<<10)...)
	tower = append(tower, make([]byte, 128<<10)...)
	for range depth {
		tower = append(tower, 0x61, 'a', 0)
	}
	cases := map[string][]byte{
		"unsorted tower": tower,
		"many keys":      manyKeys(17000, func(i int) int { return 16999 - i }),
		"open arrays":    bytes.Repeat([]byte{0x81}, 1<<20),
	}
	for name, data := range cases {
		start := time.Now()
		dagcbor.AppendRecordJSON(nil, data)
		// The margin is for a loaded machine with the race detector on.
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: %v", name, d)
		}
	}
}

// FuzzTranscode holds what we take against atdata, which has to take it with the same
// value, and looks for anything odd in the rest.
func FuzzTranscode(f *testing.F) {
	for _, c := range classes {
		if len(c.record) < 512 {
			f.Add(c.record)
		}
	}
	f.Add(sample)
	f.Fuzz(func(t *testing.T, data []byte) {
		prefix := []byte("x")
		out, canonical, err := dagcbor.AppendRecordJSON(prefix, data)
		if err != nil {
			if string(out) != "x" || reason(t, err) == taken {
				t.Fatalf("%v: %q", err, out)
			}
			return
		}
		out = out[1:]
		if !json.Valid(out) || !utf8.Valid(out) {
			t.Fatalf("not JSON: %s", out)
		}
		want, err := oracleJSON(data)
		if err != nil {
			t.Fatalf("atdata refuses %x: %v\n%s", data, err, out)
		}
		sameJSON(t, out, want)
		s := dagcbor.NewScanner(data)
		if err := s.Skip(); err != nil || s.Len() != 0 {
			t.Fatalf("Skip: %v, %d bytes left", err, s.Len())
		}
		v, _ := decodeJSON(out)
		if canonical && !hasDollar(v) && !bytes.Equal(encode(v), data) {
			t.Fatalf("%x is not canonical: %x is", data, encode(v))
		}
	})
}

// hasDollar reports whether links or bytes may be in v, which encode does not write back.
func hasDollar(v any) bool {
	b, _ := json.Marshal(v)
	return bytes.Contains(b, []byte(`"$link"`)) || bytes.Contains(b, []byte(`"$bytes"`))
}

func BenchmarkTranscode(b *testing.B) {
	run := func(name string, records [][]byte) {
		total := 0
		for _, r := range records {
			total += len(r)
		}
		perRecord := func(b *testing.B, f func(record []byte)) {
			b.ReportAllocs()
			b.SetBytes(int64(total / len(records)))
			i := 0
			for b.Loop() {
				f(records[i])
				if i++; i == len(records) {
					i = 0
				}
			}
		}
		dst := make([]byte, 0, 1<<16)
		b.Run("corpus="+name+"/by=dagcbor", func(b *testing.B) {
			perRecord(b, func(r []byte) {
				if _, _, err := dagcbor.AppendRecordJSON(dst, r); err != nil {
					b.Fatal(err)
				}
			})
		})
		b.Run("corpus="+name+"/by=atdata", func(b *testing.B) {
			perRecord(b, func(r []byte) {
				if _, err := oracleJSON(r); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
	run("sample", [][]byte{sample})
	run("real", records(b))
}

func BenchmarkAppendCID(b *testing.B) {
	dst := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		dagcbor.AppendCID(dst, linkCID)
	}
}
