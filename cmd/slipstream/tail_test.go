package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/creack/pty"
	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/net/dns/dnsmessage"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// slipstream is this program with arguments, as a process of its own. It finds no cache, and no wish about
// colours but those in env.
func slipstream(t testing.TB, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), "SLIPSTREAM_TEST_MAIN=1", "TERM=xterm", "NO_COLOR=", "TZ=UTC", "XDG_CACHE_HOME="+t.TempDir()), env...)
	return cmd
}

// output runs a command to its end and returns what it wrote, and its exit status.
func output(t testing.TB, cmd *exec.Cmd) (stdout, stderr string, status int) {
	t.Helper()
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Start(); e != nil {
		t.Fatal(e)
	}
	kill := time.AfterFunc(testproc.Patience, func() { cmd.Process.Kill() })
	defer kill.Stop()
	cmd.Wait()
	if status = cmd.ProcessState.ExitCode(); status < 0 {
		t.Fatalf("%v: %s; it said:\n%s", cmd.Args[1:], cmd.ProcessState, err.String())
	}
	return out.String(), err.String(), status
}

// tailed is a daemon that has a whole stream, and what it serves, read without tail.
type tailed struct {
	*daemon
	cfg Config
	v1  []string
}

func serveTailed(t *testing.T) *tailed {
	const frames = 300
	relay, upstream := testproc.Relay(t, simrelay.Config{Seed: 5, Accounts: 30, Total: frames, FirstSeq: 1 << 33})
	s := &tailed{cfg: testConfig(t, upstream)}
	s.daemon = startDaemon(t, s.cfg)
	testproc.WaitFor(t, "the relay to send everything", func() bool { return relay.LastSeq() == 1<<33+frames-1 })
	n := 0
	for seq := int64(1 << 33); seq < 1<<33+frames; seq++ {
		for _, e := range relay.Expected(seq) {
			if e.Kind != "sync" {
				n++
			}
		}
	}
	for _, m := range newReader(t, dial(t, s.addr, "cursor=0")).messages(t, n) {
		s.v1 = append(s.v1, string(m))
	}
	return s
}

func lines(messages []string) string { return strings.Join(messages, "\n") + "\n" }

func having(messages []string, text string) []string {
	var some []string
	for _, m := range messages {
		if strings.Contains(m, text) {
			some = append(some, m)
		}
	}
	return some
}

func TestTail(t *testing.T) {
	s := serveTailed(t)
	all := fmt.Sprint(len(s.v1))
	posts := having(s.v1, `"collection":"app.bsky.feed.post"`)
	var first struct {
		DID    string `json:"did"`
		TimeUS int64  `json:"time_us"`
	}
	if err := json.Unmarshal([]byte(posts[0]), &first); err != nil {
		t.Fatal(err)
	}
	theirs := having(having(s.v1, `"did":"`+first.DID+`"`), `"kind":"commit"`)
	var uris string
	for _, p := range posts {
		var e struct {
			DID    string
			Commit struct{ RKey string }
		}
		if err := json.Unmarshal([]byte(p), &e); err != nil {
			t.Fatal(err)
		}
		uris += "at://" + e.DID + "/app.bsky.feed.post/" + e.Commit.RKey + "\n"
	}
	plc, dns := directory(t, "alice.example.com", first.DID)
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"everything":         {[]string{"--cursor", "oldest", "-n", all, s.addr}, lines(s.v1)},
		"a URL in full":      {[]string{"--count", all, "ws://" + s.addr + "/subscribe?cursor=0"}, lines(s.v1)},
		"of HTTP":            {[]string{"http://" + s.addr, "--cursor", "0", "--count", all}, lines(s.v1)},
		"compressed":         {[]string{"--cursor", "1", "--compress", "-n", all, s.addr}, lines(s.v1)},
		"compressed, by URL": {[]string{"-n", all, "ws://" + s.addr + "/subscribe?cursor=0&compress=true"}, lines(s.v1)},
		"since":              {[]string{"--since", "1h", "-n", all, s.addr}, lines(s.v1)},
		"from a cursor":      {[]string{"--cursor", fmt.Sprint(first.TimeUS), "-n", "1", s.addr}, posts[0] + "\n"},
		"filters that add to the URL's": {[]string{"--collection", "app.bsky.feed.post", "--kind", "commit", "-n", fmt.Sprint(len(posts)),
			"ws://" + s.addr + "/subscribe?cursor=0"}, lines(posts)},
		"an account": {[]string{"--did", first.DID, "--kind", "commit", "--cursor", "0", "-n", fmt.Sprint(len(theirs)), s.addr}, lines(theirs)},
		"a handle": {[]string{"--did", "@Alice.example.com", "--plc-url", plc, "--dns-server", dns, "--kind", "commit", "--cursor", "0",
			"-n", fmt.Sprint(len(theirs)), s.addr}, lines(theirs)},
		"a template": {[]string{"--collection", "app.bsky.feed.post", "--kind", "commit", "--cursor", "0", "-n", fmt.Sprint(len(posts)),
			"-t", "{{.URI}}", s.addr}, uris},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, status := output(t, slipstream(t, nil, append([]string{"tail"}, test.args...)...))
			if stdout != test.want || stderr != "" || status != 0 {
				t.Errorf("status %d, %s\n got %d lines: %.600s\nwant %d: %.600s", status, stderr, strings.Count(stdout, "\n"), stdout, strings.Count(test.want, "\n"), test.want)
			}
		})
	}
	t.Run("v2", func(t *testing.T) {
		for _, args := range [][]string{{"--v2", s.addr}, {"--v2", "--compress", s.addr}, {"ws://" + s.addr + "/xrpc/network.bsky.jetstream.subscribeEvents"}} {
			stdout, stderr, status := output(t, slipstream(t, nil, append([]string{"tail", "--cursor", "0", "-n", "20"}, args...)...))
			var m struct {
				Payload struct{ Seq int64 }
			}
			got := strings.Split(stdout, "\n")
			if err := json.Unmarshal([]byte(got[0]), &m); err != nil || len(got) != 21 || m.Payload.Seq == 0 || status != 0 || stderr != "" {
				t.Errorf("%v: status %d, %s; %v in %.300s", args, status, stderr, err, stdout)
			}
		}
	})
	t.Run("state", func(t *testing.T) {
		state := filepath.Join(t.TempDir(), "cursor")
		var got string
		for _, n := range []int{7, 1, 50, len(s.v1) - 58} {
			stdout, stderr, status := output(t, slipstream(t, nil, "tail", "--cursor", "0", "--state", state, "-n", fmt.Sprint(n), s.addr))
			if status != 0 {
				t.Fatalf("status %d: %s", status, stderr)
			}
			got += stdout
		}
		if got != lines(s.v1) {
			t.Errorf("got %d lines, want %d", strings.Count(got, "\n"), len(s.v1))
		}
	})
	t.Run("interrupted", func(t *testing.T) { testTailFollow(t, s) })
	t.Run("a reader that goes away", func(t *testing.T) {
		state := filepath.Join(t.TempDir(), "cursor")
		cmd := slipstream(t, nil, "tail", "--cursor", "0", "--state", state, "--follow", s.addr)
		var stderr testproc.Buffer
		cmd.Stderr = &stderr
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = w
		r.Close()
		defer w.Close()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(testproc.Patience, func() { cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil || stderr.String() != "" {
			t.Errorf("%v: %s", err, stderr.String())
		}
		if _, err := os.Stat(state); err == nil {
			t.Error("what nobody read counts as printed")
		}
	})
	t.Run("errors", func(t *testing.T) { testTailErrors(t, s, plc, dns) })
}

// A daemon that restarts, and an interrupt: --follow prints everything once, and ends in order.
func testTailFollow(t *testing.T, s *tailed) {
	state := filepath.Join(t.TempDir(), "cursor")
	cmd := slipstream(t, nil, "tail", "--cursor", "0", "--follow", "--state", state, s.addr)
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr testproc.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	var got bytes.Buffer
	buf := make([]byte, 64<<10)
	read := func(n int) {
		for bytes.Count(got.Bytes(), []byte("\n")) < n {
			k, err := r.Read(buf)
			if err != nil {
				t.Fatalf("after %d lines: %v; %s", bytes.Count(got.Bytes(), []byte("\n")), err, stderr.String())
			}
			got.Write(buf[:k])
		}
	}
	read(len(s.v1))
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	testproc.WaitFor(t, "tail to see that the daemon is gone", func() bool { return strings.Contains(stderr.String(), "again in") })
	s.daemon = startDaemon(s.t, s.cfg) // for the tests after this one as well
	testproc.WaitFor(t, "tail to be back", func() bool {
		resp, err := http.Get("http://" + s.metrics + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return bytes.Contains(b, []byte("\nslipstream_subscribers 1\n"))
	})
	cmd.Process.Signal(syscall.SIGINT)
	rest, _ := io.ReadAll(r)
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: %v: %s", err, stderr.String())
	}
	if got.Write(rest); got.String() != lines(s.v1) {
		t.Errorf("got %d lines, want %d", strings.Count(got.String(), "\n"), len(s.v1))
	}
	var last struct {
		TimeUS int64 `json:"time_us"`
	}
	if err := json.Unmarshal([]byte(s.v1[len(s.v1)-1]), &last); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(state); err != nil || string(b) != fmt.Sprintln(last.TimeUS) {
		t.Errorf("the state is %q, %v; want %d", b, err, last.TimeUS)
	}
}

func testTailErrors(t *testing.T, s *tailed, plc, dns string) {
	refusing := func(status int, body string) string {
		return strings.Replace(serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, body, status) })), "ws://", "http://", 1)
	}
	for _, test := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{testproc.FreeAddr(t)}, 1, "connection refused"},
		{[]string{"--did", "bob.example.com", "--plc-url", plc, "--dns-server", dns, s.addr}, 1, "bob.example.com: nobody has this handle"},
		{[]string{"--colour"}, 2, "-colour"},
		{[]string{"--collection", "app bsky"}, 2, `--collection "app bsky"`},
		{[]string{"--did", "not a did"}, 2, `--did "not a did"`},
		{[]string{"--kind", "post"}, 2, `kind "post"`},
		{[]string{"--kind", "sync"}, 2, "v2 wire only"},
		{[]string{"--cursor", "yesterday"}, 2, `--cursor "yesterday"`},
		{[]string{"--cursor", "1", "--since", "2h"}, 2, "--since"},
		{[]string{"--since", "-2h"}, 2, "--since"},
		{[]string{"-n", "-1"}, 2, "--count"},
		{[]string{"--output", "xml"}, 2, "--output"},
		{[]string{"--color", "blue"}, 2, "--color"},
		{[]string{"-t", "{{.DID"}, 2, "--template"},
		{[]string{"-t", "{{.Nonsense}}", "--cursor", "0", s.addr}, 2, "--template"},
		{[]string{"--state", "/nowhere/at/all"}, 2, "no directory"},
		{[]string{"--dictionary", "main.go"}, 2, "--dictionary main.go"},
		{[]string{"--v2", s.addr + "/subscribe"}, 2, "v2 wire"},
		{[]string{"ftp://" + s.addr}, 2, "scheme"},
		{[]string{s.addr, "twice"}, 2, "one URL"},
		{[]string{"ws://" + s.addr + "/xrpc/network.bsky.jetstream.subscribeEvents?what=this"}, 3, "what"},
		{[]string{"--follow", s.addr + "/nothing/here"}, 3, "404"},
		{[]string{refusing(400, "no \x1b[31mred\u202e please")}, 3, "400 Bad Request: no \uFFFD[31mred please\n"},
		{[]string{"--v2", refusing(400, `{"error":"CursorTooOld","message":"it begins at 7"}`)}, 4, "it begins at 7"},
	} {
		t.Run(strings.Join(test.args[:1], " "), func(t *testing.T) {
			stdout, stderr, status := output(t, slipstream(t, nil, append([]string{"tail"}, test.args...)...))
			if status != test.status || !strings.Contains(stderr, test.says) || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "slipstream: ") {
				t.Errorf("%v: status %d, %q; want %d with %q", test.args, status, stderr, test.status, test.says)
			}
		})
	}
}

// directory is what it takes to resolve one handle: a DNS server and a PLC directory.
func directory(t *testing.T, handle, did string) (plcURL, dnsServer string) {
	plc := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/"+did {
			http.NotFound(w, r)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"id": did, "alsoKnownAs": []string{"at://" + handle}})
	}))
	t.Cleanup(plc.Close)
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var joined sync.WaitGroup
	joined.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError}, Questions: m.Questions}
			if q.Type == dnsmessage.TypeTXT && q.Name.String() == "_atproto."+handle+"." {
				m.RCode = dnsmessage.RCodeSuccess
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: &dnsmessage.TXTResource{TXT: []string{"did=" + did}}}}
			}
			if b, err := m.Pack(); err == nil {
				conn.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		joined.Wait()
	})
	return plc.URL, conn.LocalAddr().String()
}

// plainV1 is a v1 server as others run them: it names no dictionary and has none to fetch. It sends the
// messages, compressed if pack says how, and stays.
func plainV1(t *testing.T, pack func([]byte) []byte, messages ...string) string {
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	up := websocket.Upgrader{}
	return serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/subscribe" {
			http.NotFound(w, r)
			return
		}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		for _, m := range messages {
			if r.FormValue("compress") == "true" && pack != nil {
				ws.WriteMessage(websocket.BinaryMessage, pack([]byte(m)))
			} else {
				ws.WriteMessage(websocket.TextMessage, []byte(m))
			}
		}
		<-done
	}))
}

// A server that names no dictionary means Bluesky's of 2024, which tail has to be given, once.
func TestTailLegacyDictionary(t *testing.T) {
	const message = `{"did":"did:plc:eygmaihciaxprqvxpfvl6flk","time_us":1725911162329308,"kind":"account","account":{"active":true,"did":"did:plc:eygmaihciaxprqvxpfvl6flk","seq":1409753013,"time":"2024-09-05T06:11:04.870Z"}}`
	t.Run("not at hand", func(t *testing.T) {
		url := plainV1(t, func(b []byte) []byte { return b }, message)
		_, stderr, status := output(t, slipstream(t, nil, "tail", "--compress", "-n", "1", url))
		if status != exitRefused || !strings.Contains(stderr, "1612007021") || !strings.Contains(stderr, "fetch-legacy") {
			t.Errorf("status %d: %s", status, stderr)
		}
	})
	t.Run("at hand", func(t *testing.T) {
		file := shared(t, "dictionaries/legacy_subscribe.zdict")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderDict(b))
		if err != nil {
			t.Fatal(err)
		}
		url := plainV1(t, func(b []byte) []byte { return enc.EncodeAll(b, nil) }, message)
		cache := "XDG_CACHE_HOME=" + t.TempDir()
		for _, args := range [][]string{{"--dictionary", file}, {"--compress"}} {
			stdout, stderr, status := output(t, slipstream(t, []string{cache}, append([]string{"tail", "-n", "1", url}, args...)...))
			if status != 0 || stdout != message+"\n" {
				t.Errorf("%v: status %d, %s: %s", args, status, stderr, stdout)
			}
		}
	})
}

// onTerminal runs tail on a terminal and returns all that it wrote there, when it has ended.
func onTerminal(t *testing.T, columns uint16, env []string, args ...string) string {
	t.Helper()
	cmd := slipstream(t, env, append([]string{"tail"}, args...)...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: columns})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kill := time.AfterFunc(testproc.Patience, func() { cmd.Process.Kill() })
	defer kill.Stop()
	b, _ := io.ReadAll(f) // EIO is how a terminal says that everybody has left
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

var escape = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// What is printed on a terminal is short lines with colours, and nothing that a record holds can do
// more than be read.
func TestTailTerminal(t *testing.T) {
	hostile := "a\x1b]0;owned\x07b\u009b31mc\u202edrow\u2066 \t\r\n next\u200b line 👩‍👩‍👧 z" + strings.Repeat("\u0301", 50)
	record := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"did":"did:plc:eygmaihciaxprqvxpfvl6flk","time_us":%d,"kind":"commit","commit":{"rev":"3l3qo2vutsw2b","operation":"create","collection":"app.bsky.feed.post","rkey":"3l3qo2vuowo2b","record":%s,"cid":"bafy\u001b[2J"}}`,
			time.Now().UnixMicro(), b)
	}
	messages := []string{
		record(map[string]any{"text": hostile}),
		record(map[string]any{"text": strings.Repeat("漢字", 100)}),
		record(map[string]any{hostile: hostile, "deep": []any{hostile}}),
		`{"did":"did:plc:\u001b[2Jxx","time_us":2,"kind":"identity","identity":{"did":"x","handle":"\u001b]52;c;aGk=\u0007","seq":1,"time":"x"}}`,
		`{"did":"did:plc:x","time_us":3,"kind":"\u001bc","account":{}}`,
	}
	url := plainV1(t, nil, messages...)
	for name, test := range map[string]struct {
		env  []string
		args []string
		want *regexp.Regexp // escape sequences that may be there
	}{
		"text":     {nil, nil, regexp.MustCompile(`^\x1b\[[0-9]+m$`)},
		"NO_COLOR": {[]string{"NO_COLOR=1"}, nil, nil},
		"never":    {nil, []string{"--color", "never"}, nil},
		"json":     {nil, []string{"-o", "json"}, nil},
		"template": {nil, []string{"-t", "\x1b[7m{{.DID}} {{.Record.text}} {{.JSON}} {{.Identity.Handle}} {{.Kind}} {{.Commit.CID}} {{range $k, $v := .Record}}{{$v}}{{end}}"}, regexp.MustCompile(`^\x1b\[7m$`)},
	} {
		t.Run(name, func(t *testing.T) {
			// Quiet, so that nothing but the events is there.
			got := onTerminal(t, 120, test.env, append([]string{"-q", "-n", fmt.Sprint(len(messages)), url}, test.args...)...)
			colors := 0
			rest := escape.ReplaceAllStringFunc(got, func(e string) string {
				if test.want == nil || !test.want.MatchString(e) {
					t.Errorf("escape sequence %q", e)
				}
				colors++
				return ""
			})
			if test.want != nil && colors == 0 {
				t.Error("no colours")
			}
			for _, r := range rest {
				if r != '\n' && r != joiner && !unicode.IsPrint(r) {
					t.Fatalf("%U reaches the terminal in %q", r, rest)
				}
			}
			if name == "json" {
				for i, line := range strings.Split(strings.TrimSpace(rest), "\n") {
					var got, want any
					if json.Unmarshal([]byte(line), &got) != nil || json.Unmarshal([]byte(messages[i]), &want) != nil || fmt.Sprint(got) != fmt.Sprint(want) {
						t.Errorf("got %s\nwant %s", line, messages[i])
					}
				}
			}
			if name == "template" || name == "json" {
				return
			}
			all := strings.Split(strings.TrimSuffix(rest, "\n"), "\n")
			if len(all) != len(messages) {
				t.Fatalf("%d lines for %d events: %q", len(all), len(messages), all)
			}
			if !strings.Contains(all[0], "feed.post") || !strings.Contains(all[0], "+ ") || !strings.HasSuffix(all[0], "mcdrow next line 👩‍👩‍👧 z\u0301\u0301\u0301\u0301") {
				t.Errorf("the first line is %q", all[0])
			}
			if !strings.HasSuffix(all[1], "漢字…") && !strings.HasSuffix(all[1], "漢…") {
				t.Errorf("the second line is %q", all[1])
			}
		})
	}
	t.Run("pipe", func(t *testing.T) {
		stdout, _, _ := output(t, slipstream(t, nil, "tail", "-n", fmt.Sprint(len(messages)), url))
		if stdout != lines(messages) {
			t.Errorf("got %q", stdout)
		}
	})
}

// Who is behind sees how far, on the screen but not among the events.
func TestTailStatus(t *testing.T) {
	message := fmt.Sprintf(`{"did":"did:plc:x","time_us":%d,"kind":"identity","identity":{"did":"did:plc:x","seq":1,"time":"x"}}`, time.Now().Add(-3*time.Hour).UnixMicro())
	url := plainV1(t, nil, message)
	for _, into := range []string{"terminal", "file"} {
		t.Run(into, func(t *testing.T) {
			cmd := slipstream(t, nil, "tail", "--follow", url)
			f, tty, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.Stderr = tty
			var stdout testproc.Buffer
			if cmd.Stdout = &stdout; into == "terminal" {
				cmd.Stdout = tty
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			tty.Close()
			defer cmd.Process.Kill()
			var screen testproc.Buffer
			var joined sync.WaitGroup
			joined.Go(func() { io.Copy(&screen, f) })
			testproc.WaitFor(t, "the status line", func() bool { return strings.Contains(screen.String(), "3h0m") })
			cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			joined.Wait()
			if got := screen.String(); !strings.Contains(got, "1 events, ") || !strings.Contains(got, " behind") || !strings.HasSuffix(got, clearLine) {
				t.Errorf("the screen got %q", got)
			}
			if got := stdout.String(); into == "file" && got != message+"\n" {
				t.Errorf("the file got %q", got)
			}
		})
	}
}
