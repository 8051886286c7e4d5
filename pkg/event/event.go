package event

import (
	"strconv"
	"time"
)

// Cursor is an event's identity: time_us, unix microseconds, assigned once by the
// sequencer, strictly growing. It is the store's key and the v1 cursor.
type Cursor int64

// Epoch is the smallest value a Cursor may have. The v2 wire counts its seq from
// here; on the v1 wire it guarantees 16 digits whatever the machine's clock says.
const Epoch Cursor = 1_600_000_000_000_000

// CursorDigits is the width of every valid Cursor in decimal.
const CursorDigits = 16

// CursorAt returns the cursor of a moment, which no event need have.
func CursorAt(t time.Time) Cursor { return Cursor(t.UnixMicro()) }

// Time returns the moment the cursor names.
func (c Cursor) Time() time.Time { return time.UnixMicro(int64(c)) }

// String returns the cursor as it stands in a URL and in time_us.
func (c Cursor) String() string { return strconv.FormatInt(int64(c), 10) }

// Kind says what an event is about. The values are stored.
type Kind uint8

// The kinds of event. KindSync is not sent on the v1 wire.
const (
	KindCommit Kind = iota + 1
	KindIdentity
	KindAccount
	KindSync
)

// String returns the wire spelling.
func (k Kind) String() string {
	switch k {
	case KindCommit:
		return "commit"
	case KindIdentity:
		return "identity"
	case KindAccount:
		return "account"
	case KindSync:
		return "sync"
	}
	return "unknown"
}

// ParseKind returns the kind of a wire spelling.
func ParseKind(s string) (Kind, bool) {
	for k := KindCommit; k <= KindSync; k++ {
		if k.String() == s {
			return k, true
		}
	}
	return 0, false
}
