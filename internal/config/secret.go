package config

import (
	"encoding/base64"
	"encoding/hex"
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

// readSecret reads the one line of a secret file; see [readSecretFile].
func readSecret(path string) (secret Secret, warning string, err error) {
	text, warning, err := readSecretFile(path)
	text = strings.TrimSpace(text)
	switch {
	case err != nil:
		return "", "", err
	case text == "":
		return "", "", errors.New("is empty: want one line with the secret")
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", "", errors.New("want one line with the secret and nothing else")
	}
	return Secret(text), warning, nil
}

// keyLen is the length of a key of the queue, in bytes.
const keyLen = 32

// wantKey is what a line of a key file must be.
const wantKey = "want 32 random bytes as 64 hex digits or in base64, as from: openssl rand -hex 32"

// readKeys reads the keys in a key file, a line each; see [readSecretFile]. Blank
// lines and those that begin with # are skipped.
func readKeys(path string) (keys []Secret, warning string, err error) {
	text, warning, err := readSecretFile(path)
	if err != nil {
		return nil, "", err
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, ok := parseKey(line)
		if !ok {
			return nil, "", fmt.Errorf("line %d: %s", n, wantKey)
		}
		if slices.Contains(keys, key) {
			return nil, "", fmt.Errorf("line %d: the same key stands above", n)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, "", errors.New("holds no key: " + wantKey)
	}
	return keys, warning, nil
}

// parseKey reads one key.
func parseKey(text string) (Secret, bool) {
	key, err := hex.DecodeString(text)
	if err != nil || len(key) != keyLen {
		key, err = base64.StdEncoding.Strict().DecodeString(text)
	}
	return Secret(key), err == nil && len(key) == keyLen
}

// readSecretFile reads a secret file. One that others than its owner and group may
// use is refused. The warning, if any, says what is doubtful: a group that this
// process is not in may read the file, or the group may change it. No error shows
// anything of the content.
func readSecretFile(path string) (text, warning string, err error) {
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
	if len(data) > maxSecret {
		return "", "", fmt.Errorf("want at most %v", ByteSize(maxSecret))
	}
	return string(data), modeWarning(mode, info), nil
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
