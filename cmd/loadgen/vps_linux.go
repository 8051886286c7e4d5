package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What a vps is measured with.
const (
	vpsRate     = 1000 // events per second
	replayEvery = 15 * time.Second
)

// A vpsBench is a daemon on a small machine and everybody who uses it.
type vpsBench struct {
	*bench
	cfg   vpsConfig
	since int64 // the cursor that all consumers begin at

	// Who comes back with a cursor when the connection is lost, who does not, and who is timed.
	back, stay, timed consumers
	late              *lateness
	slow              consumers

	mu       sync.Mutex // guards what the one that replays has done
	replays  int
	replayed int64
	longest  time.Duration
}

// vps measures, restarts, and prints one table. Like fanout it fails for what is wrong, never for
// what is slow.
func vps(ctx context.Context, w io.Writer, cfg vpsConfig) error {
	b, err := newBench(cfg.benchConfig)
	if err != nil {
		return err
	}
	defer b.close()
	v := &vpsBench{bench: b, cfg: cfg}
	if err := v.run(ctx, w); err != nil {
		return err
	}
	return b.verdict(w)
}

const vpsName = "vps"

// few keeps the mix where figures mean nothing.
func (v *vpsBench) few(n int) int {
	if v.smoke {
		return max(n/20, 1)
	}
	return n
}

// recruit makes up the consumers. All are tracked, compressed ones by the sizes of frames.
func (v *vpsBench) recruit(ctx context.Context) (back, stay, slow []spec, err error) {
	id, _, err := v.v2Dictionary(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	all, err := bots(ctx, v.bench, v.few(259))
	if err != nil {
		return nil, nil, nil, err
	}
	now, err := v.look(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	v.since = now.cursor
	plain := func(n int, s spec) {
		s.track, s.cursor, s.since = true, v.since, true
		back = append(back, slices.Repeat([]spec{s}, n)...)
	}
	packed := func(n int, s spec) {
		s.sizes, s.cursor = true, v.since
		stay = append(stay, slices.Repeat([]spec{s}, n)...)
	}
	plain(v.few(60), spec{})
	plain(v.few(40), spec{v2: true})
	packed(v.few(60), spec{query: "compress=true"})
	packed(v.few(20), spec{v2: true, query: "zstdDictionary=" + id})
	for i := range v.few(50) {
		names := botCollections[i%len(botCollections)].names
		plain(1, spec{v2: true, query: "collections=" + names[i%len(names)]})
	}
	for _, s := range all[:v.few(199)] {
		plain(1, s)
	}
	for _, s := range all[v.few(199):] {
		packed(1, spec{query: s.query + "&compress=true"})
	}
	for _, pace := range []float64{4, 50, 300} {
		slow = append(slow, slices.Repeat([]spec{{track: true, cursor: v.since, since: true, paced: true, pace: pace}}, 3)...)
	}
	return back, stay, slow, nil
}

// gather connects everybody. They stay until leave is called.
func (v *vpsBench) gather(ctx context.Context, back, stay, slow []spec) (leave func(), err error) {
	leave = func() {
		for _, c := range []consumers{v.back, v.stay, v.slow, v.timed} {
			if c.leave != nil {
				c.leave()
			}
		}
	}
	if v.back, _, err = v.connect(ctx, swarmConfig{rate: calm.rate, pause: calm.pause, resume: true}, back); err != nil {
		return leave, err
	}
	if v.stay, _, err = v.connect(ctx, calm, stay); err != nil {
		return leave, err
	}
	if v.slow, _, err = v.connect(ctx, swarmConfig{rate: calm.rate, pause: calm.pause, resume: true}, slow); err != nil {
		return leave, err
	}
	v.timed, v.late, err = v.reference(ctx, spec{track: true, cursor: v.since, since: true})
	return leave, err
}

func (v *vpsBench) run(ctx context.Context, w io.Writer) error {
	if err := v.relayAt(ctx, vpsRate); err != nil {
		return err
	}
	if err := v.freshDaemon(ctx); err != nil {
		return err
	}
	back, stay, slow, err := v.recruit(ctx)
	if err != nil {
		return err
	}
	leave, err := v.gather(ctx, back, stay, slow)
	defer func() { leave() }()
	if err != nil {
		return err
	}
	replaying, stop := context.WithCancel(ctx)
	replayed := make(chan struct{})
	go func() {
		defer close(replayed)
		v.replay(replaying)
	}()
	with, p50, p99, err := v.crowded(ctx, v.seconds, v.late, v.back, v.stay, v.slow, v.timed)
	stop()
	<-replayed
	if err != nil {
		return err
	}
	disk := v.size()
	specs := slices.Concat(back, stay, slow, []spec{{track: true, cursor: v.since, since: true}})
	v.slow.hurry()
	exact, err := v.compare(ctx, specs, v.back, v.stay, v.slow, v.timed)
	if err != nil {
		return err
	}
	ended, dropped, err := v.lost(ctx)
	if err != nil {
		return err
	}
	onV2, whole := 0, 1
	for _, s := range slices.Concat(back, stay) {
		if s.v2 {
			onV2++
		}
		if !strings.Contains(strings.ToLower(s.query), "collections=") {
			whole++
		}
	}
	n := len(specs) + 1 // who replays
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "| one small machine | |\n|---|---|\n")
	line("the daemon is held to", "%s", v.cfg.held)
	line("taken in", "%d events in %.0f s, %.0f/s", with.events, with.took.Seconds(), float64(with.events)/with.took.Seconds())
	line("consumers", "%d: %d of everything, %d filtered, %d slow, one that replays everything every %.0f s; of them %d compressed, %d on v2", n,
		whole, n-whole-len(slow)-1, len(slow), replayEvery.Seconds(), len(stay), onV2)
	line("deliveries", "%d, %.0f/s, and %d in %d replays, of which the longest took %.1f s", with.messages, float64(with.messages)/with.took.Seconds(), v.replayed, v.replays, v.longest.Seconds())
	line("CPU", "%.1f %% of a core, %.2f µs/delivery with ingest; the machine was %.0f %% busy", with.percent(with.cpu),
		float64(with.cpu.Nanoseconds())/1000/float64(max(with.messages+v.replayed, 1)), with.machine)
	line("memory", "%.0f MB resident, %.0f at most", with.last.rss, with.last.peak)
	line("disk", "%.0f bytes/event; %.0f MB in all for %d events, with a ballast of 67 MB", with.last.stored/float64(max(with.last.events, 1)), float64(disk)/1e6, with.last.events)
	line("latency", "p50 %.1f ms, p99 %.1f ms, from the relay's sending", p50, p99)
	line("lost", "%d consumers, %d events of the relay's", ended, dropped)
	line("exact", "%d of %d streams, each against a replay of the same", exact, n-1)
	return v.restarts(ctx, specs, slow, line)
}

// lost returns how many connections have ended, and how much of what the relay sent did not come.
// Neither should.
func (v *vpsBench) lost(ctx context.Context) (ended, dropped int, err error) {
	last, err := v.look(ctx)
	if err != nil {
		return 0, 0, err
	}
	why := map[string]int{}
	for _, c := range []consumers{v.back, v.stay, v.slow, v.timed} {
		for reason, n := range c.endings() {
			why[reason] += n
			ended += n
		}
	}
	missing := v.late.missing()
	if ended = max(ended, last.ended); ended > 0 || last.dropped > 0 || last.gaps > 0 || missing > 0 {
		v.fail(vpsName, "connections ended: %s, by the daemon's own count %d; of the relay's events %d dropped, %d gaps, of %d commits nothing has come",
			tally(why), last.ended, last.dropped, last.gaps, missing)
	}
	return ended, last.dropped + last.gaps + missing, nil
}

// size returns the bytes of the data dir.
func (v *vpsBench) size() (bytes int64) {
	filepath.WalkDir(v.dataDir(), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				bytes += info.Size()
			}
		}
		return nil // a file may be gone meanwhile
	})
	return bytes
}

// replay is the consumer that replays everything, again and again, until ctx ends.
func (v *vpsBench) replay(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		if events, err := v.replayOnce(ctx); err != nil && ctx.Err() == nil {
			v.fail(vpsName, "a replay: %v", err)
			return
		} else if err == nil {
			v.mu.Lock()
			v.replays++
			v.replayed += events
			v.longest = max(v.longest, time.Since(began))
			v.mu.Unlock()
		}
		sleep(ctx, replayEvery-time.Since(began))
	}
}

func (v *vpsBench) replayOnce(ctx context.Context) (events int64, err error) {
	tip, err := v.look(ctx)
	if err != nil {
		return 0, err
	}
	c, _, err := v.connect(ctx, swarmConfig{}, []spec{{track: true, cursor: v.since, since: true}})
	if err != nil {
		return 0, err
	}
	defer c.leave()
	for {
		if over := c.endings(); len(over) > 0 {
			return 0, errors.New(tally(over))
		}
		if t := c.streams()[0]; t.last >= tip.cursor {
			return t.count, nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// compare stops the relay and compares each consumer with one that replays the same in one go.
// It returns how many agree. specs are the consumers', in their order.
func (v *vpsBench) compare(ctx context.Context, specs []spec, swarms ...consumers) (exact int, err error) {
	v.relay.stop(syscall.SIGTERM)
	v.relay = nil
	if err := sleep(ctx, max(v.settle, 500*time.Millisecond)); err != nil { // what is on its way is committed
		return 0, err
	}
	distinct := slices.Clone(specs)
	key := func(s spec) string { return fmt.Sprint(s.v2, s.query) }
	for i := range distinct {
		distinct[i].paced = false
		if distinct[i].query == "" && !distinct[i].v2 {
			distinct[i].saw = v.late.stored
		}
	}
	slices.SortFunc(distinct, func(a, b spec) int { return strings.Compare(key(a), key(b)) })
	distinct = slices.CompactFunc(distinct, func(a, b spec) bool { return key(a) == key(b) })
	replay, _, err := v.connect(ctx, calm, distinct)
	if err != nil {
		return 0, err
	}
	defer replay.leave()
	want := map[string]tracker{}
	wrong := func() (list []string) {
		clear(want)
		replay.each(func(_ *loop, c *conn) { want[key(c.spec)] = c.tracker })
		exact = 0
		for _, s := range swarms {
			s.each(func(_ *loop, c *conn) {
				if got := c.tracker; got == want[key(c.spec)] {
					exact++
				} else if len(list) < maxReasons {
					list = append(list, fmt.Sprintf("%s: %d events until %d, a replay of the same %d until %d", key(c.spec), got.count, got.last, want[key(c.spec)].count, want[key(c.spec)].last))
				}
			})
		}
		return list
	}
	// Everybody has everything when nothing comes any more.
	total := func() (n int64) {
		for _, s := range append(slices.Clone(swarms), replay) {
			got, _ := s.totals()
			n += got
		}
		return n
	}
	for before, late := int64(-1), time.Now().Add(2*time.Minute); (total() != before || len(wrong()) > 0) && time.Now().Before(late); {
		before = total()
		if err := sleep(ctx, time.Second); err != nil {
			return 0, err
		}
	}
	for _, what := range wrong() {
		v.fail(vpsName, "inexact: %s", what)
	}
	for _, s := range append(slices.Clone(swarms), replay) {
		for _, what := range s.inexact() {
			v.fail(vpsName, "inexact: %s", what)
		}
	}
	return exact, nil
}

// restarts ends and starts the daemon under the consumers that come back, at the full rate: the
// same program, then another one.
func (v *vpsBench) restarts(ctx context.Context, specs, slow []spec, line func(what, format string, args ...any)) error {
	v.stay.leave()
	v.slow.leave()
	now, err := v.look(ctx)
	if err != nil {
		return err
	}
	if err := v.relayWith(ctx, "--rate", fmt.Sprint(vpsRate/eventsPerFrame), "--first-seq", fmt.Sprint(now.seq+1)); err != nil {
		return err
	}
	for i := range slow {
		slow[i].cursor = now.cursor
	}
	if v.slow, _, err = v.connect(ctx, swarmConfig{rate: calm.rate, pause: calm.pause, resume: true}, slow); err != nil {
		return err
	}
	// The daemon has been without a relay for a while, and tries again when it is time.
	if _, err := v.until(ctx, time.Minute, "events come again", func(s sample) bool { return s.events > now.events }); err != nil {
		return err
	}
	if err := sleep(ctx, 2*v.settle); err != nil {
		return err
	}
	type restart struct{ name, command string }
	all := []restart{{"restart, SIGTERM", ""}}
	if v.cfg.upgrade != "" {
		all = append(all, restart{"upgrade", v.cfg.upgrade})
	}
	var said []string
	for _, r := range all {
		silence, err := v.restart(ctx, r.command)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		said = append(said, fmt.Sprintf("%s | the longest silence of %d consumers of everything: %.2f s", r.name, v.few(60)+v.few(40)+1, silence.Seconds()))
	}
	v.slow.hurry()
	var tracked []spec
	for _, s := range specs {
		if s.track && !s.paced {
			tracked = append(tracked, s)
		}
	}
	exact, err := v.compare(ctx, tracked, v.back, v.timed)
	if err != nil {
		return err
	}
	for _, text := range said {
		what, text, _ := strings.Cut(text, " | ")
		line(what, "%s", text)
	}
	line("exact after both", "%d of %d streams that came back with their cursor", exact, v.back.size()+1)
	return nil
}

// restart ends the daemon, as a service manager does, with the command before that, and starts it.
func (v *vpsBench) restart(ctx context.Context, command string) (silence time.Duration, err error) {
	before, err := v.look(ctx)
	if err != nil {
		return 0, err
	}
	v.back.unheard()
	v.timed.unheard()
	if command != "" {
		cmd := exec.CommandContext(ctx, "sh", "-c", command)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("--upgrade: %w", err)
		}
	}
	v.daemon.stop(syscall.SIGTERM)
	if err := v.startDaemon(ctx); err != nil {
		return 0, err
	}
	n := int64(v.back.size())
	if _, err := v.until(ctx, time.Minute, "all are back", func(sample) bool { return v.back.open.Load() == n && v.timed.open.Load() == 1 }); err != nil {
		return 0, fmt.Errorf("%w; ended: %s; inexact: %s", err, tally(v.back.endings()), strings.Join(v.back.inexact(), ", "))
	}
	if err := sleep(ctx, max(v.settle, time.Second)); err != nil { // they get events again
		return 0, err
	}
	after, err := v.look(ctx)
	if err != nil {
		return 0, err
	}
	if command != "" && after.version == before.version {
		v.fail(vpsName, "upgrade: the version is %s as before", after.version)
	}
	return max(v.back.silence(), v.timed.silence()), nil
}
