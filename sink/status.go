package sink

import (
	"fmt"
	"time"
)

// A Status is what the drain does now, for people and scripts. Times are UTC;
// durations are seconds; what is not known is nil.
type Status struct {
	Version   int        `json:"v"`
	State     State      `json:"state"`
	Reason    Reason     `json:"reason"`
	Detail    string     `json:"detail"`
	Ends      string     `json:"ends"` // what ends the state, "" while sending
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
	Doubt     string     `json:"doubt"`      // why hits in doubt stay so, or ""
	HeldLanes int        `json:"held_lanes"` // lanes that wait for a time
	Suspects  int        `json:"suspects"`   // hits that have failed alone
	Clock     *float64   `json:"clock_offset_seconds"`
	MySQL     []Probe    `json:"mysql"` // nil without an account
	ReaderLag *float64   `json:"reader_lag_seconds"`
}

func (s *Sink) standing() standing { return s.brk.standing() }

// Status gives the present state.
func (s *Sink) Status() Status {
	st, fig := s.standing(), s.shown.read()
	p50, p95, failures := s.load.show()
	probes, lag := s.watched.get()
	out := Status{
		Version: 1, State: st.state, Reason: st.reason, Detail: st.detail, Ends: s.ends(st), Since: st.since.UTC(), Pause: st.pause,
		Token: string(s.probe.token()),
		Lanes: fig.inFlight, MaxLanes: s.cfg.Lanes, Batch: fig.batch, MaxBatch: s.cfg.BatchHits,
		P50: p50.Seconds(), P95: p95.Seconds(), Errors: failures, Rate: s.rate.perSecond(time.Now()),
		Leased: fig.leased, Uncertain: fig.uncertain, Undecided: fig.undecided, HeldLanes: fig.heldLanes, Suspects: fig.suspects,
		MySQL: probes,
	}
	if lag != nil {
		out.ReaderLag = new(lag.Seconds())
	}
	if s.recon != nil && fig.uncertain > 0 {
		out.Doubt = s.recon.detail()
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

// ends says in a clause what ends the state; "" while hits flow. When the next try
// is stands beside it, in Status.NextTry.
func (s *Sink) ends(st standing) string {
	switch st.state {
	case StateSending:
		return ""
	case StatePaused:
		return "at its time, or: sluice drain resume"
	case StateTrying:
		return fmt.Sprintf("when %d more rounds of probes have passed", st.rounds)
	}
	switch st.reason {
	case ReasonReadOnly:
		return "when MySQL takes writes and Matomo answers the canary"
	case ReasonUpgrade:
		return "when Matomo's versions agree and have not changed for a minute, its tables answer, and nothing changes or locks them; or: sluice drain resume"
	case ReasonMaintenance:
		return "when Matomo records again (record_statistics = 1)"
	case ReasonAuth:
		if s.cfg.Token == "" {
			return "with a token in matomo.token-file, and a restart"
		}
		return "when Matomo accepts the token; another one in matomo.token-file needs a restart"
	case ReasonOverload:
		return "when the pause that was asked for is over, MySQL has room and Matomo answers the canary"
	case ReasonConfig:
		return "when a Matomo that is set up answers the canary at matomo.url"
	}
	return "when Matomo answers the canary"
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
