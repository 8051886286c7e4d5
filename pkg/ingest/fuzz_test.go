package ingest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/events"
	"github.com/ipfs/go-cid"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/event"
	"slipstream/pkg/firehose"
)

// FuzzFrame holds the events that we make of a message against indigo, one-sided: what we
// deliver, indigo must deliver with the same values; what we refuse is refused. Whole
// messages are fuzzed, header included, since indigo then reads the very same bytes and has
// to agree on where the body begins, too.
//
// indigo does not take everything that we take. Where it refuses a message, it has to take
// what essentials makes of it, and there is no other way out. These are the cases:
//
//	what is in the message                               indigo            we
//	a length, tag or integer in long form                refuses message   take: means one thing
//	a field that v1 does not show (commit, blobs,        refuses message   skip
//	rebase, prevData, since, an op's prev) or that
//	nobody knows, holding something else than it should
//	blocks: null                                         refuses message   take as none
//	an op that cannot be delivered: no map, a field of   refuses message   drop the op, not its siblings
//	the wrong type, a CID that is none
//	a delete's cid that is no CID                        refuses message   ignore it
//	blocks of more than 2 MiB                            refuses message   take up to the frame's limit
//
// The last is beyond what is fuzzed. In the CAR the bytes decide: the record of an op is
// whatever block has its CID as its hash. The reference's way through the tree would give
// the same or nothing, as v1 compares the CID that it finds there with the op's. indigo
// reads no CAR without a good header and gives up at the first thing that is no block; of
// two blocks under one CID it keeps the last, unchecked. Hence refBlock.
func FuzzFrame(f *testing.F) {
	for _, m := range handMade() {
		f.Add(m)
	}
	for _, m := range realMessages(f) {
		f.Add(m)
	}
	for _, m := range simulatedMessages(f, 40) {
		if len(m) < 4096 {
			f.Add(m)
		}
	}
	in := &Ingester{metrics: newMetrics(nil)}
	f.Fuzz(func(t *testing.T, message []byte) { checkMessage(t, in, message) })
}

func checkMessage(t *testing.T, in *Ingester, message []byte) {
	frame, err := splitFrame(message)
	if err != nil {
		return
	}
	// Twice, so that the second shows anything that the first has left behind.
	d := decoder{in: in}
	x := &batch{frames: []firehose.Frame{frame, frame}}
	d.batch(x)
	got, syncs := checkBatch(t, x)
	for _, s := range syncs {
		sameRecord(t, s, frame.Body)
	}
	if len(got) == 0 {
		return
	}
	whole, err := indigoEvents(message)
	want := whole
	if err != nil {
		for _, m := range essentials(frame) {
			if some, err := indigoEvents(m); err == nil {
				want = append(want, some...)
			}
		}
	}
	// What we refuse may be missing, so ours have to be among theirs, in order.
	for _, g := range got {
		for len(want) > 0 && !sameJSON(t, g, want[0]) {
			want = want[1:]
		}
		if len(want) == 0 {
			t.Fatalf("%x:\nindigo (%v) has not\n%s\nbut\n%s", message, err, g, bytes.Join(whole, []byte("\n")))
		}
		want = want[1:]
	}
}

// checkBatch checks what readers of a batch of one frame twice rely on, and returns the
// frame's events, and the sync objects.
func checkBatch(t *testing.T, x *batch) (all, syncs [][]byte) {
	// One op can pass the bound, with a record in which every byte is escaped.
	const slack = 8 << 20
	if len(x.json) > 2*(maxFrameJSON+slack) {
		t.Fatalf("%d bytes of JSON", len(x.json))
	}
	if len(x.decoded) != 2 || x.decoded[0].events*2 != len(x.events) || x.decoded[1].events != len(x.events) {
		t.Fatalf("%+v and %d events", x.decoded, len(x.events))
	}
	frames, extra := x.json, x.extra
	for i := range x.events {
		e := &x.events[i]
		var p []byte
		if e.kind == event.KindSync {
			p, extra = extra[:e.size], extra[e.size:]
			event.SetCursor(p, int(e.didLen), testTime)
			syncs = append(syncs, p)
		} else {
			frame := frames[:e.size]
			frames = frames[e.size:]
			p = event.Payload(frame)
			event.SetCursor(p, int(e.didLen), testTime)
			if !bytes.Equal(frame[:len(frame)-len(p)], header(len(p))) {
				t.Fatalf("header %x of a payload of %d bytes", frame[:len(frame)-len(p)], len(p))
			}
			all = append(all, p)
		}
		if !utf8.Valid(p) {
			t.Fatalf("not UTF-8: %q", p)
		}
		v := decodeJSON(t, p).(map[string]any)
		if v["did"] != string(p[event.DIDOffset:][:e.didLen]) || v["time_us"] != json.Number(testTime.String()) || v["kind"] != e.kind.String() {
			t.Fatalf("%+v of %s", e, p)
		}
		if e.kind == event.KindCommit && v["commit"].(map[string]any)["collection"] != string(p[e.collectionOff:][:e.collectionLen]) {
			t.Fatalf("collection of %+v is not in %s", e, p)
		}
	}
	if len(frames) != 0 || len(extra) != 0 {
		t.Fatalf("%d bytes of JSON and %d of sync belong to no event", len(frames), len(extra))
	}
	for i, half := 0, len(all)/2; i < half; i++ {
		if !bytes.Equal(all[i], all[half+i]) {
			t.Fatalf("first  %s\nsecond %s", all[i], all[half+i])
		}
	}
	return all[:len(all)/2], syncs
}

// header is that of a final text frame, by RFC 6455 section 5.2.
func header(payload int) []byte {
	switch {
	case payload < 126:
		return []byte{0x81, byte(payload)}
	case payload < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{0x81, 126}, uint16(payload))
	}
	return binary.BigEndian.AppendUint64([]byte{0x81, 127}, uint64(payload))
}

// sameRecord holds a sync object against atdata's reading of the message's body.
func sameRecord(t *testing.T, payload, body []byte) {
	want, err := oracleRecord(body)
	if err != nil {
		t.Fatalf("atdata refuses %x: %v\n%s", body, err, payload)
	}
	var got struct{ Sync json.RawMessage }
	if err := json.Unmarshal(payload, &got); err != nil {
		t.Fatal(err)
	}
	if !sameJSON(t, got.Sync, want) {
		t.Fatalf("got  %s\nwant %s", got.Sync, want)
	}
}

// indigoEvents are the v1 events of a message as indigo's decoder reads it. An op without
// a block or with a record that atdata refuses has none.
func indigoEvents(message []byte) (all [][]byte, err error) {
	var m events.XRPCStreamEvent
	if err := m.Deserialize(bytes.NewReader(message)); err != nil {
		return nil, err
	}
	commit := m.RepoCommit
	if commit == nil {
		return refRender(refFrame{message: &m}, int64(testTime))
	}
	for _, op := range commit.Ops {
		if op == nil { // null; v1 would panic
			continue
		}
		o := refOp{op: op}
		var record []byte
		if op.Action != "delete" {
			if op.Cid == nil {
				continue
			}
			o.cid = op.Cid.String()
			data, ok := refBlock(commit.Blocks, cid.Cid(*op.Cid))
			if !ok {
				continue
			}
			if record, err = oracleRecord(data); err != nil {
				continue
			}
		}
		e := refCommitEvent(commit, o, record)
		e.TimeUS = int64(testTime)
		b, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// refBlock finds a block by what is in it: it goes through everything in a CAR that has a
// length, and has go-cid do the hashing.
func refBlock(car []byte, want cid.Cid) ([]byte, bool) {
	for len(car) > 0 {
		n, size := binary.Uvarint(car)
		if size <= 0 || n > uint64(len(car)-size) {
			return nil, false
		}
		section := car[size : size+int(n)]
		car = car[size+int(n):]
		data, ok := bytes.CutPrefix(section, want.Bytes())
		if !ok {
			continue
		}
		if sum, err := want.Prefix().Sum(data); err == nil && sum.Equals(want) {
			return data, true
		}
	}
	return nil, false
}

func oracleRecord(record []byte) ([]byte, error) {
	m, err := atdata.UnmarshalCBOR(record)
	if err != nil {
		return nil, err
	}
	return json.Marshal(mendBytes(m))
}

// mendBytes makes empty byte strings not nil, which atdata's encoder refuses although its
// decoder made them.
func mendBytes(v any) any {
	switch v := v.(type) {
	case atdata.Bytes:
		if v == nil {
			return atdata.Bytes{}
		}
	case []any:
		for i := range v {
			v[i] = mendBytes(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = mendBytes(v[k])
		}
	}
	return v
}

// essentials says again what a frame says in the fields that v1's events are made of, in
// shortest CBOR: one message for each op, or one for an identity or account.
func essentials(f firehose.Frame) (messages [][]byte) {
	fields := map[string]string{
		"#commit": "seq repo rev time tooBig blocks", "#identity": "seq did time handle", "#account": "seq did time active status",
	}[f.Type]
	var pairs []byte
	var ops [][]byte
	count := 0
	eachPair(f.Body, func(key string, s *dagcbor.Scanner) {
		switch {
		case key == "ops":
			n, _ := s.Array()
			for range n {
				start := s.Offset()
				if s.Skip() != nil {
					return
				}
				ops = append(ops, essentialOp(f.Body[start:s.Offset()]))
			}
		case contains(fields, key):
			value := scalar(s)
			if key == "blocks" && len(value) == 1 && value[0] == 0xf6 {
				return
			}
			pairs = append(appendString(pairs, 3, []byte(key)), value...)
			count++
		default:
			s.Skip()
		}
	})
	if f.Type != "#commit" {
		return [][]byte{messageOf(f.Type, append(appendHead(nil, 5, uint64(count)), pairs...))}
	}
	for _, op := range ops {
		body := append(appendHead(nil, 5, uint64(count+1)), pairs...)
		body = append(append(body, "\x63ops\x81"...), op...)
		messages = append(messages, messageOf(f.Type, body))
	}
	return messages
}

// essentialOp keeps the action and path, and the CID unless the op is a delete.
func essentialOp(op []byte) []byte {
	var pairs, cid []byte
	count, deletes := 0, false
	eachPair(op, func(key string, s *dagcbor.Scanner) {
		if !contains("action path cid", key) {
			s.Skip()
			return
		}
		value := scalar(s)
		pair := append(appendString(nil, 3, []byte(key)), value...)
		if key == "cid" {
			cid = pair
			return
		}
		pairs = append(pairs, pair...)
		count++
		deletes = deletes || string(value) == "\x66delete"
	})
	if !deletes && cid != nil {
		pairs = append(pairs, cid...)
		count++
	}
	return append(appendHead(nil, 5, uint64(count)), pairs...)
}

func contains(fields, key string) bool {
	return key != "" && strings.Contains(" "+fields+" ", " "+key+" ")
}

// eachPair calls f for each pair of a map whose key is text; f reads the value.
func eachPair(item []byte, f func(key string, s *dagcbor.Scanner)) {
	s := dagcbor.NewScanner(item)
	n, _ := s.Map()
	for range n {
		key, err := s.Text()
		if err != nil && s.Skip() != nil {
			return
		}
		before := s.Offset()
		f(string(key), &s)
		if s.Offset() == before {
			return // at something that is not CBOR
		}
	}
}

// scalar reads an item that has no parts and writes it anew; anything else as it stands.
func scalar(s *dagcbor.Scanner) []byte {
	rest, start := s.Rest(), s.Offset()
	if v, err := s.Text(); err == nil {
		return appendString(nil, 3, v)
	}
	if v, err := s.Bytes(); err == nil {
		return appendString(nil, 2, v)
	}
	if v, err := s.Int(); err == nil {
		if v < 0 {
			return appendHead(nil, 1, uint64(^v))
		}
		return appendHead(nil, 0, uint64(v))
	}
	if v, err := s.CID(); err == nil {
		return appendString([]byte{0xd8, 42}, 2, append([]byte{0}, v...))
	}
	s.Skip()
	return rest[:s.Offset()-start]
}

func appendString(b []byte, major byte, v []byte) []byte {
	return append(appendHead(b, major, uint64(len(v))), v...)
}

func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

// item is the obvious encoder of what handMade needs: pairs are a map, in their order.
func item(v any) []byte {
	switch v := v.(type) {
	case nil:
		return []byte{0xf6}
	case bool:
		if v {
			return []byte{0xf5}
		}
		return []byte{0xf4}
	case int:
		return appendHead(nil, 0, uint64(v))
	case string:
		return appendString(nil, 3, []byte(v))
	case []byte:
		return appendString(nil, 2, v)
	case dagcbor.CID:
		return appendString([]byte{0xd8, 42}, 2, append([]byte{0}, v...))
	case []any:
		b := appendHead(nil, 4, uint64(len(v)))
		for _, e := range v {
			b = append(b, item(e)...)
		}
		return b
	case pairs:
		b := appendHead(nil, 5, uint64(len(v)/2))
		for _, e := range v {
			b = append(b, item(e)...)
		}
		return b
	case raw:
		return v
	}
	panic("no such item")
}

type (
	pairs []any // key, value, key, value
	raw   []byte
)

// handMade are small messages, one or more for each line of FuzzFrame's table.
func handMade() (all [][]byte) {
	record := item(pairs{"$type", "a.b.c", "b", []byte{}, "n", 1, "t", "<&\u2028\x00"})
	other := item(pairs{"$type", "a.b.c"})
	id, otherID := dagcbor.SumCID(record), dagcbor.SumCID(other)
	block := func(c dagcbor.CID, data []byte) []byte {
		b := binary.AppendUvarint(nil, uint64(len(c)+len(data)))
		return append(append(b, c...), data...)
	}
	carHeader := item(pairs{"roots", []any{id}, "version", 1})
	carHeader = append(binary.AppendUvarint(nil, uint64(len(carHeader))), carHeader...)
	car := bytes.Join([][]byte{carHeader, block(id, record), block(otherID, other)}, nil)
	op := pairs{"action", "create", "path", "a.b.c/1", "cid", id}
	update := pairs{"action", "update", "path", "a.b.c/2", "cid", otherID}
	remove := pairs{"action", "delete", "path", "a.b.c/3", "cid", nil}
	commit := func(blocks any, ops []any, more ...any) {
		p := pairs{"ops", ops, "rev", "3l", "seq", 7, "repo", "did:plc:a", "time", "2026-07-04T12:00:00Z", "blocks", blocks}
		all = append(all, messageOf("#commit", item(append(p, more...))))
	}
	commit(car, []any{op, update, remove})
	commit(car, []any{op}, "blobs", []any{id}, "since", nil, "commit", id, "rebase", false, "tooBig", false, "prevData", id)
	commit(car, []any{op}, "blobs", 1)
	commit(car, []any{op}, "since", 1, "rebase", nil, "commit", "x", "prevData", raw("\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00"))
	commit(car, []any{op}, "unknown", pairs{1, raw("\xc1\x00"), "x", []any{nil}})
	commit(nil, []any{remove}, "tooBig", true)
	commit(car, []any{1, nil, op, pairs{"action", 1}, pairs{"action", "create", "path", "a.b.c/1", "cid", "x"}, update})
	commit(car, []any{pairs{"action", "delete", "path", "a.b.c/1", "cid", raw("\xd8\x2a\x41\x00")}, append(pairs{"prev", 1, 2, 3}, op...)})
	commit(raw(append([]byte{0x5a, 0, 0, byte(len(car) >> 8), byte(len(car))}, car...)), []any{op})
	commit(append([]byte{1, 0xff}, car[len(carHeader):]...), []any{op})
	commit(bytes.Join([][]byte{carHeader, {0}, {2, 1, 1}, block(id, record), block(id, other), {9}}, nil), []any{op, op})
	for _, handle := range [...]any{"a.example", "", nil, "\"\\\u2029"} {
		all = append(all, messageOf("#identity", item(pairs{"did", "did:plc:a", "seq", 7, "time", "x", "handle", handle})))
		all = append(all, messageOf("#account", item(pairs{"did", "did:plc:a", "seq", 7, "time", "x", "active", false, "status", handle})))
	}
	all = append(all, messageOf("#identity", item(pairs{"did", "did:web:a", "seq", raw("\x18\x07"), "time", ""})))
	all = append(all, messageOf("#account", item(pairs{"did", "did:web:a", "seq", 7, "time", "", "active", true})))
	all = append(all, messageOf("#identity", item(pairs{"did", "did:plc:a", "seq", 7, "time", "x", "handle", "a.example", "handle", nil})))
	all = append(all, messageOf("#account", item(pairs{"did", "did:plc:a", "seq", 7, "time", "x", "active", true, "status", "a", "status", nil})))
	commit(nil, []any{pairs{"action", "delete", "cid", "x", "path", 1, "path", "a.b.c/1"}})
	all = append(all, messageOf("#sync", item(pairs{"did", "did:plc:a", "rev", "3l", "seq", 7, "time", "x", "blocks", car})))
	return all
}
