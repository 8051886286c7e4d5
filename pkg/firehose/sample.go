package firehose

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Bounds of looking at a relay. The whole network fills a sample within a few milliseconds; of
// a small one, one frame must do.
const (
	sampleFrames  = 9
	sampleTimeout = 15 * time.Second
	sampleIdle    = 10 * time.Second // for the first frame: who sends none is idle
	sampleRest    = time.Second      // for the frames behind the first
	firstTimeout  = 5 * time.Second  // for the samples before the first frame
)

// needSamples is how many samples in a row a preferred relay must answer before it is gone back
// to, maxNeedSamples how many at most after it has failed again and again: half an hour's.
const (
	needSamples    = 2
	maxNeedSamples = 32
)

// errIdle says that a relay answers and has nothing to send.
var errIdle = errors.New("no frame within the time of a sample")

// probe looks at the frames of a relay at a place: their first seq and, because single clocks
// may be anywhere, their median time.
func (c *Client) probe(ctx context.Context, url string, start Start) (Position, error) {
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	conn, err := c.dial(ctx, url, start, sampleTimeout, 16<<10)
	if err != nil {
		return Position{}, err
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.Close()
		close(closed)
	})
	defer func() {
		if !stop() {
			<-closed
		}
		conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		conn.Close()
	}()
	conn.SetReadLimit(int64(c.cfg.MaxMessage))
	conn.SetReadDeadline(time.Now().Add(c.sampleIdle))
	var times []time.Time
	first, size := Seq(-1), 0
	for frames := 0; frames < sampleFrames && size < c.cfg.MaxMessage; {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			var timeout net.Error
			switch {
			case first >= 0:
			case ctx.Err() == nil && errors.As(err, &timeout) && timeout.Timeout():
				return Position{}, errIdle
			default:
				return Position{}, err
			}
			break
		}
		size += len(message)
		h, body, err := parseHeader(message)
		if err != nil || kind != websocket.BinaryMessage || h.typ == "#info" || h.typ == "#unknown" {
			continue
		}
		if h.op == -1 {
			name, _ := parsePair(body, "error", "message")
			return Position{}, errors.New("the relay says " + name)
		}
		seq, err := parseSeq(body)
		if err != nil {
			continue
		}
		if frames++; first < 0 {
			first = seq
			conn.SetReadDeadline(time.Now().Add(sampleRest))
		}
		if t := parseTime(body); !t.IsZero() {
			times = append(times, t)
		}
	}
	switch {
	case first < 0:
		return Position{}, errors.New("no frame can be read")
	case len(times) == 0:
		return Position{}, errors.New("the frames have no time")
	}
	slices.SortFunc(times, time.Time.Compare)
	return Position{Seq: max(0, first-1), Time: times[len(times)/2].UTC()}, nil
}

// sample takes one of a relay and reports whether it answers. start says that no frame was
// taken from any relay before, nor is wanted from before.
func (u *Upstreams) sample(ctx context.Context, i int, start bool) bool {
	p, err := u.client.probe(ctx, u.cfg.URLs[i], Start{Live: true})
	if ctx.Err() != nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	r := &u.relays[i]
	log := u.client.log.With("standby", u.cfg.URLs[i])
	if err != nil && !errors.Is(err, errIdle) {
		if r.reachable && i != u.active {
			log.Warn("a standby cannot be reached", "error", err)
		}
		r.reachable, r.good = false, 0
		return false
	}
	if !r.reachable && i != u.active {
		log.Info("a standby can be reached again")
	}
	r.reachable = true
	if err != nil {
		if u.quiet { // so it is no wonder
			r.good++
		}
		return true
	}
	r.good++
	p.Start = start
	r.add(p, u.reached().Add(-u.cfg.Margin))
	u.update++
	return true
}

// add keeps a sample, and of those before it as many as there is room for, among them the one
// that would be resumed from.
func (r *relay) add(p Position, until time.Time) {
	samples := slices.Clone(r.samples)
	// Numbers that fall are new ones, with which the others have nothing to do.
	for n := len(samples); n > 0 && samples[n-1].Seq > p.Seq; n-- {
		samples = samples[:n-1]
	}
	if r.last != nil && r.last.Seq > p.Seq {
		r.last, r.anew = nil, true
	}
	p.seen = time.Now()
	samples = append(samples, p)
	if len(samples) > keepSamples {
		// The second is as good as the first if it is old enough.
		drop := 1
		if !samples[1].Time.After(until) {
			drop = 0
		}
		samples = slices.Delete(samples, drop, drop+1)
	}
	r.samples, r.sampled = samples, time.Now()
}

// sampleAll samples all relays but one.
func (u *Upstreams) sampleAll(ctx context.Context, but int, start bool) {
	var group sync.WaitGroup
	for i := range u.cfg.URLs {
		if i != but {
			group.Go(func() { u.sample(ctx, i, start) })
		}
	}
	group.Wait()
}

// sampleFirst samples the standbys before anything else where nothing is known of them, or what
// is known is of no use: if the active relay fails at once, there must be something to resume
// from.
func (u *Upstreams) sampleFirst(ctx context.Context, from Resume) {
	wanted := from.Start.Live
	for i := range u.relays {
		wanted = wanted || i != from.Active && u.relays[i].samples == nil
	}
	if from.Active < 0 || !wanted {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	u.sampleAll(ctx, from.Active, from.Start.Live)
}

// watch samples the standbys for as long as it may, and calls for the way back.
func (u *Upstreams) watch(ctx context.Context) {
	for before := u.reached(); ; {
		pause := u.cfg.SampleInterval
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause - pause/10 + rand.N(pause/5+1)):
		}
		reached := u.reached()
		u.mu.Lock()
		active := u.active
		u.quiet = reached.Equal(before)
		u.mu.Unlock()
		before = reached
		u.sampleAll(ctx, active, false)
		u.goBack(active)
	}
}

// goBack ends the active session if a preferred relay has answered for long enough and can be
// resumed. There is no hurry: the active one works.
func (u *Upstreams) goBack(active int) {
	for i := range active {
		u.mu.Lock()
		ready := u.relays[i].good >= u.relays[i].need
		u.mu.Unlock()
		if !ready {
			continue
		}
		u.mu.Lock()
		if u.active == active && u.leave != nil {
			u.next = i
			u.leave()
		}
		u.mu.Unlock()
		return
	}
}
