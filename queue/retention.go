package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"sluice/internal/hit"
)

// expireEvery is how often letters are looked at that may be old enough to go.
const expireEvery = time.Hour

// A retention removes the dead letters that have been kept for long enough.
//
// What a wrong clock has removed is gone, so age is counted on a [steadyClock]. And the
// opening itself may see a wrong clock: the run at the start removes only what the last
// hourly run before it would have removed, too, and the first that believes the
// clock of the opening comes an hour later. Where this errs, letters stay longer.
type retention struct {
	q    *Queue
	keep time.Duration
	steadyClock

	behind bool // the wall clock was seen to be ahead
}

func newRetention(q *Queue, keep time.Duration) *retention {
	return &retention{q: q, keep: keep, steadyClock: newSteadyClock(q.now)}
}

// A steadyClock is one that no jump pushes ahead: it begins with the wall clock of the
// opening, runs with the monotonic one and is never ahead of the wall clock.
type steadyClock struct {
	now     func() time.Time     // the wall clock
	opened  time.Time            // by it
	elapsed func() time.Duration // since then, by the monotonic clock
}

func newSteadyClock(now func() time.Time) steadyClock {
	began := time.Now()
	return steadyClock{now: now, opened: now(), elapsed: func() time.Duration { return time.Since(began) }}
}

// read gives the time, and how far the wall clock is ahead of it.
func (c *steadyClock) read() (t time.Time, ahead time.Duration) {
	wall, own := c.now(), c.opened.Add(c.elapsed())
	if wall.Before(own) {
		return wall, 0
	}
	return own, wall.Sub(own)
}

// run looks once and then every hour, until stop is closed.
func (r *retention) run(stop <-chan struct{}) {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for err := r.atStart(); ; err = r.hourly() {
		if err != nil {
			r.q.fail(err)
			return
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// clock is the time that age is counted by, in Unix nanoseconds.
func (r *retention) clock() int64 {
	now, by := r.read()
	if ahead := by > expireEvery; ahead != r.behind {
		r.behind = ahead
		if ahead {
			r.q.log.Warn("the clock was set ahead; dead letters are kept that much longer until the next start", "by", by.Round(time.Second))
		}
	}
	return now.UnixNano()
}

func (r *retention) atStart() error {
	return r.expire(min(r.clock(), r.q.dead.leftNow().looked))
}

func (r *retention) hourly() error {
	now := r.clock()
	if err := r.expire(now); err != nil || !r.q.guard.mayWrite() {
		return err
	}
	return r.q.dead.look(now)
}

// expire removes the letters that are old enough at a time. On a full disk it
// leaves that to the next run.
func (r *retention) expire(now int64) error {
	q := r.q
	q.leaving.Lock()
	defer q.leaving.Unlock()
	before := now - int64(r.keep)
	var ids []hit.ID
	reasons := make(map[string]int)
	for l, err := range q.dead.all(context.Background(), DeadFilter{}) {
		// One that cannot be read is kept: nobody knows its age.
		if err == nil && l.BuriedAt <= before && q.isSettled(l.ID) && !q.isReturned(l.ID) {
			ids = append(ids, l.ID)
			reasons[l.Reason]++
		}
	}
	if len(ids) == 0 || !q.guard.mayWrite() {
		return nil
	}
	if err := q.dead.remove(ids, outOfDate); err != nil {
		return err
	}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		q.inst.set.GetOrCreateCounter(fmt.Sprintf("sluice_queue_dead_expired_hits_total{reason=%q}", reason)).Add(reasons[reason])
		q.log.Info("dead letters were kept for as long as queue.dead-retention says and are removed", "reason", reason, "hits", reasons[reason])
	}
	return nil
}

// buryingTime gives the time of a burial, in Unix nanoseconds. It does not go back
// behind the newest block: a clock that was set back must not make letters look old
// once it is right again.
func (q *Queue) buryingTime() int64 {
	s := q.live
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(q.now().UnixNano(), int64(min(s.st.lastClock, 1<<63-1)))
}
