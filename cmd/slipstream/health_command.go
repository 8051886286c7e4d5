package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/urfave/cli/v3"
)

func healthCommand() *cli.Command {
	return &cli.Command{
		Name:         "health",
		Usage:        "ask a running daemon whether it is healthy; exit status 1 if not (for container health checks)",
		Category:     categoryDaemon,
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "metrics-addr", Value: "127.0.0.1:6009", Usage: "`address` of the daemon's metrics",
				Sources: cli.EnvVars("SLIPSTREAM_METRICS_LISTEN_ADDR", "JETSTREAM_METRICS_LISTEN_ADDR")},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			addr := cmd.String("metrics-addr")
			if len(addr) > 0 && addr[0] == ':' {
				addr = "127.0.0.1" + addr
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", nil)
			if err != nil {
				return fmt.Errorf("--metrics-addr: %w", err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("the daemon is not healthy: %s", resp.Status)
			}
			_, err = fmt.Fprintln(cmd.Root().Writer, "healthy")
			return err
		},
	}
}
