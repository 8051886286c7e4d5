package ingest

import "slipstream/pkg/event"

// Filter says what is left out of the log altogether. #sync events always stay, since they say
// that there is something to be fetched.
type Filter struct {
	Collections           event.Collections // to take in; empty: all
	ExcludeCollections    event.Collections // to leave out even if Collections name them
	NoIdentity, NoAccount bool
}

// excludes reports whether commits to a collection are left out.
func (f *Filter) excludes(collection []byte) bool {
	return !f.Collections.Empty() && !f.Collections.HasBytes(collection) || f.ExcludeCollections.HasBytes(collection)
}
