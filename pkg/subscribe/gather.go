package subscribe

import (
	"bytes"
	"errors"
	"math"
	"net"
	"sort"
	"sync"
	"time"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
)

// writer is what the writing role needs while it is at work, and nobody while it is not:
// the next events of one subscriber, as they will be written.
type writer struct {
	runs   []run       // of wanted events: what has been gathered
	size   int         // of all runs in bytes
	pinned int         // bytes of the payloads that they are parts of
	bufs   net.Buffers // what of it is not out yet
	copied []byte
	loans  []eventlog.Loan // that runs are from, but for the current chunk's

	turn    bool // the log may be read from disk
	written int  // events, for who wants to count them
	text    int  // bytes of their JSON, until settle counts them

	// How far the log has been looked at for that.
	at    event.Cursor    // everything up to here
	from  event.Cursor    // where the log finds what follows
	chunk *eventlog.Chunk // what follows, if it is known already:
	next  int             // from this entry on
	form  eventlog.Form   // which the data is of, if it is stored
	data  []byte          // the chunk's payload in it; nil: not loaded yet
	loan  eventlog.Loan   // that data is from, if it is from one
	ends  []uint32        // where its entries end there; nil: as the index says
	part  bool            // data has only what the matcher's filter wants

	matcher matcher
}

// run is a run of events of one chunk that lie side by side.
type run struct {
	chunk      *eventlog.Chunk
	ends       []uint32
	first, end int // entries; end is not in it
	bytes      []byte
}

var writers = sync.Pool{New: func() any { return new(writer) }}

func newWriter() *writer { return writers.Get().(*writer) }

// release gives the writer back.
func (w *writer) release() {
	w.drop()
	writers.Put(w)
}

// drop forgets everything, and lets go of the chunks.
func (w *writer) drop() {
	w.reset()
	w.leave()
	w.at, w.from = 0, 0
}

// reset forgets what was gathered.
func (w *writer) reset() {
	for _, l := range w.loans {
		l.Return()
	}
	clear(w.loans)
	w.loans = w.loans[:0]
	clear(w.runs)
	clear(w.bufs)
	w.runs, w.bufs, w.copied, w.size, w.pinned = w.runs[:0], w.bufs[:0], w.copied[:0], 0, 0
}

// leave lets go of the current chunk.
func (w *writer) leave() {
	w.chunk = nil
	w.unload()
	w.matcher.filter, w.matcher.chunk = nil, nil
}

// unload forgets the current chunk's payload. What was gathered of it stays good until reset.
func (w *writer) unload() {
	if w.data == nil {
		return
	}
	if len(w.runs) > 0 {
		w.loans = append(w.loans, w.loan)
	} else {
		w.loan.Return()
	}
	w.data, w.ends, w.part, w.loan = nil, nil, false, eventlog.Loan{}
}

// errBehind says that what follows must be read from disk.
var errBehind = errors.New("what follows is not in memory")

// Bounds of what is gathered for one write.
const (
	// writeBytes: control frames wait for no more than this.
	writeBytes = 256 << 10
	// scanEvents is how many unwanted events may be passed before control frames, and others,
	// get their turn: some 0.2 ms.
	scanEvents = 10_000
	// excerptScan is how many events take as long to pass as an excerpt to be read.
	excerptScan = 1000
	// pinBytes bounds the payloads that a write keeps in memory, of which a thin filter wants
	// next to nothing.
	pinBytes = 1 << 20
	// writeRuns bounds the runs of a write.
	writeRuns = 256
)

// gather finds the next wanted events of a subscriber, up to writeBytes and at message
// boundaries. With nothing wanted: wait is how long its rate asks for, and end says
// that the log has no more; neither: it only stopped to let control frames through. The
// subscriber's position stays until commit or cut.
func (w *writer) gather(s *subscriber) (wait time.Duration, end bool, err error) {
	w.reset()
	quota := math.MaxInt
	if s.rate.rate = s.srv.limits.Load().MaxRate; s.rate.rate > 0 {
		if quota, wait = s.rate.quota(time.Now()); quota == 0 {
			w.at, w.from = s.at, s.from
			return wait, false, nil
		}
	}
	if w.chunk == nil || w.at != s.at {
		w.leave()
		w.at, w.from = s.at, s.from
	}
	for scanned := 0; w.size < writeBytes && quota > 0 && scanned < scanEvents && w.pinned < pinBytes && len(w.runs) < writeRuns; {
		f := s.filter.Load()
		if w.chunk != nil && w.chunk.IsExcerpt() && f != w.matcher.filter {
			w.leave() // it has what another filter wants
		}
		if w.chunk == nil {
			if !w.turn && !s.srv.cfg.Log.InMemory(w.from) {
				return 0, false, w.unless(errBehind)
			}
			var grown <-chan struct{}
			w.chunk, w.from, grown, err = s.srv.cfg.Log.NextUnless(w.from, s.need(f))
			if w.follow(s, err) {
				continue
			}
			if err != nil {
				return 0, false, w.unless(err)
			}
			w.at = max(w.at, w.from)
			if w.chunk == nil {
				return 0, grown != nil, nil
			}
			w.next = w.chunk.After(w.at)
			if w.chunk.IsExcerpt() {
				scanned += excerptScan
			}
		}
		c := w.chunk
		if f != w.matcher.filter {
			w.matcher.reset(f, c)
			if w.part {
				w.unload()
			}
			if w.matcher.none() {
				scanned += len(c.Entries) - w.next
				w.pass()
				continue
			}
		}
		for w.next < len(c.Entries) && !w.matcher.wants(w.next) {
			w.next++
			scanned++
		}
		if w.next > 0 {
			w.at = max(w.at, c.Entries[w.next-1].Cursor) // judged, and not again by another filter
		}
		if w.next == len(c.Entries) {
			w.pass()
			continue
		}
		if w.data == nil {
			if err := w.load(s); err != nil {
				if w.follow(s, err) {
					continue
				}
				return 0, false, w.unless(err)
			}
		}
		last := w.extent(s, writeBytes-w.size, quota)
		if last == w.next {
			if w.size > 0 {
				break
			}
			last++ // larger than a write: it goes alone
		}
		w.add(last)
		quota -= last - w.next
		w.at, w.next = c.Entries[last-1].Cursor, last
	}
	return 0, false, nil
}

// pass goes on to the next chunk.
func (w *writer) pass() {
	w.at = w.chunk.Last()
	w.from = w.at
	w.leave()
}

// extent returns where the run of wanted events that begins at w.next ends: after no more
// than room bytes and quota events.
func (w *writer) extent(s *subscriber, room, quota int) int {
	c := w.chunk
	begin := start(w.form, c, w.ends, w.next)
	if w.matcher.all && s.rate.rate == 0 {
		// On v1 sync events are empty: they do no harm inside a run.
		return w.next + sort.Search(len(c.Entries)-w.next, func(n int) bool { return stop(w.form, c, w.ends, w.next+n)-begin > room })
	}
	end := w.next
	for end < len(c.Entries) && end-w.next < quota && stop(w.form, c, w.ends, end)-begin <= room && w.matcher.wants(end) {
		end++
	}
	return end
}

// add adds the run from w.next to last.
func (w *writer) add(last int) {
	r := run{chunk: w.chunk, ends: w.ends, first: w.next, end: last}
	r.bytes = w.data[start(w.form, r.chunk, r.ends, r.first):stop(w.form, r.chunk, r.ends, r.end-1)]
	if n := len(w.runs); n == 0 || w.runs[n-1].chunk != r.chunk {
		w.pinned += len(w.data)
	}
	w.runs = append(w.runs, r)
	w.size += len(r.bytes)
}

// vectored is how many runs are given to the kernel as they are. More of them are copied
// together first: that costs less than their iovecs, by 14 and 42 % of a write of 100 and
// of 20 runs of 500 bytes, and for up to eight, which golang.org/x/sys keeps on the stack,
// there is no difference (BenchmarkWrite).
const vectored = 8

// prepare makes buffers of what was gathered.
func (w *writer) prepare() {
	for i := range w.runs {
		if len(w.runs) > vectored {
			w.copied = append(w.copied, w.runs[i].bytes...)
		} else {
			w.bufs = append(w.bufs, w.runs[i].bytes)
		}
	}
	if len(w.copied) > 0 {
		w.bufs = append(w.bufs, w.copied)
	}
}

// rest returns how many bytes of what was gathered are not out yet.
func (w *writer) rest() (n int) {
	for _, b := range w.bufs {
		n += len(b)
	}
	return n
}

// out notes that the next n bytes are.
func (w *writer) out(n int) {
	for i, b := range w.bufs {
		k := min(n, len(b))
		w.bufs[i] = b[k:]
		if n -= k; n == 0 {
			break
		}
	}
}

// commit moves the subscriber's position past everything that was gathered.
func (w *writer) commit(s *subscriber) {
	for _, r := range w.runs {
		w.count(s, r, r.end)
	}
	w.settle(s, w.at, w.from)
	w.reset()
}

// count notes that the events of a run up to end are out.
func (w *writer) count(s *subscriber, r run, end int) {
	n := 0
	for i := r.first; i < end; i++ {
		if wireKinds[s.options.wire].has(r.chunk.Entries[i].Kind) {
			n++
		}
	}
	s.sent = s.sent || n > 0
	w.written += n
	if end > r.first {
		w.text += int(r.chunk.Entries[end-1].End[eventlog.JSON] - r.chunk.Start(r.first, eventlog.JSON))
	}
	s.rate.take(n)
	s.srv.metrics.events.Add(float64(n))
}

// cut gives up what of the gathered is not out, keeps only what is left of the message that
// was cut, and moves the subscriber's position past that.
func (w *writer) cut(s *subscriber) {
	n := w.size - w.rest()
	for _, r := range w.runs {
		if n >= len(r.bytes) {
			n -= len(r.bytes)
			w.count(s, r, r.end)
			continue
		}
		begin := start(w.form, r.chunk, r.ends, r.first)
		// The first message that is not out as a whole.
		i := r.first + sort.Search(r.end-r.first, func(i int) bool { return stop(w.form, r.chunk, r.ends, r.first+i)-begin > n })
		w.count(s, r, i)
		at, from := r.chunk.Entries[i].Cursor-1, r.chunk.Prev
		if start(w.form, r.chunk, r.ends, i)-begin < n {
			s.tail = bytes.Clone(r.bytes[n : stop(w.form, r.chunk, r.ends, i)-begin])
			w.count(s, run{chunk: r.chunk, first: i}, i+1)
			if at++; at == r.chunk.Last() {
				from = at // the chunk may be trimmed
			}
		}
		w.settle(s, at, from)
		break
	}
	w.drop()
}

// settle sets the subscriber's position.
func (w *writer) settle(s *subscriber, at, from event.Cursor) {
	s.at, s.from = at, from
	s.position.Store(int64(at))
	if w.text > 0 {
		s.srv.metrics.text.Add(float64(w.text))
		w.text = 0
	}
}

// follow reports whether err only says that the buffer's start, which the subscriber
// asked for, has moved since. The position then moves with it. On v2 nothing is passed over
// without a word: see advance.
func (w *writer) follow(s *subscriber, err error) bool {
	if !errors.Is(err, eventlog.ErrTrimmed) || s.sent || len(w.runs) > 0 || s.options.wire != v1 {
		return false
	}
	w.leave()
	w.at = max(w.at, s.srv.cfg.Log.Trimmed())
	w.from = w.at
	return true
}

// unless returns err, or nil if there are events to be written first: the error comes
// again.
func (w *writer) unless(err error) error {
	if len(w.runs) > 0 {
		return nil
	}
	return err
}

// load gets the payload of the current chunk in the subscriber's encoding.
func (w *writer) load(s *subscriber) (err error) {
	log, e, c := s.srv.cfg.Log, s.options.encoding, w.chunk
	form, stored := e.stored(c)
	if w.few(s) {
		d, err := e.few(log, s.srv.cfg.Dictionaries.Decompressor(), c, w.next, w.matcher.wants)
		if err == nil {
			w.data, w.ends, w.part = d.Bytes, d.Ends, true
		}
		return err
	}
	if stored {
		w.form, w.ends = form, nil
		w.loan, err = log.Borrow(c, form)
		w.data = w.loan.Bytes
		return err
	}
	d, err := log.Derive(c, e.key(), func() (eventlog.Derived, error) { return e.derive(log, c) })
	w.data, w.ends = d.Bytes, d.Ends
	return err
}

// need returns how much of a chunk on disk is needed for a filter; nil: everything of all.
func (s *subscriber) need(f *Filter) func(*eventlog.Summary) eventlog.Need {
	if f.takesAll() {
		return nil
	}
	return func(sum *eventlog.Summary) eventlog.Need {
		n := f.need(sum)
		if n == eventlog.Excerpt && !s.srv.cfg.Dictionaries.Decompressor().Knows(sum.Dictionary) {
			return eventlog.Everything // of an excerpt the JSON is made of the compressed form
		}
		return n
	}
}

// fewShare is which part of a block's events are few. Unpacking all its JSON costs as much
// as decompressing a third of its events one by one; but it is kept for others.
const fewShare = 8

// few reports whether so little of what is left of the current chunk is wanted that it is
// better taken out, and made of its compressed form, than loaded with all the rest; an excerpt
// has no other.
func (w *writer) few(s *subscriber) bool {
	c, log := w.chunk, s.srv.cfg.Log
	if c.IsExcerpt() {
		return true
	}
	if w.matcher.all || c.Resident() || c.Size(eventlog.Zstd) == 0 || !s.srv.cfg.Dictionaries.Decompressor().Knows(c.Dictionary) {
		return false
	}
	if form, stored := s.options.encoding.stored(c); stored && log.Loaded(c, form) {
		return false
	}
	wanted := 0
	for i := w.next; i < len(c.Entries); i++ {
		if w.matcher.wants(i) {
			wanted++
		}
	}
	return wanted <= len(c.Entries)/fewShare
}

// stop returns where event i of a chunk ends in a form, whose own ends, if it has any,
// are given.
func stop(f eventlog.Form, c *eventlog.Chunk, ends []uint32, i int) int {
	if ends != nil {
		return int(ends[i])
	}
	return int(c.Entries[i].End[f])
}

// start returns where event i of a chunk begins in a form.
func start(f eventlog.Form, c *eventlog.Chunk, ends []uint32, i int) int {
	if i == 0 {
		return 0
	}
	return stop(f, c, ends, i-1)
}
