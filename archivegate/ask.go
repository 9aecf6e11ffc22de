package archivegate

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// A Query asks for one site and day, or for all sites.
type Query struct {
	Site int64 // 0 = all
	// Date is a day, "yesterday", "today", or "finished": all days that are over.
	Date string
	// MaxHold is as Config.MaxHold, which it replaces; 0 = as that says.
	MaxHold time.Duration
}

// The names of days. Each site has its own.
const (
	Yesterday = "yesterday"
	Today     = "today"
	Finished  = "finished"
)

// dayMeant gives the day that a query means at a site. That of days before waits for them,
// so the last one that is over stands for all.
func (v *view) dayMeant(s *listed, q *Query) (Date, error) {
	switch q.Date {
	case Finished, Yesterday:
		return v.finished(s), nil
	case Today:
		return v.today(s), nil
	}
	return ParseDate(q.Date)
}

func (q *Query) check() error {
	if q.Date == "" {
		q.Date = Finished
	}
	switch q.Date {
	case Finished, Yesterday, Today:
	default:
		if _, err := ParseDate(q.Date); err != nil {
			return usage("%v, yesterday, today or finished", err)
		}
	}
	if q.Site < 0 {
		return usage("%d is no site", q.Site)
	}
	if q.MaxHold < 0 {
		return usage("the longest waiting time cannot be negative")
	}
	return nil
}

// One answers for one site. It returns [ErrNoSite] for a site that Matomo does not
// have, and [ErrUsage] for a day that the site cannot have or a site that may not be
// asked for.
func (g *Gate) One(ctx context.Context, q Query) (Answer, error) {
	if err := q.check(); err != nil {
		return Answer{}, err
	}
	if q.Site == 0 {
		return Answer{}, usage("no site")
	}
	if g.cfg.AllOnly {
		return Answer{}, usage("gate.scope is all-only: ask for all sites")
	}
	v := g.view(ctx, &q)
	s, ok := v.list.find(q.Site)
	if !ok {
		if v.listErr == nil && !v.list.readAt.IsZero() {
			return Answer{}, fmt.Errorf("%w: %d", ErrNoSite, q.Site)
		}
		return v.unlisted(&q), nil
	}
	a, err := v.answer(s, &q)
	if err != nil {
		return Answer{}, err
	}
	if a.vacuous && q.Date == Finished {
		a = v.judge(s, v.today(s)) // its first day is not over
	}
	if a.vacuous {
		return Answer{}, usage("site %d has no %s: %s", q.Site, a.Date, a.why())
	}
	g.asked(&a)
	return a, nil
}

// answer judges the day that a query means.
func (v *view) answer(s *listed, q *Query) (Answer, error) {
	if s.err != nil {
		return v.blind(s, v.dayAnywhere(q)), nil
	}
	d, err := v.dayMeant(s, q)
	if err != nil {
		return Answer{}, usage("%v", err)
	}
	return v.judge(s, d), nil
}

// dayAnywhere gives the day that a query means where no timezone is known: by name the
// last one that is surely over, wherever that is.
func (v *view) dayAnywhere(q *Query) Date {
	if d, err := ParseDate(q.Date); err == nil {
		return d
	}
	return dateOf(v.now.UTC().Add(-maxOffset))
}

// unlisted answers for a site of which nothing is known.
func (v *view) unlisted(q *Query) Answer {
	d := v.dayAnywhere(q)
	a := Answer{V: 1, Site: q.Site, Date: d, State: StateUnknown, Reasons: []string{v.listTrouble()}}
	_, all, _ := v.g.parts.Ledger.Sums(q.Site, 0, ceilQuarter(latestEnd(d)))
	a.Pending = all.Pending()
	a.Edges = []Edge{v.edge(false, a.Pending)}
	return a
}

// listTrouble says why nothing is known of sites; "" = it is.
func (v *view) listTrouble() string {
	switch {
	case v.listErr != nil && v.list.readAt.IsZero():
		return fmt.Sprintf("Matomo's sites and their timezones are not known: %v", v.listErr)
	case v.list.readAt.IsZero():
		return "Matomo's sites and their timezones have not been read yet"
	}
	return ""
}

// asked counts an answer that was given.
func (g *Gate) asked(a *Answer) {
	g.inst.answers[a.State].Inc()
	if a.State == StateForced {
		g.noteForced(a)
	}
}

// All answers for all sites together. Sites that have no such day do not count. It
// returns [ErrUsage] when none has it.
func (g *Gate) All(ctx context.Context, q Query) (Summary, error) {
	sum, _, err := g.all(ctx, q)
	return sum, err
}

// Sites answers for every site that has such a day, by number. It returns [ErrUsage]
// if single sites may not be asked for, and as [Gate.All] does.
func (g *Gate) Sites(ctx context.Context, q Query) ([]Answer, error) {
	if g.cfg.AllOnly {
		return nil, usage("gate.scope is all-only: ask for all sites")
	}
	_, answers, err := g.all(ctx, q)
	return answers, err
}

func (g *Gate) all(ctx context.Context, q Query) (Summary, []Answer, error) {
	if err := q.check(); err != nil {
		return Summary{}, nil, err
	}
	v := g.view(ctx, &q)
	sum := Summary{V: 1, Site: "all", Date: q.Date, State: StateComplete, Reasons: []string{}, Waiting: []Answer{}}
	if trouble := v.listTrouble(); trouble != "" {
		sum.State, sum.Reasons = StateUnknown, append(sum.Reasons, trouble)
		g.inst.answers[sum.State].Inc()
		return sum, nil, nil
	}
	sum.ReadAt = new(v.list.readAt.UTC())
	var answers []Answer
	var latest Date
	for i := range v.list.sites {
		a, err := v.answer(&v.list.sites[i], &q)
		if err != nil {
			return Summary{}, nil, err
		}
		if latest.Before(a.Date) {
			latest = a.Date
		}
		if a.vacuous {
			continue
		}
		sum.add(&a)
		if a.State == StateForced {
			g.noteForced(&a)
		}
		answers = append(answers, a)
	}
	if len(answers) == 0 {
		if q.Date != Finished {
			return Summary{}, nil, usage("no site has a %s", q.Date)
		}
		sum.State, sum.Reasons = StateOpen, append(sum.Reasons, "no site has a day that is over")
	}
	v.addStrays(&sum, latest)
	sum.Complete, sum.Pass = sum.State == StateComplete, sum.State.passes()
	if sum.Pending > 0 && (sum.State == StateDraining || sum.State == StateReopened) {
		sum.ETASeconds = v.eta()
	}
	g.inst.answers[sum.State].Inc()
	return sum, answers, nil
}

// weight orders states by how much they hold everything back.
var weight = map[State]int{
	StateComplete: 0, StateForced: 1, StateSealing: 2, StateReopened: 3, StateDraining: 4, StateOpen: 5, StateUnknown: 6,
}

func (sum *Summary) add(a *Answer) {
	sum.Sites++
	sum.Pending += a.Pending
	switch a.State {
	case StateComplete:
		sum.SitesComplete++
	case StateForced:
		sum.SitesForced++
	}
	sum.State = heavier(sum.State, a.State)
	if a.State != StateComplete && len(sum.Waiting) < maxWaiting {
		sum.Waiting = append(sum.Waiting, *a)
	}
}

// addStrays holds everything back for pending hits that no listed site owns: they may
// belong to a site that was made a moment ago, or to one that plugins of Matomo find.
func (v *view) addStrays(sum *Summary, latest Date) {
	hits, sites := v.strays(latest)
	if hits == 0 {
		return
	}
	slices.Sort(sites)
	names := make([]string, 0, 4)
	for _, s := range sites[:min(3, len(sites))] {
		names = append(names, strconv.FormatInt(s, 10))
	}
	if len(sites) > 3 {
		names = append(names, "…")
	}
	sum.Pending += hits
	reason := fmt.Sprintf("%d hits wait of sites that Matomo's list does not have (%v)", hits, names)
	if v.maxHold > 0 && !v.now.Before(latestEnd(latest).Add(v.maxHold)) {
		sum.State = heavier(sum.State, StateForced)
		sum.Reasons = append(sum.Reasons, reason+", let through")
		return
	}
	sum.State = heavier(sum.State, StateDraining)
	sum.Reasons = append(sum.Reasons, reason)
}

func heavier(a, b State) State {
	if weight[b] > weight[a] {
		return b
	}
	return a
}

// wait asks again and again until archiving may begin or ctx is done, and gives the
// last answer. Each answer comes from ask.
func (g *Gate) wait(ctx context.Context, until time.Time, ask func() (pass bool, err error)) error {
	for {
		pass, err := ask()
		if pass || err != nil || !g.now().Before(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(waitStep):
		}
	}
}

// waitStep is how often a waiting question is asked anew.
const waitStep = time.Second
