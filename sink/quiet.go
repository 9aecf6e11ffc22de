package sink

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// upgradeWindow is how long after an upgrade nothing is buried: old code on a new
	// schema, or the reverse, fails on single hits exactly as poison does.
	upgradeWindow = 30 * time.Minute
	// calm is how long after an outage nothing is buried. It is longer than a suspect
	// ever waits between two failures, so that no outage lies between the two.
	calm = 2 * time.Minute
)

// mayBury reports whether a hit's failure can be nobody's fault but its own: no
// upgrade was under way lately, MySQL's probes find nothing wrong and can be asked,
// and there was no outage since the hit may have failed before. Burying is rare and
// for good, so probes and versions are asked once more before it is allowed; what they
// find opens the breaker. A hit that may not be buried stays a suspect.
func (s *Sink) mayBury(ctx context.Context) bool {
	if !s.quiet(time.Now()) {
		return false
	}
	if bad, _ := s.mysqlFinding(ctx); bad != nil {
		s.brk.found(bad.reason, bad.Detail, 0)
		return false
	}
	if why := s.versions(ctx, true); why != "" {
		s.upgrade.saw(why)
		s.brk.found(ReasonUpgrade, why, 0)
		return false
	}
	return ctx.Err() == nil && s.quiet(time.Now())
}

// quiet reports whether nothing is known that forbids burying.
func (s *Sink) quiet(now time.Time) bool {
	return !s.upgrade.within(upgradeWindow, now) && !s.watched.troubled() && !s.brk.troubledSince(now.Add(-calm))
}

const (
	// strainRequests is over how many requests a strain is measured, and strainBad how
	// many of them must go badly.
	strainRequests = 20
	strainBad      = 5
	// A request is slow when it takes longer than slowRequest, and longer than slowHit
	// for each of its hits: what a large batch takes is for the pace to mend.
	slowRequest = 10 * time.Second
	slowHit     = time.Second
)

// A strain watches for a Matomo that answers, but badly: it skips hits because of
// lock waits, or takes very long. Failures that stop the drain by themselves, and
// those that are a hit's own, are not counted. Methods may be called from any
// goroutine.
type strain struct {
	mu   sync.Mutex
	last [strainRequests]bool
	n    int
}

// note takes the outcome of a request and gives how many of the last ones went badly
// when that is too many; counting begins again then.
func (st *strain) note(k kind, hits int, took time.Duration) (bad int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.last[st.n%strainRequests] = k == partial || took > max(slowRequest, time.Duration(hits)*slowHit)
	st.n++
	for _, one := range st.last {
		if one {
			bad++
		}
	}
	if bad < strainBad {
		return 0
	}
	st.last = [strainRequests]bool{}
	return bad
}

// strained opens the breaker when too many requests of late went badly.
func (s *Sink) strained(k kind, hits int, took time.Duration) {
	if bad := s.strain.note(k, hits, took); bad > 0 {
		s.brk.open(ReasonOverload, fmt.Sprintf("%d of the last requests took very long, or Matomo skipped hits of them", bad), 0)
	}
}
