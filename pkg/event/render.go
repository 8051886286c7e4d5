package event

import (
	"strconv"

	"slipstream/pkg/dagcbor"
)

// Where things stand in a payload: see the package comment.
const (
	didPrefix    = `{"did":"`
	cursorPrefix = `","time_us":`
	cursorGap    = `0000000000000000`
	commitPrefix = `,"kind":"commit","commit":{"rev":"`
)

// DIDOffset is where a payload's DID begins.
const DIDOffset = len(didPrefix)

// Op is one record operation as a commit event shows it. The byte slices are only
// read.
type Op struct {
	Operation  string // "create", "update" or "delete"
	Collection []byte
	RKey       []byte
	CID        dagcbor.CID // nil: a delete
	Record     []byte      // DAG-CBOR; unused without a CID
}

// CollectionOffset returns where the collection begins in the payload of a commit
// event.
func CollectionOffset(did, rev []byte, operation string) int {
	return len(didPrefix) + len(did) + len(cursorPrefix) + CursorDigits + len(commitPrefix) +
		len(rev) + len(`","operation":"`) + len(operation) + len(`","collection":"`)
}

// Rev returns the rev in the payload of a commit event whose DID is didLen bytes
// long, as a part of it; nil if the payload is no commit.
func Rev(payload []byte, didLen int) []byte {
	at := len(didPrefix) + didLen + len(cursorPrefix) + CursorDigits
	if len(payload) < at+len(commitPrefix) || string(payload[at:at+len(commitPrefix)]) != commitPrefix {
		return nil
	}
	rev := payload[at+len(commitPrefix):]
	for i, c := range rev {
		if c == '"' {
			return rev[:i]
		}
	}
	return nil
}

// SetCursor writes c into the gap that the Append functions leave in a payload
// whose DID is didLen bytes long. c must not be below [Epoch].
func SetCursor(payload []byte, didLen int, c Cursor) {
	at := len(didPrefix) + didLen + len(cursorPrefix)
	gap := payload[at : at+CursorDigits]
	for i := CursorDigits - 1; i >= 0; i-- {
		gap[i] = byte('0' + c%10)
		c /= 10
	}
}

// AppendCommit appends a commit event as a text frame. canonical is false if the
// record was not canonical DAG-CBOR. The error is that of [dagcbor.AppendRecordJSON];
// dst then comes back as it was.
func AppendCommit(dst, did, rev []byte, op *Op) (out []byte, canonical bool, err error) {
	start := len(dst)
	dst = appendEnvelope(dst, did)
	dst = append(dst, commitPrefix...)
	dst = append(dst, rev...)
	dst = append(dst, `","operation":"`...)
	dst = append(dst, op.Operation...)
	dst = append(dst, `","collection":"`...)
	dst = append(dst, op.Collection...)
	dst = append(dst, `","rkey":"`...)
	dst = append(dst, op.RKey...)
	canonical = true
	if op.CID != nil {
		dst = append(dst, `","record":`...)
		dst, canonical, err = dagcbor.AppendRecordJSON(dst, op.Record)
		if err != nil {
			return dst[:start], canonical, err
		}
		dst = append(dst, `,"cid":"`...)
		dst = dagcbor.AppendCID(dst, op.CID)
	}
	dst = append(dst, `"}}`...)
	return finishFrame(dst, start, textFrame), canonical, nil
}

// AppendIdentity appends an identity event as a text frame. handle may be nil; it
// and time are valid UTF-8 and are escaped here.
func AppendIdentity(dst, did, handle []byte, seq int64, time []byte) []byte {
	start := len(dst)
	dst = appendEnvelope(dst, did)
	dst = append(dst, `,"kind":"identity","identity":{"did":"`...)
	dst = append(dst, did...)
	dst = append(dst, '"')
	if handle != nil {
		dst = append(dst, `,"handle":`...)
		dst = dagcbor.AppendJSONString(dst, handle)
	}
	dst = append(dst, `,"seq":`...)
	dst = strconv.AppendInt(dst, seq, 10)
	dst = append(dst, `,"time":`...)
	dst = dagcbor.AppendJSONString(dst, time)
	dst = append(dst, "}}"...)
	return finishFrame(dst, start, textFrame)
}

// AppendAccount appends an account event as a text frame. status may be nil; it
// and time are valid UTF-8 and are escaped here.
func AppendAccount(dst, did []byte, active bool, seq int64, status, time []byte) []byte {
	start := len(dst)
	dst = appendEnvelope(dst, did)
	dst = append(dst, `,"kind":"account","account":{"active":`...)
	dst = strconv.AppendBool(dst, active)
	dst = append(dst, `,"did":"`...)
	dst = append(dst, did...)
	dst = append(dst, `","seq":`...)
	dst = strconv.AppendInt(dst, seq, 10)
	if status != nil {
		dst = append(dst, `,"status":`...)
		dst = dagcbor.AppendJSONString(dst, status)
	}
	dst = append(dst, `,"time":`...)
	dst = dagcbor.AppendJSONString(dst, time)
	dst = append(dst, "}}"...)
	return finishFrame(dst, start, textFrame)
}

// AppendSync appends the payload of a sync event, without a frame: no v1 consumer
// receives it. body is the upstream message, transcoded as it is; the error is that
// of [dagcbor.AppendRecordJSON], and dst then comes back as it was.
func AppendSync(dst, did, body []byte) ([]byte, error) {
	start := len(dst)
	dst = append(dst, didPrefix...)
	dst = append(dst, did...)
	dst = append(dst, cursorPrefix+cursorGap+`,"kind":"sync","sync":`...)
	dst, _, err := dagcbor.AppendRecordJSON(dst, body)
	if err != nil {
		return dst[:start], err
	}
	return append(dst, '}'), nil
}

func appendEnvelope(dst, did []byte) []byte {
	dst = reserve(dst)
	dst = append(dst, didPrefix...)
	dst = append(dst, did...)
	return append(dst, cursorPrefix+cursorGap...)
}
