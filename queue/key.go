package queue

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

// Keys of a shelf: one letter, then big-endian numbers, so that byte order is
// the order of writing.
const (
	prefixBlock    = 'b' // clock, generation, number -> block
	prefixDelta    = 'd' // sequence -> delta
	prefixSnapshot = 's' // sequence, part -> part of a snapshot
)

const blockKeyLen = 1 + 8 + 8 + 8

// A blockKey places a block in the order of arrival.
type blockKey struct {
	clock      uint64 // Unix nanoseconds, never going back
	generation uint64
	number     uint64 // gapless within the generation
}

func (k blockKey) bytes() []byte {
	b := make([]byte, 1, blockKeyLen)
	b[0] = prefixBlock
	b = binary.BigEndian.AppendUint64(b, k.clock)
	b = binary.BigEndian.AppendUint64(b, k.generation)
	return binary.BigEndian.AppendUint64(b, k.number)
}

func parseBlockKey(b []byte) (blockKey, bool) {
	if len(b) != blockKeyLen || b[0] != prefixBlock {
		return blockKey{}, false
	}
	return blockKey{
		clock:      binary.BigEndian.Uint64(b[1:]),
		generation: binary.BigEndian.Uint64(b[9:]),
		number:     binary.BigEndian.Uint64(b[17:]),
	}, true
}

func deltaKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixDelta}, seq)
}

func snapshotKey(seq uint64, part uint16) []byte {
	b := binary.BigEndian.AppendUint64([]byte{prefixSnapshot}, seq)
	return binary.BigEndian.AppendUint16(b, part)
}

// nextClock gives a clock reading above last: the wall clock, or last plus one
// where the wall clock stands or has gone back. Order of keys is order of
// arrival whatever the wall clock does.
func nextClock(last uint64, now time.Time) uint64 {
	return max(uint64(max(now.UnixNano(), 0)), last+1)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Every value starts with this frame: version, kind, CRC32C of the kind and the
// payload. Badger's own checksum modes stay off, because they turn one bad bit
// into a panic or into a silent end of iteration.
const (
	formatVersion = 1
	frameLen      = 6

	kindBlock    = 'B'
	kindDelta    = 'D'
	kindSnapshot = 'S'
	kindDead     = 'L'
)

// seal fills the frame at the front of b, whose payload starts at frameLen.
func seal(b []byte, kind byte) []byte {
	b[0], b[1] = formatVersion, kind
	binary.LittleEndian.PutUint32(b[2:], checksum(kind, b[frameLen:]))
	return b
}

func checksum(kind byte, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte{kind}, castagnoli), castagnoli, payload)
}

// unseal checks the frame and returns the payload. It returns [ErrNewerFormat]
// for a version that this program does not know and [errDamaged] for damage.
func unseal(b []byte, kind byte) ([]byte, error) {
	if len(b) < frameLen {
		return nil, fmt.Errorf("%w: value of %d bytes", errDamaged, len(b))
	}
	// The version is looked at after the checksum: a flipped bit in it must not
	// read as a newer format, and the frame has been the same since version 1.
	if got := checksum(b[1], b[frameLen:]); got != binary.LittleEndian.Uint32(b[2:]) {
		return nil, fmt.Errorf("%w: checksum %08x", errDamaged, got)
	}
	if b[0] != formatVersion {
		return nil, fmt.Errorf("%w: value of version %d, this program knows %d", ErrNewerFormat, b[0], formatVersion)
	}
	if b[1] != kind {
		return nil, fmt.Errorf("%w: kind %q where %q was expected", errDamaged, b[1], kind)
	}
	return b[frameLen:], nil
}
