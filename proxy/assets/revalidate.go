package assets

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// How files are looked at.
const (
	// inUse is how long after its last request a file is looked at on its own.
	// Afterwards the next request has it looked at first.
	inUse = time.Hour
	// urgentMoment lies between two looks while a client waits.
	urgentMoment = 300 * time.Millisecond
	// maxTries is how often bytes that keep changing are looked at in a row.
	maxTries = 5
	// retryAfter is how soon an origin that does not answer is tried again, with one
	// file.
	retryAfter = 2 * time.Second
	// touchEvery is how often the disk is told that a copy is still the origin's.
	touchEvery = 30 * time.Second
	// looksInAFlight bounds the looks that one waiting client causes.
	looksInAFlight = 3
)

// An outcome is what a look at the origin's file led to.
type outcome string

const (
	unchanged outcome = "unchanged"
	replaced  outcome = "replaced" // or seen for the first time
	deleted   outcome = "deleted"
	unsure    outcome = "unsure"   // new bytes, or gone: seen once
	refused   outcome = "refused"  // the bytes cannot be the file
	failed    outcome = "failed"   // no answer, or one that says nothing about the file
	absent    outcome = "absent"   // never had, and the origin does not have it
	unstable  outcome = "unstable" // each look saw other bytes
)

// interval is how often the loop looks at a file in use: often enough for what
// freshFor promises.
func (c *Cache) interval() time.Duration { return c.tuned.Load().Revalidate * 3 / 4 }

// freshFor is the age up to which a copy is served without a word.
func (c *Cache) freshFor() time.Duration {
	const slow = 2 * time.Second // a look with its answer
	return max(c.tuned.Load().Revalidate, c.interval()+slow)
}

// schedule has the files looked at that are due.
func (c *Cache) schedule() {
	now := c.now()
	down := c.isDown(now)
	for _, f := range c.files() {
		f.mu.Lock()
		wanted := now.Sub(time.Unix(0, f.asked.Load())) < inUse || f.candidate != "" || !f.missingAt.IsZero() || !f.saved && f.live != nil
		ready := wanted && !now.Before(f.due) && f.flight == nil
		f.mu.Unlock()
		if ready {
			if down && !c.mayTry(now) {
				return
			}
			c.look(f, false)
		}
	}
}

// isDown says whether the origin has not answered lately.
func (c *Cache) isDown(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, until := range c.refused {
		if !now.Before(until) {
			delete(c.refused, path)
		}
	}
	return !c.downAt.IsZero()
}

// mayTry allows one look at an origin that is down.
func (c *Cache) mayTry(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.retryAt) {
		return false
	}
	c.retryAt = now.Add(retryAfter)
	return true
}

// setDown notes whether the origin answers, and logs when that changes.
func (c *Cache) setDown(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	switch {
	case err == nil && !c.downAt.IsZero():
		c.log.Info("the origin of Matomo's files answers again", "after", now.Sub(c.downAt))
		c.downAt = time.Time{}
	case err != nil && c.downAt.IsZero():
		c.log.Warn("the origin of Matomo's files does not answer; copies are served", "err", err)
		c.downAt = now
		fallthrough
	case err != nil:
		c.retryAt = now.Add(retryAfter)
	}
}

// look has a worker look at a file and returns what tells when that is done: nil when
// no worker can take it now. The look may have begun earlier.
func (c *Cache) look(f *file, urgent bool) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flight != nil {
		if urgent {
			f.flight.urgent.Store(true)
		}
		return f.flight
	}
	if c.stopped.Load() {
		return nil
	}
	fl := &flight{done: make(chan struct{})}
	fl.urgent.Store(urgent)
	select {
	case c.jobs <- f:
		f.flight = fl
		return fl
	default:
		return nil
	}
}

// fly carries out a look, in a worker.
func (c *Cache) fly(ctx context.Context, f *file) {
	f.mu.Lock()
	fl := f.flight
	f.mu.Unlock()
	moment := c.cfg.Moment
	for range looksInAFlight {
		got := c.check(ctx, f, checking{moment: moment})
		if got != unsure || !fl.urgent.Load() {
			break
		}
		moment = min(urgentMoment, c.cfg.Moment)
		wait(ctx, moment)
	}
	c.land(f)
}

// land ends a file's look.
func (c *Cache) land(f *file) {
	f.mu.Lock()
	fl := f.flight
	f.flight = nil
	f.mu.Unlock()
	c.mu.Lock()
	delete(c.pending, f.path)
	c.mu.Unlock()
	close(fl.done)
}

// wait blocks for d or until ctx is done.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// checking says how a file is looked at.
type checking struct {
	force  bool          // the whole file is wanted, whatever the validators say
	moment time.Duration // between two equal looks
}

// check looks at the origin's file once and does what follows from it. It blocks for
// the origin's answer.
func (c *Cache) check(ctx context.Context, f *file, how checking) outcome {
	f.busy.Lock()
	defer f.busy.Unlock()
	f.mu.Lock()
	live := f.live
	f.mu.Unlock()
	var known *meta
	if live != nil && !how.force && live.settled {
		known = &live.meta
	}
	a, err := c.fetch(ctx, f.path, f.kind, known)
	if ctx.Err() != nil {
		return failed // we are stopping, or who ordered the look is gone
	}
	now := c.now()
	f.mu.Lock()
	f.attempted, f.due = now, now.Add(c.interval())
	f.mu.Unlock()
	if err != nil {
		c.metrics.fetch("failed")
		if reason := ownFault(err); reason != "" {
			c.reject(f, err.Error(), reason)
			return refused
		}
		if f.kind != script {
			// PHP may fail where files do not.
			c.setDown(err)
		}
		return failed
	}
	c.setDown(nil)
	got := c.judge(f, a, how.moment, now)
	c.metrics.fetch(string(got))
	return got
}

// ownFault tells the errors that are the file's and not the origin's.
func ownFault(err error) string {
	switch {
	case errors.Is(err, errTooLarge):
		return "size"
	case errors.Is(err, errEncoded):
		return "encoding"
	}
	return ""
}

// judge carries out what the origin said. The caller holds busy.
func (c *Cache) judge(f *file, a *answer, moment time.Duration, now time.Time) outcome {
	f.mu.Lock()
	live := f.live
	f.mu.Unlock()
	switch a.status {
	case http.StatusNotModified:
		if live == nil {
			return failed
		}
		return c.confirm(f, live, now)
	case http.StatusNotFound, http.StatusGone:
		return c.missing(f, live, moment, now)
	case http.StatusOK:
	default:
		if live == nil {
			c.refusePath(f.path)
		}
		return failed
	}
	if reason := check(f.kind, f.path, a.mime, a.body); reason != "" {
		c.reject(f, hashOf(a.body), reason)
		return refused
	}
	v := newVersion(f.kind, a.meta, a.body)
	v.settled = a.settled
	if live == nil {
		return c.install(f, v, now, moment)
	}
	if v.hash == live.hash {
		if v.meta.ETag == live.meta.ETag && v.meta.LastModified == live.meta.LastModified && v.meta.CacheControl == live.meta.CacheControl {
			f.mu.Lock()
			live.settled = v.settled // read under busy only
			f.mu.Unlock()
			return c.confirm(f, live, now)
		}
		// The same bytes under other headers need no second look.
		return c.update(f, v, now)
	}
	f.mu.Lock()
	second := f.candidate == v.hash && now.Sub(f.candidateAt) >= moment
	if !second {
		if f.candidate != v.hash {
			f.candidate, f.candidateAt = v.hash, now
			f.tries++
		}
		f.due = now.Add(moment)
		if tired := f.tries >= maxTries; tired {
			f.tries, f.candidate, f.due = 0, "", now.Add(c.interval())
			f.mu.Unlock()
			c.reject(f, "unstable", "unstable")
			return unstable
		}
		f.mu.Unlock()
		return unsure
	}
	f.mu.Unlock()
	return c.install(f, v, now, moment)
}

// confirm notes that the live copy is what the origin has.
func (c *Cache) confirm(f *file, live *version, now time.Time) outcome {
	f.mu.Lock()
	f.checked.Store(now.UnixNano())
	f.forgetDoubtLocked()
	saved, touch := f.saved, now.Sub(f.touched) >= touchEvery
	if touch {
		f.touched = now
	}
	f.mu.Unlock()
	if !saved && touch {
		c.save(f, live, c.disk.put(live.meta, liveRole, live.identity.body))
	}
	if saved && touch {
		c.disk.touch(f.path, now)
	}
	return unchanged
}

func (f *file) forgetDoubtLocked() {
	f.candidate, f.tries, f.missingAt, f.rejected = "", 0, time.Time{}, ""
}

// save notes whether the live copy is on the disk.
func (c *Cache) save(f *file, v *version, err error) {
	f.mu.Lock()
	f.saved = err == nil && f.live == v
	f.mu.Unlock()
	if err != nil {
		c.diskFailed(err)
	}
}

// update replaces the live copy by one of the same bytes under other headers.
func (c *Cache) update(f *file, v *version, now time.Time) outcome {
	f.mu.Lock()
	f.live = v
	f.publishLocked()
	f.checked.Store(now.UnixNano())
	f.forgetDoubtLocked()
	f.touched = now
	f.mu.Unlock()
	c.save(f, v, c.disk.put(v.meta, liveRole, v.identity.body))
	return unchanged
}

// install makes new bytes the live copy, and the live copy the previous one. The
// first copy of a file is looked at once more soon, since it was seen once.
func (c *Cache) install(f *file, v *version, now time.Time, moment time.Duration) outcome {
	err := c.disk.replace(v.meta, v.identity.body)
	f.mu.Lock()
	old := f.live
	if old != nil && f.saved {
		f.previous = &described{old.hash, old.meta, int64(len(old.identity.body))}
	}
	f.live, f.touched = v, now
	f.publishLocked()
	f.checked.Store(now.UnixNano())
	f.forgetDoubtLocked()
	if old == nil {
		v.settled = false
		f.due = now.Add(moment)
	}
	f.mu.Unlock()
	c.save(f, v, err)
	c.add(f)
	if old != nil {
		c.metrics.replaced.Inc()
		c.log.Info("a file of Matomo's has changed; the new version is served", "path", f.path, "hash", v.hash, "previous", old.hash, "bytes", len(v.identity.body))
	}
	c.wantEncodings(v)
	return replaced
}

// missing handles a file that the origin says is not there.
func (c *Cache) missing(f *file, live *version, moment time.Duration, now time.Time) outcome {
	if live == nil {
		f.mu.Lock()
		pinned := f.pin != nil
		f.mu.Unlock()
		if !pinned {
			c.refusePath(f.path)
		}
		return absent
	}
	f.mu.Lock()
	if f.missingAt.IsZero() {
		f.missingAt = now
	}
	if now.Sub(f.missingAt) < moment {
		f.due = now.Add(moment)
		f.mu.Unlock()
		return unsure
	}
	f.live, f.previous, f.saved = nil, nil, false
	f.forgetDoubtLocked()
	f.publishLocked()
	gone := f.pin == nil
	f.mu.Unlock()
	if gone {
		c.drop(f)
	}
	if err := c.disk.remove(f.path, liveRole, previousRole); err != nil {
		c.diskFailed(err)
	}
	c.log.Info("a file is gone from Matomo, and its copy with it", "path", f.path)
	return deleted
}

// reject notes that what the origin answered cannot be the file. What was there
// stays, and what was never had is passed on for a while without a look.
func (c *Cache) reject(f *file, hash, reason string) {
	c.metrics.reject(reason)
	f.mu.Lock()
	again := f.rejected == hash
	f.rejected = hash
	kept := f.live != nil
	f.mu.Unlock()
	if !kept {
		c.refusePath(f.path)
	}
	if !again {
		c.log.Warn("the origin's file is not taken for what its name says; the copy stays as it was", "path", f.path, "reason", reason, "have_copy", kept)
	}
}

// refusePath has requests for a path passed on for a while.
func (c *Cache) refusePath(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.refused) >= maxRefused {
		clear(c.refused) // the price is one look more for each
	}
	c.refused[path] = c.now().Add(refusedFor)
}
