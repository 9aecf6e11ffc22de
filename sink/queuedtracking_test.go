package sink

import (
	"bytes"
	"compress/zlib"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
)

// startSending lets a sink that does not run look as if Matomo were well.
func (s *Sink) startSending() {
	s.brk.mu.Lock()
	defer s.brk.mu.Unlock()
	s.brk.started = true
}

// wantQueued checks what was found; pending -1 stands for nil.
func wantQueued(t *testing.T, when string, got QueuedTracking, known, on bool, pending int64) {
	t.Helper()
	n := int64(-1)
	if got.Pending != nil {
		n = *got.Pending
	}
	if got.Known != known || got.On != on || n != pending {
		t.Errorf("%s: known %v, on %v, %d pending, want %v, %v, %d", when, got.Known, got.On, n, known, on, pending)
	}
}

// TestQueuedTrackingByItsTables: what stands in the plugin's tables waits, whether the
// plugin is on or off. Tables that the account may not read tell nothing; then the
// answer of Matomo does.
func TestQueuedTrackingByItsTables(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	const table = "(idqueuelist BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, list_value MEDIUMBLOB NULL)"
	tests := []struct {
		name    string
		sql     string // in database matomo
		on      bool   // the plugin is
		want    bool
		pending int64
	}{
		{"no tables, off", "", false, false, -1},
		{"no tables, on", "", true, true, -1},
		{"an empty table", "CREATE TABLE matomo_queuedtracking_list_v1 " + table, false, true, 0},
		{"rows in two tables", "CREATE TABLE matomo_queuedtracking_list_v1 " + table + "; CREATE TABLE matomo_queuedtracking_list_v1_1 " + table +
			"; INSERT INTO matomo_queuedtracking_list_v1 (list_value) VALUES ('a'),('b'),('c'); DELETE FROM matomo_queuedtracking_list_v1 WHERE idqueuelist=1" +
			"; INSERT INTO matomo_queuedtracking_list_v1_1 (list_value) VALUES ('d')", false, true, 3},
		{"tables of others", "CREATE TABLE matomoXqueuedtracking_list_v1 " + table + "; CREATE TABLE matomo_queuedtracking_lists " + table +
			"; CREATE TABLE other_queuedtracking_list_v1 " + table + "; INSERT INTO other_queuedtracking_list_v1 (list_value) VALUES ('a')", false, false, -1},
		{"a table beside it whose name is none of the plugin's", "CREATE TABLE `matomo_queuedtracking_list_``;x` " + table + "; INSERT INTO `matomo_queuedtracking_list_``;x` (list_value) VALUES ('a')" +
			"; CREATE TABLE matomo_queuedtracking_list_v1 " + table, false, true, 0},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			db := fmt.Sprintf("matomo%d", i)
			server.CreateMatomo(db, "matomo_")
			if tt.sql != "" {
				server.Exec("USE " + db + "; " + tt.sql)
			}
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			m.SetQueuedTracking(tt.on)
			s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: testkit.SuperToken, DSN: server.DSN("", "", db)})
			wantQueued(t, "before it looks", s.QueuedTracking(), false, false, -1)
			s.startSending()
			for range 2 {
				s.lookForQueued(t.Context())
				wantQueued(t, "then", s.QueuedTracking(), true, tt.want, tt.pending)
			}
			if tt.pending > 0 && len(m.Requests()) != 0 || len(m.Requests()) > 1 {
				t.Errorf("Matomo is asked %d times although the tables show", len(m.Requests()))
			}
			if n := m.Counts().Recorded; n != 0 {
				t.Errorf("%d hits are recorded by looking, want none", n)
			}
		})
	}

	t.Run("tables that are left from before Redis", func(t *testing.T) {
		server.CreateMatomo("left", "matomo_")
		server.Exec("USE `left`; CREATE TABLE matomo_queuedtracking_list_v1 " + table)
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		m.SetQueuedTracking(true)
		s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: testkit.SuperToken, DSN: server.DSN("", "", "left")})
		s.lookForQueued(t.Context())
		wantQueued(t, "before Matomo can be asked", s.QueuedTracking(), false, false, -1)
		s.startSending()
		look := func(when string, questions int, pending int64) {
			t.Helper()
			asked := len(m.Requests())
			s.lookForQueued(t.Context())
			wantQueued(t, when, s.QueuedTracking(), true, true, pending)
			if n := len(m.Requests()) - asked; n != questions {
				t.Errorf("%s: %d questions, want %d", when, n, questions)
			}
		}
		look("asked", 1, -1)
		look("soon after", 0, -1)
		var packed bytes.Buffer
		z := zlib.NewWriter(&packed)
		fmt.Fprintf(z, `{"requests":[{"idsite":"1","rec":"0","sluice":"%s"}]}`, s.queuedMark())
		z.Close() // no error: it is in memory
		put := fmt.Sprintf("INSERT INTO `left`.matomo_queuedtracking_list_v1 (list_value) VALUES (0x%x)", packed.Bytes())
		m.Choose(func(*testkit.Exchange) *testkit.Answer { server.Exec(put); return nil })
		s.queued.asked = time.Time{}
		look("when the question is in MySQL", 1, 0)
		s.queued.asked = time.Time{}
		look("while it lies there", 0, 0)
		server.Exec("INSERT INTO `left`.matomo_queuedtracking_list_v1 (list_value) VALUES ('a')")
		look("with a hit", 0, 1)
		server.Exec("DELETE FROM `left`.matomo_queuedtracking_list_v1")
		look("when all is recorded", 1, 0)
		server.Exec("DELETE FROM `left`.matomo_queuedtracking_list_v1")
		look("soon after that", 0, 0)
		m.Choose(nil)
		s.queued.asked = time.Time{}
		look("when the questions go to Redis", 1, -1)
		server.Exec("INSERT INTO `left`.matomo_queuedtracking_list_v1 (list_value) VALUES " + strings.TrimSuffix(strings.Repeat("('a'),", queuedRead+20), ","))
		look("with many hits", 0, queuedRead+20)
		m.SetQueuedTracking(false)
		server.Exec("DELETE FROM `left`.matomo_queuedtracking_list_v1")
		s.queued.asked = time.Time{}
		look("when it is off", 1, 0)
	})

	t.Run("no rights on the table", func(t *testing.T) {
		server.CreateMatomo("matomo", "matomo_")
		server.Exec(grants(t, "edge"))
		server.Exec("USE matomo; CREATE TABLE matomo_queuedtracking_list_v1 " + table + "; INSERT INTO matomo_queuedtracking_list_v1 (list_value) VALUES ('a')")
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: testkit.SuperToken, DSN: server.DSN("edge", "PASSWORD", "matomo")})
		s.startSending()
		s.lookForQueued(t.Context())
		wantQueued(t, "with the rights of deploy/grants.sql", s.QueuedTracking(), true, false, -1)
		server.Exec("GRANT INSERT ON matomo.matomo_queuedtracking_list_v1 TO edge@'%'") // it is shown, and may not be read
		m.SetQueuedTracking(true)
		s.queued.asked = time.Time{}
		s.lookForQueued(t.Context())
		wantQueued(t, "with the right to see that it is there", s.QueuedTracking(), true, true, -1)
		server.Exec("GRANT SELECT ON matomo.matomo_queuedtracking_list_v1 TO edge@'%'")
		m.SetQueuedTracking(false)
		s.lookForQueued(t.Context())
		wantQueued(t, "with the right to read it", s.QueuedTracking(), true, true, 1)
		server.Exec("CREATE TABLE matomo.matomo_queuedtracking_list_v1_1 " + table + "; GRANT INSERT ON matomo.matomo_queuedtracking_list_v1_1 TO edge@'%'")
		s.lookForQueued(t.Context())
		wantQueued(t, "with another that may not be read", s.QueuedTracking(), true, true, -1)
		server.Exec("DROP TABLE matomo.matomo_queuedtracking_list_v1_1; DELETE FROM matomo.matomo_queuedtracking_list_v1")
		s.lookForQueued(t.Context())
		wantQueued(t, "when it is empty", s.QueuedTracking(), true, true, 0)
		server.Exec("DROP TABLE matomo.matomo_queuedtracking_list_v1")
		s.queued.asked = time.Time{}
		s.lookForQueued(t.Context())
		wantQueued(t, "when it is gone", s.QueuedTracking(), true, false, -1)
	})

	t.Run("a server that does not answer", func(t *testing.T) {
		server.Exec("USE matomo0; CREATE TABLE matomo_queuedtracking_list_v1 " + table)
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: testkit.SuperToken, DSN: server.DSN("", "", "matomo0")})
		s.startSending()
		s.lookForQueued(t.Context())
		wantQueued(t, "while it answers", s.QueuedTracking(), true, true, 0)
		server.Kill()
		s.lookForQueued(t.Context())
		wantQueued(t, "when it does not", s.QueuedTracking(), true, true, -1)
	})
}

// TestQueuedTrackingByAskingMatomo: where no table shows, Matomo is asked now and then,
// and only while it is well. A question that has no answer changes nothing.
func TestQueuedTrackingByAskingMatomo(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: testkit.SuperToken})
	asked := 0
	look := func(when string, questions int, known, on bool) {
		t.Helper()
		s.lookForQueued(t.Context())
		wantQueued(t, when, s.QueuedTracking(), known, on, -1)
		n := len(m.Requests())
		if n-asked != questions {
			t.Errorf("%s: %d questions, want %d", when, n-asked, questions)
		}
		asked = n
	}
	look("before the sink sends", 0, false, false)
	s.startSending()
	m.SetDatabase(testkit.DatabaseDown)
	look("while Matomo has no database", 1, false, false)
	look("the next time", 1, false, false)
	m.SetDatabase(testkit.DatabaseUp)
	look("when it is well again", 1, true, false)
	look("soon after", 0, true, false)
	m.SetQueuedTracking(true)
	look("while it is not yet asked again", 0, true, false)
	s.queued.asked = time.Now().Add(-queuedAsk)
	look("ten minutes later", 1, true, true)
	s.queued.asked = time.Now().Add(-queuedAsk)
	m.SetDatabase(testkit.DatabaseDown)
	m.SetQueuedTracking(false)
	look("with an answer that tells nothing", 1, true, true)
	m.SetDatabase(testkit.DatabaseUp)
	look("the next time", 1, true, false)
	for _, r := range m.Requests() {
		if r.Token != "" || r.Query != "queuedtracking=1" {
			t.Errorf("asked with %q and token %q, want no token", r.Query, r.Token)
		}
	}
}

// TestARunningSinkWatchesQueuedTracking by itself.
func TestARunningSinkWatchesQueuedTracking(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	m.SetQueuedTracking(true)
	r := start(t, m, testConfig())
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := soon(t); !r.QueuedTracking().Known; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it has not looked in time")
		}
	}
	wantQueued(t, "when it has looked", r.QueuedTracking(), true, true, -1)
}

// TestWatchingQueuedTrackingEnds with its context.
func TestWatchingQueuedTrackingEnds(t *testing.T) {
	s := idleSink(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.watchQueued(ctx)
}

func TestLikeText(t *testing.T) {
	for text, want := range map[string]string{"": "", "matomo": "matomo", "matomo_": `matomo\_`, "a_b_": `a\_b\_`} {
		if got := likeText(text); got != want {
			t.Errorf("likeText(%q) = %q, want %q", text, got, want)
		}
	}
}
