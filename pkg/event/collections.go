package event

import (
	"errors"
	"slices"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// Collections is a set of collections, as people name them: NSIDs, and prefixes of NSIDs like
// app.bsky.feed.*. The zero value has none. It must not be changed once it is shared.
type Collections struct {
	Exact    map[string]struct{}
	Prefixes []string // each once, with its final dot
}

// ErrCollection says that a text names no collections.
var ErrCollection = errors.New("is not an NSID, like app.bsky.feed.post, nor a prefix, like app.bsky.feed.*")

// Add adds what a text names, of which it keeps nothing. The error is ErrCollection.
func (c *Collections) Add(text string) error {
	if prefix, ok := strings.CutSuffix(text, "*"); ok {
		if !validPrefix(prefix) {
			return ErrCollection
		}
		if !slices.Contains(c.Prefixes, prefix) {
			c.Prefixes = append(c.Prefixes, strings.Clone(prefix))
		}
		return nil
	}
	if _, err := syntax.ParseNSID(text); err != nil {
		return ErrCollection
	}
	if c.Exact == nil {
		c.Exact = map[string]struct{}{}
	}
	c.Exact[strings.Clone(text)] = struct{}{}
	return nil
}

// validPrefix reports whether s is one or more segments of an NSID, each with its dot.
func validPrefix(s string) bool {
	if len(s) > 300 || !strings.HasSuffix(s, ".") {
		return false
	}
	for part := range strings.SplitSeq(s[:len(s)-1], ".") {
		if part == "" || len(part) > 63 {
			return false
		}
		for _, c := range []byte(part) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

// Empty reports whether the set has no collection.
func (c *Collections) Empty() bool { return len(c.Exact) == 0 && len(c.Prefixes) == 0 }

// Has reports whether a collection, an NSID, is in the set.
func (c *Collections) Has(name string) bool {
	if _, ok := c.Exact[name]; ok {
		return true
	}
	return slices.ContainsFunc(c.Prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// HasBytes is Has, and allocates nothing.
func (c *Collections) HasBytes(name []byte) bool {
	if _, ok := c.Exact[string(name)]; ok {
		return true
	}
	return slices.ContainsFunc(c.Prefixes, func(p string) bool {
		return len(name) >= len(p) && string(name[:len(p)]) == p
	})
}
