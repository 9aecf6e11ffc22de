package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// settingsFile writes a settings file that startServer's flags go with.
func writeSettings(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func (s *server) metric(name string) string {
	s.t.Helper()
	resp, err := http.Get("http://" + s.private + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	path, log := filepath.Join(dir, "sluice.yaml"), filepath.Join(dir, "access.log")
	writeSettings(t, path, "proxy.address-rate: 0\n")
	s := startServer(t, filepath.Join(dir, "data"), nobody, "--config="+path)
	const last, good, bad = "sluice_config_last_reload_successful", `sluice_config_reloads_total{result="loaded"}`, `sluice_config_reloads_total{result="failed"}`
	if s.metric(last) != "1" || s.metric(good) != "0" || s.metric(bad) != "0" {
		t.Fatalf("at the start: %s, %s and %s", s.metric(last), s.metric(good), s.metric(bad))
	}
	refused := func() bool {
		for range 3 { // more than one a second
			if s.hit("idsite=1&rec=1") == http.StatusTooManyRequests {
				return true
			}
		}
		return false
	}
	if refused() {
		t.Fatal("hits are refused without a rate")
	}

	// What can be changed is, and the rest is named.
	writeSettings(t, path, fmt.Sprintf("proxy.address-rate: 1\nproxy.address-burst: 1\nlog.level: debug\nproxy.access-log: json\nproxy.access-log-file: %s\nsink.lanes: 7\n", log))
	code, stdout, stderr := s.live("reload")
	if code != exitOK || !strings.Contains(stdout, "in force now: proxy.address-rate, proxy.address-burst, proxy.access-log, proxy.access-log-file, log.level") || !strings.Contains(stdout, "need a restart: sink.lanes") {
		t.Fatalf("exit %d, %s%s", code, stdout, stderr)
	}
	if !refused() {
		t.Error("the new rate is not in force")
	}
	if s.metric(last) != "1" || s.metric(good) != "1" {
		t.Errorf("%s and %s, want 1 and 1", s.metric(last), s.metric(good))
	}
	// Nothing changed since, but what waits for a restart still does.
	if code, stdout, _ := s.live("reload"); code != exitOK || !strings.Contains(stdout, "nothing changed") || !strings.Contains(stdout, "sink.lanes") {
		t.Errorf("exit %d, %s", code, stdout)
	}

	// A file with one fault changes nothing at all, and says what is wrong.
	writeSettings(t, path, "proxy.address-rate: 0\nsink.lanes: lots\n")
	code, stdout, stderr = s.live("reload")
	if code != exitSettings || !strings.Contains(stderr, `sink.lanes: "lots"`) || !strings.Contains(stderr, "try: sluice check --config "+path) {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	if !refused() || s.metric(last) != "0" || s.metric(bad) != "1" {
		t.Errorf("a bad file took effect, or was not counted: %s, %s", s.metric(last), s.metric(bad))
	}
	// So does an access log that cannot be opened, which only the proxy notices.
	writeSettings(t, path, "proxy.address-rate: 0\nproxy.access-log: json\nproxy.access-log-file: /no/such/folder/log\n")
	if code, _, stderr = s.live("reload"); code != exitSettings || !strings.Contains(stderr, "/no/such/folder/log") || !refused() {
		t.Errorf("exit %d, %s", code, stderr)
	}

	// SIGHUP is the same, and opens a log that was moved away again.
	writeSettings(t, path, fmt.Sprintf("proxy.access-log: json\nproxy.access-log-file: %s\n", log))
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	s.signals <- syscall.SIGHUP
	s.log.await(t, `"who":"SIGHUP"`)
	if refused() || s.metric(last) != "1" || s.metric(good) != "3" {
		t.Errorf("SIGHUP did not reload: %s, %s", s.metric(last), s.metric(good))
	}
	if _, err := os.Stat(log); err != nil {
		t.Errorf("the log was not opened again: %v", err)
	}
}

func TestReloadIsForThoseInControl(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("first-token-of-the-listener"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, filepath.Join(dir, "data"), nobody, "--admin.token-file="+token)
	post := func(path, key string) int {
		req, err := http.NewRequest(http.MethodPost, "http://"+s.private+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, path := range []string{"/-/reload", "/api/v1/reload"} {
		if got := post(path, ""); got != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d", path, got)
		}
	}
	if err := os.WriteFile(token, []byte("second-token-of-the-listener"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := post("/-/reload", "first-token-of-the-listener"); got != http.StatusOK {
		t.Fatalf("with the token: %d", got)
	}
	if first, second := post("/-/reload", "first-token-of-the-listener"), post("/-/reload", "second-token-of-the-listener"); first != http.StatusUnauthorized || second != http.StatusOK {
		t.Errorf("the old token gets %d, the new one %d", first, second)
	}
}
