//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
)

var errNotLinux = errors.New("a swarm of consumers needs epoll, and measuring needs /proc: both are Linux's")

func consume(context.Context, io.Writer, string, string, int, int64) error { return errNotLinux }

func fanout(context.Context, io.Writer, benchConfig) error { return errNotLinux }

func vps(context.Context, io.Writer, vpsConfig) error { return errNotLinux }

func replay(context.Context, io.Writer, replayConfig) error { return errNotLinux }
