package ingest

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
)

// Config configures the pipeline. Log, Upstreams and Compressor are required.
type Config struct {
	Log       *eventlog.Log
	Upstreams *firehose.Upstreams
	// Compressor returns what to compress the next chunk with.
	Compressor func() *event.Compressor
	// Linger is how long the first event of a chunk waits for others. Default 20 ms.
	Linger time.Duration
	// Workers is the number of decode and of encode workers. Default, and at most: the
	// number of CPUs.
	Workers int
	// From is where to start at the first upstream if the log holds no position for any; nil: live.
	From *firehose.Seq
	// Override is where to start at the first upstream whatever the log holds; nil: unset.
	Override *firehose.Seq
	// Filter says what is left out.
	Filter     Filter
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none
	Now        func() time.Time      // the clock that cursors come from; nil: time.Now
}

// Bounds on what is on its way through the pipeline, besides the queue's.
const (
	batchFrames = 64        // frames that a decode worker takes at once
	runBytes    = 512 << 10 // JSON after which a run is full; one batch may exceed it
	runEvents   = 2048      // events after which a run is full
	runCount    = 6         // one filling, two being encoded, the rest to bridge what a sync takes
)

// checkpointInterval is how often the upstream position is stored when frames yield no
// events.
const checkpointInterval = 5 * time.Second

// Ingester is the pipeline. Run may be called once.
type Ingester struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	reached atomic.Int64 // the time of the newest frames that were sequenced, unix ns; 0: none

	queue   *queue
	batches chan *batch // decoded, or being decoded, in the relay's order

	toEncode chan *run
	toCommit chan *run // in order
	freeRuns chan *run
}

// New makes a pipeline. It starts nothing.
func New(cfg Config) *Ingester {
	if cfg.Linger <= 0 {
		cfg.Linger = 20 * time.Millisecond
	}
	if n := runtime.GOMAXPROCS(0); cfg.Workers <= 0 || cfg.Workers > n {
		cfg.Workers = n
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	batches := 4 * cfg.Workers
	in := &Ingester{
		cfg:      cfg,
		log:      cfg.Logger,
		metrics:  newMetrics(cfg.Registerer),
		queue:    newQueue(batches),
		batches:  make(chan *batch, batches), // as many as there are: never blocks
		toEncode: make(chan *run, runCount),
		toCommit: make(chan *run, runCount),
		freeRuns: make(chan *run, runCount),
	}
	for range runCount {
		in.freeRuns <- &run{done: make(chan struct{}, 1)}
	}
	return in
}

// Lag returns the age of the newest frame by the relay's own time, which grows while none comes.
// false: none has come since the start.
func (in *Ingester) Lag() (time.Duration, bool) {
	if ns := in.metrics.newest.Load(); ns != 0 {
		return time.Since(time.Unix(0, ns)), true
	}
	return 0, false
}

// Run ingests until ctx ends, and returns nil when everything that was read by then is
// committed. It returns an error if the log fails.
func (in *Ingester) Run(ctx context.Context) error { return in.run(ctx, in.cfg.Upstreams.Run) }

// run is Run on anything that calls handle as firehose.Upstreams do.
func (in *Ingester) run(ctx context.Context, upstream func(ctx context.Context, from firehose.Resume, handle func(firehose.Frame) error) error) error {
	seq, from, err := in.newSequencer()
	if err != nil {
		return err
	}
	// The upstream ends with ctx or when a later stage fails; the stages end each when
	// the one before it has.
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error {
		defer in.queue.close()
		return upstream(reading, from, in.queue.put)
	})
	var decoders sync.WaitGroup
	for range in.cfg.Workers {
		decoders.Go(in.decode)
	}
	group.Go(func() error {
		decoders.Wait()
		close(in.batches)
		return nil
	})
	group.Go(func() error {
		defer close(in.toEncode)
		defer close(in.toCommit)
		seq.run()
		return nil
	})
	for range in.cfg.Workers {
		group.Go(func() error {
			in.encode()
			return nil
		})
	}
	group.Go(func() error {
		err := in.commit(ctx)
		if err != nil {
			stop()
			// What is still on its way has nowhere to go; the checkpoint is behind it.
			for r := range in.toCommit {
				<-r.done
				in.freeRuns <- r
			}
		}
		if errors.Is(err, errStopped) {
			in.log.Warn("stopped while the disk is full; what was not stored will be asked of the relay again")
			return nil
		}
		return err
	})
	return group.Wait()
}
