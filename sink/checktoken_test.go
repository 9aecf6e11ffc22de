package sink

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/testkit"
)

// TestCheckOfTokens: check says what our token is and what that costs, shows none of
// it, and costs one failed login at most.
func TestCheckOfTokens(t *testing.T) {
	const token = "c0000000000000000000000000000001"
	tests := []struct {
		name   string
		rights *testkit.Token
		level  Level
		text   string
		failed int
	}{
		{"a superuser", &testkit.Token{Super: true}, LevelOK, "superuser", 0},
		{"a superuser for secure requests only", &testkit.Token{Super: true, SecureOnly: true}, LevelFault, "for secure requests only", 0},
		{"an admin", &testkit.Token{Sites: []int64{1, 2, 3}}, LevelWarn, "admin on sites 1-3, not superuser: Matomo names no hit that it refuses, so every hit travels alone", 0},
		{"a write user", &testkit.Token{Sites: []int64{2, 4}, WriteOnly: true}, LevelWarn, "write on sites 2, 4, not superuser", 0},
		{"a write user who may look at more", &testkit.Token{Sites: []int64{3}, WriteOnly: true, View: []int64{1, 2}}, LevelWarn, "write on site 3, not superuser: Matomo names no hit that it refuses, so every hit travels alone, which is slow; it has no right on 2 sites", 0},
		{"a user who may look", &testkit.Token{View: []int64{1, 2}}, LevelFault, "may only look, on sites 1-2", 0},
		{"nobody", nil, LevelFault, "Matomo does not accept it", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
			m.SetToken(token, tt.rights)
			found := checkAgainst(t, m, Config{Token: token, ForwardHeader: "X-Forwarded-For"})
			if f := found["token"]; f.Level != tt.level || !strings.Contains(f.Text, tt.text) || (f.Level == LevelOK) != (f.Try == "") {
				t.Errorf("got %+v, want %s with %q and a way out", f, tt.level, tt.text)
			}
			if n := m.Failures(ownAddress); n != tt.failed {
				t.Errorf("%d failed logins, want %d", n, tt.failed)
			}
			if f := found["matomo"]; f.Level != LevelOK {
				t.Errorf("matomo: %+v", f)
			}
			if len(m.Hits()) > 0 && len(m.Recorded()) > 0 {
				t.Errorf("%d hits are recorded", len(m.Recorded()))
			}
		})
	}
	t.Run("an address that is locked out", func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		m.SetBlocked(true)
		if f := checkAgainst(t, m, Config{Token: testkit.SuperToken})["token"]; f.Level != LevelFault || !strings.Contains(f.Text, "locked out") || !strings.Contains(f.Try, "unblock") {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("a database that is down", func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		m.SetDatabase(testkit.DatabaseDown)
		if f := checkAgainst(t, m, Config{Token: testkit.SuperToken})["token"]; f.Level != LevelFault || strings.Contains(f.Text, "locked out") {
			t.Errorf("got %+v", f)
		}
	})
}

// TestCheckOfForwarding: check says on whom Matomo books clients' wrong tokens.
func TestCheckOfForwarding(t *testing.T) {
	tests := []struct {
		name, header string
		believed     bool
		level        Level
		text         string
	}{
		{"believed", "X-Forwarded-For", true, LevelOK, "takes visitors' addresses from X-Forwarded-For"},
		{"not believed", "X-Forwarded-For", false, LevelWarn, "does not believe X-Forwarded-For"},
		{"of another name", "X-Real-IP", true, LevelWarn, "does not believe X-Real-IP"},
		{"not set", "", true, LevelWarn, "not set"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: tt.believed})
			f := checkAgainst(t, m, Config{Token: testkit.AdminToken, ForwardHeader: tt.header})["forward"]
			if f.Level != tt.level || !strings.Contains(f.Text, tt.text) || (f.Level == LevelOK) != (f.Try == "") {
				t.Errorf("got %+v, want %s with %q", f, tt.level, tt.text)
			}
			if n := m.Failures(ownAddress) + m.Failures(canaryAddress); n != 0 {
				t.Errorf("%d failed logins", n)
			}
		})
	}
}

// checkAgainst gives the findings by name. Each name has one without MySQL.
func checkAgainst(t *testing.T, m *testkit.Matomo, cfg Config) map[string]Finding {
	t.Helper()
	cfg.Endpoint = m.Serve(t) + "/matomo.php"
	s, err := New(cfg, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Finding{}
	for _, f := range s.Check(t.Context()) {
		if strings.Contains(fmt.Sprint(f), cfg.Token) {
			t.Errorf("%+v shows the token", f)
		}
		out[f.Name] = f
	}
	return out
}

func TestPlaces(t *testing.T) {
	for want, sites := range map[string][]int64{
		"0 sites": nil, "site 7": {7}, "sites 1-3": {3, 1, 2, 2}, "sites 1-2, 9": {1, 2, 9}, "6 sites": {1, 3, 5, 7, 9, 11}, "sites 1, 3, 5, 7, 9-20": {1, 3, 5, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20},
	} {
		if got := places(sites); got != want {
			t.Errorf("places(%v) = %q, want %q", sites, got, want)
		}
	}
}
