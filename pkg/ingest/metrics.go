package ingest

import (
	"errors"
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/dagcbor"
	"slipstream/pkg/repo"
)

type metrics struct {
	duplicates, notCanonical, tooMuch, tooBig prometheus.Counter
	seq                                       prometheus.Gauge
	newest                                    atomic.Int64 // the relay's time of the newest frame, unix ns; 0: none yet

	opsExcluded, identitiesExcluded, accountsExcluded prometheus.Counter

	opsDropped          map[repo.Fault]prometheus.Counter
	recordsDropped      map[dagcbor.Reason]prometheus.Counter
	framesDropped       map[repo.Fault]prometheus.Counter
	framesDroppedRecord prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	ops := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_ops_dropped_total", Help: "Record operations from the relay that could not be delivered.",
	}, []string{"reason"})
	frames := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_frames_dropped_total", Help: "Frames from the relay that yielded nothing: they could not be parsed, or their sender left the changes out as too big.",
	}, []string{"reason"})
	excluded := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_events_excluded_total", Help: "Events that were left out as --collections and its like say.",
	}, []string{"kind"})
	m := &metrics{
		opsExcluded:        excluded.WithLabelValues("commit"),
		identitiesExcluded: excluded.WithLabelValues("identity"),
		accountsExcluded:   excluded.WithLabelValues("account"),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_frames_duplicate_total", Help: "Frames from the relay that the log held already.",
		}),
		notCanonical: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_records_not_canonical_total", Help: "Records delivered although their DAG-CBOR was not canonical.",
		}),
		seq: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "slipstream_upstream_seq", Help: "The relay's number of the last frame that was sequenced.",
		}),
		tooMuch:             ops.WithLabelValues("frame_too_large"),
		tooBig:              frames.WithLabelValues("too_big"),
		framesDroppedRecord: frames.WithLabelValues("bad_cbor"),
		opsDropped:          map[repo.Fault]prometheus.Counter{},
		recordsDropped:      map[dagcbor.Reason]prometheus.Counter{},
		framesDropped:       map[repo.Fault]prometheus.Counter{},
	}
	for _, f := range repo.Faults() {
		m.opsDropped[f] = ops.WithLabelValues(f.String())
		m.framesDropped[f] = frames.WithLabelValues(f.String())
	}
	for _, r := range dagcbor.Reasons() {
		m.recordsDropped[r] = ops.WithLabelValues("record_" + r.String())
	}
	if reg != nil {
		reg.MustRegister(ops, frames, excluded, m.duplicates, m.notCanonical, m.seq, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "slipstream_upstream_lag_seconds", Help: "Age of the newest frame by the relay's own time, which grows while none comes; NaN: none has come since the start.",
		}, func() float64 {
			if lag, known := m.lag(); known {
				return lag.Seconds()
			}
			return math.NaN()
		}))
	}
	return m
}

func (m *metrics) lag() (time.Duration, bool) {
	if ns := m.newest.Load(); ns != 0 {
		return time.Since(time.Unix(0, ns)), true
	}
	return 0, false
}

func (m *metrics) frameDropped(err error) {
	var e *repo.Error
	if errors.As(err, &e) && m.framesDropped[e.Fault] != nil {
		m.framesDropped[e.Fault].Inc()
		return
	}
	m.framesDroppedRecord.Inc()
}

func (m *metrics) recordDropped(err error) {
	if c := m.recordsDropped[recordReason(err)]; c != nil {
		c.Inc()
	}
}
