package sink

import (
	"math"
	"slices"
	"time"

	"sluice/internal/hit"
)

// A parkedHit is a pending hit of which only the place is kept in memory: 48 bytes.
// Its lane was blocked and had its share in memory already. It is read again from
// the source when the lane moves.
type parkedHit struct {
	generation, block uint64
	seq               uint64
	item              *item // of a hit that must stay in memory, else nil
	index             uint32
	leased            uint32 // of the stream's time, Unix seconds
	epoch             uint32
	mask              uint8
	late              bool
}

const (
	// laneShare is how many hits a blocked lane has in memory, at least.
	laneShare = 512
	// maxParked bounds the parked hits; leasing goes on until memory is full then.
	maxParked = 1 << 19
	// rereadHits is how many parked hits are read again at once.
	rereadHits = 512
)

func (p *parkedHit) id() hit.ID {
	return hit.ID{Generation: p.generation, Block: p.block, Index: p.index}
}

// parkedHits are a queue that also takes hits at its front.
type parkedHits struct {
	list []parkedHit
	head int
}

func (q *parkedHits) len() int { return len(q.list) - q.head }

func (q *parkedHits) all() []parkedHit { return q.list[q.head:] }

func (q *parkedHits) push(p parkedHit) { q.list = append(q.list, p) }

// unshift puts hits in front of all others.
func (q *parkedHits) unshift(list []parkedHit) {
	if q.head < len(list) {
		q.list, q.head = slices.Concat(list, q.all()), 0
		return
	}
	q.head -= len(list)
	copy(q.list[q.head:], list)
}

// shift removes the first n hits.
func (q *parkedHits) shift(n int) []parkedHit {
	out := slices.Clone(q.list[q.head : q.head+n])
	clear(q.list[q.head : q.head+n])
	if q.head += n; q.head == len(q.list) {
		q.list, q.head = nil, 0
	}
	return out
}

// merge merges o into q by the order of arrival, keeping each one's own order.
func (q *parkedHits) merge(o *parkedHits) {
	b := o.all()
	if len(b) == 0 {
		return
	}
	a := q.all()
	out := make([]parkedHit, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].seq < b[0].seq {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	q.list, q.head = append(append(out, a...), b...), 0
	*o = parkedHits{}
}

// oldest gives when the oldest hit was leased.
func (q *parkedHits) oldest() int64 {
	at := int64(math.MaxInt64)
	for i := range q.all() {
		at = min(at, int64(q.all()[i].leased))
	}
	return at
}

func (it *item) record() parkedHit {
	return parkedHit{
		generation: it.ID.Generation, block: it.ID.Block, index: it.ID.Index,
		seq: it.seq, leased: uint32(it.leased), epoch: it.epoch, mask: it.mask, late: it.late,
	}
}

// mayPark reports whether a hit may leave memory: nobody holds anything against it
// that is not on disk.
func (it *item) mayPark() bool {
	return !it.doubt && !it.flying && !it.settled && it.Uncertain == 0 && it.lone == 0 && it.unsure.IsZero()
}

// forgetItem takes a hit out of memory.
func (l *lanes) forgetItem(it *item) {
	it.away = true
	l.hits--
	l.bytes -= it.size()
	l.parked++
	l.freed.hits++
	l.freed.bytes += it.size()
}

// parkNew puts a hit behind the parked ones of its lane.
func (l *lanes) parkNew(ln *lane, it *item) {
	p := it.record()
	if it.mayPark() && l.parked < l.parkedMost {
		l.forgetItem(it)
	} else {
		p.item = it
	}
	ln.parked.push(p)
}

// block takes note that a lane cannot move, so that it must not fill the memory
// that others need.
func (l *lanes) block(ln *lane) {
	ln.counted = len(ln.items)
	l.stuck += ln.counted
	l.evict(ln)
}

// evict parks what a blocked lane has in memory beyond its share.
func (l *lanes) evict(ln *lane) {
	share := l.share
	if l.stuck > l.stuckMost {
		share = 1
	}
	if ln.rereading || len(ln.items) <= share {
		return
	}
	keep := len(ln.items)
	for keep > share && l.parked+len(ln.items)-keep < l.parkedMost && ln.items[keep-1].mayPark() {
		keep--
	}
	out := make([]parkedHit, 0, len(ln.items)-keep)
	for i, it := range ln.items[keep:] {
		out = append(out, it.record())
		l.forgetItem(it)
		ln.items[keep+i] = nil
	}
	ln.items = ln.items[:keep]
	ln.parked.unshift(out)
	l.stuck += keep - ln.counted
	ln.counted = keep
}

// unpark gives a lane back those of its first parked hits that are in memory.
func (l *lanes) unpark(ln *lane) {
	for !ln.rereading && ln.parked.len() > 0 && ln.parked.list[ln.parked.head].item != nil {
		if it := ln.parked.shift(1)[0].item; !it.settled {
			ln.items = append(ln.items, it)
		}
	}
}

// wanting reports whether a lane moves and has too little in memory for that.
func (l *lanes) wanting(ln *lane) bool {
	return ln.into == nil && !ln.rereading && ln.counted == 0 && len(ln.items) < l.share &&
		ln.parked.len() > 0 && ln.parked.list[ln.parked.head].item == nil
}

// want asks for a lane's parked hits.
func (l *lanes) want(ln *lane) {
	if !ln.wants && l.wanting(ln) {
		ln.wants = true
		l.dry = append(l.dry, ln)
	}
}

// A rereading is parked hits of a lane that are read again.
type rereading struct {
	lane  *lane
	hits  []parkedHit
	items []*item // in the same order, without those that are not there any more
	err   error
}

// reread gives parked hits to read again; nil when no lane wants any. They come
// back through [lanes.reclaim].
func (l *lanes) reread() *rereading {
	for len(l.dry) > 0 {
		ln := l.dry[0]
		l.dry[0] = nil
		l.dry = l.dry[1:]
		ln.wants = false
		if !l.wanting(ln) {
			continue
		}
		n := 0
		for all := ln.parked.all(); n < min(len(all), rereadHits) && all[n].item == nil; {
			n++
		}
		ln.rereading = true
		return &rereading{lane: ln, hits: ln.parked.shift(n)}
	}
	return nil
}

// restore gives a hit that was read again what was kept of it.
func (it *item) restore(p *parkedHit) {
	it.seq, it.leased, it.epoch, it.mask, it.late = p.seq, int64(p.leased), p.epoch, p.mask, p.late
	it.marks = findMarks(it, p.mask)
	it.complete()
}

// reclaim takes back hits that were read again. It gives their number and size, and
// how many were not there any more.
func (l *lanes) reclaim(r *rereading, now time.Time, horizon int64) (hits, bytes, lost int) {
	ln := r.lane.top()
	ln.rereading = false
	l.parked -= len(r.hits)
	lost = len(r.hits) - len(r.items)
	for _, it := range r.items {
		it.lane = ln
		ln.items = append(ln.items, it)
		l.hits++
		l.bytes += it.size()
		bytes += it.size()
	}
	if lost > 0 {
		l.lose(ln, r)
	}
	l.place(ln, now, horizon)
	return len(r.items), bytes, lost
}

// lose gives up hits that cannot be read any more. They stay pending on disk; here
// they stand in nobody's way but for their marks.
func (l *lanes) lose(ln *lane, r *rereading) {
	there := map[hit.ID]bool{}
	for _, it := range r.items {
		there[it.ID] = true
	}
	for i := range r.hits {
		if p := &r.hits[i]; !there[p.id()] {
			ln.pending--
			ln.site.pending--
			if p.epoch != ln.site.epoch {
				ln.site.unlinked--
			}
		}
	}
}
