package sink

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

func isPoison(h *testkit.Hit) bool { return strings.HasPrefix(h.Mark, "poison") }

// TestPoisonIsBuriedAlone puts poison of every kind at every place of a stream.
func TestPoisonIsBuriedAlone(t *testing.T) {
	kinds := []struct {
		name   string
		poison func(*testkit.Matomo)
		reason string
	}{
		{"500 that says where", func(m *testkit.Matomo) { m.Poison(isPoison) }, BuriedPoison},
		{"PHP dies", func(m *testkit.Matomo) { m.PoisonFatal(isPoison) }, BuriedPoison},
		{"a firewall refuses it", func(m *testkit.Matomo) { m.PoisonWAF(isPoison) }, BuriedRefused},
	}
	streams := []struct {
		name    string
		address func(i int) string
		sites   int
		places  []int
	}{
		{"first of one site", spread, 1, []int{0}},
		{"last of one site", spread, 1, []int{59}},
		{"several of one site", spread, 1, []int{0, 1, 7, 30, 31, 59}},
		{"several of one site and one address", func(int) string { return "203.0.113.9" }, 1, []int{0, 1, 7, 30, 31}},
		{"several of three sites", spread, 3, []int{0, 1, 2, 20, 40, 58}},
	}
	for _, k := range kinds {
		for _, s := range streams {
			t.Run(k.name+", "+s.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := testkit.NewMatomo(testkit.MatomoConfig{})
					defer m.Close()
					k.poison(m)
					src := newSource(t)
					var good []string
					var bad []hit.ID
					for i := range 60 {
						mark := fmt.Sprintf("m%d", i)
						if slices.Contains(s.places, i) {
							mark = fmt.Sprintf("poison%d", i)
						} else {
							good = append(good, mark)
						}
						p := hitOf(int64(1+i%s.sites), mark)
						p.Environment = &hit.Environment{ClientIP: s.address(i), UserAgent: browser}
						id := src.add(p)[0]
						if strings.HasPrefix(mark, "poison") {
							bad = append(bad, id)
						}
					}
					// The invalid hit must not be taken for the culprit.
					invalid := src.add(hitOf(99, "invalid"))[0]
					b := startBubble(t, m, bubbleConfig(), src)
					if s.places[0] == 59 {
						// Nothing behind it: the last is tried until another hit comes.
						time.Sleep(time.Hour)
						if n := src.count(hit.Dead); n != 0 {
							t.Errorf("%d hits buried with nothing to compare with", n)
						}
					}
					// Poison at the end of all streams needs somebody to compare with.
					for i := 0; i < 20 && len(src.settledIDs()) < len(good)+len(bad)+1; i++ {
						time.Sleep(10 * time.Minute)
						mark := fmt.Sprintf("witness%d", i)
						src.add(hitOf(4, mark))
						good = append(good, mark)
					}
					src.waitSettled(within(t, time.Hour), len(good)+len(bad)+1)
					m.CheckOnce(t, good)
					for _, id := range bad {
						got, _ := src.outcome(id)
						if got.As != hit.Dead || got.Reason != k.reason || got.Status == 0 {
							t.Errorf("poison %v ended as %v (%s, status %d), want dead (%s)", id, got.As, got.Reason, got.Status, k.reason)
						}
					}
					if n := src.count(hit.Dead); n != len(bad) {
						t.Errorf("%d hits buried, want %d", n, len(bad))
					}
					if got, _ := src.outcome(invalid); got.As != hit.Invalid {
						t.Errorf("the invalid hit ended as %v", got.As)
					}
					b.stop(t)
					synctest.Wait()
				})
			})
		}
	}
}

func spread(i int) string { return fmt.Sprintf("203.%d.113.9", i) }

// TestHintFindsTheCulpritBehindInvalidHits: Matomo says how many hits it tracked
// before it failed, not how many it refused, so the hint may point too early.
func TestHintFindsTheCulpritBehindInvalidHits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		m.Poison(isPoison)
		src := newSource(t)
		marks := []string{"a", "invalid", "b", "invalid", "invalid", "c", "poison", "d"}
		for _, mark := range marks {
			site := int64(1)
			if mark == "invalid" {
				site = 99
			}
			p := hitOf(site, mark)
			src.add(p)
		}
		src.add(hitOf(2, "other"))
		b := startBubble(t, m, bubbleConfig(), src)
		src.waitSettled(within(t, time.Hour), 9)
		if got := src.count(hit.Invalid); got != 3 {
			t.Errorf("%d invalid, want 3", got)
		}
		if got := src.count(hit.Dead); got != 1 {
			t.Errorf("%d dead, want 1", got)
		}
		m.CheckOnce(t, []string{"a", "b", "c", "d", "other"})
		b.stop(t)
		synctest.Wait()
	})
}

// TestASingleHitThatIsTooLarge is buried; the same body of many hits is divided.
func TestTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		m.SetBodyLimit(5000)
		src := newSource(t)
		want := marks("m", 200)
		for i, mark := range want {
			src.add(hitOf(int64(1+i%2), mark))
		}
		big := pendingOf(3, "idsite=3&rec=1&action_name="+strings.Repeat("x", 6000))
		id := src.add(big)[0]
		b := startBubble(t, m, bubbleConfig(), src)
		src.waitSettled(within(t, time.Hour), 200)
		for i := range 20 { // company for the large one
			mark := fmt.Sprintf("late%d", i)
			want = append(want, mark)
			src.add(hitOf(1, mark))
			time.Sleep(time.Second)
		}
		src.waitSettled(within(t, time.Hour), 221)
		m.CheckOnce(t, want)
		if got, _ := src.outcome(id); got.As != hit.Dead || got.Reason != BuriedTooLarge {
			t.Errorf("the large hit ended as %v (%s), want dead (%s)", got.As, got.Reason, BuriedTooLarge)
		}
		b.stop(t)
		synctest.Wait()
	})
}

// TestSuspiciousHintsTravelAlone: a hit that may kill PHP never spoils a batch.
func TestSuspiciousHintsTravelAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		for i := range 30 {
			p := hitOf(1, fmt.Sprintf("m%d", i))
			if i%10 == 5 {
				p.Params = append(p.Params, `&uadata={"platform":["x"]}`...)
			}
			src.add(p)
		}
		m.Choose(func(x *testkit.Exchange) *testkit.Answer {
			for _, h := range x.Judged() {
				if strings.Contains(h.Params.String("uadata"), "platform") && x.Hits > 1 {
					t.Errorf("%s shares a request with %d others", h.Mark, x.Hits-1)
				}
			}
			return nil
		})
		b := startBubble(t, m, bubbleConfig(), src)
		src.waitSettled(within(t, time.Hour), 30)
		b.stop(t)
		synctest.Wait()
	})
}

// TestMalformedObjectIsNeverSent: what could reach beyond its place in a request
// is buried unsent, with our token in nobody's hands.
func TestMalformedObjectIsNeverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		p := pendingOf(1, `{"idsite":1}],"requests":[{"idsite":1,"rec":1,"cip":"9.9.9.9","tkmark":"smuggled"}`)
		p.Form = hit.Object
		src.add(hitOf(1, "before"))
		id := src.add(p)[0]
		src.add(hitOf(1, "after"))
		b := startBubble(t, m, bubbleConfig(), src)
		src.waitSettled(within(t, time.Hour), 3)
		m.CheckOnce(t, []string{"before", "after"})
		if got, _ := src.outcome(id); got.As != hit.Dead || got.Reason != BuriedMalformed || got.Status != 0 {
			t.Errorf("ended as %v (%s, %d), want dead (%s, 0)", got.As, got.Reason, got.Status, BuriedMalformed)
		}
		b.stop(t)
		synctest.Wait()
	})
}
