package sink

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A ProbeState is what a MySQL probe found.
type ProbeState string

const (
	ProbeOK      ProbeState = "ok"
	ProbeBad     ProbeState = "bad"     // Matomo cannot record now
	ProbeSlow    ProbeState = "slow"    // worth a look, no reason to stop
	ProbeUnknown ProbeState = "unknown" // the account may not ask, or nobody answers
)

// A Probe is one MySQL health check and its finding.
type Probe struct {
	Name   string     `json:"name"`
	State  ProbeState `json:"state"`
	Detail string     `json:"detail,omitempty"`

	reason Reason // what holds the drain when State is ProbeBad
	err    error  // why State is ProbeUnknown
}

const (
	// Samples in a row after which a finding that may be a moment's counts.
	slowSamples    = 3
	pendingSamples = 2
	// upgradeQuiet is how long Matomo's version must stand still after a change.
	upgradeQuiet = time.Minute
	// Shares of max_connections, in percent.
	crowdedPercent = 90
	fullPercent    = 97
)

// prober runs the MySQL probes and keeps what they compare with. It belongs to
// one goroutine at a time.
type prober struct {
	db *database

	threads, pending int // samples in a row
	version          string
	versionAt        time.Time // of the last change; zero when none was seen
}

// probe runs the probes, until the server stops answering.
func (p *prober) probe(ctx context.Context) []Probe {
	var out []Probe
	for _, one := range []func(context.Context) Probe{p.alive, p.writable, p.load, p.release, p.tables, p.locks, p.galera} {
		found := one(ctx)
		if found.err != nil && found.State == "" {
			found.State, found.Detail = ProbeUnknown, mysqlText(found.err)
		}
		out = append(out, found)
		if len(out) == 1 && found.State != ProbeOK || found.err != nil && classify(found.err) == faultUnreachable {
			break
		}
	}
	return out
}

// alive is probe 1.
func (p *prober) alive(ctx context.Context) Probe {
	found := Probe{Name: "connect", State: ProbeOK}
	if _, _, err := p.db.one(ctx, "SELECT 1"); err != nil {
		found.err, found.State, found.Detail = err, ProbeUnknown, mysqlText(err)
		if classify(err) == faultReadOnly {
			found.State, found.reason = ProbeBad, ReasonReadOnly
		}
	}
	return found
}

// writable is probe 2. MariaDB and MySQL before 5.7 have no super_read_only.
func (p *prober) writable(ctx context.Context) Probe {
	found := Probe{Name: "writable", State: ProbeOK}
	vars, err := p.db.pairs(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only','super_read_only','innodb_read_only')")
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	for _, name := range []string{"read_only", "super_read_only", "innodb_read_only"} {
		if v := strings.ToUpper(vars[name]); v != "" && v != "OFF" && v != "0" {
			found.State, found.reason, found.Detail = ProbeBad, ReasonReadOnly, "MySQL takes no writes ("+name+")"
		}
	}
	return found
}

// load is probe 3.
func (p *prober) load(ctx context.Context) Probe {
	found := Probe{Name: "load", State: ProbeOK}
	status, err := p.db.pairs(ctx, "SHOW GLOBAL STATUS WHERE Variable_name IN ('Threads_running','Threads_connected')")
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	vars, err := p.db.pairs(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name = 'max_connections'")
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	running, connected, most := number(status["threads_running"]), number(status["threads_connected"]), number(vars["max_connections"])
	if running > max(4*runtime.NumCPU(), 64) {
		p.threads++
	} else {
		p.threads = 0
	}
	switch {
	case most > 0 && 100*connected > fullPercent*most:
		found.State, found.reason = ProbeBad, ReasonOverload
		found.Detail = fmt.Sprintf("MySQL has %d of %d connections in use", connected, most)
	case most > 0 && 100*connected > crowdedPercent*most:
		found.State, found.Detail = ProbeSlow, fmt.Sprintf("MySQL has %d of %d connections in use", connected, most)
	case p.threads >= slowSamples:
		found.State, found.Detail = ProbeSlow, fmt.Sprintf("MySQL runs %d statements at once", running)
	}
	return found
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // 0 says nothing, and is read so
	return n
}

// release is probe 4: Matomo writes its version after every step of an upgrade.
func (p *prober) release(ctx context.Context) Probe {
	found := Probe{Name: "version", State: ProbeOK}
	version, err := p.matomoVersion(ctx)
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	if p.version != "" && version != p.version {
		p.versionAt = time.Now()
	}
	p.version = version
	if !p.versionAt.IsZero() && time.Since(p.versionAt) < upgradeQuiet {
		found.State, found.reason, found.Detail = ProbeBad, ReasonUpgrade, "Matomo's version has just changed to "+version
	}
	return found
}

// matomoVersion reads Matomo's version and upgrade history from the view that the
// least account has, or from the option table.
func (p *prober) matomoVersion(ctx context.Context) (string, error) {
	var first error
	for _, from := range []string{"`" + p.db.name + "_edge`.`v_option`", p.db.table("option")} {
		values, err := p.db.pairs(ctx, "SELECT option_name, option_value FROM "+from+" WHERE option_name = 'version_core'")
		if err == nil && values["version_core"] != "" {
			return values["version_core"], nil
		}
		if err == nil {
			err = errNoVersion
		}
		if f := classify(err); f == faultUnreachable && err != errNoVersion {
			return "", err
		}
		if first == nil || errorNumber(first) == 1049 {
			first = err
		}
	}
	return "", first
}

var errNoVersion = errors.New("the database does not say Matomo's version")

// probedTables are the tables that tracking writes, with a column that the least
// account may read.
var probedTables = [...][2]string{
	{"log_visit", "idvisit"}, {"log_link_visit_action", "idlink_va"}, {"log_conversion", "idvisit"},
	{"log_action", "idaction"}, {"site", "idsite"}, {"option", "option_name"},
}

// tables is probe 5: an exclusive lock that is held or waited for makes a plain
// read fail within a second.
func (p *prober) tables(ctx context.Context) Probe {
	found := Probe{Name: "tables", State: ProbeOK}
	var refused, missing []string
	for _, t := range probedTables {
		_, _, err := p.db.one(ctx, "SELECT `"+t[1]+"` FROM "+p.db.table(t[0])+" LIMIT 1")
		switch {
		case err == nil:
		case errorNumber(err) == 1205:
			found.State, found.reason, found.Detail = ProbeBad, ReasonUpgrade, "a table of Matomo is locked for a change: "+t[0]
			return found
		case classify(err) == faultSchema:
			missing = append(missing, t[0])
		case classify(err) == faultAccount:
			refused = append(refused, t[0])
		default:
			return Probe{Name: found.Name, err: err}
		}
	}
	switch {
	case len(missing)+len(refused) == len(probedTables):
		found.State = ProbeUnknown
	case len(missing) > 0:
		found.State, found.reason, found.Detail = ProbeBad, ReasonUpgrade, "tables of Matomo are not as expected: "+strings.Join(missing, ", ")
		return found
	}
	if len(missing) > 0 {
		found.Detail = "no tables of Matomo under this prefix: " + strings.Join(missing, ", ")
		return found
	}
	if len(refused) > 0 {
		found.Detail = "no SELECT on " + strings.Join(refused, ", ")
	}
	return found
}

// locks is probe 7. On MariaDB the instrument is off by default, so the table may
// be empty or absent.
func (p *prober) locks(ctx context.Context) Probe {
	found := Probe{Name: "metadata locks", State: ProbeOK}
	n, _, err := p.db.one(ctx, "SELECT COUNT(*) FROM performance_schema.metadata_locks WHERE LOCK_STATUS = 'PENDING' AND OBJECT_SCHEMA = ? AND OBJECT_NAME LIKE ?",
		p.db.name, strings.ReplaceAll(p.db.prefix, "_", `\_`)+`log\_%`)
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
	found := Probe{Name: "cluster", State: ProbeOK}
	vars, err := p.db.pairs(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('wsrep_on','wsrep_provider')")
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	if provider := vars["wsrep_provider"]; !strings.EqualFold(vars["wsrep_on"], "ON") || provider == "" || provider == "none" {
		return found
	}
	status, err := p.db.pairs(ctx, "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready','wsrep_cluster_status','wsrep_local_state','wsrep_flow_control_paused')")
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	switch state := status["wsrep_local_state"]; {
	case !strings.EqualFold(status["wsrep_ready"], "ON") || !strings.EqualFold(status["wsrep_cluster_status"], "Primary"):
		found.State, found.reason, found.Detail = ProbeBad, ReasonReadOnly, "the Galera node is not part of the primary component"
	case state != "4" && state != "2":
		found.State, found.reason, found.Detail = ProbeBad, ReasonDown, "the Galera node is not synced"
	case state == "2":
		found.State, found.Detail = ProbeSlow, "the Galera node is a donor"
	}
	return found
}
