package soak

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// grown returns what has grown: what the last looks all have more of than any of the early ones,
// and the last sizes of the data dir, beyond what wavers.
func grown(looks []look, disk []int64) (what []string) {
	// After the first one the daemon has warmed up.
	third := len(looks) / 3
	if third < 2 || len(disk) < 6 {
		return []string{fmt.Sprintf("there were only %d looks at the daemon", len(looks))}
	}
	early, late := looks[1:1+third], looks[len(looks)-third:]
	for _, kind := range []struct {
		name  string
		of    func(look) float64
		slack float64
	}{
		{"goroutines", func(l look) float64 { return l.goroutines }, 2},
		{"descriptors", func(l look) float64 { return l.descriptors }, 4},
		{"MB of heap", func(l look) float64 { return l.heap }, 2},
		{"MB resident", func(l look) float64 { return l.rss }, 8},
	} {
		before, after := 0.0, math.Inf(1)
		for _, l := range early {
			before = max(before, kind.of(l))
		}
		for _, l := range late {
			after = min(after, kind.of(l))
		}
		if after > before+kind.slack {
			what = append(what, fmt.Sprintf("%s have grown in the long life: at most %.1f early, at least %.1f late", kind.name, before, after))
		}
	}
	disk = disk[len(disk)/6:] // until the buffer is as full as it gets
	half := len(disk) / 2
	if before, after := slices.Max(disk[:half]), slices.Max(disk[half:]); after > before+before/5 {
		what = append(what, fmt.Sprintf("the data dir has grown: %d bytes at most early, %d late", before, after))
	}
	return what
}

// missed fails the soak for what must have happened for the rest to mean anything.
func (s *soak) missed() {
	for _, what := range []struct {
		name string
		n    int64
	}{
		{"consumers came", s.did.visits.Load()}, {"filters changed", s.did.turns.Load()}, {"consumers fell off the buffer and were told", s.did.fellOff.Load()},
		{"cursors were too old", s.did.tooOld.Load()}, {"events were no longer in the buffer", s.did.skipped.Load()}, {"sleeping consumers were ended", s.did.stalled.Load()},
		{"the relay cut", s.did.cuts.Load()}, {"the relay stalled", s.did.stalls.Load()}, {"frames were broken", s.did.faults.Load()},
		{"the daemon was restarted", s.did.restarts.Load()}, {"it was killed", s.did.kills.Load()}, {"consumers broke rules", s.did.rude.Load()},
	} {
		if what.n == 0 {
			s.fail("it never happened that %s", what.name)
		}
	}
}

func (s *soak) progress() {
	m := map[string]float64{}
	if serves(s.life.Load()) {
		m = s.daemon.Metrics(s.t)
	}
	s.t.Logf("%s: %d events from the relay, %d restarts, %d visitors gone, %d relay upsets; %.0f consumers, %.0f goroutines, %.0f descriptors, %.0f MB resident, %.1f MB on disk",
		time.Since(s.began).Round(time.Second), s.truth.size(), s.did.restarts.Load(), s.did.visits.Load(),
		s.did.cuts.Load()+s.did.stalls.Load()+s.did.faults.Load(), m["slipstream_subscribers"], m["go_goroutines"], m["process_open_fds"],
		m["process_resident_memory_bytes"]/1e6, float64(s.disk[len(s.disk)-1])/1e6)
}

// table prints what there was.
func (s *soak) table(looks []look) {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "\n| %s | |\n|---|---|\n", s.length)
	d := &s.did
	line("events from the relay", "%d", s.truth.size())
	line("deliveries, each held against its ledger", "%d", d.events.Load())
	line("consumers", "%d that stayed, %d that came and went, %d that broke a rule", len(s.faithful), d.visits.Load(), d.rude.Load())
	line("filters changed", "%d", d.turns.Load())
	line("slow consumers", "%d fell off the buffer and were told, %d reset with a full socket, %d that slept ended", d.fellOff.Load(), d.reset.Load(), d.stalled.Load())
	line("came back too late", "%d refused on v2, %d events skipped on v1", d.tooOld.Load(), d.skipped.Load())
	line("the relay", "%d cuts, %d stalls, %d times other faults", d.cuts.Load(), d.stalls.Load(), d.faults.Load())
	for _, kind := range slices.Sorted(maps.Keys(s.silence)) {
		all := slices.Sorted(slices.Values(s.silence[kind]))
		line(kind, "%d; the longest silence %.2f s in the median, %.2f s at most", len(all), all[len(all)/2].Seconds(), all[len(all)-1].Seconds())
	}
	line("ended by SIGTERM", "without a close frame: %d of those that stayed", d.unclean.Load())
	line("verify", "%d times", d.verified.Load())
	row := func(what string, of func(look) float64) {
		var all []string
		for _, l := range looks {
			all = append(all, fmt.Sprintf("%.0f", of(l)))
		}
		line(what+" in the long life", "%s", strings.Join(all, ", "))
	}
	row("goroutines", func(l look) float64 { return l.goroutines })
	row("descriptors", func(l look) float64 { return l.descriptors })
	row("MB of heap", func(l look) float64 { return l.heap })
	row("MB resident", func(l look) float64 { return l.rss })
	if n := len(looks); n > 1 {
		line("CPU in the long life", "%.1f %% of a core", 100*(looks[n-1].cpu-looks[0].cpu)/looks[n-1].at.Sub(looks[0].at).Seconds())
	}
	if len(s.disk) > 0 {
		line("MB on disk", "%.1f at most, %.1f at the end", float64(slices.Max(s.disk))/1e6, float64(s.disk[len(s.disk)-1])/1e6)
	}
	s.t.Log(b.String())
}
