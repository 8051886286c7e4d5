package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"text/template"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/mattn/go-runewidth"
	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"slipstream/pkg/client"
)

const (
	// flushAfter is how long an event may wait for others to be written with: less than an eye notices.
	flushAfter = 20 * time.Millisecond
	flushBytes = 64 << 10
	// statusEvery is how often the status line changes.
	statusEvery = 500 * time.Millisecond
	// behind is what counts as catching up.
	behind    = 3 * time.Second
	clearLine = "\r\x1b[K"
)

// printer writes events to one place, and about them to another.
type printer struct {
	// Immutable after newPrinter.
	out, err io.Writer
	format   func(dst []byte, e *client.Event) ([]byte, error)
	status   bool // show the status line
	onScreen bool // out is a terminal

	// Set by start.
	client  *client.Client
	giveUp  func() // called when out cannot be written to
	stopped chan struct{}
	joined  sync.WaitGroup

	mu     sync.Mutex // guards everything below
	buf    []byte
	last   *client.Event // the newest in buf or written
	lag    time.Duration // how old it was when it came
	timer  *time.Timer   // will flush
	failed error
	shown  bool // the status line is on the screen
}

// newPrinter reads and checks the flags that say how to print.
func newPrinter(cmd *cli.Command) (*printer, error) {
	p := &printer{out: cmd.Root().Writer, err: cmd.Root().ErrWriter}
	p.onScreen = isTerminal(p.out)
	p.status = isTerminal(p.err) && !cmd.Bool("quiet")
	color := takesColours(p.out)
	switch cmd.String("color") {
	case "auto":
	case "always", "never":
		color = cmd.String("color") == "always"
	default:
		return nil, usage("--color %q: use always, never or auto", cmd.String("color"))
	}
	output := cmd.String("output")
	if output == "auto" {
		if output = "json"; p.onScreen {
			output = "text"
		}
	}
	text := cmd.String("template")
	switch {
	case text != "" && cmd.IsSet("output"):
		return nil, usage("--output %s: --template says what to print already", output)
	case text != "":
		return p, p.useTemplate(text)
	case output == "json":
		p.format = p.appendJSON
	case output == "text":
		p.format = func(dst []byte, e *client.Event) ([]byte, error) {
			return appendLine(dst, e, color, p.width()), nil
		}
	default:
		return nil, usage("--output %q: use text, json or auto", output)
	}
	return p, nil
}

// width is that of the screen, which may change; 0: there is none.
func (p *printer) width() int {
	if !p.onScreen {
		return 0
	}
	return widthOf(p.out)
}

func widthOf(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 80
}

// appendJSON appends a message as it came, in a line of its own.
func (p *printer) appendJSON(dst []byte, e *client.Event) ([]byte, error) {
	raw := e.Raw
	if bytes.ContainsAny(raw, "\r\n") {
		var b bytes.Buffer
		if err := json.Compact(&b, raw); err != nil {
			return nil, err
		}
		raw = b.Bytes()
	}
	if p.onScreen {
		raw = harmlessJSON(raw)
	}
	return append(append(dst, raw...), '\n'), nil
}

// view is what a template sees.
type view struct {
	*client.Event
	Record any    // the record's JSON
	JSON   string // the whole message
}

func (p *printer) useTemplate(text string) error {
	t, err := template.New("template").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	}}).Parse(text)
	if err != nil {
		return usage("--template: %w", err)
	}
	p.format = func(dst []byte, e *client.Event) ([]byte, error) {
		v, err := p.view(e)
		if err != nil {
			return nil, err
		}
		b := bytes.NewBuffer(dst)
		if err := t.Execute(b, v); err != nil {
			return nil, usage("--template: %w", err)
		}
		b.WriteByte('\n')
		return b.Bytes(), nil
	}
	return nil
}

func (p *printer) view(e *client.Event) (*view, error) {
	// What is not there is empty, so that one template does for all kinds.
	c := *e
	v := &view{Event: &c}
	if c.Commit == nil {
		c.Commit = &client.Commit{}
	}
	if c.Identity == nil {
		c.Identity = &client.Identity{}
	}
	if c.Account == nil {
		c.Account = &client.Account{}
	}
	if c.Sync == nil {
		c.Sync = &client.Sync{}
	}
	v.JSON = string(e.Raw)
	v.Record = map[string]any{}
	if c.Commit.Record != nil {
		d := json.NewDecoder(bytes.NewReader(c.Commit.Record))
		d.UseNumber()
		if err := d.Decode(&v.Record); err != nil {
			return nil, err
		}
	}
	if p.onScreen {
		v.Record, v.JSON = harmlessValue(v.Record), string(harmlessJSON(e.Raw))
		commit, id, account, sync := *c.Commit, *c.Identity, *c.Account, *c.Sync
		c.Commit, c.Identity, c.Account, c.Sync = &commit, &id, &account, &sync
		for _, s := range []*string{&c.DID, (*string)(&c.Kind), &commit.Rev, &commit.Operation, &commit.Collection, &commit.RKey, &commit.CID,
			&id.DID, &id.Handle, &id.Time, &account.DID, &account.Status, &account.Time, &sync.DID, &sync.Rev, &sync.Time} {
			*s = harmless(*s)
		}
		commit.Record, c.Raw = harmlessJSON(commit.Record), []byte(v.JSON)
	}
	return v, nil
}

// start begins to show the status line. What is printed is acknowledged to c; giveUp is called when the
// output cannot be written to.
func (p *printer) start(c *client.Client, giveUp func()) {
	p.client, p.giveUp, p.stopped = c, giveUp, make(chan struct{})
	if p.status {
		p.joined.Go(p.showStatus)
	}
}

// stop writes what is left and returns the first error of the output.
func (p *printer) stop() error {
	close(p.stopped)
	p.joined.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushLocked()
	p.clearLocked()
	return p.failed
}

// print prints an event, soon. Its error is that of the output, or of a template.
func (p *printer) print(e *client.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return p.failed
	}
	b, err := p.format(p.buf, e)
	if err != nil {
		return err
	}
	p.buf, p.last, p.lag = b, e, max(time.Since(e.Time), 0)
	if len(p.buf) >= flushBytes {
		p.flushLocked()
	} else if p.timer == nil {
		p.timer = time.AfterFunc(flushAfter, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.flushLocked()
		})
	}
	return p.failed
}

// note writes a line about the stream.
func (p *printer) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushLocked()
	p.clearLocked()
	fmt.Fprintln(p.err, text)
}

func (p *printer) flushLocked() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	if len(p.buf) == 0 || p.failed != nil {
		return
	}
	if p.onScreen {
		p.clearLocked()
	}
	_, err := p.out.Write(p.buf)
	if p.buf = p.buf[:0]; err != nil {
		p.failed = err
		p.giveUp()
		return
	}
	p.client.Ack(p.last.Cursor)
}

func (p *printer) clearLocked() {
	if p.shown {
		io.WriteString(p.err, clearLine)
		p.shown = false
	}
}

// showStatus shows how fast it goes and how far behind it is, until stop.
func (p *printer) showStatus() {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var rate rates
	for {
		select {
		case <-p.stopped:
			return
		case now := <-tick.C:
			text := rate.update(p.client.Stats(), now)
			p.mu.Lock()
			// On one screen with events that come as they happen, it would only be in the way.
			if p.clearLocked(); p.last == nil || p.lag > behind || !p.onScreen {
				text += ", " + p.stateLocked()
				io.WriteString(p.err, clearLine+runewidth.Truncate(text, widthOf(p.err)-1, "…"))
				p.shown = true
			}
			p.mu.Unlock()
		}
	}
}

// rates are means over the last seconds.
type rates struct {
	stats []client.Stats
	times []time.Time
}

func (r *rates) update(s client.Stats, now time.Time) string {
	const window = 6 // of statusEvery
	r.stats, r.times = append(r.stats, s), append(r.times, now)
	if len(r.stats) > window {
		r.stats, r.times = r.stats[1:], r.times[1:]
	}
	first := r.stats[0]
	seconds := max(now.Sub(r.times[0]), statusEvery).Seconds()
	per := func(n int64) uint64 { return uint64(float64(n) / seconds) }
	text := fmt.Sprintf("%s events, %s/s, %s/s", humanize.Comma(s.Events), humanize.Comma(int64(per(s.Events-first.Events))), humanize.Bytes(per(s.WireBytes-first.WireBytes)))
	if s.WireBytes != s.Bytes {
		text += fmt.Sprintf(" for %s/s of JSON", humanize.Bytes(per(s.Bytes-first.Bytes)))
	}
	return text
}

func (p *printer) stateLocked() string {
	switch {
	case p.last == nil:
		return "nothing yet"
	case p.lag <= behind:
		return "live"
	}
	return p.lag.Round(time.Second).String() + " behind"
}
