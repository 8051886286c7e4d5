package main

import "github.com/urfave/cli/v3"

func dictionaryCommand() *cli.Command {
	return &cli.Command{
		Name:         "dictionary",
		Usage:        "get zstd dictionaries",
		OnUsageError: usageError,
		Commands:     []*cli.Command{fetchLegacyCommand()},
	}
}
