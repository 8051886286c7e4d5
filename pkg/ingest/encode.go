package ingest

import (
	"slices"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// encoder is one worker's scratch.
type encoder struct {
	compressor func() *event.Compressor
	builder    eventlog.Builder
	zstd       []byte
}

// encode is a worker: it returns when there are no more runs.
func (in *Ingester) encode() {
	e := encoder{compressor: in.cfg.Compressor}
	for r := range in.toEncode {
		if len(r.events) > 0 {
			r.chunk, r.err = e.chunk(r)
		}
		r.done <- struct{}{}
	}
}

// chunk compresses a run's events and seals them.
func (e *encoder) chunk(r *run) (*eventlog.Chunk, error) {
	compressor := e.compressor()
	e.zstd = e.zstd[:0]
	start, extraStart := 0, 0
	for i := range r.events {
		p := &r.events[i]
		payload := r.extra[extraStart:p.extraEnd]
		if frame := r.json[start:p.jsonEnd]; len(frame) > 0 {
			payload = event.Payload(frame)
			e.zstd = compressor.AppendBinary(e.zstd, payload)
		}
		start, extraStart = p.jsonEnd, p.extraEnd
		did := payload[event.DIDOffset : event.DIDOffset+int(p.didLen)]
		var collection []byte
		if p.collectionLen > 0 {
			collection = payload[p.collectionOff:][:p.collectionLen]
		}
		e.builder.Add(p.cursor, p.kind, did, collection, [...]uint32{
			eventlog.JSON: uint32(p.jsonEnd), eventlog.Zstd: uint32(len(e.zstd)), eventlog.Extra: uint32(p.extraEnd),
		})
	}
	if cap(e.zstd) > retained {
		defer func() { e.zstd = nil }() // what one large run has left
	}
	// The chunk lives for long: it gets memory of its own, to the byte.
	return e.builder.Seal(r.prev, compressor.ID(), slices.Clone(r.json), slices.Clone(e.zstd), slices.Clone(r.extra))
}
