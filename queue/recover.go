package queue

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sys/unix"

	"sluice/internal/durable"
)

// What Badger does at opening that this file stands against:
//
//   - a zero-length log makes the open fail;
//   - a missing or cut MANIFEST makes it delete every table in silence;
//   - a table without its index makes it panic, on a goroutine of its own;
//   - a bad entry in a log makes it cut the log there, silently and for good.
//
// So the files are looked at first. What Badger may destroy is copied, and the
// copy is let go only when the opened database holds every entry that the copy
// proves. If it does not, or if the files cannot be given to Badger, the database
// is rebuilt from whatever verifies (rebuild.go); the damaged files are kept in
// quarantine.

// dbFiles are the files of one Badger database while it is closed.
type dbFiles struct {
	dir string
	log badgerLog
	// kinds are the kinds of values that the database holds.
	kinds string
}

const (
	shelfKinds = string(kindBlock) + string(kindDelta) + string(kindSnapshot)
	deadKinds  = string(kindDead) + string(kindSealedDead) + string(kindNote) + string(kindLeft)
)

// open opens the database for writing, whatever a crash or a bad disk has left
// of it, and reports whether it had to be rebuilt. An error that is not damage,
// such as too few file descriptors, changes nothing.
func (f *dbFiles) open() (db *badger.DB, rebuilt bool, err error) {
	if rebuilt, err = f.prepare(); err != nil {
		return nil, rebuilt, err
	}
	db, err = f.openProven()
	if !isDamage(err) {
		return db, rebuilt, err
	}
	db, err = f.reopen(err)
	return db, true, err
}

// settle makes a database that is only read from now on safe to open: logs that
// a crash has left are flushed into a table.
func (f *dbFiles) settle() error {
	if _, err := f.prepare(); err != nil {
		return err
	}
	if _, err := os.Stat(salvageDir(f.dir)); errors.Is(err, fs.ErrNotExist) {
		return nil // it was closed
	}
	db, err := f.openProven()
	if isDamage(err) {
		db, err = f.reopen(err)
	}
	if err != nil {
		return err
	}
	return errors.Join(f.log.close(db), syncTree(f.dir))
}

// reopen rebuilds the closed database and opens it again.
func (f *dbFiles) reopen(cause error) (*badger.DB, error) {
	if err := f.rebuild(cause); err != nil {
		return nil, err
	}
	return f.openProven()
}

// openProven opens the database and compares it with the copies of what Badger
// may have destroyed.
func (f *dbFiles) openProven() (*badger.DB, error) {
	db, err := openBadger(badgerOptions(f.dir, f.log))
	if err != nil {
		return nil, err
	}
	if err := f.settleSalvage(db); err != nil {
		return nil, errors.Join(err, f.log.close(db))
	}
	return db, nil
}

// notDamage are errors that say nothing about the files.
var notDamage = [...]unix.Errno{
	unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOSPC, unix.EDQUOT, unix.EACCES, unix.EPERM, unix.EROFS, unix.EAGAIN,
}

// isDamage reports whether an error of opening is a reason to rebuild. Badger
// flattens the errors of the system into text.
func isDamage(err error) bool {
	if err == nil || isForeign(err) || errors.Is(err, ErrNoSpace) {
		return false
	}
	return !slices.ContainsFunc(notDamage[:], func(e unix.Errno) bool {
		return errors.Is(err, e) || strings.Contains(err.Error(), e.Error())
	})
}

// removeEmptyLogs removes log files of no length: they hold nothing, and Badger
// refuses to open beside one.
func (f *dbFiles) removeEmptyLogs() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !hasSuffix(e.Name(), ".mem", ".vlog") {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Size() > 0 {
			continue
		}
		f.log.log.Info("an empty log file is removed; it held nothing", "file", e.Name(), "shelf", keptName(f.dir))
		if err := os.Remove(filepath.Join(f.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func hasSuffix(name string, suffixes ...string) bool {
	return slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}

// inspect reports why a directory must not be given to Badger: [ErrDamaged].
func inspect(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	tables, logs := 0, 0
	for _, e := range entries {
		if hasSuffix(e.Name(), ".sst") {
			tables++
		}
		if hasSuffix(e.Name(), ".mem") {
			logs++
		}
	}
	manifest, err := readManifest(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if tables+logs == 0 {
			return nil // new, or killed before anything was written
		}
		return fmt.Errorf("%w: MANIFEST is missing", ErrDamaged)
	}
	if err != nil {
		return damageOr(err, "MANIFEST")
	}
	for id := range manifest.Tables {
		path := table.NewFilename(id, dir)
		if err := inspectTable(path); err != nil {
			return damageOr(err, "table "+filepath.Base(path))
		}
	}
	// A flush writes the table first, then its line in MANIFEST, then removes the
	// log. Tables that MANIFEST does not name and no log accounts for were named
	// by a part of it that is gone.
	if unnamed := tables - len(manifest.Tables); unnamed > logs {
		return fmt.Errorf("%w: MANIFEST names %d of %d tables", ErrDamaged, len(manifest.Tables), tables)
	}
	return nil
}

// damageOr calls an error damage unless it says nothing about the file.
func damageOr(err error, what string) error {
	if isDamage(err) {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func readManifest(dir string) (badger.Manifest, error) {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return badger.Manifest{}, err
	}
	defer f.Close()
	m, _, err := badger.ReplayManifestFile(f, 0, badgerOptions(dir, badgerLog{}))
	return m, err
}

// inspectTable opens a table as Badger would, with its panics caught.
func inspectTable(path string) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return errors.New("the file is empty")
	}
	f, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = errors.Join(errors.New("its index cannot be read"), f.Close(-1))
		}
	}()
	t, err := table.OpenTable(f, table.Options{ReadOnly: true, BlockSize: 4096})
	if err != nil {
		return errors.Join(err, f.Close(-1))
	}
	return t.Close(-1)
}

// queueDirOf gives the data directory of the database in dir.
func queueDirOf(dir string) string { return filepath.Dir(filepath.Dir(dir)) }

// keptName is how a database is called outside its place: stream-shelf.
func keptName(dir string) string {
	return filepath.Base(filepath.Dir(dir)) + "-" + filepath.Base(dir)
}

func salvageDir(dir string) string { return filepath.Join(queueDirOf(dir), "salvage", keptName(dir)) }

func quarantineDir(dir string) string { return filepath.Join(queueDirOf(dir), "quarantine") }

// prepare makes the database safe to open and copies what Badger may destroy:
// its logs, and tables that its MANIFEST does not name. One that was closed has
// neither. One that must not be opened is rebuilt.
func (f *dbFiles) prepare() (rebuilt bool, err error) {
	if _, err := os.Stat(salvageDir(f.dir)); err == nil {
		// The process died between the copy and the check. The copy is older and
		// more complete than what is there now.
		empty, err := f.neverCommitted()
		if err != nil {
			return false, err
		}
		if !empty {
			return true, f.rebuild(errors.New("the opening before this one did not finish"))
		}
		if err := f.dropSalvage(); err != nil {
			return false, err
		}
	}
	if err := f.removeEmptyLogs(); err != nil {
		return false, err
	}
	if err := inspect(f.dir); err != nil {
		if !isDamage(err) {
			return false, err
		}
		return true, f.rebuild(err)
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return false, err
	}
	manifest, err := readManifest(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	var copies []string
	for _, e := range entries {
		if hasSuffix(e.Name(), ".mem") {
			copies = append(copies, e.Name())
		}
		if id, ok := table.ParseFileID(e.Name()); ok && hasSuffix(e.Name(), ".sst") {
			if _, named := manifest.Tables[id]; !named {
				copies = append(copies, e.Name())
			}
		}
	}
	if len(copies) == 0 {
		return false, nil
	}
	return false, f.salvage(copies)
}

// salvage copies files aside. The copy appears under its final name only when
// it is whole.
func (f *dbFiles) salvage(names []string) error {
	final := salvageDir(f.dir)
	tmp := final + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if err := copySparse(filepath.Join(f.dir, name), filepath.Join(tmp, name)); err != nil {
			return fmt.Errorf("salvage %s: %w", name, err)
		}
	}
	if err := durable.SyncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	return syncTree(filepath.Dir(final))
}

// copySparse copies a file and leaves its holes out: a log is a few megabytes in
// a file of twice the memtable's size.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	zero := make([]byte, 64<<10)
	buf := make([]byte, len(zero))
	for off := int64(0); ; {
		n, rerr := in.ReadAt(buf, off)
		if string(buf[:n]) != string(zero[:n]) {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return errors.Join(err, out.Close())
			}
		}
		off += int64(n)
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return errors.Join(rerr, out.Close())
		}
	}
	return errors.Join(out.Truncate(info.Size()), out.Sync(), out.Close())
}

// errShort: Badger has dropped something that its files still prove.
var errShort = errors.New("entries were lost while the database was opened")

// settleSalvage lets the copy go once the opened database holds every entry that
// the copy proves to have been committed. It returns errShort if it does not.
func (f *dbFiles) settleSalvage(db *badger.DB) error {
	dir := salvageDir(f.dir)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	committed, err := lastCommitIn(dir)
	if err != nil {
		return err
	}
	lost := 0
	for e, err := range entriesIn(dir) {
		if err != nil {
			return err
		}
		if e.version > committed || !f.ours(&e) {
			continue // of a transaction that was not finished
		}
		if !holds(db, e) {
			lost++
		}
	}
	if lost > 0 {
		return fmt.Errorf("%w: %d", errShort, lost)
	}
	return f.dropSalvage()
}

func (f *dbFiles) dropSalvage() error {
	dir := salvageDir(f.dir)
	return errors.Join(os.RemoveAll(dir), durable.SyncDir(filepath.Dir(dir)))
}

// neverCommitted reports whether the files and the copies hold no transaction, as those
// of a database that was just begun: there is nothing to rebuild.
func (f *dbFiles) neverCommitted() (bool, error) {
	for _, dir := range f.sources() {
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		if err != nil || len(tables) > 0 {
			return false, err
		}
	}
	committed, err := f.lastCommit()
	return committed == 0 && err == nil, err
}

// holds reports whether the database knows an entry's key as of the entry's
// version; a key that was deleted later is known, too.
func holds(db *badger.DB, e entry) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			ok = false
		}
	}()
	txn := db.NewTransaction(false)
	defer txn.Discard()
	if item, err := txn.Get(e.key); err == nil && item.Version() >= e.version {
		return true
	}
	o := badger.DefaultIteratorOptions
	o.AllVersions, o.PrefetchValues = true, false
	it := txn.NewKeyIterator(e.key, o)
	defer it.Close()
	it.Rewind()
	return it.Valid() && it.Item().Version() >= e.version
}
