// Command loadgen measures a running daemon from outside: what a swarm of consumers gets
// of it, how late, and what the process spends on it. The scripts that print the README's
// tables are made of it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"
)

// benchConfig is what those commands can be told that start a relay and a daemon.
type benchConfig struct {
	bin     string // where slipstream and simrelay are
	port    int    // of the relay; the daemon has the next two
	seconds int    // measured time of each scenario; 0: default
	only    string // regular expression: which scenarios
	smoke   bool
	flags   []string // of the daemon
}

// replayConfig is what the command of that name can be told.
type replayConfig struct {
	benchConfig
	events      int // in the buffer, at least
	liveSeconds int // how long the other buffer is filled; 0: default
	repeat      int // how often each replay is measured
}

// vpsConfig is what the command of that name can be told.
type vpsConfig struct {
	benchConfig
	held    string // what the daemon is held to, for the table
	upgrade string // shell command that puts another build in the daemon's place; "": none
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().Run(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
}

// daemonFlags are those that scenarios need besides addresses, relay and data dir.
var daemonFlags []string

func command() *cli.Command {
	return &cli.Command{
		Name:  "loadgen",
		Usage: "measure a daemon from outside",
		Commands: []*cli.Command{
			{
				Name:  "consume",
				Usage: "connect consumers that count what they get; with --relay, say how late it comes",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "url", Value: "ws://127.0.0.1:6008/subscribe", Usage: "`URL` to subscribe to"},
					&cli.IntFlag{Name: "consumers", Value: 1, Usage: "how many `consumers`"},
					&cli.StringFlag{Name: "relay", Usage: "the daemon's relay, `URL`: events are timed against their arrival from there, on the first consumer, which must not be a compressed one"},
					&cli.DurationFlag{Name: "duration", Usage: "stop after so long, a Go `duration`; 0: at an interrupt (default: 0)", HideDefault: true},
					&cli.Int64Flag{Name: "again", Usage: "connect again after so many `events`; 0: never (default: 0)", HideDefault: true},
				},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					if n := cmd.Int("consumers"); n < 1 {
						return fmt.Errorf("--consumers %d: use at least 1", n)
					}
					if d := cmd.Duration("duration"); d > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, d)
						defer cancel()
					}
					return consume(ctx, cmd.Root().Writer, cmd.String("url"), cmd.String("relay"), cmd.Int("consumers"), cmd.Int64("again"))
				},
			},
			{
				Name:  "watch",
				Usage: "wait for a daemon to take in events and print what it spent on them, as a row of a markdown table",
				Flags: []cli.Flag{
					&cli.IntFlag{Name: "pid", Required: true, Usage: "the daemon's process `id`"},
					&cli.StringFlag{Name: "metrics", Value: "http://127.0.0.1:6009/metrics", Usage: "`URL` of its metrics"},
					&cli.Int64Flag{Name: "seq", Usage: "until it has sequenced the relay's frame of this `number`"},
					&cli.DurationFlag{Name: "duration", Usage: "until so long after its start, a Go `duration`"},
					&cli.StringFlag{Name: "label", Usage: "`text` of the first column"},
					&cli.BoolFlag{Name: "heading", Usage: "print the heading first"},
				},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					if (cmd.Int64("seq") > 0) == (cmd.Duration("duration") > 0) {
						return errors.New("watch: give either --seq or --duration")
					}
					if cmd.Bool("heading") {
						fmt.Fprintln(cmd.Root().Writer, watchHeading)
					}
					w := watch{pid: cmd.Int("pid"), metrics: cmd.String("metrics"), seq: cmd.Int64("seq"), began: time.Now()}
					w.until = w.began.Add(cmd.Duration("duration"))
					row, err := w.run(ctx)
					if err != nil {
						return err
					}
					fmt.Fprintf(cmd.Root().Writer, "| %s %s\n", cmd.String("label"), row)
					return nil
				},
			},
			{
				Name:  "fanout",
				Usage: "start a relay and a daemon, measure what consumers of all kinds cost, and print a markdown table",
				Flags: benchFlags,
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return fanout(ctx, cmd.Root().Writer, benchConfigOf(cmd))
				},
			},
			{
				Name:  "replay",
				Usage: "start a relay and a daemon, measure what it takes to replay a buffer, and print markdown tables",
				Flags: append([]cli.Flag{
					&cli.IntFlag{Name: "events", Usage: "at least so many `events` are replayed (default: 3000000; with --smoke 30000)", HideDefault: true},
					&cli.IntFlag{Name: "live-seconds", Usage: "how long a `time` the other buffer is filled, live (default: 120; with --smoke 5)", HideDefault: true},
					&cli.IntFlag{Name: "repeat", Usage: "how many `times` each replay is measured (default: 3; with --smoke once)", HideDefault: true},
				}, benchFlags...),
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return replay(ctx, cmd.Root().Writer, replayConfig{
						benchConfig: benchConfigOf(cmd), events: cmd.Int("events"), liveSeconds: cmd.Int("live-seconds"), repeat: cmd.Int("repeat"),
					})
				},
			},
			{
				Name:  "vps",
				Usage: "start a relay and a daemon, measure it with 500 consumers of all kinds, restart it under them, and print a markdown table",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "held", Value: "nothing", Usage: "what the daemon is held to, a `text` for the table"},
					&cli.StringFlag{Name: "upgrade", Usage: "shell `command` that puts another build in the place of the daemon's program"},
				}, benchFlags...),
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return vps(ctx, cmd.Root().Writer, vpsConfig{benchConfig: benchConfigOf(cmd), held: cmd.String("held"), upgrade: cmd.String("upgrade")})
				},
			},
		},
	}
}

// benchFlags are those of commands that start a relay and a daemon.
var benchFlags = []cli.Flag{
	&cli.StringFlag{Name: "bin", Required: true, Usage: "`directory` of the programs slipstream and simrelay"},
	&cli.StringFlag{Name: "only", Usage: "scenarios whose name matches a regular `expression`"},
	&cli.IntFlag{Name: "seconds", Usage: "measured `time` of each scenario that has no end of its own (default: 20; with --smoke half a second)", HideDefault: true},
	&cli.BoolFlag{Name: "smoke", Usage: "few consumers, for a short time: whether it works, not how fast"},
	&cli.IntFlag{Name: "port", Value: 16120, Usage: "`port` of the relay; the daemon takes the next two"},
	&cli.StringSliceFlag{Name: "daemon-flag", Usage: "a `flag` for the daemon, such as --linger=50ms; repeatable"},
}

func benchConfigOf(cmd *cli.Command) benchConfig {
	return benchConfig{
		bin: cmd.String("bin"), port: cmd.Int("port"), seconds: cmd.Int("seconds"), only: cmd.String("only"),
		smoke: cmd.Bool("smoke"), flags: append(daemonFlags, cmd.StringSlice("daemon-flag")...),
	}
}
