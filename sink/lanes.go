package sink

import (
	"container/heap"
	"math"
	"time"
)

// lanes keep leased hits in order until they are settled: one lane a site. They
// belong to the goroutine of Run and do no I/O.
//
// A lane is in exactly one condition: ready (its head may be sent, and the lane
// stands in the heap of its head's group), held (its head must wait for a time),
// busy (hits of it are in flight), or in doubt (its head may be in Matomo
// already; somebody else will say).
type lanes struct {
	bySite map[int64]*lane
	ready  map[group]*laneHeap
	held   laneHeap

	seq   uint64
	hits  int
	bytes int
	doubt int // hits in doubt

	// single reports whether a hit must travel alone. Set by the owner.
	single func(*item) bool
}

type lane struct {
	site  int64
	items []*item // oldest first; settled ones are dropped when they reach the head
	busy  bool
	until time.Time // not before then, unless zero

	next int       // while a batch is taken: the first item not taken
	key  int64     // orders the lane in the heap it stands in
	heap *laneHeap // nil when it stands in none
	pos  int
}

func newLanes() *lanes {
	return &lanes{bySite: map[int64]*lane{}, ready: map[group]*laneHeap{}, single: func(it *item) bool { return it.alone }}
}

// add appends a hit to its site's lane. horizon is what [lanes.take] says.
func (l *lanes) add(it *item, now time.Time, horizon int64) {
	l.seq++
	it.seq = l.seq
	l.hits++
	l.bytes += it.size()
	if it.doubt {
		l.doubt++
	}
	ln := l.bySite[it.Site]
	if ln == nil {
		ln = &lane{site: it.Site}
		l.bySite[it.Site] = ln
	}
	ln.items = append(ln.items, it)
	if len(ln.items) == 1 {
		l.place(ln, now, horizon)
	}
}

// place puts a lane where its head belongs.
func (l *lanes) place(ln *lane, now time.Time, horizon int64) {
	if ln.heap != nil {
		heap.Remove(ln.heap, ln.pos)
	}
	if ln.busy {
		return
	}
	for len(ln.items) > 0 && ln.items[0].settled {
		ln.items[0] = nil
		ln.items = ln.items[1:]
	}
	if len(ln.items) == 0 {
		delete(l.bySite, ln.site)
		return
	}
	head := ln.items[0]
	if head.doubt {
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
		return
	}
	h := l.ready[head.group]
	if h == nil {
		h = &laneHeap{}
		l.ready[head.group] = h
	}
	ln.key = int64(head.seq)
	heap.Push(h, ln)
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
		heap.Pop(&l.held)
		ln.until = time.Time{}
		l.place(ln, now, horizon)
	}
	return time.Time{}
}

// A size says how large a batch may be.
type size struct{ hits, bytes int }

// take removes the oldest hits that may travel together from ready lanes and
// marks their lanes busy. It gives nil when no lane is ready. horizon is the
// latest Unix second that Matomo's clock has surely reached.
func (l *lanes) take(limit size, now time.Time, horizon int64) []*item {
	h := l.oldest()
	if h == nil {
		return nil
	}
	var batch []*item
	var touched []*lane
	bytes := envelopeOverhead
	g := (*h)[0].items[0].group
	for h.Len() > 0 && len(batch) < limit.hits {
		ln := heap.Pop(h).(*lane)
		if !ln.busy {
			ln.busy, ln.next = true, 0
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
	for _, ln := range touched {
		if ln.heap != nil {
			heap.Remove(ln.heap, ln.pos)
		}
		ln.busy = false
	}
	// A lane may have been touched and given nothing; only those with hits in the
	// batch are busy.
	for _, it := range batch {
		l.bySite[it.Site].busy = true
	}
	for _, ln := range touched {
		if !ln.busy {
			l.place(ln, now, horizon)
		}
	}
	if h.Len() == 0 {
		delete(l.ready, g)
	}
	return batch
}

// oldest gives the heap that holds the oldest head, or nil.
func (l *lanes) oldest() *laneHeap {
	var best *laneHeap
	for _, h := range l.ready {
		if h.Len() > 0 && (best == nil || (*h)[0].key < (*best)[0].key) {
			best = h
		}
	}
	return best
}

// release ends the flight of a batch: what is settled leaves, and the lanes are
// placed again. It gives what left, in hits and bytes.
func (l *lanes) release(batch []*item, now time.Time, horizon int64) (hits, bytes int) {
	for _, it := range batch {
		if it.settled {
			hits++
			bytes += it.size()
		}
		if it.doubt {
			l.doubt++
		}
		if ln := l.bySite[it.Site]; ln != nil {
			ln.busy = false
		}
	}
	l.hits -= hits
	l.bytes -= bytes
	for _, it := range batch {
		// Placing a lane twice is harmless.
		if ln := l.bySite[it.Site]; ln != nil && ln.heap == nil {
			l.place(ln, now, horizon)
		}
	}
	return hits, bytes
}

// cleared ends the doubt about hits: they are settled, or absent from Matomo and
// to be sent again. It gives what left, in hits and bytes.
func (l *lanes) cleared(items []*item, now time.Time, horizon int64) (hits, bytes int) {
	for _, it := range items {
		it.doubt = false
		l.doubt--
		if it.settled {
			hits++
			bytes += it.size()
		}
	}
	l.hits -= hits
	l.bytes -= bytes
	for _, it := range items {
		if ln := l.bySite[it.Site]; ln != nil && ln.heap == nil {
			l.place(ln, now, horizon)
		}
	}
	return hits, bytes
}

// hold keeps a lane back until a time. The lane must not be busy.
func (l *lanes) hold(site int64, until, now time.Time, horizon int64) {
	if ln := l.bySite[site]; ln != nil && !ln.busy {
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
