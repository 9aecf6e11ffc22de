package sink

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// TestHitsOfTheirsTravelWithTheirToken: the client's token decides, ours is never
// lent, and an answer without names is read hit by hit.
func TestHitsOfTheirsTravelWithTheirToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
		defer m.Close()
		src := newSource(t)
		theirs := func(site int64, mark, token string) hit.ID {
			p := hitOf(site, mark)
			p.Params = append(p.Params, "&cip=198.51.100.7&token_auth="+token...)
			p.Rights, p.Token = hit.Theirs, token
			p.Environment = &hit.Environment{ClientIP: "192.0.2.99"}
			return src.add(p)[0]
		}
		want := map[hit.ID]hit.Outcome{}
		var once []string
		for i := range 10 {
			mark := fmt.Sprintf("writer%d", i)
			want[theirs(1, mark, testkit.AdminToken)] = hit.Delivered // may write to site 1 only
			once = append(once, mark)
			want[theirs(2, fmt.Sprintf("elsewhere%d", i), testkit.AdminToken)] = hit.Invalid
			want[theirs(1, fmt.Sprintf("wrong%d", i), "ffffffffffffffffffffffffffffffff")] = hit.Invalid
			mark = fmt.Sprintf("super%d", i)
			want[theirs(3, mark, testkit.SuperToken)] = hit.Delivered
			once = append(once, mark)
			mark = fmt.Sprintf("ours%d", i)
			want[src.add(hitOf(1, mark))[0]] = hit.Delivered
			once = append(once, mark)
		}
		m.Choose(func(x *testkit.Exchange) *testkit.Answer {
			for _, h := range x.Judged() {
				theirs := h.Params.String("cip") == "198.51.100.7"
				// A wrong token is booked on the address that Matomo sees.
				if named := x.Request.Header.Get("X-Forwarded-For"); h.Token == "ffffffffffffffffffffffffffffffff" && named != "192.0.2.99" {
					t.Errorf("a wrong token travels in the name of %q", named)
				}
				if h.Params.String("cip") == "" && x.Request.Header.Get("X-Forwarded-For") != "" {
					t.Error("the canary names a visitor")
				}
				if theirs && h.Token == testkit.SuperToken && h.Site != 3 {
					t.Errorf("%s travels with our token", h.Mark)
				}
				if !theirs && h.Mark != "" && h.Token != testkit.SuperToken {
					t.Errorf("%s of ours travels with %s", h.Mark, h.Token)
				}
			}
			return nil
		})
		cfg := bubbleConfig()
		cfg.ForwardHeader = "X-Forwarded-For"
		b := startBubble(t, m, cfg, src)
		src.waitSettled(within(t, time.Hour), len(want))
		m.CheckOnce(t, once)
		for id, as := range want {
			if got, _ := src.outcome(id); got.As != as {
				t.Errorf("hit %v ended as %v, want %v", id, got.As, as)
			}
		}
		if st := b.Status(); st.State != StateSending || st.Token != string(tokenSuper) {
			t.Errorf("state %s %s token %s: clients' tokens changed ours", st.State, st.Reason, st.Token)
		}
		b.stop(t)
		synctest.Wait()
	})
}

// TestWriteTokenOfOurs: Matomo names no invalid hits to it, so hits travel alone;
// a site that it may not write to stops the drain, and nothing is lost.
func TestWriteTokenOfOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		cfg := bubbleConfig()
		cfg.Token = testkit.AdminToken
		b := startBubble(t, m, cfg, src)
		want := marks("m", 20)
		for _, mark := range want {
			src.add(hitOf(1, mark))
		}
		bad := hitOf(1, "badgoal")
		bad.Params = append(bad.Params, "&cid=short"...)
		invalid := src.add(bad)[0]
		src.waitSettled(within(t, time.Hour), 21)
		m.CheckOnce(t, want)
		if got, _ := src.outcome(invalid); got.As != hit.Invalid {
			t.Errorf("the invalid hit ended as %v", got.As)
		}
		if st := b.Status(); st.Token != string(tokenWriter) || st.State != StateSending {
			t.Errorf("token %s, state %s; want %s, sending", st.Token, st.State, tokenWriter)
		}
		for _, r := range m.Requests() {
			if r.Hits > 1 {
				t.Errorf("a request holds %d hits", r.Hits)
			}
		}
		src.add(hitOf(2, "not ours to write"))
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(src.order); n != 21 {
			t.Errorf("%d hits settled, want 21: a hit for which the token is not good must stay", n)
		}
		b.stop(t)
		synctest.Wait()
	})
}

// TestARefusedTokenIsTriedSeldom: more than 20 failed logins in an hour would lock
// our address out.
func TestARefusedTokenIsTriedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		cfg := bubbleConfig()
		cfg.Token = "ffffffffffffffffffffffffffffffff"
		b := startBubble(t, m, cfg, src)
		src.add(hitOf(1, "a"))
		tries := 0
		m.Choose(func(x *testkit.Exchange) *testkit.Answer {
			for _, h := range x.Judged() {
				if h.Params.String("cip") != "" {
					tries++
				}
			}
			return nil
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		if tries > 15 {
			t.Errorf("the token was tried %d times in an hour", tries)
		}
		if st := b.Status(); st.Reason != ReasonAuth || len(src.order) != 0 {
			t.Errorf("reason %s, %d settled; want auth, 0", st.Reason, len(src.order))
		}
		b.stop(t)
		synctest.Wait()
	})
}

// TestMostlyInvalidIsNotBelieved: when Matomo suddenly knows none of the sites
// that it took hits for, it is another or an empty Matomo, and nothing is thrown
// away.
func TestMostlyInvalidIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		other := testkit.NewMatomo(testkit.MatomoConfig{Sites: []testkit.Site{{ID: 50}}})
		defer m.Close()
		defer other.Close()
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		for i := range 20 {
			src.add(hitOf(int64(1+i%4), fmt.Sprintf("before%d", i)))
		}
		src.waitSettled(within(t, time.Minute), 20)
		// A site that never existed is simply invalid.
		src.add(hitOf(99, "nowhere"))
		src.waitSettled(within(t, time.Minute), 21)
		if n := src.count(hit.Invalid); n != 1 {
			t.Errorf("%d invalid, want 1", n)
		}
		b.net.set(other)
		for i := range 20 {
			src.add(hitOf(int64(1+i%4), fmt.Sprintf("during%d", i)))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(src.order); n != 21 {
			t.Errorf("%d hits settled, want 21", n)
		}
		if st := b.Status(); st.Reason != ReasonConfig {
			t.Errorf("reason %q (%s), want config", st.Reason, st.Detail)
		}
		b.net.set(m)
		src.waitSettled(within(t, time.Hour), 41)
		if n := src.count(hit.Delivered); n != 40 {
			t.Errorf("%d delivered, want 40", n)
		}
		b.stop(t)
		synctest.Wait()
	})
}
