package sink

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of one look-up. A batch has at most a few hundred seconds; what is more
// comes from hits of which the journal was lost.
const (
	maxSeconds = 100   // of one statement
	maxRows    = 5000  // of one statement
	maxFound   = 50000 // of one doubt
)

// An actionRow is a row of log_link_visit_action with its names.
type actionRow struct {
	id       uint64 // idlink_va
	visit    uint64
	visitor  string // idvisitor, as bytes
	site     int64
	at       int64 // server_time in Unix seconds
	pv       string
	class    class
	names    [3]name
	value    *float64
	position int64 // pageview_position, 0 when it has none
}

// Types of log_action rows.
const (
	typeOutlink  = 2
	typeDownload = 3
	typeSearch   = 8
)

const actionColumns = `a.idlink_va, a.idvisit, a.idvisitor, a.server_time, COALESCE(a.idpageview, ''), a.custom_float,
 COALESCE(a.pageview_position, 0), a.idaction_event_category IS NOT NULL, a.idaction_content_name IS NOT NULL,
 COALESCE(u.type, 0), COALESCE(LEFT(u.name, 1024), ''), COALESCE(t.type, 0), COALESCE(LEFT(t.name, 1024), ''),
 COALESCE(LEFT(c.name, 1024), ''), COALESCE(LEFT(d.name, 1024), ''), COALESCE(LEFT(e.name, 1024), ''), COALESCE(LEFT(f.name, 1024), '')`

// actions reads the rows of the hits' sites and seconds that came after a mark,
// oldest first.
func (r *reconciler) actions(ctx context.Context, hits []expectation, mark uint64) ([]actionRow, error) {
	text := "SELECT " + actionColumns + " FROM " + r.db.table("log_link_visit_action") + " AS a"
	for _, j := range [][2]string{{"u", "url"}, {"t", "name"}, {"c", "event_category"}, {"d", "event_action"}, {"e", "content_name"}, {"f", "content_piece"}} {
		text += fmt.Sprintf(" LEFT JOIN %s AS %s ON %s.idaction = a.idaction_%s", r.db.table("log_action"), j[0], j[0], j[1])
	}
	var out []actionRow
	err := seconds(hits, traceAction, func(site int64, times []any) error {
		args := append(append([]any{site}, times...), mark, maxRows+1)
		n := 0
		err := r.db.query(ctx, func(rows *sql.Rows) error {
			n++
			row := actionRow{site: site}
			var at time.Time
			var event, content bool
			var urlType, titleType int
			var url, title, category, action, contentName, piece string
			var value sql.NullFloat64
			if err := rows.Scan(&row.id, &row.visit, &row.visitor, &at, &row.pv, &value, &row.position, &event, &content,
				&urlType, &url, &titleType, &title, &category, &action, &contentName, &piece); err != nil {
				return err
			}
			row.at, row.pv = at.Unix(), strings.TrimRight(row.pv, " ")
			if value.Valid {
				row.value = &value.Float64
			}
			switch {
			case event:
				row.class, row.names = classEvent, [3]name{bareName(category), bareName(action), bareName(title)}
			case content:
				row.class, row.names = classContent, [3]name{bareName(contentName), bareName(piece)}
			case urlType == typeDownload:
				row.class, row.names = classDownload, [3]name{bareURL(url)}
			case urlType == typeOutlink:
				row.class, row.names = classOutlink, [3]name{bareURL(url)}
			case titleType == typeSearch:
				row.class, row.names = classSearch, [3]name{bareName(title)}
			default:
				row.names = [3]name{bareName(title), bareURL(url)}
			}
			out = append(out, row)
			return nil
		}, text+" WHERE a.idsite=? AND a.server_time IN ("+marksOf(len(times))+") AND a.idlink_va>? ORDER BY a.idlink_va LIMIT ?", args...)
		if err == nil && (n > maxRows || len(out) > maxFound) {
			err = errTooMany
		}
		return err
	})
	slices.SortStableFunc(out, func(a, b actionRow) int { return cmp.Compare(a.id, b.id) })
	return out, err
}

var errTooMany = errors.New("too many rows in these seconds to tell them apart")

// seconds calls ask for the times of each site at which hits have a trace, cut to
// what one statement takes.
func seconds(hits []expectation, kind trace, ask func(site int64, times []any) error) error {
	at := map[int64][]int64{}
	for i := range hits {
		if e := &hits[i]; e.trace == kind {
			at[e.site] = append(at[e.site], e.at)
		}
	}
	for site, all := range at {
		slices.Sort(all)
		for part := range slices.Chunk(slices.Compact(all), maxSeconds) {
			times := make([]any, len(part))
			for i, t := range part {
				times[i] = time.Unix(t, 0).UTC()
			}
			if err := ask(site, times); err != nil {
				return err
			}
		}
	}
	return nil
}

// marksOf gives n question marks for a list.
func marksOf(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }

// mark reads the highest idlink_va.
func (r *reconciler) mark(ctx context.Context) (uint64, error) {
	var mark uint64
	scan := func(rows *sql.Rows) error { return rows.Scan(&mark) }
	err := r.db.query(ctx, scan, "SELECT COALESCE(MAX(idlink_va), 0) FROM "+r.db.table("log_link_visit_action"))
	return mark, err
}

// conversions counts rows of log_conversion by the groups of the hits. Goals that an
// action reached by itself are left out: their rows name the action.
func (r *reconciler) conversions(ctx context.Context, hits []expectation) (map[string]int, error) {
	out := map[string]int{}
	err := seconds(hits, traceConversion, func(site int64, times []any) error {
		return r.db.query(ctx, func(rows *sql.Rows) error {
			e := expectation{trace: traceConversion, site: site}
			var at time.Time
			var n int
			if err := rows.Scan(&at, &e.goal, &n); err != nil {
				return err
			}
			e.at = at.Unix()
			out[string(e.groupKey())] = n
			return nil
		}, "SELECT server_time, idgoal, COUNT(*) FROM "+r.db.table("log_conversion")+
			" WHERE idsite=? AND server_time IN ("+marksOf(len(times))+") AND idlink_va IS NULL GROUP BY server_time, idgoal", append([]any{site}, times...)...)
	})
	return out, err
}

// touches says of each hit with a conversion and a visitor id whether a visit of
// that visitor has a last action at the hit's time or later.
func (r *reconciler) touches(ctx context.Context, hits []expectation) ([]bool, error) {
	out := make([]bool, len(hits))
	for i := range hits {
		e := &hits[i]
		if e.trace != traceConversion || len(e.ids) == 0 {
			continue
		}
		args := []any{e.site}
		for _, id := range e.ids {
			args = append(args, []byte(id))
		}
		err := r.db.query(ctx, func(*sql.Rows) error { out[i] = true; return nil },
			"SELECT 1 FROM "+r.db.table("log_visit")+" WHERE idsite=? AND idvisitor IN ("+marksOf(len(e.ids))+") AND visit_last_action_time>=? LIMIT 1",
			append(args, time.Unix(e.at, 0).UTC())...)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// A visitRow is what a visit says of its actions, beside what its rows say.
type visitRow struct {
	last         int64 // visit_last_action_time in Unix seconds
	interactions int64 // highest pageview_position
	// How many rows of the visit should have been counted and were not.
	uncounted, uncountedEvents int64
}

// visits reads the visits of action rows. counts asks for the rows that were not
// counted too.
func (r *reconciler) visits(ctx context.Context, rows []actionRow, counts bool) (map[uint64]visitRow, error) {
	var all []uint64
	for i := range rows {
		all = append(all, rows[i].visit)
	}
	slices.Sort(all)
	out := map[uint64]visitRow{}
	for part := range slices.Chunk(slices.Compact(all), maxSeconds) {
		args := make([]any, len(part))
		for i, id := range part {
			args[i] = id
		}
		actions, events := map[uint64]int64{}, map[uint64]int64{}
		err := r.db.query(ctx, func(rows *sql.Rows) error {
			var id uint64
			var last time.Time
			var v visitRow
			var total, totalEvents int64
			if err := rows.Scan(&id, &last, &v.interactions, &total, &totalEvents); err != nil {
				return err
			}
			v.last = last.Unix()
			out[id], actions[id], events[id] = v, total, totalEvents
			return nil
		}, "SELECT idvisit, visit_last_action_time, COALESCE(visit_total_interactions, 0), COALESCE(visit_total_actions, 0), COALESCE(visit_total_events, 0) FROM "+
			r.db.table("log_visit")+" WHERE idvisit IN ("+marksOf(len(args))+")", args...)
		if err == nil && counts {
			err = r.db.query(ctx, func(rows *sql.Rows) error {
				var id uint64
				var all, ofEvents int64
				if err := rows.Scan(&id, &all, &ofEvents); err != nil {
					return err
				}
				if v, ok := out[id]; ok {
					v.uncounted, v.uncountedEvents = all-actions[id], ofEvents-events[id]
					out[id] = v
				}
				return nil
			}, "SELECT idvisit, SUM(idaction_content_name IS NULL), SUM(idaction_event_category IS NOT NULL) FROM "+
				r.db.table("log_link_visit_action")+" WHERE idvisit IN ("+marksOf(len(args))+") GROUP BY idvisit", args...)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// writer returns an error unless the server may be the one that Matomo writes to. A
// replica that is behind would show what is recorded as absent.
func (r *reconciler) writer(ctx context.Context) error {
	vars, err := r.db.pairs(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only','super_read_only','innodb_read_only')")
	if err != nil {
		return err
	}
	for _, v := range vars {
		if v != "OFF" && v != "0" {
			return errReplica
		}
	}
	return nil
}

var errReplica = errors.New("the MySQL server is read-only: a replica perhaps, which may be behind")

// atomic reports whether the log tables can roll back.
func (r *reconciler) atomic(ctx context.Context) (bool, error) {
	atomic := false
	err := r.db.query(ctx, func(rows *sql.Rows) error {
		var others, ours int
		if err := rows.Scan(&others, &ours); err != nil {
			return err
		}
		atomic = ours > 0 && others == 0
		return nil
	}, "SELECT COALESCE(SUM(ENGINE <> 'InnoDB'), 0), COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA=? AND TABLE_NAME IN (?, ?, ?)",
		r.db.name, r.db.prefix+"log_link_visit_action", r.db.prefix+"log_visit", r.db.prefix+"log_conversion")
	return atomic, err
}

// dirty runs read so that it sees what transactions have written that are not
// committed yet.
func (r *reconciler) dirty(ctx context.Context, read func() error) error {
	const level = "SET SESSION TRANSACTION ISOLATION LEVEL "
	none := func(*sql.Rows) error { return nil }
	var before, after uint64
	scan := func(id *uint64) func(*sql.Rows) error { return func(rows *sql.Rows) error { return rows.Scan(id) } }
	err := r.db.query(ctx, none, level+"READ UNCOMMITTED")
	if err == nil {
		err = r.db.query(ctx, scan(&before), "SELECT CONNECTION_ID()")
	}
	if err == nil {
		err = read()
	}
	if err == nil {
		err = r.db.query(ctx, scan(&after), "SELECT CONNECTION_ID()")
	}
	if err == nil {
		err = r.db.query(ctx, none, level+"READ COMMITTED")
	}
	if err == nil && before != after {
		err = errReconnected
	}
	if err != nil {
		r.db.forget() // with its level
	}
	return err
}

var errReconnected = errors.New("the connection to MySQL was lost between two reads")

// forget closes the connection; the next query makes another.
func (d *database) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		_ = d.conn.Raw(func(any) error { return driver.ErrBadConn }) // so that the pool drops it
		d.conn.Close()                                               // nothing was written through it
		d.conn = nil
	}
}
