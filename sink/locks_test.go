package sink

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
)

// TestStatements provokes on a real server what only the list of statements shows,
// for an account with PROCESS and for one without.
func TestStatements(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(leastAccount)
	server.Exec("CREATE USER seer@'%' IDENTIFIED BY 'seer'; GRANT PROCESS ON *.* TO seer@'%'; GRANT SELECT ON matomo.* TO seer@'%'")
	probers := map[string]*prober{}
	for _, user := range []string{"edge", "seer"} {
		db, err := newDatabase(server.DSN(user, user, "matomo"), "matomo_")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.close() })
		probers[user] = &prober{db: db}
	}
	find := func(user, name string) Probe { return findProbe(t, probers[user].probe(t.Context()), name) }
	until := func(what string, done func() bool) {
		t.Helper()
		for ctx := soon(t); !done(); {
			if ctx.Err() != nil {
				t.Fatalf("%s is not noticed", what)
			}
		}
	}
	if got := find("seer", "statements"); got.State != ProbeOK {
		t.Errorf("healthy server: %+v", got)
	}
	if got := find("edge", "statements"); got.State != ProbeUnknown || !strings.Contains(got.Detail, "PROCESS") {
		t.Errorf("without PROCESS: %+v, want unknown", got)
	}
	reader, err := newDatabase(server.DSN("root", "", "matomo"), "matomo_")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.close() })
	run := func(text string) {
		t.Helper()
		if _, err := reader.rows(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}

	// An ALTER TABLE that waits for a transaction which has read the table.
	run("START TRANSACTION")
	run("SELECT COUNT(*) FROM matomo_log_visit")
	altered := make(chan error, 1)
	go func() { // ends when the reader does
		_, err := server.TryExec("USE matomo; ALTER TABLE\n  `matomo_log_visit` ADD COLUMN fresh INT NULL")
		altered <- err
	}()
	until("a waiting ALTER TABLE", func() bool {
		got := find("seer", "statements")
		return got.State == ProbeBad && got.reason == ReasonUpgrade && strings.HasPrefix(got.Detail, "ALTER TABLE on Matomo's log tables runs for ")
	})
	// Readers queue behind it, so the poor account sees it by its own waiting.
	if got := find("edge", "tables"); got.State != ProbeBad || got.reason != ReasonUpgrade {
		t.Errorf("tables behind a waiting ALTER TABLE: %+v", got)
	}
	run("COMMIT")
	if err := <-altered; err != nil {
		t.Fatal(err)
	}
	if got := find("seer", "statements"); got.State != ProbeOK {
		t.Errorf("after the ALTER TABLE: %+v", got)
	}

	// LOCK TABLES … READ, as Matomo's purge of raw data: readers pass, writers wait.
	run("LOCK TABLES matomo_log_visit READ, matomo_log_action READ")
	written := make(chan error, 1)
	go func() { // ends when the tables are unlocked
		_, err := server.TryExec("USE matomo; UPDATE matomo_log_action SET type=1")
		written <- err
	}()
	until("a writer that waits", func() bool {
		got := find("seer", "statements")
		return got.State == ProbeBad && strings.Contains(got.Detail, "wait for Matomo's log tables")
	})
	if got := find("edge", "tables"); got.State != ProbeOK {
		t.Errorf("tables under LOCK TABLES … READ: %+v; they can be read", got)
	}
	run("UNLOCK TABLES")
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if got := find("seer", "statements"); got.State != ProbeOK {
		t.Errorf("after UNLOCK TABLES: %+v", got)
	}
}

func TestChangesOfLogTables(t *testing.T) {
	p := &prober{db: &database{name: "Matomo", prefix: "piwik_"}}
	for _, tt := range []struct{ place, text, want string }{
		{"Matomo", "ALTER TABLE `piwik_log_visit` ADD x INT", "ALTER TABLE"},
		{"Matomo", "alter  online\ttable piwik_log_visit add x int", "ALTER ONLINE TABLE"},
		{"other", "ALTER TABLE matomo.piwik_log_visit ADD x INT", "ALTER TABLE"},
		{"", "/* updater */ ALTER TABLE `matomo`.`piwik_log_conversion` ADD x INT", "ALTER TABLE"},
		{"Matomo", "OPTIMIZE TABLE piwik_log_visit,piwik_log_action", "OPTIMIZE TABLE"},
		{"Matomo", "LOCK TABLES piwik_site READ, piwik_log_action WRITE", "LOCK TABLES"},
		{"Matomo", "CREATE UNIQUE INDEX i ON piwik_log_visit (idsite)", "CREATE UNIQUE INDEX"},
		{"Matomo", "DROP INDEX i ON piwik_log_visit", "DROP INDEX"},
		{"Matomo", "TRUNCATE piwik_log_visit", "TRUNCATE"},
		{"Matomo", "RENAME TABLE piwik_log_visit TO x", "RENAME TABLE"},
		{"other", "ALTER TABLE piwik_log_visit ADD x INT", ""},
		{"Matomo", "ALTER TABLE other.piwik_log_visit ADD x INT", ""},
		{"Matomo", "ALTER TABLE piwik_archive_blob_2024_01 ADD x INT", ""},
		{"Matomo", "ALTER TABLE my_piwik_log_visit ADD x INT", ""},
		{"Matomo", "CREATE TEMPORARY TABLE piwik_logtmpsegment1 AS SELECT idvisit FROM piwik_log_visit", ""},
		{"Matomo", "INSERT INTO piwik_log_action (name) VALUES ('ALTER TABLE piwik_log_visit')", ""},
		{"Matomo", "/* x */ SELECT * FROM piwik_log_visit", ""},
	} {
		if got := p.changes(tt.place, tt.text); got != tt.want {
			t.Errorf("in %q %q: %q, want %q", tt.place, tt.text, got, tt.want)
		}
	}
}

// TestGalera has what a node of a cluster can say.
func TestGalera(t *testing.T) {
	synced := map[string]string{"wsrep_ready": "ON", "wsrep_cluster_status": "Primary", "wsrep_local_state": "4"}
	with := func(name, value string) map[string]string {
		out := map[string]string{name: value}
		for k, v := range synced {
			if k != name {
				out[k] = v
			}
		}
		return out
	}
	for _, tt := range []struct {
		name    string
		status  map[string]string
		paused  int
		stalled bool
		state   ProbeState
		reason  Reason
	}{
		{"synced", synced, 0, false, ProbeOK, ReasonNone},
		{"not ready", with("wsrep_ready", "OFF"), 0, false, ProbeBad, ReasonReadOnly},
		{"cut off", with("wsrep_cluster_status", "non-Primary"), 0, false, ProbeBad, ReasonReadOnly},
		{"joining", with("wsrep_local_state", "1"), 0, false, ProbeBad, ReasonDown},
		{"a donor", with("wsrep_local_state", "2"), 0, false, ProbeSlow, ReasonNone},
		{"a little flow control", synced, 10, false, ProbeOK, ReasonNone},
		{"much flow control", synced, 50, false, ProbeSlow, ReasonNone},
		{"a moment of full flow control", synced, 95, false, ProbeSlow, ReasonNone},
		{"lasting flow control", synced, 95, true, ProbeBad, ReasonOverload},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := judgeGalera(tt.status, tt.paused, tt.stalled); got.State != tt.state || got.reason != tt.reason {
				t.Errorf("%s %q (%s), want %s %q", got.State, got.reason, got.Detail, tt.state, tt.reason)
			}
		})
	}
	var f flowControl
	at := time.Now()
	for i, want := range []int{0, 50, 0, 100, 0} { // the last one after a restart of the server
		sum := []int{7e9, 12e9, 12e9, 22e9, 1e9}[i]
		if got := f.share(strconv.Itoa(sum), at); got != want {
			t.Errorf("look %d: %d %% of the time, want %d", i, got, want)
		}
		at = at.Add(10 * time.Second)
	}
}

// TestReplicaLag asks a real replica, and the source, which is none.
func TestReplicaLag(t *testing.T) {
	t.Parallel()
	source := testkit.StartMariaDB(t, "--log-bin", "--server-id=1")
	replica := testkit.StartMariaDB(t, "--server-id=2")
	source.CreateMatomo("matomo", "matomo_")
	source.Exec("CREATE USER copier@'%' IDENTIFIED BY 'copier'; GRANT REPLICATION SLAVE ON *.* TO copier@'%'")
	replica.Exec("CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=" + strconv.Itoa(source.Port()) +
		", MASTER_USER='copier', MASTER_PASSWORD='copier', MASTER_USE_GTID=slave_pos; START SLAVE;" +
		"CREATE USER asker@'%' IDENTIFIED BY 'asker'; GRANT SLAVE MONITOR ON *.* TO asker@'%'; CREATE USER poor@'%' IDENTIFIED BY 'poor'")
	open := func(server *testkit.MariaDB, user, password, database string) *database {
		db, err := newDatabase(server.DSN(user, password, database), "matomo_")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.close() })
		return db
	}
	main := open(source, "root", "", "matomo")
	p := &prober{db: main}
	if got := p.askReplica(t.Context()); got.State != ProbeOK || p.lag != nil {
		t.Errorf("the source: %+v, lag %v; want ok and no lag", got, p.lag)
	}
	p.reader = open(replica, "asker", "asker", "information_schema")
	for ctx := soon(t); p.lag == nil; {
		if got := p.askReplica(ctx); ctx.Err() != nil {
			t.Fatalf("the replica: %+v", got)
		}
	}
	if *p.lag > time.Minute {
		t.Errorf("lag %v", *p.lag)
	}
	replica.Exec("STOP SLAVE")
	if got := p.askReplica(t.Context()); got.State != ProbeSlow || p.lag != nil {
		t.Errorf("a replica that stands still: %+v, lag %v; want slow and no lag", got, p.lag)
	}
	p.reader = open(replica, "poor", "poor", "information_schema")
	if got := p.askReplica(t.Context()); got.State != ProbeUnknown || !strings.Contains(got.Detail, "SLAVE MONITOR") {
		t.Errorf("without the right: %+v", got)
	}
	p.reader = open(source, "root", "", "matomo")
	if got := p.askReplica(t.Context()); got.State != ProbeUnknown {
		t.Errorf("a reader that is no replica: %+v", got)
	}
	// A reader that is gone says nothing of the server that Matomo writes to.
	p.reader = open(replica, "asker", "asker", "information_schema")
	replica.Kill()
	found := p.probe(t.Context())
	if got := findProbe(t, found, "replica"); got.State != ProbeUnknown || found[0].State != ProbeOK {
		t.Errorf("a reader that is gone: %+v", found)
	}
	w := &watched{}
	if w.set(found, p.lag, time.Time{}); w.troubled() {
		t.Error("a reader that is gone counts as trouble of Matomo's server")
	}
}
