package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// conn is one consumer, over all its connections. It is owned by its loop.
type conn struct {
	spec
	addr    *net.TCPAddr
	fd      int       // -1: not connected
	due     time.Time // when to dial
	request []byte    // what is yet to be sent of the handshake
	answer  []byte    // what has come of its answer
	open    bool      // the handshake is done
	walker  walker
	tracker tracker

	// Of one that comes back.
	heard   time.Time     // when it last got events
	silence time.Duration // the longest time without
	// Of a paced consumer.
	quota  float64 // events that it may read now
	ticked time.Time
}

// pacedReceiveBuffer is what the kernel may hold for a paced consumer (Linux doubles it),
// so that it is the server that has to wait and not the kernel that reads for it.
const pacedReceiveBuffer = 8 << 10

// dial begins a connection. It reports whether there is a socket.
func (l *loop) dial(c *conn) bool {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: c.addr.Port, Addr: [16]byte(c.addr.IP.To16())})
	if ip := c.addr.IP.To4(); ip != nil {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: c.addr.Port, Addr: [4]byte(ip)}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		l.lost(c, fmt.Errorf("socket: %w", err))
		return false
	}
	c.fd, c.open, c.answer = fd, false, nil
	c.walker = walker{}
	switch {
	case c.whole:
		c.walker.peek = maxFrame
	case c.saw != nil:
		c.walker.peek = latePeek
	case c.track:
		c.walker.peek = trackPeek
	}
	if c.paced {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, pacedReceiveBuffer)
	}
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		l.lost(c, err)
		return false
	}
	c.request = l.handshake(c)
	if err := l.watch(unix.EPOLL_CTL_ADD, c, unix.EPOLLIN|unix.EPOLLOUT); err != nil {
		l.lost(c, err)
		return false
	}
	return true
}

func (l *loop) handshake(c *conn) []byte {
	u := *l.config().target
	if c.v2 {
		u.Path = "/xrpc/network.bsky.jetstream.subscribeEvents"
	}
	query := func(s string) {
		if u.RawQuery != "" && s != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += s
	}
	query(c.query)
	if c.track && (!c.since || c.tracker.last != 0) {
		if cursor := c.tracker.resume(); cursor != 0 {
			query(fmt.Sprintf("cursor=%d", cursor))
		}
	} else if c.cursor != 0 {
		query(fmt.Sprintf("cursor=%d", c.cursor))
	}
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", u.RequestURI(), u.Host)
}

func (l *loop) watch(op int, c *conn, events uint32) error {
	return unix.EpollCtl(l.epoll, op, c.fd, &unix.EpollEvent{Events: events, Fd: int32(c.fd)})
}

// serve does what a socket is ready for. It reports whether there was so much to read that
// more is to be expected.
func (l *loop) serve(c *conn, events uint32) bool {
	if len(c.request) > 0 {
		n, err := unix.Write(c.fd, c.request)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			l.lost(c, err)
			return false
		}
		if c.request = c.request[max(n, 0):]; len(c.request) > 0 {
			return false
		}
		if err := l.watch(unix.EPOLL_CTL_MOD, c, unix.EPOLLIN); err != nil {
			l.lost(c, err)
		}
		return false
	}
	if c.open && c.paced {
		// What hangs up is seen although nothing is read. What it has sent before is read
		// then, for the reason.
		if events&(unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) != 0 {
			l.unleash(c)
		}
		return false
	}
	buf := l.buf
	if c.paced {
		buf = buf[:1] // up to the end of the answer, and no further
	}
	return l.read(c, buf) >= busyBytes
}

// read reads once and returns how many bytes there were.
func (l *loop) read(c *conn, buf []byte) int {
	n, err := unix.Read(c.fd, buf)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return 0
	case err != nil:
		l.lost(c, err)
		return 0
	case n == 0 && !c.open:
		l.lost(c, errors.New("handshake: no answer"))
		return 0
	case n == 0:
		l.lost(c, errors.New("end of stream without a close frame"))
		return 0
	}
	b := buf[:n]
	if !c.open {
		if b, err = l.answered(c, b); err != nil {
			l.lost(c, err)
			return 0
		}
	}
	l.current, l.gotEvents, l.gotBytes = c, 0, 0
	err = c.walker.walk(b, l.visit)
	l.events.Add(l.gotEvents)
	l.bytes.Add(l.gotBytes)
	if l.gotEvents > 0 && l.config().resume {
		now := time.Now()
		if !c.heard.IsZero() {
			c.silence = max(c.silence, now.Sub(c.heard))
		}
		c.heard = now
	}
	switch {
	case errors.Is(err, errAgain):
		l.hangUp(c)
		c.tracker, c.due = tracker{}, time.Now()
		l.waiting = append(l.waiting, c)
	case err != nil:
		l.lost(c, err)
	}
	return n
}

// errAgain ends the connection of a consumer that is to begin anew.
var errAgain = errors.New("begins again")

// answered takes bytes of the handshake's answer and returns what follows it.
func (l *loop) answered(c *conn, b []byte) (rest []byte, err error) {
	c.answer = append(c.answer, b...)
	end := bytes.Index(c.answer, []byte("\r\n\r\n"))
	if end < 0 {
		if len(c.answer) > 16<<10 {
			return nil, errors.New("handshake: no end of the header")
		}
		return nil, nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.answer)), nil)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return nil, fmt.Errorf("handshake: %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	rest = c.answer[end+4:]
	c.answer, c.open = nil, true
	l.swarm.opens()
	if c.paced {
		c.ticked = time.Now()
		l.paced = append(l.paced, c)
		if err := l.watch(unix.EPOLL_CTL_MOD, c, unix.EPOLLRDHUP); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// frame is the visitor of the current connection's frames.
func (l *loop) frame(opcode byte, size int, payload []byte) error {
	c := l.current
	switch opcode {
	case opText, opBinary:
		l.gotEvents++
		l.gotBytes += int64(size)
		c.quota--
		if c.saw != nil {
			c.saw(payload, size)
		}
		var err error
		if c.track {
			err = c.tracker.saw(payload, size)
		} else if c.sizes {
			c.tracker.passed(size)
		}
		if err == nil && c.most > 0 && c.tracker.count >= c.most {
			switch {
			case c.again:
				return errAgain
			case c.tracker.count == c.most:
				l.swarm.finish()
			default:
				err = fmt.Errorf("more came than %d events", c.most)
			}
		}
		if err != nil {
			l.swarm.fault(err)
			return err
		}
	case opPing:
		// The pong is masked with a key of zeros. What does not fit into the socket is lost,
		// as is the ping of a peer that does not read.
		unix.Write(c.fd, append([]byte{0x8a, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...))
	case opClose:
		if len(payload) < 2 {
			return errors.New("close frame without a code")
		}
		unix.Write(c.fd, []byte{0x88, 0x82, 0, 0, 0, 0, payload[0], payload[1]})
		return fmt.Errorf("%d %s", binary.BigEndian.Uint16(payload), payload[2:])
	}
	return nil
}

// readPaced reads as much as a paced consumer may by now, to the byte: the rest is to wait
// at the server.
func (l *loop) readPaced(c *conn, now time.Time) {
	if c.fd < 0 || !c.paced {
		return
	}
	// At most a second's worth is saved up, and at least one event.
	c.quota = min(c.quota+c.pace*now.Sub(c.ticked).Seconds(), max(c.pace, 1))
	c.ticked = now
	for c.quota >= 1 || c.pace > 0 && c.walker.left > 0 {
		// A message has at least as many bytes as the longest header of a common one.
		n := min(max(c.walker.left, 4), len(l.buf))
		if l.read(c, l.buf[:n]) == 0 {
			return
		}
	}
}

// unleash makes a paced consumer one like the others.
func (l *loop) unleash(c *conn) {
	c.paced = false
	unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, readBytes)
	if err := l.watch(unix.EPOLL_CTL_MOD, c, unix.EPOLLIN); err != nil {
		l.lost(c, err)
	}
}

// hangUp closes the socket.
func (l *loop) hangUp(c *conn) {
	unix.Close(c.fd)
	c.fd = -1
	if c.open {
		c.open = false
		l.swarm.open.Add(-1)
	}
}

// lost notes that a connection is over, and why.
func (l *loop) lost(c *conn, why error) {
	// While it waits for its server, a consumer that comes back is refused again and again.
	if !l.config().resume || !errors.Is(why, unix.ECONNREFUSED) {
		l.swarm.count(why.Error())
	}
	if c.fd >= 0 {
		l.hangUp(c)
	}
	if l.config().resume {
		c.due = time.Now().Add(redial)
		l.waiting = append(l.waiting, c)
	} else {
		l.swarm.over.Add(1)
	}
}
