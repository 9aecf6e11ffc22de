package queue

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"sluice/internal/hit"
)

// rowStore gives the directory of a queue with three shelves or more, of 10
// blocks each at least: the first block of each shelf but the first is settled,
// and hits of the last one are journalled. It was closed, or copied while it ran.
func rowStore(t testing.TB, closed bool) (dir string, last uint64) {
	t.Helper()
	o := testOptions(t, t.TempDir())
	o.ShelfBytes = 8 << 10
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	r := newRand(t)
	for i := 0; q.Stats().Shelves < 3 || i%10 != 5; i++ {
		mustAppend(t, q, noiseSet(r, i*hitsPerBlock, hitsPerBlock))
		flush(t, q) // the rotation follows the commit
	}
	hits := leaseRest(t, q)
	if err := q.Settle(0, settleAs(hits[2*hitsPerBlock:3*hitsPerBlock], hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Journal(idsOf(hits[len(hits)-hitsPerBlock:]), nil); err != nil {
		t.Fatal(err)
	}
	if closed {
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
	last = hits[len(hits)-1].ID.Block
	return copyTree(t, q.dir), last
}

// harmSnapshots flips a bit in snapshots of a shelf, newest first.
func harmSnapshots(t testing.TB, shelf string, n int) {
	t.Helper()
	places := placesOf(t, shelf, prefixSnapshot)
	slices.Reverse(places)
	for _, p := range places[:min(n, len(places))] {
		flipBit(t, p.file, int64(p.off+len(p.value)/2), 3)
	}
}

// TestADamagedSnapshotLosesNothing: the state is derived from an older snapshot
// of the shelf, or from the shelf before it, and from every delta since: the same
// state, and no hit is in doubt that was not. Today's alternative would be to
// refuse the rest of the queue for one bad bit.
func TestADamagedSnapshotLosesNothing(t *testing.T) {
	oneCaller(t)
	for _, closed := range []bool{true, false} {
		origin, last := rowStore(t, closed)
		want := statsOf(t, copyTree(t, origin))
		for _, tt := range []struct {
			name string
			prep func(t *testing.T, shelves []string)
		}{
			{"with the shelf before it", func(t *testing.T, s []string) { harmSnapshots(t, s[len(s)-1], 9) }},
			{"with only the first shelf whole", func(t *testing.T, s []string) {
				for _, shelf := range s[1:] {
					harmSnapshots(t, shelf, 9)
				}
			}},
		} {
			t.Run(fmt.Sprintf("%s, closed=%t", tt.name, closed), func(t *testing.T) {
				t.Parallel()
				dir := copyTree(t, origin)
				tt.prep(t, shelvesOf(t, dir))
				q, book := openDamaged(t, dir)
				if !book.alarmed("derived") {
					t.Errorf("no alarm: %q", book.alarms())
				}
				if got := figures(q.Stats()); got != want {
					t.Errorf("Stats = %+v, want %+v", got, want)
				}
				checkBlocks(t, leaseRest(t, q), last, 3)
				newNumberIsAbove(t, q, last)
			})
		}
	}
}

// figures are those of Stats that must be the same whatever was damaged.
func figures(s Stats) Stats {
	return Stats{Accepted: s.Accepted, Delivered: s.Delivered, Invalid: s.Invalid, Dead: s.Dead, Pending: s.Pending,
		Uncertain: s.Uncertain, Difference: s.Difference, PendingBytes: s.PendingBytes,
		DamagedBlocks: s.DamagedBlocks, MissingBlocks: s.MissingBlocks, Blocks: s.Blocks}
}

func statsOf(t testing.TB, dir string) Stats {
	t.Helper()
	q, err := Open(testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	return figures(q.Stats())
}

// TestADamagedSnapshotIsReplacedByAnOlderOneOfItsShelf: the deltas since the
// older one are all there, so that nothing is lost and nothing is in doubt.
func TestADamagedSnapshotIsReplacedByAnOlderOneOfItsShelf(t *testing.T) {
	origin := t.TempDir()
	q, err := Open(testOptions(t, origin))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, q, newRand(t), 8)
	if err := q.Settle(0, settleAs(leaseAll(t, q, 3*hitsPerBlock), hit.Invalid)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	for q.live.commitBegan.Load() != 0 { // the committer is still at what follows a commit
		runtime.Gosched()
	}
	if err := q.live.writeSnapshot(q.live.current().db); err != nil { // as checkpoint does
		t.Fatal(err)
	}
	fill(t, q, newRand(t), 2)
	q.Close()
	want := statsOf(t, copyTree(t, origin))

	harmSnapshots(t, theShelf(t, origin), 1)
	q2, book := openDamaged(t, origin)
	if got := figures(q2.Stats()); got != want {
		t.Errorf("Stats = %+v, want %+v", got, want)
	}
	if !book.alarmed("snapshot", "an older one is used") {
		t.Errorf("alarms: %q", book.alarms())
	}
	hits := leaseRest(t, q2)
	checkBlocks(t, hits, 10, 1, 2, 3)
	if i := slices.IndexFunc(hits, func(p hit.Pending) bool { return p.Uncertain != 0 }); i >= 0 {
		t.Errorf("hit %v is in doubt", hits[i].ID)
	}
}

// TestWithoutAnySnapshotEverythingIsDeliveredInDoubt: the blocks are there, and
// what is left of the deltas; nothing is refused, nothing is delivered without
// saying that it may be a second time, and the sum closes.
func TestWithoutAnySnapshotEverythingIsDeliveredInDoubt(t *testing.T) {
	oneCaller(t)
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed=%t", closed), func(t *testing.T) {
			t.Parallel()
			dir, last := rowStore(t, closed)
			for _, shelf := range shelvesOf(t, dir) {
				harmSnapshots(t, shelf, 9)
			}
			q, book := openDamaged(t, dir)
			if !book.alarmed("derived from its blocks alone") {
				t.Errorf("no alarm: %q", book.alarms())
			}
			hits := leaseRest(t, q)
			checkBlocks(t, hits, last, 3) // block 3 is settled in a delta
			for i := range hits {
				if hits[i].Uncertain == 0 {
					t.Fatalf("hit %v is not in doubt", hits[i].ID)
				}
			}
			if s := q.Stats(); s.Difference != 0 || s.Pending != int64(len(hits)) || s.Accepted != int64(last)*hitsPerBlock {
				t.Errorf("Stats = %+v, %d hits leased", s, len(hits))
			}
			newNumberIsAbove(t, q, last)
			if err := q.Settle(0, settleAs(hits, hit.Delivered)); err != nil {
				t.Fatal(err)
			}
			flush(t, q)
			if s := q.Stats(); s.Difference != 0 || s.Pending != 1 {
				t.Errorf("drained: Stats = %+v", s)
			}
		})
	}
}

// TestWhatWasRepairedStaysRepaired: a state that was derived once is written
// down; the next opening finds it and raises no alarm.
func TestWhatWasRepairedStaysRepaired(t *testing.T) {
	dir, last := rowStore(t, true)
	shelves := shelvesOf(t, dir)
	deltas := placesOf(t, shelves[len(shelves)-1], prefixDelta)
	for len(deltas) < 2 { // the last shelf has just begun, which a store of another timing has not
		dir, last = rowStore(t, true)
		shelves = shelvesOf(t, dir)
		deltas = placesOf(t, shelves[len(shelves)-1], prefixDelta)
	}
	harmSnapshots(t, shelves[len(shelves)-1], 9)
	flipBit(t, deltas[1].file, int64(deltas[1].off+8), 0)
	o, _ := damagedOptions(t, dir)
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, q, noiseSet(newRand(t), 900, hitsPerBlock))
	want := figures(q.Stats())
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q2, book := openDamaged(t, dir)
	if got := figures(q2.Stats()); got != want || len(book.alarms()) > 0 {
		t.Errorf("Stats = %+v, want %+v; alarms %q", got, want, book.alarms())
	}
	hits := leaseRest(t, q2)
	got := blocksOf(hits)
	if got[last] != hitsPerBlock || got[last+1] != hitsPerBlock || hits[0].Uncertain != DoubtLost {
		t.Errorf("leased %v, first %+v", got, hits[0])
	}
}

// TestADeltaThatIsGoneLeavesAGapThatIsNoticed in the sequence numbers.
func TestADamagedDeltaOfABlockLosesNoHit(t *testing.T) {
	dir := closedStore(t, newRand(t), 10)
	deltas := placesOf(t, theShelf(t, dir), prefixDelta)
	for _, i := range []int{2, 3, 9} { // two in a row, and the last one
		flipBit(t, deltas[i].file, int64(deltas[i].off+7), 1)
	}
	q, book := openDamaged(t, dir)
	if !book.alarmed("records is lost") {
		t.Errorf("no alarm: %q", book.alarms())
	}
	hits := leaseRest(t, q)
	checkBlocks(t, hits, 10)
	if s := q.Stats(); s.Difference != 0 || s.Accepted != 10*hitsPerBlock || s.MissingBlocks != 0 {
		t.Errorf("Stats = %+v", s)
	}
	sum := int64(0)
	for _, c := range q.Counters() {
		sum += c.Accepted
	}
	if sum != 10*hitsPerBlock {
		t.Errorf("the counters add up to %d accepted, want %d", sum, 10*hitsPerBlock)
	}
	newNumberIsAbove(t, q, 10)
}

// TestDamageInAnOldShelfStaysThere: a bad bit in it costs a block, a destroyed
// table costs what was in it, a missing shelf costs its blocks. The shelves before
// and behind it are delivered, and the sum says how much is gone.
func TestDamageInAnOldShelfStaysThere(t *testing.T) {
	origin, last := rowStore(t, true)
	shelves := shelvesOf(t, origin)
	second := placesOf(t, shelves[1], prefixBlock)
	first, end := numberOf(t, second[0]), numberOf(t, second[len(second)-1])
	for _, tt := range []struct {
		name     string
		harm     func(t *testing.T, shelf string)
		from, to uint64
	}{
		{"a flipped bit", func(t *testing.T, shelf string) {
			p := second[1]
			flipBit(t, filepath.Join(shelf, filepath.Base(p.file)), int64(p.off+len(p.value)-5), 1)
		}, first + 1, first + 1},
		{"a table of zeros", func(t *testing.T, shelf string) {
			path := theFile(t, shelf, ".sst")
			change(t, path, 0, make([]byte, len(mustRead(t, path))))
		}, first, end},
		{"no MANIFEST", func(t *testing.T, shelf string) { remove(t, filepath.Join(shelf, "MANIFEST")) }, 1, 0},
		{"no KEYREGISTRY content", func(t *testing.T, shelf string) { truncate(t, filepath.Join(shelf, "KEYREGISTRY"), 3) }, 1, 0},
		{"a footer of zeros", func(t *testing.T, shelf string) {
			path := theFile(t, shelf, ".sst")
			change(t, path, int64(len(mustRead(t, path))-8), make([]byte, 8))
		}, 1, 0},
		{"no shelf", func(t *testing.T, shelf string) { remove(t, shelf) }, first, end},
		{"a file in its place", func(t *testing.T, shelf string) {
			remove(t, shelf)
			if err := os.WriteFile(shelf, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, first, end},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			tt.harm(t, shelvesOf(t, dir)[1])
			q, book := openDamaged(t, dir)
			hits := leaseRest(t, q)
			lost := []uint64{3}
			for n := tt.from; n <= tt.to; n++ {
				lost = append(lost, n)
			}
			checkBlocks(t, hits, last, lost...)
			if err := q.Settle(0, settleAs(hits, hit.Delivered)); err != nil {
				t.Fatal(err)
			}
			flush(t, q)
			gone := int64(len(lost) - 1)
			if s := q.Stats(); s.MissingBlocks+s.DamagedBlocks != gone || s.Difference != gone*hitsPerBlock {
				t.Errorf("Stats = %+v, want %d blocks lost", s, gone)
			}
			if len(book.alarms()) == 0 {
				t.Error("no alarm")
			}
		})
	}
}

// TestTwoShelvesForTheSameBlocksAreRefused, and everything is left as it was
// found: either may be the wrong one, and only its owner knows.
func TestTwoShelvesForTheSameBlocksAreRefused(t *testing.T) {
	dir, _ := rowStore(t, true)
	shelves := shelvesOf(t, dir)
	key, _ := parseShelfName(filepath.Base(shelves[1]))
	key.clock++
	copyInto(t, shelves[1], filepath.Join(dir, "live", shelfName(key)))
	before := treeHash(t, filepath.Join(dir, "live"))
	o, _ := damagedOptions(t, dir)
	if _, err := Open(o); err == nil || !isDamage(err) {
		t.Fatalf("Open = %v, want ErrDamaged", err)
	}
	if treeHash(t, filepath.Join(dir, "live")) != before {
		t.Error("the shelves were changed")
	}
}

// TestForeignThingsAmongTheShelvesAreLeftAlone and told.
func TestForeignThingsAmongTheShelvesAreLeftAlone(t *testing.T) {
	dir := closedStore(t, newRand(t), 3)
	for _, name := range []string{"lost+found", "00000000000000zz-0000000000000001", "7", "0000000000000001-0000000000000001.bak"} {
		if err := os.MkdirAll(filepath.Join(dir, "live", name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"5", "000009"} { // not a directory; not a queue's
		if err := os.WriteFile(filepath.Join(dir, "dead", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	q, book := openDamaged(t, dir)
	checkBlocks(t, leaseRest(t, q), 3)
	if !book.alarmed("lost+found") {
		t.Errorf("alarms: %q", book.alarms())
	}
	for _, name := range []string{"live/lost+found/x", "live/7/x", "dead/5", "dead/000009", "dead/000001"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
}

// TestARotationKilledAtAnyStepLosesNothing: every state that a kill can leave of
// the row of shelves opens with the same figures.
func TestARotationKilledAtAnyStepLosesNothing(t *testing.T) {
	oneCaller(t)
	origin := crashedStore(t, 12)
	want := statsOf(t, copyTree(t, origin.dir))
	begin := func(t *testing.T, dir string) (*stream, *shelf) {
		s := &stream{dir: filepath.Join(dir, "live"), log: testOptions(t, dir).Log, generation: 1, failed: func(error) {}}
		key, _ := parseShelfName(filepath.Base(theShelf(t, dir)))
		return s, s.newShelf(blockKey{clock: key.clock + 1e9, number: origin.last + 1})
	}
	badgerIn := func(t *testing.T, sh *shelf, use func(db *badger.DB)) {
		db, err := openBadger(badgerOptions(sh.dir, sh.log))
		if err != nil {
			t.Fatal(err)
		}
		use(db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// snapshotOf is the state at the end of the old shelf, in two parts.
	parts := func(t *testing.T, dir string) (seq uint64, a, b []byte) {
		q, err := Open(testOptions(t, copyTree(t, dir)))
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		raw := encodeSnapshot(q.live.st)
		seq = q.live.st.seq
		return seq, encodePart(seq, 0, 2, raw[:10]), encodePart(seq, 1, 2, raw[10:])
	}
	put := func(t *testing.T, db *badger.DB, key, value []byte) {
		if err := db.Update(func(txn *badger.Txn) error { return txn.Set(key, value) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		leave   func(t *testing.T, dir string)
		shelves int64
	}{
		{"the new directory is empty", func(t *testing.T, dir string) {
			_, sh := begin(t, dir)
			if err := os.Mkdir(sh.dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"the new database is empty", func(t *testing.T, dir string) {
			_, sh := begin(t, dir)
			badgerIn(t, sh, func(*badger.DB) {})
		}, 1},
		{"half a snapshot is written", func(t *testing.T, dir string) {
			_, sh := begin(t, dir)
			seq, a, _ := parts(t, dir)
			badgerIn(t, sh, func(db *badger.DB) { put(t, db, snapshotKey(seq, 0), a) })
		}, 1},
		{"the snapshot is whole and the old shelf not closed", func(t *testing.T, dir string) {
			_, sh := begin(t, dir)
			seq, a, b := parts(t, dir)
			badgerIn(t, sh, func(db *badger.DB) { put(t, db, snapshotKey(seq, 0), a); put(t, db, snapshotKey(seq, 1), b) })
		}, 2},
		{"the old shelf was closed", func(t *testing.T, dir string) {
			_, sh := begin(t, dir)
			seq, a, b := parts(t, dir)
			badgerIn(t, &shelf{dir: theShelf(t, dir), log: sh.log}, func(*badger.DB) {})
			badgerIn(t, sh, func(db *badger.DB) { put(t, db, snapshotKey(seq, 0), a); put(t, db, snapshotKey(seq, 1), b) })
		}, 2},
		{"a drained shelf was renamed", func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Join(dir, "live", goneMark+"0000000000000001-0000000000000001", "x"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"a drained shelf is half removed", func(t *testing.T, dir string) {
			gone := filepath.Join(dir, "live", goneMark+"0000000000000001-0000000000000001")
			copyInto(t, theShelf(t, dir), gone)
			remove(t, filepath.Join(gone, "MANIFEST"))
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin.dir)
			tt.leave(t, dir)
			q, book := openDamaged(t, dir)
			s := q.Stats()
			if got := figures(s); got != want || s.Shelves != tt.shelves {
				t.Errorf("Stats = %+v, want %+v and %d shelves", got, want, tt.shelves)
			}
			hits := leaseRest(t, q)
			checkBlocks(t, hits, origin.last, 1, 2)
			if got := book.alarms(); len(got) > 0 {
				t.Errorf("alarms: %q", got)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "live", goneMark+"*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			newNumberIsAbove(t, q, origin.last)
		})
	}
}
