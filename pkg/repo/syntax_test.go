package repo_test

import (
	"strings"
	"testing"

	"slipstream/pkg/repo"
)

// lines returns the cases of a file of syntax vectors.
func lines(tb testing.TB, name string) (all []string) {
	for line := range strings.Lines(string(readShared(tb, "vectors/syntax/"+name+".txt"))) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	if len(all) == 0 {
		tb.Fatalf("%s has no cases", name)
	}
	return all
}

// TestSyntax takes what is valid by the specs, and of the rest nothing in DIDs and record
// keys. Collections are held to their characters alone.
func TestSyntax(t *testing.T) {
	did := func(s string) bool { return parseSync(encode(edit(goodSync, "did", s))) == nil }
	path := func(s string) bool {
		op := m{"action": "delete", "path": s}
		return parse(t, encode(commitOf(nil, op))).Ops[0].Fault == 0
	}
	rkey := func(s string) bool { return path("a.b.c/" + s) }
	nsid := func(s string) bool { return path(s + "/a") }
	tid := func(s string) bool { return parseSync(encode(edit(goodSync, "rev", s))) == nil }
	for _, c := range []struct {
		file  string
		taken func(string) bool
		want  bool
	}{
		{"did_syntax_valid", did, true},
		{"did_syntax_invalid", did, false},
		{"recordkey_syntax_valid", rkey, true},
		{"recordkey_syntax_invalid", rkey, false},
		{"nsid_syntax_valid", nsid, true},
		{"tid_syntax_valid", tid, true},
	} {
		for _, s := range lines(t, c.file) {
			if c.taken(s) != c.want {
				t.Errorf("%s: %q: got %v", c.file, s, !c.want)
			}
		}
	}
}

// TestBytesThatAreTaken tries each byte in each identifier.
func TestBytesThatAreTaken(t *testing.T) {
	const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	for b := range 0x80 {
		ch := string(rune(b))
		for _, c := range []struct {
			name, chars string
			body        m
		}{
			{"did", alnum + "._:%-", edit(goodSync, "did", "did:plc:a"+ch+"a")},
			{"rev", alnum + "._:~-", edit(goodSync, "rev", "a"+ch+"a")},
		} {
			if got, want := parseSync(encode(c.body)) == nil, strings.Contains(c.chars, ch); got != want {
				t.Errorf("%s %q: got %v", c.name, ch, got)
			}
		}
		for i, chars := range []string{alnum + ".-", alnum + "._:~-"} {
			parts := []string{"a.b", "a"}
			parts[i] = "a" + ch + "a"
			op := m{"action": "delete", "path": strings.Join(parts, "/")}
			fault := parse(t, encode(commitOf(nil, op))).Ops[0].Fault
			if fault != 0 && fault != repo.FaultInvalidPath || (fault == 0) != strings.Contains(chars, ch) {
				t.Errorf("path %q: got %v", op["path"], fault)
			}
		}
	}
}
