package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

const replayHeading = `
| replay | consumers | wanted | delivered/s | scanned/s, each | scanned/s, all | CPU µs/delivered | CPU µs/scanned | server CPU % | loadgen CPU % | machine % | peak RSS MB |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|`

const replayCaption = `
%d events are in the buffer, and in the kernel's cache. Of each replay %d were measured: the median, and the range. Scanned
are the events up to the last one that is wanted, which is where the time ends. CPU is the daemon's, all of it, in the
kernel too; RSS is its highest during a replay. Every consumer has had exactly what it wanted, in order: plain ones by
cursor and size of each event, compressed ones by size, of a stream that was once unpacked and compared with the plain one.
`

// pass is one measurement of a replay.
type pass struct {
	took, cpu, own time.Duration // own: loadgen's CPU
	machine        float64       // how busy all processors were, in percent
	peak           float64       // RSS, MB
	streams        []tracker
}

// replayRow is what all of them were.
type replayRow struct {
	name      string
	consumers int
	events    int64 // in the buffer
	wanted    wanted
	passes    []pass
}

func (r *replayRow) String() string {
	delivered := float64(r.wanted.tracker.count) * float64(r.consumers)
	scanned := float64(r.wanted.passed) * float64(r.consumers)
	spread := func(text func(float64) string, value func(p *pass) float64) string {
		var all []float64
		for i := range r.passes {
			all = append(all, value(&r.passes[i]))
		}
		slices.Sort(all)
		if len(all) == 1 {
			return text(all[0])
		}
		return fmt.Sprintf("%s (%s–%s)", text(all[len(all)/2]), text(all[0]), text(all[len(all)-1]))
	}
	cost := func(events float64) func(*pass) float64 {
		return func(p *pass) float64 { return float64(p.cpu.Nanoseconds()) / 1000 / events }
	}
	rate := func(events float64) func(*pass) float64 {
		return func(p *pass) float64 { return events / p.took.Seconds() }
	}
	return "| " + strings.Join([]string{
		r.name, fmt.Sprint(r.consumers),
		short(100*float64(r.wanted.tracker.count)/float64(max(r.events, 1))) + " %",
		spread(short, rate(delivered)), spread(short, rate(float64(r.wanted.passed))), spread(short, rate(scanned)),
		spread(short, cost(delivered)), spread(short, cost(scanned)),
		spread(whole, func(p *pass) float64 { return 100 * p.cpu.Seconds() / p.took.Seconds() }),
		spread(whole, func(p *pass) float64 { return 100 * p.own.Seconds() / p.took.Seconds() }),
		spread(whole, func(p *pass) float64 { return p.machine }), spread(whole, func(p *pass) float64 { return p.peak }),
	}, " | ") + " |"
}

func whole(v float64) string { return fmt.Sprintf("%.0f", v) }

// short writes three digits of a number that may be a rate of millions or a cost of nanoseconds.
func short(v float64) string {
	unit := ""
	switch {
	case v >= 1e6:
		v, unit = v/1e6, "M"
	case v >= 1e4:
		v, unit = v/1e3, "k"
	}
	decimals := 0
	if v > 0 {
		decimals = max(2-int(math.Floor(math.Log10(v))), 0)
	}
	return fmt.Sprintf("%.*f", decimals, v) + unit
}

const besideHeading = `
| live beside replays | events/s live | events/s to all | p50 ms | p99 ms | p99.9 ms | max ms | p99 / alone | server CPU % | machine % | RSS MB |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|`

// besideRow is a row of a live consumer.
type besideRow struct {
	row
	ms    []float64 // p50, p99, p99.9, max
	quiet float64   // p99 of who is alone; 0: not known
}

func (r *besideRow) String() string {
	ratio := "–"
	if r.quiet > 0 {
		ratio = fmt.Sprintf("%.2f", r.ms[1]/r.quiet)
	}
	return fmt.Sprintf("| %s | %.0f | %.0f | %.1f | %.1f | %.1f | %.1f | %s | %.0f | %.0f | %.0f |", r.name,
		float64(r.with.messages)/r.with.took.Seconds(), float64(r.with.sent)/r.with.took.Seconds(),
		r.ms[0], r.ms[1], r.ms[2], r.ms[3], ratio, r.with.percent(r.with.cpu), r.with.machine, r.with.last.rss)
}
