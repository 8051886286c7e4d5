package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/lmittmann/tint"
)

// newLogger makes the log: json, or text, which has colours on a terminal. Its length is bounded
// whatever relays and consumers do: see boundedHandler.
func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, options)
	switch {
	case format == "json":
		h = slog.NewJSONHandler(w, options)
	case takesColours(w):
		h = colourHandler(w, level)
	}
	return slog.New(&boundedHandler{h, newLineCounts()})
}

func colourHandler(w io.Writer, level slog.Leveler) slog.Handler {
	return tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: "Jan 02 15:04:05.000"})
}

const (
	// logBurst is how many lines with the same message are written in a logInterval.
	logBurst    = 10
	logInterval = time.Minute
	// logMessages is how many messages are told apart: some times as many as there are in the
	// program.
	logMessages = 500
	// logValue bounds a value, in bytes: what is longer comes from elsewhere, and is cut.
	logValue = 500
)

// boundedHandler bounds what is logged in a minute, above debug: a line is for a change of state,
// but how often a state changes is up to the relay, consumers and disks. Of each message there
// are logBurst lines at most, and then one, when its time has come, that says how many were left
// out.
type boundedHandler struct {
	slog.Handler
	counts *lineCounts
}

// lineCounts is shared by the loggers that are made of one.
type lineCounts struct {
	mu   sync.Mutex
	seen map[string]*lineCount // by message; guarded by mu, as what is in it
}

func newLineCounts() *lineCounts { return &lineCounts{seen: map[string]*lineCount{}} }

// lineCount counts lines of one message.
type lineCount struct {
	since      time.Time
	lines      int
	suppressed int
}

// Handle implements slog.Handler.
func (h *boundedHandler) Handle(ctx context.Context, r slog.Record) error {
	suppressed, ok := 0, true
	if r.Level > slog.LevelDebug {
		suppressed, ok = h.counts.count(r.Message, r.Time)
	}
	if !ok {
		return nil
	}
	safe := slog.NewRecord(r.Time, r.Level, safeText(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		safe.AddAttrs(safeAttr(a))
		return true
	})
	if suppressed > 0 {
		safe.AddAttrs(slog.Int("left_out_before", suppressed))
	}
	return h.Handler.Handle(ctx, safe)
}

// count reports whether a line may be written, and how many like it were not before it.
func (c *lineCounts) count(message string, now time.Time) (suppressed int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.seen[message]
	if n == nil {
		if len(c.seen) >= logMessages {
			message = "" // all others are one
		}
		if n = c.seen[message]; n == nil {
			n = &lineCount{since: now}
			c.seen[message] = n
		}
	}
	if now.Sub(n.since) >= logInterval {
		n.since, n.lines = now, 0
	}
	if n.lines == logBurst {
		n.suppressed++
		return 0, false
	}
	n.lines++
	suppressed, n.suppressed = n.suppressed, 0
	return suppressed, true
}

// safeAttr cuts what is long, and takes out what a terminal would obey.
func safeAttr(a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(safeText(a.Value.String()))
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(safeText(err.Error()))
		}
	}
	return a
}

func safeText(s string) string {
	if len(s) > logValue {
		s = strings.ToValidUTF8(s[:logValue], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// WithAttrs implements slog.Handler.
func (h *boundedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &boundedHandler{h.Handler.WithAttrs(attrs), h.counts}
}

// WithGroup implements slog.Handler.
func (h *boundedHandler) WithGroup(name string) slog.Handler {
	return &boundedHandler{h.Handler.WithGroup(name), h.counts}
}
