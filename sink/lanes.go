package sink

import (
	"container/heap"
	"maps"
	"math"
	"time"
)

// lanes keep leased hits in order until they are settled. Hits that conflict are in
// one lane; links.go says which do. They belong to the goroutine of Run and do no
// I/O.
//
// A lane is in exactly one condition: ready (its head may be sent, and the lane
// stands in the heap of its head's group), held (its head must wait for a time),
// busy (hits of it are in flight), in doubt (its head may be in Matomo already;
// somebody else will say), or dry (all its hits are parked). A held lane and one in
// doubt are blocked.
type lanes struct {
	bySite map[int64]*siteLanes
	ready  map[group]*laneHeap
	taken  map[group]time.Time // when a batch was taken last
	held   laneHeap

	seq    uint64
	stream int64 // the stream's time, Unix seconds
	swept  int64 // of stream, when idle sites were last looked for
	mask   uint8 // the mask that hits' marks were made with
	marks  int   // that all sites have links for
	hits   int   // in memory
	bytes  int
	doubt  int // hits in doubt
	parked int // hits
	stuck  int // hits in memory of blocked lanes

	dry []*lane // that want parked hits back
	// freed is what was parked since it was last asked for.
	freed size

	// Set by the owner. single reports whether a hit must travel alone; share is how
	// many hits a blocked lane may have in memory, stuckMost how many all of them may
	// have before that is one, parkedMost how many may be parked.
	single                       func(*item) bool
	share, stuckMost, parkedMost int
	marksMost                    int
}

type lane struct {
	site   *siteLanes
	number int64
	node   uint32  // one of its marks; not used for a site's whole lane
	items  []*item // in order; settled ones are dropped when they reach the head
	// parked hits follow the items. rereading: the first ones of them are on their way
	// into memory.
	parked    parkedHits
	rereading bool
	pending   int // hits, parked ones and those on the way included
	busy      int // hits in flight
	until     time.Time
	into      *lane // the lane that this one was merged into

	next    int  // while a batch is taken: the first item not taken
	touched bool // while a batch is taken
	counted int  // in lanes.stuck
	wants   bool // stands in lanes.dry
	key     int64
	heap    *laneHeap // nil when it stands in none
	pos     int
}

// A place is where a hit stands in the lanes.
type place struct {
	seq    uint64 // in the order of arrival within this process
	lane   *lane  // or one that was merged into it
	lot    *lane  // as it was when the hit was taken to be sent; to be compared only
	marks  visitorMarks
	mask   uint8 // that the marks were made with
	late   bool
	epoch  uint32
	leased int64 // of the stream's time
	flying bool
	away   bool // parked
}

func newLanes() *lanes {
	return &lanes{
		bySite: map[int64]*siteLanes{}, ready: map[group]*laneHeap{}, taken: map[group]time.Time{}, single: func(it *item) bool { return it.alone },
		share: laneShare, stuckMost: math.MaxInt, parkedMost: maxParked, marksMost: maxMarks,
	}
}

// top gives the lane that a lane has become part of.
func (ln *lane) top() *lane {
	for ln.into != nil {
		if ln.into.into != nil {
			ln.into = ln.into.into
		}
		ln = ln.into
	}
	return ln
}

// add appends a hit to its lane, where it conflicts with several after all of them.
// horizon is what [lanes.take] says.
func (l *lanes) add(it *item, now time.Time, horizon int64) {
	l.seq++
	it.seq = l.seq
	s := l.enter(it)
	ln := l.laneFor(s, it, now, horizon)
	it.lane = ln
	s.pending++
	ln.pending++
	l.hits++
	l.bytes += it.size()
	if it.doubt {
		l.doubt++
	}
	if ln.parked.len() > 0 || ln.rereading {
		l.parkNew(ln, it)
		return
	}
	ln.items = append(ln.items, it)
	switch {
	case len(ln.items) == 1 && ln.busy == 0:
		l.place(ln, now, horizon)
	case ln.counted > 0:
		ln.counted++
		l.stuck++
		l.evict(ln)
	}
}

// oldest gives when the oldest hit of a lane was leased.
func (ln *lane) oldest() int64 {
	at := int64(math.MaxInt64)
	for _, it := range ln.items {
		at = min(at, it.leased)
	}
	return min(at, ln.parked.oldest())
}

// merge makes one lane of two, in an order that keeps each one's own. a may be nil.
func (l *lanes) merge(a, b *lane, now time.Time, horizon int64) *lane {
	if a == nil {
		return b
	}
	if len(a.items)+a.parked.len() < len(b.items)+b.parked.len() {
		a, b = b, a
	}
	for _, ln := range [...]*lane{a, b} {
		if ln.heap != nil {
			heap.Remove(ln.heap, ln.pos)
		}
		l.stuck -= ln.counted
		ln.counted = 0
	}
	a.items = mergeItems(a.items, b.items)
	a.parked.merge(&b.parked)
	a.pending += b.pending
	a.busy += b.busy
	a.rereading = a.rereading || b.rereading
	if b.until.After(a.until) {
		a.until = b.until
	}
	b.into, b.items = a, nil
	l.place(a, now, horizon)
	return a
}

// mergeItems merges b into a by the order of arrival, from behind: as a rule few of
// a are newer than the first of b.
func mergeItems(a, b []*item) []*item {
	i, j := len(a)-1, len(b)-1
	a = append(a, b...)
	for k := len(a) - 1; j >= 0; k-- {
		if i >= 0 && a[i].seq > b[j].seq {
			a[k] = a[i]
			i--
		} else {
			a[k] = b[j]
			j--
		}
	}
	return a
}

// left takes note that a hit is settled and gone from its lane.
func (l *lanes) left(it *item) {
	ln := it.lane.top()
	s := ln.site
	ln.pending--
	s.pending--
	if it.marks.unknown {
		s.blind--
	}
	if it.epoch == s.epoch {
		s.links.settled(&it.marks)
	} else {
		s.unlinked--
	}
	l.hits--
	l.bytes -= it.size()
}

// place puts a lane where its head belongs.
func (l *lanes) place(ln *lane, now time.Time, horizon int64) {
	if ln.heap != nil {
		heap.Remove(ln.heap, ln.pos)
	}
	l.stuck -= ln.counted
	ln.counted = 0
	if ln.busy > 0 {
		l.want(ln)
		return
	}
	l.unpark(ln)
	for len(ln.items) > 0 && ln.items[0].settled {
		ln.items[0] = nil
		ln.items = ln.items[1:]
		l.unpark(ln)
	}
	if len(ln.items) == 0 {
		if ln.pending > 0 {
			l.want(ln)
		} else if s := ln.site; s.whole != ln {
			if root := s.links.find(ln.node); s.lanes[root] == ln {
				delete(s.lanes, root)
			}
		}
		return
	}
	head := ln.items[0]
	if head.doubt {
		l.block(ln)
		return
	}
	until := ln.until
	if head.At > horizon {
		// The horizon moves with the clock, so the difference is the wait.
		if at := now.Add(time.Duration(min(head.At-horizon, maxHoldSeconds)) * time.Second); at.After(until) {
			until = at
		}
	}
	if until.After(now) {
		ln.key = until.UnixNano()
		heap.Push(&l.held, ln)
		l.block(ln)
		return
	}
	h := l.ready[head.group]
	if h == nil {
		h = &laneHeap{}
		l.ready[head.group] = h
	}
	ln.key = int64(head.seq)
	heap.Push(h, ln)
	l.want(ln)
}

// maxHoldSeconds keeps the arithmetic of a hit from the far future in range; the
// lane is looked at again then.
const maxHoldSeconds = 3600

// wake makes held lanes ready whose time has come, and gives the time at which
// the next one's comes; zero when none is held.
func (l *lanes) wake(now time.Time, horizon int64) time.Time {
	for l.held.Len() > 0 {
		ln := l.held[0]
		if at := time.Unix(0, ln.key); at.After(now) {
			return at
		}
		ln.until = time.Time{}
		l.place(ln, now, horizon)
	}
	return time.Time{}
}

// A size says how large a batch may be, or how much of something there is.
type size struct{ hits, bytes int }

// take removes the oldest hits that may travel together from ready lanes and
// marks their lanes busy. It gives nil when no lane is ready. horizon is the
// latest Unix second that Matomo's clock has surely reached.
func (l *lanes) take(limit size, now time.Time, horizon int64) []*item {
	h := l.nextHeap(now)
	if h == nil {
		return nil
	}
	var batch []*item
	var touched []*lane
	bytes := envelopeOverhead
	g := (*h)[0].items[0].group
	l.noteTaken(g, now)
	for h.Len() > 0 && len(batch) < limit.hits {
		ln := heap.Pop(h).(*lane)
		if !ln.touched {
			ln.touched, ln.next = true, 0
			touched = append(touched, ln)
		}
		stop := int64(math.MaxInt64)
		if h.Len() > 0 {
			stop = (*h)[0].key
		}
		for ; ln.next < len(ln.items); ln.next++ {
			it := ln.items[ln.next]
			if it.settled {
				continue
			}
			if it.group != g || it.doubt || it.At > horizon || len(batch) >= limit.hits {
				break
			}
			if int64(it.seq) > stop {
				ln.key = int64(it.seq)
				heap.Push(h, ln)
				break
			}
			size := len(it.element) + 1
			if len(batch) > 0 && (bytes+size > limit.bytes || l.single(it)) {
				break
			}
			it.lot = ln
			batch = append(batch, it)
			bytes += size
			if l.single(it) {
				limit.hits = 1
			}
		}
		if bytes >= limit.bytes {
			break
		}
	}
	for _, it := range batch {
		it.flying = true
		it.lane.top().busy++
	}
	// A lane may have been touched and given nothing; only those with hits in the
	// batch are busy.
	for _, ln := range touched {
		ln.touched = false
		l.place(ln, now, horizon)
	}
	if h.Len() == 0 {
		delete(l.ready, g)
	}
	return batch
}

// groupPause is how long a group is passed over after one of its batches was taken,
// while another has more lanes ready: else the few hits of a small group, scattered
// over the stream, would each end a batch of their own.
const groupPause = time.Second

// nextHeap gives the heap to take from: the one with the oldest head of those that
// were not taken from just now, else the largest. It is nil when no lane is ready.
func (l *lanes) nextHeap(now time.Time) *laneHeap {
	var oldest, largest *laneHeap
	for g, h := range l.ready {
		if h.Len() == 0 {
			continue
		}
		if now.Sub(l.taken[g]) >= groupPause && (oldest == nil || (*h)[0].key < (*oldest)[0].key) {
			oldest = h
		}
		if largest == nil || h.Len() > largest.Len() || h.Len() == largest.Len() && (*h)[0].key < (*largest)[0].key {
			largest = h
		}
	}
	if oldest != nil {
		return oldest
	}
	return largest
}

// noteTaken remembers when a group's batch was taken.
func (l *lanes) noteTaken(g group, now time.Time) {
	if len(l.taken) > maxTaken {
		maps.DeleteFunc(l.taken, func(_ group, at time.Time) bool { return now.Sub(at) >= groupPause })
	}
	l.taken[g] = now
}

// maxTaken is how many groups are remembered before old ones are let go.
const maxTaken = 1024

// readyLanes counts the lanes whose head may be sent.
func (l *lanes) readyLanes() int {
	n := 0
	for _, h := range l.ready {
		n += h.Len()
	}
	return n
}

// idle reports whether no lane is ready.
func (l *lanes) idle() bool { return l.nextHeap(time.Time{}) == nil }

// release ends the flight of hits: what is settled leaves, and the lanes are placed
// again. It gives what left, in hits and bytes.
func (l *lanes) release(batch []*item, now time.Time, horizon int64) (hits, bytes int) {
	for _, it := range batch {
		if it.flying {
			it.flying = false
			it.lane.top().busy--
		}
		if it.doubt {
			l.doubt++
		}
	}
	return l.leave(batch, now, horizon)
}

// cleared ends the doubt about hits: they are settled, or absent from Matomo and
// to be sent again. It gives what left, in hits and bytes.
func (l *lanes) cleared(items []*item, now time.Time, horizon int64) (hits, bytes int) {
	for _, it := range items {
		it.doubt = false
		l.doubt--
	}
	return l.leave(items, now, horizon)
}

func (l *lanes) leave(items []*item, now time.Time, horizon int64) (hits, bytes int) {
	hits, bytes = l.hits, l.bytes
	for _, it := range items {
		if it.settled {
			l.left(it)
		}
	}
	hits, bytes = hits-l.hits, bytes-l.bytes
	for _, it := range items {
		// Placing a lane twice is harmless.
		if ln := it.lane.top(); ln.heap == nil {
			l.place(ln, now, horizon)
		}
	}
	return hits, bytes
}

// hold keeps a hit's lane back until a time. The lane must not be busy.
func (l *lanes) hold(it *item, until, now time.Time, horizon int64) {
	if ln := it.lane.top(); ln.busy == 0 {
		ln.until = until
		l.place(ln, now, horizon)
	}
}

// A laneHeap is a min-heap by key. A lane stands in one heap at most.
type laneHeap []*lane

func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].key < h[j].key }
func (h laneHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

func (h *laneHeap) Push(x any) {
	ln := x.(*lane)
	ln.heap, ln.pos = h, len(*h)
	*h = append(*h, ln)
}

func (h *laneHeap) Pop() any {
	last := len(*h) - 1
	ln := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	ln.heap = nil
	return ln
}
