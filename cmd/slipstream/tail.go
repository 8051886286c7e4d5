package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"slipstream/pkg/client"
)

// exitError is an error with an exit status.
type exitError struct {
	error
	code int
}

// ExitCode implements cli.ExitCoder.
func (e *exitError) ExitCode() int { return e.code }

// Unwrap returns what went wrong.
func (e *exitError) Unwrap() error { return e.error }

// The exit statuses of tail, as its help documents them.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
	exitTooOld  = 4
)

func usage(format string, args ...any) error {
	return &exitError{fmt.Errorf(format, args...), exitUsage}
}

const tailHelp = `Prints one event a line: short lines on a terminal, JSON as it came into a pipe or a file. URL is
a Slipstream or any other Jetstream, completed where it is short: localhost:6008, https://host, or
in full, with parameters, to which the options add.

Examples:

    slipstream tail                                           what the daemon on this machine carries
    slipstream tail --collection app.bsky.feed.post --since 2h
    slipstream tail --did alice.example.com localhost:6008    everything of one account
    slipstream tail --compress wss://jetstream.example | jq .commit.record.text
    slipstream tail --follow --state tail.cursor -o json >>events.ndjson
    slipstream tail --collection app.bsky.feed.post -t '{{.URI}} {{with .Record.text}}{{json .}}{{end}}'

A template (Go's text/template) sees .DID .Kind .Time .Cursor .URI, .Commit with .Operation
.Collection .RKey .Rev .CID, .Record with the record's own fields, .Identity.Handle,
.Account.Active and .Account.Status, and .JSON; it has the function json.

Exit status: 0 when --count is reached, when it is interrupted, or when nobody reads its output any
more; 1 when the connection cannot be made or breaks (without --follow), or the output cannot be
written; 2 for wrong usage; 3 when the server refuses; 4 when its buffer no longer holds the
cursor (v2, without --follow).`

func tailCommand() *cli.Command {
	const what, where, connection, output = "What to receive", "Where to begin", "Connection", "Output"
	return &cli.Command{
		Name:         "tail",
		Usage:        "print what a consumer receives, one event a line",
		UsageText:    "slipstream tail [options] [URL]",
		ArgsUsage:    "[URL]",
		Description:  tailHelp,
		Category:     categoryConsume,
		OnUsageError: func(_ context.Context, _ *cli.Command, err error, _ bool) error { return usage("%w", err) },
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "collection", Category: what, Usage: "`NSID` like app.bsky.feed.post, or prefix like app.bsky.*; repeatable, or joined with commas; identity and account events come as well: see --kind"},
			&cli.StringSliceFlag{Name: "did", Category: what, Usage: "`account`, by its DID or its handle; repeatable, or joined with commas"},
			&cli.StringSliceFlag{Name: "kind", Category: what, Usage: "`kind` of event: commit, identity, account or, with --v2, sync; repeatable, or joined with commas"},
			&cli.IntFlag{Name: "max-size", Category: what, Usage: "leave out events of more `bytes`", HideDefault: true},
			&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Category: what, Usage: "stop after so many `events`", HideDefault: true},

			&cli.StringFlag{Name: "cursor", Category: where, Usage: "`cursor` to begin at, inclusive; 0 or oldest: the server's oldest event (default: live)"},
			&cli.DurationFlag{Name: "since", Category: where, Usage: "begin so long `ago`, such as 2h or 90s", HideDefault: true},
			&cli.StringFlag{Name: "state", Category: where, Usage: "keep the cursor of what was printed in `FILE`, and begin behind it if there is one"},

			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Category: connection, Usage: "connect again when the connection breaks, and go on where it was"},
			&cli.BoolFlag{Name: "compress", Category: connection, Usage: "receive zstd, some third of the bytes; the dictionary is fetched from the server and cached"},
			&cli.StringSliceFlag{Name: "dictionary", Category: connection, Usage: "`FILE` with a zstd dictionary, for servers that name none; Bluesky's is cached when it was used once; repeatable", TakesFile: true},
			&cli.BoolFlag{Name: "v2", Category: connection, Usage: "speak the v2 wire, network.bsky.jetstream.subscribeEvents (default: what the URL's path says)"},
			&cli.StringFlag{Name: "plc-url", Category: connection, Value: "https://plc.directory", Sources: cli.EnvVars("SLIPSTREAM_PLC_URL"), Usage: "`URL` of the directory that confirms the handles of --did"},
			&cli.StringFlag{Name: "dns-server", Category: connection, Sources: cli.EnvVars("SLIPSTREAM_DNS_SERVER"), Usage: "`host:port` to resolve the handles of --did with (default: the system's)"},

			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Category: output, Value: "auto", Usage: "`form`: text, json, or auto for text on a terminal and json elsewhere"},
			&cli.StringFlag{Name: "template", Aliases: []string{"t"}, Category: output, Usage: "print this Go `template` for each event instead"},
			&cli.StringFlag{Name: "color", Category: output, Value: "auto", Usage: "`when`: always, never, or auto for on a terminal unless NO_COLOR is set"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Category: output, Usage: "no status line and no notes on stderr"},
		},
		Action: tailAction,
	}
}

func tailAction(ctx context.Context, cmd *cli.Command) error {
	p, err := newPrinter(cmd)
	if err != nil {
		return err
	}
	cfg, err := tailConfig(ctx, cmd)
	if err != nil {
		return err
	}
	note := func(format string, args ...any) {
		if !cmd.Bool("quiet") {
			p.note("slipstream tail: " + harmless(fmt.Sprintf(format, args...)))
		}
	}
	cfg.OnRetry = func(err error, wait time.Duration) { note("%v; again in %s", err, wait.Round(100*time.Millisecond)) }
	cfg.OnInfo = func(name, message string) { note("%s: %s", name, message) }
	c, err := client.New(cfg)
	if err != nil {
		return usage("%w", err)
	}
	err = tail(ctx, c, p, cmd.Int("count"))
	var refused *client.RefusedError
	var exit *exitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return exit
	case errors.Is(err, client.ErrNoDictionary):
		err = fmt.Errorf("%w; get it with \"slipstream dictionary fetch-legacy\", and name it once: --dictionary data/dictionaries/%d.zdict", err, client.LegacyDictionary)
		return &exitError{err, exitRefused}
	case errors.Is(err, client.ErrCursorTooOld):
		return &exitError{errors.New(harmless(err.Error())), exitTooOld}
	case errors.As(err, &refused):
		return &exitError{errors.New(harmless(err.Error())), exitRefused}
	}
	return &exitError{errors.New(harmless(err.Error())), exitFailed}
}

// tail prints events until ctx ends, count is reached (0: no limit) or something goes wrong.
func tail(ctx context.Context, c *client.Client, p *printer, count int) error {
	// A pipe whose reader has gone is an error of the write, which leaves time to save the cursor.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.start(c, cancel)
	err := printEvents(ctx, c, p, count)
	printed := p.stop()
	if saved := c.Flush(context.WithoutCancel(ctx)); err == nil {
		err = saved
	}
	if errors.Is(printed, syscall.EPIPE) {
		return nil // whoever read has had enough
	}
	return cmp.Or(printed, err)
}

func printEvents(ctx context.Context, c *client.Client, p *printer, count int) error {
	n := 0
	for e, err := range c.Events(ctx) {
		if err != nil {
			return err
		}
		if err := p.print(e); err != nil {
			return err
		}
		if n++; n == count {
			return nil
		}
	}
	return nil
}

// tailConfig reads and checks the flags. Its errors name the flag.
func tailConfig(ctx context.Context, cmd *cli.Command) (client.Config, error) {
	cfg := client.Config{
		URL:       cmd.Args().First(),
		Compress:  cmd.Bool("compress"),
		Once:      !cmd.Bool("follow"),
		UserAgent: "slipstream-tail/" + buildVersion(),
		// Who follows is told, and better served with what there is.
		FromOldest: cmd.Bool("follow"),
	}
	if cmd.Args().Len() > 1 {
		return cfg, usage("tail takes one URL, not %q as well", cmd.Args().Get(1))
	}
	if cmd.Bool("v2") {
		cfg.Wire = client.V2
	}
	if dir, err := os.UserCacheDir(); err == nil {
		cfg.CacheDir = filepath.Join(dir, "slipstream", "dictionaries")
	}
	for _, name := range cmd.StringSlice("collection") {
		cfg.Collections = append(cfg.Collections, strings.TrimSpace(name))
	}
	if _, err := collections(cfg.Collections); err != nil {
		return cfg, usage("--collection %w", err)
	}
	for _, kind := range cmd.StringSlice("kind") {
		cfg.Kinds = append(cfg.Kinds, client.Kind(strings.TrimSpace(kind)))
	}
	for _, flag := range []string{"max-size", "count"} {
		if cmd.Int(flag) < 0 {
			return cfg, usage("--%s %d: use a positive number", flag, cmd.Int(flag))
		}
	}
	cfg.MaxSize = cmd.Int("max-size")
	var err error
	if cfg.Cursor, err = beginning(cmd); err != nil {
		return cfg, err
	}
	if file := cmd.String("state"); file != "" {
		if dir, err := os.Stat(filepath.Dir(file)); err != nil || !dir.IsDir() {
			return cfg, usage("--state %s: there is no directory %s", file, filepath.Dir(file))
		}
		cfg.Store = client.FileCursor(file)
	}
	for _, file := range cmd.StringSlice("dictionary") {
		b, _, err := readDictionary(file)
		if err != nil {
			return cfg, usage("--dictionary %s: %w", file, err)
		}
		cfg.Dictionaries, cfg.Compress = append(cfg.Dictionaries, b), true
	}
	cfg.DIDs, err = accounts(ctx, cmd.StringSlice("did"), cmd.String("plc-url"), cmd.String("dns-server"))
	return cfg, err
}

// beginning reads --cursor and --since.
func beginning(cmd *cli.Command) (client.Cursor, error) {
	text, since := cmd.String("cursor"), cmd.Duration("since")
	switch {
	case text != "" && cmd.IsSet("since"):
		return 0, usage("--since %s: --cursor says where to begin already", since)
	case since < 0:
		return 0, usage("--since %s: use a time that has passed, such as 2h", since)
	case since > 0:
		return client.At(time.Now().Add(-since)), nil
	case text == "":
		return 0, nil
	case text == "oldest" || text == "0":
		return client.Oldest, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, usage("--cursor %q: use that of an event (time_us, or seq on the v2 wire), or oldest", text)
	}
	return client.Cursor(n), nil
}
