package sink

import (
	"errors"
	"slices"
)

// A finding is what the tables say of a hit in doubt.
type finding uint8

const (
	// foundNothing: the tables cannot say.
	foundNothing finding = iota
	// foundRecorded: Matomo has the hit.
	foundRecorded
	// foundAbsent: Matomo does not have it, or having it twice is having it once.
	foundAbsent
	// foundPartial: Matomo inserted the hit's action and gave up before the visit was
	// updated.
	foundPartial
)

// Evidence is what was read about the hits of one batch.
type evidence struct {
	base        baseline
	rows        []actionRow    // after the mark, oldest first
	conversions map[string]int // by group, all that there are
	touched     []bool         // by hit, as touches gives it
	atomic      bool           // the tables can roll back
	// whole: the hits are all of their batch, so that every row of its page views is
	// one of theirs.
	whole bool
	// skips is how many hits Matomo said it left out; 0 when it did not say.
	skips int
}

// errContradiction: the rows are not what any outcome of the batch leaves.
var errContradiction = errors.New("the rows in Matomo's tables contradict each other")

// errUnmarked: the tables hold rows like these that may be older.
var errUnmarked = errors.New("there are rows like these, and MySQL could not be asked before the hits were sent")

// decide says of each hit, in the order in which they were sent, what became of it,
// and which row of ev.rows is its own (-1 = none). It is a pure function.
//
// There are two ways to be wrong. A hit whose row is not found is sent again and is
// there twice; so rows of the batch that match no hit are a contradiction, not a
// reason to send. A hit without a row for which another's is taken is lost; so each
// row counts for one hit, older rows are left out by the mark, and rows of other
// batches cannot be there (see [air]). A batch that was committed whole or not at
// all says more about hits without rows of their own, but Matomo skips hits inside
// a transaction when it waits for a lock too long, and never says so when its
// answer is lost: hits with rows are always judged by their own.
func decide(hits []expectation, ev *evidence) ([]finding, []int, error) {
	found, row := make([]finding, len(hits)), make([]int, len(hits))
	groups := map[string][]int{}
	var order []string
	for i := range hits {
		row[i] = -1
		if t := hits[i].trace; t == traceAction || t == traceConversion {
			key := string(hits[i].groupKey())
			if groups[key] == nil {
				order = append(order, key)
			}
			groups[key] = append(groups[key], i)
		}
	}
	bySecond := map[[2]int64][]int{}
	for i := range ev.rows {
		at := [2]int64{ev.rows[i].site, ev.rows[i].at}
		bySecond[at] = append(bySecond[at], i)
	}
	used := make([]bool, len(ev.rows))
	present, missing := 0, 0
	// Hits with a page view's id first: what is theirs is no one else's.
	for _, anonymous := range []bool{false, true} {
		for _, key := range order {
			group := groups[key]
			e := &hits[group[0]]
			if e.trace != traceAction || (e.pv == "") != anonymous {
				continue
			}
			m := matching{hits: hits, ev: ev, used: used, found: found, row: row}
			if err := m.group(group, bySecond[[2]int64{e.site, e.at}]); err != nil {
				return nil, nil, err
			}
			for _, i := range group {
				if found[i] == foundRecorded {
					present++
				} else {
					missing++
				}
			}
		}
	}
	gains := map[string]int{}
	for _, key := range order {
		if e := &hits[groups[key][0]]; e.trace == traceConversion {
			gains[key] = max(0, ev.conversions[key]-ev.base.before[e.groupHash()])
			if gains[key] > 0 {
				present++
			}
		}
	}
	// Matomo takes hits in their order, so one before a recorded one was processed; and
	// a transaction is committed behind the last. That is all unless it skipped hits: it
	// did if the answer says so, or if a hit is missing whose visitor, by another hit,
	// was not excluded.
	last := -1
	for i := range hits {
		if found[i] == foundRecorded {
			last = i
		}
	}
	holes, early := false, false
	for i := range hits {
		if hits[i].trace != traceAction || found[i] != foundAbsent {
			continue
		}
		for j := range hits {
			if found[j] == foundRecorded && hits[j].mates(&hits[i]) {
				holes, early = true, early || i < last
			}
		}
	}
	processed := func(i int) bool {
		return ev.skips == 0 && present > 0 && (ev.atomic && !holes || !early && i < last)
	}
	for _, key := range order {
		group := groups[key]
		for n, i := range group {
			e := &hits[i]
			if e.trace != traceConversion {
				continue
			}
			switch {
			case n < gains[key], processed(i), ev.touchedBy(hits, i, ev.skips > 0 || holes), superseded(hits, gains, i):
				found[i] = foundRecorded
			default:
				found[i] = foundAbsent
				missing++
			}
		}
	}
	for i := range hits {
		switch hits[i].trace {
		case traceRepeatable:
			// Repeated behind a later hit it would set the visit back.
			found[i] = foundAbsent
			if later(hits, found, i) {
				found[i] = foundRecorded
			}
		case traceNone:
			if processed(i) || ev.skips > 0 && missing >= ev.skips {
				found[i] = foundRecorded
			}
		}
	}
	return found, row, nil
}

// touchedBy reports whether the visit of a hit was touched by this batch, and in a
// batch with holes by no other hit of it.
func (ev *evidence) touchedBy(hits []expectation, i int, mixed bool) bool {
	e := &hits[i]
	if !ev.base.marked || i >= len(ev.touched) || !ev.touched[i] || ev.base.before[e.touchHash()] > 0 {
		return false
	}
	if !mixed {
		return true
	}
	for j := range hits {
		if j != i && hits[j].trace != traceRepeatable && hits[j].at >= e.at && hits[j].mates(e) {
			return false
		}
	}
	return true
}

// superseded reports whether a hit is a cart that a later one of the visitor has
// replaced: there is one row for all carts of a visit.
func superseded(hits []expectation, gains map[string]int, i int) bool {
	if hits[i].goal != goalCart {
		return false
	}
	return slices.ContainsFunc(hits[i+1:], func(e expectation) bool {
		return e.trace == traceConversion && e.goal == goalCart && e.mates(&hits[i]) && gains[string(e.groupKey())] > 0
	})
}

// later reports whether a hit that may be the same visitor's is recorded behind i.
func later(hits []expectation, found []finding, i int) bool {
	for j := i + 1; j < len(hits); j++ {
		if found[j] == foundRecorded && hits[j].mates(&hits[i]) {
			return true
		}
	}
	return false
}

// A matching finds the rows of one group of action hits: those of one site, one
// second and one page view, or of none.
type matching struct {
	hits  []expectation
	ev    *evidence
	used  []bool
	found []finding
	row   []int
}

func (m *matching) take(i, r int) {
	m.found[i], m.row[i], m.used[r] = foundRecorded, r, true
}

func (m *matching) group(group, rows []int) error {
	e := &m.hits[group[0]]
	rows = slices.DeleteFunc(slices.Clone(rows), func(r int) bool {
		return m.used[r] || !e.odd && m.ev.rows[r].pv != e.pv
	})
	if !m.ev.base.marked {
		// Without a mark older ones are there too; they came first.
		rows = rows[min(len(rows), m.ev.base.before[e.groupHash()]):]
	}
	for _, i := range group {
		m.found[i] = foundAbsent
		for _, r := range rows {
			if !m.used[r] && m.hits[i].matches(&m.ev.rows[r]) {
				m.take(i, r)
				break
			}
		}
	}
	left := func() (open, free []int) {
		for _, i := range group {
			if m.row[i] < 0 {
				open = append(open, i)
			}
		}
		for _, r := range rows {
			if !m.used[r] {
				free = append(free, r)
			}
		}
		return open, free
	}
	// What is left has names that Matomo or a plugin changed beyond recognition, or
	// is another's: rows of the page view, or of the hit's own visitor.
	open, free := left()
	kin := func(i, r int) bool {
		return m.hits[i].class == m.ev.rows[r].class && m.own(i, r)
	}
	if !m.ev.base.marked || !m.ev.whole {
		for _, i := range open {
			if slices.ContainsFunc(free, func(r int) bool { return kin(i, r) }) {
				return errUnmarked
			}
		}
		return nil
	}
	for _, i := range open {
		if at := slices.IndexFunc(free, func(r int) bool { return !m.used[r] && kin(i, r) }); at >= 0 {
			// As many hits as rows of a kind: it is not known which is which, and does
			// not matter. More hits than rows is another thing.
			hits := 0
			for _, j := range open {
				if m.row[j] < 0 && m.hits[j].class == m.hits[i].class && m.own(j, free[at]) {
					hits++
				}
			}
			alike := 0
			for _, r := range free {
				if !m.used[r] && kin(i, r) {
					alike++
				}
			}
			if alike < hits {
				return errContradiction
			}
			m.take(i, free[at])
		}
	}
	// A plugin may make one kind of action of another.
	open, free = left()
	free = slices.DeleteFunc(free, func(r int) bool {
		return !slices.ContainsFunc(open, func(i int) bool { return m.own(i, r) })
	})
	switch {
	case len(free) == 0 || len(open) == 0:
	case len(free) < len(open):
		return errContradiction
	default:
		for n, i := range open {
			m.take(i, free[n])
		}
	}
	return nil
}

// own reports whether a row after the mark can be no other batch's than the hit's.
// Hits of one visitor are never in two batches at once.
func (m *matching) own(i, r int) bool {
	return m.hits[i].pv != "" || slices.Contains(m.hits[i].ids, m.ev.rows[r].visitor)
}

// matches reports whether a row has the names of the hit.
func (e *expectation) matches(r *actionRow) bool {
	if e.class == classPage && r.class == classSearch {
		return r.names[0].bare != "" && contains(e.search, r.names[0])
	}
	if e.class != r.class {
		return false
	}
	for n := range e.names {
		if !e.names[n].like(r.names[n]) {
			return false
		}
	}
	return e.class != classEvent || e.sameValue(r.value)
}

// orphans reports which of the hits that were found left an action row only:
// Matomo inserts it, waits in vain for the lock on the visit's row, and gives up.
//
// The visit shows it: its last action is older than the row, its number of
// interactions is below the row's place, or a later row has the same place
// (Actions/Columns/PageViewPosition.php). Other kinds of actions have no place of
// their own; of them the visit has counted fewer than there are, and if Matomo said
// that it skipped hits, that many are taken for orphans.
func orphans(found []finding, row []int, ev *evidence, visits map[uint64]visitRow) {
	left := map[uint64]visitRow{}
	for id, v := range visits {
		left[id] = v
	}
	for i, r := range row {
		if found[i] != foundRecorded || r < 0 {
			continue
		}
		own := &ev.rows[r]
		v, there := visits[own.visit]
		orphan := !there || own.at > v.last || own.counts() && own.position > v.interactions
		for j := range ev.rows {
			other := &ev.rows[j]
			orphan = orphan || own.counts() && other.counts() && other.visit == own.visit && other.position == own.position && other.id > own.id
		}
		if orphan {
			found[i] = foundPartial
			u := left[own.visit]
			u.uncounted--
			if own.class == classEvent {
				u.uncountedEvents--
			}
			left[own.visit] = u
		}
	}
	skips := ev.skips
	for i := range found {
		if found[i] == foundPartial || found[i] == foundAbsent {
			skips--
		}
	}
	for i, r := range row {
		if skips <= 0 {
			return
		}
		if found[i] != foundRecorded || r < 0 {
			continue
		}
		own := &ev.rows[r]
		u := left[own.visit]
		event := own.class == classEvent
		if event && u.uncountedEvents > 0 || !event && !own.counts() && own.class != classContent && u.uncounted > u.uncountedEvents && u.uncounted > 0 {
			found[i] = foundPartial
			u.uncounted--
			if event {
				u.uncountedEvents--
			}
			left[own.visit] = u
			skips--
		}
	}
}

// counts reports whether the row is an interaction with a place of its own.
func (r *actionRow) counts() bool {
	return r.position > 0 && (r.class == classPage || r.class == classSearch)
}
