package simrelay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// A Fault is something wrong with the stream at one seq.
type Fault string

// The first group breaks ops of a copy of the frame, which takes them off Expected; it leaves
// frames alone that have no such op. The second group puts a message behind the good frame.
const (
	WrongCID     Fault = "wrong-cid"     // a record's bytes do not match its CID
	MissingBlock Fault = "missing-block" // a record is not in the CAR
	Float        Fault = "float"         // a record holds a float; its CID matches, as in the next three
	BadUTF8      Fault = "bad-utf8"      // a record holds a string that is not UTF-8
	Trailing     Fault = "trailing"      // bytes follow a record's CBOR item
	BadCBOR      Fault = "bad-cbor"      // a record ends in the middle of a map
	TooBig       Fault = "too-big"       // tooBig is true, ops and blocks are empty

	Garbage     Fault = "garbage"      // random bytes
	Truncated   Fault = "truncated"    // the first half of the frame
	GarbageBody Fault = "garbage-body" // a valid header, then random bytes
	TextFrame   Fault = "text"         // a text message
	Duplicate   Fault = "duplicate"    // the frame again
	OldSeq      Fault = "old-seq"      // the frame before it again
	ErrorFrame  Fault = "error"        // op -1, whereupon the connection ends
	UnknownType Fault = "unknown-type" // a type from the future
	UnknownInfo Fault = "info"         // an #info with a name from the future
	Oversized   Fault = "oversized"    // the frame's seq again, with 6 MiB of blocks
)

// AllFaults lists the faults that frames can have.
var AllFaults = []Fault{
	WrongCID, MissingBlock, Float, BadUTF8, Trailing, BadCBOR, TooBig,
	Garbage, Truncated, GarbageBody, TextFrame, Duplicate, OldSeq, ErrorFrame, UnknownType, UnknownInfo, Oversized,
}

// oversize is more than the 5 MB that a message may have by any known limit.
const oversize = 6 << 20

// Faults says what goes wrong, and where.
type Faults struct {
	At    map[int64]Fault // by seq
	Rate  float64         // the share of other seqs that have a fault, 0 to 1
	Kinds []Fault         // to choose from for Rate; empty: AllFaults

	CutAfter   int64         // end each connection, without a closing handshake, after so many messages
	StallAfter int64         // after so many messages of a connection send nothing on it for StallFor, once
	StallFor   time.Duration //
	NoPong     bool          // leave pings unanswered
}

func (f *Faults) check() error {
	if f.Rate < 0 || f.Rate > 1 || math.IsNaN(f.Rate) {
		return &ConfigError{"fault-rate", "must be between 0 and 1"}
	}
	if f.CutAfter < 0 {
		return &ConfigError{"cut-after", "must not be negative"}
	}
	if f.StallAfter < 0 {
		return &ConfigError{"stall-after", "must not be negative"}
	}
	if f.StallFor < 0 {
		return &ConfigError{"stall-for", "must not be negative"}
	}
	for _, kind := range slices.Concat(f.Kinds, slices.Collect(maps.Values(f.At))) {
		if !slices.Contains(AllFaults, kind) {
			return &ConfigError{"faults", fmt.Sprintf("has no kind %q", kind)}
		}
	}
	return nil
}

// A faultPlan knows the fault of every seq, also after the faults have changed.
type faultPlan struct {
	seed uint64
	eras []faultEra // by from, growing
}

type faultEra struct {
	from   int64
	faults Faults
}

func newFaultPlan(seed uint64, first int64, f Faults) faultPlan {
	return faultPlan{seed, []faultEra{{first, f}}}
}

func (p *faultPlan) change(from int64, f Faults) int64 {
	p.eras = append(p.eras, faultEra{from, f})
	return from
}

// any tells whether there may be a fault anywhere.
func (p *faultPlan) any() bool {
	for _, era := range p.eras {
		if era.faults.Rate > 0 || len(era.faults.At) > 0 {
			return true
		}
	}
	return false
}

func (p *faultPlan) at(seq int64) Fault {
	i := len(p.eras) - 1
	for i > 0 && p.eras[i].from > seq {
		i--
	}
	f := &p.eras[i].faults
	if fault, ok := f.At[seq]; ok {
		return fault
	}
	if f.Rate == 0 {
		return ""
	}
	h := mix64(p.seed ^ uint64(seq))
	if float64(h>>11)/(1<<53) >= f.Rate {
		return ""
	}
	kinds := f.Kinds
	if len(kinds) == 0 {
		kinds = AllFaults
	}
	return kinds[mix64(h)%uint64(len(kinds))]
}

// applyFault turns a good frame into what goes out for its seq. The entry's frame keeps the good
// bytes, with the broken ops marked.
func applyFault(fault Fault, f, prev *frame, seq int64, seed uint64) entry {
	e := entry{frame: f, wire: f.wire, messages: 1}
	if fault == "" {
		return e
	}
	random := func(n int) []byte {
		out := make([]byte, n)
		for i := range out {
			out[i] = byte(mix64(seed ^ uint64(seq)<<16 ^ uint64(i)))
		}
		return out
	}
	behind := func(op byte, payload []byte) {
		e.wire = appendWS(slices.Clone(e.wire), op, payload)
		e.messages++
	}
	payload := f.wire[f.payloadAt:]
	switch fault {
	case WrongCID, MissingBlock, Float, BadUTF8, Trailing, BadCBOR, TooBig:
		breakOps(&e, fault)
	case Garbage:
		behind(wsBinary, random(200))
	case Truncated:
		behind(wsBinary, payload[:len(payload)/2])
	case GarbageBody:
		behind(wsBinary, append(slices.Clone(messageHeads["#commit"]), random(200)...))
	case TextFrame:
		behind(wsText, []byte(`{"not":"a relay's frame"}`))
	case Duplicate:
		behind(wsBinary, payload)
	case OldSeq:
		if prev != nil {
			behind(wsBinary, prev.wire[prev.payloadAt:])
		}
	case ErrorFrame:
		behind(wsBinary, errorMessage("InternalServerError", "simulated fault"))
		e.hangUp = true
	case UnknownType:
		w := encoder{buf: slices.Clone(messageHeads["#future"])}
		w.value(obj{{"seq", seq}, {"did", string(f.wire[f.didAt : f.didAt+f.didLen])}, {"what", "nobody knows yet"}})
		behind(wsBinary, w.buf)
	case UnknownInfo:
		behind(wsBinary, infoMessage("SimulatedNotice", "nothing to see here"))
	case Oversized:
		w := encoder{buf: slices.Clone(messageHeads["#commit"])}
		w.value(obj{{"seq", seq}, {"repo", string(f.wire[f.didAt : f.didAt+f.didLen])}, {"blocks", make([]byte, oversize)}})
		behind(wsBinary, w.buf)
	}
	return e
}

// breakOps breaks the first op that has a record, or for TooBig all ops.
func breakOps(e *entry, fault Fault) {
	f := *e.frame
	f.ops = slices.Clone(f.ops)
	i := slices.IndexFunc(f.ops, func(o op) bool { return o.cidAt != 0 })
	if f.kind != kindCommit || i < 0 {
		return
	}
	e.frame = &f
	o := &f.ops[i]
	o.broken = true
	switch fault {
	case TooBig:
		for j := range f.ops {
			f.ops[j].broken = true
		}
		payload := bytes.Join([][]byte{
			f.wire[f.payloadAt:f.opsAt], {0x80}, f.wire[f.opsEnd:f.blocksAt], {0x40},
			f.wire[f.carAt+f.carLen : f.tooBigAt], {0xf5}, f.wire[f.tooBigAt+1:],
		}, nil)
		e.wire = appendWS(nil, wsBinary, payload)
	case WrongCID:
		e.wire = slices.Clone(f.wire)
		at := o.block.end - 1
		if len(o.spans) > 0 {
			at = o.spans[0].at // still valid CBOR: only the CID can tell
		}
		e.wire[at] ^= 1
	case MissingBlock:
		e.wire = replaceSection(&f, o, nil)
	default:
		e.wire = replaceSection(&f, o, badRecord(fault, string(f.wire[o.pathAt:o.pathAt+o.collLen])))
	}
}

func badRecord(fault Fault, collection string) []byte {
	var e encoder
	e.mapHead(2)
	e.str("$type")
	e.str(collection)
	e.str("value")
	switch fault {
	case Float:
		e.buf = append(e.buf, 0xfb)
		e.buf = binary.BigEndian.AppendUint64(e.buf, math.Float64bits(0.5))
	case BadUTF8:
		e.str("ab\xff\xfecd")
	case Trailing:
		e.str("fine")
		e.buf = append(e.buf, 0x00, 0x01)
	case BadCBOR:
		e.buf = append(e.buf, 0xbb)
	}
	return e.buf
}

// replaceSection returns the frame's wire with another record (none if nil) in the op's place.
func replaceSection(f *frame, o *op, data []byte) []byte {
	wire := slices.Clone(f.wire)
	var section []byte
	if data != nil {
		c := sumCID(codecDagCBOR, data)
		copy(wire[o.cidAt:], c[:])
		section = binary.AppendUvarint(nil, uint64(len(c)+len(data)))
		section = append(append(section, c[:]...), data...)
	}
	carLen := f.carLen - (o.block.end - o.block.at) + len(section)
	payload := bytes.Join([][]byte{
		wire[f.payloadAt:f.blocksAt], appendHead(nil, 2, uint64(carLen)),
		wire[f.carAt:o.block.at], section, wire[o.block.end:],
	}, nil)
	return appendWS(nil, wsBinary, payload)
}
