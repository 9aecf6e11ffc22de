package queue

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
	"golang.org/x/crypto/chacha20poly1305"

	"sluice/internal/hit"
)

const (
	codecRaw = 0
	codecS2  = 1 // snappy-compatible subset of s2
	// codecSealed is a bit: the body, packed as the others say, is encrypted.
	codecSealed = 0x80

	blockHeaderLen = 1 + 8 + 8 + 8 + 4 + 8 + 8 + 4
	// maxBlockRaw bounds a block before compression, so that even one that does
	// not compress stays below Badger's value threshold (1 MiB): above it a value
	// goes to the value log, whose sync errors Badger only logs.
	maxBlockRaw = 768 << 10
	// maxDecodedBlock bounds what a damaged length may make us allocate.
	maxDecodedBlock = 4 << 20
)

// A block is the hits of one group commit.
type block struct {
	key        blockKey
	hits       uint32
	hitsBefore uint64 // hits in all blocks of the stream before this one
	byteBefore uint64 // bytes of all blocks of the stream before this one
	size       uint32 // bytes of the value
	raw        []byte // encoded request sets
}

// encodeBlock gives the value of a block, encrypted with a key if there is one. buf
// is reused where it is large enough.
func encodeBlock(buf []byte, b *block, key *dataKey) []byte {
	need := frameLen + blockHeaderLen + wrapLen + s2.MaxEncodedLen(len(b.raw)) + chacha20poly1305.Overhead
	if cap(buf) < need {
		buf = make([]byte, 0, need)
	}
	buf = buf[:frameLen]
	buf = append(buf, codecS2)
	buf = binary.LittleEndian.AppendUint64(buf, b.key.clock)
	buf = binary.LittleEndian.AppendUint64(buf, b.key.generation)
	buf = binary.LittleEndian.AppendUint64(buf, b.key.number)
	buf = binary.LittleEndian.AppendUint32(buf, b.hits)
	buf = binary.LittleEndian.AppendUint64(buf, b.hitsBefore)
	buf = binary.LittleEndian.AppendUint64(buf, b.byteBefore)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(b.raw)))
	if key != nil {
		buf = key.begin(buf)
	}
	at := len(buf)
	packed := s2.EncodeSnappy(buf[at:cap(buf)], b.raw)
	if len(packed) < len(b.raw) {
		buf = buf[:at+len(packed)]
	} else {
		buf[frameLen] = codecRaw
		buf = append(buf[:at], b.raw...)
	}
	if key != nil {
		buf[frameLen] |= codecSealed
		buf = key.finish(buf, at, kindBlock)
	}
	return seal(buf, kindBlock)
}

// decodeHeader reads all of a block's value but its hits.
func decodeHeader(key blockKey, value []byte) (block, []byte, error) {
	p, err := unseal(value, kindBlock)
	if err != nil {
		return block{}, nil, err
	}
	if len(p) < blockHeaderLen {
		return block{}, nil, fmt.Errorf("%w: block header of %d bytes", errDamaged, len(p))
	}
	b := block{
		key:        key,
		hits:       binary.LittleEndian.Uint32(p[25:]),
		hitsBefore: binary.LittleEndian.Uint64(p[29:]),
		byteBefore: binary.LittleEndian.Uint64(p[37:]),
		size:       uint32(len(value)),
	}
	if own := blockKeyOf(p); own != key {
		return block{}, nil, fmt.Errorf("%w: block %d stands under the key of block %d", errDamaged, own.number, key.number)
	}
	return b, p, nil
}

// blockKeyOf reads the key that a block's payload repeats.
func blockKeyOf(p []byte) blockKey {
	return blockKey{
		clock:      binary.LittleEndian.Uint64(p[1:]),
		generation: binary.LittleEndian.Uint64(p[9:]),
		number:     binary.LittleEndian.Uint64(p[17:]),
	}
}

// decodeBlock reads a block with its hits. It returns [ErrKey] for one that none of
// the keys has encrypted.
func decodeBlock(keys Keys, key blockKey, value []byte) (*block, []*hit.RequestSet, error) {
	b, p, err := decodeHeader(key, value)
	if err != nil {
		return nil, nil, err
	}
	packing := p[0] &^ codecSealed
	if packing != codecRaw && packing != codecS2 {
		return nil, nil, fmt.Errorf("%w: block codec %d", ErrNewerFormat, p[0])
	}
	rawLen := binary.LittleEndian.Uint32(p[45:])
	body := p[blockHeaderLen:]
	if p[0]&codecSealed != 0 {
		if body, err = keys.decrypt(nil, p, blockHeaderLen, kindBlock); err != nil {
			return nil, nil, err
		}
	}
	switch packing {
	case codecRaw:
		b.raw = body
	case codecS2:
		// The body repeats the length; a larger one would be allocated.
		if n, err := s2.DecodedLen(body); err != nil || rawLen > maxDecodedBlock || n != int(rawLen) {
			return nil, nil, fmt.Errorf("%w: block of %d raw bytes", errDamaged, rawLen)
		}
		b.raw, err = s2.Decode(make([]byte, rawLen), body)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
	}
	if len(b.raw) != int(rawLen) {
		return nil, nil, fmt.Errorf("%w: block of %d raw bytes, its header says %d", errDamaged, len(b.raw), rawLen)
	}
	var sets []*hit.RequestSet
	hits := 0
	for rest := b.raw; len(rest) > 0; {
		var s *hit.RequestSet
		s, rest, err = hit.DecodeRequestSet(rest)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		sets = append(sets, s)
		hits += len(s.Hits)
	}
	if hits != int(b.hits) {
		return nil, nil, fmt.Errorf("%w: block of %d hits, its header says %d", errDamaged, hits, b.hits)
	}
	return &b, sets, nil
}
