package sink

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/testkit"
)

// idleSink makes a sink that does not run.
func idleSink(t *testing.T, cfg Config) *Sink {
	t.Helper()
	if cfg.Endpoint == "" {
		cfg.Endpoint = "http://127.0.0.1:1/matomo.php" // nobody listens there
	}
	if cfg.TablesPrefix == "" {
		cfg.TablesPrefix = "matomo_"
	}
	s, err := New(cfg, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.client.transport.CloseIdleConnections()
		if s.db != nil {
			s.db.close()
		}
	})
	return s
}

// grants gives deploy/grants.sql for an account of a test, who is 'name'@'%' with the
// password PASSWORD.
func grants(t *testing.T, name string) string {
	t.Helper()
	script, err := os.ReadFile(filepath.Join("..", "deploy", "grants.sql"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("'sluice'@'10.%'", "'"+name+"'@'%'", " REQUIRE SSL", "").Replace(string(script))
}

func sortSites(sites []SiteInfo) []SiteInfo {
	slices.SortFunc(sites, func(a, b SiteInfo) int { return int(a.ID - b.ID) })
	return sites
}

// TestListSitesFromTheDatabase: with the account of deploy/grants.sql, with that of its
// earlier form, which may not read names, and with those that may not read sites.
func TestListSitesFromTheDatabase(t *testing.T) {
	t.Parallel()
	server := testkit.StartMariaDB(t)
	server.CreateMatomo("matomo", "matomo_")
	server.Exec(`SET sql_mode=''; INSERT INTO matomo.matomo_site (idsite, name, main_url, ts_created, timezone) VALUES
		(7, 'Größe "7", ž', '', '0000-00-00 00:00:00', 'UTC+5.5'), (8, '', '', NULL, 'Europe/Kyiv'), (4000000000, 'big', '', '2026-03-16 23:59:58', '')`)
	server.Exec(grants(t, "edge"))
	earlier := strings.Replace(grants(t, "earlier"), "(idsite, name, timezone, ts_created)", "(idsite, timezone, ts_created)", 1)
	if !strings.Contains(earlier, "(idsite, timezone, ts_created)") {
		t.Fatal("deploy/grants.sql does not grant a site's name")
	}
	server.Exec(earlier)
	server.Exec("CREATE USER poor@'%' IDENTIFIED BY 'PASSWORD'; GRANT SELECT (idaction) ON matomo.matomo_log_action TO poor@'%'")
	server.Exec("CREATE USER half@'%' IDENTIFIED BY 'PASSWORD'; GRANT SELECT (idsite) ON matomo.matomo_site TO half@'%'")

	old := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	all := []SiteInfo{
		{1, "one", "UTC", old}, {2, "two", "Europe/Berlin", old}, {3, "three", "America/New_York", old}, {4, "four", "Pacific/Auckland", old},
		{7, "Größe \"7\", ž", "UTC+5.5", time.Time{}}, {8, "", "Europe/Kyiv", time.Time{}},
		{4_000_000_000, "big", "", time.Date(2026, 3, 16, 23, 59, 58, 0, time.UTC)},
	}
	nameless := slices.Clone(all)
	for i := range nameless {
		nameless[i].Name = ""
	}
	tests := []struct {
		name, user, password string
		want                 []SiteInfo
		wrong                string // the error
	}{
		{"as deploy/grants.sql has it", "edge", "PASSWORD", all, ""},
		{"as it had it", "earlier", "PASSWORD", nameless, ""},
		{"with every right", "root", "", all, ""},
		{"without any right on sites", "poor", "PASSWORD", nil, "MySQL 1142"},
		{"without a right on timezones", "half", "PASSWORD", nil, "MySQL 1143"},
		{"with a wrong password", "edge", "hunter2", nil, "MySQL 1045"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{}) // which is not asked
			s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: testkit.SuperToken, DSN: server.DSN(tt.user, tt.password, "matomo")})
			for range 2 {
				got, err := s.ListSites(t.Context())
				if (err == nil) != (tt.wrong == "") || err != nil && err.Error() != tt.wrong {
					t.Errorf("got the error %v, want %q", err, tt.wrong)
				}
				if sortSites(got); !slices.Equal(got, tt.want) {
					t.Errorf("got %+v, want %+v", got, tt.want)
				}
			}
		})
	}
	t.Run("nobody answers", func(t *testing.T) {
		s := idleSink(t, Config{DSN: server.DSN("edge", "PASSWORD", "matomo")})
		server.Kill()
		if got, err := s.ListSites(t.Context()); err == nil || err.Error() != "MySQL does not answer" {
			t.Errorf("got %v, %v, want that MySQL does not answer", got, err)
		}
	})
}

// TestListSitesFromTheReportingAPI: with a superuser's token. Another one is tried once,
// since each time would be a failed login.
func TestListSitesFromTheReportingAPI(t *testing.T) {
	old := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	all := []SiteInfo{
		{1, "site UTC", "UTC", old}, {2, "site Europe/Berlin", "Europe/Berlin", old},
		{3, "site America/New_York", "America/New_York", old}, {4, "site Pacific/Auckland", "Pacific/Auckland", old},
	}
	tests := []struct {
		name, token string
		set         func(*testkit.Matomo)
		want        []SiteInfo
		failed      int // logins
	}{
		{"of a superuser", testkit.SuperToken, nil, all, 0},
		{"of a superuser for secure requests", testkit.SecureSuperToken, nil, all, 0},
		{"of an admin", testkit.AdminToken, nil, nil, 0},
		{"that is wrong", "ffffffffffffffffffffffffffffffff", nil, nil, 1},
		{"of a superuser, without a database", testkit.SuperToken, func(m *testkit.Matomo) { m.SetDatabase(testkit.DatabaseDown) }, nil, 0},
		{"of a superuser who is locked out", testkit.SuperToken, func(m *testkit.Matomo) { m.SetBlocked(true) }, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
			if tt.set != nil {
				tt.set(m)
			}
			s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: tt.token})
			for range 3 {
				got, err := s.ListSites(t.Context())
				if (err == nil) != (tt.want != nil) || err != nil && strings.Contains(err.Error(), tt.token) {
					t.Errorf("got the error %v", err)
				}
				if sortSites(got); !slices.Equal(got, tt.want) {
					t.Errorf("got %+v, want %+v", got, tt.want)
				}
			}
			if n := m.Failures("127.0.0.1"); n != tt.failed {
				t.Errorf("%d failed logins, want %d", n, tt.failed)
			}
		})
	}
}

// TestListSitesAsksNobody where nobody could answer.
func TestListSitesAsksNobody(t *testing.T) {
	if got, err := idleSink(t, Config{}).ListSites(t.Context()); err != errNoSiteSource || got != nil {
		t.Errorf("without token and account: %v, %v, want errNoSiteSource", got, err)
	}
	if got, err := idleSink(t, Config{Token: testkit.SuperToken}).ListSites(t.Context()); err == nil || got != nil {
		t.Errorf("where nobody listens: %v, %v, want an error", got, err)
	}
	s, _ := answering(t, 500, `[{"idsite":1,"name":"a","timezone":"UTC"}]`)
	if got, err := s.ListSites(t.Context()); err == nil || got != nil {
		t.Errorf("a list with status 500: %v, %v, want an error", got, err)
	}
	s = idleSink(t, Config{Token: testkit.SuperToken})
	s.probe.mu.Lock()
	s.probe.kind = tokenRefused
	s.probe.mu.Unlock()
	if got, err := s.ListSites(t.Context()); err != errSiteToken || got != nil {
		t.Errorf("with a token that Matomo has refused: %v, %v, want errSiteToken", got, err)
	}
}

// answering makes a sink whose Matomo answers every question with a status and a body,
// and shows what it was asked last.
func answering(t *testing.T, status int, body string) (s *Sink, asked func() string) {
	t.Helper()
	var last string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		form, _ := io.ReadAll(r.Body)
		last = r.URL.String() + " " + string(form)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	return idleSink(t, Config{Endpoint: srv.URL + "/matomo.php", Token: testkit.SuperToken}), func() string { return last }
}

// TestLongSiteLists: far more than other answers may be, and not without end.
func TestLongSiteLists(t *testing.T) {
	for _, tt := range []struct {
		sites int
		ok    bool
	}{{50_000, true}, {300_000, false}} {
		var b strings.Builder
		for i := range tt.sites {
			fmt.Fprintf(&b, `,"%d":{"idsite":%d,"name":"site %d","timezone":"UTC","ts_created":"2020-01-01 00:00:00"}`, i+1, i+1, i+1)
		}
		s, asked := answering(t, 200, "{"+b.String()[1:]+"}")
		got, err := s.ListSites(t.Context())
		if (err == nil) != tt.ok || tt.ok && len(got) != tt.sites {
			t.Errorf("%d sites in %d bytes: got %d, %v, want them %v", tt.sites, b.Len(), len(got), err, tt.ok)
		}
		if q := asked(); !strings.Contains(q, "filter_limit=-1") || !strings.Contains(q, "showColumns=idsite%2Cname%2Ctimezone%2Cts_created") ||
			strings.Contains(strings.Fields(q)[0], testkit.SuperToken) {
			t.Errorf("asked %q, want all sites, four columns, and no token in the URL", q)
		}
	}
}

func TestParseSiteList(t *testing.T) {
	at := time.Date(2026, 3, 16, 23, 59, 58, 0, time.UTC)
	one := []SiteInfo{{1, "a", "UTC", at}}
	tests := []struct {
		name, body string
		want       []SiteInfo // nil = an error
	}{
		{"an object", `{"1":{"idsite":1,"name":"a","ts_created":"2026-03-16 23:59:58","timezone":"UTC"}}`, one},
		{"a list", `[{"idsite":1,"name":"a","ts_created":"2026-03-16 23:59:58","timezone":"UTC"}]`, one},
		{"numbers as texts", `[{"idsite":"1","name":"a","ts_created":"2026-03-16 23:59:58","timezone":"UTC"}]`, one},
		{"more columns", `[{"idsite":"1","name":"a","ts_created":"2026-03-16 23:59:58","timezone":"UTC","ecommerce":0,"main_url":"x","group":null}]`, one},
		{"several", `{"9":{"idsite":9,"name":"b","ts_created":"2026-03-16 23:59:58","timezone":"UTC-3"},"1":{"idsite":"1","name":"a","ts_created":"2026-03-16 23:59:58","timezone":"UTC"}}`,
			append(slices.Clone(one), SiteInfo{9, "b", "UTC-3", at})},
		{"no time of creation", `[{"idsite":1,"name":"a","timezone":"UTC"}]`, []SiteInfo{{1, "a", "UTC", time.Time{}}}},
		{"null for the time of creation", `[{"idsite":1,"name":"a","timezone":"UTC","ts_created":null}]`, []SiteInfo{{1, "a", "UTC", time.Time{}}}},
		{"a zero time of creation", `[{"idsite":1,"name":"a","timezone":"UTC","ts_created":"0000-00-00 00:00:00"}]`, []SiteInfo{{1, "a", "UTC", time.Time{}}}},
		{"no name", `[{"idsite":1,"timezone":"UTC","ts_created":"2026-03-16 23:59:58"}]`, []SiteInfo{{1, "", "UTC", at}}},
		{"a name with all kinds of characters", `[{"idsite":1,"name":"\u00e4\"<\/b>\ud83d\ude00","timezone":"UTC","ts_created":"2026-03-16 23:59:58"}]`, []SiteInfo{{1, "ä\"</b>😀", "UTC", at}}},

		{"nothing", ``, nil},
		{"null", `null`, nil},
		{"an empty list", `[]`, nil},
		{"an empty object", `{}`, nil},
		{"a refusal", `{"result":"error","message":"You can't access this resource as it requires 'superuser' access."}`, nil},
		{"a page", "<!DOCTYPE html>\n<html><head><title>Error</title></head><body>unknown token</body></html>\n", nil},
		{"half an answer", `[{"idsite":1,"name":"a","timezone":"UTC"`, nil},
		{"a list with something behind it", `[{"idsite":1,"name":"a","timezone":"UTC"}]<br>Warning`, nil},
		{"numbers alone", `[1,2,3]`, nil},
		{"a text", `"sites"`, nil},
		{"a site without a number", `[{"name":"a","timezone":"UTC"}]`, nil},
		{"a site with the number 0", `[{"idsite":0,"name":"a","timezone":"UTC"}]`, nil},
		{"a site with a negative number", `[{"idsite":"-1","name":"a","timezone":"UTC"}]`, nil},
		{"a site with half a number", `[{"idsite":1.5,"name":"a","timezone":"UTC"}]`, nil},
		{"a site with a word for a number", `[{"idsite":"one","name":"a","timezone":"UTC"}]`, nil},
		{"a site with an empty text for a number", `[{"idsite":"","name":"a","timezone":"UTC"}]`, nil},
		{"a site with null for a number", `[{"idsite":null,"name":"a","timezone":"UTC"}]`, nil},
		{"a number beyond all", `[{"idsite":99999999999999999999,"name":"a","timezone":"UTC"}]`, nil},
		{"a site without a timezone among others", `[{"idsite":1,"name":"a","timezone":"UTC"},{"idsite":2,"name":"b"}]`, []SiteInfo{{ID: 1, Name: "a", Zone: "UTC"}, {ID: 2, Name: "b"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseSiteList([]byte(tt.body))
			if (err == nil) != (tt.want != nil) {
				t.Errorf("got the error %v", err)
			}
			if sortSites(got); !slices.Equal(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestForgetReports: the order arrives as Matomo wants it, with an admin's rights on the
// site. A token that is refused is not tried again at once.
func TestForgetReports(t *testing.T) {
	const day = "2026-11-26"
	tests := []struct {
		name, token string
		site        int64
		ok          bool
		failed      int // logins
	}{
		{"a superuser", testkit.SuperToken, 4, true, 0},
		{"an admin of the site", testkit.AdminToken, 1, true, 0},
		{"an admin of another site", testkit.AdminToken, 2, false, 0},
		{"a site that does not exist", testkit.SuperToken, 77, false, 0},
		{"nobody", "ffffffffffffffffffffffffffffffff", 1, false, 1},
		{"no token", "", 1, false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			s := idleSink(t, Config{Endpoint: m.Serve(t) + "/matomo.php", Token: tt.token})
			for range 3 {
				if err := s.ForgetReports(t.Context(), tt.site, day); (err == nil) != tt.ok {
					t.Errorf("got %v, want it taken %v", err, tt.ok)
				}
			}
			var want []testkit.Invalidation
			if tt.ok {
				want = slices.Repeat([]testkit.Invalidation{{Sites: fmt.Sprint(tt.site), Dates: day, Period: "day"}}, 3)
			}
			if got := m.Invalidations(); !slices.Equal(got, want) {
				t.Errorf("Matomo was told %+v, want %+v", got, want)
			}
			if n := m.Failures("127.0.0.1"); n != tt.failed {
				t.Errorf("%d failed logins, want %d", n, tt.failed)
			}
		})
	}
}

// TestAnswersToForgetReports: only a line that says so means that the day was taken.
func TestAnswersToForgetReports(t *testing.T) {
	const day = "2026-11-26"
	const success = "Success. The following dates were invalidated successfully: "
	tests := []struct {
		name   string
		status int
		body   string
		ok     bool
	}{
		{"success", 200, `["` + success + day + `"]`, true},
		{"success with a warning before it", 200, `["Warning: some of the Dates to invalidate were invalid","` + success + day + `"]`, true},
		{"the raw data is gone", 200, `["Warning: the following Dates have not been invalidated, because they are earlier than your Log Deletion limit: ` + day + `","` + success + `"]`, false},
		{"success with another day", 200, `["` + success + `2026-11-25"]`, false},
		{"an empty list", 200, `[]`, false},
		{"a refusal", 200, `{"result":"error","message":"no"}`, false},
		{"a refusal that says success", 200, `{"result":"success","message":"ok"}`, false},
		{"a page", 200, "<!DOCTYPE html>\n<html></html>", false},
		{"nothing", 200, "", false},
		{"success that is an error", 500, `["` + success + day + `"]`, false},
		{"an upgrade", 503, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, asked := answering(t, tt.status, tt.body)
			if err := s.ForgetReports(t.Context(), 3, day); (err == nil) != tt.ok {
				t.Errorf("got %v, want it taken %v", err, tt.ok)
			}
			if q := asked(); strings.Contains(strings.Fields(q)[0], testkit.SuperToken) || !strings.Contains(q, "idSites=3") {
				t.Errorf("asked %q, want the site, and no token in the URL", q)
			}
			s.cfg.Token = ""
			if err := s.ForgetReports(t.Context(), 3, day); err == nil {
				t.Error("without a token: taken, want nobody asked")
			}
		})
	}
	if err := idleSink(t, Config{Token: testkit.SuperToken}).ForgetReports(t.Context(), 3, day); err == nil || strings.Contains(err.Error(), testkit.SuperToken) {
		t.Errorf("where nobody listens: %v, want an error without the token", err)
	}
}
