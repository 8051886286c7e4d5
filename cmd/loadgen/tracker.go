package main

import (
	"bytes"
	"fmt"

	"slipstream/pkg/event"
)

// tracker checks the stream of one consumer, over any number of connections: time_us grows,
// or on the v2 wire seq, which is the same number counted from another moment, and a
// connection that resumes begins with the event that the last one ended with.
// Two consumers that began at the same cursor and have the same last have received the same
// if the rest of their trackers is the same too.
type tracker struct {
	last  int64  // time_us of the newest event
	again bool   // last comes once more: a cursor is inclusive
	count int64  // events, without those that came once more
	hash  uint64 // of their time_us and sizes, in order
}

// trackPeek is how much of an event is looked at: time_us is behind the DID.
const trackPeek = 200

var (
	timeField    = []byte(`"time_us":`)
	seqField     = []byte(`"seq":`)
	messageStart = []byte(`{"$type":"message"`)
)

// saw takes the beginning of an event whose frame has so many bytes.
func (t *tracker) saw(payload []byte, size int) error {
	field, epoch := timeField, int64(0)
	if bytes.HasPrefix(payload, messageStart) {
		field, epoch = seqField, int64(event.Epoch)
	}
	i := bytes.Index(payload, field)
	if i < 0 {
		return fmt.Errorf("an event without %s", bytes.Trim(field, `":`))
	}
	var at int64
	for _, digit := range payload[i+len(field):] {
		if digit < '0' || digit > '9' {
			break
		}
		at = at*10 + int64(digit-'0')
	}
	at += epoch
	if t.again {
		if t.again = false; at != t.last {
			return fmt.Errorf("resumed at cursor %d, but %d came first", t.last, at)
		}
		return nil
	}
	if at <= t.last {
		return fmt.Errorf("time_us %d came after %d", at, t.last)
	}
	t.last = at
	t.add(at)
	t.passed(size)
	return nil
}

// passed takes an event of which only the size of its frame is known.
func (t *tracker) passed(size int) {
	t.count++
	t.add(int64(size))
}

// add is FNV-1a, a word at a time.
func (t *tracker) add(word int64) { t.hash = (t.hash ^ uint64(word)) * 1099511628211 }

// resume returns the cursor to connect with; 0: none, the consumer begins live.
func (t *tracker) resume() int64 {
	t.again = t.last != 0
	return t.last
}
