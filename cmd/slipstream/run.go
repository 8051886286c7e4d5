package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/ingest"
	"slipstream/pkg/page"
	"slipstream/pkg/status"
	"slipstream/pkg/subscribe"
)

// shutdownTimeout bounds an orderly end as a whole.
const shutdownTimeout = 20 * time.Second

// sampleInterval is how often a standby is sampled. A variable because of tests, whose network
// grows old faster.
var sampleInterval = time.Minute

// gcPercent is how much garbage may gather beside what is in use. The heap is mostly the
// window: large, and without pointers to follow, so that a collection costs about a
// millisecond. Catching up at full speed, 25 instead of Go's 100 takes the peak from 117 to
// 94 MB for five times as many collections, whose CPU does not show.
const gcPercent = 25

// run builds the daemon, runs it until ctx ends or a part of it fails, and stops it in
// order: the upstream first, what was read is committed, then consumers, then the
// store. reload, if it is not nil, may change it meanwhile.
func run(ctx context.Context, cfg Config, log *slog.Logger, reload *reloader) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())

	dir, err := prepareDataDir(cfg.DataDir, log)
	if err != nil {
		return err
	}
	legacy, err := newLegacy(cfg, log)
	if err != nil {
		return err
	}
	known := legacy.known
	encryption, err := newTLS(cfg, log)
	if err != nil {
		return err
	}
	public, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("--listen-addr: %w", err)
	}
	defer public.Close()
	admin, err := net.Listen("tcp", cfg.MetricsListenAddr)
	if err != nil {
		return fmt.Errorf("--metrics-listen-addr: %w", err)
	}
	defer admin.Close()
	events, err := eventlog.Open(eventlog.Config{
		Dir: dir, WindowBytes: cfg.WindowBytes, Limits: storeLimits(cfg), Logger: log, Registerer: registry,
		Stop: ctx.Done(),
	})
	if errors.Is(err, eventlog.ErrFull) {
		log.Warn("stopped while the disk is full")
		return nil
	}
	if err != nil {
		return err
	}
	if err := legacy.keep(ctx); isFull(err) {
		log.Warn("stopped while the disk is full")
		return events.Close()
	} else if err != nil {
		return errors.Join(err, events.Close())
	}
	copies, err := newCheckpoints(dir, events, log)
	if err != nil {
		return errors.Join(err, events.Close())
	}
	relays := firehose.NewUpstreams(firehose.UpstreamsConfig{
		URLs: cfg.UpstreamURLs, FailoverAfter: cfg.FailoverAfter, SampleInterval: sampleInterval,
		Client: firehose.Config{UserAgent: "slipstream/" + buildVersion(), LivenessTTL: cfg.LivenessTTL, Logger: log, Registerer: registry},
	})
	ingester := ingest.New(ingest.Config{
		Log: events, Upstreams: relays, Compressor: known.Primary, Linger: cfg.Linger, Workers: cfg.Workers,
		From: cfg.UpstreamCursor, Override: cfg.OverrideCursor, Filter: cfg.Filter, Logger: log, Registerer: registry,
	})
	files := shareDescriptors(descriptorLimit(), cfg.MaxSubscribers)
	lobby := newLobby(files.lobby, registry, log)
	server := subscribe.New(subscribe.Config{
		Log: events, Dictionaries: known, Version: buildVersion(),
		Limits: subscriberLimits(cfg, files), Streaming: lobby.streaming, Logger: log, Registerer: registry,
	})
	report := status.New(status.Config{
		Log: events, Dictionaries: known, Upstreams: relays, Ingester: ingester, Server: server, Version: buildVersion(),
	})

	// Each part has a context of its own, so that they can be ended one after the other.
	// The first that fails ends the run.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	part := func(f func(context.Context) error) (stop func(), done chan struct{}) {
		partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done = make(chan struct{})
		go func() {
			defer close(done)
			if err := f(partCtx); err != nil {
				fail(failure{err})
			}
		}()
		return cancel, done
	}
	stopLog, logDone := part(events.Run)
	stopServer, serverDone := part(server.Run)
	stopReport, reportDone := part(report.Run)
	stopHTTP, httpDone := part(func(ctx context.Context) error {
		defer copies.wait()
		return serveHTTP(ctx, []site{
			{public, publicHandler(server, report), lobby, encryption},
			{admin, adminHandler(registry, relays, events, copies), nil, nil},
		}, log)
	})
	stopIngest, ingestDone := part(ingester.Run)
	manager := serviceManager{log: log, health: "http://" + loopback(admin.Addr()) + "/healthz"}
	stopWatch, watchDone := part(manager.watch)
	stopLegacy, legacyDone := part(legacy.run)
	files.complain(log)
	log.Info("listening", "version", buildVersion(), "consumers", public.Addr(), "tls", encryption != nil, "metrics", admin.Addr(),
		"upstream", strings.Join(cfg.UpstreamURLs, ","), "data", dir, "dictionary", known.Primary().ID(), "last_cursor", events.Last(), "replay", replay(events),
		"max_subscribers", files.consumers, "descriptors", files.limit)

	manager.ready()
	stopReload, reloadDone := part(func(ctx context.Context) error {
		if reload == nil {
			return nil
		}
		reload.manager, reload.apply = manager, func(cfg Config) {
			events.SetLimits(storeLimits(cfg))
			files := shareDescriptors(descriptorLimit(), cfg.MaxSubscribers)
			files.complain(log)
			server.SetLimits(subscriberLimits(cfg, files))
		}
		return reload.run(ctx)
	})

	<-ctx.Done()
	begin := time.Now()
	log.Info("shutting down")
	manager.stopping()
	// Whoever is told to come again is to find the door closed until the next process opens it,
	// not to be let in and dropped.
	public.Close()
	late := time.After(shutdownTimeout)
	for _, p := range []struct {
		name string
		stop func()
		done chan struct{}
	}{{"reload", stopReload, reloadDone}, {"legacy dictionary", stopLegacy, legacyDone}, {"ingest", stopIngest, ingestDone}, {"consumers", stopServer, serverDone}, {"watchdog", stopWatch, watchDone}, {"http", stopHTTP, httpDone}, {"status", stopReport, reportDone}, {"event log", stopLog, logDone}} {
		p.stop()
		// A store that has failed may never let go of those who wait for it.
		if isFailure(ctx) && p.name == "ingest" {
			select {
			case <-p.done:
			case <-time.After(time.Second):
			}
			continue
		}
		select {
		case <-p.done:
		case <-late:
			return errors.Join(failureOf(ctx), fmt.Errorf("%s did not stop within %s", p.name, shutdownTimeout))
		}
	}
	if err := failureOf(ctx); err != nil {
		return err // the store is left as it is: Pebble recovers what was synced
	}
	if err := events.Close(); err != nil {
		return err
	}
	log.Info("stopped", "took", time.Since(begin).Round(time.Millisecond), "last_cursor", events.Last())
	return nil
}

// loopback returns the address at which this machine reaches a listener.
func loopback(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err == nil && net.ParseIP(host).IsUnspecified() {
		return net.JoinHostPort("localhost", port)
	}
	return addr.String()
}

// replay returns how far back one can replay.
func replay(events *eventlog.Log) time.Duration {
	oldest := events.Oldest()
	if oldest == 0 {
		return 0
	}
	return time.Since(oldest.Time()).Round(time.Second)
}

// failure is why a run ended by itself.
type failure struct{ error }

func isFailure(ctx context.Context) bool { return failureOf(ctx) != nil }

func failureOf(ctx context.Context) error {
	var f failure
	if errors.As(context.Cause(ctx), &f) {
		return f.error
	}
	return nil
}

// prepareDataDir makes the store's directory and returns its path. What else is in the
// data dir, such as the files of a Jetstream v1, is left alone.
func prepareDataDir(dataDir string, log *slog.Logger) (string, error) {
	refuse := func(err error) error {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fmt.Errorf("--data-dir: cannot write to %s as uid %d: %w", dataDir, os.Getuid(), err)
	}
	dir := filepath.Join(dataDir, "slipstream")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", refuse(err)
	}
	probe, err := os.CreateTemp(dir, ".writable-*")
	if err == nil {
		probe.Close()
		err = os.Remove(probe.Name())
	}
	// A full disk is for the event log to wait for.
	if err != nil && !isFull(err) {
		return "", refuse(err)
	}
	var others []string
	entries, err := os.ReadDir(dataDir)
	if err != nil {
		return "", refuse(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"slipstream", keptName, certificatesName}, e.Name()) {
			others = append(others, e.Name())
		}
	}
	if len(others) > 5 {
		others = append(others[:5], "…")
	}
	if others != nil {
		log.Info("other files in the data dir are left alone; those of a Jetstream v1 can be deleted when you do not go back to it",
			"dir", dataDir, "files", strings.Join(others, ", "))
	}
	return dir, nil
}

// site is what one listener serves.
type site struct {
	listener net.Listener
	handler  http.Handler
	lobby    *lobby      // where connections are at first; nil: they may do what they like
	tls      *tls.Config // nil: plain HTTP
}

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, sites []site, log *slog.Logger) error {
	var group sync.WaitGroup
	errs := make(chan error, len(sites))
	var servers []*http.Server
	for _, s := range sites {
		newServer := func(headerBytes int) *http.Server {
			return &http.Server{
				Handler: s.handler,
				ConnState: func(c net.Conn, now http.ConnState) {
					if v := visitorOf(c); v != nil {
						v.state(now)
					}
					if s.lobby != nil {
						s.lobby.state(c, now)
					}
				},
				ReadHeaderTimeout: headerTimeout,
				IdleTimeout:       time.Minute,
				MaxHeaderBytes:    headerBytes,
				// Requests that last end with ctx, so that Shutdown need not wait for them.
				BaseContext: func(net.Listener) context.Context { return ctx },
				ConnContext: subscribe.ConnContext,
				ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
				TLSConfig:   s.tls,
			}
		}
		server := newServer(maxHeader)
		if s.tls != nil {
			if err := limitHTTP2(server, newServer(maxHeaderHTTP2)); err != nil {
				return err
			}
		}
		servers = append(servers, server)
		group.Go(func() {
			serve := server.Serve
			if s.tls != nil {
				serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
			}
			if err := serve(&listener{Listener: s.listener, log: log, lobby: s.lobby}); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				errs <- fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
			}
		})
	}
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-errs:
	}
	stop, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, server := range servers {
		if server.Shutdown(stop) != nil {
			server.Close()
		}
	}
	group.Wait()
	return failed
}

func publicHandler(server *subscribe.Server, report *status.Reporter) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", page.New(server.Handler()))
	mux.Handle("GET /status", report)
	return mux
}

func adminHandler(registry *prometheus.Registry, relays *firehose.Upstreams, events *eventlog.Log, copies *checkpoints) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	h := health{relays, events, time.Now}
	mux.HandleFunc("GET /healthz", h.alive)
	mux.HandleFunc("GET /readyz", h.ready)
	mux.Handle("POST /checkpoint", copies)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}
