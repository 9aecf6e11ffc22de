package queue

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"

	"sluice/internal/durable"
)

// rebuildMark ends the name of a database that is being rebuilt.
const rebuildMark = ".rebuild"

// rebuild makes the database anew from all entries that verify: in its tables, in
// its logs behind damage too, and in the copies made before Badger last opened
// it. The old files go to quarantine. Killed at any step, it is begun again or
// finished.
func (f *dbFiles) rebuild(cause error) error {
	f.log.log.Error("a database is damaged and is rebuilt from what can be read; the damaged files are kept",
		"shelf", keptName(f.dir), "kept_in", quarantineDir(f.dir), "err", cause)
	if err := f.roomToRebuild(); err != nil {
		return err
	}
	fresh := f.dir + rebuildMark
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := makeDir(fresh); err != nil {
		return err
	}
	n, err := f.copyEntries(fresh)
	if err != nil {
		return fmt.Errorf("rebuild: %w", err)
	}
	f.log.log.Info("the database is rebuilt", "shelf", keptName(f.dir), "entries", n)
	kept, err := freeName(filepath.Join(quarantineDir(f.dir), keptName(f.dir)))
	if err != nil {
		return err
	}
	// With this step the new files become the database: see finishRebuilds.
	if err := os.Rename(f.dir, kept); err != nil {
		return err
	}
	if err := errors.Join(durable.SyncDir(filepath.Dir(f.dir)), durable.SyncDir(filepath.Dir(kept))); err != nil {
		return err
	}
	return f.finishRebuild()
}

// roomToRebuild: writing through mapped files on a full disk would kill the
// process.
func (f *dbFiles) roomToRebuild() error {
	free, _, err := FreeSpace(f.dir)
	if err != nil {
		return err
	}
	need := diskUsage(f.dir) + diskUsage(salvageDir(f.dir)) + hardFloor
	if free < need {
		return fmt.Errorf("%w: %d bytes free, %d needed to rebuild %s", ErrNoSpace, free, need, keptName(f.dir))
	}
	return nil
}

// copyEntries writes what verifies into a new database and counts it.
func (f *dbFiles) copyEntries(fresh string) (int, error) {
	db, err := openBadger(badgerOptions(fresh, f.log).WithSyncWrites(false))
	if err != nil {
		return 0, err
	}
	want, err := f.fill(db)
	// Close flushes the memtable into a synced table.
	if err := errors.Join(err, f.log.close(db)); err != nil {
		return 0, err
	}
	if err := syncTree(fresh); err != nil {
		return 0, err
	}
	got, err := countKeys(badgerOptions(fresh, f.log))
	if err == nil && got != want {
		err = fmt.Errorf("%w: it holds %d of %d entries", ErrDamaged, got, want)
	}
	return got, err
}

// fill writes the newest version of every key and counts those that are alive. What
// was not committed stays behind, as it does at any opening: of a transaction that a
// power loss cut, a part would promise what is not there.
func (f *dbFiles) fill(db *badger.DB) (alive int, err error) {
	type last struct {
		version uint64
		deleted bool
	}
	seen := map[string]last{}
	batch := db.NewWriteBatch()
	defer batch.Cancel()
	committed, err := f.lastCommit()
	if err != nil {
		return 0, err
	}
	for _, dir := range f.sources() {
		for e, err := range entriesIn(dir) {
			if err != nil {
				return 0, err
			}
			if e.logged && e.version > committed || !f.ours(&e) {
				continue
			}
			key := string(e.key)
			if l, ok := seen[key]; ok && l.version >= e.version {
				continue
			}
			seen[key] = last{e.version, e.deleted}
			if e.deleted {
				err = batch.Delete(bytes.Clone(e.key))
			} else {
				err = batch.Set(bytes.Clone(e.key), bytes.Clone(e.value))
			}
			if err != nil {
				return 0, err
			}
		}
	}
	for _, l := range seen {
		if !l.deleted {
			alive++
		}
	}
	return alive, batch.Flush()
}

// sources are where files of the database may be before it has been opened.
func (f *dbFiles) sources() []string { return []string{salvageDir(f.dir), f.dir} }

// lastCommit is [lastCommitIn] for the files and the copies of them.
func (f *dbFiles) lastCommit() (version uint64, err error) {
	for _, dir := range f.sources() {
		v, err := lastCommitIn(dir)
		if err != nil {
			return 0, err
		}
		version = max(version, v)
	}
	return version, nil
}

func countKeys(o badger.Options) (n int, err error) {
	db, err := openBadger(o.WithReadOnly(true))
	if err != nil {
		return 0, err
	}
	err = db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			n++
		}
		return nil
	})
	return n, errors.Join(err, db.Close())
}

// finishRebuild puts a rebuilt database in the place of the old one, which is in
// quarantine.
func (f *dbFiles) finishRebuild() error {
	// The copies go first: beside a database they say that it was not opened yet.
	salvaged := salvageDir(f.dir)
	if _, err := os.Stat(salvaged); err == nil {
		kept, err := freeName(filepath.Join(quarantineDir(f.dir), keptName(f.dir)+"-salvage"))
		if err != nil {
			return err
		}
		if err := os.Rename(salvaged, kept); err != nil {
			return err
		}
		if err := errors.Join(durable.SyncDir(filepath.Dir(kept)), durable.SyncDir(filepath.Dir(salvaged))); err != nil {
			return err
		}
	}
	if err := os.Rename(f.dir+rebuildMark, f.dir); err != nil {
		return err
	}
	return syncTree(f.dir)
}

// finishRebuilds looks after rebuilds in a directory of databases that a kill has
// interrupted.
func finishRebuilds(parent string, log badgerLog) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), rebuildMark)
		if !ok {
			continue
		}
		f := &dbFiles{dir: filepath.Join(parent, name), log: log}
		_, err := os.Stat(f.dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = f.finishRebuild()
		case err == nil:
			// Not finished; what it is made from is all there.
			err = os.RemoveAll(f.dir + rebuildMark)
		}
		if err != nil {
			return fmt.Errorf("finish the rebuild of %s: %w", name, err)
		}
	}
	return nil
}

// freeName gives the first of path-1, path-2 and so on that does not exist yet,
// and makes the directory it lies in.
func freeName(path string) (string, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s-%d", path, n)
		_, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
}
