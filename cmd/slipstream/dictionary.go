package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/urfave/cli/v3"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/train"
)

func dictionaryCommand() *cli.Command {
	return &cli.Command{
		Name:         "dictionary",
		Usage:        "make zstd dictionaries, and get the one of Jetstream v1",
		Category:     categoryStorage,
		OnUsageError: usageError,
		Commands: []*cli.Command{
			trainCommand(),
			fetchLegacyCommand(),
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return fmt.Errorf("dictionary has no subcommand %q, only those that slipstream dictionary --help lists", cmd.Args().First())
			}
			return cli.ShowSubcommandHelp(cmd)
		},
	}
}

func trainCommand() *cli.Command {
	return &cli.Command{
		Name:  "train",
		Usage: "train a dictionary on events, and say what it makes of events that it has not seen",
		Description: "A file of events has one v1 event a line, as Slipstream writes them (- is the standard input).\n" +
			"A .car is an exported repo, whose records are taken as if many authors had just written them. A\n" +
			".bin has captured firehose messages, as simrelay --frames takes them. Each may be .zst, too.\n\n" +
			"Texts that few authors share do not get into a dictionary, nor does a DID, a CID or a link.",
		OnUsageError:              usageError,
		DisableSliceFlagSeparator: true,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "from", Usage: "data dir or `file` of events to learn from; may be given again"},
			&cli.StringSliceFlag{Name: "test", Usage: "data dir or `file` of events to measure with, not to learn from; may be given again"},
			&cli.StringSliceFlag{Name: "dictionary", Usage: "dictionary `file` to compare with, beside the one in use; may be given again"},
			&cli.StringFlag{Name: "out", Usage: "`file` to write"},
			&cli.Uint32Flag{Name: "id", Usage: "the dictionary's `number`", DefaultText: "the date, YYYYMMDD"},
			&cli.BoolFlag{Name: "force", Usage: "overwrite --out"},
			&cli.BoolFlag{Name: "compare", Usage: "try other ways to train as well, which takes minutes"},
			&cli.StringFlag{Name: "metrics-listen-addr", Value: "127.0.0.1:6009", Sources: env("METRICS_LISTEN_ADDR", "METRICS_LISTEN_ADDR"),
				Usage: "`address` where a daemon that runs on the data dir is asked for a copy of its store"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return fmt.Errorf("train takes flags only, not %q", cmd.Args().First())
			}
			cfg := trainConfig{
				from: cmd.StringSlice("from"), test: cmd.StringSlice("test"), others: cmd.StringSlice("dictionary"),
				out: cmd.String("out"), id: cmd.Uint32("id"), force: cmd.Bool("force"), compare: cmd.Bool("compare"),
				addr: cmd.String("metrics-listen-addr"), stdin: cmd.Root().Reader, w: cmd.Root().Writer, bar: io.Discard,
			}
			cfg.colour = takesColours(cfg.w)
			if w := cmd.Root().ErrWriter; isTerminal(w) {
				cfg.bar = w
			}
			if !cmd.IsSet("id") {
				today, _ := strconv.ParseUint(time.Now().UTC().Format("20060102"), 10, 32)
				cfg.id = uint32(today)
			}
			return cfg.run(ctx)
		},
	}
}

type trainConfig struct {
	from, test, others []string
	out                string
	id                 uint32
	force, compare     bool
	addr               string

	stdin  io.Reader
	w      io.Writer
	bar    io.Writer // where progress is shown
	colour bool
}

// RFC 8878 section 5 reserves the others.
const leastID, mostID = 1 << 15, 1<<31 - 1

func (c *trainConfig) validate() error {
	switch _, err := os.Lstat(c.out); {
	case len(c.from) == 0:
		return errors.New("--from is missing: name a data dir, or a file of events, to learn from")
	case c.out == "":
		return errors.New("--out is missing: name the file to write")
	case c.id < leastID || c.id > mostID:
		return fmt.Errorf("--id %d: it must be from %d to %d, as a date is", c.id, leastID, mostID)
	case err == nil && !c.force:
		return fmt.Errorf("--out %s: the file exists, and a dictionary that was shipped never changes: name another, or give --force", c.out)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("--out %w", err)
	}
	if dir := filepath.Dir(c.out); dir != "." {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return fmt.Errorf("--out %s: there is no directory %s", c.out, dir)
		}
	}
	return train.Available()
}

// named is a dictionary beside the one that is trained.
type named struct {
	name       string
	dictionary []byte
}

func (c *trainConfig) run(ctx context.Context) error {
	if err := c.validate(); err != nil {
		return err
	}
	others := []named{{"in use", dictionaries.Current()}}
	for _, file := range c.others {
		b, err := os.ReadFile(file)
		if err == nil {
			_, err = event.NewCompressor(b)
		}
		if err != nil {
			return fmt.Errorf("--dictionary %s: %w", file, reason(err))
		}
		others = append(others, named{strings.TrimSuffix(filepath.Base(file), ".zdict"), b})
	}
	var sources, tests []*train.Source
	for _, path := range c.from {
		s, err := c.load(ctx, "from", path)
		if err != nil {
			return err
		}
		sources = append(sources, s)
	}
	for _, path := range c.test {
		s, err := c.load(ctx, "test", path)
		if err != nil {
			return err
		}
		tests = append(tests, s)
	}
	trainer, err := train.New(sources)
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	best, results, err := c.choose(ctx, trainer, sources)
	if err != nil {
		return err
	}
	d, err := trainer.Train(c.id, best)
	if err != nil {
		return err
	}
	if err := c.report(trainer, sources, tests, results, named{"new", d}, others); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if c.force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(c.out, flags, 0o644)
	if err != nil {
		return fmt.Errorf("--out %w", err)
	}
	_, err = f.Write(d)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("--out %w", err)
	}
	_, err = fmt.Fprintf(c.w, "\nwritten %s: %d bytes, id %d, from %s; libzstd and klauspost decode what it makes\n",
		c.out, len(d), c.id, plural(int64(trainer.Events()), "event"))
	return err
}

// reason is an error without the name of the file, which has been said.
func reason(err error) error {
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// load reads what a flag names.
func (c *trainConfig) load(ctx context.Context, flag, path string) (*train.Source, error) {
	s := &train.Source{Name: path}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		s.Name = filepath.Base(path)
		return s, lookInto(ctx, flag, path, c.addr, func(ctx context.Context, b *buffer) error { return addStore(ctx, s, b) })
	}
	err := func() error {
		if path == "-" {
			return s.AddJSON(c.stdin)
		}
		f, err := os.Open(path)
		if err != nil {
			return reason(err)
		}
		defer f.Close()
		var r io.Reader = f
		s.Name = strings.TrimSuffix(filepath.Base(path), ".zst")
		if s.Name != filepath.Base(path) {
			d, err := zstd.NewReader(f)
			if err != nil {
				return err
			}
			defer d.Close()
			r = d
		}
		ext := filepath.Ext(s.Name)
		if ext != ".car" && ext != ".bin" {
			return s.AddJSON(r)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return reason(err)
		}
		if ext == ".car" {
			return s.AddCAR(b)
		}
		return s.AddFrames(b)
	}()
	if err == nil && len(s.Events()) == 0 {
		err = errors.New("there is no event in it")
	}
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w", flag, path, err)
	}
	return s, nil
}

// addStore adds the events of a store, which it reads as verify does.
func addStore(ctx context.Context, s *train.Source, b *buffer) error {
	return b.Verify(func(c *eventlog.Chunk, json, _, _ []byte) error {
		for i := range c.Entries {
			if ctx.Err() != nil {
				return errInterrupted
			}
			frame := json[c.Start(i, eventlog.JSON):c.Entries[i].End[eventlog.JSON]]
			if len(frame) == 0 {
				continue // a sync event
			}
			if err := s.Add(event.Payload(frame)); err != nil {
				return err
			}
		}
		return nil
	}, func(float64) {})
}

// choose tries all parameters, says what each made of the parts that were held back, and returns
// the best.
func (c *trainConfig) choose(ctx context.Context, t *train.Trainer, sources []*train.Source) (best train.Params, results train.Result, err error) {
	rows := [][]string{{"trained", "size", "whole from", "v1", "v2"}}
	for _, s := range sources {
		rows[0] = append(rows[0], s.Name)
	}
	add := func(name string, p train.Params, whole string, r train.Result) {
		all := r.All()
		row := []string{name, strconv.Itoa(p.Size), whole, ratio(all.Live(0)), ratio(all.Live(1))}
		for _, tally := range r {
			row = append(row, ratio(tally.Live(0)))
		}
		rows = append(rows, row)
	}
	for i, p := range train.Choices {
		if ctx.Err() != nil {
			return best, nil, errInterrupted
		}
		fmt.Fprintf(c.bar, "\r\x1b[Ktraining: choice %d of %d", i+1, len(train.Choices))
		r, err := t.Try(p)
		if err != nil {
			return best, nil, err
		}
		add("forms", p, fmt.Sprintf("%.1f %%", 100*p.Whole), r)
		if results == nil || r.Score() < results.Score() {
			best, results = p, r
		}
	}
	if c.compare {
		for _, b := range train.Builders {
			if ctx.Err() != nil {
				return best, nil, errInterrupted
			}
			fmt.Fprintf(c.bar, "\r\x1b[Ktraining: %s", b.Name)
			r, err := t.TryBuilder(b, best.Size)
			if err != nil {
				fmt.Fprintf(c.w, "%s: not compared: %v\n", b.Name, err)
				continue
			}
			add(b.Name, best, "", r)
		}
	}
	fmt.Fprint(c.bar, "\r\x1b[K")
	c.table("Each author's events compressed with a dictionary of the others', as a share of their JSON,\n"+
		"in the proportions of the live network; v1 for each source alone, too:", rows)
	_, err = fmt.Fprintf(c.w, "\nchosen: %d bytes, whole from %.1f %%\n", best.Size, 100*best.Whole)
	return best, results, err
}

func ratio(r float64) string { return strconv.FormatFloat(r, 'f', 4, 64) }

// report says what dictionaries make of events that the new one has not learnt from.
func (c *trainConfig) report(t *train.Trainer, sources, tests []*train.Source, results train.Result, d named, others []named) error {
	heading := []string{"", "events", "new v1", "v2"}
	columns := []train.Result{results}
	for _, o := range others {
		r, err := t.Measure(o.dictionary)
		if err != nil {
			return err
		}
		columns = append(columns, r)
		heading = append(heading, o.name+" v1", "v2")
	}
	for s, source := range sources {
		var tallies []train.Tally
		for _, r := range columns {
			tallies = append(tallies, r[s])
		}
		c.table(fmt.Sprintf("%s, with a dictionary of the others':", source.Name), tallyRows(heading, tallies))
	}
	for _, test := range tests {
		var tallies []train.Tally
		for _, o := range append([]named{d}, others...) {
			compressor, err := event.NewCompressor(o.dictionary)
			if err != nil {
				return err
			}
			tally := train.Tally{}
			tally.Measure(compressor, test.Events())
			tallies = append(tallies, tally)
		}
		c.table(fmt.Sprintf("%s, not learnt from:", test.Name), tallyRows(heading, tallies))
	}
	return nil
}

// shownNames is how many names of events a table has.
const shownNames = 12

// tallyRows are those of a table: what each of some dictionaries makes of the same events.
func tallyRows(heading []string, tallies []train.Tally) [][]string {
	first := tallies[0]
	names := slices.SortedFunc(maps.Keys(first), func(a, b string) int {
		return cmp.Or(first[b].Events-first[a].Events, strings.Compare(a, b))
	})
	rows := [][]string{heading}
	add := func(name string, events int, ratios func(t train.Tally, wire int) float64) {
		row := []string{printable(name), strconv.Itoa(events)}
		for _, t := range tallies {
			row = append(row, ratio(ratios(t, 0)), ratio(ratios(t, 1)))
		}
		rows = append(rows, row)
	}
	all := 0
	for i, name := range names {
		all += first[name].Events
		if i < shownNames {
			add(name, first[name].Events, func(t train.Tally, wire int) float64 { return train.Tally{name: t[name]}.Ratio(wire) })
		}
	}
	if len(names) > shownNames {
		rest := func(t train.Tally) train.Tally {
			others := train.Tally{}
			for _, name := range names[shownNames:] {
				others[name] = t[name]
			}
			return others
		}
		events := 0
		for _, s := range rest(first) {
			events += s.Events
		}
		add(fmt.Sprintf("%d others", len(names)-shownNames), events, func(t train.Tally, wire int) float64 { return rest(t).Ratio(wire) })
	}
	add("all, as they are", all, train.Tally.Ratio)
	add("all, as on the network", all, train.Tally.Live)
	return rows
}

func (c *trainConfig) table(title string, rows [][]string) {
	var out strings.Builder
	table(&out, rows, func(s string) string {
		if c.colour {
			return "\x1b[1m" + s + "\x1b[0m"
		}
		return s
	})
	fmt.Fprintf(c.w, "\n%s\n%s", title, strings.TrimPrefix(out.String(), "\n"))
}
