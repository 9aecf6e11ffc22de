package proxy

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"sluice/internal/hit"
)

// TestReplay: a logged request gets what a client's gets, at the time of the log.
func TestReplay(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC)
	r := newRig(t, func(c *Config) {
		c.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}
		c.RateLimits = RateLimits{PerAddress: 1, AddressBurst: 1}
	})
	replayer := r.Replayer(func(int64) bool { return true })
	const tracked = "/matomo.php?idsite=1&rec=1&x=%E9+%22"
	for _, tt := range []struct {
		name string
		l    Logged
		want Verdict
		at   time.Time // of the hit
		ip   string
	}{
		{"a hit", Logged{Target: tracked}, ReplayTaken, at, "192.0.2.7"},
		{"behind a trusted proxy", Logged{Target: tracked, Remote: netip.MustParseAddr("192.0.2.200"), Header: http.Header{"X-Forwarded-For": {"203.0.113.9"}}}, ReplayTaken, at, "203.0.113.9"},
		{"behind a stranger", Logged{Target: tracked, Header: http.Header{"X-Forwarded-For": {"203.0.113.9"}}}, ReplayTaken, at, "192.0.2.7"},
		{"below a base path", Logged{Target: "/stats//./piwik.php?idsite=1&rec=1"}, ReplayTaken, at, "192.0.2.7"},
		{"a recent time without a token", Logged{Target: tracked + "&cdt=2026-03-01+11:00:00"}, ReplayTaken, at.Add(-time.Hour), "192.0.2.7"},
		{"an old time without a token", Logged{Target: tracked + "&cdt=2026-02-01+11:00:00"}, ReplayRefused, at, ""},
		{"an address without a token", Logged{Target: tracked + "&cip=203.0.113.1"}, ReplayRefused, at, ""},
		{"a place without a token", Logged{Target: tracked + "&%20country=de"}, ReplayRefused, at, ""},
		{"a post whose body is not there", Logged{Method: "POST", Target: tracked}, ReplayWithoutBody, at, ""},
		{"a post with its body", Logged{Method: "POST", Target: "/matomo.php", HasBody: true, Body: []byte("idsite=1&rec=1"), Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}}, ReplayTaken, at, "192.0.2.7"},
		{"a post that had none", Logged{Method: "POST", Target: tracked, HasBody: true}, ReplayTaken, at, "192.0.2.7"},
		{"a preflight", Logged{Method: "OPTIONS", Target: tracked}, ReplayNothing, at, ""},
		{"opted out", Logged{Target: tracked, Header: http.Header{"Cookie": {"matomo_ignore=ignore%3DKg%3D%3D"}}}, ReplayNothing, at, ""},
		{"no parameters", Logged{Target: "/matomo.php"}, ReplayNothing, at, ""},
		{"a browser's question before a request", Logged{Method: "OPTIONS", Target: tracked}, ReplayNothing, at, ""},
		{"a page", Logged{Target: "/index.php?module=Login"}, ReplayElsewhere, at, ""},
		{"the tracker itself", Logged{Target: "/matomo.js"}, ReplayElsewhere, at, ""},
		{"no request", Logged{Target: "*"}, ReplayBroken, at, ""},
		{"a bad path", Logged{Target: "/%zz/matomo.php?idsite=1&rec=1"}, ReplayBroken, at, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := tt.l
			l.At = at
			if l.Method == "" {
				l.Method = "GET"
			}
			if !l.Remote.IsValid() {
				l.Remote = netip.MustParseAddr("::ffff:192.0.2.7")
			}
			sets, verdict := replayer.Replay(t.Context(), &l)
			if verdict != tt.want || (len(sets) == 1) != (tt.want == ReplayTaken) {
				t.Fatalf("got %s and %d sets, want %s", verdict, len(sets), tt.want)
			}
			if verdict != ReplayTaken {
				return
			}
			set, h := sets[0], &sets[0].Hits[0]
			if set.ReceivedAt != at.UnixNano() || h.At != tt.at.Unix() || set.Environment.ClientIP != tt.ip || h.Rights != hit.Ours || h.Site != 1 {
				t.Errorf("got %+v of %+v", h, set)
			}
		})
	}
	if n := len(r.queue.take()); n != 0 {
		t.Errorf("%d hits in the live queue", n)
	}
	if n := r.count(`sluice_proxy_hits_total{answer="stored"}`); n != 0 {
		t.Errorf("%d hits counted as a client's", n)
	}
}

// TestReplayOfWantedSites: only hits of wanted sites are taken, and a request with hits of
// others as well is not taken apart.
func TestReplayOfWantedSites(t *testing.T) {
	replayer := newRig(t, func(*Config) {}).Replayer(func(site int64) bool { return site == 1 })
	bulk := func(elements string) Logged {
		return Logged{Method: "POST", Target: "/matomo.php?idsite=2&rec=1", HasBody: true, Body: []byte(`{"requests":[` + elements + `]}`)}
	}
	for _, tt := range []struct {
		name string
		l    Logged
		want Verdict
	}{
		{"wanted", Logged{Target: "/matomo.php?idsite=1&rec=1"}, ReplayTaken},
		{"not wanted", Logged{Target: "/matomo.php?idsite=2&rec=1"}, ReplayOtherSites},
		{"no site that is a number", Logged{Target: "/matomo.php?idsite=shop&rec=1"}, ReplayOtherSites},
		{"no parameters, after a site", Logged{Target: "/matomo.php"}, ReplayNothing},
		{"not wanted and refused", Logged{Target: "/matomo.php?idsite=2&rec=1&cip=203.0.113.1"}, ReplayOtherSites},
		{"wanted and refused", Logged{Target: "/matomo.php?idsite=1&rec=1&cip=203.0.113.1"}, ReplayRefused},
		{"no site", Logged{Target: "/matomo.php?rec=1"}, ReplayRefused},
		{"not wanted and recorded nowhere", Logged{Target: "/matomo.php?idsite=2&rec=0"}, ReplayOtherSites},
		{"a bulk", bulk(`"?idsite=1&rec=1","?idsite=1&rec=1"`), ReplayTaken},
		{"a bulk of others", bulk(`"?idsite=3&rec=1","?idsite=2&rec=1"`), ReplayOtherSites},
		{"a bulk of both", bulk(`"?idsite=1&rec=1","?idsite=2&rec=1"`), ReplayMixedSites},
		{"a bulk of both, of which one is refused", bulk(`"?idsite=1&rec=1","?idsite=2&rec=1&cip=203.0.113.1"`), ReplayTaken},
		{"a bulk that is refused", bulk(`"?idsite=1&rec=1&cip=203.0.113.1","?idsite=2&rec=1&cip=203.0.113.1"`), ReplayNothing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := tt.l
			l.At, l.Remote = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), netip.MustParseAddr("192.0.2.7")
			if l.Method == "" {
				l.Method = "GET"
			}
			sets, verdict := replayer.Replay(t.Context(), &l)
			if verdict != tt.want || (len(sets) > 0) != (tt.want == ReplayTaken) {
				t.Errorf("got %s and %d sets, want %s", verdict, len(sets), tt.want)
			}
		})
	}
}
