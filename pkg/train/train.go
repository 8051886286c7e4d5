package train

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"slipstream/pkg/event"
)

// Params are what a dictionary is made with, besides the material.
type Params struct {
	Size  int     // of the content, in bytes
	Whole float64 // the share of all events from which on a form is taken whole
}

// Choices are the parameters that are tried. Content of 8 KB is worse whatever the material.
var Choices = []Params{
	{16_000, 0.001}, {16_000, 0.01},
	{32_000, 0}, {32_000, 0.001}, {32_000, 0.01},
	{64_000, 0.001},
}

const (
	folds = 5
	// draw is how many events the tables are made from: with ten times as many they are the same
	// to four digits.
	draw = 10_000
)

// Trainer makes dictionaries of the events of some sources.
type Trainer struct {
	sources []*Source
	all     *lesson
	folds   []*lesson
}

// lesson is what is learnt from, and what is held back.
type lesson struct {
	forms   []weighted
	samples []Event
	held    [][]Event // by source
}

func newLesson(events []Event) *lesson {
	return &lesson{forms: newBlanker(events).forms(events), samples: drawn(events, draw)}
}

// New divides the sources' events into parts for cross-validation: a source of one author is in
// one part, and of the others each author. So nothing is measured with a dictionary that has
// learnt from the same author.
func New(sources []*Source) (*Trainer, error) {
	t := &Trainer{sources: sources}
	var all []Event
	var taught [folds][]Event
	var held [folds][][]Event
	ones := 0
	for s, source := range sources {
		for i := range folds {
			held[i] = append(held[i], nil)
		}
		for _, e := range source.Events() {
			all = append(all, e)
			in := ones % folds
			if !source.One {
				in = fold(e.unit, folds)
			}
			for i := range folds {
				if i != in {
					taught[i] = append(taught[i], e)
				}
			}
			held[in][s] = append(held[in][s], e)
		}
		if source.One {
			ones++
		}
	}
	const least = 100 // events; with fewer there is no telling what is common
	for i := range folds {
		if len(taught[i]) < least || len(taught[i]) == len(all) && ones == 0 {
			return nil, fmt.Errorf("%d events of too few authors: it takes %d events, of authors enough to hold a fifth of them back", len(all), 2*least)
		}
	}
	var group sync.WaitGroup
	t.folds = make([]*lesson, folds)
	group.Go(func() { t.all = newLesson(all) })
	for i := range folds {
		group.Go(func() {
			t.folds[i] = newLesson(taught[i])
			t.folds[i].held = held[i]
		})
	}
	group.Wait()
	return t, nil
}

// Events returns how many events there are to learn from.
func (t *Trainer) Events() (n int) {
	for _, s := range t.sources {
		n += len(s.Events())
	}
	return n
}

// Result is what dictionaries made of events that they had not learnt from, by source.
type Result []Tally

// All returns the sum of all sources.
func (r Result) All() Tally {
	all := Tally{}
	for _, t := range r {
		all.add(t)
	}
	return all
}

// Score is what parameters are chosen by: the ratio of both wires together.
func (r Result) Score() float64 {
	all := r.All()
	return (all.Live(0) + v2Weight*all.Live(1)) / (1 + v2Weight)
}

// tryID takes as many bytes in a frame as a date.
const tryID = 20200101

// Try cross-validates: each part is measured with a dictionary of the others.
func (t *Trainer) Try(p Params) (Result, error) {
	return t.measure(func(l *lesson) ([]byte, error) { return l.dictionary(tryID, p) })
}

// Measure measures a dictionary that was made elsewhere on the same events.
func (t *Trainer) Measure(dictionary []byte) (Result, error) {
	return t.measure(func(*lesson) ([]byte, error) { return dictionary, nil })
}

func (t *Trainer) measure(dictionary func(*lesson) ([]byte, error)) (Result, error) {
	results, errs := make([]Result, folds), make([]error, folds)
	var group sync.WaitGroup
	for i, l := range t.folds {
		group.Go(func() {
			d, err := dictionary(l)
			if err != nil {
				errs[i] = err
				return
			}
			c, err := event.NewCompressor(d)
			if err != nil {
				errs[i] = err
				return
			}
			for _, events := range l.held {
				t := Tally{}
				t.Measure(c, events)
				results[i] = append(results[i], t)
			}
		})
	}
	group.Wait()
	sum := make(Result, len(t.sources))
	for s := range sum {
		sum[s] = Tally{}
		for i := range results {
			if errs[i] == nil {
				sum[s].add(results[i][s])
			}
		}
	}
	return sum, errors.Join(errs...)
}

// Train makes a dictionary of all events. The same events, id and parameters make the same
// bytes, with the same libzstd.
func (t *Trainer) Train(id uint32, p Params) ([]byte, error) {
	d, err := t.all.dictionary(id, p)
	if err != nil {
		return nil, err
	}
	return d, verify(d, t.all.samples)
}

const (
	phased = 32 // of how many forms the phase is chosen; the rest are rare
	rounds = 2  // how often it is, since each choice depends on the others
)

// payloads returns the samples on both wires.
func (l *lesson) payloads() (all [][]byte) {
	for i := range l.samples {
		all = append(all, l.samples[i].V1)
		if i%4 == 0 { // v2Weight
			all = append(all, l.samples[i].V2)
		}
	}
	return all
}

// dictionary makes a dictionary.
func (l *lesson) dictionary(id uint32, p Params) ([]byte, error) {
	samples := l.payloads()
	pieces := cut(l.forms, p.Size, p.Whole)
	phases := make([]int, min(phased, len(pieces)))
	c := join(pieces, phases)
	d, err := finalize(c, samples, id)
	if err != nil {
		return nil, err
	}
	// What remains is one choice after another; the tables hardly depend on it.
	tables := d[: len(d)-len(c) : len(d)-len(c)]
	score := func() (float64, error) {
		compressor, err := event.NewCompressor(append(tables, join(pieces, phases)...))
		if err != nil {
			return 0, err
		}
		t := Tally{}
		for i := 0; i < len(l.samples); i += 17 {
			t.Measure(compressor, l.samples[i:i+1])
		}
		return Result{t}.Score(), nil
	}
	var best []int
	least := math.Inf(1)
	for start := range stride {
		for i := range phases {
			phases[i] = start
		}
		found, err := descend(phases, score)
		if err != nil {
			return nil, err
		}
		if found < least {
			best, least = slices.Clone(phases), found
		}
	}
	return finalize(join(pieces, best), samples, id)
}

// descend changes one phase after another for the better, and returns the score of what it ends
// with.
func descend(phases []int, score func() (float64, error)) (least float64, err error) {
	if least, err = score(); err != nil {
		return 0, err
	}
	for range rounds {
		before := least
		for i := len(phases) - 1; i >= 0; i-- {
			best := phases[i]
			for phase := range stride {
				if phase == best {
					continue
				}
				phases[i] = phase
				found, err := score()
				if err != nil {
					return 0, err
				}
				if found < least {
					best, least = phase, found
				}
			}
			phases[i] = best
		}
		if least == before {
			break
		}
	}
	return least, nil
}

// verify has both libraries decode what the dictionary's compressor makes.
func verify(dictionary []byte, events []Event) error {
	c, err := event.NewCompressor(dictionary)
	if err != nil {
		return err
	}
	d, err := event.NewDecompressor(dictionary)
	if err != nil {
		return err
	}
	libzstd, err := newDecoder(dictionary)
	if err != nil {
		return err
	}
	for i := range min(len(events), 1000) {
		want := events[i].V1
		frame := c.AppendBinary(nil, want)
		text, err := d.AppendText(nil, frame)
		if err != nil {
			return fmt.Errorf("klauspost's decoder: %w", err)
		}
		if string(event.Payload(text)) != string(want) {
			return errors.New("klauspost's decoder makes other events of it")
		}
		got, err := libzstd(event.Payload(frame))
		if err != nil {
			return fmt.Errorf("libzstd: %w", err)
		}
		if string(got) != string(want) {
			return errors.New("libzstd makes other events of it")
		}
	}
	return nil
}
