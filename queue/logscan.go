package queue

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Badger's files are read here without Badger, which gives up at the first bad
// byte. Every value of ours verifies by itself, so whatever verifies is used.

const (
	walHeaderLen  = 20 // of a Badger log file: key id and initialisation vector
	walMetaDelete = 1 << 0
	walMetaTxn    = 1 << 6
	walMetaFin    = 1 << 7
	versionLen    = 8 // Badger ends every key with its version
	maxWALValue   = 4 << 20
)

// An entry is one key and value read from a file of Badger's.
type entry struct {
	key, value []byte
	version    uint64 // Badger's commit number
	deleted    bool
	end        bool // the mark that ends a transaction, not a value
	logged     bool // from a log, not from a table
	torn       bool // something before it in its transaction does not verify
}

// ours reports whether an entry is a whole value of the database's, and puts the
// key that the value names itself in the place of the one that was read.
func (f *dbFiles) ours(e *entry) bool {
	if e.end {
		return false
	}
	if e.deleted && f.kinds == deadKinds {
		return len(e.key) > 0 && e.key[0] == prefixDead
	}
	if len(e.value) < frameLen || strings.IndexByte(f.kinds, e.value[1]) < 0 {
		return false
	}
	key, err := ownKey(e.value)
	if errors.Is(err, ErrNewerFormat) {
		return len(e.key) > 0
	}
	if err != nil {
		return false
	}
	// Nothing is ever deleted in a shelf: there the mark is damage.
	e.key, e.deleted = key, false
	return true
}

// fileReaders in the order in which Badger writes: what is in a log is newer
// than what is in a table.
func fileReaders() iter.Seq2[string, func([]byte) iter.Seq[entry]] {
	return func(yield func(string, func([]byte) iter.Seq[entry]) bool) {
		_ = yield(".sst", tableEntries) && yield(".mem", logEntries)
	}
}

// entriesIn reads every entry in the files of a Badger directory, in the order
// in which they were written. Damage is passed over; an error says that a file
// could not be read at all, and ends the sequence.
func entriesIn(dir string) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		names, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(entry{}, err)
			return
		}
		slices.SortFunc(names, func(a, b os.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
		for suffix, read := range fileReaders() {
			for _, n := range names {
				if !hasSuffix(n.Name(), suffix) {
					continue
				}
				data, err := readDamaged(filepath.Join(dir, n.Name()))
				if err != nil {
					yield(entry{}, err)
					return
				}
				for e := range read(data) {
					if !yield(e, nil) {
						return
					}
				}
			}
		}
	}
}

// readDamaged reads a file; pages that the disk cannot give read as zero.
func readDamaged(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	const page = 4096
	data := make([]byte, info.Size())
	for off := 0; off < len(data); {
		n, err := f.ReadAt(data[off:], int64(off))
		off += n
		switch {
		case errors.Is(err, unix.EIO):
			off += page - off%page
		case errors.Is(err, io.EOF):
			return data[:off], nil
		case err != nil:
			return nil, err
		}
	}
	return data, nil
}

// logEntries reads a write-ahead log, going on behind damage: each entry has a
// checksum of its own, so what verifies is an entry.
func logEntries(data []byte) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		if len(data) < walHeaderLen {
			return
		}
		torn := false
		for rest := data[walHeaderLen:]; len(rest) > 0; {
			e, n, ok := parseLogEntry(rest)
			if ok {
				e.logged, e.torn = true, torn
				if !yield(e) {
					return
				}
				torn = torn && !e.end
				rest = rest[n:]
				continue
			}
			torn = true
			if n > 0 && entryFollows(rest[n:]) {
				// Only this one is damaged. What lies inside it is never taken for an
				// entry: it comes from clients.
				rest = rest[n:]
				continue
			}
			next := slices.IndexFunc(rest[1:], func(b byte) bool { return b&(walMetaTxn|walMetaFin) != 0 })
			if next < 0 {
				return
			}
			rest = rest[1+next:]
		}
	}
}

// entryFollows reports whether a log goes on, or ends, at the front of b.
func entryFollows(b []byte) bool {
	if _, _, ok := parseLogEntry(b); ok {
		return true
	}
	head := b[:min(len(b), walHeaderLen)]
	return !slices.ContainsFunc(head, func(c byte) bool { return c != 0 })
}

// parseLogEntry reads an entry at the front of b: meta, user meta, the lengths of
// key and value, expiry, key, value, CRC32C. n is the length that the entry says
// to have, 0 if it cannot be one of ours; ok says that it verifies. Behind damage
// any byte is tried, and those of compressed or encrypted values are random: all
// that is known of an entry's head must hold, or the rest of the log might be taken
// for the damaged value of an entry that never was.
func parseLogEntry(b []byte) (e entry, n int, ok bool) {
	if len(b) < 2 || b[0]&(walMetaTxn|walMetaFin) == 0 || b[0]&^(walMetaTxn|walMetaFin|walMetaDelete) != 0 || b[1] != 0 {
		return entry{}, 0, false
	}
	meta := b[0]
	at := 2
	var lens [3]uint64 // key, value, expiry
	for i := range lens {
		v, n := binary.Uvarint(b[at:])
		if n <= 0 {
			return entry{}, 0, false
		}
		lens[i] = v
		at += n
	}
	if at >= len(b) || lens[0] != walKeyLen(b[at]) || lens[1] > maxWALValue || lens[2] != 0 {
		return entry{}, 0, false
	}
	keyEnd := at + int(lens[0])
	end := keyEnd + int(lens[1])
	if end+crc32.Size > len(b) {
		return entry{}, 0, false
	}
	n = end + crc32.Size
	if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return entry{}, n, false
	}
	return entry{
		key:     b[at : keyEnd-versionLen],
		value:   b[keyEnd:end],
		version: math.MaxUint64 - binary.BigEndian.Uint64(b[keyEnd-versionLen:]),
		deleted: meta&walMetaDelete != 0,
		end:     meta&walMetaFin != 0,
	}, n, true
}

// walKeyLen gives the length, with its version, of a key that begins with a letter
// of ours or with Badger's own mark of the end of a transaction; 0 for any other.
func walKeyLen(letter byte) uint64 {
	switch letter {
	case prefixBlock:
		return blockKeyLen + versionLen
	case prefixDelta:
		return deltaKeyLen + versionLen
	case prefixSnapshot:
		return snapshotKeyLen + versionLen
	case prefixDead:
		return deadKeyLen + versionLen
	case prefixNote:
		return noteKeyLen + versionLen
	case prefixLeft:
		return leftKeyLen + versionLen
	case '!':
		return uint64(len("!badger!txn")) + versionLen
	}
	return 0
}

// lastCommitIn gives the number of the newest transaction that the logs in dir prove
// to have been written as a whole, 0 for none. Everything up to it was committed. A disk
// writes what is not synced in any order, so that of the last one the end may be there
// without what comes before it; of earlier ones, which were synced before the next was
// begun, such a gap is damage.
func lastCommitIn(dir string) (version uint64, err error) {
	torn := uint64(0)
	for e, err := range entriesIn(dir) {
		switch {
		case err != nil:
			return 0, err
		case !e.logged:
			continue
		}
		if e.version > torn {
			version = max(version, torn)
		}
		switch {
		case e.end && e.torn:
			torn = e.version
		case e.end:
			version = max(version, e.version)
		}
	}
	return version, nil
}
