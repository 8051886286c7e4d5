package eventlog

import (
	"context"
	"fmt"
	"time"

	"slipstream/pkg/event"
)

// retentionInterval is how often the oldest events are removed: each time costs a range
// deletion and two small tables, and readers at the very start of the log are passed by
// at most this much.
const retentionInterval = time.Minute

func (l *Log) trimUntil(ctx context.Context) error {
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	for {
		if err := l.Trim(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Trim removes what is older than the retention.
func (l *Log) Trim() error {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return ErrClosed
	}
	limit := event.CursorAt(l.cfg.Now().Add(-l.cfg.Retention))
	if limit <= 0 {
		return nil // a clock that nobody has set yet
	}
	removed, err := l.store.lastThrough(limit)
	if err != nil || removed <= l.Trimmed() {
		return err
	}
	// First said, then done: a reader that meets the hole knows why.
	l.trimmed.Store(int64(removed))
	l.writing.Lock()
	err = l.store.trim(removed, l.Last(), l.Checkpoint())
	l.writing.Unlock()
	if err != nil {
		return err
	}
	l.oldestMu.Lock()
	defer l.oldestMu.Unlock()
	oldest, err := l.store.oldest(l.Trimmed())
	if err != nil {
		return err
	}
	l.oldest.Store(int64(oldest))
	l.log.Debug("old events removed", "through", removed, "oldest", oldest)
	return nil
}

// spaceCheck remembers the last look at the disk.
type spaceCheck struct{ at time.Time }

// spaceInterval is how often the free space is looked at: at 100 MB/s far less than
// the floor is written in between.
const spaceInterval = time.Second

// waitForSpace returns when there is room for another batch.
func (l *Log) waitForSpace(ctx context.Context) error {
	if time.Since(l.space.at) < spaceInterval {
		return nil
	}
	for {
		usage, err := l.cfg.FS.GetDiskUsage(l.cfg.Dir)
		if err != nil {
			// Not every file system can tell (those in memory cannot).
			l.space.at = time.Now()
			return nil
		}
		if usage.AvailBytes >= l.cfg.MinFree {
			if l.diskFull.Swap(false) {
				l.log.Info("disk has space again, ingest goes on", "free_bytes", usage.AvailBytes)
			}
			l.space.at = time.Now()
			return nil
		}
		if !l.diskFull.Swap(true) {
			l.log.Error("disk is too full, ingest waits until there is space; consumers are still served",
				"dir", l.cfg.Dir, "free_bytes", usage.AvailBytes, "needed_bytes", l.cfg.MinFree)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for disk space: %w", ctx.Err())
		case <-time.After(spaceInterval):
		}
	}
}
