package subscribe

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// ending says why the server ended a connection.
type ending uint8

const (
	endedStalled ending = iota
	endedTrimmed
	endedOptions
	endedSilent
	endedBudget
	endedMessage
	endedUnreadable
	endings
)

// String returns the metric's label.
func (e ending) String() string {
	return [endings]string{"stalled", "fell_off_the_buffer", "bad_options_update", "no_pong", "filter_budget", "sent_a_message", "unreadable_events"}[e]
}

type metrics struct {
	bytes, events prometheus.Counter
	text          prometheus.Counter                 // bytes of the events' JSON
	handshakes    [len(wireKinds)]prometheus.Counter // of websockets, by wire
	streams       [sentEvents + 1]prometheus.Counter // without, by framing
	rounds        prometheus.Histogram
	refused       [refusals]prometheus.Counter
	endings       [endings]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_sent_bytes_total", Help: "Bytes written to consumers' sockets.",
		}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_sent_events_total", Help: "Events written to consumers' sockets.",
		}),
		text: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_sent_json_bytes_total", Help: "Bytes that the events written to consumers' sockets have as v1's JSON. What slipstream_sent_bytes_total is less, compression has saved.",
		}),
	}
	handshakes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_subscribes_total", Help: "Consumers that connected, by protocol.",
	}, []string{"wire"})
	m.handshakes = [...]prometheus.Counter{v1: handshakes.WithLabelValues("v1"), v2: handshakes.WithLabelValues("v2")}
	m.streams = [...]prometheus.Counter{lines: handshakes.WithLabelValues("ndjson"), sentEvents: handshakes.WithLabelValues("sse")}
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_subscribes_refused_total", Help: "Requests to subscribe that were refused, by reason.",
	}, []string{"reason"})
	for r := range refusals {
		m.refused[r] = refused.WithLabelValues(r.String())
	}
	m.rounds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "slipstream_fanout_round_seconds", Help: "How long it took to write what was new to everyone whom it concerned.",
		Buckets: []float64{1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1},
	})
	ended := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_subscribers_ended_total", Help: "Connections that the server ended, by reason.",
	}, []string{"reason"})
	for e := range endings {
		m.endings[e] = ended.WithLabelValues(e.String())
	}
	if reg != nil {
		reg.MustRegister(m.bytes, m.events, m.text, handshakes, refused, ended, m.rounds,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "slipstream_subscribers", Help: "Consumers that are connected.",
			}, func() float64 { return float64(s.count()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "slipstream_filter_dids", Help: "wantedDids of all consumers together.",
			}, func() float64 { return float64(s.admission.wantedDIDs()) }),
			lagCollector{s},
		)
	}
	return m
}

func (m *metrics) ended(e ending) { m.endings[e].Inc() }

// Sent is what consumers have been sent since the start, and how many there are.
type Sent struct {
	Consumers int
	Events    uint64
	Bytes     uint64 // written to sockets
	JSON      uint64 // bytes that the events have as v1's JSON
}

// Sent returns what has been sent. It costs the same however many consumers there are.
func (s *Server) Sent() Sent {
	return Sent{s.count(), value(s.metrics.events), value(s.metrics.bytes), value(s.metrics.text)}
}

func value(c prometheus.Counter) uint64 {
	var m dto.Metric
	if c.Write(&m) != nil {
		return 0
	}
	return uint64(m.GetCounter().GetValue())
}
