package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
	"slipstream/pkg/testproc"
)

// busyDaemon is a daemon with something to show: events of all kinds, a standby, consumers plain
// and compressed.
func busyDaemon(t *testing.T) *testproc.Daemon {
	t.Helper()
	_, upstream := testproc.Relay(t, simrelay.Config{Seed: 9, Rate: 200, WallClock: true})
	_, standby := testproc.Relay(t, simrelay.Config{Seed: 9, Rate: 200, WallClock: true})
	d := testproc.Serve(t, binary(t), upstream+","+standby, t.TempDir(), "--log-level", "warn")
	for _, query := range []string{"cursor=1", "cursor=1&compress=true"} {
		ws, _, err := websocket.DefaultDialer.Dial("ws://"+d.Addr+"/subscribe?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				if _, _, err := ws.ReadMessage(); err != nil {
					return
				}
			}
		}()
		t.Cleanup(func() { ws.Close() })
	}
	testproc.WaitFor(t, "something is sent", func() bool { return d.Metrics(t)["slipstream_sent_events_total"] > 0 })
	return d
}

// labels are all that a metric may have, each with a set of values that is closed.
var labels = []string{"kind", "form", "reason", "wire", "lag", "le", "version", "zstd", "quantile", "upstream"}

func TestMetrics(t *testing.T) {
	need(t, "promtool")
	d := busyDaemon(t)
	scrape, _ := get(t, http.DefaultClient, "http://"+d.Admin+"/metrics")
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = bytes.NewReader(scrape)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	for _, m := range regexp.MustCompile(`[{,](\w+)="`).FindAllSubmatch(scrape, -1) {
		if !slices.Contains(labels, string(m[1])) {
			t.Errorf("a label %q", m[1])
		}
	}
	// Who reads of a metric finds it.
	known := func(name string) bool { return bytes.Contains(scrape, []byte("# TYPE "+name+" ")) }
	for _, file := range []string{"../../README.md", "../../cmd/slipstream/README.md", "README.md", "alerts.yml", "grafana.json"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\bslipstream_[a-z_]+[a-z]\b`).FindAllString(string(b), -1) {
			if !known(name) && !known(strings.TrimSuffix(name, "_bucket")) {
				t.Errorf("%s speaks of %s, which there is not", file, name)
			}
		}
	}
}

func TestAlerts(t *testing.T) {
	need(t, "promtool")
	if out, err := exec.Command("promtool", "test", "rules", "alerts_test.yml").CombinedOutput(); err != nil {
		t.Errorf("promtool test rules: %v\n%s", err, out)
	}
	rules, err := os.ReadFile("alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(rules, -1) {
		if !bytes.Contains(tests, []byte(fmt.Sprintf("alertname=%q}", m[1]))) && !bytes.Contains(tests, []byte("- alertname: "+string(m[1])+"\n")) {
			t.Errorf("no test lets %s fire", m[1])
		}
	}
}

// dashboard is what a test needs of Grafana's format.
type dashboard struct {
	Panels []struct {
		Title   string
		Targets []struct{ Expr, LegendFormat string }
	}
	Annotations struct{ List []struct{ Expr string } }
}

// TestPrometheus: with our configuration, Prometheus finds the daemon and evaluates every
// alert, of which none fires; every selector in them, and every query of the dashboard, has an
// answer, with the labels that the legend shows.
func TestPrometheus(t *testing.T) {
	need(t, "prometheus")
	d := busyDaemon(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "alerts.yml"), replaced(t, "alerts.yml"))
	config := write(t, filepath.Join(dir, "prometheus.yml"), replaced(t, "prometheus.yml",
		"scrape_interval: 15s", "scrape_interval: 1s", "evaluation_interval: 15s", "evaluation_interval: 1s", "127.0.0.1:6009", d.Admin))
	addr := testproc.FreeAddr(t)
	testproc.Start(t, exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--log.level=warn"))
	api := "http://" + addr + "/api/v1/"
	type sample struct{ Metric map[string]string }
	query := func(expr string) (found []sample) {
		var answer struct {
			Status, Error string
			Data          struct{ Result []sample }
		}
		getJSON(t, api+"query?query="+url.QueryEscape(expr), &answer)
		return answer.Data.Result
	}
	testproc.WaitFor(t, "Prometheus is there", func() bool { return testproc.Answers("http://" + addr + "/-/ready") })
	testproc.WaitFor(t, "the daemon is scraped", func() bool { return len(query(`count_over_time(slipstream_build_info[1m]) > 6`)) > 0 })

	var rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Query, Health, LastError, State string }
			}
		}
	}
	getJSON(t, api+"rules", &rules)
	count := 0
	for _, g := range rules.Data.Groups {
		for _, r := range g.Rules {
			count++
			if r.Health != "ok" || r.State != "inactive" {
				t.Errorf("%s is %s, %s %s", r.Name, r.State, r.Health, r.LastError)
			}
			for _, selector := range regexp.MustCompile(`\b(?:slipstream|process)_\w+(?:\{[^}]*\})?|\bup\{[^}]*\}`).FindAllString(r.Query, -1) {
				if len(query(selector)) == 0 {
					t.Errorf("%s: nothing is %s", r.Name, selector)
				}
			}
		}
	}
	if count == 0 {
		t.Error("no rules")
	}

	b, err := os.ReadFile("grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var board dashboard
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	if n := len(board.Panels); n == 0 || n > 12 {
		t.Errorf("%d panels", n)
	}
	instance := strings.NewReplacer("$instance", ".*", "$__rate_interval", "10s")
	begin := time.Now()
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			found := query(instance.Replace(target.Expr))
			if len(found) == 0 {
				t.Errorf("%s: nothing is %s", p.Title, target.Expr)
			}
			for _, label := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				for _, s := range found {
					if s.Metric[label[1]] == "" {
						t.Errorf("%s: no label %s in %v", p.Title, label[1], s.Metric)
					}
				}
			}
		}
	}
	for _, a := range board.Annotations.List {
		if expr := strings.TrimSuffix(instance.Replace(a.Expr), " > 0"); len(query(expr)) == 0 {
			t.Errorf("nothing is %s", expr)
		}
	}
	t.Logf("%d alerts, %d panels, queried in %s", count, len(board.Panels), time.Since(begin).Round(time.Millisecond))
}
