package subscribe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"slipstream/pkg/event"
)

// maxQuery bounds a query string: 10,000 DIDs of the usual length, escaped, take half
// of it.
const maxQuery = 1 << 20

// maxOptions bounds an options_update in bytes.
const maxOptions = 1 << 20

// options is what a consumer asks for when it connects.
type options struct {
	encoding
	filter *Filter
	cursor event.Cursor
	live   bool // no cursor was given
	timed  bool // the cursor is a time, not an event's; only v2 knows the difference
	hello  bool // wait for the first options_update
}

// parseOptions reads a request for /subscribe. Its errors name the parameter and are
// meant for the consumer. Unknown parameters are ignored, as every v1 server does.
func parseOptions(r *http.Request, dictionaries *event.Dictionaries) (options, error) {
	var o options
	if len(r.URL.RawQuery) > maxQuery {
		return o, fmt.Errorf("the query has %d bytes, at most %d are allowed; connect with requireHello=true and send wantedDids in an options_update", len(r.URL.RawQuery), maxQuery)
	}
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return o, fmt.Errorf("the query is not well formed: %s", strings.TrimPrefix(err.Error(), "invalid "))
	}
	maxSize, err := strconv.Atoi(query.Get("maxMessageSizeBytes"))
	if err != nil {
		maxSize = 0 // by contract: what is no number is no limit
	}
	collections, err := list(query, "wantedCollections", maxCollections)
	if err != nil {
		return o, err
	}
	dids, err := list(query, "wantedDids", maxDIDs)
	if err != nil {
		return o, err
	}
	if o.filter, err = NewFilter(collections, dids, maxSize); err != nil {
		return o, err
	}
	o.live = true
	if text := query.Get("cursor"); text != "" {
		cursor, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return o, fmt.Errorf("cursor: %s is not a number of microseconds since 1970, like 1725519626134432", quote(text))
		}
		o.cursor, o.live = event.Cursor(cursor), false
	}
	if query.Get("compress") == "true" || strings.Contains(r.Header.Get("Socket-Encoding"), "zstd") {
		o.zstd = dictionaries.Primary()
	}
	if text := query.Get("zstdDictionary"); text != "" {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return o, fmt.Errorf("zstdDictionary: %s is not the id of a dictionary, a number; that of compress=true is %d", quote(text), dictionaries.Primary().ID())
		}
		if o.zstd = dictionaries.Find(uint32(id)); o.zstd == nil {
			return o, fmt.Errorf("zstdDictionary: there is no dictionary %d here; that of compress=true is %d", id, dictionaries.Primary().ID())
		}
	}
	o.hello = query.Get("requireHello") == "true"
	return o, nil
}

// parseQuery reads the parameters that there are and passes over all others. Unlike
// url.ParseQuery it takes more than 10,000 of them, which as many wantedDids and a cursor
// are, and costs next to nothing for what is not ours.
func parseQuery(raw string) (url.Values, error) {
	query := url.Values{}
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return nil, err
		}
		switch name {
		case "wantedCollections", "wantedDids", "cursor", "compress", "zstdDictionary", "maxMessageSizeBytes", "requireHello":
			if value, err = url.QueryUnescape(value); err != nil {
				return nil, err
			}
			query[name] = append(query[name], value)
		}
	}
	return query, nil
}

// list takes each value as one or, where a client joined them, as several. More than a
// limit are an error.
func list(query url.Values, name string, limit int) ([]string, error) {
	n := 0
	for _, v := range query[name] {
		n += 1 + strings.Count(v, ",")
	}
	if err := checkCount(name, n, limit); err != nil {
		return nil, err
	}
	out := make([]string, 0, n)
	for _, v := range query[name] {
		out = append(out, strings.Split(v, ",")...)
	}
	return out, nil
}

// errIgnored marks a message of a type that is not ours to understand.
var errIgnored = errors.New("message of an unknown type")

// parseUpdate reads a message from a consumer and returns the filter that it asks for.
// A field that is absent resets that filter. errIgnored: it is no options_update.
func parseUpdate(message []byte) (*Filter, error) {
	var m struct {
		Type    string          `json:"type"`
		Payload json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(message, &m); err != nil {
		return nil, errors.New("a message must be a JSON object with type and payload")
	}
	if m.Type != "options_update" {
		return nil, errIgnored
	}
	var p struct {
		WantedCollections   []string `json:"wantedCollections"`
		WantedDIDs          []string `json:"wantedDids"`
		MaxMessageSizeBytes int      `json:"maxMessageSizeBytes"`
	}
	if len(m.Payload) > 0 {
		if err := json.Unmarshal(m.Payload, &p); err != nil {
			var mistyped *json.UnmarshalTypeError
			if errors.As(err, &mistyped) && mistyped.Field != "" {
				return nil, fmt.Errorf("options_update: %s must not be a JSON %s", mistyped.Field, mistyped.Value)
			}
			return nil, errors.New("options_update: payload must be a JSON object")
		}
	}
	return NewFilter(p.WantedCollections, p.WantedDIDs, p.MaxMessageSizeBytes)
}
