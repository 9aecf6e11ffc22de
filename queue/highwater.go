package queue

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
)

// highWaterLen: block number, sequence, and the inverse of their sum as a check.
const highWaterLen = 24

// A highWater is a small file with the numbers of the last committed block and
// transaction, written without syncing. After a power loss it may be old, never
// too new, so that a store that ends below it has lost something for certain:
// Badger truncates its log at the first bad entry and says nothing.
type highWater struct {
	f   *os.File
	buf [highWaterLen]byte
}

// openHighWater opens or creates the file and gives the numbers in it.
func openHighWater(path string) (h *highWater, number, seq uint64, err error) {
	number, seq, err = readHighWater(path)
	if err != nil {
		return nil, 0, 0, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, 0, err
	}
	return &highWater{f: f}, number, seq, nil
}

// readHighWater gives the numbers in the file, 0 if there are none. A torn write
// does not verify and counts as no information.
func readHighWater(path string) (number, seq uint64, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil || len(b) != highWaterLen {
		return 0, 0, err
	}
	number, seq = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	if binary.LittleEndian.Uint64(b[16:]) != ^(number + seq) {
		return 0, 0, nil
	}
	return number, seq, nil
}

// write records the numbers. An error leaves the old ones, which only makes the
// check less sharp.
func (h *highWater) write(number, seq uint64) {
	binary.LittleEndian.PutUint64(h.buf[:], number)
	binary.LittleEndian.PutUint64(h.buf[8:], seq)
	binary.LittleEndian.PutUint64(h.buf[16:], ^(number + seq))
	_, _ = h.f.WriteAt(h.buf[:], 0)
}

// close closes the file. A drained import has none and is nil.
func (h *highWater) close() error {
	if h == nil {
		return nil
	}
	return h.f.Close()
}
