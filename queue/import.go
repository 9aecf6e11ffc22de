package queue

import (
	"context"
	"errors"
	"fmt"

	"sluice/internal/hit"
)

// Import takes hits of an export into the queue, in their order and with their own
// times, and gives what became of each. A hit that was taken is durable, and so is
// the note of its id: whatever dies in between, no id is imported twice. A hit that
// is buried here leaves the letters, and what is given for it is sent.
//
// When it cannot go on, it gives the outcomes of the hits before the one where it
// stopped, and the error: [ErrFull], [ErrStopped] or ctx's, or that of a note that
// cannot be read. Imports run one after the other.
func (q *Queue) Import(ctx context.Context, hits []hit.Pending, order hit.ImportOrder) ([]hit.Imported, error) {
	q.leaving.Lock()
	defer q.leaving.Unlock()
	if err := q.commitSettlements(); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	j := &importJudge{q: q, again: order.Again, seen: map[hit.ID]bool{}, notes: map[noteKey]note{}}
	outcomes := make([]hit.Imported, 0, len(hits))
	var list []returning
	var places []int // of the list in hits
	for i := range hits {
		p := &hits[i]
		r := returningOf(p.ID, p.ReceivedAt, p.Environment, &p.Hit, false)
		outcome, err := j.judge(p, r.size)
		if err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
		outcomes = append(outcomes, outcome)
		if outcome == hit.ImportTaken || outcome == hit.ImportRequeued {
			r.requeued = outcome == hit.ImportRequeued
			list, places = append(list, r), append(places, i)
		}
	}
	if order.DryRun {
		return outcomes, nil
	}
	for run := range runs(list) {
		if err := q.putBack(ctx, run); err != nil {
			return outcomes[:places[0]], fmt.Errorf("import: %w", err)
		}
		places = places[len(run):]
	}
	return outcomes, nil
}

// An importJudge decides about the hits of one import.
type importJudge struct {
	q     *Queue
	again bool
	seen  map[hit.ID]bool
	notes map[noteKey]note // as far as they were read
}

func (j *importJudge) judge(p *hit.Pending, size int) (hit.Imported, error) {
	id := p.ID
	own := j.q.of(id.Generation) != nil
	if id.Generation == 0 || id.Block == 0 || id.Index >= maxBlockHits {
		return hit.ImportBadID, nil
	}
	if size > maxBlockRaw {
		return hit.ImportTooLarge, nil
	}
	if j.seen[id] {
		return hit.ImportBefore, nil
	}
	if own && j.q.waits(id) {
		return hit.ImportWaiting, nil
	}
	if own {
		outcome, buried, err := j.buried(p)
		if err != nil || buried {
			j.seen[id] = outcome == hit.ImportRequeued
			return outcome, err
		}
	}
	before, err := j.imported(id)
	switch {
	case err != nil:
		return 0, err
	case before:
		return hit.ImportBefore, nil
	case own && !j.again:
		return hit.ImportKnown, nil
	case p.Uncertain != 0 && !j.again:
		return hit.ImportUncertain, nil
	}
	j.seen[id] = true
	return hit.ImportTaken, nil
}

// buried looks for the hit among the letters.
func (j *importJudge) buried(p *hit.Pending) (outcome hit.Imported, found bool, err error) {
	l, err := j.q.dead.letter(p.ID)
	switch {
	case errors.Is(err, errDamaged):
		return hit.ImportRequeued, true, nil // the export has what the letter has lost
	case err != nil || l == nil:
		return 0, false, err
	case counterOf(&l.Hit) != counterOf(&p.Hit):
		return hit.ImportMoved, true, nil
	}
	return hit.ImportRequeued, true, nil
}

// imported reports whether an import has taken the hit.
func (j *importJudge) imported(id hit.ID) (bool, error) {
	s := j.q.live
	s.mu.Lock()
	_, noting := s.st.imported[id]
	s.mu.Unlock()
	if noting {
		return true, nil
	}
	k := noteKeyOf(id)
	n, ok := j.notes[k]
	if !ok {
		var err error
		if n, err = j.q.dead.note(k); err != nil {
			return false, err
		}
		j.notes[k] = n
	}
	return n.has(id.Index), nil
}

// waits reports whether a hit of this store is pending, as far as its block was not
// lost, or is pending again.
func (q *Queue) waits(id hit.ID) bool {
	if q.isReturned(id) {
		return true
	}
	s := q.of(id.Generation)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lost := range s.st.spans {
		if lost.from <= id.Block && id.Block <= lost.to {
			return false
		}
	}
	return id.Block <= s.st.lastNumber && !s.st.isSettled(id.Block, id.Index)
}
