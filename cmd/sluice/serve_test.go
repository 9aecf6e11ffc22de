package main

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/config"
	"sluice/internal/hit"
	"sluice/queue"
	"sluice/sink"
)

func TestSettingsReachTheSink(t *testing.T) {
	base, err := url.Parse("https://stats.example.org/base")
	if err != nil {
		t.Fatal(err)
	}
	var s config.Settings
	s.Matomo.URL = config.URL{URL: base}
	s.MySQL.TablesPrefix = "piwik_"
	s.Sink = config.SinkSettings{Lanes: 3, BatchHits: 5, BatchBytes: 7 << 10, OnUnknown: "hold", RequestTimeout: 11 * time.Second, ServerLimit: 12 * time.Second, ProbeInterval: 13 * time.Second}
	s.Shutdown.Grace = 17 * time.Second
	got := sinkConfig(&s, config.Secrets{MatomoToken: "token", MySQLDSN: "dsn", ReaderDSN: "reader"}, nil)
	want := sink.Config{
		Endpoint: "https://stats.example.org/base/matomo.php", Token: "token", DSN: "dsn", ReaderDSN: "reader", TablesPrefix: "piwik_",
		Lanes: 3, BatchHits: 5, BatchBytes: 7 << 10, OnUnknown: sink.Hold,
		RequestTimeout: 11 * time.Second, ServerLimit: 12 * time.Second, ProbeInterval: 13 * time.Second, Grace: 17 * time.Second,
	}
	got.Pending, want.Pending = nil, nil
	if !sameConfig(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// sameConfig compares all fields but the function.
func sameConfig(a, b sink.Config) bool {
	return a.Endpoint == b.Endpoint && a.Token == b.Token && a.DSN == b.DSN && a.ReaderDSN == b.ReaderDSN && a.TablesPrefix == b.TablesPrefix && a.Lanes == b.Lanes &&
		a.BatchHits == b.BatchHits && a.BatchBytes == b.BatchBytes && a.OnUnknown == b.OnUnknown && a.RequestTimeout == b.RequestTimeout &&
		a.ServerLimit == b.ServerLimit && a.Grace == b.Grace && a.ProbeInterval == b.ProbeInterval
}

func TestHitsPassTheQueueOnlyWhenTheyOvertakeNobody(t *testing.T) {
	pending := map[int64]int64{1: 0, 2: 5}
	for _, healthy := range []bool{true, false} {
		pass := passThrough(func() bool { return healthy }, func(site int64) int64 { return pending[site] })
		for site, want := range map[int64]bool{1: healthy, 2: false} {
			if got := pass(site); got != want {
				t.Errorf("site %d with a healthy (%v) Matomo: %v, want %v", site, healthy, got, want)
			}
		}
	}
}

// A hit that may be on disk must not go to Matomo on another way: Once.
func TestAppendSaysWhenAHitMayBeStored(t *testing.T) {
	q, err := queue.Open(queue.Options{Dir: t.TempDir(), Reserve: 64 << 20, Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet()})
	if err != nil {
		t.Fatal(err)
	}
	a := appender{q}
	set := &hit.RequestSet{ReceivedAt: time.Now().UnixNano(), Hits: []hit.Hit{{Site: 1, At: time.Now().Unix(), Params: []byte("idsite=1&rec=1")}}}
	if err := a.Append(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	err = a.Append(t.Context(), set)
	if uncertain, ok := errors.AsType[interface {
		error
		Uncertain() bool
	}](err); !ok || !uncertain.Uncertain() || !errors.Is(err, queue.ErrStopped) {
		t.Errorf("after Close Append = %v, want one that says it is uncertain", err)
	}
}

func TestTheControlKeyIsForItsOwnerAndForOneRun(t *testing.T) {
	s := startServer(t, filepath.Join(t.TempDir(), "data"), nobody)
	path := filepath.Join(s.dir, controlFile)
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(s.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory is %v, %v", info.Mode(), err)
	}
	s.stop()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key is still there after a stop: %v", err)
	}
	// What a killed start has left behind is no way in.
	if err := os.WriteFile(path+".new", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	startServer(t, s.dir, nobody)
	second, err := os.ReadFile(path)
	if err != nil || string(second) == string(first) {
		t.Errorf("the second run has the key of the first, %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the second key is %v, %v", info.Mode(), err)
	}
}

// notifySocket is the socket that the service manager listens on.
func notifySocket(t *testing.T) (path string, messages <-chan string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan string, 1000) // more than a test makes
	t.Cleanup(func() { conn.Close() })
	go func() { // ended by closing the socket
		defer close(received)
		buffer := make([]byte, 4096)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			received <- string(buffer[:n])
		}
	}()
	return path, received
}

func TestSystemdIsTold(t *testing.T) {
	path, messages := notifySocket(t)
	log := &lines{added: make(chan struct{}, 1)}
	signals := make(chan os.Signal, 1)
	done := make(chan int, 1)
	p := &process{
		args:  []string{"serve", "--matomo.url=" + nobody, "--listen=127.0.0.1:0", "--admin.listen=127.0.0.1:0", "--queue.reserve=64MiB", "--shutdown.delay=0s"},
		env:   []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=100000", "STATE_DIRECTORY=" + t.TempDir()},
		stdin: strings.NewReader(""), stdout: log, stderr: log, signals: signals, now: time.Now, zone: time.UTC, pid: os.Getpid(),
	}
	go func() { done <- run(p) }() // ended by the signal below
	await := func(want string) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			select {
			case m := <-messages:
				if strings.HasPrefix(m, want) {
					return
				}
			case <-deadline:
				t.Fatalf("no %q\n%s", want, log)
			}
		}
	}
	await("READY=1\nSTATUS=")
	await("WATCHDOG=1")
	await("STATUS=holding (auth), ends with a token in matomo.token-file, and a restart; 0 hits waiting")
	await("WATCHDOG=1")
	signals <- syscall.SIGTERM
	await("STOPPING=1\nSTATUS=stopping: terminated")
	if code := <-done; code != exitOK {
		t.Errorf("exit %d", code)
	}
}

// TestAFailedDiskEndsTheProcess lets a real process meet an error of its disk: the
// kernel refuses every sync of mapped memory after the first ones.
func TestAFailedDiskEndsTheProcess(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("SKIPPED: needs strace; that a failed disk ends the process is not proven by this run")
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := newEdgeProcess(t, nobody, dir)
	args := append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=msync", "-e", "inject=msync:error=EIO:when=20+", path}, p.args...)
	cmd := exec.Command(strace, args...)
	log := &lines{added: make(chan struct{}, 1)}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }() // ended by the end of the process
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	log.await(t, `"msg":"ready"`)
	for i := 0; ; i++ {
		code, err := get(p.public + "/matomo.php?idsite=1&rec=1")
		if err != nil || code == 503 {
			break
		}
		if code != 200 || i > 10000 {
			t.Fatalf("hit %d is answered %d", i, code)
		}
	}
	refused := time.Now()
	select {
	case err := <-done:
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != exitFailed {
			t.Errorf("ended with %v, want exit code 1\n%s", err, log)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("still runs\n%s", log)
	}
	if took := time.Since(refused); took > 3*time.Second { // strace slows it down
		t.Errorf("ended %v after the first refused hit", took)
	}
	if !strings.Contains(log.String(), "sluice: data directory "+dir+": stopped at once: the disk failed") {
		t.Errorf("does not say why:\n%s", log)
	}
}

// get gives the status of an answer.
func get(address string) (int, error) {
	resp, err := http.Get(address)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}
