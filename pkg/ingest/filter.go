package ingest

import (
	"slices"
	"strings"
)

// Filter says what is left out of the log altogether. #sync events always stay, since they say
// that there is something to be fetched.
type Filter struct {
	// Collections to take in, NSIDs or prefixes like app.bsky.*; none: all.
	Collections []string
	// ExcludeCollections are left out even if Collections name them.
	ExcludeCollections    []string
	NoIdentity, NoAccount bool
}

// exclusion decides on collections.
type exclusion struct {
	include, exclude names
}

// newExclusion returns nil if every collection is wanted.
func newExclusion(f Filter) *exclusion {
	if len(f.Collections) == 0 && len(f.ExcludeCollections) == 0 {
		return nil
	}
	return &exclusion{newNames(f.Collections), newNames(f.ExcludeCollections)}
}

func (e *exclusion) excludes(collection []byte) bool {
	return !e.include.empty() && !e.include.has(collection) || e.exclude.has(collection)
}

// names are NSIDs and prefixes of them.
type names struct {
	exact    map[string]struct{}
	prefixes []string // ending in a dot
}

func newNames(list []string) names {
	n := names{exact: make(map[string]struct{})}
	for _, name := range list {
		if prefix, ok := strings.CutSuffix(name, "*"); ok {
			n.prefixes = append(n.prefixes, prefix)
		} else {
			n.exact[name] = struct{}{}
		}
	}
	return n
}

func (n *names) empty() bool { return len(n.exact) == 0 && len(n.prefixes) == 0 }

func (n *names) has(name []byte) bool {
	if _, ok := n.exact[string(name)]; ok {
		return true
	}
	return slices.ContainsFunc(n.prefixes, func(p string) bool {
		return len(name) > len(p) && string(name[:len(p)]) == p
	})
}
