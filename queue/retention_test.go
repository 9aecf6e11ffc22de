package queue

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/internal/hit"
)

// clocks is a wall clock that can be set and a monotonic one that cannot.
type clocks struct {
	wall atomic.Int64
	mono time.Duration
	r    *retention
}

// pass lets time go by.
func (c *clocks) pass(d time.Duration) {
	c.wall.Add(int64(d))
	c.mono += d
}

// set sets the wall clock.
func (c *clocks) set(by time.Duration) { c.wall.Add(int64(by)) }

// open opens the queue with a retention that the test runs itself.
func (c *clocks) open(t *testing.T, dir string, keep time.Duration) *Queue {
	t.Helper()
	o := testOptions(t, dir)
	o.Now = func() time.Time { return time.Unix(0, c.wall.Load()) }
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	c.r = newRetention(q, keep)
	began := c.mono
	c.r.elapsed = func() time.Duration { return c.mono - began }
	return q
}

// bury buries one more hit.
func (c *clocks) bury(t *testing.T, q *Queue, reason string) {
	t.Helper()
	mustAppend(t, q, aSet(0, 1, 1))
	list := settleAs(leaseAll(t, q, 1), hit.Dead)
	list[0].Reason = reason
	if err := q.Settle(0, list); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
}

func TestLettersAreKeptForAsLongAsTheyShouldBe(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name string
		// run gets a queue with one letter, and gives the queue that is open at the end.
		run  func(t *testing.T, c *clocks, q *Queue, reopen func() *Queue) *Queue
		want int // letters left
	}{
		{"a young letter stays", func(t *testing.T, c *clocks, q *Queue, _ func() *Queue) *Queue {
			c.pass(10*day - time.Minute)
			return q
		}, 1},
		{"an old letter goes", func(t *testing.T, c *clocks, q *Queue, _ func() *Queue) *Queue {
			c.pass(10 * day)
			return q
		}, 0},
		{"a clock that jumps ahead ages nothing", func(t *testing.T, c *clocks, q *Queue, _ func() *Queue) *Queue {
			c.set(20 * day)
			for range 3 {
				c.pass(time.Hour)
				mustDo(t, c.r.hourly())
			}
			c.set(-20 * day)
			return q
		}, 1},
		{"nor does it while it stays ahead", func(t *testing.T, c *clocks, q *Queue, _ func() *Queue) *Queue {
			c.set(20 * day)
			c.pass(9 * day)
			return q
		}, 1},
		{"behind a jump a letter goes at its time", func(t *testing.T, c *clocks, q *Queue, _ func() *Queue) *Queue {
			c.set(day)
			c.pass(10 * day)
			return q
		}, 0},
		{"a clock that goes back makes nothing older", func(t *testing.T, c *clocks, q *Queue, _ func() *Queue) *Queue {
			c.set(-5 * day)
			c.pass(10 * day)
			return q
		}, 1},
		{"a start with a clock that is ahead removes nothing", func(t *testing.T, c *clocks, q *Queue, reopen func() *Queue) *Queue {
			mustDo(t, c.r.hourly())
			mustClose(t, q)
			c.set(20 * day)
			q = reopen()
			mustDo(t, c.r.atStart())
			c.set(-20 * day)
			return q
		}, 1},
		{"what was old enough before a stop goes at the start", func(t *testing.T, c *clocks, q *Queue, reopen func() *Queue) *Queue {
			c.r.keep = 100 * day // until the restart
			c.pass(10 * day)
			mustDo(t, c.r.hourly())
			mustClose(t, q)
			q = reopen()
			mustDo(t, c.r.atStart())
			c.set(-20 * day) // so that the run after it has nothing to say
			return q
		}, 0},
		{"a letter of a time when the clock was set back is as young as it is", func(t *testing.T, c *clocks, q *Queue, reopen func() *Queue) *Queue {
			c.pass(time.Hour)
			if n, err := q.Requeue(t.Context(), DeadFilter{}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			leaseAll(t, q, 1)
			mustClose(t, q)
			c.set(-100 * day)
			q = reopen()
			list := settleAs(leaseAll(t, q, 1), hit.Dead)
			list[0].Reason = "poison"
			mustDo(t, q.Settle(0, list))
			mustClose(t, q)
			c.set(100 * day)
			q = reopen()
			c.pass(time.Hour)
			return q
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c := &clocks{}
			c.wall.Store(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixNano())
			q := c.open(t, dir, 10*day)
			c.bury(t, q, "poison")
			q = tt.run(t, c, q, func() *Queue { return c.open(t, dir, 10*day) })
			mustDo(t, c.r.hourly())
			defer verifyAndClose(t, q)
			if got := len(deadOf(t, q)); got != tt.want {
				t.Errorf("%d letters left, want %d", got, tt.want)
			}
			if s := q.Stats(); s.DeadKept != int64(tt.want) || s.DeadExpired != int64(1-tt.want) || s.Dead != 1 || s.Difference != 0 {
				t.Errorf("Stats = %+v", s)
			}
		})
	}
}

// TestExpiredLettersAreCounted by reason, in the log, and for ever.
func TestExpiredLettersAreCounted(t *testing.T) {
	dir := t.TempDir()
	c := &clocks{}
	c.wall.Store(time.Now().UnixNano())
	q := c.open(t, dir, time.Hour)
	for _, reason := range []string{"poison", "partial", "poison"} {
		c.bury(t, q, reason)
	}
	c.pass(time.Hour + time.Second)
	c.bury(t, q, "poison")
	mustDo(t, c.r.hourly())
	mustDo(t, c.r.hourly())
	var m strings.Builder
	q.inst.set.WritePrometheus(&m)
	for _, want := range []string{
		`sluice_queue_dead_expired_hits_total{reason="poison"} 2` + "\n", `sluice_queue_dead_expired_hits_total{reason="partial"} 1` + "\n",
		"sluice_queue_dead_hits 1\n",
	} {
		if !strings.Contains(m.String(), want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	if n, err := q.Requeue(t.Context(), DeadFilter{}); n != 1 || err != nil {
		t.Errorf("requeued %d, %v", n, err)
	}
	mustClose(t, q)
	q = openAt(t, dir)
	if s := q.Stats(); s.Accepted != 4 || s.Dead != 3 || s.DeadKept != 0 || s.DeadExpired != 3 || s.DeadRequeued != 1 || s.Pending != 1 || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

// TestARetentionRunsByItself from the opening on, and ends with the queue.
func TestARetentionRunsByItself(t *testing.T) {
	dir := buriedStore(t, 3)
	q := openAt(t, dir)
	mustDo(t, q.dead.look(time.Now().Add(2*time.Hour).UnixNano()))
	mustClose(t, q)
	o := testOptions(t, dir)
	o.DeadRetention = time.Hour
	o.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer verifyAndClose(t, q)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for q.Stats().DeadExpired != 3 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the letters are still there")
		}
	}
	if got := len(deadOf(t, q)); got != 0 {
		t.Errorf("%d letters left", got)
	}
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustClose(t testing.TB, q *Queue) {
	t.Helper()
	mustDo(t, q.Close())
}
