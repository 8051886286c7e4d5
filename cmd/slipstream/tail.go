package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"github.com/urfave/cli/v3"
)

func tailCommand() *cli.Command {
	return &cli.Command{
		Name:         "tail",
		Usage:        "print what a consumer of URL receives, one event a line",
		ArgsUsage:    "[URL, default ws://127.0.0.1:6008/subscribe]",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "count", Usage: "stop after so many `events`", HideDefault: true},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			url := "ws://127.0.0.1:6008/subscribe"
			if cmd.Args().Present() {
				url = cmd.Args().First()
			}
			return tail(ctx, cmd.Root().Writer, url, cmd.Int("count"))
		},
	}
}

// tail copies events to w until ctx ends, the server closes or count is reached (0: no
// limit).
func tail(ctx context.Context, w io.Writer, url string, count int) error {
	ws, resp, err := websocket.DefaultDialer.DialContext(ctx, url, nil)
	if err != nil {
		if resp != nil {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
			return fmt.Errorf("connect to %s: %s: %s", url, resp.Status, text)
		}
		return fmt.Errorf("connect to %s: %w", url, err)
	}
	defer ws.Close()
	defer context.AfterFunc(ctx, func() { ws.Close() })()
	out := bufio.NewWriter(w)
	for n := 0; count == 0 || n < count; n++ {
		kind, message, err := ws.ReadMessage()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if kind != websocket.TextMessage {
			return errors.New("the server sends compressed events, which tail does not read; leave out compress=true")
		}
		out.Write(append(message, '\n'))
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func healthCommand() *cli.Command {
	return &cli.Command{
		Name:         "health",
		Usage:        "ask a running daemon whether it is healthy; exit status 1 if not (for container health checks)",
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
