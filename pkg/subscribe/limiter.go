package subscribe

import (
	"math"
	"time"
)

// limiter holds a subscriber to a number of events per second. The zero value does
// not limit. It belongs to one writer.
type limiter struct {
	rate   float64 // events/s; 0: no limit
	tokens float64
	last   time.Time
}

// limiterStep is how much time's worth of events is let through at once: a write per
// event would cost more than it is worth.
const limiterStep = 50 * time.Millisecond

// quota returns how many events may be sent now or, if none, how long to wait.
func (l *limiter) quota(now time.Time) (int, time.Duration) {
	if l.rate == 0 {
		return math.MaxInt, 0
	}
	if l.last.IsZero() {
		l.tokens = max(l.rate, 1)
	} else {
		// One second's worth may be saved up, and at least one event.
		l.tokens = min(max(l.rate, 1), l.tokens+l.rate*now.Sub(l.last).Seconds())
	}
	l.last = now
	if n := int(l.tokens); n > 0 {
		return n, 0
	}
	return 0, max(limiterStep, time.Duration((1-l.tokens)/l.rate*float64(time.Second)))
}

// wait waits until there is one, and uses it up.
func (l *limiter) wait() {
	for n, wait := l.quota(time.Now()); n == 0; n, wait = l.quota(time.Now()) {
		time.Sleep(wait)
	}
	l.take(1)
}

// take uses up n events.
func (l *limiter) take(n int) {
	if l.rate > 0 {
		l.tokens -= float64(n)
	}
}
