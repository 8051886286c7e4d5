package ingest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/bluesky-social/indigo/api/atproto"
	lexutil "github.com/bluesky-social/indigo/lex/util"
	"github.com/ipfs/go-cid"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/firehose"
)

// A commit may name one large record in hundreds of ops, and the record may be made of what
// is longest in JSON. What becomes of it is bounded all the same, and all of it is counted.
func TestExpansionIsBounded(t *testing.T) {
	const ops, size = 200, 1_000_000
	// A zero byte is six in JSON.
	record := append([]byte{0xa1, 0x61, 'x', 0x7a}, binary.BigEndian.AppendUint32(nil, size)...)
	record = append(record, make([]byte, size)...)
	digest := sha256.Sum256(record)
	id := append([]byte{0x01, 0x71, 0x12, 0x20}, digest[:]...)
	head := append([]byte("\xa2eroots\x81\xd8\x2aX\x25\x00"), id...)
	head = append(head, "gversion\x01"...)
	car := append(binary.AppendUvarint(nil, uint64(len(head))), head...)
	car = append(append(binary.AppendUvarint(car, uint64(len(id)+len(record))), id...), record...)
	link, err := cid.Cast(id)
	if err != nil {
		t.Fatal(err)
	}
	message := atproto.SyncSubscribeRepos_Commit{
		Seq: 1, Repo: "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", Rev: "3l5t4jpscw22k", Time: "2026-07-04T12:00:00Z",
		Blocks: car, Commit: lexutil.LexLink(link), Blobs: []lexutil.LexLink{},
	}
	for i := range ops {
		cid := lexutil.LexLink(link)
		message.Ops = append(message.Ops, &atproto.SyncSubscribeRepos_RepoOp{
			Action: "create", Path: "app.example.large/" + string(rune('a'+i%26)) + string(rune('a'+i/26)), Cid: &cid,
		})
	}
	var body bytes.Buffer
	if err := message.MarshalCBOR(&body); err != nil {
		t.Fatal(err)
	}

	reg := prometheus.NewRegistry()
	d := decoder{in: &Ingester{metrics: newMetrics(reg)}}
	b := &batch{frames: []firehose.Frame{{Seq: 1, Type: "#commit", Body: body.Bytes()}}}
	d.batch(b)
	if b.decoded[0].bad {
		t.Fatal("the frame was refused")
	}
	if n := len(b.json); n > maxFrameJSON+7*size {
		t.Errorf("%d bytes of frame have become %d of JSON", body.Len(), n)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	dropped := 0
	reasons := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "slipstream_ops_dropped_total" {
				dropped += int(m.GetCounter().GetValue())
				if n := m.GetCounter().GetValue(); n > 0 {
					reasons[m.GetLabel()[0].GetValue()] = n
				}
			}
		}
	}
	if len(b.events) == 0 || len(b.events)+dropped != ops {
		t.Errorf("%d events and %d dropped ops of %d: %v", len(b.events), dropped, ops, reasons)
	}

	// And the memory is not kept.
	q := newQueue(1)
	<-q.free
	q.release(b)
	if cap(b.json) > retained {
		t.Errorf("the batch keeps %d bytes", cap(b.json))
	}
}

// A queue that holds its bytes makes the socket wait until some of them are taken.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1)
		var puts atomic.Int64
		const frames = 10
		go func() {
			for seq := range firehose.Seq(frames) {
				q.put(firehose.Frame{Seq: seq, Body: make([]byte, queueBytes/4)})
				puts.Add(1)
			}
			q.close()
		}()
		ordered := make(chan *batch, 1)
		got := 0
		for {
			synctest.Wait()
			if n := int(puts.Load()); n > got+4 {
				t.Fatalf("%d frames wait", n-got)
			} else if n < min(got+4, frames) {
				t.Fatalf("the queue takes no more at %d frames", n-got)
			}
			b := q.take(ordered)
			if b == nil {
				break
			}
			<-ordered
			got += len(b.frames)
			q.release(b)
		}
		if got != frames {
			t.Errorf("%d frames came out", got)
		}
	})
}
