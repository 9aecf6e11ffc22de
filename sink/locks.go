package sink

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// longStatement is how long a statement may change or lock a table, in seconds,
// before it counts.
const longStatement = 2

// statements is probe 6: statements that change or lock Matomo's log tables, and
// those that wait for them. It alone sees what lets readers pass and makes writers
// wait: the copy of an ALTER TABLE, LOCK TABLES … READ. It needs the right PROCESS;
// without it a server shows an account its own threads only.
//
// Statements can hold what visitors sent, so only those that begin like a change of a
// table are read at all; none is logged.
func (p *prober) statements(ctx context.Context) Probe {
	found := Probe{Name: "statements", State: ProbeOK}
	n, _, err := p.db.one(ctx, "SELECT (SELECT COUNT(*) FROM information_schema.processlist WHERE USER <> SUBSTRING_INDEX(USER(), '@', 1)) + "+
		"(SELECT COUNT(*) FROM information_schema.user_privileges WHERE PRIVILEGE_TYPE = 'PROCESS' AND GRANTEE = ?)", p.db.account())
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	if number(n) == 0 {
		found.State, found.Detail = ProbeUnknown, "only Sluice's own are visible: the account has no PROCESS"
		return found
	}
	rows, err := p.db.rows(ctx, fmt.Sprintf("SELECT COALESCE(DB, '') AS place, TIME AS seconds, LEFT(INFO, 500) AS text FROM information_schema.processlist "+
		`WHERE ID <> CONNECTION_ID() AND COMMAND <> 'Sleep' AND TIME >= %d AND INFO REGEXP '^[[:space:]]*(/[*]|ALTER|OPTIMIZE|REPAIR|LOCK|CREATE|DROP|RENAME|TRUNCATE)'`, longStatement))
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	for _, row := range rows {
		if verb := p.changes(row["place"], row["text"]); verb != "" {
			found.State, found.reason, found.Detail = ProbeBad, ReasonUpgrade, fmt.Sprintf("%s on Matomo's log tables runs for %s s", verb, row["seconds"])
			return found
		}
	}
	n, _, err = p.db.one(ctx, fmt.Sprintf("SELECT COUNT(*) FROM information_schema.processlist WHERE STATE LIKE 'Waiting for table%%' AND TIME >= %d AND DB = ? AND INFO LIKE ?", longStatement),
		p.db.name, "%"+p.logTables())
	switch {
	case err != nil:
		return Probe{Name: found.Name, err: err}
	case number(n) > 0:
		found.State, found.reason, found.Detail = ProbeBad, ReasonUpgrade, "statements wait for Matomo's log tables, which somebody has locked"
	}
	return found
}

// logTables is a LIKE pattern for the names of Matomo's log tables.
func (p *prober) logTables() string { return strings.ReplaceAll(p.db.prefix, "_", `\_`) + `log\_%` }

// changing are the beginnings of statements that change or lock tables as a whole.
// CREATE TABLE is not among them: archiving makes temporary tables all day.
var changing = regexp.MustCompile(`^(alter (online )?(ignore )?table|optimize ((local|no_write_to_binlog) )?table|repair table|lock tables?|` +
	`create (or replace )?(unique |fulltext |spatial )?index|drop index|rename table|truncate( table)?)\b`)

var comment = regexp.MustCompile(`^/\*.*?\*/ ?`)

// changes gives the first words of a statement that changes or locks Matomo's log
// tables, "" for any other. place is the database that it runs in.
func (p *prober) changes(place, text string) string {
	text = strings.ToLower(strings.Join(strings.Fields(strings.ReplaceAll(text, "`", "")), " "))
	text = comment.ReplaceAllString(text, "")
	verb := changing.FindString(text)
	if verb == "" {
		return ""
	}
	name, table := strings.ToLower(p.db.name), strings.ToLower(p.db.prefix)+"log_"
	for word := range strings.FieldsFuncSeq(text[len(verb):], func(r rune) bool { return r == ' ' || r == ',' || r == '(' }) {
		database, rest, qualified := strings.Cut(word, ".")
		if !qualified {
			database, rest = strings.ToLower(place), word
		}
		if database == name && strings.HasPrefix(rest, table) {
			return strings.ToUpper(verb)
		}
	}
	return ""
}

// locks is probe 7. On MariaDB the instrument is off by default, so the table may
// be empty or absent.
func (p *prober) locks(ctx context.Context) Probe {
	found := Probe{Name: "metadata locks", State: ProbeOK}
	n, _, err := p.db.one(ctx, "SELECT COUNT(*) FROM performance_schema.metadata_locks WHERE LOCK_STATUS = 'PENDING' AND OBJECT_SCHEMA = ? AND OBJECT_NAME LIKE ?",
		p.db.name, p.logTables())
	if err != nil {
		if classify(err) == faultSchema {
			return Probe{Name: found.Name, State: ProbeUnknown, Detail: "the server does not keep this list"}
		}
		return Probe{Name: found.Name, err: err}
	}
	if number(n) > 0 {
		p.pending++
	} else {
		p.pending = 0
	}
	if p.pending >= pendingSamples {
		found.State, found.reason, found.Detail = ProbeBad, ReasonUpgrade, "statements wait for a lock on Matomo's log tables"
	}
	return found
}

// galera is probe 8. A plain MariaDB reports wsrep_ready=OFF, so the cluster
// counts only where a provider is loaded.
func (p *prober) galera(ctx context.Context) Probe {
	const name = "cluster"
	vars, err := p.db.pairs(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('wsrep_on','wsrep_provider')")
	if err != nil {
		return Probe{Name: name, err: err}
	}
	if provider := vars["wsrep_provider"]; !strings.EqualFold(vars["wsrep_on"], "ON") || provider == "" || provider == "none" {
		return Probe{Name: name, State: ProbeOK}
	}
	status, err := p.db.pairs(ctx, "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready','wsrep_cluster_status','wsrep_local_state','wsrep_flow_control_paused_ns')")
	if err != nil {
		return Probe{Name: name, err: err}
	}
	share := p.flow.share(status["wsrep_flow_control_paused_ns"], time.Now())
	if share > stalledPercent {
		p.paused++
	} else {
		p.paused = 0
	}
	found := judgeGalera(status, share, p.paused >= slowSamples)
	found.Name = name
	return found
}

// Shares of the time in which a Galera cluster makes writers wait for its slowest
// node, in percent.
const (
	busyPercent    = 10
	stalledPercent = 90
)

func judgeGalera(status map[string]string, pausedPercent int, stalled bool) Probe {
	found := Probe{State: ProbeOK}
	switch state := status["wsrep_local_state"]; {
	case !strings.EqualFold(status["wsrep_ready"], "ON") || !strings.EqualFold(status["wsrep_cluster_status"], "Primary"):
		found.State, found.reason, found.Detail = ProbeBad, ReasonReadOnly, "the Galera node is not part of the primary component"
	case state != "4" && state != "2":
		found.State, found.reason, found.Detail = ProbeBad, ReasonDown, "the Galera node is not synced"
	case stalled:
		found.State, found.reason, found.Detail = ProbeBad, ReasonOverload, fmt.Sprintf("the Galera cluster makes writes wait %d %% of the time", pausedPercent)
	case state == "2":
		found.State, found.Detail = ProbeSlow, "the Galera node is a donor"
	case pausedPercent > busyPercent:
		found.State, found.Detail = ProbeSlow, fmt.Sprintf("the Galera cluster makes writes wait %d %% of the time", pausedPercent)
	}
	return found
}

// A flowControl turns Galera's running sum of nanoseconds into the share of the time
// since the last look.
type flowControl struct {
	nanoseconds int
	at          time.Time
}

func (f *flowControl) share(sum string, now time.Time) (percent int) {
	n := number(sum)
	if elapsed := now.Sub(f.at); !f.at.IsZero() && elapsed > 0 && n >= f.nanoseconds {
		percent = min(100, int(100*int64(n-f.nanoseconds)/int64(elapsed)))
	}
	f.nanoseconds, f.at = n, now
	return percent
}
