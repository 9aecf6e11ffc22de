package sink

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

const policy = "CP='OTI DSP COR NID STP UNI OTPa OUR'"

// matomoCookieLine is a Set-Cookie line as Matomo writes it.
func matomoCookieLine(attributes string) string {
	end := time.Now().Add(9432 * time.Hour).UTC().Format("Monday, 02-Jan-2006 15:04:05 MST")
	return "_pk_uid=0%3D1111111111111111; expires=" + end + attributes
}

func TestCheckVisitorCookie(t *testing.T) {
	ours := VisitorCookie{On: true, Name: "_pk_uid", Expire: 9432 * time.Hour}
	with := func(change func(*VisitorCookie)) VisitorCookie {
		v := ours
		change(&v)
		return v
	}
	tests := []struct {
		name   string
		ours   VisitorCookie
		cookie string // of Matomo; "" = none
		level  Level  // "" = no finding
		text   string
	}{
		{"both off", VisitorCookie{}, "", "", ""},
		{"both on", ours, matomoCookieLine("; SameSite=Lax"), LevelOK, "as Matomo's"},
		{"both on, with path and domain", with(func(v *VisitorCookie) { v.Path, v.Domain = "/m", "www.a.example" }), matomoCookieLine("; path=/m; domain=.a.example"), LevelOK, "as Matomo's"},
		{"only Matomo's on", VisitorCookie{}, matomoCookieLine(""), LevelWarn, "third-party-cookie: on"},
		{"only ours on", ours, "", LevelWarn, "third-party-cookie: off"},
		{"a balancer's cookie", VisitorCookie{}, "route=0%3D1; path=/", "", ""},
		{"another name", with(func(v *VisitorCookie) { v.Name = "x" }), matomoCookieLine(""), LevelWarn, `named "_pk_uid", here "x"`},
		{"another path", ours, matomoCookieLine("; path=/m"), LevelWarn, `path "/m", here ""`},
		{"another domain", ours, matomoCookieLine("; domain=.a.example"), LevelWarn, `domain ".a.example", here ""`},
		{"another life", with(func(v *VisitorCookie) { v.Expire = 24 * time.Hour }), matomoCookieLine(""), LevelWarn, "lives 9432h0m0s, here 24h0m0s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.String() != "/m/js/" {
					t.Errorf("asks %s %s, want GET /m/js/", r.Method, r.URL)
				}
				if strings.HasPrefix(tt.cookie, "_pk_uid") {
					w.Header().Set("P3P", policy)
				}
				if tt.cookie != "" {
					w.Header().Set("Set-Cookie", tt.cookie)
				}
			}))
			defer srv.Close()
			s, err := New(Config{Endpoint: srv.URL + "/m/matomo.php", VisitorCookie: tt.ours}, newSource(t), slog.New(slog.DiscardHandler), metrics.NewSet())
			if err != nil {
				t.Fatal(err)
			}
			found := s.checkVisitorCookie(t.Context())
			if tt.level == "" {
				if len(found) > 0 {
					t.Errorf("found %+v, want nothing", found)
				}
				return
			}
			if len(found) != 1 || found[0].Level != tt.level || !strings.Contains(found[0].Text+" "+found[0].Try, tt.text) {
				t.Errorf("found %+v, want %s with %q", found, tt.level, tt.text)
			}
		})
	}
}

// TestBatchesStaySmallWhenMatomoSetsCookies: a web server before Matomo answers 502
// when the answer has too many cookies, and the hits are recorded nevertheless.
func TestBatchesStaySmallWhenMatomoSetsCookies(t *testing.T) {
	const hits = 300
	tests := []struct {
		name   string
		ours   VisitorCookie
		policy string
		small  bool
	}{
		{"told by the settings", VisitorCookie{On: true}, "", true},
		{"learnt from an answer", VisitorCookie{}, policy, true},
		{"a balancer's cookie means nothing", VisitorCookie{}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			t.Cleanup(m.Close)
			var requests, largest atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Set-Cookie", "route=1")
				if tt.policy != "" {
					w.Header().Set("P3P", tt.policy)
				}
				if requests.Add(1) > 1 && r.ContentLength > largest.Load() {
					largest.Store(r.ContentLength)
				}
				m.ServeHTTP(w, r)
			}))
			t.Cleanup(srv.Close)
			cfg := testConfig()
			cfg.VisitorCookie, cfg.Lanes = tt.ours, 1
			src := newSource(t)
			batch := make([]hit.Pending, hits)
			for i := range batch {
				batch[i] = hitOf(1, fmt.Sprintf("m%03d", i))
			}
			src.add(batch...)
			batch[0].Environment = &hit.Environment{ClientIP: "203.0.113.9", UserAgent: browser}
			one := newEncoder().encode(batch[0])
			r := startAt(t, m, srv.URL+"/matomo.php", cfg, src)
			src.waitSettled(soon(t), hits)
			r.stop(t)
			limit := int64((maxCookieHits + 1) * (len(one.element) + 1))
			if small := largest.Load() <= limit; small != tt.small {
				t.Errorf("the largest request has %d bytes, %d hits take %d: small is %v, want %v", largest.Load(), maxCookieHits, limit, small, tt.small)
			}
		})
	}
}
