package sink

import (
	"sync"
	"time"
)

// A pace says how many hits a batch may have and how many batches may fly. It
// doubles both until the first sign of trouble or the bounds, then adds a little
// with what goes well, and halves with what does not (AIMD). After a hold it begins
// with single hits, one after the other. It belongs to the goroutine of Run.
type pace struct {
	cfg      *Config
	limit    int // hits of a batch
	ceiling  int // what limit may grow to; falls when batches prove too large
	width    int // batches in flight
	ramping  bool
	careful  bool // there was trouble: add, do not double
	attempts int  // batches delivered since the ceiling fell

	// A round measures the throughput with so many batches in flight. More are kept
	// only if they raise it, fewer only if they do not lower it.
	began    time.Time // zero while there was nothing to send
	skip     int       // batches that left before the round
	batches  int
	hits     int
	before   float64 // hits a second with as many as before a trial, 0 outside of one
	usual    int     // how many those were
	settled  bool    // the doubling of how many fly is over
	fewer    bool    // the next trial is with fewer
	patience int     // rounds until more are tried again
}

func newPace(cfg *Config) pace {
	return pace{cfg: cfg, limit: min(startHits, cfg.BatchHits), ceiling: cfg.BatchHits, width: 1}
}

const (
	// ceilingPatience is how many batches must go through before larger ones are
	// tried again, and widthPatience how many rounds before more at a time are.
	ceilingPatience = 100
	widthPatience   = 20
	// worthwhile is by how much more batches at a time must raise the throughput.
	worthwhile = 1.05
	// stepShare is the share of the ceiling by which batches grow after trouble.
	stepShare = 20
	// slowShare bounds what a batch may take, as a share of the request's timeout, and
	// maxBatchTime anyway: Matomo holds its locks that long.
	slowShare    = 6
	maxBatchTime = 10 * time.Second
)

// fallBack begins again with single hits. After an overload it remembers that there
// was too much.
func (p *pace) fallBack(overload bool) {
	p.restart()
	if overload && !p.ramping {
		p.ceiling = max(1, p.ceiling/2)
		p.width = max(1, p.width/2)
		p.attempts, p.careful = 0, true
	}
	p.limit, p.ramping = 1, true
}

// restart ends the round, and a trial without a result: what it measured was not the
// same all the time.
func (p *pace) restart() {
	if p.before > 0 {
		p.width, p.before = p.usual, 0
	}
	p.began = time.Time{}
}

// starved takes note that fewer batches fly than may, since nothing else can leave.
func (p *pace) starved() { p.began = time.Time{} }

// good takes note of a batch that went through. full says that it was as large as
// it could be, so that a larger one can be tried.
func (p *pace) good(hits int, full bool, took time.Duration, now time.Time) {
	if took > min(p.cfg.RequestTimeout/slowShare, maxBatchTime) {
		p.careful = true
		p.limit = max(1, min(p.limit, hits/2))
		p.restart()
		return
	}
	if p.attempts++; p.attempts >= ceilingPatience && p.ceiling < p.cfg.BatchHits {
		p.attempts, p.ceiling = 0, min(2*p.ceiling, p.cfg.BatchHits)
	}
	switch {
	case p.ramping, full && !p.careful:
		p.limit = min(2*p.limit, p.ceiling)
	case full:
		p.limit = min(p.limit+max(1, p.ceiling/stepShare), p.ceiling)
	}
	if p.ramping && p.limit >= min(startHits, p.ceiling) {
		p.ramping = false
	}
	if !p.ramping {
		p.measure(hits, full, took, now)
	}
}

// measure counts a batch in its round, and judges the round when it is over.
func (p *pace) measure(hits int, full bool, took time.Duration, now time.Time) {
	if p.began.IsZero() {
		p.began, p.batches, p.hits, p.skip = now, 0, 0, 0
		if p.width > 1 || p.careful || !full || took <= 0 {
			return
		}
		p.began = now.Add(-took) // one batch at a time is a round by itself
	}
	if p.skip > 0 {
		if p.skip--; p.skip == 0 {
			p.began = now
		}
		return
	}
	p.batches++
	p.hits += hits
	span := now.Sub(p.began).Seconds()
	if p.batches < p.round() || span <= 0 {
		return
	}
	rate := float64(p.hits) / span
	p.began, p.batches, p.hits = now, 0, 0
	if p.before > 0 {
		p.judge(rate)
		return
	}
	if p.patience > 0 {
		p.patience--
		return
	}
	switch {
	case p.fewer && p.width > 1:
		p.try(p.width/2, rate)
	case p.width >= p.cfg.Lanes:
		p.fewer, p.patience = true, widthPatience
	case !p.settled && !p.careful && 4*p.limit >= p.ceiling: // what larger batches add shows at the same time
		p.try(min(2*p.width, p.cfg.Lanes), rate)
	case p.limit >= p.ceiling:
		p.try(p.width+1, rate)
	}
}

// round gives how many batches a round has.
func (p *pace) round() int {
	if p.settled || p.careful {
		return 2 * p.width
	}
	return p.width
}

// try changes how many batches fly, for a round.
func (p *pace) try(width int, rate float64) {
	p.before, p.usual, p.skip, p.width = rate, p.width, p.width, width
}

// judge ends a trial.
func (p *pace) judge(rate float64) {
	before, usual, tried := p.before, p.usual, p.width
	p.before = 0
	switch {
	case tried > usual && rate >= worthwhile*before:
		if !p.settled && !p.careful && tried < p.cfg.Lanes {
			p.try(min(2*tried, p.cfg.Lanes), rate)
			return
		}
		p.fewer = !p.settled // they were taken for worthwhile while batches grew
	case tried > usual:
		p.width, p.fewer = usual, true
	case rate*worthwhile < before:
		p.width, p.fewer = usual, false
	}
	p.settled, p.patience = true, widthPatience
}

// shrink takes note that a batch of so many hits was too large.
func (p *pace) shrink(hits int) {
	p.careful = true
	p.restart()
	if hits < 2 {
		return
	}
	p.attempts = 0
	p.ceiling = max(1, min(p.ceiling, hits/2))
	p.limit = min(p.limit, p.ceiling)
}

// contend takes note that batches stood in each other's way.
func (p *pace) contend(hits int) {
	if p.width == 1 {
		p.shrink(hits)
		return
	}
	p.restart()
	p.careful, p.patience = true, widthPatience
	p.width = max(1, p.width/2)
}

// allowed gives the size of the next batch. Only a superuser's token is told which
// hits are invalid.
func (p *pace) allowed(kind tokenKind) size {
	if kind != tokenSuper {
		return size{hits: 1, bytes: p.cfg.BatchBytes}
	}
	return size{hits: p.limit, bytes: p.cfg.BatchBytes}
}

// lanes gives how many requests may be in flight.
func (p *pace) lanes() int {
	if p.ramping {
		return 1
	}
	return p.width
}

// figures are what the dispatcher shows of itself.
type figures struct {
	inFlight, lanes, batch       int
	uncertain, leased, heldLanes int
	parked                       int
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
