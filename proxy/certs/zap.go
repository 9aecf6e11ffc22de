package certs

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap lets certmagic write to log. Its lines are one level lower than it thinks:
// what it does step by step is for debugging, and an attempt that failed is not an error
// here, since it is made again. A line that a client caused is for debugging only,
// and never names the client.
func newZap(log *slog.Logger) *zap.Logger {
	return zap.New(zapCore{log: log.With("library", "certmagic")})
}

// A zapCore is where certmagic's lines end.
type zapCore struct {
	log        *slog.Logger
	fromClient bool
}

// level says how important a line of certmagic's is.
func (c zapCore) level(level zapcore.Level) slog.Level {
	switch {
	case c.fromClient || level <= zapcore.InfoLevel:
		return slog.LevelDebug
	case level == zapcore.WarnLevel:
		return slog.LevelInfo
	default:
		return slog.LevelWarn
	}
}

// Enabled is part of [zapcore.Core].
func (c zapCore) Enabled(level zapcore.Level) bool {
	return c.log.Enabled(context.Background(), c.level(level))
}

// With is part of [zapcore.Core].
func (c zapCore) With(fields []zapcore.Field) zapcore.Core {
	attrs, fromClient := attributes(fields)
	return zapCore{c.log.With(attrs...), c.fromClient || fromClient}
}

// Check is part of [zapcore.Core].
func (c zapCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write is part of [zapcore.Core].
func (c zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	attrs, fromClient := attributes(fields)
	c.fromClient = c.fromClient || fromClient
	c.log.Log(context.Background(), c.level(e.Level), e.Message, attrs...)
	return nil
}

// Sync is part of [zapcore.Core].
func (c zapCore) Sync() error { return nil }

// attributes translates fields, without those that are a client's own. fromClient says
// that there were some.
func attributes(fields []zapcore.Field) (attrs []any, fromClient bool) {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		if strings.HasPrefix(f.Key, "remote") || f.Key == "user_agent" || f.Key == "uri" {
			fromClient = true
			continue
		}
		f.AddTo(encoder)
	}
	for _, key := range slices.Sorted(maps.Keys(encoder.Fields)) {
		name := key
		if key == "error" {
			name = "err"
		}
		attrs = append(attrs, name, encoder.Fields[key])
	}
	return attrs, fromClient
}
