// Command simrelay serves a simulated relay (package simrelay): for the demonstration, for
// benchmarks, for trying things out. It is a program of its own, because what it takes to
// make and sign repositories has no place in the daemon.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/urfave/cli/v3"

	"slipstream/pkg/simrelay"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := command().Run(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "simrelay:", err)
		os.Exit(1)
	}
}

func command() *cli.Command {
	env := func(name string) cli.ValueSourceChain { return cli.EnvVars("SLIPSTREAM_SIMULATE_" + name) }
	faults := make([]string, len(simrelay.AllFaults))
	for i, f := range simrelay.AllFaults {
		faults[i] = string(f)
	}
	return &cli.Command{
		Name:  "simrelay",
		Usage: "serve a simulated relay: made-up accounts, real repositories, signed commits",
		Description: "The same seed gives the same stream; with --fixed-clock, byte for byte. Without --loop every\n" +
			"frame changes a repository and verifies: some 10,000 frames per second. With --loop so many\n" +
			"frames are made first and then sent over and over, each with new numbers, names, times and\n" +
			"references; their signatures and proofs then no longer verify. That is fast enough to measure\n" +
			"with: 420,000 frames (720 MB) per second to one reader that discards them, on two cores of a\n" +
			"virtual machine, for 2.1 µs of CPU each; 256,000 of 4 KB with --records 1000.",
		// One line that names what is wrong, instead of a page of help; printed by main, once.
		OnUsageError:   func(_ context.Context, _ *cli.Command, err error, _ bool) error { return err },
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen-addr", Value: "127.0.0.1:6010", Sources: env("LISTEN_ADDR"), Usage: "`address` to serve on"},
			&cli.Uint64Flag{Name: "seed", Value: 1, Sources: env("SEED"), Usage: "`number` that the stream is made from"},
			&cli.IntFlag{Name: "accounts", Value: simrelay.DefaultAccounts, Sources: env("ACCOUNTS"), Usage: "how many `accounts` there are"},
			&cli.IntFlag{Name: "records", Sources: env("RECORDS"), Usage: "`records` in each repository at the start; more make larger proofs"},
			&cli.FloatFlag{Name: "rate", Value: 50, Sources: env("RATE"), Usage: "`frames` per second; 0: as fast as the fastest reader reads"},
			&cli.Int64Flag{Name: "total", Sources: env("TOTAL"), Usage: "stop after so many `frames`, but stay connected; 0: endless"},
			&cli.IntFlag{Name: "loop", Sources: env("LOOP"), Usage: "cycle over so many `frames` made in advance, for which proofs no longer verify; 0: make each one"},
			&cli.Int64Flag{Name: "first-seq", Value: simrelay.DefaultFirstSeq, Sources: env("FIRST_SEQ"), Usage: "`seq` of the first frame"},
			&cli.IntFlag{Name: "history", Value: simrelay.DefaultHistory, Sources: env("HISTORY"), Usage: "`frames` kept for cursors of the past"},
			&cli.BoolFlag{Name: "fixed-clock", Sources: env("FIXED_CLOCK"), Usage: "start at a fixed time in the stream, not now: the same bytes every time"},
			&cli.BoolFlag{Name: "silent", Sources: env("SILENT"), Usage: "announce neither a future nor an outdated cursor"},
			&cli.FloatFlag{Name: "fault-rate", Sources: env("FAULT_RATE"), Usage: "`share` of frames with a fault, 0 to 1"},
			&cli.StringFlag{Name: "faults", Sources: env("FAULTS"), Usage: "comma-separated `kinds` of fault: " + strings.Join(faults, ", ") + " (default: all)"},
			&cli.Int64Flag{Name: "cut-after", Sources: env("CUT_AFTER"), Usage: "end each connection after so many `messages`; 0: never"},
			&cli.Int64Flag{Name: "stall-after", Sources: env("STALL_AFTER"), Usage: "stall each connection once, after so many `messages`; 0: never"},
			&cli.DurationFlag{Name: "stall-for", Value: 10 * time.Second, Sources: env("STALL_FOR"), Usage: "how long a stall lasts, a Go `duration`"},
			&cli.StringFlag{Name: "frames", Sources: env("FRAMES"), Usage: "serve the captured frames in `file` instead: for each its length, 4 bytes little-endian, and the frame; .zst is decompressed"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return fmt.Errorf("simrelay takes flags only, not %q", cmd.Args().First())
			}
			return simulate(ctx, cmd)
		},
	}
}

func simulate(ctx context.Context, cmd *cli.Command) error {
	cfg := simrelay.Config{
		Seed: cmd.Uint64("seed"), Accounts: cmd.Int("accounts"), Records: cmd.Int("records"), Rate: cmd.Float("rate"),
		Total: cmd.Int64("total"), Loop: cmd.Int("loop"), FirstSeq: cmd.Int64("first-seq"), History: cmd.Int("history"),
		Silent: cmd.Bool("silent"), WallClock: !cmd.Bool("fixed-clock"),
		Faults: simrelay.Faults{
			Rate: cmd.Float("fault-rate"), CutAfter: cmd.Int64("cut-after"),
			StallAfter: cmd.Int64("stall-after"), StallFor: cmd.Duration("stall-for"),
		},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if kinds := cmd.String("faults"); kinds != "" {
		for kind := range strings.SplitSeq(kinds, ",") {
			cfg.Faults.Kinds = append(cfg.Faults.Kinds, simrelay.Fault(strings.TrimSpace(kind)))
		}
	}
	if file := cmd.String("frames"); file != "" {
		frames, err := readFrames(file)
		if err != nil {
			return fmt.Errorf("--frames %s: %w", file, err)
		}
		cfg.Frames = frames
	}
	relay, err := simrelay.New(cfg)
	if bad := (*simrelay.ConfigError)(nil); errors.As(err, &bad) {
		return fmt.Errorf("--%w", err)
	}
	if err != nil {
		return fmt.Errorf("make the stream: %w", err)
	}
	listener, err := net.Listen("tcp", cmd.String("listen-addr"))
	if err != nil {
		return fmt.Errorf("--listen-addr: %w", err)
	}
	fmt.Fprintf(cmd.Root().Writer, "simulated relay at ws://%s; point the daemon at it: slipstream serve --upstream-url ws://%[1]s --upstream-cursor 0\n", listener.Addr())
	server := &http.Server{Handler: relay.Handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	err = relay.Run(ctx)
	server.Close()
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// readFrames reads a file of captured frames.
func readFrames(file string) ([][]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(file) == ".zst" {
		dec, err := zstd.NewReader(nil)
		if err != nil {
			return nil, err
		}
		defer dec.Close()
		if b, err = dec.DecodeAll(b, nil); err != nil {
			return nil, err
		}
	}
	var frames [][]byte
	for len(b) > 0 {
		if len(b) < 4 || len(b)-4 < int(binary.LittleEndian.Uint32(b)) {
			return nil, errors.New("the file ends in the middle of a frame")
		}
		n := binary.LittleEndian.Uint32(b)
		frames, b = append(frames, b[4:4+n]), b[4+n:]
	}
	return frames, nil
}
