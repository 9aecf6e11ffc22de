package sink

import (
	"math/rand/v2"
	"time"

	"sluice/internal/hit"
)

// suspects remember the hits that failed alone, and what went through since.
// They belong to the goroutine of Run.
type suspects struct {
	waits waits
	// failed is where a suspect stands: the number of the last flight that had
	// left when it failed.
	failed map[*item]uint64
	at     map[*item]time.Time // when it failed last
	// good is the highest number of a flight that delivered a hit.
	good   uint64
	goodAt time.Time // when it landed
	// fresh counts different hits that failed alone since something went through.
	fresh map[hit.ID]struct{}
}

func newSuspects(w waits) *suspects {
	return &suspects{waits: w, failed: map[*item]uint64{}, at: map[*item]time.Time{}, fresh: map[hit.ID]struct{}{}}
}

// proven reports whether something went through just now that left after it had
// failed.
func (s *suspects) proven(it *item, now time.Time) bool {
	since, suspected := s.failed[it]
	return suspected && s.good > since && now.Sub(s.goodAt) <= s.waits.proofAge
}

func (s *suspects) suspected(it *item) bool {
	_, ok := s.failed[it]
	return ok
}

// passed notes a flight that delivered a hit.
func (s *suspects) passed(f *flight, now time.Time) {
	if f.launch > s.good {
		s.good, s.goodAt = f.launch, now
	}
	clear(s.fresh)
}

// add notes a hit that failed alone and says when it may be tried again.
// outage reports that different hits fail alone with nothing going through in
// between: then the hits are not to blame.
func (s *suspects) add(it *item, launched uint64, now time.Time) (due time.Time, outage bool) {
	s.failed[it] = launched
	s.fresh[it.ID] = struct{}{}
	due = now.Add(backoff(s.waits.suspectDelay, s.waits.maxSuspectDelay, it.lone))
	s.at[it] = now
	it.lone++
	return due, len(s.fresh) >= 2
}

func (s *suspects) forget(it *item) {
	delete(s.failed, it)
	delete(s.at, it)
}

// backoff doubles first with every failure up to most, and spreads by a quarter
// to both sides.
func backoff(first, most time.Duration, failures int) time.Duration {
	d := most
	if failures < 16 {
		d = min(first<<failures, most)
	}
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}

// bystanders gives hits that may show whether Matomo works while a lane's head is a
// suspect and no other lane can: what stands right behind it, so order gives way to
// progress, and only after the head has failed patience times. They are more the
// oftener it has failed, since they may be as bad.
func (l *lanes) bystanders(ln *lane, horizon int64) []*item {
	head := ln.items[0]
	if head.lone < patience {
		return nil
	}
	var behind []*item
	for _, it := range ln.items[1:] {
		if it.doubt || it.malformed || it.At > horizon || len(behind) == bystandersFor(head.lone) {
			break
		}
		if !it.settled {
			behind = append(behind, it)
		}
	}
	return behind
}

const (
	maxBystanders = 50
	// fewBystanders are enough for the first tries: in an outage each costs a
	// request and a canary, and nothing is gained.
	fewBystanders = 5
	triesAStep    = 16
	// patience is how often a suspect fails before order gives way to progress.
	patience = 3
)

// bystandersFor says how many bystanders a suspect gets that has failed so often.
func bystandersFor(lone int) int {
	return min(max(1, min(lone, fewBystanders))+lone/triesAStep, maxBystanders)
}
