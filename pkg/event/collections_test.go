package event_test

import (
	"strings"
	"testing"

	"slipstream/pkg/event"
)

func TestCollections(t *testing.T) {
	var c event.Collections
	if !c.Empty() || c.Has("a.b.c") {
		t.Error("the zero value has something")
	}
	for _, text := range []string{"app.bsky.feed.post", "app.bsky.graph.*", "app.bsky.graph.*", "com.*", "a-b.C9.*"} {
		if err := c.Add(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for name, want := range map[string]bool{
		"app.bsky.feed.post": true, "app.bsky.feed.postgate": false, "app.bsky.graph.follow": true, "app.bsky.graphs.follow": false,
		"com.example.a": true, "community.lexicon.a": false, "a-b.C9.x": true,
	} {
		if c.Has(name) != want || c.HasBytes([]byte(name)) != want {
			t.Errorf("%s: %v and %v, want %v", name, c.Has(name), c.HasBytes([]byte(name)), want)
		}
	}
	if len(c.Prefixes) != 3 || c.Empty() {
		t.Errorf("%v", c)
	}
	for _, text := range []string{"", "*", ".*", "app", "app.bsky", "app.*.post", "app.bsky*", "app..*", "app.bsky.feed.post.", "ä.b.*", strings.Repeat("a", 64) + ".*", strings.Repeat("a.", 151) + "*"} {
		if err := c.Add(text); err != event.ErrCollection {
			t.Errorf("%q: %v", text, err)
		}
	}
	name := []byte("com.example.something.longer.than.thirty.two.bytes")
	if n := testing.AllocsPerRun(100, func() { c.HasBytes(name) }); n != 0 {
		t.Errorf("HasBytes allocates %v times", n)
	}
}
