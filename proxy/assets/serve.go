package assets

import (
	"bytes"
	"context"
	"net/http"
	"time"
)

const (
	// firstWait is how long a client waits for a file of which there is no copy, before
	// its request goes to Matomo like any other.
	firstWait = 5 * time.Second
	// lookWait is how long a client waits for the origin to confirm a copy that has not
	// been looked at for long, before it gets the copy as it is.
	lookWait = 2 * time.Second
)

// Claims says whether a request is for a file of Matomo's that visitors load, so that
// [Cache.Serve] answers it, from a copy or by passing it on. It neither blocks nor
// asks anybody.
func (c *Cache) Claims(r *http.Request) bool {
	return r.URL.RawPath == "" && kindOf(r.URL.Path) != none || remembers(r.URL) != forgotten
}

// Serve answers a request that [Cache.Claims] has said yes to. What it has no copy of,
// and what is never kept, is answered by next. It blocks for a few seconds at most
// before it does so.
func (c *Cache) Serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	if c.cfg.Off || !reading || r.URL.RawPath != "" {
		next.ServeHTTP(w, r)
		return
	}
	if what := remembers(r.URL); what != forgotten {
		c.optOut.serve(w, r, next, what)
		return
	}
	k := kindOf(r.URL.Path)
	if k == none || k == preview {
		c.metrics.pass.Inc()
		next.ServeHTTP(w, r)
		return
	}
	f, miss := c.have(r.Context(), r.URL.Path, k)
	var v *version
	var stale time.Duration
	if f != nil {
		v, stale = c.current(r.Context(), f)
	}
	switch {
	case v == nil:
		c.metrics.pass.Inc()
		next.ServeHTTP(w, r)
		return
	case stale > 0:
		c.metrics.stale.Inc()
	case miss:
		c.metrics.miss.Inc()
	default:
		c.metrics.hit.Inc()
	}
	c.write(w, r, v, stale)
}

// have gives the file of a path. A path that is asked for the first time is fetched,
// once for all who wait; nil means that there is no copy now, and miss that there was
// none before.
func (c *Cache) have(ctx context.Context, path string, k kind) (f *file, miss bool) {
	if f := c.find(path); f != nil {
		return f, false
	}
	f = c.first(path, k)
	if f == nil {
		return nil, true
	}
	fl := c.look(f, false)
	if fl == nil {
		c.mu.Lock()
		delete(c.pending, path)
		c.mu.Unlock()
		return nil, true
	}
	await(ctx, fl, firstWait)
	return c.find(path), true
}

// first gives the file of a path of which there is no copy, nil when it is not to be
// fetched now.
func (c *Cache) first(path string, k kind) *file {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files()[path]; f != nil {
		return f
	}
	now := c.now()
	if until, ok := c.refused[path]; ok && now.Before(until) {
		return nil
	}
	if f := c.pending[path]; f != nil {
		return f
	}
	if len(c.pending) >= maxPending || !c.downAt.IsZero() && now.Before(c.retryAt) {
		return nil
	}
	f := &file{path: path, kind: k}
	f.asked.Store(now.UnixNano())
	c.pending[path] = f
	return f
}

// await blocks until a look is done, for d at most.
func await(ctx context.Context, fl *flight, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-fl.done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// current gives the version to serve and how old it is, 0 for one that the origin has
// confirmed in time. A version that was not looked at for long is looked at first.
// Nil means that there is none to serve.
func (c *Cache) current(ctx context.Context, f *file) (*version, time.Duration) {
	now := c.now()
	f.note(now)
	v, stale := c.state(f, now)
	if stale > 0 && c.worthALook(f, now) {
		if fl := c.look(f, true); fl != nil {
			await(ctx, fl, lookWait)
			v, stale = c.state(f, c.now())
		}
	}
	if c.tooOld(stale) {
		return nil, 0
	}
	return v, stale
}

// note remembers that the file is in use, to the second.
func (f *file) note(now time.Time) {
	if at := now.UnixNano(); at-f.asked.Load() > int64(time.Second) {
		f.asked.Store(at)
	}
}

func (c *Cache) state(f *file, now time.Time) (*version, time.Duration) {
	v := f.serving.Load()
	if v == nil || v.pinned {
		return v, 0
	}
	if age := now.Sub(time.Unix(0, f.checked.Load())); age > c.freshFor() {
		return v, age
	}
	return v, 0
}

func (c *Cache) tooOld(stale time.Duration) bool {
	limit := c.tuned.Load().MaxStale
	return limit > 0 && stale > limit
}

// worthALook says whether the origin should be asked while a client waits: not when
// it was asked just now, nor while it does not answer.
func (c *Cache) worthALook(f *file, now time.Time) bool {
	c.mu.Lock()
	down := !c.downAt.IsZero()
	c.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	return !down && (f.flight != nil || now.Sub(f.attempted) >= c.interval())
}

// write answers with a version.
func (c *Cache) write(w http.ResponseWriter, r *http.Request, v *version, stale time.Duration) {
	rep := v.identity
	special := r.Header["Range"] != nil || r.Header["If-Match"] != nil || r.Header["If-Unmodified-Since"] != nil
	if !special {
		rep = v.choose(joined(r.Header["Accept-Encoding"]))
		c.wantEncodings(v)
	}
	h := w.Header()
	same := rep.matches(joined(r.Header["If-None-Match"]), joined(r.Header["If-Modified-Since"]))
	from := rep.header
	if same {
		from = rep.bare
	}
	for name, value := range from {
		h[name] = value
	}
	if stale > 0 {
		h[staleHeader] = []string{seconds(stale)}
	}
	switch {
	case same:
		w.WriteHeader(http.StatusNotModified)
	case special:
		delete(h, "Content-Length")
		// The exact comparison above has said that the client does not have it.
		r = r.Clone(r.Context())
		r.Header.Del("If-Modified-Since")
		modified, _ := http.ParseTime(rep.modified) // none is the zero time, which is not sent
		http.ServeContent(w, r, "", modified, bytes.NewReader(rep.body))
	default:
		w.WriteHeader(http.StatusOK)
		if r.Method != http.MethodHead {
			_, _ = w.Write(rep.body) // the client may be gone
		}
	}
}

// joined gives a header as one list.
func joined(values []string) string {
	switch len(values) {
	case 0:
		return ""
	case 1:
		return values[0]
	}
	all := values[0]
	for _, v := range values[1:] {
		all += "," + v
	}
	return all
}
