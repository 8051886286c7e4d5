package page_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"slipstream/pkg/page"
)

// ask sends a request to a page in front of a server that answers "text".
func ask(t *testing.T, method, target string, header ...string) *http.Response {
	t.Helper()
	h := page.New(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "text") }))
	req := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec.Result()
}

func read(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

func TestWhoGetsThePage(t *testing.T) {
	for _, x := range []struct {
		method, target, accept string
		page                   bool
	}{
		{"GET", "/", firefox, true},
		{"GET", "/?from=a-link", firefox, true},
		{"HEAD", "/", firefox, false}, // no body
		{"GET", "/", "*/*", false},
		{"GET", "/", "", false},
		{"GET", "/", "text/plain, application/json", false},
		{"POST", "/", firefox, false},
		{"GET", "/subscribe", firefox, false},
		{"GET", "/index.html", firefox, false},
		{"GET", "/assets/", firefox, false},
		{"GET", "/assets/../page.go", firefox, false},
	} {
		resp := ask(t, x.method, x.target, "Accept", x.accept)
		body := read(t, resp.Body)
		if got := strings.Contains(body, "<!doctype html>"); got != x.page || !x.page && x.method != "HEAD" && body != "text" {
			t.Errorf("%s %s with Accept %q: the page: %v, want %v", x.method, x.target, x.accept, got, x.page)
		}
		if x.target == "/" && x.method != "POST" && !strings.Contains(resp.Header.Get("Vary"), "Accept") {
			t.Errorf("%s with Accept %q: Vary is %q", x.target, x.accept, resp.Header.Get("Vary"))
		}
	}
}

// TestAssets: everything that the page and its scripts name is there, and may be kept for ever.
func TestAssets(t *testing.T) {
	name := regexp.MustCompile(`(?:/assets/|\./|")((?:main|icon|worker|zstd)-[0-9a-f]{10}\.[a-z]+)`)
	html := read(t, ask(t, "GET", "/", "Accept", firefox).Body)
	seen := map[string]bool{}
	var visit func(text string)
	visit = func(text string) {
		for _, m := range name.FindAllStringSubmatch(text, -1) {
			if seen[m[1]] {
				continue
			}
			seen[m[1]] = true
			resp := ask(t, "GET", "/assets/"+m[1])
			body := read(t, resp.Body)
			if body == "text" || resp.Header.Get("Content-Type") == "" || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
				t.Errorf("%s: %v", m[1], resp.Header)
			}
			if strings.HasSuffix(m[1], ".js") {
				visit(body)
			}
		}
	}
	visit(html)
	if len(seen) != 5 {
		t.Errorf("the page names %v, want script, style, icon, worker and decoder", seen)
	}
	if strings.Contains(html, "<style") || regexp.MustCompile(`<script[^>]*>[^<]|\son[a-z]+=|style="|https?://`).MatchString(html) {
		t.Error("the page has something inline or from elsewhere, which its policy forbids")
	}
}

func TestHeaders(t *testing.T) {
	for _, target := range []string{"/", asset(t)} {
		plain := ask(t, "GET", target, "Accept", firefox)
		if csp := plain.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe-inline") || strings.Contains(csp, "'unsafe-eval'") {
			t.Errorf("%s: Content-Security-Policy: %q", target, csp)
		}
		packed := ask(t, "GET", target, "Accept", firefox, "Accept-Encoding", "br, gzip;q=0.8")
		if packed.Header.Get("Content-Encoding") != "gzip" || packed.Header.Get("ETag") == plain.Header.Get("ETag") {
			t.Fatalf("%s: %v", target, packed.Header)
		}
		unpacked, err := gzip.NewReader(packed.Body)
		if err != nil {
			t.Fatal(err)
		}
		if read(t, unpacked) != read(t, plain.Body) {
			t.Errorf("%s: gzip has other contents", target)
		}
		if got := ask(t, "GET", target, "Accept", firefox, "Accept-Encoding", "gzip;q=0").Header.Get("Content-Encoding"); got != "" {
			t.Errorf("%s: Content-Encoding %q for who refuses it", target, got)
		}
		again := ask(t, "GET", target, "Accept", firefox, "If-None-Match", `"other", W/`+plain.Header.Get("ETag"))
		if again.StatusCode != http.StatusNotModified || read(t, again.Body) != "" {
			t.Errorf("%s: %s for who has it", target, again.Status)
		}
		if again = ask(t, "GET", target, "Accept", firefox, "If-None-Match", `"other"`); again.StatusCode != http.StatusOK {
			t.Errorf("%s: %s for who has another", target, again.Status)
		}
	}
}

// asset returns the path of one.
func asset(t *testing.T) string {
	t.Helper()
	return regexp.MustCompile(`/assets/main-[0-9a-f]+\.js`).FindString(read(t, ask(t, "GET", "/", "Accept", firefox).Body))
}
