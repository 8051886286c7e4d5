package firehose

import "github.com/prometheus/client_golang/prometheus"

// reason says why a message was dropped before it became a frame.
type reason uint8

const (
	reasonTooLarge reason = iota
	reasonNotBinary
	reasonHeader
	reasonType
	reasonSeq
	reasons
)

// String returns the metric's label.
func (r reason) String() string {
	return [reasons]string{"message_too_large", "not_binary", "bad_header", "unknown_type", "bad_seq"}[r]
}

type metrics struct {
	frames, bytes, reconnects, gaps, resets, errorFrames, notices prometheus.Counter
	dropped                                                       [reasons]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Client) *metrics {
	counter := func(name, help string) prometheus.Counter {
		m := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(m)
		}
		return m
	}
	m := &metrics{
		frames:      counter("slipstream_upstream_frames_total", "Frames received from the relay."),
		bytes:       counter("slipstream_upstream_bytes_total", "Bytes of messages received from the relay."),
		reconnects:  counter("slipstream_upstream_reconnects_total", "Attempts to connect to the relay again."),
		gaps:        counter("slipstream_upstream_gaps_total", "Possible gaps in the relay's stream, announced or seen by number."),
		resets:      counter("slipstream_upstream_resets_total", "Times the relay's sequence numbers started anew."),
		notices:     counter("slipstream_upstream_notices_total", "Notices (#info) received from the relay."),
		errorFrames: counter("slipstream_upstream_error_frames_total", "Error frames received from the relay."),
	}
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_upstream_messages_dropped_total", Help: "Messages from the relay that were no readable frame.",
	}, []string{"reason"})
	for r := range reasons {
		m.dropped[r] = dropped.WithLabelValues(r.String())
	}
	if reg != nil {
		reg.MustRegister(dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "slipstream_upstream_connected", Help: "1 while connected to the relay.",
		}, func() float64 {
			if on, _ := c.Connected(); on {
				return 1
			}
			return 0
		}))
	}
	return m
}
