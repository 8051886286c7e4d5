package subscribe_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gorilla/websocket"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/dictionaries"
	"slipstream/pkg/dagcbor"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/subscribe"
)

// The test binary is also the benchmarks' consumers, so that their work is not counted
// as the server's.
func TestMain(m *testing.M) {
	if os.Getenv(drainEnv) != "" {
		drain()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start is what the first cursor comes after.
const start event.Cursor = 1_790_000_000_000_000

// patience is how long anything may take before a test gives up.
const patience = 30 * time.Second

// allDictionaries makes what a server has: those that are built in.
func allDictionaries() *event.Dictionaries {
	d, err := event.NewDictionaries(dictionaries.Current(), dictionaries.All()...)
	if err != nil {
		panic(err)
	}
	return d
}

var compressor = sync.OnceValue(func() *event.Compressor { return allDictionaries().Current() })

// fact is one event as the tests know it.
type fact struct {
	cursor          event.Cursor
	kind            event.Kind
	did, collection string
	payload         string // empty: not on v1
	message         string // on v2
}

// text returns what an uncompressed consumer gets of the event; empty: nothing.
func (f fact) text(v2 bool) string {
	if v2 {
		return f.message
	}
	return f.payload
}

// messageOf makes the v2 message of a v1 payload the slow way.
func messageOf(t testing.TB, payload string, f fact) string {
	t.Helper()
	var e map[string]json.RawMessage
	if err := json.Unmarshal([]byte(payload), &e); err != nil {
		t.Fatal(err)
	}
	body := string(e[f.kind.String()])
	if f.kind == event.KindCommit {
		body = body[1 : len(body)-1]
	} else {
		body = fmt.Sprintf("%q:%s", f.kind, body)
	}
	return fmt.Sprintf(`{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#%s","seq":%d,"did":%q,"time":%q,%s}}`,
		f.kind, f.cursor-1_600_000_000_000_000, f.did, time.UnixMicro(int64(f.cursor)).UTC().Format("2006-01-02T15:04:05.000000Z"), body)
}

// onBothWires runs a test with a world's consumers on either.
func onBothWires(t *testing.T, test func(t *testing.T, v2 bool)) {
	t.Run("v1", func(t *testing.T) { test(t, false) })
	t.Run("v2", func(t *testing.T) { test(t, true) })
}

// paths are the endpoints by wire.
var paths = map[bool]string{false: "/subscribe", true: "/xrpc/network.bsky.jetstream.subscribeEvents"}

// feed makes events and appends them to a log, as ingest would.
type feed struct {
	t    testing.TB
	log  *eventlog.Log
	z    *event.Compressor
	bulk bool // do not keep the facts
	last event.Cursor
	all  []fact

	b                 eventlog.Builder
	json, zstd, extra []byte
}

// cborText appends a CBOR text string.
func cborText(dst []byte, s string) []byte {
	dst = append(dst, 0x7a)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

// cborRecord returns a record with a text.
func cborRecord(collection, text string) []byte {
	short := func(dst []byte, s string) []byte {
		if len(s) < 24 {
			return append(append(dst, 0x60+byte(len(s))), s...)
		}
		if len(s) < 256 {
			return append(append(dst, 0x78, byte(len(s))), s...)
		}
		return cborText(dst, s)
	}
	r := short([]byte{0xa2}, "text")
	r = short(r, text)
	r = short(r, "$type")
	return short(r, collection)
}

// add adds an event to the chunk that is being built.
func (f *feed) add(kind event.Kind, did, collection, text string) {
	f.t.Helper()
	f.last++
	from, extra := len(f.json), len(f.extra)
	seq := int64(f.last - start)
	switch kind {
	case event.KindCommit:
		op := event.Op{Operation: "create", Collection: []byte(collection), RKey: fmt.Appendf(nil, "r%d", seq), Record: cborRecord(collection, text)}
		op.CID = dagcbor.SumCID(op.Record)
		var err error
		if f.json, _, err = event.AppendCommit(f.json, []byte(did), []byte("3l3qo2vuowo2b"), &op); err != nil {
			f.t.Fatal(err)
		}
	case event.KindIdentity:
		f.json = event.AppendIdentity(f.json, []byte(did), []byte("alice.example"), seq, []byte("2026-11-24T10:00:00.000Z"))
	case event.KindAccount:
		f.json = event.AppendAccount(f.json, []byte(did), true, seq, nil, []byte("2026-11-24T10:00:00.000Z"))
	case event.KindSync:
		var err error
		if f.extra, err = event.AppendSync(f.extra, []byte(did), cborRecord("com.example.sync", text)); err != nil {
			f.t.Fatal(err)
		}
		event.SetCursor(f.extra[extra:], len(did), f.last)
	}
	var payload []byte
	if kind != event.KindSync {
		payload = event.Payload(f.json[from:])
		event.SetCursor(payload, len(did), f.last)
		f.zstd = f.z.AppendBinary(f.zstd, payload)
	}
	f.b.Add(f.last, kind, []byte(did), []byte(collection), [3]uint32{uint32(len(f.json)), uint32(len(f.zstd)), uint32(len(f.extra))})
	if !f.bulk {
		x := fact{cursor: f.last, kind: kind, did: did, collection: collection, payload: string(payload)}
		if kind == event.KindSync {
			x.message = messageOf(f.t, string(f.extra[extra:]), x)
		} else {
			x.message = messageOf(f.t, x.payload, x)
		}
		f.all = append(f.all, x)
	}
}

// post adds n commits of a few hundred bytes.
func (f *feed) post(n int) {
	f.t.Helper()
	for range n {
		i := int(f.last - start)
		f.add(event.KindCommit, fmt.Sprintf("did:plc:%024d", i%1000), "app.bsky.feed.post", "a post that says nothing "+strings.Repeat("at all ", 5+i%20))
	}
}

// seal returns the chunk of what was added.
func (f *feed) seal(prev event.Cursor) *eventlog.Chunk {
	f.t.Helper()
	c, err := f.b.Seal(prev, f.z.ID(), bytes.Clone(f.json), bytes.Clone(f.zstd), bytes.Clone(f.extra))
	if err != nil {
		f.t.Fatal(err)
	}
	f.json, f.zstd, f.extra = f.json[:0], f.zstd[:0], f.extra[:0]
	return c
}

// commit appends what was added as one chunk.
func (f *feed) commit() {
	f.t.Helper()
	if err := f.log.Append(context.Background(), []*eventlog.Chunk{f.seal(f.log.Last())}, nil); err != nil {
		f.t.Fatal(err)
	}
}

// posts appends n commits in chunks of at most size.
func (f *feed) posts(n, size int) {
	f.t.Helper()
	for n > 0 {
		f.post(min(n, size))
		f.commit()
		n -= size
	}
}

// world is a server on a log, on a loopback port.
type world struct {
	t    testing.TB
	log  *eventlog.Log
	feed *feed
	srv  *subscribe.Server
	addr string
	dir  string // of the store
	v2   bool   // dial dials the v2 wire
	reg  *prometheus.Registry
	stop func() // ends Run, as a shutdown does

	dials atomic.Int64 // handshakes that succeeded
}

// settings are what a test may change.
type settings struct {
	log  eventlog.Config
	sub  subscribe.Config
	wrap func(net.Listener) net.Listener
	http func(*http.Server) // changes it; nil: it is as the daemon's
	disk bool               // a real directory
	idle bool               // Run does not run: the test drives the server
}

func newWorld(t testing.TB, change func(*settings)) *world {
	t.Helper()
	reg := prometheus.NewRegistry()
	s := settings{
		log:  eventlog.Config{Dir: "log", BlockEvents: 20, Now: func() time.Time { return start.Time() }},
		sub:  subscribe.Config{Dictionaries: allDictionaries(), Version: "test", Registerer: reg},
		wrap: func(l net.Listener) net.Listener { return l },
	}
	if change != nil {
		change(&s)
	}
	if s.disk {
		s.log.Dir = t.TempDir()
	} else {
		s.log.FS = vfs.NewMem()
	}
	log, err := eventlog.Open(s.log)
	if err != nil {
		t.Fatal(err)
	}
	s.sub.Log = log
	srv := subscribe.New(s.sub)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// As the daemon's.
	server := &http.Server{Handler: srv.Handler(), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 2 << 20, ConnContext: subscribe.ConnContext}
	if s.http != nil {
		s.http(server)
	}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(s.wrap(l)) }()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() {
		if s.idle {
			ran <- nil
			return
		}
		ran <- srv.Run(ctx)
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ran:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not return")
		}
	})
	t.Cleanup(func() {
		stop()
		server.Close()
		<-served
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, log: log, feed: &feed{t: t, log: log, z: compressor(), last: start}, srv: srv, addr: l.Addr().String(), dir: s.log.Dir, reg: reg, stop: stop}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// connected waits until the server has n subscribers.
func (w *world) connected(n int) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d subscribers", n), func() bool { return w.srv.Count() == n })
}

// metric returns a counter or gauge; labels are all values, joined.
func (w *world) metric(name, labels string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if strings.Join(values, ",") == labels {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	w.t.Fatalf("no metric %s{%s}", name, labels)
	return 0
}

// ended returns how often the server ended a connection for a reason.
func (w *world) ended(reason string) float64 {
	w.t.Helper()
	return w.metric("slipstream_subscribers_ended_total", reason)
}

// client is a gorilla client.
type client struct {
	t    testing.TB
	v2   bool
	ws   *websocket.Conn
	resp *http.Response
	dec  *zstd.Decoder
}

func (w *world) dial(query string, header ...string) *client {
	w.t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+w.addr+paths[w.v2]+"?"+query, h)
	if err != nil {
		if resp != nil {
			body, _ := io.ReadAll(resp.Body)
			err = fmt.Errorf("%w: %d %s", err, resp.StatusCode, body)
		}
		w.t.Fatalf("dial %.100s: %v", query, err)
	}
	w.dials.Add(1)
	w.t.Cleanup(func() { ws.Close() })
	return &client{t: w.t, v2: w.v2, ws: ws, resp: resp}
}

func (c *client) next() (string, error) {
	c.ws.SetReadDeadline(time.Now().Add(patience))
	kind, m, err := c.ws.ReadMessage()
	if err != nil {
		return "", err
	}
	if kind == websocket.BinaryMessage {
		if c.dec == nil {
			c.dec, err = zstd.NewReader(nil, zstd.WithDecoderDicts(dictionaries.All()...), zstd.WithDecoderConcurrency(1))
			if err != nil {
				return "", err
			}
			c.t.Cleanup(c.dec.Close)
		}
		m, err = c.dec.DecodeAll(m, nil)
	}
	return string(m), err
}

// expect reads exactly the given facts' payloads.
func (c *client) expect(facts []fact) {
	c.t.Helper()
	for i, f := range facts {
		want := f.text(c.v2)
		if want == "" {
			continue
		}
		got, err := c.next()
		if err != nil {
			c.t.Fatalf("event %d of %d: %v", i, len(facts), err)
		}
		if got != want {
			c.t.Fatalf("event %d of %d:\n got %.300s\nwant %.300s", i, len(facts), got, want)
		}
	}
}

// expectClose reads a close frame.
func (c *client) expectClose(code int, reason string) {
	c.t.Helper()
	m, err := c.next()
	var e *websocket.CloseError
	if !errors.As(err, &e) {
		c.t.Fatalf("got %.100q, %v; want a close frame %d", m, err, code)
	}
	if e.Code != code || !strings.Contains(e.Text, reason) {
		c.t.Fatalf("got close %d %q, want %d %q", e.Code, e.Text, code, reason)
	}
}

func (c *client) send(message string) {
	c.t.Helper()
	if err := c.ws.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
		c.t.Fatal(err)
	}
}

// raw is a client that speaks websocket by hand, and reads only when it is told to.
type raw struct {
	t    testing.TB
	v2   bool
	conn *net.TCPConn
	br   *bufio.Reader
}

// dialRaw connects with a receive buffer of some size in bytes; 0: the system's.
func (w *world) dialRaw(query string, buffer int) *raw {
	w.t.Helper()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if buffer > 0 {
			c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, buffer) })
		}
		return err
	}}
	conn, err := d.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * patience))
	fmt.Fprintf(conn, "GET %s?%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", paths[w.v2], query)
	r := &raw{w.t, w.v2, conn.(*net.TCPConn), bufio.NewReaderSize(conn, 4096)}
	resp, err := http.ReadResponse(r.br, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		w.t.Fatalf("handshake: %s", resp.Status)
	}
	w.dials.Add(1)
	return r
}

// masked returns a frame as clients send it; the mask is zero.
func masked(first byte, payload []byte) []byte {
	return append(maskedHeader(first, len(payload)), payload...)
}

func maskedHeader(first byte, n int) []byte {
	f := []byte{first}
	switch {
	case n < 126:
		f = append(f, 0x80|byte(n))
	case n <= 0xffff:
		f = binary.BigEndian.AppendUint16(append(f, 0x80|126), uint16(n))
	default:
		f = binary.BigEndian.AppendUint64(append(f, 0x80|127), uint64(n))
	}
	return append(f, 0, 0, 0, 0)
}

func (r *raw) write(b []byte) {
	r.t.Helper()
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

// frame reads one frame and holds it against what a server may send.
func (r *raw) frame() (opcode byte, payload []byte, err error) {
	var h [10]byte
	if _, err := io.ReadFull(r.br, h[:2]); err != nil {
		return 0, nil, err
	}
	opcode = h[0] & 0x0f
	n := int(h[1] & 0x7f)
	switch {
	case h[0]&0x80 == 0:
		return 0, nil, fmt.Errorf("a fragment: % x", h[:2])
	case h[0]&0x70 != 0:
		return 0, nil, fmt.Errorf("reserved bits: % x", h[:2])
	case h[1]&0x80 != 0:
		return 0, nil, fmt.Errorf("a masked frame: % x", h[:2])
	case opcode != 1 && opcode != 2 && (opcode < 8 || opcode > 10):
		return 0, nil, fmt.Errorf("unknown opcode: % x", h[:2])
	case opcode >= 8 && n > 125:
		return 0, nil, fmt.Errorf("a control frame of more than 125 bytes: % x", h[:2])
	}
	switch n {
	case 126:
		_, err = io.ReadFull(r.br, h[:2])
		n = int(binary.BigEndian.Uint16(h[:]))
	case 127:
		_, err = io.ReadFull(r.br, h[:8])
		n = int(binary.BigEndian.Uint64(h[:]))
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r.br, payload)
	return opcode, payload, err
}

// blocked waits until n writes of the server's wait for their readers.
func (w *world) blocked(n int) {
	w.t.Helper()
	eventually(w.t, "the server's write is blocked", func() bool { return w.srv.Blocked() >= n })
}
