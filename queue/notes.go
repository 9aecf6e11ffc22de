package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"sluice/internal/hit"
)

// Beside the letters stand what imports remember and what has left the letters.
const (
	prefixNote = 'i' // generation, block -> which hits of the block were imported
	prefixLeft = 'c' // -> how many letters have left

	kindNote = 'I'
	kindLeft = 'C'
)

// A noteKey names a block of which an import has taken hits. Its generation mostly
// is another store's.
type noteKey struct{ generation, block uint64 }

func noteKeyOf(id hit.ID) noteKey { return noteKey{id.Generation, id.Block} }

func (k noteKey) bytes() []byte {
	b := binary.BigEndian.AppendUint64([]byte{prefixNote}, k.generation)
	return binary.BigEndian.AppendUint64(b, k.block)
}

// A note is the hits of one block that imports have taken, in ascending ranges
// that do not touch.
type note []indexRange

// An indexRange is the hits from..to, both included.
type indexRange struct{ from, to uint32 }

func (n note) has(index uint32) bool {
	i, found := slices.BinarySearchFunc(n, index, func(r indexRange, index uint32) int {
		switch {
		case r.to < index:
			return -1
		case r.from > index:
			return 1
		}
		return 0
	})
	return found && n[i].from <= index
}

// with adds one hit.
func (n note) with(index uint32) note {
	if n.has(index) {
		return n
	}
	i, _ := slices.BinarySearchFunc(n, index, func(r indexRange, index uint32) int {
		if r.to < index {
			return -1
		}
		return 1
	})
	before := i > 0 && n[i-1].to+1 == index
	after := i < len(n) && n[i].from == index+1
	switch {
	case before && after:
		n[i-1].to = n[i].to
		return slices.Delete(n, i, i+1)
	case before:
		n[i-1].to = index
	case after:
		n[i].from = index
	default:
		n = slices.Insert(n, i, indexRange{index, index})
	}
	return n
}

// encodeNote gives a note's value: docs/format.md, "Note of imported hits".
func encodeNote(k noteKey, n note) []byte {
	b := make([]byte, frameLen)
	b = binary.LittleEndian.AppendUint64(b, k.generation)
	b = binary.LittleEndian.AppendUint64(b, k.block)
	w := writer{b}
	for _, r := range n {
		w.u(uint64(r.from), uint64(r.to-r.from))
	}
	return seal(w.b, kindNote)
}

// noteHeaderLen is the length of the key that a note repeats.
const noteHeaderLen = 8 + 8

func decodeNote(value []byte) (k noteKey, n note, err error) {
	p, err := unseal(value, kindNote)
	if err != nil {
		return k, nil, err
	}
	if len(p) < noteHeaderLen {
		return k, nil, fmt.Errorf("%w: note of %d bytes", errDamaged, len(p))
	}
	k = noteKey{binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])}
	r := reader{b: p[noteHeaderLen:]}
	for len(r.b) > 0 && r.err == nil {
		from := r.u32()
		to := from + r.u32()
		if to < from || len(n) > 0 && from <= n[len(n)-1].to {
			r.fail("ranges of a note are not in order")
		}
		n = append(n, indexRange{from, to})
	}
	return k, n, r.err
}

const (
	// maxBlockHits is more hits than any block has, since each takes some bytes: it
	// bounds a note.
	maxBlockHits = maxBlockRaw / 5
	// maxNotesRaw bounds the notes of one transaction well below Badger's limit;
	// noteRoom is what a note takes besides its value.
	maxNotesRaw = 1 << 20
	noteRoom    = 128
)

// A left says how many letters have left since the store was made, and what the
// last run of the retention took for the time.
type left struct {
	expired, requeued int64
	looked            int64 // Unix nanoseconds; 0 = never
}

var leftKey = []byte{prefixLeft}

func encodeLeft(l left) []byte {
	w := writer{make([]byte, frameLen)}
	w.i(l.expired, l.requeued, l.looked)
	return seal(w.b, kindLeft)
}

func decodeLeft(value []byte) (left, error) {
	p, err := unseal(value, kindLeft)
	if err != nil {
		return left{}, err
	}
	r := reader{b: p}
	l := left{expired: r.i(), requeued: r.i(), looked: r.i()}
	if len(r.b) > 0 {
		r.fail("%d bytes after the counts", len(r.b))
	}
	return l, r.err
}

// otherKey gives the key that a value names which is no letter.
func otherKey(value []byte) ([]byte, error) {
	if len(value) >= frameLen && value[1] == kindLeft {
		_, err := decodeLeft(value)
		return leftKey, err
	}
	k, _, err := decodeNote(value)
	return k.bytes(), err
}

// loadLeft reads the counts at the opening. Counts that are damaged begin again:
// they are no reason to refuse the letters.
func (d *deadLetters) loadLeft() error {
	value, err := d.get(leftKey)
	if err != nil || value == nil {
		return err
	}
	l, err := decodeLeft(value)
	if isForeign(err) {
		return err
	}
	if err != nil {
		d.log.log.Error("the counts of letters that have left cannot be read; they begin again at 0", "err", err)
		return nil
	}
	d.left.Store(&l)
	return nil
}

// leftNow gives the counts.
func (d *deadLetters) leftNow() left {
	if l := d.left.Load(); l != nil {
		return *l
	}
	return left{}
}

// look writes down what a run of the retention has taken for the time, synced.
func (d *deadLetters) look(at int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.leftNow()
	l.looked = at
	err := d.db.Update(func(txn *badger.Txn) error { return txn.Set(leftKey, encodeLeft(l)) })
	if err != nil {
		return fmt.Errorf("note the look at the dead letters: %w", err)
	}
	d.left.Store(&l)
	return nil
}

// others gives copies of what stands beside the letters.
func (d *deadLetters) others() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, prefix := range []byte{prefixNote, prefixLeft} {
			for value, err := range d.values(context.Background(), prefix) {
				if !yield(value, err) {
					return
				}
			}
		}
	}
}

// putOther stores what others gave, synced.
func (d *deadLetters) putOther(value []byte) error {
	key, err := otherKey(value)
	if err != nil {
		return err
	}
	return d.db.Update(func(txn *badger.Txn) error { return txn.Set(key, value) })
}

// get gives the value of a key, nil if there is none.
func (d *deadLetters) get(key []byte) (value []byte, err error) {
	d.mu.Lock()
	txn := d.db.NewTransaction(false)
	d.mu.Unlock()
	defer txn.Discard()
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return item.ValueCopy(nil)
}

// letter gives one letter, nil if it is not there.
func (d *deadLetters) letter(id hit.ID) (*hit.DeadLetter, error) {
	value, err := d.get(deadKey(id))
	if err != nil || value == nil {
		return nil, err
	}
	return decodeDead(d.keys, value)
}

// note gives what imports have taken of a block.
func (d *deadLetters) note(k noteKey) (note, error) {
	value, err := d.get(k.bytes())
	if err != nil || value == nil {
		return nil, err
	}
	own, n, err := decodeNote(value)
	if err == nil && own != k {
		err = fmt.Errorf("%w: a note stands under another key", errDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("what was imported of block %016x-%d cannot be read: %w", k.generation, k.block, err)
	}
	return n, nil
}

// remember notes hits that an import has taken, synced. What was noted before stays
// so.
func (d *deadLetters) remember(ids []hit.ID) error {
	notes := make(map[noteKey]note)
	for _, id := range ids {
		k := noteKeyOf(id)
		n, ok := notes[k]
		if !ok {
			var err error
			if n, err = d.note(k); err != nil {
				return err
			}
		}
		notes[k] = n.with(id.Index)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for keys := slices.Collect(maps.Keys(notes)); len(keys) > 0; {
		err := d.db.Update(func(txn *badger.Txn) error {
			for size := 0; len(keys) > 0 && size < maxNotesRaw; keys = keys[1:] {
				value := encodeNote(keys[0], notes[keys[0]])
				if err := txn.Set(keys[0].bytes(), value); err != nil {
					return err
				}
				size += len(value) + noteRoom
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("remember what was imported: %w", err)
		}
	}
	return nil
}
