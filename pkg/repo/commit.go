package repo

import (
	"slipstream/pkg/dagcbor"
)

// Action is what an op does to a record.
type Action uint8

const (
	Create Action = iota + 1
	Update
	Delete
)

// String returns the word of the wire for a, the same on both sides of this daemon.
func (a Action) String() string {
	switch a {
	case Create:
		return "create"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return "unknown"
}

// Op is one record change of a commit. Its slices point into the message.
type Op struct {
	Action     Action
	Collection []byte
	RKey       []byte
	CID        dagcbor.CID // nil for a delete
	Record     []byte      // DAG-CBOR that has this CID; nil for a delete
	Fault      Fault       // 0 if deliverable; otherwise the other fields are not to be used
}

const (
	// maxOps is where indigo's decoder stops; the lexicon says 200.
	maxOps = 8192
	// maxRecordBytes bounds the records of a commit taken together. A frame is at most
	// 5 MB, so only ops that name the same large block again and again get there.
	maxRecordBytes = 8 << 20
)

// Commit is a #commit message. Its zero value is ready for use, and using one again saves
// its allocations. The slices are valid as long as the body given to Parse.
type Commit struct {
	Seq    int64
	Repo   []byte
	Rev    []byte
	Since  []byte // nil if null, absent or no rev
	Time   []byte // any UTF-8
	TooBig bool
	Ops    []Op // in the order of the message, overwritten by the next Parse

	// Skip tells which collections' ops are left out of Ops, and their records unread; nil:
	// none's. Skipped is how many were.
	Skip    func(collection []byte) bool
	Skipped int

	wanted wanted
}

// Parse reads the body of a #commit message into c.
func (c *Commit) Parse(body []byte) error {
	clear(c.Ops) // so that they keep no old message in memory
	*c = Commit{Ops: c.Ops[:0], Skip: c.Skip, wanted: c.wanted}
	var blocks []byte
	r := open(body)
	for r.next() {
		switch string(r.key) {
		case "seq":
			c.Seq = r.seq()
		case "repo":
			c.Repo = r.did("repo")
		case "rev":
			c.Rev = r.rev()
		case "since":
			c.Since = r.since()
		case "time":
			c.Time = r.time()
		case "tooBig":
			c.TooBig = r.bool("tooBig", fieldTooBig)
		case "blocks":
			if !r.s.Null() {
				blocks = r.bytes("blocks", fieldBlocks)
			}
		case "ops":
			c.ops(&r)
		default:
			r.skip()
		}
	}
	// indigo leaves empty blocks out, as commits that are too big and deletes may have them.
	err := r.close(fieldSeq | fieldDID | fieldRev | fieldTime | fieldOps)
	if err != nil {
		c.Ops = c.Ops[:0]
		return err
	}
	c.records(blocks)
	return nil
}

func (r *reader) since() []byte {
	if !r.first("since", fieldSince) || r.s.Null() {
		return nil
	}
	v, err := r.s.Text()
	if err != nil {
		r.skip()
		return nil
	}
	if !validRev(v) {
		return nil
	}
	return v
}

func (r *reader) bytes(name string, field fields) []byte {
	if !r.first(name, field) {
		return nil
	}
	v, err := r.s.Bytes()
	if err != nil {
		r.bad(name, err)
	}
	return v
}

func (c *Commit) ops(r *reader) {
	if !r.first("ops", fieldOps) {
		return
	}
	n, err := r.s.Array()
	if err != nil {
		r.bad("ops", err)
		return
	}
	if n > maxOps {
		r.stop(FaultTooManyOps, "ops")
		return
	}
	for range n {
		op, err := parseOp(&r.s)
		if err != nil {
			r.bad("ops", err)
			return
		}
		if c.Skip != nil && len(op.Collection) > 0 && c.Skip(op.Collection) {
			c.Skipped++
			continue
		}
		c.Ops = append(c.Ops, op)
	}
}

// parseOp reads one op. What is wrong with it goes into its Fault as long as the CBOR lets
// the next op be found; only where it does not is there an error.
func parseOp(s *dagcbor.Scanner) (op Op, err error) {
	const (
		action = 1 << iota
		path
		cid
	)
	n, err := s.Map()
	if err != nil {
		return Op{Fault: FaultInvalidOp}, s.Skip()
	}
	var seen uint8
	var fault Fault
	note := func(f Fault) {
		if fault == 0 {
			fault = f
		}
	}
	hasPath, badCID := false, false
	for range n {
		// A key that is not text names no field we know.
		key, err := s.Text()
		if err != nil {
			if err := s.Skip(); err != nil {
				return Op{}, err
			}
		}
		var field uint8
		switch string(key) {
		case "action":
			field = action
			if v, err := s.Text(); err == nil {
				op.Action = parseAction(v)
			} else if err := s.Skip(); err != nil {
				return Op{}, err
			}
		case "path":
			field = path
			if v, err := s.Text(); err == nil {
				op.Collection, op.RKey, hasPath = splitPath(v)
			} else if err := s.Skip(); err != nil {
				return Op{}, err
			}
		case "cid":
			field = cid
			if s.Null() {
				break
			}
			if v, err := s.CID(); err == nil {
				op.CID = v
			} else if err := s.Skip(); err != nil {
				return Op{}, err
			} else {
				badCID = true
			}
		default:
			if err := s.Skip(); err != nil {
				return Op{}, err
			}
		}
		if seen&field != 0 {
			note(FaultInvalidOp)
		}
		seen |= field
	}
	switch {
	case op.Action == 0:
		note(FaultInvalidAction)
	case !hasPath:
		note(FaultInvalidPath)
	case op.Action == Delete:
		// Some send the CID of the record that was; it is of no use.
		op.CID = nil
	case badCID:
		note(FaultInvalidCID)
	case op.CID == nil:
		note(FaultMissingCID)
	case !op.CID.IsDagCBOR():
		note(FaultInvalidCID)
	}
	op.Fault = fault
	return op, nil
}

func parseAction(b []byte) Action {
	switch string(b) {
	case "create":
		return Create
	case "update":
		return Update
	case "delete":
		return Delete
	}
	return 0
}

// records finds the record of each op in the CAR.
func (c *Commit) records(car []byte) {
	w := &c.wanted
	w.reset(len(c.Ops))
	for i := range c.Ops {
		if op := &c.Ops[i]; op.Fault == 0 && op.CID != nil {
			w.add(op.CID)
		}
	}
	if len(w.blocks) == 0 {
		return
	}
	whole := w.collect(car)
	budget := maxRecordBytes
	for i := range c.Ops {
		op := &c.Ops[i]
		if op.Fault != 0 || op.CID == nil {
			continue
		}
		data, fault := w.record(op.CID)
		if fault == FaultMissingBlock && !whole {
			fault = FaultBadCAR
		}
		if fault == 0 && len(data) > budget {
			fault = FaultTooLarge
		}
		if fault != 0 {
			op.Fault = fault
			continue
		}
		budget -= len(data)
		op.Record = data
	}
}
