package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
)

//go:embed dist
var dist embed.FS

// policy is the Content-Security-Policy: this server's own files and streams, and WebAssembly,
// which the zstd decoder is.
const policy = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// types are those of the files, whatever the machine has in its tables.
var types = map[string]string{
	".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".svg": "image/svg+xml", ".wasm": "application/wasm",
}

// file is one of the page's.
type file struct {
	contents []byte
	kind     string
	etag     string
	packed   func() []byte // gzip; nil: it would not be smaller
}

// Handler answers browsers that ask for / with the page, and everybody for its assets.
type Handler struct {
	next  http.Handler
	files map[string]*file // by path
}

// New makes a handler that leaves every other request to next, and / as well when it is not a
// browser that asks.
func New(next http.Handler) *Handler {
	h := &Handler{next, map[string]*file{}}
	root, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // it is compiled in
	}
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		f := &file{contents: b, kind: types[path.Ext(name)], etag: hex.EncodeToString(sum[:8])}
		f.packed = sync.OnceValue(func() []byte { return pack(b) })
		if name == "index.html" {
			name = ""
		}
		h.files["/"+name] = f
		return nil
	})
	if err != nil {
		panic(err)
	}
	return h
}

// pack returns what gzip makes of b.
func pack(b []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a buffer takes everything
	}
	return out.Bytes()
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := h.files[r.URL.Path]
	if f == nil || r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.next.ServeHTTP(w, r)
		return
	}
	header := w.Header()
	if r.URL.Path == "/" {
		header.Set("Vary", "Accept, Accept-Encoding")
		if !browser(r) {
			h.next.ServeHTTP(w, r)
			return
		}
		header.Set("Cache-Control", "no-cache")
	} else {
		header.Set("Vary", "Accept-Encoding")
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	// The worker has the policy of its own file.
	header.Set("Content-Security-Policy", policy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Content-Type", f.kind)
	body, etag := f.contents, `"`+f.etag+`"`
	if accepts(r.Header.Get("Accept-Encoding"), "gzip") {
		if packed := f.packed(); len(packed) < len(body) {
			body, etag = packed, `"`+f.etag+`-gzip"`
			header.Set("Content-Encoding", "gzip")
		}
	}
	header.Set("ETag", etag)
	for tag := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		if strings.TrimPrefix(strings.TrimSpace(tag), "W/") == etag {
			header.Del("Content-Type")
			header.Del("Content-Encoding")
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodGet {
		w.Write(body)
	}
}

// browser reports whether who asks names HTML among what it takes: browsers do, and curl, whose
// */* is anything, does not.
func browser(r *http.Request) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		if kind, _, err := mime.ParseMediaType(part); err == nil && (kind == "text/html" || kind == "application/xhtml+xml") {
			return true
		}
	}
	return false
}

// accepts reports whether an Accept-Encoding has the coding, not with a weight of zero.
func accepts(header, coding string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(name), coding) {
			continue
		}
		weight, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
		q, err := strconv.ParseFloat(weight, 64)
		return !ok || err != nil || q > 0
	}
	return false
}
