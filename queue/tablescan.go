package queue

import (
	"encoding/binary"
	"hash/crc32"
	"iter"
	"math"

	"github.com/dgraph-io/badger/v4/fb"
)

// A table is a row of blocks of entries, an index of the blocks, and a footer.
// Badger needs all of it. Here the index is only a help: without it the blocks
// are found by their checksums.
//
//	block  = entries, offset of each (LE32), their number (BE32), checksum, its length (BE32)
//	entry  = overlap (LE16), rest (LE16), rest of the key, meta, user meta, expiry, value
//	footer = index, its length (BE32), checksum, its length (BE32)
//
// A checksum is a protobuf message of one number, 2 to 6 bytes long.
const (
	tableNumber  = 4 // length of a fixed number
	entryHeader  = 4
	checksumTag  = 2 << 3 // field 2, varint
	minChecksum  = 2
	maxChecksum  = 1 + binary.MaxVarintLen32
	maxTableSpan = 2 << 20 // no block is longer
)

// tableEntries reads the entries of a table, those of damaged blocks included:
// each value is to be checked by its own checksum.
func tableEntries(data []byte) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		blocks, ok := indexedBlocks(data)
		if !ok {
			blocks = foundBlocks(data)
		}
		for block := range blocks {
			for e := range blockEntries(block) {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// trailer reads the checksum that ends at the end of b and gives the length of
// what it covers.
func trailer(b []byte) (covered int, sum uint32, ok bool) {
	if len(b) < tableNumber+minChecksum {
		return 0, 0, false
	}
	n := int(binary.BigEndian.Uint32(b[len(b)-tableNumber:]))
	if n < minChecksum || n > maxChecksum || n+tableNumber > len(b) {
		return 0, 0, false
	}
	at := len(b) - tableNumber - n
	v, used := binary.Uvarint(b[at+1 : at+n])
	if b[at] != checksumTag || used != n-1 || v > math.MaxUint32 {
		return 0, 0, false
	}
	return at, uint32(v), true
}

// indexedBlocks gives the blocks that the table's index names, if it verifies.
func indexedBlocks(data []byte) (iter.Seq[[]byte], bool) {
	at, sum, ok := trailer(data)
	if !ok || at < tableNumber {
		return nil, false
	}
	end := at - tableNumber
	n := int(binary.BigEndian.Uint32(data[end:]))
	if n <= 0 || n > end || crc32.Checksum(data[end-n:end], castagnoli) != sum {
		return nil, false
	}
	index := fb.GetRootAsTableIndex(data[end-n:end], 0)
	return func(yield func([]byte) bool) {
		var o fb.BlockOffset
		for i := range index.OffsetsLength() {
			if !index.Offsets(&o, i) {
				return
			}
			from, to := int(o.Offset()), int(o.Offset())+int(o.Len())
			if from <= to && to <= end && !yield(data[from:to]) {
				return
			}
		}
	}, true
}

// foundBlocks gives the blocks of a table whose index is gone, whole ones and
// damaged ones.
func foundBlocks(data []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(data) > 0 {
			end := blockEnd(data)
			if end == 0 || !yield(data[:end]) {
				return
			}
			data = data[end:]
		}
	}
}

// blockEnd gives the length of the block at the front of b: it ends where the
// checksum of everything before stands. If nothing verifies the block is damaged
// and ends at the first place that looks like an end; 0 if there is none.
func blockEnd(b []byte) int {
	var crc uint32
	done, first := 0, 0
	for end := tableNumber + minChecksum; end <= len(b) && (end <= maxTableSpan || first == 0); end++ {
		if b[end-2] != 0 || b[end-3] != 0 || b[end-4] != 0 {
			continue
		}
		covered, sum, ok := trailer(b[:end])
		if !ok {
			continue
		}
		if covered < done {
			crc, done = 0, 0
		}
		crc, done = crc32.Update(crc, castagnoli, b[done:covered]), covered
		if crc == sum {
			return end
		}
		if first == 0 {
			first = end
		}
	}
	return first
}

// blockEntries gives the entries of a block as far as its lengths make sense.
func blockEntries(b []byte) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		at, count := offsetsOf(b)
		body, offsets := b[:at], b[at:]
		offset := func(i int) int {
			if i == count {
				return len(body)
			}
			return int(binary.LittleEndian.Uint32(offsets[i*tableNumber:]))
		}
		var base []byte
		for i := range count {
			from, to := offset(i), offset(i+1)
			if from > to || to > len(body) {
				continue
			}
			e, key, ok := blockEntry(body[from:to], base)
			if i == 0 {
				base = key
			}
			if ok && !yield(e) {
				return
			}
		}
	}
}

// offsetsOf gives the place and the number of the offsets at the end of a block,
// 0 of them if they cannot be found. The checksum behind them or its length may
// be damaged, hardly both.
func offsetsOf(b []byte) (at, count int) {
	if len(b) < 3*tableNumber {
		return 0, 0
	}
	end := len(b) - tableNumber // of the checksum
	n := int(min(binary.BigEndian.Uint32(b[end:]), maxChecksum))
	for try := minChecksum; try <= maxChecksum; try++ {
		if at := end - try; b[at] == checksumTag {
			if _, used := binary.Uvarint(b[at+1 : end]); used == try-1 {
				n = try
			}
		}
	}
	return offsetsBefore(b, end-n-tableNumber)
}

// offsetsBefore gives the offsets that end at end, where their number stands. The
// number may be damaged; the first offset is 0 and each is larger than the one
// before.
func offsetsBefore(b []byte, end int) (at, count int) {
	if end < tableNumber {
		return 0, 0
	}
	count = int(min(binary.BigEndian.Uint32(b[end:]), math.MaxInt32))
	if at := end - count*tableNumber; count > 0 && at > 0 && binary.LittleEndian.Uint32(b[at:]) == 0 {
		return at, count
	}
	above := uint32(end)
	for at := end - tableNumber; at >= 0; at -= tableNumber {
		offset := binary.LittleEndian.Uint32(b[at:])
		if offset >= above {
			break
		}
		if offset == 0 {
			return at, (end - at) / tableNumber
		}
		above = offset
	}
	return 0, 0
}

// blockEntry reads one entry, whose key begins like the first of its block. A
// damaged first key spoils the keys of a block, not the values.
func blockEntry(b, base []byte) (e entry, key []byte, ok bool) {
	if len(b) < entryHeader {
		return entry{}, nil, false
	}
	overlap, rest := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
	b = b[entryHeader:]
	if rest+3 > len(b) {
		return entry{}, nil, false
	}
	key = append(append([]byte(nil), base[:min(overlap, len(base))]...), b[:rest]...)
	value := b[rest:]
	_, n := binary.Uvarint(value[2:])
	if n <= 0 {
		return entry{}, key, false
	}
	e = entry{key: key, value: value[2+n:], deleted: value[0]&walMetaDelete != 0}
	if len(key) > versionLen {
		e.version = math.MaxUint64 - binary.BigEndian.Uint64(key[len(key)-versionLen:])
		e.key = key[:len(key)-versionLen]
	}
	return e, key, true
}
