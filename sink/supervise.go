package sink

import (
	"context"
	"slices"
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
	lag    *time.Duration // of the replica
	lagAt  time.Time      // before it was asked
	alive  time.Time      // when Matomo last answered as it should
}

func (w *watched) set(probes []Probe, lag *time.Duration, lagAt time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probes, w.lag, w.lagAt = probes, lag, lagAt
}

func (w *watched) get() ([]Probe, *time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.probes, w.lag
}

// ReaderLag says how far the server that Matomo's archiving reads from was behind, and
// before when that was asked. configured is false when none is named.
func (s *Sink) ReaderLag() (lag *time.Duration, at time.Time, configured bool) {
	s.watched.mu.Lock()
	defer s.watched.mu.Unlock()
	return s.watched.lag, s.watched.lagAt, s.reader != nil
}

// troubled reports whether MySQL's probes found a reason to hold, or nobody answered
// them. An account that is refused says nothing of Matomo's.
func (w *watched) troubled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.probes, func(p Probe) bool {
		return p.State == ProbeBad || p.err != nil && classify(p.err) == faultUnreachable
	})
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
// database takes no writes, then the canary, then the versions. Each sticky reason
// ends here and nowhere else: maintenance, auth and config by a canary that passes,
// since it fails as long as any of them lasts, and an upgrade by all of it.
func (s *Sink) round(ctx context.Context) round {
	bad, reachable := s.mysqlFinding(ctx)
	if bad != nil {
		return round{reason: bad.reason, detail: bad.Detail}
	}
	if why, held := s.upgrade.holding(); held && !reachable {
		return round{reason: ReasonUpgrade, detail: why + "; MySQL cannot be asked whether that is over"}
	}
	r := s.canary(ctx)
	if !r.ok {
		return r
	}
	s.watched.answered()
	if why := s.versions(ctx, false); why != "" {
		s.upgrade.saw(why)
		return round{reason: ReasonUpgrade, detail: why}
	}
	s.upgrade.over()
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
		s.brk.found(bad.reason, bad.Detail, 0)
		return now
	}
	if now != reachable && !now {
		s.log.Warn("MySQL does not answer the probes; deliveries and the canary decide")
	}
	if now != reachable && now {
		s.log.Info("MySQL answers the probes again")
	}
	if reachable && !now || s.watched.silence() > idleCanary {
		if !s.canaryPasses(ctx) {
			return now
		}
		s.watched.answered()
	}
	if why := s.versions(ctx, false); why != "" {
		s.upgrade.saw(why)
		s.brk.found(ReasonUpgrade, why, 0)
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
	if ctx.Err() != nil {
		return nil, false
	}
	lag, at := s.prober.behind()
	s.watched.set(probes, lag, at)
	for i := range probes {
		p := &probes[i]
		if p.State != ProbeBad {
			continue
		}
		if p.reason == ReasonUpgrade {
			s.upgrade.saw(p.Detail)
		}
		if bad == nil {
			bad = p
		}
	}
	return bad, bad != nil || probes[0].State == ProbeOK
}
