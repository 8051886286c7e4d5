//go:build compat

package pds

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"slipstream/pkg/testproc"
	"strconv"
	"strings"
	"testing"
	"time"
)

// eventually waits until f returns "", and fails with what it returned last.
func eventually(t testing.TB, within time.Duration, f func() string) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		problem := f()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", within, problem)
		}
	}
}

// upstream is a PDS and its directory.
type upstream struct {
	modules, dir string
	plc, addr    string        // host:port
	kept         time.Duration // how long it keeps events; 0: as long as it is used to
	password     string        // of the admin
	life         testing.TB    // the test that it lasts for, of which others are parts
	stdin        io.Closer     // its end, should the test be killed, is that of the PDS
	*testproc.Process
}

func (u *upstream) start(t testing.TB) {
	t.Helper()
	args := []string{"pds.js", testproc.Port(u.plc), testproc.Port(u.addr), u.dir}
	if u.kept != 0 {
		args = append(args, strconv.FormatInt(u.kept.Milliseconds(), 10))
	}
	cmd := exec.Command("node", args...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+u.modules)
	var err error
	if u.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	u.Process = testproc.Start(u.life, cmd)
	eventually(t, time.Minute, func() string {
		var ready struct{ PDS, AdminPassword string }
		line, _, _ := strings.Cut(u.Output.String(), "\n")
		if err := json.Unmarshal([]byte(line), &ready); err != nil {
			return fmt.Sprintf("the PDS is not ready; it said:\n%s", u.Output)
		}
		u.password = ready.AdminPassword
		return ""
	})
}

// daemon is Slipstream with the PDS as its upstream.
type daemon struct{ *testproc.Daemon }

func (d *daemon) waitReady(t testing.TB) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		if problem := d.notReady(); problem != "" {
			return fmt.Sprintf("/readyz: %s; the daemon said:\n%s", problem, d.Output)
		}
		if d.Metrics(t)["slipstream_upstream_connected"] != 1 {
			return fmt.Sprintf("not connected to the PDS; the daemon said:\n%s", d.Output)
		}
		return ""
	})
}

// notReady returns what /readyz has to say, or "".
func (d *daemon) notReady() string {
	resp, err := http.Get("http://" + d.Admin + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%s: %s", resp.Status, b)
	}
	return ""
}

// withoutLegacy is in a line that --legacy-dictionary off brings with it.
const withoutLegacy = "Bluesky's dictionary"

// alarms returns what the log has above info, but for the lines that contain something
// expected, and the metrics that stand for something lost or refused.
func (d *daemon) alarms(t testing.TB, expected ...string) (all []string) {
	t.Helper()
	expected = append(expected, " level=INFO ", withoutLegacy)
	for line := range strings.Lines(d.Output.String()) {
		if !slices.ContainsFunc(expected, func(s string) bool { return strings.Contains(line, s) }) {
			all = append(all, strings.TrimSpace(line))
		}
	}
	metrics := d.Metrics(t)
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		base, _, _ := strings.Cut(name, "{")
		switch base {
		case "slipstream_upstream_gaps_total", "slipstream_upstream_resets_total", "slipstream_upstream_error_frames_total",
			"slipstream_upstream_notices_total", "slipstream_upstream_messages_dropped_total",
			"slipstream_ops_dropped_total", "slipstream_frames_dropped_total":
			if v := metrics[name]; v != 0 {
				all = append(all, fmt.Sprintf("%s %v", name, v))
			}
		}
	}
	return all
}
