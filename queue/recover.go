package queue

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// What Badger does at opening that this file stands against:
//
//   - a zero-length log makes the open fail;
//   - a missing or cut MANIFEST makes it delete every table in silence;
//   - a table without its index makes it panic, on a goroutine of its own;
//   - a bad entry in a log makes it cut the log there, silently and for good.
//
// So the files are looked at first. What Badger may destroy is copied, and the
// copy is let go only when the numbers in the opened shelf are right. If they are
// not, or if the files cannot be given to Badger, the shelf is rebuilt from
// whatever verifies (rebuild.go); the damaged files are kept in quarantine.

// prepareBadger makes a directory safe to open, or says what is wrong with it.
// Files of no length hold nothing and are removed.
func prepareBadger(dir string, log badgerLog) error {
	entries, err := os.ReadDir(dir)
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
		if info.Size() == 0 {
			log.log.Info("an empty log file is removed; it held nothing", "file", e.Name(), "shelf", filepath.Base(dir))
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return inspect(dir)
}

func hasSuffix(name string, suffixes ...string) bool {
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

// inspect reports why a directory must not be given to Badger: [ErrDamaged].
func inspect(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	tables := 0
	logs := 0
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
		return fmt.Errorf("%w: MANIFEST: %w", ErrDamaged, err)
	}
	for id := range manifest.Tables {
		path := table.NewFilename(id, dir)
		if err := inspectTable(path); err != nil {
			return fmt.Errorf("%w: table %s: %w", ErrDamaged, filepath.Base(path), err)
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
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	f, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	t, err := table.OpenTable(f, tableOptions)
	if err != nil {
		return err
	}
	return t.Close(-1)
}

var tableOptions = table.Options{ReadOnly: true, BlockSize: 4096}

func salvageDir(shelfDir string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(shelfDir)), "salvage", filepath.Base(filepath.Dir(shelfDir))+"-"+filepath.Base(shelfDir))
}

func quarantineDir(shelfDir string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(shelfDir)), "quarantine")
}

// prepare makes the shelf safe to open and copies what Badger may destroy: its
// logs, and tables that its MANIFEST does not name. A shelf that was closed has
// neither. A shelf that must not be opened is rebuilt.
func (s *shelf) prepare() error {
	if _, err := os.Stat(salvageDir(s.dir)); err == nil {
		// The process died between the copy and the check. The copy is older and
		// more complete than what is there now.
		return s.rebuild(errors.New("the opening before this one did not finish"))
	}
	if err := prepareBadger(s.dir, s.log); err != nil {
		if !errors.Is(err, ErrDamaged) {
			return err
		}
		return s.rebuild(err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	manifest, err := readManifest(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
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
		return nil
	}
	return s.salvage(copies)
}

// salvage copies files aside. The copy appears under its final name only when
// it is whole.
func (s *shelf) salvage(names []string) error {
	final := salvageDir(s.dir)
	tmp := final + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if err := copySparse(filepath.Join(s.dir, name), filepath.Join(tmp, name)); err != nil {
			return fmt.Errorf("salvage %s: %w", name, err)
		}
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	return syncDir(filepath.Dir(final))
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

// settleSalvage lets the copy go once the opened shelf holds everything that the
// copy can prove. It returns errShort if it does not.
func (s *shelf) settleSalvage(st *state) error {
	dir := salvageDir(s.dir)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	number, seq, err := newestIn(dir)
	if err != nil {
		return err
	}
	if number > st.lastNumber || seq > st.seq {
		return fmt.Errorf("%w: it ends at block %d, its log proves %d", errShort, st.lastNumber, number)
	}
	return errors.Join(os.RemoveAll(dir), syncDir(filepath.Dir(dir)))
}

// errShort: Badger has dropped something that its files still prove.
var errShort = errors.New("a shelf lost its end while it was opened")
