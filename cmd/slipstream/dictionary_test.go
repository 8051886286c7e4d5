package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
	"slipstream/pkg/train"
)

// writeEvents writes likes and follows, one a line.
func writeEvents(t testing.TB, file string, n int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 6))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcdefghijklmnopqrstuvwxyz234567"[rng.IntN(32)]
		}
		return b
	}
	var out bytes.Buffer
	for i := range n {
		collection, more := "app.bsky.feed.like", fmt.Sprintf(`{"cid":"bafyrei%s","uri":"at://did:plc:%s/app.bsky.feed.post/3n%s"}`, random(52), random(24), random(11))
		if i%10 == 0 {
			collection, more = "app.bsky.graph.follow", fmt.Sprintf(`"did:plc:%s"`, random(24))
		}
		fmt.Fprintf(&out, `{"did":"did:plc:%s","time_us":%d,"kind":"commit","commit":{"rev":"3n%s","operation":"create","collection":"%s","rkey":"3n%s",`+
			`"record":{"$type":"%[4]s","subject":%[6]s,"createdAt":"2026-11-26T00:00:%02[7]d.%03[7]dZ"},"cid":"bafyrei%[8]s"}}`+"\n",
			random(24), 1_795_651_200_000_000+rng.IntN(1e9), random(11), collection, random(11), more, rng.IntN(60), random(52))
	}
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A dictionary is trained, measured and written, twice the same.
func TestDictionaryTrain(t *testing.T) {
	if testing.Short() {
		t.Skip("training takes its time")
	}
	if err := train.Available(); err != nil {
		t.Skip(err)
	}
	defer func(all []train.Params) { train.Choices = all }(train.Choices)
	train.Choices = train.Choices[:2]
	dir := t.TempDir()
	events, other, out := filepath.Join(dir, "events.jsonl"), filepath.Join(dir, "other.zdict"), filepath.Join(dir, "new.zdict")
	writeEvents(t, events, 2000)
	if err := os.WriteFile(other, dictionaries.All()[0], 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"dictionary", "train", "--from", events, "--test", events, "--dictionary", other, "--out", out, "--id", "20991231"}
	text, err := runCommand(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"chosen: ", "events.jsonl, with a dictionary of the others':", "events.jsonl, not learnt from:", "in use v1", "other v1",
		"app.bsky.graph.follow      200  0.", "all, as on the network", "written " + out, "id 20991231, from 2000 events"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
	if strings.ContainsAny(text, "\x1b\r") {
		t.Errorf("colour or progress, but no terminal:\n%s", text)
	}
	d, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := event.DictionaryID(d); id != 20991231 || err != nil {
		t.Errorf("id %d, %v", id, err)
	}
	if _, err := event.NewCompressor(d); err != nil {
		t.Error(err)
	}

	if _, err := runCommand(t.Context(), args...); err == nil || !strings.Contains(err.Error(), "new.zdict: the file exists, and a dictionary that was shipped never changes") {
		t.Errorf("an existing file: got %v", err)
	}
	if _, err := runCommand(t.Context(), append(args, "--force")...); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(out); err != nil || !bytes.Equal(again, d) {
		t.Errorf("the same events make another dictionary: %d bytes, then %d, %v", len(d), len(again), err)
	}
}

// A data dir is learnt from, also beside the daemon that writes it.
func TestDictionaryOfDataDir(t *testing.T) {
	if testing.Short() {
		t.Skip("training takes its time")
	}
	if err := train.Available(); err != nil {
		t.Skip(err)
	}
	const last = simrelay.DefaultFirstSeq + 2999
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 41, Loop: 700, Total: 3000})
	cfg := testConfig(t, upstream)
	d := startDaemon(t, cfg)
	awaitSeq(t, d.metrics, last)
	want := len(expectedEvents(relay, simrelay.DefaultFirstSeq, last))
	newReader(t, dial(t, d.addr, "cursor=0")).messages(t, want) // all that is sent is stored
	s, err := (&trainConfig{addr: d.metrics}).load(t.Context(), "from", cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	again, err := (&trainConfig{}).load(t.Context(), "from", cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if n, m := len(s.Events()), len(again.Events()); n != want || m != want {
		t.Errorf("%d events beside the daemon and %d after it, want %d", n, m, want)
	}
	if _, err := train.New([]*train.Source{s}); err != nil {
		t.Error(err)
	}
}

func TestDictionaryRefuses(t *testing.T) {
	if err := train.Available(); err != nil {
		if _, got := runCommand(t.Context(), "dictionary", "train", "--from", "x", "--out", filepath.Join(t.TempDir(), "y")); got == nil || got.Error() != err.Error() {
			t.Errorf("got %v, want %v", got, err)
		}
		return
	}
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	few := filepath.Join(dir, "few.jsonl")
	writeEvents(t, few, 20)
	out := filepath.Join(dir, "out.zdict")
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "--from is missing: name a data dir"},
		{[]string{"--from", few}, "--out is missing"},
		{[]string{"--from", few, "--out", out, "--id", "7"}, "--id 7: it must be from 32768 to 2147483647"},
		{[]string{"--from", few, "--out", filepath.Join(dir, "none", "x")}, "there is no directory"},
		{[]string{"--from", few, "--out", out, "more"}, `train takes flags only, not "more"`},
		{[]string{"--from", filepath.Join(dir, "none"), "--out", out}, "none: no such file or directory"},
		{[]string{"--from", dir, "--out", out}, "--from " + dir + ": there is no event log"},
		{[]string{"--from", few, "--out", out}, "--from: 20 events of too few authors"},
		{[]string{"--from", file("empty", "\n"), "--out", out}, "there is no event in it"},
		{[]string{"--from", file("text", "hello\n"), "--out", out}, "line 1: no v1 event"},
		{[]string{"--from", file("x.zst", "hello\n"), "--out", out}, "x.zst: "},
		{[]string{"--from", file("x.car", "hello\n"), "--out", out}, "no CAR, or one that was cut off"},
		{[]string{"--from", few, "--test", file("x.bin", "hello\n"), "--out", out}, "--test " + filepath.Join(dir, "x.bin") + ": frame 1: the file ends"},
		{[]string{"--from", few, "--dictionary", few, "--out", out}, "few.jsonl: not a zstd dictionary"},
	} {
		_, err := runCommand(t.Context(), append([]string{"dictionary", "train"}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want %q", c.args, err, c.want)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("something was written")
	}
	if _, err := runCommand(t.Context(), "dictionary", "bake"); err == nil || !strings.Contains(err.Error(), `no subcommand "bake"`) {
		t.Errorf("got %v", err)
	}
}
