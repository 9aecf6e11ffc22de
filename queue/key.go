package queue

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"sluice/internal/hit"
)

// Keys of a shelf: one letter, then big-endian numbers, so that byte order is
// the order of writing.
const (
	prefixBlock    = 'b' // clock, generation, number -> block
	prefixDelta    = 'd' // sequence -> delta
	prefixSnapshot = 's' // sequence, part -> part of a snapshot
)

// Lengths of the keys.
const (
	blockKeyLen    = 1 + 8 + 8 + 8
	deltaKeyLen    = 1 + 8
	snapshotKeyLen = 1 + 8 + 2
	deadKeyLen     = 1 + 8 + 8 + 4
	noteKeyLen     = 1 + 8 + 8
	leftKeyLen     = 1
)

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

// ownKey gives the key that a value names itself. It returns [ErrNewerFormat] for
// a value that a newer version wrote and [errDamaged] for damage.
func ownKey(value []byte) ([]byte, error) {
	if len(value) < frameLen {
		return nil, fmt.Errorf("%w: value of %d bytes", errDamaged, len(value))
	}
	p, err := unseal(value, value[1])
	if err != nil {
		return nil, err
	}
	switch kind := value[1]; {
	case kind == kindBlock && len(p) >= blockHeaderLen:
		return blockKeyOf(p).bytes(), nil
	case kind == kindDelta:
		if seq, n := binary.Uvarint(p); n > 0 {
			return deltaKey(seq), nil
		}
	case kind == kindSnapshot && len(p) >= partHeaderLen:
		return snapshotKey(binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint16(p[8:])), nil
	case kind == kindDead:
		if l, err := hit.DecodeDeadLetter(p); err == nil {
			return deadKey(l.ID), nil
		}
	case kind == kindSealedDead:
		if id, n, err := letterID(p); err == nil && len(p) >= n+wrapLen {
			return deadKey(id), nil
		}
	case kind == kindNote || kind == kindLeft:
		return otherKey(value)
	}
	return nil, fmt.Errorf("%w: kind %q", errDamaged, value[1])
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

// Every value starts with this frame: version, kind, CRC32C of both and of the
// payload. Badger's own checksum modes stay off, because they turn one bad bit
// into a panic or into a silent end of iteration. The payload repeats the key, so
// that a value is whole without it: Badger protects its keys as little.
const (
	formatVersion = 1
	frameLen      = 6

	kindBlock    = 'B'
	kindDelta    = 'D'
	kindSnapshot = 'S'
	kindDead     = 'L'
	// kindSealedDead is a dead letter that is encrypted but for its id.
	kindSealedDead = 'E'
)

// seal fills the frame at the front of b, whose payload starts at frameLen.
func seal(b []byte, kind byte) []byte {
	b[0], b[1] = formatVersion, kind
	binary.LittleEndian.PutUint32(b[2:], checksum(b))
	return b
}

// checksum covers a framed value but for the checksum itself.
func checksum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:2], castagnoli), castagnoli, b[frameLen:])
}

// unseal checks the frame and returns the payload. It returns [ErrNewerFormat]
// for a version that this program does not know and [errDamaged] for damage.
func unseal(b []byte, kind byte) ([]byte, error) {
	if len(b) < frameLen {
		return nil, fmt.Errorf("%w: value of %d bytes", errDamaged, len(b))
	}
	// The version is looked at after the checksum: a flipped bit in it must not
	// read as a newer format, and the frame has been the same since version 1.
	if got := checksum(b); got != binary.LittleEndian.Uint32(b[2:]) {
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
