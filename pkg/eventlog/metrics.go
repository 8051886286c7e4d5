package eventlog

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
)

type metrics struct {
	events *prometheus.CounterVec
	bytes  *prometheus.CounterVec
	chunks prometheus.Counter
	commit prometheus.Histogram

	removed *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, l *Log) *metrics {
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "slipstream_events_total", Help: "Events appended to the log.",
		}, []string{"kind"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "slipstream_event_bytes_total", Help: "Bytes appended to the log, before the JSON is packed.",
		}, []string{"form"}),
		chunks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_chunks_total", Help: "Chunks appended to the log.",
		}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "slipstream_commit_seconds", Help: "Time of one synced commit to the store.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12),
		}),
		removed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "slipstream_events_removed_total",
			Help: "Oldest events removed from the store: age: older than --event-ttl; max_disk, min_free_disk: before that, for want of space.",
		}, []string{"reason"}),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	counter := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value)
	}
	age := func(c event.Cursor) float64 {
		if c == 0 {
			return 0
		}
		return time.Since(c.Time()).Seconds()
	}
	for k := event.KindCommit; k <= event.KindSync; k++ {
		m.events.WithLabelValues(k.String())
	}
	for _, reason := range []string{tooOld, tooMany, tooTight} {
		m.removed.WithLabelValues(reason)
	}
	reg.MustRegister(m.events, m.bytes, m.chunks, m.commit, m.removed,
		gauge("slipstream_buffer_bytes", "Bytes of the events that can be replayed, as they are stored.",
			func() float64 { return float64(l.stored.Load().bytes - l.removed.Load().bytes) }),
		gauge("slipstream_buffer_events", "Events that can be replayed from disk.",
			func() float64 { return float64(l.stored.Load().events - l.removed.Load().events) }),
		gauge("slipstream_last_cursor", "Cursor of the newest event, unix microseconds; 0: none yet.",
			func() float64 { return float64(l.Last()) }),
		gauge("slipstream_replay_seconds", "How far back a consumer can replay: the age of the oldest event.",
			func() float64 { return age(l.Oldest()) }),
		gauge("slipstream_retention_seconds", "How far back that is to be (--event-ttl); less, where there is no space or the daemon has not run for so long.",
			func() float64 { return l.limits.Load().Retention.Seconds() }),
		gauge("slipstream_last_event_age_seconds", "Age of the newest event; 0: none yet.",
			func() float64 { return age(l.Last()) }),
		gauge("slipstream_window_bytes", "Memory taken by the newest events.",
			func() float64 { return float64(l.current.Load().bytes) }),
		gauge("slipstream_replay_cache_bytes", "Memory taken by events that were read from disk.",
			func() float64 { return float64(l.cache.size()) }),
		gauge("slipstream_store_disk_bytes", "Disk space that the store takes.",
			l.ofStore(func(m *pebble.Metrics) uint64 { return m.DiskSpaceUsage() })),
		gauge("slipstream_disk_free_bytes", "Free space on the store's disk.", func() float64 {
			usage, err := l.cfg.FS.GetDiskUsage(l.cfg.Dir)
			if err != nil {
				return math.NaN() // not every file system can tell
			}
			return float64(usage.AvailBytes)
		}),
		counter("slipstream_store_accepted_bytes_total", "Bytes of events stored since the start, in the form in which they stay.",
			func() float64 { return float64(l.stored.Load().bytes - l.opened.bytes) }),
		counter("slipstream_store_written_bytes_total", "Bytes that the store has written to disk for them: log, small chunks before they are merged, tables, compactions.",
			l.ofStore(func(m *pebble.Metrics) uint64 {
				total := m.Total()
				return total.TableBytesFlushed + total.TableBytesCompacted // the log is in the first
			})),
		gauge("slipstream_store_damaged_places", "Places in the store that could not be read since the start; the log names the files.",
			func() float64 { return float64(l.damage.count()) }),
		gauge("slipstream_disk_full", "1 while ingest waits for free disk space.",
			func() float64 {
				if l.Full() {
					return 1
				}
				return 0
			}),
	)
	return m
}

// ofStore makes a metric's value of Pebble's. While the disk is full it is the last one:
// Pebble has none as long as its MANIFEST waits for space.
func (l *Log) ofStore(value func(*pebble.Metrics) uint64) func() float64 {
	var last atomic.Uint64
	return func() float64 {
		if !l.disk.waiting() {
			l.closing.RLock()
			defer l.closing.RUnlock()
			if !l.closed {
				last.Store(value(l.store.db.Metrics()))
			}
		}
		return float64(last.Load())
	}
}

func (m *metrics) appended(chunks []*Chunk) {
	var kinds [event.KindSync + 1]int
	var size [forms]int
	for _, c := range chunks {
		for i := range c.Entries {
			kinds[min(c.Entries[i].Kind, event.KindSync)]++
		}
		for f := range forms {
			size[f] += c.Size(f)
		}
	}
	for k, n := range kinds {
		if n > 0 {
			m.events.WithLabelValues(event.Kind(k).String()).Add(float64(n))
		}
	}
	for f, name := range [forms]string{JSON: "json", Zstd: "zstd", Extra: "extra"} {
		m.bytes.WithLabelValues(name).Add(float64(size[f]))
	}
	m.chunks.Add(float64(len(chunks)))
}
