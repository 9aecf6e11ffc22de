package sink

import (
	"crypto/sha1"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// TestLateJudge compares hits with what is in Matomo's tables, with the rights of
// deploy/grants.sql, and with what was handed out.
func TestLateJudge(t *testing.T) {
	tr := newTruths(t)(t, testkit.MatomoConfig{})
	base := time.Now().Unix()/86400*86400 - 86400
	at := func(second int64) string { return time.Unix(base+second, 0).UTC().Format(time.DateTime) }
	visit := func(site int, id string, second int64) {
		tr.server.Exec(fmt.Sprintf("INSERT INTO matomo.matomo_log_visit (idsite, idvisitor, config_id, location_ip, visit_first_action_time, visit_last_action_time) VALUES (%d, UNHEX('%s'), '', '', '%s', '%[3]s')", site, id, at(second)))
		tr.server.Exec(fmt.Sprintf("INSERT INTO matomo.matomo_log_link_visit_action (idsite, idvisitor, idvisit, server_time) VALUES (%d, UNHEX('%s'), 1, '%s')", site, id, at(second)))
	}
	visit(1, "1111111111111111", 100)
	visit(1, "1111111111111111", 5000)
	visit(1, fmt.Sprintf("%x", sha1.Sum([]byte("Anna &amp; Co")))[:16], 300) // Matomo escapes texts
	visit(2, "2222222222222222", 40000)
	one := func(second int64, params string) hit.Pending {
		p := tr.hit("1", 0, params)
		p.At = base + second
		return p
	}
	site := func(n int64, p hit.Pending) hit.Pending { p.Site = n; return p }
	cookie := func(id string, p hit.Pending) hit.Pending {
		p.Environment = &hit.Environment{VisitorCookie: id}
		return p
	}
	object := one(299, "")
	object.Form, object.Params = hit.Object, []byte(`{"idsite":1,"rec":1,"uid":"Anna & Co"}`)

	tr.cfg.Endpoint = "http://matomo.example/matomo.php"
	s, err := New(tr.cfg, tr.src, testLog(t), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	j := s.JudgeLate()
	defer j.Close()
	j.Handed([]hit.Pending{one(7000, "_id=3333333333333333"), site(3, one(9000, ""))})
	cases := []struct {
		name           string
		hit            hit.Pending
		late, underway bool // the latter: also without what is recorded
	}{
		{"before a later visit", one(4999, "_id=1111111111111111"), true, false},
		{"in the second of the last", one(5000, "_id=1111111111111111"), false, false},
		{"after it", one(5001, "_id=1111111111111111"), false, false},
		{"upper case, cid", one(200, "cid=1111111111111111&_id=AAAAAAAAAAAAAAAA"), true, false},
		{"a visitor of another site", site(2, one(1, "_id=1111111111111111")), false, false},
		{"on that site", site(2, one(39999, "_id=2222222222222222")), true, false},
		{"a user", one(299, "uid=Anna+%26+Co"), true, false},
		{"a user in a bulk", object, true, false},
		{"a user later", one(301, "uid=Anna+%26+Co"), false, false},
		{"the third-party cookie", cookie("1111111111111111", one(1000, "")), true, false},
		{"under way", one(6999, "_id=3333333333333333"), true, true},
		{"not under way", one(7000, "_id=3333333333333333"), false, false},
		{"never seen", one(1, "_id=4444444444444444"), false, false},
		{"nobody, half an hour before somebody", one(3201, ""), true, false},
		{"nobody, the step of 5000 is over", one(2399, ""), false, false},
		{"nobody, after all", one(7001, ""), false, false},
		{"nobody, a minute before the last", one(6940, ""), true, true},
		{"nobody, in the second of the last", one(7000, ""), false, false},
		{"nobody, site 3, under way", site(3, one(8000, "")), true, true},
		{"nobody, site 3, long before", site(3, one(6000, "")), false, false},
		{"no site", site(0, one(1, "_id=1111111111111111")), false, false},
	}
	var hits []hit.Pending
	for _, c := range cases {
		hits = append(hits, c.hit)
	}
	for _, recorded := range []bool{false, true} {
		late, err := j.Late(t.Context(), hits, recorded)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range cases {
			if want := c.underway || recorded && c.late; late[i] != want {
				t.Errorf("recorded=%t, %s: late is %t", recorded, c.name, late[i])
			}
		}
	}

	// Many at once, and again.
	hits = nil
	for i := range 3 * lateAsked {
		visit := one(4999, fmt.Sprintf("_id=%016x", i+1))
		hits = append(hits, visit, site(int64(i+10), one(4999, "_id=1111111111111111")), site(int64(i+10), one(int64(i), "")))
	}
	hits = append(hits, cases[0].hit)
	for range 2 {
		late, err := j.Late(t.Context(), hits, true)
		if want := len(hits) - 1; err != nil || slices.Index(late, true) != want {
			t.Errorf("late is hit %d, want %d (%v)", slices.Index(late, true), want, err)
		}
	}

	tr.proxy.Down()
	other := s.JudgeLate()
	defer other.Close()
	if _, err := other.Late(t.Context(), hits, true); err == nil {
		t.Error("without MySQL there was an answer")
	}
}
