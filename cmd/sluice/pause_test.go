package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/internal/admin"
	"sluice/sink"
)

// TestAPauseOutlivesARestart: a pause that vanished at night would feed a Matomo that
// somebody is working on.
func TestAPauseOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, dir, nobody)
	if code, stdout, stderr := s.run("drain", "pause", "--for=1h", "--why=core:update"); code != exitOK || !strings.Contains(stdout, "ends       at its time, or: sluice drain resume\n") {
		t.Fatalf("pause exits %d: %s%s", code, stdout, stderr)
	}
	status := func() (got admin.DrainStatus) {
		t.Helper()
		code, stdout, stderr := s.run("drain", "status", "--json")
		if err := json.Unmarshal([]byte(stdout), &got); code != exitOK || err != nil {
			t.Fatalf("status exits %d, %v: %s", code, err, stderr)
		}
		return got
	}
	before := status()
	s.stop()
	s = startServer(t, dir, nobody)
	after := status()
	if after.State != "paused" || after.Pause == nil || !after.Pause.Until.Equal(before.Pause.Until) || after.Pause.Why != "core:update" || after.Pause.Who == "" {
		t.Errorf("after a restart: %s, %+v; want paused as %+v", after.State, after.Pause, before.Pause)
	}
	if code, _, stderr := s.run("drain", "resume"); code != exitOK {
		t.Errorf("resume exits %d: %s", code, stderr)
	}
	s.stop()
	s = startServer(t, dir, nobody)
	if got := status(); got.State == "paused" || got.Pause != nil {
		t.Errorf("a pause that was ended is back after a restart: %+v", got.Pause)
	}
}

func TestKeptPause(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	p := &sink.Pause{Who: "ann", Why: "update", Since: time.Unix(100, 0).UTC(), Until: time.Unix(200, 0).UTC()}
	dir := t.TempDir()
	keep := keepPause(dir)
	if err := keep(nil); err != nil {
		t.Errorf("ending no pause: %v", err)
	}
	if got := keptPause(dir, log); got != nil {
		t.Errorf("got %+v without a file", got)
	}
	if err := keep(p); err != nil {
		t.Fatal(err)
	}
	if got := keptPause(dir, log); got == nil || *got != *p {
		t.Errorf("got %+v, want %+v", got, p)
	}
	if info, err := os.Stat(filepath.Join(dir, pauseFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info, err)
	}
	if err := os.WriteFile(filepath.Join(dir, pauseFile), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := keptPause(dir, log); got != nil {
		t.Errorf("got %+v from a damaged file", got)
	}
	if err := keepPause(filepath.Join(dir, "absent"))(p); err == nil {
		t.Error("a pause that cannot be stored is not told")
	}
}
