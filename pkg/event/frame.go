package event

import "encoding/binary"

// First bytes of a final, unmasked websocket frame (RFC 6455 section 5.2).
const (
	textFrame   = 0x81
	binaryFrame = 0x82
)

// reservedHeader is the room left for a frame header before its payload is known:
// the size of the header of nearly every event, so that nearly none is moved.
const reservedHeader = 4

// headerLen returns the size of the header of an unmasked frame.
func headerLen(payload int) int {
	switch {
	case payload < 126:
		return 2
	case payload <= 0xffff:
		return 4
	}
	return 10
}

// PayloadLen returns how many bytes of a complete frame of frameLen bytes are its
// payload.
func PayloadLen(frameLen int) int {
	switch {
	case frameLen < 2+126:
		return max(frameLen-2, 0)
	case frameLen <= 4+0xffff:
		return frameLen - 4
	}
	return frameLen - 10
}

// Payload returns the payload of one complete frame, as a part of it.
func Payload(frame []byte) []byte {
	return frame[len(frame)-PayloadLen(len(frame)):]
}

func putHeader(dst []byte, first byte, payload int) {
	dst[0] = first
	switch len(dst) {
	case 2:
		dst[1] = byte(payload)
	case 4:
		dst[1] = 126
		binary.BigEndian.PutUint16(dst[2:], uint16(payload))
	default:
		dst[1] = 127
		binary.BigEndian.PutUint64(dst[2:], uint64(payload))
	}
}

// reserve appends the room for a header; finishFrame fills it in.
func reserve(dst []byte) []byte { return append(dst, "0000"[:reservedHeader]...) }

// finishFrame turns dst[start:], which is reservedHeader bytes of room and a payload,
// into a frame that begins with the given byte.
func finishFrame(dst []byte, start int, first byte) []byte {
	payload := len(dst) - start - reservedHeader
	header := headerLen(payload)
	if header != reservedHeader {
		if grow := header - reservedHeader; grow > 0 {
			dst = append(dst, make([]byte, grow)...)
		}
		copy(dst[start+header:], dst[start+reservedHeader:start+reservedHeader+payload])
		dst = dst[:start+header+payload]
	}
	putHeader(dst[start:start+header], first, payload)
	return dst
}
