package sink

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// waitDoubt waits until the status gives a reason for doubts that has text in it.
func waitDoubt(t *testing.T, r *running, text string) {
	t.Helper()
	ctx := soon(t)
	for !strings.Contains(r.Status().Doubt, text) {
		if !sleep(ctx, 20*time.Millisecond) {
			t.Fatalf("the status says %q of the doubt, want %q", r.Status().Doubt, text)
		}
	}
}

// waitUncertain waits until hits are in doubt.
func waitUncertain(t *testing.T, r *running) {
	t.Helper()
	ctx := soon(t)
	for r.Status().Uncertain == 0 {
		if !sleep(ctx, time.Millisecond) {
			t.Fatal("no hit comes into doubt")
		}
	}
}

// TestReconcileWaits: what cannot be asked stays in doubt, with a reason, and is
// asked again; nothing of it is sent meanwhile.
func TestReconcileWaits(t *testing.T) {
	truths := newTruths(t)
	const right = "SELECT (idpageview) ON matomo.matomo_log_link_visit_action"
	for _, tt := range []struct {
		name         string
		hinder, free func(tr *truth)
		why          string
	}{
		{"MySQL cannot be reached", func(tr *truth) { tr.proxy.Down() }, func(tr *truth) { _ = tr.proxy.Up() }, "MySQL does not answer"},
		{"a right is missing", func(tr *truth) { tr.server.Exec("REVOKE " + right + " FROM edge@'%'") },
			func(tr *truth) { tr.server.Exec("GRANT " + right + " TO edge@'%'") }, "lacks a right"},
		{"the server is read-only", func(tr *truth) { tr.server.Exec("SET GLOBAL read_only=1") },
			func(tr *truth) { tr.server.Exec("SET GLOBAL read_only=0") }, "read-only"},
	} {
		for fate, word := range map[testkit.Fate]string{testkit.RolledBack: "rolled back", testkit.Committed: "committed"} {
			t.Run(tt.name+", "+word, func(t *testing.T) {
				tr := truths(t, testkit.MatomoConfig{})
				tr.add(tr.hit("1", 0, "_id=1111111111111111&pv_id=abc123"+mark("doubt")))
				tr.matomo.Next(testkit.Answer{Name: "hindered", Do: func(x *testkit.Exchange) {
					if fate == testkit.Committed {
						x.Commit()
					}
					tt.hinder(tr)
					x.Reset()
				}})
				r := tr.start()
				waitDoubt(t, r, tt.why)
				if n := len(tr.src.order); n != 0 || tr.src.openJournals() != 1 {
					t.Errorf("%d hits settled and %d journals open while nobody knows", n, tr.src.openJournals())
				}
				if tt.why != "read-only" && r.ins.reconcileFailures.Get() == 0 {
					t.Error("the failure is not counted")
				}
				tt.free(tr)
				tr.src.waitSettled(soon(t), 1)
				if n := tr.matomo.Commits("doubt"); n != 1 {
					t.Errorf("recorded %d times, want once", n)
				}
				tr.settled(hit.Delivered, 1)
			})
		}
	}
}

// TestReconcileSeesOpenTransactions: rows that are written and not committed are
// neither there nor absent.
func TestReconcileSeesOpenTransactions(t *testing.T) {
	truths := newTruths(t)
	for fate, word := range map[testkit.Fate]string{testkit.RolledBack: "rolled back", testkit.Committed: "committed"} {
		t.Run(word, func(t *testing.T) {
			tr := truths(t, testkit.MatomoConfig{})
			release := make(chan struct{})
			tr.matomo.Next(testkit.HangOpen(release, fate))
			tr.add(tr.hit("1", 0, "_id=1111111111111111&pv_id=abc123"+mark("doubt")))
			r := tr.start()
			waitDoubt(t, r, "still open")
			if n := len(tr.src.order); n != 0 {
				t.Errorf("%d hits settled while the transaction is open", n)
			}
			close(release)
			tr.src.waitSettled(soon(t), 1)
			if n := tr.matomo.Commits("doubt"); n != 1 {
				t.Errorf("recorded %d times, want once", n)
			}
		})
	}
}

// TestReconcileWithoutTransactions: what precedes a failure stays recorded.
func TestReconcileWithoutTransactions(t *testing.T) {
	truths := newTruths(t)
	tr := truths(t, testkit.MatomoConfig{NoTransactions: true})
	tr.add(tr.hit("1", 0, "_id=1111111111111111&pv_id=abc123"+mark("a")), tr.hit("1", 1, "_id=1111111111111111&idgoal=1"+mark("b")),
		tr.hit("1", 2, "_id=1111111111111111&pv_id=abc124"+mark("c")), tr.hit("1", 3, "_id=1111111111111111&idgoal=0&ec_id=1"+mark("d")))
	tr.matomo.Next(testkit.SkipUnheard([]int{2, 3}, nil))
	tr.start()
	tr.src.waitSettled(soon(t), 4)
	tr.matomo.CheckOnce(t, []string{"a", "b", "c", "d"})
	tr.same()
}

// TestFailureWithoutTransactions: what precedes a hit on which Matomo fails is not
// recorded again while that hit is looked for.
func TestFailureWithoutTransactions(t *testing.T) {
	truths := newTruths(t)
	tr := truths(t, testkit.MatomoConfig{NoTransactions: true})
	tr.matomo.Poison(func(h *testkit.Hit) bool { return h.Mark == "c" })
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		tr.add(tr.hit("1", int64(i), "_id=1111111111111111&pv_id=abc12"+name+mark(name)))
	}
	tr.start()
	tr.src.waitSettled(soon(t), 2)
	tr.matomo.Cure()
	tr.src.waitSettled(soon(t), 5)
	tr.matomo.CheckOnce(t, []string{"a", "b", "c", "d", "e"})
}

// TestUnmarkedBaseline: the database could not be asked before the hits were sent, so
// older rows are told apart by what this process has delivered.
func TestUnmarkedBaseline(t *testing.T) {
	truths := newTruths(t)
	tr := truths(t, testkit.MatomoConfig{})
	twin := func(name string) hit.Pending {
		return tr.hit("1", 0, "_id=1111111111111111&pv_id=abc123&e_c=c&e_a=a"+mark(name))
	}
	r := tr.start()
	tr.add(twin("first"))
	tr.src.waitSettled(soon(t), 1)
	r.recon.mu.Lock()
	r.recon.restUntil = time.Now().Add(time.Hour)
	r.recon.mu.Unlock()
	tr.matomo.Next(testkit.Reset(testkit.RolledBack), testkit.Reset(testkit.Committed))
	tr.add(twin("second"))
	tr.src.waitSettled(soon(t), 2)
	tr.matomo.CheckOnce(t, []string{"first", "second"})
}

// TestDecide has the cases that tables of a test do not come to.
func TestDecide(t *testing.T) {
	ann, bob := "annannan", "bobbobbo"
	page := func(id, pv, title string) expectation {
		return expectation{trace: traceAction, site: 1, at: 100, ids: []string{id}, ip: id, pv: pv, names: [3]name{bareName(title)}}
	}
	row := func(id uint64, visitor, pv, title string) actionRow {
		return actionRow{id: id, visit: 1, visitor: visitor, site: 1, at: 100, pv: pv, names: [3]name{bareName(title)}}
	}
	none := func(h expectation) expectation { h.trace = traceNone; return h }
	goal := func(h expectation) expectation { h.trace, h.goal = traceConversion, 3; return h }
	ping := func(h expectation) expectation { h.trace = traceRepeatable; return h }
	marked := baseline{marked: true, before: map[uint32]int{}}
	before := baseline{before: map[uint32]int{}}
	const R, A, N = foundRecorded, foundAbsent, foundNothing
	for _, tt := range []struct {
		name  string
		hits  []expectation
		rows  []actionRow
		base  baseline
		skips int
		part  bool // of the batch
		want  []finding
		err   error
	}{
		{name: "another visitor's page view in the same second", hits: []expectation{page(ann, "", "home")},
			rows: []actionRow{row(9, bob, "bobsPV", "home")}, base: marked, want: []finding{A}},
		{name: "the visitor's id alone is no evidence for a page view", hits: []expectation{page(ann, "annsPV", "home")},
			rows: []actionRow{row(9, ann, "other1", "home")}, base: marked, want: []finding{A}},
		{name: "a page view under another visitor's id", hits: []expectation{page(ann, "annsPV", "home")},
			rows: []actionRow{row(9, bob, "annsPV", "home")}, base: marked, want: []finding{R}},
		{name: "a name beyond recognition", hits: []expectation{page(ann, "annsPV", "home")},
			rows: []actionRow{row(9, ann, "annsPV", "renamed")}, base: marked, want: []finding{R}},
		{name: "a name beyond recognition under another visitor's id", hits: []expectation{page(ann, "annsPV", "home")},
			rows: []actionRow{row(9, bob, "annsPV", "renamed")}, base: marked, want: []finding{R}},
		{name: "names beyond recognition, fewer than hits", hits: []expectation{page(ann, "annsPV", "home"), page(ann, "annsPV", "shop")},
			rows: []actionRow{row(9, ann, "annsPV", "renamed")}, base: marked, err: errContradiction},
		{name: "without a mark, a name beyond recognition", hits: []expectation{page(ann, "annsPV", "home")},
			rows: []actionRow{row(9, ann, "annsPV", "renamed")}, base: before, err: errUnmarked},
		{name: "a part of the batch, a row of another part", hits: []expectation{page(ann, "annsPV", "home")},
			rows: []actionRow{row(9, ann, "annsPV", "shop")}, base: marked, part: true, err: errUnmarked},
		{name: "a hit without a row between recorded ones", hits: []expectation{page(ann, "annsPV", "home"), none(page(bob, "", "")), page(ann, "annsPV", "shop")},
			rows: []actionRow{row(8, ann, "annsPV", "home"), row(9, ann, "annsPV", "shop")}, base: marked, want: []finding{R, R, R}},
		{name: "the same after a partial answer", hits: []expectation{page(ann, "annsPV", "home"), none(page(bob, "", "")), page(ann, "annsPV", "shop")},
			rows: []actionRow{row(8, ann, "annsPV", "home"), row(9, ann, "annsPV", "shop")}, base: marked, skips: 1, want: []finding{R, N, R}},
		{name: "a goal after a partial answer", hits: []expectation{page(ann, "annsPV", "home"), goal(page(bob, "", "")), page(ann, "annsPV", "shop")},
			rows: []actionRow{row(8, ann, "annsPV", "home"), row(9, ann, "annsPV", "shop")}, base: marked, skips: 1, want: []finding{R, A, R}},
		{name: "a goal in a batch with an excluded hit", hits: []expectation{page(ann, "annsPV", "home"), goal(page(ann, "", "")), page(bob, "", "robot")},
			rows: []actionRow{row(8, ann, "annsPV", "home")}, base: marked, want: []finding{R, R, A}},
		{name: "a ping before and one behind", hits: []expectation{ping(page(ann, "", "")), page(ann, "annsPV", "home"), ping(page(ann, "", ""))},
			rows: []actionRow{row(8, ann, "annsPV", "home")}, base: marked, want: []finding{R, R, A}},
		{name: "nothing to find", hits: []expectation{none(page(ann, "", "")), ping(page(ann, "", ""))}, base: marked, want: []finding{N, A}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, _, err := decide(tt.hits, &evidence{base: tt.base, rows: tt.rows, atomic: true, whole: !tt.part, skips: tt.skips})
			if !errors.Is(err, tt.err) || !slices.Equal(found, tt.want) {
				t.Errorf("decide = %v, %v, want %v, %v", found, err, tt.want, tt.err)
			}
		})
	}
}

// TestNamesSurviveMatomo compares names as sent with what Matomo stores.
func TestNamesSurviveMatomo(t *testing.T) {
	for _, tt := range []struct {
		sent, stored string
		url, want    bool
	}{
		{"A & B <c>", "A &amp; B &lt;c&gt;", false, true},
		{"caf\xe9", "café", false, true},
		{strings.Repeat("a ", 600), strings.Repeat("a ", 512), false, true},
		{"Home", "Shop", false, false},
		{"https://www.One.example/a/b?utm_source=x#top", "one.example/a/b", true, true},
		{"http://one.example/%C3%A4\xe9", "one.example/%C3%A4%E9", true, true},
		{"http://one.example/a;jsessionid=1?x=2", "one.example/a?jsessionid=1&x=2", true, true},
		{"one", "", true, true}, // no URL to Matomo
		{"http://one.example/", "", true, false},
		{"http://one.example/a", "one.example/b", true, false},
	} {
		make := bareName
		if tt.url {
			make = bareURL
		}
		if got := make(tt.sent).like(make(tt.stored)); got != tt.want {
			t.Errorf("%q stored as %q: alike %v, want %v", tt.sent, tt.stored, got, tt.want)
		}
	}
}

// TestAir: hits that could be mistaken for each other are not under way at once.
func TestAir(t *testing.T) {
	enc := newEncoder()
	at := time.Now().Unix()
	lots := []*lane{{}}
	make := func(site int64, params string) *item {
		p := pendingOf(site, params)
		p.At, p.Environment = at, &hit.Environment{ClientIP: "203.0.113.1"}
		it := enc.encode(p)
		it.lot = lots[len(lots)-1]
		return it
	}
	a := newAir()
	first := []*item{make(1, "rec=1&action_name=x"), make(1, "rec=1&action_name=x")}
	if n := len(a.enter("one", first)); n != 2 {
		t.Fatalf("%d of two twins enter together, want 2", n)
	}
	second := []*item{make(1, "rec=1&action_name=y"), make(1, "rec=1&action_name=x"), make(1, "rec=1&ping=1")}
	lots = append(lots, &lane{})
	second = append(second, make(1, "rec=1&action_name=z"), make(2, "rec=1&action_name=x"))
	if got := a.enter("two", second); !slices.Equal(got, []*item{second[0], second[3], second[4]}) {
		t.Errorf("%d enter, want the first and those of another lane", len(got))
	}
	a.leave(first[:1])
	if got := a.enter("three", second[1:2]); len(got) != 0 {
		t.Errorf("a twin enters while one is there")
	}
	a.leave(first)
	if got := a.enter("three", second[1:2]); len(got) != 1 {
		t.Errorf("a twin does not enter when none is there")
	}
}

func TestMemo(t *testing.T) {
	b := baseline{marked: true, mark: 1 << 40, hits: 7, before: map[uint32]int{1: 2, 1 << 31: 300}}
	got := readMemo(b.memo())
	if !got.marked || got.mark != b.mark || got.hits != 7 || len(got.before) != 2 || got.before[1] != 2 || got.before[1<<31] != 300 {
		t.Errorf("read %+v, want %+v", got, b)
	}
	for _, memo := range [][]byte{nil, {1}, {9, 1, 1, 1}} {
		if got := readMemo(memo); got.marked || len(got.before) != 0 {
			t.Errorf("memo %v is read as %+v", memo, got)
		}
	}
}
