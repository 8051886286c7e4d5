package ingest

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"slipstream/pkg/dagcbor"
)

// TestOddMessages holds messages that are nearly right against the oracle of FuzzFrame: right
// in their bytes, but with fields of a wrong type, twice, missing, unknown or in another
// order, and CARs with blocks that are none. Mutating bytes hardly ever comes by these.
func TestOddMessages(t *testing.T) {
	n := 40_000
	if testing.Short() {
		n = 4000
	}
	in := &Ingester{metrics: newMetrics(nil)}
	o := newOddities()
	taken := 0
	for range n {
		m := o.message()
		checkMessage(t, in, m)
		if t.Failed() {
			return
		}
		if f, err := splitFrame(m); err == nil {
			x := &batch{}
			x.frames = append(x.frames, f)
			d := decoder{in: in}
			d.batch(x)
			taken += min(len(x.events), 1)
		}
	}
	if taken < n/4 {
		t.Errorf("%d of %d messages yield events: they are too odd to show anything", taken, n)
	}
}

// oddities makes them.
type oddities struct {
	*rand.Rand
	records [][]byte
	ids     []dagcbor.CID // of records
}

func newOddities() *oddities {
	o := &oddities{Rand: rand.New(rand.NewPCG(1, 2)), records: [][]byte{
		item(pairs{"$type", "a.b.c", "b", []byte{}, "n", 1, "t", "<&\u2028\x00"}),
		item(pairs{"$type", "a.b.c"}),
		item(pairs{"z", 1, "$type", "a.b.c", "a", []any{nil, true, pairs{"$link", "x"}}}),
		item(pairs{"l", raw("\xfa\x00\x00\x00\x00")}),
		item(pairs{"n", raw("\x18\x01"), "x", pairs{"$bytes", "YQ"}}),
		item(1), item(nil), {},
	}}
	for _, r := range o.records {
		o.ids = append(o.ids, dagcbor.SumCID(r))
	}
	return o
}

// oneIn is true once in so many times.
func (o *oddities) oneIn(n int) bool { return o.IntN(n) == 0 }

func (o *oddities) pick(v ...any) any { return v[o.IntN(len(v))] }

func (o *oddities) message() []byte {
	typ := o.pick("#commit", "#commit", "#commit", "#identity", "#account", "#sync")
	time, did := o.pick("2026-07-04T12:00:00Z", "", "x\x00", "é"), o.pick("did:plc:a", "did:web:b.c")
	fields := []any{"seq", o.IntN(1000), "time", time}
	switch typ {
	case "#commit":
		var ops []any
		for range o.IntN(5) {
			ops = append(ops, o.op())
		}
		fields = append(fields, "ops", ops, "rev", o.pick("3l", "3k"), "repo", did, "blocks", o.car(), "tooBig", o.oneIn(2))
	case "#identity":
		fields = append(fields, "did", did, "handle", o.pick("a.x", "", nil))
	case "#account":
		fields = append(fields, "did", did, "active", o.oneIn(2), "status", o.pick("a.x", "", nil))
	case "#sync":
		fields = append(fields, "did", did, "rev", "3l", "blocks", []byte("x"))
	}
	m := append(item(o.object("t", typ, "op", 1)), item(o.object(fields...))...)
	if o.oneIn(50) {
		m[o.IntN(len(m))] ^= 1 << o.IntN(8)
	}
	return m
}

func (o *oddities) op() any {
	if o.oneIn(30) {
		return o.value()
	}
	action, cid := o.pick("create", "update", "delete"), any(o.ids[o.IntN(len(o.ids))])
	if action == "delete" && o.oneIn(2) {
		cid = nil
	}
	return o.object("action", action, "path", o.pick("a.b.c/1", "a.b.c/2", "x.y/~"), "cid", cid)
}

// car has some of the records, some of them twice or under another's CID.
func (o *oddities) car() []byte {
	header := item(pairs{"roots", []any{o.ids[0]}, "version", 1})
	b := append(binary.AppendUvarint(nil, uint64(len(header))), header...)
	for range o.IntN(12) {
		i := o.IntN(len(o.ids))
		id, record := slices.Clone(o.ids[i]), o.records[i]
		switch o.IntN(12) {
		case 0:
			id, record = nil, nil
		case 1:
			id, record = nil, []byte{1, 2, 3}
		case 2:
			record = o.records[o.IntN(len(o.records))]
		case 3:
			id[1] = 0x55 // raw
		}
		b = binary.AppendUvarint(b, uint64(len(id)+len(record)))
		b = append(append(b, id...), record...)
	}
	return b
}

// object is a map of these fields, more or less.
func (o *oddities) object(fields ...any) pairs {
	var all [][2]any
	for i := 0; i < len(fields); i += 2 {
		if o.oneIn(40) {
			continue
		}
		for again := true; again; again = o.oneIn(30) {
			key, value := fields[i], fields[i+1]
			if o.oneIn(60) {
				key = long(item(key))
			}
			if o.oneIn(30) {
				value = long(item(value))
			} else if o.oneIn(30) {
				value = o.value()
			}
			all = append(all, [2]any{key, value})
		}
		if o.oneIn(25) {
			key := o.pick("unknown", "x", "blobs", "rebase", "commit", "since", "prevData", "prev", "tooBig", "handle", "status", "", 1, "\xff", "Did")
			all = append(all, [2]any{key, o.value()})
		}
	}
	o.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var p pairs
	for _, pair := range all {
		p = append(p, pair[0], pair[1])
	}
	return p
}

// value is anything at all.
func (o *oddities) value() any {
	return o.pick(nil, true, false, o.IntN(100), raw("\x20"), o.ids[o.IntN(len(o.ids))], []any{1, "x"}, pairs{"x", 1}, []byte("xx"),
		raw("\xf7"), raw("\xd8\x2a\x42\x00\x01"), raw("\xfb\x00\x00\x00\x00\x00\x00\x00\x00"),
		"", "did:plc:a", "3l", "a.b.c/1", "a.b.c/", "a/b/c", "create", "delete", "\xff", "did:web:x%", "é\u2028\"", "a.b.c/..", "-")
}

// long writes the head of an item in one byte more than it needs, if it is short enough.
func long(b []byte) raw {
	if len(b) == 0 || b[0]&31 >= 24 || b[0]>>5 == 7 {
		return b
	}
	return append(raw{b[0]&0xe0 | 24, b[0] & 31}, b[1:]...)
}
