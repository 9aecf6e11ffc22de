package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"sluice/internal/durable"
	"sluice/sink"
)

// pauseFile keeps an operator's pause in the data directory, so that a restart at
// night does not end it. While there is none the file is not there.
const pauseFile = "pause.json"

// keptPause reads the pause that an earlier process was in, nil when there is none.
// A file that cannot be read costs the pause, and never the start.
func keptPause(dir string, log *slog.Logger) *sink.Pause {
	text, err := keeper{dir}.Load(pauseFile)
	if err == nil && text == nil {
		return nil
	}
	var p sink.Pause
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		log.Warn("the kept pause cannot be read, so feeding is not paused", "file", filepath.Join(dir, pauseFile), "err", err)
		return nil
	}
	return &p
}

// keepPause gives what stores a pause durably, and with nil that there is none.
func keepPause(dir string) func(*sink.Pause) error {
	path := filepath.Join(dir, pauseFile)
	return func(p *sink.Pause) error {
		if p == nil {
			if err := os.Remove(path); err != nil {
				if errors.Is(err, os.ErrNotExist) {
					return nil
				}
				return fmt.Errorf("remove the pause: %w", err)
			}
			return durable.SyncDir(dir)
		}
		text, err := json.Marshal(p)
		if err != nil {
			return err
		}
		return keeper{dir}.Save(pauseFile, text)
	}
}
