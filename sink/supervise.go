package sink

import (
	"context"
	"sync"
	"time"
)

// idleCanary is how long nothing may be delivered before a canary asks whether
// Matomo is still there.
const idleCanary = time.Minute

// watched keeps what the probes found last. Methods may be called from any
// goroutine.
type watched struct {
	mu     sync.Mutex
	probes []Probe
	alive  time.Time // when Matomo last answered as it should
}

func (w *watched) set(probes []Probe) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probes = probes
}

func (w *watched) get() []Probe {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.probes
}

func (w *watched) answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alive = time.Now()
}

func (w *watched) silence() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.alive)
}

// supervise runs the probes until ctx is done: rounds that may close the breaker
// while it is not closed, and a look from time to time while it is.
func (s *Sink) supervise(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	reachable := true // MySQL, as it was last
	for {
		changed := s.brk.changes()
		wait, probing := s.brk.untilProbe()
		if !probing {
			wait = s.cfg.ProbeInterval
		}
		pause, paused := s.brk.untilPauseEnds()
		if paused {
			wait = pause
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-changed:
			continue
		case <-timer.C:
		}
		switch {
		case paused:
			s.brk.endPause()
		case probing:
			if r := s.round(ctx); ctx.Err() == nil {
				s.brk.probed(r)
			}
		default:
			reachable = s.look(ctx, reachable)
		}
	}
}

// round runs all probes: MySQL's first, since a canary cannot see that the
// database takes no writes, then the canary.
func (s *Sink) round(ctx context.Context) round {
	if bad, _ := s.mysqlFinding(ctx); bad != nil {
		return round{reason: bad.reason, detail: bad.Detail}
	}
	r := s.canary(ctx)
	if r.ok {
		s.watched.answered()
	}
	return r
}

// look checks on MySQL while hits flow, and on Matomo when none did for a while
// or MySQL has just become unreachable. That alone does not stop the drain: it may
// be out of our reach and in Matomo's. It reports whether MySQL is reachable.
func (s *Sink) look(ctx context.Context, reachable bool) bool {
	bad, now := s.mysqlFinding(ctx)
	if ctx.Err() != nil {
		return reachable
	}
	if bad != nil {
		s.brk.open(bad.reason, bad.Detail, 0)
		return now
	}
	if now != reachable && !now {
		s.log.Warn("MySQL does not answer the probes; deliveries and the canary decide")
	}
	if now != reachable && now {
		s.log.Info("MySQL answers the probes again")
	}
	if reachable && !now || s.watched.silence() > idleCanary {
		if s.canaryPasses(ctx) {
			s.watched.answered()
		}
	}
	return now
}

// mysqlFinding runs the MySQL probes. It gives the first that holds the drain, and
// whether MySQL could be reached.
func (s *Sink) mysqlFinding(ctx context.Context) (bad *Probe, reachable bool) {
	if s.prober == nil {
		return nil, true
	}
	probes := s.prober.probe(ctx)
	s.watched.set(probes)
	for i := range probes {
		if probes[i].State == ProbeBad {
			return &probes[i], true
		}
	}
	return nil, probes[0].State == ProbeOK
}
