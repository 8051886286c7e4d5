package subscribe

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gorilla/websocket"

	"slipstream/pkg/event"
)

// The v2 wire, as the lexicons network.bsky.jetstream.* define it: see the package comment.
const (
	subscribeEvents = "network.bsky.jetstream.subscribeEvents"
	// subprotocol is the framing, which clients may offer and have echoed.
	subprotocol = "xrpc.v1.json"
)

// The names of its errors. To clients a 400 is final, a 503 is not.
const (
	invalidRequest        = "InvalidRequest"
	cursorTooOld          = "CursorTooOld"
	unknownZstdDictionary = "UnknownZstdDictionary"
	dictionaryNotFound    = "DictionaryNotFound"
	serviceUnavailable    = "ServiceUnavailable"
	methodNotImplemented  = "MethodNotImplemented"
)

// answerXRPC answers with an error. Clients read no more than 1,024 bytes of it: message is a
// sentence, and what it quotes is cut.
func answerXRPC(w http.ResponseWriter, status int, name, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	body := json.NewEncoder(w)
	body.SetEscapeHTML(false) // six bytes instead of one
	body.Encode(struct {
		Error   string `json:"error"`
		Message string `json:"message"`
	}{name, message})
}

// xrpcError is a request that is refused for good.
type xrpcError struct{ name, message string }

// Error returns the message.
func (e *xrpcError) Error() string { return e.message }

// notImplemented answers for every method that there is not: that of an archive
// (network.bsky.jetstream.planSnapshot) is one.
func notImplemented(w http.ResponseWriter, r *http.Request) {
	answerXRPC(w, http.StatusNotImplemented, methodNotImplemented,
		fmt.Sprintf("%s of %s is not implemented here; there are GET %s and GET network.bsky.jetstream.getZstdDictionary, and no archive",
			quote(r.Method), quote(strings.TrimPrefix(r.URL.Path, "/xrpc/")), subscribeEvents))
}

// getZstdDictionary is the query of that name. Without an id it is the current dictionary.
func (s *Server) getZstdDictionary(w http.ResponseWriter, r *http.Request) {
	query, err := parseStrict(r.URL.RawQuery, "id")
	current := s.cfg.Dictionaries.Current().ID()
	id := uint64(current)
	if err == nil && query.Has("id") {
		id, err = parseID("id", query.Get("id"))
	}
	if err != nil {
		answerXRPC(w, http.StatusBadRequest, invalidRequest, err.Error())
		return
	}
	if id > math.MaxUint32 || !s.serveDictionary(w, r, uint32(id), query.Has("id")) {
		answerXRPC(w, http.StatusNotFound, dictionaryNotFound, fmt.Sprintf("there is no dictionary %d here; the current one is %d", id, current))
	}
}

// subscribeEvents is the subscription of that name.
func (s *Server) subscribeEvents(w http.ResponseWriter, r *http.Request) {
	if refused := s.refuseLarge(r); refused != nil {
		refused.answerXRPC(w)
		return
	}
	o, err := s.parseV2(r)
	if err != nil {
		s.metrics.refused[refusedRequest].Inc()
		name := invalidRequest
		if e := (*xrpcError)(nil); errors.As(err, &e) {
			name = e.name
		}
		answerXRPC(w, http.StatusBadRequest, name, err.Error())
		return
	}
	if !websocket.IsWebSocketUpgrade(r) {
		askForUpgrade(w)
		answerXRPC(w, http.StatusUpgradeRequired, invalidRequest, websocketOnly(r))
		return
	}
	// gorilla looks at the first line only, of a header that may have several.
	if lines := r.Header["Sec-Websocket-Protocol"]; len(lines) > 1 {
		r.Header.Set("Sec-WebSocket-Protocol", strings.Join(lines, ", "))
	}
	if refused := s.accept(w, r, o); refused != nil {
		refused.answerXRPC(w)
	}
}

// answerXRPC refuses a handshake of the v2 wire.
func (e *refusedError) answerXRPC(w http.ResponseWriter) {
	if e.retry {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	answerXRPC(w, http.StatusServiceUnavailable, serviceUnavailable, e.sentence)
}

// parseV2 reads a request for subscribeEvents. Its errors name the parameter and are meant
// for the consumer. Nothing is passed over: what a consumer asks for and does not get it
// would not miss before it is too late.
func (s *Server) parseV2(r *http.Request) (o options, err error) {
	o.wire, o.live = v2, true
	if strings.Contains(r.Header.Get("Socket-Encoding"), "zstd") {
		return o, errors.New("Socket-Encoding: is a header of /subscribe; here zstdDictionary=<id> asks for compression")
	}
	query, err := parseStrict(r.URL.RawQuery, "cursor", "kinds", "dids", "collections", "maxMessageSizeBytes", "zstdDictionary")
	if err != nil {
		return o, err
	}
	if o.filter, err = newFilterV2(query["kinds"], query["dids"], query["collections"]); err != nil {
		return o, err
	}
	if text := query.Get("maxMessageSizeBytes"); query.Has("maxMessageSizeBytes") {
		size, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return o, fmt.Errorf("maxMessageSizeBytes: %s is not a number of bytes from 0, for no limit, to %d", quote(text), uint32(math.MaxUint32))
		}
		o.filter.maxSize = int(min(size, math.MaxInt))
	}
	if query.Has("zstdDictionary") {
		id, err := parseID("zstdDictionary", query.Get("zstdDictionary"))
		if err != nil {
			return o, err
		}
		if id <= math.MaxUint32 {
			o.zstd = s.cfg.Dictionaries.Find(uint32(id))
		}
		if o.zstd == nil {
			return o, &xrpcError{unknownZstdDictionary, fmt.Sprintf("zstdDictionary: there is no dictionary %d here; the current one is %d", id, s.cfg.Dictionaries.Current().ID())}
		}
	}
	if query.Has("cursor") {
		err = s.parseCursorV2(&o, query.Get("cursor"))
	}
	return o, err
}

// parseCursorV2 reads a seq or, from V2SeqLimit on, a time in unix microseconds. A seq that
// retention has removed, or what followed it, is refused; a time is not.
func (s *Server) parseCursorV2(o *options, text string) error {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("cursor: %s is neither a seq, a number from 0 on, nor a time in microseconds since 1970, like 1725519626134432", quote(text))
	}
	o.live, o.cursor = false, event.Cursor(n)
	if o.timed = n >= event.V2SeqLimit; o.timed {
		return nil
	}
	o.cursor = event.CursorOfV2Seq(n)
	if trimmed := s.cfg.Log.Trimmed(); trimmed > 0 && o.cursor <= trimmed {
		floor := max(s.cfg.Log.Oldest(), trimmed+1)
		return &xrpcError{cursorTooOld, fmt.Sprintf("cursor: the buffer no longer holds what follows seq %d; it begins at seq %d", n, floor.V2Seq())}
	}
	return nil
}

// parseID reads the id of a dictionary, or of one that there cannot be: an id has 32 bits.
func parseID(name, text string) (uint64, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || id == 0 {
		return 0, fmt.Errorf("%s: %s is not the id of a dictionary, a number from 1 on", name, quote(text))
	}
	return id, nil
}

// lists are the parameters that may be repeated.
var lists = []string{"kinds", "dids", "collections"}

// insteadOf says what the v2 wire has for the parameters of the v1 wire.
var insteadOf = map[string]string{
	"wantedDids": "dids", "wantedCollections": "collections", "compress": "zstdDictionary=<id>", "requireHello": "the parameters of the URL",
}

// parseStrict reads a query that may have no other parameters than these.
func parseStrict(raw string, names ...string) (url.Values, error) {
	if len(raw) > maxQuery {
		return nil, fmt.Errorf("the query has %d bytes, at most %d are allowed", len(raw), maxQuery)
	}
	query := url.Values{}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return nil, fmt.Errorf("the query is not well formed: %s", strings.TrimPrefix(err.Error(), "invalid "))
		}
		if !slices.Contains(names, name) {
			if instead := insteadOf[name]; instead != "" && slices.Contains(names, "kinds") {
				return nil, fmt.Errorf("%s is a parameter of /subscribe; here it is %s", name, instead)
			}
			return nil, fmt.Errorf("%s is no parameter; those are %s", quote(name), strings.Join(names, ", "))
		}
		if query.Has(name) && !slices.Contains(lists, name) {
			return nil, fmt.Errorf("%s: it is given more than once", name)
		}
		query[name] = append(query[name], value)
	}
	return query, nil
}
