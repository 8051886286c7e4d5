package subscribe

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// outbound tells how a connection's bytes fare below us: unsent is how many the peer
// has not acknowledged (TIOCOUTQ), acked how many it ever has. acked is what progress
// is judged by: unsent also changes when the socket takes more for a peer that takes
// nothing. ok is false if acked cannot be told, and unsent is 0 if that cannot.
func outbound(c net.Conn) (unsent int, acked uint64, ok bool) {
	raw, is := c.(syscall.Conn)
	if !is {
		return 0, 0, false
	}
	rc, err := raw.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	rc.Control(func(fd uintptr) {
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
