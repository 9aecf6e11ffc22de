package sink

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/testkit"
)

// A tableAsker is a table of sites that notes when it was asked.
type tableAsker struct {
	mu    sync.Mutex
	sites []int64
	delay time.Duration
	fail  bool
	asked []time.Time // of some
}

func (a *tableAsker) spacing() time.Duration { return databaseSpacing }

func (a *tableAsker) all(context.Context) ([]int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail {
		return nil, errors.New("down")
	}
	return slices.Clone(a.sites), nil
}

func (a *tableAsker) some(ctx context.Context, sites []int64) ([]int64, error) {
	a.mu.Lock()
	a.asked = append(a.asked, time.Now())
	have, delay, fail := slices.Clone(a.sites), a.delay, a.fail // read at the beginning, answered later
	a.mu.Unlock()
	if !sleep(ctx, delay) || fail {
		return nil, errors.New("down")
	}
	return slices.DeleteFunc(have, func(s int64) bool { return !slices.Contains(sites, s) }), nil
}

func (a *tableAsker) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func TestSitesLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &tableAsker{sites: []int64{1, 2}}
		s := newSites(a)
		if got := s.Lookup(t.Context(), 7); got != SiteUnknown {
			t.Errorf("before it runs: %v, want unknown", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.run(ctx) }()
		synctest.Wait()
		is := func(site int64, want SiteAnswer) {
			t.Helper()
			began := time.Now()
			if got := s.Lookup(ctx, site); got != want {
				t.Errorf("site %d: %v, want %v", site, got, want)
			}
			if took := time.Since(began); took > lookupTimeout {
				t.Errorf("site %d took %v", site, took)
			}
		}
		is(1, SiteExists)
		is(0, SiteUnknown)
		is(-1, SiteUnknown)
		is(3, SiteAbsent)
		a.set(func() { a.sites = append(a.sites, 3) })
		is(3, SiteExists) // made a moment ago
		a.set(func() { a.sites = nil })
		is(3, SiteExists) // from memory
		a.set(func() { a.delay = time.Second })
		is(9, SiteUnknown)
		time.Sleep(2 * time.Second)
		a.set(func() { a.delay, a.fail = 0, true })
		is(9, SiteUnknown)
		a.set(func() { a.fail = false })
		time.Sleep(time.Second)
		is(9, SiteAbsent)

		// Many lookups at once cost few questions.
		a.set(func() { a.asked = nil })
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() { s.Lookup(ctx, int64(100+i%300)) })
		}
		wg.Wait()
		a.set(func() {
			if len(a.asked) > 5 {
				t.Errorf("1000 lookups asked %d times", len(a.asked))
			}
		})
		cancel()
		<-done
	})
}

// TestAbsentMeansAskedAfterTheCall: a question that was already under way may have
// missed a site made since, so it is no answer to a later lookup.
func TestAbsentMeansAskedAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &tableAsker{delay: 100 * time.Millisecond}
		s := newSites(a)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.run(ctx) }()
		synctest.Wait()
		first := make(chan SiteAnswer, 1)
		go func() { first <- s.Lookup(ctx, 5) }()
		synctest.Wait() // the question is under way and has read the table
		a.set(func() { a.sites = []int64{5} })
		if got := s.Lookup(ctx, 5); got == SiteAbsent {
			t.Errorf("a site that existed before the call is absent")
		}
		if got := <-first; got != SiteAbsent {
			t.Errorf("the first lookup: %v, want absent", got)
		}
		cancel()
		<-done
	})
}

func TestSitesByTheReportingAPI(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	r := start(t, m, testConfig())
	ctx := soon(t)
	for got := SiteUnknown; got != SiteExists && ctx.Err() == nil; {
		got = r.Sites().Lookup(ctx, 4)
	}
	for got := SiteUnknown; got != SiteAbsent && ctx.Err() == nil; {
		got = r.Sites().Lookup(ctx, 77)
	}
	if ctx.Err() != nil {
		t.Fatal("the Reporting API was not asked in time")
	}
	for _, token := range []string{testkit.AdminToken, "wrong"} {
		if sites, err := (apiAsker{client: r.client, token: token}).all(ctx); err == nil {
			t.Errorf("token %s lists %v, want an error", token, sites)
		}
	}
	m.Always(testkit.Honest())
	m.SetDatabase(testkit.DatabaseDown)
	if sites, err := (apiAsker{client: r.client, token: testkit.SuperToken}).all(ctx); err == nil {
		t.Errorf("with the database down: %v, want an error", sites)
	}
}
