package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"slipstream/pkg/event"
)

// retention is what Trim remembers.
type retention struct {
	aged  time.Time // when events were last removed for their age, or the log was opened
	tight squeeze
	told  time.Time // when the log last said that the buffer is short
	hurt  time.Time // when it last said that damage is in the way
}

// ageLimit returns up to where events are too old: by the machine's clock, but from the oldest
// on no more than twice the time that has passed, by the monotonic clock that nobody sets,
// since events were last removed. So a clock that is wrong by a day for an hour costs a few
// hours of the buffer and not all of it, and after a day away the events from before go as
// new ones come. Never is there more on disk than in an ordinary day.
func ageLimit(oldest event.Cursor, now, aged time.Time, keep time.Duration) event.Cursor {
	passed := min(max(now.Sub(aged), 0), max(retentionStep, keep/blockShare)) // no more than a block may span
	return min(event.CursorAt(now.Add(-keep)), oldest+event.Cursor(2*passed.Microseconds()))
}

// squeeze is how want of free space is dealt with where removing events does not help: on a
// file system that keeps what is removed, in snapshots for instance, or beside a process that
// takes it all.
type squeeze struct {
	free uint64    // when events were last removed for it
	next time.Time // not before this again
	wait time.Duration
}

// again reports whether events may be removed for want of space, now that so much is free. If
// there is less than the last time, it was no help then, and next time is later.
func (q *squeeze) again(free uint64, now time.Time) bool {
	if now.Before(q.next) {
		return false
	}
	if q.wait = min(max(2*q.wait, time.Second), 10*time.Minute); free >= q.free {
		q.wait = 0
	}
	q.free, q.next = free, now.Add(q.wait)
	return true
}

// MinMaxBytes is the least that Config.MaxBytes may be for the buffer to be worth its name.
const MinMaxBytes = 500e6

const (
	// retentionInterval is how often is looked for what must go.
	retentionInterval = time.Second
	// retentionStep is how much at least is removed for its age at a time: a cut costs a
	// synced write or two.
	retentionStep = time.Minute
	// spareBytes is what the store needs on disk beside events: the ballast, Pebble's logs
	// and manifests, tables on their way out.
	spareBytes = 160 << 20
	// keptBytes is what want of free space leaves in the buffer: removing it would win
	// nothing.
	keptBytes = 64 << 20
)

func (l *Log) trimUntil(ctx context.Context) error {
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	var rest time.Time // until then nothing is tried
	for {
		if now := time.Now(); now.After(rest) {
			err := explain(l.cfg.Dir, l.trim(min(retentionStep, l.limits.Load().Retention/60)))
			if r := (refusal{}); errors.As(err, &r) {
				// A cut through a damaged table fails, and takes Pebble seconds. A minute later it
				// is beyond it.
				rest = now.Add(retentionStep)
				if now.Sub(l.retention.hurt) > time.Hour {
					l.retention.hurt = now
					l.log.Error("old events cannot be removed yet: "+r.text, "oldest", l.Oldest())
				}
				err = nil
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Why events are removed, as a metric's label.
const (
	tooOld   = "age"
	tooMany  = "max_disk"
	tooTight = "min_free_disk"
)

// Trim removes what is too old, and more of the oldest if the log is too large or the disk
// too full. It has one caller at a time, which is Run as long as that runs.
func (l *Log) Trim() error { return explain(l.cfg.Dir, l.trim(0)) }

// trim is Trim, but leaves what is too old until it is so by step.
func (l *Log) trim(step time.Duration) error {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return ErrClosed
	}
	through, reason, err := l.tooOld(step)
	if err != nil {
		return err
	}
	excess, why := l.excess()
	if excess > 0 {
		removed := l.removed.Load().bytes
		p, err := l.throughBytes(removed + excess)
		if err != nil {
			return err
		}
		if p > through {
			through, reason = p, why
		}
	}
	if through <= l.Trimmed() {
		return nil
	}
	return l.remove(through, reason)
}

// tooOld returns how far events are older than the retention.
func (l *Log) tooOld(step time.Duration) (through event.Cursor, reason string, err error) {
	oldest := l.Oldest()
	limit := ageLimit(oldest, l.cfg.Now(), l.retention.aged, l.limits.Load().Retention)
	if limit <= 0 || oldest == 0 || limit < oldest+event.Cursor(step.Microseconds()) {
		return 0, "", nil // also with a clock that nobody has set yet
	}
	l.writing <- struct{}{}
	if len(l.fresh) > 0 && l.fresh[0].First() <= limit && !l.stuck {
		// Where hardly anything happens. Only blocks are removed.
		err = l.commit(context.Background(), nil, state{l.Trimmed(), l.Checkpoint()}, true)
	}
	blocks := l.blocks
	l.writing.release()
	if err != nil {
		return 0, "", err
	}
	through, err = l.store.lastThrough(min(limit, blocks))
	return through, tooOld, err
}

// excess returns how many bytes of the oldest events must go for the store's size or for
// the disk's free space. Both count what the log has stored, not what the disk shows:
// space comes back later, and a loop on that would remove too much.
func (l *Log) excess() (bytes int64, reason string) {
	limits := l.limits.Load()
	size := l.stored.Load().bytes - l.removed.Load().bytes
	if limit := limits.MaxBytes - spareBytes; limits.MaxBytes > 0 && size > limit {
		bytes, reason = size-limit+limit/256, tooMany // and a little, so as not to cut every second
	}
	usage, err := l.cfg.FS.GetDiskUsage(l.cfg.Dir)
	if err != nil {
		return bytes, reason // not every file system can tell
	}
	wanted := max(limits.MinFree, uint64(limits.MinFreeShare*float64(usage.TotalBytes)), l.cfg.Floor+l.cfg.Floor/2+l.disk.lacks())
	if usage.AvailBytes >= wanted {
		return bytes, reason
	}
	coming := uint64(0)
	if copied := l.copied.Load(); copied != nil {
		coming = uint64(l.removed.Load().bytes - *copied) // when the copy goes
	}
	if !l.disk.waiting() { // else Pebble may not answer
		m := l.store.db.Metrics()
		coming += m.Table.ObsoleteSize + m.Table.ZombieSize
	}
	if short := min(int64(wanted)-int64(usage.AvailBytes)-int64(coming), size-l.cfg.keptBytes); short > bytes && l.retention.tight.again(usage.AvailBytes+coming, l.cfg.Now()) {
		bytes, reason = short, tooTight
	}
	return bytes, reason
}

// throughBytes returns the end of the first block with which the log, since it began, had
// taken so many bytes; but of the last no more than the one before it.
func (l *Log) throughBytes(total int64) (event.Cursor, error) {
	l.writing <- struct{}{}
	blocks := l.blocks
	l.writing.release()
	begin := l.Trimmed()
	var failed error
	var found event.Cursor
	// Looked for by its place: where is what follows such a block, and is not before there?
	sort.Search(int(max(blocks-begin, 0)), func(i int) bool {
		next, err := l.store.first(begin + event.Cursor(i))
		if err != nil {
			failed = err
		}
		if err != nil || next.Last >= blocks {
			return true
		}
		if next.totalBytes < total {
			found = max(found, next.Last) // in case it is the last but one
			return false
		}
		found = next.Last
		return true
	})
	return found, failed
}

// remove removes the blocks up to the one that ends at through.
func (l *Log) remove(through event.Cursor, reason string) error {
	l.writing <- struct{}{}
	if l.stuck {
		l.writing.release()
		return nil
	}
	// First said, then done: a reader that meets the hole knows why.
	l.trimmed.Store(int64(through))
	w := l.store.newBatch(1 << 10)
	w.state(l.Last(), state{through, l.Checkpoint()})
	err := w.commit(false)
	if err == nil {
		// With the lock held, because this may be a record in the WAL, too, and what damage is
		// told by is that there is never more than one on its way to disk.
		err = l.store.excise(context.Background(), through)
	}
	l.writing.release()
	if err != nil {
		return err
	}
	l.oldestMu.Lock()
	defer l.oldestMu.Unlock()
	before, now := *l.removed.Load(), *l.stored.Load()
	first, err := l.store.first(through)
	if err != nil {
		return err
	}
	oldest := first.First
	if first.Last > 0 {
		now = totals{first.totalBytes - first.stored, first.totalEvents - int64(first.Events())}
	} else if c := l.current.Load().next(through); c != nil {
		oldest = c.First()
	}
	if reason == tooOld {
		l.retention.aged = l.cfg.Now()
	}
	l.removed.Store(&now)
	l.oldest.Store(int64(oldest))
	l.metrics.removed.WithLabelValues(reason).Add(float64(now.events - before.events))
	l.log.Debug("old events removed", "reason", reason, "through", through, "oldest", oldest)
	if reason != tooOld && time.Since(l.retention.told) > time.Hour {
		l.retention.told = time.Now()
		advice := "raise --max-disk or lower --event-ttl"
		if reason == tooTight {
			advice = "make room, or lower --min-free-disk or --event-ttl"
		}
		l.log.Warn("the buffer does not hold the whole --event-ttl: "+advice, "reason", reason,
			"replay", time.Since(oldest.Time()).Round(time.Second), "buffer_bytes", l.stored.Load().bytes-now.bytes)
	}
	return nil
}

// spaceInterval is how often an Append that waits looks at the disk.
const spaceInterval = 250 * time.Millisecond

// waitForSpace returns when there is room for another batch.
func (l *Log) waitForSpace(ctx context.Context) error {
	for {
		usage, err := l.cfg.FS.GetDiskUsage(l.cfg.Dir)
		if err != nil {
			// Not every file system can tell (those in memory cannot).
			l.diskFull.Store(false)
			return nil
		}
		if l.hasSpace(usage.AvailBytes) {
			return nil
		}
		if !l.diskFull.Swap(true) {
			l.log.Error("disk is too full, ingest waits until there is space; consumers are still served",
				"dir", l.cfg.Dir, "free_bytes", usage.AvailBytes, "needed_bytes", l.cfg.Floor)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for disk space: %w", ctx.Err())
		case <-time.After(spaceInterval):
		}
	}
}

// hasSpace reports whether there is room for another batch. Once there was not, it takes a
// little more until there is again.
func (l *Log) hasSpace(free uint64) bool {
	floor := l.cfg.Floor
	if l.diskFull.Load() {
		floor += floor / 8
	}
	// Something waits though there is space where a quota or inodes have run out.
	if free < floor || l.disk.waiting() {
		return false
	}
	if l.diskFull.Swap(false) {
		l.log.Info("disk has space again, ingest goes on", "free_bytes", free)
	}
	return true
}

// noSpace is told by the file system that there was no room for something.
func (l *Log) noSpace(op string, err error) {
	if !l.diskFull.Swap(true) {
		l.log.Error("disk is full, ingest waits until there is space; consumers are still served",
			"dir", l.cfg.Dir, "op", op, "err", err)
	}
}

// ballastRetry is how long after a failure the ballast is not tried again.
const ballastRetry = time.Minute

// keepBallast makes the ballast again when there is room for it. On the way it notices that
// there is space again, should nothing be appended.
func (l *Log) keepBallast() {
	usage, err := l.cfg.FS.GetDiskUsage(l.cfg.Dir)
	if err != nil {
		return
	}
	l.hasSpace(usage.AvailBytes)
	if time.Since(l.noBallast) < ballastRetry {
		return
	}
	if err := l.disk.restore(usage.AvailBytes, l.cfg.Floor); err != nil {
		l.noBallast = time.Now()
		l.log.Debug("no ballast for a full disk", "err", err)
	}
}
