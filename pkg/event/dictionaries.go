package event

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Dictionaries are the zstd dictionaries that a server has, by id. Two of them are special:
// the current one is our own and newest, and the primary one is what new events are
// compressed with as they are stored, and what a v1 consumer gets who asks for compression
// and names none. They are the same until SetPrimary says otherwise. It is safe for
// concurrent use.
type Dictionaries struct {
	current      *Compressor
	primary      atomic.Pointer[Compressor]
	decompressor atomic.Pointer[Decompressor]

	mu  sync.Mutex // guards everything below
	all map[uint32]known
}

// known is a dictionary and what compresses with it, digested when first asked for.
type known struct {
	bytes      []byte
	compressor func() (*Compressor, error)
}

// NewDictionaries takes the current dictionary, and others, which it keeps. That one is not
// well formed, or that two have one id, is an error.
func NewDictionaries(current []byte, others ...[]byte) (*Dictionaries, error) {
	d := &Dictionaries{all: map[uint32]known{}}
	for _, b := range append([][]byte{current}, others...) {
		if err := d.add(b); err != nil {
			return nil, err
		}
	}
	var err error
	if d.current, err = NewCompressor(current); err != nil {
		return nil, err
	}
	d.primary.Store(d.current)
	return d, d.digest()
}

// add adds a dictionary that may be known already.
func (d *Dictionaries) add(b []byte) error {
	id, err := DictionaryID(b)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if other, there := d.all[id]; there && !bytes.Equal(other.bytes, b) {
		return fmt.Errorf("zstd dictionary %d: another one, with other contents, has the same id", id)
	} else if !there {
		d.all[id] = known{b, sync.OnceValues(func() (*Compressor, error) { return NewCompressor(b) })}
	}
	return nil
}

// digest makes the decompressor for all there are.
func (d *Dictionaries) digest() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all [][]byte
	for _, id := range slices.Sorted(maps.Keys(d.all)) {
		all = append(all, d.all[id].bytes)
	}
	z, err := NewDecompressor(all...)
	if err != nil {
		return err
	}
	d.decompressor.Store(z)
	return nil
}

// Current returns our own dictionary's compressor.
func (d *Dictionaries) Current() *Compressor { return d.current }

// Primary returns the compressor that events are stored with.
func (d *Dictionaries) Primary() *Compressor { return d.primary.Load() }

// Decompressor returns one that reads what any of the dictionaries has made.
func (d *Dictionaries) Decompressor() *Decompressor { return d.decompressor.Load() }

// SetPrimary makes a dictionary the primary one, and adds it if it is not known. It keeps it.
func (d *Dictionaries) SetPrimary(dictionary []byte) error {
	if err := d.add(dictionary); err != nil {
		return err
	}
	if err := d.digest(); err != nil {
		return err
	}
	id, err := DictionaryID(dictionary)
	if err != nil {
		return err
	}
	z := d.Find(id)
	if z == nil {
		return fmt.Errorf("zstd dictionary %d: the encoder does not take it", id)
	}
	d.primary.Store(z)
	return nil
}

// Find returns the compressor of a dictionary, or nil if there is none with the id.
func (d *Dictionaries) Find(id uint32) *Compressor {
	for _, z := range []*Compressor{d.current, d.Primary()} {
		if z.ID() == id {
			return z
		}
	}
	d.mu.Lock()
	k, there := d.all[id]
	d.mu.Unlock()
	if !there {
		return nil
	}
	z, err := k.compressor()
	if err != nil {
		return nil // but the decompressor, which is stricter, has taken it
	}
	return z
}

// Bytes returns a dictionary, which must not be changed, or nil if there is none with the id.
func (d *Dictionaries) Bytes(id uint32) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[id].bytes
}
