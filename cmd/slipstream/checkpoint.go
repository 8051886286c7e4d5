package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/urfave/cli/v3"

	"slipstream/pkg/eventlog"
)

// Pebble locks its directory even for readers. So where a daemon has the store open, inspect
// and verify ask its admin port for a copy, whose tables are hard links:
//
//	POST /checkpoint?store=<the directory of the store>
//	200  {"dir":"<absolute path of the copy>"}\n, and the response stays open
//
// The copy lives as long as the request. What retention removes meanwhile stays on disk, so
// none may be left behind by whoever is killed.

// checkpointName is where copies are made, inside the store's directory: that is on the same
// file system whatever is mounted where, and the daemon may write to it. Pebble takes no
// notice of names that it does not know.
const checkpointName = "checkpoint"

// checkpoints serves POST /checkpoint.
type checkpoints struct {
	store  string // absolute, without symlinks
	events *eventlog.Log
	log    *slog.Logger

	busy chan struct{} // holds a value while there is a copy; capacity 1
}

// copyPatience is how long a request waits for the copy before to be deleted: whoever had it
// is told nothing when that is done.
const copyPatience = time.Second

// newCheckpoints removes what a crash has left, so it is called by who holds the store's lock.
func newCheckpoints(store string, events *eventlog.Log, log *slog.Logger) (*checkpoints, error) {
	store, err := realPath(store)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	c := &checkpoints{store: store, events: events, log: log, busy: make(chan struct{}, 1)}
	c.remove()
	return c, nil
}

func (c *checkpoints) dir() string { return filepath.Join(c.store, checkpointName) }

func (c *checkpoints) remove() {
	if err := c.events.RemoveCheckpoint(c.dir()); err != nil {
		c.log.Error("a copy of the store cannot be deleted, and holds disk space", "err", err)
	}
}

// wait returns when there is no copy any more, nor will be. The requests must have ended, or
// be about to.
func (c *checkpoints) wait() { c.busy <- struct{}{} }

func (c *checkpoints) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Browsers send an Origin with every POST to another site. And only who runs on this
	// machine has any use for a path.
	if r.Header.Get("Origin") != "" || !fromHere(r) {
		http.Error(w, "copies are for slipstream inspect and verify on the daemon's machine", http.StatusForbidden)
		return
	}
	if store := r.URL.Query().Get("store"); !sameDir(store, c.store) {
		http.Error(w, fmt.Sprintf("the daemon keeps its events in %s, not in %s", c.store, store), http.StatusMisdirectedRequest)
		return
	}
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	case <-r.Context().Done():
		return
	case <-time.After(copyPatience):
		http.Error(w, "another inspect or verify is at work: try again when it is done", http.StatusConflict)
		return
	}
	if c.events.Full() {
		http.Error(w, "the disk is too full: a copy would hold what retention removes", http.StatusInsufficientStorage)
		return
	}
	defer c.remove()
	if err := c.events.WriteCheckpoint(c.dir()); err != nil {
		c.log.Error("copy the store for inspection", "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(checkpointAnswer{c.dir()})
	http.NewResponseController(w).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(time.Second):
		}
		if c.events.Full() {
			c.log.Warn("the disk is full: an inspect or verify loses its copy of the store")
			return
		}
	}
}

type checkpointAnswer struct {
	Dir string `json:"dir"`
}

// fromHere reports whether a request comes from this machine: from a loopback address, or
// from the address that it was sent to.
func fromHere(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	ip := net.ParseIP(host)
	if err != nil || ip == nil {
		return false
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ip.IsLoopback() || ok && local.IP.Equal(ip)
}

func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func sameDir(a, b string) bool {
	ai, err := os.Stat(a)
	if err != nil {
		return false
	}
	bi, err := os.Stat(b)
	return err == nil && os.SameFile(ai, bi)
}

// bufferFlags are the flags of the commands that look into a data dir.
func bufferFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "data-dir", Value: "./data", Sources: env("DATA_DIR", "DATA_DIR"),
			Usage: "the daemon's `directory`"},
		&cli.StringFlag{Name: "metrics-listen-addr", Value: "127.0.0.1:6009", Sources: env("METRICS_LISTEN_ADDR", "METRICS_LISTEN_ADDR"),
			Usage: "`address` where a running daemon is asked for a copy of its store"},
	}, more...)
}

// buffer is a store that is open to be looked at.
type buffer struct {
	*eventlog.Reader
	store   string // the directory of the store, also where it is a copy that is open
	running bool   // a daemon is at work on it
}

// withBuffer opens the store that the flags name and calls look.
func withBuffer(ctx context.Context, cmd *cli.Command, look func(context.Context, *buffer) error) error {
	if cmd.Args().Present() {
		return fmt.Errorf("%s takes flags only, not %q", cmd.Name, cmd.Args().First())
	}
	return lookInto(ctx, "data-dir", cmd.String("data-dir"), cmd.String("metrics-listen-addr"), look)
}

// lookInto opens the store in a data dir, which a flag names, and calls look: with the store
// itself, or, where a daemon has it open, with a copy that the daemon at the address makes. The
// context that look is given also ends when the copy does.
func lookInto(ctx context.Context, flag, dataDir, addr string, look func(context.Context, *buffer) error) error {
	store := filepath.Join(dataDir, "slipstream")
	r, err := openReader(store)
	if err == nil {
		return errors.Join(look(ctx, &buffer{r, store, false}), r.Close())
	}
	switch {
	case errors.Is(err, eventlog.ErrInUse):
	case errors.Is(err, errNoLog):
		return fmt.Errorf("--%s %s: %w", flag, dataDir, err)
	default:
		return err
	}
	answer, err := askForCopy(ctx, store, addr)
	if err != nil {
		return err
	}
	// Before the copy is let go of, whoever reads it is done.
	defer answer.Body.Close()
	body := bufio.NewReader(answer.Body)
	var made checkpointAnswer
	line, err := body.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &made)
	}
	if err != nil {
		return fmt.Errorf("ask the daemon for a copy of its store: %w", err)
	}
	if r, err = openReader(made.Dir); err != nil {
		if errors.Is(err, errNoLog) {
			return fmt.Errorf("the daemon made a copy of its store in %s, which is not to be seen from here: run this where the daemon runs", made.Dir)
		}
		return fmt.Errorf("copy of the store: %w", err)
	}
	copyCtx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	go func() {
		body.WriteTo(io.Discard)
		lose(errCopyLost)
	}()
	err = errors.Join(look(copyCtx, &buffer{r, store, true}), r.Close())
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(copyCtx), errCopyLost) {
		return errCopyLost
	}
	return err
}

var errNoLog = errors.New("there is no event log")

// openReader opens the log in a directory. Its error is errNoLog only where there is nothing
// at all: a file that is missing in a store is damage.
func openReader(dir string) (*eventlog.Reader, error) {
	switch info, err := os.Stat(dir); {
	case errors.Is(err, os.ErrNotExist):
		return nil, errNoLog
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("%s is not a directory", dir)
	}
	r, err := eventlog.OpenReader(nil, dir)
	if errors.Is(err, pebble.ErrDBDoesNotExist) {
		err = errNoLog
	}
	return r, err
}

var errCopyLost = errors.New("the daemon has ended, or has no disk space for a copy of its store any more: run this again")

// askForCopy asks the daemon that has the store open for a copy. It exists until the answer is
// closed.
func askForCopy(ctx context.Context, store, addr string) (*http.Response, error) {
	path, err := realPath(store)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	advice := fmt.Errorf("a process has %s open: give --metrics-listen-addr the address that it has, or stop it", store)
	if !validAddr(addr) {
		return nil, fmt.Errorf("--metrics-listen-addr %s: use host:port or :port", addr)
	}
	if strings.HasPrefix(addr, ":") {
		addr = "127.0.0.1" + addr
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/checkpoint?store="+url.QueryEscape(path), nil)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen-addr: %w", err)
	}
	// Without the environment's proxy. A copy of a large store takes a second or two.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: time.Minute}}
	answer, err := client.Do(request)
	if ctx.Err() != nil {
		return nil, errInterrupted
	}
	if err != nil {
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err
		}
		return nil, fmt.Errorf("%w (%w)", advice, err)
	}
	if answer.StatusCode == http.StatusOK {
		return answer, nil
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
	reason := strings.TrimSpace(string(text))
	switch answer.StatusCode {
	case http.StatusMisdirectedRequest:
		return nil, fmt.Errorf("%w (at %s %s)", advice, addr, reason)
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return nil, fmt.Errorf("%w (what answers at %s makes no copies)", advice, addr)
	}
	return nil, fmt.Errorf("the daemon at %s makes no copy of its store: %s", addr, reason)
}

// errInterrupted is said where the user has ended it.
var errInterrupted = errors.New("interrupted")
