package subscribe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"slipstream/pkg/event"
)

// dictionary is a zstd dictionary that can be downloaded.
type dictionary struct {
	bytes []byte
	etag  string
}

func indexDictionaries(primary *event.Compressor, others [][]byte) (map[uint32]dictionary, error) {
	index := map[uint32]dictionary{}
	for _, d := range append([][]byte{primary.Dictionary()}, others...) {
		id, err := event.DictionaryID(d)
		if err != nil {
			return nil, err
		}
		if other, known := index[id]; known && !bytes.Equal(other.bytes, d) {
			return nil, fmt.Errorf("zstd dictionary %d: another one, with other contents, has the same id", id)
		} else if !known {
			index[id] = dictionary{bytes: d, etag: fmt.Sprintf(`"%d"`, id)}
		}
	}
	return index, nil
}

// Handler returns the public endpoints.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /subscribe", s.subscribe)
	mux.HandleFunc("GET /xrpc/_health", s.health)
	mux.HandleFunc("GET /dictionary", s.currentDictionary)
	mux.HandleFunc("GET /dictionary/{id}", s.dictionary)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

func (s *Server) home(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, `This is Slipstream %s, a Jetstream-compatible relay: the AT Protocol firehose as JSON.

Connect with any Jetstream client, or with websocat:

  websocat "ws://%[2]s/subscribe?wantedCollections=app.bsky.feed.post"

Parameters of /subscribe
  wantedCollections    an NSID, or a prefix like app.bsky.graph.*; repeatable, at most %[3]d
  wantedDids           repeatable, at most %[4]d
  cursor               unix microseconds, inclusive: replay from there, then live
  compress=true        zstd frames, made with the dictionary at /dictionary (id %[5]d)
  maxMessageSizeBytes  leave out larger events
  requireHello=true    send nothing before the first options_update

`, s.cfg.Version, r.Host, maxCollections, maxDIDs, s.cfg.Compressor.ID())
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

func (s *Server) currentDictionary(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	s.serveDictionary(w, r, s.cfg.Compressor.ID())
}

func (s *Server) dictionary(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 32)
	if err != nil {
		http.Error(w, "a dictionary is named by its id, a number; the current one is "+fmt.Sprint(s.cfg.Compressor.ID()), http.StatusBadRequest)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	s.serveDictionary(w, r, uint32(id))
}

func (s *Server) serveDictionary(w http.ResponseWriter, r *http.Request, id uint32) {
	d, ok := s.dictionaries[id]
	if !ok {
		w.Header().Del("Cache-Control")
		http.Error(w, fmt.Sprintf("there is no dictionary %d here; the current one is %d", id, s.cfg.Compressor.ID()), http.StatusNotFound)
		return
	}
	w.Header().Set("ETag", d.etag)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Zstd-Dictionary-Id", fmt.Sprint(id))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(d.bytes)) // conditions and ranges
}
