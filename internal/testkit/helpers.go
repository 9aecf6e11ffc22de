package testkit

import (
	"bytes"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Ports that the kernel gives to nobody by itself, neither to clients nor for port 0: on
// Linux those begin at 32768.
const (
	firstPort = 20000
	portRange = 12000
)

// FreePort finds a TCP port on loopback that nobody listens on. Tests of other packages
// run at the same time, so it is one that is only taken by who asks for it.
func FreePort(tb testing.TB) int {
	tb.Helper()
	for range 100 {
		port := firstPort + rand.IntN(portRange)
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		_ = ln.Close() // nothing was sent over it
		return port
	}
	tb.Fatal("no port is free")
	return 0
}

// A Log keeps what was logged and shows it as the test's output. After the test
// it keeps nothing and shows nothing, so goroutines that end late do no harm.
type Log struct {
	mu   sync.Mutex
	out  io.Writer // nil after the test
	text bytes.Buffer
}

// NewLog returns a log at level Debug, and the logger that writes it.
func NewLog(tb testing.TB) (*Log, *slog.Logger) {
	l := &Log{out: tb.Output()}
	tb.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.out = nil
	})
	return l, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Logger is NewLog for tests that do not read the log.
func Logger(tb testing.TB) *slog.Logger {
	_, logger := NewLog(tb)
	return logger
}

// Write implements io.Writer.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out == nil {
		return len(b), nil
	}
	l.text.Write(b)
	return l.out.Write(b)
}

// String returns everything logged so far, one record a line in slog's text form.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count says how many records contain text.
func (l *Log) Count(text string) int {
	n := 0
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// Tmpfs mounts a filesystem of size bytes for tests that fill a disk, and
// returns its folder, which everybody may reach. It goes away with the test. It
// skips the test when it may not mount, which only root may.
func Tmpfs(tb testing.TB, size int64) string {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("SKIPPED, NOT PROVEN: this test mounts a small filesystem and must run as root")
	}
	dir, err := os.MkdirTemp("", "sluice-tmpfs-")
	if err != nil {
		tb.Fatalf("make a mount point: %v", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size="+strconv.FormatInt(size, 10)); err != nil {
		_ = os.Remove(dir) // empty
		tb.Skipf("SKIPPED, NOT PROVEN: mount tmpfs: %v", err)
	}
	tb.Cleanup(func() {
		// MNT_DETACH: a file that is still open must not keep the mount.
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
		if err := os.Remove(dir); err != nil {
			tb.Errorf("remove mount point: %v", err)
		}
	})
	return dir
}
