package subscribe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
)

// lagClasses are the classes of how far behind a consumer may be: each from its bound to
// the next one's.
var lagClasses = [...]struct {
	label string
	from  time.Duration
}{
	{"10s-1m", 10 * time.Second},
	{"1m-10m", time.Minute},
	{"10m-1h", 10 * time.Minute},
	{"over 1h", time.Hour},
}

// lag says how many consumers are how far behind the newest event. One that replays is
// behind until it has caught up, one that waits for its hello is not.
type lag struct {
	classes [len(lagClasses)]int
	blocked int           // of all: the socket is full
	most    time.Duration // of the one that is furthest behind
}

// lags looks at everyone.
func (s *Server) lags() (l lag) {
	last, oldest := s.cfg.Log.Last(), s.cfg.Log.Oldest()
	for _, sub := range s.all() {
		if sub.stuck.Load() {
			l.blocked++
		}
		at := sub.position.Load()
		if at == unbegun || sub.state.Load() == parked {
			continue // what has come since the position of who is parked is not for it
		}
		behind := time.Duration(last-max(event.Cursor(at), oldest)) * time.Microsecond
		l.most = max(l.most, behind)
		for i := len(lagClasses) - 1; i >= 0; i-- {
			if behind >= lagClasses[i].from {
				l.classes[i]++
				break
			}
		}
	}
	return l
}

// lagCollector makes metrics of lags.
type lagCollector struct{ srv *Server }

var (
	behindDesc  = prometheus.NewDesc("slipstream_subscribers_behind", "Consumers that are behind the newest event, by how far.", []string{"lag"}, nil)
	mostDesc    = prometheus.NewDesc("slipstream_subscriber_lag_seconds", "How far the last of all consumers is behind the newest event.", nil, nil)
	blockedDesc = prometheus.NewDesc("slipstream_subscribers_blocked", "Consumers whose connection takes no more for now.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c lagCollector) Describe(out chan<- *prometheus.Desc) {
	out <- behindDesc
	out <- mostDesc
	out <- blockedDesc
}

// Collect implements prometheus.Collector.
func (c lagCollector) Collect(out chan<- prometheus.Metric) {
	l := c.srv.lags()
	for i, n := range l.classes {
		out <- prometheus.MustNewConstMetric(behindDesc, prometheus.GaugeValue, float64(n), lagClasses[i].label)
	}
	out <- prometheus.MustNewConstMetric(mostDesc, prometheus.GaugeValue, l.most.Seconds())
	out <- prometheus.MustNewConstMetric(blockedDesc, prometheus.GaugeValue, float64(l.blocked))
}

// lagInterval is how often the log says who is behind, if that has changed.
const lagInterval = time.Minute

// lagLog tells the operator who is behind.
type lagLog struct {
	told    time.Time
	classes [len(lagClasses)]int
}

// tell logs the classes when they have changed.
func (l *lagLog) tell(s *Server, now time.Time) {
	if now.Sub(l.told) < lagInterval {
		return
	}
	l.told = now
	found := s.lags()
	if found.classes == l.classes {
		return
	}
	l.classes = found.classes
	attrs := []any{"most", found.most.Round(time.Second), "blocked", found.blocked}
	for i, n := range found.classes {
		attrs = append(attrs, lagClasses[i].label, n)
	}
	s.log.Info("consumers behind the newest event", attrs...)
}
