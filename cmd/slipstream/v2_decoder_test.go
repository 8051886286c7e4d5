package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// wireSample is what consumers of either wire got of the same events.
type wireSample struct {
	dictionary []byte   // as it was downloaded
	texts      [][]byte // of v1, then of v2
	packed     [][]byte // the same as binary frames
}

// sampleWires takes a sample from a daemon.
func sampleWires(t testing.TB) *wireSample {
	t.Helper()
	const total = 400
	first := int64(simrelay.DefaultFirstSeq)
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 92, Records: 20, Total: total})
	d := serveV2(t, upstream, t.TempDir())
	testproc.WaitFor(t, "the stream's end", func() bool { return int64(scrape(t, d.metrics)["slipstream_upstream_seq"]) == first+total-1 })
	v1 := len(expectedEvents(relay, first, first+total-1))
	v2 := 0
	for seq := first; seq < first+total; seq++ {
		v2 += len(relay.Expected(seq))
	}
	s := &wireSample{}
	s.texts = append(s.texts, newReader(t, dial(t, d.addr, "cursor=0")).messages(t, v1)...)
	ws := dial(t, d.addr, "cursor=0&compress=true")
	for range v1 {
		ws.SetReadDeadline(time.Now().Add(20 * time.Second))
		op, message, err := ws.ReadMessage()
		if err != nil || op != websocket.BinaryMessage {
			t.Fatalf("opcode %d, %v", op, err)
		}
		s.packed = append(s.packed, message)
	}
	for _, f := range dialV2(t, d.addr, "cursor=0").frames(t, v2) {
		s.texts = append(s.texts, f.text)
	}
	for _, f := range dialV2(t, d.addr, "cursor=0&"+packed(t)).frames(t, v2) {
		s.packed = append(s.packed, f.raw)
	}
	resp := request(t, "GET", "http://"+d.addr+v2DictPath)
	var err error
	if s.dictionary, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	d.End(t)
	return s
}

// check holds what a decoder makes of the binary frames against the text frames.
func (s *wireSample) check(t testing.TB, decode func(frame []byte) ([]byte, error)) {
	t.Helper()
	for i, frame := range s.packed {
		got, err := decode(frame)
		if err != nil || !bytes.Equal(got, s.texts[i]) {
			t.Fatalf("frame %d: %v:\n got %s\nwant %s", i, err, got, s.texts[i])
		}
	}
}

// The decompressed bytes of a compressed frame are exactly the text frame, with the
// dictionary as it is downloaded and whatever the decoder: one in Go, one in JavaScript, and
// with cgo libzstd (v2_decoder_cgo_test.go).
func TestDecoders(t *testing.T) {
	s := sampleWires(t)
	t.Run("klauspost", func(t *testing.T) {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderDicts(s.dictionary))
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		s.check(t, func(frame []byte) ([]byte, error) { return dec.DecodeAll(frame, nil) })
	})
	t.Run("libzstd", func(t *testing.T) { checkLibzstd(t, s) })
	t.Run("JavaScript", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		dir := javascript(ctx, t)
		var frames []byte
		for _, frame := range s.packed {
			frames = append(binary.LittleEndian.AppendUint32(frames, uint32(len(frame))), frame...)
		}
		for name, data := range map[string][]byte{"dictionary": s.dictionary, "frames": frames} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(ctx, "node", "decode.js", "dictionary", "frames")
		cmd.Dir, cmd.Stderr = dir, testLog{t}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Split(bytes.TrimSuffix(out, []byte("\n")), []byte("\n"))
		if len(lines) != len(s.packed) {
			t.Fatalf("%d lines of %d frames", len(lines), len(s.packed))
		}
		i := 0
		s.check(t, func([]byte) ([]byte, error) { i++; return lines[i-1], nil })
		for _, line := range lines {
			if !json.Valid(line) {
				t.Fatalf("no JSON: %s", line)
			}
		}
	})
}

// javascript installs the decoder of testdata/js in a directory of its own, and skips where
// it cannot.
func javascript(ctx context.Context, t testing.TB) (dir string) {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no JavaScript decoder: %v", err)
		}
	}
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "js"))); err != nil {
		t.Fatal(err)
	}
	install := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("no JavaScript decoder: npm ci: %v: %.500s", err, out)
	}
	return dir
}
