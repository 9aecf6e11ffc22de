package queue

import (
	"context"
	"errors"
	"slices"
	"testing"

	"sluice/internal/hit"
)

// A testJudge finds a hit late if a newer one was handed to it, and calls during while it
// is asked for what is recorded.
type testJudge struct {
	handed   []hit.Pending
	recorded []bool
	during   func()
	err      error
}

func (j *testJudge) Handed(hits []hit.Pending) { j.handed = append(j.handed, hits...) }

func (j *testJudge) Late(_ context.Context, hits []hit.Pending, recorded bool) ([]bool, error) {
	j.recorded = append(j.recorded, recorded)
	if recorded && j.during != nil {
		j.during()
	}
	late := make([]bool, len(hits))
	for i := range hits {
		late[i] = slices.ContainsFunc(j.handed, func(p hit.Pending) bool { return p.ReceivedAt > hits[i].ReceivedAt })
	}
	return late, j.err
}

// TestJudgesKnowWhatIsUnderWay: what was handed out and is not settled is told, what is
// settled or only read ahead is not, and others are handed out while the import is read.
func TestJudgesKnowWhatIsUnderWay(t *testing.T) {
	q := openAt(t, t.TempDir())
	sets, _ := oldSets(1, 2, 3, 4, 5)
	mustAppend(t, q, sets...)
	hits := leaseAll(t, q, 3)
	if err := q.Settle(0, settleAs(hits[:1], hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	id := mustBegin(t, q)
	mustImport(t, q, id, 2, 4, 6)

	quiet := &testJudge{}
	if n, err := q.CompleteImport(t.Context(), id, false, quiet); n != 1 || !errors.Is(err, ErrLate) {
		t.Errorf("%d late hits, %v", n, err)
	}
	wantSeconds(t, quiet.handed, 2, 3)
	if want := []bool{true}; !slices.Equal(quiet.recorded, want) {
		t.Errorf("asked with recorded %v, want %v", quiet.recorded, want)
	}

	busy := &testJudge{during: func() { wantSeconds(t, leaseAll(t, q, 2), 4, 5) }}
	if n, err := q.CompleteImport(t.Context(), id, false, busy); n != 2 || !errors.Is(err, ErrLate) {
		t.Errorf("%d late hits, %v", n, err)
	}
	wantSeconds(t, busy.handed, 2, 3, 4, 5)
	if want := []bool{true, false}; !slices.Equal(busy.recorded, want) {
		t.Errorf("asked with recorded %v, want %v", busy.recorded, want)
	}
	if q.witness != nil {
		t.Error("what is handed out is still noted")
	}
	verifyAndClose(t, q)
}

// TestManyLateHits: hits are judged in parts, and each counts.
func TestManyLateHits(t *testing.T) {
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	var seconds []int
	for n := range 2*lateChunk + 2 {
		seconds = append(seconds, n)
	}
	mustImport(t, q, id, seconds...)
	newest, _ := oldSet(2*lateChunk + 1)
	j := &testJudge{handed: []hit.Pending{{ReceivedAt: newest.ReceivedAt}}}
	if n, err := q.CompleteImport(t.Context(), id, false, j); n != 2*lateChunk+1 || !errors.Is(err, ErrLate) || len(j.recorded) != 3 {
		t.Errorf("%d late hits in %d parts, %v", n, len(j.recorded), err)
	}
	verifyAndClose(t, q)
}

// TestUnknownLateHits: without an answer an import waits, unless late hits are allowed.
func TestUnknownLateHits(t *testing.T) {
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	mustImport(t, q, id, 1)
	deaf := &testJudge{err: errors.New("no answer")}
	if n, err := q.CompleteImport(t.Context(), id, false, deaf); n != 0 || !errors.Is(err, ErrLateUnknown) {
		t.Errorf("%d late hits, %v", n, err)
	}
	noHits(t, q)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.CompleteImport(ctx, id, true, deaf); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	noHits(t, q)
	if n, err := q.CompleteImport(t.Context(), id, true, deaf); n != -1 || err != nil {
		t.Errorf("%d late hits, %v", n, err)
	}
	wantSeconds(t, leaseAll(t, q, 1), 1)
	verifyAndClose(t, q)
}
