package queue

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"sluice/internal/hit"
)

// buriedStore gives a closed queue's directory with n dead letters and as many
// pending hits.
func buriedStore(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	q, err := Open(testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, q, aSet(0, 2*n, 1))
	list := settleAs(leaseAll(t, q, 2*n)[:n], hit.Dead)
	for i := range list {
		list[i].Reason = "poison"
	}
	if err := q.Settle(0, list); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func deadOf(t testing.TB, q *Queue) (ids []hit.ID) {
	t.Helper()
	for l, err := range q.Dead(context.Background(), DeadFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, l.ID)
	}
	return ids
}

// TestTheExchangeOfDeadLettersKilledAtAnyStepKeepsThem: a copy without its end is
// dropped, a copy that was exchanged replaces its source.
func TestTheExchangeOfDeadLettersKilledAtAnyStepKeepsThem(t *testing.T) {
	origin := buriedStore(t, 5)
	for _, tt := range []struct {
		name  string
		leave func(t *testing.T, dead string)
		want  string
	}{
		{"the copy is not finished", func(t *testing.T, dead string) {
			copyInto(t, filepath.Join(dead, "000001"), filepath.Join(dead, "000002"+copyMark))
			remove(t, filepath.Join(dead, "000002"+copyMark, "MANIFEST"))
		}, "000001"},
		{"both are there", func(t *testing.T, dead string) {
			copyInto(t, filepath.Join(dead, "000001"), filepath.Join(dead, "000002"))
		}, "000002"},
		{"the source is half removed", func(t *testing.T, dead string) {
			copyInto(t, filepath.Join(dead, "000001"), filepath.Join(dead, "000002"))
			remove(t, filepath.Join(dead, "000001", "MANIFEST"))
		}, "000002"},
		{"the source was removed", func(t *testing.T, dead string) {
			if err := os.Rename(filepath.Join(dead, "000001"), filepath.Join(dead, "000002")); err != nil {
				t.Fatal(err)
			}
		}, "000002"},
		{"it had not begun", func(*testing.T, string) {}, "000001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			tt.leave(t, filepath.Join(dir, "dead"))
			q, book := openDamaged(t, dir)
			if got := deadOf(t, q); len(got) != 5 {
				t.Errorf("%d dead letters, want 5", len(got))
			}
			entries, err := os.ReadDir(filepath.Join(dir, "dead"))
			if err != nil || len(entries) != 1 || entries[0].Name() != tt.want {
				t.Errorf("in dead/: %v, %v, want %s", entries, err, tt.want)
			}
			if got := book.alarms(); len(got) > 0 {
				t.Errorf("alarms: %q", got)
			}
		})
	}
}

// TestShrinkGivesTheSpaceOfRemovedLettersBack and keeps those that are left.
func TestShrinkGivesTheSpaceOfRemovedLettersBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "q", "dead")
	if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	log := badgerLog{log: testOptions(t, "").Log}
	d, err := openDeadLetters(dir, log, Keys{})
	if err != nil {
		t.Fatal(err)
	}
	var letters []*hit.DeadLetter
	var ids []hit.ID
	for i := range 40 {
		l := &hit.DeadLetter{ID: hit.ID{Generation: 7, Block: 1, Index: uint32(i)}, Reason: "poison",
			Hit: hit.Hit{Params: make([]byte, 20<<10)}}
		letters, ids = append(letters, l), append(ids, l.ID)
	}
	if err := d.put(letters); err != nil {
		t.Fatal(err)
	}
	if err := d.remove(ids[:35], requeued); err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil { // flushes the log
		t.Fatal(err)
	}
	before := diskUsage(dir)
	if d, err = openDeadLetters(dir, log, Keys{}); err != nil {
		t.Fatal(err)
	}
	d.copyAt = 1
	if _, err := d.renew(); err != nil {
		t.Fatal(err)
	}
	if d.number != 2 {
		t.Errorf("number %d after shrinking, want 2", d.number)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if after := diskUsage(dir); after > before/4 {
		t.Errorf("%d bytes on disk, %d before", after, before)
	}
	if d, err = openDeadLetters(dir, log, Keys{}); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	n := 0
	for l, err := range d.all(t.Context(), DeadFilter{}) {
		if err != nil || l.ID.Index < 35 {
			t.Errorf("letter %+v, %v", l, err)
		}
		n++
	}
	if n != 5 {
		t.Errorf("%d letters left, want 5", n)
	}
}

// TestDamagedDeadLettersDoNotStopTheQueue: without MANIFEST nothing is lost, a
// flipped bit costs one letter, which is told and left where it is.
func TestDamagedDeadLettersDoNotStopTheQueue(t *testing.T) {
	origin := buriedStore(t, 8)
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, db string)
		lost int
	}{
		{"no MANIFEST", func(t *testing.T, db string) { remove(t, filepath.Join(db, "MANIFEST")) }, 0},
		{"a table without its end", func(t *testing.T, db string) {
			path := theFile(t, db, ".sst")
			truncate(t, path, int64(len(mustRead(t, path))-9))
		}, 0},
		{"a flipped bit", func(t *testing.T, db string) { flipBit(t, theFile(t, db, ".sst"), 200, 1) }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			tt.harm(t, filepath.Join(dir, "dead", "000001"))
			q, book := openDamaged(t, dir)
			whole, bad := 0, 0
			for _, err := range q.Dead(t.Context(), DeadFilter{}) {
				if err != nil {
					bad++
				} else {
					whole++
				}
			}
			if whole != 8-tt.lost || bad != tt.lost {
				t.Errorf("%d letters, %d damaged, want %d and %d", whole, bad, 8-tt.lost, tt.lost)
			}
			if len(book.alarms()) == 0 {
				t.Error("no alarm")
			}
		})
	}
}

// TestALetterOfAPendingHitIsRemoved: the process died between the burial and the
// settlement. The hit is pending, so it is not dead.
func TestALetterOfAPendingHitIsRemoved(t *testing.T) {
	dir := t.TempDir()
	q, err := Open(testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, q, aSet(0, 3, 1))
	list := settleAs(leaseAll(t, q, 3)[:2], hit.Dead)
	if err := q.bury(list); err != nil {
		t.Fatal(err)
	}
	crash := copyTree(t, dir)
	q.Close()
	q2, _ := openDamaged(t, crash)
	if got := deadOf(t, q2); len(got) != 0 {
		t.Errorf("dead letters %v of pending hits", got)
	}
	if got := leaseRest(t, q2); len(got) != 3 {
		t.Errorf("%d hits leased, want 3", len(got))
	}
	if s := q2.Stats(); s.Dead != 0 || s.Pending != 3 || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

// TestARequeueThatWasKilledIsCompletedOnce: the hits were appended, the letters
// not yet removed.
func TestARequeueThatWasKilledIsCompletedOnce(t *testing.T) {
	oneCaller(t)
	dir := buriedStore(t, 4)
	q, err := Open(testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	ids := deadOf(t, q)
	var sets []*hit.RequestSet
	for l, err := range q.Dead(t.Context(), DeadFilter{IDs: ids[:2]}) {
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, &hit.RequestSet{ReceivedAt: l.ReceivedAt, Environment: l.Environment, Hits: []hit.Hit{l.Hit}})
	}
	if err := q.live.append(t.Context(), sets, origin{requeued: ids[:2]}); err != nil {
		t.Fatal(err)
	}
	beforeRemoval := copyTree(t, dir)
	if err := q.dead.remove(ids[:2], requeued); err != nil {
		t.Fatal(err)
	}
	afterRemoval := copyTree(t, dir)
	q.Close()
	for i, dir := range []string{beforeRemoval, afterRemoval} {
		t.Run(fmt.Sprint("step=", i), func(t *testing.T) {
			for range 2 { // the second opening finds nothing to do
				q, err := Open(testOptions(t, dir))
				if err != nil {
					t.Fatal(err)
				}
				if got := deadOf(t, q); len(got) != 2 {
					t.Errorf("%d dead letters, want 2", len(got))
				}
				if s := q.Stats(); s.Accepted != 8 || s.Dead != 2 || s.DeadRequeued != 2 || s.Pending != 6 || s.Difference != 0 {
					t.Errorf("Stats = %+v", s)
				}
				if got := len(leaseRest(t, q)); got != 6 {
					t.Errorf("%d hits leased, want 6", got)
				}
				flush(t, q)
				if err := q.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
