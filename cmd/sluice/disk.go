package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A mount is where a directory is kept.
type mount struct {
	point   string
	kind    string // ext4, xfs, …
	options []string
}

// findMount finds the mount of a directory in a table with the format of
// /proc/self/mountinfo: the last of those with the longest mount point.
func findMount(table io.Reader, dir string) (mount, error) {
	var found mount
	scanner := bufio.NewScanner(table)
	for scanner.Scan() {
		before, after, ok := strings.Cut(scanner.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(rest) < 3 {
			continue
		}
		point := unescapeMount(fields[4])
		within := point == "/" || dir == point || strings.HasPrefix(dir, point+"/")
		if !within || len(point) < len(found.point) {
			continue
		}
		found = mount{point, rest[0], slices.Concat(strings.Split(fields[5], ","), strings.Split(rest[2], ","))}
	}
	if err := scanner.Err(); err != nil {
		return mount{}, fmt.Errorf("read the mount table: %w", err)
	}
	if found.point == "" {
		return mount{}, errors.New("no mount is known for the directory")
	}
	return found, nil
}

// unescapeMount undoes the octal escapes of the table.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// doubt says why what is synced there may not survive, or "".
func (m mount) doubt() string {
	for _, o := range m.options {
		switch o {
		case "nobarrier", "barrier=0", "nobarriers":
			return "mounted with " + o + ": a power cut loses hits that were acknowledged. Mount it without"
		case "ro":
			return "mounted read-only"
		}
	}
	switch kind, _, _ := strings.Cut(m.kind, "."); {
	case slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs"}, m.kind) || kind == "fuse":
		return m.kind + " is not a local disk: locks and synced writes cannot be relied on"
	case slices.Contains([]string{"tmpfs", "ramfs"}, m.kind):
		return m.kind + " is memory: hits are gone after a restart of the machine"
	case m.kind == "overlay":
		return "overlay is the container's own layer: hits are gone with the container. Mount a volume"
	}
	return ""
}

// existing gives the nearest directory above path that is there already: a check
// makes nothing.
func existing(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find the data directory: %w", err)
	}
	for {
		resolved, err := filepath.EvalSymlinks(path)
		if err == nil {
			return resolved, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return "", fmt.Errorf("find the data directory: %w", err)
		}
		path = filepath.Dir(path)
	}
}

// How the sync speed is measured.
const (
	syncRounds = 20
	syncBytes  = 4096
)

// syncSpeed writes and syncs a file in dir a few times and gives mean and maximum.
func syncSpeed(dir string) (mean, worst time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".sluice-check-*")
	if err != nil {
		return 0, 0, fmt.Errorf("measure the disk: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, syncBytes)
	var total time.Duration
	for range syncRounds {
		begun := time.Now()
		if _, err := f.Write(page); err != nil {
			return 0, 0, fmt.Errorf("measure the disk: %w", err)
		}
		if err := f.Sync(); err != nil {
			return 0, 0, fmt.Errorf("measure the disk: %w", err)
		}
		took := time.Since(begun)
		total += took
		worst = max(worst, took)
	}
	return total / syncRounds, worst, nil
}
