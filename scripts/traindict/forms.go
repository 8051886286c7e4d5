package main

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// content returns a dictionary without its tables: the commonest forms of the samples, the
// very commonest last, where an offset costs least.
func content(samples [][]byte, size int) []byte {
	// A text that few events share is what somebody wrote.
	const few = 5
	shared := make(map[string]int)
	for _, e := range samples {
		for _, text := range quoted.FindAllString(blank(e), -1) {
			shared[text]++
		}
	}
	count := make(map[string]int)
	for _, e := range samples {
		count[quoted.ReplaceAllStringFunc(blank(e), func(text string) string {
			switch {
			case strings.HasPrefix(text, `"https://`):
				return `"https://"`
			case shared[text] < few || !token.MatchString(text):
				return `""`
			}
			return text
		})]++
	}
	common := slices.SortedFunc(maps.Keys(count), func(a, b string) int {
		return cmp.Or(count[b]-count[a], strings.Compare(a, b))
	})
	total := 0
	for i, form := range common {
		if total += len(form); total > size {
			common = common[:i]
			break
		}
	}
	slices.Reverse(common)
	return []byte(strings.Join(common, ""))
}

var (
	quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	token  = regexp.MustCompile(`^"[!-~]*"$`) // prose has spaces, or other scripts
	// identifiers are DIDs, CIDs, TIDs and times.
	identifiers = regexp.MustCompile(`did:plc:[a-z2-7]{24}|baf(yr|kr)ei[a-z2-7]{52}|\b3[a-z2-7]{12}\b|` +
		`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)
	cursor = regexp.MustCompile(`"time_us":\d{16}`)
	number = regexp.MustCompile(`":\d+\b`)
	digit  = regexp.MustCompile(`\d`)
	filler = strings.Repeat("x", 64) // in no DID or CID is a run of these, so none is found in vain
)

// blank returns an event without its identifiers, times and numbers, as wide as before
// where the width is always the same.
func blank(e []byte) string {
	s := identifiers.ReplaceAllStringFunc(string(e), func(old string) string {
		switch {
		case strings.HasPrefix(old, "did:"):
			return "did:plc:" + filler[:24]
		case strings.HasPrefix(old, "baf"):
			return old[:len("bafyrei")] + filler[:52]
		case strings.HasPrefix(old, "3"):
			return "3n" + filler[:11] // every TID until December 2027 begins so
		default:
			return "202" + digit.ReplaceAllString(old[len("202"):], "x")
		}
	})
	s = cursor.ReplaceAllString(s, `"time_us":1`+filler[:15])
	return number.ReplaceAllString(s, `":1`)
}
