package sink

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// TestPoisonSurvivesAnUpgrade: around an upgrade a hit can fail alone, again and
// again, while all others go through, because its column is not there yet. It stays,
// and is delivered when the schema fits. What fails long after is buried.
func TestPoisonSurvivesAnUpgrade(t *testing.T) {
	for _, tt := range []struct {
		name   string
		others int64 // site of the other hits
		most   int64 // requests in 25 minutes
	}{
		// Each success is a reason to try again.
		{"others of its own site go through", 1, 3000},
		{"another site's hits go through", 2, 3000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { poisonSurvivesAnUpgrade(t, tt.others, tt.most) })
		})
	}
}

func poisonSurvivesAnUpgrade(t *testing.T, others, most int64) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	defer m.Close()
	src := newSource(t)
	b := startBubble(t, m, bubbleConfig(), src)
	n := 0
	company := func(d time.Duration) { // others go through all the time
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Second) {
			n++
			p := hitOf(others, fmt.Sprintf("other%d", n))
			p.Environment = &hit.Environment{ClientIP: fmt.Sprintf("198.%d.100.7", n%200), UserAgent: browser}
			src.add(p)
		}
	}
	missing := func(h *testkit.Hit) bool { return strings.HasPrefix(h.Mark, "column") }
	company(5 * time.Minute)
	m.SetVersion("5.1.0")
	m.Poison(missing)
	early := src.add(hitOf(1, "column1"))[0]
	posts := b.net.posts.Load()
	company(25 * time.Minute)
	if got, done := src.outcome(early); done {
		t.Errorf("25 minutes after the upgrade the hit ended as %v (%s)", got.As, got.Reason)
	}
	if b.mayBury(t.Context()) {
		t.Error("burying is allowed in the window of an upgrade")
	}
	if asked := b.net.posts.Load() - posts; asked > most {
		t.Errorf("Matomo was asked %d times, want at most %d", asked, most)
	}
	m.Cure()
	company(5 * time.Minute)
	if got, _ := src.outcome(early); got.As != hit.Delivered {
		t.Errorf("with the schema in place the hit ended as %v", got.As)
	}
	m.Poison(missing)
	late := src.add(hitOf(1, "column2"))[0]
	company(10 * time.Minute)
	if got, _ := src.outcome(late); got.As != hit.Dead {
		t.Errorf("long after the upgrade poison ended as %v, want dead", got.As)
	}
	if got := m.Commits("column1"); got != 1 {
		t.Errorf("the hit was recorded %d times", got)
	}
	b.stop(t)
	synctest.Wait()
}

// TestNothingIsBuriedAroundAnOutage: failures on both sides of an outage are not two
// failures of the hit.
func TestNothingIsBuriedAroundAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		m.Poison(isPoison)
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		id := hit.ID{}
		n := 0
		company := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
				n++
				src.add(hitOf(2, fmt.Sprintf("other%d", n)))
			}
		}
		company(10 * time.Second)
		m.SetDatabase(testkit.DatabaseDown)
		company(20 * time.Second)
		m.SetDatabase(testkit.DatabaseUp)
		id = src.add(hitOf(1, "poison"))[0]
		company(time.Minute)
		if !b.Healthy() {
			t.Fatalf("%+v a minute after the outage", b.standing())
		}
		if _, done := src.outcome(id); done {
			t.Error("a hit is buried a minute after an outage")
		}
		company(4 * time.Minute)
		if got, _ := src.outcome(id); got.As != hit.Dead {
			t.Errorf("minutes after the outage poison ended as %v, want dead", got.As)
		}
		b.stop(t)
		synctest.Wait()
	})
}

// TestQuiet has everything that forbids burying.
func TestQuiet(t *testing.T) {
	unreachable := Probe{Name: "connect", State: ProbeUnknown, err: errors.New("refused")}
	tests := []struct {
		name  string
		given func(*Sink)
		after time.Duration
		want  bool
	}{
		{"nothing is wrong", func(*Sink) {}, 0, true},
		{"an upgrade is under way", func(s *Sink) { s.upgrade.saw("x") }, 24 * time.Hour, false},
		{"an upgrade has just ended", func(s *Sink) { s.upgrade.saw("x"); s.upgrade.over() }, upgradeWindow - time.Second, false},
		{"an operator has ended an upgrade", func(s *Sink) { s.upgrade.saw("x"); s.upgrade.accept() }, upgradeWindow - time.Second, false},
		{"an upgrade ended long ago", func(s *Sink) { s.upgrade.saw("x"); s.upgrade.over() }, upgradeWindow, true},
		{"a probe is bad", func(s *Sink) { s.watched.set([]Probe{{State: ProbeOK}, {State: ProbeBad}}, nil, time.Time{}) }, time.Hour, false},
		{"MySQL is out of reach", func(s *Sink) { s.watched.set([]Probe{unreachable}, nil, time.Time{}) }, time.Hour, false},
		{"a probe may not ask", func(s *Sink) { s.watched.set([]Probe{{State: ProbeOK}, {State: ProbeUnknown}}, nil, time.Time{}) }, 0, true},
		{"the breaker has just opened", func(s *Sink) { s.brk.open(ReasonDown, "x", 0) }, calm - time.Second, false},
		{"a round has just failed", func(s *Sink) { s.brk.probed(round{reason: ReasonDown}) }, calm - time.Second, false},
		{"a probe has just found something", func(s *Sink) { s.brk.found(ReasonReadOnly, "x", 0) }, calm - time.Second, false},
		{"the breaker opened a while ago", func(s *Sink) { s.brk.open(ReasonDown, "x", 0) }, calm + time.Second, true},
		{"only hits failed", func(s *Sink) { s.brk.rest("x") }, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Sink{brk: testBreaker()}
				s.brk.probed(round{ok: true})
				tt.given(s)
				time.Sleep(tt.after)
				if got := s.quiet(time.Now()); got != tt.want {
					t.Errorf("quiet = %v, want %v", got, tt.want)
				}
			})
		})
	}
}

// TestStrain: a Matomo that answers badly often enough gets a rest.
func TestStrain(t *testing.T) {
	slow := 11 * time.Second
	tests := []struct {
		name string
		run  func(note func(k kind, hits int, took time.Duration))
		want int // openings
	}{
		{"all is well", func(note func(kind, int, time.Duration)) {
			for range 100 {
				note(delivered, 200, time.Second)
			}
		}, 0},
		{"a large batch takes its time", func(note func(kind, int, time.Duration)) {
			for range 100 {
				note(delivered, 200, slow)
			}
		}, 0},
		{"single hits take long", func(note func(kind, int, time.Duration)) {
			for range strainBad {
				note(delivered, 1, slow)
			}
		}, 1},
		{"one in five is skipped in part", func(note func(kind, int, time.Duration)) {
			for range 10 {
				for range 4 {
					note(delivered, 50, time.Second)
				}
				note(partial, 50, time.Second)
			}
		}, 0},
		{"one in four is skipped in part", func(note func(kind, int, time.Duration)) {
			for range 5 {
				for range 3 {
					note(delivered, 50, time.Second)
				}
				note(partial, 50, time.Second)
			}
		}, 1},
		{"a hit's own failures do not count", func(note func(kind, int, time.Duration)) {
			for range 100 {
				note(split, 1, time.Second)
			}
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &Sink{brk: testBreaker()}
			s.brk.probed(round{ok: true})
			openings := 0
			s.brk.opened = func(r Reason) {
				if openings++; r != ReasonOverload {
					t.Errorf("opens for %s", r)
				}
			}
			tt.run(s.strained)
			if openings != tt.want {
				t.Errorf("opens %d times, want %d", openings, tt.want)
			}
		})
	}
}
