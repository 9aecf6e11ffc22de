package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// streamConfig is what a stream needs of its queue.
type streamConfig struct {
	dir        string
	generation uint64
	log        *slog.Logger
	now        func() time.Time
	guard      *guard
	inst       *instruments
	failed     func(error)
	limits     shelfLimits
}

// openStream opens the row of shelves in cfg.dir, or begins it, and starts the
// committer.
func openStream(cfg streamConfig) (*stream, error) {
	s := &stream{
		dir: cfg.dir, generation: cfg.generation, log: cfg.log, now: cfg.now, guard: cfg.guard,
		inst: cfg.inst, failed: cfg.failed, limits: cfg.limits,
		wake:      make(chan struct{}, 1),
		done:      make(chan struct{}),
		open:      &group{done: make(chan struct{})},
		taken:     make(chan struct{}),
		committed: make(chan struct{}),
		track:     tracker{blocks: map[uint64]*leasedBlock{}},
		pace:      pace{hits: 2 * maxLinger.Seconds()},
	}
	if err := makeDir(s.dir); err != nil {
		return nil, err
	}
	if err := s.listShelves(); err != nil {
		return nil, err
	}
	high, number, seq, err := openHighWater(filepath.Join(s.dir, "HIGH"))
	if err != nil {
		return nil, err
	}
	s.high = high
	if err := s.openNewest(); err != nil {
		return nil, errors.Join(err, high.close())
	}
	if err := s.settleDoubts(number, seq); err != nil {
		return nil, errors.Join(err, s.abandon())
	}
	s.clock = max(s.st.lastClock, s.current().first.clock-1)
	s.bornAt = time.Unix(0, int64(s.current().first.clock))
	s.lastBatch = s.st.lastBatch
	s.reader.setOrphans(s.st)
	go s.commitLoop() // ended by stop, or by the first error
	return s, nil
}

// abandon closes what an opening that failed has opened.
func (s *stream) abandon() error {
	return errors.Join(s.current().closeNow(), s.high.close())
}

// listShelves finds the shelves by their names, oldest first, and finishes
// removals that were under way.
func (s *stream) listShelves() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), goneMark) {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return err
			}
			continue
		}
		if first, ok := parseShelfName(e.Name()); ok && e.IsDir() {
			s.shelves = append(s.shelves, s.newShelf(first))
		}
	}
	slices.SortFunc(s.shelves, func(a, b *shelf) int { return strings.Compare(a.dir, b.dir) })
	for i := 1; i < len(s.shelves); i++ {
		if s.shelves[i].first.number < s.shelves[i-1].first.number {
			return fmt.Errorf("%w: shelf %s begins below the one before it", ErrDamaged, filepath.Base(s.shelves[i].dir))
		}
	}
	return nil
}

// openNewest opens the shelf to be written and loads the state from it.
func (s *stream) openNewest() error {
	for len(s.shelves) > 0 {
		sh := s.shelves[len(s.shelves)-1]
		st, err := s.openShelf(sh)
		if err == nil {
			s.st = st
			return nil
		}
		if !errors.Is(err, errIncomplete) {
			return fmt.Errorf("open shelf %s: %w", filepath.Base(sh.dir), err)
		}
		// The process died while it began this shelf: nothing is in it.
		s.log.Info("an unfinished shelf is removed; it held no hit", "shelf", filepath.Base(sh.dir))
		if _, err := sh.remove(); err != nil {
			return err
		}
		s.shelves = s.shelves[:len(s.shelves)-1]
	}
	s.st = newState()
	sh := s.newShelf(blockKey{clock: nextClock(0, s.now()), number: 1})
	s.shelves = append(s.shelves, sh)
	if err := makeDir(sh.dir); err != nil {
		return err
	}
	if err := sh.openWritable(); err != nil {
		return err
	}
	if err := s.writeSnapshot(sh.db); err != nil {
		return errors.Join(err, sh.db.Close())
	}
	return syncTree(sh.dir)
}

// openShelf opens a shelf for writing and gives the state that it holds. The
// shelf is closed again where that fails.
func (s *stream) openShelf(sh *shelf) (*state, error) {
	if err := sh.prepare(); err != nil {
		return nil, err
	}
	st, err := s.tryShelf(sh)
	if err == nil || errors.Is(err, errIncomplete) || errors.Is(err, ErrNewerFormat) {
		return st, err
	}
	if err := sh.rebuild(err); err != nil {
		return nil, err
	}
	return s.tryShelf(sh)
}

func (s *stream) tryShelf(sh *shelf) (*state, error) {
	if err := sh.openWritable(); err != nil {
		return nil, err
	}
	st, err := s.loadState(sh.db)
	if err == nil {
		err = sh.settleSalvage(st)
	}
	if err != nil {
		return nil, errors.Join(err, sh.closeNow())
	}
	return st, nil
}

// encodePart frames one part of a snapshot.
func encodePart(part, parts int, chunk []byte) []byte {
	b := make([]byte, frameLen, frameLen+4+len(chunk))
	b = binary.LittleEndian.AppendUint16(b, uint16(part))
	b = binary.LittleEndian.AppendUint16(b, uint16(parts))
	return seal(append(b, chunk...), kindSnapshot)
}

// loadState reads the newest whole snapshot and the deltas after it.
func (s *stream) loadState(db *badger.DB) (*state, error) {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	st, err := loadSnapshot(txn)
	if err != nil {
		return nil, err
	}
	o := badger.DefaultIteratorOptions
	o.Prefix = []byte{prefixDelta}
	it := txn.NewIterator(o)
	defer it.Close()
	bytes := int64(0)
	for it.Seek(deltaKey(st.seq + 1)); it.Valid(); it.Next() {
		seq := binary.BigEndian.Uint64(it.Item().Key()[1:])
		var d *delta
		err := it.Item().Value(func(v []byte) (err error) {
			bytes += int64(len(v))
			d, err = decodeDelta(v)
			return err
		})
		if errors.Is(err, errDamaged) || err == nil && seq != st.seq+1 {
			// What was settled or in flight in the lost transactions is not known:
			// every unsettled hit so far may have been delivered.
			s.log.Error("part of the queue's own records is lost; hits that may have been delivered are marked as uncertain",
				"from", st.seq+1, "to", seq, "err", err)
			st.doubtUntil = st.lastNumber
			if d == nil {
				continue
			}
			st.doubtUntil = max(st.doubtUntil, newestOf(d, st.lastNumber))
		} else if err != nil {
			return nil, err
		}
		st.apply(seq, d)
	}
	s.deltasSince, s.snapshotLen, s.written = bytes, 0, 0
	for _, t := range db.Tables() {
		s.written += int64(t.OnDiskSize)
	}
	return st, s.adopt(txn, st)
}

func newestOf(d *delta, last uint64) uint64 {
	for _, b := range d.blocks {
		last = max(last, b.number)
	}
	return last
}

// loadSnapshot gives the state of the newest snapshot of which every part is
// there, or errIncomplete.
func loadSnapshot(txn *badger.Txn) (*state, error) {
	o := badger.DefaultIteratorOptions
	o.Prefix = []byte{prefixSnapshot}
	o.Reverse = true
	it := txn.NewIterator(o)
	defer it.Close()
	var seq uint64
	var chunks [][]byte // last part first
	var damage error
	for it.Seek([]byte{prefixSnapshot, 0xff}); it.Valid(); it.Next() {
		key := it.Item().Key()
		if got := binary.BigEndian.Uint64(key[1:]); got != seq || chunks == nil {
			seq, chunks = got, [][]byte{}
		}
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			return nil, err
		}
		p, err := unseal(value, kindSnapshot)
		if err != nil || len(p) < 4 {
			if errors.Is(err, ErrNewerFormat) {
				return nil, err
			}
			damage = errors.Join(damage, err)
			continue
		}
		part, parts := int(binary.LittleEndian.Uint16(p)), int(binary.LittleEndian.Uint16(p[2:]))
		chunks = append(chunks, p[4:])
		if part != 0 || len(chunks) != parts {
			continue
		}
		slices.Reverse(chunks)
		return decodeSnapshot(slices.Concat(chunks...))
	}
	if damage != nil {
		return nil, fmt.Errorf("%w: no snapshot can be read: %w", ErrDamaged, damage)
	}
	return nil, errIncomplete
}

// adopt counts blocks that are there although no delta announces them. Only a
// repaired shelf has such: a lost delta, or a transaction that was torn before
// it was acknowledged. Both are kept, since one of them is a promise.
func (s *stream) adopt(txn *badger.Txn, st *state) error {
	o := badger.DefaultIteratorOptions
	o.PrefetchValues = false
	o.Prefix = []byte{prefixBlock}
	it := txn.NewIterator(o)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		key, ok := parseBlockKey(it.Item().Key())
		if !ok || key.number <= st.lastNumber {
			continue
		}
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			return err
		}
		b, sets, err := decodeBlock(key, value)
		if errors.Is(err, errDamaged) {
			continue // found again, and reported, when it is read
		}
		if err != nil {
			return err
		}
		d := &delta{blocks: []blockMeta{{number: key.number, clock: key.clock, hits: b.hits, size: b.size}}}
		for _, set := range sets {
			for i := range set.Hits {
				d.counts = append(d.counts, countChange{key: counterOf(&set.Hits[i]), by: tally{accepted: 1}})
			}
		}
		st.apply(st.seq, d)
	}
	return nil
}

// settleDoubts compares the state with the high-water file. What was committed
// and is not there was lost by the disk.
func (s *stream) settleDoubts(number, seq uint64) error {
	st := s.st
	if number <= st.lastNumber && seq <= st.seq {
		return nil
	}
	d := &delta{}
	if seq > st.seq {
		d.doubtUntil = st.lastNumber
	}
	if number > st.lastNumber {
		// Numbers go on above the lost ones, so that ids are never used twice and
		// the hole stays visible.
		d.spans = append(d.spans, span{from: st.lastNumber + 1, to: number, hitsAfter: st.hits, byteAfter: st.bytes})
	}
	s.log.Error("the end of the queue is lost: the disk did not keep what it had synced",
		"blocks", number-min(number, st.lastNumber), "last", st.lastNumber, "was", number)
	value := encodeDelta(nil, d)
	next := max(st.seq, seq) + 1
	st.seq = next - 1
	if err := s.writeSnapshot(s.current().db); err != nil {
		return err
	}
	err := s.current().db.Update(func(txn *badger.Txn) error { return txn.Set(deltaKey(next), value) })
	if err != nil {
		return err
	}
	st.apply(next, d)
	return nil
}
