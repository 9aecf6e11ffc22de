package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

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
	prefixDead = 'l'
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
	copyAt int64 // deadCopyAt

	mu     sync.Mutex // held while the database is written or exchanged
	db     *badger.DB
	number int
}

func openDeadLetters(dir string, log badgerLog) (*deadLetters, error) {
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
	d := &deadLetters{dir: dir, log: log, copyAt: deadCopyAt}
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
		err = d.shrink()
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

func deadKey(id hit.ID) []byte {
	b := binary.BigEndian.AppendUint64([]byte{prefixDead}, id.Generation)
	b = binary.BigEndian.AppendUint64(b, id.Block)
	return binary.BigEndian.AppendUint32(b, id.Index)
}

func encodeDead(l *hit.DeadLetter) []byte {
	return seal(hit.AppendDeadLetter(make([]byte, frameLen), l), kindDead)
}

func decodeDead(value []byte) (*hit.DeadLetter, error) {
	p, err := unseal(value, kindDead)
	if err != nil {
		return nil, err
	}
	l, err := hit.DecodeDeadLetter(slices.Clone(p))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return l, nil
}

// put stores letters, synced.
func (d *deadLetters) put(letters []*hit.DeadLetter) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range letters {
		err := d.db.Update(func(txn *badger.Txn) error { return txn.Set(deadKey(l.ID), encodeDead(l)) })
		if err != nil {
			return fmt.Errorf("store dead letter %v: %w", l.ID, err)
		}
	}
	return nil
}

// remove deletes letters, synced.
func (d *deadLetters) remove(ids []hit.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for chunk := range slices.Chunk(ids, 1000) {
		err := d.db.Update(func(txn *badger.Txn) error {
			for _, id := range chunk {
				if err := txn.Delete(deadKey(id)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("remove dead letters: %w", err)
		}
	}
	return nil
}

// all gives the letters that a filter chooses, in the order of their hits. One
// that cannot be read comes as an error and does not end the sequence.
func (d *deadLetters) all(ctx context.Context, f DeadFilter) iter.Seq2[*hit.DeadLetter, error] {
	return func(yield func(*hit.DeadLetter, error) bool) {
		d.mu.Lock()
		txn := d.db.NewTransaction(false)
		d.mu.Unlock()
		defer txn.Discard()
		o := badger.DefaultIteratorOptions
		o.Prefix = []byte{prefixDead}
		it := txn.NewIterator(o)
		defer it.Close()
		given := 0
		for it.Rewind(); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			var l *hit.DeadLetter
			err := it.Item().Value(func(v []byte) (err error) {
				l, err = decodeDead(v)
				return err
			})
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

// shrink copies the letters into a new database, verifies the copy and exchanges
// the two, if most of the old one is dead weight. A kill at any step leaves one
// whole database.
func (d *deadLetters) shrink() error {
	size := diskUsage(d.path(d.number))
	if size < d.copyAt {
		return nil
	}
	live := int64(0)
	for l, err := range d.all(context.Background(), DeadFilter{}) {
		if err != nil {
			return nil // damage is looked at by verify, not thrown away here
		}
		live += int64(len(encodeDead(l)))
	}
	if live*deadCopyRatio > size {
		return nil
	}
	if free, _, err := FreeSpace(d.dir); err != nil || free < size+hardFloor {
		return err // writing through mapped files on a full disk would kill the process
	}
	return d.exchange()
}

func (d *deadLetters) exchange() error {
	next := d.path(d.number + 1)
	tmp := next + copyMark
	db, err := openBadger(badgerOptions(tmp, d.log))
	if err != nil {
		return fmt.Errorf("copy dead letters: %w", err)
	}
	fresh := &deadLetters{db: db}
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
	d.db, err = openBadger(badgerOptions(next, d.log))
	return err
}

// bury stores the dead among the settlements. It does so before they are
// settled: a crash in between leaves a letter of a hit that is still pending,
// which reconcileDead removes.
func (q *Queue) bury(list []hit.Settlement) error {
	var letters []*hit.DeadLetter
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
			ID: e.ID, ReceivedAt: p.ReceivedAt, BuriedAt: q.now().UnixNano(),
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

// requeueChunk is how many letters travel in one transaction.
const requeueChunk = 500

// Requeue puts dead letters back at the end of the queue, in the order of their
// hits and with their own times, and gives how many. Each is put back once,
// whatever dies in between.
func (q *Queue) Requeue(ctx context.Context, f DeadFilter) (int, error) {
	var letters []*hit.DeadLetter
	for l, err := range q.dead.all(ctx, f) {
		if err != nil {
			return 0, err
		}
		letters = append(letters, l)
	}
	n := 0
	for chunk := range slices.Chunk(letters, requeueChunk) {
		var sets []*hit.RequestSet
		var ids []hit.ID
		for _, l := range chunk {
			sets = append(sets, &hit.RequestSet{ReceivedAt: l.ReceivedAt, Environment: l.Environment, Hits: []hit.Hit{l.Hit}})
			ids = append(ids, l.ID)
		}
		if err := q.live.append(ctx, sets, ids); err != nil {
			return n, fmt.Errorf("requeue: %w", err)
		}
		n += len(chunk)
		if err := q.forgetRequeued(ids); err != nil {
			return n, err
		}
	}
	return n, nil
}

// forgetRequeued removes letters that are pending again, then the note that they
// must be removed.
func (q *Queue) forgetRequeued(ids []hit.ID) error {
	if err := q.dead.remove(ids); err != nil {
		return err
	}
	return q.live.submit(&op{delta: delta{forgotten: ids}})
}

// reconcileDead brings dead letters and stream together after a crash between
// their transactions.
func (q *Queue) reconcileDead() error {
	s := q.live
	s.mu.Lock()
	var requeued []hit.ID
	for id := range s.st.requeued {
		requeued = append(requeued, id)
	}
	s.mu.Unlock()
	if len(requeued) > 0 {
		if err := q.forgetRequeued(requeued); err != nil {
			return err
		}
	}
	var stale []hit.ID
	for l, err := range q.dead.all(context.Background(), DeadFilter{}) {
		if err != nil {
			if errors.Is(err, ErrNewerFormat) {
				return err
			}
			q.log.Error("a dead letter cannot be read; it is left where it is", "err", err)
			continue
		}
		s.mu.Lock()
		pending := l.ID.Generation == q.generation && !s.st.isSettled(l.ID.Block, l.ID.Index)
		s.mu.Unlock()
		if pending {
			stale = append(stale, l.ID)
		}
	}
	if len(stale) == 0 {
		return nil
	}
	return q.dead.remove(stale)
}
