// Command slipstream is the daemon and its tools.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	docs "github.com/urfave/cli-docs/v3"
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
		code := 1
		if coder := cli.ExitCoder(nil); errors.As(err, &coder) {
			code = coder.ExitCode()
		}
		os.Exit(code)
	}
}

// What the commands are for, in the order of the help.
const (
	categoryDaemon  = "Daemon"
	categoryConsume = "Events"
	categoryStorage = "Storage"
	categoryProgram = "This program"
)

const help = `Slipstream subscribes to a relay of the AT Protocol and serves what happens as JSON, over websockets,
to any number of consumers: it speaks Jetstream.

    slipstream serve                                     the daemon, on the live network
    slipstream tail --collection app.bsky.feed.post      what it carries, in another terminal
    slipstream help serve                                the options of a command

Options of serve are environment variables as well: --data-dir is SLIPSTREAM_DATA_DIR.`

func command() *cli.Command {
	return &cli.Command{
		Name:                  "slipstream",
		Usage:                 "the AT Protocol firehose as JSON, for any number of websocket consumers",
		UsageText:             "slipstream COMMAND [options]",
		Description:           help,
		Version:               buildVersion(),
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden, c.Category = false, categoryProgram
			c.Usage = "print a completion script for bash, zsh, fish or PowerShell"
		},
		Commands: []*cli.Command{
			serveCommand(),
			healthCommand(),
			tailCommand(),
			inspectCommand(),
			verifyCommand(),
			dictionaryCommand(),
			manCommand(),
			{
				Name:     "version",
				Usage:    "print the version",
				Category: categoryProgram,
				Action: func(_ context.Context, cmd *cli.Command) error {
					_, err := fmt.Fprintf(cmd.Root().Writer, "slipstream %s (zstd by %s)\n", buildVersion(), event.Library)
					return err
				},
			},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				name := cmd.Args().First()
				return fmt.Errorf("there is no command %q; do you mean %s? slipstream --help lists them", name, cli.SuggestCommand(cmd.Commands, name))
			}
			return cli.ShowRootCommandHelp(cmd)
		},
		// One line that names what is wrong, instead of a page of help.
		OnUsageError: usageError,
		// Errors are printed by main, once.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
	}
}

func usageError(_ context.Context, _ *cli.Command, err error, _ bool) error { return err }

func manCommand() *cli.Command {
	return &cli.Command{
		Name:         "man",
		Usage:        "print the manual page: slipstream man | man -l -",
		Category:     categoryProgram,
		OnUsageError: usageError,
		Action: func(_ context.Context, cmd *cli.Command) error {
			// The library leaves the descriptions of commands out.
			for _, c := range cmd.Root().Commands {
				if c.Description != "" {
					c.Usage += ".\n\n" + c.Description
				}
			}
			page, err := docs.ToManWithSection(cmd.Root(), 1)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.Root().Writer, page)
			return err
		},
	}
}
