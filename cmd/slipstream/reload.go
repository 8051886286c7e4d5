package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"slipstream/pkg/eventlog"
	"slipstream/pkg/subscribe"
)

// reloadable are the flags that a running daemon takes from its --env-file on SIGHUP.
var reloadable = []string{
	"log-level", "event-ttl", "max-disk", "min-free-disk", "max-sub-rate", "max-subscribers", "max-subscribers-per-ip",
	"max-filter-dids", "trusted-proxies", "stall-timeout",
}

// subscriberLimits are what of a Config consumers are held to.
func subscriberLimits(cfg Config, files descriptors) subscribe.Limits {
	return subscribe.Limits{
		StallTimeout: cfg.StallTimeout, MaxRate: cfg.MaxSubRate, MaxSubscribers: files.consumers, MaxSubscribersPerIP: cfg.MaxSubscribersPerIP,
		MaxFilterDIDs: cfg.MaxFilterDIDs, TrustedProxies: cfg.TrustedProxies,
	}
}

// storeLimits are what of a Config the event log is held to.
func storeLimits(cfg Config) eventlog.Limits {
	return eventlog.Limits{Retention: cfg.EventTTL, MaxBytes: cfg.MaxDisk, MinFree: cfg.MinFreeDisk, MinFreeShare: cfg.MinFreeShare}
}

// reloader changes a running daemon as its --env-file has changed. All that is new holds, or, if
// anything in the file is wrong, nothing.
type reloader struct {
	settings settings
	hangup   <-chan os.Signal // asks for it
	log      *slog.Logger
	level    *slog.LevelVar    // of log
	running  map[string]string // the values that hold, by flag

	// Set before run.
	manager serviceManager
	apply   func(Config) // of what is reloadable
}

// run reloads whenever it is asked to, until ctx ends.
func (r *reloader) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.hangup:
			r.manager.reloading()
			r.manager.reloaded(r.reload(ctx))
		}
	}
}

// reload reloads. Its error has been logged.
func (r *reloader) reload(ctx context.Context) error {
	next, err := r.settings.read(ctx)
	if err != nil {
		if ctx.Err() == nil {
			r.log.Error("reload refused, nothing has changed", "file", r.settings.file, "error", err)
		}
		return err
	}
	var changed, stay []string
	for _, f := range serveCommand().Flags {
		name := f.Names()[0]
		switch was, is := r.running[name], next.values[name]; {
		case was == is:
		case slices.Contains(reloadable, name):
			changed = append(changed, fmt.Sprintf("%s from %s to %s", name, was, is))
			r.running[name] = is
		default:
			stay = append(stay, name)
		}
	}
	r.apply(next.cfg)
	// Neither a log that becomes quiet nor one that was goes without the line.
	r.level.Set(min(r.level.Level(), next.cfg.LogLevel))
	if changed == nil {
		changed = []string{"nothing"}
	}
	r.log.Info("reloaded", "file", r.settings.file, "changed", strings.Join(changed, "; "))
	if stay != nil {
		r.log.Warn("what else has changed takes a restart", "settings", strings.Join(stay, ", "))
	}
	r.tellOverridden(next)
	r.level.Set(next.cfg.LogLevel)
	return nil
}

// tellOverridden says what is in the file in vain.
func (r *reloader) tellOverridden(now reading) {
	if now.overridden != nil {
		r.log.Warn("settings in the file have no effect: a flag or an environment variable goes before them",
			"file", r.settings.file, "settings", strings.Join(now.overridden, ", "))
	}
}
