package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
)

// buildInfo is the metric that says which build runs.
func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "slipstream_build_info", Help: "1, of the version that runs and the zstd library in it.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "zstd": event.Library},
	}, func() float64 { return 1 })
}
