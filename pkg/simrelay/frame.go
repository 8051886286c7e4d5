package simrelay

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

// The kinds of a frame, spelt as Expected.Kind spells them.
const (
	kindCommit   = "commit"
	kindSync     = "sync"
	kindIdentity = "identity"
	kindAccount  = "account"
)

const (
	didLen    = 32 // did:plc: and 24 characters
	plcPrefix = "did:plc:"
	revLen    = 13
)

// A frame is one message on the wire together with the places in it that the loop mode rewrites
// and that faults break. Every offset counts from the start of wire; zero means "not there".
type frame struct {
	wire []byte // websocket header, message header, message body
	kind string

	payloadAt int    // message header, behind the websocket header
	seqAt     int    // the CBOR integer
	timeAt    int    // len(timeLayout) characters
	didAt     int    // in the message body
	didLen    int    // of the DID there
	number    uint64 // of the account
	plcAt     []int  // each place of a patchable DID's 24 characters
	revAt     []int  // each place of the rev; the first is the message's own
	sinceAt   int
	commit    block // the commit object
	commitCID []int // each place of its CID
	blocksAt  int   // the byte-string head of the blocks field
	carAt     int
	carLen    int
	opsAt     int // the array of ops, and where it ends
	opsEnd    int
	tooBigAt  int
	ops       []op

	handle string // of an identity event
	active bool   // of an account event
	status string
}

// An op is where one record change of a commit stands in the frame.
type op struct {
	action  string
	pathAt  int
	pathLen int
	collLen int
	tidKey  bool // the record key is a TID, which the loop mode may rewrite
	cidAt   int  // in the op; zero for a delete
	block   block
	spans   []span // in the record
	broken  bool   // a fault made it undeliverable
}

// A block is one section of the CAR: varint length, CID, data.
type block struct {
	at, end      int // section from its length on
	cidAt, datAt int
}

func newTID(micros int64, clockID uint) string { return string(syntax.NewTID(micros, clockID)) }

// A mutation is one record change on its way into a commit.
type mutation struct {
	action string
	path   string
	tidKey bool
	record []byte
	spans  []span
	cid    cidBytes
	prev   *cidBytes
}

// messageHeads are the CBOR headers {"t": type, "op": 1} of the message types.
var messageHeads = map[string][]byte{}

func init() {
	for _, t := range []string{"#commit", "#sync", "#identity", "#account", "#info", "#future"} {
		messageHeads[t] = messageHead(t)
	}
}

func messageHead(t string) []byte {
	var e encoder
	e.value(obj{{"t", t}, {"op", 1}})
	return e.buf
}

// A framer writes one frame, websocket header first.
type framer struct {
	encoder
	f *frame
}

// wsReserve is room for the longest websocket header; finish moves the header up to the payload.
const wsReserve = 10

func newFramer(kind, messageType string, sizeHint int) *framer {
	w := &framer{f: &frame{kind: kind}}
	w.buf = make([]byte, 0, wsReserve+sizeHint)
	w.buf = append(w.buf, make([]byte, wsReserve)...)
	w.buf = append(w.buf, messageHeads[messageType]...)
	return w
}

func (w *framer) key(k string) { w.str(k) }

func (w *framer) seq(n int64) {
	w.key("seq")
	w.f.seqAt = len(w.buf)
	w.int(n)
}

func (w *framer) time(t time.Time) {
	w.key("time")
	w.f.timeAt = w.str(t.UTC().Format(timeLayout))
}

func (w *framer) did(key string, a *account) {
	w.key(key)
	w.f.didAt = w.str(a.did)
	w.f.didLen = len(a.did)
	w.f.number = a.number
	w.plc(a, w.f.didAt)
}

func (w *framer) plc(a *account, at int) {
	if !a.web {
		w.f.plcAt = append(w.f.plcAt, at+len(plcPrefix))
	}
}

func (w *framer) rev(rev string) {
	w.key("rev")
	w.f.revAt = append(w.f.revAt, w.str(rev))
}

// finish puts the websocket header right before the payload and shifts nothing but the slice:
// offsets were counted from the reserve's start and are moved down by what is left of it.
func (w *framer) finish() *frame {
	f := w.f
	head := appendWSHead(nil, wsBinary, len(w.buf)-wsReserve)
	shift := wsReserve - len(head)
	copy(w.buf[shift:], head)
	f.wire = w.buf[shift:]
	f.payloadAt = wsReserve - shift
	move := func(p *int) {
		if *p != 0 {
			*p -= shift
		}
	}
	for _, p := range []*int{&f.sinceAt, &f.seqAt, &f.timeAt, &f.didAt, &f.blocksAt, &f.carAt, &f.opsAt, &f.opsEnd, &f.tooBigAt} {
		move(p)
	}
	for _, list := range [][]int{f.plcAt, f.revAt, f.commitCID} {
		for i := range list {
			move(&list[i])
		}
	}
	moveBlock := func(b *block) {
		for _, p := range []*int{&b.at, &b.end, &b.cidAt, &b.datAt} {
			move(p)
		}
	}
	moveBlock(&f.commit)
	for i := range f.ops {
		o := &f.ops[i]
		move(&o.pathAt)
		move(&o.cidAt)
		moveBlock(&o.block)
		for j := range o.spans {
			move(&o.spans[j].at)
		}
	}
	return f
}

// A signedCommit is a commit object, encoded, and what of it a frame repeats.
type signedCommit struct {
	data  []byte
	cid   cidBytes
	didAt int // in data
	revAt int
}

// signCommit encodes and signs a version 3 commit object.
func signCommit(a *account, rev string, root cidBytes) (signedCommit, error) {
	encode := func(sig []byte) (encoder, int, int) {
		var e encoder
		n := 5
		if sig != nil {
			n++
		}
		e.mapHead(n)
		e.str("did")
		didAt := e.str(a.did)
		e.str("rev")
		revAt := e.str(rev)
		if sig != nil {
			e.str("sig")
			e.value(sig)
		}
		e.str("data")
		e.link(root)
		e.str("prev")
		e.null()
		e.str("version")
		e.int(3)
		return e, didAt, revAt
	}
	unsigned, _, _ := encode(nil)
	sig, err := a.key.HashAndSign(unsigned.buf)
	if err != nil {
		return signedCommit{}, err
	}
	signed, didAt, revAt := encode(sig)
	return signedCommit{signed.buf, sumCID(codecDagCBOR, signed.buf), didAt, revAt}, nil
}

// A carBlock is a block on its way into a CAR.
type carBlock struct {
	cid  cidBytes
	data []byte
}

// carHeadLen is the length of the header of a CAR version 1 with one root, and its length prefix.
const carHeadLen = 1 + 58

func uvarintLen(n int) int {
	l := 1
	for ; n >= 0x80; n >>= 7 {
		l++
	}
	return l
}

func sectionLen(data []byte) int { return uvarintLen(36+len(data)) + 36 + len(data) }

// carHead appends the CAR header and returns where the root's CID stands.
func (w *framer) carHead(root cidBytes) int {
	w.buf = append(w.buf, carHeadLen-1)
	w.mapHead(2)
	w.str("roots")
	w.arrayHead(1)
	at := w.link(root)
	w.str("version")
	w.int(1)
	return at
}

func (w *framer) section(c cidBytes, data []byte) block {
	b := block{at: len(w.buf)}
	w.buf = binary.AppendUvarint(w.buf, uint64(36+len(data)))
	b.cidAt = len(w.buf)
	w.buf = append(w.buf, c[:]...)
	b.datAt = len(w.buf)
	w.buf = append(w.buf, data...)
	b.end = len(w.buf)
	return b
}

// car appends the blocks field: the commit first, then tree nodes, then records.
func (w *framer) car(a *account, commit signedCommit, nodes []carBlock, muts []mutation) {
	size := carHeadLen + sectionLen(commit.data)
	for _, n := range nodes {
		size += sectionLen(n.data)
	}
	for i := range muts {
		if muts[i].record != nil {
			size += sectionLen(muts[i].record)
		}
	}
	w.key("blocks")
	w.f.blocksAt = len(w.buf)
	w.bytesHead(size)
	w.f.carAt, w.f.carLen = len(w.buf), size
	rootAt := w.carHead(commit.cid)
	w.f.commit = w.section(commit.cid, commit.data)
	w.f.commitCID = append(w.f.commitCID, rootAt, w.f.commit.cidAt)
	w.plc(a, w.f.commit.datAt+commit.didAt)
	w.f.revAt = append(w.f.revAt, w.f.commit.datAt+commit.revAt)
	for _, n := range nodes {
		w.section(n.cid, n.data)
	}
	for i := range muts {
		if muts[i].record == nil {
			continue
		}
		o := &w.f.ops[i]
		o.block = w.section(muts[i].cid, muts[i].record)
		for _, s := range muts[i].spans {
			o.spans = append(o.spans, span{o.block.datAt + s.at, s.n, s.kind})
		}
	}
}

func (w *framer) op(m *mutation) op {
	o := op{action: m.action, pathLen: len(m.path), tidKey: m.tidKey}
	for o.collLen < len(m.path) && m.path[o.collLen] != '/' {
		o.collLen++
	}
	n := 3
	if m.prev != nil {
		n++
	}
	w.mapHead(n)
	w.key("cid")
	if m.record == nil {
		w.null()
	} else {
		o.cidAt = w.link(m.cid)
	}
	w.key("path")
	o.pathAt = w.str(m.path)
	if m.prev != nil {
		w.key("prev")
		w.link(*m.prev)
	}
	w.key("action")
	w.str(m.action)
	return o
}

// A commitFrame is all that a #commit message says.
type commitFrame struct {
	account  *account
	seq      int64
	time     time.Time
	rev      string
	since    string    // empty for a repo's first commit
	prevData *cidBytes // nil for a repo's first commit
	commit   signedCommit
	nodes    []carBlock
	muts     []mutation
}

func (c *commitFrame) encode() *frame {
	hint := 1024
	for _, n := range c.nodes {
		hint += len(n.data) + 40
	}
	for i := range c.muts {
		hint += len(c.muts[i].record) + 200
	}
	w := newFramer(kindCommit, "#commit", hint)
	if c.prevData != nil {
		w.mapHead(12)
	} else {
		w.mapHead(11)
	}
	w.key("ops")
	w.f.opsAt = len(w.buf)
	w.arrayHead(len(c.muts))
	for i := range c.muts {
		w.f.ops = append(w.f.ops, w.op(&c.muts[i]))
	}
	w.f.opsEnd = len(w.buf)
	w.rev(c.rev)
	w.seq(c.seq)
	w.did("repo", c.account)
	w.time(c.time)
	w.key("blobs")
	w.arrayHead(0)
	w.key("since")
	if c.since == "" {
		w.null()
	} else {
		w.f.sinceAt = w.str(c.since)
	}
	w.car(c.account, c.commit, c.nodes, c.muts)
	w.key("commit")
	w.f.commitCID = append(w.f.commitCID, w.link(c.commit.cid))
	w.key("rebase")
	w.bool(false)
	w.key("tooBig")
	w.f.tooBigAt = len(w.buf)
	w.bool(false)
	if c.prevData != nil {
		w.key("prevData")
		w.link(*c.prevData)
	}
	return w.finish()
}

func syncFrame(a *account, seq int64, t time.Time, rev string, commit signedCommit) *frame {
	w := newFramer(kindSync, "#sync", 512)
	w.mapHead(5)
	w.did("did", a)
	w.rev(rev)
	w.seq(seq)
	w.time(t)
	w.car(a, commit, nil, nil)
	return w.finish()
}

func identityFrame(a *account, seq int64, t time.Time, handle string) *frame {
	w := newFramer(kindIdentity, "#identity", 200)
	n := 3
	if handle != "" {
		n++
	}
	w.mapHead(n)
	w.did("did", a)
	w.seq(seq)
	w.time(t)
	if handle != "" {
		w.key("handle")
		w.str(handle)
	}
	w.f.handle = handle
	return w.finish()
}

func accountFrame(a *account, seq int64, t time.Time, active bool, status string) *frame {
	w := newFramer(kindAccount, "#account", 200)
	n := 4
	if status != "" {
		n++
	}
	w.mapHead(n)
	w.did("did", a)
	w.seq(seq)
	w.time(t)
	w.key("active")
	w.bool(active)
	if status != "" {
		w.key("status")
		w.str(status)
	}
	w.f.active, w.f.status = active, status
	return w.finish()
}

// expected lists what a correct consumer delivers for the frame, with or without the JSON of
// records, which costs as much as making the frame.
func (f *frame) expected(seq int64, records bool) []Expected {
	base := Expected{
		Seq:    seq,
		Kind:   f.kind,
		DID:    string(f.wire[f.didAt : f.didAt+f.didLen]),
		Time:   string(f.wire[f.timeAt : f.timeAt+len(timeLayout)]),
		Handle: f.handle,
		Active: f.active,
		Status: f.status,
	}
	if len(f.revAt) > 0 {
		base.Rev = string(f.wire[f.revAt[0] : f.revAt[0]+revLen])
	}
	if f.kind != kindCommit {
		return []Expected{base}
	}
	out := make([]Expected, 0, len(f.ops))
	for i := range f.ops {
		o := &f.ops[i]
		if o.broken {
			continue
		}
		e := base
		path := f.wire[o.pathAt : o.pathAt+o.pathLen]
		e.Action = o.action
		e.Collection = string(path[:o.collLen])
		e.RKey = string(path[o.collLen+1:])
		if o.cidAt != 0 {
			e.CID = cidBytes(f.wire[o.cidAt : o.cidAt+36]).String()
			if records {
				e.RecordJSON = recordJSON(f.wire[o.block.datAt:o.block.end])
			}
		}
		out = append(out, e)
	}
	return out
}

// recordJSON is the data model's JSON of a record as indigo sees it.
func recordJSON(record []byte) []byte {
	v, err := atdata.UnmarshalCBOR(record)
	if err != nil {
		panic(fmt.Sprintf("simrelay: generated a record that atdata refuses: %v", err))
	}
	out, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("simrelay: generated a record without JSON form: %v", err))
	}
	return out
}

// infoMessage and errorMessage are messages without a seq.
func infoMessage(name, message string) []byte {
	e := encoder{buf: append([]byte(nil), messageHeads["#info"]...)}
	e.value(obj{{"name", name}, {"message", message}})
	return e.buf
}

func errorMessage(name, message string) []byte {
	var e encoder
	e.value(obj{{"op", -1}})
	e.value(obj{{"error", name}, {"message", message}})
	return e.buf
}

// Websocket opcodes (RFC 6455, section 5.2) and the final bit.
const (
	wsFinal  = 0x80
	wsText   = wsFinal | 0x1
	wsBinary = wsFinal | 0x2
	wsClose  = wsFinal | 0x8
	wsPing   = wsFinal | 0x9
	wsPong   = wsFinal | 0xa
)

// appendWSHead appends the header of an unmasked server frame.
func appendWSHead(dst []byte, op byte, n int) []byte {
	switch {
	case n < 126:
		return append(dst, op, byte(n))
	case n < 1<<16:
		return append(dst, op, 126, byte(n>>8), byte(n))
	}
	dst = append(dst, op, 127)
	return binary.BigEndian.AppendUint64(dst, uint64(n))
}

func appendWS(dst []byte, op byte, payload []byte) []byte {
	return append(appendWSHead(dst, op, len(payload)), payload...)
}
