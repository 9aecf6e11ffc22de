package queue

import (
	"cmp"
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
	keys       Keys
}

// openStream opens the row of shelves in cfg.dir, or begins it, and starts the
// committer.
func openStream(cfg streamConfig) (*stream, error) {
	s := &stream{
		dir: cfg.dir, generation: cfg.generation, log: cfg.log, now: cfg.now, guard: cfg.guard,
		inst: cfg.inst, failed: cfg.failed, limits: cfg.limits, keys: cfg.keys,
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
	l, err := s.openNewest()
	if err != nil {
		return nil, errors.Join(err, high.close())
	}
	l.compare(number, seq)
	if err := s.start(l); err != nil {
		return nil, errors.Join(err, s.abandon())
	}
	s.clock = max(s.st.lastClock, s.current().first.clock-1)
	s.bornAt = time.Unix(0, int64(s.current().first.clock))
	s.guard.pending.Add(s.st.pendingBytes())
	s.reader.setOrphans(s.st)
	go s.commitLoop() // ended by stop, or by the first error
	return s, nil
}

// abandon closes what an opening that failed has opened.
func (s *stream) abandon() error {
	return errors.Join(s.current().closeNow(), s.high.close())
}

// start takes over a loaded state. One that is not what the shelf says is
// written down, under a sequence number of its own: a snapshot is never written
// twice, and the gap before it tells a later opening that had to go back behind
// it that something was repaired here.
func (s *stream) start(l *load) error {
	s.st = l.st
	s.deltasSince = l.bytes
	for _, t := range s.current().db.Tables() {
		s.written += int64(t.OnDiskSize)
	}
	if !l.repaired {
		return nil
	}
	s.st.seq++
	return s.writeSnapshot(s.current().db)
}

// listShelves finds the shelves by their names, oldest first, and finishes
// removals and rebuilds that were under way.
func (s *stream) listShelves() error {
	if err := finishRebuilds(s.dir, newBadgerLog(s.log, s.fail)); err != nil {
		return err
	}
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
		first, ok := parseShelfName(e.Name())
		switch {
		case ok && e.IsDir():
			s.shelves = append(s.shelves, s.newShelf(first))
		case e.Name() != "HIGH":
			s.log.Error("something that is no shelf lies among the shelves; it is left alone", "name", e.Name())
		}
	}
	slices.SortFunc(s.shelves, func(a, b *shelf) int { return strings.Compare(a.dir, b.dir) })
	for i := 1; i < len(s.shelves); i++ {
		a, b := s.shelves[i-1], s.shelves[i]
		if b.first.number <= a.first.number {
			return fmt.Errorf("%w: shelves %s and %s claim the same blocks; move the one that is not this queue's out of %s",
				ErrDamaged, filepath.Base(a.dir), filepath.Base(b.dir), s.dir)
		}
	}
	return nil
}

// openNewest opens the shelf to be written and loads the state.
func (s *stream) openNewest() (*load, error) {
	lost := false
	for len(s.shelves) > 0 {
		sh := s.current()
		db, l, err := s.openShelf(sh)
		if errors.Is(err, errUnfinished) || errors.Is(err, errNothing) {
			if errors.Is(err, errUnfinished) {
				s.log.Info("an unfinished shelf is removed; it held no hit", "shelf", filepath.Base(sh.dir))
			} else {
				lost = true
				s.log.Error("nothing in a shelf can be read; it is kept in quarantine", "shelf", filepath.Base(sh.dir))
			}
			if _, err := sh.remove(); err != nil {
				return nil, err
			}
			s.shelves = s.shelves[:len(s.shelves)-1]
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open shelf %s: %w", filepath.Base(sh.dir), err)
		}
		sh.write(db)
		if lost {
			l.doubt()
		}
		return l, nil
	}
	return s.firstShelf()
}

// firstShelf begins the row.
func (s *stream) firstShelf() (*load, error) {
	s.st = newState()
	sh := s.newShelf(blockKey{clock: nextClock(0, s.now()), number: 1})
	s.shelves = append(s.shelves, sh)
	if err := makeDir(sh.dir); err != nil {
		return nil, err
	}
	if err := sh.openWritable(); err != nil {
		return nil, err
	}
	if err := s.writeSnapshot(sh.db); err != nil {
		return nil, errors.Join(err, sh.closeNow())
	}
	return &load{s: s, st: s.st}, syncTree(sh.dir)
}

var (
	// errUnfinished: the process died while it began this shelf.
	errUnfinished = errors.New("unfinished shelf")
	// errNothing: a shelf was rebuilt, and nothing was left.
	errNothing = errors.New("nothing is left in the shelf")
)

// openShelf opens the newest shelf for writing and loads the state, deriving
// where it must. The shelf is closed again where that fails.
func (s *stream) openShelf(sh *shelf) (*badger.DB, *load, error) {
	files := sh.files()
	db, rebuilt, err := files.open()
	if err != nil {
		return nil, nil, err
	}
	l, err := s.loadFrom(db)
	holds, herr := holdsRecords(db)
	older := len(s.shelves) > 1 || sh.first.number == 1
	if errors.Is(err, errIncomplete) && !holds && herr == nil && !rebuilt && older {
		return nil, nil, errors.Join(errUnfinished, files.log.close(db))
	}
	if !rebuilt && (isDamage(err) || herr != nil || err == nil && l.repaired) {
		// The files may prove more than Badger gives.
		if err := files.log.close(db); err != nil {
			return nil, nil, err
		}
		if db, err = files.reopen(cmp.Or(err, herr, errShort)); err != nil {
			return nil, nil, err
		}
		l, err = s.loadFrom(db)
		if holds, herr = holdsRecords(db); herr != nil {
			return nil, nil, errors.Join(herr, files.log.close(db))
		}
	}
	if errors.Is(err, errIncomplete) {
		if !holds && older {
			return nil, nil, errors.Join(errNothing, files.log.close(db))
		}
		l, err = s.derive(db)
	}
	if err != nil {
		return nil, nil, errors.Join(err, files.log.close(db))
	}
	return db, l, nil
}

// holdsRecords reports whether a shelf holds a block or a delta.
func holdsRecords(db *badger.DB) (holds bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: a table cannot be read", ErrDamaged)
		}
	}()
	err = db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false
		it := txn.NewIterator(o)
		defer it.Close()
		for _, prefix := range []byte{prefixBlock, prefixDelta} {
			it.Seek([]byte{prefix})
			holds = holds || it.ValidForPrefix([]byte{prefix})
		}
		return nil
	})
	return holds, err
}

// compare compares the state with the high-water file. What was committed and is
// not there was lost by the disk.
func (l *load) compare(number, seq uint64) {
	st := l.st
	if number <= st.lastNumber && seq <= st.seq {
		return
	}
	l.s.log.Error("the end of the queue is lost: the disk did not keep what it had synced",
		"blocks", number-min(number, st.lastNumber), "last", st.lastNumber, "was", number)
	d := &delta{}
	if seq > st.seq {
		d.doubtUntil = st.lastNumber
	}
	if number > st.lastNumber {
		// Numbers go on above the lost ones, so that ids are never used twice and
		// the hole stays visible.
		d.spans = append(d.spans, span{from: st.lastNumber + 1, to: number, hitsAfter: st.hits, byteAfter: st.bytes})
	}
	st.apply(max(st.seq, seq)+1, d)
	l.repaired = true
}
