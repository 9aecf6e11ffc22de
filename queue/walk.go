package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"sluice/internal/durable"
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
		next, more, err = s.walkShelf(ctx, sh, db, next, upTo, visit)
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
// go on with. Where Badger does not give the next block, whole, the shelf's files
// are read without it: one bad bit in a table can hide its neighbours.
func (s *stream) walkShelf(ctx context.Context, sh *shelf, db *badger.DB, next, upTo uint64, visit func(found) (bool, error)) (uint64, bool, error) {
	more := true
	var err error
	for next <= upTo {
		next, more, err = s.walkTables(ctx, sh, db, next, upTo, visit)
		if err != nil || !more || next > upTo {
			return next, more, err
		}
		next, more, err = s.walkFiles(ctx, sh, next, upTo, visit)
		if err != nil || !more {
			return next, more, err
		}
	}
	return next, true, nil
}

// walkTables visits blocks as long as Badger gives one whole block after the
// other. It returns the number of the first that it does not give.
func (s *stream) walkTables(ctx context.Context, sh *shelf, db *badger.DB, next, upTo uint64, visit func(found) (bool, error)) (uint64, bool, error) {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	o := badger.DefaultIteratorOptions
	o.PrefetchValues = false
	o.Prefix = []byte{prefixBlock}
	it := txn.NewIterator(o)
	defer it.Close()
	at := sh.hintFor(next)
	for {
		if err := ctx.Err(); err != nil {
			return next, false, err
		}
		key, value, ok := s.blockAt(it, at, next)
		if !ok || key.number != next || next > upTo {
			return next, true, nil
		}
		at = nil
		next++
		sh.setHint(key)
		if more, err := visit(found{key: key, value: value}); err != nil || !more {
			return next, false, err
		}
	}
}

// blockAt moves the iterator, to a key if there is one, else by one step, and
// gives the block there, skipping those below a number. It is not ok where there
// is none or where it does not verify.
func (s *stream) blockAt(it *badger.Iterator, at []byte, from uint64) (key blockKey, value []byte, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			ok = false // a table with damaged lengths
		}
	}()
	if at != nil {
		it.Seek(at)
	} else {
		it.Next()
	}
	for ; it.Valid(); it.Next() {
		key, ok := parseBlockKey(it.Item().Key())
		if !ok || key.number < from {
			continue
		}
		value, err := it.Item().ValueCopy(nil)
		if err != nil || key.generation != s.generation {
			return blockKey{}, nil, false
		}
		if _, _, err := decodeHeader(key, value); errors.Is(err, errDamaged) {
			return blockKey{}, nil, false
		}
		return key, value, true
	}
	return blockKey{}, nil, false
}

// walkFiles visits the blocks next..upTo, or as many of them as are read at once,
// from the shelf's files. What is not in them is visited as missing.
func (s *stream) walkFiles(ctx context.Context, sh *shelf, next, upTo uint64, visit func(found) (bool, error)) (uint64, bool, error) {
	aside, err := sh.readAside(next, upTo, s.generation)
	if err != nil {
		return next, false, err
	}
	for _, number := range slices.Sorted(maps.Keys(aside.blocks)) {
		if number < next || number > upTo {
			continue
		}
		if err := ctx.Err(); err != nil {
			return next, false, err
		}
		b := aside.blocks[number]
		if number > next {
			missing := next
			next = number
			if more, err := visit(found{key: b.key, missing: missing}); err != nil || !more {
				return next, false, err
			}
		}
		next = number + 1
		if more, err := visit(found{key: b.key, value: b.value}); err != nil || !more {
			return next, false, err
		}
	}
	if last := min(upTo, aside.to); next <= last {
		missing := next
		next = last + 1
		more, err := visit(found{key: blockKey{number: next}, missing: missing})
		return next, more && err == nil, err
	}
	return next, true, nil
}

// hintFor gives a key at or before that of a block.
func (s *shelf) hintFor(number uint64) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hint.number == 0 || s.hint.number > number {
		return []byte{prefixBlock}
	}
	return s.hint.bytes()
}

func (s *shelf) setHint(key blockKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hint = key
}

// asideBlocks are the blocks from..to as far as a shelf's files have them.
type asideBlocks struct {
	from, to uint64
	blocks   map[uint64]asideBlock
}

type asideBlock struct {
	key   blockKey
	value []byte
	whole bool
}

// maxAside is how many bytes of blocks are read at once without Badger.
const maxAside = 8 << 20

// readAside reads the blocks from..upTo, or the first of them, from the shelf's
// files. A damaged one is given under the number that its key says, if no whole
// one has that number. The result is kept for the next call.
func (s *shelf) readAside(from, upTo, generation uint64) (asideBlocks, error) {
	s.asideMu.Lock()
	defer s.asideMu.Unlock()
	if s.aside.blocks != nil && s.aside.from <= from && from <= s.aside.to {
		return s.aside, nil
	}
	s.log.log.Warn("blocks are looked for in the files of a shelf", "shelf", filepath.Base(s.dir), "from", from, "to", upTo)
	files := s.files()
	out := asideBlocks{from: from, to: upTo, blocks: map[uint64]asideBlock{}}
	size := 0
	for e, err := range entriesIn(s.dir) {
		if err != nil {
			return asideBlocks{}, err
		}
		whole := files.ours(&e)
		key, ok := parseBlockKey(e.key)
		if !ok || key.generation != generation || key.number < from || key.number > out.to {
			continue
		}
		if old, ok := out.blocks[key.number]; ok {
			if old.whole || !whole {
				continue
			}
			size -= len(old.value)
		}
		out.blocks[key.number] = asideBlock{key: key, value: slices.Clone(e.value), whole: whole}
		size += len(e.value)
		for size > maxAside && len(out.blocks) > 1 {
			last := slices.Max(slices.Collect(maps.Keys(out.blocks)))
			size -= len(out.blocks[last].value)
			delete(out.blocks, last)
			out.to = last - 1
		}
	}
	s.aside = out
	return out, nil
}

// quarantineBlock keeps the bytes of a block that cannot be read.
func (s *stream) quarantineBlock(key blockKey, value []byte) error {
	dir := filepath.Join(filepath.Dir(s.dir), "quarantine")
	if err := makeDir(dir); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%016x-%d.block", filepath.Base(s.dir), key.generation, key.number)
	return durable.WriteFile(filepath.Join(dir, name), value)
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
	return s.walkReadable(ctx, from, last, func(b *block, sets []*hit.RequestSet) bool {
		for _, p := range s.pendingOf(b, sets) {
			if !visit(p) {
				return false
			}
		}
		return true
	})
}

// walkReadable is walk for those who want the content of blocks, and pass over what is
// missing or damaged.
func (s *stream) walkReadable(ctx context.Context, from, last uint64, visit func(*block, []*hit.RequestSet) bool) error {
	return s.walk(ctx, from, last, func(f found) (bool, error) {
		if f.missing != 0 {
			return true, nil
		}
		b, sets, err := decodeBlock(s.keys, f.key, f.value)
		if errors.Is(err, errDamaged) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		return visit(b, sets), nil
	})
}
