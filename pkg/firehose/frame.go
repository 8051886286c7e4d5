package firehose

import (
	"errors"
	"time"

	"slipstream/pkg/dagcbor"
)

// Seq is the relay's number of a frame.
type Seq int64

// Frame is one message of the stream.
type Frame struct {
	Seq  Seq
	Type string // "#commit", "#identity", "#account", "#sync"; a constant, owns nothing
	Body []byte // DAG-CBOR; valid until Release

	Upstream int   // the index of the relay it comes from
	Epoch    int   // grows when the numbers start anew: the relay's own, or another's
	Leap     bool  // Seq is implausibly far ahead and not yet confirmed: not a position to resume from
	slab     *slab // that Body is in; nil: nobody's
}

// Release gives the frame's memory back. Body must not be used any more.
func (f *Frame) Release() {
	if f.slab != nil {
		f.slab.release()
		f.slab, f.Body = nil, nil
	}
}

// Types of message that carry a seq.
var types = [...]string{"#commit", "#identity", "#account", "#sync"}

// header is what a message's first item says.
type header struct {
	op  int64
	typ string // one of types, "#info", "" for an error frame, or "#unknown"
}

var errHeader = errors.New("bad frame header")

// parseHeader splits a message into header and body.
func parseHeader(message []byte) (h header, body []byte, err error) {
	s := dagcbor.NewScanner(message)
	n, err := s.Map()
	if err != nil {
		return h, nil, errHeader
	}
	for range n {
		name, err := s.Text()
		if err != nil {
			return h, nil, errHeader
		}
		switch string(name) {
		case "op":
			if h.op, err = s.Int(); err != nil {
				return h, nil, errHeader
			}
		case "t":
			t, err := s.Text()
			if err != nil {
				return h, nil, errHeader
			}
			h.typ = "#unknown"
			if string(t) == "#info" {
				h.typ = "#info"
			}
			for _, known := range types {
				if string(t) == known {
					h.typ = known
				}
			}
		default:
			if err := s.Skip(); err != nil {
				return h, nil, errHeader
			}
		}
	}
	if h.op != 1 && h.op != -1 || h.op == 1 && h.typ == "" {
		return h, nil, errHeader
	}
	return h, s.Rest(), nil
}

// parseSeq finds the seq in a message's body.
func parseSeq(body []byte) (Seq, error) {
	s := dagcbor.NewScanner(body)
	n, err := s.Map()
	if err != nil {
		return 0, err
	}
	for range n {
		name, err := s.Text()
		if err != nil {
			return 0, err
		}
		if string(name) == "seq" {
			seq, err := s.Int()
			if err == nil && seq < 0 {
				err = errors.New("negative seq")
			}
			return Seq(seq), err
		}
		if err := s.Skip(); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("no seq")
}

// parseTime finds the time in a message's body; zero: there is none that can be read, or that
// nanoseconds and JSON have room for.
func parseTime(body []byte) time.Time {
	s := dagcbor.NewScanner(body)
	n, err := s.Map()
	if err != nil {
		return time.Time{}
	}
	for range n {
		name, err := s.Text()
		if err != nil {
			break
		}
		if string(name) == "time" {
			text, err := s.Text()
			if err != nil {
				break
			}
			if t, err := time.Parse(time.RFC3339, string(text)); err == nil {
				if t = t.UTC(); t.Year() >= 1970 && t.Year() < 2262 {
					return t
				}
			}
			break
		}
		if s.Skip() != nil {
			break
		}
	}
	return time.Time{}
}

// parsePair reads two text fields of a small map: an error frame's or an info's.
func parsePair(body []byte, first, second string) (a, b string) {
	s := dagcbor.NewScanner(body)
	n, err := s.Map()
	if err != nil {
		return "", ""
	}
	for range n {
		name, err := s.Text()
		if err != nil {
			break
		}
		if string(name) != first && string(name) != second {
			if s.Skip() != nil {
				break
			}
			continue
		}
		value, err := s.Text()
		if err != nil {
			break
		}
		// Cut: these go to the log.
		text := string(value[:min(len(value), 200)])
		if string(name) == first {
			a = text
		} else {
			b = text
		}
	}
	return a, b
}
