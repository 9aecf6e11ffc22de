package sink

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 = a new one")

// modelRounds is how many streams one run of the test drains. Every run draws new
// ones; -count makes more of them.
const modelRounds = 16

// TestModel drains random streams through random faults, latencies and lies. As
// far as the outcome of a request can be known at all, every hit must be recorded
// exactly once, the hits of a site in the order of arrival, the invalid ones and
// the poison must end as such, and everything must be settled once.
func TestModel(t *testing.T) { eachSeed(t, modelRounds, model) }

// eachSeed runs a model with seeds that it names, or with the one of the flag. -short,
// which goes with the race detector, runs a few.
func eachSeed(t *testing.T, rounds int, run func(*testing.T, uint64)) {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	} else {
		rounds = 1
	}
	if testing.Short() {
		rounds = min(rounds, 4)
	}
	for i := range rounds {
		s := seed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { run(t, s) })
		})
	}
}

// dice is a random source for many goroutines.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func (d *dice) n(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

func (d *dice) percent(p int) bool { return d.n(100) < p }

func model(t *testing.T, seed uint64) {
	d := &dice{rng: rand.New(rand.NewPCG(seed, 0))}
	sites := []testkit.Site{{ID: 1}, {ID: 2}, {ID: 3}, {ID: 4}, {ID: 5}}
	m := testkit.NewMatomo(testkit.MatomoConfig{Sites: sites})
	defer m.Close()
	m.Poison(func(h *testkit.Hit) bool { return strings.HasPrefix(h.Mark, "poison") })
	m.PoisonFatal(func(h *testkit.Hit) bool { return strings.HasPrefix(h.Mark, "fatal") })
	m.PoisonWAF(func(h *testkit.Hit) bool { return strings.HasPrefix(h.Mark, "wall") })
	m.Choose(func(x *testkit.Exchange) *testkit.Answer { return d.lie(x) })

	src := newSource(t)
	cfg := bubbleConfig()
	cfg.Lanes = 1 + d.n(6)
	cfg.BatchHits = 1 + d.n(100)
	cfg.AheadHits = 50 + d.n(500)
	b := startBubble(t, m, cfg, src)

	const total = 600
	want := map[hit.ID]hit.Outcome{}
	var once []string
	bySite := map[int64][]string{}
	for i := range total {
		site := int64(1 + d.n(4))
		mark, as := fmt.Sprintf("m%d", i), hit.Delivered
		switch k := d.n(100); {
		case k < 1:
			mark, as = fmt.Sprintf("poison%d", i), hit.Dead
		case k < 2:
			mark, as = fmt.Sprintf("fatal%d", i), hit.Dead
		case k < 3:
			mark, as = fmt.Sprintf("wall%d", i), hit.Dead
		case k < 6:
			site, as = 99, hit.Invalid
		}
		p := hitOf(site, mark)
		// One address a site: then no hit may overtake another.
		p.Environment = &hit.Environment{ClientIP: fmt.Sprintf("203.%d.0.9", site), UserAgent: browser, DoNotTrack: d.percent(10)}
		id := src.add(p)[0]
		want[id] = as
		if as == hit.Delivered {
			once = append(once, mark)
			bySite[site] = append(bySite[site], mark)
		}
		if d.percent(20) {
			time.Sleep(time.Duration(d.n(2000)) * time.Millisecond)
		}
		d.weather(m, b)
	}
	m.SetDatabase(testkit.DatabaseUp)
	b.net.refuse.Store(false)
	// Poison at the very end is buried only when something else goes through.
	deadline := time.Now().Add(48 * time.Hour)
	for n := 0; len(src.settledIDs()) < len(want) && time.Now().Before(deadline); n++ {
		time.Sleep(time.Minute)
		mark := fmt.Sprintf("late%d", n)
		want[src.add(hitOf(5, mark))[0]] = hit.Delivered
		once = append(once, mark)
		if n == 20 {
			m.Choose(nil) // fair weather from here, so that the end comes
		}
	}
	src.waitSettled(within(t, time.Minute), len(want))
	m.CheckOnce(t, once)
	for id, as := range want {
		if s, _ := src.outcome(id); s.As != as {
			t.Errorf("hit %v ended as %v (%s), want %v", id, s.As, s.Reason, as)
		}
	}
	recorded := map[int64][]string{}
	for _, h := range m.Recorded() {
		recorded[h.Site] = append(recorded[h.Site], h.Mark)
	}
	for site, marks := range bySite {
		for i := range min(len(marks), len(recorded[site])) {
			if marks[i] != recorded[site][i] {
				t.Errorf("site %d: place %d is %s, want %s", site, i, recorded[site][i], marks[i])
				break
			}
		}
	}
	if n := b.net.highest.Load(); n > int64(cfg.Lanes)+3 {
		t.Errorf("%d requests at a time with %d lanes", n, cfg.Lanes)
	}
	if n := src.openJournals(); n != 0 {
		t.Errorf("%d journals stay open", n)
	}
	b.stop(t)
	synctest.Wait()
}

func (m *memorySource) settledIDs() []hit.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order
}

// weather changes what Matomo stands on, for all requests alike.
func (d *dice) weather(m *testkit.Matomo, b *bubble) {
	switch d.n(400) {
	case 0:
		m.SetDatabase(testkit.DatabaseDown)
		time.Sleep(time.Duration(d.n(300)) * time.Second)
		m.SetDatabase(testkit.DatabaseUp)
	case 1:
		// A hit that is tried in two such times, each right after a success, looks like
		// poison: the limit of telling one from the other by looking at answers.
		if b.Status().Suspects > 0 {
			return
		}
		m.SetDatabase(testkit.DatabaseReadOnly)
		time.Sleep(time.Duration(d.n(300)) * time.Second)
		m.SetDatabase(testkit.DatabaseUp)
		time.Sleep(3 * time.Minute)
	case 2:
		b.net.refuse.Store(true)
		time.Sleep(time.Duration(d.n(300)) * time.Second)
		b.net.refuse.Store(false)
	case 3:
		m.SetRecording(false)
		time.Sleep(time.Duration(d.n(300)) * time.Second)
		m.SetRecording(true)
	}
}

// lie picks what happens to one request; nil is an honest answer.
func (d *dice) lie(x *testkit.Exchange) *testkit.Answer {
	answer := func(a testkit.Answer) *testkit.Answer {
		// A hit alone is answered at once: what comes and goes while a suspect and its
		// bystander are tried may cost their order, as Sink.try says.
		if x.Hits > 1 && d.percent(30) {
			a = testkit.After(time.Duration(d.n(5000))*time.Millisecond, a)
		}
		return &a
	}
	if !d.percent(15) {
		return answer(testkit.Honest())
	}
	// Whatever blames the hits is told only of many: to a hit alone it would be a
	// proof.
	if x.Hits > 1 {
		switch d.n(6) {
		case 0:
			return answer(testkit.Error500(d.n(x.Hits)))
		case 1:
			return answer(testkit.Empty500(testkit.RolledBack))
		case 2:
			return answer(testkit.NothingTracked())
		case 3:
			return answer(testkit.Status(403, 0, testkit.RolledBack))
		case 4:
			return answer(testkit.Status(413, 0, testkit.RolledBack))
		case 5:
			return answer(testkit.AuthRequired())
		}
	}
	switch d.n(11) {
	case 0:
		return answer(testkit.Reset(testkit.RolledBack))
	case 1:
		return answer(testkit.Hang(testkit.RolledBack))
	case 2:
		return answer(testkit.ErrorText(testkit.RolledBack))
	case 3:
		return answer(testkit.NotInstalled())
	case 4:
		return answer(testkit.LoginPage())
	case 5:
		return answer(testkit.Redirect(301, "https://elsewhere.example/"))
	case 6:
		return answer(testkit.Status(503, time.Duration(d.n(20))*time.Second, testkit.RolledBack))
	case 7:
		return answer(testkit.Status(429, 0, testkit.RolledBack))
	case 8:
		return answer(testkit.Status(502, 0, testkit.RolledBack))
	case 9:
		return answer(testkit.Revoked())
	}
	return answer(testkit.Honest())
}
