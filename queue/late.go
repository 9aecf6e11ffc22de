package queue

import (
	"context"
	"errors"
	"maps"
	"math/bits"

	"sluice/internal/hit"
)

// Matomo continues a visit only in order, so hits of an import that are older than hits
// which their visitors have in Matomo already are counted before the import is handed out.

// A LateJudge tells which hits of one import are late: older than others of their
// visitors. Its methods are called one at a time.
type LateJudge interface {
	// Handed is told of hits that were handed out and may not be in Matomo yet.
	Handed(hits []hit.Pending)
	// Late says of each hit whether a newer one of its visitor is among those, or, with
	// recorded, in Matomo. An error says that it cannot be known now.
	Late(ctx context.Context, hits []hit.Pending, recorded bool) ([]bool, error)
}

// lateChunk is how many hits are judged at once.
const lateChunk = 5000

// A siteJudge is for want of one that knows visitors.
type siteJudge map[int64]int64 // by site, Unix nanoseconds

// JudgeBySite gives a judge that takes a hit for late if a hit of its site that came later
// was handed out. What an earlier process has handed out it knows to a quarter of an hour:
// it may find too many late.
func (q *Queue) JudgeBySite() LateJudge {
	q.leasing.Lock()
	defer q.leasing.Unlock()
	return q.judgeBySite()
}

// judgeBySite is JudgeBySite for those who hold leasing.
func (q *Queue) judgeBySite() LateJudge { return siteJudge(maps.Clone(q.given)) }

// Handed is part of [LateJudge].
func (j siteJudge) Handed(hits []hit.Pending) {
	for i := range hits {
		site := countedSite(hits[i].Site)
		j[site] = max(j[site], hits[i].ReceivedAt)
	}
}

// Late is part of [LateJudge].
func (j siteJudge) Late(_ context.Context, hits []hit.Pending, _ bool) ([]bool, error) {
	late := make([]bool, len(hits))
	for i := range hits {
		late[i] = hits[i].ReceivedAt < j[countedSite(hits[i].Site)]
	}
	return late, nil
}

// A lateCount counts the late hits of an import while others are handed out.
type lateCount struct {
	q      *Queue
	stream *stream
	judge  LateJudge
	late   []uint64      // bits, by the place of a hit in the import
	since  []hit.Pending // guarded by leasing: what was handed out while the import was read
}

// begin makes known to the judge what was handed out and is not settled, and has noted
// what is handed out from now on.
func (c *lateCount) begin(ctx context.Context) error {
	c.q.leasing.Lock()
	c.q.witness = c
	if c.judge == nil {
		c.judge = c.q.judgeBySite()
	}
	list, _ := c.q.leased()
	ends := make([]hit.ID, len(list)) // the first that is not handed out yet
	for n, s := range list {
		if ends[n] = (hit.ID{Generation: s.generation, Block: s.reader.next}); len(s.reader.carry) > 0 {
			ends[n] = s.reader.carry[0].ID
		}
	}
	c.q.leasing.Unlock()
	for n, s := range list {
		var handed []hit.Pending
		err := s.peek(ctx, 0, func(p hit.Pending) bool {
			if p.ID.Compare(ends[n]) >= 0 {
				return false
			}
			if handed = append(handed, p); len(handed) == lateChunk {
				c.judge.Handed(handed)
				handed = handed[:0]
			}
			return true
		})
		if err != nil {
			return err
		}
		c.judge.Handed(handed)
	}
	return nil
}

// read judges all hits of the import.
func (c *lateCount) read(ctx context.Context, recorded bool) error {
	place := 0
	var chunk []hit.Pending
	judge := func() error {
		late, err := c.judge.Late(ctx, chunk, recorded)
		for i := range late {
			if at := place + i; late[i] {
				for at/64 >= len(c.late) {
					c.late = append(c.late, 0)
				}
				c.late[at/64] |= 1 << (at % 64)
			}
		}
		place += len(chunk)
		chunk = chunk[:0]
		return err
	}
	var failed error
	err := c.stream.peek(ctx, 0, func(p hit.Pending) bool {
		if chunk = append(chunk, p); len(chunk) == lateChunk {
			failed = judge()
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	return judge()
}

// end judges anew by what was handed out meanwhile. The caller holds leasing.
func (c *lateCount) end(ctx context.Context) error {
	if len(c.since) == 0 {
		return nil
	}
	c.judge.Handed(c.since)
	return c.read(ctx, false)
}

func (c *lateCount) count() (n int64) {
	for _, word := range c.late {
		n += int64(bits.OnesCount64(word))
	}
	return n
}
