package main

import (
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// What descriptors are needed for besides consumers.
const (
	// storeFiles is Pebble's MaxOpenFiles, which package eventlog leaves at its default. A
	// day of the live network is several times as many tables.
	storeFiles = 1000
	// ownFiles are the relay's connection, those of the metrics address, the listeners,
	// logs and what the runtime has.
	ownFiles = 100
	// enoughFiles is the limit below which the store, the lobby and a useful number of
	// consumers have no room beside each other.
	enoughFiles = 2048
)

// descriptors says how many of the process's file descriptors are for whom.
type descriptors struct {
	limit     int // 0: not known
	needed    int
	lobby     int // connections that are no consumers
	consumers int // 0: no limit
}

// shareDescriptors decides who may have how many descriptors. With wanted consumers the
// operator has decided, and only hears of it if they do not fit. Without, consumers get
// what the store can spare, so that it never lacks a descriptor because of them.
func shareDescriptors(limit, wanted int) descriptors {
	if limit <= 0 {
		return descriptors{lobby: lobbyPlaces, consumers: wanted}
	}
	d := descriptors{limit: limit, needed: enoughFiles, lobby: min(lobbyPlaces, max(limit/8, 1)), consumers: wanted}
	switch others := storeFiles + ownFiles + d.lobby; {
	case wanted > 0:
		d.needed = others + wanted
	case limit >= enoughFiles:
		d.consumers = limit - others
	default:
		d.consumers = max(limit/4, 1) // most stores are far from their maximum
	}
	return d
}

// complain says so if there are too few.
func (d descriptors) complain(log *slog.Logger) {
	if d.needed > d.limit {
		log.Warn("the limit of file descriptors is too low: raise it (ulimit -n; LimitNOFILE= in systemd)",
			"limit", d.limit, "needed", d.needed, "max_subscribers", d.consumers)
	}
}

// listener waits while the process is out of descriptors, and says so. net/http would try
// again as well, but say it on each try, in words that do not tell what to do.
// With a lobby, what it accepts are visitors.
type listener struct {
	net.Listener
	log   *slog.Logger
	lobby *lobby // nil: none
	told  throttle
}

// acceptRetry is how long to wait for a descriptor. Whoever connects meanwhile waits in
// the kernel's queue.
const acceptRetry = 100 * time.Millisecond

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		var advice string
		switch {
		case errors.Is(err, syscall.EMFILE):
			advice = "raise the limit (ulimit -n; LimitNOFILE= in systemd) or lower --max-subscribers"
		case errors.Is(err, syscall.ENFILE):
			advice = "the whole system has run out: raise fs.file-max"
		case err != nil || l.lobby == nil:
			return c, err
		default:
			return newVisitor(c, l.lobby), nil
		}
		if l.told.ok() {
			l.log.Error("out of file descriptors: nobody can connect; "+advice, "listener", l.Addr(), "limit", descriptorLimit(), "error", err)
		}
		time.Sleep(acceptRetry)
	}
}

// throttleInterval is how often the log says the same thing again.
const throttleInterval = time.Minute

// throttle bounds how often something is logged. The zero value is ready.
type throttle struct{ last atomic.Int64 } // unix ns

// ok reports whether it may be said now; then it may not for a while.
func (t *throttle) ok() bool {
	now := time.Now().UnixNano()
	last := t.last.Load()
	return (last == 0 || now-last >= int64(throttleInterval)) && t.last.CompareAndSwap(last, now)
}
