package sink

import (
	"sync"
	"time"
)

// clockWindow is how long a measurement of Matomo's clock counts.
const clockWindow = time.Minute

// A clock estimates how far Matomo's clock is ahead of ours from the Date headers
// of its answers. A Date has a resolution of one second, so each answer gives an
// interval; the estimate is what the intervals of the last one to two windows
// agree on. Where they contradict each other, because a clock was set or several
// servers answer, the lower end is believed: holding a hit back for too long
// costs a delay, sending it too early costs its time.
//
// All methods may be called from any goroutine.
type clock struct {
	mu        sync.Mutex
	now, last interval
	started   time.Time // of now
}

type interval struct {
	lower, upper time.Duration
	known        bool
}

// with narrows i to what it has in common with o.
func (i interval) with(o interval) interval {
	switch {
	case !o.known:
		return i
	case !i.known:
		return o
	case o.upper < i.lower:
		return o
	case o.lower > i.upper:
		return i
	}
	return interval{lower: max(i.lower, o.lower), upper: min(i.upper, o.upper), known: true}
}

// note takes the Date of an answer to a request that was sent at began and
// answered at ended.
func (c *clock) note(date, began, ended time.Time) {
	began, ended = began.Round(0), ended.Round(0) // wall clock against wall clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if ended.Sub(c.started).Abs() > clockWindow {
		c.last, c.now, c.started = c.now, interval{}, ended
	}
	c.now = c.now.with(interval{lower: date.Sub(ended), upper: date.Add(time.Second).Sub(began), known: true})
}

// offset gives what Matomo's clock is at least and about ahead of ours, negative
// when behind.
func (c *clock) offset() (least, about time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.last.with(c.now)
	return i.lower, i.lower + (i.upper-i.lower)/2, i.known
}
