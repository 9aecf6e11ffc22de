package sink

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/testkit"
)

// TestUpgradeOfTheCode: without an account on the database the code's version shows
// an upgrade. It ends a minute after the last change, not before Matomo's pages
// answer, or at an operator's word.
func TestUpgradeOfTheCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		is := func(state State, detail string) {
			t.Helper()
			synctest.Wait()
			reason := ReasonUpgrade
			if state == StateSending {
				reason = ReasonNone
			}
			if st := b.Status(); st.State != state || st.Reason != reason || !strings.Contains(st.Detail, detail) || (st.Ends == "") != (state == StateSending) {
				t.Fatalf("%s %s (%s), ends %q; want %s with %q", st.State, st.Reason, st.Detail, st.Ends, state, detail)
			}
		}
		time.Sleep(5 * time.Minute)
		is(StateSending, "")
		m.SetVersion("5.1.0")
		time.Sleep(codeInterval + DefaultProbeInterval)
		is(StateHolding, "code has just changed to version 5.1.0")
		time.Sleep(10 * time.Second)
		m.SetVersion("5.2.0")
		time.Sleep(40 * time.Second) // a round falls into it, whatever the backoff's spread
		is(StateHolding, "5.2.0")
		m.SetVersion("")
		time.Sleep(10 * time.Minute)
		is(StateHolding, "Matomo's pages answer 503")
		m.Always(testkit.Status(502, 0, testkit.RolledBack))
		time.Sleep(10 * time.Minute)
		is(StateHolding, "Matomo's pages answer 503, as they do until its database is upgraded; at the last try: ")
		m.Always(testkit.Honest())
		m.SetVersion("5.2.0")
		time.Sleep(2 * time.Minute)
		is(StateSending, "")

		m.SetVersion("5.3.0")
		time.Sleep(codeInterval + DefaultProbeInterval)
		m.SetVersion("")
		time.Sleep(10 * time.Minute)
		is(StateHolding, "")
		b.Resume("ann")
		time.Sleep(3 * realWaits().closeGap)
		is(StateSending, "")
		// A Matomo whose pages do not answer is no upgrade by itself.
		time.Sleep(time.Hour)
		is(StateSending, "")
		b.stop(t)
		synctest.Wait()
	})
}

// upgradeSink gives a sink that does not run, with a database and a Matomo: its
// rounds are the test's to call.
func upgradeSink(t *testing.T, m *testkit.Matomo, server *testkit.MariaDB) *Sink {
	t.Helper()
	s, err := New(Config{
		Endpoint: m.Serve(t) + "/matomo.php", Token: testkit.SuperToken,
		DSN: server.DSN("edge", "edge", "matomo"), TablesPrefix: "matomo_",
	}, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.db.close() })
	return s
}

// TestUpgradeWalk follows a core:update on a real database: the version walks
// through steps, the schema changes, MySQL goes away in between, and the code comes
// last.
func TestUpgradeWalk(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(leastAccount)
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	s := upgradeSink(t, m, server)
	round := func(want ...string) {
		t.Helper()
		r := s.round(t.Context())
		if r.ok != (len(want) == 0) || !r.ok && r.reason != ReasonUpgrade {
			t.Fatalf("round %+v, want upgrade: %v", r, len(want) > 0)
		}
		for _, text := range want {
			if !strings.Contains(r.detail, text) {
				t.Errorf("detail %q does not have %q", r.detail, text)
			}
		}
		if _, held := s.upgrade.holding(); held != (len(want) > 0) {
			t.Errorf("an upgrade is held: %v", held)
		}
	}
	option := func(name, value string) {
		server.Exec("REPLACE INTO matomo.matomo_option VALUES ('" + name + "', '" + value + "', 1)")
	}
	aMinuteLater := func() {
		s.prober.changedAt = s.prober.changedAt.Add(-upgradeQuiet)
		s.upgrade.codeAt = s.upgrade.codeAt.Add(-upgradeQuiet)
	}
	round()
	round()
	option("MatomoUpdateHistory", "5.1.0,5.0.2,")
	round("has begun an upgrade")
	option("version_log_visit.visit_total_time", "int(11) unsigned NOT NULL1")
	round("changes its tables", "version_log_visit.visit_total_time")
	aMinuteLater()
	option("version_core", "5.1.0-b1")
	round("from 5.0.2 to 5.1.0-b1")
	option("version_core", "5.1.0")
	round("from 5.1.0-b1 to 5.1.0")
	if s.mayBury(t.Context()) {
		t.Error("burying is allowed during an upgrade")
	}
	server.Kill()
	round("from 5.1.0-b1 to 5.1.0", "MySQL cannot be asked")
	server.Start()
	round("from 5.1.0-b1 to 5.1.0")
	aMinuteLater()
	round("database has version 5.1.0 and its code 5.0.2")
	aMinuteLater()
	round("database has version 5.1.0 and its code 5.0.2")
	m.SetVersion("")
	round("Matomo's pages answer 503")
	m.SetVersion("5.1.0")
	round("code has just changed to version 5.1.0")
	aMinuteLater()
	round()
	if s.mayBury(t.Context()) {
		t.Error("burying is allowed right after an upgrade")
	}

	// Code that is ahead of the database holds, until an operator says that it may.
	m.SetVersion("5.2.0")
	s.upgrade.askedAt = s.upgrade.askedAt.Add(-codeInterval)
	round("database has version 5.1.0 and its code 5.2.0")
	aMinuteLater()
	round("database has version 5.1.0 and its code 5.2.0")
	s.Resume("ann")
	round()
	// What an operator has said holds for these two versions only.
	m.SetVersion("5.2.1")
	s.upgrade.askedAt = s.upgrade.askedAt.Add(-codeInterval)
	round("database has version 5.1.0 and its code 5.2.1")
	m.SetVersion("5.1.0")
	aMinuteLater()
	round("code has just changed to version 5.1.0")
	aMinuteLater()
	round()
}

// TestVersionsThatDifferAtTheStart: a Sluice that is started in the middle of an
// upgrade has seen no change, and sends nothing all the same.
func TestVersionsThatDifferAtTheStart(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(leastAccount)
	server.Exec("UPDATE matomo.matomo_option SET option_value='5.1.0-b3' WHERE option_name='version_core'")
	s := upgradeSink(t, testkit.NewMatomo(testkit.MatomoConfig{}), server)
	if r := s.round(t.Context()); r.ok || r.reason != ReasonUpgrade || !strings.Contains(r.detail, "5.1.0-b3 and its code "+testkit.Version) {
		t.Errorf("first round %+v, want an upgrade that names both versions", r)
	}
}

// TestEndsNamesAWayOut: every state but sending says what ends it.
func TestEndsNamesAWayOut(t *testing.T) {
	cfg := bubbleConfig()
	cfg.Endpoint = "http://matomo.example/matomo.php"
	s, err := New(cfg, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		reason Reason
		want   string
	}{
		{ReasonDown, "Matomo answers the canary"}, {ReasonReadOnly, "MySQL takes writes"}, {ReasonUpgrade, "sluice drain resume"},
		{ReasonMaintenance, "record_statistics = 1"}, {ReasonAuth, "Matomo accepts the token"}, {ReasonOverload, "the pause that was asked for is over"},
		{ReasonConfig, "matomo.url"},
	} {
		s.brk = testBreaker()
		if got := s.Status().Ends; got != "when Matomo answers the canary" {
			t.Errorf("starting ends %q", got)
		}
		s.brk.probed(round{ok: true})
		if got := s.Status().Ends; got != "" {
			t.Errorf("sending ends %q", got)
		}
		s.brk.open(tt.reason, "x", 0)
		if got := s.Status(); !strings.Contains(got.Ends, tt.want) || got.NextTry == nil {
			t.Errorf("%s ends %q, next try %v; want %q and a time", tt.reason, got.Ends, got.NextTry, tt.want)
		}
	}
	s.Pause("ann", "x", time.Now().Add(time.Hour))
	if got := s.Status().Ends; !strings.Contains(got, "sluice drain resume") {
		t.Errorf("a pause ends %q", got)
	}
	s.cfg.Token = ""
	s.Resume("ann")
	s.brk = testBreaker()
	s.brk.open(ReasonAuth, detailNoToken, 0)
	if got := s.Status().Ends; !strings.Contains(got, "a restart") {
		t.Errorf("no token ends %q", got)
	}
}

// TestARefusedTokenIsTriedRarely: Matomo locks out an address after twenty failed
// logins in an hour, so auth sticks without asking often, and ends when the token is
// accepted.
func TestARefusedTokenIsTriedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		time.Sleep(time.Minute)
		m.SetToken(testkit.SuperToken, nil)
		src.add(hitOf(1, "a"))
		privileged := 0
		m.Choose(func(x *testkit.Exchange) *testkit.Answer {
			for _, h := range x.Judged() {
				if h.Params.String("cip") != "" {
					privileged++
				}
			}
			return nil
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		if st := b.Status(); st.State != StateHolding || st.Reason != ReasonAuth {
			t.Errorf("%s %s, want holding for auth", st.State, st.Reason)
		}
		if privileged > 15 {
			t.Errorf("the refused token was tried %d times in an hour", privileged)
		}
		m.Choose(func(*testkit.Exchange) *testkit.Answer { return nil })
		m.SetToken(testkit.SuperToken, &testkit.Token{Super: true})
		src.waitSettled(within(t, 5*time.Minute), 1)
		if !b.Healthy() {
			t.Errorf("%+v after the token is accepted", b.standing())
		}
		b.stop(t)
		synctest.Wait()
	})
}
