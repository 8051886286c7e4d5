package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// runCommand runs a command of the program inside the test.
func runCommand(ctx context.Context, args ...string) (stdout string, err error) {
	var out, errOut bytes.Buffer
	c := command()
	c.Writer, c.ErrWriter = &out, &errOut
	err = c.Run(ctx, append([]string{"slipstream"}, args...))
	return out.String(), err
}

func inspectJSON(t testing.TB, args ...string) *inspection {
	t.Helper()
	out, err := runCommand(t.Context(), append([]string{"inspect", "--json"}, args...)...)
	if err != nil {
		t.Fatalf("inspect: %v", err)
	}
	in := &inspection{}
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if d.More() {
		t.Fatalf("more than one value: %s", out)
	}
	return in
}

// awaitSeq waits until the daemon has stored what the relay sent up to seq.
func awaitSeq(t testing.TB, metrics string, seq int64) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); scrape(t, metrics)["slipstream_upstream_seq"] < float64(seq); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the daemon has not come to seq %d", seq)
		}
	}
}

// What inspect says of a store is what the relay sent and what consumers received.
func TestInspect(t *testing.T) {
	const total = 6000
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 31, Loop: 700, Total: total})
	cfg := testConfig(t, upstream)
	d := startDaemon(t, cfg)
	last := int64(simrelay.DefaultFirstSeq + total - 1)
	awaitSeq(t, d.metrics, last)
	want := expectedEvents(relay, simrelay.DefaultFirstSeq, last)
	kinds, collections := map[string]share{}, map[string]share{}
	count := func(to map[string]share, name string, jsonBytes int) {
		s := to[name]
		s.Name = name
		s.Events++
		s.JSONBytes += int64(jsonBytes)
		to[name] = s
	}
	for _, m := range newReader(t, dial(t, d.addr, "cursor=0")).messages(t, len(want)) {
		header := 4
		switch {
		case len(m) < 126:
			header = 2
		case len(m) > 0xffff:
			header = 10
		}
		e := parseEvent(t, m)
		count(kinds, e.Kind, header+len(m))
		if e.Kind == "commit" {
			count(collections, e.Commit.Collection, header+len(m))
		}
	}
	all := len(want)
	for seq := int64(simrelay.DefaultFirstSeq); seq <= last; seq++ {
		for _, e := range relay.Expected(seq) {
			if e.Kind == "sync" {
				count(kinds, "sync", 0)
				all++
			}
		}
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}

	in := inspectJSON(t, "--data-dir", cfg.DataDir)
	if in.Events != int64(all) || in.DaemonRunning || in.Upstream == nil || in.Upstream.URL != cfg.UpstreamURLs[0] || int64(in.Upstream.Seq) != last {
		t.Errorf("got %+v, upstream %+v; want %d events, %s at %d", in, in.Upstream, all, cfg.UpstreamURLs[0], last)
	}
	check := func(what string, got []share, want map[string]share) {
		var jsonBytes, zstdBytes, extraBytes int64
		sum := 0.0
		for _, g := range got {
			w := want[g.Name]
			jsonBytes, zstdBytes, extraBytes, sum = jsonBytes+g.JSONBytes, zstdBytes+g.ZstdBytes, extraBytes+g.ExtraBytes, sum+g.Share
			if g.Events != w.Events || g.JSONBytes != w.JSONBytes || (g.ZstdBytes > 0) != (g.JSONBytes > 0) || (g.ExtraBytes > 0) != (g.Name == "sync") {
				t.Errorf("%s %s: got %+v, want %+v", what, g.Name, g, w)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d %ss, want %d", len(got), what, len(want))
		}
		if what == "kind" && (jsonBytes != in.Bytes.JSON || zstdBytes != in.Bytes.Zstd || extraBytes != in.Bytes.Extra || sum < 0.999 || sum > 1.001) {
			t.Errorf("kinds add up to %d, %d and %d bytes and %f, all are %+v", jsonBytes, zstdBytes, extraBytes, sum, in.Bytes)
		}
	}
	check("kind", in.Kinds, kinds)
	check("collection", in.Collections, collections)
	if len(in.Dictionaries) != 1 || in.Dictionaries[0].Events != in.Events {
		t.Errorf("dictionaries: got %+v", in.Dictionaries)
	}
	if in.OldestTime.UnixMicro() != int64(in.OldestCursor) || in.NewestTime.UnixMicro() != int64(in.NewestCursor) || in.OldestCursor >= in.NewestCursor ||
		in.ReplaySeconds < in.SpanSeconds || in.SpanSeconds <= 0 {
		t.Errorf("times: got %+v", in)
	}
	if in.Disk.UsedBytes < in.Bytes.Stored/2 || in.Disk.TotalBytes <= in.Disk.FreeBytes || in.BytesPerEvent < 100 || in.BytesPerEvent > 1000 {
		t.Errorf("disk: got %+v for %+v", in.Disk, in.Bytes)
	}
	if again := inspectJSON(t, "--data-dir", cfg.DataDir); !reflect.DeepEqual(again.Collections, in.Collections) || again.Bytes != in.Bytes {
		t.Errorf("a second look differs: %+v, then %+v", in, again)
	}

	text, err := runCommand(t.Context(), "inspect", "--data-dir", cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "\x1b") {
		t.Errorf("colour, but no terminal:\n%s", text)
	}
	for _, part := range []string{fmt.Sprintf("%d, in ", all), cfg.UpstreamURLs[0], in.OldestCursor.String(), filepath.Join(cfg.DataDir, "slipstream"), "app.bsky.feed.like"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
	if out, err := runCommand(t.Context(), "verify", "--data-dir", cfg.DataDir); err != nil || !strings.HasPrefix(out, fmt.Sprintf("verified %d events in ", all)) ||
		!strings.HasSuffix(out, ": no violation\n") {
		t.Errorf("verify: %q, %v", out, err)
	}
}

// Scripts rely on the names.
func TestInspectNames(t *testing.T) {
	dir := t.TempDir()
	makeStore(t, dir, nil)
	out, err := runCommand(t.Context(), "inspect", "--json", "--data-dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	names := func(v any) string { return strings.Join(slices.Sorted(maps.Keys(v.(map[string]any))), " ") }
	first := func(name string) any { return all[name].([]any)[0] }
	for _, c := range []struct{ what, got, want string }{
		{"all", names(all), "blocks bytes bytes_per_event collections daemon_running dictionaries disk events format fresh_chunks kinds newest_cursor newest_time oldest_cursor oldest_time replay_seconds span_seconds store trimmed_cursor upstream"},
		{"bytes", names(all["bytes"]), "excerpts extra index json json_packed keys stored zstd"},
		{"kinds", names(first("kinds")), "events extra_bytes json_bytes name share zstd_bytes"},
		{"collections", names(first("collections")), "events extra_bytes json_bytes name share zstd_bytes"},
		{"dictionaries", names(first("dictionaries")), "events id"},
		{"upstream", names(all["upstream"]), "seq url"},
		{"disk", names(all["disk"]), "free_bytes total_bytes used_bytes"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got  %s\nwant %s", c.what, c.got, c.want)
		}
	}
}

// The terminal shows the twenty largest collections, and how many more there are.
func TestInspectTable(t *testing.T) {
	now := time.Now()
	in := inspection{Events: 43_200_000, Blocks: 43_200, OldestTime: &now, NewestTime: &now}
	for i := range 25 {
		in.Collections = append(in.Collections, share{Name: fmt.Sprintf("example.collection%02d", i), Events: int64(100 - i), Share: 0.01, JSONBytes: 1_234_567_890})
	}
	in.Collections[3].Name = strings.Repeat("x", 317)
	var out bytes.Buffer
	if err := in.print(&out, true); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"43.2 million, in 43200 blocks", "collection19", "5 others", "1.23 GB", "6.17 GB", "5.00 %", "\x1b[1mevents"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("%q is missing in\n%s", part, out.String())
		}
	}
	if strings.Contains(out.String(), "collection20") {
		t.Errorf("more than twenty collections:\n%s", out.String())
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 110 {
			t.Errorf("a line of %d bytes: %s", len(line), line)
		}
	}
}

func TestUnits(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{count(1, "block"), "1 block"},
		{count(999_999, "event"), "999999 events"},
		{count(43_212_000, "event"), "43.2 million events"},
		{bytesText(999), "999 B"},
		{bytesText(1000), "1.00 kB"},
		{bytesText(18_140_000_000), "18.1 GB"},
		{bytesText(999_600), "1.00 MB"},
		{durationText(24*time.Hour - 40*time.Second), "23h59m"},
		{durationText(90 * time.Second), "1m30s"},
		{durationText(-time.Second), "0s"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
