package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
	"sluice/queue"
)

var (
	importLogLines = flag.Int("import-log-lines", 6_000, "lines of the import that is killed")
	importKills    = flag.Int("import-kills", 6, "how often it is")
)

// logLine is the nth of a million lines of different requests, in the order of their times.
func logLine(n int) string {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(n/3) * time.Second)
	return fmt.Sprintf("192.0.2.%d - - [%s] \"GET /matomo.php?idsite=%d&rec=1&r=%d HTTP/1.1\" 200 43 \"-\" \"M\"\n", n%200, at.Format("02/Jan/2006:15:04:05 -0700"), 1+n%3, n)
}

func writeLog(t testing.TB, path string, lines ...string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// importing runs an import against the edge and gives its sum.
func (s *server) importing(code int, args ...string) (sum logSum, stderr string) {
	s.t.Helper()
	got, stdout, stderr := s.run(append([]string{"import", "--json"}, args...)...)
	if got != code {
		s.t.Fatalf("import: exit %d, want %d: %s%s", got, code, stdout, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &sum); err != nil {
		s.t.Fatalf("%v in %s", err, stdout)
	}
	return sum, stderr
}

// TestImportOfLogs: four servers' logs, one of them twice, two that overlap; then all of
// it again.
func TestImportOfLogs(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	const n = 3000
	logs := make([][]string, 4)
	for i := range n {
		logs[i*7%4] = append(logs[i*7%4], logLine(i))
	}
	logs[1] = append(logs[0][700:], logs[1]...) // not in order, and partly of another
	logs[2] = append(logs[2], strings.Replace(logLine(5), "matomo.php", "matomo.js", 1), "\n")
	var files []string
	for i, lines := range logs {
		files = append(files, writeLog(t, filepath.Join(dir, fmt.Sprintf("access-%d.log", i)), lines...))
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, strings.Join(logs[3], ""))
	z.Close()
	files = append(files, writeLog(t, filepath.Join(dir, "access-3.log.1.gz"), packed.String()))

	dry, _ := s.importing(exitOK, append([]string{"--dry-run"}, files...)...)
	if dry.Hits != n || dry.State != "" {
		t.Errorf("dry run: %+v", dry)
	}
	sum, _ := s.importing(exitOK, files...)
	if sum.Hits != n || sum.Sites["1"] != n/3 || sum.State != "complete" || sum.count("not_tracking") != 1 || sum.count("duplicate") != int64(len(logs[3])+len(logs[0])-700) {
		t.Errorf("first: %+v", sum)
	}
	if code, stdout, _ := s.run("queue", "stats"); code != exitOK || !strings.Contains(stdout, "accepted 3,000 ") || !strings.Contains(stdout, "oldest 2026-03-01 12:00:00") {
		t.Errorf("exit %d, %s", code, stdout)
	}
	again, _ := s.importing(exitOK, slices.Concat(files[2:], files[:2])...)
	if again.Hits != 0 || again.count("known") != n || again.Import != "" {
		t.Errorf("again: %+v", again)
	}
	more, _ := s.importing(exitOK, files[0], writeLog(t, filepath.Join(dir, "more.log"), logLine(n), logLine(n+1)))
	if more.Hits != 2 {
		t.Errorf("with two more: %+v", more)
	}
	if code, stdout, _ := s.run("import", "status"); code != exitOK || !strings.Contains(stdout, sum.Import) || !strings.Contains(stdout, "complete") || !strings.Contains(stdout, "3,000") {
		t.Errorf("exit %d, %s", code, stdout)
	}
	if code, _, stderr := s.run("import", "forget", sum.Import); code != exitOK {
		t.Fatal(stderr)
	}
	if sum, _ := s.importing(exitOK, "--window=2026-03-01T12:00:10Z..2026-03-01T12:00:20Z", files[0]); sum.Hits != 10*3/4+1 && sum.Hits != 10*3/4 {
		t.Errorf("ten seconds of a forgotten log: %+v", sum)
	}
}

// TestImportOfBadLogs: what is wrong is told with file and line, and the rest is taken.
func TestImportOfBadLogs(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, filepath.Join(dir, "data"), nobody)
	var lines []string
	for i := range 50 {
		lines = append(lines, logLine(i))
	}
	lines[20] = strings.Replace(lines[20], "/2026:", "/9026:", 1)
	lines[21] = "\x00\x01garbage\xff\n"
	lines[22] = strings.Repeat("x", 2<<20) + "\n"
	lines[23] = strings.Replace(lines[23], "GET", "POST", 1)
	lines[24] = strings.Replace(lines[24], "rec=1", "rec=1&cip=203.0.113.9", 1)
	lines[25] = strings.Replace(lines[25], `" 200`, `" 503`, 1)
	lines[49] = lines[49][:60]
	bad := writeLog(t, filepath.Join(dir, "bad.log"), lines...)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	for i := range 4000 {
		fmt.Fprint(z, logLine(1000+i))
	}
	z.Close()
	cut := writeLog(t, filepath.Join(dir, "cut.gz"), packed.String()[:packed.Len()/2])
	sum, _ := s.importing(exitFailed, bad, cut, filepath.Join(dir, "missing.log"), writeLog(t, filepath.Join(dir, "strange"), "a\nb\n"))
	want := map[string]int64{"not_parsed": 2, "too_long": 1, "damaged": 1, "unreadable": 1, "unknown_format": 1}
	for why, n := range want {
		if sum.count(why) != n {
			t.Errorf("%s: %d, want %d", why, sum.count(why), n)
		}
	}
	if sum.count("without_body") != 1 || sum.count("refused") != 1 || sum.count("cut_last_line") < 1 || sum.Hits < 44+1000 || sum.State != "complete" {
		t.Errorf("%+v", sum)
	}
	var places string
	for _, tally := range sum.Faulty {
		for _, s := range tally.Servers {
			places += fmt.Sprint(s.Examples)
		}
	}
	for _, want := range []string{bad + " 21 ", bad + " 22 ", bad + " 23 ", cut, "missing.log", "strange"} {
		if !strings.Contains(places, want) {
			t.Errorf("%q is not told: %s", want, places)
		}
	}
	if strings.Contains(places, "192.0.2") {
		t.Errorf("visitors are shown: %s", places)
	}
	if failed, _ := s.importing(exitOK, "--status=500-599", "--dry-run", writeLog(t, filepath.Join(dir, "one.log"), lines[25], lines[26])); failed.count("known") != 1 || failed.count("other_status") != 1 {
		t.Errorf("%+v", failed)
	}
}

// delivered waits until Matomo has n hits, and sees that no more come.
func delivered(t *testing.T, m *testkit.Matomo, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := m.WaitRecorded(ctx, n); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // more would come by then
	if got := len(m.Recorded()); int64(got) != n {
		t.Fatalf("%d hits are recorded, want %d", got, n)
	}
}

// TestLateImport: hits that are older than what was delivered wait for an order. With an
// account on MySQL only hits of the same visitors are.
func TestLateImport(t *testing.T) {
	for _, by := range []string{"site", "visitor"} {
		t.Run(by, func(t *testing.T) {
			var mc testkit.MatomoConfig
			flags := []string{"--matomo.token-file=" + file(t, "token", testkit.SuperToken, 0o600)}
			who, want := "sites", int64(2)
			if by == "visitor" {
				db := testkit.StartMariaDB(t)
				db.CreateMatomo("matomo", "matomo_")
				mc.Rows = testkit.OpenRows(t, db, "matomo", "matomo_")
				flags = append(flags, "--mysql.dsn-file="+file(t, "dsn", fmt.Sprintf("root@tcp(%s)/matomo", db.Addr()), 0o600))
				who, want = "visitors", 1
			}
			m := testkit.NewMatomo(mc)
			s := startServer(t, filepath.Join(t.TempDir(), "data"), m.Serve(t), flags...)
			if got := s.hit("idsite=1&rec=1&_id=1111111111111111"); got != http.StatusOK {
				t.Fatal(got)
			}
			delivered(t, m, 1)
			of := func(n int, id string) string {
				return strings.Replace(logLine(n), "idsite=1", "idsite=1&_id="+id, 1)
			}
			log := writeLog(t, filepath.Join(t.TempDir(), "a.log"), of(0, "2222222222222222"), logLine(1), of(3, "1111111111111111"))
			if dry, _ := s.importing(exitOK, "--dry-run", log); dry.Late != want || dry.LateBy != by {
				t.Errorf("%+v", dry)
			}
			sum, stderr := s.importing(exitFailed, log)
			if sum.Late != want || sum.LateBy != by || sum.State != "open" || !strings.Contains(stderr, fmt.Sprintf("%d hits are older", want)) ||
				!strings.Contains(stderr, "for the same "+who) || !strings.Contains(stderr, "sluice import complete "+sum.Import+" --allow-late") {
				t.Errorf("%+v, %s", sum, stderr)
			}
			delivered(t, m, 1)
			if code, _, stderr := s.run("import", "complete", sum.Import); code != exitFailed || !strings.Contains(stderr, fmt.Sprintf("%d hits", want)) {
				t.Errorf("exit %d, %s", code, stderr)
			}
			if code, _, stderr := s.run("import", "complete", "--allow-late", sum.Import); code != exitOK {
				t.Errorf("exit %d, %s", code, stderr)
			}
			delivered(t, m, 4)
		})
	}
}

// TestImportOfItsOwnLog: what Sluice has taken is known by its own log, in both formats.
func TestImportOfItsOwnLog(t *testing.T) {
	for _, format := range []string{"combined", "json"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			log := filepath.Join(dir, "access.log")
			s := startServer(t, filepath.Join(dir, "data"), nobody, "--proxy.access-log="+format, "--proxy.access-log-query=on", "--proxy.access-log-file="+log)
			for _, query := range []string{"idsite=1&rec=1&r=1", "idsite=1&rec=1&r=2", "idsite=1"} {
				if got := s.hit(query); got != http.StatusOK {
					t.Fatal(got)
				}
			}
			if got := s.hit("idsite=1&rec=1&cip=192.0.2.1"); got == http.StatusOK {
				t.Fatal("a foreign address was taken")
			}
			var text []byte
			for deadline := time.Now().Add(10 * time.Second); bytes.Count(text, []byte("\n")) < 4 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				text, _ = os.ReadFile(log) // it may not be there yet
			}
			sum, _ := s.importing(exitOK, log)
			if sum.Lines != 4 || sum.Hits != 0 || sum.count("taken_by_sluice") != 3 || sum.count("refused") != 1 {
				t.Errorf("%+v of\n%s", sum, text)
			}
		})
	}
}

// TestKilledImports: whenever the command or the edge dies, the command given again comes
// to the end that an undisturbed import comes to.
func TestKilledImports(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	logs := make([][]string, 2)
	for i := range *importLogLines {
		logs[i%2] = append(logs[i%2], logLine(i))
	}
	files := []string{writeLog(t, filepath.Join(dir, "a.log"), logs[0]...), writeLog(t, filepath.Join(dir, "b.log"), logs[1]...)}
	// An import into a new edge, killed after some times; it gives the hits.
	kills := 0
	var whole time.Duration // of the last one that was not killed
	outcome := func(name string, after func() <-chan time.Time) string {
		data := filepath.Join(dir, name)
		p := newEdgeProcess(t, nobody, data)
		p.start()
		before := kills
		for complete := false; !complete; {
			var out bytes.Buffer
			cmd := exec.Command(path, append([]string{"import", "--admin.listen=" + strings.TrimPrefix(p.private, "http://"), "--data-dir=" + data}, files...)...)
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }() // it ends by itself or is killed
			select {
			case err := <-ended:
				if err != nil {
					t.Fatalf("after %d kills: %v\n%s", kills, err, &out)
				}
				if complete = true; kills == before {
					whole = time.Since(began)
				}
			case <-after():
				if kills++; kills%2 == 0 {
					_ = cmd.Process.Kill() // it may have ended just now
					<-ended
					continue
				}
				p.kill()
				<-ended
				p.start()
			}
		}
		p.stop()
		return importedHits(t, data, *importLogLines)
	}
	want := outcome("undisturbed", func() <-chan time.Time { return nil })
	for round := 0; kills < *importKills; round++ {
		got := outcome(strconv.Itoa(round), func() <-chan time.Time {
			if kills == *importKills {
				return nil
			}
			return time.After(time.Duration(rand.Int64N(int64(whole))))
		})
		if got != want {
			t.Errorf("after %d kills the hits are others than without", kills)
		}
		t.Logf("import %d: %d kills so far", round, kills)
	}
}

// importedHits gives a digest of the hits that one import has left, which are to be so
// many, in the order of their times and no two alike.
func importedHits(t *testing.T, data string, n int) string {
	t.Helper()
	q := mustOpen(t, data)
	defer q.Close()
	if s := q.Stats(); s.Accepted != int64(n) || s.Pending != s.Accepted || s.Difference != 0 {
		t.Fatalf("got %+v, want %d hits", s, n)
	}
	if all := q.Imports(); len(all) != 1 || all[0].State != queue.ImportComplete {
		t.Fatalf("got imports %+v, want one that is complete", all)
	}
	sum := sha256.New()
	last := int64(0)
	seen := make(map[string]bool, n)
	for len(seen) < n {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		hits, err := q.Lease(ctx, 1000)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hits {
			if h.ReceivedAt < last {
				t.Fatalf("%v is older than the one before", h.ID)
			}
			last = h.ReceivedAt
			_, number, _ := strings.Cut(string(h.Params), "&r=")
			if _, err := strconv.Atoi(number); err != nil || seen[number] {
				t.Fatalf("hit %q is there twice, or is none", number)
			}
			seen[number] = true
			sum.Write(hit.AppendRequestSet(nil, &hit.RequestSet{ReceivedAt: h.ReceivedAt, Environment: *h.Environment, Hits: []hit.Hit{h.Hit}}))
		}
	}
	return string(sum.Sum(nil))
}

func mustOpen(t *testing.T, dir string) *queue.Queue {
	t.Helper()
	q, err := queue.Open(queue.Options{Dir: dir, Reserve: 64 << 20, Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet()})
	if err != nil {
		t.Fatal(err)
	}
	return q
}
