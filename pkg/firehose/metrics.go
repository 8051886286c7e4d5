package firehose

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

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

// loss says why a connection to the relay is made anew.
type loss uint8

const (
	lostConnect     loss = iota // there was none
	lostRead                    // it ended
	lostPong                    // nothing came over it, not even what answers a ping
	lostFrames                  // no frame came for Config.LivenessTTL
	lostErrorFrame              // the relay said why
	lostNewSequence             // its numbers start anew
	losses
)

// String returns the metric's label.
func (l loss) String() string {
	return [losses]string{"cannot_connect", "connection_lost", "no_pong", "no_frame", "error_frame", "new_sequence"}[l]
}

type metrics struct {
	frames, bytes, gaps, resets, errorFrames, notices prometheus.Counter
	reconnects                                        [losses]prometheus.Counter
	dropped                                           [reasons]prometheus.Counter
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
	reconnects := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_upstream_reconnects_total", Help: "Attempts to connect to the relay again, by what ended the one before.",
	}, []string{"reason"})
	for l := range losses {
		m.reconnects[l] = reconnects.WithLabelValues(l.String())
	}
	if reg != nil {
		reg.MustRegister(dropped, reconnects, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
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

// Why another relay is taken.
const (
	reasonFailover = iota
	reasonBack
	switchReasons
)

type upstreamMetrics struct {
	switches [switchReasons]prometheus.Counter
}

// newUpstreamMetrics labels with URLs: the operator gave them, and there are no others.
func newUpstreamMetrics(reg prometheus.Registerer, u *Upstreams) *upstreamMetrics {
	switches := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_upstream_switches_total", Help: "Switches to another relay: because one failed, or back to a preferred one.",
	}, []string{"reason"})
	m := &upstreamMetrics{switches: [...]prometheus.Counter{
		reasonFailover: switches.WithLabelValues("failover"), reasonBack: switches.WithLabelValues("back"),
	}}
	if reg == nil {
		return m
	}
	reg.MustRegister(switches)
	for i, url := range u.cfg.URLs {
		gauge := func(name, help string, value func(active bool) float64) {
			reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"upstream": url}}, func() float64 {
				u.mu.Lock()
				defer u.mu.Unlock()
				return value(u.active == i)
			}))
		}
		gauge("slipstream_upstream_active", "1 for the relay that frames are taken from.", func(active bool) float64 {
			if active {
				return 1
			}
			return 0
		})
		gauge("slipstream_upstream_sample_age_seconds", "Time since a standby was last sampled; NaN: never, or it is the active one.", func(active bool) float64 {
			if sampled := u.relays[i].sampled; !active && !sampled.IsZero() {
				return time.Since(sampled).Seconds()
			}
			return math.NaN()
		})
	}
	return m
}
