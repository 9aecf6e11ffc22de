package queue

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
)

const (
	walHeaderLen  = 20 // of a Badger log file: key id and initialisation vector
	walMetaTxn    = 1 << 6
	walMetaDelete = 1 << 0
	versionLen    = 8 // Badger ends every key with its version
	maxWALKey     = 64
	maxWALValue   = 4 << 20
)

// An entry is one key and value read from a file of Badger's without Badger.
type entry struct {
	key, value []byte
}

// rebuild makes the shelf anew from all entries that verify: in its tables, in
// its logs behind damage too, and in the copies made before Badger last opened
// it. The old files go to quarantine. Killed at any step, it is begun again.
func (s *shelf) rebuild(cause error) error {
	s.log.log.Error("a shelf is damaged and is rebuilt from what can be read; the damaged files are kept",
		"shelf", filepath.Base(s.dir), "kept_in", quarantineDir(s.dir), "err", cause)
	fresh := s.dir + ".rebuild"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := makeDir(fresh); err != nil {
		return err
	}
	db, err := openBadger(badgerOptions(fresh, s.log).WithSyncWrites(false))
	if err != nil {
		return fmt.Errorf("rebuild: %w", err)
	}
	n := 0
	batch := db.NewWriteBatch()
	for _, dir := range []string{s.dir, salvageDir(s.dir)} {
		for e := range entriesIn(dir, s.log) {
			if !ours(e) {
				continue
			}
			if err := batch.Set(bytes.Clone(e.key), bytes.Clone(e.value)); err != nil {
				return errors.Join(fmt.Errorf("rebuild: %w", err), db.Close())
			}
			n++
		}
	}
	if err := batch.Flush(); err != nil {
		return errors.Join(fmt.Errorf("rebuild: %w", err), db.Close())
	}
	// Close flushes the memtable into a synced table.
	if err := errors.Join(db.Close(), syncTree(fresh)); err != nil {
		return fmt.Errorf("rebuild: %w", err)
	}
	s.log.log.Info("the shelf is rebuilt", "shelf", filepath.Base(s.dir), "entries", n)
	return s.exchange(fresh)
}

// exchange puts the rebuilt shelf in the place of the damaged one.
func (s *shelf) exchange(fresh string) error {
	q := quarantineDir(s.dir)
	if err := makeDir(q); err != nil {
		return err
	}
	kept := filepath.Join(q, fmt.Sprintf("%s-%d", filepath.Base(s.dir), len(readNames(q))+1))
	if err := os.Rename(s.dir, kept); err != nil {
		return err
	}
	if err := os.Rename(fresh, s.dir); err != nil {
		return err
	}
	if err := errors.Join(syncTree(s.dir), syncDir(q)); err != nil {
		return err
	}
	salvaged := salvageDir(s.dir)
	if _, err := os.Stat(salvaged); err != nil {
		return nil
	}
	return errors.Join(os.Rename(salvaged, kept+"-salvage"), syncDir(q), syncDir(filepath.Dir(salvaged)))
}

func readNames(dir string) []os.DirEntry {
	entries, _ := os.ReadDir(dir)
	return entries
}

// ours reports whether an entry is a whole value of this package's.
func ours(e entry) bool {
	kinds := map[byte]byte{prefixBlock: kindBlock, prefixDelta: kindDelta, prefixSnapshot: kindSnapshot}
	if len(e.key) == 0 {
		return false
	}
	kind, ok := kinds[e.key[0]]
	if !ok {
		return false
	}
	_, err := unseal(e.value, kind)
	return err == nil || errors.Is(err, ErrNewerFormat)
}

// entriesIn reads every entry in the files of a Badger directory, tables first,
// in the order in which they were written.
func entriesIn(dir string, log badgerLog) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		names := readNames(dir)
		byID := func(a, b os.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) }
		slices.SortFunc(names, byID)
		for _, suffix := range []string{".sst", ".mem"} {
			for _, e := range names {
				if !hasSuffix(e.Name(), suffix) {
					continue
				}
				read := tableEntries
				if suffix == ".mem" {
					read = logEntries
				}
				more, err := read(filepath.Join(dir, e.Name()), yield)
				if err != nil {
					log.log.Error("part of a file cannot be read", "file", e.Name(), "err", err)
				}
				if !more {
					return
				}
			}
		}
	}
}

// tableEntries reads a table as far as it can be read.
func tableEntries(path string, yield func(entry) bool) (more bool, err error) {
	more = true
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	data, err := os.ReadFile(path)
	if err != nil {
		return true, err
	}
	id, _ := table.ParseFileID(path)
	o := tableOptions
	t, err := table.OpenInMemoryTable(data, id, &o)
	if err != nil {
		return true, err
	}
	it := t.NewIterator(0)
	for it.Rewind(); it.Valid(); it.Next() {
		v := it.Value()
		if v.Meta&walMetaDelete != 0 {
			continue
		}
		if more = yield(entry{key: y.ParseKey(it.Key()), value: v.Value}); !more {
			return false, nil
		}
	}
	return true, nil
}

// logEntries reads a write-ahead log, going on behind damage: each entry has a
// checksum of its own, so what verifies is an entry.
func logEntries(path string, yield func(entry) bool) (bool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return true, err
	}
	if len(data) < walHeaderLen {
		return true, nil
	}
	for rest := data[walHeaderLen:]; len(rest) > 0; {
		e, n := parseLogEntry(rest)
		if n == 0 {
			// Not an entry: look for the next place where one may begin.
			next := bytes.IndexByte(rest[1:], walMetaTxn)
			if next < 0 {
				break
			}
			rest = rest[1+next:]
			continue
		}
		rest = rest[n:]
		if e.key != nil && !yield(e) {
			return false, nil
		}
	}
	return true, nil
}

// parseLogEntry reads an entry at the front of b. It returns its length, 0 if
// none verifies there. Deletions and transaction ends have a nil key.
func parseLogEntry(b []byte) (entry, int) {
	if len(b) < 2 {
		return entry{}, 0
	}
	meta := b[0]
	at := 2
	var lens [3]uint64 // key, value, expiry
	for i := range lens {
		v, n := binary.Uvarint(b[at:])
		if n <= 0 {
			return entry{}, 0
		}
		lens[i] = v
		at += n
	}
	if lens[0] < versionLen || lens[0] > maxWALKey || lens[1] > maxWALValue {
		return entry{}, 0
	}
	end := at + int(lens[0]+lens[1])
	if end+crc32.Size > len(b) {
		return entry{}, 0
	}
	if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return entry{}, 0
	}
	e := entry{key: b[at : at+int(lens[0])-versionLen], value: b[at+int(lens[0]) : end]}
	if meta&walMetaDelete != 0 || meta&walMetaTxn == 0 {
		e = entry{}
	}
	return e, end + crc32.Size
}

// newestIn gives the highest block number and sequence that the files in dir
// prove to have been committed: a delta is written after its blocks, so blocks
// behind the last delta are of a transaction that was not finished.
func newestIn(dir string) (number, seq uint64, err error) {
	for _, e := range readNames(dir) {
		if !hasSuffix(e.Name(), ".mem") {
			continue
		}
		_, err := logEntries(filepath.Join(dir, e.Name()), func(e entry) bool {
			if e.key[0] != prefixDelta || len(e.key) != 9 {
				return true
			}
			d, err := decodeDelta(e.value)
			if err != nil {
				return true
			}
			seq = max(seq, binary.BigEndian.Uint64(e.key[1:]))
			number = newestOf(d, number)
			return true
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return number, seq, nil
}
