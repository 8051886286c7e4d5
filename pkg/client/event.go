package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	lexutil "github.com/bluesky-social/indigo/lex/util"
)

// A Cursor is an event's position in the stream of one server: on the v1 wire time_us, unix
// microseconds; on the v2 wire seq, or from 10^15 on a time in unix microseconds. Zero means live.
type Cursor int64

// Oldest is where a server's buffer begins, on either wire.
const Oldest Cursor = -1

// timeCursors is where, on the v2 wire, times begin. No v1 cursor is below it since 2001.
const timeCursors = 1_000_000_000_000_000

// At returns the cursor of the first event at or after t, on either wire.
func At(t time.Time) Cursor { return max(Cursor(t.UnixMicro()), timeCursors) }

// A Kind is what an event is about.
type Kind string

// The kinds. Sync events come on the v2 wire only.
const (
	KindCommit   Kind = "commit"
	KindIdentity Kind = "identity"
	KindAccount  Kind = "account"
	KindSync     Kind = "sync"
)

// An Event is one thing that happened. It belongs to whoever gets it.
type Event struct {
	DID    string // whose repository or account it is about
	Cursor Cursor // grows from each event of a server to the next
	Time   time.Time
	Kind   Kind

	// The one that Kind names is not nil.
	Commit   *Commit
	Identity *Identity
	Account  *Account
	Sync     *Sync

	// Raw is the message as the server sent it, decompressed: on the v2 wire with its envelope.
	Raw []byte
}

// URI returns the at:// URI of the record that a commit is about, else that of the repository.
func (e *Event) URI() string {
	if e.Commit == nil {
		return "at://" + e.DID
	}
	return "at://" + e.DID + "/" + e.Commit.Collection + "/" + e.Commit.RKey
}

// A Commit is the change of one record.
type Commit struct {
	Rev        string          `json:"rev"`
	Operation  string          `json:"operation"` // create, update or delete
	Collection string          `json:"collection"`
	RKey       string          `json:"rkey"`
	Record     json.RawMessage `json:"record"` // nil for a delete
	CID        string          `json:"cid"`    // empty for a delete
}

// Create, Update and Delete are the operations of a Commit.
const (
	Create = "create"
	Update = "update"
	Delete = "delete"
)

// Decode returns the record as indigo's type for its lexicon, such as *bsky.FeedPost. Those are
// the types of the packages that the program imports, github.com/bluesky-social/indigo/api/bsky
// above all. A record of any other type is returned as it is, a json.RawMessage. The error says
// that a record does not have the form of its lexicon: people write what they like into theirs.
func (c *Commit) Decode() (any, error) {
	if c.Record == nil {
		return nil, errNoRecord
	}
	v, err := lexutil.JsonDecodeValue(c.Record)
	if errors.Is(err, lexutil.ErrUnrecognizedType) {
		return c.Record, nil
	}
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", c.Collection, err)
	}
	return v, nil
}

var errNoRecord = errors.New("a delete has no record")

// Record decodes the record of an event into a T, which is indigo's type for a lexicon, or any
// other that encoding/json can fill:
//
//	post, err := client.Record[bsky.FeedPost](ev)
//
// It does not check that the event's collection is T's.
func Record[T any](e *Event) (*T, error) {
	if e.Commit == nil || e.Commit.Record == nil {
		return nil, errNoRecord
	}
	v := new(T)
	if err := json.Unmarshal(e.Commit.Record, v); err != nil {
		return nil, fmt.Errorf("record of %s: %w", e.Commit.Collection, err)
	}
	return v, nil
}

// An Identity says that a handle, a signing key or the host of an account may have changed.
type Identity struct {
	DID    string `json:"did"`
	Handle string `json:"handle"` // may be empty, and is not verified
	Seq    int64  `json:"seq"`    // the relay's
	Time   string `json:"time"`
}

// An Account says whether an account can be read where it is hosted.
type Account struct {
	Active bool   `json:"active"`
	DID    string `json:"did"`
	Seq    int64  `json:"seq"`    // the relay's
	Status string `json:"status"` // why it is not active: takendown, suspended, deleted, deactivated, ...
	Time   string `json:"time"`
}

// A Sync says that a repository has a new state without saying what changed.
type Sync struct {
	DID  string `json:"did"`
	Rev  string `json:"rev"`
	Seq  int64  `json:"seq"` // the relay's
	Time string `json:"time"`
}

// message is what came: an event, or what a server has to say beside them.
type message struct {
	event *Event
	name  string // of an #info frame or an error frame
	text  string
	fatal bool // it is an error frame
}

// parts are what either wire has.
type parts struct {
	DID      string    `json:"did"`
	Identity *Identity `json:"identity"`
	Account  *Account  `json:"account"`
	Sync     *Sync     `json:"sync"`
}

// parseV1 reads a message of the v1 wire, and keeps raw.
func parseV1(raw []byte) (message, error) {
	var m struct {
		parts
		TimeUS int64   `json:"time_us"`
		Kind   Kind    `json:"kind"`
		Commit *Commit `json:"commit"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return message{}, fmt.Errorf("a message that is no event: %w", err)
	}
	return m.parts.event(&Event{Cursor: Cursor(m.TimeUS), Time: time.UnixMicro(m.TimeUS).UTC(), Kind: m.Kind, Commit: m.Commit, Raw: raw})
}

// nsid is the type of the v2 wire's messages, less the fragment that names the kind.
const nsid = "network.bsky.jetstream.subscribeEvents#"

// parseV2 reads a message of the v2 wire, and keeps raw.
func parseV2(raw []byte) (message, error) {
	var m struct {
		Type    string `json:"$type"`
		Error   string `json:"error"`
		Message string `json:"message"`
		Payload struct {
			parts
			Commit         // its fields are those of the payload
			Type    string `json:"$type"`
			Seq     Cursor `json:"seq"`
			Time    string `json:"time"`
			Name    string `json:"name"`
			Message string `json:"message"`
		} `json:"payload"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return message{}, fmt.Errorf("a message that is no event: %w", err)
	}
	if m.Type == "error" {
		return message{name: m.Error, text: m.Message, fatal: true}, nil
	}
	p := &m.Payload
	kind, ok := strings.CutPrefix(p.Type, nsid)
	if m.Type != "message" || !ok {
		return message{}, fmt.Errorf("a message that is no event of %s", strings.TrimSuffix(nsid, "#"))
	}
	if kind == "info" {
		return message{name: p.Name, text: p.Message}, nil
	}
	at, err := time.Parse(time.RFC3339Nano, p.Time)
	if err != nil {
		return message{}, fmt.Errorf("an event without a time: %w", err)
	}
	e := &Event{Cursor: p.Seq, Time: at.UTC(), Kind: Kind(kind), Raw: raw}
	if e.Kind == KindCommit {
		c := p.Commit
		e.Commit = &c
	}
	return p.parts.event(e)
}

// event completes e and sees to it that its promises hold.
func (p *parts) event(e *Event) (message, error) {
	e.DID = p.DID
	there := true
	switch e.Kind {
	case KindCommit:
		there = e.Commit != nil && e.Commit.Collection != ""
	case KindIdentity:
		e.Identity, there = p.Identity, p.Identity != nil
	case KindAccount:
		e.Account, there = p.Account, p.Account != nil
	case KindSync:
		e.Sync, there = p.Sync, p.Sync != nil
	}
	if e.Kind != KindCommit {
		e.Commit = nil
	} else if there && bytes.Equal(e.Commit.Record, []byte("null")) {
		e.Commit.Record = nil
	}
	if !there || e.DID == "" || e.Kind == "" || e.Cursor <= 0 {
		return message{}, errors.New("a message that is no event: did, kind, cursor or body is missing")
	}
	return message{event: e}, nil
}
