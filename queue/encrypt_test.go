package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"sluice/internal/hit"
)

func TestKeysAreRefusedAndNeverShown(t *testing.T) {
	long, twice := make([]byte, KeyLen+1), bytes.Repeat([]byte{7}, KeyLen)
	for _, raw := range [][][]byte{{nil}, {long}, {twice[1:]}, {twice, make([]byte, KeyLen), twice}} {
		if keys, err := NewKeys(raw...); err == nil {
			t.Errorf("NewKeys of %d keys = %v, want an error", len(raw), keys)
		}
	}
	// The id is the start of SHA-256("sluice key" and 32 bytes of 7).
	keys, err := NewKeys(twice)
	if err != nil || keys.String() != "614f6547" {
		t.Fatalf("NewKeys = %v, %v", keys, err)
	}
	var log strings.Builder
	o := Options{Keys: keys}
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "options", o, "keys", keys)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "options", o, "keys", keys)
	text := fmt.Sprintf("%v %+v %#v %s %v %#v", o, o, o, keys, keys, keys) + log.String()
	for _, shown := range []string{"7 7 7", "7, 7", "0x7", "07070", "\a\a", "BwcHB"} {
		if strings.Contains(text, shown) {
			t.Errorf("the key is shown as %q in %s", shown, text)
		}
	}
}

// sealedBlock gives a block of some hits and its value.
func sealedBlock(t *testing.T, number uint64, copies int, key *dataKey) (*block, []byte) {
	t.Helper()
	b := &block{key: blockKey{clock: 10 + number, generation: 20, number: number}, hitsBefore: 30, byteBefore: 40, hits: uint32(3 * copies)}
	for range copies {
		b.raw = hit.AppendRequestSet(b.raw, noiseSet(newRand(t), 0, 3))
	}
	return b, encodeBlock(nil, b, key)
}

// TestAnEncryptedBlockIsReadWithItsKeyOnly, whatever other keys there are.
func TestAnEncryptedBlockIsReadWithItsKeyOnly(t *testing.T) {
	for _, copies := range []int{1, 9} {
		b, value := sealedBlock(t, 1, copies, testKeys(1).first())
		_, clear := sealedBlock(t, 1, copies, nil)
		for _, tt := range []struct {
			name  string
			value []byte
			keys  Keys
			want  error
		}{
			{"its key", value, testKeys(1), nil},
			{"its key among others", value, testKeys(3, 1, 2), nil},
			{"other keys", value, testKeys(3, 2), ErrKey},
			{"no key", value, Keys{}, ErrKey},
			{"a block in clear, with a key", clear, testKeys(1), nil},
		} {
			got, sets, err := decodeBlock(tt.keys, b.key, tt.value)
			if !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
			if tt.want == nil && (err != nil || len(sets) != copies || got.hits != b.hits || got.hitsBefore != 30 || got.byteBefore != 40) {
				t.Errorf("%s: %+v with %d sets", tt.name, got, len(sets))
			}
			if tt.want != nil && !strings.Contains(err.Error(), testKeys(1).String()) {
				t.Errorf("%s: %q does not name the key %v", tt.name, err, testKeys(1))
			}
		}
	}
}

// TestAnEncryptedValueIsRefusedWhereverItWasChanged, although its checksum is right
// again, and reading it leaves its bytes as they are: they go to quarantine.
func TestAnEncryptedValueIsRefusedWhereverItWasChanged(t *testing.T) {
	keys := testKeys(1)
	b, value := sealedBlock(t, 1, 1, keys.first())
	letter := &hit.DeadLetter{ID: hit.ID{Generation: 1, Block: 2, Index: 3}, Reason: "poison", Hit: hit.Hit{Params: []byte("rec=1")}}
	for _, tt := range []struct {
		name   string
		value  []byte
		clear  int // bytes without which it is under no key
		decode func(v []byte) error
	}{
		{"block", value, frameLen + blockHeaderLen, func(v []byte) error {
			_, _, err := decodeBlock(keys, blockKeyOf(v[frameLen:]), v)
			return err
		}},
		{"dead letter", encodeDead(letter, keys.first()), frameLen, func(v []byte) error {
			_, err := decodeDead(keys, v)
			return err
		}},
	} {
		if err := tt.decode(tt.value); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		kind := tt.value[1]
		for i := frameLen; i < len(tt.value); i++ {
			v := bytes.Clone(tt.value)
			v[i] ^= 1
			changed := bytes.Clone(seal(v, kind))
			err := tt.decode(v)
			if !errors.Is(err, errDamaged) && !isForeign(err) {
				t.Errorf("%s with byte %d changed: %v", tt.name, i, err)
			}
			if !bytes.Equal(v, changed) {
				t.Fatalf("%s with byte %d changed: reading it has written into it", tt.name, i)
			}
		}
		for n := tt.clear; n < len(tt.value); n++ {
			if err := tt.decode(seal(bytes.Clone(tt.value[:n]), kind)); !errors.Is(err, errDamaged) {
				t.Errorf("%s cut to %d bytes: %v, want damage", tt.name, n, err)
			}
		}
	}

	p := value[frameLen:]
	if _, err := keys.decrypt(nil, p, blockHeaderLen, kindSealedDead); !errors.Is(err, errDamaged) {
		t.Errorf("a block's body as that of another kind: %v, want damage", err)
	}
	other, otherValue := sealedBlock(t, 2, 1, keys.first())
	moved := append(bytes.Clone(value[:frameLen+blockHeaderLen]), otherValue[frameLen+blockHeaderLen:]...)
	binary.LittleEndian.PutUint32(moved[frameLen+45:], uint32(len(other.raw)))
	if _, _, err := decodeBlock(keys, b.key, seal(moved, kindBlock)); !errors.Is(err, errDamaged) {
		t.Errorf("the body of another block: %v, want damage", err)
	}
	newer := bytes.Clone(value)
	newer[frameLen] = codecSealed | 9
	if _, _, err := decodeBlock(keys, b.key, seal(newer, kindBlock)); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("an unknown packing: %v, want ErrNewerFormat", err)
	}
}

// TestAnEncryptedLetterIsReadWithItsKeyOnly and says without one whose it is, so
// that a database can be rebuilt without the key.
func TestAnEncryptedLetterIsReadWithItsKeyOnly(t *testing.T) {
	letter := &hit.DeadLetter{
		ID: hit.ID{Generation: 1 << 60, Block: 1 << 40, Index: 1 << 20}, ReceivedAt: 5, BuriedAt: 6, Reason: "poison", Status: 400,
		Answer: []byte("no"), Environment: hit.Environment{ClientIP: "192.0.2.7"}, Hit: hit.Hit{Params: []byte("rec=1"), Token: "t", Site: 1},
	}
	value := encodeDead(letter, testKeys(1).first())
	own, err := ownKey(value)
	if err != nil || !bytes.Equal(own, deadKey(letter.ID)) {
		t.Errorf("ownKey = %x, %v, want %x", own, err, deadKey(letter.ID))
	}
	if got, err := decodeDead(testKeys(2, 1), value); err != nil || !reflect.DeepEqual(got, letter) {
		t.Errorf("decodeDead = %+v, %v, want %+v", got, err, letter)
	}
	if _, err := decodeDead(testKeys(2), value); !errors.Is(err, ErrKey) {
		t.Errorf("decodeDead with another key = %v, want ErrKey", err)
	}
	if again := encodeDead(letter, testKeys(1).first()); bytes.Equal(again, value) {
		t.Error("the same letter is encrypted to the same bytes: the nonce does not change")
	}
	if !testKeys(1).first().hasEncrypted(value) || testKeys(2).first().hasEncrypted(value) || testKeys(1).first().hasEncrypted(encodeDead(letter, nil)) {
		t.Error("hasEncrypted does not tell whose a letter is")
	}
}

// TestEncryptionAllocatesNothingPerHit: what it allocates, it does once a block.
func TestEncryptionAllocatesNothingPerHit(t *testing.T) {
	allocs := func(hits int, keys Keys) float64 {
		b := &block{key: blockKey{clock: 1, generation: 2, number: 3}, hits: uint32(hits), raw: hit.AppendRequestSet(nil, aSet(0, hits, 1))}
		buf := encodeBlock(nil, b, keys.first())
		return testing.AllocsPerRun(20, func() {
			buf = encodeBlock(buf, b, keys.first())
			if _, _, err := decodeBlock(keys, b.key, buf); err != nil {
				t.Fatal(err)
			}
		})
	}
	const perBlock = 12
	for _, hits := range []int{1, 1000} {
		off, on := allocs(hits, Keys{}), allocs(hits, testKeys(1))
		if on > off+perBlock {
			t.Errorf("%d hits: %v allocations with a key, %v without", hits, on, off)
		}
	}
}
