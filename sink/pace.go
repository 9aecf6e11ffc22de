package sink

import (
	"sync"
)

// A pace says how many hits a batch may have and how many may fly. After a hold
// it begins with single hits, one after the other, and doubles with every batch
// that goes through. It belongs to the goroutine of Run.
type pace struct {
	cfg      *Config
	limit    int // hits of a batch
	ceiling  int // what limit may grow to; falls when batches prove too large
	ramping  bool
	attempts int // batches delivered since the ceiling fell
}

func newPace(cfg *Config) pace {
	return pace{cfg: cfg, limit: min(startHits, cfg.BatchHits), ceiling: cfg.BatchHits}
}

// fallBack begins again with single hits.
func (p *pace) fallBack() { p.limit, p.ramping = 1, true }

// ceilingPatience is how many batches must go through before larger ones are
// tried again.
const ceilingPatience = 100

func (p *pace) grow() {
	if p.attempts++; p.attempts >= ceilingPatience && p.ceiling < p.cfg.BatchHits {
		p.attempts, p.ceiling = 0, min(2*p.ceiling, p.cfg.BatchHits)
	}
	p.limit = min(2*p.limit, p.ceiling)
	if p.limit >= min(startHits, p.ceiling) {
		p.ramping = false
	}
}

// shrink takes note that a batch of so many hits was too large.
func (p *pace) shrink(hits int) {
	if hits < 2 {
		return
	}
	p.attempts = 0
	p.ceiling = max(1, min(p.ceiling, hits/2))
	p.limit = min(p.limit, p.ceiling)
}

// hits gives the size of the next batch. Only a superuser's token is told which
// hits are invalid.
func (p *pace) hits(kind tokenKind) int {
	if kind != tokenSuper {
		return 1
	}
	return p.limit
}

func (p *pace) bytes() int { return p.cfg.BatchBytes }

// lanes gives how many requests may be in flight.
func (p *pace) lanes() int {
	if p.ramping {
		return 1
	}
	return p.cfg.Lanes
}

// figures are what the dispatcher shows of itself.
type figures struct {
	inFlight, lanes, batch       int
	uncertain, leased, heldLanes int
	undecided, suspects          int
}

// shown hands figures to other goroutines.
type shown struct {
	mu sync.Mutex
	at figures
}

func (s *shown) write(f figures) {
	s.mu.Lock()
	s.at = f
	s.mu.Unlock()
}

func (s *shown) read() figures {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}
