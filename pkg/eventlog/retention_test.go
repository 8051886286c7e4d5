package eventlog_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// fill appends chunks until the buffer has so many bytes.
func (h *harness) fill(registry *prometheus.Registry, bytes float64) {
	h.t.Helper()
	for metric(h.t, registry, "slipstream_buffer_bytes") < bytes {
		h.append(50, 3, 20)
	}
}

// trim removes what must go, here and in what the harness expects.
func (h *harness) trim() (removed int) {
	h.t.Helper()
	if err := h.log.Trim(); err != nil {
		h.t.Fatal(err)
	}
	for trimmed := h.log.Trimmed(); len(h.rows) > 0 && h.rows[0].cursor <= trimmed; removed++ {
		h.rows = h.rows[1:]
	}
	return removed
}

// The store is kept to its size by what it has stored, oldest first, and says so.
func TestMaxBytes(t *testing.T) {
	const limit = 300 << 10
	registry := prometheus.NewRegistry()
	var log strings.Builder
	h := newHarness(t, eventlog.Config{WindowBytes: 5 << 10, Limits: eventlog.Limits{MaxBytes: eventlog.SpareBytes + limit}, Registerer: registry,
		Logger: slog.New(slog.NewTextHandler(&log, nil))})
	h.fill(registry, 0.9*limit)
	if n := h.trim(); n != 0 {
		t.Fatalf("%d events removed though there is room", n)
	}
	for range 3 {
		h.fill(registry, 1.5*limit)
		h.trim()
		if got := metric(t, registry, "slipstream_buffer_bytes"); got > limit || got < 0.9*limit {
			t.Fatalf("%v bytes are left, want %d", got, limit)
		}
		if n := h.trim(); n != 0 {
			t.Fatalf("%d events removed for nothing", n)
		}
		h.check()
		registry = prometheus.NewRegistry()
		h.cfg.Registerer = registry
		h.reopen()
		h.check()
		if got := metric(t, registry, "slipstream_buffer_bytes"); got > limit || got < 0.9*limit {
			t.Fatalf("%v bytes are left after a restart, want %d", got, limit)
		}
	}
	if n := strings.Count(log.String(), "raise --max-disk"); n != 3 { // once a start
		t.Errorf("said %d times:\n%s", n, log.String())
	}
}

// Limits change while the log is open.
func TestSetLimits(t *testing.T) {
	const limit = 300 << 10
	registry := prometheus.NewRegistry()
	fs := &fullFS{FS: vfs.NewMem(), free: 1 << 30}
	now := start.Time()
	cfg := eventlog.Config{FS: fs, WindowBytes: 5 << 10, Ballast: -1, Registerer: registry, Now: func() time.Time { return now }}
	cfg.SetKeptBytes(limit / 2)
	h := newHarness(t, cfg)
	h.fill(registry, 2*limit)
	if n := h.trim(); n != 0 {
		t.Fatalf("%d events removed though there is no limit", n)
	}
	h.log.SetLimits(eventlog.Limits{MaxBytes: eventlog.SpareBytes + limit})
	h.trim()
	if got := metric(t, registry, "slipstream_buffer_bytes"); got > limit || got < 0.9*limit {
		t.Fatalf("%v bytes are left, want %d", got, limit)
	}
	h.log.SetLimits(eventlog.Limits{MinFree: 2 << 30})
	h.trim()
	if got := metric(t, registry, "slipstream_buffer_bytes"); got > 0.6*limit || got < 0.4*limit {
		t.Fatalf("%v bytes are left, want %d", got, limit/2)
	}
	h.check()
	now = h.log.Last().Time().Add(90 * time.Minute)
	if n := h.trim(); n != 0 {
		t.Fatalf("%d events removed that may stay for a day", n)
	}
	h.log.SetLimits(eventlog.Limits{Retention: time.Hour})
	if n := h.trim(); n == 0 {
		t.Fatal("what is older than an hour is not removed")
	}
	h.check()
	if got := metric(t, registry, "slipstream_retention_seconds"); got != 3600 {
		t.Errorf("it says %v seconds", got)
	}
}

// Want of free space removes as much as is wanting, by our own count: that the space has not
// come back yet is no reason to remove more than that again and again, and what would win
// nothing stays.
func TestMinFree(t *testing.T) {
	const kept = 100 << 10
	registry := prometheus.NewRegistry()
	fs := &fullFS{FS: vfs.NewMem(), free: 1 << 40}
	cfg := eventlog.Config{FS: fs, WindowBytes: 5 << 10, Limits: eventlog.Limits{MinFree: 10 << 20}, Floor: 1 << 20, Ballast: -1, Registerer: registry}
	cfg.SetKeptBytes(kept)
	h := newHarness(t, cfg)
	h.fill(registry, 1000<<10)
	bytes := func() float64 { return metric(t, registry, "slipstream_buffer_bytes") }
	before := bytes()
	if n := h.trim(); n != 0 {
		t.Fatalf("%d events removed though there is room", n)
	}
	fs.set(10<<20 - 200<<10)
	h.trim()
	if got := before - bytes(); got < 200<<10 || got > 220<<10 {
		t.Fatalf("%v bytes removed, 200 KiB are wanting", got)
	}
	h.check()
	// Beside a copy, what has been removed is still on disk. That it does not come back is no
	// reason to remove it again.
	if err := h.log.WriteCheckpoint("copy"); err != nil {
		t.Fatal(err)
	}
	if h.trim() == 0 {
		t.Fatal("nothing was removed though space is wanting")
	}
	if n := h.trim(); n != 0 {
		t.Fatalf("%d events removed again beside a copy", n)
	}
	if err := h.log.RemoveCheckpoint("copy"); err != nil {
		t.Fatal(err)
	}
	fs.set(10 << 20)
	if n := h.trim(); n != 0 {
		t.Fatalf("%d events removed though there is room again", n)
	}
	fs.set(2 << 20) // another process takes it all
	h.trim()
	if got := bytes(); got < 0.9*kept || got > 1.2*kept {
		t.Fatalf("%v bytes are left, want %d", got, kept)
	}
	h.check()
	if n := h.trim(); n != 0 {
		t.Fatalf("%d events removed that should stay", n)
	}
	h.append(30)
	h.check()
}

// An event that comes once in a while is removed for its age all the same, on time but for
// what a block may span.
func TestRetentionOfLittle(t *testing.T) {
	now := start.Time()
	h := newHarness(t, eventlog.Config{Limits: eventlog.Limits{Retention: 24 * time.Hour}, BlockEvents: 1000, Now: func() time.Time { return now }})
	for i := range 3 * 24 * 4 { // every quarter of an hour, for three days
		now = start.Time().Add(time.Duration(i) * 15 * time.Minute)
		h.next = max(h.next, event.CursorAt(now))
		h.append(1)
		h.trim()
		if i%40 == 0 {
			h.check()
		}
		if oldest := h.log.Oldest(); now.Sub(oldest.Time()) > 26*time.Hour {
			t.Fatalf("the oldest event is %v old", now.Sub(oldest.Time()))
		}
		if i > 25*4 && len(h.rows) < 24*4-1 {
			t.Fatalf("only %d events are left", len(h.rows))
		}
	}
	// Then nothing more comes.
	for range 30 {
		now = now.Add(time.Hour)
		h.trim()
	}
	if len(h.rows) != 0 || h.log.Oldest() != 0 {
		t.Fatalf("%d events are left, the oldest %d", len(h.rows), h.log.Oldest())
	}
	h.reopen()
	h.append(2)
	h.check()
}

// After a week away the events from before go as new ones come: there never are more than in
// an ordinary day.
func TestRetentionAfterAWeek(t *testing.T) {
	now := start.Time()
	h := newHarness(t, eventlog.Config{Limits: eventlog.Limits{Retention: 24 * time.Hour}, Now: func() time.Time { return now }})
	tenMinutes := func() {
		t.Helper()
		now = now.Add(10 * time.Minute)
		h.next = max(h.next, event.CursorAt(now))
		h.append(40)
		h.trim()
	}
	for range 24 * 6 {
		tenMinutes()
	}
	ordinary := len(h.rows)
	h.log.Close()
	now = now.Add(7 * 24 * time.Hour)
	h.open()
	for i := range 6 * 24 * 6 {
		tenMinutes()
		if len(h.rows) > ordinary*21/20 {
			t.Fatalf("%d events after %d hours, an ordinary day has %d", len(h.rows), i/6, ordinary)
		}
		if i == 6 && len(h.rows) < ordinary*8/10 {
			t.Fatalf("%d events are left after an hour, an ordinary day has %d", len(h.rows), ordinary)
		}
	}
	h.check()
}

// Up to where events are too old, with a clock that is right and one that is not.
func TestAgeLimit(t *testing.T) {
	const keep = 24 * time.Hour
	opened := time.Now() // with a monotonic reading
	at := func(d time.Duration) event.Cursor { return event.CursorAt(opened.Add(d)) }
	for _, c := range []struct {
		name      string
		oldest    time.Duration
		now, wall time.Duration // by the monotonic clock and by the machine's
		want      time.Duration
	}{
		{"in step", -keep - time.Minute, time.Minute, time.Minute, -keep + time.Minute},
		{"nothing is that old", -time.Hour, time.Minute, time.Minute, -keep + time.Minute},
		{"a day ahead", -keep, time.Minute, time.Minute + keep, -keep + 2*time.Minute},
		{"a day ahead, nothing removed for long", -time.Hour, 10 * time.Hour, 10*time.Hour + keep, -time.Hour + 2*time.Hour},
		{"a day behind", -keep, time.Minute, time.Minute - keep, -2*keep + time.Minute},
	} {
		// There is no clock to set here: the wall's step goes into what it is compared with.
		step := c.wall - c.now
		got := eventlog.AgeLimit(at(c.oldest-step), opened.Add(c.now), opened, keep)
		if want := at(c.want - step); got != want && got != want+1 && got != want-1 {
			t.Errorf("%s: got %v, want %v", c.name, got.Time().Sub(opened)+step, c.want)
		}
	}
}

// The clock is set forward a day and back again, and back an hour: cursors go on growing and
// most of the buffer stays.
func TestClockSetWrong(t *testing.T) {
	now := start.Time()
	h := newHarness(t, eventlog.Config{Limits: eventlog.Limits{Retention: 24 * time.Hour}, Now: func() time.Time { return now }})
	minute := func(set time.Duration) {
		t.Helper()
		now = now.Add(time.Minute + set)
		h.next = max(h.next, event.CursorAt(now))
		h.append(40)
		h.trim()
	}
	for range 300 {
		minute(0)
	}
	// The harness's clock has no monotonic reading, so a step looks like time that passes; but
	// a process that was away sees the same.
	h.log.Close()
	now = now.Add(24 * time.Hour)
	h.open()
	for range 10 {
		minute(0)
	}
	if n := len(h.rows); n < (300+10-25)*40 {
		t.Fatalf("%d events are left after ten minutes with the wrong clock", n)
	}
	h.check()
	h.log.Close()
	now = now.Add(-24 * time.Hour)
	h.open()
	rows := len(h.rows)
	for _, set := range []time.Duration{0, -time.Hour, 0, 0} {
		minute(set)
	}
	if len(h.rows) != rows+4*40 {
		t.Fatalf("%d events are left, want %d", len(h.rows), rows+4*40)
	}
	h.check()
}

// Where removing events does not make the disk any less full, they are not removed at every
// look.
func TestNoGain(t *testing.T) {
	now := start.Time()
	registry := prometheus.NewRegistry()
	fs := &fullFS{FS: vfs.NewMem(), free: 10<<20 - 100<<10}
	cfg := eventlog.Config{FS: fs, WindowBytes: 5 << 10, Limits: eventlog.Limits{MinFree: 10 << 20}, Floor: 1 << 20, Ballast: -1, Registerer: registry,
		Now: func() time.Time { return now }}
	cfg.SetKeptBytes(100 << 10)
	h := newHarness(t, cfg)
	h.fill(registry, 2000<<10)
	cuts := 0
	for i := range uint64(120) { // two minutes, in which somebody else takes a little more each second
		fs.set(10<<20 - 100<<10 - i<<10)
		if h.trim() > 0 {
			cuts++
		}
		now = now.Add(time.Second)
	}
	if cuts < 3 || cuts > 10 {
		t.Errorf("events were removed %d times", cuts)
	}
	h.check()
}
