package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sluice/internal/durable"
)

// syncTree makes a directory's entries and its own entry durable.
func syncTree(dir string) error {
	return errors.Join(durable.SyncDir(dir), durable.SyncDir(filepath.Dir(dir)))
}

// makeDir creates a directory if it is missing and syncs its parent.
func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
}

const (
	// lockPatience is how long an opening waits for the lock: a supervisor starts a
	// process again before the kernel has taken the killed one apart.
	lockPatience = 2 * time.Second
	// lockPatienceOffline is that of a tool, for which somebody waits.
	lockPatienceOffline = 200 * time.Millisecond
	lockEvery           = 10 * time.Millisecond
)

// lockDir takes the lock of the data directory, trying for as long as patience
// says. It is released by closing the file, or by the end of the process.
func lockDir(dir string, patience time.Duration) (*os.File, error) {
	path := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); ; time.Sleep(lockEvery) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !time.Now().Before(end) {
			f.Close()
			return nil, fmt.Errorf("%w: %s", ErrLocked, path)
		}
	}
}

// FreeSpace gives the bytes that this process may still use on the file system of
// dir, and the size of it.
func FreeSpace(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// diskUsage is the space that a directory tree takes on disk, sparse files
// counted by what they hold.
func diskUsage(dir string) int64 {
	var sum int64
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}
