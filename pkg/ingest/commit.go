package ingest

import (
	"context"
	"errors"
	"fmt"

	"slipstream/pkg/eventlog"
)

// commit appends runs to the log in order, together with those behind them that are
// encoded by then. It returns when there are no more, or when the log fails.
func (in *Ingester) commit(ctx context.Context) error {
	var runs []*run
	var chunks []*eventlog.Chunk
	var next *run // taken from toCommit, not yet seen to be encoded
	for {
		if next == nil {
			if next = <-in.toCommit; next == nil {
				return nil
			}
		}
		<-next.done
		runs, chunks, next = append(runs[:0], next), chunks[:0], in.ready()
		for ; next != nil && next.encoded(); next = in.ready() {
			runs = append(runs, next)
		}
		var checkpoint []byte
		var failed error
		for _, r := range runs {
			if r.chunk != nil {
				chunks = append(chunks, r.chunk)
			}
			if r.checkpoint != nil {
				checkpoint = r.checkpoint
			}
			failed = errors.Join(failed, r.err)
		}
		if failed == nil && (len(chunks) > 0 || checkpoint != nil) {
			failed = in.cfg.Log.Append(ctx, chunks, checkpoint)
		}
		for _, r := range runs {
			in.freeRuns <- r
		}
		if failed != nil {
			if next != nil {
				<-next.done
				in.freeRuns <- next
			}
			if ctx.Err() != nil && errors.Is(failed, ctx.Err()) {
				return errStopped
			}
			return fmt.Errorf("append events: %w", failed)
		}
	}
}

// ready returns the next run in order if there is one already.
func (in *Ingester) ready() *run {
	select {
	case r := <-in.toCommit:
		return r
	default:
		return nil
	}
}

// encoded reports whether the run is, which it may do once.
func (r *run) encoded() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// errStopped ends a commit loop that was told to stop while it waited for disk space.
// Nothing is lost: the checkpoint is behind what was not stored.
var errStopped = errors.New("stopped while the disk was full")
