package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sluice/internal/durable"
	"sluice/internal/hit"
)

// noon is a moment long ago.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// oldSet is a set of one hit of site 1 that was received some seconds after noon, and its line.
func oldSet(second int) (*hit.RequestSet, Line) {
	s := aSet(second, 1, 1)
	s.ReceivedAt = noon.Add(time.Duration(second) * time.Second).UnixNano()
	s.Hits[0].At = s.ReceivedAt / 1e9
	l := Line{At: s.Hits[0].At}
	binary.LittleEndian.PutUint64(l.ID[:], uint64(second)+1)
	return s, l
}

func oldSets(seconds ...int) (sets []*hit.RequestSet, lines []Line) {
	for _, n := range seconds {
		s, l := oldSet(n)
		sets, lines = append(sets, s), append(lines, l)
	}
	return sets, lines
}

func mustBegin(t *testing.T, q *Queue) string {
	t.Helper()
	i, err := q.BeginImport("test", noon, noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return i.ID
}

func mustImport(t *testing.T, q *Queue, id string, seconds ...int) {
	t.Helper()
	sets, lines := oldSets(seconds...)
	if err := q.AppendImport(t.Context(), id, sets, lines); err != nil {
		t.Fatal(err)
	}
}

func mustComplete(t *testing.T, q *Queue, id string) {
	t.Helper()
	if late, err := q.CompleteImport(t.Context(), id, false, nil); late != 0 || err != nil {
		t.Fatalf("complete: %d late, %v", late, err)
	}
}

// secondsOf gives when hits were received, in seconds after noon.
func secondsOf(hits []hit.Pending) (out []int) {
	for _, h := range hits {
		out = append(out, int(time.Unix(0, h.ReceivedAt).Sub(noon)/time.Second))
	}
	return out
}

func wantSeconds(t *testing.T, hits []hit.Pending, want ...int) {
	t.Helper()
	if got := secondsOf(hits); !slices.Equal(got, want) {
		t.Errorf("got hits of the seconds %v, want %v", got, want)
	}
}

func wantKnown(t *testing.T, q *Queue, want string, seconds ...int) {
	t.Helper()
	_, lines := oldSets(seconds...)
	known, err := q.KnownLines(lines)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, k := range known {
		got += map[bool]string{true: "1", false: "0"}[k]
	}
	if got != want {
		t.Errorf("known lines of %v: %s, want %s", seconds, got, want)
	}
}

func (q *Queue) stateOf(id string) ImportState {
	for _, i := range q.Imports() {
		if i.ID == id {
			return i.State
		}
	}
	return ""
}

func noHits(t *testing.T, q *Queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if got, err := q.Lease(ctx, 10); err == nil {
		t.Errorf("leased %v", secondsOf(got))
	}
}

// TestAnImportIsMergedByTime: nothing of it is handed out while it is open; complete, its
// hits stand in their places among those that were not handed out yet.
func TestAnImportIsMergedByTime(t *testing.T) {
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	mustImport(t, q, id, 1, 3, 3)
	mustImport(t, q, id, 3, 7, 9)
	live, _ := oldSets(2, 3, 8)
	mustAppend(t, q, live...)
	if got, err := q.BeginImport("", noon, noon); !errors.Is(err, ErrImportOpen) || got.ID != id || got.Accepted != 6 {
		t.Errorf("a second import: %v, %v", got, err)
	}
	if s := q.Stats(); s.Pending != 9 || s.Accepted != 9 {
		t.Errorf("Stats = %+v", s)
	}
	if n := q.PendingOf(1); n != 9 {
		t.Errorf("%d hits of site 1 pending", n)
	}
	mustComplete(t, q, id)
	second := mustBegin(t, q)
	mustImport(t, q, second, 0, 3, 10)
	mustComplete(t, q, second)

	var hits []hit.Pending
	for len(hits) < 12 {
		got, err := q.Lease(t.Context(), 5)
		if err != nil {
			t.Fatal(err)
		}
		hits = append(hits, got...)
	}
	wantSeconds(t, hits, 0, 1, 2, 3, 3, 3, 3, 3, 7, 8, 9, 10)
	want := []string{id, id, id, second} // of the hits of second 3, the live one last
	for i, w := range want {
		if g := fmt.Sprintf("%016x", hits[3+i].ID.Generation); g != w {
			t.Errorf("hit %d of second 3 is of %s, want %s", i, g, w)
		}
	}
	noHits(t, q)
	verifyAndClose(t, q)
}

// TestAnImportIsSettledWithTheOthers: one batch holds hits of several streams.
func TestAnImportIsSettledWithTheOthers(t *testing.T) {
	dir := t.TempDir()
	q := openAt(t, dir)
	id := mustBegin(t, q)
	mustImport(t, q, id, 1, 3, 5)
	mustComplete(t, q, id)
	live, _ := oldSets(2, 4, 6)
	mustAppend(t, q, live...)
	hits := leaseAll(t, q, 6)
	wantSeconds(t, hits, 1, 2, 3, 4, 5, 6)
	batch, err := q.Journal(idsOf(hits), []byte("memo"))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(q.Memo(batch)); got != "memo" {
		t.Errorf("memo %q", got)
	}
	if got, err := q.Reread(t.Context(), idsOf(hits)); err != nil || !slices.Equal(secondsOf(got), secondsOf(hits)) {
		t.Errorf("read again: %v, %v", secondsOf(got), err)
	}
	killed := copyTree(t, dir)

	// Neither stream takes a settlement of which the other's part is refused.
	wrong := settleAs(hits[:2], hit.Delivered)
	wrong[1].ID.Index = 99
	if err := q.Settle(batch, wrong); err == nil {
		t.Error("settled a hit that is not there")
	}
	if err := q.Settle(batch, settleAs(hits[:4], hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	if err := q.Settle(0, settleAs(hits[4:5], hit.Dead)); err != nil {
		t.Fatal(err)
	}
	if err := q.Settle(0, settleAs(hits[5:], hit.Invalid)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	if q.Memo(batch) != nil {
		t.Error("the batch is still open")
	}
	if s := q.Stats(); s.Delivered != 4 || s.Dead != 1 || s.Invalid != 1 || s.Pending != 0 {
		t.Errorf("Stats = %+v", s)
	}
	waitForDrained(t, q, id)
	// The letter of a drained import comes back.
	if n, err := q.Requeue(t.Context(), DeadFilter{}); n != 1 || err != nil {
		t.Errorf("requeued %d, %v", n, err)
	}
	wantSeconds(t, leaseAll(t, q, 1), 5)
	verifyAndClose(t, q)

	// Killed in the middle, all hits of the batch are in doubt, and a new batch has
	// another number.
	q = openAt(t, killed)
	hits = leaseAll(t, q, 6)
	for _, h := range hits {
		if h.Uncertain != batch {
			t.Errorf("hit %v: Uncertain = %d, want %d", h.ID, h.Uncertain, batch)
		}
	}
	if s := q.Stats(); s.Uncertain != 6 {
		t.Errorf("Stats = %+v", s)
	}
	if next, err := q.Journal(idsOf(hits[:1]), nil); err != nil || next == batch {
		t.Errorf("batch %d, %v", next, err)
	}
	verifyAndClose(t, q)
}

// waitForDrained waits until an import has no hits left, and no shelves.
func waitForDrained(t *testing.T, q *Queue, id string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(filepath.Join(q.dir, "import-"+id))
		if q.stateOf(id) == ImportDrained && errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the import is %s after 10 s", q.stateOf(id))
		}
	}
}

// TestAnImportOutlivesItsProcess in each of its states, killed or closed.
func TestAnImportOutlivesItsProcess(t *testing.T) {
	oneCaller(t)
	for _, killed := range []bool{true, false} {
		t.Run(fmt.Sprintf("killed=%t", killed), func(t *testing.T) {
			dir := t.TempDir()
			q := openAt(t, dir)
			again := func() {
				t.Helper()
				if killed {
					dir = copyTree(t, q.dir)
				}
				verifyAndClose(t, q)
				q = openAt(t, dir)
			}
			id := mustBegin(t, q)
			again()
			wantKnown(t, q, "0", 1)
			mustImport(t, q, id, 1, 2)
			mustImport(t, q, id, 5)
			again()
			wantKnown(t, q, "11010", 1, 2, 3, 5, 6)
			noHits(t, q)
			sets, lines := oldSets(4)
			if err := q.AppendImport(t.Context(), id, sets, lines); !errors.Is(err, ErrImportOrder) {
				t.Errorf("an older hit: %v", err)
			}
			mustImport(t, q, id, 5, 6)
			mustComplete(t, q, id)
			sets, lines = oldSets(7)
			if err := q.AppendImport(t.Context(), id, sets, lines); !errors.Is(err, ErrNoImport) {
				t.Errorf("a hit for a complete import: %v", err)
			}
			again()
			hits := leaseAll(t, q, 5)
			wantSeconds(t, hits, 1, 2, 5, 5, 6)
			if err := q.Settle(0, settleAs(hits, hit.Delivered)); err != nil {
				t.Fatal(err)
			}
			waitForDrained(t, q, id)
			again()
			if got := q.Imports(); len(got) != 1 || got[0].Accepted != 5 || got[0].Delivered != 5 || !got[0].To.Equal(noon.Add(6*time.Second)) {
				t.Errorf("imports: %+v", got)
			}
			if s := q.Stats(); s.Accepted != 5 || s.Delivered != 5 || s.Difference != 0 {
				t.Errorf("Stats = %+v", s)
			}
			if w, all, exact := q.Sums(1, noon.Unix()/quarterSeconds, noon.Unix()/quarterSeconds+1); w.Delivered != 5 || all.Delivered != 5 || !exact {
				t.Errorf("Sums = %+v, %+v, %t", w, all, exact)
			}
			wantKnown(t, q, "11011", 1, 2, 3, 5, 6)
			if left, _ := filepath.Glob(filepath.Join(q.dir, "import-"+id, "*")); len(left) > 0 {
				t.Errorf("left of a drained import: %q", left)
			}
			if err := q.ForgetImport(id); err != nil {
				t.Fatal(err)
			}
			wantKnown(t, q, "0", 1)
			again()
			wantKnown(t, q, "0", 1)
			verifyAndClose(t, q)
		})
	}
}

// TestNoTwoBatchesHaveOneNumber: one that had hits of an import only is not forgotten
// by the live stream's next.
func TestNoTwoBatchesHaveOneNumber(t *testing.T) {
	oneCaller(t)
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	mustImport(t, q, id, 1)
	mustComplete(t, q, id)
	batch, err := q.Journal(idsOf(leaseAll(t, q, 1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := copyTree(t, q.dir)
	verifyAndClose(t, q)
	q = openAt(t, dir)
	live, _ := oldSet(2)
	mustAppend(t, q, live)
	next, err := q.Journal(idsOf(leaseAll(t, q, 2)[1:]), nil)
	if err != nil || next <= batch {
		t.Errorf("batch %d after batch %d, %v", next, batch, err)
	}
	verifyAndClose(t, q)
}

// TestALetterOfAnImportIsStale: buried and not settled, a hit of an import is pending
// after a kill, also where the live stream is long past its block's number.
func TestALetterOfAnImportIsStale(t *testing.T) {
	oneCaller(t)
	q := openAt(t, t.TempDir())
	for n := range 5 {
		set, _ := oldSet(n)
		mustAppend(t, q, set)
		if err := q.Settle(0, settleAs(leaseAll(t, q, 1), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
	}
	id := mustBegin(t, q)
	mustImport(t, q, id, 10)
	mustComplete(t, q, id)
	if err := q.bury(settleAs(leaseAll(t, q, 1), hit.Dead)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	dir := copyTree(t, q.dir)
	verifyAndClose(t, q)
	q = openAt(t, dir)
	for l := range q.Dead(t.Context(), DeadFilter{}) {
		t.Errorf("the letter %v is still there", l.ID)
	}
	wantSeconds(t, leaseAll(t, q, 1), 10)
	verifyAndClose(t, q)
}

// TestAnImportKeepsItsKey: its hits can be read after the key was changed, however far
// the live stream is.
func TestAnImportKeepsItsKey(t *testing.T) {
	oneCaller(t)
	dir := t.TempDir()
	openWith(t, dir, testKeys(1), func(q *Queue) {
		id := mustBegin(t, q)
		mustImport(t, q, id, 1)
		mustComplete(t, q, id)
	})
	openWith(t, dir, testKeys(2, 1), func(q *Queue) {
		live, _ := oldSets(2, 3)
		mustAppend(t, q, live...)
		hits := leaseAll(t, q, 3)
		wantSeconds(t, hits, 1, 2, 3)
		if err := q.Settle(0, settleAs(hits[1:], hit.Delivered)); err != nil {
			t.Fatal(err)
		}
	})
	if err := CheckKeys(dir, testKeys(2)); !errors.Is(err, ErrKey) {
		t.Errorf("without the import's key: %v", err)
	}
	openWith(t, dir, testKeys(2, 1), func(q *Queue) {
		if err := q.Settle(0, settleAs(leaseAll(t, q, 1), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
		waitForDrained(t, q, q.Imports()[0].ID)
	})
	if err := CheckKeys(dir, testKeys(2)); err != nil {
		t.Errorf("when nothing needs it any more: %v", err)
	}
}

// TestACancelledImportIsGone with its hits, its lines and its files.
func TestACancelledImportIsGone(t *testing.T) {
	oneCaller(t)
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	mustImport(t, q, id, 1, 2)
	half := copyTree(t, q.dir)
	if err := q.CancelImport(id); err != nil {
		t.Fatal(err)
	}
	gone := func(q *Queue) {
		t.Helper()
		wantKnown(t, q, "00", 1, 2)
		if s := q.Stats(); s.Accepted != 0 || s.Pending != 0 || s.PendingBytes != 0 || q.guard.pending.Load() != 0 {
			t.Errorf("Stats = %+v", s)
		}
		if left, _ := filepath.Glob(filepath.Join(q.dir, "import-*")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	gone(q)
	verifyAndClose(t, q)
	// Killed behind the mark, the opening goes on.
	mark := filepath.Join(half, "import-"+id+importMark)
	if err := os.WriteFile(mark, []byte(`{"id":"`+id+`","state":"cancelled"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	q = openAt(t, half)
	gone(q)
	verifyAndClose(t, q)
}

// TestACompleteImportIsCancelled as long as nothing of it was handed out, also by an earlier
// process.
func TestACompleteImportIsCancelled(t *testing.T) {
	for _, given := range []string{"", "read ahead", "handed out", "sent", "delivered"} {
		t.Run(given, func(t *testing.T) {
			dir := t.TempDir()
			q := openAt(t, dir)
			id := mustBegin(t, q)
			mustImport(t, q, id, 2, 3)
			mustComplete(t, q, id)
			if given == "read ahead" { // the import is read, to see which comes first
				first, _ := oldSet(1)
				mustAppend(t, q, first)
				wantSeconds(t, leaseAll(t, q, 1), 1)
			} else if given != "" {
				hits := leaseAll(t, q, 1)
				if given != "handed out" {
					batch, err := q.Journal(idsOf(hits), nil)
					if err != nil {
						t.Fatal(err)
					}
					if given == "delivered" {
						err = q.Settle(batch, settleAs(hits, hit.Delivered))
					}
					if err != nil {
						t.Fatal(err)
					}
					verifyAndClose(t, q)
					q = openAt(t, dir)
				}
			}
			err := q.CancelImport(id)
			if given != "" && given != "read ahead" {
				if !errors.Is(err, ErrNoImport) {
					t.Errorf("cancelled: %v", err)
				}
				verifyAndClose(t, q)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantKnown(t, q, "00", 2, 3)
			noHits(t, q)
			verifyAndClose(t, q)
			q = openAt(t, dir)
			if got := q.Imports(); len(got) != 0 {
				t.Errorf("imports: %+v", got)
			}
			verifyAndClose(t, q)
		})
	}
}

// TestAKillLeavesNoFileOfAnImport that was only just begun, nor lines that are forgotten.
func TestAKillLeavesNoFileOfAnImport(t *testing.T) {
	oneCaller(t)
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	begun := copyTree(t, q.dir)
	mustImport(t, q, id, 1)
	mustComplete(t, q, id)
	remembered := filepath.Join(copyTree(t, q.dir), "import-"+id+importIDs)
	if err := q.ForgetImport(id); err != nil {
		t.Fatal(err)
	}
	forgotten := copyTree(t, q.dir)
	verifyAndClose(t, q)
	mark := filepath.Join(begun, "import-"+id+importMark)
	lines := filepath.Join(forgotten, "import-"+id+importIDs)
	if err := errors.Join(os.Rename(mark, mark+durable.TemporarySuffix), os.Rename(remembered, lines)); err != nil {
		t.Fatal(err)
	}
	verifyAndClose(t, openAt(t, begun))
	verifyAndClose(t, openAt(t, forgotten))
	left, _ := filepath.Glob(filepath.Join(begun, "import-*"))
	more, _ := filepath.Glob(lines)
	if left = append(left, more...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestLateHits: hits that are older than what was handed out of their site are told.
func TestLateHits(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%t", restarted), func(t *testing.T) {
			dir := t.TempDir()
			q := openAt(t, dir)
			set, _ := oldSet(4)
			other, _ := oldSet(1000)
			other.Hits[0].Site = 2
			mustAppend(t, q, set, other)
			if err := q.Settle(0, settleAs(leaseAll(t, q, 2), hit.Delivered)); err != nil {
				t.Fatal(err)
			}
			flush(t, q)
			id := mustBegin(t, q)
			mustImport(t, q, id, 1, 2, 3, 4, 901)
			want := int64(3)
			if restarted {
				verifyAndClose(t, q)
				q = openAt(t, dir)
				want = 4 // a quarter hour is all that is known
			}
			if n, err := q.CompleteImport(t.Context(), id, false, nil); n != want || !errors.Is(err, ErrLate) {
				t.Errorf("%d late hits, %v", n, err)
			}
			noHits(t, q)
			if n, err := q.CompleteImport(t.Context(), id, true, nil); n != want || err != nil {
				t.Errorf("%d late hits, %v", n, err)
			}
			wantSeconds(t, leaseAll(t, q, 5), 1, 2, 3, 4, 901)
			verifyAndClose(t, q)
		})
	}
}

// TestLinesCountIfTheirHitsDo: the identities are written first, and those without
// their hits, or cut, are nothing.
func TestLinesCountIfTheirHitsDo(t *testing.T) {
	oneCaller(t)
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	mustImport(t, q, id, 1)
	name := "import-" + id + importIDs
	one := copyTree(t, q.dir)
	mustImport(t, q, id, 2, 3)
	two := mustRead(t, filepath.Join(q.dir, name))
	verifyAndClose(t, q)
	whole := len(mustRead(t, filepath.Join(one, name)))
	for _, n := range []int{whole, whole + 1, whole + lineHeadLen, len(two) - 1, len(two)} {
		dir := copyTree(t, one)
		if err := os.WriteFile(filepath.Join(dir, name), two[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		q := openAt(t, dir)
		wantKnown(t, q, "100", 1, 2, 3)
		mustImport(t, q, id, 2)
		wantKnown(t, q, "110", 1, 2, 3)
		verifyAndClose(t, q)
	}
	// Damage before that is an error: lines could be taken twice.
	dir := copyTree(t, one)
	flipBit(t, filepath.Join(dir, name), lineHeadLen+3, 1)
	if _, err := Open(testOptions(t, dir)); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged lines: %v", err)
	}
}

// TestTheMarkOfAnImportIsLost: hits stay, and a human decides.
func TestTheMarkOfAnImportIsLost(t *testing.T) {
	oneCaller(t)
	q := openAt(t, t.TempDir())
	id := mustBegin(t, q)
	mustImport(t, q, id, 1, 2)
	dir := copyTree(t, q.dir)
	verifyAndClose(t, q)
	remove(t, filepath.Join(dir, "import-"+id+importMark))
	q, book := openDamaged(t, dir)
	if !book.alarmed("the mark of an import was lost") {
		t.Errorf("no alarm: %q", book.alarms())
	}
	wantKnown(t, q, "110", 1, 2, 3)
	mustComplete(t, q, id)
	wantSeconds(t, leaseAll(t, q, 2), 1, 2)
}

// TestPeekGoesThroughAllStreams, page by page.
func TestPeekGoesThroughAllStreams(t *testing.T) {
	q := openAt(t, t.TempDir())
	live, _ := oldSets(10, 11)
	mustAppend(t, q, live...)
	first := mustBegin(t, q)
	mustImport(t, q, first, 1, 2)
	mustComplete(t, q, first)
	mustImport(t, q, mustBegin(t, q), 3, 4)
	var got []hit.Pending
	f := PeekFilter{Limit: 1}
	for {
		n := len(got)
		for p, err := range q.Peek(t.Context(), f) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p)
		}
		if len(got) == n {
			break
		}
		f.After = got[len(got)-1].ID
	}
	wantSeconds(t, got, 10, 11, 1, 2, 3, 4)
	for _, p := range got {
		if found, err := q.Find(t.Context(), p.ID); err != nil || found.ReceivedAt != p.ReceivedAt {
			t.Errorf("find %v: %v", p.ID, err)
		}
	}
	if r, err := q.Recount(t.Context()); err != nil || r.Hits != 6 || len(r.Slots) > 0 {
		t.Errorf("recount: %+v, %v", r, err)
	}
	verifyAndClose(t, q)
}
