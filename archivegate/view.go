package archivegate

import (
	"context"
	"fmt"
	"time"
)

// clockGrain is how exactly Matomo's clock is known: it shows whole seconds.
const clockGrain = time.Second

// A view is what is known at one moment. It belongs to one goroutine.
type view struct {
	g       *Gate
	now     time.Time
	written time.Time
	drain   Drain
	list    *siteList
	listErr error
	holds   []Hold
	slots   map[int64][]Slot // by site, oldest first
	pending int64            // of all sites
	maxHold time.Duration

	days      map[dayKey]interval
	incoming  time.Time // since when hits may have been received that are being imported
	importing bool
}

type dayKey struct {
	zone string
	date Date
}

type interval struct{ start, end time.Time }

// view looks at everything, with a list of sites that is new enough for a query, or
// for the days that ended last, if one can be had.
func (g *Gate) view(ctx context.Context, q *Query) *view {
	v := g.glance()
	if !v.listServes(q) {
		g.sites.refreshSoon(ctx)
		v = g.glance()
	}
	if q != nil && q.MaxHold > 0 {
		v.maxHold = q.MaxHold
	}
	return v
}

// glance looks at everything, with the list of sites as it is. What is being received
// is asked before what is counted: a request that is over by then is in the counters.
func (g *Gate) glance() *view {
	v := &view{g: g, maxHold: g.cfg.MaxHold, slots: map[int64][]Slot{}, days: map[dayKey]interval{}}
	v.now = g.now().Round(0)
	v.written = g.parts.Arrivals.Written().Round(0)
	v.drain = g.parts.Drain()
	v.holds = g.orders.holding(v.now)
	v.list, v.listErr = g.sites.current()
	v.incoming, v.importing = g.parts.Ledger.Incoming() // what came by it is in the counters
	for _, s := range g.parts.Ledger.Unsettled() {
		v.slots[s.Site] = append(v.slots[s.Site], s)
		v.pending += s.Pending
	}
	return v
}

// listServes reports whether the list of sites is of after the newest day's end, and
// knows the site that is asked for.
func (v *view) listServes(q *Query) bool {
	if v.list.readAt.IsZero() {
		return false
	}
	for i := range v.list.sites {
		if s := &v.list.sites[i]; s.err == nil && v.list.readAt.Before(v.day(s, v.finished(s)).end) {
			return false
		}
	}
	if q != nil && q.Site != 0 {
		_, ok := v.list.find(q.Site)
		return ok || v.now.Sub(v.list.readAt).Abs() < listSpacing
	}
	return true
}

// day gives the interval in which a site may count a day.
func (v *view) day(s *listed, d Date) interval {
	i := v.zoneDay(s.zone, d)
	if s.old != nil {
		old := v.zoneDay(*s.old, d)
		if old.start.Before(i.start) {
			i.start = old.start
		}
		if old.end.After(i.end) {
			i.end = old.end
		}
	}
	return i
}

func (v *view) zoneDay(z Zone, d Date) interval {
	key := dayKey{z.name, d}
	i, ok := v.days[key]
	if !ok {
		i.start, i.end = z.Day(d)
		v.days[key] = i
	}
	return i
}

// today gives the earliest day that is not over at a site.
func (v *view) today(s *listed) Date {
	d := s.zone.On(v.now)
	if s.old != nil {
		if old := s.old.On(v.now); old.Before(d) {
			d = old
		}
	}
	for !v.day(s, d).end.After(v.now) {
		d = d.Add(1) // the clock was put back over midnight
	}
	return d
}

// finished gives the last day that is over at a site.
func (v *view) finished(s *listed) Date {
	d := v.today(s).Add(-1)
	for i := v.day(s, d); !i.start.Before(i.end); i = v.day(s, d) {
		d = d.Add(-1) // a day that the place left out
	}
	return d
}

func floorQuarter(t time.Time) int64 { return floorDiv(t.Unix(), quarterSeconds) }
func ceilQuarter(t time.Time) int64  { return -floorDiv(-t.Unix(), quarterSeconds) }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// judge answers for one site and day. It is told of no day whose zone is not known;
// [view.blind] is for those.
func (v *view) judge(s *listed, d Date) Answer {
	i := v.day(s, d)
	within, all, exact := v.g.parts.Ledger.Sums(s.ID, floorQuarter(i.start), ceilQuarter(i.end))
	a := Answer{
		V: 1, Site: s.ID, Name: s.Name, Date: d, Zone: s.Zone, Start: &i.start, End: &i.end,
		Accepted: within.Accepted, Imported: within.Delivered, Invalid: within.Invalid, Dead: within.Dead, Pending: all.Pending(),
		Reasons: []string{},
	}
	if !i.start.Before(i.end) {
		a.vacuous = true
		a.because(fmt.Sprintf("%s had no %s", s.Zone, d))
	} else if !s.Created.Before(i.end) && within.Accepted == 0 {
		// Hits of before move Matomo's date of creation back when they are recorded.
		a.vacuous = true
		a.because(fmt.Sprintf("the site was made on %s, which is later", s.zone.On(s.Created)))
	}
	if old := v.oldest(s.ID, i.end); old != nil && a.Pending > 0 {
		a.OldestPending = old
	}
	sealed := v.state(&a, s, i, all)
	if !a.vacuous {
		v.g.noteEpoch(&a, all, exact, v.now)
	}
	if a.Pending > 0 && (a.State == StateDraining || a.State == StateReopened) {
		a.ETASeconds = v.eta()
	}
	v.pass(&a, i.end)
	a.Edges = []Edge{v.edge(sealed, a.Pending)}
	return a
}

// state decides on a's state, and gives whether the day is sealed. The first that
// holds the day back counts; of what else does, the reasons tell.
func (v *view) state(a *Answer, s *listed, i interval, all Tally) (sealed bool) {
	skew := v.g.cfg.Skew
	state := StateComplete
	hold := func(as State, reason string) {
		if state == StateComplete {
			state = as
		}
		a.because(reason)
	}
	defer func() { a.State = state }()
	switch {
	case v.now.Before(i.end):
		hold(StateOpen, "the day is not over there")
		return false
	case v.now.Before(i.end.Add(skew)):
		hold(StateSealing, fmt.Sprintf("the day has been over for less than gate.skew (%s)", skew))
	case v.written.Before(i.end):
		hold(StateSealing, "requests that were received before the day's end are still being written")
	default:
		sealed = true
	}
	if a.Pending > 0 {
		hold(StateDraining, fmt.Sprintf("%d hits of the day or of days before wait for Matomo", a.Pending))
	}
	if v.importing && v.incoming.Before(i.end) {
		hold(StateDraining, "an import of access logs goes on that begins before the day's end: sluice import status")
	}
	for _, h := range v.holds {
		if h.holds(s.ID, a.Date) {
			hold(StateDraining, fmt.Sprintf("held by %s until %s", h.Name, h.Until.UTC().Format(time.RFC3339)))
		}
	}
	if v.g.cfg.DeadBlock && a.Dead > 0 {
		hold(StateDraining, fmt.Sprintf("%d hits of the day are buried, and gate.dead-letters is block", a.Dead))
	}
	if b := v.drain.Behind; b != nil {
		if b.Pending != nil {
			hold(StateDraining, b.Text)
		} else {
			hold(StateUnknown, b.Text)
		}
	}
	if v.list.readAt.Before(i.end) {
		if v.listErr != nil {
			hold(StateUnknown, fmt.Sprintf("the list of sites is of %s, before the day's end, and cannot be read: %v", v.list.readAt.UTC().Format(time.RFC3339), v.listErr))
		} else {
			hold(StateSealing, "the list of sites is being read anew")
		}
	}
	if c := v.drain.Clock; c != nil && c.Abs() > skew+clockGrain {
		hold(StateUnknown, fmt.Sprintf("Matomo's clock is %s off ours, more than gate.skew (%s)", c.Round(time.Second/10), skew))
	}
	if r := v.drain.Reader; r != nil && state == StateComplete {
		drained := v.g.book.drained(s.ID, a.Date, all, v.g.now())
		if drained.IsZero() {
			// It was seen to have all.
		} else if r.Lag == nil {
			hold(StateUnknown, "how far the replica that archiving reads from is behind is not known")
		} else if r.At.Add(-*r.Lag - clockGrain).Before(drained) {
			hold(StateDraining, fmt.Sprintf("the replica that archiving reads from was %s behind when it was asked, and may not have all yet", r.Lag.Round(time.Second)))
		}
	}
	return sealed
}

// pass decides whether archiving may begin.
func (v *view) pass(a *Answer, end time.Time) {
	a.Complete = a.State == StateComplete
	if !a.Complete && a.State != StateOpen && v.maxHold > 0 && !v.now.Before(end.Add(v.maxHold)) {
		a.because(fmt.Sprintf("let through, since the day ended more than %s ago (it was %s)", v.maxHold, a.State))
		a.State = StateForced
	}
	a.Pass = a.State.passes()
}

// blind answers for a day whose interval is not known.
func (v *view) blind(s *listed, d Date) Answer {
	end := latestEnd(d)
	a := Answer{V: 1, Site: s.ID, Name: s.Name, Date: d, Zone: s.Zone, State: StateUnknown, Reasons: []string{fmt.Sprintf("its timezone %q is not known here", s.Zone)}}
	_, all, _ := v.g.parts.Ledger.Sums(s.ID, 0, ceilQuarter(end))
	a.Pending = all.Pending()
	v.pass(&a, end)
	a.Edges = []Edge{v.edge(false, a.Pending)}
	return a
}

// latestEnd is when a day is over everywhere.
func latestEnd(d Date) time.Time { return d.Add(1).utc().Add(maxOffset) }

// edge is this edge's part of an answer.
func (v *view) edge(sealed bool, pending int64) Edge {
	e := Edge{Edge: v.g.cfg.Edge, Reachable: true, Sealed: sealed, Pending: pending, Uncertain: v.drain.Uncertain}
	if c := v.drain.Clock; c != nil {
		e.ClockMS = new(float64(c.Microseconds()) / 1000)
	}
	return e
}

// oldest gives the quarter of an hour of a site's oldest pending hit before a time.
func (v *view) oldest(site int64, before time.Time) *time.Time {
	slots := v.slots[site]
	if len(slots) == 0 {
		return nil
	}
	at := time.Unix(slots[0].Quarter*quarterSeconds, 0).UTC()
	if !at.Before(before) {
		return nil
	}
	return &at
}

// eta gives in how many seconds what waits now is in Matomo. Hits leave in the order
// of their arrival, so a site waits for others.
func (v *view) eta() *float64 {
	if v.drain.PerSecond <= 0 {
		return nil
	}
	return new(float64(v.pending) / v.drain.PerSecond)
}

// openDays counts a site's days up to one that are not complete, and gives when the
// oldest of them ended.
func (v *view) openDays(s *listed, until Date) (days int, oldest time.Time) {
	days, oldest = 1, v.day(s, until).end
	last := until
	for _, slot := range v.slots[s.ID] {
		d := s.zone.On(time.Unix(slot.Quarter*quarterSeconds, 0))
		if !d.Before(until) {
			break
		}
		if d != last {
			days++
			if end := v.day(s, d).end; end.Before(oldest) {
				oldest = end
			}
		}
		last = d
	}
	return days, oldest
}

// strays counts the pending hits, with an effective time that may fall on d or a day
// before, of sites that are not in Matomo's list, and names the sites in no order.
func (v *view) strays(d Date) (hits int64, sites []int64) {
	end := ceilQuarter(latestEnd(d))
	for site, slots := range v.slots {
		if _, ok := v.list.find(site); ok {
			continue
		}
		before := hits
		for _, s := range slots {
			if s.Quarter < end {
				hits += s.Pending
			}
		}
		if hits > before {
			sites = append(sites, site)
		}
	}
	return hits, sites
}
