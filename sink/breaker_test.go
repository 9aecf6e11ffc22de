package sink

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func testBreaker() *breaker { return newBreaker(slog.New(slog.DiscardHandler), realWaits()) }

// TestBreakerLife follows a breaker through a fall: it opens at the first failure,
// waits longer after each failed round, closes after three good rounds, and begins
// with the shortest wait again once a hit was delivered.
func TestBreakerLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, w := testBreaker(), realWaits()
		falls := map[Reason]int{}
		b.opened = func(r Reason) { falls[r]++ }
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
			wait(min(d, w.maxBackoff), min(d, w.maxBackoff))
			b.probed(round{reason: ReasonDown, detail: "no"})
			is(StateHolding, ReasonDown)
		}
		wait(w.maxBackoff, w.maxBackoff)
		good := func(gap time.Duration) {
			t.Helper()
			for range closeRounds - 1 {
				b.probed(round{ok: true})
				is(StateTrying, ReasonDown)
				wait(gap*4/3, gap*4/5)
			}
			b.probed(round{ok: true})
			is(StateSending, ReasonNone)
		}
		b.probed(round{ok: true})
		is(StateTrying, ReasonDown)
		wait(w.closeGap*4/3, w.closeGap*4/5)
		b.probed(round{reason: ReasonDown})
		is(StateHolding, ReasonDown)
		wait(w.maxBackoff, w.maxBackoff)
		good(w.closeGap)
		if st := b.standing(); st.held.Reason != ReasonDown || st.held.Duration < 60 {
			t.Errorf("last hold %+v, want down for minutes", st.held)
		}
		// No hit has gone through, so the next fall waits long at once.
		b.open(ReasonDown, "", 0)
		wait(w.maxBackoff, w.maxBackoff)
		good(w.shortGap) // no probe has seen anything
		b.delivered()
		b.open(ReasonDown, "", 0)
		wait(w.minBackoff, w.minBackoff)
		good(w.shortGap)
		b.found(ReasonDown, "a probe's finding", 0)
		wait(2*w.minBackoff, 2*w.minBackoff)
		good(w.closeGap)
		if falls[ReasonOverload] != 1 || falls[ReasonDown] != 3 || len(falls) != 2 {
			t.Errorf("falls are counted as %v, want overload once and down three times", falls)
		}
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
			func() { b.hurry() },
			func() { time.Sleep(2 * time.Second); b.probed(round{ok: true}) },
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
			if wait, _ := b.untilProbe(); wait < realWaits().minBackoff/2 {
				t.Fatalf("next round in %v", wait)
			}
		}
	})
}

// TestStickyReasons: what a try meets meanwhile is shown beside a sticky reason and
// does not take its place; another sticky reason does, and only good rounds end it.
func TestStickyReasons(t *testing.T) {
	for _, reason := range []Reason{ReasonUpgrade, ReasonMaintenance, ReasonAuth, ReasonConfig} {
		t.Run(string(reason), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := testBreaker()
				b.probed(round{ok: true})
				b.open(reason, "first", 0)
				fail := func(other Reason, detail string) standing {
					wait, _ := b.untilProbe()
					time.Sleep(wait)
					b.probed(round{reason: other, detail: detail})
					return b.standing()
				}
				for _, passing := range []Reason{ReasonDown, ReasonReadOnly, ReasonOverload} {
					if st := fail(passing, "nobody there"); st.reason != reason || st.detail != "first; at the last try: nobody there" {
						t.Errorf("after %s: %s (%s), want %s to stay", passing, st.reason, st.detail, reason)
					}
				}
				if st := fail(reason, "second"); st.reason != reason || st.detail != "second" {
					t.Errorf("%s (%s), want the same reason renewed", st.reason, st.detail)
				}
				another := ReasonMaintenance
				if reason == another {
					another = ReasonAuth
				}
				if st := fail(another, "third"); st.reason != another || st.detail != "third" {
					t.Errorf("%s (%s), want %s", st.reason, st.detail, another)
				}
				for range closeRounds {
					wait, _ := b.untilProbe()
					time.Sleep(wait)
					if b.sending() {
						t.Error("hits flow too early")
					}
					b.probed(round{ok: true})
				}
				if st := b.standing(); st.state != StateSending || st.held.Reason != another {
					t.Errorf("%s, last hold %s; want sending after %s", st.state, st.held.Reason, another)
				}
				// It leaves nothing behind.
				b.open(ReasonDown, "fourth", 0)
				if st := b.standing(); st.reason != ReasonDown || st.detail != "fourth" {
					t.Errorf("%s (%s), want down", st.reason, st.detail)
				}
			})
		})
	}
}
