package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// What simrelay cannot do it refuses in one line that names the flag.
func TestRefuses(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short.bin")
	if err := os.WriteFile(short, []byte{9, 0, 0, 0, 1}, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--rate", "-1"}, {"--rate", "fast"}, {"--accounts", "-1"}, {"--records", "-1"}, {"--total", "-1"}, {"--loop", "-1"},
		{"--first-seq", "5", "--loop", "5"}, {"--history", "-1"}, {"--fault-rate", "2"}, {"--faults", "nope"},
		{"--cut-after", "-1"}, {"--stall-after", "-1"}, {"--stall-for", "-1s"}, {"--frames", short}, {"--listen-addr", "nowhere"},
	} {
		err := command().Run(context.Background(), append([]string{"simrelay"}, args...))
		if err == nil {
			t.Errorf("%v: taken", args)
			continue
		}
		if flag := strings.TrimPrefix(args[0], "-"); !strings.Contains(err.Error(), flag) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %q", args, err)
		}
	}
}

// A file of captured frames is served as it is, and the address that was bound is printed.
func TestServesFrames(t *testing.T) {
	// {"t": "#identity", "op": 1}, {"did": "did:plc:a", "seq": 7, "time": ""}
	frame := []byte("\xa2ati#identitybop\x01\xa3cdididid:plc:acseq\x07dtime`")
	file := filepath.Join(t.TempDir(), "frames.bin")
	if err := os.WriteFile(file, append(binary.LittleEndian.AppendUint32(nil, uint32(len(frame))), frame...), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := command()
	lines := make(lineWriter, 1)
	cmd.Writer = lines
	done := make(chan error, 1)
	go func() {
		done <- cmd.Run(ctx, []string{"simrelay", "--listen-addr", "127.0.0.1:0", "--frames", file})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var url string
	select {
	case line := <-lines:
		url = regexp.MustCompile(`ws://\S+:\d+`).FindString(line)
	case <-time.After(5 * time.Second):
		t.Fatal("no line")
	}
	conn, _, err := websocket.DefaultDialer.Dial(url+"/xrpc/com.atproto.sync.subscribeRepos?cursor=6", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, got, err := conn.ReadMessage(); err != nil || !bytes.Equal(got, frame) {
		t.Errorf("got %x, %v, want %x", got, err, frame)
	}
}

// A lineWriter passes on what is written, line by line as fmt.Fprintf writes it.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}
