package sink

import (
	"time"
)

// A Status is what the drain does now, for people and scripts. Times are UTC;
// durations are seconds; what is not known is nil.
type Status struct {
	Version   int        `json:"v"`
	State     State      `json:"state"`
	Reason    Reason     `json:"reason"`
	Detail    string     `json:"detail"`
	Since     time.Time  `json:"since"`
	NextTry   *time.Time `json:"next_try"`
	Pause     *Pause     `json:"pause"`
	LastHold  *LastHold  `json:"last_hold"`
	Token     string     `json:"token"` // what kind of token ours is
	Lanes     int        `json:"lanes"` // requests in flight now
	MaxLanes  int        `json:"max_lanes"`
	Batch     int        `json:"batch"` // hits that the next request may have
	MaxBatch  int        `json:"max_batch"`
	P50       float64    `json:"p50_seconds"`
	P95       float64    `json:"p95_seconds"`
	Errors    int        `json:"errors"` // requests in the last five minutes that did not deliver
	Rate      float64    `json:"hits_per_second"`
	ETA       *float64   `json:"eta_seconds"`
	Leased    int        `json:"leased"`     // hits in hand
	Uncertain int        `json:"uncertain"`  // hits that Matomo may or may not have
	Undecided int        `json:"undecided"`  // batches that stay in doubt, since on-unknown is hold
	HeldLanes int        `json:"held_lanes"` // sites that wait for a time
	Suspects  int        `json:"suspects"`   // hits that have failed alone
	Clock     *float64   `json:"clock_offset_seconds"`
	MySQL     []Probe    `json:"mysql"` // nil without an account
}

func (s *Sink) standing() standing { return s.brk.standing() }

// Status gives the present state.
func (s *Sink) Status() Status {
	st, fig := s.standing(), s.shown.read()
	p50, p95, failures := s.load.show()
	out := Status{
		Version: 1, State: st.state, Reason: st.reason, Detail: st.detail, Since: st.since.UTC(), Pause: st.pause,
		Token: string(s.probe.token()),
		Lanes: fig.inFlight, MaxLanes: s.cfg.Lanes, Batch: fig.batch, MaxBatch: s.cfg.BatchHits,
		P50: p50.Seconds(), P95: p95.Seconds(), Errors: failures, Rate: s.rate.perSecond(time.Now()),
		Leased: fig.leased, Uncertain: fig.uncertain, Undecided: fig.undecided, HeldLanes: fig.heldLanes, Suspects: fig.suspects,
		MySQL: s.watched.get(),
	}
	if !st.next.IsZero() {
		out.NextTry = new(st.next.UTC())
	}
	if !st.held.Since.IsZero() {
		held := st.held
		held.Since = held.Since.UTC()
		out.LastHold = &held
	}
	if eta, ok := s.eta(); ok {
		out.ETA = new(eta.Seconds())
	}
	if _, about, known := s.clock.offset(); known {
		out.Clock = new(about.Seconds())
	}
	return out
}

// eta estimates when the queue is empty, from the pace of the last minute.
func (s *Sink) eta() (time.Duration, bool) {
	if s.cfg.Pending == nil {
		return 0, false
	}
	pending := s.cfg.Pending()
	if pending == 0 {
		return 0, true
	}
	perSecond := s.rate.perSecond(time.Now())
	if perSecond <= 0 {
		return 0, false
	}
	return time.Duration(float64(pending) / perSecond * float64(time.Second)), true
}
