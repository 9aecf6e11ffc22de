package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// verify reads the pending blocks of a stream.
func (s *stream) verify(ctx context.Context, r *Report) error {
	s.mu.Lock()
	last, floor := s.st.lastNumber, s.st.floor
	r.Shelves += int64(len(s.shelves))
	s.mu.Unlock()
	var before uint64
	counted := false
	return s.walk(ctx, floor, last, func(f found) (bool, error) {
		if f.missing != 0 {
			r.problem("blocks %d to %d are not there", f.missing, f.key.number-1)
			counted = false
			return true, nil
		}
		b, sets, err := decodeBlock(s.keys, f.key, f.value)
		if isForeign(err) {
			return false, err
		}
		if err != nil {
			r.problem("block %d cannot be read: %v", f.key.number, err)
			counted = false
			return true, nil
		}
		if counted && b.hitsBefore != before {
			r.problem("block %d says that %d hits precede it, those before it add up to %d", f.key.number, b.hitsBefore, before)
		}
		before, counted = b.hitsBefore+uint64(b.hits), true
		r.Blocks++
		r.Hits += int64(b.hits)
		r.Pending += int64(len(s.pendingOf(b, sets)))
		return true, nil
	})
}

// verify reads what a queue holds and compares it with what it says.
func verify(ctx context.Context, q *Queue) (*Report, error) {
	r := &Report{}
	for _, s := range q.all() {
		if err := s.verify(ctx, r); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
	}
	if st := q.Stats(); st.Difference != 0 {
		r.problem("the sum is off by %d hits: accepted %d, delivered %d, invalid %d, dead %d, pending by the blocks %d",
			st.Difference, st.Accepted, st.Delivered, st.Invalid, st.Dead, st.Pending-st.Difference)
	}
	for _, err := range q.dead.all(ctx, DeadFilter{}) {
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			r.problem("a dead letter cannot be read: %v", err)
			continue
		}
		r.Dead++
	}
	for value, err := range q.dead.others() {
		if err == nil {
			_, err = otherKey(value)
		}
		if err != nil {
			r.problem("what is noted beside the dead letters cannot be read: %v", err)
		}
	}
	return r, nil
}

// Verify checks the queue in dir while no process has it open. It works on a
// copy of everything that opening could change, in a temporary directory beside
// it; what is never written again is linked, not copied. What opening the copy
// had to repair is among the problems. It returns [ErrLocked] while a process has
// the queue open, [ErrNotFound] when there is none, [ErrKey] when keys cannot read it.
func Verify(ctx context.Context, dir string, keys Keys) (*Report, error) {
	var report *Report
	var repairs errorTexts
	err := withCopy(dir, keys, slog.New(&repairs), func(q *Queue) (err error) {
		report, err = verify(ctx, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	report.Problems = append(repairs.list(), report.Problems...)
	return report, nil
}

// WithCopy opens a copy of the queue in dir, for reading it while no process has
// it open, and calls use with it. The copy is encrypted as the queue is. It is
// removed afterwards, and the queue in dir is as it was. Errors are those of [Verify].
func WithCopy(dir string, keys Keys, use func(*Queue) error) error {
	return withCopy(dir, keys, slog.New(slog.DiscardHandler), use)
}

// copyPrefix begins the names of copies.
const copyPrefix = "verify-"

func withCopy(dir string, keys Keys, log *slog.Logger, use func(*Queue) error) (err error) {
	if _, err := os.Stat(filepath.Join(dir, "store.json")); err != nil {
		return fmt.Errorf("%w: no queue in %s", ErrNotFound, dir)
	}
	lock, err := lockDir(dir, lockPatienceOffline)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := CheckKeys(dir, keys); err != nil {
		return err
	}
	if err := removeCopies(dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, copyPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := copyQueue(dir, tmp); err != nil {
		return fmt.Errorf("copy the queue: %w", err)
	}
	q, err := Open(Options{Dir: tmp, Keys: keys, Reserve: 1, Metrics: metrics.NewSet(), Now: time.Now, Log: log})
	if err != nil {
		return err
	}
	return errors.Join(use(q), q.Close())
}

// removeCopies removes what a killed process has left of its copies. The caller
// holds the lock.
func removeCopies(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), copyPrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove a copy that was left: %w", err)
		}
	}
	return nil
}

// errorTexts is a log handler that keeps what an operator must know.
type errorTexts struct {
	mu    sync.Mutex
	texts []string
}

func (e *errorTexts) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.texts)
}

// Enabled is part of [slog.Handler].
func (e *errorTexts) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError
}

// Handle is part of [slog.Handler].
func (e *errorTexts) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "kept_in" { // it is removed with the copy
			text += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		}
		return true
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.texts = append(e.texts, "opening: "+text)
	return nil
}

// WithAttrs is part of [slog.Handler]; the attributes are not of interest.
func (e *errorTexts) WithAttrs([]slog.Attr) slog.Handler { return e }

// WithGroup is part of [slog.Handler].
func (e *errorTexts) WithGroup(string) slog.Handler { return e }

// copyQueue links tables, which are never changed in place but for being cut
// when they are dropped, and copies the rest. Tables of a shelf that was not
// closed are copied too, since opening it may drop one.
func copyQueue(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			if path == to || rel == "quarantine" {
				return filepath.SkipDir
			}
			return os.MkdirAll(target, 0o700)
		case rel == "LOCK" || rel == "BALLAST" || !e.Type().IsRegular():
			return nil
		case hasSuffix(path, ".sst"):
			if clean, err := closedCleanly(filepath.Dir(path)); err != nil {
				return err
			} else if clean {
				return os.Link(path, target)
			}
		}
		return copySparse(path, target)
	})
}

// closedCleanly: a shelf without a log was closed, and opening it drops nothing.
func closedCleanly(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return hasSuffix(e.Name(), ".mem") }), err
}
