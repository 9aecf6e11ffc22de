package sink

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// ownAddress is where a sink in a bubble sends from.
const ownAddress = "127.0.0.1"

// theirsHit makes a hit that says another address with a token of its own.
func theirsHit(site int64, mark, token, address string) hit.Pending {
	p := hitOf(site, mark)
	p.Params = append(p.Params, "&cip=198.51.100.7&token_auth="+token...)
	p.Rights, p.Token = hit.Theirs, token
	p.Environment = &hit.Environment{ClientIP: address, UserAgent: browser}
	return p
}

// wrongToken makes a token that Matomo does not know.
func wrongToken(n int) string { return fmt.Sprintf("%032x", 0xbad00000+n) }

// tokenLab is a sink in a bubble and what its Matomo was asked about tokens.
type tokenLab struct {
	*bubble
	t      *testing.T
	src    *memorySource
	m      *testkit.Matomo
	failed int // answers with 500

	mu   sync.Mutex
	seen map[string]int // hits by the token that Matomo looked at
}

// looked gives how many hits with a token Matomo saw.
func (lab *tokenLab) looked(token string) int {
	lab.mu.Lock()
	defer lab.mu.Unlock()
	return lab.seen[token]
}

func newTokenLab(t *testing.T, m *testkit.Matomo, cfg Config) *tokenLab {
	t.Helper()
	lab := &tokenLab{t: t, src: newSource(t), m: m, seen: map[string]int{}}
	m.Choose(func(x *testkit.Exchange) *testkit.Answer {
		lab.mu.Lock()
		defer lab.mu.Unlock()
		for _, h := range x.Judged() {
			lab.seen[h.Token]++
			if h.Params.String("cip") == "198.51.100.7" && h.Token == cfg.Token && cfg.Token != h.Params.String("token_auth") {
				t.Errorf("%s travels with our token", h.Mark)
			}
		}
		return nil
	})
	lab.bubble = startBubble(t, m, cfg, lab.src)
	synctest.Wait()
	return lab
}

// expect adds a hit and waits for its outcome.
func (lab *tokenLab) expect(why string, p hit.Pending, want hit.Outcome) {
	lab.t.Helper()
	id := lab.src.add(p)[0]
	lab.outcome(why, id, want)
}

func (lab *tokenLab) outcome(why string, id hit.ID, want hit.Outcome) {
	lab.t.Helper()
	for range 3600 * 5 {
		if got, settled := lab.src.outcome(id); settled {
			if got.As != want {
				lab.t.Errorf("%s: the hit ends as %v, want %v", why, got.As, want)
			}
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	lab.t.Errorf("%s: the hit is not settled in an hour, want %v", why, want)
}

func (lab *tokenLab) end() {
	for _, r := range lab.m.Requests() {
		if r.Status == http.StatusInternalServerError {
			lab.failed++
		}
	}
	lab.bubble.stop(lab.t)
	lab.m.Close()
	synctest.Wait()
}

func forwardingConfig() Config {
	cfg := bubbleConfig()
	cfg.ForwardHeader = "X-Forwarded-For"
	return cfg
}

// TestFloodOfWrongTokens: it locks nobody out, keeps nobody else back, and a token
// that Matomo knows gets through it.
func TestFloodOfWrongTokens(t *testing.T) {
	tests := []struct {
		name     string
		believed bool
		header   string
		sources  int           // addresses that the flood comes from
		honest   time.Duration // until the honest hit is through, at most
	}{
		{"from one address", true, "X-Forwarded-For", 1, time.Minute},
		{"from a thousand addresses", true, "X-Forwarded-For", 1000, time.Minute},
		{"with a forward header that Matomo does not believe", false, "X-Forwarded-For", 1000, 10 * time.Minute},
		{"without a forward header", false, "", 3, 10 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: tt.believed})
				m.SetLatency(10*time.Millisecond, time.Millisecond)
				cfg := bubbleConfig()
				cfg.ForwardHeader = tt.header
				lab := newTokenLab(t, m, cfg)
				var wrong, ours []hit.ID
				var honest hit.ID
				var asked time.Time
				for second := range 100 {
					for i := range 10 {
						n := second*10 + i
						address := fmt.Sprintf("10.0.%d.%d", n%tt.sources/250, n%tt.sources%250)
						wrong = append(wrong, lab.src.add(theirsHit(1, fmt.Sprintf("wrong%d", n), wrongToken(n), address))[0])
					}
					site := int64(2) // where wrong tokens wait for minutes, their own site's hits may
					if tt.believed {
						site = int64(1 + second%2)
					}
					ours = append(ours, lab.src.add(hitOf(site, fmt.Sprintf("ours%d", second)))[0])
					if second == 50 {
						asked = time.Now()
						honest = lab.src.add(theirsHit(1, "honest", testkit.AdminToken, "192.0.2.50"))[0]
					}
					time.Sleep(time.Second)
					if _, settled := lab.src.outcome(ours[max(0, second-5)]); !settled {
						t.Fatalf("hit %d of another visitor waits", second-5)
					}
				}
				lab.outcome("an honest token", honest, hit.Delivered)
				if waited := time.Since(asked); waited > tt.honest+time.Minute {
					t.Errorf("the honest hit took %v, want at most %v", waited, tt.honest)
				}
				for i, id := range wrong {
					lab.outcome(fmt.Sprint("wrong token ", i), id, hit.Invalid)
				}
				for _, id := range ours {
					lab.outcome("a hit without a token", id, hit.Delivered)
				}
				for range 90 {
					time.Sleep(time.Minute)
					if n := m.Failures(ownAddress); n > ownFailures {
						t.Fatalf("%d failures are booked on our address, want at most %d", n, ownFailures)
					}
				}
				lab.end()
				if lab.failed > 0 {
					t.Errorf("%d answers of a Matomo that locked somebody out", lab.failed)
				}
				if n := lab.looked(wrongToken(999)); n > 1 {
					t.Errorf("a wrong token was tried %d times", n)
				}
			})
		})
	}
}

// TestWaitingHitsLeaveRoom: where the next question is far away, the hits of one
// token cannot take all the room that is leased ahead.
func TestWaitingHitsLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		cfg := bubbleConfig()
		cfg.AheadHits = 400
		lab := newTokenLab(t, m, cfg)
		lab.expect("a wrong token", theirsHit(1, "wrong", wrongToken(1), "192.0.2.1"), hit.Invalid)
		for i := range 2000 {
			lab.src.add(theirsHit(1, fmt.Sprint("unseen", i), testkit.AdminToken, "192.0.2.2"))
		}
		ours := lab.src.add(hitOf(2, "ours"))[0]
		asked := time.Now()
		lab.outcome("a hit behind them", ours, hit.Delivered)
		if waited := time.Since(asked); waited > time.Minute {
			t.Errorf("it waited %v, want a minute at most", waited)
		}
		lab.src.waitSettled(within(t, time.Hour), 2002)
		// A quarter of the room waits, and then proves good, and so do the parked.
		if n := lab.src.count(hit.Delivered); n < 50 {
			t.Errorf("%d hits are delivered, want about 100 at least", n)
		}
		if n := int(lab.ins.refusedHits[whyUnasked].Get()); n != lab.src.count(hit.Invalid)-1 {
			t.Errorf("%d hits are counted as not asked about, want %d", n, lab.src.count(hit.Invalid)-1)
		}
		if lab.clients.unsure != 0 || len(lab.clients.questions) != 0 || len(lab.clients.unseen) != 0 {
			t.Errorf("%d hits, %d questions, %d addresses are left", lab.clients.unsure, len(lab.clients.questions), len(lab.clients.unseen))
		}
		lab.end()
	})
}

// TestRefusalIsBelieved: for five minutes nobody asks again, and then somebody does.
func TestRefusalIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
		lab := newTokenLab(t, m, forwardingConfig())
		token := wrongToken(1)
		began := time.Now()
		lab.expect("a wrong token", theirsHit(1, "first", token, "192.0.2.1"), hit.Invalid)
		m.SetToken(token, &testkit.Token{Sites: []int64{1}})
		for i := range 20 {
			lab.expect("a token that was refused just now", theirsHit(1, fmt.Sprint("within", i), token, "192.0.2.1"), hit.Invalid)
			time.Sleep(10 * time.Second)
		}
		if n := lab.looked(token); n != 1 {
			t.Errorf("Matomo saw a refused token %d times, want once", n)
		}
		if n := m.Failures("192.0.2.1"); n != 1 {
			t.Errorf("%d failures booked, want 1", n)
		}
		time.Sleep(refusedFor - time.Since(began))
		lab.expect("a refusal of five minutes ago", theirsHit(1, "after", token, "192.0.2.1"), hit.Delivered)
		lab.expect("the same token on another site", theirsHit(2, "elsewhere", token, "192.0.2.1"), hit.Invalid)
		m.CheckOnce(t, []string{"after"})
		if got := counters(lab.Sink); got != "good 1 refused 2 token 20 address 0 unasked 0" {
			t.Errorf("metrics say %s", got)
		}
		lab.end()
	})
}

// counters gives what the sink counted of tokens and refused hits. The first hit
// under a token is refused from memory too, once the token has been asked about.
func counters(s *Sink) string {
	return fmt.Sprintf("good %d refused %d token %d address %d unasked %d", s.ins.tokens[true].Get(), s.ins.tokens[false].Get(),
		s.ins.refusedHits[whyToken].Get()-s.ins.tokens[false].Get(), s.ins.refusedHits[whyAddress].Get(), s.ins.refusedHits[whyUnasked].Get())
}

// TestRevokedToken: a token that was good is asked about again when Matomo refuses
// hits with it, and works again five minutes after it is given back.
func TestRevokedToken(t *testing.T) {
	for name, token := range map[string]string{"of a write user": testkit.AdminToken, "of a superuser": "a0000000000000000000000000000009"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
				rights := testkit.Token{Sites: []int64{1}}
				if token != testkit.AdminToken {
					rights = testkit.Token{Super: true}
				}
				m.SetToken(token, &rights)
				lab := newTokenLab(t, m, forwardingConfig())
				for i := range 10 {
					lab.expect("a good token", theirsHit(1, fmt.Sprint("before", i), token, "192.0.2.1"), hit.Delivered)
					lab.expect("a bad hit under a good token", theirsHit(1, "x&cid=short", token, "192.0.2.1"), hit.Invalid)
				}
				if n := lab.looked(token); n > 22 {
					t.Errorf("Matomo saw the token %d times, want 20 hits and one question for its right and its kind", n)
				}
				m.SetToken(token, nil)
				for i := range 40 {
					lab.expect("a revoked token", theirsHit(1, fmt.Sprint("during", i), token, "192.0.2.1"), hit.Invalid)
				}
				if n := m.Failures("192.0.2.1"); n > maxDoubts+1 {
					t.Errorf("%d failures booked for one revoked token, want at most %d", n, maxDoubts+1)
				}
				m.SetToken(token, &rights)
				time.Sleep(refusedFor)
				for i := range 3 {
					lab.expect("a token that is given back", theirsHit(1, fmt.Sprint("after", i), token, "192.0.2.1"), hit.Delivered)
				}
				lab.end()
			})
		})
	}
}

// TestAddressWithWrongTokens: after twenty of them Matomo would lock the address
// out, so its tokens that are not known good are refused, for an hour, and nobody
// else's.
func TestAddressWithWrongTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
		m.SetToken("b0000000000000000000000000000001", &testkit.Token{Sites: []int64{2}})
		lab := newTokenLab(t, m, forwardingConfig())
		const attacker = "192.0.2.66"
		lab.expect("a good token", theirsHit(1, "good", testkit.AdminToken, attacker), hit.Delivered)
		for i := range 60 {
			lab.expect("a wrong token", theirsHit(1, fmt.Sprint("wrong", i), wrongToken(i), attacker), hit.Invalid)
		}
		if n := m.Failures(attacker); n != lockFailures {
			t.Errorf("%d failures are booked on the address, want %d: one more locks it out", n, lockFailures)
		}
		spent := time.Now()
		lab.expect("an unseen token of that address", theirsHit(2, "unseen", "b0000000000000000000000000000001", attacker), hit.Invalid)
		lab.expect("a good token of that address", theirsHit(1, "still good", testkit.AdminToken, attacker), hit.Delivered)
		lab.expect("an unseen token of another address", theirsHit(2, "other", "b0000000000000000000000000000001", "192.0.2.67"), hit.Delivered)
		m.SetToken("b0000000000000000000000000000002", &testkit.Token{Sites: []int64{2}})
		time.Sleep(lockWindow - time.Since(spent) + time.Second)
		lab.expect("an unseen token an hour later", theirsHit(2, "later", "b0000000000000000000000000000002", attacker), hit.Delivered)
		m.CheckOnce(t, []string{"good", "still good", "other", "later"})
		if n := lab.ins.refusedHits[whyAddress].Get(); n != 41 {
			t.Errorf("%d hits are counted as refused for their address, want 41", n)
		}
		lab.end()
		if lab.failed > 0 {
			t.Errorf("%d answers of a Matomo that locked the address out", lab.failed)
		}
	})
}

// TestAddressThatMatomoLockedOut: what others have tried from an address is not for
// us to know. Matomo's answers decide, as they would without Sluice.
func TestAddressThatMatomoLockedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
		lab := newTokenLab(t, m, forwardingConfig())
		const office = "192.0.2.80"
		for i := range 25 {
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://matomo.example/matomo.php?idsite=1&rec=1&cip=1.2.3.4&token_auth="+wrongToken(i), http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Forwarded-For", office)
			if _, err := lab.net.RoundTrip(req); err != nil {
				t.Fatal(err)
			}
		}
		if n := m.Failures(office); n != lockFailures+1 {
			t.Fatalf("%d failures booked, want %d", n, lockFailures+1)
		}
		lab.expect("a superuser's token", theirsHit(1, "super", testkit.SuperToken, office), hit.Invalid)
		lab.expect("a write user's token", theirsHit(1, "writer", testkit.AdminToken, office), hit.Delivered)
		lab.expect("a wrong token", theirsHit(1, "wrong", wrongToken(99), office), hit.Invalid)
		lab.expect("the same token from elsewhere", theirsHit(1, "elsewhere", testkit.SuperToken, "192.0.2.81"), hit.Delivered)
		lab.expect("a hit without a token", hitOf(1, "ours"), hit.Delivered)
		// Known by now, it may share a batch, which Matomo answers with an error.
		first := lab.src.add(theirsHit(1, "again", testkit.SuperToken, office), theirsHit(2, "beside", testkit.SuperToken, "192.0.2.82"))
		lab.outcome("a known superuser's token from there", first[0], hit.Invalid)
		lab.outcome("beside it", first[1], hit.Delivered)
		if st := lab.Status(); st.State != StateSending || lab.src.count(hit.Dead) > 0 {
			t.Errorf("state %s %s, %d buried", st.State, st.Reason, lab.src.count(hit.Dead))
		}
		lab.end()
	})
}

// TestOutageCostsNoTokenItsRight: hits that wait to be asked about wait longer, and
// are not given up, while nothing can be asked.
func TestOutageCostsNoTokenItsRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		lab := newTokenLab(t, m, bubbleConfig())
		lab.expect("a wrong token", theirsHit(2, "wrong", wrongToken(1), "192.0.2.1"), hit.Invalid)
		id := lab.src.add(theirsHit(1, "honest", testkit.AdminToken, "192.0.2.2"))[0]
		time.Sleep(time.Second)
		m.SetDatabase(testkit.DatabaseDown)
		lab.src.add(hitOf(3, "notices the outage"))
		time.Sleep(3 * time.Hour)
		if got, settled := lab.src.outcome(id); settled {
			t.Errorf("the hit ended as %v in the outage", got.As)
		}
		m.SetDatabase(testkit.DatabaseUp)
		lab.outcome("after the outage", id, hit.Delivered)
		lab.end()
	})
}

// TestTokensWithoutNames: to a token of ours that is no superuser's Matomo names
// none of those that it refused, so smaller and smaller groups are asked about.
func TestTokensWithoutNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true})
		m.SetToken("b0000000000000000000000000000001", &testkit.Token{Sites: []int64{1}})
		cfg := forwardingConfig()
		cfg.Token = testkit.AdminToken
		lab := newTokenLab(t, m, cfg)
		var ids []hit.ID
		for i := range 30 {
			ids = append(ids, lab.src.add(theirsHit(1, fmt.Sprint("wrong", i), wrongToken(i), fmt.Sprint("10.0.0.", i)))[0])
		}
		good := lab.src.add(theirsHit(1, "good", "b0000000000000000000000000000001", "192.0.2.9"))[0]
		lab.outcome("a good token among wrong ones", good, hit.Delivered)
		for _, id := range ids {
			lab.outcome("a wrong token", id, hit.Invalid)
		}
		lab.end()
	})
}

// TestBulksThatMustHaveAToken: with bulk_requests_require_authentication=1 Matomo
// looks at the token of the bulk alone.
func TestBulksThatMustHaveAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true, RequireAuth: true})
		cfg := forwardingConfig()
		cfg.BulkRequiresAuth = true
		lab := newTokenLab(t, m, cfg)
		lab.expect("a write user's token", theirsHit(1, "writer", testkit.AdminToken, "192.0.2.1"), hit.Delivered)
		lab.expect("a wrong token", theirsHit(1, "wrong", wrongToken(1), "192.0.2.1"), hit.Invalid)
		lab.expect("a token without access to the site", theirsHit(2, "elsewhere", testkit.AdminToken, "192.0.2.1"), hit.Invalid)
		lab.expect("a hit without a token", hitOf(1, "ours"), hit.Delivered)
		m.SetToken(testkit.AdminToken, nil)
		for i := range 5 {
			lab.expect("a revoked token", theirsHit(1, fmt.Sprint("revoked", i), testkit.AdminToken, "192.0.2.1"), hit.Invalid)
		}
		lab.end()
	})
}

// TestNobodyNeedsAToken: where the operator says that Matomo asks for none, a hit
// that brought none goes without one, never with ours.
func TestNobodyNeedsAToken(t *testing.T) {
	for _, open := range []bool{true, false} {
		t.Run(fmt.Sprintf("open=%v", open), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{TrustForwarded: true, NoAuth: open})
				lab := newTokenLab(t, m, forwardingConfig())
				want := hit.Delivered
				if !open {
					want = hit.Invalid // the setting is wrong, and the hit is not lent our token
				}
				for i := range 40 {
					p := theirsHit(1, fmt.Sprint("m", i), "", "192.0.2.1")
					lab.expect("a hit without a token", p, want)
				}
				lab.expect("a hit of ours", hitOf(1, "ours"), hit.Delivered)
				lab.end()
			})
		})
	}
}

// TestGroupIsFair: everybody's first token is asked about before anybody's second,
// and what nobody has to ask about any more is left out.
func TestGroupIsFair(t *testing.T) {
	tokens := newClientTokens(1000)
	now := time.Now()
	enlist := func(address, token string) {
		tokens.enlist(&item{
			Pending: hit.Pending{Environment: &hit.Environment{ClientIP: address}, Hit: hit.Hit{Site: 1}},
			group:   group{theirs: true, token: token},
		}, now)
	}
	for i := range 100 {
		enlist("flood", wrongToken(i))
	}
	enlist("a", "a1")
	enlist("a", "a2")
	enlist("b", "b1")
	enlist("b", "b1")
	var got []string
	for _, q := range tokens.group(6, now) {
		got = append(got, strings.TrimLeft(q.token, "0"))
	}
	if want := "bad00000 a1 b1 bad00001 a2 bad00002"; strings.Join(got, " ") != want {
		t.Errorf("asked about %v, want %s", got, want)
	}
	if n := len(tokens.unseen["flood"]); n != maxUnseen {
		t.Errorf("%d tokens of one address wait, want %d", n, maxUnseen)
	}
	for range lockFailures {
		tokens.answered(nil, []*inquiry{{key: keyOf(fmt.Sprint(rand.Int()), "1"), address: "flood"}}, now)
	}
	if n := len(tokens.group(100, now)); n != 3 {
		t.Errorf("%d questions are left, want those of others, 3", n)
	}
}

// TestAnswerIsForThoseWhoWaited: a refusal counts for five minutes, and for hits that
// waited for it however late their turn comes.
func TestAnswerIsForThoseWhoWaited(t *testing.T) {
	s, err := New(Config{Endpoint: "http://matomo.example/matomo.php"}, newSource(t), testLog(t), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	leased := func(at time.Time) *item {
		it := newEncoder().encode(theirsHit(1, "m", wrongToken(1), "192.0.2.1"))
		s.clients.enlist(it, at)
		return it
	}
	first, second := leased(now), leased(now)
	s.clients.answered(nil, s.clients.group(1, now), now.Add(time.Second))
	later := now.Add(2 * refusedFor)
	if a := s.clients.admit([]*item{first}, later); !a.refused {
		t.Error("a hit that waited for the answer is not refused")
	}
	if a := s.clients.admit([]*item{leased(later)}, later); a.refused || a.until.IsZero() {
		t.Errorf("a hit of ten minutes later: %+v, want it to wait for an answer of its own", a)
	}
	if s.clients.unsure != 2 {
		t.Errorf("%d hits wait, want 2", s.clients.unsure)
	}
	if a := s.clients.admit([]*item{second}, later); !a.refused {
		t.Error("another hit that waited is not refused")
	}
}

// TestTokensTakeLittleMemory: whatever anybody sends, and no token is kept.
func TestTokensTakeLittleMemory(t *testing.T) {
	tokens := newClientTokens(1000)
	now := time.Now()
	for i := range 3 * maxRefusedRights {
		q := &inquiry{key: keyOf(wrongToken(i), "1"), address: fmt.Sprint(i)}
		tokens.answered(nil, []*inquiry{q}, now)
		tokens.lock(q.address, now)
	}
	sizes := map[string]int{
		"refused": len(tokens.refused.young) + len(tokens.refused.old) - 2*maxRefusedRights,
		"failed":  len(tokens.failures.young) + len(tokens.failures.old) - 2*maxAddresses,
		"locked":  len(tokens.locked.young) + len(tokens.locked.old) - 2*maxAddresses,
	}
	for what, over := range sizes {
		if over > 0 {
			t.Errorf("%s: %d entries too many are kept", what, over)
		}
	}
	if _, known := tokens.knownLocked(&inquiry{key: keyOf(wrongToken(3*maxRefusedRights-1), "1")}, now); !known {
		t.Error("the last refusal is forgotten")
	}
}
