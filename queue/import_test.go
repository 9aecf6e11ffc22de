package queue

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"github.com/dgraph-io/badger/v4"

	"sluice/internal/hit"
)

// exportOf gives hits as an export of another store would.
func exportOf(r *rand.Rand, generation uint64, n int) (hits []hit.Pending) {
	for i := range n {
		s := noiseSet(r, i, 1)
		hits = append(hits, hit.Pending{
			ID:         hit.ID{Generation: generation, Block: uint64(i/3 + 1), Index: uint32(i % 3)},
			ReceivedAt: s.ReceivedAt, Environment: &s.Environment, Hit: s.Hits[0],
		})
	}
	return hits
}

func importAll(t testing.TB, q *Queue, hits []hit.Pending, order hit.ImportOrder) map[hit.Imported]int {
	t.Helper()
	outcomes, err := q.Import(t.Context(), hits, order)
	if err != nil || len(outcomes) != len(hits) {
		t.Fatalf("%d outcomes of %d hits, %v", len(outcomes), len(hits), err)
	}
	count := map[hit.Imported]int{}
	for _, o := range outcomes {
		count[o]++
	}
	return count
}

func wantOutcomes(t testing.TB, what string, got, want map[hit.Imported]int) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func withoutIDs(hits []hit.Pending) (plain []hit.RequestSet) {
	for i := range hits {
		plain = append(plain, hit.RequestSet{ReceivedAt: hits[i].ReceivedAt, Environment: *hits[i].Environment, Hits: []hit.Hit{hits[i].Hit}})
	}
	return plain
}

// TestAnImportTakesEachIDOnceForEver: in the order given, whatever is said again, and
// after a restart.
func TestAnImportTakesEachIDOnceForEver(t *testing.T) {
	dir := t.TempDir()
	hits := exportOf(newRand(t), 7, 2*returnChunk+50)
	q := openAt(t, dir)
	mustAppend(t, q, aSet(0, 1, 1))
	wantOutcomes(t, "dry run", importAll(t, q, hits, hit.ImportOrder{DryRun: true}), map[hit.Imported]int{hit.ImportTaken: len(hits)})
	wantOutcomes(t, "the first part", importAll(t, q, hits[:100], hit.ImportOrder{}), map[hit.Imported]int{hit.ImportTaken: 100})
	wantOutcomes(t, "all, one of them twice", importAll(t, q, append(slices.Clone(hits), hits[len(hits)-1]), hit.ImportOrder{}),
		map[hit.Imported]int{hit.ImportTaken: len(hits) - 100, hit.ImportBefore: 101})
	wantOutcomes(t, "again", importAll(t, q, hits, hit.ImportOrder{Again: true}), map[hit.Imported]int{hit.ImportBefore: len(hits)})
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = openAt(t, dir)
	wantOutcomes(t, "after a restart", importAll(t, q, hits, hit.ImportOrder{}), map[hit.Imported]int{hit.ImportBefore: len(hits)})
	got := leaseAll(t, q, 1+len(hits))[1:]
	if !reflect.DeepEqual(withoutIDs(got), withoutIDs(hits)) {
		t.Error("the hits are others than those that were imported, or in another order")
	}
	if s := q.Stats(); s.Accepted != int64(1+len(hits)) || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
	if n := len(q.live.st.imported); n != 0 {
		t.Errorf("the stream still remembers %d ids", n)
	}
}

// TestAnImportKilledAtAnyStepTakesEachIDOnce: hits appended, ids noted, the stream's
// own note dropped.
func TestAnImportKilledAtAnyStepTakesEachIDOnce(t *testing.T) {
	oneCaller(t)
	dir := t.TempDir()
	hits := exportOf(newRand(t), 7, 9)
	q, err := Open(testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	steps := []string{copyTree(t, dir)}
	var sets []*hit.RequestSet
	for i := range hits[:5] {
		sets = append(sets, &withoutIDs(hits[i : i+1])[0])
	}
	if err := q.live.append(t.Context(), sets, origin{imported: idsOf(hits[:5])}); err != nil {
		t.Fatal(err)
	}
	steps = append(steps, copyTree(t, dir))
	if err := q.dead.remember(idsOf(hits[:5])); err != nil {
		t.Fatal(err)
	}
	steps = append(steps, copyTree(t, dir))
	if err := q.noteImported(idsOf(hits[:5])); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	steps = append(steps, copyTree(t, dir))
	wantOutcomes(t, "the rest", importAll(t, q, hits, hit.ImportOrder{}), map[hit.Imported]int{hit.ImportTaken: 4, hit.ImportBefore: 5})
	steps = append(steps, copyTree(t, dir)) // Import has returned
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	for i, dir := range steps {
		t.Run(fmt.Sprint("step=", i), func(t *testing.T) {
			before := []int{0, 5, 5, 5, 9}[i]
			for range 2 {
				q, _ := openDamaged(t, dir)
				want := map[hit.Imported]int{hit.ImportBefore: before, hit.ImportTaken: 9 - before}
				if before == 0 || before == 9 {
					delete(want, []hit.Imported{hit.ImportBefore, hit.ImportTaken}[before/9])
				}
				wantOutcomes(t, "again", importAll(t, q, hits, hit.ImportOrder{}), want)
				before = 9
				if s := q.Stats(); s.Accepted != 9 || s.Pending != 9 || s.Difference != 0 {
					t.Errorf("Stats = %+v", s)
				}
				flush(t, q)
				if n := len(q.live.st.imported); n != 0 {
					t.Errorf("the stream still remembers %d ids", n)
				}
				if err := q.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestImportOfOwnHits: an export may come back to the store that wrote it.
func TestImportOfOwnHits(t *testing.T) {
	q := openAt(t, t.TempDir())
	mustAppend(t, q, aSet(0, 5, 1))
	all := leaseAll(t, q, 5)
	list := settleAs(all[:4], hit.Dead)
	list[0].As = hit.Delivered
	for i := range list {
		list[i].Reason = "poison"
	}
	if err := q.Settle(0, list); err != nil {
		t.Fatal(err)
	}
	// Delivered, buried, buried and mended, buried and moved, pending; the same time twice.
	mended, moved := all[2], all[3]
	mended.Params = []byte("idsite=1&rec=1&mended=1")
	moved.Site = 2
	given := []hit.Pending{all[0], all[1], mended, moved, all[4]}
	want := map[hit.Imported]int{hit.ImportKnown: 1, hit.ImportRequeued: 2, hit.ImportMoved: 1, hit.ImportWaiting: 1}
	wantOutcomes(t, "dry run", importAll(t, q, given, hit.ImportOrder{DryRun: true}), want)
	wantOutcomes(t, "first", importAll(t, q, given, hit.ImportOrder{}), want)
	if s := q.Stats(); s.Accepted != 5 || s.Delivered != 1 || s.Dead != 1 || s.DeadKept != 1 || s.DeadRequeued != 2 || s.Pending != 3 || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
	want = map[hit.Imported]int{hit.ImportKnown: 3, hit.ImportMoved: 1, hit.ImportWaiting: 1}
	wantOutcomes(t, "second", importAll(t, q, given, hit.ImportOrder{}), want)
	again := hit.ImportOrder{Again: true}
	wantOutcomes(t, "--again", importAll(t, q, given[:1], again), map[hit.Imported]int{hit.ImportTaken: 1})
	wantOutcomes(t, "--again twice", importAll(t, q, given[:1], again), map[hit.Imported]int{hit.ImportBefore: 1})
	got := leaseAll(t, q, 3)
	for i, want := range [][]byte{all[1].Params, mended.Params, all[0].Params} {
		if string(got[i].Params) != string(want) {
			t.Errorf("hit %d is %q, want %q", i, got[i].Params, want)
		}
	}
	if s := q.Stats(); s.Accepted != 6 || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

func TestImportRefusesWhatMayDoubleOrCannotBeKept(t *testing.T) {
	q := openAt(t, t.TempDir())
	hits := exportOf(newRand(t), 7, 6)
	hits[3].ID.Generation, hits[4].ID.Block, hits[5].ID.Index = 0, 0, maxBlockHits
	hits[0].Uncertain = 1
	hits[1].Params = make([]byte, maxBlockRaw)
	wantOutcomes(t, "import", importAll(t, q, hits, hit.ImportOrder{}),
		map[hit.Imported]int{hit.ImportUncertain: 1, hit.ImportTooLarge: 1, hit.ImportTaken: 1, hit.ImportBadID: 3})
	wantOutcomes(t, "with --again", importAll(t, q, hits, hit.ImportOrder{Again: true}),
		map[hit.Imported]int{hit.ImportTaken: 1, hit.ImportTooLarge: 1, hit.ImportBefore: 1, hit.ImportBadID: 3})
}

// TestLargeNotesFitTheirTransactions: every other hit of many blocks, which no export
// of a store looks like.
func TestLargeNotesFitTheirTransactions(t *testing.T) {
	q := openAt(t, t.TempDir())
	var ids []hit.ID
	for block := range uint64(12) {
		for index := uint32(0); index < maxBlockHits; index += 2 {
			ids = append(ids, hit.ID{Generation: 7, Block: block + 1, Index: index})
		}
	}
	if err := q.dead.remember(ids); err != nil {
		t.Fatal(err)
	}
	if n, err := q.dead.note(noteKey{7, 12}); err != nil || len(n) != maxBlockHits/2 || n.has(1) || !n.has(2) {
		t.Errorf("%d ranges, %v", len(n), err)
	}
}

// TestAFullDiskStopsAnImportWhereItStands, and the same import goes on from there.
func TestAFullDiskStopsAnImportWhereItStands(t *testing.T) {
	q := openAt(t, t.TempDir())
	hits := exportOf(newRand(t), 7, 30)
	for i := range hits {
		hits[i].Params = make([]byte, maxBlockRaw/2) // each needs a transaction of its own
	}
	q.guard.maxSize = 1 // nothing may wait behind the first
	outcomes, err := q.Import(t.Context(), hits[:3], hit.ImportOrder{})
	if !errors.Is(err, ErrFull) || len(outcomes) != 1 {
		t.Fatalf("%d outcomes, %v, want 1 and ErrFull", len(outcomes), err)
	}
	q.guard.maxSize = 0
	wantOutcomes(t, "again", importAll(t, q, hits[:3], hit.ImportOrder{}), map[hit.Imported]int{hit.ImportBefore: 1, hit.ImportTaken: 2})
}

// TestReturnsAtTheSameTimeTakeEachHitOnce: two operators, one letter.
func TestReturnsAtTheSameTimeTakeEachHitOnce(t *testing.T) {
	dir := buriedStore(t, 40)
	q := openAt(t, dir)
	r := newRand(t)
	for round := range uint64(10) {
		hits := exportOf(r, 7+round, 60)
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				<-begin
				if _, err := q.Requeue(t.Context(), DeadFilter{}); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				<-begin
				if _, err := q.Import(t.Context(), hits, hit.ImportOrder{}); err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		wg.Wait()
	}
	if s := q.Stats(); s.Accepted != 680 || s.Dead != 0 || s.DeadRequeued != 40 || s.Pending != 680 || s.Difference != 0 {
		t.Errorf("Stats = %+v", s)
	}
	var m strings.Builder
	if set := q.inst.set; set != nil {
		set.WritePrometheus(&m)
	}
	for _, want := range []string{"sluice_queue_requeued_hits_total 40\n", "sluice_queue_imported_hits_total 600\n"} {
		if !strings.Contains(m.String(), want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
}

// TestNotesOutliveTheExchangeOfTheDeadLetters and a rebuild.
func TestNotesOutliveTheExchangeOfTheDeadLetters(t *testing.T) {
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, dir string)
		o    func(o *Options)
	}{
		{"exchange", func(*testing.T, string) {}, func(o *Options) { o.Keys = testKeys(1) }},
		{"rebuild", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "dead", "000001", "MANIFEST")) }, func(*Options) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := buriedStore(t, 3)
			hits := exportOf(newRand(t), 7, 20)
			openWith(t, dir, Keys{}, func(q *Queue) {
				importAll(t, q, hits, hit.ImportOrder{})
				if n, err := q.Requeue(t.Context(), DeadFilter{Limit: 1}); n != 1 || err != nil {
					t.Fatal(n, err)
				}
			})
			tt.harm(t, dir)
			o := testOptions(t, dir)
			o.Metrics = metrics.NewSet()
			tt.o(&o)
			q, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer verifyAndClose(t, q)
			wantOutcomes(t, "again", importAll(t, q, hits, hit.ImportOrder{}), map[hit.Imported]int{hit.ImportBefore: 20})
			if s := q.Stats(); s.DeadRequeued != 1 || s.DeadKept != 2 {
				t.Errorf("Stats = %+v", s)
			}
			if entries, err := os.ReadDir(filepath.Join(dir, "dead")); err != nil || len(entries) != 1 {
				t.Errorf("in dead/: %v, %v", entries, err)
			}
		})
	}
}

func setRaw(db *badger.DB, key, value []byte) error {
	return db.Update(func(txn *badger.Txn) error { return txn.Set(key, value) })
}

// TestADamagedNoteStopsAnImportAndNothingElse: what it said is not known, so that
// taking the hit could double it.
func TestADamagedNoteStopsAnImportAndNothingElse(t *testing.T) {
	hits := exportOf(newRand(t), 7, 6)
	q := openAt(t, t.TempDir())
	importAll(t, q, hits[:1], hit.ImportOrder{})
	k := noteKeyOf(hits[0].ID)
	bad := encodeNote(k, note{{0, 0}})
	bad[len(bad)-1] ^= 1
	if err := setRaw(q.dead.db, k.bytes(), bad); err != nil {
		t.Fatal(err)
	}
	outcomes, err := q.Import(t.Context(), hits, hit.ImportOrder{})
	if !errors.Is(err, errDamaged) || len(outcomes) != 0 {
		t.Errorf("%v, %v, want damage", outcomes, err)
	}
	wantOutcomes(t, "another block", importAll(t, q, hits[3:], hit.ImportOrder{}), map[hit.Imported]int{hit.ImportTaken: 3})
	if r, err := q.Verify(t.Context()); err != nil || len(r.Problems) != 1 {
		t.Errorf("Verify = %+v, %v", r, err)
	}
	if err := setRaw(q.dead.db, k.bytes(), encodeNote(k, note{{0, 0}})); err != nil {
		t.Fatal(err)
	}
}

// TestNotesAreSets: whatever is added in whatever order, a note has that and nothing
// else, in ranges that do not touch, and reads back as it was written.
func TestNotesAreSets(t *testing.T) {
	r := newRand(t)
	for range 200 {
		var n note
		want := map[uint32]bool{}
		for range r.IntN(60) {
			i := uint32(r.IntN(40))
			n, want[i] = n.with(i), true
		}
		k := noteKey{r.Uint64(), r.Uint64()}
		gotKey, got, err := decodeNote(encodeNote(k, n))
		if err != nil || gotKey != k || !slices.Equal(got, n) {
			t.Fatalf("%v reads back as %v, %v", n, got, err)
		}
		for i := range uint32(42) {
			if n.has(i) != want[i] {
				t.Fatalf("%v has %d: %v", n, i, n.has(i))
			}
		}
		for i := 1; i < len(n); i++ {
			if n[i].from <= n[i-1].to+1 {
				t.Fatalf("%v touches itself", n)
			}
		}
	}
}

func FuzzDecodeNote(f *testing.F) {
	f.Add(encodeNote(noteKey{7, 8}, note{{1, 3}, {5, 5}}))
	f.Add(encodeLeft(left{1, 2, 3}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) >= frameLen {
			raw = seal(slices.Clone(raw), raw[1]) // else hardly anything passes the checksum
		}
		if k, n, err := decodeNote(raw); err == nil {
			k2, n2, err := decodeNote(encodeNote(k, n))
			if err != nil || k2 != k || !slices.Equal(n2, n) {
				t.Errorf("encoded again: %v, %v", n2, err)
			}
		} else {
			checkDecodeError(t, err)
		}
		if l, err := decodeLeft(raw); err == nil {
			if again, err := decodeLeft(encodeLeft(l)); err != nil || again != l {
				t.Errorf("encoded again: %v, %v", again, err)
			}
		} else {
			checkDecodeError(t, err)
		}
		_, _ = ownKey(raw)
	})
}
