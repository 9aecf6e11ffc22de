package systemd_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"sluice/internal/systemd"
)

// listen opens a socket as systemd does and returns its path and the next message.
func listen(t *testing.T, path string) (next func() string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func() string {
		buffer := make([]byte, 4096)
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := conn.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
}

func TestMessages(t *testing.T) {
	for name, path := range map[string]string{"path": filepath.Join(t.TempDir(), "notify"), "abstract": "@sluice-test-" + t.Name()} {
		t.Run(name, func(t *testing.T) {
			next := listen(t, path)
			n := systemd.NewNotifier([]string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=30000000", "WATCHDOG_PID=42"}, 42)
			defer n.Close()
			if n.Interval() != 15*time.Second {
				t.Errorf("interval %v, want 15s", n.Interval())
			}
			tests := []struct {
				send func()
				want string
			}{
				{func() { n.Ready("sending; 3 hits waiting") }, "READY=1\nSTATUS=sending; 3 hits waiting"},
				{func() { n.Status("two\nlines\nMAINPID=1") }, "STATUS=two lines MAINPID=1"},
				{n.Alive, "WATCHDOG=1"},
				{func() { n.Stopping("terminated") }, "STOPPING=1\nSTATUS=terminated"},
			}
			for _, tt := range tests {
				tt.send()
				if got := next(); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
		})
	}
}

func TestWithoutSystemdNothingHappens(t *testing.T) {
	tests := []struct {
		name string
		env  []string
	}{
		{"no socket is named", nil},
		{"socket does not exist", []string{"NOTIFY_SOCKET=/no/such/socket", "WATCHDOG_USEC=1000000"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := systemd.NewNotifier(tt.env, 1)
			n.Ready("x")
			n.Alive()
			n.Close()
			if n.Interval() != 0 {
				t.Errorf("interval %v, want none", n.Interval())
			}
		})
	}
}

func TestWatchdogOfAnotherProcessIsNotOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	listen(t, path)
	for _, env := range []string{"WATCHDOG_PID=2", "WATCHDOG_USEC=x"} {
		n := systemd.NewNotifier([]string{"WATCHDOG_USEC=1000000", "NOTIFY_SOCKET=" + path, env}, 1)
		if n.Interval() != 0 {
			t.Errorf("with %s the interval is %v, want none", env, n.Interval())
		}
		n.Close()
	}
}

func TestASocketThatNobodyReadsHoldsUpNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	listen(t, path)
	n := systemd.NewNotifier([]string{"NOTIFY_SOCKET=" + path}, 1)
	defer n.Close()
	begun := time.Now()
	for range 5000 { // more than any socket buffers
		n.Alive()
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("a full socket holds up the caller for %v", took)
	}
}
