package archivegate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return t
}

// One condition after the other keeps the day from being complete; without any it is.
func TestStates(t *testing.T) {
	const afterMidnight = "2026-03-16T23:00:30Z" // 17 March, 00:00:30 in Berlin
	pending := Tally{Accepted: 3, Delivered: 1}
	second := time.Second
	tests := []struct {
		name   string
		now    string
		set    func(*world)
		cfg    Config
		date   string
		want   State
		reason string // part of one
	}{
		{"everything is there", afterMidnight, func(*world) {}, Config{}, Finished, StateComplete, ""},
		{"the day is not over", "2026-03-16T22:59:59Z", func(*world) {}, Config{}, "2026-03-16", StateOpen, "not over"},
		{"today", afterMidnight, func(*world) {}, Config{}, Today, StateOpen, "not over"},
		{"a day to come", afterMidnight, func(*world) {}, Config{}, "2031-01-01", StateOpen, "not over"},
		{"over for less than the skew", "2026-03-16T23:00:04Z", func(*world) {}, Config{}, Finished, StateSealing, "gate.skew"},
		{"a request is being written", afterMidnight, func(w *world) { w.inFlight = []time.Time{at("2026-03-16T22:59:59.9Z")} }, Config{}, Finished, StateSealing, "being written"},
		{"a request of the next day is being written", afterMidnight, func(w *world) { w.inFlight = []time.Time{at("2026-03-16T23:00:00Z")} }, Config{}, Finished, StateComplete, ""},
		{"hits wait", afterMidnight, func(w *world) { w.books.add(1, at("2026-03-16T22:59:59Z"), pending) }, Config{}, Finished, StateDraining, "2 hits"},
		{"hits of the day before wait", afterMidnight, func(w *world) { w.books.add(1, at("2026-03-14T12:00:00Z"), pending) }, Config{}, Finished, StateDraining, "2 hits"},
		{"hits of the next day wait", afterMidnight, func(w *world) { w.books.add(1, at("2026-03-16T23:00:00Z"), pending) }, Config{}, Finished, StateComplete, ""},
		{"hits of another site wait", afterMidnight, func(w *world) { w.books.add(2, at("2026-03-16T12:00:00Z"), pending) }, Config{}, Finished, StateComplete, ""},
		{"hits are buried", afterMidnight, func(w *world) { w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Accepted: 2, Dead: 2}) }, Config{}, Finished, StateComplete, ""},
		{"hits are buried, which blocks", afterMidnight, func(w *world) { w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Accepted: 2, Dead: 2}) }, Config{DeadBlock: true}, Finished, StateDraining, "buried"},
		{"the timezone is not known", afterMidnight, func(w *world) { w.sites[0].Zone = "Mars/Olympus" }, Config{}, Finished, StateUnknown, "timezone"},
		{"the list cannot be read", afterMidnight, func(w *world) { w.listErr = errors.New("no answer") }, Config{}, Finished, StateUnknown, "not known"},
		{"Matomo's clock is off", afterMidnight, func(w *world) { w.drain.Clock = new(-3 * time.Minute) }, Config{}, Finished, StateUnknown, "clock"},
		{"Matomo's clock is a little off", afterMidnight, func(w *world) { w.drain.Clock = new(4 * time.Second) }, Config{}, Finished, StateComplete, ""},
		{"an import goes on that begins before the end", afterMidnight, func(w *world) { w.books.incoming = at("2026-03-16T22:59:59Z") }, Config{}, Finished, StateDraining, "import"},
		{"an import goes on that begins with the next day", afterMidnight, func(w *world) { w.books.incoming = at("2026-03-16T23:00:00Z") }, Config{}, Finished, StateComplete, ""},
		{"another queue holds hits", afterMidnight, func(w *world) { w.drain.Behind = &Behind{Text: "QueuedTracking holds 3", Pending: new(int64(3))} }, Config{}, Finished, StateDraining, "QueuedTracking"},
		{"another queue cannot be seen", afterMidnight, func(w *world) { w.drain.Behind = &Behind{Text: "QueuedTracking is on"} }, Config{}, Finished, StateUnknown, "QueuedTracking"},
		{"the replica's lag is not known", afterMidnight, func(w *world) { w.drain.Reader = &Reader{At: at(afterMidnight)} }, Config{}, Finished, StateUnknown, "replica"},
		{"the replica was behind", afterMidnight, func(w *world) { w.drain.Reader = &Reader{Lag: &second, At: at(afterMidnight)} }, Config{}, Finished, StateDraining, "replica"},
		{"the longest waiting time is not over", "2026-03-17T10:59:59Z", func(w *world) { w.books.add(1, at("2026-03-16T12:00:00Z"), pending) }, Config{MaxHold: 12 * time.Hour}, Finished, StateDraining, ""},
		{"the longest waiting time is over", "2026-03-17T11:00:00Z", func(w *world) { w.books.add(1, at("2026-03-16T12:00:00Z"), pending) }, Config{MaxHold: 12 * time.Hour}, Finished, StateForced, "let through"},
		{"an open day is never let through", afterMidnight, func(*world) {}, Config{MaxHold: time.Second}, Today, StateOpen, ""},
		{"nor by an old clock", "2026-03-16T22:00:00Z", func(*world) {}, Config{MaxHold: time.Second}, "2026-03-16", StateOpen, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(tt.now, berlin())
			tt.set(w)
			tt.cfg.Skew = skew
			g := w.gate(t, tt.cfg)
			a := one(t, g, Query{Site: 1, Date: tt.date})
			if a.State != tt.want || !strings.Contains(a.why(), tt.reason) {
				t.Errorf("%s (%s), want %s with %q", a.State, a.why(), tt.want, tt.reason)
			}
			if a.Complete != (tt.want == StateComplete) || a.Pass != (tt.want == StateComplete || tt.want == StateForced) {
				t.Errorf("complete %v, pass %v in state %s", a.Complete, a.Pass, a.State)
			}
			// For all sites it is the same, but for what another site waits for.
			if sum := all(t, g, Query{Date: tt.date}); sum.State != tt.want && !strings.Contains(tt.name, "another site") {
				t.Errorf("all are %s (%v), want %s", sum.State, sum.Reasons, tt.want)
			}
		})
	}
}

// A list that is older than the end of the day does not count, and is asked for anew.
func TestTheListMustBeOfAfterTheDay(t *testing.T) {
	w := newWorld("2026-03-16T22:59:58Z", berlin())
	g := w.gate(t, Config{Skew: skew})
	one(t, g, Query{Site: 1, Date: Finished})
	w.clock.set("2026-03-16T23:00:10Z")
	if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != StateComplete || w.listed != 2 {
		t.Errorf("%s (%s) after %d questions, want complete after a second one", a.State, a.why(), w.listed)
	}
	// Matomo does not answer over the next midnight: the site could be elsewhere by now.
	w.listErr = errors.New("no answer")
	w.clock.set("2026-03-17T23:00:10Z")
	if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != StateUnknown || !strings.Contains(a.why(), "no answer") {
		t.Errorf("%s (%s), want unknown", a.State, a.why())
	}
	// The day before was over when the list was read.
	if a := one(t, g, Query{Site: 1, Date: "2026-03-16"}); a.State != StateComplete {
		t.Errorf("%s (%s), want complete", a.State, a.why())
	}
	// The same after a restart, from what was kept; then Matomo is back.
	g = w.gate(t, Config{Skew: skew})
	w.clock.add(listSpacing)
	if a := one(t, g, Query{Site: 1, Date: "2026-03-16"}); a.State != StateComplete {
		t.Errorf("after a restart: %s (%s), want complete", a.State, a.why())
	}
	if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != StateUnknown {
		t.Errorf("after a restart: %s (%s), want unknown", a.State, a.why())
	}
	w.listErr = nil
	w.clock.add(listSpacing)
	if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != StateComplete {
		t.Errorf("%s (%s), want complete", a.State, a.why())
	}
}

// Until two days after a change of a site's timezone both days must be over.
func TestChangeOfTimezone(t *testing.T) {
	w := newWorld("2026-03-16T20:00:00Z", berlin())
	g := w.gate(t, Config{Skew: skew})
	one(t, g, Query{Site: 1, Date: Finished})
	w.sites[0].Zone = "America/New_York" // 16 March ends five hours later there
	w.clock.set("2026-03-16T21:00:00Z")
	if err := g.sites.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.clock.set("2026-03-16T23:00:10Z")
	if a := one(t, g, Query{Site: 1, Date: "2026-03-16"}); a.State != StateOpen {
		t.Errorf("%s, want open until New York's day is over", a.State)
	}
	w.books.add(1, at("2026-03-15T23:30:00Z"), Tally{Accepted: 1, Delivered: 1}) // of Berlin's day alone
	w.clock.set("2026-03-17T04:00:10Z")
	a := one(t, g, Query{Site: 1, Date: "2026-03-16"})
	if a.State != StateComplete || !a.Start.Equal(at("2026-03-15T23:00:00Z")) || !a.End.Equal(at("2026-03-17T04:00:00Z")) || a.Accepted != 1 {
		t.Errorf("%s from %s to %s with %d hits, want complete over both days", a.State, a.Start, a.End, a.Accepted)
	}
	// A restart remembers.
	g = w.gate(t, Config{Skew: skew})
	if a := one(t, g, Query{Site: 1, Date: "2026-03-16"}); !a.Start.Equal(at("2026-03-15T23:00:00Z")) {
		t.Errorf("after a restart the day begins %s", a.Start)
	}
	w.clock.set("2026-03-19T12:00:00Z")
	if err := g.sites.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := one(t, g, Query{Site: 1, Date: "2026-03-16"}); !a.Start.Equal(at("2026-03-16T04:00:00Z")) {
		t.Errorf("days later the day begins %s, want New York's midnight", a.Start)
	}
}

func TestReopening(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin())
	w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Accepted: 5, Delivered: 5})
	g := w.gate(t, Config{Skew: skew})
	ask := func(want State, epoch int) Answer {
		t.Helper()
		a := one(t, g, Query{Site: 1, Date: "2026-03-16"})
		if a.State != want || a.Epoch != epoch {
			t.Errorf("%s in epoch %d, want %s in %d", a.State, a.Epoch, want, epoch)
		}
		return a
	}
	if a := ask(StateComplete, 1); a.Since == nil || !a.Since.Equal(w.clock.now()) {
		t.Errorf("complete since %v, want now", a.Since)
	}
	w.books.add(1, at("2026-03-16T13:00:00Z"), Tally{Accepted: 1})
	ask(StateReopened, 2)
	ask(StateReopened, 2)
	g.book.save()
	g = w.gate(t, Config{Skew: skew}) // a restart does not forget it
	ask(StateReopened, 2)
	w.books.add(1, at("2026-03-16T13:00:00Z"), Tally{Delivered: 1})
	ask(StateComplete, 2)
	// A hit that came and went between two looks.
	w.books.add(1, at("2026-03-16T14:00:00Z"), Tally{Accepted: 1, Delivered: 1})
	ask(StateComplete, 3)
	// A buried hit that is sent again.
	w.books.add(1, at("2026-03-16T15:00:00Z"), Tally{Accepted: 1, Dead: 1})
	ask(StateComplete, 4)
	w.books.add(1, at("2026-03-16T15:00:00Z"), Tally{Dead: -1})
	ask(StateReopened, 5)
	w.books.add(1, at("2026-03-16T15:00:00Z"), Tally{Delivered: 1})
	ask(StateComplete, 5)
	// Old quarters that are let go change nothing.
	for k, tally := range w.books.slots {
		w.books.folded[k.site] = plus(w.books.folded[k.site], tally)
		delete(w.books.slots, k)
	}
	ask(StateComplete, 5)
	// Quarters of the days after it are let go as well, and are no hits of this day.
	w.books.folded[1] = plus(w.books.folded[1], Tally{Accepted: 40, Delivered: 40})
	w.books.foldedTo = floorQuarter(at("2026-03-17T06:00:00Z"))
	ask(StateComplete, 5)
	w.books.foldedTo = 0
	ask(StateComplete, 5)
	if n := g.inst.reopened.Get(); n != 3 { // of this process
		t.Errorf("%d reopenings counted, want 3", n)
	}
}

// A hit of an earlier day holds back the days after it as well: archiving them would
// make the month without it.
func TestAnEarlierDayReopensTheLater(t *testing.T) {
	w := newWorld("2026-03-18T12:00:00Z", berlin())
	g := w.gate(t, Config{Skew: skew})
	for _, date := range []string{"2026-03-15", "2026-03-16", "2026-03-17"} {
		one(t, g, Query{Site: 1, Date: date})
	}
	w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Accepted: 1})
	for date, want := range map[string]State{"2026-03-15": StateComplete, "2026-03-16": StateReopened, "2026-03-17": StateReopened} {
		if a := one(t, g, Query{Site: 1, Date: date}); a.State != want {
			t.Errorf("%s is %s, want %s", date, a.State, want)
		}
	}
}

// The gate notices by itself what nobody asks about.
func TestLookNoticesReopening(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin(), utcSite(2))
	g := w.gate(t, Config{Skew: skew})
	g.look(t.Context())
	w.books.add(1, at("2026-03-16T13:00:00Z"), Tally{Accepted: 1})
	w.books.add(2, at("2026-02-01T13:00:00Z"), Tally{Accepted: 1}) // of a day that nobody remembers
	g.look(t.Context())
	if n := g.inst.reopened.Get(); n != 3 {
		t.Errorf("%d reopenings, want those of 16 March for both and of 1 February", n)
	}
	if n := g.inst.days.Load(); n != 3 {
		t.Errorf("%d site-days are not complete, want 3", n)
	}
	w.clock.add(time.Minute)
	w.books.add(1, at("2026-03-16T13:00:00Z"), Tally{Delivered: 1})
	w.books.add(2, at("2026-02-01T13:00:00Z"), Tally{Delivered: 1})
	g.look(t.Context())
	if n := g.inst.days.Load(); n != 0 {
		t.Errorf("%d site-days are not complete, want none", n)
	}
	w.clock.add(20 * 24 * time.Hour)
	g.look(t.Context())
	if marks := len(g.book.marks[1]); marks != 1 {
		t.Errorf("%d days are remembered, want the last one", marks)
	}
}

func TestReplicaHasWhatWasDelivered(t *testing.T) {
	w := newWorld("2026-03-16T23:00:30Z", berlin())
	lag := 10 * time.Second
	w.drain.Reader = &Reader{Lag: &lag, At: w.clock.now()}
	g := w.gate(t, Config{Skew: skew})
	ask := func(want State) {
		t.Helper()
		if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != want {
			t.Errorf("%s (%s), want %s", a.State, a.why(), want)
		}
	}
	ask(StateDraining)
	w.clock.add(11 * time.Second)
	ask(StateDraining) // it was asked too early
	w.drain.Reader.At = w.clock.now()
	ask(StateComplete)
	lag = time.Hour // what it has shown it keeps
	ask(StateComplete)
	w.books.add(1, at("2026-03-16T13:00:00Z"), Tally{Accepted: 1, Delivered: 1})
	ask(StateReopened)
}

func TestHolds(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin(), utcSite(2))
	g := w.gate(t, Config{Skew: skew})
	states := func(want1, want2 State) {
		t.Helper()
		a, b := one(t, g, Query{Site: 1, Date: "2026-03-16"}), one(t, g, Query{Site: 2, Date: "2026-03-15"})
		if a.State != want1 || b.State != want2 {
			t.Errorf("%s (%s) and %s (%s), want %s and %s", a.State, a.why(), b.State, b.why(), want1, want2)
		}
	}
	states(StateComplete, StateComplete)
	march16 := mustDate(t, "2026-03-16")
	if _, err := g.Hold(Hold{Name: "logs", Who: "ann@db1", Date: &march16}, 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	states(StateDraining, StateComplete) // site 2 is asked about the day before
	g = w.gate(t, Config{Skew: skew})
	states(StateDraining, StateComplete) // over a restart
	if _, err := g.Hold(Hold{Name: "logs", Who: "ann@db1", Site: 2}, 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	states(StateComplete, StateDraining) // it was replaced
	if was, err := g.Release("logs", "ann@db1"); !was || err != nil {
		t.Errorf("Release = %v, %v", was, err)
	}
	if was, err := g.Release("logs", "ann@db1"); was || err != nil {
		t.Errorf("a second Release = %v, %v; want nothing to release", was, err)
	}
	states(StateComplete, StateComplete)
	if _, err := g.Hold(Hold{Name: "ends", Who: "ann@db1"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	states(StateDraining, StateDraining)
	w.clock.add(time.Minute)
	states(StateComplete, StateComplete)
	w.keep.fail = true
	if _, err := g.Hold(Hold{Name: "unkept", Who: "ann@db1"}, time.Minute); err == nil || len(g.Holds()) != 0 {
		t.Errorf("a hold that cannot be kept is in force: %v, %v", g.Holds(), err)
	}
	for _, bad := range []struct {
		h      Hold
		length time.Duration
	}{{Hold{Name: ""}, time.Hour}, {Hold{Name: "a b"}, time.Hour}, {Hold{Name: strings.Repeat("x", 65)}, time.Hour}, {Hold{Name: "x"}, 0}, {Hold{Name: "x"}, 8 * 24 * time.Hour}, {Hold{Name: "x", Site: -1}, time.Hour}} {
		if _, err := g.Hold(bad.h, bad.length); !errors.Is(err, ErrUsage) {
			t.Errorf("Hold(%+v, %s) = %v, want ErrUsage", bad.h, bad.length, err)
		}
	}
}

// What cannot be read never makes a day complete.
func TestDamagedFiles(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin())
	for _, name := range []string{sitesName, bookName, ordersName} {
		w.keep.texts[name] = []byte(`{"v":1,"holds":[{`)
	}
	g := w.gate(t, Config{Skew: skew})
	if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != StateDraining || !strings.Contains(a.why(), lostHolds) {
		t.Errorf("%s (%s), want held because holds were lost", a.State, a.why())
	}
	if was, err := g.Release(lostHolds, "ann@db1"); !was || err != nil {
		t.Fatalf("Release = %v, %v", was, err)
	}
	if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != StateComplete {
		t.Errorf("%s (%s), want complete", a.State, a.why())
	}
}

func TestLocks(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin())
	g := w.gate(t, Config{})
	first, err := g.Lock("archive", "db1", "", time.Minute)
	if err != nil || first.Key == "" {
		t.Fatalf("Lock = %+v, %v", first, err)
	}
	if got, err := g.Lock("archive", "db2", "", time.Minute); !errors.Is(err, ErrTaken) || got.Who != "db1" || got.Key != "" {
		t.Errorf("a second Lock = %+v, %v; want it taken, and no key", got, err)
	}
	if _, err := g.Lock("other", "db2", "", time.Minute); err != nil {
		t.Errorf("another name: %v", err)
	}
	w.clock.add(50 * time.Second)
	if got, err := g.Lock("archive", "db1", first.Key, time.Minute); err != nil || !got.Until.Equal(w.clock.now().Add(time.Minute)) {
		t.Errorf("renewing = %+v, %v", got, err)
	}
	g = w.gate(t, Config{}) // over a restart
	if _, err := g.Lock("archive", "db2", "", time.Minute); !errors.Is(err, ErrTaken) {
		t.Errorf("after a restart Lock = %v, want it taken", err)
	}
	w.clock.add(time.Minute)
	second, err := g.Lock("archive", "db2", "", time.Minute)
	if err != nil {
		t.Fatalf("after its end Lock = %v", err)
	}
	if _, err := g.Lock("archive", "db1", first.Key, time.Minute); !errors.Is(err, ErrTaken) {
		t.Errorf("renewing a lease that has ended = %v, want it taken", err)
	}
	if err := g.Unlock("archive", first.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Lock("archive", "db3", "", time.Minute); !errors.Is(err, ErrTaken) {
		t.Errorf("after an Unlock with an old key Lock = %v, want it taken", err)
	}
	if err := g.Unlock("archive", second.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Lock("archive", "db3", "", time.Minute); err != nil {
		t.Errorf("after Unlock: %v", err)
	}
}

func TestQuestionsThatCannotBeAnswered(t *testing.T) {
	apia := Site{ID: 3, Zone: "Pacific/Apia", Created: at("2010-01-01T00:00:00Z")}
	w := newWorld("2026-03-17T12:00:00Z", berlin(), Site{ID: 2, Zone: "UTC", Created: at("2026-03-17T10:00:00Z")}, apia)
	g := w.gate(t, Config{Skew: skew})
	tests := []struct {
		name string
		q    Query
		want error
	}{
		{"unknown site", Query{Site: 9}, ErrNoSite},
		{"a day before the site was made", Query{Site: 2, Date: "2026-03-16"}, ErrUsage},
		{"yesterday of a site of today", Query{Site: 2, Date: Yesterday}, ErrUsage},
		{"a day that the place left out", Query{Site: 3, Date: "2011-12-30"}, ErrUsage},
		{"a day that the calendar does not have", Query{Site: 1, Date: "2026-02-30"}, ErrUsage},
		{"no day", Query{Site: 1, Date: "gestern"}, ErrUsage},
		{"a day before any site was made", Query{Date: "1999-01-01"}, ErrUsage},
		{"a negative site", Query{Site: -1}, ErrUsage},
		{"a negative waiting time", Query{Site: 1, MaxHold: -1}, ErrUsage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			if tt.q.Site == 0 {
				_, err = g.All(t.Context(), tt.q)
			} else {
				_, err = g.One(t.Context(), tt.q)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	// A site's first day is open, and holds nobody else up.
	if a := one(t, g, Query{Site: 2, Date: Finished}); a.State != StateOpen || a.Date.String() != "2026-03-17" {
		t.Errorf("%s on %s, want open on its first day", a.State, a.Date)
	}
	if s := all(t, g, Query{Date: Finished}); s.State != StateComplete || s.Sites != 2 {
		t.Errorf("%s with %d sites, want the other two complete", s.State, s.Sites)
	}
	// Hits of before the site was made: its date of creation moves back.
	w.books.add(2, at("2026-03-16T12:00:00Z"), Tally{Accepted: 1})
	if a := one(t, g, Query{Site: 2, Date: "2026-03-16"}); a.State != StateDraining {
		t.Errorf("%s, want draining", a.State)
	}
	g = w.gate(t, Config{Skew: skew, AllOnly: true})
	if _, err := g.One(t.Context(), Query{Site: 1}); !errors.Is(err, ErrUsage) {
		t.Errorf("with all-only: %v, want ErrUsage", err)
	}
	if _, err := g.Sites(t.Context(), Query{}); !errors.Is(err, ErrUsage) {
		t.Errorf("with all-only: %v, want ErrUsage", err)
	}
}

// Pending hits of a site that is in no list keep all sites from being complete, and no
// single one.
func TestStrays(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin())
	g := w.gate(t, Config{Skew: skew})
	for _, site := range []int64{0, 77} {
		w.books.slots = map[simSlot]Tally{}
		w.books.add(site, at("2026-03-17T11:00:00Z"), Tally{Accepted: 2, Delivered: 1})
		if s := all(t, g, Query{Date: Finished}); s.State != StateDraining || s.Pending != 1 {
			t.Errorf("site %d: all are %s with %d waiting, want draining", site, s.State, s.Pending)
		}
		if a := one(t, g, Query{Site: 1, Date: Finished}); a.State != StateComplete {
			t.Errorf("site %d: site 1 is %s, want complete", site, a.State)
		}
		if s := all(t, g, Query{Date: Finished, MaxHold: time.Hour}); s.State != StateDraining {
			t.Errorf("site %d: all are %s; there may be places where the day is not over for an hour", site, s.State)
		}
		w.books.add(site, at("2026-03-17T11:00:00Z"), Tally{Invalid: 1})
		if s := all(t, g, Query{Date: Finished}); s.State != StateComplete {
			t.Errorf("site %d: all are %s, want complete", site, s.State)
		}
	}
}

func TestForcedIsSaidOnce(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin())
	w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Accepted: 1})
	g := w.gate(t, Config{Skew: skew})
	if a := one(t, g, Query{Site: 1, Date: Finished}); a.Pass {
		t.Fatalf("passes as %s", a.State)
	}
	for range 3 {
		if a := one(t, g, Query{Site: 1, Date: Finished, MaxHold: time.Hour}); a.State != StateForced || a.Complete || !a.Pass {
			t.Errorf("%s, complete %v, pass %v; want forced", a.State, a.Complete, a.Pass)
		}
	}
	if n := g.inst.forced.Get(); n != 1 {
		t.Errorf("counted %d times, want once", n)
	}
	w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Delivered: 1})
	if a := one(t, g, Query{Site: 1, Date: Finished, MaxHold: time.Hour}); a.State != StateComplete {
		t.Errorf("%s, want complete", a.State)
	}
}

func TestInvalidation(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin(), utcSite(2))
	g := w.gate(t, Config{Skew: skew, Invalidate: true, InvalidateAge: 30 * 24 * time.Hour})
	due := func() int {
		n := 0
		for {
			key, ok := g.later.next(w.clock.now())
			if !ok {
				return n
			}
			g.invalidateOne(t.Context(), key)
			n++
		}
	}
	late := func(site int64, text string) {
		w.books.add(site, at(text), Tally{Accepted: 1})
		g.look(t.Context())
		w.books.add(site, at(text), Tally{Delivered: 1})
		g.look(t.Context())
	}
	w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Accepted: 1})
	g.look(t.Context())
	w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Delivered: 1})
	g.look(t.Context())
	w.clock.add(time.Hour)
	if n := due(); n != 0 {
		t.Errorf("%d orders for a day that was complete for the first time, want none", n)
	}
	late(1, "2026-03-16T13:00:00Z")
	w.clock.add(trackerCache - time.Second)
	late(1, "2026-03-16T14:00:00Z") // puts it off
	w.clock.add(trackerCache - time.Second)
	if n := due(); n != 0 {
		t.Errorf("%d orders before the caches of Matomo have forgotten", n)
	}
	w.clock.add(time.Second)
	if n := due(); n != 1 || !slices.Equal(w.orders, []siteDay{{1, mustDate(t, "2026-03-16")}}) {
		t.Errorf("%d orders, %v; want site 1, 16 March", n, w.orders)
	}
	late(2, "2026-01-01T14:00:00Z") // older than the raw data may be
	w.clock.add(time.Hour)
	if n := due(); n != 1 || w.orders[1].date.String() != "2026-03-16" || w.orders[1].site != 2 {
		// 16 March of site 2 was complete, and an earlier day got a hit.
		t.Errorf("%d orders, %v", n, w.orders)
	}
	w.orderErr = errors.New("refused")
	late(1, "2026-03-16T15:00:00Z")
	w.clock.add(time.Hour)
	if n := due(); n != 1 {
		t.Errorf("%d tries at once, want one", n)
	}
	w.orderErr = nil
	w.clock.add(invalidateSpacing)
	if n := due(); n != 1 || len(w.orders) != 3 {
		t.Errorf("%d tries and %d orders after a refusal, want it given again", n, len(w.orders))
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin())
	g := w.gate(t, Config{Skew: skew, Invalidate: true})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	for len(g.Holds()) != 0 || g.inst.days.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
