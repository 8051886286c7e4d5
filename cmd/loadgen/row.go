package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const fanoutHeading = `| scenario | consumers | events/s | deliveries/s | server CPU % | with none | CPU µs/delivery | loadgen CPU % | machine % | RSS MB before | RSS MB with | KB/consumer | p50 ms | p99 ms | ended by the server | at most | measured | met |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|---|---|---|`

const fanoutCaption = `
CPU is utime and stime of /proc/PID/stat, in ticks of 10 ms; %% of one core, 100 ms are %s %% of the measured
time. "With none" is the same process at the same rate without consumers; CPU per delivery is what came on
top of it. "Machine" is how busy all its cores were, with other programs' work too. RSS leaves out what
the kernel keeps for sockets. Latency is one consumer's, from the relay's sending to its receiving.
`

// span is what happened between two looks at the daemon.
type span struct {
	took, cpu, own   time.Duration // own: loadgen's CPU
	events, messages int64         // messages: what the swarm got
	sent             int64         // to all consumers there are
	machine          float64       // how busy all processors were, with whatever, in percent
	last             sample
}

// percent is a part of one core.
func (s span) percent(cpu time.Duration) float64 { return 100 * cpu.Seconds() / s.took.Seconds() }

// plus is both one after the other.
func (s span) plus(t span) span {
	took := s.took + t.took
	return span{took, s.cpu + t.cpu, s.own + t.own, s.events + t.events, s.messages + t.messages, s.sent + t.sent,
		(s.machine*s.took.Seconds() + t.machine*t.took.Seconds()) / took.Seconds(), t.last}
}

// row is what a scenario has measured. What is zero is left out.
type row struct {
	name       string
	consumers  int
	zero, with span    // without and with consumers
	before     float64 // RSS, MB
	p50, p99   float64 // ms
	ended      map[string]int
	target     string
	measured   string
	met        bool
	than       float64 // what a delivery cost in the scenario that it is compared with; 0: not measured
}

// above is the daemon's CPU beyond what it uses without consumers.
func (r *row) above() time.Duration {
	return r.with.cpu - time.Duration(float64(r.zero.cpu)*r.with.took.Seconds()/r.zero.took.Seconds())
}

// perDelivery is in microseconds.
func (r *row) perDelivery() float64 {
	return float64(r.above().Nanoseconds()) / 1000 / float64(max(r.with.messages, 1))
}

// perConsumer is in kilobytes.
func (r *row) perConsumer() float64 {
	return (r.with.last.rss - r.before) * 1024 / float64(r.consumers)
}

// telling is how many consumers it takes to see their memory among the rest of it.
const telling = 500

func (r *row) String() string {
	cell := func(known bool, format string, value func() float64) string {
		if !known {
			return "–"
		}
		return fmt.Sprintf(format, value())
	}
	with, zero := r.with.took > 0, r.zero.took > 0
	met := "no"
	if r.met {
		met = "yes"
	}
	return "| " + strings.Join([]string{
		r.name,
		fmt.Sprint(r.consumers),
		cell(with, "%.0f", func() float64 { return float64(r.with.events) / r.with.took.Seconds() }),
		cell(with, "%.0f", func() float64 { return float64(r.with.messages) / r.with.took.Seconds() }),
		cell(with, "%.1f", func() float64 { return r.with.percent(r.with.cpu) }),
		cell(zero, "%.1f", func() float64 { return r.zero.percent(r.zero.cpu) }),
		cell(with && zero && r.with.messages > 0, "%.2f", r.perDelivery),
		cell(with, "%.1f", func() float64 { return r.with.percent(r.with.own) }),
		cell(with, "%.0f", func() float64 { return r.with.machine }),
		cell(r.before > 0, "%.0f", func() float64 { return r.before }),
		cell(with, "%.0f", func() float64 { return r.with.last.rss }),
		cell(r.before > 0 && with && r.consumers >= telling, "%.1f", r.perConsumer),
		cell(r.p50 > 0, "%.1f", func() float64 { return r.p50 }),
		cell(r.p99 > 0, "%.1f", func() float64 { return r.p99 }),
		tally(r.ended), r.target, r.measured, met,
	}, " | ") + " |"
}

// tally lists reasons, the most frequent first.
func tally(reasons map[string]int) string {
	if len(reasons) == 0 {
		return "none"
	}
	keys := slices.SortedFunc(maps.Keys(reasons), func(a, b string) int {
		if reasons[a] != reasons[b] {
			return reasons[b] - reasons[a]
		}
		return strings.Compare(a, b)
	})
	for i, why := range keys {
		keys[i] = fmt.Sprintf("%d × %s", reasons[why], strings.NewReplacer("|", "/", "\n", " ").Replace(why))
	}
	return strings.Join(keys, "; ")
}
