package ingest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/repo"
)

const (
	benchRounds   = 7
	benchDuration = 150 * time.Millisecond // of each side in each round

	benchHeap = 64 << 20 // what a daemon holds, roughly; the collector runs as often as that

	// The commit stage moves some 170 MB of JSON per round and side, which makes Pebble
	// flush and compact; it takes seconds, so it has fewer rounds.
	commitRounds = 3
	commitEvents = 300_000
	chunkEvents  = 500 // as when catching up
)

// benchTime is a time_us whose digits are like any other's.
const benchTime event.Cursor = 1_783_175_886_243_971

// cost is what one event took.
type cost struct{ ns, allocs float64 }

func (c cost) plus(d cost) cost  { return cost{c.ns + d.ns, c.allocs + d.allocs} }
func (c cost) minus(d cost) cost { return cost{c.ns - d.ns, c.allocs - d.allocs} }

// measured runs f, which deals with so many events, and says what that took of the whole
// process: every thread, the garbage collector's and Pebble's included.
func measured(events int, f func()) cost {
	runtime.GC() // what came before pays for its own garbage
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := cpuTime()
	f()
	cpu := cpuTime() - began
	runtime.ReadMemStats(&after)
	n := float64(events)
	return cost{float64(cpu.Nanoseconds()) / n, float64(after.Mallocs-before.Mallocs) / n}
}

// alternate measures the sides in turn, round after round, so that a busy machine is busy
// for all of them. Each side deals with so many events per call.
func alternate(events int, sides ...func()) [][]cost {
	all := make([][]cost, len(sides))
	for range benchRounds {
		for i, side := range sides {
			side() // warm up
			passes := 0
			c := measured(events, func() {
				for began := time.Now(); time.Since(began) < benchDuration; passes++ {
					side()
				}
			})
			all[i] = append(all[i], cost{c.ns / float64(passes), c.allocs / float64(passes)})
		}
	}
	return all
}

func median(rounds []cost) cost {
	of := func(value func(cost) float64) float64 {
		sorted := slices.SortedFunc(slices.Values(rounds), func(a, b cost) int { return cmp.Compare(value(a), value(b)) })
		return value(sorted[len(sorted)/2])
	}
	return cost{of(func(c cost) float64 { return c.ns }), of(func(c cost) float64 { return c.allocs })}
}

// parsed is what our decoder has of a frame before it renders.
type parsed struct {
	typ      string
	commit   repo.Commit
	identity repo.Identity
	account  repo.Account
}

func (p *parsed) parse(message []byte) (err error) {
	f, err := splitFrame(message)
	if err != nil {
		return err
	}
	switch p.typ = f.Type; f.Type {
	case "#commit":
		err = p.commit.Parse(f.Body)
	case "#identity":
		p.identity, err = repo.ParseIdentity(f.Body)
	case "#account":
		p.account, err = repo.ParseAccount(f.Body)
	}
	return err
}

func (p *parsed) render(dst []byte) ([]byte, error) {
	switch p.typ {
	case "#commit":
		for i := range p.commit.Ops {
			op := &p.commit.Ops[i]
			if op.Fault != 0 {
				continue
			}
			var err error
			dst, _, err = event.AppendCommit(dst, p.commit.Repo, p.commit.Rev, &event.Op{
				Operation: op.Action.String(), Collection: op.Collection, RKey: op.RKey, CID: op.CID, Record: op.Record,
			})
			if err != nil {
				return dst, err
			}
		}
	case "#identity":
		m := &p.identity
		dst = event.AppendIdentity(dst, m.DID, m.Handle, m.Seq, m.Time)
	case "#account":
		m := &p.account
		dst = event.AppendAccount(dst, m.DID, m.Active, m.Seq, m.Status, m.Time)
	}
	return dst, nil
}

// longRun makes a run of at least so many events from those of a batch. It takes them
// again and again, but with other identifiers each time: a chunk's JSON is compressed as a
// whole, and plain repeats would vanish in that.
func longRun(x *batch, events int) *run {
	r := &run{}
	for again := 0; len(r.events) < events; again++ {
		json := x.json
		for i := range x.events {
			e := &x.events[i]
			if e.kind == event.KindSync {
				continue
			}
			start := len(r.json)
			r.json = append(r.json, json[:e.size]...)
			json = json[e.size:]
			payload := event.Payload(r.json[start:])
			if again > 0 {
				vary(payload, uint64(again*len(x.events)+i))
			}
			cursor := benchTime + 1009*event.Cursor(len(r.events))
			event.SetCursor(payload, int(e.didLen), cursor)
			r.events = append(r.events, placed{rendered: *e, cursor: cursor, jsonEnd: len(r.json)})
		}
	}
	return r
}

// vary changes what is random in an event: DIDs, CIDs, rkeys and revs, all in base32. What
// was the same within the event stays so, and what a kind has in common is kept: the first
// characters of a TID, which are its time, and the CID's prefix.
func vary(payload []byte, seed uint64) {
	const alphabet, shortest = "abcdefghijklmnopqrstuvwxyz234567", 13
	for i := 0; i < len(payload); {
		n := 0
		for i+n < len(payload) && strings.IndexByte(alphabet, payload[i+n]) >= 0 {
			n++
		}
		if word := payload[i : i+n]; n >= shortest && bytes.ContainsAny(word, "234567") {
			keep := 0
			if bytes.HasPrefix(word, []byte("baf")) {
				keep = len("bafyrei")
			} else if n == shortest {
				keep = 4
			}
			x := seed
			for j := keep; j < n; j++ {
				x = x*6364136223846793005 + 1442695040888963407
				word[j] = alphabet[(strings.IndexByte(alphabet, word[j])+int(x>>59))%len(alphabet)]
			}
		}
		i += n + 1
	}
}

// stored is one event as the reference's stores have it.
type stored struct {
	did, collection string
	json, zstd      []byte
}

func storedEvents(r *run, encoder *zstd.Encoder) (all []stored) {
	start := 0
	for i := range r.events {
		e := &r.events[i]
		p := event.Payload(r.json[start:e.jsonEnd])
		start = e.jsonEnd
		all = append(all, stored{
			did: string(p[event.DIDOffset:][:e.didLen]), collection: string(p[e.collectionOff:][:e.collectionLen]),
			json: p, zstd: encoder.EncodeAll(p, nil),
		})
	}
	return all
}

// settle waits until the process is idle: background work is then done, and counted.
func settle() {
	const pause, idle = 30 * time.Millisecond, 500 * time.Microsecond
	for before := cpuTime(); ; {
		time.Sleep(pause)
		now := cpuTime()
		if now-before < idle {
			return
		}
		before = now
	}
}

// commitOurs appends the run to a new log until commitEvents are there. Chunks are made
// ahead of the clock, some at a time.
func commitOurs(tb testing.TB, r *run, compressor *event.Compressor) (total cost) {
	dir := tb.TempDir()
	log, err := eventlog.Open(eventlog.Config{Dir: dir})
	check(tb, err)
	e := encoder{compressor: always(compressor)}
	step := r.events[len(r.events)-1].cursor - r.events[0].cursor + 1
	left := commitEvents / len(r.events)
	r.prev = log.Last()
	for all := left; left > 0; {
		var chunks []*eventlog.Chunk
		for range min(left, 50) {
			for i := range r.events {
				r.events[i].cursor += step
			}
			c, err := e.chunk(r)
			check(tb, err)
			chunks = append(chunks, c)
			r.prev = c.Last()
		}
		left -= len(chunks)
		c := measured(len(r.events)*len(chunks), func() {
			for i := range chunks {
				check(tb, log.Append(context.Background(), chunks[i:i+1], []byte("checkpoint")))
			}
			settle()
			if left == 0 {
				check(tb, log.Close())
			}
		})
		part := float64(len(chunks)) / float64(all)
		total = total.plus(cost{c.ns * part, c.allocs * part})
	}
	return total
}

// commitReference puts as many events into the two stores.
func commitReference(tb testing.TB, events []stored) cost {
	dir := tb.TempDir()
	s, err := openRefStore(dir)
	check(tb, err)
	n := commitEvents / len(events) * len(events)
	return measured(n, func() {
		for i := range n {
			e := &events[i%len(events)]
			check(tb, s.put(int64(benchTime)+int64(i), e.did, e.collection, e.json, e.zstd))
		}
		settle()
		check(tb, s.close())
	})
}

func check(tb testing.TB, err error) {
	if err != nil {
		tb.Helper()
		tb.Fatal(err)
	}
}

// bench is what the stages start with, ours and the reference's.
type bench struct {
	corpus   string
	messages [][]byte

	parsed     []parsed
	payloads   [][]byte
	compressor *event.Compressor
	batch      *batch
	long       *run // a chunk's worth

	refParsed   []refFrame
	refPayloads [][]byte
	refEncoder  *zstd.Encoder
	refStored   []stored
}

func newBench(t *testing.T) *bench {
	b := &bench{corpus: "real-50", messages: realMessages(t), batch: &batch{}}
	if b.messages == nil {
		b.corpus, b.messages = "simulated", simulatedMessages(t, 1000)
	}
	var err error
	b.compressor, err = event.NewCompressor(dictionaries.Current())
	check(t, err)
	b.refEncoder, err = newRefEncoder(dictionaries.Current())
	check(t, err)
	b.parsed, b.refParsed = make([]parsed, len(b.messages)), make([]refFrame, len(b.messages))
	for i, m := range b.messages {
		check(t, b.parsed[i].parse(m))
		b.refParsed[i], err = refParse(m)
		check(t, err)
		some, err := refRender(b.refParsed[i], int64(benchTime))
		check(t, err)
		b.refPayloads = append(b.refPayloads, some...)
	}
	d := decoder{in: &Ingester{metrics: newMetrics(nil)}}
	b.decode(t, &d)
	for _, p := range payloads(b.batch, benchTime) {
		b.payloads = append(b.payloads, bytes.Clone(p)) // the batch is used again
	}
	if len(b.refPayloads) != len(b.payloads) {
		t.Fatalf("%d events, and %d of the reference", len(b.payloads), len(b.refPayloads))
	}
	b.long = longRun(b.batch, chunkEvents)
	b.refStored = storedEvents(b.long, b.refEncoder)
	return b
}

// decode is frame to JSON event, as the decode workers do it.
func (b *bench) decode(t *testing.T, d *decoder) {
	b.batch.frames = b.batch.frames[:0]
	for _, m := range b.messages {
		f, err := splitFrame(m)
		check(t, err)
		b.batch.frames = append(b.batch.frames, f)
	}
	d.batch(b.batch)
}

// stage is a row of the table.
type stage struct {
	name      string
	bytes     float64 // per event, for MB/s
	ours      []cost  // by round
	reference []cost  // nil: it has no such stage
	part      bool    // of the stage below, not of the total
}

// stages measures all of them.
func (b *bench) stages(t *testing.T) []stage {
	d := decoder{in: &Ingester{metrics: newMetrics(nil)}}
	e := encoder{compressor: always(b.compressor)}
	var one parsed
	var dst []byte
	parse := alternate(len(b.payloads), func() {
		for _, m := range b.messages {
			check(t, one.parse(m))
		}
	}, func() {
		for _, m := range b.messages {
			_, err := refParse(m)
			check(t, err)
		}
	})
	render := alternate(len(b.payloads), func() {
		dst = dst[:0]
		for i := range b.parsed {
			var err error
			dst, err = b.parsed[i].render(dst)
			check(t, err)
		}
	}, func() {
		for i := range b.refParsed {
			_, err := refRender(b.refParsed[i], int64(benchTime))
			check(t, err)
		}
	})
	whole := alternate(len(b.payloads), func() { b.decode(t, &d) }, func() {
		for _, m := range b.messages {
			f, err := refParse(m)
			check(t, err)
			_, err = refRender(f, int64(benchTime))
			check(t, err)
		}
	})
	compress := alternate(len(b.payloads), func() {
		dst = dst[:0]
		for _, p := range b.payloads {
			dst = b.compressor.AppendBinary(dst, p)
		}
	}, func() {
		for _, p := range b.refPayloads {
			b.refEncoder.EncodeAll(p, nil)
		}
	})
	// Sealing is what making a chunk takes beyond compressing its events.
	chunk := alternate(len(b.long.events), func() {
		_, err := e.chunk(b.long)
		check(t, err)
	}, func() {
		dst = dst[:0]
		for i := range b.refStored {
			dst = b.compressor.AppendBinary(dst, b.refStored[i].json)
		}
	})
	var seal []cost
	for i := range chunk[0] {
		seal = append(seal, chunk[0][i].minus(chunk[1][i]))
	}
	var commit [2][]cost
	for range commitRounds {
		commit[0] = append(commit[0], commitOurs(t, b.long, b.compressor))
		commit[1] = append(commit[1], commitReference(t, b.refStored))
	}
	events := float64(len(b.payloads))
	frame, json := total(b.messages)/events, total(b.payloads)/events
	return []stage{
		{name: "frame, CAR, record", bytes: frame, ours: parse[0], reference: parse[1], part: true},
		{name: "JSON and envelope", bytes: frame, ours: render[0], reference: render[1], part: true},
		{name: "frame to JSON event, both", bytes: frame, ours: whole[0], reference: whole[1]},
		{name: "compression", bytes: json, ours: compress[0], reference: compress[1]},
		{name: "seal", bytes: json, ours: seal},
		{name: "commit", bytes: json, ours: commit[0], reference: commit[1]},
	}
}

// TestBenchIngest measures every stage of ingest beside the reference, in one process and
// in turn, and prints a table.
func TestBenchIngest(t *testing.T) {
	if os.Getenv("SLIPSTREAM_BENCH_INGEST") == "" {
		t.Skip("takes a minute and an idle machine: run `make bench-ingest`")
	}
	// A daemon has a heap. Without one the collector would run every 4 MB, and a third of
	// what the reference takes would be that.
	heap := make([]byte, benchHeap)
	defer runtime.KeepAlive(heap)

	b, w := newBench(t), os.Stdout
	packed := func(p []byte) []byte { return b.compressor.Append(nil, p) }
	refPacked := func(p []byte) []byte { return b.refEncoder.EncodeAll(p, nil) }
	fmt.Fprintf(w, "CPU time of the whole process (getrusage: all threads, garbage collector, cgo and Pebble's\n"+
		"background work included), not wall clock, per v1 event delivered; medians of %d rounds in\n"+
		"which ours and the reference take turns, %v each (commit: %d rounds of %d events, until idle).\n\n",
		benchRounds, benchDuration, commitRounds, commitEvents)
	fmt.Fprintf(w, "- %s, %s, GOMAXPROCS %d, zstd by %s, a heap of %d MiB\n",
		runtime.Version(), cpuModel(), runtime.GOMAXPROCS(0), event.Library, benchHeap>>20)
	events := float64(len(b.payloads))
	fmt.Fprintf(w, "- corpus %s: %d frames of %.0f bytes, %.0f events of %.0f bytes of JSON (reference: %.0f)\n",
		b.corpus, len(b.messages), total(b.messages)/float64(len(b.messages)), events, total(b.payloads)/events, total(b.refPayloads)/events)
	fmt.Fprintf(w, "- compressed/JSON %.3f, reference %.3f\n", share(b.payloads, packed), share(b.refPayloads, refPacked))
	fmt.Fprintf(w, "- chunks of %d events, their JSON stored in %.3f of its size\n\n",
		len(b.long.events), share([][]byte{b.long.json}, func(p []byte) []byte { return event.PackBlock(nil, p) }))

	rows := [][]string{{"stage", "ours ns/event", "allocs/event", "MB/s", "reference ns/event", "allocs/event", "MB/s", "ratio"}}
	add := func(name string, bytes float64, ours, reference cost) {
		row := []string{name, fmt.Sprintf("%.0f", ours.ns), fmt.Sprintf("%.2f", ours.allocs), fmt.Sprintf("%.0f", bytes/ours.ns*1e3), "", "", "", ""}
		if reference.ns > 0 {
			copy(row[4:], []string{fmt.Sprintf("%.0f", reference.ns), fmt.Sprintf("%.1f", reference.allocs),
				fmt.Sprintf("%.1f", bytes/reference.ns*1e3), fmt.Sprintf("%.1f", reference.ns/ours.ns)})
		}
		rows = append(rows, row)
	}
	stages := b.stages(t)
	var ourSum, refSum cost
	for _, s := range stages {
		ours, reference := median(s.ours), cost{}
		if s.reference != nil {
			reference = median(s.reference)
		}
		add(s.name, s.bytes, ours, reference)
		if !s.part {
			ourSum, refSum = ourSum.plus(ours), refSum.plus(reference)
		}
	}
	add("total of the last four", stages[0].bytes, ourSum, refSum)
	printTable(w, rows)
	fmt.Fprintf(w, "\nMB/s are of frames up to the JSON event and in the total, of JSON from there on.\n"+
		"The reference keeps no chunks and never syncs; ours are synced one by one.\n\n")
	printLevels(t, w, b.payloads)
}

// total returns the bytes of all.
func total(all [][]byte) (n float64) {
	for _, p := range all {
		n += float64(len(p))
	}
	return n
}

// share returns how large payloads come out of pack, as a share of what they were.
func share(payloads [][]byte, pack func([]byte) []byte) float64 {
	packed := 0.0
	for _, p := range payloads {
		packed += float64(len(pack(p)))
	}
	return packed / total(payloads)
}

// compressorOf appends src, compressed.
type compressorOf func(dst, src []byte) []byte

// libzstd makes a compressor of a level; nil in a build without cgo.
var libzstd func(dictionary []byte, level int) (compressorOf, error)

// printLevels measures every level there might be a reason for, with our dictionary and
// with the one that v1 clients have.
func printLevels(t *testing.T, w io.Writer, payloads [][]byte) {
	names := []string{"ours"}
	all := [][]byte{dictionaries.Current()}
	if b, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "data", "dictionaries", "legacy_subscribe.zdict")); err == nil {
		names, all = append(names, "v1's"), append(all, b)
	}
	head := []string{"encoder, level"}
	rows := [][]string{}
	var sides []func()
	var dst []byte
	for i, dictionary := range all {
		head = append(head, names[i]+": ns/event", "of JSON")
		row := 0
		add := func(name string, pack compressorOf) {
			if i == 0 {
				rows = append(rows, []string{name})
			}
			rows[row] = append(rows[row], "", fmt.Sprintf("%.3f", share(payloads, func(p []byte) []byte { return pack(nil, p) })))
			row++
			sides = append(sides, func() {
				for _, p := range payloads {
					dst = pack(dst[:0], p)
				}
			})
		}
		for level := 1; level <= 4 && libzstd != nil; level++ {
			pack, err := libzstd(dictionary, level)
			check(t, err)
			add(fmt.Sprintf("libzstd %d", level), pack)
		}
		for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault} {
			enc, err := newRefEncoder(dictionary, zstd.WithEncoderLevel(level))
			check(t, err)
			add("klauspost "+level.String(), func(dst, src []byte) []byte { return enc.EncodeAll(src, dst) })
		}
	}
	for i, rounds := range alternate(len(payloads), sides...) {
		rows[i%len(rows)][1+2*(i/len(rows))] = fmt.Sprintf("%.0f", median(rounds).ns)
	}
	printTable(w, append([][]string{head}, rows...))
	if libzstd == nil {
		fmt.Fprintln(w, "\nBuilt without cgo: no libzstd.")
	}
}

// printTable prints Markdown whose columns are also aligned: the first to the left, the
// others to the right. The first row is the head.
func printTable(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for i, row := range rows {
		for j, cell := range row {
			if j == 0 {
				fmt.Fprintf(w, "| %-*s |", widths[j], cell)
			} else {
				fmt.Fprintf(w, " %*s |", widths[j], cell)
			}
		}
		fmt.Fprintln(w)
		if i > 0 {
			continue
		}
		for j, width := range widths {
			if j == 0 {
				fmt.Fprintf(w, "|%s|", strings.Repeat("-", width+2))
			} else {
				fmt.Fprintf(w, "%s:|", strings.Repeat("-", width+1))
			}
		}
		fmt.Fprintln(w)
	}
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
