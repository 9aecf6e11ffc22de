package sink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// A truth is a Matomo with real tables, and a second one that is fed the same hits
// without any fault.
type truth struct {
	t      *testing.T
	server *testkit.MariaDB
	matomo *testkit.Matomo
	proxy  *testkit.Proxy // in front of the server, for the account
	cfg    Config
	src    *memorySource
	sent   []hit.Pending
}

// newTruths starts a server with the account of deploy/grants.sql, and returns what
// empties the tables and gives a truth for one test. The test that calls it, which
// mostly waits, runs beside others.
func newTruths(t *testing.T) func(t *testing.T, mc testkit.MatomoConfig) *truth {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.CreateMatomo("direct", "matomo_")
	script, err := os.ReadFile(filepath.Join("..", "deploy", "grants.sql"))
	if err != nil {
		t.Fatal(err)
	}
	server.Exec(strings.NewReplacer("'sluice'@'10.%'", "'edge'@'%'", " REQUIRE SSL", "", "MAX_USER_CONNECTIONS 3", "MAX_USER_CONNECTIONS 30").Replace(string(script)))
	proxy := testkit.NewProxy(t, server.Addr())
	return func(t *testing.T, mc testkit.MatomoConfig) *truth {
		var empty strings.Builder
		for _, db := range []string{"matomo", "direct"} {
			for _, table := range []string{"log_visit", "log_link_visit_action", "log_action", "log_conversion"} {
				fmt.Fprintf(&empty, "TRUNCATE TABLE %s.matomo_%s;", db, table)
			}
		}
		server.Exec(empty.String())
		mc.Rows = testkit.OpenRows(t, server, "matomo", "matomo_")
		cfg := testConfig()
		cfg.RequestTimeout, cfg.ServerLimit, cfg.Grace = 300*time.Millisecond, 300*time.Millisecond, 50*time.Millisecond
		cfg.DSN = fmt.Sprintf("edge:PASSWORD@tcp(%s)/matomo", proxy.Addr())
		cfg.TablesPrefix = "matomo_"
		return &truth{t: t, server: server, matomo: testkit.NewMatomo(mc), proxy: proxy, cfg: cfg, src: newSource(t)}
	}
}

// hit makes a hit of one visitor, at so many seconds after a fixed time.
func (tr *truth) hit(visitor string, second int64, params string) hit.Pending {
	p := pendingOf(1, "idsite=1&rec=1&"+params)
	p.At = time.Now().Unix()/86400*86400 - 7200 + second
	p.Environment = &hit.Environment{ClientIP: "203.0.113." + visitor, UserAgent: browser}
	return p
}

func mark(name string) string { return "&" + testkit.DefaultMark + "=" + name }

// mixture is a batch with every kind of hit. Those with a mark leave a trace.
func (tr *truth) mixture() (hits []hit.Pending, want []string) {
	for i, h := range []struct {
		visitor string
		second  int64
		params  string
	}{
		{"1", 0, "_id=1111111111111111&pv_id=abc123&action_name=Home&url=https%3A%2F%2Fone.example%2F%3Futm_source%3Dx%23top"},
		{"1", 0, "_id=1111111111111111&pv_id=abc123&e_c=Video&e_a=Play&e_v=1.5&url=https%3A%2F%2Fone.example%2F"},
		{"1", 0, "_id=1111111111111111&pv_id=abc123&e_c=Video&e_a=Play&e_v=1.5&url=https%3A%2F%2Fone.example%2F"}, // a twin
		{"1", 5, "_id=1111111111111111&pv_id=abc123&link=https%3A%2F%2Felsewhere.example%2Fa%3Fb%3D1"},
		{"1", 6, "_id=1111111111111111&pv_id=abc123&download=https%3A%2F%2Fone.example%2Ff.pdf"},
		{"1", 7, "_id=1111111111111111&pv_id=abc123&c_n=Banner&c_p=img.png&url=https%3A%2F%2Fone.example%2F"},
		{"1", 8, "_id=1111111111111111&pv_id=abc124&search=shoes&search_count=3"},
		{"1", 9, "_id=1111111111111111&pv_id=abc124&idgoal=1&url=https%3A%2F%2Fone.example%2Fgoal"},
		{"1", 10, "_id=1111111111111111&idgoal=1"},                                                // leaves no second row
		{"1", 11, "_id=1111111111111111&idgoal=0&revenue=5"},                                      // a cart
		{"1", 12, "_id=1111111111111111&idgoal=0&revenue=7"},                                      // moves the cart's row
		{"1", 13, "_id=1111111111111111&idgoal=0&ec_id=O-1&revenue=7"},                            // an order
		{"2", 0, "action_name=%3Cb%3EA%20%26%20B%3C%2Fb%3E&url=http%3A%2F%2Fone.example%2Fa%2Fb"}, // nobody, and no page view id
		{"2", 0, "action_name=%3Cb%3EA%20%26%20B%3C%2Fb%3E&url=http%3A%2F%2Fone.example%2Fa%2Fb"},
		{"3", 0, "action_name=%E9%FF%00%80%C3&url=http%3A%2F%2Fone.example%2F%E9"},
		{"4", 1, "uid=ann&pv_id=zzzzzz&action_name=" + strings.Repeat("long%20%26%20", 200)},
		{"5", 1, "uid=bob&pv_id=%3Cx%3E"},
		{"1", 20, "_id=1111111111111111&pv_id=abc124&ping=1"},
	} {
		name := fmt.Sprintf("m%d", i)
		hits = append(hits, tr.hit(h.visitor, h.second, h.params+mark(name)))
		want = append(want, name)
	}
	robot := tr.hit("6", 0, "pv_id=botbot")
	robot.Environment.UserAgent = "Googlebot/2.1"
	return append(hits, robot, tr.hit("7", 0, "idgoal=77")), want // excluded, and invalid
}

func (tr *truth) add(hits ...hit.Pending) {
	for i, id := range tr.src.add(hits...) {
		hits[i].ID = id
	}
	tr.sent = append(tr.sent, hits...)
}

func (tr *truth) start() *running {
	return startAt(tr.t, tr.matomo, tr.matomo.Serve(tr.t)+"/matomo.php", tr.cfg, tr.src)
}

// same compares the tables with those of a Matomo that was fed the same hits
// without a fault.
func (tr *truth) same() {
	tr.t.Helper()
	direct := testkit.NewMatomo(testkit.MatomoConfig{Rows: testkit.OpenRows(tr.t, tr.server, "direct", "matomo_")})
	cfg, src := tr.cfg, newSource(tr.t)
	cfg.DSN = ""
	cfg.RequestTimeout = DefaultRequestTimeout // nothing hangs, and nothing may be sent twice
	for _, p := range tr.sent {
		p.Uncertain = 0
		src.add(p)
	}
	r := startAt(tr.t, direct, direct.Serve(tr.t)+"/matomo.php", cfg, src)
	src.waitSettled(soon(tr.t), len(tr.sent))
	r.stop(tr.t)
	if got, want := tr.dump("matomo"), tr.dump("direct"); got != want {
		tr.t.Errorf("the rows are\n%s\nwant\n%s", got, want)
	}
}

func (tr *truth) dump(db string) string {
	const text = `USE %s;
SELECT 'visit', HEX(config_id), visit_first_action_time, visit_last_action_time, visit_total_time, visit_total_actions, visit_total_interactions, visit_total_events FROM matomo_log_visit ORDER BY 2,3,4;
SELECT 'action', HEX(v.config_id), a.server_time, a.idpageview, a.pageview_position, u.name, t.name, a.custom_float, c.name FROM matomo_log_link_visit_action a JOIN matomo_log_visit v USING (idvisit)
 LEFT JOIN matomo_log_action u ON u.idaction=a.idaction_url LEFT JOIN matomo_log_action t ON t.idaction=a.idaction_name LEFT JOIN matomo_log_action c ON c.idaction=COALESCE(a.idaction_event_action, a.idaction_content_name) ORDER BY 2,3,4,6,7,8,9,5;
SELECT 'conversion', HEX(v.config_id), c.server_time, c.idgoal, c.idorder FROM matomo_log_conversion c JOIN matomo_log_visit v USING (idvisit) ORDER BY 2,3,4`
	var b strings.Builder
	for _, row := range tr.server.Exec(fmt.Sprintf(text, db)) {
		b.WriteString(strings.Join(row, " | ") + "\n")
	}
	return b.String()
}

func (tr *truth) settled(as hit.Outcome, want int) {
	tr.t.Helper()
	if got := tr.src.count(as); got != want {
		tr.t.Errorf("%d hits are settled as %v, want %d", got, as, want)
	}
}

// TestWhatIsThereNeedsNoWaiting: before a batch is due its hits are settled when all
// of them are recorded, and left alone when not.
func TestWhatIsThereNeedsNoWaiting(t *testing.T) {
	truths := newTruths(t)
	for _, tt := range []struct {
		name    string
		fate    testkit.Fate
		crash   bool
		settled int
	}{
		{"committed", testkit.Committed, false, 2},
		{"committed, and Sluice killed", testkit.Committed, true, 2},
		{"rolled back", testkit.RolledBack, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := truths(t, testkit.MatomoConfig{})
			tr.cfg.ServerLimit = time.Hour
			tr.add(tr.hit("1", 0, "_id=1111111111111111&pv_id=abc123"+mark("a")), tr.hit("1", 1, "_id=1111111111111111&pv_id=abc124"+mark("b")))
			if tt.crash {
				tr.crashIn(testkit.Hang(tt.fate), 2)
				tr.src = tr.src.crash(tr.sent)
				tr.matomo.Choose(nil)
			} else {
				tr.matomo.Next(testkit.Reset(tt.fate))
			}
			r := tr.start()
			if tt.settled > 0 {
				tr.src.waitSettled(soon(t), tt.settled)
			} else {
				waitUncertain(t, r)
				sleep(t.Context(), 4*tr.cfg.waits.firstLook) // two looks in vain
				if n := r.Status().Uncertain; n != 2 || tr.src.openJournals() != 1 {
					t.Errorf("%d hits in doubt and %d journals open before they are due, want 2 and 1", n, tr.src.openJournals())
				}
			}
			tr.settled(hit.Delivered, tt.settled)
		})
	}
}

// TestReconcile has every answer of unknown meaning, each before and after the
// commit: with an account on the database no hit is lost, none is there twice, and
// the rows are those of an undisturbed Matomo.
func TestReconcile(t *testing.T) {
	truths := newTruths(t)
	for _, tt := range []struct {
		name   string
		answer testkit.Answer
	}{
		{"reset before the commit", testkit.Reset(testkit.RolledBack)},
		{"reset after the commit", testkit.Reset(testkit.Committed)},
		{"hangs and rolls back", testkit.Hang(testkit.RolledBack)},
		{"hangs after the commit", testkit.Hang(testkit.Committed)},
		{"error text", testkit.ErrorText(testkit.RolledBack)},
		{"error text after the commit", testkit.ErrorText(testkit.Committed)},
		{"500 after the commit", testkit.Error500Committed()},
		{"204", testkit.NoContent(testkit.RolledBack)},
		{"image", testkit.QueuedGIF(testkit.Committed)},
		{"502", testkit.Status(502, 0, testkit.RolledBack)},
		{"502 after the commit", testkit.Status(502, 0, testkit.Committed)},
		{"504", testkit.Status(504, 0, testkit.RolledBack)},
		{"504 after the commit", testkit.Status(504, 0, testkit.Committed)},
		{"commits when nobody listens any more", testkit.After(450*time.Millisecond, testkit.Reset(testkit.Committed))},
		{"500 empty", testkit.Empty500(testkit.RolledBack)},
		{"500 empty after the commit", testkit.Empty500(testkit.Committed)},
		{"counts no hit", testkit.NothingTracked()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := truths(t, testkit.MatomoConfig{})
			hits, want := tr.mixture()
			tr.add(hits...)
			tr.matomo.Next(tt.answer)
			r := tr.start()
			tr.add(tr.hit("1", 30, "_id=1111111111111111&pv_id=abc125"+mark("behind")))
			tr.src.waitSettled(soon(t), len(tr.sent))
			// A ping changes nothing when it is repeated in its place.
			if n := tr.matomo.Commits("m17"); n > 2 {
				t.Errorf("the ping is sent %d times", n)
			}
			once := slices.DeleteFunc(append(want, "behind"), func(m string) bool { return m == "m17" })
			for _, m := range once {
				if n := tr.matomo.Commits(m); n != 1 {
					t.Errorf("%s is recorded %d times, want once", m, n)
				}
			}
			tr.settled(hit.Dead, 0)
			if n := r.ins.unknown.Get(); n != 0 {
				t.Errorf("%d hits were decided by sink.on-unknown", n)
			}
			if st := r.Status(); st.Uncertain != 0 || tr.src.openJournals() != 0 {
				t.Errorf("%d hits in doubt and %d journals open at the end", st.Uncertain, tr.src.openJournals())
			}
			tr.same()
		})
	}
}

// TestReconcileHoles: Matomo waits for a lock in vain, skips a hit, and goes on with
// the others.
func TestReconcileHoles(t *testing.T) {
	truths := newTruths(t)
	page := func(tr *truth, visitor string, second int64, name string) hit.Pending {
		return tr.hit(visitor, second, "_id=000000000000000"+visitor+"&pv_id=pv0000&action_name="+name+mark(name))
	}
	event := func(tr *truth, visitor string, second int64, name string) hit.Pending {
		return tr.hit(visitor, second, "_id=000000000000000"+visitor+"&pv_id=pv0000&e_c=c&e_a=a&e_n="+name+mark(name))
	}
	for _, tt := range []struct {
		name    string
		answer  testkit.Answer
		partial []string // by mark; all others are delivered once
		exact   bool     // the rows are those of an undisturbed Matomo
	}{
		{"the last of a visitor is skipped", testkit.Skip(4), nil, true},
		{"the event in the middle is skipped", testkit.Skip(2), nil, false},
		{"the last of a visitor leaves its action", testkit.SkipHalf(4), []string{"e"}, false},
		{"a page view in the middle leaves its action", testkit.SkipHalf(1), []string{"b"}, false},
		{"an event leaves its action", testkit.SkipHalf(2), []string{"c"}, false},
		{"everything is skipped", testkit.Skip(0, 1, 2, 3, 4), nil, true},
		{"nothing is counted and actions are left", testkit.SkipHalf(0, 1, 2, 3, 4), []string{"b", "c", "e"}, false},
		{"the answer is lost too", testkit.SkipUnheard([]int{3}, []int{4}), []string{"e"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := truths(t, testkit.MatomoConfig{})
			tr.cfg.RequestTimeout = 2 * time.Second // of which a slow first hit is no large part, so that the others are one batch
			// One visit is there already, and one begins with the batch.
			tr.add(page(tr, "1", 0, "before"))
			r := tr.start()
			tr.src.waitSettled(soon(t), 1)
			tr.matomo.Next(tt.answer)
			tr.add(page(tr, "2", 10, "a"), page(tr, "1", 10, "b"), event(tr, "1", 11, "c"), page(tr, "3", 12, "d"), page(tr, "1", 13, "e"))
			tr.src.waitSettled(soon(t), 6)
			tr.add(page(tr, "1", 40, "behind"))
			tr.src.waitSettled(soon(t), 7)
			for _, p := range tr.sent {
				s, _ := tr.src.outcome(p.ID)
				name := string(p.Params[strings.LastIndex(string(p.Params), "=")+1:])
				half := slices.Contains(tt.partial, name)
				if half && (s.As != hit.Dead || s.Reason != BuriedPartial || tr.matomo.Commits(name) != 0) {
					t.Errorf("%s is settled as %v %q, recorded %d times, want buried as partial", name, s.As, s.Reason, tr.matomo.Commits(name))
				}
				if !half && (s.As != hit.Delivered || tr.matomo.Commits(name) != 1) {
					t.Errorf("%s is settled as %v, recorded %d times, want delivered once", name, s.As, tr.matomo.Commits(name))
				}
			}
			if got := r.ins.reconciled[foundPartial].Get(); got != uint64(len(tt.partial)) {
				t.Errorf("%d partial hits are counted, want %d", got, len(tt.partial))
			}
			if tt.exact {
				tr.same()
			}
		})
	}
}

// TestReconcileTwins: hits that look the same in one second are told apart by
// counting, and from those that were there before.
func TestReconcileTwins(t *testing.T) {
	truths := newTruths(t)
	for _, tt := range []struct {
		name   string
		params string
	}{
		{"events of a page view", "_id=1111111111111111&pv_id=abc123&e_c=c&e_a=a"},
		{"page views of nobody", "action_name=Home&url=http%3A%2F%2Fone.example%2F"},
		{"page views without an id of the view", "_id=1111111111111111&action_name=Home"},
		{"orders", ""},
	} {
		for recorded := range 3 {
			t.Run(fmt.Sprintf("%s, %d of 2 recorded", tt.name, recorded), func(t *testing.T) {
				tr := truths(t, testkit.MatomoConfig{})
				twin := func(n int) hit.Pending {
					if tt.params == "" {
						return tr.hit("1", 0, fmt.Sprintf("_id=1111111111111111&idgoal=0&ec_id=%d%s", n, mark(fmt.Sprintf("t%d", n))))
					}
					return tr.hit("1", 0, tt.params+mark(fmt.Sprintf("t%d", n)))
				}
				tr.add(twin(0))
				tr.start()
				tr.src.waitSettled(soon(t), 1)
				switch recorded {
				case 0:
					tr.matomo.Next(testkit.Reset(testkit.RolledBack))
				case 1:
					tr.matomo.Next(testkit.SkipUnheard([]int{1}, nil))
				case 2:
					tr.matomo.Next(testkit.Reset(testkit.Committed))
				}
				tr.add(twin(1), twin(2))
				tr.src.waitSettled(soon(t), 3)
				rows := tr.server.Exec("SELECT (SELECT COUNT(*) FROM matomo.matomo_log_link_visit_action) + (SELECT COUNT(*) FROM matomo.matomo_log_conversion)")
				if recorded == 1 && tt.params == "" {
					return // which of two orders is missing the second does not show
				}
				if rows[0][0] != "3" {
					t.Errorf("%s rows, want 3", rows[0][0])
				}
				tr.settled(hit.Delivered, 3)
			})
		}
	}
}

// TestATwinOfAHitInDoubtWaits: sent meanwhile, its row would be taken for that of the hit
// in doubt, which is not there.
func TestATwinOfAHitInDoubtWaits(t *testing.T) {
	tr := newTruths(t)(t, testkit.MatomoConfig{})
	tr.cfg.ServerLimit = 6 * tr.cfg.waits.minBackoff // longer than the breaker is open
	tr.cfg.AddressMask = "0"                         // no change of it, which would make one lane of the site
	tr.add(tr.hit("9", 3, "action_name=Warm"+mark("w")))
	r := tr.start()
	tr.src.waitSettled(soon(t), 1)
	now := time.Now()
	twin := func(visitor, name string) hit.Pending { // as they come, so that their lanes are two
		p := tr.hit(visitor, 0, "action_name=Home&url=http%3A%2F%2Fone.example%2F"+mark(name))
		p.At, p.ReceivedAt = now.Unix(), now.UnixNano()
		return p
	}
	tr.matomo.Next(testkit.Reset(testkit.RolledBack))
	tr.add(twin("1", "a"))
	waitUncertain(t, r)
	tr.add(twin("2", "b"))
	tr.src.waitSettled(soon(t), 3)
	if rows := tr.server.Exec("SELECT COUNT(*) FROM matomo.matomo_log_link_visit_action"); rows[0][0] != "3" {
		t.Errorf("%s rows, want 3", rows[0][0])
	}
	if marks := tr.matomo.Marks(); len(marks) != 3 {
		t.Errorf("recorded %v, want each of three", marks)
	}
}

// TestReconcileAfterACrash: the process ends between journal and request, between
// commit and answer, and between answer and settling.
func TestReconcileAfterACrash(t *testing.T) {
	truths := newTruths(t)
	for _, tt := range []struct {
		name  string
		crash func(tr *truth)
	}{
		{"before the request", func(tr *truth) {
			tr.cfg.Endpoint = "http://127.0.0.1:1/matomo.php"
			s, err := New(tr.cfg, tr.src, testLog(tr.t), metrics.NewSet())
			if err != nil {
				tr.t.Fatal(err)
			}
			defer s.recon.db.close()
			list, _ := tr.src.Lease(tr.t.Context(), 1000)
			var ids []hit.ID
			var items []*item
			for _, p := range list {
				ids = append(ids, p.ID)
				items = append(items, newEncoder().encode(p))
			}
			if _, err := tr.src.Journal(ids, s.recon.baseline(tr.t.Context(), items)); err != nil {
				tr.t.Fatal(err)
			}
		}},
		{"before the commit", func(tr *truth) { tr.crashIn(testkit.Hang(testkit.RolledBack), 0) }},
		{"after the commit", func(tr *truth) { tr.crashIn(testkit.Hang(testkit.Committed), 20) }},
		{"before settling", func(tr *truth) { tr.crashIn(testkit.Honest(), 20) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := truths(t, testkit.MatomoConfig{})
			tr.add(tr.hit("1", 0, "_id=1111111111111111&pv_id=abc123&e_c=Video&e_a=Play&e_v=1.5&url=https%3A%2F%2Fone.example%2F"+mark("twin before")))
			first := tr.start()
			tr.src.waitSettled(soon(t), 1)
			first.stop(t)
			hits, want := tr.mixture()
			tr.add(hits...)
			tt.crash(tr)
			tr.src = tr.src.crash(tr.sent)
			tr.matomo.Choose(nil)
			tr.start()
			tr.src.waitSettled(soon(t), len(tr.sent))
			for _, m := range want[:17] {
				if n := tr.matomo.Commits(m); n != 1 {
					t.Errorf("%s is recorded %d times, want once", m, n)
				}
			}
			tr.settled(hit.Dead, 0)
			tr.same()
		})
	}
}

// crashIn runs until a first batch has committed so many hits, and ends without
// another write of the source.
func (tr *truth) crashIn(a testkit.Answer, commits int64) {
	before := tr.matomo.Counts()
	reached := make(chan struct{}, 1)
	tr.matomo.Choose(func(x *testkit.Exchange) *testkit.Answer {
		if x.Probe {
			return nil
		}
		wrapped := testkit.Answer{Name: a.Name, Do: func(x *testkit.Exchange) {
			tr.src.mu.Lock()
			tr.src.fail = errors.New("the process has crashed")
			tr.src.mu.Unlock()
			reached <- struct{}{}
			a.Do(x)
		}}
		return &wrapped
	})
	tr.cfg.Endpoint = tr.matomo.Serve(tr.t) + "/matomo.php"
	s, err := New(tr.cfg, tr.src, testLog(tr.t), metrics.NewSet())
	if err != nil {
		tr.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tr.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-reached
	if err := tr.matomo.Wait(soon(tr.t), func(c testkit.Counts) bool {
		return c.Recorded+c.Excluded+c.Invalid-before.Recorded-before.Excluded-before.Invalid >= commits
	}); err != nil {
		tr.t.Fatal(err)
	}
	cancel()
	<-done
}
