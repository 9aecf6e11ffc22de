package queue

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"sluice/internal/hit"
)

// A found block is one step of a walk: a block, or a hole in the numbers.
type found struct {
	key   blockKey
	value []byte // copied
	// missing, if not zero, is the first of the numbers that are not there; the
	// last is key.number - 1. key and value are then not set but for the number.
	missing uint64
}

// walk visits the blocks from..last in order, holes included, until visit
// returns false. It reads one shelf at a time in short read transactions. last
// must have been committed before walk is called: a number above it is not a
// hole but simply newer than the walk.
func (s *stream) walk(ctx context.Context, from, last uint64, visit func(found) (bool, error)) error {
	next := from
	for next <= last {
		sh, end := s.shelfOf(next)
		upTo := min(last, end)
		db, err := sh.acquire()
		if errors.Is(err, errRemoved) {
			// Drained meanwhile: everything it held is settled.
			s.mu.Lock()
			next = max(next, s.st.floor)
			s.mu.Unlock()
			continue
		}
		if err != nil {
			return err
		}
		more := true
		next, more, err = walkShelf(ctx, db, next, upTo, visit)
		if rerr := sh.release(); err == nil {
			err = rerr
		}
		s.mu.Lock()
		drained := len(s.shelves) > 1 && s.st.floor >= s.shelves[1].first.number
		s.mu.Unlock()
		if drained {
			s.nudge()
		}
		if err != nil {
			return fmt.Errorf("read shelf %s: %w", filepath.Base(sh.dir), err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// shelfOf gives the shelf that holds a number, and the last number it can hold.
func (s *stream) shelfOf(number uint64) (*shelf, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := len(s.shelves) - 1
	for i > 0 && s.shelves[i].first.number > number {
		i--
	}
	if i+1 < len(s.shelves) {
		return s.shelves[i], s.shelves[i+1].first.number - 1
	}
	return s.shelves[i], 1<<64 - 1
}

// walkShelf visits the blocks next..upTo of one shelf. It returns the number to
// go on with.
func walkShelf(ctx context.Context, db *badger.DB, next, upTo uint64, visit func(found) (bool, error)) (uint64, bool, error) {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	o := badger.DefaultIteratorOptions
	o.PrefetchValues = false
	o.Prefix = []byte{prefixBlock}
	it := txn.NewIterator(o)
	defer it.Close()
	for it.Rewind(); it.Valid() && next <= upTo; it.Next() {
		key, ok := parseBlockKey(it.Item().Key())
		if !ok || key.number < next {
			continue
		}
		if err := ctx.Err(); err != nil {
			return next, false, err
		}
		if key.number > upTo {
			break
		}
		if key.number > next {
			if more, err := visit(found{key: key, missing: next}); err != nil || !more {
				return next, false, err
			}
		}
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			// The entry is there and cannot be read: damage, not a reason to stop.
			value = nil
		}
		next = key.number + 1
		if more, err := visit(found{key: key, value: value}); err != nil || !more {
			return next, false, err
		}
	}
	if next <= upTo && upTo != 1<<64-1 {
		missing := next
		next = upTo + 1
		more, err := visit(found{key: blockKey{number: next}, missing: missing})
		return next, more && err == nil, err
	}
	return next, true, nil
}

// quarantineBlock keeps the bytes of a block that cannot be read.
func (s *stream) quarantineBlock(key blockKey, value []byte) error {
	dir := filepath.Join(filepath.Dir(s.dir), "quarantine")
	if err := makeDir(dir); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%016x-%d.block", filepath.Base(s.dir), key.generation, key.number)
	return writeFileDurably(filepath.Join(dir, name), value)
}

// pendingOf gives the unsettled hits of a decoded block.
func (s *stream) pendingOf(b *block, sets []*hit.RequestSet) []hit.Pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.key.number < s.st.floor {
		return nil
	}
	out := make([]hit.Pending, 0, b.hits)
	index := uint32(0)
	for _, set := range sets {
		for i := range set.Hits {
			if !s.st.isSettled(b.key.number, index) {
				out = append(out, hit.Pending{
					ID:          hit.ID{Generation: b.key.generation, Block: b.key.number, Index: index},
					ReceivedAt:  set.ReceivedAt,
					Environment: &set.Environment,
					Hit:         set.Hits[i],
					Uncertain:   s.reader.doubt(s.st, b.key.number, index),
				})
			}
			index++
		}
	}
	return slices.Clip(out)
}

// peek visits the unsettled hits from block number on, without leasing them.
func (s *stream) peek(ctx context.Context, from uint64, visit func(hit.Pending) bool) error {
	s.mu.Lock()
	from, last := max(from, s.st.floor), s.st.lastNumber
	s.mu.Unlock()
	return s.walk(ctx, from, last, func(f found) (bool, error) {
		if f.missing != 0 {
			return true, nil
		}
		b, sets, err := decodeBlock(f.key, f.value)
		if errors.Is(err, errDamaged) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		for _, p := range s.pendingOf(b, sets) {
			if !visit(p) {
				return false, nil
			}
		}
		return true, nil
	})
}
