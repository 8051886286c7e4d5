//go:build !linux

package subscribe

import "net"

// newSocket returns the socket of a connection.
func newSocket(c net.Conn) socket { return &stream{out: c} }

// outbound cannot be told here: progress is then judged by writes that return.
func outbound(net.Conn) (unsent int, acked uint64, ok bool) { return 0, 0, false }

// drained cannot be told here.
func drained(net.Conn) bool { return false }
