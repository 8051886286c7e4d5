package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"slipstream/dictionaries"
	"slipstream/pkg/event"
)

// The dictionary that Jetstream v1's client libraries have built in, which is Bluesky's of
// 2024. It is not ours to ship, so it is fetched once and kept.
const (
	legacyID  = 1612007021
	legacySum = "b8d77b46933aceecbdd5275a01241efc985c970c78162b8150cf67a26522f70c" // SHA-256
	legacyURL = "https://raw.githubusercontent.com/bluesky-social/jetstream/main/pkg/models/zstd_dictionary"
)

// fetchTimeout is for 110 KB.
const fetchTimeout = 30 * time.Second

func isLegacy(dictionary []byte) bool {
	sum := sha256.Sum256(dictionary)
	return hex.EncodeToString(sum[:]) == legacySum
}

// What --legacy-dictionary may be beside a file.
const (
	legacyAuto = "auto"
	legacyOff  = "off"
)

func fetchLegacyCommand() *cli.Command {
	return &cli.Command{
		Name:         "fetch-legacy",
		Usage:        "download the dictionary that Jetstream v1's clients have built in into a data dir, once; serve then uses it from its next start",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "data-dir", Value: "./data", Sources: env("DATA_DIR", "DATA_DIR"),
				Usage: "the daemon's `directory`"},
			&cli.StringFlag{Name: "url", Value: legacyURL, Sources: env("LEGACY_DICTIONARY_URL"),
				Usage: "`URL` to download it from; what comes must be the same bytes"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return fmt.Errorf("fetch-legacy takes flags only, not %q", cmd.Args().First())
			}
			if cmd.String("data-dir") == "" {
				return errors.New("--data-dir: name a directory")
			}
			from := cmd.String("url")
			if !validHTTP(from) {
				return fmt.Errorf("--url %s: use a URL of http or https", redacted(from))
			}
			kept := keptIn(cmd.String("data-dir"))
			if b, err := os.ReadFile(kept.file(legacyID)); err == nil && isLegacy(b) {
				_, err = fmt.Fprintf(cmd.Root().Writer, "dictionary %d is in %s already\n", legacyID, kept.file(legacyID))
				return err
			}
			b, err := fetchLegacy(ctx, from)
			if ctx.Err() != nil {
				return errInterrupted
			}
			if err == nil {
				err = kept.keep(b)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.Root().Writer, "dictionary %d is in %s now: serve uses it from its next start\n", legacyID, kept.file(legacyID))
			return err
		},
	}
}

func validHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// redacted is a URL that may be shown.
func redacted(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return s
}

// fetchLegacy downloads the dictionary. Its error says what to do.
func fetchLegacy(ctx context.Context, from string) ([]byte, error) {
	b, err := download(ctx, from)
	if err == nil && !isLegacy(b) {
		err = fmt.Errorf("what is there is not the dictionary: %d bytes with the SHA-256 %x", len(b), sha256.Sum256(b))
	}
	if err != nil {
		return nil, fmt.Errorf("download Bluesky's dictionary from %s: %w; bring the file here yourself and name it: serve --legacy-dictionary FILE", redacted(from), err)
	}
	return b, nil
}

func download(ctx context.Context, from string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, fmt.Errorf("it took more than %s", fetchTimeout))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "slipstream/"+buildVersion())
	transport := http.DefaultTransport.(*http.Transport).Clone() // with the environment's proxy
	transport.DisableKeepAlives = true
	defer transport.CloseIdleConnections() // also ends a dial that the request no longer waits for
	client := http.Client{Transport: transport}
	var body []byte
	answer, err := client.Do(request)
	if err == nil {
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the answer is %s", answer.Status)
		}
		body, err = io.ReadAll(io.LimitReader(answer.Body, maxDictionary+1))
	}
	if e := (*url.Error)(nil); errors.As(err, &e) {
		err = e.Err
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case len(body) > maxDictionary:
		return nil, fmt.Errorf("what is there is not the dictionary: more than %d bytes", maxDictionary)
	}
	return body, nil
}

// legacy decides whether consumers get the dictionary that v1's clients have built in, or
// our own, and says so in one line of the log.
type legacy struct {
	flag, url string // as in Config
	given     []byte // the dictionary in the file that the flag names
	kept      keptDictionaries
	known     *event.Dictionaries
	log       *slog.Logger
}

// newLegacy makes the set of dictionaries that there are, with the right one as the primary.
// It writes nothing.
func newLegacy(cfg Config, log *slog.Logger) (*legacy, error) {
	l := &legacy{flag: cfg.LegacyDictionary, url: cfg.LegacyDictionaryURL, kept: keptIn(cfg.DataDir), log: log}
	more, err := l.kept.load(func(file string, err error) {
		log.Warn("a file among the dictionaries is ignored", "file", file, "err", err)
	})
	if err != nil {
		return nil, err
	}
	if l.known, err = event.NewDictionaries(dictionaries.Current(), append(dictionaries.All(), more...)...); err != nil {
		return nil, err
	}
	switch l.flag {
	case "", legacyOff:
	case legacyAuto:
		if i := slices.IndexFunc(more, isLegacy); i >= 0 {
			err = l.known.SetPrimary(more[i])
		}
	default:
		if l.given, _, err = readDictionary(l.flag); err == nil {
			err = l.known.SetPrimary(l.given)
		}
		if err != nil {
			err = fmt.Errorf("--legacy-dictionary %s: %w", l.flag, err)
		}
	}
	return l, err
}

// keepRetry is how often a full disk is looked at.
const keepRetry = 250 * time.Millisecond

// keep keeps what the flag has given. It is to be called before an event is stored: to begin
// without would leave events that later nobody can read. So it waits for space on a full disk,
// until ctx ends: then the error is a want of space.
func (l *legacy) keep(ctx context.Context) error {
	if l.given == nil {
		return nil
	}
	for told := false; ; told = true {
		err := l.kept.keep(l.given)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("--legacy-dictionary %s: %w", l.flag, err)
		if !isFull(err) {
			return err
		}
		if !told {
			l.log.Error("disk is full, the start waits until there is space for the dictionary", "error", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(keepRetry):
		}
	}
}

// isFull reports whether an error is a want of disk space.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// run says which is the primary dictionary, after it has tried, once, to get the one that it
// should be. That there is no network is no reason to fail.
func (l *legacy) run(ctx context.Context) error {
	const (
		served    = "consumers that have Bluesky's dictionary built in can read compress=true: it is made with that"
		notServed = "consumers that have Bluesky's dictionary built in cannot read compress=true: it is made with another"
	)
	primary := l.known.Primary()
	switch {
	case isLegacy(l.known.Bytes(primary.ID())):
		l.log.Info(served, "dictionary", primary.ID())
	case l.given != nil:
		l.log.Warn(notServed+", which --legacy-dictionary names", "dictionary", primary.ID(), "file", l.flag)
	case l.flag == legacyAuto:
		b, err := fetchLegacy(ctx, l.url)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = l.kept.keep(b)
		}
		if err == nil {
			err = l.known.SetPrimary(b)
		}
		if err != nil {
			l.log.Warn(notServed, "dictionary", primary.ID(), "err", err)
			return nil
		}
		l.log.Info(served+" from now on, and kept", "dictionary", legacyID, "from", redacted(l.url), "file", l.kept.file(legacyID))
	default:
		l.log.Info(notServed+", our own; for them, set --legacy-dictionary to auto", "dictionary", primary.ID()) // the operator knows
	}
	return nil
}
