package sink

import (
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// TestHolding has every state of Matomo in which nothing may be sent: the hits
// stay, the state says why, Matomo is not asked more often than the backoff says,
// and when it is well again everything is delivered once.
func TestHolding(t *testing.T) {
	tests := []struct {
		name   string
		ill    func(*testkit.Matomo, *inProcess)
		well   func(*testkit.Matomo, *inProcess)
		reason Reason
	}{
		{"nobody listens",
			func(_ *testkit.Matomo, p *inProcess) { p.refuse.Store(true) }, func(_ *testkit.Matomo, p *inProcess) { p.refuse.Store(false) }, ReasonDown},
		{"the database is down",
			func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseDown) }, func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseUp) }, ReasonDown},
		{"the database takes no writes, which no canary sees",
			func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseReadOnly) }, func(m *testkit.Matomo, _ *inProcess) { m.SetDatabase(testkit.DatabaseUp) }, ReasonDown},
		{"nothing is recorded",
			func(m *testkit.Matomo, _ *inProcess) { m.SetRecording(false) }, func(m *testkit.Matomo, _ *inProcess) { m.SetRecording(true) }, ReasonMaintenance},
		{"our address is locked out",
			func(m *testkit.Matomo, _ *inProcess) { m.SetBlocked(true) }, func(m *testkit.Matomo, _ *inProcess) { m.SetBlocked(false) }, ReasonDown},
		{"the token is revoked",
			func(m *testkit.Matomo, _ *inProcess) { m.SetToken(testkit.SuperToken, nil) },
			func(m *testkit.Matomo, _ *inProcess) { m.SetToken(testkit.SuperToken, &testkit.Token{Super: true}) }, ReasonAuth},
		{"the token becomes one for secure requests only",
			func(m *testkit.Matomo, _ *inProcess) {
				m.SetToken(testkit.SuperToken, &testkit.Token{Super: true, SecureOnly: true})
			},
			func(m *testkit.Matomo, _ *inProcess) { m.SetToken(testkit.SuperToken, &testkit.Token{Super: true}) }, ReasonAuth},
		{"not installed", always(testkit.NotInstalled()), always(testkit.Honest()), ReasonConfig},
		{"a login page", always(testkit.LoginPage()), always(testkit.Honest()), ReasonConfig},
		{"a redirect", always(testkit.Redirect(302, "https://other.example/")), always(testkit.Honest()), ReasonConfig},
		{"forbidden", always(testkit.Status(403, 0, testkit.RolledBack)), always(testkit.Honest()), ReasonConfig},
		{"bulk requests do not reach PHP", always(testkit.InfoPage()), always(testkit.Honest()), ReasonConfig},
		{"too many requests", always(testkit.Status(429, 0, testkit.RolledBack)), always(testkit.Honest()), ReasonOverload},
		{"service unavailable", always(testkit.Status(503, 0, testkit.RolledBack)), always(testkit.Honest()), ReasonOverload},
		{"PHP dies at everything", always(testkit.Empty500(testkit.RolledBack)), always(testkit.Honest()), ReasonDown},
		{"every body is too large", func(m *testkit.Matomo, _ *inProcess) { m.SetBodyLimit(10) }, func(m *testkit.Matomo, _ *inProcess) { m.SetBodyLimit(0) }, ReasonNone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				src := newSource(t)
				b := startBubble(t, m, bubbleConfig(), src)
				before := marks("before", 10)
				for i, mark := range before {
					src.add(hitOf(int64(1+i%4), mark))
				}
				src.waitSettled(within(t, time.Minute), 10)

				tt.ill(m, b.net)
				during := marks("during", 100)
				for i, mark := range during {
					src.add(hitOf(int64(1+i%4), mark))
				}
				posts := b.net.posts.Load()
				time.Sleep(time.Hour)
				synctest.Wait()
				st := b.Status()
				if tt.reason != ReasonNone && (st.State == StateSending || st.Reason != tt.reason) {
					t.Errorf("state %s, reason %q (%s); want holding for %q", st.State, st.Reason, st.Detail, tt.reason)
				}
				if b.Healthy() && tt.reason != ReasonNone {
					t.Errorf("healthy while holding")
				}
				if n := len(src.order); n != 10 {
					t.Errorf("%d hits settled during the outage, want none: %v", n-10, src.order[10:])
				}
				// A round a minute is a few canaries and attempts, and where only hits fail
				// some bystanders; more would be a busy loop.
				if n := b.net.posts.Load() - posts; n > 1500 {
					t.Errorf("Matomo was asked %d times in an hour", n)
				}
				tt.well(m, b.net)
				src.waitSettled(within(t, 20*time.Minute), 110)
				m.CheckOnce(t, append(before, during...))
				if n := src.count(hit.Delivered); n != 110 {
					t.Errorf("%d hits delivered, want 110", n)
				}
				if n := src.openJournals(); n != 0 {
					t.Errorf("%d journals stay open", n)
				}
				b.stop(t)
				synctest.Wait()
			})
		})
	}
}

func always(a testkit.Answer) func(*testkit.Matomo, *inProcess) {
	return func(m *testkit.Matomo, _ *inProcess) { m.Always(a) }
}

// TestAnOutageIsNotBisected: when the canary fails too, a failed batch is not cut
// into pieces that would fail as well.
func TestAnOutageIsNotBisected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		time.Sleep(time.Second)
		m.SetDatabase(testkit.DatabaseDown)
		for _, mark := range marks("m", 50) {
			src.add(hitOf(1, mark))
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		deliveries := 0
		for _, r := range m.Requests() {
			if !r.Probe {
				deliveries++
			}
		}
		if deliveries > 1 {
			t.Errorf("%d requests with hits were sent while the canary fails, want the first alone", deliveries)
		}
		if st := b.Status(); st.Suspects != 0 {
			t.Errorf("%d hits are suspected in an outage", st.Suspects)
		}
		b.stop(t)
		synctest.Wait()
	})
}
