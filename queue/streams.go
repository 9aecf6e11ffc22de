package queue

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"sluice/internal/hit"
)

// A queue has several streams: the live hits and those of each import. Their hits are
// told apart by the generation in their ids, and handed out merged by the time at which
// they were received.

// streams is all streams of a queue. The live one never changes.
type streams struct {
	live *stream

	mu      sync.RWMutex
	imports []*importStream // guarded by mu; in the order in which they were begun
	joined  chan struct{}   // guarded by mu; closed when an import takes part in what is handed out
	batch   uint64          // guarded by mu; of the newest entry in a journal
}

// all gives the live stream, and then those of imports.
func (s *streams) all() []*stream {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*stream, 0, 1+len(s.imports))
	out = append(out, s.live)
	for _, i := range s.imports {
		out = append(out, i.stream)
	}
	return out
}

// of gives the stream that a generation belongs to, nil if it is none of this queue.
func (s *streams) of(generation uint64) *stream {
	if s.live.generation == generation {
		return s.live
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, i := range s.imports {
		if i.generation == generation {
			return i.stream
		}
	}
	return nil
}

// leased gives the streams whose hits are handed out, the live one last, and what is
// closed when there is one more.
func (s *streams) leased() ([]*stream, <-chan struct{}) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*stream
	for _, i := range s.imports {
		if i.complete() {
			out = append(out, i.stream)
		}
	}
	return append(out, s.live), s.joined
}

// nextBatch gives a number that no batch of any stream has.
func (s *streams) nextBatch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch++
	return s.batch
}

// Lease gives up to limit hits in the order in which they were received, blocking until
// there is at least one that was not leased before. Hits of an import take part once it
// is complete: then they come before what was received later, as far as that was not
// leased yet. Each hit is leased once a process; it stays the caller's until it is
// settled. It returns ctx's error when ctx ends, [ErrStopped] after the end,
// [ErrNewerFormat] for a block of a newer version, [ErrKey] for one that is encrypted
// with an unknown key.
func (q *Queue) Lease(ctx context.Context, limit int) ([]hit.Pending, error) {
	for {
		out, committed, joined, err := q.leaseNow(ctx, limit)
		if len(out) > 0 || err != nil {
			return out, err
		}
		select {
		case <-committed:
		case <-joined:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// leaseNow is Lease without waiting. Hits that come later come by the live stream, or
// with an import that joins.
func (q *Queue) leaseNow(ctx context.Context, limit int) (out []hit.Pending, committed, joined <-chan struct{}, err error) {
	q.leasing.Lock()
	defer q.leasing.Unlock()
	list, joined := q.leased()
	for _, s := range list {
		c, err := s.fill(ctx, limit)
		if err != nil {
			return nil, nil, nil, err
		}
		if s == q.live {
			committed = c
		}
	}
	out = merge(list, limit)
	for i := range out {
		site := countedSite(out[i].Site)
		q.given[site] = max(q.given[site], out[i].ReceivedAt)
	}
	if q.witness != nil {
		q.witness.since = append(q.witness.since, out...)
	}
	return out, committed, joined, nil
}

// merge hands out what the streams have read, by time, until one of them must read on.
// Of hits of the same time those of the stream that comes first in the list come first.
func merge(list []*stream, limit int) (out []hit.Pending) {
	list = slices.DeleteFunc(list, func(s *stream) bool { return len(s.reader.carry) == 0 })
	if len(list) == 1 {
		return list[0].reader.give(limit)
	}
	for len(out) < limit && len(list) > 0 {
		first, second := 0, -1
		for i := 1; i < len(list); i++ {
			switch at := list[i].reader.carry[0].ReceivedAt; {
			case at < list[first].reader.carry[0].ReceivedAt:
				first, second = i, first
			case second < 0 || at < list[second].reader.carry[0].ReceivedAt:
				second = i
			}
		}
		r := &list[first].reader
		upTo := list[second].reader.carry[0].ReceivedAt
		if first > second {
			upTo-- // the other one comes first
		}
		out = append(out, r.give(min(limit-len(out), r.before(upTo)))...)
		if len(r.carry) == 0 {
			break
		}
	}
	return out
}

// each calls f with the state of every stream in turn.
func (s *streams) each(f func(st *state)) {
	for _, one := range s.all() {
		one.mu.Lock()
		f(one.st)
		one.mu.Unlock()
	}
}

// byStream cuts a list into what belongs to each stream, in the order of the list. It
// returns the generation of none of them with the error.
func byStream[T any](q *Queue, list []T, id func(*T) hit.ID) (of []*stream, parts [][]T, err error) {
	for i := range list {
		g := id(&list[i]).Generation
		n := slices.IndexFunc(of, func(s *stream) bool { return s.generation == g })
		if n < 0 {
			s := q.of(g)
			if s == nil {
				return nil, nil, fmt.Errorf("%v: not a hit of this queue", id(&list[i]))
			}
			n = len(of)
			of, parts = append(of, s), append(parts, nil)
		}
		parts[n] = append(parts[n], list[i])
	}
	return of, parts, nil
}

// Journal writes down that hits are about to be sent and returns once that is
// synced. If the process ends before [Queue.Settle] is called with the batch,
// the hits come back as uncertain. The memo, a few bytes of the caller's own, is
// kept with them; nil = none.
func (q *Queue) Journal(ids []hit.ID, memo []byte) (batch uint64, err error) {
	of, parts, err := byStream(q, ids, func(id *hit.ID) hit.ID { return *id })
	if err != nil {
		return 0, fmt.Errorf("journal %w", err)
	}
	batch = q.nextBatch()
	for i, s := range of {
		if err := s.journal(batch, parts[i], memo, q.now().UnixNano()); err != nil {
			return 0, err
		}
	}
	return batch, nil
}

// Memo gives what [Queue.Journal] was given with a batch, in this process or in an
// earlier one; nil when the batch has ended, had none, or was lost with the
// journal.
func (q *Queue) Memo(batch uint64) []byte {
	for _, s := range q.all() {
		if e, open := s.inJournal(batch); open {
			return slices.Clone(e.memo)
		}
	}
	return nil
}

func (s *stream) inJournal(batch uint64) (journalEntry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, open := s.st.journal[batch]
	return e, open
}

// Settle ends the journal's batch and settles hits, in one transaction of each stream
// that is committed with the next group, within 100 ms. The settlements may cover a part
// of the batch or nothing: what is not settled is as if it had never been sent.
// Batch 0 stands for none.
//
// Dead letters are synced before Settle returns; on a full disk it waits for room
// with them. It returns an error, having changed nothing, if a hit is not leased
// or was settled before.
func (q *Queue) Settle(batch uint64, list []hit.Settlement) error {
	of, parts, err := byStream(q, list, func(s *hit.Settlement) hit.ID { return s.ID })
	if err != nil {
		return fmt.Errorf("settle %w", err)
	}
	if err := q.bury(list); err != nil {
		return err
	}
	q.claiming.Lock()
	deltas, err := claim(of, parts)
	q.claiming.Unlock()
	if err != nil {
		return err
	}
	if batch != 0 {
		for _, s := range q.all() {
			if _, open := s.inJournal(batch); !open {
				continue
			}
			n := slices.Index(of, s)
			if n < 0 {
				n = len(of)
				of, deltas = append(of, s), append(deltas, &delta{})
			}
			deltas[n].ends = append(deltas[n].ends, batch)
		}
	}
	q.inst.settled(list)
	for i, s := range of {
		if err := s.submit(&op{delta: *deltas[i]}); err != nil {
			return err
		}
	}
	return nil
}

// claim marks hits of several streams as being settled: all, or with an error none. The
// caller holds claiming.
func claim(of []*stream, parts [][]hit.Settlement) ([]*delta, error) {
	deltas := make([]*delta, len(of))
	for i, s := range of {
		var err error
		if deltas[i], err = s.track.judge(s.generation, parts[i]); err != nil {
			return nil, err
		}
	}
	for i, s := range of {
		s.track.take(deltas[i])
	}
	return deltas, nil
}
