package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/go-sql-driver/mysql"

	"sluice/internal/testkit"
)

// leastAccount makes the account that the probes are made for.
const leastAccount = `
CREATE DATABASE matomo_edge;
CREATE SQL SECURITY DEFINER VIEW matomo_edge.v_option AS SELECT option_name, option_value FROM matomo.matomo_option
  WHERE option_name = 'MatomoUpdateHistory' OR option_name LIKE 'version\_%';
CREATE USER edge@'%' IDENTIFIED BY 'edge' WITH MAX_USER_CONNECTIONS 3;
GRANT SELECT (idsite, timezone, ts_created) ON matomo.matomo_site TO edge@'%';
GRANT SELECT (idlink_va, idsite, idvisitor, idvisit, server_time, idpageview, pageview_position, custom_float, idaction_url, idaction_name, idaction_event_category, idaction_event_action, idaction_content_name, idaction_content_piece) ON matomo.matomo_log_link_visit_action TO edge@'%';
GRANT SELECT (idaction, type, name) ON matomo.matomo_log_action TO edge@'%';
GRANT SELECT (idvisit, idsite, idvisitor, visit_last_action_time, visit_total_actions, visit_total_interactions, visit_total_events) ON matomo.matomo_log_visit TO edge@'%';
GRANT SELECT (idvisit, idsite, idgoal, idlink_va, server_time) ON matomo.matomo_log_conversion TO edge@'%';
GRANT SELECT ON matomo_edge.v_option TO edge@'%';`

func findProbe(t *testing.T, probes []Probe, name string) Probe {
	t.Helper()
	for _, p := range probes {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no probe %q in %+v", name, probes)
	return Probe{}
}

// TestProbes provokes each finding on a real server, with the least account.
func TestProbes(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(leastAccount)
	db, err := newDatabase(server.DSN("edge", "edge", "matomo"), "matomo_")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.close() })
	p := &prober{db: db}
	expect := func(name string, state ProbeState, reason Reason) {
		t.Helper()
		got := findProbe(t, p.probe(t.Context()), name)
		if got.State != state || got.reason != reason {
			t.Errorf("%s: %s %q (%s), want %s %q", name, got.State, got.reason, got.Detail, state, reason)
		}
	}
	for _, found := range p.probe(t.Context()) {
		want := ProbeOK
		if slices.Contains([]string{"metadata locks", "statements", "replica"}, found.Name) {
			want = ProbeUnknown // no privilege for any of them
		}
		if found.State != want {
			t.Errorf("healthy server: %s is %s (%s), want %s", found.Name, found.State, found.Detail, want)
		}
	}
	if got := findProbe(t, p.probe(t.Context()), "tables"); !strings.Contains(got.Detail, "option") {
		t.Errorf("tables: %q does not name what could not be read", got.Detail)
	}

	server.Exec("SET GLOBAL read_only=1")
	expect("writable", ProbeBad, ReasonReadOnly)
	server.Exec("SET GLOBAL read_only=0")
	expect("writable", ProbeOK, ReasonNone)

	server.Exec("UPDATE matomo.matomo_option SET option_value='5.1.0' WHERE option_name='version_core'")
	expect("version", ProbeBad, ReasonUpgrade)
	p.changedAt = time.Now().Add(-upgradeQuiet)
	expect("version", ProbeOK, ReasonNone)

	server.Exec("RENAME TABLE matomo.matomo_log_visit TO matomo.away")
	expect("tables", ProbeBad, ReasonUpgrade)
	server.Exec("RENAME TABLE matomo.away TO matomo.matomo_log_visit")
	expect("tables", ProbeOK, ReasonNone)

	// A session that holds a table makes a reader wait for its lock.
	locked := make(chan error, 1)
	go func() { // ends with the statement
		_, err := server.TryExec("USE matomo; LOCK TABLES matomo_log_visit WRITE; SELECT SLEEP(4)")
		locked <- err
	}()
	deadline := time.Now().Add(3 * time.Second)
	for findProbe(t, p.probe(t.Context()), "tables").State != ProbeBad {
		if time.Now().After(deadline) {
			t.Fatal("a locked table is not noticed")
		}
	}
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	expect("tables", ProbeOK, ReasonNone)

	server.Exec("SET GLOBAL max_connections=10")
	var held []*database
	for range 9 {
		other, err := newDatabase(server.DSN("root", "", "matomo"), "matomo_")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { other.close() })
		if _, _, err := other.one(t.Context(), "SELECT 1"); err != nil {
			t.Fatal(err)
		}
		held = append(held, other)
	}
	expect("load", ProbeBad, ReasonOverload)
	late, err := newDatabase(server.DSN("edge", "edge", "matomo"), "matomo_")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { late.close() })
	if got := (&prober{db: late}).probe(t.Context()); len(got) != 1 || got[0].State != ProbeBad || got[0].reason != ReasonOverload {
		t.Errorf("no connection left: %+v, want one bad", got)
	}
	for _, other := range held {
		other.close()
	}
	server.Exec("SET GLOBAL max_connections=151")
	expect("load", ProbeOK, ReasonNone)

	server.Pause()
	for range 2 { // the first may find the server not yet frozen
		found := p.probe(t.Context())
		if last := found[len(found)-1]; last.State != ProbeUnknown || classify(last.err) != faultUnreachable || len(found) == 9 {
			t.Errorf("frozen server: %+v, want to stop at one that is unknown", found)
		}
	}
	server.Continue()
	server.Kill()
	if found := p.probe(t.Context()); len(found) != 1 || found[0].State != ProbeUnknown {
		t.Errorf("dead server: %+v, want one unknown", found)
	}
	server.Start()
	expect("connect", ProbeOK, ReasonNone)
}

// TestCheckNamesWhatIsMissing: for each missing privilege there is the GRANT, and
// no password anywhere.
func TestCheckOnline(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(leastAccount)
	server.Exec("CREATE USER poor@'%' IDENTIFIED BY 'hunter2'; GRANT SELECT (idsite, timezone, ts_created) ON matomo.matomo_site TO poor@'%'")
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	endpoint := m.Serve(t) + "/matomo.php"
	check := func(cfg Config) map[string][]Finding {
		t.Helper()
		cfg.Endpoint = endpoint
		cfg.TablesPrefix = "matomo_"
		s, err := New(cfg, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
		if err != nil {
			t.Fatal(err)
		}
		if s.db != nil {
			t.Cleanup(func() { s.db.close() })
		}
		out := map[string][]Finding{}
		for _, f := range s.Check(t.Context()) {
			out[f.Name] = append(out[f.Name], f)
			all := fmt.Sprint(f)
			for _, secret := range []string{"hunter2", testkit.SuperToken, testkit.AdminToken, testkit.SecureSuperToken} {
				if strings.Contains(all, secret) {
					t.Errorf("%+v tells a secret", f)
				}
			}
		}
		return out
	}
	level := func(found map[string][]Finding, name string, want Level, text string) {
		t.Helper()
		for _, f := range found[name] {
			if f.Level == want && strings.Contains(f.Text+" "+f.Try, text) {
				return
			}
		}
		t.Errorf("%s: %+v, want %s with %q", name, found[name], want, text)
	}
	found := check(Config{Token: testkit.SuperToken, DSN: server.DSN("edge", "edge", "matomo")})
	level(found, "matomo", LevelOK, "5.0.2, ")
	level(found, "matomo", LevelOK, "QueuedTracking off")
	level(found, "token", LevelOK, "superuser")
	level(found, "clock", LevelOK, "from ours")
	level(found, "mysql", LevelOK, "MariaDB")
	m.SetVersion("5.1.0")
	found = check(Config{Token: testkit.SuperToken, DSN: server.DSN("edge", "edge", "matomo"), ReaderDSN: server.DSN("edge", "edge", "matomo")})
	level(found, "mysql", LevelFault, "database has version 5.0.2 and its code 5.1.0")
	level(found, "mysql", LevelWarn, "how far the replica is behind: no right to ask")
	m.SetVersion(testkit.Version)

	found = check(Config{Token: testkit.AdminToken, DSN: server.DSN("poor", "hunter2", "matomo")})
	level(found, "token", LevelWarn, "admin on site 1, not superuser")
	level(found, "mysql", LevelFault, "GRANT SELECT (idvisit, idsite, idgoal, idlink_va, server_time) ON `matomo`.`matomo_log_conversion` TO 'poor'@'%';")
	level(found, "mysql", LevelWarn, "GRANT SELECT ON `matomo_edge`.`v_option` TO 'poor'@'%';")

	found = check(Config{Token: testkit.SecureSuperToken, DSN: server.DSN("edge", "wrong", "matomo")})
	level(found, "token", LevelFault, "for secure requests only")
	level(found, "mysql", LevelFault, "MySQL 1045")

	found = check(Config{})
	level(found, "token", LevelUnset, "nothing is sent")
	level(found, "mysql", LevelUnset, "not set")

	m.SetQueuedTracking(true)
	found = check(Config{Token: "ffffffffffffffffffffffffffffffff"})
	level(found, "matomo", LevelWarn, "QueuedTracking is on")
	level(found, "token", LevelFault, "does not accept it")
	m.SetQueuedTracking(false)

	m.SetClock(time.Hour)
	level(check(Config{Token: testkit.SuperToken}), "clock", LevelWarn, "+3")
	m.Always(testkit.LoginPage())
	found = check(Config{Token: testkit.SuperToken})
	level(found, "matomo", LevelFault, "web page")
	level(found, "token", LevelFault, "could not be checked")
}

// TestDatabaseHoldsTheDrain: what only MySQL can show stops the drain at once, and
// MySQL being out of our reach does not.
func TestDatabaseHoldsTheDrain(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(leastAccount)
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	cfg := testConfig()
	cfg.DSN, cfg.TablesPrefix = server.DSN("edge", "edge", "matomo"), "matomo_"
	r := start(t, m, cfg)
	wait := func(state State, reason Reason) {
		t.Helper()
		ctx := soon(t)
		for {
			changed := r.brk.changes()
			if st := r.standing(); st.state == state && (reason == ReasonNone || st.reason == reason) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("state %+v, want %s %q", r.standing(), state, reason)
			}
		}
	}
	wait(StateSending, ReasonNone)
	server.Exec("SET GLOBAL read_only=1")
	wait(StateHolding, ReasonReadOnly)
	r.src.add(hitOf(1, "a"))
	server.Exec("SET GLOBAL read_only=0")
	wait(StateSending, ReasonNone)
	r.src.waitSettled(soon(t), 1)
	server.Kill()
	r.src.add(hitOf(1, "b"))
	r.src.waitSettled(soon(t), 2)
	if !r.Healthy() {
		t.Errorf("MySQL out of our reach stops the drain")
	}
	server.Start()
}

func TestDatabaseSettings(t *testing.T) {
	for _, tt := range []struct{ name, dsn, prefix string }{
		{"no DSN at all", "nonsense", "matomo_"},
		{"no database", "u:hunter2@tcp(127.0.0.1:1)/", "matomo_"},
		{"a prefix that is no name", "u:hunter2@tcp(127.0.0.1:1)/m", "matomo_`; DROP"},
		{"a password with an unescaped slash", "u:hunter2/x@tcp(127.0.0.1:1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newDatabase(tt.dsn, tt.prefix)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error %q tells the password", err)
			}
		})
	}
}

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want fault
	}{
		{nil, faultNone},
		{&mysql.MySQLError{Number: 1040}, faultBusy},
		{&mysql.MySQLError{Number: 1205}, faultBusy},
		{&mysql.MySQLError{Number: 1290}, faultReadOnly},
		{&mysql.MySQLError{Number: 1114}, faultReadOnly},
		{&mysql.MySQLError{Number: 1146}, faultSchema},
		{&mysql.MySQLError{Number: 1045}, faultAccount},
		{&mysql.MySQLError{Number: 1142}, faultAccount},
		{&mysql.MySQLError{Number: 1064}, faultOther},
		{fmt.Errorf("ask: %w", &mysql.MySQLError{Number: 1049}), faultAccount},
		{mysql.ErrInvalidConn, faultUnreachable},
		{context.DeadlineExceeded, faultUnreachable},
		{errors.New("dial tcp: refused"), faultUnreachable},
		{&mysql.MySQLError{Number: 1213}, faultBusy},
		{&mysql.MySQLError{Number: 1203}, faultBusy},
		{&mysql.MySQLError{Number: 2006}, faultUnreachable},
		{&mysql.MySQLError{Number: 2013}, faultUnreachable},
		{&mysql.MySQLError{Number: 1836}, faultReadOnly},
		{&mysql.MySQLError{Number: 1792}, faultReadOnly},
		{&mysql.MySQLError{Number: 1047}, faultReadOnly},
		{&mysql.MySQLError{Number: 3100}, faultReadOnly},
		{&mysql.MySQLError{Number: 1021}, faultReadOnly},
		{&mysql.MySQLError{Number: 1054}, faultSchema},
		{&mysql.MySQLError{Number: 1146}, faultSchema},
		{&mysql.MySQLError{Number: 1364}, faultSchema},
		{&mysql.MySQLError{Number: 1044}, faultAccount},
		{&mysql.MySQLError{Number: 1153}, faultLimit},
		{&mysql.MySQLError{Number: 3024}, faultLimit},
		{&mysql.MySQLError{Number: 1969}, faultLimit},
	} {
		if got := classify(tt.err); got != tt.want {
			t.Errorf("classify(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}
