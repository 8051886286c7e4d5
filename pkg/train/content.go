package train

import (
	"cmp"
	"slices"
	"strings"
)

const (
	// few is how many authors have to share a text for it not to be somebody's own.
	few = 5
	// two is how many have to use a name: a lexicon that one author has is their own, too.
	two = 2
)

// filler stands for what is blanked: in no DID or CID is a run of these, so none is found in
// vain.
var filler = strings.Repeat("x", 64)

// blanker makes forms of events.
type blanker struct {
	era    era
	shared map[string]bool // the texts that are kept
	names  map[string]bool // the keys and the lexicons' names that are kept
}

// newBlanker finds the texts and names that the events' authors share.
func newBlanker(events []Event) *blanker {
	texts, names := sharing{need: few}, sharing{need: two}
	for i := range events {
		for _, json := range [][]byte{events[i].V1, events[i].V2} {
			eachText(json, func(from, to int, key []byte, isKey bool) {
				switch text := string(json[from:to]); {
				case isKey && isName(text), !isKey && namesLexicon(key) && isNSID(text):
					names.add(text, events[i].unit)
				case !isKey && isToken(text):
					texts.add(text, events[i].unit)
				}
			})
		}
	}
	b := &blanker{eraOf(events), texts.shared, names.shared}
	authorities := map[string]bool{}
	for name := range b.names {
		if isNSID(name) {
			authorities[authority(name)] = true
		}
	}
	for text := range b.shared {
		if strings.Contains(text, ".") && !authorities[authority(text)] {
			delete(b.shared, text) // a handle may be on many lips
		}
	}
	return b
}

// authority returns who a lexicon is of: app.bsky.
func authority(nsid string) string {
	a, rest, _ := strings.Cut(nsid, ".")
	b, _, _ := strings.Cut(rest, ".")
	return a + "." + b
}

// sharing finds what so many authors share.
type sharing struct {
	need   int
	shared map[string]bool
	users  map[string]map[string]struct{} // of what is not known to be shared
}

func (s *sharing) add(text, unit string) {
	if s.shared[text] {
		return
	}
	if s.shared == nil {
		s.shared, s.users = map[string]bool{}, map[string]map[string]struct{}{}
	}
	if s.users[text] == nil {
		s.users[text] = map[string]struct{}{}
	}
	s.users[text][unit] = struct{}{}
	if len(s.users[text]) == s.need {
		s.shared[text] = true
		delete(s.users, text)
	}
}

// namesLexicon reports whether the text of a key is the name of a lexicon.
func namesLexicon(key []byte) bool { return string(key) == "$type" || string(key) == "collection" }

// isToken reports whether a text may be a word of a lexicon: prose has spaces, or other scripts.
// An identifier or a link is none; they have forms of their own.
func isToken(text string) bool {
	if len(text) > 64 || strings.Contains(text, "://") || strings.HasPrefix(text, "did:") || isTime(text) {
		return false
	}
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' || r == '@' })
}

// eachText calls f for each text of the JSON, which is json[from:to] without its quotes. key is
// the name that it, or the list around it, has; or it is the name itself.
func eachText(json []byte, f func(from, to int, key []byte, isKey bool)) {
	var key []byte
	for i := 0; i < len(json); i++ {
		if json[i] != '"' {
			continue
		}
		from, to := i+1, i+1
		for to < len(json) && json[to] != '"' {
			if json[to] == '\\' {
				to++
			}
			to++
		}
		if to >= len(json) {
			return
		}
		isKey := to+1 < len(json) && json[to+1] == ':'
		if isKey {
			key = json[from:to]
		}
		f(from, to, key, isKey)
		i = to
	}
}

// form returns an event's form: all but what it shares with others blanked, at its width
// where the width is always the same.
func (b *blanker) form(json []byte) string {
	out := make([]byte, 0, len(json))
	at := 0
	var name string
	eachText(json, func(from, to int, key []byte, isKey bool) {
		out = b.appendBare(out, name, json[at:from])
		at = to
		name = ""
		switch {
		case !isKey:
			out = b.appendText(out, key, string(json[from:to]))
		case b.names[string(key)]:
			name = string(key)
			out = append(out, name...)
		}
	})
	return string(b.appendBare(out, name, json[at:]))
}

// isName reports whether a key is one that a lexicon would have.
func isName(key string) bool {
	return len(key) <= 40 && !strings.ContainsFunc(key, func(r rune) bool {
		return r != '_' && r != '$' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// appendBare appends the JSON after a name and up to the next text, less its numbers.
func (b *blanker) appendBare(out []byte, name string, json []byte) []byte {
	for i := 0; i < len(json); i++ {
		n := 0
		for i+n < len(json) && (json[i+n] >= '0' && json[i+n] <= '9' || json[i+n] == '-') {
			n++
		}
		switch {
		case n == 0:
			out = append(out, json[i])
			continue
		case name == "time_us" && n == 16:
			out = append(append(out, b.era.cursor...), filler[:16-len(b.era.cursor)]...)
		case name == "seq" && n == 15:
			out = append(append(out, b.era.seq...), filler[:15-len(b.era.seq)]...)
		default:
			out = append(out, '1')
		}
		i += n - 1
	}
	return out
}

func (b *blanker) appendText(out, key []byte, text string) []byte {
	switch {
	case strings.HasPrefix(text, "did:"):
		return appendDID(out, text)
	case strings.HasPrefix(text, "at://"):
		authority, path, _ := strings.Cut(text[len("at://"):], "/")
		if !strings.HasPrefix(authority, "did:plc:") {
			return append(out, "at://"...)
		}
		out = appendDID(append(out, "at://"...), authority)
		collection, rkey, _ := strings.Cut(path, "/")
		if !b.names[collection] {
			return out
		}
		out = append(append(append(out, '/'), collection...), '/')
		if isTID(rkey) || rkey == "self" {
			out = b.appendText(out, nil, rkey)
		}
		return out
	case strings.HasPrefix(text, "https://"):
		return append(out, "https://"...)
	case isCID(text):
		return append(append(out, text[:len("bafyrei")]...), filler[:52]...)
	case isTID(text):
		return append(append(out, b.era.tid...), filler[:13-len(b.era.tid)]...)
	case isTime(text):
		out = append(out, b.era.year...)
		for _, c := range []byte(text[len("2006"):]) {
			if '0' <= c && c <= '9' {
				c = 'x'
			}
			out = append(out, c)
		}
		return out
	case namesLexicon(key) && b.names[text] || b.shared[text]:
		return append(out, text...)
	}
	return out
}

func appendDID(out []byte, did string) []byte {
	if strings.HasPrefix(did, "did:plc:") && len(did) == len("did:plc:")+24 {
		return append(append(out, "did:plc:"...), filler[:24]...)
	}
	return append(out, "did:"...)
}

func isCID(s string) bool {
	return len(s) == len("bafyrei")+52 && (strings.HasPrefix(s, "bafyrei") || strings.HasPrefix(s, "bafkrei"))
}

func isTID(s string) bool {
	return len(s) == 13 && s[0] == '3' && strings.Trim(s, tidAlphabet) == ""
}

// isNSID reports whether s is one, with or without a fragment.
func isNSID(s string) bool {
	return strings.Count(s, ".") >= 2 && len(s) <= 128 &&
		!strings.ContainsFunc(s, func(r rune) bool {
			return r != '.' && r != '-' && r != '#' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		})
}

// isTime reports whether s is a time as RFC 3339 has it, more or less.
func isTime(s string) bool {
	const like = "dddd-dd-ddTdd:dd:dd"
	if len(s) < len(like) || len(s) > len("2006-01-02T15:04:05.000000000+00:00") {
		return false
	}
	for i, c := range []byte(like) {
		if digit := '0' <= s[i] && s[i] <= '9'; c == 'd' && !digit || c != 'd' && s[i] != c {
			return false
		}
	}
	return strings.Trim(s[len(like):], "0123456789.:+-Z") == ""
}

// weighted is a text that counts so much.
type weighted struct {
	text   string
	weight float64
}

// forms returns those of the events on both wires, the commonest first.
func (b *blanker) forms(events []Event) []weighted {
	weights := weigh(events)
	sum := map[string]float64{}
	for i := range events {
		if isNSID(events[i].Name) && !b.names[events[i].Name] {
			continue // one author's lexicon
		}
		sum[b.form(events[i].V1)] += weights[i]
		sum[b.form(events[i].V2)] += weights[i] * v2Weight
	}
	all := make([]weighted, 0, len(sum))
	for text, weight := range sum {
		all = append(all, weighted{text, weight})
	}
	slices.SortFunc(all, func(a, b weighted) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), strings.Compare(a.text, b.text))
	})
	return all
}

// v2Weight is what an event counts on the v2 wire, where on v1 it counts 1: it is mostly v1
// consumers that ask for compression.
const v2Weight = 0.25

const (
	gram = 12 // a run of fewer bytes that are not yet there is not worth a match
	gap  = 24 // two runs that are nearer to each other are taken as one
)

// cut returns what the content of a dictionary is made of, at most size bytes, the rarest first:
// the commonest come last, where an offset costs least. Forms that count at least whole are in it
// as they are; of others there is what is in no form before.
func cut(forms []weighted, size int, whole float64) (pieces []string) {
	seen := map[string]struct{}{}
	total := 0
	take := func(text string) bool {
		if total+len(text) > size {
			return false
		}
		total += len(text)
		pieces = append(pieces, text)
		for i := range max(0, len(text)-gram+1) {
			seen[text[i:i+gram]] = struct{}{}
		}
		return true
	}
	for _, f := range forms {
		full := false
		if f.weight >= whole {
			full = !take(f.text)
		} else {
			for _, run := range unseen(f.text, seen) {
				full = !take(f.text[run[0]:run[1]]) || full
			}
		}
		if full {
			break
		}
	}
	slices.Reverse(pieces)
	return v1Last(pieces)
}

// v1Last moves the forms of the v2 wire in front of the commonest of v1. Of two that begin alike
// libzstd finds the latter; what both wires have in common then is found in the form that goes on
// as the event does. An event of the v2 wire begins like no other.
func v1Last(pieces []string) []string {
	var v1, v2 []string
	for _, piece := range pieces {
		if strings.HasPrefix(piece, `{"$type":"message"`) {
			v2 = append(v2, piece)
		} else {
			v1 = append(v1, piece)
		}
	}
	return slices.Insert(v1, max(0, len(v1)-phased/2), v2...)
}

// stride is how far apart the positions are that libzstd indexes first. Those between are found
// less often, so it matters at which of them a form begins.
const stride = 3

// join returns the pieces one after another, the last of them each at its phase: where it begins
// in a stride.
func join(pieces []string, phases []int) []byte {
	var out []byte
	for i, piece := range pieces {
		if at := i - (len(pieces) - len(phases)); at >= 0 {
			for len(out)%stride != phases[at] {
				out = append(out, ' ')
			}
		}
		out = append(out, piece...)
	}
	return out
}

// unseen returns the runs of a text that hold what is new in it.
func unseen(text string, seen map[string]struct{}) (runs [][2]int) {
	for i := range max(0, len(text)-gram+1) {
		if _, ok := seen[text[i:i+gram]]; ok {
			continue
		}
		if n := len(runs); n > 0 && i <= runs[n-1][1]+gap {
			runs[n-1][1] = i + gram
		} else {
			runs = append(runs, [2]int{i, i + gram})
		}
	}
	return runs
}
