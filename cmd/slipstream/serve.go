package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v3"
	"golang.org/x/crypto/acme"

	"slipstream/pkg/event"
	"slipstream/pkg/eventlog"
	"slipstream/pkg/firehose"
	"slipstream/pkg/ingest"
)

// Config is what the daemon can be told. Each field is a flag; the flag's help is its
// documentation.
type Config struct {
	UpstreamURLs        []string // the preferred one first
	FailoverAfter       time.Duration
	LivenessTTL         time.Duration // 0: for ever
	Filter              ingest.Filter
	UpstreamCursor      *firehose.Seq
	OverrideCursor      *firehose.Seq
	ListenAddr          string
	MetricsListenAddr   string
	TLSDomains          []string
	TLSCert, TLSKey     string
	ACMEDirectory       string
	DataDir             string
	EventTTL            time.Duration
	MaxDisk             int64
	MinFreeDisk         uint64  // bytes, or
	MinFreeShare        float64 // of the disk
	Linger              time.Duration
	Workers             int
	WindowBytes         int64
	MaxSubRate          float64
	MaxSubscribers      int
	MaxSubscribersPerIP int
	MaxFilterDIDs       int
	TrustedProxies      []netip.Prefix
	StallTimeout        time.Duration
	LegacyDictionary    string // auto, off or a file; "": off
	LegacyDictionaryURL string
	LogLevel            slog.Level
	LogFormat           string
}

// env names a flag's environment variables: ours, and those of Jetstream v1.
func env(name string, v1 ...string) cli.ValueSourceChain {
	keys := []string{"SLIPSTREAM_" + name}
	for _, key := range v1 {
		keys = append(keys, "JETSTREAM_"+key)
	}
	return cli.EnvVars(keys...)
}

const serveHelp = `Examples:

    slipstream serve                                     the live network, for consumers on :6008
    slipstream serve --data-dir /var/lib/slipstream --max-disk 15GB
    slipstream serve --upstream-url relay.example.org,bsky.network     the second stands in for the first
    slipstream serve --collections app.bsky.feed.*       no other records
    slipstream serve --tls-domain stream.example.org     by TLS, on :443`

func serveCommand() *cli.Command { return serveCommandFrom(nil) }

// serveCommandFrom is serveCommand with a file behind the environment.
func serveCommandFrom(file *envFile) *cli.Command {
	env := file.sources
	const (
		upstream, addresses, storage  = "Upstream", "Addresses and TLS", "Storage"
		resources, consumers, logging = "Resources", "Consumers", "Logging and reloading"
	)
	return &cli.Command{
		Name:         "serve",
		Usage:        "run the daemon: subscribe to a relay, serve consumers",
		Description:  serveHelp,
		Category:     categoryDaemon,
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "upstream-url", Category: upstream, Value: []string{"wss://bsky.network"}, Sources: env("UPSTREAM_URL", "WS_URL"),
				Usage: "relay or PDS to subscribe to; scheme and path are completed; repeatable, or joined with commas: relays that carry the same network, the preferred one first"},
			&cli.DurationFlag{Name: "failover-after", Category: upstream, Value: 30 * time.Second, Sources: env("FAILOVER_AFTER"),
				Usage: "how long without a working connection makes it another --upstream-url's turn"},
			&cli.DurationFlag{Name: "liveness-ttl", Category: upstream, Sources: env("LIVENESS_TTL"), HideDefault: true,
				Usage: "connect again if no frame comes for so long although pings are answered; 0: an idle upstream is fine (default: 0)"},
			&cli.StringFlag{Name: "upstream-cursor", Category: upstream, Sources: env("UPSTREAM_CURSOR"),
				Usage: "relay `seq` to start after when the data dir holds none; 0: the relay's oldest (default: live)"},
			&cli.StringFlag{Name: "override-upstream-cursor", Category: upstream, Sources: env("OVERRIDE_UPSTREAM_CURSOR", "OVERRIDE_RELAY_CURSOR"),
				Usage: "relay `seq` to start after whatever the data dir holds; -1: unset"},
			&cli.StringSliceFlag{Name: "collections", Category: upstream, Sources: env("COLLECTIONS"),
				Usage: "`NSIDs` or prefixes like app.bsky.* to take in, and no other; repeatable, or joined with commas (default: all)"},
			&cli.StringSliceFlag{Name: "exclude-collections", Category: upstream, Sources: env("EXCLUDE_COLLECTIONS"),
				Usage: "`NSIDs` or prefixes to leave out even of --collections; repeatable, or joined with commas (default: none)"},
			&cli.BoolFlag{Name: "no-identity", Category: upstream, Sources: env("NO_IDENTITY"), Usage: "leave identity events out"},
			&cli.BoolFlag{Name: "no-account", Category: upstream, Sources: env("NO_ACCOUNT"), Usage: "leave account events out"},
			&cli.StringFlag{Name: "listen-addr", Category: addresses, Value: ":6008", Sources: env("LISTEN_ADDR", "LISTEN_ADDR"),
				Usage: "`address` for consumers (with --tls-domain: :443)"},
			&cli.StringSliceFlag{Name: "tls-domain", Category: addresses, Sources: env("TLS_DOMAIN"),
				Usage: "serve consumers by TLS, with a certificate for this `name` of the server's, which is fetched from Let's Encrypt and kept in the data dir; repeatable, or joined with commas (default: plain HTTP)"},
			&cli.StringFlag{Name: "tls-cert", Category: addresses, Sources: env("TLS_CERT"), Usage: "serve consumers by TLS, with the certificate chain in `file` (PEM), which is read again when it changes"},
			&cli.StringFlag{Name: "tls-key", Category: addresses, Sources: env("TLS_KEY"), Usage: "`file` with the private key of --tls-cert (PEM)"},
			&cli.StringFlag{Name: "acme-directory", Category: addresses, Value: acme.LetsEncryptURL, Sources: env("ACME_DIRECTORY"),
				Usage: "`URL` of the authority that --tls-domain asks for a certificate"},
			&cli.StringFlag{Name: "metrics-listen-addr", Category: addresses, Value: "127.0.0.1:6009", Sources: env("METRICS_LISTEN_ADDR", "METRICS_LISTEN_ADDR"),
				Usage: "`address` for Prometheus, pprof, /healthz and /readyz"},
			&cli.StringFlag{Name: "data-dir", Category: storage, Value: "./data", Sources: env("DATA_DIR", "DATA_DIR"),
				Usage: "`directory` for the event log, which lives in its subdirectory slipstream"},
			&cli.DurationFlag{Name: "event-ttl", Category: storage, Value: 24 * time.Hour, Sources: env("EVENT_TTL", "EVENT_TTL"),
				Usage: "how long events can be replayed"},
			&cli.StringFlag{Name: "max-disk", Category: storage, Sources: env("MAX_DISK"),
				Usage: "`size` that the store may take, such as 15GB; the oldest events make room before --event-ttl (default: no limit)"},
			&cli.StringFlag{Name: "min-free-disk", Category: storage, Value: "5%", Sources: env("MIN_FREE_DISK"),
				Usage: "`size` or percentage of the disk to leave free; the oldest events make room before --event-ttl"},
			&cli.DurationFlag{Name: "linger", Category: resources, Value: 20 * time.Millisecond, Sources: env("LINGER"),
				Usage: "how long an event may wait for others to be stored and sent with"},
			&cli.IntFlag{Name: "worker-count", Category: resources, Sources: env("WORKER_COUNT", "WORKER_COUNT"), HideDefault: true,
				Usage: "decode and encode workers, at most the number of CPUs (default: the number of CPUs)"},
			&cli.Int64Flag{Name: "window-bytes", Category: resources, Value: 4 << 20, Sources: env("WINDOW_BYTES"),
				Usage: "`bytes` of the newest events kept in memory"},
			&cli.FloatFlag{Name: "max-sub-rate", Category: consumers, Sources: env("MAX_SUB_RATE", "MAX_SUB_RATE"), HideDefault: true,
				Usage: "`events` per second and consumer, live and replayed; 0: no limit (default: 0)"},
			&cli.IntFlag{Name: "max-subscribers", Category: consumers, Sources: env("MAX_SUBSCRIBERS"), HideDefault: true,
				Usage: "most `consumers` at a time; 0: what the descriptor limit (ulimit -n) has room for (default: 0)"},
			// Far more than the bots behind one NAT need, since one connection can take 10,000
			// DIDs; little enough that no single address can take a server of the usual
			// descriptor limits for itself.
			&cli.IntFlag{Name: "max-subscribers-per-ip", Category: consumers, Value: 1000, Sources: env("MAX_SUBSCRIBERS_PER_IP"),
				Usage: "most `consumers` from one address (of IPv6: a /64); proxies, loopback and private networks do not count; 0: no limit"},
			&cli.IntFlag{Name: "max-filter-dids", Category: consumers, Value: 2_000_000, Sources: env("MAX_FILTER_DIDS"),
				Usage: "most `DIDs` that the filters of all consumers together may name, some 160 bytes of memory each"},
			&cli.StringSliceFlag{Name: "trusted-proxies", Category: consumers, Sources: env("TRUSTED_PROXIES"),
				Usage: "`addresses` or CIDR networks of proxies whose X-Forwarded-For is believed; repeatable, or joined with commas (default: none)"},
			&cli.DurationFlag{Name: "stall-timeout", Category: consumers, Value: 2 * time.Minute, Sources: env("STALL_TIMEOUT"),
				Usage: "how long a consumer may take nothing at all before it is disconnected"},
			&cli.StringFlag{Name: "legacy-dictionary", Category: consumers, Value: legacyAuto, Sources: env("LEGACY_DICTIONARY"),
				Usage: "the zstd dictionary that v1 clients have built in, for compress=true; auto: download it once; off: use our own; or a `FILE`"},
			&cli.StringFlag{Name: "legacy-dictionary-url", Category: consumers, Value: legacyURL, Sources: env("LEGACY_DICTIONARY_URL"),
				Usage: "`URL` to download it from; what comes must be the same bytes"},
			&cli.StringFlag{Name: "log-level", Category: logging, Value: "info", Sources: env("LOG_LEVEL"), Usage: "debug, info, warn or error"},
			&cli.StringFlag{Name: "log-format", Category: logging, Value: "text", Sources: env("LOG_FORMAT"), Usage: "text or json; text has colours on a terminal, but with NO_COLOR"},
			&cli.StringFlag{Name: "env-file", Category: logging, Sources: cli.EnvVars("SLIPSTREAM_ENV_FILE"),
				Usage: "`FILE` with lines like SLIPSTREAM_LOG_LEVEL=info, for settings that have neither a flag nor an environment variable; limits and log level are read again on SIGHUP; with a - in front it may be missing"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return fmt.Errorf("serve takes flags only, not %q", cmd.Args().First())
			}
			r := &reloader{settings: settings{os.Args, cmd.String("env-file")}, level: new(slog.LevelVar)}
			if r.settings.file != "" {
				// From now on: a reload that comes early is to wait, not to end the process. Without
				// the file it keeps its meaning, that the terminal is gone.
				hangup := make(chan os.Signal, 1)
				signal.Notify(hangup, syscall.SIGHUP)
				r.hangup = hangup
			}
			now, err := r.settings.read(ctx)
			if err != nil {
				return err
			}
			r.running = now.values
			r.level.Set(now.cfg.LogLevel)
			r.log = newLogger(os.Stderr, now.cfg.LogFormat, r.level)
			r.tellOverridden(now)
			return run(ctx, now.cfg, r.log, r)
		},
	}
}

// configOf reads and checks the flags. Its errors name the flag.
func configOf(cmd *cli.Command) (Config, error) {
	cfg := Config{
		FailoverAfter:       cmd.Duration("failover-after"),
		LivenessTTL:         cmd.Duration("liveness-ttl"),
		Filter:              ingest.Filter{NoIdentity: cmd.Bool("no-identity"), NoAccount: cmd.Bool("no-account")},
		ListenAddr:          cmd.String("listen-addr"),
		MetricsListenAddr:   cmd.String("metrics-listen-addr"),
		TLSDomains:          cmd.StringSlice("tls-domain"),
		TLSCert:             cmd.String("tls-cert"),
		TLSKey:              cmd.String("tls-key"),
		ACMEDirectory:       cmd.String("acme-directory"),
		DataDir:             cmd.String("data-dir"),
		EventTTL:            cmd.Duration("event-ttl"),
		Linger:              cmd.Duration("linger"),
		Workers:             cmd.Int("worker-count"),
		WindowBytes:         cmd.Int64("window-bytes"),
		MaxSubRate:          cmd.Float("max-sub-rate"),
		MaxSubscribers:      cmd.Int("max-subscribers"),
		MaxSubscribersPerIP: cmd.Int("max-subscribers-per-ip"),
		MaxFilterDIDs:       cmd.Int("max-filter-dids"),
		StallTimeout:        cmd.Duration("stall-timeout"),
		LegacyDictionary:    cmd.String("legacy-dictionary"),
		LegacyDictionaryURL: cmd.String("legacy-dictionary-url"),
		LogFormat:           cmd.String("log-format"),
	}
	if len(cfg.TLSDomains) > 0 && !cmd.IsSet("listen-addr") {
		cfg.ListenAddr = ":443"
	}
	var err error
	if cfg.UpstreamURLs, err = upstreams(cmd.StringSlice("upstream-url")); err != nil {
		return cfg, fmt.Errorf("--upstream-url %w", err)
	}
	if cfg.Filter.Collections, err = collections(cmd.StringSlice("collections")); err != nil {
		return cfg, fmt.Errorf("--collections %w", err)
	}
	if cfg.Filter.ExcludeCollections, err = collections(cmd.StringSlice("exclude-collections")); err != nil {
		return cfg, fmt.Errorf("--exclude-collections %w", err)
	}
	if cfg.UpstreamCursor, err = seqFlag(cmd, "upstream-cursor"); err != nil {
		return cfg, err
	}
	if cfg.OverrideCursor, err = seqFlag(cmd, "override-upstream-cursor"); err != nil {
		return cfg, err
	}
	if cfg.MaxDisk, err = maxDiskFlag(cmd.String("max-disk")); err != nil {
		return cfg, err
	}
	if cfg.MinFreeDisk, cfg.MinFreeShare, err = minFreeFlag(cmd.String("min-free-disk")); err != nil {
		return cfg, err
	}
	if cfg.TrustedProxies, err = prefixes(cmd.StringSlice("trusted-proxies")); err != nil {
		return cfg, fmt.Errorf("--trusted-proxies %w", err)
	}
	if err := cfg.LogLevel.UnmarshalText([]byte(cmd.String("log-level"))); err != nil {
		return cfg, fmt.Errorf("--log-level %q: use debug, info, warn or error", cmd.String("log-level"))
	}
	for _, check := range []struct {
		flag  string
		wrong bool
		want  string
	}{
		{"failover-after", cfg.FailoverAfter < time.Second, "use at least 1s"},
		{"liveness-ttl", cfg.LivenessTTL != 0 && cfg.LivenessTTL < 5*time.Second, "use at least 5s, or 0 for no limit"},
		{"listen-addr", !validAddr(cfg.ListenAddr), "use host:port or :port"},
		{"metrics-listen-addr", !validAddr(cfg.MetricsListenAddr), "use host:port or :port"},
		{"tls-domain", slices.ContainsFunc(cfg.TLSDomains, func(d string) bool { return !validDomain(d) }), "use names like relay.example.org"},
		{"tls-domain", len(cfg.TLSDomains) > 0 && cfg.TLSCert+cfg.TLSKey != "", "a certificate comes from there or from --tls-cert, not both"},
		{"tls-cert", cfg.TLSCert != "" && cfg.TLSKey == "", "name its private key by --tls-key, too"},
		{"tls-key", cfg.TLSKey != "" && cfg.TLSCert == "", "name its certificate by --tls-cert, too"},
		{"acme-directory", !validHTTP(cfg.ACMEDirectory), "use a URL of https"},
		{"data-dir", cfg.DataDir == "", "name a directory"},
		{"event-ttl", cfg.EventTTL < time.Minute, "use at least 1m"},
		{"linger", cfg.Linger < time.Millisecond || cfg.Linger > 10*time.Second, "use 1ms to 10s"},
		{"worker-count", cfg.Workers < 0, "use a positive number, or 0 for the number of CPUs"},
		{"window-bytes", cfg.WindowBytes < 1<<20, "use at least 1048576 (1 MiB)"},
		{"max-sub-rate", !(cfg.MaxSubRate >= 0) || math.IsInf(cfg.MaxSubRate, 0), "use a number of events per second, or 0 for no limit"},
		{"max-subscribers", cfg.MaxSubscribers < 0, "use a positive number, or 0 for what the descriptor limit has room for"},
		{"max-subscribers-per-ip", cfg.MaxSubscribersPerIP < 0, "use a positive number, or 0 for no limit"},
		{"max-filter-dids", cfg.MaxFilterDIDs <= 0, "use a positive number"},
		{"stall-timeout", cfg.StallTimeout < time.Second, "use at least 1s"},
		{"legacy-dictionary", cfg.LegacyDictionary == "", "use auto, off or a file"},
		{"legacy-dictionary-url", !validHTTP(cfg.LegacyDictionaryURL), "use a URL of http or https"},
		{"log-format", cfg.LogFormat != "text" && cfg.LogFormat != "json", "use text or json"},
	} {
		if check.wrong {
			return cfg, fmt.Errorf("--%s %v: %s", check.flag, cmd.Value(check.flag), check.want)
		}
	}
	return cfg, nil
}

// upstreams completes URLs.
func upstreams(texts []string) ([]string, error) {
	var all []string
	for _, text := range texts {
		url, err := firehose.ParseURL(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		if slices.Contains(all, url) {
			return nil, fmt.Errorf("%q: is there twice", text)
		}
		all = append(all, url)
	}
	if all == nil {
		return nil, errors.New(": name a relay")
	}
	return all, nil
}

// collections reads NSIDs and prefixes.
func collections(texts []string) (all event.Collections, err error) {
	for _, text := range texts {
		text = strings.TrimSpace(text)
		if err := all.Add(text); err != nil {
			return all, fmt.Errorf("%q: %w", text, err)
		}
	}
	return all, nil
}

// seqFlag reads a flag that may be absent. -1 means absent, as it does for Jetstream v1.
func seqFlag(cmd *cli.Command, name string) (*firehose.Seq, error) {
	text := cmd.String(name)
	if text == "" || text == "-1" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("--%s %q: use a seq of the relay's, a number not below 0", name, text)
	}
	seq := firehose.Seq(n)
	return &seq, nil
}

// maxDiskFlag reads --max-disk in bytes; 0: no limit.
func maxDiskFlag(text string) (int64, error) {
	if text == "" || text == "0" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n < eventlog.MinMaxBytes || n > math.MaxInt64 {
		return 0, fmt.Errorf("--max-disk %q: use a size of at least %s, such as 15GB, or 0 for no limit", text, humanize.Bytes(eventlog.MinMaxBytes))
	}
	return int64(n), nil
}

// minFreeFlag reads --min-free-disk: a size in bytes or a share of the disk.
func minFreeFlag(text string) (bytes uint64, share float64, err error) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		share, err = strconv.ParseFloat(percent, 64)
		if share /= 100; err == nil && share >= 0 && share <= 0.9 {
			return 0, share, nil
		}
	} else if bytes, err = humanize.ParseBytes(text); err == nil {
		return bytes, 0, nil
	}
	return 0, 0, fmt.Errorf("--min-free-disk %q: use a share of the disk from 0%% to 90%%, or a size such as 2GB", text)
}

// prefixes reads addresses and networks.
func prefixes(texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		text = strings.TrimSpace(text)
		p, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		// Peers are compared in their short form, in which no IPv4 address is an IPv6 one.
		if err == nil && p.Addr().Is4In6() {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if err != nil || !p.IsValid() {
			return nil, fmt.Errorf("%q: use addresses, or networks like 10.0.0.0/8 or 2001:db8::/32", text)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func validAddr(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n <= math.MaxUint16
}

// validDomain reports whether a certificate can be had for a name: a host's, in lower case, with
// a dot.
func validDomain(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || len(part) > 63 || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return strings.Contains(s, ".") && net.ParseIP(s) == nil
}
