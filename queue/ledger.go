package queue

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"
)

// A ledger is the counters of a stream: for each site and quarter hour of effective
// time, what became of its hits. It has no lock of its own.
//
// Of a large installation it holds a million slots a day, nearly all of which are
// over and delivered to the last hit. Those take eight bytes in place of forty-eight
// once [ledger.pack] has seen them.
type ledger struct {
	sites map[int64]*siteLedger
	slots int // of all sites, folded ones not counted
}

// A siteLedger is the counters of one site. Both lists are in the order of their
// quarters, and no quarter stands in both.
type siteLedger struct {
	open   []openSlot
	done   []doneSlot
	folded tally // of slots that were let go
	// foldedTo is the first quarter behind all that were let go.
	foldedTo int64
}

type openSlot struct {
	quarter int64
	tally
}

// A doneSlot is a quarter all of whose hits were delivered.
type doneSlot struct {
	quarter int32
	hits    uint32
}

func (d doneSlot) tally() tally {
	return tally{accepted: int64(d.hits), delivered: int64(d.hits)}
}

func newLedger() *ledger { return &ledger{sites: map[int64]*siteLedger{}} }

func (l *ledger) site(site int64) *siteLedger {
	s := l.sites[site]
	if s == nil {
		s = &siteLedger{}
		l.sites[site] = s
	}
	return s
}

func (s *siteLedger) findOpen(quarter int64) (int, bool) {
	// Hits are of now, as a rule.
	if n := len(s.open); n == 0 || s.open[n-1].quarter < quarter {
		return n, false
	}
	return slices.BinarySearchFunc(s.open, quarter, func(o openSlot, q int64) int { return cmp.Compare(o.quarter, q) })
}

func (s *siteLedger) findDone(quarter int64) (int, bool) {
	return slices.BinarySearchFunc(s.done, quarter, func(d doneSlot, q int64) int { return cmp.Compare(int64(d.quarter), q) })
}

// get gives a slot's counters, zero when it has none.
func (l *ledger) get(k counterKey) tally {
	s := l.sites[k.site]
	if s == nil {
		return tally{}
	}
	if i, ok := s.findOpen(k.quarter); ok {
		return s.open[i].tally
	}
	if i, ok := s.findDone(k.quarter); ok {
		return s.done[i].tally()
	}
	return tally{}
}

// put sets a slot's counters; zero ones leave no slot.
func (l *ledger) put(k counterKey, t tally) {
	if t == (tally{}) && l.sites[k.site] == nil {
		return
	}
	s := l.site(k.site)
	if i, ok := s.findDone(k.quarter); ok {
		s.done = slices.Delete(s.done, i, i+1)
		l.slots--
	}
	i, ok := s.findOpen(k.quarter)
	switch {
	case t != (tally{}) && ok:
		s.open[i].tally = t
	case t != (tally{}):
		s.open = slices.Insert(s.open, i, openSlot{k.quarter, t})
		l.slots++
	case ok:
		s.open = slices.Delete(s.open, i, i+1)
		l.slots--
	}
	if len(s.open)+len(s.done) == 0 && s.folded == (tally{}) {
		delete(l.sites, k.site)
	}
}

// add changes a slot's counters.
func (l *ledger) add(k counterKey, by tally) { l.put(k, l.get(k).plus(by)) }

// fold adds a slot to its site's total and lets it go.
func (l *ledger) fold(k counterKey) {
	t := l.get(k)
	if t == (tally{}) {
		return
	}
	s := l.site(k.site)
	s.folded = s.folded.plus(t)
	s.foldedTo = max(s.foldedTo, k.quarter+1)
	l.put(k, tally{})
}

// pack makes room: slots before a quarter of which everything was delivered become
// small. It changes nothing that can be asked.
func (l *ledger) pack(before int64) {
	for _, s := range l.sites {
		kept := s.open[:0]
		packed := false
		for _, o := range s.open {
			if o.quarter >= before || !o.plain() {
				kept = append(kept, o)
				continue
			}
			s.done = append(s.done, doneSlot{int32(o.quarter), uint32(o.accepted)})
			packed = true
		}
		s.open = kept
		if packed && !slices.IsSortedFunc(s.done, compareDone) {
			slices.SortFunc(s.done, compareDone)
		}
		if cap(s.open) > 2*len(s.open)+8 {
			s.open = slices.Clone(s.open)
		}
	}
}

func compareDone(a, b doneSlot) int { return cmp.Compare(a.quarter, b.quarter) }

// plain reports whether a slot can become a doneSlot.
func (o *openSlot) plain() bool {
	return o.accepted == o.delivered && o.invalid == 0 && o.dead == 0 &&
		o.accepted > 0 && o.accepted <= math.MaxUint32 && o.quarter >= math.MinInt32 && o.quarter <= math.MaxInt32
}

// slots gives a site's slots in the order of their quarters.
func (s *siteLedger) slots() iter.Seq2[int64, tally] {
	return func(yield func(int64, tally) bool) {
		i, j := 0, 0
		for i < len(s.open) || j < len(s.done) {
			if j == len(s.done) || i < len(s.open) && s.open[i].quarter < int64(s.done[j].quarter) {
				if !yield(s.open[i].quarter, s.open[i].tally) {
					return
				}
				i++
				continue
			}
			if !yield(int64(s.done[j].quarter), s.done[j].tally()) {
				return
			}
			j++
		}
	}
}

// all gives every slot, by site and quarter. The ledger must not be changed
// meanwhile.
func (l *ledger) all() iter.Seq2[counterKey, tally] {
	return func(yield func(counterKey, tally) bool) {
		for _, site := range slices.Sorted(maps.Keys(l.sites)) {
			for quarter, t := range l.sites[site].slots() {
				if !yield(counterKey{site, quarter}, t) {
					return
				}
			}
		}
	}
}

// pendingOf counts a site's pending hits.
func (l *ledger) pendingOf(site int64) (n int64) {
	s := l.sites[site]
	if s == nil {
		return 0
	}
	for i := range s.open {
		n += s.open[i].pending()
	}
	return n
}

// settledOld names up to limit slots that may be let go: all hits settled, and
// before a quarter. When more than most slots would be left, those of the oldest days
// are named too.
func (l *ledger) settledOld(before int64, limit, most int) []counterKey {
	if l.slots > most {
		before = max(before, l.cut(most))
	}
	var out []counterKey
	for site, s := range l.sites {
		for quarter, t := range s.slots() {
			if quarter >= before || len(out) == limit {
				break
			}
			if t.pending() == 0 {
				out = append(out, counterKey{site, quarter})
			}
		}
		if len(out) == limit {
			break
		}
	}
	return out
}

// cut gives the quarter of which most slots, at the most, are not before.
func (l *ledger) cut(most int) int64 {
	perDay := map[int64]int{}
	for _, s := range l.sites {
		for quarter := range s.slots() {
			perDay[quarter/quartersPerDay]++
		}
	}
	days := slices.Sorted(maps.Keys(perDay))
	left := l.slots
	for _, day := range days {
		if left <= most {
			return day * quartersPerDay
		}
		left -= perDay[day]
	}
	return math.MinInt64
}

const quartersPerDay = 24 * 60 * 60 / quarterSeconds

// sums adds up a site's slots before a quarter, all of them with the folded ones, and
// those from another quarter on. exact is false when a later slot was let go, which
// then is among all.
func (l *ledger) sums(site, from, before int64) (within, all tally, exact bool) {
	s := l.sites[site]
	if s == nil {
		return tally{}, tally{}, true
	}
	all, exact = s.folded, s.foldedTo <= before
	for i := range s.open {
		o := &s.open[i]
		if o.quarter >= before {
			break
		}
		all = all.plus(o.tally)
		if o.quarter >= from {
			within = within.plus(o.tally)
		}
	}
	for _, d := range s.done {
		if int64(d.quarter) >= before {
			break
		}
		all = all.plus(d.tally())
		if int64(d.quarter) >= from {
			within = within.plus(d.tally())
		}
	}
	return within, all, exact
}

// unsettled gives the slots that have pending hits, by site and quarter.
func (l *ledger) unsettled() []Counter {
	var out []Counter
	for site, s := range l.sites {
		for i := range s.open {
			if o := &s.open[i]; o.pending() != 0 {
				out = append(out, counterOfSlot(counterKey{site, o.quarter}, o.tally))
			}
		}
	}
	slices.SortFunc(out, func(a, b Counter) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Quarter, b.Quarter))
	})
	return out
}

func counterOfSlot(k counterKey, t tally) Counter {
	return Counter{k.site, k.quarter, t.accepted, t.delivered, t.invalid, t.dead}
}

// settledUntil gives the end, in Unix nanoseconds, of the site's last quarter in which
// hits are settled; 0 if there is none.
func (s *siteLedger) settledUntil() int64 {
	last := s.foldedTo
	for _, o := range slices.Backward(s.open) {
		if o.accepted > o.pending() {
			last = max(last, o.quarter+1)
			break
		}
	}
	if n := len(s.done); n > 0 {
		last = max(last, int64(s.done[n-1].quarter)+1)
	}
	return last * quarterSeconds * 1e9
}
