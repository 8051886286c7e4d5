package ingest

import (
	"errors"
	"hash/maphash"
	"time"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/event"
	"slipstream/pkg/firehose"
	"slipstream/pkg/repo"
)

// batch is a few frames and what was made of them. It belongs to the decode worker
// until done, then to the sequencer, which gives it back to the queue.
type batch struct {
	frames []firehose.Frame
	done   chan struct{} // receives one value per use, when decoded; capacity 1

	decoded []decoded  // one per frame, in order
	events  []rendered // of all frames, in order
	json    []byte     // text frames, back to back, cursors not set
	extra   []byte     // payloads of sync events, the same
	newest  time.Time  // the relay's time in the last frame; zero: not known
}

// decoded is what became of one frame.
type decoded struct {
	seq      firehose.Seq
	upstream int
	epoch    int
	leap     bool
	bad      bool   // could not be parsed: its seq is not to be trusted either
	id       uint64 // names (kind, DID, rev); 0: nothing to compare
	events   int    // where its events end in batch.events
}

// rendered is one event. The offsets count from the start of its payload.
type rendered struct {
	kind          event.Kind
	didLen        uint16
	collectionOff uint32
	collectionLen uint16 // 0: none
	size          int    // of the frame in json or, for a sync event, of the payload in extra
}

// maxFrameJSON bounds what one frame may become. Two hundred ops may all name the same
// large record; without a bound 2 MB of input could become hundreds.
const maxFrameJSON = 16 << 20

// retained is how much memory each buffer of a batch, a run or a worker may keep between
// uses: several times what it commonly needs.
const retained = 1 << 20

// decoder is one worker's scratch.
type decoder struct {
	in     *Ingester
	commit repo.Commit
	time   []byte // the frame's, part of it
}

func newDecoder(in *Ingester) decoder {
	d := decoder{in: in}
	if f := &in.cfg.Filter; !f.Collections.Empty() || !f.ExcludeCollections.Empty() {
		d.commit.Skip = f.excludes
	}
	return d
}

// idSeed is one for the process: ids are compared, never stored.
var idSeed = maphash.MakeSeed()

func frameID(kind event.Kind, did, rev []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(idSeed)
	h.WriteByte(byte(kind))
	h.Write(did)
	h.WriteByte(' ')
	h.Write(rev)
	return max(h.Sum64(), 1)
}

// decode is a worker: it returns when the queue is closed and empty.
func (in *Ingester) decode() {
	d := newDecoder(in)
	for {
		b := in.queue.take(in.batches)
		if b == nil {
			return
		}
		d.batch(b)
		b.done <- struct{}{}
	}
}

func (d *decoder) batch(b *batch) {
	b.decoded, b.events, b.json, b.extra = b.decoded[:0], b.events[:0], b.json[:0], b.extra[:0]
	for i := range b.frames {
		f := &b.frames[i]
		x := decoded{seq: f.Seq, upstream: f.Upstream, epoch: f.Epoch, leap: f.Leap}
		d.time = nil
		if err := d.frame(b, f, &x); err != nil {
			d.in.metrics.frameDropped(err)
			x.bad = true
		}
		x.events = len(b.events)
		b.decoded = append(b.decoded, x)
		if i == len(b.frames)-1 {
			b.newest = parseTime(d.time)
		}
		f.Release()
	}
}

func (d *decoder) frame(b *batch, f *firehose.Frame, x *decoded) error {
	switch f.Type {
	case "#commit":
		if err := d.commit.Parse(f.Body); err != nil {
			return err
		}
		d.time = d.commit.Time
		if d.commit.Skipped > 0 {
			d.in.metrics.opsExcluded.Add(float64(d.commit.Skipped))
			if len(d.commit.Ops) == 0 {
				return nil // it would take the place of one that might come twice
			}
		}
		x.id = frameID(event.KindCommit, d.commit.Repo, d.commit.Rev)
		if d.commit.TooBig && len(d.commit.Ops) == 0 {
			d.in.metrics.tooBig.Inc() // what it changed was left out by the sender
		}
		d.ops(b, &d.commit)
	case "#identity":
		if d.in.cfg.Filter.NoIdentity {
			d.in.metrics.identitiesExcluded.Inc()
			return nil
		}
		m, err := repo.ParseIdentity(f.Body)
		if err != nil {
			return err
		}
		d.time = m.Time
		start := len(b.json)
		b.json = event.AppendIdentity(b.json, m.DID, m.Handle, m.Seq, m.Time) // nil: none
		b.add(rendered{kind: event.KindIdentity, didLen: uint16(len(m.DID)), size: len(b.json) - start})
	case "#account":
		if d.in.cfg.Filter.NoAccount {
			d.in.metrics.accountsExcluded.Inc()
			return nil
		}
		m, err := repo.ParseAccount(f.Body)
		if err != nil {
			return err
		}
		d.time = m.Time
		start := len(b.json)
		b.json = event.AppendAccount(b.json, m.DID, m.Active, m.Seq, m.Status, m.Time) // nil: none
		b.add(rendered{kind: event.KindAccount, didLen: uint16(len(m.DID)), size: len(b.json) - start})
	case "#sync":
		m, err := repo.ParseSync(f.Body)
		if err != nil {
			return err
		}
		x.id = frameID(event.KindSync, m.DID, m.Rev)
		d.time = m.Time
		start := len(b.extra)
		if b.extra, err = event.AppendSync(b.extra, m.DID, f.Body); err != nil {
			return err
		}
		b.add(rendered{kind: event.KindSync, didLen: uint16(len(m.DID)), size: len(b.extra) - start})
	}
	return nil
}

func (b *batch) add(r rendered) { b.events = append(b.events, r) }

func (d *decoder) ops(b *batch, c *repo.Commit) {
	m := d.in.metrics
	begin := len(b.json)
	for i := range c.Ops {
		op := &c.Ops[i]
		if op.Fault != 0 {
			m.opsDropped[op.Fault].Inc()
			continue
		}
		if len(b.json)-begin > maxFrameJSON {
			m.tooMuch.Inc()
			continue
		}
		start := len(b.json)
		operation := op.Action.String()
		json, canonical, err := event.AppendCommit(b.json, c.Repo, c.Rev, &event.Op{
			Operation: operation, Collection: op.Collection, RKey: op.RKey, CID: op.CID, Record: op.Record,
		})
		b.json = json
		if err != nil {
			m.recordDropped(err)
			continue
		}
		if !canonical {
			m.notCanonical.Inc()
		}
		b.add(rendered{
			kind: event.KindCommit, didLen: uint16(len(c.Repo)),
			collectionOff: uint32(event.CollectionOffset(c.Repo, c.Rev, operation)),
			collectionLen: uint16(len(op.Collection)),
			size:          len(b.json) - start,
		})
	}
}

// release makes a batch ready for its next use.
func (q *queue) release(b *batch) {
	if cap(b.json) > retained {
		b.json = nil
	}
	if cap(b.extra) > retained {
		b.extra = nil
	}
	clear(b.frames)
	b.frames = b.frames[:0]
	q.free <- b
}

// parseTime reads a frame's time; zero: it cannot be read, or nanoseconds have no room for it.
func parseTime(b []byte) time.Time {
	t, err := time.Parse(time.RFC3339, string(b))
	if t = t.UTC(); err != nil || t.Year() < 1970 || t.Year() >= 2262 {
		return time.Time{}
	}
	return t
}

// recordReason returns the label of a record's fault.
func recordReason(err error) dagcbor.Reason {
	var e *dagcbor.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return 0
}
