package queue

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"sluice/internal/hit"
)

// framed puts a payload of a fuzzer's into a frame that verifies, so that the
// decoders behind the checksum are reached.
func framed(kind byte, payload []byte) []byte {
	return seal(append(make([]byte, frameLen), payload...), kind)
}

func checkDecodeError(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, errDamaged) && !isForeign(err) {
		t.Errorf("error %v is neither damage nor a newer format nor a missing key", err)
	}
}

func FuzzDecodeBlock(f *testing.F) {
	key := blockKey{clock: 1, generation: 2, number: 3}
	raw := hit.AppendRequestSet(nil, aSet(0, 3, 1))
	f.Add(encodeBlock(nil, &block{key: key, hits: 3, raw: raw}, nil)[frameLen:], false)
	f.Add(encodeBlock(nil, &block{key: key, hits: 3, raw: bytes.Repeat(raw, 9)}, nil)[frameLen:], true)
	f.Fuzz(func(t *testing.T, payload []byte, bare bool) {
		value := payload
		if !bare {
			value = framed(kindBlock, payload)
		}
		k := key
		if len(payload) >= blockHeaderLen && !bare {
			k = blockKeyOf(payload)
		}
		b, sets, err := decodeBlock(Keys{}, k, value)
		checkDecodeError(t, err)
		if err != nil {
			return
		}
		again, sets2, err := decodeBlock(Keys{}, k, encodeBlock(nil, b, nil))
		if err != nil || !reflect.DeepEqual(sets, sets2) || again.hits != b.hits || again.hitsBefore != b.hitsBefore || again.byteBefore != b.byteBefore {
			t.Errorf("encoded again: %v", err)
		}
	})
}

// FuzzDecodeSealedBlock: what the key has encrypted, whatever it is, is read as the
// same in clear would be, and under no other header; what it has not is refused.
func FuzzDecodeSealedBlock(f *testing.F) {
	key, keys := blockKey{clock: 1, generation: 2, number: 3}, testKeys(1)
	raw := hit.AppendRequestSet(nil, aSet(0, 3, 1))
	for _, raw := range [][]byte{raw, bytes.Repeat(raw, 9)} {
		b := &block{key: key, hits: uint32(bytes.Count(raw, []byte("rec=1"))), raw: raw}
		f.Add(encodeBlock(nil, b, nil)[frameLen:], uint16(3))
		f.Add(encodeBlock(nil, b, keys.first())[frameLen:], uint16(60))
	}
	f.Fuzz(func(t *testing.T, payload []byte, at uint16) {
		if len(payload) < blockHeaderLen {
			return
		}
		_, _, err := decodeBlock(keys, blockKeyOf(payload), framed(kindBlock, payload))
		checkDecodeError(t, err)

		payload[0] &^= codecSealed
		key := blockKeyOf(payload)
		want, sets, err := decodeBlock(keys, key, framed(kindBlock, payload))
		checkDecodeError(t, err)
		sealed := append(make([]byte, frameLen), payload[:blockHeaderLen]...)
		sealed[frameLen] |= codecSealed
		sealed = append(keys.first().begin(sealed), payload[blockHeaderLen:]...)
		sealed = seal(keys.first().finish(sealed, frameLen+blockHeaderLen+wrapLen, kindBlock), kindBlock)
		got, sets2, err2 := decodeBlock(keys, key, sealed)
		if (err == nil) != (err2 == nil) || !reflect.DeepEqual(sets, sets2) {
			t.Fatalf("in clear %v, encrypted %v", err, err2)
		}
		if err == nil && (!bytes.Equal(got.raw, want.raw) || got.hits != want.hits) {
			t.Error("another block")
		}
		if i := frameLen + int(at)%(len(sealed)-frameLen); i != frameLen {
			sealed[i] ^= 1
			seal(sealed, kindBlock)
			if _, _, err := decodeBlock(keys, blockKeyOf(sealed[frameLen:]), sealed); err == nil {
				t.Errorf("byte %d was changed, and the block is read", i)
			}
		}
	})
}

func FuzzDecodeDelta(f *testing.F) {
	f.Add(encodeDelta(nil, 1, fullDelta())[frameLen:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		d, err := decodeDelta(1, framed(kindDelta, payload))
		checkDecodeError(t, err)
		if err != nil {
			return
		}
		again, err := decodeDelta(1, encodeDelta(nil, 1, d))
		if err != nil || !reflect.DeepEqual(again, d) {
			t.Errorf("encoded again: %v", err)
		}
		newState().apply(1, d)
	})
}

// fullDelta has every kind of record.
func fullDelta() *delta {
	bits := newBitmap(70)
	bits.set(69)
	return &delta{
		blocks:     []blockMeta{{1, 2, 70, 400}},
		settles:    []settle{{block: 1, hits: 70, hitsBefore: 0, byteAfter: 400, settled: bits}},
		counts:     []countChange{{counterKey{1, -2}, tally{3, -4, 5, 6}}},
		begins:     []journalEntry{{batch: 1, at: 5, ids: []idRange{{1, 0, 3}, {1, 9, 9}}, memo: []byte("memo")}},
		ends:       []uint64{1},
		requeued:   []hit.ID{{Generation: 1, Block: 2, Index: 3}},
		forgotten:  []hit.ID{{Generation: 1, Block: 2, Index: 4}},
		imported:   []hit.ID{{Generation: 9, Block: 2, Index: 3}},
		noted:      []hit.ID{{Generation: 9, Block: 2, Index: 4}},
		spans:      []span{{from: 2, to: 3, damaged: true, hitsAfter: 80, byteAfter: 500}},
		folds:      []counterKey{{1, -2}},
		doubtUntil: 9,
	}
}

func FuzzDecodeSnapshot(f *testing.F) {
	s := newState()
	d := fullDelta()
	d.ends, d.folds = nil, nil
	s.apply(1, d)
	f.Add(encodeSnapshot(s))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := decodeSnapshot(raw)
		checkDecodeError(t, err)
		if err != nil {
			return
		}
		again, err := decodeSnapshot(encodeSnapshot(s))
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if !bytes.Equal(encodeSnapshot(again), encodeSnapshot(s)) {
			t.Error("encoded again: another state")
		}
	})
}

func FuzzDecodePart(f *testing.F) {
	f.Add(encodePart(7, 1, 2, []byte("x"))[frameLen:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		_, err := decodePart(snapshotKey(7, 1), framed(kindSnapshot, payload))
		checkDecodeError(t, err)
		_, err = ownKey(framed(kindSnapshot, payload))
		checkDecodeError(t, err)
	})
}

// FuzzFileReaders: tables and logs are read as a bad disk leaves them.
func FuzzFileReaders(f *testing.F) {
	dir := closedStore(f, newRand(f), 3)
	f.Add(mustRead(f, theFile(f, theShelf(f, dir), ".sst")), true)
	f.Add(logOf(f), false)
	f.Fuzz(func(t *testing.T, data []byte, table bool) {
		n := 0
		read := logEntries
		if table {
			read = tableEntries
			for range foundBlocks(data) {
				n++
			}
		}
		for e := range read(data) {
			files := &dbFiles{kinds: shelfKinds}
			if files.ours(&e) && len(e.key) == 0 {
				t.Error("an entry of ours without a key")
			}
			n++
		}
		if n > 2*len(data)+2 {
			t.Errorf("%d entries in %d bytes", n, len(data))
		}
	})
}

// logOf gives the written part of a live log.
func logOf(t testing.TB) []byte {
	data := mustRead(t, theFile(t, theShelf(t, crashedStore(t, 3).dir), ".mem"))
	return bytes.TrimRight(data, "\x00")
}

func FuzzParseShelfName(f *testing.F) {
	f.Add(shelfName(blockKey{clock: 1, number: 2}))
	f.Add("0000000000000001-0000000000000001.rebuild")
	f.Fuzz(func(t *testing.T, name string) {
		if k, ok := parseShelfName(name); ok && shelfName(k) != name {
			t.Errorf("parseShelfName(%q) = %+v, whose name is %q", name, k, shelfName(k))
		}
	})
}

func FuzzReadHighWater(f *testing.F) {
	f.Add(highWaterOf(5, 6))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "HIGH")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		number, seq, err := readHighWater(path)
		if err != nil || (number|seq) != 0 && !bytes.Equal(highWaterOf(number, seq), data) {
			t.Errorf("readHighWater of %x = %d, %d, %v", data, number, seq, err)
		}
	})
}

func FuzzDecodeDead(f *testing.F) {
	keys := testKeys(1)
	letter := &hit.DeadLetter{ID: hit.ID{Generation: 1, Block: 2, Index: 3}, Reason: "x", Status: 400, Answer: []byte("y")}
	f.Add(encodeDead(letter, nil)[frameLen:], false)
	f.Add(encodeDead(letter, keys.first())[frameLen:], true)
	f.Fuzz(func(t *testing.T, payload []byte, sealed bool) {
		kind := byte(kindDead)
		if sealed {
			kind = kindSealedDead
		}
		value := framed(kind, payload)
		l, err := decodeDead(keys, value)
		checkDecodeError(t, err)
		own, err2 := ownKey(value)
		checkDecodeError(t, err2)
		if err != nil {
			return
		}
		if err2 != nil || !bytes.Equal(own, deadKey(l.ID)) {
			t.Errorf("ownKey = %x, %v, want that of %v", own, err2, l.ID)
		}
		for _, key := range []*dataKey{nil, keys.first()} {
			if again, err := decodeDead(keys, encodeDead(l, key)); err != nil || !reflect.DeepEqual(again, l) {
				t.Errorf("encoded again: %v", err)
			}
		}
	})
}
