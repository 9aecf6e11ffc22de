package sink

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// TestUnknownOutcome has every answer after which nobody knows: the batch stays in
// the journal, nothing of its sites is sent until the request can no longer be
// running, and then the policy decides.
func TestUnknownOutcome(t *testing.T) {
	answers := []struct {
		name      string
		answer    testkit.Answer
		committed bool
		waits     bool // the old request may still be running
	}{
		{"reset before the commit", testkit.Reset(testkit.RolledBack), false, true},
		{"reset after the commit", testkit.Reset(testkit.Committed), true, true},
		{"hangs and rolls back", testkit.Hang(testkit.RolledBack), false, true},
		{"hangs after the commit", testkit.Hang(testkit.Committed), true, true},
		{"error text", testkit.ErrorText(testkit.RolledBack), false, false},
		{"error text after the commit", testkit.ErrorText(testkit.Committed), true, false},
		{"500 after the commit", testkit.Error500Committed(), true, false},
		{"204", testkit.NoContent(testkit.RolledBack), false, false},
		{"image", testkit.QueuedGIF(testkit.Committed), true, false},
		{"502", testkit.Status(502, 0, testkit.RolledBack), false, false},
		{"504 after the commit", testkit.Status(504, 0, testkit.Committed), true, true},
		{"hits skipped in silence", testkit.Skip(1), true, false},
	}
	for _, tt := range answers {
		for _, policy := range []string{Resend, Hold} {
			t.Run(tt.name+", "+policy, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := testkit.NewMatomo(testkit.MatomoConfig{})
					defer m.Close()
					src := newSource(t)
					cfg := bubbleConfig()
					cfg.OnUnknown = policy
					b := startBubble(t, m, cfg, src)
					m.Next(tt.answer)
					doubtful := marks("doubt", 5)
					var together []hit.Pending
					for _, mark := range doubtful {
						together = append(together, hitOf(1, mark))
					}
					src.add(together...)
					synctest.Wait()
					time.Sleep(cfg.RequestTimeout + DefaultRequestTimeout + 10*time.Second)
					src.add(hitOf(1, "behind"), hitOf(2, "elsewhere"))
					time.Sleep(time.Second)
					synctest.Wait()
					held := tt.waits || policy == Hold
					if got := m.Commits("behind") == 0; got != held {
						t.Errorf("a hit behind waits: %v, want %v", got, held)
					}
					if m.Commits("elsewhere") != 1 {
						t.Errorf("a hit of another site waits too")
					}
					if n := src.openJournals(); held != (n == 1) {
						t.Errorf("%d journals open, held %v", n, held)
					}
					if n := b.Status().Uncertain; held && n == 0 || !held && n != 0 {
						t.Errorf("%d hits in doubt, held %v", n, held)
					}
					time.Sleep(time.Hour)
					synctest.Wait()
					if policy == Hold {
						if n := len(src.order); n != 1 {
							t.Errorf("%d hits settled, want the one of another site", n)
						}
						if st := b.Status(); st.Undecided != 1 || st.Uncertain != 5 {
							t.Errorf("%d batches undecided with %d hits, want 1 with 5", st.Undecided, st.Uncertain)
						}
					} else {
						want := 1
						if tt.committed {
							want = 2
						}
						for i, mark := range doubtful {
							n := want
							if tt.answer.Name == testkit.Skip(1).Name && i == 1 {
								n = 1
							}
							if got := m.Commits(mark); got != n {
								t.Errorf("%s is recorded %d times, want %d", mark, got, n)
							}
						}
						if n := b.ins.unknown.Get(); n != 5 {
							t.Errorf("%d hits counted as unknown, want 5", n)
						}
						if n := src.count(hit.Delivered); n != 7 {
							t.Errorf("%d hits delivered, want 7", n)
						}
					}
					b.stop(t)
					synctest.Wait()
				})
			})
		}
	}
}

// TestLateCommit: the client gives up, Matomo commits later all the same, and only
// then the hits behind may go.
func TestLateCommitComesBeforeWhatStandsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		release := make(chan struct{})
		m.Next(testkit.CommitLater(release))
		src.add(hitOf(1, "first"))
		time.Sleep(DefaultRequestTimeout + 20*time.Second)
		src.add(hitOf(1, "second"))
		synctest.Wait()
		close(release)
		synctest.Wait()
		if got := m.Marks(); !slices.Equal(got, []string{"first"}) {
			t.Errorf("recorded %v, want the first alone", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := m.Marks(); !slices.Equal(got, []string{"first", "first", "second"}) {
			t.Errorf("recorded %v, want first, first again by policy, second", got)
		}
		b.stop(t)
		synctest.Wait()
	})
}

func TestHitsThatWereInFlightAtACrash(t *testing.T) {
	for _, policy := range []string{Resend, Hold} {
		t.Run(policy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				src := newSource(t)
				for i := range 3 {
					p := hitOf(1, fmt.Sprintf("uncertain%d", i))
					p.Uncertain = 77
					src.add(p)
				}
				src.add(hitOf(1, "behind"), hitOf(2, "elsewhere"))
				cfg := bubbleConfig()
				cfg.OnUnknown = policy
				b := startBubble(t, m, cfg, src)
				time.Sleep(DefaultRequestTimeout + DefaultServerLimit - time.Second)
				synctest.Wait()
				if got := m.Marks(); !slices.Equal(got, []string{"elsewhere"}) {
					t.Errorf("recorded %v while an old request may be running, want elsewhere", got)
				}
				if n := b.Status().Uncertain; n != 3 {
					t.Errorf("%d uncertain, want 3", n)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				want := []string{"elsewhere", "uncertain0", "uncertain1", "uncertain2", "behind"}
				if policy == Hold {
					want = want[:1]
				}
				if got := m.Marks(); !slices.Equal(got, want) {
					t.Errorf("recorded %v, want %v", got, want)
				}
				b.stop(t)
				synctest.Wait()
			})
		})
	}
}

func TestStopGivesRequestsInFlightTheGracePeriod(t *testing.T) {
	for _, tt := range []struct {
		name    string
		latency time.Duration
		settled int
		waited  time.Duration
	}{
		{"finishes in time", 10 * time.Second, 1, 10 * time.Second},
		{"does not finish", time.Hour, 0, DefaultGrace},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				src := newSource(t)
				b := startBubble(t, m, bubbleConfig(), src)
				time.Sleep(time.Second) // the first canary
				m.SetLatency(tt.latency, 0)
				src.add(hitOf(1, "a"))
				synctest.Wait()
				asked := time.Now()
				b.stop(t)
				if got := time.Since(asked); got != tt.waited {
					t.Errorf("Run ended after %v, want %v", got, tt.waited)
				}
				if len(src.order) != tt.settled || src.openJournals() != 1-tt.settled {
					t.Errorf("%d settled and %d journals open, want %d and %d", len(src.order), src.openJournals(), tt.settled, 1-tt.settled)
				}
				time.Sleep(2 * time.Hour)
				synctest.Wait()
			})
		})
	}
}

func TestRunEndsWhenTheSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		src.fail = errors.New("disk gone")
		b := startBubble(t, m, bubbleConfig(), src)
		src.add(hitOf(1, "a"))
		if err := <-b.done; !errors.Is(err, src.fail) {
			t.Errorf("Run = %v, want %v", err, src.fail)
		}
		if n := len(m.Marks()); n != 0 {
			t.Errorf("%d hits recorded without a journal", n)
		}
		b.cancel()
		synctest.Wait()
	})
}

func TestWithoutATokenNothingIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		src.add(hitOf(1, "a"))
		b := startBubble(t, m, Config{}, src)
		time.Sleep(time.Hour)
		synctest.Wait()
		st := b.Status()
		if st.State != StateHolding || st.Reason != ReasonAuth || st.Detail != "no token" || st.Token != string(tokenNone) {
			t.Errorf("state %s %s %q token %s, want holding auth \"no token\" none", st.State, st.Reason, st.Detail, st.Token)
		}
		if n := b.net.posts.Load(); n != 0 {
			t.Errorf("%d requests were sent", n)
		}
		b.stop(t)
		synctest.Wait()
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		src := newSource(t)
		b := startBubble(t, m, bubbleConfig(), src)
		b.Pause("ann", "upgrade tonight", time.Now().Add(-time.Second)) // ignored
		b.Pause("ann", "upgrade tonight", time.Now().Add(time.Hour))
		src.add(hitOf(1, "a"))
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		st := b.Status()
		if st.State != StatePaused || st.Reason != ReasonManual || st.Pause == nil || st.Pause.Who != "ann" || b.Healthy() {
			t.Errorf("state %s %s pause %+v healthy %v, want paused manual by ann", st.State, st.Reason, st.Pause, b.Healthy())
		}
		leased := func(want int) {
			t.Helper()
			synctest.Wait()
			src.mu.Lock()
			defer src.mu.Unlock()
			if len(src.leased) != want {
				t.Errorf("%d hits are in hand, want %d", len(src.leased), want)
			}
		}
		leased(0) // an import that comes may have older ones
		if n := m.Commits("a"); n != 0 {
			t.Errorf("a hit was sent during the pause")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := m.Commits("a"); n != 1 || !b.Healthy() {
			t.Errorf("recorded %d times after the pause's end, healthy %v", n, b.Healthy())
		}
		b.Pause("ann", "again", time.Now().Add(time.Hour))
		synctest.Wait()
		src.add(hitOf(1, "b"))
		time.Sleep(time.Minute)
		leased(1)
		b.Resume("bob")
		time.Sleep(time.Second)
		synctest.Wait()
		if n := m.Commits("b"); n != 1 {
			t.Errorf("recorded %d times after Resume", n)
		}
		b.stop(t)
		synctest.Wait()
	})
}

// TestHitsWaitForMatomosClock: Matomo replaces a time ahead of its clock, so no
// hit may be sent before.
func TestHitsWaitForMatomosClock(t *testing.T) {
	for _, off := range []time.Duration{0, -90 * time.Second, 90 * time.Second, -1500 * time.Millisecond} {
		t.Run(off.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				m.SetClock(off)
				src := newSource(t)
				b := startBubble(t, m, bubbleConfig(), src)
				m.Choose(func(x *testkit.Exchange) *testkit.Answer {
					for _, h := range x.Judged() {
						seconds, _ := strconv.ParseInt(h.Params.String("cdt"), 10, 64)
						at := time.Unix(seconds, 0)
						if h.Mark != "" && at.After(time.Now().Add(off)) {
							t.Errorf("%s for %v is sent when Matomo's clock says %v", h.Mark, at, time.Now().Add(off))
						}
					}
					return nil
				})
				for i := range 200 {
					src.add(hitOf(int64(1+i%2), fmt.Sprintf("m%d", i)))
					time.Sleep(37 * time.Millisecond)
				}
				src.waitSettled(within(t, 3*time.Minute), 200)
				about := b.Status().Clock
				if about == nil || time.Duration(*about*float64(time.Second))-off > time.Second || off-time.Duration(*about*float64(time.Second)) > time.Second {
					t.Errorf("offset %v, want about %v", about, off)
				}
				b.stop(t)
				synctest.Wait()
			})
		})
	}
}
