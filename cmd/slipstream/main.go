// Command slipstream is the daemon and its tools.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v3"

	"slipstream/pkg/event"
)

// version is set by the Makefile.
var version string

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

func main() {
	// The first signal asks for an orderly end; a second one is not caught.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := command().Run(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "slipstream:", err)
		os.Exit(1)
	}
}

func command() *cli.Command {
	return &cli.Command{
		Name:  "slipstream",
		Usage: "the AT Protocol firehose as JSON, for any number of websocket consumers",
		Commands: []*cli.Command{
			serveCommand(),
			tailCommand(),
			inspectCommand(),
			verifyCommand(),
			dictionaryCommand(),
			healthCommand(),
			{
				Name:  "version",
				Usage: "print the version",
				Action: func(_ context.Context, cmd *cli.Command) error {
					_, err := fmt.Fprintf(cmd.Root().Writer, "slipstream %s (zstd by %s)\n", buildVersion(), event.Library)
					return err
				},
			},
		},
		// One line that names what is wrong, instead of a page of help.
		OnUsageError: usageError,
		// Errors are printed by main, once.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
	}
}

func usageError(_ context.Context, _ *cli.Command, err error, _ bool) error { return err }
