package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// The state of a stream is the newest whole snapshot in its newest shelf and the
// deltas after it. Where that is damaged it is derived from the next best source,
// in this order: an older snapshot in the shelf; the state at the end of an older
// shelf and all deltas since; the blocks, with everything in doubt.

// A load is a state being read from shelves.
type load struct {
	s  *stream
	st *state
	// repaired: the state is not what the shelf says, so it must be written anew.
	repaired bool
	// bytes of the deltas after the snapshot.
	bytes int64
}

// loadFrom reads the state from one shelf. It returns errIncomplete if no
// snapshot in it can be read.
func (s *stream) loadFrom(db *badger.DB) (l *load, err error) {
	defer func() {
		if p := recover(); p != nil {
			l, err = nil, fmt.Errorf("%w: a table cannot be read", ErrDamaged)
		}
	}()
	txn := db.NewTransaction(false)
	defer txn.Discard()
	st, err := s.loadSnapshot(txn)
	if err != nil {
		return nil, err
	}
	l = &load{s: s, st: st}
	if err := l.deltas(txn); err != nil {
		return nil, err
	}
	return l, l.adopt(txn, math.MaxUint64)
}

// deltas applies the deltas of a shelf after those that are applied already.
func (l *load) deltas(txn *badger.Txn) error {
	o := badger.DefaultIteratorOptions
	o.Prefix = []byte{prefixDelta}
	it := txn.NewIterator(o)
	defer it.Close()
	for it.Seek(deltaKey(l.st.seq + 1)); it.Valid(); it.Next() {
		key := it.Item().Key()
		if len(key) != deltaKeyLen {
			continue
		}
		seq := binary.BigEndian.Uint64(key[1:])
		var d *delta
		err := it.Item().Value(func(v []byte) (err error) {
			l.bytes += int64(len(v))
			d, err = decodeDelta(seq, v)
			return err
		})
		if errors.Is(err, errDamaged) {
			l.s.log.Error("a record of the queue's own is damaged", "seq", seq, "err", err)
			continue // a gap before the next one
		}
		if err != nil {
			return err
		}
		if seq != l.st.seq+1 {
			if err := l.gap(txn, seq, d); err != nil {
				return err
			}
		}
		l.st.apply(seq, d)
	}
	return nil
}

// gap goes on behind lost deltas. Which of the hits so far were settled or in
// flight is not known, so every one that is not settled may have been delivered.
// Blocks that only the lost deltas announced are counted from the blocks.
func (l *load) gap(txn *badger.Txn, seq uint64, d *delta) error {
	from := l.st.seq + 1
	if len(d.blocks) > 0 {
		if err := l.adopt(txn, d.blocks[0].number-1); err != nil {
			return err
		}
		l.skipTo(txn, d.blocks[0])
	}
	l.doubt()
	l.s.log.Error("part of the queue's own records is lost; hits that may have been delivered are marked as uncertain",
		"from", from, "to", seq-1, "blocks_up_to", l.st.doubtUntil)
	return nil
}

func (l *load) doubt() {
	l.st.doubtUntil = max(l.st.doubtUntil, l.st.lastNumber)
	l.repaired = true
}

// skipTo takes the running numbers from a block behind blocks that are lost.
func (l *load) skipTo(txn *badger.Txn, next blockMeta) {
	if next.number == l.st.lastNumber+1 {
		return
	}
	key := blockKey{clock: next.clock, generation: l.s.generation, number: next.number}
	item, err := txn.Get(key.bytes())
	if err != nil {
		return // found to be missing when it is read
	}
	_ = item.Value(func(v []byte) error {
		b, _, err := decodeHeader(key, v)
		if err == nil {
			l.runTo(&b)
		}
		return err
	})
}

// runTo takes the running numbers before a block. Hits between the last block
// and this one were accepted and are lost.
func (l *load) runTo(b *block) {
	if lost := int64(b.hitsBefore - l.st.hits); lost > 0 {
		l.st.total.accepted += lost
		l.st.hits = b.hitsBefore
	}
	l.st.bytes = max(l.st.bytes, b.byteBefore)
}

// adopt counts blocks up to a number that are there although no delta announces
// them: the delta is lost, or the transaction was torn before it was
// acknowledged. Both are kept, since one of them is a promise.
func (l *load) adopt(txn *badger.Txn, upTo uint64) error {
	o := badger.DefaultIteratorOptions
	o.PrefetchValues = false
	o.Prefix = []byte{prefixBlock}
	it := txn.NewIterator(o)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		key, ok := parseBlockKey(it.Item().Key())
		if !ok || key.number <= l.st.lastNumber || key.number > upTo {
			continue
		}
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			return err
		}
		b, sets, err := decodeBlock(l.s.keys, key, value)
		if errors.Is(err, errDamaged) {
			continue // found again, and reported, when it is read
		}
		if err != nil {
			return err
		}
		l.runTo(b)
		d := &delta{blocks: []blockMeta{{number: key.number, clock: key.clock, hits: b.hits, size: b.size}}}
		index := uint32(0)
		for _, set := range sets {
			for i := range set.Hits {
				by := tally{accepted: 1}
				if l.st.isSettled(key.number, index) {
					by.delivered = 1 // or invalid, or dead: that is lost
				}
				d.counts = append(d.counts, countChange{key: counterOf(&set.Hits[i]), by: by})
				index++
			}
		}
		l.st.apply(l.st.seq, d)
		l.repaired = true
	}
	return nil
}

// loadSnapshot gives the state of the newest snapshot of which every part is
// there, or errIncomplete.
func (s *stream) loadSnapshot(txn *badger.Txn) (*state, error) {
	o := badger.DefaultIteratorOptions
	o.Prefix = []byte{prefixSnapshot}
	o.Reverse = true
	it := txn.NewIterator(o)
	defer it.Close()
	var seq uint64
	chunks := map[int][]byte{}
	for it.Seek(snapshotKey(math.MaxUint64, math.MaxUint16)); it.Valid(); it.Next() {
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			return nil, err
		}
		p, err := decodePart(it.Item().Key(), value)
		if errors.Is(err, errDamaged) {
			s.log.Error("a snapshot of the queue's state is damaged; an older one is used", "err", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if p.seq != seq {
			seq = p.seq
			clear(chunks)
		}
		chunks[p.part] = p.chunk
		if p.part != 0 {
			continue
		}
		if st := joinParts(chunks, p.parts); st != nil && st.seq == seq {
			return st, nil
		}
	}
	return nil, errIncomplete
}

// joinParts gives the state in a snapshot, nil if a part is missing.
func joinParts(chunks map[int][]byte, parts int) *state {
	var raw []byte
	for i := range parts {
		chunk, ok := chunks[i]
		if !ok {
			return nil
		}
		raw = append(raw, chunk...)
	}
	st, err := decodeSnapshot(raw)
	if err != nil {
		return nil // not written by a version that knew how
	}
	return st
}

// A snapshotPiece is one part of a snapshot.
type snapshotPiece struct {
	seq         uint64
	part, parts int
	chunk       []byte
}

// partHeaderLen: sequence, part, number of parts.
const partHeaderLen = 8 + 2 + 2

// encodePart frames one part of a snapshot.
func encodePart(seq uint64, part, parts int, chunk []byte) []byte {
	b := make([]byte, frameLen, frameLen+partHeaderLen+len(chunk))
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint16(b, uint16(part))
	b = binary.LittleEndian.AppendUint16(b, uint16(parts))
	return seal(append(b, chunk...), kindSnapshot)
}

func decodePart(key, value []byte) (snapshotPiece, error) {
	p, err := unseal(value, kindSnapshot)
	if err != nil {
		return snapshotPiece{}, err
	}
	if len(p) < partHeaderLen {
		return snapshotPiece{}, fmt.Errorf("%w: part of a snapshot of %d bytes", errDamaged, len(p))
	}
	out := snapshotPiece{
		seq:   binary.LittleEndian.Uint64(p),
		part:  int(binary.LittleEndian.Uint16(p[8:])),
		parts: int(binary.LittleEndian.Uint16(p[10:])),
		chunk: p[partHeaderLen:],
	}
	if string(snapshotKey(out.seq, uint16(out.part))) != string(key) {
		return snapshotPiece{}, fmt.Errorf("%w: part of snapshot %d stands under another key", errDamaged, out.seq)
	}
	return out, nil
}

// derive makes the state of the newest shelf without a snapshot in it.
func (s *stream) derive(db *badger.DB) (*load, error) {
	newest := len(s.shelves) - 1
	for i := newest - 1; i >= 0; i-- {
		var l *load
		err := s.reading(s.shelves[i], func(db *badger.DB) (err error) {
			l, err = s.loadFrom(db)
			return err
		})
		if isForeign(err) {
			return nil, err
		}
		if err != nil {
			s.log.Error("an older shelf gives no state either", "shelf", filepath.Base(s.shelves[i].dir), "err", err)
			continue
		}
		for _, sh := range s.shelves[i+1:] {
			if err := s.continueIn(l, sh, db); err != nil {
				return nil, err
			}
		}
		l.repaired = true
		s.log.Error("the state of the queue was derived from an older shelf and the records since",
			"shelf", filepath.Base(s.shelves[i].dir), "uncertain_up_to", l.st.doubtUntil)
		return l, nil
	}
	return s.deriveFromBlocks()
}

// continueIn applies the deltas of one more shelf. db is that of the newest one,
// which is open already.
func (s *stream) continueIn(l *load, sh *shelf, db *badger.DB) error {
	apply := func(db *badger.DB) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%w: a table cannot be read", ErrDamaged)
			}
		}()
		txn := db.NewTransaction(false)
		defer txn.Discard()
		if err := l.deltas(txn); err != nil {
			return err
		}
		before := l.st.lastNumber
		if err := l.adopt(txn, math.MaxUint64); err != nil {
			return err
		}
		if l.st.lastNumber > before {
			l.doubt()
		}
		return nil
	}
	if sh == s.shelves[len(s.shelves)-1] {
		return apply(db)
	}
	return s.reading(sh, apply)
}

// reading calls use with an old shelf's database.
func (s *stream) reading(sh *shelf, use func(*badger.DB) error) error {
	db, err := sh.acquire()
	if err != nil {
		return err
	}
	return errors.Join(use(db), sh.release())
}

// deriveFromBlocks makes a state without any snapshot. The blocks say what was
// accepted, and the deltas that are left which hits of them are settled. What
// became of the hits of removed shelves is lost: they count as delivered. Every
// unsettled hit is in doubt.
func (s *stream) deriveFromBlocks() (*load, error) {
	l := &load{s: s, st: newState(), repaired: true}
	heads := map[uint64]block{}
	deltas := map[uint64]*delta{}
	err := s.eachValue(func(e entry) error {
		switch e.key[0] {
		case prefixBlock:
			key, _ := parseBlockKey(e.key)
			b, _, err := decodeHeader(key, e.value)
			heads[key.number] = b
			return err
		case prefixDelta:
			seq := binary.BigEndian.Uint64(e.key[1:])
			d, err := decodeDelta(seq, e.value)
			if err != nil {
				return err
			}
			d.counts, d.blocks, d.folds = nil, nil, nil
			deltas[seq] = d
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	st := l.st
	st.lastNumber = s.current().first.number - 1
	st.floor = st.lastNumber + 1
	if len(heads) > 0 {
		numbers := slices.Sorted(maps.Keys(heads))
		first, last := heads[numbers[0]], heads[numbers[len(numbers)-1]]
		st.floor, st.floorHits, st.floorBytes = first.key.number, first.hitsBefore, first.byteBefore
		st.lastNumber, st.lastClock = max(st.lastNumber, last.key.number), last.key.clock
		st.hits, st.bytes = last.hitsBefore+uint64(last.hits), last.byteBefore+uint64(last.size)
	}
	for _, seq := range slices.Sorted(maps.Keys(deltas)) {
		st.apply(seq, deltas[seq])
	}
	err = s.eachValue(func(e entry) error {
		if e.key[0] != prefixBlock {
			return nil
		}
		key, _ := parseBlockKey(e.key)
		if _, first := heads[key.number]; !first {
			return nil // it stands in a log and in a table
		}
		delete(heads, key.number)
		if st.isSettledWhole(key.number) {
			return nil // nor is its key asked for any more
		}
		b, sets, err := decodeBlock(s.keys, key, e.value)
		if errors.Is(err, errDamaged) {
			return nil // found again, and reported, when it is read
		}
		if err != nil {
			return err
		}
		index := uint32(0)
		for _, set := range sets {
			for i := range set.Hits {
				if !st.isSettled(b.key.number, index) {
					st.count(countChange{key: counterOf(&set.Hits[i]), by: tally{accepted: 1}})
				}
				index++
			}
		}
		return nil
	})
	st.total = tally{accepted: int64(st.hits), delivered: int64(st.hits) - st.pending()}
	l.doubt()
	s.log.Error("the state of the queue was derived from its blocks alone; every pending hit is marked as uncertain, "+
		"and what became of earlier ones is counted as delivered", "pending", st.pending())
	return l, err
}

// eachValue calls use with every value that verifies in the files of all shelves.
func (s *stream) eachValue(use func(entry) error) error {
	for _, sh := range s.shelves {
		files := sh.files()
		for e, err := range entriesIn(sh.dir) {
			if err != nil {
				return err
			}
			if !files.ours(&e) {
				continue
			}
			if err := use(e); err != nil {
				return fmt.Errorf("shelf %s: %w", filepath.Base(sh.dir), err)
			}
		}
	}
	return nil
}
