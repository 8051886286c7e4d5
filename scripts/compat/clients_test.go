package compat

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"
)

// An order is what a client is to ask for.
type order struct {
	Endpoint    string            `json:"endpoint"` // ws://host:port
	URL         string            `json:"url"`      // the same request, whole, for clients without a library
	Headers     map[string]string `json:"headers"`
	Cursor      int64             `json:"cursor"`
	Kinds       []string          `json:"kinds"` // v2 only
	Collections []string          `json:"collections"`
	DIDs        []string          `json:"dids"`
	Compress    bool              `json:"compress"`
	Update      *update           `json:"update,omitempty"`
	Known       []string          `json:"known"` // all collections that there are
}

// An update is the filter to change to, after so many events.
type update struct {
	After       int      `json:"after"`
	Collections []string `json:"collections"`
	DIDs        []string `json:"dids"`
}

// message is the update as it goes over the wire.
func (u *update) message() []byte {
	b, _ := json.Marshal(map[string]any{"type": "options_update", "payload": map[string]any{
		"wantedCollections": u.Collections, "wantedDids": u.DIDs,
	}})
	return b
}

// request is the URL of an order. zstd is what the query says of compression.
func (o *order) request(w wire, zstd string) string {
	query := url.Values{}
	if o.Cursor != 0 {
		query.Set("cursor", strconv.FormatInt(o.Cursor, 10))
	}
	if w == v2 {
		query["kinds"], query["collections"], query["dids"] = o.Kinds, o.Collections, o.DIDs
	} else {
		query["wantedCollections"], query["wantedDids"] = o.Collections, o.DIDs
	}
	text := query.Encode()
	if zstd != "" {
		text += "&" + zstd
	}
	return o.Endpoint + paths[w] + "?" + text
}

// A client is somebody else's.
type client struct {
	name     string // of its package
	chain    *toolchain
	wire     wire // of all features but v2
	features []feature
	header   bool     // asks for compression by header, too
	twice    bool     // reconnects more often than it has to
	builtIn  bool     // has Bluesky's dictionary and takes no other
	kinds    []string // what a v2 client is asked to ask for; nil: all

	// consume does as ordered until ctx ends, and emits what it receives.
	consume func(ctx context.Context, o order, emit func(line []byte), log io.Writer)

	// sees says what comes out of the client for an event, nil if nothing does: see the
	// package comment.
	sees func(object) object

	// alike, if there is one, is applied to both sides of a comparison.
	alike func(any) any

	// says is what it must have logged after a restart.
	says string

	// instead, if there is one, does everything.
	instead func(*testing.T, *network, *client, feature)

	// odd proves what else the package comment says of it.
	odd func(*testing.T, *network, *client)
}

var clients = []*client{
	{
		name: "@skyware/jetstream", chain: npm, features: []feature{plain, filters, options, resume},
		odd:     fromNow,
		consume: script(npm, "skyware.mjs"),
	}, {
		name: "@atcute/jetstream", chain: npm, features: []feature{plain, filters, options, resume},
		consume: script(npm, "atcute.mjs"),
		sees:    handlesOnly, odd: fromNow,
	}, {
		name: "ws", chain: npm, features: allFeatures, header: true,
		consume: script(npm, "ws.mjs"),
	}, {
		name: "eventsource", chain: npm, features: []feature{plain, filters, resume},
		consume: script(npm, "eventsource.mjs"),
	}, {
		name: "wscat", chain: npm, features: []feature{plain, filters, options, resume, v2wire},
		consume: terminal(npm, "node_modules/.bin/wscat", "--connect"),
		odd:     prompts,
	}, {
		name: "websocat", chain: cargo, features: allFeatures,
		consume: terminal(cargo, "bin/websocat", "--exit-on-eof"),
		odd:     staysOpen,
	}, {
		name: "rocketman", chain: cargo, features: []feature{plain, zstdAll, filters, resume}, builtIn: true,
		consume: script(cargo, "target/debug/compat"),
		sees:    someAccounts, twice: true,
	}, {
		name: "websockets", chain: python, features: allFeatures, header: true,
		consume: script(python, "bin/python", "python/plain.py"),
	}, {
		name: "atproto", chain: python, wire: v2, features: []feature{plain, zstdAll, filters, resume, v2wire},
		kinds:   []string{"commit", "identity", "account"},
		consume: script(python, "bin/python", "python/sdk.py"),
		alike:   untyped,
		odd:     endsAtSync, says: "ended",
	}, {
		name: "github.com/gorilla/websocket", features: allFeatures, builtIn: true,
		consume: gorilla,
	}, {
		name: "github.com/bluesky-social/indigo", features: []feature{plain, resume},
		instead: tryIndigo,
	},
}

// handlesOnly: @atcute/jetstream rejects an identity event without a handle.
func handlesOnly(e object) object {
	if identity, ok := e["identity"].(object); ok && identity["handle"] == nil {
		return nil
	}
	return e
}

// someAccounts: rocketman passes no account's active on, and rejects those of a status that it
// does not know.
func someAccounts(e object) object {
	account, ok := e["account"].(object)
	if !ok {
		return e
	}
	switch account["status"] {
	case nil, "takendown", "suspended", "deleted", "deactivated", "activated":
		e, account = maps.Clone(e), maps.Clone(account)
		delete(account, "active")
		e["account"] = account
		return e
	}
	return nil
}

// untyped: the Python SDK adds "$type" to objects whose type the lexicons know.
func untyped(v any) any {
	switch v := v.(type) {
	case object:
		out := object{}
		for name, inner := range v {
			if name != "$type" {
				out[name] = untyped(inner)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = untyped(v[i])
		}
		return out
	}
	return v
}

// script returns a client that is a program of ours around a library, and reconnects by itself.
func script(chain *toolchain, program string, source ...string) func(context.Context, order, func([]byte), io.Writer) {
	return func(ctx context.Context, o order, emit func([]byte), log io.Writer) {
		arg, _ := json.Marshal(o)
		cmd := exec.CommandContext(ctx, chain.path(program), append(slices.Clone(source), string(arg))...)
		cmd.Stderr = log
		drive(cmd, nil, emit, log)
	}
}

// prompt is what wscat prints after it has sent a line.
const prompt = "> "

// terminal returns a client that is a command line. It ends with its connection and is started
// again, as its user would, with the last cursor; options updates are typed into it. What comes
// compressed is written as it is: frames of zstd delimit themselves.
func terminal(chain *toolchain, program string, args ...string) func(context.Context, order, func([]byte), io.Writer) {
	return func(ctx context.Context, o order, emit func([]byte), log io.Writer) {
		for address := o.URL; ctx.Err() == nil; {
			options := slices.Clone(args)
			if o.Compress {
				options = append(options, "--binary")
			}
			cmd := exec.CommandContext(ctx, chain.path(program), append(options, address)...)
			cmd.Stderr = log
			if o.Compress {
				driveCompressed(cmd, o.Endpoint, emit, log)
				continue
			}
			drive(cmd, o.Update, func(line []byte) {
				if rest, ok := bytes.CutPrefix(line, []byte(prompt)); ok {
					line = rest
					fmt.Fprintln(log, "there was a prompt")
				}
				if e, err := parse(line); err == nil {
					address = withCursor(o.URL, e.id)
				}
				emit(line)
			}, log)
			sleep(ctx, 200*time.Millisecond)
		}
	}
}

// drive runs a command and emits its lines; typed, if there is one, goes to its standard input.
func drive(cmd *exec.Cmd, typed *update, emit func([]byte), log io.Writer) {
	cmd.WaitDelay = 5 * time.Second
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(log, err)
		return
	}
	lines := bufio.NewReader(stdout)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break // in the middle of a line when it is killed
		}
		emit(line)
		if typed != nil && n == typed.After {
			stdin.Write(append(typed.message(), '\n'))
		}
	}
	if err := cmd.Wait(); err != nil {
		fmt.Fprintln(log, err)
	}
}

// driveCompressed runs a command that writes frames of zstd, and emits the events in them.
func driveCompressed(cmd *exec.Cmd, endpoint string, emit func([]byte), log io.Writer) {
	dictionary, err := fetch(endpoint, "")
	if err != nil {
		fmt.Fprintln(log, err)
		return
	}
	stdin, _ := cmd.StdinPipe()
	defer stdin.Close()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(log, err)
		return
	}
	defer cmd.Wait()
	frames, err := zstd.NewReader(stdout, zstd.WithDecoderDicts(dictionary), zstd.WithDecoderConcurrency(1))
	if err != nil {
		fmt.Fprintln(log, err)
		return
	}
	defer frames.Close()
	for d := json.NewDecoder(frames); ; {
		var event json.RawMessage
		if err := d.Decode(&event); err != nil {
			fmt.Fprintln(log, err)
			return
		}
		emit(event)
	}
}

// gorilla is a consumer as the client library of Jetstream v1 is one: gorilla/websocket, and
// the legacy dictionary.
func gorilla(ctx context.Context, o order, emit func([]byte), log io.Writer) {
	header := http.Header{}
	for name, value := range o.Headers {
		header.Set(name, value)
	}
	for address := o.URL; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
		ws, resp, err := websocket.DefaultDialer.DialContext(ctx, address, header)
		if err != nil {
			fmt.Fprintln(log, err)
			continue
		}
		stop := context.AfterFunc(ctx, func() { ws.Close() })
		var decoder *zstd.Decoder
		if o.Compress {
			// A v2 consumer has no dictionary built in.
			dictionary, err := os.ReadFile(legacyDictionary)
			if resp.Header.Get("Zstd-Dictionary-Id") != legacyID {
				dictionary, err = fetch(o.Endpoint, resp.Header.Get("Zstd-Dictionary-Id"))
			}
			if err == nil {
				decoder, err = zstd.NewReader(nil, zstd.WithDecoderDicts(dictionary))
			}
			if err != nil {
				fmt.Fprintln(log, err)
				return
			}
		}
		for n := 1; ; n++ {
			kind, message, err := ws.ReadMessage()
			if err == nil && (kind == websocket.BinaryMessage) != o.Compress {
				err = fmt.Errorf("a message of type %d", kind)
			}
			if err == nil && o.Compress {
				message, err = decoder.DecodeAll(message, nil)
			}
			if err != nil {
				fmt.Fprintln(log, err)
				break
			}
			emit(message)
			if e, err := parse(message); err == nil {
				address = withCursor(o.URL, e.id)
			}
			if o.Update != nil && n == o.Update.After {
				ws.WriteMessage(websocket.TextMessage, o.Update.message())
			}
		}
		stop()
		ws.Close()
	}
}

// fetch gets a dictionary, the current one if id is empty.
func fetch(endpoint, id string) ([]byte, error) {
	resp, err := http.Get("http" + endpoint[len("ws"):] + strings.TrimSuffix("/dictionary/"+id, "/"))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func withCursor(address string, id int64) string {
	u, _ := url.Parse(address)
	query := u.Query()
	query.Set("cursor", strconv.FormatInt(id, 10))
	u.RawQuery = query.Encode()
	return u.String()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
