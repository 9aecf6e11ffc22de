package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"
)

// What an import has taken is remembered by the identities of the lines that it was made
// from, so that no line is taken twice. They lie in one file an import, in the order of
// their times: to know whether lines of some time are there, only what the file has of
// that time is read, and nothing of it stays in memory.

// A Line is what tells one line of a log from all others of the same second.
type Line struct {
	At int64 // Unix seconds
	ID [lineIDLen]byte
}

// lineIDLen: among 10,000 lines in each of a million seconds two are the same by
// chance once in 10^10 times.
const lineIDLen = 10

// A lineLog is the file. Each of its records belongs to one transaction of the import's
// stream, is synced before it, and counts only if that was committed:
//
//	length of the rest   uint32
//	block                uint64: the newest block before the transaction
//	first, last          int64: Unix seconds of its first and last line
//	groups               seconds since the line before, number of lines: uvarint; identities
//	CRC32C               uint32, of all of this
//
// Numbers are little-endian. Its methods may be called from any goroutine, those that
// write by one at a time.
type lineLog struct {
	f *os.File

	mu      sync.Mutex
	records []lineRecord // guarded by mu; in the order of their times
}

type lineRecord struct {
	off         int64
	length      int
	block       uint64
	first, last int64
}

const (
	lineHeadLen  = 4 + 8 + 8 + 8
	maxLineBytes = 64 << 20 // of one record; more is damage
)

// openLineLog opens the file, or makes it, and cuts off what was not committed: block is
// the newest of the stream. What is damaged in the middle is an error: a line could be
// taken twice.
func openLineLog(path string, block uint64) (*lineLog, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	l := &lineLog{f: f}
	if err := l.load(block); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return l, nil
}

func (l *lineLog) load(block uint64) error {
	info, err := l.f.Stat()
	if err != nil {
		return err
	}
	off := int64(0)
	for off < info.Size() {
		r, err := l.head(off)
		if err == nil && r.block >= block {
			break // of a transaction that was not committed
		}
		if err == nil {
			_, err = l.lines(r)
		}
		if err != nil {
			return fmt.Errorf("what was imported is not known any more, at byte %d: %w", off, err)
		}
		l.records = append(l.records, r)
		off = r.end()
	}
	return l.f.Truncate(off)
}

func (r lineRecord) end() int64 { return r.off + int64(r.length) }

func (l *lineLog) head(off int64) (lineRecord, error) {
	var b [lineHeadLen]byte
	if _, err := l.f.ReadAt(b[:], off); err != nil {
		if errors.Is(err, io.EOF) {
			// Cut within a record: its transaction was never begun.
			return lineRecord{block: 1<<64 - 1}, nil
		}
		return lineRecord{}, err
	}
	r := lineRecord{
		off: off, length: 4 + int(binary.LittleEndian.Uint32(b[:])), block: binary.LittleEndian.Uint64(b[4:]),
		first: int64(binary.LittleEndian.Uint64(b[12:])), last: int64(binary.LittleEndian.Uint64(b[20:])),
	}
	return r, nil
}

// lines reads the identities of a record.
func (l *lineLog) lines(r lineRecord) ([]Line, error) {
	if r.length < lineHeadLen+crc32.Size || r.length > maxLineBytes {
		return nil, fmt.Errorf("%w: a record of %d bytes", ErrDamaged, r.length)
	}
	b := make([]byte, r.length)
	if _, err := l.f.ReadAt(b, r.off); err != nil {
		return nil, err
	}
	body := b[:len(b)-crc32.Size]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(body):]) {
		return nil, fmt.Errorf("%w: a record does not verify", ErrDamaged)
	}
	var out []Line
	at := r.first
	for rest := body[lineHeadLen:]; len(rest) > 0; {
		step, n := binary.Uvarint(rest)
		count, m := binary.Uvarint(rest[max(n, 0):])
		if n <= 0 || m <= 0 || count*lineIDLen > uint64(len(rest)-n-m) {
			return nil, fmt.Errorf("%w: a record's groups", ErrDamaged)
		}
		rest = rest[n+m:]
		at += int64(step)
		for range count {
			out = append(out, Line{At: at, ID: [lineIDLen]byte(rest)})
			rest = rest[lineIDLen:]
		}
	}
	return out, nil
}

// add writes down, synced, the lines of a transaction that follows a block. Their times
// do not go back.
func (l *lineLog) add(block uint64, lines []Line) error {
	if len(lines) == 0 {
		return nil
	}
	r := lineRecord{block: block, first: lines[0].At, last: lines[len(lines)-1].At}
	b := make([]byte, 4, lineHeadLen+len(lines)*(lineIDLen+2)+crc32.Size)
	b = binary.LittleEndian.AppendUint64(b, block)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.first))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.last))
	at := r.first
	for rest := lines; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].At == rest[0].At {
			n++
		}
		b = binary.AppendUvarint(b, uint64(rest[0].At-at))
		b = binary.AppendUvarint(b, uint64(n))
		at = rest[0].At
		for i := range rest[:n] {
			b = append(b, rest[i].ID[:]...)
		}
		rest = rest[n:]
	}
	r.length = len(b) + crc32.Size
	binary.LittleEndian.PutUint32(b, uint32(r.length-4))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.records); n > 0 {
		r.off = l.records[n-1].end()
	}
	if _, err := l.f.WriteAt(b, r.off); err != nil {
		return err
	}
	if err := l.f.Sync(); err != nil {
		return err
	}
	l.records = append(l.records, r)
	return nil
}

// cut takes back the record of a transaction that was not committed.
func (l *lineLog) cut(block uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.records)
	if n == 0 || l.records[n-1].block != block {
		return nil
	}
	off := l.records[n-1].off
	l.records = l.records[:n-1]
	return l.f.Truncate(off)
}

// between reads what lies within a time, in Unix seconds, both ends included.
func (l *lineLog) between(from, to int64, into map[Line]struct{}) error {
	l.mu.Lock()
	i, _ := slices.BinarySearchFunc(l.records, from, func(r lineRecord, at int64) int {
		if r.last < at {
			return -1
		}
		return 1
	})
	var some []lineRecord
	for ; i < len(l.records) && l.records[i].first <= to; i++ {
		some = append(some, l.records[i])
	}
	l.mu.Unlock()
	for _, r := range some {
		lines, err := l.lines(r)
		if err != nil {
			return err
		}
		for _, line := range lines {
			if from <= line.At && line.At <= to {
				into[line] = struct{}{}
			}
		}
	}
	return nil
}

func (l *lineLog) close() error { return l.f.Close() }

// KnownLines says of each line whether an import has taken it that is remembered, the open
// one included. The lines must be in the order of their times; it reads what is remembered
// of the time from the first to the last.
func (q *Queue) KnownLines(lines []Line) ([]bool, error) {
	out := make([]bool, len(lines))
	if len(lines) == 0 {
		return out, nil
	}
	q.mu.RLock()
	logs := make([]*lineLog, 0, len(q.imports))
	for _, i := range q.imports {
		if i.seen != nil {
			logs = append(logs, i.seen)
		}
	}
	q.mu.RUnlock()
	known := map[Line]struct{}{}
	for _, l := range logs {
		if err := l.between(lines[0].At, lines[len(lines)-1].At, known); err != nil {
			return nil, fmt.Errorf("what was imported: %w", err)
		}
	}
	for i, line := range lines {
		_, out[i] = known[line]
	}
	return out, nil
}
