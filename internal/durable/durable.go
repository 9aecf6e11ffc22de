// Package durable writes files that a crash or a power cut leaves whole.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// TemporarySuffix ends the name of what a crash may leave of a file half written. It is
// written over by the next [WriteFile] of the same path.
const TemporarySuffix = ".tmp"

// WriteFile replaces a file, or makes it, readable by its owner only. Whatever happens,
// the path has the old content or the new one, the new one for good when there is no
// error. After an error nothing of the new content takes space, and only if that error
// is of the directory's sync may the path have it. Two at a time must not write the same
// path.
func WriteFile(path string, data []byte) error {
	temporary := path + TemporarySuffix
	err := writeSynced(temporary, data)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary) // the error says enough
		return err
	}
	return SyncDir(filepath.Dir(path))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// SyncDir makes a directory's entries durable: files made, renamed and removed.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
