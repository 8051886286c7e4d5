package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
)

type object = map[string]any

// A wire is one of the two protocols.
type wire int

const (
	v1 wire = iota
	v2
)

var paths = [...]string{"/subscribe", "/xrpc/network.bsky.jetstream.subscribeEvents"}

// v2Epoch is the time_us of seq 0.
const v2Epoch = 1_600_000_000_000_000

// now is the id that an event of this wire would get now.
func (w wire) now() int64 {
	us := time.Now().UnixMicro()
	if w == v2 {
		us -= v2Epoch
	}
	return us
}

// An entry is an event as a consumer has it.
type entry struct {
	id    int64 // time_us or seq
	event object
}

// parse reads an event of either wire, with or without v2's frame around it. Fields of the
// envelope that are null are as good as absent.
func parse(line []byte) (entry, error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	var e object
	if err := d.Decode(&e); err != nil {
		return entry{}, fmt.Errorf("%w in %.300s", err, line)
	}
	if payload, ok := e["payload"].(object); ok {
		e = payload
	}
	id, ok := e["time_us"].(json.Number)
	if !ok {
		id, ok = e["seq"].(json.Number)
	}
	n, err := id.Int64()
	if !ok || err != nil {
		return entry{}, fmt.Errorf("neither time_us nor seq in %.300s", line)
	}
	withoutNulls(e)
	for _, kind := range []string{"commit", "identity", "account"} {
		if inner, ok := e[kind].(object); ok {
			withoutNulls(inner)
		}
	}
	return entry{n, e}, nil
}

func withoutNulls(o object) {
	maps.DeleteFunc(o, func(_ string, v any) bool { return v == nil })
}

// kindOf returns what sort of event it is, and its commit.
func kindOf(e object) (kind string, commit object) {
	if kind, ok := e["kind"].(string); ok {
		commit, _ = e["commit"].(object)
		return kind, commit
	}
	_, kind, _ = strings.Cut(e["$type"].(string), "#")
	return kind, e
}

// wants is the filters of both wires as their documentation has them.
func (o *order) wants(e object) bool {
	kind, commit := kindOf(e)
	if len(o.Kinds) > 0 && !slices.Contains(o.Kinds, kind) {
		return false
	}
	if len(o.DIDs) > 0 && !slices.Contains(o.DIDs, e["did"].(string)) {
		return false
	}
	return kind != "commit" || len(o.Collections) == 0 || slices.ContainsFunc(o.Collections, func(c string) bool {
		prefix, ok := strings.CutSuffix(c, "*")
		return c == commit["collection"] || ok && strings.HasPrefix(commit["collection"].(string), prefix)
	})
}

// A truth is what a plain consumer receives of everything, from the first event on.
type truth struct {
	wire wire
	mu   sync.Mutex
	all  []entry
}

// follow goes on from the last event until ctx ends, over any number of connections.
func (tr *truth) follow(ctx context.Context, endpoint string) error {
	for ; ctx.Err() == nil; sleep(ctx, 50*time.Millisecond) {
		last := tr.last()
		ws, _, err := websocket.DefaultDialer.DialContext(ctx, fmt.Sprintf("%s%s?cursor=%d", endpoint, paths[tr.wire], last), nil)
		if err != nil {
			continue // it is being restarted
		}
		stop := context.AfterFunc(ctx, func() { ws.Close() })
		for again := last > 0; ; again = false {
			_, message, err := ws.ReadMessage()
			if err != nil {
				break
			}
			e, err := parse(message)
			if err != nil {
				return err
			}
			if again && e.id == last {
				continue // the cursor is inclusive
			}
			if e.id <= last || again {
				return fmt.Errorf("event %d after %d", e.id, last)
			}
			last = e.id
			tr.mu.Lock()
			tr.all = append(tr.all, e)
			tr.mu.Unlock()
		}
		stop()
		ws.Close()
	}
	return nil
}

func (tr *truth) events() []entry {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.all
}

func (tr *truth) last() int64 {
	if all := tr.events(); len(all) > 0 {
		return all[len(all)-1].id
	}
	return 0
}

// between returns the events from one id up to another, once they have all come.
func (tr *truth) between(t *testing.T, from, to int64) []entry {
	t.Helper()
	wait(t, "the reference", func() bool { return tr.last() > to })
	all := tr.events()
	index := func(id int64) int {
		i, _ := slices.BinarySearchFunc(all, id, func(e entry, id int64) int { return int(e.id - id) })
		return i
	}
	return all[index(from):index(to+1)]
}

// check compares all that there is with what the relay knows that it sent.
func (tr *truth) check(relay *simrelay.Relay, first int64) error {
	all := tr.events()
	if len(all) == 0 {
		return errors.New("there is nothing")
	}
	n := 0
	for seq := first; n < len(all); seq++ {
		if seq > relay.LastSeq() {
			return fmt.Errorf("%d events more than were sent", len(all)-n)
		}
		for _, want := range relay.Expected(seq) {
			if n == len(all) || want.Kind == "sync" && tr.wire == v1 {
				continue
			}
			if got, want := ledgerLine(all[n].event, seq), expectedLine(want); got != want {
				return fmt.Errorf("event %d:\n got %s\nwant %s", n, got, want)
			}
			n++
		}
	}
	return nil
}

// ledgerLine writes an event as expectedLine does.
func ledgerLine(e object, seq int64) string {
	kind, commit := kindOf(e)
	x := simrelay.Expected{Seq: seq, Kind: kind, DID: e["did"].(string)}
	text := func(o object, name string) string { s, _ := o[name].(string); return s }
	inner, _ := e[kind].(object)
	switch kind {
	case "commit":
		x.Rev, x.Action, x.CID = text(commit, "rev"), text(commit, "operation"), text(commit, "cid")
		x.Collection, x.RKey = text(commit, "collection"), text(commit, "rkey")
		if record := commit["record"]; record != nil {
			x.RecordJSON, _ = json.Marshal(record)
		}
	default:
		x.Rev, x.Time, x.Handle, x.Status = text(inner, "rev"), text(inner, "time"), text(inner, "handle"), text(inner, "status")
		x.Active, _ = inner["active"].(bool)
		if number, _ := inner["seq"].(json.Number); number != "" {
			x.Seq, _ = number.Int64()
		}
	}
	return expectedLine(x)
}

func expectedLine(x simrelay.Expected) string {
	if x.Kind == "commit" {
		x.Time = "" // of the commit, which no wire has
	}
	record := x.RecordJSON
	if len(record) > 0 {
		d := json.NewDecoder(bytes.NewReader(record))
		d.UseNumber()
		var v any
		d.Decode(&v)
		record, _ = json.Marshal(v) // with sorted keys
	}
	x.RecordJSON = nil
	return fmt.Sprintf("%+v %s", x, record)
}

// compare says how what a client received differs from what it should have.
func compare(got, want []entry) error {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Errorf("it has %d events of %d; next is %v", i, len(want), want[i])
		case i >= len(want):
			return fmt.Errorf("it has %d events and not %d; beyond is %v", len(got), len(want), got[i])
		case got[i].id != want[i].id || !reflect.DeepEqual(got[i].event, want[i].event):
			g, _ := json.Marshal(got[i].event)
			w, _ := json.Marshal(want[i].event)
			return fmt.Errorf("event %d of %d:\n got %s\nwant %s", i, len(want), g, w)
		}
	}
	return nil
}

// wait waits for what must come.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it takes too long", what)
		}
	}
}
