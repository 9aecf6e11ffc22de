package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sluice/internal/durable"
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
	if err := durable.WriteFile(filepath.Join(k.dir, name), append(text, '\n')); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return nil
}
