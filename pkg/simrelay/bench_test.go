package simrelay_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"slipstream/pkg/simrelay"
)

// discard subscribes from the oldest frame over a bare TCP connection and throws away whatever
// comes until the relay ends the connection. It returns how many bytes that was.
func discard(b *testing.B, url string) int64 {
	addr, path, _ := strings.Cut(strings.TrimPrefix(url, "ws://"), "/")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /"+path+"?cursor=0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	buf := make([]byte, 256<<10)
	total := int64(0)
	for {
		n, err := conn.Read(buf)
		total += int64(n)
		if err != nil {
			return total
		}
	}
}

// What one reader that throws everything away gets over loopback.
func BenchmarkServe(b *testing.B) {
	for _, records := range []int{0, 1000} {
		b.Run(fmt.Sprintf("loop/records=%d", records), func(b *testing.B) {
			_, url := start(b, simrelay.Config{
				Seed: 1, Accounts: 250, Loop: 3000, Records: records, Total: int64(b.N),
				Faults: simrelay.Faults{CutAfter: int64(b.N)},
			})
			measureServe(b, url)
		})
	}
	b.Run("live", func(b *testing.B) {
		_, url := start(b, simrelay.Config{
			Seed: 1, Accounts: 250, Total: int64(b.N), Faults: simrelay.Faults{CutAfter: int64(b.N)},
		})
		measureServe(b, url)
	})
}

func measureServe(b *testing.B, url string) {
	b.ReportAllocs()
	b.ResetTimer()
	n := discard(b, url)
	b.StopTimer()
	b.SetBytes(n / int64(b.N))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
}

// Making the frames of the loop, without sending them.
func BenchmarkLoopFrames(b *testing.B) {
	relay, err := simrelay.New(simrelay.Config{Seed: 1, Accounts: 250, Loop: 3000})
	if err != nil {
		b.Fatal(err)
	}
	first := int64(simrelay.DefaultFirstSeq)
	if err := relay.Advance(first + int64(b.N)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var buf []byte
	for seq := first; seq < first+int64(b.N); {
		buf, seq = relay.ReadFrames(buf[:0], seq, 128<<10)
	}
}
