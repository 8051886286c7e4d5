package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
)

// upstreamGrace is how long the relay may be away before the daemon calls itself not
// ready: consumers are still served, but with nothing new.
const upstreamGrace = time.Minute

// health answers /healthz and /readyz. The first says that the process is alive, and is what
// restarts it; the second says whether consumers get what is new, and why not.
type health struct {
	relays *firehose.Upstreams
	events *eventlog.Log
	now    func() time.Time
}

// condition is what either answers, with 200 or 503.
type condition struct {
	Status  string   `json:"status"` // "ok", "ready" or "not ready"
	Version string   `json:"version"`
	Reasons []string `json:"reasons,omitempty"` // why it is not ready
	// Upstream is whether there is a connection to a relay, and since when that is so.
	Upstream struct {
		Connected bool      `json:"connected"`
		Since     time.Time `json:"since"`
	} `json:"upstream"`
	LastCursor    int64   `json:"last_cursor"` // time_us of the newest event; 0: there has been none
	ReplaySeconds float64 `json:"replay_seconds"`
}

func (h health) condition() condition {
	s := condition{Status: "ok", Version: buildVersion(), LastCursor: int64(h.events.Last())}
	s.Upstream.Connected, s.Upstream.Since = h.relays.Connected()
	if oldest := h.events.Oldest(); oldest != 0 {
		s.ReplaySeconds = h.now().Sub(oldest.Time()).Seconds()
	}
	return s
}

func (h health) alive(w http.ResponseWriter, _ *http.Request) { h.answer(w, h.condition()) }

func (h health) ready(w http.ResponseWriter, _ *http.Request) {
	s := h.condition()
	s.Status = "ready"
	if h.events.Full() {
		s.Reasons = append(s.Reasons, "the disk is too full: ingest waits for space")
	}
	if away := h.now().Sub(s.Upstream.Since); !s.Upstream.Connected && away > upstreamGrace {
		s.Reasons = append(s.Reasons, fmt.Sprintf("not connected to the relay for %s", away.Round(time.Second)))
	}
	if len(s.Reasons) > 0 {
		s.Status = "not ready"
	}
	h.answer(w, s)
}

func (h health) answer(w http.ResponseWriter, s condition) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if len(s.Reasons) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(s)
}
