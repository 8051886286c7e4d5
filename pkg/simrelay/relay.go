package simrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a zero Config.
const (
	DefaultAccounts = 1000
	// DefaultFirstSeq is of the live network's magnitude, and large enough that every seq takes
	// nine bytes of CBOR.
	DefaultFirstSeq = 30_000_000_000
	DefaultHistory  = 10_000
	// DefaultRemember is worth about 100 MB of compact ops.
	DefaultRemember = 1 << 20
)

const (
	// maxFirstSeq leaves every seq and every time within its type.
	maxFirstSeq = 1 << 52
	minRate     = 0.001
	// maxRate is one frame a microsecond, the resolution of a rev.
	maxRate = 1e6
)

// minLoopSeq is the first number whose CBOR form has its final width.
const minLoopSeq = 1 << 32

// A Config describes one stream. The same Config gives the same bytes.
type Config struct {
	Seed     uint64
	Accounts int       // zero: DefaultAccounts. In loop mode also the number of distinct did:plc sent
	Records  int       // records that a repository holds before the stream begins; more make larger proofs
	FirstSeq int64     // zero: DefaultFirstSeq. In loop mode at least 1<<32
	Start    time.Time // the time of the first frame; zero: 2026-07-04T12:00:00Z

	// Rate is in frames per second; zero: as fast as the fastest reader reads. It also spaces
	// the times in the frames, by a millisecond if zero.
	Rate float64
	// Step is the time between two frames by what they say, if it is not to be that of Rate: a
	// network that grows old faster than its consumer.
	Step  time.Duration
	Total int64 // stop after so many frames, stay connected and idle; zero: endless

	// Loop, if positive, cycles over so many frames made by New, patched as the package comment
	// says. Times, revs and record keys then no longer repeat, and proofs no longer verify.
	Loop int
	// WallClock makes the stream start now rather than at Start; in loop mode it also makes the
	// time in a message that of its sending, at the price of reproducible bytes.
	WallClock bool

	// Shuffle, if positive, sends the same frames in another order, one for each number, in which
	// those of one repository keep theirs: another relay of the same network. Not in loop mode.
	Shuffle uint64

	History  int  // frames kept for readers that are behind; zero: DefaultHistory. Loop mode holds all
	Remember int  // frames for which Expected has an answer; zero: DefaultRemember
	Silent   bool // announce neither a future nor an outdated cursor, as relays in the wild do

	Frames [][]byte // serve these messages instead of generated ones, without faults of frames

	Faults Faults
	Logger *slog.Logger // nil: nothing is logged
}

// An Expected is one event that a correct consumer delivers.
type Expected struct {
	Seq        int64
	Kind       string // commit, sync, identity or account
	DID        string
	Rev        string // of a commit or sync
	Collection string // from here to RecordJSON: of an op of a commit
	RKey       string
	Action     string
	CID        string // empty for a delete
	RecordJSON []byte // by indigo's atdata; nil for a delete and for a frame no longer held in history
	Time       string // as in the message
	Handle     string // of an identity event, may be empty
	Active     bool   // of an account event
	Status     string
}

// A source holds the frames, and readers take them from it. Its methods may be called by many
// goroutines, but advance only by Run.
type source interface {
	// advance makes frames up to and including seq.
	advance(ctx context.Context, to int64) error
	// bounds returns the oldest seq that can be read and the newest; newest is oldest-1 if
	// there is none.
	bounds() (oldest, newest int64)
	// read appends websocket frames from seq from on until dst holds enough bytes, the batch
	// holds enough messages or there are no more.
	read(dst []byte, from int64, enough, messages int) batch
	expected(seq int64) []Expected
	// setFaults changes the faults of frames not made yet and returns the first such seq.
	setFaults(f Faults) int64
}

// A batch is what one read gave.
type batch struct {
	buf      []byte
	next     int64 // where to go on
	messages int
	lost     bool // from is no longer held
	hangUp   bool // the connection ends behind the batch
}

// A Relay is a simulated relay. Its Handler serves while its Run runs.
type Relay struct {
	// Immutable after New.
	cfg Config
	src source
	log *slog.Logger

	read     atomic.Int64  // the highest seq that any reader has taken
	progress chan struct{} // readers to Run: read moved; capacity one, never closed

	// Guarded by mu.
	mu      sync.Mutex
	wake    chan struct{} // closed and replaced when there are new frames or new orders
	ended   bool          // Run has returned or is about to
	started bool
	open    map[*reader]struct{}
	stall   time.Time
	readers sync.WaitGroup
	stop    chan struct{} // closed when ended is set
}

// New checks the configuration and, in loop mode, makes the frames to loop over, which takes a
// few hundred microseconds each. It starts nothing.
func New(cfg Config) (*Relay, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	r := &Relay{
		cfg:      cfg,
		log:      cfg.Logger,
		progress: make(chan struct{}, 1),
		wake:     make(chan struct{}),
		stop:     make(chan struct{}),
		open:     make(map[*reader]struct{}),
	}
	r.read.Store(cfg.FirstSeq - 1)
	var err error
	switch {
	case cfg.Frames != nil:
		r.src, err = newReplay(cfg.Frames)
	case cfg.Loop > 0:
		r.src, err = newLoop(cfg)
	default:
		r.src = newLive(cfg)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (c *Config) complete() error {
	if c.Accounts == 0 {
		c.Accounts = DefaultAccounts
	}
	if c.FirstSeq == 0 {
		c.FirstSeq = DefaultFirstSeq
	}
	if c.History == 0 {
		c.History = DefaultHistory
	}
	if c.Remember == 0 {
		c.Remember = DefaultRemember
	}
	if c.Start.IsZero() {
		c.Start = time.Date(2026, 7, 4, 12, 0, 0, 0, time.UTC)
	}
	if c.WallClock {
		c.Start = time.Now().Truncate(time.Microsecond)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var problem [2]string
	switch {
	case c.Accounts < 1:
		problem = [2]string{"accounts", "must be positive"}
	case c.Records < 0:
		problem = [2]string{"records", "must not be negative"}
	case c.FirstSeq < 1 || c.FirstSeq > maxFirstSeq:
		problem = [2]string{"first-seq", fmt.Sprintf("must be between 1 and %d", int64(maxFirstSeq))}
	case c.Rate < 0 || c.Rate > 0 && c.Rate < minRate || c.Rate > maxRate || math.IsNaN(c.Rate):
		problem = [2]string{"rate", fmt.Sprintf("must be 0 or between %g and %d frames per second", minRate, int(maxRate))}
	case c.Total < 0 || c.Total > maxFirstSeq:
		problem = [2]string{"total", fmt.Sprintf("must be between 0 and %d", int64(maxFirstSeq))}
	case c.Loop < 0:
		problem = [2]string{"loop", "must not be negative"}
	case c.Loop > 0 && c.FirstSeq < minLoopSeq:
		problem = [2]string{"first-seq", fmt.Sprintf("must be at least %d in loop mode", int64(minLoopSeq))}
	case c.Shuffle > 0 && (c.Loop > 0 || c.FirstSeq < minLoopSeq):
		problem = [2]string{"shuffle", fmt.Sprintf("is not for loop mode, and needs a first seq of at least %d", int64(minLoopSeq))}
	case c.Step < 0:
		problem = [2]string{"step", "must not be negative"}
	case c.History < 1:
		problem = [2]string{"history", "must be positive"}
	case c.Remember < 1:
		problem = [2]string{"remember", "must be positive"}
	default:
		return c.Faults.check()
	}
	return &ConfigError{problem[0], problem[1]}
}

// A ConfigError says which field of a Config cannot be. Fields are spelt like the flags of the
// command: first-seq is Config.FirstSeq, cut-after is Faults.CutAfter.
type ConfigError struct{ Field, Problem string }

func (e *ConfigError) Error() string { return e.Field + " " + e.Problem }

// at is the time of the frame with the given seq.
func (c *Config) at(seq int64) time.Time {
	return c.Start.Add(time.Duration(float64(seq-c.FirstSeq)*c.step()) * time.Microsecond)
}

// step is the time between two frames in microseconds.
func (c *Config) step() float64 {
	if c.Step > 0 {
		return float64(c.Step) / 1e3
	}
	if c.Rate > 0 {
		return 1e6 / c.Rate
	}
	return 1000
}

// end is the last seq of the stream.
func (c *Config) end() int64 {
	if c.Total == 0 {
		return math.MaxInt64 - 1
	}
	return c.FirstSeq + c.Total - 1
}

// lead is how far the generator runs ahead of the fastest reader if nothing else paces it. Half
// of the history leaves a reader that is as far behind as the generator is ahead in it.
//
// In loop mode it is a fraction of a second's frames, so that reader and Run seldom meet.
func (c *Config) lead() int64 {
	if c.Loop > 0 {
		return 1 << 16
	}
	return max(1, min(int64(c.History)/2, 4096))
}

// round is how many frames are made before readers hear of them: a few milliseconds' worth.
func (c *Config) round() int64 {
	if c.Loop > 0 {
		return c.lead()
	}
	return 32
}

// pace is the shortest time between two rounds of generating at a fixed rate.
const pace = 2 * time.Millisecond

// Run makes frames at the configured rate until ctx ends, then ends all connections and returns
// when they are gone. It may be called once.
func (r *Relay) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.started {
		r.mu.Unlock()
		return errors.New("the relay has already run")
	}
	r.started = true
	r.mu.Unlock()

	err := r.generate(ctx)
	if err != nil {
		r.log.Error("simulated relay stopped", "err", err)
	}
	r.mu.Lock()
	r.ended = true
	close(r.stop)
	r.mu.Unlock()
	r.readers.Wait()
	return err
}

func (r *Relay) generate(ctx context.Context) error {
	begin := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due int64
		if r.cfg.Rate > 0 {
			due = r.cfg.FirstSeq + int64(time.Since(begin).Seconds()*r.cfg.Rate)
		} else {
			due = r.read.Load() + r.cfg.lead()
		}
		if due = min(due, r.cfg.end()); r.LastSeq() < due {
			if err := r.src.advance(ctx, min(due, r.LastSeq()+r.cfg.round())); err != nil {
				return err
			}
			r.broadcast()
			if r.LastSeq() < due && ctx.Err() == nil {
				continue
			}
		}
		if r.LastSeq() >= r.cfg.end() || r.cfg.Frames != nil {
			<-ctx.Done()
			return nil
		}
		var tick <-chan time.Time
		if r.cfg.Rate > 0 {
			timer.Reset(max(pace, time.Duration(float64(time.Second)/r.cfg.Rate/4)))
			tick = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		case <-r.progress:
		}
	}
}

// broadcast wakes everybody who waits for frames.
func (r *Relay) broadcast() {
	r.mu.Lock()
	close(r.wake)
	r.wake = make(chan struct{})
	r.mu.Unlock()
}

// LastSeq returns the last seq generated so far, FirstSeq-1 before there is any.
func (r *Relay) LastSeq() int64 {
	_, newest := r.src.bounds()
	return newest
}

// Expected lists the events that a correct consumer delivers for the frame with that seq, from
// what the generator knows: faults that break an op take it off the list. It returns nil for a
// frame that yields nothing, that is not made yet, that is older than Config.Remember, and for
// all captured frames.
func (r *Relay) Expected(seq int64) []Expected { return r.src.expected(seq) }

// SetFaults replaces the faults of all frames that are not made yet and returns the seq of the
// first of them. The faults of a connection (CutAfter, StallAfter, NoPong) hold for connections
// made from now on.
func (r *Relay) SetFaults(f Faults) (int64, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	first := r.src.setFaults(f)
	r.mu.Lock()
	r.cfg.Faults = f
	r.mu.Unlock()
	return first, nil
}

// Cut ends all connections at once, without a closing handshake.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		c.nc.Close()
	}
}

// Stall keeps all connections open but sends no frames for d.
func (r *Relay) Stall(d time.Duration) {
	r.mu.Lock()
	r.stall = time.Now().Add(d)
	r.mu.Unlock()
	r.broadcast()
}

// Handler serves /xrpc/com.atproto.sync.subscribeRepos and /xrpc/_health.
func (r *Relay) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /xrpc/com.atproto.sync.subscribeRepos", r.subscribe)
	mux.HandleFunc("GET /xrpc/_health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, `{"version":"simulated"}`)
	})
	return mux
}
