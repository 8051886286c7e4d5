package dagcbor_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"slipstream/pkg/dagcbor"
)

const taken = dagcbor.Reason(0)

// link is the CID text and linkCID the link of the same block.
var (
	linkCID = dagcbor.SumCID([]byte("block"))
	link    = linkCID.String()
)

func otherCID(edit func(c dagcbor.CID)) dagcbor.CID {
	c := bytes.Clone(linkCID)
	edit(c)
	return c
}

func nested(n int) []byte {
	return append(bytes.Repeat([]byte{0x81}, n-1), 0x80)
}

func manyKeys(n int, order func(i int) int) []byte {
	b := appendHead(nil, 5, uint64(n))
	for i := range n {
		j := order(i)
		b = append(b, 0x63, byte('a'+j/676%26), byte('a'+j/26%26), byte('a'+j%26), 0)
	}
	return b
}

// classes has a line, or a few, for each line of the table in the package comment.
var classes = []struct {
	name      string
	record    []byte
	want      dagcbor.Reason // taken, or why not
	canonical bool
	json      string // where it is worth saying
	oracle    bool   // whether atdata takes it
}{
	{"a record", encode(map[string]any{"a": 1, "b": []any{nil, true, false, -1}}), taken, true, `{"a":1,"b":[null,true,false,-1]}`, true},
	{"empty record", encode(map[string]any{}), taken, true, `{}`, true},
	{"empty key", encode(map[string]any{"": 1}), taken, true, `{"":1}`, true},
	{"empty bytes", wrap(encode([]byte{})), taken, true, `{"x":{"$bytes":""}}`, true},
	{"bytes", wrap(encode([]byte{1, 2, 255, 3})), taken, true, `{"x":{"$bytes":"AQL/Aw"}}`, true},
	{"link", wrap(encode(linkCID)), taken, true, `{"x":{"$link":"` + link + `"}}`, true},
	{"control and quote", wrap(encode("\x00\x1f\"\\/\n\r\t\b\f\x7f<>&\u2028")), taken, true,
		`{"x":"\u0000\u001f\"\\/\n\r\t\b\f` + "\x7f<>&\u2028" + `"}`, true},
	{"greatest integer", wrap([]byte("\x1b\x7f\xff\xff\xff\xff\xff\xff\xff")), taken, true, `{"x":9223372036854775807}`, true},
	{"least integer", wrap([]byte("\x3b\x7f\xff\xff\xff\xff\xff\xff\xff")), taken, true, `{"x":-9223372036854775808}`, true},

	{"keys out of order", []byte("\xa2\x61b\x01\x61a\x02"), taken, false, `{"b":1,"a":2}`, true},
	{"keys out of order, nested", wrap([]byte("\xa2\x61b\xa2\x61d\x01\x61c\x02\x61a\x02")), taken, false, "", true},
	{"many keys out of order", manyKeys(1000, func(i int) int { return 999 - i }), taken, false, "", true},
	{"long integer", wrap([]byte("\x18\x01")), taken, false, `{"x":1}`, true},
	{"long negative integer", wrap([]byte("\x3b\x00\x00\x00\x00\x00\x00\x00\x00")), taken, false, `{"x":-1}`, true},
	{"long text length", wrap([]byte("\x79\x00\x01a")), taken, false, `{"x":"a"}`, true},
	{"long bytes length", wrap([]byte("\x58\x01a")), taken, false, `{"x":{"$bytes":"YQ"}}`, true},
	{"long array length", wrap([]byte("\x98\x01\x01")), taken, false, `{"x":[1]}`, true},
	{"long map length", []byte("\xb8\x00"), taken, false, `{}`, true},
	{"long key length", []byte("\xa1\x78\x01x\x01"), taken, false, `{"x":1}`, true},
	{"long tag", wrap(append([]byte("\xd9\x00\x2a"), encode(linkCID)[2:]...)), taken, false, "", true},

	{"float", wrap(encode(1.5)), dagcbor.ReasonFloat, false, "", false},
	{"integral float", wrap(encode(1.0)), dagcbor.ReasonFloat, false, "", true},
	{"half float", wrap([]byte("\xf9\x3c\x00")), dagcbor.ReasonFloat, false, "", true},
	{"bad UTF-8 value", wrap([]byte("\x62\xc3\x28")), dagcbor.ReasonInvalidUTF8, false, "", true},
	{"bad UTF-8 key", []byte("\xa1\x62\xc3\x28\x01"), dagcbor.ReasonInvalidUTF8, false, "", true},
	{"surrogate in UTF-8", wrap([]byte("\x63\xed\xa0\x80")), dagcbor.ReasonInvalidUTF8, false, "", true},
	{"trailing bytes", append(encode(map[string]any{}), 0), dagcbor.ReasonTrailingBytes, false, "", true},
	{"indefinite map", []byte("\xbf\xff"), dagcbor.ReasonIndefiniteLength, false, "", true},
	{"indefinite array", wrap([]byte("\x9f\xff")), dagcbor.ReasonIndefiniteLength, false, "", true},
	{"indefinite text", wrap([]byte("\x7f\x61a\xff")), dagcbor.ReasonIndefiniteLength, false, "", true},
	{"indefinite bytes", wrap([]byte("\x5f\x41a\xff")), dagcbor.ReasonIndefiniteLength, false, "", true},
	{"stray break", wrap([]byte("\xff")), dagcbor.ReasonIndefiniteLength, false, "", false},
	{"undefined", wrap([]byte("\xf7")), dagcbor.ReasonUndefined, false, "", true},
	{"simple value", wrap([]byte("\xe0")), dagcbor.ReasonSimpleValue, false, "", false},
	{"false in two bytes", wrap([]byte("\xf8\x14")), dagcbor.ReasonSimpleValue, false, "", false},
	{"reserved head", wrap([]byte("\x1c")), dagcbor.ReasonReserved, false, "", false},
	{"integer above int64", wrap([]byte("\x1b\x80\x00\x00\x00\x00\x00\x00\x00")), dagcbor.ReasonIntegerRange, false, "", true},
	{"integer below int64", wrap([]byte("\x3b\x80\x00\x00\x00\x00\x00\x00\x00")), dagcbor.ReasonIntegerRange, false, "", false},
	{"other tag", wrap([]byte("\xc1\x00")), dagcbor.ReasonTag, false, "", false},
	{"link without zero byte", wrap(append([]byte("\xd8\x2a\x58\x24"), linkCID...)), dagcbor.ReasonInvalidCID, false, "", false},
	{"link that is text", wrap([]byte("\xd8\x2a\x61a")), dagcbor.ReasonInvalidCID, false, "", false},
	{"BLAKE3 link", wrap(encode(otherCID(func(c dagcbor.CID) { c[2] = 0x1e }))), dagcbor.ReasonInvalidCID, false, "", true},
	{"dag-pb link", wrap(encode(otherCID(func(c dagcbor.CID) { c[1] = 0x70 }))), dagcbor.ReasonInvalidCID, false, "", true},
	{"version 0 link", wrap(append([]byte("\xd8\x2a\x58\x23\x00"), linkCID[2:]...)), dagcbor.ReasonInvalidCID, false, "", true},
	{"integer key", []byte("\xa1\x01\x01"), dagcbor.ReasonMapKey, false, "", false},
	{"bytes key", []byte("\xa1\x41a\x01"), dagcbor.ReasonMapKey, false, "", false},
	{"same key twice", []byte("\xa2\x61a\x01\x61a\x01"), dagcbor.ReasonDuplicateKey, false, "", false},
	{"same key twice, apart", []byte("\xa3\x61a\x01\x61b\x01\x61a\x01"), dagcbor.ReasonDuplicateKey, false, "", false},
	{"same key twice, among many", manyKeys(1000, func(i int) int { return (1000 - i) % 999 }), dagcbor.ReasonDuplicateKey, false, "", false},
	{"deep enough", wrap(nested(dagcbor.MaxDepth - 1)), taken, true, "", true},
	{"too deep", wrap(nested(dagcbor.MaxDepth)), dagcbor.ReasonTooDeep, false, "", true},
	{"1 MiB", wrap(encode(strings.Repeat("a", 1<<20-8))), taken, true, "", true},
	{"over 1 MiB", wrap(encode(strings.Repeat("a", 1<<20-7))), dagcbor.ReasonTooLarge, false, "", false},
	{"131072 elements", wrap(append(appendHead(nil, 4, 128<<10), make([]byte, 128<<10)...)), taken, true, "", true},
	{"131073 elements", wrap(append(appendHead(nil, 4, 128<<10+1), make([]byte, 128<<10+1)...)), dagcbor.ReasonTooLarge, false, "", false},
	{"key of 8193 bytes", encode(map[string]any{strings.Repeat("k", 8193): 1}), dagcbor.ReasonTooLarge, false, "", false},
	{"cut off", []byte("\xa1\x61x\x62a"), dagcbor.ReasonTruncated, false, "", false},
	{"nothing", nil, dagcbor.ReasonTruncated, false, "", false},
	{"map longer than the input", []byte("\xbb\x00\x00\x00\xff\x00\x00\x00\x00"), dagcbor.ReasonTruncated, false, "", false},
	{"not a map", []byte("\x81\x01"), dagcbor.ReasonNotAMap, false, "", false},
	// The oracle takes null for a nil map, and that for an empty record.
	{"null", []byte("\xf6"), dagcbor.ReasonNotAMap, false, "", true},

	{"written-out link", wrap(encode(map[string]any{"$link": link})), taken, true, `{"x":{"$link":"` + link + `"}}`, true},
	{"written-out link, upper case", wrap(encode(map[string]any{"$link": strings.ToUpper(link)})), dagcbor.ReasonInvalidLink, false, "", true},
	{"written-out link that is none", wrap(encode(map[string]any{"$link": "."})), dagcbor.ReasonInvalidLink, false, "", false},
	{"$link of a number", wrap(encode(map[string]any{"$link": 5})), dagcbor.ReasonInvalidLink, false, "", false},
	{"$link and more", wrap(encode(map[string]any{"$link": link, "a": 1})), dagcbor.ReasonInvalidLink, false, "", false},
	{"record that is a link", encode(map[string]any{"$link": link}), dagcbor.ReasonInvalidLink, false, "", false},
	{"written-out bytes", wrap(encode(map[string]any{"$bytes": "AQL/Aw"})), taken, true, `{"x":{"$bytes":"AQL/Aw"}}`, true},
	{"written-out bytes, loose bits", wrap(encode(map[string]any{"$bytes": "AQL/Az"})), dagcbor.ReasonInvalidBytes, false, "", true},
	{"written-out bytes, line feed", wrap(encode(map[string]any{"$bytes": "AQL/\nAw"})), dagcbor.ReasonInvalidBytes, false, "", true},
	{"written-out bytes, padding", wrap(encode(map[string]any{"$bytes": "AQ=="})), dagcbor.ReasonInvalidBytes, false, "", false},
	{"$bytes of bytes", wrap(encode(map[string]any{"$bytes": []byte{1}})), dagcbor.ReasonInvalidBytes, false, "", false},
	{"$bytes and more", wrap(encode(map[string]any{"$bytes": "AQ", "other": 1})), dagcbor.ReasonInvalidBytes, false, "", false},
	{"$type", encode(map[string]any{"$type": "a.b.c"}), taken, true, `{"$type":"a.b.c"}`, true},
	{"$type empty", encode(map[string]any{"$type": ""}), dagcbor.ReasonInvalidType, false, "", false},
	{"$type null", wrap(encode(map[string]any{"$type": nil})), dagcbor.ReasonInvalidType, false, "", false},
	{"$type of a number", encode(map[string]any{"$type": 1}), dagcbor.ReasonInvalidType, false, "", false},
	{"other key with $", encode(map[string]any{"$other": 1}), taken, true, `{"$other":1}`, true},
	{"blob", wrap(encode(blob())), taken, true, "", true},
	{"blob, ref written out", wrap(encode(blob("ref", map[string]any{"$link": link}))), taken, true, "", true},
	{"blob, ref text", wrap(encode(blob("ref", link))), dagcbor.ReasonInvalidBlob, false, "", false},
	{"blob, ref map", wrap(encode(blob("ref", map[string]any{"a": link}))), dagcbor.ReasonInvalidBlob, false, "", false},
	{"blob, size text", wrap(encode(blob("size", "1"))), dagcbor.ReasonInvalidBlob, false, "", false},
	{"blob, size negative", wrap(encode(blob("size", -1))), dagcbor.ReasonInvalidBlob, false, "", true},
	{"blob, mimeType number", wrap(encode(blob("mimeType", 1))), dagcbor.ReasonInvalidBlob, false, "", false},
	{"blob, no size", wrap(encode(map[string]any{"$type": "blob", "ref": linkCID, "mimeType": "a/b"})), dagcbor.ReasonInvalidBlob, false, "", false},
	{"blob and more", wrap(encode(blob("more", 1))), dagcbor.ReasonInvalidBlob, false, "", false},
	{"record that is a blob", encode(blob()), dagcbor.ReasonInvalidBlob, false, "", false},
	{"blob in any order", wrap(append([]byte("\xa4\x64size\x01\x65$type\x64blob\x68mimeType\x63a/b\x63ref"), encode(linkCID)...)), taken, false, "", true},
	{"old blob", wrap(encode(map[string]any{"cid": link, "mimeType": "a/b"})), taken, true, "", true},
	{"old blob, cid linked", wrap(encode(map[string]any{"cid": linkCID, "mimeType": "a/b"})), dagcbor.ReasonInvalidBlob, false, "", true},
	{"old blob, cid none", wrap(encode(map[string]any{"cid": "x", "mimeType": "a/b"})), dagcbor.ReasonInvalidBlob, false, "", false},
	{"old blob and more", wrap(encode(map[string]any{"cid": "x", "mimeType": "a/b", "y": 1})), taken, true, "", true},
	{"record that is an old blob", encode(map[string]any{"cid": link, "mimeType": "a/b"}), dagcbor.ReasonInvalidBlob, false, "", false},
}

// blob returns a blob with one field replaced or added.
func blob(edit ...any) map[string]any {
	m := map[string]any{"$type": "blob", "ref": linkCID, "mimeType": "a/b", "size": 7}
	if len(edit) == 2 {
		m[edit[0].(string)] = edit[1]
	}
	return m
}

func TestClasses(t *testing.T) {
	for _, c := range classes {
		t.Run(c.name, func(t *testing.T) {
			prefix := []byte("before")
			out, canonical, err := dagcbor.AppendRecordJSON(prefix, c.record)
			if got := reason(t, err); got != c.want {
				t.Fatalf("got %v, want %v", got, c.want)
			}
			if canonical != c.canonical {
				t.Errorf("canonical: got %v, want %v", canonical, c.canonical)
			}
			if !bytes.HasPrefix(out, prefix) || err != nil && len(out) != len(prefix) {
				t.Fatalf("dst is not as it was: %.40q", out)
			}
			out = out[len(prefix):]
			if c.json != "" && string(out) != c.json {
				t.Errorf("got  %s\nwant %s", out, c.json)
			}
			want, oracleErr := oracleJSON(c.record)
			if (oracleErr == nil) != c.oracle {
				t.Errorf("atdata: taken %v, want %v (%v)", oracleErr == nil, c.oracle, oracleErr)
			}
			if err == nil && oracleErr == nil {
				sameJSON(t, out, want)
			}
		})
	}
}

// reason returns the reason in err, taken if there is none.
func reason(tb testing.TB, err error) dagcbor.Reason {
	tb.Helper()
	if err == nil {
		return taken
	}
	var e *dagcbor.Error
	if !errors.As(err, &e) {
		tb.Fatalf("%T is not an *Error: %v", err, err)
	}
	return e.Reason
}

func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range dagcbor.Reasons() {
		label := r.String()
		if label == "" || label == "unknown" || seen[label] {
			t.Errorf("reason %d has label %q", r, label)
		}
		seen[label] = true
		used := r == dagcbor.ReasonUnexpectedType // of the Scanner alone
		for _, c := range classes {
			used = used || c.want == r
		}
		if !used {
			t.Errorf("no class is refused as %v", r)
		}
	}
	if got := dagcbor.Reason(255).String(); got != "unknown" {
		t.Errorf("got %q", got)
	}
}
