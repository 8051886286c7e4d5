package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what to connect to and what for. Its zero value is a live stream of everything
// from a daemon on this machine.
type Config struct {
	// URL names the server. What is left out is completed: "localhost:6008" is
	// ws://localhost:6008/subscribe, "https://host" is wss://host/subscribe. Parameters in its query
	// (wantedCollections, cursor, compress, ...) count as if they stood in the fields below.
	// Default ws://127.0.0.1:6008/subscribe.
	URL string
	// Wire is V1 or V2. Default: what the path of URL says, and V1 if it has none.
	Wire Wire
	// Filter is what to ask for at first. SetFilter changes it.
	Filter
	// Cursor is where to begin if Store has nothing: an event's, At(time) or Oldest. Default: live.
	Cursor Cursor
	// FromOldest makes the stream go on from the server's oldest event when its buffer no longer
	// holds the cursor. Else Events then ends with ErrCursorTooOld. It concerns the v2 wire: v1 servers
	// always do so, and do not say so.
	FromOldest bool

	// Store keeps the cursor that was last acknowledged, and says at the start where to go on; nil: none.
	Store CursorStore
	// StoreInterval is how often it is saved while it changes. Default 1 s.
	StoreInterval time.Duration

	// Compress asks for zstd frames: a third of the bytes. The dictionary is fetched from the server, or
	// is one of Dictionaries, which a server needs that names none.
	Compress     bool
	Dictionaries [][]byte
	// CacheDir is where fetched dictionaries are kept; "": nowhere.
	CacheDir string

	// Once makes Events end with the first error, where it would otherwise connect again.
	Once bool
	// MinBackoff and MaxBackoff are how long to wait before connecting again, at first and at most. Each
	// wait is made up to a half shorter by chance. Default 500 ms and 30 s. A server that asks for more
	// time gets it, up to five minutes.
	MinBackoff, MaxBackoff time.Duration
	// Timeout is how long a server may be silent before the connection is given up. It is pinged three
	// times in that time. Default 60 s.
	Timeout time.Duration
	// MaxMessage bounds a message, also decompressed, in bytes. Default 16 MiB.
	MaxMessage int
	// TLS configures wss:// and https://; nil: the default.
	TLS *tls.Config
	// UserAgent is what the server is told. Default "slipstream-client".
	UserAgent string

	// OnRetry is called before the wait for another connection; nil: nobody is told.
	OnRetry func(err error, wait time.Duration)
	// OnConnect is called when a connection stands; nil: nobody is told.
	OnConnect func()
	// OnInfo is called with what a v2 server has to say about the stream, such as "OutdatedCursor", and
	// with name "Malformed" for a message that was left out because it is no event; nil: nobody is told.
	OnInfo func(name, message string)
}

// Stats are counters since New.
type Stats struct {
	Events    int64 // that came, whether handed out or not
	WireBytes int64 // of messages as they came, compressed or not
	Bytes     int64 // of messages, decompressed
	Malformed int64 // messages that were no events
	Connects  int64 // connections that stood
}

// A Client receives events. Its methods may be called from any goroutine.
type Client struct {
	// Immutable after New.
	cfg    Config
	server *endpoint

	events, wireBytes, bytes, malformed, connects atomic.Int64

	acked atomic.Int64 // the newest acknowledged Cursor; 0: none

	saving sync.Mutex // held while the cursor is saved
	saved  Cursor     // guarded by saving

	mu     sync.Mutex // guards everything below
	filter *Filter    // never changed, but replaced
	conn   *conn      // that stands; nil: none
	busy   bool       // Events runs
}

// handshakeTimeout is for a connection to stand, and for a dictionary to be fetched.
const handshakeTimeout = 30 * time.Second

// New checks the configuration. It connects to nothing.
func New(cfg Config) (*Client, error) {
	server, err := parseEndpoint(cfg.URL, cfg.Wire)
	if err != nil {
		return nil, err
	}
	f := cfg.Filter.clone()
	f.Collections = append(f.Collections, server.filter.Collections...)
	f.DIDs = append(f.DIDs, server.filter.DIDs...)
	f.Kinds = append(f.Kinds, server.filter.Kinds...)
	setDefault(&f.MaxSize, server.filter.MaxSize)
	setDefault(&cfg.Cursor, server.cursor)
	server.zstd = server.zstd || cfg.Compress
	if err := f.check(server.wire); err != nil {
		return nil, err
	}
	if cfg.Cursor < Oldest {
		return nil, fmt.Errorf("cursor %d: use one that is positive, Oldest or 0", cfg.Cursor)
	}
	for _, b := range cfg.Dictionaries {
		if _, err := checkDictionary(b); err != nil {
			return nil, fmt.Errorf("dictionary: %w", err)
		}
	}
	setDefault(&cfg.StoreInterval, time.Second)
	setDefault(&cfg.MinBackoff, 500*time.Millisecond)
	setDefault(&cfg.MaxBackoff, 30*time.Second)
	setDefault(&cfg.Timeout, 60*time.Second)
	setDefault(&cfg.MaxMessage, 16<<20)
	setDefault(&cfg.UserAgent, "slipstream-client")
	if cfg.OnRetry == nil {
		cfg.OnRetry = func(error, time.Duration) {}
	}
	if cfg.OnConnect == nil {
		cfg.OnConnect = func() {}
	}
	if cfg.OnInfo == nil {
		cfg.OnInfo = func(string, string) {}
	}
	return &Client{cfg: cfg, server: server, filter: f}, nil
}

func setDefault[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// URL returns the completed URL, without parameters.
func (c *Client) URL() string { return c.server.base.Redacted() }

// Wire returns the protocol that is spoken, V1 or V2.
func (c *Client) Wire() Wire { return c.server.wire }

// Stats returns what has been counted so far.
func (c *Client) Stats() Stats {
	return Stats{c.events.Load(), c.wireBytes.Load(), c.bytes.Load(), c.malformed.Load(), c.connects.Load()}
}

// Ack says that the event with this cursor, and all that were handed out before it, have been dealt
// with. It is cheap, so ack after each event or after each batch, as you like. Acks that go back are
// ignored. The Store gets the newest once an interval, and when Events ends.
func (c *Client) Ack(cursor Cursor) {
	for {
		old := c.acked.Load()
		if int64(cursor) <= old || c.acked.CompareAndSwap(old, int64(cursor)) {
			return
		}
	}
}

// Flush saves what was acknowledged now, and returns when it is safe.
func (c *Client) Flush(ctx context.Context) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	cursor := Cursor(c.acked.Load())
	if c.cfg.Store == nil || cursor == c.saved || cursor == 0 {
		return nil
	}
	if err := c.cfg.Store.SaveCursor(ctx, cursor); err != nil {
		return fmt.Errorf("save cursor: %w", err)
	}
	c.saved = cursor
	return nil
}

// SetFilter replaces the whole filter. On the v1 wire the server is told on the open connection; on
// the v2 wire, which knows no such thing, the client connects again where it is. Events that are on
// their way still obey the old one.
func (c *Client) SetFilter(f Filter) error {
	if err := f.check(c.server.wire); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.filter = f.clone()
	if c.conn != nil {
		c.conn.setFilter(c.filter)
	}
	return nil
}

var (
	errBusy    = errors.New("Events is running already")
	errStopped = errors.New("the consumer has had enough")
	errFilter  = errors.New("connecting again with another filter")
)

// Events connects and hands out events, each once and in the server's order, until ctx ends, the loop is
// left or there is an error that connecting again would not cure; that error is the last thing that it
// hands out. The end of ctx is no error. Only one loop may run at a time.
//
// After a broken connection it goes on behind the last event that it handed out. After a new start
// it goes on behind the last event that was acknowledged, if there is a Store: what was handed out
// and not acknowledged comes again. Other duplicates are those that the server makes.
//
// Reading stops while the loop's body works. The server waits, but for two minutes at most if nothing at all
// is taken: what takes longer is better done elsewhere.
func (c *Client) Events(ctx context.Context) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		if err := c.run(ctx, yield); err != nil {
			yield(nil, err)
		}
	}
}

// outdated is how a v2 server begins its notice that a time cursor is older than its buffer.
const outdated = "OutdatedCursor"

// position is where a stream goes on.
type position struct {
	cursor Cursor // of the newest event that came; 0: live
	had    bool   // the event at cursor was handed out, or dealt with
}

// run returns nil where yield has said no or ctx has ended.
func (c *Client) run(ctx context.Context, yield func(*Event, error) bool) (err error) {
	c.mu.Lock()
	busy := c.busy
	c.busy = true
	c.mu.Unlock()
	if busy {
		return errBusy
	}
	defer func() {
		c.mu.Lock()
		c.busy = false
		c.mu.Unlock()
	}()
	at, err := c.start(ctx)
	if err != nil {
		return err
	}
	dictionaries, err := newDictionaries(&c.cfg, c.server)
	if err != nil {
		return err
	}
	defer dictionaries.close()

	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	var saver sync.WaitGroup
	saver.Go(func() {
		if err := c.save(ctx); err != nil {
			cancel(err)
		}
	})
	left := false
	defer func() {
		cause := context.Cause(ctx) // before it is ours
		cancel(nil)
		saver.Wait()
		if outer.Err() == nil && cause != nil {
			err = cause
		}
		last, done := context.WithTimeout(context.WithoutCancel(ctx), handshakeTimeout)
		defer done()
		err = errors.Join(err, c.Flush(last))
		if left {
			err = nil // there is nobody to be told; Flush says it again
		}
	}()

	for failures := 0; ; {
		began := time.Now()
		progress, err := c.attempt(ctx, &at, dictionaries, yield)
		switch {
		case errors.Is(err, errStopped):
			left = true
			return nil
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errFilter):
			continue
		case c.cfg.FromOldest && errors.Is(err, ErrCursorTooOld):
			c.cfg.OnInfo(outdated, err.Error())
			at = position{cursor: Oldest}
			continue
		case isFinal(err) || c.cfg.Once:
			return err
		}
		if progress || time.Since(began) > c.cfg.MaxBackoff {
			failures = 0
		}
		wait := c.backoff(failures, err)
		failures++
		c.cfg.OnRetry(err, wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// start returns where to begin.
func (c *Client) start(ctx context.Context) (position, error) {
	if c.cfg.Store != nil {
		cursor, err := c.cfg.Store.LoadCursor(ctx)
		if err != nil {
			return position{}, fmt.Errorf("load cursor: %w", err)
		}
		if cursor > 0 {
			if c.server.wire == V1 && cursor < timeCursors {
				return position{}, fmt.Errorf("the stored cursor %d %w", cursor, errV2Cursor)
			}
			c.Ack(cursor)
			c.saving.Lock()
			c.saved = cursor
			c.saving.Unlock()
			return position{cursor, true}, nil
		}
	}
	return position{c.cfg.Cursor, false}, nil
}

// save saves what is acknowledged until ctx ends.
func (c *Client) save(ctx context.Context) error {
	if c.cfg.Store == nil {
		return nil
	}
	tick := time.NewTicker(c.cfg.StoreInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := c.Flush(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// maxRetryAfter is how far ahead a server can put off its clients.
const maxRetryAfter = 5 * time.Minute

func (c *Client) backoff(failures int, err error) time.Duration {
	wait := c.cfg.MaxBackoff
	if failures < 20 {
		wait = min(wait, c.cfg.MinBackoff<<failures)
	}
	wait -= rand.N(wait/2 + 1)
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		// Whoever was put off together does not come back together.
		if asked := min(refused.retryAfter, maxRetryAfter); asked > 0 {
			wait = max(wait, asked+rand.N(asked/4+1))
		}
	}
	return wait
}

// attempt makes one connection and hands out what comes, until it breaks. It moves at. progress: at
// least one event came that had not come before.
func (c *Client) attempt(ctx context.Context, at *position, dictionaries *dictionaries, yield func(*Event, error) bool) (progress bool, err error) {
	began := time.Now()
	c.mu.Lock()
	filter := c.filter
	c.mu.Unlock()
	conn, err := c.dial(ctx, filter, at.cursor, dictionaries)
	if err != nil {
		return false, err
	}
	defer conn.close()
	defer context.AfterFunc(ctx, conn.shut)()
	c.mu.Lock()
	c.conn = conn
	if c.filter != filter {
		conn.setFilter(c.filter) // changed while we connected
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.conn = nil
		c.mu.Unlock()
	}()
	c.connects.Add(1)
	c.cfg.OnConnect()
	if at.cursor == 0 {
		// If this breaks before the first event, what came meanwhile is not to be missed.
		at.cursor = At(began)
	}
	parse := parseV1
	if c.server.wire == V2 {
		parse = parseV2
	}
	for {
		raw, wireBytes, err := conn.next()
		if err != nil {
			return progress, conn.explain(ctx, err)
		}
		c.wireBytes.Add(int64(wireBytes))
		c.bytes.Add(int64(len(raw)))
		m, err := parse(raw)
		switch {
		case err != nil && c.events.Load() == 0:
			return false, final("%s sends %w", c.URL(), err) // it is no Jetstream
		case err != nil:
			// It would come again with every new connection.
			c.malformed.Add(1)
			c.cfg.OnInfo("Malformed", err.Error())
			continue
		case m.fatal:
			return progress, fmt.Errorf("the server ends the stream: %s: %s", m.name, sentence([]byte(m.text)))
		case m.event == nil && at.cursor == Oldest && m.name == outdated:
			continue // that is what was asked for
		case m.event == nil:
			c.cfg.OnInfo(m.name, sentence([]byte(m.text)))
			continue
		}
		c.events.Add(1)
		conn.heard.Store(true)
		if at.had && m.event.Cursor == at.cursor {
			continue
		}
		*at, progress = position{m.event.Cursor, true}, true
		if !conn.wants(m.event) {
			continue
		}
		if !yield(m.event, nil) {
			return progress, errStopped
		}
		if ctx.Err() != nil {
			return progress, ctx.Err()
		}
	}
}
