package queue

import (
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
)

// TestOldImportsAreForgotten: a drained import is remembered for its time, whatever a
// clock says that was set ahead; one that is not drained always is.
func TestOldImportsAreForgotten(t *testing.T) {
	q := openAt(t, t.TempDir())
	drained := mustBegin(t, q)
	mustImport(t, q, drained, 1)
	mustComplete(t, q, drained)
	if err := q.Settle(0, settleAs(leaseAll(t, q, 1), hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	waitForDrained(t, q, drained)
	waiting := mustBegin(t, q)
	mustImport(t, q, waiting, 2)
	mustComplete(t, q, waiting)

	const keep = 400 * 24 * time.Hour
	age := func(age, ahead time.Duration) {
		opened := q.Imports()[0].Completed.Add(age - 2*expireEvery)
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			elapsed := func() time.Duration { return time.Since(began) }
			clock := steadyClock{now: func() time.Time { return opened.Add(elapsed() + ahead) }, opened: opened, elapsed: elapsed}
			stop, ended := make(chan struct{}), make(chan struct{})
			go func() { q.forgetLoop(keep, &clock, stop); close(ended) }()
			time.Sleep(2*expireEvery + time.Second)
			close(stop)
			<-ended
		})
	}
	age(keep, keep)
	wantKnown(t, q, "11", 1, 2)
	age(keep+time.Second, -time.Minute)
	wantKnown(t, q, "11", 1, 2)
	age(keep+time.Second, 0)
	wantKnown(t, q, "01", 1, 2)
	age(2*keep, 0)
	wantKnown(t, q, "01", 1, 2)
	verifyAndClose(t, q)
}
