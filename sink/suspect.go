package sink

import (
	"math/rand/v2"
	"time"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

const (
	// A suspect is tried again after suspectDelay at the earliest, and after twice
	// as long each time.
	suspectDelay    = time.Second
	maxSuspectDelay = time.Minute
	// proofAge is how long another hit's success speaks against a suspect. It is
	// short, so that an outage that begins in between is not taken for poison.
	proofAge = 3 * time.Second
)

// suspects remember the hits that failed alone, and what went through since.
// They belong to the goroutine of Run.
type suspects struct {
	// failed is where a suspect stands: the number of the last flight that had
	// left when it failed.
	failed map[*item]uint64
	due    map[*item]time.Time // not tried again before
	// good is the highest number of a flight that delivered a hit.
	good   uint64
	goodAt time.Time // when it landed
	// fresh counts different hits that failed alone since something went through.
	fresh map[hit.ID]struct{}
}

func newSuspects() *suspects {
	return &suspects{failed: map[*item]uint64{}, due: map[*item]time.Time{}, fresh: map[hit.ID]struct{}{}}
}

// proven reports whether something went through just now that left after it had
// failed.
func (s *suspects) proven(it *item, now time.Time) bool {
	since, suspected := s.failed[it]
	return suspected && s.good > since && now.Sub(s.goodAt) <= proofAge
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
	due = now.Add(backoff(suspectDelay, maxSuspectDelay, it.lone))
	s.due[it] = due
	it.lone++
	return due, len(s.fresh) >= 2
}

func (s *suspects) forget(it *item) {
	delete(s.failed, it)
	delete(s.due, it)
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

// bystander gives the hit of a lane that may show whether Matomo works while the
// lane's head is a suspect; nil if there is none. The first choice, among the
// first maxBystanders, is a hit that shares neither the visitor's address nor any
// visitor id with those in front of it, so that Matomo cannot join it into a
// visit with one of them. A head that has failed patience times takes what stands
// right behind the suspects.
func (l *lanes) bystander(ln *lane, horizon int64) *item {
	seen := map[string]struct{}{}
	var behind *item
	for i, it := range ln.items[:min(len(ln.items), maxBystanders)] {
		if it.settled {
			continue
		}
		if it.doubt || it.At > horizon {
			break
		}
		marks, clean := identity(it), i > 0
		for _, m := range marks {
			if _, met := seen[m]; met {
				clean = false
			}
			seen[m] = struct{}{}
		}
		fit := it.lone == 0 && !l.single(it) && !it.group.theirs
		if fit && clean {
			return it
		}
		if behind == nil && i > 0 && it.lone == 0 {
			if behind = it; !fit {
				break // nothing may overtake it
			}
		}
	}
	if behind != nil && ln.items[0].lone >= patience {
		return behind
	}
	return nil
}

const (
	// maxBystanders bounds the search.
	maxBystanders = 1000
	// patience is how often a suspect fails before order gives way to progress.
	patience = 3
)

// identity gives what Matomo could recognise a visitor by. Addresses count by
// their network, since Matomo may be set to mask them.
func identity(it *item) []string {
	marks := []string{"ip " + network(it.Environment.ClientIP)}
	if it.Environment.VisitorCookie != "" {
		marks = append(marks, "cookie "+it.Environment.VisitorCookie)
	}
	if it.Form == hit.Object {
		return append(marks, "object") // objects are told apart by address alone, and never from each other
	}
	f := phpform.Parse(it.Params)
	for _, name := range [...]string{"uid", "cid", "_id", "ec_id"} {
		if v := f.String(name); v != "" {
			marks = append(marks, "id "+v)
		}
	}
	if f.String("cip") != "" {
		marks = append(marks, "ip "+network(f.String("cip")))
	}
	return marks
}

// network gives the first half of an address's text: two bytes of an IPv4
// address, and of an IPv6 address what stands before the second colon, which is
// more than Matomo's widest mask but the last leaves.
func network(ip string) string {
	seps := 0
	for i := range len(ip) {
		if ip[i] == '.' || ip[i] == ':' {
			if seps++; seps == 2 {
				return ip[:i]
			}
		}
	}
	return ip
}
