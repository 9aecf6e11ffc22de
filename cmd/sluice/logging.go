package main

import (
	"io"
	"log/slog"
)

// newLogger makes the one logger. Lines go to standard error; auto is text for a
// human at a terminal and JSON for everything that collects lines.
func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		// Durations are read by people: "5s", not nanoseconds.
		if a.Value.Kind() == slog.KindDuration {
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}
	if format == "json" || format == "auto" && !isTerminal(w) {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// logLevel reads log.level.
func logLevel(text string) slog.Level {
	var l slog.Level
	if l.UnmarshalText([]byte(text)) != nil {
		return slog.LevelInfo // Settings allow nothing else; a wrong level must not silence errors.
	}
	return l
}
