package testkit_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
)

func TestMariaDB(t *testing.T) {
	begin := time.Now()
	db := testkit.StartMariaDB(t, "--max-connections=17")
	t.Logf("started in %v", time.Since(begin))
	db.CreateMatomo("stats", "p_")
	if got := db.Exec("SELECT @@max_connections, @@port"); got[0][0] != "17" || got[0][1] != strconv.Itoa(db.Port()) {
		t.Errorf("connections and port are %v", got)
	}
	if got := db.Exec("SELECT option_value FROM stats.p_option WHERE option_name='version_core'"); got[0][0] != testkit.Version {
		t.Errorf("version_core = %v, want %s", got, testkit.Version)
	}
	if got := db.Exec("SELECT timezone FROM stats.p_site"); len(got) != 4 || got[1][0] != "Europe/Berlin" {
		t.Errorf("sites are %v", got)
	}
	if _, err := db.TryExec("SELECT 1 FROM nothing.here"); err == nil || !strings.Contains(err.Error(), "1146") {
		t.Errorf("error = %v, want 1146", err)
	}
	grants := db.Exec("SHOW GRANTS FOR '" + testkit.ReaderUser + "'@'127.0.0.1'")
	if len(grants) != 2 || !strings.HasPrefix(grants[1][0], "GRANT SELECT ON `stats`.*") {
		t.Errorf("the reader may: %v", grants)
	}

	db.Exec("INSERT INTO stats.p_log_action (name, hash, type) VALUES ('x', 1, 1)")
	db.Restart()
	if got := db.Exec("SELECT count(*) FROM stats.p_log_action"); got[0][0] != "1" {
		t.Errorf("%v rows after a crash, want 1", got)
	}
	pid := db.Pid()
	db.Pause()
	if greeted(db.Addr()) {
		t.Error("a paused server greets")
	}
	db.Continue()
	if !greeted(db.Addr()) {
		t.Error("a continued server does not greet")
	}
	db.Pause()
	db.Stop()
	if db.Pid() != 0 || greeted(db.Addr()) {
		t.Error("a stopped server greets")
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err == nil {
		t.Error("the process is still there")
	}
	db.Start()
	if db.Pid() == 0 || db.Pid() == pid {
		t.Errorf("pid %d after a start, was %d", db.Pid(), pid)
	}
}

// greeted says whether a MySQL server says hello in a moment.
func greeted(addr string) bool {
	const moment = 100 * time.Millisecond
	conn, err := net.DialTimeout("tcp", addr, moment)
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(moment)); err != nil {
		return false
	}
	n, _ := conn.Read(make([]byte, 1))
	return n == 1
}

func TestTmpfsRunsFull(t *testing.T) {
	dir := testkit.Tmpfs(t, 1<<20)
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("2 MiB fit into 1 MiB")
	}
}

func TestLog(t *testing.T) {
	var log *testkit.Log
	t.Run("inner", func(t *testing.T) {
		l, logger := testkit.NewLog(t)
		log = l
		logger.Debug("said", "key", "value")
		logger.Warn("said more")
		if l.Count("said") != 2 || !strings.Contains(l.String(), "key=value") {
			t.Errorf("kept %q", l)
		}
	})
	if _, err := log.Write([]byte("late")); err != nil || log.Count("late") != 0 {
		t.Errorf("kept what came after the test: %q %v", log, err)
	}
}
