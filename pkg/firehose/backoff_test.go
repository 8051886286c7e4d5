package firehose_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"slipstream/pkg/firehose"
	"slipstream/pkg/simrelay"
)

// pauses is a log that keeps what is said about failed connections: level and pause.
type pauses struct{ said []string }

func (*pauses) Enabled(context.Context, slog.Level) bool { return true }
func (p *pauses) WithAttrs([]slog.Attr) slog.Handler     { return p }
func (p *pauses) WithGroup(string) slog.Handler          { return p }
func (p *pauses) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "pause" {
			p.said = append(p.said, fmt.Sprint(r.Level, " ", a.Value))
		}
		return true
	})
	return nil
}

// The pause doubles up to its bound while nothing comes, and starts again from the shortest
// one after a frame. The first failure in a row is news, those after it are not.
func TestBackoffGrowsAndResets(t *testing.T) {
	frames := relayHandler(t, simrelay.Config{Seed: 1, FirstSeq: 100, Total: 2, Faults: simrelay.Faults{CutAfter: 1}})
	var connections atomic.Int64
	url := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := connections.Add(1); n != 6 && n != 9 {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		frames.ServeHTTP(w, r) // one frame, then a cut
	}))
	log := &pauses{}
	run(t, firehose.Config{URL: url, Logger: slog.New(log), MinBackoff: time.Millisecond, MaxBackoff: 6 * time.Millisecond}, firehose.Start{}, 2)
	want := []string{
		"WARN 1ms", "DEBUG 2ms", "DEBUG 4ms", "DEBUG 6ms", "DEBUG 6ms", // five refusals
		"WARN 1ms", "DEBUG 2ms", "DEBUG 4ms", // a frame and a cut, two refusals
	}
	if !slices.Equal(log.said, want) {
		t.Errorf("pauses %q, want %q", log.said, want)
	}
}
