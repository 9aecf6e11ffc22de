package archivegate

import (
	"context"
	"sync"
	"time"
)

const (
	// trackerCache is how long Matomo's servers may believe that a day is noted already
	// as one whose reports are to be made anew (tracker_cache_file_ttl), and some.
	trackerCache = 330 * time.Second
	// invalidateSpacing is the least time between two orders for the same site and day.
	invalidateSpacing = 5 * time.Minute
	invalidateEvery   = 10 * time.Second
	invalidateTimeout = time.Minute
	// invalidateTries is how often an order that failed is given again.
	invalidateTries = 12
)

// invalidations are days that were reopened and are complete again, of which Matomo is
// to make the reports anew. Methods may be called from any goroutine.
type invalidations struct {
	age time.Duration

	mu   sync.Mutex
	due  map[siteDay]*invalidation // guarded by mu
	last map[siteDay]time.Time     // when it was ordered last, guarded by mu
}

type siteDay struct {
	site int64
	date Date
}

type invalidation struct {
	at    time.Time
	tries int
}

func newInvalidations(age time.Duration) *invalidations {
	return &invalidations{age: age, due: map[siteDay]*invalidation{}, last: map[siteDay]time.Time{}}
}

// add orders a day once no server of Matomo's can have an old memory of it. More late
// hits put that off.
func (l *invalidations) add(site int64, d Date, now time.Time) {
	if now.Sub(d.utc()) > l.age {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := siteDay{site, d}
	at := now.Add(trackerCache)
	if again := l.last[key].Add(invalidateSpacing); again.After(at) {
		at = again
	}
	l.due[key] = &invalidation{at: at}
}

// next gives an order that is due, and takes note of it.
func (l *invalidations) next(now time.Time) (siteDay, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, order := range l.due {
		if !order.at.After(now) {
			return key, true
		}
	}
	return siteDay{}, false
}

// done takes note of an order's outcome.
func (l *invalidations) done(key siteDay, ok bool, now time.Time) (again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	order := l.due[key]
	if order == nil {
		return false
	}
	order.tries++
	if ok || order.tries >= invalidateTries {
		delete(l.due, key)
		l.last[key] = now
		return false
	}
	order.at = now.Add(invalidateSpacing)
	return true
}

// invalidate gives orders that are due until ctx is done.
func (g *Gate) invalidate(ctx context.Context) {
	for g.later != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(invalidateEvery):
		}
		for ctx.Err() == nil {
			key, ok := g.later.next(g.now())
			if !ok {
				break
			}
			g.invalidateOne(ctx, key)
		}
	}
}

func (g *Gate) invalidateOne(ctx context.Context, key siteDay) {
	ctx, cancel := context.WithTimeout(ctx, invalidateTimeout)
	defer cancel()
	err := g.parts.Invalidator.Invalidate(ctx, key.site, key.date)
	again := g.later.done(key, err == nil, g.now())
	if err == nil {
		g.inst.invalidated.Inc()
		g.log.Info("Matomo will make the reports of a day anew", "site", key.site, "date", key.date.String())
		return
	}
	g.inst.invalidateFailed.Inc()
	if again {
		g.log.Warn("Matomo was told to make the reports of a day anew, and did not take it; it is told again", "site", key.site, "date", key.date.String(), "in", invalidateSpacing, "err", err)
		return
	}
	g.log.Error("Matomo does not take the order to make the reports of a day anew; give it by hand", "site", key.site, "date", key.date.String(),
		"try", "console core:invalidate-report-data", "err", err)
}
