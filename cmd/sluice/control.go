package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
)

// writeControlKey draws a new control key and writes it into the data directory,
// readable by its owner only. It is good until the next start.
func writeControlKey(dir string) (string, error) {
	key := rand.Text()
	temporary := filepath.Join(dir, controlFile+".new")
	// A file that a killed start has left keeps its mode when it is written again.
	if err := os.Remove(temporary); err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("control key: %w", err)
	}
	if err := os.WriteFile(temporary, []byte(key+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("control key: %w", err)
	}
	// Not synced: after a power cut the next start writes another.
	if err := os.Rename(temporary, filepath.Join(dir, controlFile)); err != nil {
		return "", fmt.Errorf("control key: %w", err)
	}
	return key, nil
}
