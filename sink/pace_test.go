package sink

import (
	"testing"
	"time"
)

// A fakeTime is a Matomo as a pace sees it: what a batch of so many hits takes when
// so many fly at a time.
type fakeTime func(hits, width int) time.Duration

// A paceDriver lets full batches through a pace, as many at a time as it allows.
type paceDriver struct {
	*pace
	now time.Time
}

func newPaceDriver() *paceDriver {
	cfg := &Config{}
	cfg.setDefaults()
	p := newPace(cfg)
	return &paceDriver{pace: &p, now: time.Unix(1000, 0)}
}

// drive delivers a number of hits and says how long that took.
func (d *paceDriver) drive(took fakeTime, total int) time.Duration {
	began := d.now
	for sent := 0; sent < total; {
		hits, width := d.allowed(tokenSuper).hits, d.lanes()
		each := took(hits, width)
		for range width { // they land one after the other
			d.now = d.now.Add(each / time.Duration(width))
			d.good(hits, true, each, d.now)
			sent += hits
		}
	}
	return d.now.Sub(began)
}

// perHit is a Matomo that takes so long for a request and for a hit, and works on so
// many requests at a time.
func perHit(request, hit time.Duration, parallel int) fakeTime {
	return func(hits, width int) time.Duration {
		d := request + time.Duration(hits)*hit
		return d * time.Duration(max(width, parallel)) / time.Duration(parallel)
	}
}

func TestPaceFindsWhatMatomoBears(t *testing.T) {
	tests := []struct {
		name         string
		took         fakeTime
		limit, width int
	}{
		{"a Matomo with processes to spare", perHit(40*time.Millisecond, time.Millisecond, 8), 400, 4},
		{"two processes", perHit(40*time.Millisecond, time.Millisecond, 2), 400, 2},
		{"one process", perHit(40*time.Millisecond, time.Millisecond, 1), 400, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPaceDriver()
			if p.allowed(tokenSuper).hits != startHits || p.lanes() != 1 {
				t.Errorf("begins with %d hits and %d at a time, want %d and 1", p.limit, p.lanes(), startHits)
			}
			elapsed := p.drive(tt.took, 20000)
			best := tt.took(tt.limit, tt.width) * 20000 / time.Duration(tt.limit*tt.width)
			if elapsed > best*10/9 {
				t.Errorf("20,000 hits took %v, want at most %v: 0.9 of the best", elapsed, best*10/9)
			}
			p.drive(tt.took, 500_000)
			for p.before > 0 { // a trial is under way
				p.drive(tt.took, 1)
			}
			if p.limit != tt.limit || p.width != tt.width {
				t.Errorf("%d hits, %d at a time, want %d and %d", p.limit, p.width, tt.limit, tt.width)
			}
		})
	}
}

func TestPaceShrinksBatchesThatTakeLong(t *testing.T) {
	p := newPaceDriver()
	p.drive(perHit(0, 70*time.Millisecond, 1), 20000)
	if p.limit > 142 || p.limit < 71 {
		t.Errorf("%d hits in a batch, want about 110 where 143 take longer than the bound of 10 s", p.limit)
	}
}

func TestPaceAnswersTrouble(t *testing.T) {
	tests := []struct {
		name    string
		trouble func(*pace)
		hits    int
		lanes   int
	}{
		{"a batch that is too large", func(p *pace) { p.shrink(400) }, 200, 4},
		{"a single hit that is too large", func(p *pace) { p.shrink(1) }, 400, 4},
		{"batches in each other's way", func(p *pace) { p.contend(400) }, 400, 2},
		{"a hold", func(p *pace) { p.fallBack(false) }, 1, 1},
		{"a lone batch in its own way", func(p *pace) { p.width = 1; p.contend(400) }, 200, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPaceDriver()
			p.limit, p.width = 400, 4
			tt.trouble(p.pace)
			if got := p.allowed(tokenSuper).hits; got != tt.hits || p.lanes() != tt.lanes {
				t.Errorf("%d hits, %d at a time, want %d and %d", got, p.lanes(), tt.hits, tt.lanes)
			}
		})
	}
	p := newPaceDriver()
	p.limit, p.width = 400, 4
	p.fallBack(true)
	p.fallBack(true) // the same overload
	p.drive(perHit(0, time.Millisecond, 8), 64)
	if p.ceiling != 200 || p.lanes() != 2 {
		t.Errorf("after an overload up to %d hits, %d at a time, want 200 and 2", p.ceiling, p.lanes())
	}
	if got := p.allowed(tokenUnknown).hits; got != 1 {
		t.Errorf("%d hits in a batch for a token that is no superuser's, want 1", got)
	}
}
