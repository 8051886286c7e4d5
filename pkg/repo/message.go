package repo

import (
	"slipstream/pkg/dagcbor"
)

// Identity is an #identity message.
type Identity struct {
	Seq       int64
	DID       []byte
	Handle    []byte // any UTF-8, as the relay passes it on
	Time      []byte // any UTF-8
	HasHandle bool
}

// Account is an #account message.
type Account struct {
	Seq       int64
	DID       []byte
	Time      []byte // any UTF-8
	Status    []byte // any UTF-8
	HasStatus bool
	Active    bool
}

// Sync is a #sync message, without its blocks.
type Sync struct {
	Seq  int64
	DID  []byte
	Rev  []byte
	Time []byte // any UTF-8
}

// Info is an #info message.
type Info struct {
	Name    []byte // any UTF-8
	Message []byte // any UTF-8; nil if absent
}

// ParseIdentity reads the body of an #identity message.
func ParseIdentity(body []byte) (Identity, error) {
	var m Identity
	r := open(body)
	for r.next() {
		switch string(r.key) {
		case "seq":
			m.Seq = r.seq()
		case "did":
			m.DID = r.did("did")
		case "time":
			m.Time = r.time()
		case "handle":
			m.Handle, m.HasHandle = r.optional("handle", fieldHandle, maxHandleLen, FaultInvalidHandle)
		default:
			r.skip()
		}
	}
	return m, r.close(fieldSeq | fieldDID | fieldTime)
}

// ParseAccount reads the body of an #account message.
func ParseAccount(body []byte) (Account, error) {
	var m Account
	r := open(body)
	for r.next() {
		switch string(r.key) {
		case "seq":
			m.Seq = r.seq()
		case "did":
			m.DID = r.did("did")
		case "time":
			m.Time = r.time()
		case "active":
			m.Active = r.bool("active", fieldActive)
		case "status":
			m.Status, m.HasStatus = r.optional("status", fieldStatus, maxStatusLen, FaultInvalidStatus)
		default:
			r.skip()
		}
	}
	return m, r.close(fieldSeq | fieldDID | fieldTime | fieldActive)
}

// ParseSync reads the body of a #sync message.
func ParseSync(body []byte) (Sync, error) {
	var m Sync
	r := open(body)
	for r.next() {
		switch string(r.key) {
		case "seq":
			m.Seq = r.seq()
		case "did":
			m.DID = r.did("did")
		case "rev":
			m.Rev = r.rev()
		case "time":
			m.Time = r.time()
		default:
			r.skip()
		}
	}
	return m, r.close(fieldSeq | fieldDID | fieldRev | fieldTime)
}

// ParseInfo reads the body of an #info message.
func ParseInfo(body []byte) (Info, error) {
	var m Info
	r := open(body)
	for r.next() {
		switch string(r.key) {
		case "name":
			m.Name = r.text("name", fieldName, maxInfoLen, FaultInvalidInfo)
		case "message":
			m.Message, _ = r.optional("message", fieldMessage, maxInfoLen, FaultInvalidInfo)
		default:
			r.skip()
		}
	}
	return m, r.close(fieldName)
}

// fields is a set of the fields we read.
type fields uint16

const (
	fieldSeq fields = 1 << iota
	fieldDID
	fieldRev
	fieldTime
	fieldSince
	fieldTooBig
	fieldOps
	fieldBlocks
	fieldHandle
	fieldActive
	fieldStatus
	fieldName
	fieldMessage
)

var fieldNames = [...]string{"seq", "did", "rev", "time", "since", "tooBig", "ops", "blocks",
	"handle", "active", "status", "name", "message"}

// reader walks over the map that a message is. The first fault stops it; close reports it.
type reader struct {
	s     dagcbor.Scanner
	left  int    // pairs not yet begun
	key   []byte // of the pair begun
	seen  fields
	fault Fault
	field string
	cause error
}

func open(body []byte) reader {
	r := reader{s: dagcbor.NewScanner(body)}
	n, err := r.s.Map()
	if err != nil {
		r.bad("", err)
	}
	r.left = n
	return r
}

// next goes to the next pair and reads its key.
func (r *reader) next() bool {
	if r.left == 0 || r.fault != 0 {
		return false
	}
	r.left--
	key, err := r.s.Text()
	if err != nil {
		r.bad("", err)
		return false
	}
	r.key = key
	return true
}

// close returns the fault that stopped the reader, or the one of a message that ended too
// early or too late or lacks a needed field.
func (r *reader) close(needed fields) error {
	if r.fault == 0 && r.s.Len() > 0 {
		r.bad("", &dagcbor.Error{Reason: dagcbor.ReasonTrailingBytes, Offset: r.s.Offset()})
	}
	if missing := needed &^ r.seen; r.fault == 0 && missing != 0 {
		for i, name := range fieldNames {
			if missing&(1<<i) != 0 {
				r.stop(FaultMissingField, name)
				break
			}
		}
	}
	if r.fault == 0 {
		return nil
	}
	return &Error{Fault: r.fault, Field: r.field, Err: r.cause}
}

func (r *reader) stop(f Fault, field string) { r.fault, r.field = f, field }

func (r *reader) bad(field string, err error) {
	r.stop(FaultBadCBOR, field)
	r.cause = err
}

// first marks field as seen, which it may be once.
func (r *reader) first(name string, field fields) bool {
	if r.seen&field != 0 {
		r.stop(FaultDuplicateField, name)
		return false
	}
	r.seen |= field
	return true
}

func (r *reader) skip() {
	if err := r.s.Skip(); err != nil {
		r.bad("", err)
	}
}

func (r *reader) seq() int64 {
	if !r.first("seq", fieldSeq) {
		return 0
	}
	v, err := r.s.Int()
	if err != nil {
		r.bad("seq", err)
	} else if v < 0 {
		r.stop(FaultInvalidSeq, "seq")
	}
	return v
}

func (r *reader) bool(name string, field fields) bool {
	if !r.first(name, field) {
		return false
	}
	v, err := r.s.Bool()
	if err != nil {
		r.bad(name, err)
	}
	return v
}

// text reads a string of at most limit bytes; a longer one is fault f.
func (r *reader) text(name string, field fields, limit int, f Fault) []byte {
	if !r.first(name, field) {
		return nil
	}
	v, err := r.s.Text()
	if err != nil {
		r.bad(name, err)
	} else if len(v) > limit {
		r.stop(f, name)
	}
	return v
}

// optional is text for a field that may be null, which is as good as absent.
func (r *reader) optional(name string, field fields, limit int, f Fault) (v []byte, ok bool) {
	if r.s.Null() {
		r.first(name, field)
		return nil, false
	}
	return r.text(name, field, limit, f), true
}

func (r *reader) did(name string) []byte {
	v := r.text(name, fieldDID, maxDIDLen, FaultInvalidDID)
	if r.fault == 0 && !validDID(v) {
		r.stop(FaultInvalidDID, name)
	}
	return v
}

func (r *reader) rev() []byte {
	v := r.text("rev", fieldRev, maxRevLen, FaultInvalidRev)
	if r.fault == 0 && !validRev(v) {
		r.stop(FaultInvalidRev, "rev")
	}
	return v
}

func (r *reader) time() []byte {
	return r.text("time", fieldTime, maxTimeLen, FaultInvalidTime)
}
