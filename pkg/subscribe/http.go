package subscribe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// dictionaryHeader names the zstd dictionary that frames are, or will be, made with.
const dictionaryHeader = "Zstd-Dictionary-Id"

// Handler returns the public endpoints. A listener may wrap the connections of the system in its
// own, with a method NetConn, to watch requests come: a websocket uses the connection below.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /subscribe", s.subscribe)
	mux.HandleFunc("GET /xrpc/"+subscribeEvents, s.subscribeEvents)
	mux.HandleFunc("GET /xrpc/network.bsky.jetstream.getZstdDictionary", s.getZstdDictionary)
	mux.HandleFunc("/xrpc/", notImplemented)
	mux.HandleFunc("GET /xrpc/_health", s.health)
	mux.HandleFunc("GET /dictionary", s.primaryDictionary)
	mux.HandleFunc("GET /dictionary/{id}", s.dictionary)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Any page may use what is public anyway, and nothing here looks at cookies.
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Access-Control-Expose-Headers", dictionaryHeader)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			// A browser asks before a page's request that has headers of its own.
			w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD")
			w.Header().Set("Access-Control-Allow-Headers", "*")
			w.Header().Set("Access-Control-Max-Age", "86400")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *Server) home(w http.ResponseWriter, r *http.Request) {
	secure := ""
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" { // whoever lies about it reads the wrong line
		secure = "s"
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, `This is Slipstream %s, a Jetstream-compatible relay: the AT Protocol firehose as JSON.

Connect with any Jetstream client, or with websocat:

  websocat "ws%[8]s://%[2]s/subscribe?wantedCollections=app.bsky.feed.post"

or without a websocket:

  curl -N "http%[8]s://%[2]s/subscribe?wantedCollections=app.bsky.feed.post"

Parameters of /subscribe
  wantedCollections    an NSID, or a prefix like app.bsky.graph.*; repeatable, at most %[3]d
  wantedDids           repeatable, at most %[4]d
  cursor               unix microseconds, inclusive: replay from there, then live
  compress=true        zstd frames, made with the dictionary at /dictionary (id %[5]d)
  zstdDictionary       the id of another dictionary to make them with: the smallest frames
                       are those of %[6]d, at /dictionary/%[6]d
  maxMessageSizeBytes  leave out larger events
  requireHello=true    send nothing before the first options_update

Jetstream v2 clients connect to /xrpc/%[7]s

`, s.cfg.Version, r.Host, maxCollections, maxDIDs, s.cfg.Dictionaries.Primary().ID(), s.cfg.Dictionaries.Current().ID(), subscribeEvents, secure)
	if oldest := s.cfg.Log.Oldest(); oldest != 0 {
		fmt.Fprintf(w, "The buffer reaches back to cursor=%d, %s.\n", oldest, oldest.Time().UTC().Format("2006-01-02 15:04:05 UTC"))
	} else {
		fmt.Fprintln(w, "The buffer is empty so far.")
	}
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]string{"version": s.cfg.Version})
}

// primaryDictionary is GET /dictionary: what compress=true means.
func (s *Server) primaryDictionary(w http.ResponseWriter, r *http.Request) {
	s.serveDictionary(w, r, s.cfg.Dictionaries.Primary().ID(), false)
}

// dictionary is GET /dictionary/{id}.
func (s *Server) dictionary(w http.ResponseWriter, r *http.Request) {
	primary := s.cfg.Dictionaries.Primary().ID()
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 32)
	if err != nil {
		http.Error(w, fmt.Sprintf("a dictionary is named by its id, a number; that of compress=true is %d", primary), http.StatusBadRequest)
		return
	}
	if !s.serveDictionary(w, r, uint32(id), true) {
		http.Error(w, fmt.Sprintf("there is no dictionary %d here; that of compress=true is %d", id, primary), http.StatusNotFound)
	}
}

// serveDictionary answers with a dictionary, unless there is none with the id. What is asked
// for by its id never changes.
func (s *Server) serveDictionary(w http.ResponseWriter, r *http.Request, id uint32, byID bool) bool {
	d := s.cfg.Dictionaries.Bytes(id)
	if d == nil {
		return false
	}
	w.Header().Set("Cache-Control", "no-cache")
	if byID {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, id))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set(dictionaryHeader, fmt.Sprint(id))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(d)) // conditions and ranges
	return true
}
