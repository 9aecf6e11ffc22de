package sink

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/internal/hit"
)

// A LateJudge tells which hits are older than others of their visitors that are in
// Matomo, or on their way there. A visitor is known by each of the ids that Matomo may
// take for a hit's. Hits without an id could be anybody's, but only within the half hour
// in which Matomo would continue a visit: they are late if their site has any newer hit
// in that time, looked at in steps of ten minutes.
//
// It belongs to one goroutine. Close ends its connection to MySQL.
type LateJudge struct {
	db       *database
	handed   newest
	recorded newest // what MySQL was asked; 0 = nothing is there
}

// newest holds the times, in Unix seconds, of the newest hits.
type newest struct {
	visitors map[visitor]int64
	steps    map[step]int64
}

// A visitor is an id as Matomo stores it, 8 bytes, in a site.
type visitor struct {
	site int64
	id   string
}

// A step is ten minutes of a site.
type step struct {
	site, number int64
}

const (
	stepSeconds  = 600
	visitSeconds = 1800   // how long Matomo waits for a visit's next hit (visit_standard_length)
	lateAsked    = 200    // visitors, or steps, in one statement
	lateKnown    = 200000 // answers that are kept
)

// JudgeLate gives a judge of late hits; nil without a MySQL account.
func (s *Sink) JudgeLate() *LateJudge {
	if s.db == nil {
		return nil
	}
	db, err := newDatabase(s.cfg.DSN, s.cfg.TablesPrefix)
	if err != nil {
		return nil // New has checked both
	}
	return &LateJudge{db: db, handed: newNewest(), recorded: newNewest()}
}

func newNewest() newest {
	return newest{map[visitor]int64{}, map[step]int64{}}
}

// Close ends the judge.
func (j *LateJudge) Close() error { return j.db.close() }

// Handed tells of hits that were handed out and may not be in Matomo yet.
func (j *LateJudge) Handed(hits []hit.Pending) {
	for i := range hits {
		p := &hits[i]
		for _, v := range visitorsOf(p) {
			j.handed.visitors[v] = max(j.handed.visitors[v], p.At)
		}
		// From the steps of half an hour before on the hit is seen.
		for n := (p.At - visitSeconds) / stepSeconds; n <= p.At/stepSeconds; n++ {
			st := step{p.Site, n}
			j.handed.steps[st] = max(j.handed.steps[st], p.At)
		}
	}
}

// Late says of each hit whether a newer one of its visitor was told of or, with recorded,
// is in Matomo. It returns an error when MySQL does not say.
func (j *LateJudge) Late(ctx context.Context, hits []hit.Pending, recorded bool) ([]bool, error) {
	all := make([][]visitor, len(hits))
	for i := range hits {
		all[i] = visitorsOf(&hits[i])
	}
	if recorded {
		if err := j.ask(ctx, hits, all); err != nil {
			return nil, fmt.Errorf("look for newer hits: %s", mysqlText(err))
		}
	}
	late := make([]bool, len(hits))
	for i := range hits {
		for _, known := range [...]*newest{&j.handed, &j.recorded} {
			late[i] = late[i] || known.after(&hits[i], all[i])
		}
	}
	return late, nil
}

// after reports whether there is something newer than a hit.
func (n *newest) after(p *hit.Pending, visitors []visitor) bool {
	if len(visitors) == 0 {
		return n.steps[step{p.Site, p.At / stepSeconds}] > p.At
	}
	return slices.ContainsFunc(visitors, func(v visitor) bool { return n.visitors[v] > p.At })
}

// ask has MySQL tell what is not known yet of the hits' visitors and times.
func (j *LateJudge) ask(ctx context.Context, hits []hit.Pending, all [][]visitor) error {
	if len(j.recorded.visitors) > lateKnown || len(j.recorded.steps) > lateKnown {
		j.recorded = newNewest()
	}
	var visitors []visitor
	var steps []step
	for i := range hits {
		for _, v := range all[i] {
			if _, known := j.recorded.visitors[v]; !known {
				j.recorded.visitors[v] = 0
				visitors = append(visitors, v)
			}
		}
		st := step{hits[i].Site, hits[i].At / stepSeconds}
		if _, known := j.recorded.steps[st]; !known && len(all[i]) == 0 {
			j.recorded.steps[st] = 0
			steps = append(steps, st)
		}
	}
	slices.SortFunc(visitors, func(a, b visitor) int { return cmp.Or(cmp.Compare(a.site, b.site), strings.Compare(a.id, b.id)) })
	for part := range slices.Chunk(visitors, lateAsked) {
		if err := j.askVisitors(ctx, part); err != nil {
			j.recorded = newNewest() // what was not answered is not known
			return err
		}
	}
	for part := range slices.Chunk(steps, lateAsked) {
		if err := j.askSteps(ctx, part); err != nil {
			j.recorded = newNewest()
			return err
		}
	}
	return nil
}

// askVisitors reads when visitors were there last; they are sorted by site.
func (j *LateJudge) askVisitors(ctx context.Context, list []visitor) error {
	var where []string
	var args []any
	for rest := list; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].site == rest[0].site {
			n++
		}
		where = append(where, "idsite=? AND idvisitor IN ("+marksOf(n)+")")
		args = append(args, rest[0].site)
		for _, v := range rest[:n] {
			args = append(args, []byte(v.id))
		}
		rest = rest[n:]
	}
	return j.db.query(ctx, func(rows *sql.Rows) error {
		var v visitor
		var at time.Time
		if err := rows.Scan(&v.site, &v.id, &at); err != nil {
			return err
		}
		j.recorded.visitors[v] = at.Unix()
		return nil
	}, "SELECT idsite, idvisitor, MAX(visit_last_action_time) FROM "+j.db.table("log_visit")+" WHERE "+strings.Join(where, " OR ")+" GROUP BY idsite, idvisitor", args...)
}

// askSteps reads the newest action within half an hour of the end of each step.
func (j *LateJudge) askSteps(ctx context.Context, list []step) error {
	one := "SELECT ?, ?, MAX(server_time) FROM " + j.db.table("log_link_visit_action") + " WHERE idsite=? AND server_time>=? AND server_time<=?"
	var args []any
	for _, st := range list {
		from := time.Unix(st.number*stepSeconds, 0).UTC()
		args = append(args, st.site, st.number, st.site, from, from.Add((stepSeconds+visitSeconds)*time.Second))
	}
	return j.db.query(ctx, func(rows *sql.Rows) error {
		var st step
		var at sql.NullTime
		if err := rows.Scan(&st.site, &st.number, &at); err != nil {
			return err
		}
		if at.Valid {
			j.recorded.steps[st] = at.Time.Unix()
		}
		return nil
	}, one+strings.Repeat(" UNION ALL "+one, len(list)-1), args...)
}

// visitorsOf gives whom Matomo may take a hit's visitor for.
func visitorsOf(p *hit.Pending) []visitor {
	if p.Site <= 0 {
		return nil // it is never recorded
	}
	text, _ := readerOf(&p.Hit)
	var out []visitor
	for _, id := range visitorIDs(text, p.Environment.VisitorCookie) {
		out = append(out, visitor{p.Site, id})
	}
	return out
}
