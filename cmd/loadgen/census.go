package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// census says what each filter lets pass of a buffer, from one look at every event of it:
// a second and obvious way to filter, to hold the daemon's against.
type census struct {
	events int64
	all    wanted
	some   map[string]*wanted // by collections, as scenarios name them
	byDID  map[string]*wanted
	err    error // the first event that was not as it should be
}

// wanted is what one filter lets pass.
type wanted struct {
	collections []string
	tracker     tracker
	// passed is how many events there are up to the last that is wanted: a consumer that has
	// that one has made the daemon pass so many.
	passed int64
}

func (w *wanted) add(c *census, head []byte, size int) {
	if err := w.tracker.saw(head, size); err != nil && c.err == nil {
		c.err = err
	}
	w.passed = c.events
}

var (
	didField        = []byte(`"did":"`)
	kindField       = []byte(`"kind":"`)
	collectionField = []byte(`"collection":"`)
)

// field returns what follows name, up to the next quote; nil if it is not there.
func field(head, name []byte) []byte {
	_, rest, ok := bytes.Cut(head, name)
	if !ok {
		return nil
	}
	value, _, ok := bytes.Cut(rest, []byte{'"'})
	if !ok {
		return nil
	}
	return value
}

func (c *census) saw(head []byte, size int) {
	c.events++
	c.all.add(c, head, size)
	did, kind := field(head, didField), field(head, kindField)
	of := c.byDID[string(did)]
	if of == nil {
		of = &wanted{}
		c.byDID[string(did)] = of
	}
	of.add(c, head, size)
	var collection string
	commit := string(kind) == "commit"
	if commit {
		collection = string(field(head, collectionField))
	}
	if (did == nil || kind == nil || commit && collection == "") && c.err == nil {
		c.err = fmt.Errorf("an event without did, kind or collection: %q", head)
	}
	for _, w := range c.some {
		// Identity and account events pass every filter of collections.
		if !commit || slices.Contains(w.collections, collection) {
			w.add(c, head, size)
		}
	}
}

// someone returns a repository of which there are as many events as of most, and of those the
// one that is seen last: nearly all of the buffer is passed for it.
func (c *census) someone() string {
	count := func(did string) int64 { return c.byDID[did].tracker.count }
	all := slices.SortedFunc(maps.Keys(c.byDID), func(a, b string) int { return cmp.Compare(count(a), count(b)) })
	usual := count(all[len(all)/2])
	all = slices.DeleteFunc(all, func(did string) bool { return count(did) != usual })
	return slices.MaxFunc(all, func(a, b string) int { return cmp.Compare(c.byDID[a].passed, c.byDID[b].passed) })
}

// unpacker looks into compressed events. Its tracker is that of the same events plain.
type unpacker struct {
	decoder *zstd.Decoder
	buf     []byte
	tracker tracker
	err     error // the first one
}

func newUnpacker(dictionary []byte) (*unpacker, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderDicts(dictionary), zstd.WithDecoderConcurrency(1))
	return &unpacker{decoder: d}, err
}

func (u *unpacker) saw(frame []byte, _ int) {
	if u.err != nil {
		return
	}
	if u.buf, u.err = u.decoder.DecodeAll(frame, u.buf[:0]); u.err == nil {
		u.err = u.tracker.saw(u.buf, headerBytes(len(u.buf))+len(u.buf))
	}
}
