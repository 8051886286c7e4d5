package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v3"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:         "verify",
		Usage:        "read all that a data dir holds and check it, also beside a running daemon; exit status 1 at the first violation",
		Category:     categoryStorage,
		OnUsageError: usageError,
		Flags:        bufferFlags(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return withBuffer(ctx, cmd, func(ctx context.Context, b *buffer) error {
				// Now that the store is open: a daemon keeps a dictionary before it uses it.
				checker, err := newChecker(keptIn(cmd.String("data-dir")), func(file string, err error) {
					fmt.Fprintf(cmd.Root().ErrWriter, "slipstream: %s is ignored: %v\n", file, err)
				})
				if err != nil {
					return err
				}
				bar := io.Discard
				if w := cmd.Root().ErrWriter; isTerminal(w) {
					bar = w
				}
				return checker.verify(ctx, b, cmd.Root().Writer, bar)
			})
		},
	}
}

// checker holds events against their index. It knows what package eventlog does not: what an
// event looks like.
type checker struct {
	kept         keptDictionaries
	decompressor *event.Decompressor
	scratch      sync.Pool // of *[]byte: one event's text frame

	chunks, events atomic.Int64 // checked so far
}

// newChecker makes a checker that knows the dictionaries built in and those kept. It tells warn
// of what is no dictionary.
func newChecker(kept keptDictionaries, warn func(file string, err error)) (*checker, error) {
	more, err := kept.load(warn)
	if err != nil {
		return nil, err
	}
	d, err := event.NewDecompressor(append(dictionaries.All(), more...)...)
	if err != nil {
		return nil, err
	}
	return &checker{kept: kept, decompressor: d, scratch: sync.Pool{New: func() any { return new([]byte) }}}, nil
}

// verify checks everything and says so on w. How far it is, it shows on bar.
func (k *checker) verify(ctx context.Context, b *buffer, w, bar io.Writer) error {
	progress := progressBar{w: bar, begin: time.Now(), events: &k.events}
	err := b.Verify(func(c *eventlog.Chunk, json, zstd, extra []byte) error {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return k.chunk(c, json, zstd, extra)
	}, progress.show)
	progress.clear()
	switch {
	case errors.Is(err, errInterrupted):
		return fmt.Errorf("interrupted after %s without a violation", count(k.events.Load(), "event"))
	case err != nil:
		return err
	}
	span := ""
	for c, err := range b.Chunks() {
		if err != nil {
			return err
		}
		span = fmt.Sprintf(", from %s to %s", c.First().Time().UTC().Format(timeFormat), b.Last().Time().UTC().Format(timeFormat))
		break
	}
	_, err = fmt.Fprintf(w, "verified %s in %s%s, in %s: no violation\n", plural(k.events.Load(), "event"), plural(k.chunks.Load(), "chunk"),
		span, durationText(time.Since(progress.begin)))
	return err
}

func plural(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// chunk checks the events of one chunk.
func (k *checker) chunk(c *eventlog.Chunk, json, zstd, extra []byte) error {
	if len(zstd) > 0 && !k.decompressor.Knows(c.Dictionary) {
		return fmt.Errorf("its events are compressed with dictionary %d, which is not built in: put its file into %s", c.Dictionary, k.kept.dir)
	}
	scratch := k.scratch.Get().(*[]byte)
	defer k.scratch.Put(scratch)
	dids := c.DIDs()
	for i := range c.Entries {
		e := &c.Entries[i]
		cut := func(b []byte, f eventlog.Form) []byte { return b[c.Start(i, f):e.End[f]] }
		collection := ""
		if e.Collection != eventlog.NoCollection {
			collection = c.Collections[e.Collection]
		}
		err := k.event(e, dids[e.DID], collection, cut(json, eventlog.JSON), cut(zstd, eventlog.Zstd), cut(extra, eventlog.Extra), scratch)
		if err != nil {
			return fmt.Errorf("event %d (%s): %w", e.Cursor, e.Cursor.Time().UTC().Format("2006-01-02T15:04:05.000000Z"), err)
		}
	}
	k.chunks.Add(1)
	k.events.Add(int64(len(c.Entries)))
	return nil
}

func (k *checker) event(e *eventlog.Entry, did, collection string, json, zstd, extra []byte, scratch *[]byte) error {
	if e.Kind == event.KindSync {
		if len(json) > 0 || len(zstd) > 0 {
			return errors.New("a sync event with a form for v1")
		}
		if err := event.Check(extra, did, e.Cursor, e.Kind, collection); err != nil {
			return fmt.Errorf("extra: %w", err)
		}
		return nil
	}
	if len(json) == 0 || len(zstd) == 0 || len(extra) > 0 {
		return fmt.Errorf("a %s event with %d bytes of json, %d of zstd and %d of extra", e.Kind, len(json), len(zstd), len(extra))
	}
	if err := event.CheckBinary(zstd); err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	text, err := k.decompressor.AppendText((*scratch)[:0], zstd)
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	*scratch = text
	// The text frame that is made of the zstd form has the right header, so this checks that of
	// the json form too.
	if !bytes.Equal(text, json) {
		return errors.New("its zstd form is not of its json form")
	}
	if err := event.Check(event.Payload(json), did, e.Cursor, e.Kind, collection); err != nil {
		return fmt.Errorf("json: %w", err)
	}
	return nil
}

// progressBar shows how far something is. A library for this counts one thing and shows its
// rate; here what is done is a share of time, and the rate is of events.
type progressBar struct {
	w      io.Writer
	events *atomic.Int64
	begin  time.Time
	shown  time.Time
}

func (p *progressBar) show(done float64) {
	now := time.Now()
	if p.w == io.Discard || now.Sub(p.shown) < 100*time.Millisecond {
		return
	}
	p.shown = now
	const width = 30
	full := int(done * width)
	took := now.Sub(p.begin)
	left := "..."
	if done > 0 && took > time.Second {
		left = durationText(time.Duration(float64(took) * (1 - done) / done).Round(time.Second))
	}
	fmt.Fprintf(p.w, "\r[%s%s] %3.0f %%  %.0f events/s  %s left\x1b[K", strings.Repeat("=", full), strings.Repeat(" ", width-full),
		100*done, float64(p.events.Load())/took.Seconds(), left)
}

func (p *progressBar) clear() {
	if !p.shown.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
