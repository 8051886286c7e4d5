package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// A service manager is what systemd has told the process by its environment. Without one,
// as in a terminal or a container, all of this does nothing.
type serviceManager struct {
	log    *slog.Logger
	health string // URL of the metrics address's /healthz
}

// ready says that the daemon serves.
func (m serviceManager) ready() { m.tell(systemd.SdNotifyReady) }

// stopping says that it is about to end.
func (m serviceManager) stopping() { m.tell(systemd.SdNotifyStopping) }

// reloading says that it reads its settings again, reloaded that it has, or why in vain.
func (m serviceManager) reloading() {
	m.tell(systemd.SdNotifyReloading + "\n" + systemd.SdNotifyMonotonicUsec())
}

func (m serviceManager) reloaded(err error) {
	status := "STATUS="
	if err != nil {
		status += "reload refused, nothing has changed: " + safeText(err.Error())
	}
	m.tell(systemd.SdNotifyReady + "\n" + status)
}

func (m serviceManager) tell(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		m.log.Warn("cannot notify systemd", "error", err)
	}
}

// watch keeps systemd's watchdog quiet until ctx ends, as long as the daemon answers a
// request within half of the watchdog's time. That proves little more than that the process
// still runs; what is wrong with the relay or the disk is no reason for a restart.
func (m serviceManager) watch(ctx context.Context) error {
	limit, err := systemd.SdWatchdogEnabled(false)
	if err != nil || limit == 0 {
		return nil
	}
	client := http.Client{Timeout: limit / 2, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.health, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(request)
		if err == nil {
			resp.Body.Close()
			m.tell(systemd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
