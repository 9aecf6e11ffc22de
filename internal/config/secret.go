package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
)

// maxSecret bounds a secret file, in bytes.
const maxSecret = 16 << 10

// Permission bits that matter for a secret file.
const (
	othersBits = 0o007
	groupRead  = 0o040
	groupWrite = 0o020
)

// A Secret is the content of a secret file. It prints as a placeholder, so that it
// cannot get into a log or an error by accident.
type Secret string

// String never gives the secret.
func (s Secret) String() string {
	if s == "" {
		return "not set"
	}
	return "(secret)"
}

// GoString never gives the secret.
func (s Secret) GoString() string { return s.String() }

// Reveal gives the secret itself.
func (s Secret) Reveal() string { return string(s) }

// readSecret reads the one line of a secret file. A file that others than its
// owner and group may use is refused. The warning, if any, says what is doubtful:
// a group that this process is not in may read the file, or the group may change it.
func readSecret(path string) (secret Secret, warning string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", errors.New(reason(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", "", errors.New(reason(err))
	}
	if !info.Mode().IsRegular() {
		return "", "", errors.New("is not a file")
	}
	mode := info.Mode().Perm()
	if mode&othersBits != 0 {
		return "", "", fmt.Errorf("others can use this file (mode %04o): want mode 0600 or 0640", mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", "", errors.New(reason(err))
	}
	text := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxSecret:
		return "", "", fmt.Errorf("want at most %v", ByteSize(maxSecret))
	case text == "":
		return "", "", errors.New("is empty: want one line with the secret")
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", "", errors.New("want one line with the secret and nothing else")
	}
	return Secret(text), modeWarning(mode, info), nil
}

func modeWarning(mode fs.FileMode, info fs.FileInfo) string {
	if mode&groupWrite != 0 {
		return fmt.Sprintf("the group can change this file (mode %04o): want mode 0600 or 0640", mode)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if mode&groupRead == 0 || !ok || inGroup(int(stat.Gid)) {
		return ""
	}
	return fmt.Sprintf("a group that Sluice is not in can read this file (mode %04o): want mode 0600", mode)
}

// inGroup reports whether the process is in the group.
func inGroup(gid int) bool {
	groups, err := os.Getgroups()
	return gid == os.Getegid() || err == nil && slices.Contains(groups, gid)
}

// reason gives the cause of a file error without the path, which the fault names
// already.
func reason(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}
