package train

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/event"
	"slipstream/pkg/repo"
)

// AddJSON adds the v1 events in r, one a line.
func (s *Source) AddJSON(r io.Reader) error {
	lines := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if err := s.Add(line); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// readTime is about when records of repos, and captured frames, are said to have come: in December
// 2026. It is not the day of other material, for what a dictionary learns of a day is of no use the
// day after, and would look as if it were.
const readTime event.Cursor = 1_797_724_800_000_000

// AddCAR adds the records of an exported repo, each as if somebody else had just created it.
// Real events are of many authors: what learnt one author's DID would have learnt nothing. What
// a CAR's tree says, which keys the records have, is not read.
func (s *Source) AddCAR(car []byte) error {
	rng := rand.New(rand.NewPCG(uint64(len(car)), 0))
	var owner []byte // named in the commit
	type record struct {
		cid        dagcbor.CID
		collection []byte
		data       []byte
	}
	var records []record
	for first := true; len(car) > 0; first = false {
		n, size := binary.Uvarint(car)
		if size <= 0 || n == 0 || n > uint64(len(car)-size) {
			return errors.New("no CAR, or one that was cut off")
		}
		section := car[size : size+int(n)]
		car = car[size+int(n):]
		if first {
			continue // its header
		}
		cid, n36, err := dagcbor.ParseCID(section)
		if err != nil {
			continue // what atproto has no name for
		}
		data := section[n36:]
		if !cid.Matches(data) {
			return fmt.Errorf("block %v of the CAR is not what its CID says", cid)
		}
		if typ := textField(data, "$type"); typ != nil && isNSID(string(typ)) {
			records = append(records, record{cid, typ, data})
		} else if did := textField(data, "did"); did != nil {
			owner = did
		}
	}
	if records == nil {
		return errors.New("a CAR without records")
	}
	cursor := readTime
	for i := range records {
		r := &records[i]
		cursor += event.Cursor(rng.IntN(40_000_000))
		did := randomDID(rng)
		rev := appendTID(nil, int64(cursor)-rng.Int64N(2_000_000), uint16(rng.Uint32()))
		rkey := appendTID(nil, int64(cursor)-rng.Int64N(4_000_000), uint16(rng.Uint32()))
		frame, _, err := event.AppendCommit(nil, did, rev, &event.Op{
			Operation: "create", Collection: r.collection, RKey: rkey, CID: r.cid, Record: r.data})
		if err != nil {
			continue // a record that is not passed on
		}
		payload := event.Payload(frame)
		event.SetCursor(payload, len(did), cursor)
		if len(owner) == len(did) {
			payload = bytes.ReplaceAll(payload, owner, did) // what is the author's own stays so
		}
		if err := s.Add(payload); err != nil {
			return err
		}
	}
	return nil
}

func randomDID(rng *rand.Rand) []byte {
	did := []byte("did:plc:")
	for range 24 {
		did = append(did, "abcdefghijklmnopqrstuvwxyz234567"[rng.IntN(32)])
	}
	return did
}

// textField returns a field of a map that is a text; nil if there is none.
func textField(data []byte, name string) []byte {
	s := dagcbor.NewScanner(data)
	n, err := s.Map()
	for ; err == nil && n > 0; n-- {
		var key []byte
		if key, err = s.Text(); err != nil {
			break
		}
		if string(key) == name {
			text, err := s.Text()
			if err != nil {
				return nil
			}
			return text
		}
		err = s.Skip()
	}
	return nil
}

// AddFrames adds the events of captured firehose messages: for each its length, 4 bytes
// little-endian, and the message.
func (s *Source) AddFrames(b []byte) error {
	var commit repo.Commit
	cursor := readTime
	for n := 1; len(b) > 0; n++ {
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.LittleEndian.Uint32(b)) {
			return fmt.Errorf("frame %d: the file ends in the middle of it", n)
		}
		size := binary.LittleEndian.Uint32(b)
		message := b[4 : 4+size]
		b = b[4+size:]
		typ, body := textField(message, "t"), []byte(nil)
		header := dagcbor.NewScanner(message)
		if err := header.Skip(); err != nil || typ == nil {
			return fmt.Errorf("frame %d: it is no firehose message", n)
		}
		body = header.Rest()
		for _, payload := range Render(&commit, string(typ), body) {
			cursor += 40_009
			event.SetCursor(payload, bytes.IndexByte(payload[event.DIDOffset:], '"'), cursor)
			if err := s.Add(payload); err != nil {
				return fmt.Errorf("frame %d: %w", n, err)
			}
		}
	}
	return nil
}

// Render returns the v1 payloads of a firehose message, without their cursors; none of what is
// faulty. commit is scratch.
func Render(commit *repo.Commit, typ string, body []byte) (payloads [][]byte) {
	switch typ {
	case "#commit":
		if commit.Parse(body) != nil {
			return nil
		}
		for i := range commit.Ops {
			op := &commit.Ops[i]
			if op.Fault != 0 {
				continue
			}
			frame, _, err := event.AppendCommit(nil, commit.Repo, commit.Rev, &event.Op{
				Operation: op.Action.String(), Collection: op.Collection, RKey: op.RKey, CID: op.CID, Record: op.Record})
			if err == nil {
				payloads = append(payloads, event.Payload(frame))
			}
		}
	case "#identity":
		if i, err := repo.ParseIdentity(body); err == nil {
			payloads = append(payloads, event.Payload(event.AppendIdentity(nil, i.DID, i.Handle, i.Seq, i.Time)))
		}
	case "#account":
		if a, err := repo.ParseAccount(body); err == nil {
			payloads = append(payloads, event.Payload(event.AppendAccount(nil, a.DID, a.Active, a.Seq, a.Status, a.Time)))
		}
	}
	return payloads
}
