package sink

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A SiteAnswer says whether a site exists.
type SiteAnswer uint8

const (
	// SiteUnknown: nobody could be asked in time.
	SiteUnknown SiteAnswer = iota
	// SiteExists: the site was there when it was last asked for, or it took hits.
	SiteExists
	// SiteAbsent: the site was not there, asked after the Lookup had begun.
	SiteAbsent
)

// String gives the word used in logs and tests.
func (a SiteAnswer) String() string {
	switch a {
	case SiteExists:
		return "exists"
	case SiteAbsent:
		return "absent"
	}
	return "unknown"
}

const (
	lookupTimeout = 250 * time.Millisecond
	// Least time between the beginnings of two questions: the database is asked
	// for the sites in question, the Reporting API for all of them.
	databaseSpacing = 50 * time.Millisecond
	apiSpacing      = 2 * time.Second
	sitesRefresh    = time.Minute
	apiTimeout      = 20 * time.Second
	maxCanaryKnown  = 8
	// maxAsked bounds the sites of one question.
	maxAsked = 500
)

// Sites knows which sites Matomo has. Existing ones are learnt in the background
// and from deliveries; that a site does not exist is only ever said right after
// asking.
//
// Methods may be called from any goroutine. Without [Sink.Run] running every
// Lookup of a site that is not remembered answers SiteUnknown.
type Sites struct {
	asker asker

	mu     sync.Mutex
	known  map[int64]struct{}
	took   []int64 // sites that took hits last, newest first
	guess  int64   // a site that hits wait for; 0 = none yet
	queued *question
	wake   chan struct{} // capacity 1: something is queued
}

// An asker asks Matomo or its database for sites.
type asker interface {
	// all gives every site.
	all(ctx context.Context) ([]int64, error)
	// some gives those of the sites that exist. The sites are asked for after the
	// call began.
	some(ctx context.Context, sites []int64) ([]int64, error)
	// spacing is the least time between two questions; 0 = nobody can be asked.
	spacing() time.Duration
}

// A question is asked for many lookups at once. Its fields but done are guarded
// by Sites.mu until it is taken.
type question struct {
	sites  map[int64]struct{}
	exist  map[int64]struct{} // set before done is closed, nil when asking failed
	failed bool
	done   chan struct{}
}

func newSites(a asker) *Sites {
	return &Sites{asker: a, known: map[int64]struct{}{}, wake: make(chan struct{}, 1)}
}

// Lookup says whether a site exists. SiteExists may come from memory. For
// SiteAbsent the source was asked after the call began. The call blocks for 250 ms
// at most; when there is no answer by then, or many have asked just before, it is
// SiteUnknown.
func (s *Sites) Lookup(ctx context.Context, site int64) SiteAnswer {
	if site <= 0 {
		return SiteUnknown
	}
	s.mu.Lock()
	if _, ok := s.known[site]; ok {
		s.mu.Unlock()
		return SiteExists
	}
	if s.asker.spacing() == 0 {
		s.mu.Unlock()
		return SiteUnknown
	}
	q := s.queued
	if q == nil {
		q = &question{sites: map[int64]struct{}{}, done: make(chan struct{})}
		s.queued = q
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	if len(q.sites) >= maxAsked {
		s.mu.Unlock()
		return SiteUnknown
	}
	q.sites[site] = struct{}{}
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	select {
	case <-ctx.Done():
		return SiteUnknown
	case <-q.done:
	}
	if q.failed {
		return SiteUnknown
	}
	if _, ok := q.exist[site]; ok {
		return SiteExists
	}
	return SiteAbsent
}

// run answers questions and refreshes what is known until ctx is done.
func (s *Sites) run(ctx context.Context) {
	if s.asker.spacing() == 0 {
		return
	}
	refresh := time.NewTimer(0)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-refresh.C:
			if all, err := s.asker.all(ctx); err == nil {
				s.learn(all)
			}
			refresh.Reset(sitesRefresh)
		case <-s.wake:
			s.answer(ctx)
			if !sleep(ctx, s.asker.spacing()) {
				return
			}
		}
	}
}

// answer takes the queued question before it asks, so that every lookup that
// waits for it began before.
func (s *Sites) answer(ctx context.Context) {
	s.mu.Lock()
	q := s.queued
	s.queued = nil
	s.mu.Unlock()
	if q == nil {
		return
	}
	sites := make([]int64, 0, len(q.sites))
	for site := range q.sites {
		sites = append(sites, site)
	}
	exist, err := s.asker.some(ctx, sites)
	q.failed = err != nil
	q.exist = map[int64]struct{}{}
	for _, site := range exist {
		q.exist[site] = struct{}{}
	}
	close(q.done)
	if err == nil {
		s.learn(exist)
	}
}

func (s *Sites) learn(sites []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, site := range sites {
		s.known[site] = struct{}{}
	}
}

// delivered learns from hits that Matomo took.
func (s *Sites) delivered(items []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := int64(0)
	for _, it := range items {
		if it.Site == last || it.Site <= 0 || !it.settled || it.as != 0 {
			continue
		}
		last = it.Site
		s.known[last] = struct{}{}
	}
	if last == 0 || len(s.took) > 0 && s.took[0] == last {
		return
	}
	kept := append(make([]int64, 0, maxCanaryKnown), last)
	for _, site := range s.took {
		if site != last && len(kept) < maxCanaryKnown {
			kept = append(kept, site)
		}
	}
	s.took = kept
}

// waiting notes a site that hits wait for.
func (s *Sites) waiting(site int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guess == 0 && site > 0 {
		s.guess = site
	}
}

// canaries gives sites for a canary: those that took hits, newest first, and one
// that probably exists.
func (s *Sites) canaries() (took []int64, guess int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	guess = 1
	if _, ok := s.known[1]; !ok {
		least := int64(0)
		for site := range s.known {
			if least == 0 || site < least {
				least = site
			}
		}
		guess = max(1, least)
		if least == 0 && s.guess != 0 {
			guess = s.guess
		}
	}
	return append([]int64(nil), s.took...), guess
}

// noAsker is for a sink that can ask nobody.
type noAsker struct{}

func (noAsker) all(context.Context) ([]int64, error)           { return nil, nil }
func (noAsker) some(context.Context, []int64) ([]int64, error) { return nil, nil }
func (noAsker) spacing() time.Duration                         { return 0 }

// databaseAsker reads Matomo's table of sites.
type databaseAsker struct{ db *database }

func (a databaseAsker) spacing() time.Duration { return databaseSpacing }

func (a databaseAsker) all(ctx context.Context) ([]int64, error) {
	return a.db.numbers(ctx, "SELECT idsite FROM "+a.db.table("site"))
}

func (a databaseAsker) some(ctx context.Context, sites []int64) ([]int64, error) {
	if len(sites) == 0 {
		return nil, nil
	}
	args := make([]any, len(sites))
	for i, site := range sites {
		args[i] = site
	}
	marks := strings.TrimSuffix(strings.Repeat("?,", len(sites)), ",")
	return a.db.numbers(ctx, "SELECT idsite FROM "+a.db.table("site")+" WHERE idsite IN ("+marks+")", args...)
}

// apiAsker asks the Reporting API, which needs a superuser's token.
type apiAsker struct {
	client *client
	token  string
	// probe knows whether the token was refused: then nobody asks, since each question
	// would be a failed login. nil = ask.
	probe *canary
}

func (a apiAsker) spacing() time.Duration { return apiSpacing }

func (a apiAsker) all(ctx context.Context) ([]int64, error) {
	if a.probe != nil && a.probe.refusedLately() {
		return nil, errNotAList
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	got := a.client.call(ctx, "SitesManager.getAllSitesId", a.token)
	if got.err == nil && a.probe != nil {
		a.probe.noteAPI(got.status)
	}
	sites, err := siteList(got)
	if err != nil {
		return nil, err
	}
	// A Matomo whose tables are not there yet answers with an empty list.
	if len(sites) == 0 {
		return nil, errNotAList
	}
	return sites, nil
}

// siteList reads an answer of the Reporting API that lists sites.
func siteList(got *answer) ([]int64, error) {
	if got.err != nil {
		return nil, got.err
	}
	if got.status != http.StatusOK || got.truncated {
		return nil, errNotAList
	}
	var numbers []json.Number
	if json.Unmarshal(got.body, &numbers) != nil {
		var texts []string
		if json.Unmarshal(got.body, &texts) != nil {
			return nil, errNotAList
		}
		for _, t := range texts {
			numbers = append(numbers, json.Number(t))
		}
	}
	sites := make([]int64, 0, len(numbers))
	for _, n := range numbers {
		if site, err := n.Int64(); err == nil {
			sites = append(sites, site)
		}
	}
	return sites, nil
}

func (a apiAsker) some(ctx context.Context, _ []int64) ([]int64, error) { return a.all(ctx) }

var errNotAList = errors.New("the answer is not a list of sites")
