package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func writeFile(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// What a file says holds where neither a flag nor a real variable has said anything.
func TestEnvFile(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "default"), strings.Join([]string{
		"# a comment", "; another", "",
		" SLIPSTREAM_EVENT_TTL = 2h \r",
		"SLIPSTREAM_MAX_SUBSCRIBERS=3",
		"SLIPSTREAM_MAX_SUBSCRIBERS=4", // the last counts
		`SLIPSTREAM_TRUSTED_PROXIES="10.0.0.0/8, ::1"`,
		"SLIPSTREAM_MIN_FREE_DISK='10%'",
		"SLIPSTREAM_MAX_DISK=", // as if it were not there
		"JETSTREAM_LISTEN_ADDR=:1",
		"SLIPSTREAM_LINGER=5ms",
		"SLIPSTREAM_WORKER_COUNT=9",
		"JETSTREAM_WORKER_COUNT=8", // ours goes first
	}, "\n"))
	t.Setenv("JETSTREAM_EVENT_TTL", "3h")
	r, err := settings{[]string{"slipstream", "serve", "--linger", "7ms"}, file}.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg := r.cfg
	got := strings.TrimSpace(fmt.Sprintln(cfg.EventTTL, cfg.MaxSubscribers, cfg.TrustedProxies, cfg.MinFreeShare, cfg.MaxDisk, cfg.ListenAddr, cfg.Linger, cfg.Workers))
	if want := "3h0m0s 4 [10.0.0.0/8 ::1/128] 0.1 0 :1 7ms 9"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := strings.Join(r.overridden, " "), "SLIPSTREAM_EVENT_TTL SLIPSTREAM_LINGER JETSTREAM_WORKER_COUNT"; got != want {
		t.Errorf("without effect: %s, want %s", got, want)
	}

	if r, err = (settings{[]string{"slipstream", "serve"}, "-" + file + ".missing"}).read(t.Context()); err != nil || r.cfg.EventTTL != 3*time.Hour {
		t.Errorf("a file that may be missing: %v, %v", r.cfg.EventTTL, err)
	}
}

// What is wrong with a file is said in one line, which names it and the line or the setting.
func TestBadEnvFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "default")
	for text, want := range map[string]string{
		"\nSLIPSTREAM_LOG_LEVEL\n":                     "line 2: \"SLIPSTREAM_LOG_LEVEL\" is not NAME=value",
		"SLIPSTREAM_LOG_LEVELS=info":                   `line 1: "SLIPSTREAM_LOG_LEVELS" is no setting`,
		"export SLIPSTREAM_LOG_LEVEL=info":             `line 1: "export SLIPSTREAM_LOG_LEVEL" is no setting`,
		"GOMEMLIMIT=500MiB":                            `line 1: "GOMEMLIMIT" is no setting`,
		"SLIPSTREAM_ENV_FILE=other":                    `line 1: "SLIPSTREAM_ENV_FILE" is no setting`,
		"SLIPSTREAM_LOG_LEVEL=loud":                    "--log-level \"loud\": use debug, info, warn or error",
		"# one\nSLIPSTREAM_EVENT_TTL=a day":            "SLIPSTREAM_EVENT_TTL in line 2 of " + file,
		"SLIPSTREAM_EVENT_TTL=1s":                      "--event-ttl 1s: use at least 1m",
		"SLIPSTREAM_MAX_SUBSCRIBERS=1e3":               "SLIPSTREAM_MAX_SUBSCRIBERS in line 1",
		`SLIPSTREAM_TRUSTED_PROXIES="10.0.0.1`:         "SLIPSTREAM_TRUSTED_PROXIES: write the value without backslashes",
		"SLIPSTREAM_TRUSTED_PROXIES=10.0.0.1,\\":       "SLIPSTREAM_TRUSTED_PROXIES: write the value without backslashes",
		"SLIPSTREAM_TLS_CERT=/c":                       "--tls-cert",
		strings.Repeat("# nothing\n", maxEnvFile/10+1): "more than 1048576 bytes",
	} {
		writeFile(t, file, text)
		line := refused(t, nil, "serve", "--data-dir", filepath.Join(file, "below"), "--env-file", file)
		if !strings.Contains(line, want) || strings.Contains(want, "line 1") && !strings.Contains(line, file) {
			t.Errorf("%.40q: it says %q, without %q", text, line, want)
		}
	}
	for path, want := range map[string]string{file + ".missing": "no such file", "-" + dir: "is a directory"} {
		if line := refused(t, nil, "serve", "--data-dir", filepath.Join(file, "below"), "--env-file="+path); !strings.Contains(line, want) || !strings.Contains(line, "--env-file "+strings.TrimPrefix(path, "-")) {
			t.Errorf("%s: it says %q", path, line)
		}
	}
}
