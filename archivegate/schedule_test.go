package archivegate

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the random tests; 0 = a new one")
	schedules = flag.Int("schedules", 1000, "random schedules of one run")
)

// zones are of all kinds: ahead and behind, halves and quarters, clocks that jump over
// midnight and back over it.
var zones = []string{
	"UTC", "UTC+5.5", "UTC-9.5", "UTC+13.75", "UTC-12", "Europe/Berlin", "Europe/London", "Europe/Moscow", "America/New_York", "America/Los_Angeles",
	"America/St_Johns", "America/Santiago", "America/Sao_Paulo", "America/Havana", "America/Asuncion", "America/Caracas", "America/Argentina/Buenos_Aires",
	"Africa/Cairo", "Africa/Casablanca", "Africa/Johannesburg", "Asia/Beirut", "Asia/Gaza", "Asia/Tehran", "Asia/Kolkata", "Asia/Kathmandu", "Asia/Tokyo", "Asia/Amman",
	"Asia/Yangon", "Australia/Lord_Howe", "Australia/Adelaide", "Australia/Eucla", "Pacific/Auckland", "Pacific/Chatham", "Pacific/Apia", "Pacific/Kiritimati",
	"Pacific/Honolulu", "Pacific/Marquesas", "Atlantic/Azores", "US/Eastern", "Asia/Calcutta",
}

// leaps are nights in which clocks change somewhere above, or a day is left out.
var leaps = []string{
	"2024-03-31", "2024-10-27", "2024-04-07", "2024-09-08", "2018-11-04", "2018-02-18", "2024-03-10", "2024-11-03", "2024-10-06", "2024-03-24", "2024-04-26", "2011-12-30", "2024-04-06",
}

// A simHit is a hit as the model knows it: nothing is summed up.
type simHit struct {
	site    int64
	at      time.Time // effective
	flying  bool      // received, and not written yet
	settled bool
	unsaid  bool // Matomo has it; that is not written here yet
}

// A schedule is one random history of an edge.
type schedule struct {
	*world
	t    *testing.T
	rng  *rand.Rand
	gate *Gate
	hits []*simHit
	said map[siteDay]int // epoch in which a day was said to be complete

	failed bool
}

func (s *schedule) errorf(format string, args ...any) {
	s.t.Helper()
	s.failed = true
	s.t.Errorf(format, args...)
}

// TestCompleteIsNeverSaidTooEarly drives the gate through random histories and asks it
// all the time. The model holds every hit by itself and reckons with the clock on the
// wall: a hit is of the day that the place's clock shows.
func TestCompleteIsNeverSaidTooEarly(t *testing.T) {
	seed := *seedFlag
	n := *schedules
	if seed == 0 {
		seed = rand.Uint64()
	} else {
		n = 1
	}
	if testing.Short() {
		n = min(n, 150) // one goroutine calls the gate: the race detector sees little
	}
	t.Logf("seed=%d, %d schedules", seed, n)
	shards := runtime.GOMAXPROCS(0)
	for shard := range shards {
		t.Run(fmt.Sprint("shard=", shard), func(t *testing.T) {
			t.Parallel()
			for i := shard; i < n; i += shards {
				s := &schedule{t: t, rng: rand.New(rand.NewPCG(seed+uint64(i), 0)), said: map[siteDay]int{}}
				if s.run(); s.failed {
					t.Fatalf("that was seed=%d", seed+uint64(i))
				}
			}
		})
	}
}

func (s *schedule) run() {
	night := mustDate(s.t, leaps[s.rng.IntN(len(leaps))])
	if s.rng.IntN(3) == 0 {
		night = Date{2020, 1, 1}.Add(s.rng.IntN(2000))
	}
	s.world = newWorld(night.String() + "T00:00:00Z")
	s.clock.add(time.Duration(s.rng.IntN(30*3600)-15*3600) * time.Second)
	for id := range int64(1 + s.rng.IntN(3)) {
		s.sites = append(s.sites, Site{ID: id + 1, Zone: zones[s.rng.IntN(len(zones))], Created: s.clock.now().Add(-30 * 24 * time.Hour)})
	}
	s.restart()
	for range 40 {
		s.step()
		s.check()
		if s.failed {
			return
		}
	}
	s.end()
}

func (s *schedule) restart() { s.gate = s.world.gate(s.t, Config{Skew: skew}) }

// step lets something happen.
func (s *schedule) step() {
	site := s.sites[s.rng.IntN(len(s.sites))].ID
	switch s.rng.IntN(12) {
	case 0, 1, 2: // a request is received
		now := s.clock.now()
		h := &simHit{site: site, at: now.Truncate(time.Second), flying: true}
		if s.rng.IntN(8) == 0 { // with a time of its own
			h.at = h.at.Add(-time.Duration(s.rng.IntN(50*3600)) * time.Second)
		}
		s.hits = append(s.hits, h)
		s.inFlight = append(s.inFlight, now)
	case 3, 4: // what was received first is written, and answered
		for _, h := range s.hits {
			if h.flying {
				s.write(h)
				break
			}
		}
	case 5, 6: // the drain settles some
		for _, h := range s.hits {
			if !h.flying && !h.settled && s.rng.IntN(2) == 0 {
				s.settle(h)
			}
		}
	case 7: // Matomo has some, and the process has not written that down
		for _, h := range s.hits {
			if !h.flying && !h.settled && s.rng.IntN(3) == 0 {
				h.unsaid = true
			}
		}
	case 8: // killed: what was not written is gone, and was not answered
		kept := s.hits[:0]
		for _, h := range s.hits {
			if !h.flying {
				kept = append(kept, h)
			}
		}
		s.hits, s.inFlight = kept, nil
		s.restart()
	case 9: // the list cannot be read for a while
		s.listErr = fmt.Errorf("no answer")
		if s.rng.IntN(2) == 0 {
			s.listErr = nil
		}
	}
	// Time goes on, often to just around the end of a day.
	if s.rng.IntN(3) == 0 {
		zone := mustZone(s.t, s.sites[s.rng.IntN(len(s.sites))].Zone)
		end := zone.Start(zone.On(s.clock.now()).Add(1))
		if to := end.Add(time.Duration(s.rng.IntN(20)-8) * time.Second); to.After(s.clock.now()) && to.Sub(s.clock.now()) < 30*time.Hour {
			s.clock.add(to.Sub(s.clock.now()))
			return
		}
	}
	s.clock.add(time.Duration(s.rng.IntN(40*60*1000)) * time.Millisecond)
}

func (s *schedule) write(h *simHit) {
	h.flying = false
	s.inFlight = s.inFlight[1:]
	s.books.add(h.site, h.at, Tally{Accepted: 1})
}

func (s *schedule) settle(h *simHit) {
	h.settled = true
	s.books.add(h.site, h.at, Tally{Delivered: 1})
}

// on gives the day that the wall's clock shows for a hit, without any arithmetic of
// the gate's.
func (s *schedule) on(h *simHit) string {
	for _, site := range s.sites {
		if site.ID == h.site {
			return h.at.In(mustZone(s.t, site.Zone).loc).Format(time.DateOnly)
		}
	}
	return ""
}

// check asks about everything, and fails when an answer says too much.
func (s *schedule) check() {
	for _, site := range s.sites {
		for _, date := range s.dates(site) {
			a, err := s.gate.One(s.t.Context(), Query{Site: site.ID, Date: date})
			if err != nil {
				continue // a day that the place left out
			}
			if a.Complete {
				s.mustBeComplete(site, a)
			}
			key := siteDay{site.ID, a.Date}
			if epoch, ok := s.said[key]; ok && !a.Complete && a.Epoch == epoch && (a.State == StateDraining || a.State == StateReopened) {
				s.errorf("site %d, %s: was complete, is %s, and the epoch is still %d", site.ID, a.Date, a.State, epoch)
			}
			if a.Complete {
				s.said[key] = a.Epoch
			}
		}
	}
	sum, err := s.gate.All(s.t.Context(), Query{Date: Finished})
	if err != nil || !sum.Complete {
		return
	}
	for _, site := range s.sites {
		a := one(s.t, s.gate, Query{Site: site.ID, Date: Finished})
		if !a.Complete {
			s.errorf("all are complete, and site %d is %s: %v", site.ID, a.State, a.Reasons)
		}
		s.mustBeComplete(site, a)
	}
}

// dates are those that a site is asked about.
func (s *schedule) dates(site Site) []string {
	today := s.clock.now().In(mustZone(s.t, site.Zone).loc)
	others := []string{Today, today.AddDate(0, 0, -1).Format(time.DateOnly), today.AddDate(0, 0, -2).Format(time.DateOnly)}
	return []string{Finished, others[s.rng.IntN(len(others))]}
}

func (s *schedule) mustBeComplete(site Site, a Answer) {
	s.t.Helper()
	for _, h := range s.hits {
		// Days are in the order of their names.
		if h.site == site.ID && !h.settled && s.on(h) <= a.Date.String() && (!h.flying || !h.at.Before(s.received(h))) {
			s.errorf("at %s site %d (%s) is complete for %s, and there is a hit of %s, flying %v", s.clock.now(), site.ID, site.Zone, a.Date, h.at, h.flying)
			return
		}
	}
	if local := s.clock.now().In(mustZone(s.t, site.Zone).loc).Format(time.DateOnly); local <= a.Date.String() {
		s.errorf("site %d (%s) is complete for %s, and its clock shows %s", site.ID, site.Zone, a.Date, local)
	}
}

// received gives the second in which a hit that flies was received. One with a time of
// its own of a day that is over is late, and reopens the day when it is written.
func (s *schedule) received(h *simHit) time.Time {
	i := 0
	for _, other := range s.hits {
		if other == h {
			return s.inFlight[i].Truncate(time.Second)
		}
		if other.flying {
			i++
		}
	}
	return time.Time{}
}

// end writes and settles everything, and waits as long as is promised.
func (s *schedule) end() {
	s.listErr = nil
	for _, h := range s.hits {
		if h.flying {
			s.write(h)
		}
		if !h.settled {
			s.settle(h)
		}
	}
	zone := mustZone(s.t, s.sites[0].Zone)
	end := zone.Start(zone.On(s.clock.now()).Add(1))
	s.clock.add(end.Sub(s.clock.now()) + skew)
	for i, site := range s.sites {
		if i > 0 {
			break
		}
		a := one(s.t, s.gate, Query{Site: site.ID, Date: Finished})
		if !a.Complete {
			// The list may have been read less than listSpacing ago.
			s.clock.add(listSpacing)
			a = one(s.t, s.gate, Query{Site: site.ID, Date: Finished})
		}
		if !a.Complete || a.End.After(s.clock.now()) || s.clock.now().Sub(*a.End) > skew+listSpacing {
			s.errorf("at %s site %d (%s) is %s for %s (until %s): %v", s.clock.now(), site.ID, site.Zone, a.State, a.Date, a.End, a.Reasons)
		}
	}
}
