package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// arrivals knows which tracking requests are under way between the moment that is
// their time of arrival and their end, when they are stored, refused or passed on.
//
// Requests enter one of two counters, by epoch. An epoch is over when its counter is
// back at zero after the next one has begun; whoever entered before that beginning is
// done then.
type arrivals struct {
	epoch atomic.Uint64
	under [2]atomic.Int64 // requests under way, by the parity of their epoch

	mu      sync.Mutex
	began   time.Time // of the present epoch, guarded by mu
	written time.Time // see since, guarded by mu
}

// enter counts a request in. Its time of arrival is read after that.
func (a *arrivals) enter() (epoch uint64) {
	for {
		epoch = a.epoch.Load()
		a.under[epoch&1].Add(1)
		if a.epoch.Load() == epoch {
			return epoch
		}
		a.under[epoch&1].Add(-1) // a new epoch has begun in between
	}
}

// leave counts a request out that entered in an epoch.
func (a *arrivals) leave(epoch uint64) { a.under[epoch&1].Add(-1) }

// since gives a time such that every request that arrived before it is done, and lets
// epochs that are over pass. now reads the clock that times of arrival are read from.
func (a *arrivals) since(now func() time.Time) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	// Twice, so that without requests under way the answer is now.
	for range 2 {
		epoch := a.epoch.Load()
		if a.under[(epoch+1)&1].Load() != 0 {
			break // of the epoch before; the counter of the next one is not free
		}
		if !a.began.IsZero() {
			a.written = a.began
		}
		// Read before the epoch begins: whoever enters it arrives later.
		a.began = now()
		a.epoch.Store(epoch + 1)
	}
	return a.written
}

// Written gives a time such that every tracking request that was completely received
// before it is by now stored, refused or passed to Matomo. It gets on with the clock
// as long as it is asked, but for requests that take long.
func (s *Server) Written() time.Time {
	return s.arrivals.since(func() time.Time { return s.now(time.Now()) })
}
