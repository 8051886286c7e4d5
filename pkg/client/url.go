package client

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// A Wire is one of the two protocols.
type Wire int

// The wires. V1 is Jetstream's /subscribe, V2 its network.bsky.jetstream.subscribeEvents.
const (
	V1 Wire = 1
	V2 Wire = 2
)

const (
	pathV1         = "/subscribe"
	pathV2         = "/xrpc/network.bsky.jetstream.subscribeEvents"
	methodV2       = "network.bsky.jetstream.subscribeEvents"
	dictionaryV2   = "network.bsky.jetstream.getZstdDictionary"
	maxCollections = 100
	maxDIDs        = 10_000
	// maxQuery is what fits through every proxy's idea of how long a URL may be. On the v1 wire
	// what is longer goes in an options_update.
	maxQuery = 4 << 10
)

// A Filter says which events to send. An empty list means all.
type Filter struct {
	// Collections are NSIDs, such as app.bsky.feed.post, or prefixes, such as app.bsky.graph.*; at
	// most 100. They concern commits only: see Kinds.
	Collections []string
	// DIDs are accounts, at most 10,000.
	DIDs []string
	// Kinds are what events may be about. The v1 wire knows no such filter: there the client
	// leaves the others out, after they have been sent.
	Kinds []Kind
	// MaxSize leaves out events whose message is larger, in bytes; 0: no limit.
	MaxSize int
}

func (f *Filter) check(wire Wire) error {
	switch {
	case len(f.Collections) > maxCollections:
		return fmt.Errorf("%d collections: at most %d are allowed", len(f.Collections), maxCollections)
	case len(f.DIDs) > maxDIDs:
		return fmt.Errorf("%d DIDs: at most %d are allowed", len(f.DIDs), maxDIDs)
	case f.MaxSize < 0:
		return fmt.Errorf("a largest size of %d bytes: use 0 for no limit", f.MaxSize)
	}
	others := 0
	for _, k := range f.Kinds {
		if k != KindSync {
			others++
		}
		if !slices.Contains([]Kind{KindCommit, KindIdentity, KindAccount, KindSync}, k) {
			return fmt.Errorf("kind %q: use commit, identity, account or sync", k)
		}
	}
	if wire == V1 && len(f.Kinds) > 0 && others == 0 {
		return errors.New("kind sync: such events come on the v2 wire only")
	}
	return nil
}

func (f *Filter) clone() *Filter {
	return &Filter{slices.Clone(f.Collections), slices.Clone(f.DIDs), slices.Clone(f.Kinds), f.MaxSize}
}

// query adds what the wire has for a filter.
func (f *Filter) query(wire Wire, q url.Values) {
	collections, dids := "wantedCollections", "wantedDids"
	if wire == V2 {
		collections, dids = "collections", "dids"
		for _, k := range f.Kinds {
			q.Add("kinds", string(k))
		}
	}
	for _, c := range f.Collections {
		q.Add(collections, c)
	}
	for _, d := range f.DIDs {
		q.Add(dids, d)
	}
	if f.MaxSize > 0 {
		q.Set("maxMessageSizeBytes", strconv.Itoa(f.MaxSize))
	}
}

// update returns the options_update that asks for the filter.
func (f *Filter) update() []byte {
	type payload struct {
		WantedCollections   []string `json:"wantedCollections"`
		WantedDIDs          []string `json:"wantedDids"`
		MaxMessageSizeBytes int      `json:"maxMessageSizeBytes"`
	}
	b, err := json.Marshal(struct {
		Type    string  `json:"type"`
		Payload payload `json:"payload"`
	}{"options_update", payload{append([]string{}, f.Collections...), append([]string{}, f.DIDs...), f.MaxSize}})
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

// endpoint is what a URL says, taken apart.
type endpoint struct {
	base   url.URL // without a query
	wire   Wire
	filter Filter
	cursor Cursor
	zstd   bool       // compress=true
	fixed  uint32     // zstdDictionary=
	rest   url.Values // parameters that are the server's business
}

// parseEndpoint completes what a person types. wire is V1, V2 or 0 for what the path says.
func parseEndpoint(text string, wire Wire) (*endpoint, error) {
	if text == "" {
		text = "127.0.0.1:6008"
	}
	typed := text
	if !strings.Contains(text, "://") {
		text = "wss://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: not a URL", typed)
	}
	switch u.Scheme {
	case "https":
		u.Scheme = "wss"
	case "http":
		u.Scheme = "ws"
	case "ws", "wss":
	default:
		return nil, fmt.Errorf("%s: scheme %q; use ws:// or wss://", typed, u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("%s: no host", typed)
	}
	if typed != text && isLocal(u) {
		u.Scheme = "ws"
	}
	e := &endpoint{wire: V1}
	isV2 := strings.HasSuffix(u.Path, "/"+methodV2)
	bare := strings.Trim(u.Path, "/") == ""
	switch {
	case bare && wire == V2:
		u.Path, e.wire = pathV2, V2
	case bare:
		u.Path = pathV1
	case isV2 && wire == V1:
		return nil, fmt.Errorf("%s: this is the v2 wire", typed)
	case isV2:
		e.wire = V2
	case wire == V2:
		return nil, fmt.Errorf("%s: the v2 wire is at %s", typed, pathV2)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%s: the query is not well formed", typed)
	}
	u.RawQuery, u.Fragment = "", ""
	e.base = *u
	return e, e.take(query)
}

// take reads the parameters that the client has to know of, and leaves the others as they are.
func (e *endpoint) take(query url.Values) error {
	names := map[string]string{"wantedCollections": "collections", "wantedDids": "dids", "compress": "compress", "requireHello": "requireHello"}
	if e.wire == V2 {
		names = map[string]string{"collections": "collections", "dids": "dids", "kinds": "kinds"}
	}
	e.rest = url.Values{}
	for name, values := range query {
		last := values[len(values)-1]
		switch cmp.Or(names[name], name) {
		case "collections":
			e.filter.Collections = split(values)
		case "dids":
			e.filter.DIDs = split(values)
		case "kinds":
			for _, k := range split(values) {
				e.filter.Kinds = append(e.filter.Kinds, Kind(k))
			}
		case "maxMessageSizeBytes":
			n, err := strconv.Atoi(last)
			if err != nil || n < 0 {
				return fmt.Errorf("maxMessageSizeBytes=%s: not a number of bytes", last)
			}
			e.filter.MaxSize = n
		case "cursor":
			n, err := strconv.ParseInt(last, 10, 64)
			if err != nil || n < 0 {
				return fmt.Errorf("cursor=%s: not a number", last)
			}
			if e.cursor = Cursor(n); n == 0 {
				e.cursor = Oldest
			}
		case "compress":
			e.zstd = last == "true"
		case "zstdDictionary":
			id, err := strconv.ParseUint(last, 10, 32)
			if err != nil || id == 0 {
				return fmt.Errorf("zstdDictionary=%s: not the id of a dictionary", last)
			}
			e.fixed, e.zstd = uint32(id), true
		case "requireHello": // the client says hello where it is needed
		default:
			e.rest[name] = values
		}
	}
	return nil
}

func split(values []string) []string {
	var all []string
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if part != "" {
				all = append(all, part)
			}
		}
	}
	return all
}

// isLocal reports whether a host that was typed without a scheme is unlikely to have a certificate.
func isLocal(u *url.URL) bool {
	host := u.Hostname()
	addr, err := netip.ParseAddr(host)
	if err == nil {
		return addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsUnspecified()
	}
	// localhost, and the names of a container network or a home.
	return !strings.Contains(host, ".") || strings.HasSuffix(host, ".local") || strings.HasSuffix(host, ".localhost") || strings.HasSuffix(host, ".internal")
}

// sibling returns the URL of another resource of the same server, for HTTP.
func (e *endpoint) sibling(path string) *url.URL {
	u := e.base
	u.Scheme = map[string]string{"ws": "http", "wss": "https"}[u.Scheme]
	u.Path = u.Path[:strings.LastIndexByte(u.Path, '/')+1] + path
	u.RawPath = ""
	return &u
}

// dial returns the URL to connect to. hello: the filter is left out, for an options_update.
func (e *endpoint) dial(f *Filter, from Cursor, dictionary uint32) (to string, hello bool) {
	q := url.Values{}
	for name, values := range e.rest {
		q[name] = values
	}
	switch {
	case from == Oldest && e.wire == V2:
		q.Set("cursor", strconv.Itoa(timeCursors))
	case from == Oldest:
		q.Set("cursor", "1") // to some servers, 0 may be no cursor
	case from != 0:
		q.Set("cursor", strconv.FormatInt(int64(from), 10))
	}
	if e.zstd && e.wire == V1 && e.fixed == 0 {
		q.Set("compress", "true")
	}
	if dictionary != 0 {
		q.Set("zstdDictionary", strconv.FormatUint(uint64(dictionary), 10))
	}
	u := e.base
	with := url.Values{}
	f.query(e.wire, with)
	if hello = e.wire == V1 && len(with.Encode()) > maxQuery; hello {
		q.Set("requireHello", "true")
	} else {
		for name, values := range with {
			q[name] = values
		}
	}
	u.RawQuery = q.Encode()
	return u.String(), hello
}

// errV2Cursor is a stored cursor of the other wire.
var errV2Cursor = errors.New("is a seq of the v2 wire, and this is v1")
