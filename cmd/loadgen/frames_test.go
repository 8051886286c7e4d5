package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// seen is one call of a visitor.
type seen struct {
	opcode  byte
	size    int
	payload string
}

// serverFrame appends a frame as a server makes it.
func serverFrame(dst []byte, opcode byte, payload []byte) []byte {
	dst = append(dst, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, byte(n))
	case n < 1<<16:
		dst = binary.BigEndian.AppendUint16(append(dst, 126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, 127), uint64(n))
	}
	return append(dst, payload...)
}

// obvious has the whole stream before it.
func obvious(stream []byte, peek int) (all []seen) {
	for len(stream) > 0 {
		opcode, head, n := stream[0]&15, 2, int(stream[1])
		switch n {
		case 126:
			head, n = 4, int(binary.BigEndian.Uint16(stream[2:]))
		case 127:
			head, n = 10, int(binary.BigEndian.Uint64(stream[2:]))
		}
		show := n
		if opcode < 8 {
			show = min(n, peek)
		}
		all = append(all, seen{opcode, head + n, string(stream[head : head+show])})
		stream = stream[head+n:]
	}
	return all
}

func TestWalkerOverAnySplit(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		var stream []byte
		for range 1 + rng.IntN(20) {
			sizes := []int{0, 1, 5, 124, 125, 126, 127, 300, 500, 65535, 65536, 70000}
			opcode, size := byte(opText), sizes[rng.IntN(len(sizes))]
			if size <= 125 {
				opcode = []byte{opText, opBinary, opClose, opPing}[rng.IntN(4)]
			}
			payload := bytes.Repeat([]byte{byte(rng.Uint32())}, size)
			for i := range min(size, 250) {
				payload[i] = byte(rng.Uint32())
			}
			stream = serverFrame(stream, opcode, payload)
		}
		w := walker{peek: []int{0, 1, trackPeek, latePeek}[rng.IntN(4)]}
		want := obvious(stream, w.peek)
		var got []seen
		most := []int{1, 3, 17, 700, 1 << 17}[rng.IntN(5)]
		for rest := stream; len(rest) > 0; {
			n := min(1+rng.IntN(most), len(rest))
			err := w.walk(rest[:n], func(opcode byte, size int, payload []byte) error {
				got = append(got, seen{opcode, size, string(payload)})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("reads of at most %d bytes, peek %d: got %d frames, want %d", most, w.peek, len(got), len(want))
		}
		if w.left != 0 || len(w.carry) != 0 {
			t.Errorf("at the end %d bytes are left and %d carried, want none", w.left, len(w.carry))
		}
	}
}

func TestWalkerRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"a masked frame":        {0x81, 0x85, 1, 2, 3, 4},
		"a reserved bit":        {0xc1, 1, 'x'},
		"a long control frame":  {0x89, 126, 0, 200},
		"a length out of range": {0x81, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		for cut := range len(b) {
			var w walker
			visited := func(byte, int, []byte) error { t.Errorf("%s, cut at %d: it was shown", name, cut); return nil }
			err := w.walk(b[:cut], visited)
			if err == nil {
				err = w.walk(b[cut:], visited)
			}
			if err == nil {
				t.Errorf("%s, cut at %d: got no error", name, cut)
			}
		}
	}
}

func BenchmarkWalker(b *testing.B) {
	var stream []byte
	for range 500 {
		stream = serverFrame(stream, opText, make([]byte, 500))
	}
	b.SetBytes(int64(len(stream)))
	n := 0
	var w walker
	for b.Loop() {
		w.walk(stream, func(byte, int, []byte) error { n++; return nil })
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
}
