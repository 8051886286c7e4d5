package subscribe

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// newSocket returns the socket of a connection. For one that carries no bytes of its own
// beside ours, that is the kernel's.
func newSocket(c net.Conn) socket {
	if tcp, ok := c.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			k := &kernel{raw: raw}
			k.once, k.until = k.try, k.writable
			return k
		}
	}
	return &stream{out: c}
}

// kernel is a TCP connection that is written to without waiting.
type kernel struct {
	raw         syscall.RawConn
	once, until func(fd uintptr) bool // try and writable, made only once

	// Of the write under way.
	bufs net.Buffers
	n    int
	err  error
}

// maxIovecs is the kernel's limit (IOV_MAX).
const maxIovecs = 1024

func (k *kernel) write(bufs net.Buffers) (n int, full bool, err error) {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	k.bufs, k.n, k.err = bufs[:min(len(bufs), maxIovecs)], 0, nil
	err = k.raw.Write(k.once)
	n, k.bufs = k.n, nil
	return n, n < total, errors.Join(err, k.err)
}

// try writes once. It never asks to be called again.
func (k *kernel) try(fd uintptr) bool {
	for {
		if len(k.bufs) == 1 {
			k.n, k.err = unix.Write(int(fd), k.bufs[0])
		} else {
			k.n, k.err = unix.Writev(int(fd), k.bufs)
		}
		if k.err == unix.EINTR {
			continue
		}
		if k.err == unix.EAGAIN {
			k.err = nil
		}
		k.n = max(k.n, 0)
		return true
	}
}

func (k *kernel) wait() error {
	k.err = nil
	err := k.raw.Write(k.until)
	return errors.Join(err, k.err)
}

// writable reports whether the kernel has room. If not, the runtime calls it again when
// it has heard of some.
func (k *kernel) writable(fd uintptr) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0)
		if err == unix.EINTR {
			continue
		}
		k.err = err
		return n != 0 || err != nil
	}
}

// drained reports whether the peer has acknowledged everything, so that the kernel takes as
// much as streamBytes without waiting.
func drained(c net.Conn) bool {
	tcp := tcpOf(c)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	unsent := -1
	raw.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ); err == nil {
			unsent = n
		}
	})
	return unsent == 0
}

// outbound tells how a connection's bytes fare below us: unsent is how many the peer
// has not acknowledged (TIOCOUTQ), acked how many it ever has. acked is what progress
// is judged by: unsent also changes when the socket takes more for a peer that takes
// nothing. ok is false if acked cannot be told, and unsent is 0 if that cannot.
func outbound(c net.Conn) (unsent int, acked uint64, ok bool) {
	tcp := tcpOf(c)
	if tcp == nil {
		return 0, 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	raw.Control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
		if err != nil || n == 0 {
			return
		}
		unsent = n
		// The kernel counts since 4.1; what only looks like Linux may leave it at 0.
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			acked, ok = info.Bytes_acked, info.Bytes_acked > 0
		}
	})
	return unsent, acked, ok
}
