package firehose

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// Kept messages stay as they are until they are released, whatever comes after them and in
// whatever order they are let go; messages that are not kept cost nothing.
func TestArena(t *testing.T) {
	const limit = 3 * slabSize
	rng := rand.New(rand.NewPCG(1, 2))
	type kept struct {
		message, want []byte
		slab          *slab
	}
	var a arena
	var all []kept
	for i := range 3000 {
		size := rng.IntN(5000)
		switch rng.IntN(100) {
		case 0:
			size = rng.IntN(2 * limit)
		case 1:
			size = []int{0, slabSize - 1, slabSize, slabSize + 1, limit, limit + 1}[rng.IntN(6)]
		}
		want := bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, size/3+1)[:size]
		message, err := a.read(iotest.HalfReader(bytes.NewReader(want)), limit)
		if size > limit {
			if !errors.Is(err, errTooLarge) {
				t.Fatalf("%d bytes: %v", size, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(message, want) {
			t.Fatalf("message %d of %d bytes: got %d, %v", i, size, len(message), err)
		}
		if rng.IntN(4) == 0 {
			continue
		}
		all = append(all, kept{message, want, a.keep(message)})
		if len(all) > 200 {
			j := rng.IntN(len(all))
			k := all[j]
			all[j] = all[len(all)-1]
			all = all[:len(all)-1]
			if !bytes.Equal(k.message, k.want) {
				t.Fatalf("a kept message of %d bytes has changed", len(k.want))
			}
			k.slab.release()
		}
	}
	a.close()
	for _, k := range all {
		if !bytes.Equal(k.message, k.want) {
			t.Fatalf("a kept message of %d bytes has changed", len(k.want))
		}
		k.slab.release()
	}
	for _, k := range all {
		if n := k.slab.refs.Load(); n > 0 {
			t.Fatalf("a slab keeps %d references", n)
		}
	}
}

// Small messages share a slab whatever is dropped between them.
func TestDroppedMessagesLeaveTheSlab(t *testing.T) {
	var a arena
	used := map[*slab]bool{}
	for range 300 {
		message, err := a.read(bytes.NewReader(make([]byte, 100)), slabSize)
		if err != nil {
			t.Fatal(err)
		}
		used[a.keep(message)] = true
		if _, err := a.read(bytes.NewReader(make([]byte, slabSize+1)), slabSize); !errors.Is(err, errTooLarge) {
			t.Fatal(err)
		}
		if _, err := a.read(bytes.NewReader(make([]byte, slabSize-50)), slabSize); err != nil { // not kept
			t.Fatal(err)
		}
	}
	if len(used) != 1 {
		t.Errorf("300 messages of 100 bytes are in %d slabs", len(used))
	}
}
