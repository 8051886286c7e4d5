package firehose

import "time"

// SetSampleIdle says how long a sample waits for its first frame.
func (u *Upstreams) SetSampleIdle(d time.Duration) { u.client.sampleIdle = d }

// ParseMessage reads what the client reads of a message.
func ParseMessage(message []byte) (typ string, seq Seq, err error) {
	h, body, err := parseHeader(message)
	if err != nil {
		return "", 0, err
	}
	if h.op == -1 || h.typ == "#info" {
		a, _ := parsePair(body, "error", "message")
		return "#" + a, 0, nil
	}
	seq, err = parseSeq(body)
	return h.typ, seq, err
}
