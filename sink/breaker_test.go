package sink

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func testBreaker() *breaker { return newBreaker(slog.New(slog.DiscardHandler)) }

// TestBreakerLife follows a breaker through a fall: it opens at the first failure,
// waits longer after each failed round, closes after two good rounds, and begins
// with the shortest wait again once a hit was delivered.
func TestBreakerLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		is := func(state State, reason Reason) {
			t.Helper()
			if st := b.standing(); st.state != state || st.reason != reason || b.sending() != (state == StateSending) {
				t.Fatalf("state %s %q, sending %v; want %s %q", st.state, st.reason, b.sending(), state, reason)
			}
		}
		is(StateHolding, ReasonStarting)
		if wait, probing := b.untilProbe(); wait != 0 || !probing {
			t.Fatalf("wait %v, probing %v; want a round at once", wait, probing)
		}
		b.probed(round{ok: true})
		is(StateSending, ReasonNone)

		wait := func(least, most time.Duration) {
			t.Helper()
			got, probing := b.untilProbe()
			if !probing || got < least*3/4 || got > most*5/4 {
				t.Fatalf("next round in %v, want %v to %v within a quarter", got, least, most)
			}
			time.Sleep(got)
		}
		b.open(ReasonOverload, "busy", 0)
		is(StateHolding, ReasonOverload)
		b.open(ReasonAuth, "another flight's failure", 0)
		is(StateHolding, ReasonOverload)
		for d := time.Second; d < 64*time.Second; d *= 2 {
			wait(min(d, maxBackoff), min(d, maxBackoff))
			b.probed(round{reason: ReasonDown, detail: "no"})
			is(StateHolding, ReasonDown)
		}
		wait(maxBackoff, maxBackoff)
		b.probed(round{ok: true})
		is(StateTrying, ReasonDown)
		wait(closeGap*4/3, closeGap*4/5)
		b.probed(round{reason: ReasonDown})
		is(StateHolding, ReasonDown)
		wait(maxBackoff, maxBackoff)
		b.probed(round{ok: true})
		time.Sleep(closeGap)
		b.probed(round{ok: true})
		is(StateSending, ReasonNone)
		if st := b.standing(); st.held.Reason != ReasonDown || st.held.Duration < 60 {
			t.Errorf("last hold %+v, want down for minutes", st.held)
		}
		// No hit has gone through, so the next fall waits long at once.
		b.open(ReasonDown, "", 0)
		wait(maxBackoff, maxBackoff)
		b.probed(round{ok: true})
		time.Sleep(closeGap)
		b.probed(round{ok: true})
		b.delivered()
		b.open(ReasonDown, "", 0)
		wait(minBackoff, minBackoff)
	})
}

func TestBreakerHonoursWhatTheServerAsksFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		b.probed(round{ok: true})
		b.open(ReasonOverload, "", 5*time.Minute)
		if wait, _ := b.untilProbe(); wait != 5*time.Minute {
			t.Errorf("next round in %v, want 5m", wait)
		}
		time.Sleep(5 * time.Minute)
		b.probed(round{reason: ReasonOverload, wait: 3 * time.Minute})
		if wait, _ := b.untilProbe(); wait != 3*time.Minute {
			t.Errorf("next round in %v, want 3m", wait)
		}
	})
}

// TestBreakerTellsOfChanges: whoever waits for a change learns of it.
func TestBreakerTellsOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		for _, change := range []func(){
			func() { b.probed(round{ok: true}) },
			func() { b.open(ReasonDown, "", 0) },
			func() { b.setPause(&Pause{Until: time.Now().Add(time.Hour)}) },
			func() { b.setPause(nil) },
			func() { time.Sleep(2 * time.Second); b.probed(round{ok: true}) },
			func() { time.Sleep(2 * time.Second); b.probed(round{ok: true}) },
		} {
			changed := b.changes()
			change()
			select {
			case <-changed:
			default:
				t.Errorf("a change is not told; state %s", b.standing().state)
			}
		}
		if !b.sending() {
			t.Errorf("state %s at the end, want sending", b.standing().state)
		}
	})
}

// TestARoundThatFailsAtOnceIsNotRepeatedAtOnce: an open breaker is no busy loop.
func TestARoundThatFailsAtOnceIsNotRepeatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		b.probed(round{reason: ReasonDown})
		for range 20 {
			b.probed(round{reason: ReasonDown}) // too early: the breaker is still open
			if wait, _ := b.untilProbe(); wait < minBackoff/2 {
				t.Fatalf("next round in %v", wait)
			}
		}
	})
}
