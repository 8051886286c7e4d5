package event

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"slipstream/pkg/dagcbor"
)

// V2SeqLimit is above every seq of the v2 wire, which is a Cursor counted from [Epoch]; from
// here on a v2 cursor is a time in unix microseconds.
const V2SeqLimit = 1_000_000_000_000_000

// V2Seq returns the event's seq on the v2 wire.
func (c Cursor) V2Seq() int64 { return int64(c - Epoch) }

// CursorOfV2Seq returns the cursor of the event with a seq of the v2 wire.
func CursorOfV2Seq(seq int64) Cursor { return Epoch + Cursor(seq) }

// The parts of a v2 message: see the package comment.
const (
	messagePrefix = `{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#`
	seqPrefix     = `","seq":`
	v2DIDPrefix   = `,"did":"`
	timePrefix    = `","time":"`
	timeLen       = len("2006-01-02T15:04:05.000000Z")
	timeSuffix    = `",`
)

// bodyOffset returns where what both wires have in common begins in a v1 payload, counted
// from the end of its DID: with the commit's first key, or the name of the upstream object.
func bodyOffset(kind Kind) int {
	n := len(cursorPrefix) + CursorDigits + len(`,"kind":"",`) + len(kind.String())
	if kind == KindCommit {
		n += len(`"commit":{`)
	}
	return n
}

// AppendMessage appends an event as a v2 text frame. payload is what the v1 wire has of it
// or, for a sync event, what [AppendSync] made, with its cursor set; c and kind are what
// stands in it. Nothing is parsed or encoded again: the record's bytes are copied. A payload
// that cannot be one is an error, and dst then comes back as it was.
func AppendMessage(dst, payload []byte, c Cursor, kind Kind) ([]byte, error) {
	didLen := -1
	if len(payload) > DIDOffset {
		didLen = bytes.IndexByte(payload[DIDOffset:], '"')
	}
	didEnd := DIDOffset + didLen
	body := didEnd + bodyOffset(kind)
	if didLen < 0 || body > len(payload) {
		return dst, errors.New("its JSON is damaged")
	}
	start := len(dst)
	dst = append(reserve(dst), messagePrefix...)
	dst = append(dst, kind.String()...)
	dst = append(dst, seqPrefix...)
	dst = strconv.AppendInt(dst, c.V2Seq(), 10)
	dst = append(dst, v2DIDPrefix...)
	dst = append(dst, payload[DIDOffset:didEnd]...)
	dst = append(dst, timePrefix...)
	dst = appendTime(dst, c)
	dst = append(dst, timeSuffix...)
	dst = append(dst, payload[body:]...)
	if kind != KindCommit {
		dst = append(dst, '}') // for a commit, whose keys move up by one level, there are enough
	}
	return finishFrame(dst, start, textFrame), nil
}

// appendTime appends a cursor's moment in RFC 3339, with six decimals. package time is fast
// with its own layout, and takes as long as all the rest of a message with any other.
func appendTime(dst []byte, c Cursor) []byte {
	dst = c.Time().UTC().AppendFormat(dst, time.RFC3339)
	at := len(dst) - 1 // of the Z
	dst = append(dst, "000000Z"...)
	dst[at] = '.'
	for i, micros := at+6, c%1_000_000; micros > 0; i-- {
		dst[i] = byte('0' + micros%10)
		micros /= 10
	}
	return dst
}

// MessageLen returns the length of the payload that [AppendMessage] makes of one of n bytes.
func MessageLen(n int, c Cursor, kind Kind) int {
	body := n - len(didPrefix) - bodyOffset(kind) // and the DID, which stands in both
	digits := 1
	for seq := c.V2Seq(); seq >= 10; seq /= 10 {
		digits++
	}
	n = len(messagePrefix) + len(kind.String()) + len(seqPrefix) + digits + len(v2DIDPrefix) +
		len(timePrefix) + timeLen + len(timeSuffix) + body
	if kind != KindCommit {
		n++
	}
	return n
}

// AppendInfo appends a v2 text frame that tells a consumer something about its stream. name
// and message are valid UTF-8.
func AppendInfo(dst []byte, name, message string) []byte {
	start := len(dst)
	dst = append(reserve(dst), messagePrefix+`info","name":`...)
	dst = dagcbor.AppendJSONString(dst, []byte(name))
	dst = append(dst, `,"message":`...)
	dst = dagcbor.AppendJSONString(dst, []byte(message))
	return finishFrame(append(dst, "}}"...), start, textFrame)
}

// AppendError appends the v2 text frame that ends a stream. name and message are valid UTF-8.
func AppendError(dst []byte, name, message string) []byte {
	start := len(dst)
	dst = append(reserve(dst), `{"$type":"error","error":`...)
	dst = dagcbor.AppendJSONString(dst, []byte(name))
	dst = append(dst, `,"message":`...)
	dst = dagcbor.AppendJSONString(dst, []byte(message))
	return finishFrame(append(dst, '}'), start, textFrame)
}
