package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/gorilla/websocket"
	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/dagcbor"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/testproc"
)

// The tests of the second wire, in the files v2_*_test.go, are written from its lexicons and
// from what is promised beside them, not from the code. Each sentence has a subtest.

const (
	v2Name        = "network.bsky.jetstream.subscribeEvents"
	v2Path        = "/xrpc/" + v2Name
	v2DictPath    = "/xrpc/network.bsky.jetstream.getZstdDictionary"
	v2Subprotocol = "xrpc.v1.json"
	v2Epoch       = 1_600_000_000_000_000 // what a seq lacks of its time_us
	v2SeqLimit    = 1_000_000_000_000_000 // a cursor below it is a seq
	v2TimeLayout  = "2006-01-02T15:04:05.000000Z"
)

// currentID is the id of the dictionary that is ours.
func currentID(t testing.TB) uint32 {
	t.Helper()
	id, err := event.DictionaryID(dictionaries.Current())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// packed is the query that asks for compressed frames.
func packed(t testing.TB) string { return fmt.Sprintf("zstdDictionary=%d", currentID(t)) }

// v2Daemon is a run of the program.
type v2Daemon struct {
	*testproc.Process
	addr, metrics string
}

func serveV2(t testing.TB, upstream, dir string, flags ...string) *v2Daemon {
	t.Helper()
	d := &v2Daemon{addr: testproc.FreeAddr(t), metrics: testproc.FreeAddr(t)}
	d.Process = startProcess(t, []string{"SLIPSTREAM_LEGACY_DICTIONARY=off"}, append([]string{"serve",
		"--upstream-url", upstream, "--upstream-cursor", "0", "--data-dir", dir,
		"--listen-addr", d.addr, "--metrics-listen-addr", d.metrics, "--log-level", "warn"}, flags...)...)
	waitHealthy(t, d.addr)
	return d
}

// v2Frame is a frame as a strict client reads it.
type v2Frame struct {
	raw  []byte // as it came
	text []byte // the JSON
	kind string // commit, identity, account, sync, info or error
	seq  int64  // not of info and error

	did, time                          string
	rev, operation, collection, rkey   string // of a commit
	cid                                string
	record, identity, account, upsync  json.RawMessage
	infoName, errorName, errorOrNotice string
}

var (
	sixDecimals = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)
	plainNumber = regexp.MustCompile(`^(0|[1-9]\d*)$`)
)

// object reads a JSON object that has all of the required keys and no others than these and
// the optional ones.
func object(b []byte, required, optional string) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w in %s", err, b)
	}
	for _, key := range strings.Fields(required) {
		if m[key] == nil {
			return nil, fmt.Errorf("no %s in %s", key, b)
		}
	}
	known := strings.Fields(required + " " + optional)
	for key := range m {
		if !slices.Contains(known, key) {
			return nil, fmt.Errorf("%s is not in the lexicon: %s", key, b)
		}
	}
	return m, nil
}

// parseV2 reads a frame's JSON by the lexicon, strictly.
func parseV2(text []byte) (*v2Frame, error) {
	var head struct {
		Type string `json:"$type"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("%w in %s", err, text)
	}
	f := &v2Frame{text: text}
	var failed error
	str := func(m map[string]json.RawMessage, key string) (s string) {
		if m[key] != nil && json.Unmarshal(m[key], &s) != nil && failed == nil {
			failed = fmt.Errorf("%s is no string in %s", key, text)
		}
		return s
	}
	if head.Type == "error" {
		m, err := object(text, "$type error message", "")
		if err != nil {
			return nil, err
		}
		f.kind, f.errorName, f.errorOrNotice = "error", str(m, "error"), str(m, "message")
		return f, failed
	}
	outer, err := object(text, "$type payload", "")
	if err != nil {
		return nil, err
	}
	if str(outer, "$type") != "message" {
		return nil, fmt.Errorf("neither message nor error: %s", text)
	}
	var inner struct {
		Type string `json:"$type"`
	}
	if err := json.Unmarshal(outer["payload"], &inner); err != nil {
		return nil, fmt.Errorf("%w in %s", err, text)
	}
	var ok bool
	if f.kind, ok = strings.CutPrefix(inner.Type, v2Name+"#"); !ok {
		return nil, fmt.Errorf("payload of type %q: %s", inner.Type, text)
	}
	required, optional := "$type seq did time "+f.kind, ""
	switch f.kind {
	case "commit":
		required, optional = "$type seq did time rev operation collection rkey", "record cid"
	case "info":
		required, optional = "$type name", "message"
	case "identity", "account", "sync":
	default:
		return nil, fmt.Errorf("payload of type %q: %s", inner.Type, text)
	}
	m, err := object(outer["payload"], required, optional)
	if err != nil {
		return nil, err
	}
	if f.kind == "info" {
		f.infoName, f.errorOrNotice = str(m, "name"), str(m, "message")
		return f, failed
	}
	if !plainNumber.Match(m["seq"]) {
		return nil, fmt.Errorf("seq %s in %s", m["seq"], text)
	}
	if f.seq, err = strconv.ParseInt(string(m["seq"]), 10, 64); err != nil || f.seq < 1 || f.seq >= v2SeqLimit {
		return nil, fmt.Errorf("seq %s in %s", m["seq"], text)
	}
	f.did, f.time = str(m, "did"), str(m, "time")
	f.rev, f.operation, f.collection, f.rkey, f.cid = str(m, "rev"), str(m, "operation"), str(m, "collection"), str(m, "rkey"), str(m, "cid")
	f.record, f.identity, f.account, f.upsync = m["record"], m["identity"], m["account"], m["sync"]
	if failed != nil {
		return nil, failed
	}
	if want := time.UnixMicro(f.seq + v2Epoch).UTC().Format(v2TimeLayout); !sixDecimals.MatchString(f.time) || f.time != want {
		return nil, fmt.Errorf("time %q, want %q: %s", f.time, want, text)
	}
	if f.kind == "commit" && ((f.record == nil) != (f.operation == "delete") || (f.cid == "") != (f.operation == "delete")) {
		return nil, fmt.Errorf("record and cid are absent for deletes, and only for these: %s", text)
	}
	return f, nil
}

// v2Client is a strict consumer.
type v2Client struct {
	ws         *websocket.Conn
	response   *http.Response
	dec        *zstd.Decoder
	dictionary uint32 // which every frame must name; 0: text frames
}

// tryV2 makes a handshake, with the given header lines.
func tryV2(addr, query string, header ...string) (*websocket.Conn, *http.Response, error) {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	dialer := websocket.Dialer{HandshakeTimeout: 20 * time.Second}
	return dialer.Dial("ws://"+addr+v2Path+"?"+query, h)
}

// dialV2 connects a consumer.
func dialV2(t testing.TB, addr, query string, header ...string) *v2Client {
	t.Helper()
	ws, resp, err := tryV2(addr, query, header...)
	if err != nil {
		body := []byte{}
		if resp != nil {
			body, _ = io.ReadAll(resp.Body)
		}
		t.Fatalf("dial %.200s: %v: %s", query, err, body)
	}
	t.Cleanup(func() { ws.Close() })
	return newV2Client(t, ws, resp, query)
}

func newV2Client(t testing.TB, ws *websocket.Conn, resp *http.Response, query string) *v2Client {
	t.Helper()
	c := &v2Client{ws: ws, response: resp}
	values, err := url.ParseQuery(query)
	if err == nil && values.Has("zstdDictionary") {
		id, err := strconv.ParseUint(values.Get("zstdDictionary"), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		c.dictionary = uint32(id)
		if c.dec, err = zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.All()...), zstd.WithDecoderConcurrency(1)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.dec.Close)
	}
	return c
}

// next reads a frame.
func (c *v2Client) next(timeout time.Duration) (*v2Frame, error) {
	c.ws.SetReadDeadline(time.Now().Add(timeout))
	op, raw, err := c.ws.ReadMessage()
	if err != nil {
		return nil, err
	}
	text := raw
	if c.dictionary == 0 {
		if op != websocket.TextMessage {
			return nil, fmt.Errorf("a frame of opcode %d, not a text frame", op)
		}
	} else {
		if op != websocket.BinaryMessage {
			return nil, fmt.Errorf("a frame of opcode %d, not a binary one: %.200s", op, raw)
		}
		var h zstd.Header
		if err := h.Decode(raw); err != nil || h.Skippable || h.DictionaryID != c.dictionary {
			return nil, fmt.Errorf("a zstd frame of dictionary %d, want %d: %v", h.DictionaryID, c.dictionary, err)
		}
		if text, err = c.dec.DecodeAll(raw, nil); err != nil {
			return nil, err
		}
		if h.HasFCS && h.FrameContentSize != uint64(len(text)) {
			return nil, fmt.Errorf("%d bytes in a zstd frame that says %d: there is more than one", len(text), h.FrameContentSize)
		}
	}
	f, err := parseV2(text)
	if err != nil {
		return nil, err
	}
	f.raw = raw
	return f, nil
}

// frame reads a frame that must come.
func (c *v2Client) frame(t testing.TB) *v2Frame {
	t.Helper()
	f, err := c.next(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// frames reads n of them.
func (c *v2Client) frames(t testing.TB, n int) []*v2Frame {
	t.Helper()
	all := make([]*v2Frame, 0, n)
	for len(all) < n {
		f, err := c.next(20 * time.Second)
		if err != nil {
			t.Fatalf("frame %d of %d: %v", len(all), n, err)
		}
		all = append(all, f)
	}
	return all
}

// expect reads exactly these events.
func (c *v2Client) expect(t testing.TB, want []v2Event) {
	t.Helper()
	for i := range want {
		f, err := c.next(20 * time.Second)
		if err != nil {
			t.Fatalf("event %d of %d, with seq %d: %v", i, len(want), want[i].seq(), err)
		}
		if !bytes.Equal(f.text, want[i].v2) {
			t.Fatalf("event %d of %d:\n got %s\nwant %s", i, len(want), f.text, want[i].v2)
		}
	}
}

// silent checks that nothing more comes for a while. The connection is of no use afterwards.
func (c *v2Client) silent(t testing.TB) {
	t.Helper()
	f, err := c.next(100 * time.Millisecond)
	if err == nil {
		t.Fatalf("one frame too many: %.300s", f.text)
	}
	if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("the connection ends: %v", err)
	}
}

// closed reads to the end of the connection and returns the close frame.
func (c *v2Client) closed(t testing.TB) *websocket.CloseError {
	t.Helper()
	for {
		_, err := c.next(20 * time.Second)
		if err == nil {
			continue
		}
		var end *websocket.CloseError
		if !errors.As(err, &end) {
			t.Fatalf("the connection ends without a close frame: %v", err)
		}
		return end
	}
}

// v2Of makes the v2 form of a v1 event (or of a stored sync event) by the specification: of
// what stands in its JSON, the bytes as they are.
func v2Of(t testing.TB, payload []byte) []byte {
	t.Helper()
	var e struct {
		DID                             string `json:"did"`
		TimeUS                          int64  `json:"time_us"`
		Kind                            string
		Commit, Identity, Account, Sync json.RawMessage
	}
	if err := json.Unmarshal(payload, &e); err != nil {
		t.Fatalf("%v in %s", err, payload)
	}
	body := map[string]json.RawMessage{"commit": e.Commit, "identity": e.Identity, "account": e.Account, "sync": e.Sync}[e.Kind]
	rest := fmt.Sprintf(`%q:%s`, e.Kind, body)
	if e.Kind == "commit" {
		rest = string(body[1 : len(body)-1])
	}
	return fmt.Appendf(nil, `{"$type":"message","payload":{"$type":"%s#%s","seq":%d,"did":%q,"time":%q,%s}}`,
		v2Name, e.Kind, e.TimeUS-v2Epoch, e.DID, time.UnixMicro(e.TimeUS).UTC().Format(v2TimeLayout), rest)
}

// v2Event is an event that a test stored itself.
type v2Event struct {
	cursor                int64 // its time_us
	kind, did, collection string
	v1, v2                []byte // what consumers get; v1 is nil for a sync
}

func (e *v2Event) seq() int64 { return e.cursor - v2Epoch }

// v2Buffer is a data dir and what is in it.
type v2Buffer struct {
	dir     string
	blocks  [][]v2Event // what is left, oldest first
	trimmed int64       // the last event's time_us that was removed, 0: none was
}

func (b *v2Buffer) events() []v2Event { return slices.Concat(b.blocks...) }

var (
	bufferDIDs        = []string{"did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb", "did:plc:cccccccccccccccccccccccc", "did:web:d.example"}
	bufferCollections = []string{"app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow", "app.bsky.feed.postgate", "app.bskyx.feed.post", "chat.test.message"}
)

// makeBuffer stores blocks of so many events, each a millisecond after the one before, the
// first of each block at the given times.
func makeBuffer(t testing.TB, size int, starts ...time.Time) *v2Buffer {
	t.Helper()
	b := &v2Buffer{dir: t.TempDir()}
	n := 0
	for _, start := range starts {
		var block []v2Event
		var forms [][3][]byte
		for i := range size {
			e, form := bufferEvent(t, n, start.UnixMicro()+1000*int64(i))
			block, forms = append(block, e), append(forms, form)
			n++
		}
		b.append(t, block, forms)
	}
	return b
}

// append stores a block of events, given as text frame, binary frame and sync payload.
func (b *v2Buffer) append(t testing.TB, block []v2Event, forms [][3][]byte) {
	t.Helper()
	log, err := eventlog.Open(eventlog.Config{Dir: filepath.Join(b.dir, "slipstream"), BlockEvents: len(block)})
	if err != nil {
		t.Fatal(err)
	}
	var builder eventlog.Builder
	var all [3][]byte
	for i, e := range block {
		var ends [3]uint32
		for f := range all {
			all[f] = append(all[f], forms[i][f]...)
			ends[f] = uint32(len(all[f]))
		}
		builder.Add(event.Cursor(e.cursor), map[string]event.Kind{"commit": event.KindCommit, "identity": event.KindIdentity,
			"account": event.KindAccount, "sync": event.KindSync}[e.kind], []byte(e.did), []byte(e.collection), ends)
	}
	c, err := builder.Seal(log.Last(), currentID(t), all[eventlog.JSON], all[eventlog.Zstd], all[eventlog.Extra])
	if err == nil {
		err = log.Append(t.Context(), []*eventlog.Chunk{c}, nil)
	}
	if err = errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	b.blocks = append(b.blocks, block)
}

// trim removes the oldest blocks as retention does, by a clock that is set forward.
func (b *v2Buffer) trim(t testing.TB, blocks int) {
	t.Helper()
	now := time.UnixMicro(b.blocks[len(b.blocks)-1][0].cursor)
	log, err := eventlog.Open(eventlog.Config{Dir: filepath.Join(b.dir, "slipstream"), Limits: eventlog.Limits{Retention: 24 * time.Hour}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	through := b.blocks[blocks-1][len(b.blocks[blocks-1])-1].cursor
	for range blocks {
		now = now.Add(25 * time.Hour)
		if err := log.Trim(); err != nil {
			t.Fatal(err)
		}
	}
	if got := int64(log.Trimmed()); got != through {
		t.Fatalf("the log is trimmed through %d, want %d", got, through)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	b.blocks, b.trimmed = b.blocks[blocks:], through
}

// bufferEvent makes the n-th event of a buffer.
func bufferEvent(t testing.TB, n int, cursor int64) (e v2Event, forms [3][]byte) {
	t.Helper()
	e = v2Event{cursor: cursor, kind: "commit", did: bufferDIDs[n%len(bufferDIDs)]}
	var text []byte
	var err error
	did, at := []byte(e.did), fmt.Appendf(nil, "2026-07-04T14:38:%02d.000Z", n%60)
	switch n % 11 {
	case 3:
		e.kind, text = "identity", event.AppendIdentity(nil, did, []byte("a.example"), int64(n), at)
	case 5:
		e.kind, text = "account", event.AppendAccount(nil, did, n%2 == 0, int64(n), []byte("suspended"), at)
	case 7:
		e.kind = "sync"
		if forms[eventlog.Extra], err = event.AppendSync(nil, did, cborOf(t, map[string]any{
			"did": e.did, "seq": int64(n), "time": string(at), "rev": "3mptbypluud2a", "blocks": atdata.Bytes("blocks")})); err != nil {
			t.Fatal(err)
		}
		event.SetCursor(forms[eventlog.Extra], len(did), event.Cursor(cursor))
		e.v2 = v2Of(t, forms[eventlog.Extra])
		return e, forms
	default:
		e.collection = bufferCollections[n%len(bufferCollections)]
		op := event.Op{Operation: "delete", Collection: []byte(e.collection), RKey: fmt.Appendf(nil, "key%d", n)}
		if n%13 != 0 {
			op.Operation = []string{"create", "update"}[n%2]
			op.Record = cborOf(t, map[string]any{"$type": e.collection, "text": strings.Repeat("é", n%9*40)})
			op.CID = dagcbor.SumCID(op.Record)
		}
		if text, _, err = event.AppendCommit(nil, did, []byte("3mptbypluud2a"), &op); err != nil {
			t.Fatal(err)
		}
	}
	event.SetCursor(event.Payload(text), len(did), event.Cursor(cursor))
	e.v1 = event.Payload(text)
	e.v2 = v2Of(t, e.v1)
	forms[eventlog.JSON], forms[eventlog.Zstd] = text, v2Compressor().AppendBinary(nil, e.v1)
	return e, forms
}

var v2Compressor = sync.OnceValue(func() *event.Compressor {
	c, err := event.NewCompressor(dictionaries.Current())
	if err != nil {
		panic(err) // it is the one that is embedded
	}
	return c
})

func cborOf(t testing.TB, v map[string]any) []byte {
	t.Helper()
	b, err := atdata.MarshalCBOR(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// messageOf makes an upstream message.
func messageOf(t testing.TB, kind string, body map[string]any) []byte {
	t.Helper()
	return append(cborOf(t, map[string]any{"op": 1, "t": kind}), cborOf(t, body)...)
}

// commitOf makes an upstream commit of ops, which come as action, path and record.
func commitOf(t testing.TB, seq int, did, rev, at string, ops ...[3]any) []byte {
	t.Helper()
	link := func(c dagcbor.CID) atdata.CIDLink {
		v, err := cid.Cast(c)
		if err != nil {
			t.Fatal(err)
		}
		return atdata.CIDLink(v)
	}
	section := func(parts ...[]byte) []byte {
		b := bytes.Join(parts, nil)
		return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
	}
	root := dagcbor.SumCID([]byte("root"))
	car := section(cborOf(t, map[string]any{"version": 1, "roots": []any{link(root)}}))
	list := []any{}
	for _, op := range ops {
		m := map[string]any{"action": op[0], "path": op[1], "cid": nil}
		if op[2] != nil {
			record := cborOf(t, op[2].(map[string]any))
			m["cid"] = link(dagcbor.SumCID(record))
			car = append(car, section(dagcbor.SumCID(record), record)...)
		}
		list = append(list, m)
	}
	return messageOf(t, "#commit", map[string]any{
		"seq": seq, "rebase": false, "tooBig": false, "repo": did, "commit": link(root), "rev": rev, "since": nil,
		"blocks": atdata.Bytes(car), "ops": list, "blobs": []any{}, "time": at,
	})
}

// feeder is a relay that sends what it is told to, when it is told to.
type feeder struct {
	url string

	mu     sync.Mutex
	frames [][]byte // frame i has the seq i+1
	grown  chan struct{}
	beats  int
}

func newFeeder(t testing.TB) *feeder {
	t.Helper()
	f := &feeder{grown: make(chan struct{})}
	upgrader := websocket.Upgrader{}
	f.url = serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			for {
				if _, _, err := ws.ReadMessage(); err != nil {
					return
				}
			}
		}()
		for at, _ := strconv.Atoi(r.URL.Query().Get("cursor")); ; {
			f.mu.Lock()
			frames, grown := f.frames, f.grown
			f.mu.Unlock()
			for ; at < len(frames); at++ {
				if ws.WriteMessage(websocket.BinaryMessage, frames[at]) != nil {
					return
				}
			}
			select {
			case <-grown:
			case <-gone:
				return
			}
		}
	}))
	return f
}

// push sends a frame, made for its seq.
func (f *feeder) push(frame func(seq int) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frames = append(f.frames, frame(len(f.frames)+1))
	close(f.grown)
	f.grown = make(chan struct{})
}

// beatDID is of no event but a beat.
const beatDID = "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz"

// beat sends an identity event that is like no other and returns its handle.
func (f *feeder) beat(t testing.TB) (handle string) {
	t.Helper()
	f.push(func(seq int) []byte {
		f.beats++
		handle = fmt.Sprintf("beat%d.example", f.beats)
		return messageOf(t, "#identity", map[string]any{"did": beatDID, "seq": seq, "time": "2026-07-04T14:38:08.999Z", "handle": handle})
	})
	return handle
}

// expectBeat checks that the next frame is that beat, and returns its seq.
func (c *v2Client) expectBeat(t testing.TB, handle string) int64 {
	t.Helper()
	f := c.frame(t)
	if f.kind != "identity" || f.did != beatDID || !strings.Contains(string(f.identity), `"`+handle+`"`) {
		t.Fatalf("got %.300s, want the beat %s", f.text, handle)
	}
	return f.seq
}

// wantsV2 applies a query's filter to an event, the linear way.
func wantsV2(q url.Values, e *v2Event) bool {
	if kinds := q["kinds"]; kinds != nil && !slices.Contains(kinds, e.kind) {
		return false
	}
	if dids := q["dids"]; dids != nil && !slices.Contains(dids, e.did) {
		return false
	}
	if limit, _ := strconv.Atoi(q.Get("maxMessageSizeBytes")); limit > 0 && len(e.v2) > limit {
		return false
	}
	collections := q["collections"]
	return collections == nil || e.kind != "commit" || slices.ContainsFunc(collections, func(c string) bool {
		prefix, pattern := strings.CutSuffix(c, "*")
		return c == e.collection || pattern && strings.HasPrefix(e.collection, prefix)
	})
}

// envelope reads the XRPC answer to a request that was refused, and holds it to what every
// such answer has.
func envelope(t testing.TB, resp *http.Response) (name, message string) {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%d: %v in %.1100q", resp.StatusCode, err, body)
	}
	if keys := slices.Sorted(maps.Keys(m)); !slices.Equal(keys, []string{"error", "message"}) || m["error"] == "" || m["message"] == "" {
		t.Errorf("%d: the body is %.1100s", resp.StatusCode, body)
	}
	if len(body) > 1024 {
		t.Errorf("%d: error and message take %d bytes", resp.StatusCode, len(body))
	}
	if got, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); got != "application/json" {
		t.Errorf("%d: Content-Type %q", resp.StatusCode, got)
	}
	return m["error"], m["message"]
}

var digits = regexp.MustCompile(`\d+`)

// names reports whether a text contains a number, and not as a part of a longer one.
func names(text string, n int64) bool {
	return slices.Contains(digits.FindAllString(text, -1), fmt.Sprint(n))
}

// floorIn returns the floor that a text names: a seq behind what was trimmed, from which the
// oldest event is the next.
func floorIn(t testing.TB, text string, b *v2Buffer) int64 {
	t.Helper()
	oldest := b.trimmed + 1
	if events := b.events(); len(events) > 0 {
		oldest = events[0].cursor
	}
	for _, digits := range digits.FindAllString(text, -1) {
		if n, err := strconv.ParseInt(digits, 10, 64); err == nil && n > b.trimmed-v2Epoch && n <= oldest-v2Epoch {
			return n
		}
	}
	t.Fatalf("%q names no seq between %d and %d", text, b.trimmed-v2Epoch+1, oldest-v2Epoch)
	return 0
}

// hoursAgo are the times from which makeBuffer starts blocks that retention can take one by
// one, and that a daemon of the usual retention keeps.
func hoursAgo(hours ...int) (times []time.Time) {
	now := time.Now()
	for _, h := range hours {
		times = append(times, now.Add(-time.Duration(h)*time.Hour))
	}
	return times
}
