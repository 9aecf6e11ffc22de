package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/internal/config"
	"sluice/internal/testkit"
)

// TestImportReadsWhatIsLeftOfLogs: what is not a request is passed over or told, by kind,
// and the others are taken.
func TestImportReadsWhatIsLeftOfLogs(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	common := func(n int, at time.Time, status int) string {
		return fmt.Sprintf("192.0.2.7 - - [%s] \"GET /matomo.php?idsite=1&rec=1&r=%d HTTP/1.1\" %d 43\n", at.Format("02/Jan/2006:15:04:05 -0700"), n, status)
	}
	n := 0
	lines := func(count int) (text string) {
		for range count {
			n++
			text += logLine(n)
		}
		return text
	}
	march := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	local := `127.0.0.1:34508 [01/Mar/2026:18:21:41.280] h b/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 "GET /matomo.php?idsite=1&rec=1 HTTP/1.1"` + "\n"
	// These are taken, the others looked at.
	const growing, large = "a line that may go on", "a header of 900,000 bytes"
	for _, tt := range []struct {
		name, text      string
		hits            int64
		skipped, faulty string
	}{
		{"a short log that is being written", lines(3) + logLine(0)[:60], 3, "cut_last_line", ""},
		{growing, common(1, march, 200) + strings.TrimSuffix(common(2, march, 200), "3\n"), 1, "cut_last_line", ""},
		{"the same when it has gone on", common(1, march, 200) + common(2, march, 200), 1, "known", ""},
		{"no line end, but a quote", strings.TrimSuffix(lines(2), "\n"), 2, "", ""},
		{"a byte order mark", "\xef\xbb\xbf" + lines(2), 2, "", ""},
		{"zeros after a power failure", lines(3) + "\x00\x00\x00" + lines(1), 3, "", "not_parsed"},
		{"nothing but line ends", "\n\r\n", 0, "empty", ""},
		{"nothing but the headers of IIS", "#Software: x\n#Fields: date time c-ip cs-method cs-uri-stem sc-status\n", 0, "directives", ""},
		{"no zone", local, 0, "", "unknown_zone"},
		{"tomorrow", common(9, march, 200) + common(3, time.Now().Add(24*time.Hour), 200), 1, "", "wrong_time"},
		{"a clock that is a bit ahead", common(4, time.Now().Add(time.Minute), 200), 1, "", ""},
		{"further back than Matomo records", common(5, march.AddDate(-21, 0, 0), 200) + common(6, march, 200), 1, "", "wrong_time"},
		{"a redirect to HTTPS", common(7, march, 301) + common(7, march, 200), 1, "redirected", ""},
		{"a redirect of Matomo's", strings.Replace(common(8, march, 302), "rec=1", "rec=1&redirecturl=http://h/", 1), 1, "", ""},
		{"a token that Sluice's own log masks", strings.Replace(common(10, march, 503), "rec=1", "rec=1&token_auth=***&cip=203.0.113.9", 1) + common(11, march, 200), 1, "masked_token", ""},
		{large, strings.Replace(lines(1), `"M"`, `"`+strings.Repeat("M", 900_000)+`"`, 1) + lines(1), 1, "", "not_parsed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code := exitOK
			if tt.faulty != "" {
				code = exitFailed
			}
			path := writeLog(t, filepath.Join(t.TempDir(), "a.log"), tt.text)
			s := *s
			s.t = t
			sum, _ := s.importing(code, "--dry-run", path)
			if tt.name == growing || tt.name == large {
				dry := sum
				if sum, _ = s.importing(code, path); sum.Hits != dry.Hits {
					t.Errorf("%d hits, and %d of a dry run", sum.Hits, dry.Hits)
				}
			}
			if sum.Hits != tt.hits {
				t.Errorf("%d hits, want %d: %+v", sum.Hits, tt.hits, sum)
			}
			if (tt.skipped == "") != (len(sum.Skipped) == 0) || tt.skipped != "" && sum.count(tt.skipped) == 0 {
				t.Errorf("passed over: %v, want %q", sum.Skipped, tt.skipped)
			}
			if (tt.faulty == "") != (len(sum.Faulty) == 0) || tt.faulty != "" && sum.count(tt.faulty) != 1 {
				t.Errorf("faulty: %v, want one %q", sum.Faulty, tt.faulty)
			}
		})
	}
}

// TestImportOfLargeHeaders: requests whose headers are longer than their parameters are
// sent and stored in as many parts as that takes.
func TestImportOfLargeHeaders(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	var lines []string
	for i := range 1000 {
		lines = append(lines, strings.Replace(logLine(i), `"M"`, `"`+strings.Repeat("M", 20_000)+`"`, 1))
	}
	if sum, stderr := s.importing(exitOK, writeLog(t, filepath.Join(dir, "a.log"), lines...)); sum.Hits != 1000 || sum.State != "complete" {
		t.Errorf("%+v %s", sum, stderr)
	}
}

// TestImportGivenAgainKeepsWhatIsOpen: an import that waits is not given up because the
// command given again, or another one, adds nothing to it.
func TestImportGivenAgainKeepsWhatIsOpen(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), m.Serve(t), "--matomo.token-file="+file(t, "token", testkit.SuperToken, 0o600))
	s.hit("idsite=1&rec=1")
	delivered(t, m, 1)
	log := writeLog(t, filepath.Join(dir, "a.log"), logLine(0), logLine(3))
	first, _ := s.importing(exitFailed, log)
	for range 2 {
		again, _ := s.importing(exitFailed, log)
		if again.Import != first.Import || again.State != "open" || again.Late != 2 || again.count("known") != 2 {
			t.Errorf("again: %+v, want import %s", again, first.Import)
		}
	}
	if sum, _ := s.importing(exitOK, "--allow-late", log); sum.Import != first.Import || sum.State != "complete" {
		t.Errorf("with late hits allowed: %+v", sum)
	}
	delivered(t, m, 3)
}

// TestOneImportAtATime: a second command leaves the first one's import alone, and ends.
func TestOneImportAtATime(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	s := startServer(t, data, nobody)
	log := writeLog(t, filepath.Join(dir, "a.log"), logLine(0))
	first := &logImportCommand{Client: config.Client{DataDir: data}}
	release, err := first.lock()
	if err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := s.run("import", log); code != exitNotNow || !strings.Contains(stderr, "another import is running") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	if sum, _ := s.importing(exitOK, "--dry-run", log); sum.Hits != 1 {
		t.Errorf("dry run: %+v", sum)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if sum, _ := s.importing(exitOK, log); sum.Hits != 1 {
		t.Errorf("%+v", sum)
	}
}
