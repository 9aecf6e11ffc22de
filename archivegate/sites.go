package archivegate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// A Site is what Matomo says of a site.
type Site struct {
	ID      int64
	Name    string // may be empty
	Zone    string // as Matomo writes it
	Created time.Time
}

// A Lister asks Matomo for its sites.
type Lister interface {
	// Sites gives all sites. It is asked every Config.ListEvery, and sooner when a day
	// has just ended. An error means that nothing is known, never that there are none.
	Sites(ctx context.Context) ([]Site, error)
}

const (
	// listSpacing is the least time between two questions when somebody waits.
	listSpacing = 5 * time.Second
	listTimeout = 30 * time.Second
	// zoneMemory is how long the zone that a site had before is reckoned with as well:
	// its tracker may have a copy of the old one, and hits of both kinds of day lie
	// side by side.
	zoneMemory = 48 * time.Hour
)

// A listed site is one of Matomo's with what is remembered of it.
type listed struct {
	Site
	zone Zone
	err  error // the zone is not known
	old  *Zone // the zone before, while it counts
}

// A siteList is Matomo's sites as of one moment. It is never changed.
type siteList struct {
	readAt time.Time // before the question was sent; zero = never
	sites  []listed  // by id
}

func (l *siteList) find(id int64) (*listed, bool) {
	i, ok := slices.BinarySearchFunc(l.sites, id, func(s listed, id int64) int { return int(s.ID - id) })
	if !ok {
		return nil, false
	}
	return &l.sites[i], true
}

// A lister keeps the newest list, in memory and on disk. Methods may be called from
// any goroutine.
type lister struct {
	source Lister
	keep   Keeper
	log    *slog.Logger
	now    func() time.Time
	every  time.Duration

	asking sync.Mutex // held while the source is asked

	mu    sync.Mutex // guards all below
	zones map[string]zoneOrError
	list  *siteList
	kept  keptList
	saved time.Time
	tried time.Time
	err   error // of the last question
}

// keptList is the form on disk.
type keptList struct {
	V      int        `json:"v"`
	ReadAt time.Time  `json:"read_at"`
	Sites  []keptSite `json:"sites"`
}

type keptSite struct {
	ID      int64      `json:"id"`
	Name    string     `json:"name,omitempty"`
	Zone    string     `json:"zone"`
	Created time.Time  `json:"created"`
	OldZone string     `json:"old_zone,omitempty"`
	Changed *time.Time `json:"changed,omitempty"` // when OldZone ended
}

// sitesName is the file of the kept list.
const sitesName = "sites.json"

func newLister(source Lister, every time.Duration, keep Keeper, log *slog.Logger, now func() time.Time) *lister {
	l := &lister{source: source, every: every, keep: keep, log: log, now: now, zones: map[string]zoneOrError{}}
	text, err := keep.Load(sitesName)
	if err == nil && text != nil {
		err = json.Unmarshal(text, &l.kept)
	}
	if err != nil {
		// It is asked for again; until then nothing is said to be complete.
		log.Warn("the kept list of sites cannot be read; it is asked for again", "err", err)
		l.kept = keptList{}
	}
	l.list = l.useLocked(now())
	l.saved = l.kept.ReadAt
	return l
}

type zoneOrError struct {
	Zone
	err error
}

// zoneLocked reads a timezone once; a site list has few different ones.
func (l *lister) zoneLocked(name string) zoneOrError {
	z, ok := l.zones[name]
	if !ok {
		z.Zone, z.err = ParseZone(name)
		l.zones[name] = z
	}
	return z
}

// useLocked gives the list in the form that is used, with the zones as they count at a
// time.
func (l *lister) useLocked(now time.Time) *siteList {
	out := &siteList{readAt: l.kept.ReadAt, sites: make([]listed, len(l.kept.Sites))}
	for i, s := range l.kept.Sites {
		z := l.zoneLocked(s.Zone)
		one := listed{Site: Site{s.ID, s.Name, s.Zone, s.Created}, zone: z.Zone, err: z.err}
		if s.Changed != nil && now.Sub(*s.Changed) < zoneMemory {
			if old := l.zoneLocked(s.OldZone); old.err == nil {
				one.old = &old.Zone
			}
		}
		out.sites[i] = one
	}
	return out
}

// current gives the newest list, and why there is no newer one.
func (l *lister) current() (*siteList, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list, l.err
}

// refreshSoon asks the source unless that was done a moment ago.
func (l *lister) refreshSoon(ctx context.Context) {
	l.mu.Lock()
	tooSoon := l.now().Sub(l.tried).Abs() < listSpacing
	l.mu.Unlock()
	if !tooSoon {
		_ = l.refresh(ctx) // current says so
	}
}

// refresh asks the source.
func (l *lister) refresh(ctx context.Context) error {
	l.asking.Lock()
	defer l.asking.Unlock()
	asked := l.now().Round(0)
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	l.mu.Lock()
	l.tried = asked
	l.mu.Unlock()
	sites, err := l.source.Sites(ctx)
	if err == nil {
		err = checkSites(sites)
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if l.err == nil {
			l.log.Warn("Matomo's list of sites cannot be read; days that end from now on are not complete until it can", "err", err)
		}
		l.err = err
		return err
	}
	if l.err != nil {
		l.log.Info("Matomo's list of sites can be read again", "sites", len(sites))
	}
	l.err = nil
	next, changed := l.kept.update(sites, asked)
	l.kept = next
	l.list = l.useLocked(asked)
	// Days end with a quarter of an hour: then an unchanged list is worth more.
	if changed || floorQuarter(asked) != floorQuarter(l.saved) {
		l.saveLocked()
	}
	return nil
}

// saveLocked keeps the list for a time in which nobody can be asked. Without it an outage at
// the next start makes days unknown, so a failure costs no more than that.
func (l *lister) saveLocked() {
	text, err := json.Marshal(l.kept)
	if err == nil {
		err = l.keep.Save(sitesName, text)
	}
	if err != nil {
		l.log.Warn("the list of sites cannot be kept", "err", err)
		return
	}
	l.saved = l.kept.ReadAt
}

// update gives the list after an answer, and whether it differs but for its time.
func (k *keptList) update(sites []Site, asked time.Time) (next keptList, changed bool) {
	next = keptList{V: 1, ReadAt: asked, Sites: make([]keptSite, 0, len(sites))}
	before := make(map[int64]keptSite, len(k.Sites))
	for _, s := range k.Sites {
		before[s.ID] = s
	}
	for _, s := range sites {
		one := keptSite{ID: s.ID, Name: s.Name, Zone: s.Zone, Created: s.Created.UTC()}
		old, known := before[s.ID]
		switch {
		case known && old.Zone != s.Zone:
			one.OldZone, one.Changed = old.Zone, &asked
		case known && old.Changed != nil && asked.Sub(*old.Changed) < zoneMemory:
			one.OldZone, one.Changed = old.OldZone, old.Changed
		}
		changed = changed || !known || old.Zone != one.Zone || old.Name != one.Name || !old.Created.Equal(one.Created)
		next.Sites = append(next.Sites, one)
	}
	slices.SortFunc(next.Sites, func(a, b keptSite) int { return int(a.ID - b.ID) })
	return next, changed || len(next.Sites) != len(k.Sites)
}

// run keeps the list fresh until ctx is done.
func (l *lister) run(ctx context.Context) {
	for {
		wait := l.every
		if l.refresh(ctx) != nil {
			wait = listSpacing
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// checkSites refuses what no list of Matomo's can be.
func checkSites(sites []Site) error {
	if len(sites) == 0 {
		return errors.New("an empty list of sites")
	}
	for _, s := range sites {
		if s.ID <= 0 {
			return fmt.Errorf("a site with the number %d", s.ID)
		}
	}
	return nil
}
