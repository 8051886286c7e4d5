package subscribe

import (
	"io"
	"net"
	"sync"
)

// socket is what the writing role sees of a connection: it takes what it has room for, at
// once, and a goroutine that holds nothing waits for more room.
type socket interface {
	// write takes as many bytes as it can without waiting, and says whether it is full:
	// wait must then be called before the next write. It does not keep the buffers.
	write(bufs net.Buffers) (n int, full bool, err error)
	// wait blocks until there is room again, or the connection is over.
	wait() error
}

// stream is a socket that can only be written to by waiting: TLS, where a write must be
// carried through once begun, systems without vectored writes, and responses. A write is
// copied, so that nothing else is held while it waits, and because each slice would become a
// record of its own on TLS, and a chunk in a response.
type stream struct {
	out     io.Writer
	pending []byte
}

// streamBytes bounds a write to a stream: two TLS records. That many bytes are held for
// each consumer that takes nothing.
const streamBytes = 32 << 10

// pendings are buffers of streamBytes.
var pendings = sync.Pool{New: func() any { return new([streamBytes]byte) }}

func (s *stream) write(bufs net.Buffers) (n int, full bool, err error) {
	s.pending = pendings.Get().(*[streamBytes]byte)[:0]
	for _, b := range bufs {
		b = b[:min(len(b), streamBytes-n)]
		s.pending = append(s.pending, b...)
		if n += len(b); n == streamBytes {
			break
		}
	}
	return n, true, nil
}

func (s *stream) wait() error {
	_, err := s.out.Write(s.pending)
	if cap(s.pending) == streamBytes {
		pendings.Put((*[streamBytes]byte)(s.pending[:streamBytes]))
	}
	s.pending = nil
	return err
}

// tcpOf returns the TCP connection that carries c, or nil.
func tcpOf(c net.Conn) *net.TCPConn {
	for {
		below, ok := c.(interface{ NetConn() net.Conn }) // as tls.Conn has it
		if !ok {
			break
		}
		c = below.NetConn()
	}
	tcp, _ := c.(*net.TCPConn)
	return tcp
}

// closeWrite says that no more will come.
func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// abort ends a connection whose peer takes nothing: what the kernel still holds for it
// is given up.
func abort(c net.Conn) {
	if tcp := tcpOf(c); tcp != nil {
		tcp.SetLinger(0)
		tcp.Close() // a TLS connection's own Close would first wait to say goodbye
		return
	}
	c.Close()
}
