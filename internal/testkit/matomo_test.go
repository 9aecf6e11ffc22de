package testkit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
)

// answer is what a client saw of one request.
type answer struct {
	status int
	body   string
	header http.Header
	err    error
}

// bulk makes a body with the superuser's token: one page view a mark.
func bulk(marks ...string) string {
	hits := make([]string, len(marks))
	for i, m := range marks {
		hits[i] = `"?idsite=1&rec=1&url=http%3A%2F%2Fx%2F&` + testkit.DefaultMark + "=" + m + `"`
	}
	return `{"token_auth":"` + testkit.SuperToken + `","requests":[` + strings.Join(hits, ",") + `]}`
}

const canary = `{"token_auth":"` + testkit.SuperToken + `","requests":["?idsite=1&rec=0"]}`

// post sends a bulk on a connection of its own.
func post(ctx context.Context, base, body string) answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/matomo.php?queuedtracking=0", strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "")
	req.Close = true
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, string(b), res.Header, err}
}

func success(tracked int) string {
	return fmt.Sprintf(`{"status":"success","tracked":%d,"invalid":0,"invalid_indices":[]}`, tracked)
}

func failure(tracked int) string {
	return fmt.Sprintf(`{"status":"error","tracked":%d,"invalid":0,"invalid_indices":[]}`, tracked)
}

func TestLies(t *testing.T) {
	const page = "<"
	all := []string{"a", "b", "c"}
	tests := []struct {
		name     string
		answer   testkit.Answer
		status   int
		body     string // page = some HTML
		recorded []string
	}{
		{"honest", testkit.Honest(), 200, success(3), all},
		{"nothing tracked", testkit.NothingTracked(), 200, `{"status":"success","tracked":0,"invalid":0}`, nil},
		{"one hit is skipped", testkit.Skip(1), 200, success(2), []string{"a", "c"}},
		{"two hits are skipped", testkit.Skip(0, 2), 200, success(1), []string{"b"}},
		{"error text after rollback", testkit.ErrorText(testkit.RolledBack), 200, "Error:SQLSTATE[HY000]: General error: 2006 MySQL server has gone away", nil},
		{"error text after commit", testkit.ErrorText(testkit.Committed), 200, "Error:SQLSTATE[HY000]: General error: 2006 MySQL server has gone away", all},
		{"not installed", testkit.NotInstalled(), 200, "As Matomo is not installed yet, this fake cannot process requests.", nil},
		{"500 rolled back", testkit.Error500(2), 500, failure(2), nil},
		{"500 committed", testkit.Error500Committed(), 500, failure(3), all},
		{"500 empty", testkit.Empty500(testkit.RolledBack), 500, "", nil},
		{"500 empty after commit", testkit.Empty500(testkit.Committed), 500, "", all},
		{"image for a bulk", testkit.QueuedGIF(testkit.Committed), 200, "GIF89a", all},
		{"no content", testkit.NoContent(testkit.RolledBack), 204, "", nil},
		{"redirect", testkit.Redirect(301, "https://elsewhere.example/"), 301, page, nil},
		{"login page", testkit.LoginPage(), 200, page, nil},
		{"revoked", testkit.Revoked(), 200, `{"status":"success","tracked":0,"invalid":3}`, nil},
		{"authentication required", testkit.AuthRequired(), 400, `{"status":"error","tracked":0,"invalid":0}`, nil},
		{"blocked", testkit.Blocked(), 500, `{"status":"error","tracked":0,"invalid":0}`, nil},
		{"information page", testkit.InfoPage(), 400, "This resource is part of Matomo", nil},
		{"firewall", testkit.Status(403, 0, testkit.RolledBack), 403, page, nil},
		{"too large", testkit.Status(413, 0, testkit.RolledBack), 413, page, nil},
		{"overloaded", testkit.Status(503, 7*time.Second, testkit.RolledBack), 503, page, nil},
		{"gateway timeout after commit", testkit.Status(504, 0, testkit.Committed), 504, page, all},
		{"reset before", testkit.Reset(testkit.RolledBack), 0, "", nil},
		{"reset after commit", testkit.Reset(testkit.Committed), 0, "", all},
	}
	for _, counting := range []bool{false, true} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/counting=%v", tt.name, counting), func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{CountOnly: counting})
				base := m.Serve(t)
				m.Next(tt.answer)
				got := post(t.Context(), base, bulk("a", "b", "c"))
				if got.status != tt.status || (got.err != nil) != (tt.status == 0) {
					t.Errorf("status = %d, error %v, want %d", got.status, got.err, tt.status)
				}
				if !strings.HasPrefix(got.body, tt.body) || tt.body == "" && got.body != "" {
					t.Errorf("body = %q, want %q", got.body, tt.body)
				}
				if recorded := m.Marks(); len(recorded)+len(tt.recorded) > 0 && !reflect.DeepEqual(recorded, tt.recorded) {
					t.Errorf("recorded %v, want %v", recorded, tt.recorded)
				}
				if tt.name == "overloaded" && got.header.Get("Retry-After") != "7" {
					t.Errorf("Retry-After = %q, want 7", got.header.Get("Retry-After"))
				}
				if next := post(t.Context(), base, bulk("d")); next.body != success(1) {
					t.Errorf("the next answer is %q, want an honest one", next.body)
				}
			})
		}
	}
}

func TestHangs(t *testing.T) {
	for _, fate := range []testkit.Fate{testkit.RolledBack, testkit.Committed} {
		t.Run(fmt.Sprint("fate=", fate), func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			base := m.Serve(t)
			m.Next(testkit.Hang(fate))
			ctx, cancel := context.WithCancel(t.Context())
			seen := make(chan answer)
			go func() { seen <- post(ctx, base, bulk("a")) }()
			if err := m.Wait(t.Context(), func(c testkit.Counts) bool { return c.Requests == 1 && c.Recorded == int64(fate) }); err != nil {
				t.Fatal(err)
			}
			cancel()
			if got := <-seen; !errors.Is(got.err, context.Canceled) {
				t.Errorf("error = %v, want that the client gave up", got.err)
			}
			if err := m.Wait(t.Context(), func(testkit.Counts) bool { return m.Requests()[0].Answer == "hang" }); err != nil {
				t.Fatal(err)
			}
			if got := m.Commits("a"); got != int(fate) {
				t.Errorf("recorded %d times, want %d", got, fate)
			}
		})
	}
}

func TestCommitsAfterTheClientLeft(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	release := make(chan struct{})
	m.Next(testkit.CommitLater(release))
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan answer)
	go func() { seen <- post(ctx, base, bulk("a")) }()
	if err := m.Wait(t.Context(), func(c testkit.Counts) bool { return c.Requests == 1 }); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-seen
	if got := m.Commits("a"); got != 0 {
		t.Errorf("recorded %d times before the release, want 0", got)
	}
	close(release)
	if err := m.WaitRecorded(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
}

func TestPoison(t *testing.T) {
	bad := func(h *testkit.Hit) bool { return h.Mark == "bad" }
	tests := []struct {
		name   string
		poison func(*testkit.Matomo, func(*testkit.Hit) bool)
		status int
		body   string
	}{
		{"fails with JSON", (*testkit.Matomo).Poison, 500, failure(1)},
		{"kills PHP", (*testkit.Matomo).PoisonFatal, 500, ""},
		{"meets a firewall", (*testkit.Matomo).PoisonWAF, 403, "<html><head><title>403 Forbidden</title></head><body><h1>403 Forbidden</h1></body></html>\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			base := m.Serve(t)
			tt.poison(m, bad)
			if got := post(t.Context(), base, bulk("a", "bad", "b")); got.status != tt.status || got.body != tt.body {
				t.Errorf("got %d %q, want %d %q", got.status, got.body, tt.status, tt.body)
			}
			if got := post(t.Context(), base, canary); got.body != success(1) {
				t.Errorf("canary answered %q, want success", got.body)
			}
			post(t.Context(), base, bulk("a"))
			post(t.Context(), base, bulk("b"))
			m.CheckOnce(t, []string{"a", "b"})
			m.Cure()
			post(t.Context(), base, bulk("bad"))
			m.CheckOnce(t, []string{"a", "b", "bad"})
		})
	}
}

func TestWithoutTransactionsThePrefixStays(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{NoTransactions: true})
	base := m.Serve(t)
	m.Poison(func(h *testkit.Hit) bool { return h.Mark == "bad" })
	post(t.Context(), base, bulk("a", "bad", "b"))
	m.CheckOnce(t, []string{"a"})
}

func TestScriptLeavesProbesAlone(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	m.Next(testkit.Error500(0))
	if got := post(t.Context(), base, canary); got.status != 200 {
		t.Errorf("canary got %d, want 200", got.status)
	}
	m.NextProbe(testkit.LoginPage())
	if got := post(t.Context(), base, bulk("a")); got.status != 500 {
		t.Errorf("delivery got %d, want 500", got.status)
	}
	if got := post(t.Context(), base, canary); !strings.Contains(got.body, "Sign in") {
		t.Errorf("canary got %q, want the login page", got.body)
	}
	m.Always(testkit.Status(502, 0, testkit.RolledBack))
	if got := post(t.Context(), base, canary); got.status != 502 {
		t.Errorf("canary got %d, want 502", got.status)
	}
	lie := testkit.NotInstalled()
	m.Choose(func(x *testkit.Exchange) *testkit.Answer {
		if x.Bulk && len(x.Judged()) == 2 {
			return &lie
		}
		return nil
	})
	if got := post(t.Context(), base, bulk("a", "b")); !strings.HasPrefix(got.body, "As Matomo is not installed") {
		t.Errorf("chosen answer is %q, want the text of a fresh install", got.body)
	}
	if got := post(t.Context(), base, bulk("a")); got.status != 502 {
		t.Errorf("delivery got %d, want 502", got.status)
	}
}

func TestStates(t *testing.T) {
	failed := `{"status":"error","tracked":0,"invalid":0}`
	tests := []struct {
		name             string
		set              func(*testkit.Matomo)
		delivery, canary string
	}{
		{"recording is off", func(m *testkit.Matomo) { m.SetRecording(false) }, `{"status":"success","tracked":0,"invalid":0}`, `{"status":"success","tracked":0,"invalid":0}`},
		{"the database is down", func(m *testkit.Matomo) { m.SetDatabase(testkit.DatabaseDown) }, failed, failed},
		{"the database is read-only", func(m *testkit.Matomo) { m.SetDatabase(testkit.DatabaseReadOnly) }, failure(0), success(1)},
		{"the address is blocked", func(m *testkit.Matomo) { m.SetBlocked(true) }, failed, failed},
		{"the token is revoked", func(m *testkit.Matomo) { m.SetToken(testkit.SuperToken, nil) }, `{"status":"success","tracked":2,"invalid":0}`, `{"status":"success","tracked":1,"invalid":0}`},
		{"the body is too large", func(m *testkit.Matomo) { m.SetBodyLimit(150) }, "<html>", success(1)},
		{"queued tracking is bypassed", func(m *testkit.Matomo) { m.SetQueuedTracking(true) }, success(2), success(1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			base := m.Serve(t)
			tt.set(m)
			if got := post(t.Context(), base, bulk("a", "b")); !strings.HasPrefix(got.body, tt.delivery) {
				t.Errorf("delivery answered %q, want %q", got.body, tt.delivery)
			}
			if got := post(t.Context(), base, canary); !strings.HasPrefix(got.body, tt.canary) {
				t.Errorf("canary answered %q, want %q", got.body, tt.canary)
			}
		})
	}
}

func TestQueuedTrackingAnswersBulksWithAnImage(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	m.SetQueuedTracking(true)
	res, err := http.Post(base+"/matomo.php", "application/json", strings.NewReader(bulk("a")))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := res.Header.Get("Content-Type"); got != "image/gif" || m.Commits("a") != 1 {
		t.Errorf("got %s and %d commits, want an image and 1", got, m.Commits("a"))
	}
}

func TestBulkMayNeedAuthentication(t *testing.T) {
	base := testkit.NewMatomo(testkit.MatomoConfig{RequireAuth: true}).Serve(t)
	failed := `{"status":"error","tracked":0,"invalid":0}`
	tests := []struct {
		name, body string
		status     int
		want       string
	}{
		{"a good token", bulk("a"), 200, success(1)},
		{"a bad token", strings.Replace(bulk("a"), testkit.SuperToken, "x", 1), 500, failed},
		{"no token", strings.Replace(bulk("a"), testkit.SuperToken, "", 1), 500, failed},
		{"one unknown site", strings.Replace(bulk("a", "b"), "idsite=1", "idsite=9", 1), 400, failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := post(t.Context(), base, tt.body); got.status != tt.status || got.body != tt.want {
				t.Errorf("got %d %q, want %d %q", got.status, got.body, tt.status, tt.want)
			}
		})
	}
}

func TestLatencyCountsHits(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	m.SetLatency(10*time.Millisecond, 5*time.Millisecond)
	begin := time.Now()
	post(t.Context(), base, bulk("a", "b"))
	if got := time.Since(begin); got < 20*time.Millisecond {
		t.Errorf("two hits took %v, want 20 ms at least", got)
	}
}

func TestSecureOnlyToken(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	body := strings.Replace(strings.Replace(bulk("a"), testkit.SuperToken, testkit.SecureSuperToken, 1), "&", "&cip=1.2.3.4&", 1)
	want := `{"status":"success","tracked":0,"invalid":1}`
	if got := post(t.Context(), base, body); got.body != want {
		t.Errorf("in a JSON body answered %q, want %q", got.body, want)
	}
	form := "idsite=1&rec=1&cip=1.2.3.4&send_image=0&token_auth=" + testkit.SecureSuperToken
	for kind, want := range map[string]int{"application/x-www-form-urlencoded": 204, "text/plain": 400} {
		res, err := http.Post(base+"/matomo.php", kind, strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("in %s answered %d, want %d", kind, res.StatusCode, want)
		}
	}
}

func TestReportingAPI(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	tests := []struct {
		name, query string
		status      int
		body        string
	}{
		{"lists sites", "method=SitesManager.getAllSitesId&token_auth=" + testkit.SuperToken, 200, "[1,2,3,4]"},
		{"says the version", "method=API.getMatomoVersion&token_auth=" + testkit.AdminToken, 200, `{"value":"5.0.2"}`},
		{"describes a site", "method=SitesManager.getSiteFromId&idSite=2&token_auth=" + testkit.SuperToken, 200, `{"idsite":2,`},
		{"knows no such site", "method=SitesManager.getSiteFromId&idSite=9&token_auth=" + testkit.SuperToken, 200, `{"message":"no such website","result":"error"}`},
		{"describes all sites", "method=SitesManager.getAllSites&showColumns=idsite,name,timezone,ts_created&token_auth=" + testkit.SuperToken, 200,
			`{"1":{"idsite":1,"name":"site UTC","timezone":"UTC","ts_created":"2020-01-01 00:00:00"},"2":{"idsite":2,"name":"site Europe/Berlin",`},
		{"describes all sites to a superuser only", "method=SitesManager.getAllSites&token_auth=" + testkit.AdminToken, 401, `{"message"`},
		{"forgets reports", "method=CoreAdminHome.invalidateArchivedReports&idSites=1&dates=2026-11-26&period=day&token_auth=" + testkit.AdminToken, 200,
			`["Success. The following dates were invalidated successfully: 2026-11-26"]`},
		{"forgets no reports of a site of others", "method=CoreAdminHome.invalidateArchivedReports&idSites=1,2&dates=2026-11-26&token_auth=" + testkit.AdminToken, 401, `{"message"`},
		{"forgets no reports of no site", "method=CoreAdminHome.invalidateArchivedReports&idSites=9&dates=2026-11-26&token_auth=" + testkit.SuperToken, 401, `{"message"`},
		{"refuses a stranger", "method=SitesManager.getAllSitesId&token_auth=x", 401, "<!DOCTYPE"},
		{"refuses nobody", "method=SitesManager.getAllSitesId", 401, `{"message"`},
		{"refuses too little", "method=SitesManager.getAllSitesId&token_auth=" + testkit.AdminToken, 401, `{"message"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res, err := http.Post(base+"/index.php", "application/x-www-form-urlencoded", strings.NewReader("module=API&format=json&"+tt.query))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != tt.status || !strings.HasPrefix(string(b), tt.body) {
				t.Errorf("got %d %q %v, want %d %q", res.StatusCode, b, err, tt.status, tt.body)
			}
		})
	}
	if got, want := m.Invalidations(), []testkit.Invalidation{{Sites: "1", Dates: "2026-11-26", Period: "day"}}; !slices.Equal(got, want) {
		t.Errorf("forgot %+v, want %+v", got, want)
	}
}

// BenchmarkMatomo is how many hits a second the fake takes: it must be far above
// what any drain can reach.
func BenchmarkMatomo(b *testing.B) {
	const hits = 200
	marks := make([]string, hits)
	for i := range marks {
		marks[i] = fmt.Sprint("m", i) + "&ua=" + strings.Repeat("x", 300)
	}
	body := bulk(marks...)
	for _, counting := range []bool{true, false} {
		b.Run(fmt.Sprintf("hits=%d/counting=%v", hits, counting), func(b *testing.B) {
			base := testkit.NewMatomo(testkit.MatomoConfig{CountOnly: counting}).Serve(b)
			client := &http.Client{Transport: &http.Transport{}}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				res, err := client.Post(base+"/matomo.php", "application/json", strings.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					b.Fatal(err)
				}
				res.Body.Close()
				n += hits
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "hits/s")
		})
	}
}
