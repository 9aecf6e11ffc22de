package admin

import (
	"sync"
	"time"
)

// The pace is measured over five minutes, one sample each five seconds.
const (
	paceInterval = 5 * time.Second
	paceSamples  = 61
)

// A pace keeps the counters of the last minutes. It is safe for concurrent use.
type pace struct {
	mu      sync.Mutex
	samples [paceSamples]paceSample // a ring, guarded by mu
	next    int                     // where the next sample goes
	count   int
}

type paceSample struct {
	at                time.Time
	accepted, settled int64
}

func (p *pace) sample(at time.Time, st Stats) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.samples[p.next] = paceSample{at, st.Accepted, st.Delivered + st.Invalid + st.Dead}
	p.next = (p.next + 1) % paceSamples
	p.count = min(p.count+1, paceSamples)
}

// rates gives hits a second in and out, up to now; ok is false while there is not
// a second to measure over.
func (p *pace) rates(now time.Time, st Stats) (in, out float64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == 0 {
		return 0, 0, false
	}
	oldest := p.samples[(p.next-p.count+paceSamples)%paceSamples]
	seconds := now.Sub(oldest.at).Seconds()
	if seconds < 1 {
		return 0, 0, false
	}
	in = float64(st.Accepted-oldest.accepted) / seconds
	out = float64(st.Delivered+st.Invalid+st.Dead-oldest.settled) / seconds
	return max(in, 0), max(out, 0), true
}
