package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/urfave/cli/v3"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/ingest"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:         "inspect",
		Usage:        "show what a data dir holds, also beside a running daemon",
		Category:     categoryStorage,
		OnUsageError: usageError,
		Flags: bufferFlags(
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object, with all collections"},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return withBuffer(ctx, cmd, func(ctx context.Context, b *buffer) error {
				in, err := inspect(ctx, b)
				if err != nil {
					return err
				}
				w := cmd.Root().Writer
				if cmd.Bool("json") {
					e := json.NewEncoder(w)
					e.SetIndent("", "  ")
					return e.Encode(in)
				}
				return in.print(w, takesColours(w))
			})
		},
	}
}

// inspection is what a data dir holds. Its JSON is for scripts: names stay as they are.
type inspection struct {
	Store         string `json:"store"`
	Format        int    `json:"format"`
	DaemonRunning bool   `json:"daemon_running"`

	OldestCursor  event.Cursor `json:"oldest_cursor"` // 0: there is no event
	OldestTime    *time.Time   `json:"oldest_time"`   // null: there is no event
	NewestCursor  event.Cursor `json:"newest_cursor"`
	NewestTime    *time.Time   `json:"newest_time"`
	TrimmedCursor event.Cursor `json:"trimmed_cursor"` // the newest that retention has removed; 0: none
	ReplaySeconds float64      `json:"replay_seconds"` // the age of the oldest event
	SpanSeconds   float64      `json:"span_seconds"`   // from the oldest to the newest

	Events        int64       `json:"events"`
	Blocks        int         `json:"blocks"`
	FreshChunks   int         `json:"fresh_chunks"` // not yet merged into blocks
	Bytes         storedBytes `json:"bytes"`
	BytesPerEvent float64     `json:"bytes_per_event"` // of all that is stored

	Kinds        []share           `json:"kinds"`       // always all of them
	Collections  []share           `json:"collections"` // most events first
	Dictionaries []dictionaryShare `json:"dictionaries"`
	Upstream     *upstreamPosition `json:"upstream"` // null: none is stored
	Standbys     []firehose.Relay  `json:"standbys,omitempty"`
	Disk         diskUsage         `json:"disk"`
}

type storedBytes struct {
	JSON       int64 `json:"json"` // as it is sent
	JSONPacked int64 `json:"json_packed"`
	Zstd       int64 `json:"zstd"`
	Extra      int64 `json:"extra"`
	Index      int64 `json:"index"`
	Excerpts   int64 `json:"excerpts"` // rare events once more, beside the index
	Keys       int64 `json:"keys"`
	Stored     int64 `json:"stored"` // all but json
}

// share is what events of one kind or collection take.
type share struct {
	Name       string  `json:"name"`
	Events     int64   `json:"events"`
	Share      float64 `json:"share"` // of all events
	JSONBytes  int64   `json:"json_bytes"`
	ZstdBytes  int64   `json:"zstd_bytes"`
	ExtraBytes int64   `json:"extra_bytes"`
}

func (s *share) add(o *share) {
	s.Events += o.Events
	s.JSONBytes += o.JSONBytes
	s.ZstdBytes += o.ZstdBytes
	s.ExtraBytes += o.ExtraBytes
}

type dictionaryShare struct {
	ID     uint32 `json:"id"`
	Events int64  `json:"events"`
}

type upstreamPosition struct {
	URL  string       `json:"url"`
	Seq  firehose.Seq `json:"seq"`
	Time time.Time    `json:"time,omitzero"`
}

type diskUsage struct {
	UsedBytes  int64  `json:"used_bytes"` // by the store's directory
	FreeBytes  uint64 `json:"free_bytes"` // of the file system
	TotalBytes uint64 `json:"total_bytes"`
}

// inspect sums the indexes up. It reads no payload, so a day's events take seconds.
func inspect(ctx context.Context, b *buffer) (*inspection, error) {
	in := &inspection{
		Store: b.store, Format: b.Format(), DaemonRunning: b.running,
		TrimmedCursor: b.Trimmed(),
		Collections:   []share{}, Dictionaries: []dictionaryShare{},
	}
	kinds := [event.KindSync + 1]share{}
	collections := map[string]*share{}
	dictionaries := map[uint32]int64{}
	var local []share // of the collections of one chunk
	for c, err := range b.Chunks() {
		if err == nil && ctx.Err() != nil {
			err = errInterrupted
		}
		if err != nil {
			return nil, err
		}
		if in.Events == 0 {
			in.OldestCursor = c.First()
		}
		in.NewestCursor = c.Last()
		in.Events += int64(len(c.Entries))
		if c.Fresh {
			in.FreshChunks++
		} else {
			in.Blocks++
		}
		dictionaries[c.Dictionary] += int64(len(c.Entries))
		in.Bytes.JSON += int64(c.Size(eventlog.JSON))
		in.Bytes.JSONPacked += int64(c.JSONBytes)
		in.Bytes.Zstd += int64(c.Size(eventlog.Zstd))
		in.Bytes.Extra += int64(c.Size(eventlog.Extra))
		in.Bytes.Index += int64(c.IndexBytes)
		in.Bytes.Excerpts += int64(c.ExcerptBytes)
		in.Bytes.Keys += int64(c.OtherBytes)

		local = append(local[:0], make([]share, len(c.Collections))...)
		var end [3]uint32
		for i := range c.Entries {
			e := &c.Entries[i]
			of := share{Events: 1, JSONBytes: int64(e.End[eventlog.JSON] - end[eventlog.JSON]),
				ZstdBytes: int64(e.End[eventlog.Zstd] - end[eventlog.Zstd]), ExtraBytes: int64(e.End[eventlog.Extra] - end[eventlog.Extra])}
			end = e.End
			kinds[e.Kind].add(&of)
			if e.Collection != eventlog.NoCollection {
				local[e.Collection].add(&of)
			}
		}
		for i, name := range c.Collections {
			all := collections[name]
			if all == nil {
				all = &share{Name: name}
				collections[name] = all
			}
			all.add(&local[i])
		}
	}
	if in.Events > 0 {
		oldest, newest := in.OldestCursor.Time().UTC(), in.NewestCursor.Time().UTC()
		in.OldestTime, in.NewestTime = &oldest, &newest
		in.ReplaySeconds = max(0, time.Since(oldest).Seconds())
		in.SpanSeconds = newest.Sub(oldest).Seconds()
	}
	in.Bytes.Stored = in.Bytes.JSONPacked + in.Bytes.Zstd + in.Bytes.Extra + in.Bytes.Index + in.Bytes.Excerpts + in.Bytes.Keys
	in.BytesPerEvent = float64(in.Bytes.Stored) / float64(max(1, in.Events))
	for kind := event.KindCommit; kind <= event.KindSync; kind++ {
		kinds[kind].Name = kind.String()
		in.Kinds = append(in.Kinds, kinds[kind])
	}
	for _, s := range collections {
		in.Collections = append(in.Collections, *s)
	}
	slices.SortFunc(in.Collections, func(a, b share) int {
		return cmp.Or(cmp.Compare(b.Events, a.Events), strings.Compare(a.Name, b.Name))
	})
	for _, list := range [][]share{in.Kinds, in.Collections} {
		for i := range list {
			list[i].Share = float64(list[i].Events) / float64(max(1, in.Events))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(dictionaries)) {
		in.Dictionaries = append(in.Dictionaries, dictionaryShare{id, dictionaries[id]})
	}
	if stored := b.Checkpoint(); stored != nil {
		c, err := ingest.ParseCheckpoint(stored)
		if err != nil {
			return nil, err
		}
		in.Upstream = &upstreamPosition{URL: c.URL, Seq: c.Seq, Time: c.Time}
		for _, r := range c.Relays {
			if r.URL != c.URL {
				in.Standbys = append(in.Standbys, r)
			}
		}
	}
	var err error
	in.Disk, err = usageOf(b.store)
	return in, err
}

// usageOf sums up the files of a store, without a copy that is made of it.
func usageOf(store string) (diskUsage, error) {
	var usage diskUsage
	err := filepath.WalkDir(store, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone since its directory was read
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == checkpointName && path != store:
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			usage.UsedBytes += info.Size()
		}
		return err
	})
	if err != nil {
		return usage, fmt.Errorf("disk usage: %w", err)
	}
	disk, err := vfs.Default.GetDiskUsage(store)
	if err != nil {
		return usage, fmt.Errorf("disk usage: %w", err)
	}
	usage.FreeBytes, usage.TotalBytes = disk.AvailBytes, disk.TotalBytes
	return usage, nil
}

// shownCollections is how many the terminal shows: the rest of a day's are a thousandth of its
// events.
const shownCollections = 20

// print writes the inspection for people.
func (in *inspection) print(w io.Writer, colour bool) error {
	bold := func(s string) string {
		if colour {
			return "\x1b[1m" + s + "\x1b[0m"
		}
		return s
	}
	var out strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&out, "%s  %s\n", bold(fmt.Sprintf("%-12s", name)), fmt.Sprintf(format, args...))
	}
	of := "format " + strconv.Itoa(in.Format)
	if in.DaemonRunning {
		of += ", in use by a daemon"
	}
	line("store", "%s (%s)", in.Store, of)
	if in.Events == 0 {
		line("events", "none")
	} else {
		line("events", "%s, in %s and %s", number(in.Events), count(int64(in.Blocks), "block"), count(int64(in.FreshChunks), "fresh chunk"))
		line("oldest", "%s  cursor %d", in.OldestTime.Format(timeFormat), in.OldestCursor)
		line("newest", "%s  cursor %d", in.NewestTime.Format(timeFormat), in.NewestCursor)
		line("replay", "from %s ago to %s ago", ago(*in.OldestTime), ago(*in.NewestTime))
	}
	if in.Upstream != nil {
		line("upstream", "%s, seq %d", in.Upstream.URL, in.Upstream.Seq)
		for _, s := range in.Standbys {
			text := s.URL
			if s.Last != nil {
				text += fmt.Sprintf(", left at seq %d", s.Last.Seq)
			}
			if n := len(s.Samples); n > 0 {
				text += fmt.Sprintf(", %d samples, the newest at seq %d of %s", n, s.Samples[n-1].Seq, s.Samples[n-1].Time.Format(time.RFC3339))
			}
			line("standby", "%s", text)
		}
	}
	var dictionaries []string
	for _, d := range in.Dictionaries {
		dictionaries = append(dictionaries, fmt.Sprintf("%d (%s)", d.ID, count(d.Events, "event")))
	}
	if dictionaries != nil {
		line("dictionary", "%s", strings.Join(dictionaries, ", "))
	}
	line("disk", "%s in the directory; %s of %s free", bytesText(in.Disk.UsedBytes), bytesText(int64(in.Disk.FreeBytes)), bytesText(int64(in.Disk.TotalBytes)))
	if in.Events > 0 {
		per := func(n int64) string { return strconv.FormatFloat(float64(n)/float64(in.Events), 'f', 1, 64) }
		rows := [][]string{{"stored", "bytes", "per event"}}
		for _, r := range []struct {
			name  string
			bytes int64
		}{{"json", in.Bytes.JSONPacked}, {"zstd", in.Bytes.Zstd}, {"index", in.Bytes.Index}, {"excerpts", in.Bytes.Excerpts},
			{"extra", in.Bytes.Extra}, {"keys", in.Bytes.Keys}, {"all", in.Bytes.Stored}, {"json as sent", in.Bytes.JSON}} {
			rows = append(rows, []string{r.name, bytesText(r.bytes), per(r.bytes)})
		}
		table(&out, rows, bold)
		table(&out, shareRows("kind", in.Kinds), bold)
		shown := in.Collections
		if len(shown) > shownCollections {
			rest := share{Name: fmt.Sprintf("%d others", len(shown)-shownCollections)}
			for i := range shown[shownCollections:] {
				o := &shown[shownCollections+i]
				rest.add(o)
				rest.Share += o.Share
			}
			shown = append(slices.Clone(shown[:shownCollections]), rest)
		}
		table(&out, shareRows("collection", shown), bold)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func shareRows(what string, shares []share) [][]string {
	rows := [][]string{{what, "events", "share", "json", "zstd"}}
	for _, s := range shares {
		rows = append(rows, []string{printable(s.Name), strconv.FormatInt(s.Events, 10), fmt.Sprintf("%.2f %%", 100*s.Share),
			bytesText(s.JSONBytes), bytesText(s.ZstdBytes)})
	}
	return rows
}

// printable shortens a collection's name, which its author may have made 317 bytes long.
func printable(name string) string {
	if len(name) > 60 {
		return name[:57] + "..."
	}
	return name
}

// table writes rows below an empty line, the first as a heading: names to the left, figures
// to the right.
func table(out *strings.Builder, rows [][]string, bold func(string) string) {
	widths := make([]int, len(rows[0]))
	widths[0] = 12 // as wide as the names above
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	out.WriteByte('\n')
	for n, row := range rows {
		var text strings.Builder
		fmt.Fprintf(&text, "%-*s", widths[0], row[0])
		for i, cell := range row[1:] {
			fmt.Fprintf(&text, "  %*s", widths[i+1], cell)
		}
		if n == 0 {
			out.WriteString(bold(text.String()) + "\n")
		} else {
			out.WriteString(text.String() + "\n")
		}
	}
}

const timeFormat = "2006-01-02 15:04:05 UTC"

// count is a number of things: 1 block, 43.2 million events.
func count(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return number(n) + " " + what
}

func number(n int64) string {
	if n >= 1e6 {
		return fmt.Sprintf("%.1f million", float64(n)/1e6)
	}
	return strconv.FormatInt(n, 10)
}

// bytesText is a size in units of a thousand, as disks are sold.
func bytesText(n int64) string {
	f, unit := float64(n), "B"
	for _, larger := range []string{"kB", "MB", "GB", "TB"} {
		if f < 999.5 {
			break
		}
		f, unit = f/1000, larger
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.*f %s", digitsBehind(f), f, unit)
}

// digitsBehind makes three digits of a number, as far as they stand behind the point.
func digitsBehind(f float64) int {
	switch {
	case f < 9.995:
		return 2
	case f < 99.95:
		return 1
	}
	return 0
}

// ago is how long ago a moment is: 23h59m.
func ago(t time.Time) string { return durationText(time.Since(t)) }

func durationText(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
