package repo

// Fault says why a message, or one op of a commit, cannot be delivered. The set is closed,
// so it can label a metric. The zero Fault is none.
type Fault uint8

const (
	// Of a message.

	FaultBadCBOR        Fault = iota + 1 // not a map, a needed field of the wrong type, bytes left over
	FaultMissingField                    // a needed field is absent
	FaultDuplicateField                  // a needed field is there twice
	FaultInvalidSeq                      // negative
	FaultInvalidDID
	FaultInvalidRev
	FaultInvalidTime
	FaultInvalidHandle
	FaultInvalidStatus
	FaultInvalidInfo
	FaultTooManyOps

	// Of an op.

	FaultInvalidOp     // not a map, or a field is there twice
	FaultInvalidAction // not create, update or delete
	FaultInvalidPath   // not collection/rkey
	FaultInvalidCID    // not the CID of a DAG-CBOR block
	FaultMissingCID    // a create or update without one
	FaultMissingBlock  // the CAR does not have the record
	FaultBadCAR        // the CAR is damaged before the record, if it has it
	FaultCIDMismatch   // the block is not what its CID says
	FaultTooLarge      // the commit repeats blocks until they are more than a frame can hold
	faultEnd
)

var faultLabels = [faultEnd]string{
	0:                   "none",
	FaultBadCBOR:        "bad_cbor",
	FaultMissingField:   "missing_field",
	FaultDuplicateField: "duplicate_field",
	FaultInvalidSeq:     "invalid_seq",
	FaultInvalidDID:     "invalid_did",
	FaultInvalidRev:     "invalid_rev",
	FaultInvalidTime:    "invalid_time",
	FaultInvalidHandle:  "invalid_handle",
	FaultInvalidStatus:  "invalid_status",
	FaultInvalidInfo:    "invalid_info",
	FaultTooManyOps:     "too_many_ops",
	FaultInvalidOp:      "invalid_op",
	FaultInvalidAction:  "invalid_action",
	FaultInvalidPath:    "invalid_path",
	FaultInvalidCID:     "invalid_cid",
	FaultMissingCID:     "missing_cid",
	FaultMissingBlock:   "missing_block",
	FaultBadCAR:         "bad_car",
	FaultCIDMismatch:    "cid_mismatch",
	FaultTooLarge:       "too_large",
}

// String returns the metric label of f.
func (f Fault) String() string {
	if f >= faultEnd {
		return "unknown"
	}
	return faultLabels[f]
}

// Faults lists every fault there is, of messages and of ops.
func Faults() []Fault {
	all := make([]Fault, 0, faultEnd-1)
	for f := Fault(1); f < faultEnd; f++ {
		all = append(all, f)
	}
	return all
}

// Error is what the Parse functions return.
type Error struct {
	Fault Fault
	Field string // that is at fault, if it is one
	Err   error  // the *dagcbor.Error behind a bad_cbor, if there is one
}

func (e *Error) Error() string {
	s := "message: " + e.Fault.String()
	if e.Field != "" {
		s += " " + e.Field
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }
