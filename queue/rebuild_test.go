package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sluice/internal/hit"
)

// A crashed store is the copy of a running queue's directory: some hits are
// settled, some are journalled, all blocks are in a live log.
type crashed struct {
	dir     string
	last    uint64
	settled []hit.Pending
	flying  []hit.Pending // journalled and not settled
	batch   uint64
}

// crashedStore runs a queue through appends, leases, a journal entry and
// settlements, in that order, and copies its directory while it runs. With keys it is
// encrypted.
func crashedStore(t testing.TB, blocks int, keys ...byte) crashed {
	t.Helper()
	r := newRand(t)
	o := testOptions(t, t.TempDir())
	o.Keys = testKeys(keys...)
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	fill(t, q, r, blocks)
	c := crashed{last: uint64(blocks)}
	c.settled = leaseAll(t, q, 2*hitsPerBlock)
	c.flying = leaseAll(t, q, hitsPerBlock)
	if err := q.Settle(0, settleAs(c.settled, hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	if c.batch, err = q.Journal(idsOf(c.flying), nil); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	c.dir = copyTree(t, q.dir)
	return c
}

// TestW2DamageInTheMiddleOfALogLosesTheDamagedEntryOnly: Badger cuts its log at
// the first bad entry. Every entry behind it that verifies is recovered; the
// damaged block is reported as missing, and no number is used again.
func TestW2DamageInTheMiddleOfALogLosesTheDamagedEntryOnly(t *testing.T) {
	oneCaller(t)
	origin := crashedStore(t, 20)
	places := placesOf(t, theShelf(t, origin.dir), prefixBlock)
	for _, n := range []int{3, 9, 16} { // none of them is settled
		for _, zeroes := range []int{0, 64} {
			t.Run(fmt.Sprintf("block=%d,zeroes=%d", n+1, zeroes), func(t *testing.T) {
				t.Parallel()
				dir := copyTree(t, origin.dir)
				p := places[n]
				path := filepath.Join(theShelf(t, dir), filepath.Base(p.file))
				if zeroes > 0 {
					change(t, path, int64(p.off+50), make([]byte, zeroes))
				} else {
					flipBit(t, path, int64(p.off+len(p.value)/2), 4)
				}
				q, book := openDamaged(t, dir)
				hits := leaseRest(t, q)
				checkBlocks(t, hits, origin.last, 1, 2, uint64(n+1)) // 1 and 2 are settled
				if s := q.Stats(); s.MissingBlocks != 1 || s.Delivered != 2*hitsPerBlock {
					t.Errorf("Stats = %+v, want 1 missing block", s)
				}
				if !book.alarmed("cannot be delivered", fmt.Sprintf("from=%d to=%d", n+1, n+1)) {
					t.Errorf("the log does not name block %d: %q", n+1, book.alarms())
				}
				for i := range hits {
					want := uint64(0)
					if hits[i].ID.Block == origin.flying[0].ID.Block {
						want = origin.batch
					}
					if hits[i].Uncertain != want {
						t.Errorf("hit %v: Uncertain = %d, want %d: the journal is whole", hits[i].ID, hits[i].Uncertain, want)
					}
				}
				newNumberIsAbove(t, q, origin.last)
				if len(kept(t, dir, "live-*")) == 0 {
					t.Error("the damaged log is not kept")
				}
			})
		}
	}
}

// newNumberIsAbove checks that the next block gets a number of its own.
func newNumberIsAbove(t testing.TB, q *Queue, last uint64) {
	t.Helper()
	mustAppend(t, q, aSet(5000, 1, 1))
	again := leaseRest(t, q)
	if len(again) != 1 || again[0].ID.Block != last+1 {
		t.Errorf("leased %d hits, number %d, want one with number %d", len(again), again[0].ID.Block, last+1)
	}
	if again[0].Uncertain != 0 {
		t.Error("a new hit is in doubt")
	}
}

// TestW2AWholePageOfALogIsZero: a page holds parts of several entries; those
// behind it are recovered, those in it are missing. What is left of an entry is
// random bytes where it is encrypted.
func TestW2AWholePageOfALogIsZero(t *testing.T) {
	oneCaller(t)
	for name, keys := range map[string][]byte{"in clear": nil, "encrypted": {1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			origin := crashedStore(t, 60, keys...)
			for _, block := range []int{10, 20, 30, 40, 50} {
				zeroPage(t, origin, block, testKeys(keys...))
			}
		})
	}
}

// zeroPage makes the page of a log on which a block begins zero and looks at what is
// recovered.
func zeroPage(t *testing.T, origin crashed, block int, keys Keys) {
	places := placesOf(t, theShelf(t, origin.dir), prefixBlock)
	page := int64(places[block].off) &^ 4095
	var harmed []uint64
	for _, p := range places {
		if int64(p.off)-60 < page+4096 && int64(p.off+len(p.value))+4 > page {
			harmed = append(harmed, numberOf(t, p))
		}
	}
	dir := copyTree(t, origin.dir)
	change(t, filepath.Join(theShelf(t, dir), filepath.Base(places[block].file)), page, make([]byte, 4096))
	o, book := damagedOptions(t, dir)
	o.Keys = keys
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	hits := leaseRest(t, q)
	got := blocksOf(hits)
	for n := uint64(3); n <= origin.last; n++ {
		if got[n] == 0 && !slices.Contains(harmed, n) {
			t.Errorf("block %d is lost and was not on the page (harmed: %v)", n, harmed)
		}
	}
	if int64(len(book.alarms())) == 0 || q.Stats().MissingBlocks != int64(origin.last)-2-int64(len(got)) {
		t.Errorf("Stats = %+v, alarms %q", q.Stats(), book.alarms())
	}
	for i := range hits {
		// Deltas are lost with the page: what was sent in them is not known.
		if hits[i].ID.Block < harmed[0] && hits[i].Uncertain == 0 {
			t.Errorf("hit %v, before the lost records, is not in doubt", hits[i].ID)
		}
	}
	newNumberIsAbove(t, q, origin.last)
}

// TestOnlyWhatBadgerWritesIsTakenForAnEntry of a log: where damage is passed over,
// any other head is that of no entry, however long it says to be.
func TestOnlyWhatBadgerWritesIsTakenForAnEntry(t *testing.T) {
	n := 0
	log := mustRead(t, theFile(t, theShelf(t, crashedStore(t, 3).dir), ".mem"))
	for rest := log[walHeaderLen:]; rest[0] != 0; {
		_, length, ok := parseLogEntry(rest)
		if !ok {
			t.Fatalf("entry %d of a whole log does not verify", n)
		}
		key := 2
		for range 3 { // the lengths and the expiry
			_, used := binary.Uvarint(rest[key:])
			key += used
		}
		for name, change := range map[string]func(head []byte){
			"not of a transaction": func(h []byte) { h[0] &^= walMetaTxn | walMetaFin },
			"another mark":         func(h []byte) { h[0] |= 1 << 3 },
			"a user's mark":        func(h []byte) { h[1] = 1 },
			"a longer key":         func(h []byte) { h[2]++ },
			"an expiry":            func(h []byte) { h[key-1] = 1 },
			"another key":          func(h []byte) { h[key] = 'x' },
		} {
			head := bytes.Clone(rest[:length+8])
			change(head)
			if _, got, ok := parseLogEntry(head); got != 0 || ok {
				t.Errorf("entry %d with %s is taken for one of %d bytes", n, name, got)
			}
		}
		rest = rest[length:]
		n++
	}
	if n < 9 {
		t.Errorf("%d entries in the log", n)
	}
	for _, key := range [][]byte{blockKey{}.bytes(), deltaKey(1), snapshotKey(1, 1), deadKey(hit.ID{}), noteKey{}.bytes(), leftKey} {
		if got := walKeyLen(key[0]); got != uint64(len(key))+versionLen {
			t.Errorf("the key %q is taken for one of %d bytes", key, got)
		}
	}
}

// TestW2ALostSettlementIsADoubt: when the transaction that settled hits is
// damaged, they come back, and say that they may have been delivered.
func TestW2ALostSettlementIsADoubt(t *testing.T) {
	for _, where := range []string{"in a log", "in a table"} {
		t.Run(where, func(t *testing.T) {
			q, err := Open(testOptions(t, t.TempDir()))
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			fill(t, q, newRand(t), 5)
			if err := q.Settle(0, settleAs(leaseAll(t, q, 2*hitsPerBlock), hit.Delivered)); err != nil {
				t.Fatal(err)
			}
			flush(t, q)
			fill(t, q, newRand(t), 5)
			if where == "in a table" {
				q.Close()
			}
			dir := copyTree(t, q.dir)
			deltas := placesOf(t, theShelf(t, dir), prefixDelta)
			settling := deltas[5] // after five blocks
			if d, err := decodeDelta(6, settling.value); err != nil || len(d.settles) != 2 {
				t.Fatalf("delta 6 = %+v, %v, want the settlement", d, err)
			}
			flipBit(t, settling.file, int64(settling.off+len(settling.value)-3), 2)

			q2, book := openDamaged(t, dir)
			hits := leaseRest(t, q2)
			checkBlocks(t, hits, 10)
			for i := range hits {
				want := uint64(DoubtLost)
				if hits[i].ID.Block > 5 {
					want = 0
				}
				if hits[i].Uncertain != want {
					t.Errorf("hit %v: Uncertain = %d, want %d", hits[i].ID, hits[i].Uncertain, want)
				}
			}
			if !book.alarmed("records is lost") {
				t.Errorf("no alarm: %q", book.alarms())
			}
			if s := q2.Stats(); s.Difference != 0 || s.Delivered != 0 || s.Pending != 10*hitsPerBlock || s.MissingBlocks != 0 {
				t.Errorf("Stats = %+v", s)
			}
		})
	}
}

// TestW2ALostEndIsNoticed: damage in the last entries is no different from a torn
// write, but for the high-water file. The loss is told, and numbers go on above
// it.
func TestW2ALostEndIsNoticed(t *testing.T) {
	oneCaller(t)
	origin := crashedStore(t, 20)
	blocks := placesOf(t, theShelf(t, origin.dir), prefixBlock)
	path := filepath.Base(blocks[0].file)
	for _, lost := range []int{1, 5} {
		t.Run(fmt.Sprintf("blocks=%d", lost), func(t *testing.T) {
			dir := copyTree(t, origin.dir)
			file := filepath.Join(theShelf(t, dir), path)
			from := int64(blocks[20-lost].off - 60)
			change(t, file, from, make([]byte, 64<<10))
			q, book := openDamaged(t, dir)
			if !book.alarmed("the end of the queue is lost") {
				t.Errorf("no alarm: %q", book.alarms())
			}
			hits := leaseRest(t, q)
			got := blocksOf(hits)
			for n := uint64(1); n <= origin.last-uint64(lost)-1; n++ {
				if got[n] != hitsPerBlock {
					t.Errorf("block %d: %d hits leased, want %d", n, got[n], hitsPerBlock)
				}
			}
			for i := range hits {
				if hits[i].Uncertain != DoubtLost {
					t.Errorf("hit %v: Uncertain = %d, want DoubtLost: settling and journal are lost", hits[i].ID, hits[i].Uncertain)
				}
			}
			if s := q.Stats(); s.MissingBlocks < int64(lost) || s.MissingBlocks > int64(lost)+1 || s.Difference != 0 {
				t.Errorf("Stats = %+v, want %d missing blocks", s, lost)
			}
			newNumberIsAbove(t, q, origin.last)
		})
	}
}

// TestW2AnUncleanStopWithoutDamageLosesNothingAndRaisesNoAlarm is the control of
// the tests above.
func TestW2AnUncleanStopWithoutDamageLosesNothingAndRaisesNoAlarm(t *testing.T) {
	oneCaller(t)
	origin := crashedStore(t, 20)
	q, book := openDamaged(t, copyTree(t, origin.dir))
	checkBlocks(t, leaseRest(t, q), origin.last, 1, 2)
	if got := book.alarms(); len(got) > 0 {
		t.Errorf("alarms: %q", got)
	}
	if got := kept(t, q.dir, "*"); len(got) > 0 {
		t.Errorf("quarantine: %q", got)
	}
	if s := q.Stats(); s.Difference != 0 || s.Uncertain != hitsPerBlock {
		t.Errorf("Stats = %+v", s)
	}
}

// TestW2ATornLastTransactionIsNoDamage: a kill in the middle of a commit leaves
// entries without an end. They were never acknowledged, and nobody is woken.
func TestW2ATornLastTransactionIsNoDamage(t *testing.T) {
	oneCaller(t)
	origin := crashedStore(t, 10)
	dir := copyTree(t, origin.dir)
	file := theFile(t, theShelf(t, dir), ".mem")
	data := mustRead(t, file)
	// Cut off the mark that ends the last transaction: the last entry of the log.
	at, lastStart := walHeaderLen, 0
	for {
		_, n, ok := parseLogEntry(data[at:])
		if !ok {
			break
		}
		lastStart, at = at, at+n
	}
	change(t, file, int64(lastStart), make([]byte, at-lastStart))
	remove(t, filepath.Join(dir, "live", "HIGH"))
	q, book := openDamaged(t, dir)
	if got := book.alarms(); len(got) > 0 {
		t.Errorf("alarms: %q", got)
	}
	if got := len(leaseRest(t, q)); got != (10-2)*hitsPerBlock && got != 10*hitsPerBlock {
		t.Errorf("%d hits leased", got)
	}
}

// TestW4FilesOfNoLengthDoNotStopTheOpening: a kill between the creation of a log
// and its first byte, or between its truncation and its removal.
func TestW4FilesOfNoLengthDoNotStopTheOpening(t *testing.T) {
	oneCaller(t)
	running := crashedStore(t, 10).dir
	closed := closedStore(t, newRand(t), 10)
	for _, tt := range []struct {
		name, origin, file string
	}{
		{"a new log beside one in use", running, "00009.mem"},
		{"a value log beside a log in use", running, "000009.vlog"},
		{"a log in a closed shelf", closed, "00009.mem"},
		{"a value log in a closed shelf", closed, "000009.vlog"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, tt.origin)
			if err := os.WriteFile(filepath.Join(theShelf(t, dir), tt.file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			q, book := openDamaged(t, dir)
			got := blocksOf(leaseRest(t, q))
			for n := uint64(3); n <= 10; n++ {
				if got[n] != hitsPerBlock {
					t.Errorf("block %d: %d hits leased, want %d", n, got[n], hitsPerBlock)
				}
			}
			if got := book.alarms(); len(got) > 0 {
				t.Errorf("alarms: %q", got)
			}
		})
	}
}

// TestW6TheFilesAroundTheTablesLoseNothing: without MANIFEST Badger would delete
// every table in silence, with a bad KEYREGISTRY it refuses to open. Whatever is
// wrong with the files that only help, all hits are delivered.
func TestW6TheFilesAroundTheTablesLoseNothing(t *testing.T) {
	oneCaller(t)
	closed := closedStore(t, newRand(t), 20)
	running := crashedStore(t, 20).dir
	harms := []struct {
		name string
		do   func(t *testing.T, path string)
	}{
		{"is gone", func(t *testing.T, path string) { remove(t, path) }},
		{"is half as long", func(t *testing.T, path string) { truncate(t, path, int64(len(mustRead(t, path))/2)) }},
		{"is empty", func(t *testing.T, path string) { truncate(t, path, 0) }},
		{"has a wrong magic", func(t *testing.T, path string) { change(t, path, 0, []byte("xxxx")) }},
		{"is zero", func(t *testing.T, path string) { change(t, path, 0, make([]byte, len(mustRead(t, path)))) }},
		{"has a flipped bit", func(t *testing.T, path string) { flipBit(t, path, int64(len(mustRead(t, path))*3/4), 5) }},
	}
	for _, name := range []string{"MANIFEST", "KEYREGISTRY", "DISCARD", "000001.vlog"} {
		for _, harm := range harms {
			for _, origin := range []string{closed, running} {
				t.Run(fmt.Sprintf("%s %s, running=%t", name, harm.name, origin == running), func(t *testing.T) {
					t.Parallel()
					dir := copyTree(t, origin)
					path := filepath.Join(theShelf(t, dir), name)
					if len(mustReadIfThere(path)) == 0 {
						return // not kept by a closed store
					}
					harm.do(t, path)
					q, book := openDamaged(t, dir)
					got := blocksOf(leaseRest(t, q))
					for n := uint64(3); n <= 20; n++ {
						if got[n] != hitsPerBlock {
							t.Errorf("block %d: %d hits leased, want %d", n, got[n], hitsPerBlock)
						}
					}
					if s := q.Stats(); s.MissingBlocks+s.DamagedBlocks+s.Difference != 0 {
						t.Errorf("Stats = %+v", s)
					}
					if name == "MANIFEST" && origin == closed && !book.alarmed("rebuilt") {
						t.Errorf("no alarm: %q", book.alarms())
					}
				})
			}
		}
	}
}

func mustReadIfThere(path string) []byte {
	data, _ := os.ReadFile(path)
	return data
}

// TestARebuildThatWasKilledIsFinished: at no step of the exchange is a shelf
// neither in its place nor found again.
func TestARebuildThatWasKilledIsFinished(t *testing.T) {
	oneCaller(t)
	origin := crashedStore(t, 10)
	rebuilt := copyTree(t, origin.dir)
	f := &dbFiles{dir: theShelf(t, rebuilt), log: badgerLog{log: testOptions(t, "").Log}, kinds: shelfKinds}
	if err := f.rebuild(os.ErrInvalid); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		make func(t *testing.T, dir, shelf string)
	}{
		{"while the new database is written", func(t *testing.T, dir, shelf string) {
			if err := os.Mkdir(shelf+rebuildMark, 0o700); err != nil {
				t.Fatal(err)
			}
		}},
		{"when the new database is whole", func(t *testing.T, dir, shelf string) {
			copyInto(t, theShelf(t, rebuilt), shelf+rebuildMark)
		}},
		{"when the old one is in quarantine", func(t *testing.T, dir, shelf string) {
			copyInto(t, theShelf(t, rebuilt), shelf+rebuildMark)
			moveAside(t, dir, shelf)
		}},
		{"when the old one is in quarantine and copies are left", func(t *testing.T, dir, shelf string) {
			copyInto(t, theShelf(t, rebuilt), shelf+rebuildMark)
			copyInto(t, shelf, salvageDir(shelf))
			moveAside(t, dir, shelf)
		}},
		{"before the copies of an opening were compared", func(t *testing.T, dir, shelf string) {
			copyInto(t, shelf, salvageDir(shelf))
		}},
		{"while copies were made", func(t *testing.T, dir, shelf string) {
			copyInto(t, shelf, salvageDir(shelf)+".tmp")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin.dir)
			tt.make(t, dir, theShelf(t, dir))
			q, _ := openDamaged(t, dir)
			checkBlocks(t, leaseRest(t, q), origin.last, 1, 2)
			if s := q.Stats(); s.Difference+s.MissingBlocks != 0 || s.Delivered != 2*hitsPerBlock {
				t.Errorf("Stats = %+v", s)
			}
			for _, pattern := range []string{"live/*" + rebuildMark, "salvage/*"} {
				if left, _ := filepath.Glob(filepath.Join(dir, pattern)); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			}
		})
	}
}

func copyInto(t testing.TB, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copyTree(t, from), to); err != nil {
		t.Fatal(err)
	}
}

func moveAside(t testing.TB, dir, shelf string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "quarantine"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(shelf, filepath.Join(dir, "quarantine", "live-x-1")); err != nil {
		t.Fatal(err)
	}
}

// TestTooFewFileDescriptorsAreNoDamage: an error that says nothing about the
// files must not lead to a rebuild that leaves out what could not be read.
func TestTooFewFileDescriptorsAreNoDamage(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{fmt.Errorf("opening file: %w", os.ErrNotExist), true},
		{fmt.Errorf("while opening memtables err: open x.mem: too many open files"), false},
		{fmt.Errorf("mmap: cannot allocate memory"), false},
		{fmt.Errorf("%w: x", ErrNewerFormat), false},
		{missingKeys(keyID{}), false},
		{errShort, true},
		{fmt.Errorf("%w: MANIFEST", ErrDamaged), true},
	} {
		if got := isDamage(tt.err); got != tt.want {
			t.Errorf("isDamage(%v) = %t, want %t", tt.err, got, tt.want)
		}
	}
}

// TestW7OfflineVerifyLeavesTheQueueAsItWas: byte for byte, after an unclean stop
// and with damage, and whatever a killed Verify has left.
func TestW7OfflineVerifyLeavesTheQueueAsItWas(t *testing.T) {
	oneCaller(t)
	origin := crashedStore(t, 20)
	places := placesOf(t, theShelf(t, origin.dir), prefixBlock)
	flipBit(t, places[8].file, int64(places[8].off+20), 1)
	before := treeHash(t, origin.dir)
	copyInto(t, copyTree(t, origin.dir), filepath.Join(origin.dir, "verify-1234"))

	report, err := Verify(context.Background(), origin.dir, Keys{})
	if err != nil {
		t.Fatal(err)
	}
	if after := treeHash(t, origin.dir); after != before {
		t.Error("Verify changed the directory, or left something behind")
	}
	if report.Blocks != 17 || report.Pending != 17*hitsPerBlock {
		t.Errorf("Report = %+v, want 17 blocks", report)
	}
	found := func(text string) bool {
		return slices.ContainsFunc(report.Problems, func(p string) bool { return bytes.Contains([]byte(p), []byte(text)) })
	}
	if !found("blocks 9 to 9 are not there") || !found("opening: a database is damaged") {
		t.Errorf("Problems = %q, want the missing block and the rebuild", report.Problems)
	}

	closed := closedStore(t, newRand(t), 5)
	before = treeHash(t, closed)
	if r, err := Verify(context.Background(), closed, Keys{}); err != nil || len(r.Problems) > 0 || r.Blocks != 5 {
		t.Errorf("Verify of a closed queue = %+v, %v", r, err)
	}
	if treeHash(t, closed) != before {
		t.Error("Verify changed the directory of a closed queue")
	}
}

// TestTheHighWaterFileIsNeverBelieved when it does not verify, and never makes
// numbers go back.
func TestTheHighWaterFileIsNeverBelievedBlindly(t *testing.T) {
	origin := closedStore(t, newRand(t), 5)
	for _, tt := range []struct {
		name string
		data []byte
	}{
		{"of no length", nil},
		{"cut", []byte{1, 2, 3}},
		{"that does not verify", bytes.Repeat([]byte{7}, highWaterLen)},
		{"that is old", highWaterOf(2, 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			if err := os.WriteFile(filepath.Join(dir, "live", "HIGH"), tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			q, book := openDamaged(t, dir)
			checkBlocks(t, leaseRest(t, q), 5)
			newNumberIsAbove(t, q, 5)
			if len(book.alarms()) > 0 {
				t.Errorf("alarms: %q", book.alarms())
			}
		})
	}
}

func highWaterOf(number, seq uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, number)
	b = binary.LittleEndian.AppendUint64(b, seq)
	return binary.LittleEndian.AppendUint64(b, ^(number + seq))
}
