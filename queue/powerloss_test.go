package queue

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a power loss leaves of a transaction that was being synced. Found by the
// recorded disk of the crash tests; here each case is made by hand.

// diedInOpening makes a store look as if an opening had died behind the copying of the
// newest shelf's files.
func diedInOpening(t *testing.T, dir string) {
	t.Helper()
	shelves := shelvesOf(t, dir)
	shelf := shelves[len(shelves)-1]
	salvage := salvageDir(shelf)
	if err := os.MkdirAll(salvage, 0o700); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(shelf, "*.mem"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("the shelf has %d logs, %v", len(logs), err)
	}
	for _, log := range logs {
		if err := copyUnsynced(log, filepath.Join(salvage, filepath.Base(log))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAPartOfTheLastTransactionIsNothing: a disk keeps the pages of a transaction
// that was not synced in any order. Whichever part of it is missing, the transaction was
// not acknowledged and counts for nothing.
func TestAPartOfTheLastTransactionIsNothing(t *testing.T) {
	oneCaller(t)
	const blocks = 5
	origin := testOptions(t, t.TempDir())
	q, err := Open(origin)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	fill(t, q, newRand(t), blocks)
	origin.Dir = copyTree(t, q.dir)

	// The parts of the last transaction, by their places in the log.
	type part struct{ at, n int }
	var parts []part
	data := mustRead(t, theFile(t, theShelf(t, origin.Dir), ".mem"))
	for at, version := walHeaderLen, uint64(0); ; {
		e, n, ok := parseLogEntry(data[at:])
		if !ok {
			break
		}
		if e.version != version {
			parts, version = nil, e.version
		}
		parts = append(parts, part{at, n})
		at += n
	}
	if len(parts) != 3 {
		t.Fatalf("the last transaction has %d parts, want a block, a delta and the end", len(parts))
	}
	whole := 1<<len(parts) - 1
	for there := range whole {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("there=%03b, after an opening that died=%t", there, again), func(t *testing.T) {
				dir := copyTree(t, origin.Dir)
				file := theFile(t, theShelf(t, dir), ".mem")
				for i, p := range parts {
					if there&(1<<i) == 0 {
						change(t, file, int64(p.at), make([]byte, p.n))
					}
				}
				remove(t, filepath.Join(dir, "live", "HIGH")) // it was not synced
				if again {
					diedInOpening(t, dir)
				}
				q, book := openDamaged(t, dir)
				if got := book.alarms(); len(got) > 0 && !again {
					t.Errorf("alarms: %q", got)
				}
				checkBlocks(t, leaseRest(t, q), blocks-1)
				if s := q.Stats(); s.Accepted != (blocks-1)*hitsPerBlock || s.MissingBlocks+s.DamagedBlocks+s.Difference != 0 {
					t.Errorf("Stats = %+v", s)
				}
				if r := mustVerify(t, q); len(r.Problems) > 0 {
					t.Errorf("problems: %q", r.Problems)
				}
			})
		}
	}
}

// TestAShelfThatWasJustBegun holds nothing: neither a kill there nor a power loss
// in the opening after it makes anything doubtful.
func TestAShelfThatWasJustBegun(t *testing.T) {
	oneCaller(t)
	const blocks = 5
	origin := closedStore(t, newRand(t), blocks)
	begun := filepath.Join(origin, "live", shelfName(blockKey{clock: nextClock(0, time.Now()), number: blocks + 1}))
	if err := os.Mkdir(begun, 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := openBadger(badgerOptions(begun, badgerLog{log: testOptions(t, "").Log}))
	if err != nil {
		t.Fatal(err)
	}
	killed := copyTree(t, origin)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, dir, shelf string)
	}{
		{"killed", func(*testing.T, string, string) {}},
		{"an opening died", func(t *testing.T, dir, _ string) { diedInOpening(t, dir) }},
		{"an opening died and the log had not reached the disk", func(t *testing.T, dir, shelf string) {
			diedInOpening(t, dir)
			change(t, theFile(t, shelf, ".mem"), 0, make([]byte, walHeaderLen))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := copyTree(t, killed)
			tt.make(t, dir, filepath.Join(dir, "live", filepath.Base(begun)))
			q, book := openDamaged(t, dir)
			if got := book.alarms(); len(got) > 0 {
				t.Errorf("alarms: %q", got)
			}
			hits := leaseRest(t, q)
			checkBlocks(t, hits, blocks)
			for i := range hits {
				if hits[i].Uncertain != 0 {
					t.Errorf("hit %v: Uncertain = %d", hits[i].ID, hits[i].Uncertain)
				}
			}
			if got := kept(t, dir, "*"); len(got) > 0 {
				t.Errorf("quarantine: %q", got)
			}
		})
	}
}
