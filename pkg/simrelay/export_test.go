package simrelay

import "context"

// ReadFrames appends about enough bytes of websocket frames from seq from on, as a connection
// does, and returns where to go on.
func (r *Relay) ReadFrames(dst []byte, from int64, enough int) ([]byte, int64) {
	b := r.src.read(dst, from, enough, 1<<30)
	return b.buf, b.next
}

// Advance makes frames up to seq without Run.
func (r *Relay) Advance(seq int64) error { return r.src.advance(context.Background(), seq) }
