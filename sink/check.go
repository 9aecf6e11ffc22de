package sink

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A Level says how much a Finding matters.
type Level string

const (
	LevelOK    Level = "ok"
	LevelWarn  Level = "warn"  // works, with a price
	LevelFault Level = "fault" // does not work
	LevelUnset Level = "unset" // not configured, so nothing was checked
)

// A Finding is one line of `sluice check --online`. Neither Text nor Try holds a
// token or a password.
type Finding struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Text  string `json:"text"`
	Try   string `json:"try,omitempty"`
}

// slowCheck is how long an answer may take before check remarks on it.
const slowCheck = 2 * time.Second

// maxClockOffset is how far the clocks may differ without a warning.
const maxClockOffset = 2 * time.Second

// Check asks Matomo and MySQL and says what it found. It leaves no row. It may be
// called without Run, and blocks for a minute at most.
func (s *Sink) Check(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	token, reach := s.checkToken(ctx)
	out := []Finding{s.checkMatomo(ctx, reach), token}
	if token.Level == LevelOK || token.Level == LevelWarn {
		out = append(out, s.checkForwarding(ctx))
	}
	out = append(out, s.checkClock())
	out = append(out, s.checkVisitorCookie(ctx)...)
	return append(out, s.checkMySQL(ctx)...)
}

func (s *Sink) checkMatomo(ctx context.Context, r reach) Finding {
	f := Finding{Name: "matomo", Level: LevelOK}
	if s.cfg.Token == "" {
		a := s.client.bulk(ctx, []byte(tokenlessCanary), group{}, "")
		if v := judge(a, 1, true); v.kind != delivered {
			return f.fault(v.detail)
		}
		f.Text = fmt.Sprintf("bulk answers as expected, %d ms", a.took.Milliseconds())
		return f
	}
	began := time.Now()
	v := s.sendCanary(ctx, "?idsite=1&rec=0")
	took := time.Since(began)
	if v.kind != delivered && v.kind != refusedToken {
		return f.fault(v.detail)
	}
	parts := []string{}
	if r.known { // a wrong token would be booked once more
		if version, _ := s.codeVersion(ctx); version != "" {
			parts = append(parts, version)
		}
	}
	parts = append(parts, fmt.Sprintf("%d ms", took.Milliseconds()), "bulk answers as expected")
	queued, known := s.queuedTracking(ctx)
	switch {
	case known && queued:
		f.Level = LevelWarn
		parts = append(parts, "QueuedTracking is on; Sluice passes it by")
		f.Try = "deactivate the plugin QueuedTracking, or set it to process nothing but what is queued already"
	case known:
		parts = append(parts, "QueuedTracking off")
	}
	if took > slowCheck {
		f.Level = LevelWarn
	}
	f.Text = strings.Join(parts, ", ")
	return f
}

func (f Finding) fault(text string) Finding {
	f.Level, f.Text = LevelFault, text
	return f
}

// queuedTracking sends a canary without the parameter that passes the plugin by:
// the plugin answers a bulk with an image.
func (s *Sink) queuedTracking(ctx context.Context) (on, known bool) {
	to := strings.Replace(s.client.bulkURL, "queuedtracking=0", "queuedtracking=1", 1)
	canary := strings.Replace(tokenlessCanary, "rec=0", "rec=0&sluice="+s.queuedMark(), 1)
	a := s.client.post(ctx, to, []byte(canary), func(h http.Header) { h.Set("Content-Type", "application/json") })
	if a.err != nil || a.status != http.StatusOK {
		return false, false
	}
	_, bulk := parseBulk(a.body)
	return !bulk && strings.HasPrefix(string(a.body), "GIF8"), true
}

func (s *Sink) checkClock() Finding {
	_, about, known := s.clock.offset()
	f := Finding{Name: "clock", Level: LevelOK}
	if !known {
		f.Level, f.Text = LevelUnset, "Matomo did not say its time"
		return f
	}
	f.Text = fmt.Sprintf("Matomo's is %+.1f s from ours", about.Seconds())
	if about.Abs() > maxClockOffset {
		f.Level, f.Try = LevelWarn, "synchronise the clocks of both machines (chrony, systemd-timesyncd)"
	}
	return f
}

// leastColumns are what the probes and the look-ups read: the least privileges.
var leastColumns = [...]struct{ table, columns string }{
	{"site", "idsite, timezone, ts_created"},
	{"log_link_visit_action", "idlink_va, idsite, idvisitor, idvisit, server_time, idpageview, pageview_position, custom_float, " +
		"idaction_url, idaction_name, idaction_event_category, idaction_event_action, idaction_content_name, idaction_content_piece"},
	{"log_action", "idaction, type, name"},
	{"log_visit", "idvisit, idsite, idvisitor, visit_last_action_time, visit_total_actions, visit_total_interactions, visit_total_events"},
	{"log_conversion", "idvisit, idsite, idgoal, idlink_va, server_time"},
}

func (s *Sink) checkMySQL(ctx context.Context) []Finding {
	if s.db == nil {
		return []Finding{{Name: "mysql", Level: LevelUnset, Text: "not set: unknown outcomes follow sink.on-unknown, and no probes run"}}
	}
	p := prober{db: s.db, reader: s.reader}
	probes := p.probe(ctx)
	if probes[0].State != ProbeOK {
		f := Finding{Name: "mysql"}.fault(probes[0].Detail)
		if classify(probes[0].err) == faultAccount {
			f.Try = "check the user, password and database in mysql.dsn-file"
		}
		return []Finding{f}
	}
	var out []Finding
	for _, t := range leastColumns {
		_, _, err := s.db.one(ctx, "SELECT COUNT(*) FROM (SELECT "+t.columns+" FROM "+s.db.table(t.table)+" LIMIT 1) AS t")
		switch {
		case err == nil:
		case classify(err) == faultAccount:
			out = append(out, Finding{
				Name: "mysql", Level: LevelFault, Text: "no SELECT on " + s.db.prefix + t.table,
				Try: fmt.Sprintf("GRANT SELECT (%s) ON `%s`.%s TO %s;", t.columns, s.db.name, s.db.table(t.table), s.db.account()),
			})
		case classify(err) == faultSchema:
			out = append(out, Finding{Name: "mysql", Level: LevelFault, Text: "no table " + s.db.prefix + t.table + " as expected", Try: "check mysql.tables-prefix and the database's name"})
		default:
			out = append(out, Finding{Name: "mysql"}.fault(mysqlText(err)))
		}
	}
	for _, found := range probes {
		switch {
		case found.State == ProbeBad:
			out = append(out, Finding{Name: "mysql"}.fault(found.Detail))
		case found.State == ProbeSlow:
			out = append(out, Finding{Name: "mysql", Level: LevelWarn, Text: found.Detail})
		case found.State == ProbeUnknown && found.Name == "version":
			out = append(out, Finding{
				Name: "mysql", Level: LevelWarn, Text: "Matomo's version cannot be read, so upgrades are not noticed by it",
				Try: fmt.Sprintf("GRANT SELECT ON `%s_edge`.`v_option` TO %s;", s.db.name, s.db.account()),
			})
		case found.State == ProbeUnknown && found.Name == "replica" && s.reader != nil:
			out = append(out, Finding{Name: "mysql", Level: LevelWarn, Text: "the account of mysql.reader-dsn-file does not show how far the replica is behind: " + found.Detail})
		}
	}
	if s.cfg.Token != "" {
		if code, _ := s.codeVersion(ctx); code != "" && p.version() != "" && code != p.version() {
			out = append(out, Finding{
				Name: "mysql", Level: LevelFault, Text: fmt.Sprintf("Matomo's database has version %s and its code %s, so nothing is sent", p.version(), code),
				Try: "./console core:update, on Matomo's machine",
			})
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{Name: "mysql", Level: LevelOK, Text: s.db.serverVersion()})
	}
	return out
}
