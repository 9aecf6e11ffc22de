package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestImportOfSomeSites: what is of other sites is passed over and can be imported later;
// a bulk of both is not taken apart.
func TestImportOfSomeSites(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	var lines []string
	for i := range 30 { // sites 1 to 3
		lines = append(lines, logLine(i))
	}
	log := writeLog(t, filepath.Join(dir, "a.log"), lines...)
	for _, args := range [][]string{{"--dry-run"}, nil} {
		sum, _ := s.importing(exitOK, append([]string{"--sites=1", "--sites", "3-7,9", log}, args...)...)
		if sum.Hits != 20 || sum.Sites["1"] != 10 || sum.Sites["3"] != 10 || sum.Skipped["of other sites"] != 10 {
			t.Errorf("%v: %+v", args, sum)
		}
	}
	if sum, _ := s.importing(exitOK, "--sites=2-3", log); sum.Hits != 10 || sum.Sites["2"] != 10 || sum.Skipped["imported before"] != 20 {
		t.Errorf("the others: %+v", sum)
	}

	const format = `$remote_addr [$msec] "$request" "$http_content_type" "$request_body"`
	bulk := func(elements string) string {
		return fmt.Sprintf(`192.0.2.1 [1772366400.000] "POST /matomo.php HTTP/1.1" "application/json" "{\x22requests\x22:[%s]}"`, strings.ReplaceAll(elements, `"`, `\x22`)) + "\n"
	}
	bulks := writeLog(t, filepath.Join(dir, "bulk.log"), bulk(`"?idsite=4&rec=1"`), bulk(`"?idsite=4&rec=1","?idsite=5&rec=1"`), bulk(`"?idsite=5&rec=1"`))
	sum, _ := s.importing(exitFailed, "--sites=5", "--nginx-format="+format, bulks)
	if sum.Hits != 1 || sum.Sites["5"] != 1 || sum.Skipped["of other sites"] != 1 || sum.Faulty["mixed_sites"] != 1 || len(sum.Faults) != 1 || sum.Faults[0].Line != 2 {
		t.Errorf("%+v", sum)
	}
	if sum, _ := s.importing(exitOK, "--nginx-format="+format, bulks); sum.Hits != 3 || sum.Skipped["imported before"] != 1 {
		t.Errorf("the bulks of both: %+v", sum)
	}

	for _, sites := range []string{"0", "3-1", "x", "1,,2", ""} {
		if code, _, stderr := s.run("import", "--dry-run", "--sites="+sites, log); code != exitUsage || !strings.Contains(stderr, "--sites") {
			t.Errorf("%q: exit %d, %s", sites, code, stderr)
		}
	}
}

// TestImportOfLateBodies: a body is taken also when the lines by which the format was
// found have none, and when the format was named.
func TestImportOfLateBodies(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	line := func(n int, method, query, body string) string {
		return fmt.Sprintf(`{"msec":"%d.000","remote_addr":"192.0.2.1","request":"%s /matomo.php%s HTTP/1.1","status":200,"http_content_type":"application/x-www-form-urlencoded","request_body":"%s"}`, 1772366400+n, method, query, body) + "\n"
	}
	var lines []string
	for i := range logSample {
		lines = append(lines, line(i, "GET", "?idsite=1&rec=1", ""))
	}
	lines = append(lines, line(len(lines), "POST", "", "idsite=2&rec=1"))
	log := writeLog(t, filepath.Join(dir, "a.json"), lines...)
	for _, args := range [][]string{{log}, {"--format=nginx-json", log}} {
		if sum, _ := s.importing(exitOK, append([]string{"--dry-run"}, args...)...); sum.Sites["2"] != 1 {
			t.Errorf("%v: %+v", args, sum)
		}
	}
}
