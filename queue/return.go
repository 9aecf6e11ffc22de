package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"sluice/internal/hit"
)

// Hits come back to the end of the queue from the dead letters and from exports.
// Two databases change then, and not in one transaction: the stream says in the
// same transaction as the new hits which ids they came from, then the letters are
// removed or the ids noted, then the stream forgets. A crash in between is made
// good at the opening, by reconcileDead.

// returnChunk is how many hits come back in one transaction, or leave in one.
const returnChunk = 500

// An origin says where hits that are appended come from; none for those of a
// request.
type origin struct {
	requeued []hit.ID // letters: their hits were counted as accepted before
	imported []hit.ID
}

// A returning hit comes back, with the id that it had.
type returning struct {
	id       hit.ID
	set      *hit.RequestSet
	size     int // of the set, encoded
	requeued bool
}

func returningOf(id hit.ID, receivedAt int64, e *hit.Environment, h *hit.Hit, requeued bool) returning {
	set := &hit.RequestSet{ReceivedAt: receivedAt, Environment: *e, Hits: []hit.Hit{*h}}
	return returning{id, set, len(hit.AppendRequestSet(nil, set)), requeued}
}

// runs cuts hits, in their order, into what one transaction may take.
func runs(list []returning) iter.Seq[[]returning] {
	return func(yield func([]returning) bool) {
		for len(list) > 0 {
			n, size := 1, list[0].size
			for n < min(len(list), returnChunk) && list[n].requeued == list[0].requeued && size+list[n].size <= maxBlockRaw {
				size += list[n].size
				n++
			}
			if !yield(list[:n]) {
				return
			}
			list = list[n:]
		}
	}
}

// putBack appends one run and settles with the other database.
func (q *Queue) putBack(ctx context.Context, run []returning) error {
	var sets []*hit.RequestSet
	var ids []hit.ID
	for _, r := range run {
		sets, ids = append(sets, r.set), append(ids, r.id)
	}
	if run[0].requeued {
		if err := q.live.append(ctx, sets, origin{requeued: ids}); err != nil {
			return err
		}
		q.inst.requeued.Add(len(ids))
		if err := q.live.awaitRoom(); err != nil {
			return err
		}
		return q.forgetRequeued(ids)
	}
	if err := q.live.append(ctx, sets, origin{imported: ids}); err != nil {
		return err
	}
	q.inst.imported.Add(len(ids))
	if err := q.live.awaitRoom(); err != nil {
		return err
	}
	return q.noteImported(ids)
}

// Requeue puts dead letters back at the end of the queue, in the order of their
// hits and with their own times, and gives how many. Each is put back once,
// whatever dies in between and whoever else asks for it.
func (q *Queue) Requeue(ctx context.Context, f DeadFilter) (int, error) {
	q.leaving.Lock()
	defer q.leaving.Unlock()
	if err := q.commitSettlements(); err != nil {
		return 0, fmt.Errorf("requeue: %w", err)
	}
	var list []returning
	for l, err := range q.dead.all(ctx, f) {
		if err != nil {
			return 0, err
		}
		if q.isSettled(l.ID) && !q.isReturned(l.ID) {
			list = append(list, returningOf(l.ID, l.ReceivedAt, &l.Environment, &l.Hit, true))
		}
	}
	n := 0
	for run := range runs(list) {
		if err := q.putBack(ctx, run); err != nil {
			return n, fmt.Errorf("requeue: %w", err)
		}
		n += len(run)
	}
	return n, nil
}

// commitSettlements makes sure that the hits of all letters are settled which were
// handed in before: a letter is stored first.
func (q *Queue) commitSettlements() error {
	if !q.guard.mayWrite() {
		return ErrFull
	}
	for _, s := range q.running() {
		err := s.submitAndWait(&op{})
		if errors.Is(err, ErrStopped) && s != q.live && q.Err() == nil {
			continue // an import that is drained: all of it is committed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isReturned reports whether a letter's hit is pending again and only the letter
// was not removed yet.
func (q *Queue) isReturned(id hit.ID) bool {
	s := q.live
	s.mu.Lock()
	defer s.mu.Unlock()
	_, returned := s.st.requeued[id]
	return returned
}

// forgetRequeued removes letters that are pending again, then the note that they
// must be removed.
func (q *Queue) forgetRequeued(ids []hit.ID) error {
	if err := q.dead.remove(ids, requeued); err != nil {
		return err
	}
	return q.live.submit(&op{delta: delta{forgotten: ids}})
}

// noteImported remembers for ever what was imported, then drops the stream's own
// note of it.
func (q *Queue) noteImported(ids []hit.ID) error {
	if err := q.dead.remember(ids); err != nil {
		return err
	}
	return q.live.submit(&op{delta: delta{noted: ids}})
}

// reconcileDead brings dead letters, notes and stream together after a crash
// between their transactions.
func (q *Queue) reconcileDead() error {
	s := q.live
	s.mu.Lock()
	var requeued, imported []hit.ID
	for id := range s.st.requeued {
		requeued = append(requeued, id)
	}
	for id := range s.st.imported {
		imported = append(imported, id)
	}
	s.mu.Unlock()
	if len(requeued) > 0 {
		if err := q.forgetRequeued(requeued); err != nil {
			return err
		}
	}
	if len(imported) > 0 {
		err := q.noteImported(imported)
		if errors.Is(err, errDamaged) {
			q.log.Error("what was imported cannot be noted; the stream goes on remembering it", "err", err)
		} else if err != nil {
			return err
		}
	}
	return q.removeStale()
}

// removeStale removes the letters of hits that are still pending.
func (q *Queue) removeStale() error {
	var ids []hit.ID
	for l, err := range q.dead.all(context.Background(), DeadFilter{}) {
		if err != nil {
			if isForeign(err) {
				return err
			}
			q.log.Error("a dead letter cannot be read; it is left where it is", "err", err)
			continue
		}
		if !q.isSettled(l.ID) {
			ids = append(ids, l.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return q.dead.remove(ids, stale)
}

// isSettled reports whether a hit of this store is done with. One of another store
// is not of this stream at all.
func (q *Queue) isSettled(id hit.ID) bool {
	s := q.of(id.Generation)
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.isSettled(id.Block, id.Index)
}
