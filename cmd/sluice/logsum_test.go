package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// count says how many lines have a reason.
func (s *logSum) count(why string) int64 {
	for _, tallies := range []map[string]*logTally{s.Skipped, s.Faulty} {
		if t := tallies[why]; t != nil {
			return t.Count
		}
	}
	return 0
}

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
		if sum.Hits != 20 || sum.Sites["1"] != 10 || sum.Sites["3"] != 10 || sum.count("other_sites") != 10 {
			t.Errorf("%v: %+v", args, sum)
		}
	}
	if sum, _ := s.importing(exitOK, "--sites=2-3", log); sum.Hits != 10 || sum.Sites["2"] != 10 || sum.count("known") != 20 {
		t.Errorf("the others: %+v", sum)
	}

	const format = `$remote_addr [$msec] "$request" "$http_content_type" "$request_body"`
	bulk := func(elements string) string {
		return fmt.Sprintf(`192.0.2.1 [1772366400.000] "POST /matomo.php HTTP/1.1" "application/json" "{\x22requests\x22:[%s]}"`, strings.ReplaceAll(elements, `"`, `\x22`)) + "\n"
	}
	bulks := writeLog(t, filepath.Join(dir, "bulk.log"), bulk(`"?idsite=4&rec=1"`), bulk(`"?idsite=4&rec=1","?idsite=5&rec=1"`), bulk(`"?idsite=5&rec=1"`))
	sum, _ := s.importing(exitFailed, "--sites=5", "--nginx-format="+format, bulks)
	if sum.Hits != 1 || sum.Sites["5"] != 1 || sum.count("other_sites") != 1 || sum.count("mixed_sites") != 1 || !slices.Equal(sum.Faulty["mixed_sites"].Servers[bulks].Examples, []logPlace{{bulks, 2, ""}}) {
		t.Errorf("%+v", sum)
	}
	if sum, _ := s.importing(exitOK, "--nginx-format="+format, bulks); sum.Hits != 3 || sum.count("known") != 1 {
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

// TestReportOfLogs: what a format does not hold is told once, and what cannot be replayed
// by reason and by server, with places.
func TestReportOfLogs(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	n := 0
	write := func(name string, posts int) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for i := range 8 {
			n++
			line := logLine(n)
			if i < posts {
				line = strings.Replace(line, "GET", "POST", 1)
			}
			lines = append(lines, line)
		}
		return writeLog(t, path, lines...)
	}
	one, two := filepath.Join(dir, "web1/access.log"), filepath.Join(dir, "web2/access.log")
	files := []string{write("web1/access.log.2", 4), write("web1/access.log.1", 1), write("web1/access.log", 0), write("web2/access.log", 2)}
	const full = `$remote_addr [$msec] "$request" $request_time "$request_body" "$http_referer" "$http_user_agent" "$http_accept_language" "$http_cookie" "$http_dnt" "$http_sec_ch_ua_mobile"`
	whole := writeLog(t, filepath.Join(dir, "full.log"), `192.0.2.1 [1772366400.123] "GET /matomo.php?idsite=1&rec=1 HTTP/1.1" 0.001 "-" "-" "-" "-" "-" "-" "-"`+"\n")

	quiet := writeLog(t, filepath.Join(dir, "quiet.log"), strings.Replace(logLine(0), "matomo.php", "index.html", 1))
	object := `{"msec":"1772366400.000","remote_addr":"192.0.2.1","request":"GET /matomo.php?idsite=1&rec=1 HTTP/1.1"%s}` + "\n"
	mixed := writeLog(t, filepath.Join(dir, "mixed.json"), fmt.Sprintf(object, `,"http_user_agent":"M"`), fmt.Sprintf(object, ""))

	sum, _ := s.importing(exitFailed, append(files, quiet, filepath.Join(dir, "web3/none.log.3.gz"))...)
	posts := sum.Skipped["without_body"]
	if posts.Count != 7 || posts.Servers[one].Count != 5 || posts.Servers[two].Count != 2 || len(posts.Servers) != 2 {
		t.Errorf("POSTs: %+v", posts)
	}
	if want := []logPlace{{files[0], 1, ""}, {files[0], 2, ""}, {files[0], 3, ""}}; !slices.Equal(posts.Servers[one].Examples, want) {
		t.Errorf("examples %v, want %v", posts.Servers[one].Examples, want)
	}
	if f := sum.Faulty["unreadable"]; f.Count != 1 || f.Servers[filepath.Join(dir, "web3/none.log")].Count != 1 {
		t.Errorf("unreadable: %+v", f)
	}
	if len(sum.Formats) != 1 || sum.Formats[0].Name != "combined" || !slices.Equal(sum.Formats[0].Files, files) ||
		!slices.Equal(sum.Formats[0].Lacks, []string{"accept_language", "body", "start", "fractions", "cookie", "dnt", "client_hints"}) {
		t.Errorf("formats: %+v", *sum.Formats[0])
	}
	if sum, _ := s.importing(exitOK, "--server=all", "--dry-run", "--nginx-format="+full, whole); len(sum.Formats) != 1 || len(sum.Formats[0].Lacks) != 0 || sum.Files[0].Server != "all" {
		t.Errorf("with everything: %+v", sum)
	}

	bare := writeLog(t, filepath.Join(dir, "bare.log"), "192.0.2.1 [1772366400.123] /matomo.php\n")
	if sum, _ := s.importing(exitOK, "--dry-run", "--nginx-format=$remote_addr [$msec] $uri", bare); !slices.Equal(sum.Formats[0].Lacks[:3], []string{"query", "method", "user_agent"}) {
		t.Errorf("%+v", sum.Formats[0])
	}
	if sum, _ := s.importing(exitOK, "--dry-run", mixed); len(sum.Formats) != 1 || slices.Contains(sum.Formats[0].Lacks, "user_agent") || !slices.Contains(sum.Formats[0].Lacks, "referer") {
		t.Errorf("with a header in one line: %+v", sum)
	}

	code, stdout, stderr := s.run(append([]string{"import", "--dry-run"}, files...)...)
	want := strings.NewReplacer("DIR", dir).Replace(`ok  0 hits would be taken, of 32 lines in 4 files
--  25 passed over: imported before
!!  7 passed over: POST without a body in the log, which cannot be replayed
    5 of DIR/web1/access.log
        DIR/web1/access.log.2, line 1
    2 of DIR/web2/access.log
        DIR/web2/access.log, line 1
--  not in these logs (combined): DIR/web1/access.log.2, DIR/web1/access.log.1, DIR/web1/access.log, DIR/web2/access.log
    no Accept-Language: `)
	if _, got, _ := strings.Cut(stdout, "\nok"); code != exitOK || !strings.HasPrefix("ok"+got, want) {
		t.Errorf("exit %d, got\n%s%s\nwant\n%s", code, stdout, stderr, want)
	}
}
