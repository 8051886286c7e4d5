package dagcbor

import "fmt"

// Reason says why an input was refused. The set is closed, so it can label a metric.
type Reason uint8

const (
	ReasonTruncated Reason = iota + 1
	ReasonTrailingBytes
	ReasonUnexpectedType
	ReasonNotAMap
	ReasonFloat
	ReasonInvalidUTF8
	ReasonIndefiniteLength
	ReasonUndefined
	ReasonSimpleValue
	ReasonReserved
	ReasonIntegerRange
	ReasonTag
	ReasonInvalidCID
	ReasonMapKey
	ReasonDuplicateKey
	ReasonTooDeep
	ReasonTooLarge
	ReasonInvalidLink
	ReasonInvalidBytes
	ReasonInvalidType
	ReasonInvalidBlob
	reasonEnd
)

var reasonLabels = [reasonEnd]string{
	ReasonTruncated:        "truncated",
	ReasonTrailingBytes:    "trailing_bytes",
	ReasonUnexpectedType:   "unexpected_type",
	ReasonNotAMap:          "not_a_map",
	ReasonFloat:            "float",
	ReasonInvalidUTF8:      "invalid_utf8",
	ReasonIndefiniteLength: "indefinite_length",
	ReasonUndefined:        "undefined",
	ReasonSimpleValue:      "simple_value",
	ReasonReserved:         "reserved_head",
	ReasonIntegerRange:     "integer_range",
	ReasonTag:              "tag",
	ReasonInvalidCID:       "invalid_cid",
	ReasonMapKey:           "map_key",
	ReasonDuplicateKey:     "duplicate_key",
	ReasonTooDeep:          "too_deep",
	ReasonTooLarge:         "too_large",
	ReasonInvalidLink:      "invalid_link",
	ReasonInvalidBytes:     "invalid_bytes",
	ReasonInvalidType:      "invalid_type",
	ReasonInvalidBlob:      "invalid_blob",
}

// String returns the metric label of r.
func (r Reason) String() string {
	if r == 0 || r >= reasonEnd {
		return "unknown"
	}
	return reasonLabels[r]
}

// Reasons lists every reason an Error of this package can carry.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonEnd-1)
	for r := Reason(1); r < reasonEnd; r++ {
		all = append(all, r)
	}
	return all
}

// Error is the only error type this package returns. It holds no part of the input, so
// that it costs one small allocation and can be kept.
type Error struct {
	Reason Reason
	Offset int // in the input, of the item at fault
}

func (e *Error) Error() string {
	return fmt.Sprintf("dag-cbor: %s at byte %d", e.Reason, e.Offset)
}

func fail(r Reason, offset int) error { return &Error{Reason: r, Offset: offset} }
