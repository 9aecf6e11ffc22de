package sink

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strconv"
	"strings"
	"sync"
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
	// Shares of max_connections, in percent.
	crowdedPercent = 90
	fullPercent    = 97
)

// prober runs the MySQL probes and keeps what they compare with. Its methods probe,
// version and behind may be called from any goroutine; the rest belongs to probe.
type prober struct {
	db     *database
	reader *database // where replication is asked for; nil = db

	mu sync.Mutex // guards all below, and is held by probe all the time

	threads, pending, paused int               // samples in a row
	versions                 map[string]string // by option, as last read; nil = never
	source                   string            // where they were read
	change                   string            // what changed last, in words
	changedAt                time.Time         // zero when no change was seen
	flow                     flowControl
	lagged                   Probe // the last finding of probe 10
	lag                      *time.Duration
	lagAt                    time.Time
}

// version gives version_core as last read, "" when it is not known.
func (p *prober) version() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.versions[coreVersion]
}

// behind gives the replica's lag as last read, nil when it is not known, and the time
// before it was asked.
func (p *prober) behind() (*time.Duration, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lag, p.lagAt
}

// probe runs the probes, until the server stops answering.
func (p *prober) probe(ctx context.Context) []Probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Probe
	for _, one := range []func(context.Context) Probe{p.alive, p.writable, p.load, p.release, p.tables, p.statements, p.locks, p.galera, p.replica} {
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
		switch {
		case classify(err) == faultReadOnly:
			found.State, found.reason = ProbeBad, ReasonReadOnly
		case errorNumber(err) == 1040:
			found.State, found.reason, found.Detail = ProbeBad, ReasonOverload, "MySQL has no connection left (1040)"
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

// coreVersion is the option with Matomo's version, in lower case as [database.pairs]
// gives it.
const coreVersion = "version_core"

// release is probe 4: Matomo writes its version after every step of an upgrade,
// that of a plugin or of a column when it changes, and its history at the beginning.
func (p *prober) release(ctx context.Context) Probe {
	found := Probe{Name: "version", State: ProbeOK}
	source, versions, err := p.readVersions(ctx)
	if err != nil {
		return Probe{Name: found.Name, err: err}
	}
	if p.versions != nil {
		if what := versionChange(p.versions, versions, source == p.source); what != "" {
			p.change, p.changedAt = what, time.Now()
		}
	}
	p.source, p.versions = source, versions
	if !p.changedAt.IsZero() && time.Since(p.changedAt) < upgradeQuiet {
		found.State, found.reason, found.Detail = ProbeBad, ReasonUpgrade, p.change
	}
	return found
}

// readVersions reads what Matomo notes of versions from the view that the least
// account has, or from the option table.
func (p *prober) readVersions(ctx context.Context) (source string, versions map[string]string, err error) {
	var first error
	for _, from := range []string{"`" + p.db.name + "_edge`.`v_option`", p.db.table("option")} {
		versions, err := p.db.pairs(ctx, "SELECT option_name, option_value FROM "+from+
			` WHERE option_name = 'MatomoUpdateHistory' OR option_name LIKE 'version\_%'`)
		if err == nil && versions[coreVersion] != "" {
			return from, versions, nil
		}
		if err == nil {
			err = errNoVersion
		}
		if f := classify(err); f == faultUnreachable && err != errNoVersion {
			return "", nil, err
		}
		if first == nil || errorNumber(first) == 1049 {
			first = err
		}
	}
	return "", nil, first
}

var errNoVersion = errors.New("the database does not say Matomo's version")

// versionChange says what differs; "" = nothing. Only Matomo's own version can be
// compared when the two were not read at the same place.
func versionChange(before, after map[string]string, same bool) string {
	if old, now := before[coreVersion], after[coreVersion]; old != now {
		return fmt.Sprintf("Matomo's version in the database has changed from %s to %s", old, now)
	}
	if !same || maps.Equal(before, after) {
		return ""
	}
	for name, value := range after {
		if old, there := before[name]; name != "matomoupdatehistory" && (!there || old != value) {
			return "Matomo changes its tables or a plugin (" + name + ")"
		}
	}
	return "Matomo has begun an upgrade, or has removed a plugin"
}

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
