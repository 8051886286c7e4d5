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
	for r := range in.toCommit {
		<-r.done
		runs, chunks = append(runs[:0], r), chunks[:0]
		for more := true; more; {
			select {
			case next, ok := <-in.toCommit:
				if more = ok; ok {
					<-next.done
					runs = append(runs, next)
				}
			default:
				more = false
			}
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
			if ctx.Err() != nil && errors.Is(failed, ctx.Err()) {
				return errStopped
			}
			return fmt.Errorf("append events: %w", failed)
		}
	}
	return nil
}

// errStopped ends a commit loop that was told to stop while it waited for disk space.
// Nothing is lost: the checkpoint is behind what was not stored.
var errStopped = errors.New("stopped while the disk was full")
