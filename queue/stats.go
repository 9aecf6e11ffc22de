package queue

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"sluice/internal/hit"
)

// Stats is what a queue holds and has done since its store was made. Numbers are
// exact and of one moment.
type Stats struct {
	Accepted, Delivered, Invalid, Dead, Pending int64 // hits
	// Uncertain is the pending hits that were in flight when the process last
	// ended and about which nothing was decided yet. Hits of which the journal
	// itself was lost ([DoubtLost]) are not counted.
	Uncertain int64
	// Difference is accepted - delivered - invalid - dead - pending, where pending
	// is counted from the blocks and the others by the counters. Anything but 0
	// means that hits are lost, or counted wrongly.
	Difference int64

	PendingBytes     int64 // of the blocks from the oldest pending hit on
	OldestReceivedAt int64 // Unix nanoseconds; 0 when nothing is pending
	OldestLiveAt     int64 // the same without imports, whose hits are old when they come

	DiskBytes int64 // used by the data directory
	FreeBytes int64 // above the reserve; negative below it
	Reserve   int64

	DamagedBlocks, MissingBlocks int64
	// DeadExpired and DeadRequeued are letters that have left since the store was
	// made. Of the Dead, which the expired stay among, DeadKept are still there.
	DeadKept, DeadExpired, DeadRequeued int64
	Blocks, Shelves                     int64 // pending blocks; shelves on disk
	SyncMean                            time.Duration
	Generation                          uint64
}

// usageEvery is how long a figure of the used disk space is good for.
const usageEvery = 5 * time.Second

type diskUsageCache struct {
	mu    sync.Mutex
	at    time.Time
	bytes int64
}

func (c *diskUsageCache) get(dir string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) > usageEvery {
		c.bytes, c.at = diskUsage(dir), time.Now()
	}
	return c.bytes
}

// Stats gives the queue's figures, of all streams. It costs one look at the oldest
// pending block of each when that is not leased.
func (q *Queue) Stats() Stats {
	out := Stats{Generation: q.generation}
	oldest := map[*stream]uint64{} // the floors of streams with pending hits
	for _, s := range q.all() {
		s.mu.Lock()
		st := s.st
		t := st.total
		out.Accepted += t.accepted
		out.Delivered += t.delivered
		out.Invalid += t.invalid
		out.Dead += t.dead
		out.Pending += t.pending()
		out.Difference += t.pending() - st.pending()
		out.PendingBytes += st.pendingBytes()
		out.DamagedBlocks += st.damaged
		out.MissingBlocks += st.missing
		out.Blocks += int64(st.lastNumber + 1 - min(st.floor, st.lastNumber+1))
		out.Shelves += int64(len(s.shelves))
		out.Uncertain += s.reader.uncertain(st)
		if st.pending() > 0 {
			oldest[s] = st.floor
		}
		s.mu.Unlock()
	}
	gone := q.dead.leftNow()
	out.DeadExpired, out.DeadRequeued = gone.expired, gone.requeued
	out.DeadKept = max(0, out.Dead-gone.expired)
	out.SyncMean = time.Duration(q.live.commitMean.Load())
	out.DiskBytes = q.usage.get(q.dir)
	out.FreeBytes, out.Reserve = q.guard.above(), q.guard.reserve
	for s, floor := range oldest {
		at := s.oldest(floor)
		if s == q.live {
			out.OldestLiveAt = at
		}
		if at != 0 && (out.OldestReceivedAt == 0 || at < out.OldestReceivedAt) {
			out.OldestReceivedAt = at
		}
	}
	return out
}

// uncertain counts the hits that are still in doubt.
func (r *leaseReader) uncertain(st *state) (n int64) {
	for number, list := range r.orphans {
		for _, o := range list {
			for i := uint64(o.from); i <= uint64(o.to); i++ {
				// A hit may stand in several batches; it counts in its newest.
				if !st.isSettled(number, uint32(i)) && r.leftIn(st, number, uint32(i)) == o.batch {
					n++
				}
			}
		}
	}
	return n
}

// oldest gives when the oldest pending hit was received.
func (s *stream) oldest(floor uint64) int64 {
	if l := s.track.find(floor); l != nil {
		return l.oldest
	}
	s.oldestMu.Lock()
	defer s.oldestMu.Unlock()
	if s.oldestFloor == floor {
		return s.oldestAt
	}
	at := int64(0)
	err := s.peek(context.Background(), floor, func(p hit.Pending) bool {
		at = p.ReceivedAt
		return false
	})
	if err != nil {
		return 0
	}
	s.oldestFloor, s.oldestAt = floor, at
	return at
}

// PendingOf gives how many hits of a site are pending.
func (q *Queue) PendingOf(site int64) (n int64) {
	q.each(func(st *state) { n += st.counters.pendingOf(countedSite(site)) })
	return n
}

// A Counter is what became of the hits of one site in one quarter hour of
// effective UTC time.
type Counter struct {
	Site    int64
	Quarter int64 // Unix seconds divided by 900
	// Accepted = Delivered + Invalid + Dead + what is pending.
	Accepted, Delivered, Invalid, Dead int64
}

// Counters gives all counters, sorted by site and quarter. Slots of which every
// hit has been settled for a week are no longer listed.
func (q *Queue) Counters() []Counter {
	var out []Counter
	q.each(func(st *state) {
		for k, t := range st.counters.all() {
			out = append(out, counterOfSlot(k, t))
		}
	})
	return addUp(out)
}

// Unsettled gives the counters of which hits are pending, sorted by site and quarter.
// Hits that were lost on the disk stay among the pending.
func (q *Queue) Unsettled() []Counter {
	var out []Counter
	q.each(func(st *state) { out = append(out, st.counters.unsettled()...) })
	return addUp(out)
}

// addUp sorts counters of several streams and adds up those of the same slot. It changes
// the list.
func addUp(list []Counter) []Counter {
	slot := func(a, b Counter) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Quarter, b.Quarter))
	}
	if !slices.IsSortedFunc(list, slot) { // of one stream they are
		slices.SortFunc(list, slot)
	}
	out := list[:0]
	for _, c := range list {
		if n := len(out) - 1; n >= 0 && slot(out[n], c) == 0 {
			out[n].Accepted += c.Accepted
			out[n].Delivered += c.Delivered
			out[n].Invalid += c.Invalid
			out[n].Dead += c.Dead
			continue
		}
		out = append(out, c)
	}
	return out
}

// Sums adds up a site's counters: of all quarters before one, those that are no
// longer listed included, and of these from another quarter on. It is of one moment,
// and whatever [Queue.Append] has returned for is in it. Site 0 stands for all hits
// whose site is no number that Matomo could have.
//
// exact is false when settled hits of later quarters are among all, because their
// counters are no longer listed.
func (q *Queue) Sums(site, from, before int64) (within, all Counter, exact bool) {
	var w, a tally
	exact = true
	q.each(func(st *state) {
		within, all, one := st.counters.sums(site, from, before)
		w, a, exact = w.plus(within), a.plus(all), exact && one
	})
	return counterOfSlot(counterKey{site, from}, w), counterOfSlot(counterKey{site, before}, a), exact
}

// A PeekFilter chooses pending hits. The zero value chooses all.
type PeekFilter struct {
	Site  *int64
	Limit int // 0 = no limit
	// After leaves out hits up to and including this one.
	After hit.ID
}

// Peek gives pending hits without leasing them, the live ones and then those of each
// import, each in the order of arrival.
func (q *Queue) Peek(ctx context.Context, f PeekFilter) iter.Seq2[hit.Pending, error] {
	return func(yield func(hit.Pending, error) bool) {
		given, stopped := 0, false
		list := q.all()
		if f.After.Block != 0 {
			// The hits of a stream that is gone have all been given.
			list = list[max(0, slices.IndexFunc(list, func(s *stream) bool { return s.generation == f.After.Generation })):]
		}
		for _, s := range list {
			after := f.After
			if after.Generation != s.generation {
				after = hit.ID{}
			}
			err := s.peek(ctx, after.Block, func(p hit.Pending) bool {
				if f.Site != nil && *f.Site != p.Site || after.Block != 0 && p.ID.Compare(after) <= 0 {
					return true
				}
				given++
				stopped = !yield(p, nil) || f.Limit != 0 && given >= f.Limit
				return !stopped
			})
			if stopped {
				return
			}
			if err != nil {
				yield(hit.Pending{}, err)
				return
			}
		}
	}
}

// Find gives one pending hit, or [ErrNotFound].
func (q *Queue) Find(ctx context.Context, id hit.ID) (hit.Pending, error) {
	var out hit.Pending
	err := ErrNotFound
	s := q.of(id.Generation)
	if s == nil || id.Block == 0 {
		return out, err
	}
	perr := s.peek(ctx, id.Block, func(p hit.Pending) bool {
		if p.ID == id {
			out, err = p, nil
		}
		return p.ID.Compare(id) < 0
	})
	return out, cmp.Or(perr, err)
}

// A Report is the outcome of [Queue.Verify].
type Report struct {
	Shelves, Blocks, Hits int64 // pending blocks that were read, and the hits in them
	Pending               int64 // of them, hits that are not settled
	Dead                  int64 // dead letters that were read
	// Problems is one sentence for each fault, empty if all is well.
	Problems []string
}

// Verify reads every pending block and every dead letter and compares what it
// finds with the counters. It takes no lease and may run beside everything else.
func (q *Queue) Verify(ctx context.Context) (*Report, error) {
	return verify(ctx, q)
}
