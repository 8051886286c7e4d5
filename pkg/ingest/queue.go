package ingest

import (
	"sync"

	"slipstream/pkg/firehose"
)

// queueBytes bounds the frames that wait to be decoded; one frame may exceed it.
const queueBytes = 4 << 20

// queue holds frames between the socket and the decode workers. When the workers keep
// up it passes single frames on at once; when they don't, what they take at a time
// grows, and with it the whole pipeline's efficiency.
type queue struct {
	free chan *batch // batches that nobody uses

	mu       sync.Mutex // guards everything below
	frames   []firehose.Frame
	bytes    int
	closed   bool
	notEmpty sync.Cond
	notFull  sync.Cond
}

func newQueue(batches int) *queue {
	q := &queue{free: make(chan *batch, batches)}
	q.notEmpty.L, q.notFull.L = &q.mu, &q.mu
	for range batches {
		q.free <- &batch{done: make(chan struct{}, 1)}
	}
	return q
}

// put adds a frame, which the queue owns then, and waits while the queue is full.
func (q *queue) put(f firehose.Frame) error {
	q.mu.Lock()
	for q.bytes >= queueBytes {
		q.notFull.Wait()
	}
	q.frames = append(q.frames, f)
	q.bytes += len(f.Body)
	q.mu.Unlock()
	q.notEmpty.Signal()
	return nil
}

// close says that no frame will come any more.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.notEmpty.Broadcast()
}

// take fills a free batch with the next frames and, before anybody else can take any,
// puts it on the ordered channel. It returns nil when the queue is closed and empty.
func (q *queue) take(ordered chan<- *batch) *batch {
	b := <-q.free
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.frames) == 0 {
		if q.closed {
			q.free <- b
			return nil
		}
		q.notEmpty.Wait()
	}
	n := min(len(q.frames), batchFrames)
	b.frames = append(b.frames[:0], q.frames[:n]...)
	for i := range b.frames {
		q.bytes -= len(b.frames[i].Body)
	}
	rest := copy(q.frames, q.frames[n:])
	clear(q.frames[rest:])
	q.frames = q.frames[:rest]
	ordered <- b
	q.notFull.Signal()
	if rest > 0 {
		q.notEmpty.Signal()
	}
	return b
}
