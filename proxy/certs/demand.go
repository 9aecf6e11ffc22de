package certs

import (
	"context"
	"crypto/tls"
	"time"
)

// Bounds of what strangers can make the edge ask for, where *.example.org is allowed
// and DNS sends all such names here.
const (
	maxDemands  = 1000             // names at the same time
	demandBurst = 20               // names that no certificate is stored for, at once
	demandEvery = 30 * time.Second // and one more each
)

// A demand is a name that a client asked for. Its fields are guarded by acmeSource.mu.
type demand struct {
	first    chan struct{} // closed when the attempt under way has ended
	failures int
	retryAt  time.Time // when the next client starts an attempt; zero while one is under way or has succeeded
}

// demand gives the certificate of an allowed name: the stored one, or a new one if it
// comes within a few seconds. Otherwise it gives nil, and the order goes on without the
// client. Any number of clients may ask for a name; one order is made.
func (a *acmeSource) demand(ctx context.Context, name string) *tls.Certificate {
	if a.refused(name, time.Now()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.pace.demandWait)
	defer cancel()
	kept, _ := stored(ctx, a.storage, a.issuerKey, name) // what cannot be read is ordered anew
	first, start := a.begin(name, time.Now(), kept != nil)
	if start {
		select {
		case a.requests <- name:
		case <-ctx.Done():
			a.abandon(name)
		case <-a.stopped:
			a.abandon(name)
		}
	}
	if kept != nil {
		return kept
	}
	if first != nil {
		select {
		case <-first:
		case <-ctx.Done():
		}
	}
	return a.lookup(name)
}

// refused reports whether a name is left alone for now.
func (a *acmeSource) refused(name string, now time.Time) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	d := a.demands[name]
	return d != nil && now.Before(d.retryAt)
}

// begin gives what to wait for, and says whether the caller is the one to start the
// attempt. It gives nil when there is none and must be none now.
func (a *acmeSource) begin(name string, now time.Time, known bool) (first chan struct{}, start bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.demands[name]
	switch {
	case d != nil && d.retryAt.IsZero():
		return d.first, false
	case d != nil && now.Before(d.retryAt):
		return nil, false
	case d == nil && !a.makeRoomLocked(now):
		return nil, false
	case !known && !a.limiter.AllowN(now, 1):
		return nil, false
	case d == nil:
		d = &demand{}
		a.demands[name] = d
	}
	d.first, d.retryAt = make(chan struct{}), time.Time{}
	return d.first, true
}

// makeRoomLocked forgets names that could not be had when too many are known.
func (a *acmeSource) makeRoomLocked(now time.Time) bool {
	if len(a.demands) < maxDemands {
		return true
	}
	for name, d := range a.demands {
		if !d.retryAt.IsZero() && now.After(d.retryAt) {
			delete(a.demands, name)
		}
	}
	return len(a.demands) < maxDemands
}

// abandon takes back an attempt that nobody took on.
func (a *acmeSource) abandon(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.demands[name]
	d.retryAt = time.Unix(0, 0)
	close(d.first)
}

// demanded gives the demand for a name whose attempt begins.
func (a *acmeSource) demanded(name string) *demand {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.demands[name]
}

// settle ends the first attempt for a name on demand, and reports whether the name is
// managed from now on; every other is (d is nil). One without any certificate is left alone
// for a while, and then until a client asks for it again.
func (a *acmeSource) settle(name string, d *demand, failures int, pause time.Duration) bool {
	if d == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	good := a.certs[name] != nil
	if !good {
		d.failures, d.retryAt = failures, time.Now().Add(pause)
	}
	close(d.first)
	return good
}
