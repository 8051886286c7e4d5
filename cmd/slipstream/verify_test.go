package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// storedEvent is one event as it is put into a store by hand.
type storedEvent struct {
	cursor           event.Cursor
	kind             event.Kind
	did, collection  string
	json, zstd, more []byte
}

const (
	firstStored  = event.Cursor(1_790_000_000_000_000)
	storedBlocks = 4
	blockEvents  = 600 // enough for a block of their own
)

func testCompressor(t testing.TB) *event.Compressor {
	t.Helper()
	c, err := event.NewCompressor(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// makeStore stores a few blocks of events and some fresh ones in a data dir, after bend has
// changed them. It returns the first block's last cursor.
func makeStore(t testing.TB, dataDir string, bend func(i int, e *storedEvent)) {
	t.Helper()
	log, err := eventlog.Open(eventlog.Config{Dir: filepath.Join(dataDir, "slipstream")})
	if err != nil {
		t.Fatal(err)
	}
	compressor := testCompressor(t)
	prev, dictionary := event.Cursor(0), compressor.ID()
	n := 0
	var b eventlog.Builder
	for chunk := range storedBlocks + 1 {
		size := blockEvents
		if chunk == storedBlocks {
			size = 10
		}
		var json, zstd, extra []byte
		last := prev
		for range size {
			e := storedEvent{cursor: firstStored + 1000*event.Cursor(n), did: fmt.Sprintf("did:plc:%024d", n%50)}
			switch n % 100 {
			case 7:
				e.kind = event.KindSync
				e.more, err = event.AppendSync(nil, []byte(e.did), []byte{0xa1, 0x61, 'a', 0x01})
				if err != nil {
					t.Fatal(err)
				}
				event.SetCursor(e.more, len(e.did), e.cursor)
			case 8:
				e.kind = event.KindAccount
				e.json = event.AppendAccount(nil, []byte(e.did), true, int64(n), nil, []byte("2026-11-25T00:00:00Z"))
			case 9:
				e.kind = event.KindIdentity
				e.json = event.AppendIdentity(nil, []byte(e.did), []byte("a.example"), int64(n), []byte("2026-11-25T00:00:00Z"))
			default:
				e.kind, e.collection = event.KindCommit, "app.bsky.feed.like"
				if n%3 == 0 {
					e.collection = "app.bsky.feed.post"
				}
				e.json, _, err = event.AppendCommit(nil, []byte(e.did), fmt.Appendf(nil, "rev%d", n), &event.Op{
					Operation: "delete", Collection: []byte(e.collection), RKey: fmt.Appendf(nil, "key%d", n)})
				if err != nil {
					t.Fatal(err)
				}
			}
			if e.json != nil {
				event.SetCursor(event.Payload(e.json), len(e.did), e.cursor)
				e.zstd = compressor.AppendBinary(nil, event.Payload(e.json))
			}
			if bend != nil {
				bend(n, &e)
			}
			json, zstd, extra = append(json, e.json...), append(zstd, e.zstd...), append(extra, e.more...)
			b.Add(e.cursor, e.kind, []byte(e.did), []byte(e.collection), [...]uint32{
				eventlog.JSON: uint32(len(json)), eventlog.Zstd: uint32(len(zstd)), eventlog.Extra: uint32(len(extra))})
			last = e.cursor
			n++
		}
		c, err := b.Seal(prev, dictionary, json, zstd, extra)
		if err != nil {
			t.Fatal(err)
		}
		if err := log.Append(t.Context(), []*eventlog.Chunk{c}, []byte(`{"url":"wss://relay.example","seq":5}`)); err != nil {
			t.Fatal(err)
		}
		prev = last
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// lastOf is the last cursor of a block, which is its key.
func lastOf(block int) event.Cursor {
	return firstStored + 1000*event.Cursor((block+1)*blockEvents-1)
}

// bendStore changes a store behind the log's back.
func bendStore(t testing.TB, dataDir string, bend func(db *pebble.DB) error) {
	t.Helper()
	db, err := pebble.Open(filepath.Join(dataDir, "slipstream"), &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bend(db), db.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
}

type quiet struct{}

func (quiet) Infof(string, ...any)              {}
func (quiet) Errorf(string, ...any)             {}
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// storeKey is a key of the layout: see the comment of package eventlog.
func storeKey(c event.Cursor, part byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{'e'}, uint64(c)), part)
}

// Whatever is wrong with a store, verify ends with an error that names the place.
func TestVerifyFindsDamage(t *testing.T) {
	const at = 2*blockEvents + 130 // an event of the third block, and a commit
	compressor := testCompressor(t)
	// remake bends an event's JSON and makes its other form of that.
	remake := func(old, new string) func(e *storedEvent) {
		return func(e *storedEvent) {
			payload := bytes.Replace(event.Payload(e.json), []byte(old), []byte(new), 1)
			if bytes.Equal(payload, event.Payload(e.json)) {
				t.Fatalf("%q is not in %s", old, payload)
			}
			e.zstd = compressor.AppendBinary(nil, payload)
			d, err := event.NewDecompressor(dictionaries.Current())
			if err != nil {
				t.Fatal(err)
			}
			if e.json, err = d.AppendText(nil, e.zstd); err != nil {
				t.Fatal(err)
			}
		}
	}
	cursor := firstStored + 1000*at
	made := map[int][]byte{} // zstd forms
	makeStore(t, t.TempDir(), func(i int, e *storedEvent) { made[i] = e.zstd })
	swap := map[int]int{at: at + 1, at + 1: at}
	for _, c := range []struct {
		name  string
		event func(i int, e *storedEvent)
		at    int
		want  string
	}{
		{"a wrong cursor", nil, at, "time_us: "},
		{"swapped zstd forms", func(i int, e *storedEvent) {
			if other, ok := swap[i]; ok {
				e.zstd = made[other]
			}
		}, at, "its zstd form is not of its json form"},
		{"no zstd form", func(i int, e *storedEvent) {
			if i == at {
				e.zstd = nil
			}
		}, at, " 0 of zstd"},
		{"a zstd frame cut short", func(i int, e *storedEvent) {
			if i == at {
				e.zstd = e.zstd[:len(e.zstd)-1]
			}
		}, at, "zstd: "},
		{"a zstd frame as text", func(i int, e *storedEvent) {
			if i == at {
				e.zstd[0] = 0x81
			}
		}, at, "zstd: its frame begins with 81"},
		{"a json frame as binary", func(i int, e *storedEvent) {
			if i == at {
				e.json[0] = 0x82
			}
		}, at, "its zstd form is not of its json form"},
		{"another DID", nil, at, "did: "},
		{"another kind", nil, at, "kind: "},
		{"another collection", nil, at, "collection: "},
		{"no object", nil, at, "body: "},
		{"no JSON", nil, at, "it is not JSON"},
		{"no UTF-8", nil, at, "it is not UTF-8"},
		{"a sync event on v1's wire", func(i int, e *storedEvent) {
			if i == at {
				e.kind, e.collection = event.KindSync, ""
			}
		}, at, "a sync event with a form for v1"},
		{"a sync event that is another", func(i int, e *storedEvent) {
			if i == 2*blockEvents+107 {
				e.more[len(e.more)-1] = '{'
			}
		}, 2*blockEvents + 107, "extra: it is not JSON"},
		{"an extra where none belongs", func(i int, e *storedEvent) {
			if i == at {
				e.more = []byte("{}")
			}
		}, at, "of extra"},
	} {
		bend := map[string]func(e *storedEvent){
			"a wrong cursor":     remake(cursor.String(), (cursor + 1).String()),
			"another DID":        remake(fmt.Sprintf("%024d", at%50), fmt.Sprintf("%024d", at%50+1)),
			"another kind":       remake(`"kind":"commit"`, `"kind":"comMit"`),
			"another collection": remake(`"collection":"app`, `"collection":"apq`),
			"no object":          remake(`"commit":{`, `"commit":[`),
			"no JSON":            remake(`"rkey":"`, `"rkey":""`),
			"no UTF-8":           remake(`"rkey":"k`, "\"rkey\":\"\xff"),
		}[c.name]
		if c.event == nil {
			c.event = func(i int, e *storedEvent) {
				if i == at {
					bend(e)
				}
			}
		}
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			makeStore(t, dir, c.event)
			wrong := firstStored + 1000*event.Cursor(c.at)
			verifyFails(t, dir, fmt.Sprintf("chunk %d: ", lastOf(2)), fmt.Sprintf("event %d (%s): ", wrong, wrong.Time().UTC().Format("2006-01-02T15:04:05.000000Z")), c.want)
		})
	}

	for _, c := range []struct {
		name string
		bend func(db *pebble.DB) error
		want string
	}{
		{"a payload's key is missing", func(db *pebble.DB) error { return db.Delete(storeKey(lastOf(2), 'z'), pebble.Sync) }, fmt.Sprintf("chunk %d: payload z has 0 bytes", lastOf(2))},
		{"a block is missing", func(db *pebble.DB) error {
			return db.DeleteRange(storeKey(lastOf(1), 0), storeKey(lastOf(1), 0xff), pebble.Sync)
		}, fmt.Sprintf("chunk %d (", lastOf(2))},
		{"the index is missing", func(db *pebble.DB) error { return db.Delete(storeKey(lastOf(2), 'i'), pebble.Sync) }, fmt.Sprintf("chunk %d (", lastOf(2))},
		{"a foreign key", func(db *pebble.DB) error { return db.Set([]byte("hello"), nil, pebble.Sync) }, `"hello"`},
		{"a foreign part", func(db *pebble.DB) error { return db.Set(storeKey(lastOf(2), 'q'), nil, pebble.Sync) }, fmt.Sprintf("chunk %d (", lastOf(2))},
		{"payloads of two blocks swapped", func(db *pebble.DB) error {
			a, closer, err := db.Get(storeKey(lastOf(1), 'j'))
			if err != nil {
				return err
			}
			defer closer.Close()
			return db.Set(storeKey(lastOf(2), 'j'), bytes.Clone(a), pebble.Sync)
		}, fmt.Sprint(lastOf(2))},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			makeStore(t, dir, nil)
			bendStore(t, dir, c.bend)
			verifyFails(t, dir, c.want)
		})
	}
}

// verifyFails checks that verify ends with an error that says all of want.
func verifyFails(t testing.TB, dataDir string, want ...string) {
	t.Helper()
	out, err := runCommand(t.Context(), "verify", "--data-dir", dataDir)
	if err == nil || out != "" {
		t.Fatalf("verify found nothing wrong: %q, %v", out, err)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %q, want %q in it", err, part)
		}
	}
}

// A flipped bit anywhere in a table is found: Pebble checks what it reads, and verify reads all.
func TestVerifyFindsFlippedBit(t *testing.T) {
	dir := t.TempDir()
	makeStore(t, dir, nil)
	bendStore(t, dir, func(*pebble.DB) error { return nil }) // everything into tables
	tables, err := filepath.Glob(filepath.Join(dir, "slipstream", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	largest := ""
	size := int64(0)
	for _, name := range tables {
		if info, err := os.Stat(name); err == nil && info.Size() > size {
			largest, size = name, info.Size()
		}
	}
	b, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, len(b) / 5, len(b) / 2, len(b) * 4 / 5} {
		b[at] ^= 0x10
		if err := os.WriteFile(largest, b, 0o644); err != nil {
			t.Fatal(err)
		}
		verifyFails(t, dir, filepath.Base(largest))
		b[at] ^= 0x10
	}
	if err := os.WriteFile(largest, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t.Context(), "verify", "--data-dir", dir); err != nil || !strings.HasPrefix(out, "verified 2410 events in 5 chunks, from ") {
		t.Errorf("with the bits put right: %q, %v", out, err)
	}
}

// A dictionary that is not built in is named, and found among those kept.
func TestVerifyDictionary(t *testing.T) {
	file := filepath.Join(t.TempDir(), "other.zdict")
	if err := os.WriteFile(file, otherDictionary(4711), 0o644); err != nil {
		t.Fatal(err)
	}
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 32, Loop: 100, Total: 300})
	cfg := testConfig(t, upstream)
	cfg.LegacyDictionary = file
	d := startDaemon(t, cfg)
	awaitSeq(t, d.metrics, simrelay.DefaultFirstSeq+300-1)
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t.Context(), "verify", "--data-dir", cfg.DataDir); err != nil {
		t.Errorf("with the dictionary: %q, %v", out, err)
	}
	kept := keptIn(cfg.DataDir)
	if err := os.Remove(kept.file(4711)); err != nil {
		t.Fatal(err)
	}
	verifyFails(t, cfg.DataDir, "dictionary 4711", kept.dir)
}

// Where there is nothing to look at, one sentence says so; a log without events is in order.
func TestVerifyNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"empty", "new/slipstream", "none/slipstream"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log, err := eventlog.Open(eventlog.Config{Dir: filepath.Join(dir, "none", "slipstream")})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, want string }{
		{"empty", "there is no event log"},
		{"new", "there is no event log"},
		{"absent", "there is no event log"},
		{"file", "not a directory"},
	} {
		for _, command := range []string{"verify", "inspect"} {
			_, err := runCommand(t.Context(), command, "--data-dir", filepath.Join(dir, c.name))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s %s: got %v, want %q", command, c.name, err, c.want)
			}
		}
	}
	if out, err := runCommand(t.Context(), "verify", "--data-dir", filepath.Join(dir, "none")); err != nil || !strings.HasPrefix(out, "verified 0 events in 0 chunks, in ") {
		t.Errorf("verify without events: %q, %v", out, err)
	}
	if in := inspectJSON(t, "--data-dir", filepath.Join(dir, "none")); in.Events != 0 || in.OldestTime != nil || in.Collections == nil {
		t.Errorf("inspect without events: %+v", in)
	}
	if out, err := runCommand(t.Context(), "inspect", "--data-dir", filepath.Join(dir, "none")); err != nil || !strings.Contains(out, "none") {
		t.Errorf("inspect without events: %q, %v", out, err)
	}
	if _, err := runCommand(t.Context(), "verify", "--data-dir", dir, "more"); err == nil || !strings.Contains(err.Error(), `"more"`) {
		t.Errorf("an argument: %v", err)
	}
}

// Ctrl-C ends both, and that is not success.
func TestVerifyInterrupted(t *testing.T) {
	dir := t.TempDir()
	makeStore(t, dir, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, command := range []string{"verify", "inspect"} {
		if out, err := runCommand(ctx, command, "--data-dir", dir); err == nil || !strings.HasPrefix(err.Error(), "interrupted") || out != "" {
			t.Errorf("%s: got %q, %v", command, out, err)
		}
	}
	// The real thing: exit status 1, on stderr what is wrong.
	bendStore(t, dir, func(db *pebble.DB) error { return db.Delete(storeKey(lastOf(2), 'z'), pebble.Sync) })
	p := startProcess(t, []string{"SLIPSTREAM_DATA_DIR=" + dir}, "verify")
	err := p.Wait(t)
	if state := p.Cmd.ProcessState; err == nil || state.ExitCode() != 1 || state.Sys().(syscall.WaitStatus).Signaled() || !strings.Contains(p.Output.String(), "slipstream: chunk ") {
		t.Errorf("verify of a damaged store: %v: %s", err, p.Output)
	}
}
