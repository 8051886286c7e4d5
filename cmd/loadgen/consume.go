package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"slipstream/pkg/firehose"
	"slipstream/pkg/repo"
)

// consume runs consumers until ctx ends or one of them fails, and prints what they got.
func consume(ctx context.Context, w io.Writer, target, relay string, consumers int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	var lateness *lateness
	if relay != "" {
		lateness = newLateness()
		group.Go(func() { cancel(lateness.follow(ctx, relay)) })
	}
	began := time.Now()
	var total swarm
	for i := range consumers {
		c := consumer{swarm: &total}
		if i == 0 {
			c.lateness = lateness
		}
		group.Go(func() { cancel(c.run(ctx, target)) })
	}
	<-ctx.Done()
	took := time.Since(began)
	group.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	fmt.Fprintf(w, "%d consumers, %.0f s: %d events, %.0f/s, %.2f MB/s\n", consumers, took.Seconds(),
		total.events.Load(), float64(total.events.Load())/took.Seconds(), float64(total.bytes.Load())/took.Seconds()/1e6)
	if lateness != nil {
		fmt.Fprintln(w, lateness)
	}
	return nil
}

// swarm counts what all consumers got.
type swarm struct{ events, bytes atomic.Int64 }

// consumer is one connection. It reads frames without looking into them.
type consumer struct {
	swarm    *swarm
	lateness *lateness // nil: events are only counted
}

func (c *consumer) run(ctx context.Context, target string) error {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "ws" {
		return fmt.Errorf("--url %q: use ws://host:port/path", target)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", u.RequestURI(), u.Host)
	r := bufio.NewReaderSize(conn, 64<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return fmt.Errorf("handshake: %s: %s", resp.Status, text)
	}
	for {
		if err := c.frame(conn, r); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
}

// frame reads one frame of the server's (RFC 6455 section 5.2; never masked).
func (c *consumer) frame(conn net.Conn, r *bufio.Reader) error {
	head, err := r.Peek(2)
	if err != nil {
		return err
	}
	opcode, n, skip := head[0]&15, int(head[1]&127), 2
	switch n {
	case 126:
		if head, err = r.Peek(4); err != nil {
			return err
		}
		n, skip = int(binary.BigEndian.Uint16(head[2:])), 4
	case 127:
		if head, err = r.Peek(10); err != nil {
			return err
		}
		n, skip = int(binary.BigEndian.Uint64(head[2:])), 10
	}
	r.Discard(skip)
	switch opcode {
	case 8:
		reason, _ := io.ReadAll(io.LimitReader(r, int64(n)))
		return fmt.Errorf("the server ended the connection: %q", reason[min(2, len(reason)):])
	case 9:
		// A ping, whose payload is the pong's, masked with a key of zeros.
		payload, err := r.Peek(n)
		if err == nil {
			_, err = conn.Write(append([]byte{0x8a, 0x80 | byte(n), 0, 0, 0, 0}, payload...))
		}
		if err != nil {
			return err
		}
	case 1, 2:
		c.swarm.events.Add(1)
		c.swarm.bytes.Add(int64(skip + n))
		if c.lateness != nil {
			// A commit's rev is within the first bytes, behind the DID.
			if payload, err := r.Peek(min(n, 512)); err == nil {
				c.lateness.arrived(payload)
			}
		}
	}
	_, err = r.Discard(n)
	return err
}

// lateness holds when the relay sent each commit against when a consumer got it.
type lateness struct {
	mu   sync.Mutex           // guards everything below
	sent map[string]time.Time // by rev
	took []time.Duration
}

func newLateness() *lateness { return &lateness{sent: map[string]time.Time{}} }

// follow subscribes to the relay itself. What the relay sends, it sends to both at once.
func (l *lateness) follow(ctx context.Context, relay string) error {
	target, err := firehose.ParseURL(relay)
	if err != nil {
		return fmt.Errorf("--relay %q: %w", relay, err)
	}
	var commit repo.Commit
	return firehose.New(firehose.Config{URL: target}).Run(ctx, firehose.Start{Live: true}, func(f firehose.Frame) error {
		now := time.Now()
		defer f.Release()
		if f.Type != "#commit" || commit.Parse(f.Body) != nil {
			return nil
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sent[string(commit.Rev)] = now
		return nil
	})
}

var revField = []byte(`"commit":{"rev":"`)

// arrived notes an event. Of a commit's events the first counts.
func (l *lateness) arrived(payload []byte) {
	now := time.Now()
	_, rev, ok := bytes.Cut(payload, revField)
	if !ok {
		return
	}
	rev, _, _ = bytes.Cut(rev, []byte{'"'})
	l.mu.Lock()
	defer l.mu.Unlock()
	if sent, ok := l.sent[string(rev)]; ok {
		l.took = append(l.took, now.Sub(sent))
		delete(l.sent, string(rev))
	}
}

// String returns the percentiles of the lateness as a row of a markdown table.
func (l *lateness) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.took) == 0 {
		return "no commit was seen on both sides"
	}
	slices.Sort(l.took)
	at := func(p float64) float64 {
		return float64(l.took[int(p*float64(len(l.took)-1))].Microseconds()) / 1000
	}
	return fmt.Sprintf("| commits | p50 ms | p90 ms | p99 ms | p99.9 ms | max ms |\n|--:|--:|--:|--:|--:|--:|\n| %d | %.1f | %.1f | %.1f | %.1f | %.1f |",
		len(l.took), at(0.5), at(0.9), at(0.99), at(0.999), at(1))
}
