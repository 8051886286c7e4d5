package simrelay

import "encoding/binary"

// A ledger remembers what is expected of the last keep seqs or more, without records, in some
// hundred bytes each. It drops whole pages.
type ledger struct {
	first int64 // the seq of the first page's first frame
	keep  int
	pages []ledgerPage
}

type ledgerPage struct {
	data []byte
	ends []uint32 // by frame
}

const ledgerPageFrames = 16384

func (l *ledger) add(events []Expected) {
	if n := len(l.pages); n == 0 || len(l.pages[n-1].ends) == ledgerPageFrames {
		l.pages = append(l.pages, ledgerPage{})
		if n*ledgerPageFrames > l.keep+ledgerPageFrames {
			l.pages[0] = ledgerPage{}
			l.pages = l.pages[1:]
			l.first += ledgerPageFrames
		}
	}
	p := &l.pages[len(l.pages)-1]
	for i := range events {
		e := &events[i]
		for _, s := range e.strings() {
			p.data = binary.AppendUvarint(p.data, uint64(len(*s)))
			p.data = append(p.data, *s...)
		}
		active := byte(0)
		if e.Active {
			active = 1
		}
		p.data = append(p.data, active)
	}
	p.ends = append(p.ends, uint32(len(p.data)))
}

func (e *Expected) strings() [10]*string {
	return [...]*string{&e.Kind, &e.DID, &e.Rev, &e.Collection, &e.RKey, &e.Action, &e.CID, &e.Time, &e.Handle, &e.Status}
}

func (l *ledger) get(seq int64) []Expected {
	i := seq - l.first
	if i < 0 || i/ledgerPageFrames >= int64(len(l.pages)) {
		return nil
	}
	p := &l.pages[i/ledgerPageFrames]
	if i %= ledgerPageFrames; i >= int64(len(p.ends)) {
		return nil
	}
	start := uint32(0)
	if i > 0 {
		start = p.ends[i-1]
	}
	var out []Expected
	for data := p.data[start:p.ends[i]]; len(data) > 0; {
		e := Expected{Seq: seq}
		for _, s := range e.strings() {
			n, w := binary.Uvarint(data)
			*s = string(data[w : w+int(n)])
			data = data[w+int(n):]
		}
		e.Active = data[0] == 1
		data = data[1:]
		out = append(out, e)
	}
	return out
}
