package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"sluice/internal/hit"
)

// A DeadFilter chooses dead letters. The zero value chooses all.
type DeadFilter struct {
	IDs    []hit.ID
	Site   *int64
	Reason string
	// UpTo leaves out what was buried from a later hit on, so that an action
	// reaches only what its caller has seen.
	UpTo *hit.ID
	// Limit is the most letters to give; 0 means no limit.
	Limit int
}

func (f *DeadFilter) match(l *hit.DeadLetter) bool {
	return (len(f.IDs) == 0 || slices.Contains(f.IDs, l.ID)) &&
		(f.Site == nil || *f.Site == l.Hit.Site) &&
		(f.Reason == "" || f.Reason == l.Reason) &&
		(f.UpTo == nil || l.ID.Compare(*f.UpTo) <= 0)
}

const (
	// deadCopyAt is the size on disk from which on the dead letters are copied to
	// a new database, if little of it is alive: without compaction nothing that is
	// removed gives its space back.
	deadCopyAt    = 64 << 20
	deadCopyRatio = 4
)

// deadLetters is a database of its own, since a letter may outlive every shelf.
// Its directory holds numbered generations of it; the highest finished one
// counts.
type deadLetters struct {
	dir    string
	log    badgerLog
	keys   Keys
	copyAt int64 // deadCopyAt

	mu     sync.Mutex // held while the database is written or exchanged
	db     *badger.DB
	number int
	// left is written under mu only.
	left atomic.Pointer[left]
}

func openDeadLetters(dir string, log badgerLog, keys Keys) (*deadLetters, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	if err := finishRebuilds(dir, log); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	d := &deadLetters{dir: dir, log: log, keys: keys, copyAt: deadCopyAt}
	var found []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasSuffix(e.Name(), copyMark) {
			// A copy that was not finished; its source is whole.
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
			continue
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil || n < 1 || path != d.path(n) || !e.IsDir() {
			log.log.Warn("something that is not the queue's lies among the dead letters; it is left alone", "name", e.Name())
			continue
		}
		found = append(found, path)
		d.number = max(d.number, n)
	}
	d.number = max(d.number, 1)
	if err := makeDir(d.path(d.number)); err != nil {
		return nil, err
	}
	files := &dbFiles{dir: d.path(d.number), log: log, kinds: deadKinds}
	if d.db, _, err = files.open(); err != nil {
		return nil, fmt.Errorf("open dead letters: %w", err)
	}
	err = syncTree(d.path(d.number))
	for _, path := range found {
		if path != d.path(d.number) { // it was exchanged for the newer one
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	if err == nil {
		err = d.loadLeft()
	}
	if err != nil {
		return nil, errors.Join(err, d.log.close(d.db))
	}
	return d, nil
}

// copyMark ends the name of a copy that is being made.
const copyMark = ".new"

func (d *deadLetters) path(n int) string { return filepath.Join(d.dir, fmt.Sprintf("%06d", n)) }

func (d *deadLetters) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.close(d.db)
}

// put stores letters, synced.
func (d *deadLetters) put(letters []*hit.DeadLetter) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range letters {
		err := d.db.Update(func(txn *badger.Txn) error { return txn.Set(deadKey(l.ID), encodeDead(l, d.keys.first())) })
		if err != nil {
			return fmt.Errorf("store dead letter %v: %w", l.ID, err)
		}
	}
	return nil
}

// A departure is why letters are removed.
type departure int

const (
	stale     departure = iota // the hit was never settled
	requeued                   // the hit is pending again
	outOfDate                  // the hit was kept for as long as it should be
)

// remove deletes letters, synced, and counts those that were there in the same
// transactions.
func (d *deadLetters) remove(ids []hit.ID, why departure) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for chunk := range slices.Chunk(ids, returnChunk) {
		l := d.leftNow()
		err := d.db.Update(func(txn *badger.Txn) error {
			there := int64(0)
			for _, id := range chunk {
				switch _, err := txn.Get(deadKey(id)); {
				case errors.Is(err, badger.ErrKeyNotFound):
					continue
				case err != nil:
					return err
				}
				if err := txn.Delete(deadKey(id)); err != nil {
					return err
				}
				there++
			}
			switch why {
			case stale:
				return nil
			case requeued:
				l.requeued += there
			case outOfDate:
				l.expired += there
			}
			return txn.Set(leftKey, encodeLeft(l))
		})
		if err != nil {
			return fmt.Errorf("remove dead letters: %w", err)
		}
		d.left.Store(&l)
	}
	return nil
}

// all gives the letters that a filter chooses, in the order of their hits. One
// that cannot be read comes as an error and does not end the sequence.
func (d *deadLetters) all(ctx context.Context, f DeadFilter) iter.Seq2[*hit.DeadLetter, error] {
	return func(yield func(*hit.DeadLetter, error) bool) {
		given := 0
		for value, err := range d.values(ctx, prefixDead) {
			var l *hit.DeadLetter
			if err == nil {
				l, err = decodeDead(d.keys, value)
			}
			if err == nil && !f.match(l) {
				continue
			}
			if !yield(l, err) {
				return
			}
			if given++; f.Limit > 0 && given == f.Limit {
				return
			}
		}
	}
}

// values gives copies of what is stored under a prefix, in the order of the keys.
func (d *deadLetters) values(ctx context.Context, prefix byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		d.mu.Lock()
		txn := d.db.NewTransaction(false)
		d.mu.Unlock()
		defer txn.Discard()
		o := badger.DefaultIteratorOptions
		o.Prefix = []byte{prefix}
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			if !yield(it.Item().ValueCopy(nil)) {
				return
			}
		}
	}
}

// empty reports whether no letter is there, readable or not.
func (d *deadLetters) empty() bool {
	for range d.values(context.Background(), prefixDead) {
		return false
	}
	return true
}

// renew copies the letters, and what stands beside them, into a new database, verifies the copy and exchanges
// the two, if most of the old one is dead weight or if a letter is not encrypted as
// letters are written now. A kill at any step leaves one whole database. It reports
// whether all letters are as they would be written now; where there is damage or no
// room, they are left as they are.
func (d *deadLetters) renew() (current bool, err error) {
	size := diskUsage(d.path(d.number))
	key := d.keys.first()
	if size < d.copyAt && key == nil {
		return true, nil
	}
	live, other := int64(0), 0
	for value, err := range d.others() {
		if err == nil {
			_, err = otherKey(value)
		}
		if err != nil {
			return false, nil // as below
		}
		live += int64(len(value))
	}
	for value, err := range d.values(context.Background(), prefixDead) {
		if err == nil {
			_, err = decodeDead(d.keys, value)
		}
		if err != nil {
			return false, nil // damage is looked at by verify, not thrown away here
		}
		live += int64(len(value))
		if key != nil && !key.hasEncrypted(value) {
			other++
		}
	}
	if other == 0 && (size < d.copyAt || live*deadCopyRatio > size) {
		return true, nil
	}
	if free, _, err := FreeSpace(d.dir); err != nil || free < size+hardFloor {
		return other == 0, err // writing through mapped files on a full disk would kill the process
	}
	if other > 0 {
		d.log.log.Info("the dead letters are encrypted with the key in use", "letters", other, "key", key.id)
	}
	return true, d.exchange()
}

func (d *deadLetters) exchange() error {
	next := d.path(d.number + 1)
	tmp := next + copyMark
	db, err := openBadger(badgerOptions(tmp, d.log))
	if err != nil {
		return fmt.Errorf("copy dead letters: %w", err)
	}
	fresh := &deadLetters{db: db, keys: d.keys}
	copied := 0
	for l, err := range d.all(context.Background(), DeadFilter{}) {
		if err == nil {
			err = fresh.put([]*hit.DeadLetter{l})
		}
		if err != nil {
			return errors.Join(err, d.log.close(db))
		}
		copied++
	}
	for value, err := range d.others() {
		if err == nil {
			err = fresh.putOther(value)
		}
		if err != nil {
			return errors.Join(err, d.log.close(db))
		}
		copied++
	}
	if err := d.log.close(db); err != nil {
		return err
	}
	if err := syncTree(tmp); err != nil {
		return err
	}
	if db, err = openBadger(badgerOptions(tmp, d.log)); err != nil {
		return fmt.Errorf("verify the copy of the dead letters: %w", err)
	}
	fresh.db = db
	verified := 0
	for _, err := range fresh.all(context.Background(), DeadFilter{}) {
		if err != nil {
			return errors.Join(err, d.log.close(db))
		}
		verified++
	}
	for value, err := range fresh.others() {
		if err == nil {
			_, err = otherKey(value)
		}
		if err != nil {
			return errors.Join(err, d.log.close(db))
		}
		verified++
	}
	if err := d.log.close(db); err != nil {
		return err
	}
	if verified != copied {
		return fmt.Errorf("%w: the copy of the dead letters holds %d of %d", ErrDamaged, verified, copied)
	}
	if err := os.Rename(tmp, next); err != nil {
		return err
	}
	if err := syncTree(next); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.log.close(d.db); err != nil {
		return err
	}
	if err := os.RemoveAll(d.path(d.number)); err != nil {
		return err
	}
	d.number++
	if db, err = openBadger(badgerOptions(next, d.log)); err != nil {
		return err // d.db is closed, and may be closed again
	}
	d.db = db
	return nil
}

// bury stores the dead among the settlements. It does so before they are
// settled: a crash in between leaves a letter of a hit that is still pending,
// which reconcileDead removes.
func (q *Queue) bury(list []hit.Settlement) error {
	var letters []*hit.DeadLetter
	at := q.buryingTime()
	for i := range list {
		e := &list[i]
		if e.As != hit.Dead {
			continue
		}
		p, err := q.Find(context.Background(), e.ID)
		if err != nil {
			return fmt.Errorf("bury %v: %w", e.ID, err)
		}
		letters = append(letters, &hit.DeadLetter{
			ID: e.ID, ReceivedAt: p.ReceivedAt, BuriedAt: at,
			Environment: *p.Environment, Hit: p.Hit,
			Reason: e.Reason, Status: e.Status, Answer: e.Answer[:min(len(e.Answer), hit.MaxAnswer)],
		})
	}
	if len(letters) == 0 {
		return nil
	}
	if err := q.live.awaitRoom(); err != nil {
		return err
	}
	return q.dead.put(letters)
}

// Dead gives the dead letters that f chooses, in the order of their hits. A
// letter that cannot be read comes as an error and does not end the sequence.
func (q *Queue) Dead(ctx context.Context, f DeadFilter) iter.Seq2[*hit.DeadLetter, error] {
	return q.dead.all(ctx, f)
}
