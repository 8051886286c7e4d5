package subscribe

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsent returns how many bytes written to the socket the peer has not acknowledged
// (TIOCOUTQ), or 0 if that cannot be told.
func unsent(c net.Conn) int {
	raw, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	rc, err := raw.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	rc.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ); err != nil {
			n = 0
		}
	})
	return n
}
