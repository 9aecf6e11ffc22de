package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A keeper keeps small files in the data directory, each replaced as a whole.
type keeper struct{ dir string }

// Load is part of [archivegate.Keeper].
func (k keeper) Load(name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(k.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// Save is part of [archivegate.Keeper].
func (k keeper) Save(name string, text []byte) error {
	path := filepath.Join(k.dir, name)
	if err := writeSynced(path+".new", append(text, '\n')); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return syncDir(k.dir)
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
