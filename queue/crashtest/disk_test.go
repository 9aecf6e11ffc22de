package crashtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of ioctls that golang.org/x/sys does not name.
const (
	ioctlShutdown = 0x8004587d // FS_IOC_SHUTDOWN
	ioctlFreeze   = 0xc0045877 // FIFREEZE
	ioctlThaw     = 0xc0045878 // FITHAW

	// noLogFlush tells FS_IOC_SHUTDOWN to write nothing more at all.
	noLogFlush = 2
)

// A filesystem is a kind of file system that tests make in a file.
type filesystem struct {
	kind    string
	mkfs    []string
	options string
	size    int64
}

// Sizes: room for the queue's own reserve and some shelves; xfs is not made
// smaller than 300 MiB.
var (
	ext4 = filesystem{
		kind: "ext4", options: "noatime", size: 256 << 20,
		mkfs: []string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
	}
	xfs = filesystem{kind: "xfs", options: "noatime,nouuid", size: 320 << 20, mkfs: []string{"mkfs.xfs", "-q", "-f"}}
)

// scratch gives a directory in memory, where images are quick, or else an
// ordinary temporary one.
func scratch(t *testing.T) string {
	t.Helper()
	const memory = "/dev/shm"
	dir, err := os.MkdirTemp(memory, "sluice-crashtest-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is left of it is only memory
	return dir
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tool runs a program and returns its output.
func tool(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func mustTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tool(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// makeImage makes a file with an empty file system in it.
func (f filesystem) makeImage(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(f.size); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	mustTool(t, f.mkfs[0], append(f.mkfs[1:], path)...)
}

// A mountPoint is a directory on which something is mounted now and then.
type mountPoint struct {
	t   *testing.T
	dir string
	on  bool
}

func newMountPoint(t *testing.T, dir string) *mountPoint {
	t.Helper()
	m := &mountPoint{t: t, dir: mkdir(t, dir)}
	t.Cleanup(func() {
		if !m.on {
			return
		}
		if err := m.unmount(); err != nil {
			// Whatever still holds it, the machine must not keep it.
			_, lazy := tool("umount", "-l", m.dir)
			t.Logf("cleaning up: %v, lazily: %v", err, lazy)
		}
	})
	return m
}

// mount mounts a device, or an image by a loop device that goes with the mount.
func (m *mountPoint) mount(f filesystem, source string, more ...string) error {
	o := f.options
	if info, err := os.Stat(source); err == nil && info.Mode().IsRegular() {
		o += ",loop"
	}
	for _, x := range more {
		o += "," + x
	}
	if _, err := tool("mount", "-t", f.kind, "-o", o, source, m.dir); err != nil {
		return err
	}
	m.on = true
	return nil
}

func (m *mountPoint) mustMount(f filesystem, source string, more ...string) {
	m.t.Helper()
	if err := m.mount(f, source, more...); err != nil {
		m.t.Fatal(err)
	}
}

// unmount tries for a while: a process that was just killed may still hold it.
func (m *mountPoint) unmount() error {
	var err error
	for range 100 {
		if _, err = tool("umount", m.dir); err == nil {
			m.on = false
			return nil
		}
		<-time.After(20 * time.Millisecond)
	}
	return err
}

func (m *mountPoint) mustUnmount() {
	m.t.Helper()
	if err := m.unmount(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mountPoint) store() string { return filepath.Join(m.dir, "queue") }

// ioctl calls one of the ioctls above on a mounted directory.
func (m *mountPoint) ioctl(request uintptr, arg uint32) error {
	d, err := os.Open(m.dir)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), request, uintptr(unsafe.Pointer(&arg)))
	if err := d.Close(); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
