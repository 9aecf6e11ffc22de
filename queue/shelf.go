package queue

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"sluice/internal/durable"
)

// memTableSize is Badger's memtable. 16 MiB was the fastest of 8 to 64 and lets
// a transaction carry 2.4 MiB.
const memTableSize = 16 << 20

// neverStall is a number of level-zero tables that no shelf reaches: without
// compactors a lower limit would block writing for ever.
const neverStall = 1 << 20

// badgerOptions are the options of every database of the queue.
//
// SyncWrites: a commit returns after the write-ahead log is synced. No
// compactors: Badger 4.9.6 loses tables in silence when a compaction cannot
// create its output. No checksum mode: they panic or end an iteration early on
// one bad bit; every value of ours carries its own CRC32C. No value log: values
// stay below the threshold, because an error of its sync is only logged.
func badgerOptions(dir string, log badger.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithSyncWrites(true).
		WithMemTableSize(memTableSize).
		WithNumMemtables(3).
		WithNumCompactors(0).
		WithNumLevelZeroTables(neverStall).
		WithNumLevelZeroTablesStall(2 * neverStall).
		WithDetectConflicts(false).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithNumVersionsToKeep(1).
		WithValueLogFileSize(1 << 20).
		WithChecksumVerificationMode(options.NoVerification).
		WithMetricsEnabled(false).
		WithLogger(log)
}

// harmlessErrors begin what Badger reports as an error although it says nothing
// about writing: an opening that fails, which returns the error, and one entry
// that cannot be read, which the reader finds not to verify.
var harmlessErrors = [...]string{"Received err:", "Unable to read: Key:", "Key: %v, Version", "Invalid read: vp"}

// badgerLog turns what Badger only logs into what we act on. Errorf is a failed
// flush or sync that Badger would retry or ignore: after it nothing that is
// acknowledged can be believed.
type badgerLog struct {
	log  *slog.Logger
	fail func(error) // nil: only log
	// broken, if not nil, is set by the first error.
	broken *atomic.Bool
}

// newBadgerLog gives the logger of one database.
func newBadgerLog(log *slog.Logger, fail func(error)) badgerLog {
	return badgerLog{log: log, fail: fail, broken: &atomic.Bool{}}
}

// closePatience is how long a database whose disk has failed may take to close.
const closePatience = 500 * time.Millisecond

// close closes a database of this logger's. Badger tries a flush that fails for
// ever, so that closing on a broken disk would not return; what is not flushed
// then stays in the logs.
func (l badgerLog) close(db *badger.DB) error {
	if l.broken == nil {
		return db.Close()
	}
	done := make(chan error, 1)
	go func() { done <- db.Close() }() // ended by the process where the disk is broken
	tick := time.NewTicker(closePatience)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if l.broken.Load() {
				return errors.New("the disk has failed; the database is left as it is")
			}
		}
	}
}

func (l badgerLog) Errorf(format string, args ...any) {
	if slices.ContainsFunc(harmlessErrors[:], func(p string) bool { return strings.HasPrefix(format, p) }) {
		l.log.Debug("store", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
		return
	}
	err := fmt.Errorf("badger: "+strings.TrimSpace(format), args...)
	if l.broken != nil {
		l.broken.Store(true)
	}
	if l.fail != nil {
		l.fail(err)
		return
	}
	l.log.Error("the store reports an error", "err", err)
}

func (l badgerLog) Warningf(format string, args ...any) {
	l.log.Debug("store", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
}
func (l badgerLog) Infof(string, ...any)  {}
func (l badgerLog) Debugf(string, ...any) {}

// A shelf is one Badger database in the row of a stream. Its directory is named
// by its first key, so that the names alone say which blocks are where.
type shelf struct {
	dir   string
	first blockKey // of the first block that it may hold
	log   badgerLog
	// room reports whether there is space to flush what a log holds; nil: always.
	room func() bool

	mu       sync.Mutex
	db       *badger.DB // nil when closed
	sound    bool       // this process has opened it before
	writable bool
	// unflushed: what is open was opened for writing.
	unflushed bool
	readers   int
	pins      int // of those who will read it later
	removed   bool
	hint      blockKey // of a block read lately: where to begin the next time

	asideMu sync.Mutex
	aside   asideBlocks // what was last read without Badger
}

func (s *shelf) files() *dbFiles { return &dbFiles{dir: s.dir, log: s.log, kinds: shelfKinds} }

func shelfName(first blockKey) string {
	return fmt.Sprintf("%016x-%016x", first.clock, first.number)
}

func parseShelfName(name string) (blockKey, bool) {
	var k blockKey
	var rest string
	if n, _ := fmt.Sscanf(name, "%16x-%16x%s", &k.clock, &k.number, &rest); n != 2 || name != shelfName(k) {
		return blockKey{}, false
	}
	return k, true
}

// openWritable opens a shelf that was just made.
func (s *shelf) openWritable() error {
	db, err := openBadger(badgerOptions(s.dir, s.log))
	if err != nil {
		return err
	}
	s.write(db)
	return nil
}

// write makes db, opened by the caller, the shelf's database for writing.
func (s *shelf) write(db *badger.DB) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.db, s.writable, s.unflushed, s.sound = db, true, true, true
}

// openBadger opens a database. A failing open may leave a zero-length file that
// it repairs itself (upstream issue 2207), so the same error is answered by one
// more try. Panics of the open, as for a table without an index, become errors
// as far as they happen on this goroutine.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("%w: opening %s: %v", ErrDamaged, filepath.Base(o.Dir), p)
		}
	}()
	db, err = badger.Open(o)
	if err != nil && strings.Contains(err.Error(), "Create a new file") {
		db, err = badger.Open(o)
	}
	return db, err
}

// finish closes a shelf that is no longer written. It waits for readers, who
// open it again, read-only, when they come back.
func (s *shelf) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writable = false
	return s.closeIdleLocked()
}

// closeIdleLocked closes the database unless it is written or read. One that was
// written stays open while there is no space to flush it: if the process ends
// before there is, it is recovered like one that was killed.
func (s *shelf) closeIdleLocked() error {
	if s.db == nil || s.writable || s.readers > 0 || s.unflushed && s.room != nil && !s.room() {
		return nil
	}
	db := s.db
	s.db, s.unflushed = nil, false
	if err := s.log.close(db); err != nil {
		return fmt.Errorf("close shelf %s: %w", filepath.Base(s.dir), err)
	}
	return syncTree(s.dir)
}

// closeNow closes a shelf that is being opened and turned out to be unfit.
func (s *shelf) closeNow() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	db := s.db
	s.db, s.writable, s.unflushed = nil, false, false
	return s.log.close(db)
}

// errRemoved: the shelf has been drained and removed while a reader wanted it.
var errRemoved = errors.New("shelf removed")

// acquire gives the open database for reading; release ends that. A shelf that
// the process before this one did not close is recovered first.
func (s *shelf) acquire() (*badger.DB, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return nil, errRemoved
	}
	if s.db == nil {
		if err := s.openForReadingLocked(); err != nil {
			return nil, fmt.Errorf("open shelf %s for reading: %w", filepath.Base(s.dir), err)
		}
	}
	s.readers++
	return s.db, nil
}

func (s *shelf) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers--
	return s.closeIdleLocked()
}

// pin keeps the shelf from being removed, or with -1 no longer.
func (s *shelf) pin(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins += by
}

// openForReadingLocked opens a shelf that is no longer written. The first time,
// what a crash or a bad disk has left of it is recovered.
func (s *shelf) openForReadingLocked() error {
	files := s.files()
	if !s.sound {
		if err := files.settle(); err != nil {
			return err
		}
	}
	o := badgerOptions(s.dir, s.log).WithReadOnly(true)
	db, err := openBadger(o)
	if !s.sound && isDamage(err) {
		if err := files.rebuild(err); err != nil {
			return err
		}
		db, err = openBadger(o)
	}
	if err != nil {
		return err
	}
	s.db, s.sound = db, true
	return nil
}

// goneMark precedes the name of a shelf whose removal has begun.
const goneMark = "gone-"

// remove deletes a drained shelf, whatever a kill leaves of it: it is renamed
// first, so that a half-deleted directory is never taken for a damaged shelf.
// It reports false while the shelf is still read or pinned.
func (s *shelf) remove() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers > 0 || s.pins > 0 || s.writable {
		return false, nil
	}
	if err := s.closeIdleLocked(); err != nil {
		return false, err
	}
	if s.db != nil {
		return false, nil // no space to close it; tried again after the next commit
	}
	s.removed = true
	parent, name := filepath.Split(s.dir)
	gone := filepath.Join(parent, goneMark+name)
	if err := os.Rename(s.dir, gone); err != nil {
		return false, err
	}
	if err := durable.SyncDir(parent); err != nil {
		return false, err
	}
	return true, os.RemoveAll(gone)
}
