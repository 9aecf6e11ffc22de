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
	if err != nil && !errors.Is(err, errDamaged) && !errors.Is(err, ErrNewerFormat) {
		t.Errorf("error %v is neither damage nor a newer format", err)
	}
}

func FuzzDecodeBlock(f *testing.F) {
	key := blockKey{clock: 1, generation: 2, number: 3}
	raw := hit.AppendRequestSet(nil, aSet(0, 3, 1))
	f.Add(encodeBlock(nil, &block{key: key, hits: 3, raw: raw})[frameLen:], false)
	f.Add(encodeBlock(nil, &block{key: key, hits: 3, raw: bytes.Repeat(raw, 9)})[frameLen:], true)
	f.Fuzz(func(t *testing.T, payload []byte, bare bool) {
		value := payload
		if !bare {
			value = framed(kindBlock, payload)
		}
		k := key
		if len(payload) >= blockHeaderLen && !bare {
			k = blockKeyOf(payload)
		}
		b, sets, err := decodeBlock(k, value)
		checkDecodeError(t, err)
		if err != nil {
			return
		}
		again, sets2, err := decodeBlock(k, encodeBlock(nil, b))
		if err != nil || !reflect.DeepEqual(sets, sets2) || again.hits != b.hits || again.hitsBefore != b.hitsBefore || again.byteBefore != b.byteBefore {
			t.Errorf("encoded again: %v", err)
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
		begins:     []journalEntry{{batch: 1, at: 5, ids: []idRange{{1, 0, 3}, {1, 9, 9}}}},
		ends:       []uint64{1},
		requeued:   []hit.ID{{Generation: 1, Block: 2, Index: 3}},
		forgotten:  []hit.ID{{Generation: 1, Block: 2, Index: 4}},
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
	f.Add(encodeDead(&hit.DeadLetter{ID: hit.ID{Generation: 1, Block: 2, Index: 3}, Reason: "x", Status: 400, Answer: []byte("y")})[frameLen:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		l, err := decodeDead(framed(kindDead, payload))
		checkDecodeError(t, err)
		if err != nil {
			return
		}
		if again, err := decodeDead(encodeDead(l)); err != nil || !reflect.DeepEqual(again, l) {
			t.Errorf("encoded again: %v", err)
		}
	})
}
