package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sluice/internal/admin"
	"sluice/internal/testkit"
)

var update = flag.Bool("update", false, "write the golden files anew")

// now is the time of every command in a test, except of the edge itself.
func testNow() time.Time { return time.Date(2026, 3, 17, 0, 47, 0, 0, time.UTC) }

// command runs one command line in this process. One that starts an edge by mistake
// finds that it was told to stop.
func command(env []string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	signals := make(chan os.Signal, 1)
	if len(args) > 0 && args[0] == "serve" {
		signals <- syscall.SIGTERM
	}
	code = run(&process{
		args: args, env: env, stdin: strings.NewReader(""), stdout: &out, stderr: &errs, signals: signals, now: testNow, zone: time.UTC, pid: 1,
	})
	return code, out.String(), errs.String()
}

// golden compares got with a file, or writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant, as in %s,\n%s", got, path, want)
	}
}

// file writes a file with exactly this mode.
func file(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandLine(t *testing.T) {
	tests := []struct {
		name string // of the golden file, too
		args string
		env  []string
		want int
	}{
		{"no-command", "", nil, exitUsage},
		{"help", "--help", nil, exitOK},
		{"help-of-serve", "serve --help", nil, exitOK},
		{"help-of-check", "check --help", nil, exitOK},
		{"help-of-queue", "queue --help", nil, exitOK},
		{"help-of-requeue", "queue requeue --help", nil, exitOK},
		{"help-of-import", "queue import --help", nil, exitOK},
		{"help-of-drain", "drain pause --help", nil, exitOK},
		{"help-of-assets", "assets --help", nil, exitOK},
		{"help-of-pin", "assets pin --help", nil, exitOK},
		{"purge-of-nothing", "assets purge", nil, exitUsage},
		{"pin-of-two-versions", "assets pin /matomo.js abc --previous", nil, exitUsage},
		{"unknown-command", "srve", nil, exitUsage},
		{"unknown-subcommand", "queue stat", nil, exitUsage},
		{"unknown-flag", "serve --sink.lane=3", nil, exitUsage},
		{"misplaced-token", "serve --matomo.token=0123456789abcdef", nil, exitUsage},
		{"missing-subcommand", "queue", nil, exitUsage},
		{"import-of-nothing", "queue import", nil, exitUsage},
		{"nothing-runs-to-import-into", "queue import --admin.listen=127.0.0.1:1 --data-dir=/no/such/dir -", nil, exitNotNow},
		{"missing-argument", "queue show", nil, exitUsage},
		{"bad-id", "queue show 12", nil, exitUsage},
		{"bad-limit", "queue ls --limit=-1", nil, exitUsage},
		{"bad-duration", "drain pause --for=48h", nil, exitUsage},
		{"bad-color", "--color=red version", nil, exitUsage},
		{"requeue-of-nothing", "queue requeue", nil, exitUsage},
		{"requeue-of-two-things", "queue requeue --all 0000000000000007-1-0", nil, exitUsage},
		{"settings-missing", "serve", nil, exitSettings},
		{"settings-many-faults", "serve --matomo.url=ftp://m --sink.lanes=0 --queue.reserve=5 --tls.mode=files", []string{"SLUICE_SINK_LANE=3", "SLUICE_LOG_LEVEL=loud"}, exitSettings},
		{"admin-open-to-all", "serve --matomo.url=http://m --admin.listen=:8444", nil, exitSettings},
		{"missing-file", "serve --matomo.url=http://m --config=/no/such.yaml", nil, exitSettings},
		{"client-settings", "queue stats --admin.listen=x", nil, exitSettings},
		{"nothing-runs", "drain status --admin.listen=127.0.0.1:1", nil, exitNotNow},
		{"nothing-runs-and-no-queue", "queue stats --admin.listen=127.0.0.1:1 --data-dir=/no/such/dir", nil, exitFailed},
		{"unhealthy", "healthcheck --admin.listen=127.0.0.1:1", nil, exitFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := command(tt.env, strings.Fields(tt.args)...)
			if code != tt.want {
				t.Errorf("exit %d, want %d", code, tt.want)
			}
			if strings.Contains(stdout+stderr, "0123456789abcdef") {
				t.Errorf("a token is printed: %s%s", stdout, stderr)
			}
			golden(t, tt.name, fmt.Sprintf("$ %s\n%s%sexit %d\n", strings.TrimSpace("sluice "+tt.args), stdout, stderr, code))
		})
	}
}

func TestSettingsThatServeRefuses(t *testing.T) {
	unknown := file(t, "sluice.yaml", "matomo.url: http://m\nsink.batch-hit: 3\n", 0o644)
	open := file(t, "token", "0123456789abcdef", 0o644)
	dsn := file(t, "dsn", "sluice:geheim@tcp(db:3306", 0o600)
	noURL := file(t, "other.yaml", "listen: :1\n", 0o644)
	tests := []struct {
		name, arg, want string
	}{
		{"unknown setting in the file", "--config=" + unknown, "sluice: settings: sink.batch-hit (" + unknown + ":2): no such setting; did you mean sink.batch-hits?\n  try: sluice check --config " + unknown},
		{"token that others can read", "--matomo.token-file=" + open, "sluice: settings: matomo.token-file: \"" + open + "\" (flag): others can use this file (mode 0644)"},
		{"account that cannot be read", "--mysql.dsn-file=" + dsn, "sluice: settings: sink: "},
		{"file without Matomo's address", "--config=" + noURL, "sluice: settings: matomo.url: is not set"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{"serve", "--data-dir=" + t.TempDir(), tt.arg}
			if !strings.Contains(tt.arg, "config") {
				args = append(args, "--matomo.url=http://m")
			}
			code, stdout, stderr := command(nil, args...)
			if code != exitSettings || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit %d, %s, want %d and %q", code, stderr, exitSettings, tt.want)
			}
			if strings.Contains(stdout+stderr, "geheim") || strings.Contains(stdout+stderr, "0123456789abcdef") {
				t.Errorf("a secret is printed: %s", stderr)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	code, stdout, stderr := command(nil, "check", "--matomo.url=http://m", "--data-dir="+dir, "--queue.reserve=64MiB")
	for _, want := range []string{"settings", "disk", dir, "listen", ":8443", "certificate: self-signed", "matomo", "--  not asked without --online", "!!  not set: hits are kept, and nothing is sent to Matomo", "mysql"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("missing %q in\n%s", want, stdout)
		}
	}
	if code != exitOK || stderr != "" {
		t.Errorf("exit %d, %s", code, stderr)
	}
	code, stdout, _ = command(nil, "check", "--sink.lanes=0", "--data-dir="+dir, "--json")
	var answer checked
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatal(err)
	}
	if code != exitSettings || answer.V != 1 || answer.OK || answer.Faults != 2 {
		t.Errorf("exit %d, %+v", code, answer)
	}
	code, stdout, _ = command([]string{"SLUICE_SINK_LANES=7"}, "check", "--list", "--matomo.url=http://m")
	if code != exitOK || !regexp.MustCompile(`(?m)^sink\.lanes +7 +environment$`).MatchString(stdout) {
		t.Errorf("exit %d\n%s", code, stdout)
	}
}

// TestCheckOnline measures the disk and asks around: nobody answers.
func TestCheckOnline(t *testing.T) {
	token := file(t, "token", "0123456789abcdef0123456789abcdef", 0o600)
	code, stdout, _ := command(nil, "check", "--online", "--matomo.url=http://127.0.0.1:1", "--matomo.token-file="+token, "--data-dir="+t.TempDir(), "--queue.reserve=64MiB")
	if code != exitSettings || !strings.Contains(stdout, "sync ") || !regexp.MustCompile(`(?m)^matomo .* XX `).MatchString(stdout) {
		t.Errorf("exit %d\n%s", code, stdout)
	}
	if strings.Contains(stdout, "0123456789abcdef") {
		t.Errorf("the token is printed:\n%s", stdout)
	}
}

func TestCheckTellsOfDisks(t *testing.T) {
	measure := func(mean time.Duration, err error) func(string) (time.Duration, time.Duration, error) {
		return func(string) (time.Duration, time.Duration, error) { return mean, 2 * mean, err }
	}
	c := &checkCommand{Online: true}
	tests := []struct {
		name        string
		m           mount
		free        int64
		mean        time.Duration
		err         error
		level, text string
	}{
		{"good disk is good", mount{kind: "ext4"}, 10 << 30, time.Millisecond, nil, levelOK, "ext4, sync 1.0 ms (max 2.0 ms), 8.0 GiB above reserve"},
		{"disk without barriers is doubtful", mount{kind: "xfs", options: []string{"nobarrier"}}, 10 << 30, time.Millisecond, nil, levelWarn, "nobarrier"},
		{"network disk is doubtful", mount{kind: "nfs4"}, 10 << 30, time.Millisecond, nil, levelWarn, "not a local disk"},
		{"slow disk is doubtful", mount{kind: "ext4"}, 10 << 30, time.Second, nil, levelWarn, "slow"},
		{"full disk is a fault", mount{kind: "ext4"}, 1 << 30, time.Millisecond, nil, levelFault, "1.0 GiB free is below the reserve of 2.0 GiB"},
		{"full disk without barriers stays a fault", mount{kind: "ext4", options: []string{"barrier=0"}}, 1, time.Millisecond, nil, levelFault, "barrier=0"},
		{"disk that cannot be written is a fault", mount{kind: "ext4"}, 10 << 30, 0, os.ErrPermission, levelFault, "permission denied"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := c.judgeDisk(finding{}, tt.m, "/x", tt.free, 2<<30, measure(tt.mean, tt.err))
			if f.Level != tt.level || !strings.Contains(f.Text, tt.text) {
				t.Errorf("got %+v, want %s with %q", f, tt.level, tt.text)
			}
		})
	}
}

// A server is an edge that runs in this process.
type server struct {
	t       *testing.T
	signals chan os.Signal
	log     *lines
	done    chan int
	public  string
	private string // HOST:PORT
	dir     string
	client  *http.Client
}

// lines collects what is logged and tells who waits for a line.
type lines struct {
	mu    sync.Mutex
	text  strings.Builder
	added chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.added <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until a line with the text was logged, and returns it.
func (l *lines) await(t *testing.T, text string) string {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		for line := range strings.Lines(l.String()) {
			if strings.Contains(line, text) {
				return line
			}
		}
		select {
		case <-l.added:
		case <-deadline:
			t.Fatalf("no line with %q in\n%s", text, l)
		}
	}
}

// startServer starts the real thing in front of matomo and waits until it is ready.
func startServer(t *testing.T, dir, matomo string, args ...string) *server {
	t.Helper()
	s := &server{
		t: t, signals: make(chan os.Signal, 2), log: &lines{added: make(chan struct{}, 1)}, done: make(chan int, 1), dir: dir,
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}, // it signs itself
	}
	args = append([]string{
		"serve", "--matomo.url=" + matomo, "--data-dir=" + dir, "--listen=127.0.0.1:0", "--admin.listen=127.0.0.1:0",
		"--queue.reserve=64MiB", "--shutdown.delay=0s", "--shutdown.grace=5s",
	}, args...)
	p := &process{
		args: args, stdin: strings.NewReader(""), stdout: io.Discard, stderr: s.log, signals: s.signals,
		now: time.Now, zone: time.UTC, pid: os.Getpid(),
	}
	go func() { s.done <- run(p) }() // ended by stop
	t.Cleanup(s.stop)
	var ready struct{ HTTPS, Admin string }
	if err := json.Unmarshal([]byte(s.log.await(t, `"msg":"ready"`)), &ready); err != nil {
		t.Fatal(err)
	}
	s.public, s.private = "https://"+ready.HTTPS, ready.Admin
	return s
}

// stop ends the edge as systemd would; a second call does nothing.
func (s *server) stop() {
	if s.done == nil {
		return
	}
	s.client.CloseIdleConnections()
	s.signals <- syscall.SIGTERM
	if code := <-s.done; code != exitOK {
		s.t.Errorf("serve ended with %d:\n%s", code, s.log)
	}
	s.done = nil
}

// run runs a command against the edge.
func (s *server) run(args ...string) (code int, stdout, stderr string) {
	return command(nil, append(args, "--admin.listen="+s.private, "--data-dir="+s.dir)...)
}

func (s *server) hit(query string) int {
	s.t.Helper()
	resp, err := s.client.Get(s.public + "/matomo.php?" + query)
	if err != nil {
		s.t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

// nobody is an address where no Matomo is.
const nobody = "http://127.0.0.1:1"

func TestServeKeepsHitsWithoutMatomoAndOverARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := startServer(t, dir, nobody)
	for i := range 3 {
		if code := s.hit(fmt.Sprintf("idsite=%d&rec=1&url=http://shop.example/a%%3Fq=1&_id=0123456789abcdef", i%2+1)); code != 200 {
			t.Fatalf("hit answered %d", code)
		}
	}
	check := func(s *server, pending string) {
		t.Helper()
		code, stdout, stderr := s.run("queue", "stats")
		if want := "accepted 3 = delivered 0 + invalid 0 + dead 0 + pending 3     ok\n"; code != 0 || !strings.HasPrefix(stdout, want) || stderr != pending {
			t.Errorf("exit %d, got\n%s%s", code, stdout, stderr)
		}
	}
	check(s, "")
	if code, stdout, stderr := s.run("healthcheck"); code != 0 || stdout != "ready\n" {
		t.Errorf("healthcheck exits %d: %s", code, stderr)
	}
	s.stop()
	check(s, "no Sluice is running at "+s.private+": reading "+dir+"\n")

	s = startServer(t, dir, nobody)
	if code := s.hit("rec=0"); code/100 == 5 {
		t.Errorf("answered %d after a restart", code)
	}
	check(s, "")
}

func TestCommandsAgainstARunningEdge(t *testing.T) {
	s := startServer(t, t.TempDir(), nobody)
	s.hit("idsite=1&rec=1&url=http://shop.example/path%3Fq=secret&_id=0123456789abcdef&uid=anna")
	_, list, _ := s.run("queue", "ls", "--json")
	var h admin.Hit
	if err := json.Unmarshal([]byte(list), &h); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args  string
		code  int
		want  string // in stdout or stderr
		never string
	}{
		{"queue ls", 0, "page view  /path  127.0.0.0/16  012345", "secret"},
		{"queue stats --json", 0, `"v":1,`, ""},
		{"queue stats --sites", 0, "SITE  DAY (UTC)   ACCEPTED  DELIVERED  INVALID  DEAD  PENDING\n   1  ", ""},
		{"queue stats --sites --json", 0, `{"site":1,"day":"`, ""},
		{"queue show " + h.ID, 0, "network     127.0.0.0/16", "secret"},
		{"queue show --full " + h.ID, 0, "parameters  idsite=1&rec=1&url=http://shop.example/path%3Fq=secret", ""},
		{"queue show --json " + h.ID, 0, `"kind":"page view"`, "secret"},
		{"queue show 0000000000000007-1-0", 1, "sluice: queue show: no such hit: it is neither pending nor buried", ""},
		{"queue dead", 0, "nothing is buried", ""},
		{"queue dead --list", 0, "ID  BURIED", ""},
		{"queue dead --json", 0, "", ""},
		{"queue requeue --all", 0, "0 hits are pending again", ""},
		{"queue verify", 0, "ok  1 pending hits in 1 blocks", ""},
		{"queue verify --json", 0, `{"v":1,"ok":true,`, ""},
		{"queue export", 0, `"params":"idsite=1&rec=1`, ""},
		{"drain status", 0, "holding    since ", ""},
		{"drain status --json", 0, `"reason":"auth"`, ""},
		{"drain pause --for=10m --why=update", 0, "paused    since ", ""},
		{"drain status", 0, ": update", ""},
		{"drain resume", 0, "holding    since ", ""},
		{"drain resume --data-dir=/nowhere", 77, "  try: use the same --config or --data-dir as the running Sluice", ""},
		{"queue show --full --data-dir=/nowhere " + h.ID, 77, "this needs the admin token", "secret"},
	}
	for _, tt := range tests {
		args := strings.Fields(tt.args)
		code, stdout, stderr := 0, "", ""
		if strings.Contains(tt.args, "--data-dir") {
			code, stdout, stderr = command(nil, append(args, "--admin.listen="+s.private)...)
		} else {
			code, stdout, stderr = s.run(args...)
		}
		if code != tt.code || !strings.Contains(stdout+stderr, tt.want) || tt.never != "" && strings.Contains(stdout, tt.never) {
			t.Errorf("%s exits %d, want %d with %q:\n%s%s", tt.args, code, tt.code, tt.want, stdout, stderr)
		}
	}
	path := filepath.Join(t.TempDir(), "export.jsonl")
	if code, _, stderr := s.run("queue", "export", path); code != 0 || stderr != "1 hits\n" {
		t.Errorf("export exits %d: %s", code, stderr)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("export is %v, %v", info, err)
	}
	if code, _, _ := s.run("queue", "export", path); code != exitFailed {
		t.Errorf("a second export over the first exits %d", code)
	}
}

func TestADataDirectoryInUseIsRefused(t *testing.T) {
	s := startServer(t, t.TempDir(), nobody)
	code, _, stderr := command(nil, "serve", "--matomo.url="+nobody, "--data-dir="+s.dir, "--listen=127.0.0.1:0", "--admin.listen=127.0.0.1:0")
	if code != exitFailed || !strings.Contains(stderr, "sluice: data directory "+s.dir+": ") || !strings.Contains(stderr, "in use by another process") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if code, _, stderr := s.run("drain", "pause"); code != 0 {
		t.Errorf("the first edge has lost its control key: %s", stderr)
	}
}

func TestADataDirectoryOfANewerVersionIsRefused(t *testing.T) {
	s := startServer(t, t.TempDir(), nobody)
	s.stop()
	store := filepath.Join(s.dir, "store.json")
	text, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	newer := regexp.MustCompile(`("[a-z_]*(?:format|version)[a-z_]*": ?)\d+`).ReplaceAll(text, []byte("${1}99"))
	if bytes.Equal(newer, text) {
		t.Fatalf("no version in %s", text)
	}
	if err := os.WriteFile(store, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := command(nil, "serve", "--matomo.url="+nobody, "--data-dir="+s.dir, "--listen=127.0.0.1:0", "--admin.listen=127.0.0.1:0")
	if code != exitFailed || !strings.Contains(stderr, "newer version") || !strings.Contains(stderr, "  try: the newer version of Sluice again") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestAPortInUseIsRefused(t *testing.T) {
	s := startServer(t, t.TempDir(), nobody)
	port := func(flag, addr string) {
		args := []string{"serve", "--matomo.url=" + nobody, "--data-dir=" + t.TempDir(), "--listen=127.0.0.1:0", "--admin.listen=127.0.0.1:0", flag + addr, "--shutdown.delay=0s", "--queue.reserve=64MiB"}
		code, _, stderr := command(nil, args...)
		if code != exitFailed || !strings.Contains(stderr, "address already in use") {
			t.Errorf("%s: exit %d: %s", flag, code, stderr)
		}
	}
	port("--admin.listen=", s.private)
	port("--listen=", strings.TrimPrefix(s.public, "https://"))
}

func TestReadinessFallsAtTheSignalAndHitsAreTakenDuringTheDelay(t *testing.T) {
	s := startServer(t, t.TempDir(), nobody, "--shutdown.delay=2s")
	s.signals <- syscall.SIGTERM
	s.log.await(t, `"msg":"stopping","why":"terminated"`)
	if code, _, stderr := s.run("healthcheck"); code != 1 || stderr != "sluice: not ready: the edge is stopping\n" {
		t.Errorf("healthcheck exits %d: %s", code, stderr)
	}
	if code := s.hit("idsite=1&rec=1"); code != 200 {
		t.Errorf("a hit during the delay is answered %d", code)
	}
	s.client.CloseIdleConnections()
	if code := <-s.done; code != exitOK {
		t.Errorf("exit %d", code)
	}
	s.done = nil
	if _, stdout, _ := s.run("queue", "stats"); !strings.HasPrefix(stdout, "accepted 1 ") {
		t.Errorf("after the stop: %s", stdout)
	}
}

func TestHitsReachMatomo(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	token := file(t, "token", testkit.SuperToken, 0o600)
	s := startServer(t, t.TempDir(), m.Serve(t), "--matomo.token-file="+token)
	marks := make([]string, 20)
	for i := range marks {
		marks[i] = fmt.Sprintf("m%d", i)
		if code := s.hit(fmt.Sprintf("idsite=1&rec=1&url=http://shop.example/&%s=%s", testkit.DefaultMark, marks[i])); code != 200 {
			t.Fatalf("hit answered %d", code)
		}
	}
	if err := m.WaitRecorded(t.Context(), int64(len(marks))); err != nil {
		t.Fatal(err)
	}
	m.CheckOnce(t, marks)
	code, stdout, _ := s.run("check", "--online", "--matomo.url="+m.Serve(t), "--matomo.token-file="+token, "--queue.reserve=64MiB")
	if code != exitOK || !strings.Contains(stdout, "superuser") {
		t.Errorf("check --online exits %d:\n%s", code, stdout)
	}
}
