package status

import (
	"maps"
	"slices"
)

const (
	historyTicks   = 2   // of Run, between two samples
	historySamples = 150 // five minutes
	historyNames   = 12  // the busiest collections of a sample
	historyShown   = 8   // collections that an answer has
)

// sample is what was busy at a moment. It is immutable.
type sample struct {
	all   float64
	names []string
	rates []float64
}

// History is how the rates have been: the last value of each list is the newest.
type History struct {
	// SecondsEach is the time from one value to the next.
	SecondsEach float64 `json:"seconds_each"`
	// PerSecond is of all events.
	PerSecond []float64 `json:"per_second"`
	// Collections are the busiest of the whole time.
	Collections []CollectionHistory `json:"collections"`
}

// CollectionHistory is how the rate of one collection has been.
type CollectionHistory struct {
	Collection string    `json:"collection"`
	PerSecond  []float64 `json:"per_second"`
}

// newHistory makes a history of samples, of which the last is the newest.
func newHistory(samples []*sample) *History {
	h := &History{SecondsEach: historyTicks * interval.Seconds(), PerSecond: make([]float64, len(samples)), Collections: []CollectionHistory{}}
	sums := map[string]float64{}
	for i, s := range samples {
		h.PerSecond[i] = round(s.all)
		for k, name := range s.names {
			sums[name] += s.rates[k]
		}
	}
	names := slices.SortedFunc(maps.Keys(sums), func(a, b string) int {
		if sums[a] != sums[b] && sums[a] > sums[b] {
			return -1
		} else if sums[a] != sums[b] {
			return 1
		}
		return slices.Compare([]byte(a), []byte(b))
	})
	for _, name := range names[:min(len(names), historyShown)] {
		c := CollectionHistory{name, make([]float64, len(samples))}
		for i, s := range samples {
			if k := slices.Index(s.names, name); k >= 0 {
				c.PerSecond[i] = round(s.rates[k])
			}
		}
		h.Collections = append(h.Collections, c)
	}
	return h
}
