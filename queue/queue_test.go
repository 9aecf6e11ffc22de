package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
)

func TestAppendedHitsAreLeasedInOrderAndSurviveAReopen(t *testing.T) {
	dir := t.TempDir()
	q := openAt(t, dir)
	for i := range 10 {
		mustAppend(t, q, aSet(i*3, 3, int64(i%2+1)))
	}
	for i, p := range leaseAll(t, q, 30) {
		if want := fmt.Sprintf("n=%d&", i); !bytes.Contains(p.Params, []byte(want)) {
			t.Errorf("hit %d is %s, want %s", i, p.Params, want)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}

	q = openAt(t, dir)
	got := leaseAll(t, q, 30)
	if got[0].Environment.ClientIP != "192.0.2.7" || got[29].Site != 2 {
		t.Errorf("after a reopen: %+v", got[29])
	}
	if s := q.Stats(); s.Accepted != 30 || s.Pending != 30 || s.Difference != 0 || s.Uncertain != 0 {
		t.Errorf("Stats = %+v, want 30 accepted and pending", s)
	}
}

func TestSettledHitsStaySettled(t *testing.T) {
	dir := t.TempDir()
	q := openAt(t, dir)
	mustAppend(t, q, aSet(0, 100, 1))
	hits := leaseAll(t, q, 100)
	batch, err := q.Journal(idsOf(hits[:60]), nil)
	if err != nil {
		t.Fatal(err)
	}
	list := settleAs(hits[:50], hit.Delivered)
	list[7].As = hit.Invalid
	list[9].As, list[9].Reason, list[9].Status, list[9].Answer = hit.Dead, "poison", 500, []byte("no")
	if err := q.Settle(batch, list); err != nil {
		t.Fatal(err)
	}
	if err := q.Settle(0, settleAs(hits[80:90], hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	if err := q.Settle(0, settleAs(hits[7:8], hit.Delivered)); err == nil {
		t.Error("a hit was settled twice without an error")
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}

	q = openAt(t, dir)
	s := q.Stats()
	if s.Delivered != 58 || s.Invalid != 1 || s.Dead != 1 || s.Pending != 40 || s.Difference != 0 || s.Uncertain != 0 {
		t.Errorf("Stats = %+v", s)
	}
	rest := leaseAll(t, q, 40)
	if rest[0].ID.Index != 50 || rest[30].ID.Index != 90 {
		t.Errorf("leased again from %v, then %v", rest[0].ID, rest[30].ID)
	}
	if err := q.Settle(0, settleAs(rest, hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	if s := q.Stats(); s.Pending != 0 || s.PendingBytes != 0 || s.OldestReceivedAt != 0 || s.Blocks != 0 {
		t.Errorf("drained, but Stats = %+v", s)
	}
	for l, err := range q.Dead(t.Context(), DeadFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.ID != hits[9].ID || l.Reason != "poison" || l.Status != 500 || string(l.Answer) != "no" ||
			!bytes.Equal(l.Hit.Params, hits[9].Params) {
			t.Errorf("dead letter %+v", l)
		}
	}
}

func TestWhatWasInFlightIsUncertainAfterTheProcessEnds(t *testing.T) {
	dir := t.TempDir()
	q := openAt(t, dir)
	mustAppend(t, q, aSet(0, 10, 1))
	hits := leaseAll(t, q, 10)
	open, err := q.Journal(idsOf(hits[2:5]), nil)
	if err != nil {
		t.Fatal(err)
	}
	given, err := q.Journal(idsOf(hits[5:8]), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Settle(given, nil); err != nil { // never sent
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}

	q = openAt(t, dir)
	for i, p := range leaseAll(t, q, 10) {
		want := uint64(0)
		if 2 <= i && i < 5 {
			want = open
		}
		if p.Uncertain != want {
			t.Errorf("hit %d: Uncertain = %d, want %d", i, p.Uncertain, want)
		}
	}
	if s := q.Stats(); s.Uncertain != 3 {
		t.Errorf("Uncertain = %d, want 3", s.Uncertain)
	}
	if err := q.Settle(open, settleAs(hits[2:3], hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	if s := q.Stats(); s.Uncertain != 0 || s.Delivered != 1 {
		t.Errorf("after the doubt is settled: %+v", s)
	}
}

func TestRequeuedLettersArePendingAgainAndCountedOnce(t *testing.T) {
	dir := t.TempDir()
	q := openAt(t, dir)
	mustAppend(t, q, aSet(0, 5, 3))
	hits := leaseAll(t, q, 5)
	list := settleAs(hits, hit.Dead)
	for i := range list {
		list[i].Reason = "poison"
	}
	if err := q.Settle(0, list); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	n, err := q.Requeue(t.Context(), DeadFilter{IDs: idsOf(hits[1:4])})
	if n != 3 || err != nil {
		t.Fatalf("Requeue = %d, %v, want 3", n, err)
	}
	again := leaseAll(t, q, 3)
	if !bytes.Equal(again[0].Params, hits[1].Params) || again[0].ReceivedAt != hits[1].ReceivedAt {
		t.Errorf("requeued %+v", again[0])
	}
	if s := q.Stats(); s.Accepted != 5 || s.Dead != 2 || s.Pending != 3 || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
	if err := q.Settle(0, settleAs(again, hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	if s := q.Stats(); s.Accepted != 5 || s.Delivered != 3 || s.Dead != 2 || s.Pending != 0 || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
	left := 0
	for range q.Dead(t.Context(), DeadFilter{}) {
		left++
	}
	if left != 2 {
		t.Errorf("%d dead letters are left, want 2", left)
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	openAt(t, dir)
	if _, err := Open(testOptions(t, dir)); !errors.Is(err, ErrLocked) {
		t.Errorf("Open = %v, want ErrLocked", err)
	}
}

// TestTheLockOfAKilledProcessIsAwaited: the kernel lets it go some milliseconds
// after the supervisor has started the next process.
func TestTheLockOfAKilledProcessIsAwaited(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		held, err := lockDir(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := lockDir(dir, lockPatience); !errors.Is(err, ErrLocked) || time.Since(began) != lockPatience {
			t.Errorf("lockDir = %v after %v, want ErrLocked after %v", err, time.Since(began), lockPatience)
		}
		time.AfterFunc(lockPatience/2, func() { held.Close() })
		next, err := lockDir(dir, lockPatience)
		if err != nil {
			t.Fatalf("lockDir = %v after the lock was let go", err)
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestASetThatNeverFitsIsRefused(t *testing.T) {
	q := openAt(t, t.TempDir())
	s := aSet(0, 1, 1)
	s.Hits[0].Params = bytes.Repeat([]byte("x"), maxBlockRaw+1)
	if err := q.Append(t.Context(), s); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Append = %v, want ErrTooLarge", err)
	}
	if _, err := Size(s); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Size = %v, want ErrTooLarge", err)
	}
	big := aSet(0, 20000, 1) // larger than a block, cut into several
	mustAppend(t, q, big)
	if got := leaseAll(t, q, 20000); len(got) != 20000 {
		t.Errorf("leased %d", len(got))
	}
}

func TestLeaseEndsWithItsContext(t *testing.T) {
	q := openAt(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := q.Lease(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lease = %v, want the context's error", err)
	}
}

func TestCloseRefusesWhatComesLater(t *testing.T) {
	q := openAt(t, t.TempDir())
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := q.Append(t.Context(), aSet(0, 1, 1)); !errors.Is(err, ErrStopped) {
		t.Errorf("Append = %v, want ErrStopped", err)
	}
	if _, err := q.Lease(t.Context(), 1); !errors.Is(err, ErrStopped) {
		t.Errorf("Lease = %v, want ErrStopped", err)
	}
	if err := q.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}
