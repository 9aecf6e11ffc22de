package testkit_test

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
)

const browser = "Mozilla/5.0 (X11; Linux x86_64; rv:115.0) Gecko/20100101 Firefox/115.0"

// complaints is a testing.TB that only counts.
type complaints struct {
	testing.TB
	n int
}

func (c *complaints) Helper()               {}
func (c *complaints) Errorf(string, ...any) { c.n++ }

func TestCheckOnce(t *testing.T) {
	tests := []struct {
		name       string
		sent, want []string
		complaints int
	}{
		{"all once", []string{"a", "b"}, []string{"a", "b"}, 0},
		{"one twice", []string{"a", "b", "a"}, []string{"a", "b"}, 1},
		{"one missing", []string{"a"}, []string{"a", "b"}, 1},
		{"a stranger", []string{"a", "b"}, []string{"a"}, 2},
	}
	for _, counting := range []bool{false, true} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/counting=%v", tt.name, counting), func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{CountOnly: counting})
				base := m.Serve(t)
				for _, mark := range tt.sent {
					post(t.Context(), base, bulk(mark))
				}
				c := &complaints{TB: t}
				m.CheckOnce(c, tt.want)
				if c.n != tt.complaints {
					t.Errorf("%d complaints, want %d", c.n, tt.complaints)
				}
				distinct := slices.Compact(slices.Sorted(slices.Values(tt.sent)))
				if got, want := m.Counts().Duplicates, int64(len(tt.sent)-len(distinct)); got != want {
					t.Errorf("%d duplicates, want %d", got, want)
				}
			})
		}
	}
}

func TestFailureAfterCommitCountsInvalidHits(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	m.Next(testkit.Error500Committed())
	got := post(t.Context(), base, strings.Replace(bulk("a", "b"), "idsite=1", "idsite=9", 1))
	if want := `{"status":"error","tracked":1,"invalid":1,"invalid_indices":[0]}`; got.body != want {
		t.Errorf("answered %q, want %q", got.body, want)
	}
	m.CheckOnce(t, []string{"b"})
	if c := m.Counts(); c.Invalid != 1 || c.Recorded != 1 || c.Commits != 1 || c.Received != 2 {
		t.Errorf("counts are %+v", c)
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	m := testkit.NewMatomo(testkit.MatomoConfig{Now: func() time.Time { return now }})
	base := m.Serve(t)
	hit := func(at time.Time) string {
		return strings.Replace(bulk("a"), "&", fmt.Sprintf("&cdt=%d&", at.Unix()), 1)
	}
	m.SetClock(-time.Minute)
	got := post(t.Context(), base, hit(now))
	if want := "Fri, 01 May 2026 11:59:00 GMT"; got.header.Get("Date") != want {
		t.Errorf("Date = %q, want %q", got.header.Get("Date"), want)
	}
	m.SetClock(0)
	m.Next(testkit.WithDate(time.Hour, testkit.Honest()))
	got = post(t.Context(), base, hit(now.Add(-48*time.Hour)))
	if want := "Fri, 01 May 2026 13:00:00 GMT"; got.header.Get("Date") != want {
		t.Errorf("Date = %q, want %q", got.header.Get("Date"), want)
	}
	post(t.Context(), base, strings.Replace(bulk("a"), "&", "&cdt=2026-04-30%2010:00:00&cdo=3600&", 1))
	want := []time.Time{now.Add(-time.Minute), now.Add(-48 * time.Hour), now.Add(-27 * time.Hour)}
	for i, h := range m.Recorded() {
		if got := time.Unix(h.Time, 0).UTC(); !got.Equal(want[i]) {
			t.Errorf("hit %d recorded at %v, want %v", i, got, want[i])
		}
	}
}

func TestKeepsWhatItSaw(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
	base := m.Serve(t)
	body := `{"token_auth":"` + testkit.AdminToken + `","requests":["?idsite=1&rec=1&cip=1.2.3.4&cdt=1700000000&uid=me&url=u&a[b][]=1&a[b][]=%E9&ua=` + "Firefox" + `","?idsite=2&rec=1&cip=1.2.3.4",{"idsite":2,"rec":1,"dimension1":7}]}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/sub/piwik.php", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"X-Forwarded-For": "9.9.9.9, 5.6.7.8", "User-Agent": browser, "DNT": "1", "Referer": "http://from/", "Accept-Language": "de"} {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	hits := m.Hits()
	if len(hits) != 3 {
		t.Fatalf("kept %d hits, want 3", len(hits))
	}
	sum := func(h *testkit.Hit) string {
		return fmt.Sprintln(h.Index, h.Outcome, h.Site, h.IP, h.URL, h.UserAgent, h.Language, h.Visitor, h.Trusted)
	}
	wants := []string{
		fmt.Sprintln(0, "recorded", 1, "1.2.3.4", "u", "Firefox", "de", "b1c1d8736f20db3f", true),
		fmt.Sprintln(1, "invalid", 2, "1.2.3.4", "http://from/", browser, "de", "", false),
		fmt.Sprintln(2, "recorded", 2, "5.6.7.8", "http://from/", browser, "de", "", false),
	}
	for i, want := range wants {
		if got := sum(hits[i]); got != want {
			t.Errorf("hit %d is %q, want %q", i, got, want)
		}
	}
	if got, want := hits[0].Params["a"], (testkit.Params{"b": testkit.Params{"0": "1", "1": "\xe9"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("array parameter = %v, want %v", got, want)
	}
	if hits[0].Time != 1700000000 || hits[2].Params.String("dimension1") != "7" || hits[0].From.Header.Get("DNT") != "1" {
		t.Errorf("time, object or header lost: %+v", hits)
	}
}

func TestOrderIsRecordedOnce(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	base := m.Serve(t)
	body := strings.Replace(bulk("a"), "&", "&idgoal=0&ec_id=7&", 1)
	m.Next(testkit.Reset(testkit.Committed))
	post(t.Context(), base, body)
	want := `{"status":"success","tracked":0,"invalid":1,"invalid_indices":[0]}`
	if got := post(t.Context(), base, body); got.body != want {
		t.Errorf("the second time answered %q, want %q", got.body, want)
	}
	m.CheckOnce(t, []string{"a"})
}
