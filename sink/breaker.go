package sink

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// closeRounds is how many rounds of probes must pass, one after the other, before hits
// flow again.
const closeRounds = 3

// errTripped is what the circuit breaker is told of a failure.
var errTripped = errors.New("tripped")

// A breaker decides whether hits may be sent. It is closed (sending), open
// (holding, until the next round of probes), or half-open (trying: rounds of
// probes pass, hits do not flow yet); a pause by an operator lies over all three.
//
// Only failures that must stop the drain are reported to it, so it opens at the
// first. Hits do not flow while it is half-open: its few slots are for probes.
//
// All methods may be called from any goroutine.
type breaker struct {
	log    *slog.Logger
	waits  waits
	opened func(Reason) // counts falls and pauses; set before use

	mu sync.Mutex
	// cb is called with mu held, so its callbacks may change what mu guards, and
	// must not call it.
	cb      *gobreaker.TwoStepCircuitBreaker[struct{}]
	gate    gobreaker.State
	started bool // the first round of probes has passed
	reason  Reason
	detail  string
	lately  string    // what the last try met, when reason is a sticky one that it does not end
	since   time.Time // of the present state
	next    time.Time // of the next round of probes, when not closed
	// confirmed: a probe found this fall, or failed in it.
	confirmed bool
	good      int       // rounds that have passed, of closeRounds
	trouble   time.Time // when something but hits alone last showed an outage
	// openings counts how often the breaker opened since a hit was delivered.
	openings int
	pause    *Pause
	held     LastHold
	heldFrom time.Time
	changed  chan struct{} // closed and replaced at every change
}

// A Pause is an operator's order to send nothing for a time.
type Pause struct {
	Who   string    `json:"who"`
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// A LastHold is a time in which nothing was sent.
type LastHold struct {
	Reason   Reason    `json:"reason"`
	Detail   string    `json:"detail"`
	Since    time.Time `json:"since"`
	Duration float64   `json:"seconds"`
}

func newBreaker(log *slog.Logger, w waits) *breaker {
	b := &breaker{log: log, waits: w, opened: func(Reason) {}, changed: make(chan struct{}), reason: ReasonStarting, detail: "Matomo has not been asked yet"}
	b.since = time.Now()
	b.heldFrom = b.since
	b.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        "matomo",
		MaxRequests: closeRounds,
		Timeout:     w.minBackoff / 2, // shorter than any wait before a round of probes
		ReadyToTrip: func(gobreaker.Counts) bool { return true },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			b.gate = to
			b.since = time.Now()
		},
	})
	return b
}

// sending reports whether hits may be sent now.
func (b *breaker) sending() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sendingLocked()
}

func (b *breaker) sendingLocked() bool {
	return b.started && b.pausedLocked() == nil && b.gate == gobreaker.StateClosed
}

// starting reports whether Matomo has not been asked yet.
func (b *breaker) starting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.started
}

// changes gives a channel that is closed at the next change.
func (b *breaker) changes() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *breaker) notifyLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// open stops the drain. wait is what the server asked for; the breaker waits at
// least as long as its backoff says. When it is open already only the reason is
// renewed.
func (b *breaker) open(reason Reason, detail string, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trouble = time.Now()
	b.openLocked(reason, detail, wait)
}

// found is open for what a probe has found.
func (b *breaker) found(reason Reason, detail string, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trouble = time.Now()
	b.openLocked(reason, detail, wait)
	b.confirmed = true
}

// rest is open for hits that fail one by one while the canary passes. That may be an
// outage, and may be the hits' own fault, so it does not speak for them.
func (b *breaker) rest(detail string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.openLocked(ReasonDown, detail, 0)
}

// troubledSince reports whether an outage was seen at or after a time, or is there.
func (b *breaker) troubledSince(t time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.trouble.Before(t)
}

func (b *breaker) openLocked(reason Reason, detail string, wait time.Duration) {
	if reason == ReasonNone {
		reason = ReasonDown
	}
	now := time.Now()
	if b.gate == gobreaker.StateOpen {
		return // the failure belongs to the same fall
	}
	if done, err := b.cb.Allow(); err == nil {
		done(errTripped)
	}
	if b.heldFrom.IsZero() || !b.started {
		b.opened(reason)
		b.confirmed = false
	}
	if b.heldFrom.IsZero() {
		b.heldFrom = now
	}
	b.started, b.good = true, 0
	delay := max(backoff(b.waits.minBackoff, b.waits.maxBackoff, b.openings), wait)
	b.openings++
	b.next = now.Add(delay)
	b.notifyLocked()
	if b.reason.sticky() && !reason.sticky() {
		if detail != b.lately {
			b.log.Info("the next try met something else; the reason stays", "reason", b.reason, "met", reason, "why", detail)
		}
		b.lately = detail
		return
	}
	b.lately = ""
	if reason != b.reason || detail != b.detail {
		b.log.Warn("nothing is sent; hits are kept", "reason", reason, "why", detail, "next_try_in", delay)
	}
	b.reason, b.detail = reason, detail
}

// A round is the finding of one round of probes.
type round struct {
	ok     bool
	reason Reason
	detail string
	wait   time.Duration
}

// probed takes the finding of a round of probes.
func (b *breaker) probed(r round) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !r.ok {
		b.trouble, b.confirmed = time.Now(), true
		// When the backoff has passed the state is half-open, and the failure ends it.
		if b.cb.State() == gobreaker.StateOpen {
			b.next = time.Now().Add(max(backoff(b.waits.minBackoff, b.waits.maxBackoff, b.openings), r.wait))
			return
		}
		b.openLocked(r.reason, r.detail, r.wait)
		b.confirmed = true
		return
	}
	if !b.started {
		// The first round is enough at the start: nothing has failed yet.
		b.started = true
		b.closedLocked()
		return
	}
	if b.gate == gobreaker.StateClosed {
		return
	}
	gap := b.waits.closeGap
	if !b.confirmed {
		gap = b.waits.shortGap
	} else {
		b.trouble = time.Now() // what a probe has seen may still be there
	}
	b.next = time.Now().Add(gap)
	done, err := b.cb.Allow()
	if err != nil {
		b.notifyLocked()
		return
	}
	done(nil)
	b.good++
	if b.gate == gobreaker.StateClosed {
		b.closedLocked()
		return
	}
	b.notifyLocked()
}

func (b *breaker) closedLocked() {
	now := time.Now()
	b.held = LastHold{Reason: b.reason, Detail: b.detail, Since: b.heldFrom, Duration: now.Sub(b.heldFrom).Seconds()}
	b.log.Info("hits are sent", "reason_of_last_hold", b.reason, "held", now.Sub(b.heldFrom).Round(time.Millisecond))
	b.reason, b.detail, b.lately, b.heldFrom, b.since = ReasonNone, "", "", time.Time{}, now
	b.notifyLocked()
}

// delivered notes that Matomo took a hit, so that the next fall begins with the
// shortest wait again.
func (b *breaker) delivered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.openings = 0
}

// untilProbe gives how long to wait before the next round of probes; false when
// the breaker is closed.
func (b *breaker) untilProbe() (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.started {
		return 0, true
	}
	if b.gate == gobreaker.StateClosed {
		return 0, false
	}
	return max(0, time.Until(b.next)), true
}

// setPause pauses the drain, and ends the pause when p is nil.
func (b *breaker) setPause(p *Pause) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pause = p
	if p != nil {
		b.opened(ReasonManual)
	}
	b.notifyLocked()
}

// hurry makes the next round of probes due now.
func (b *breaker) hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = time.Now()
	b.notifyLocked()
}

// endPause ends a pause whose time has come.
func (b *breaker) endPause() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pausedLocked() == nil {
		b.notifyLocked()
	}
}

// pausedLocked gives the pause that holds now, or nil.
func (b *breaker) pausedLocked() *Pause {
	if b.pause != nil && !time.Now().Before(b.pause.Until) {
		b.pause = nil
	}
	return b.pause
}

// untilPauseEnds gives how long the pause still lasts; false when there is none.
func (b *breaker) untilPauseEnds() (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.pausedLocked(); p != nil {
		return time.Until(p.Until), true
	}
	return 0, false
}

// A State is what the drain does, in one word.
type State string

// The states.
const (
	StateSending State = "sending" // hits flow
	StateHolding State = "holding" // nothing is sent, Reason says why
	StateTrying  State = "trying"  // probes pass; hits flow soon
	StatePaused  State = "paused"  // an operator said so
)

// States lists all states.
func States() []State { return []State{StateSending, StateHolding, StateTrying, StatePaused} }

// standing is the breaker's part of a Status.
type standing struct {
	state  State
	reason Reason
	detail string
	since  time.Time
	next   time.Time
	rounds int // that must still pass, when the state is trying
	pause  *Pause
	held   LastHold
}

func (b *breaker) standing() standing {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := standing{state: StateSending, reason: b.reason, detail: b.detail, since: b.since, next: b.next, held: b.held, rounds: closeRounds - b.good}
	if b.lately != "" {
		st.detail += "; at the last try: " + b.lately
	}
	switch {
	case !b.started || b.gate == gobreaker.StateOpen:
		st.state = StateHolding
	case b.gate == gobreaker.StateHalfOpen:
		st.state = StateTrying
	default:
		st.next = time.Time{}
	}
	if p := b.pausedLocked(); p != nil {
		copied := *p
		st.state, st.reason, st.detail, st.since, st.next, st.pause = StatePaused, ReasonManual, p.Why, p.Since, p.Until, &copied
	}
	return st
}
