package sink

import (
	"math/rand/v2"
	"time"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

const (
	// A suspect is tried again after suspectDelay when another hit has gone through
	// meanwhile, else after twice as long each time.
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
	at     map[*item]time.Time // when it failed last
	// good is the highest number of a flight that delivered a hit.
	good   uint64
	goodAt time.Time // when it landed
	// fresh counts different hits that failed alone since something went through.
	fresh map[hit.ID]struct{}
}

func newSuspects() *suspects {
	return &suspects{failed: map[*item]uint64{}, at: map[*item]time.Time{}, fresh: map[hit.ID]struct{}{}}
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

// bystanders gives hits of a lane that may show whether Matomo works while the
// lane's head is a suspect; more of them the oftener it has failed, since they may
// be as bad. The first choice is hits that share neither the visitor's address nor
// any visitor id with those in front of them, so that Matomo cannot join them into
// a visit with one of them. A head that has failed patience times takes what
// stands right behind it.
func (l *lanes) bystanders(ln *lane, horizon int64) []*item {
	seen := map[string]struct{}{}
	var strangers, behind []*item
	most := bystandersFor(ln.items[0].lone)
	for i, it := range ln.items[:min(len(ln.items), bystanderSearch)] {
		if it.settled {
			continue
		}
		if it.doubt || it.malformed || it.At > horizon || len(strangers) == most {
			break
		}
		marks, stranger := identity(it), i > 0
		for _, m := range marks {
			if _, met := seen[m]; met {
				stranger = false
			}
			seen[m] = struct{}{}
		}
		if stranger {
			strangers = append(strangers, it)
		}
		if i > 0 && len(behind) < most {
			behind = append(behind, it)
		}
	}
	if len(strangers) == 0 && ln.items[0].lone >= patience {
		return behind
	}
	return strangers
}

const (
	// bystanderSearch bounds how far behind the suspect bystanders are looked for,
	// and maxBystanders how many there are.
	bystanderSearch = 1000
	maxBystanders   = 50
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

// network gives the beginning of an address's text: two bytes of an IPv4 address,
// and of an IPv6 address its first two groups. Matomo masks one or two bytes of
// an IPv4 address as a rule; where it masks more, only ids tell visitors apart.
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
