package queue

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sluice/internal/hit"
)

// secretSet is one hit whose every text is a marker that does not compress, and the
// markers.
func secretSet(r *rand.Rand) (*hit.RequestSet, []string) {
	var markers []string
	marker := func() string {
		b := make([]byte, 20)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		markers = append(markers, hex.EncodeToString(b))
		return markers[len(markers)-1]
	}
	s := aSet(0, 1, 1)
	s.Environment = hit.Environment{
		ClientIP: marker(), UserAgent: marker(), AcceptLanguage: marker(), Referer: marker(), ClientHints: marker(), VisitorCookie: marker(),
	}
	s.Hits[0].Params, s.Hits[0].Token, s.Hits[0].Rights = []byte("idsite=1&rec=1&url="+marker()), marker(), hit.Theirs
	return s, markers
}

// filesWith names the files under dir in which one of the texts stands.
func filesWith(t testing.TB, dir string, texts ...string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data := bytes.TrimRight(mustRead(t, path), "\x00") // Badger's logs are sparse
		if slices.ContainsFunc(texts, func(s string) bool { return bytes.Contains(data, []byte(s)) }) {
			rel, _ := filepath.Rel(dir, path)
			found = append(found, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestAnEncryptedQueueKeepsNothingOfVisitorsInClear in any file that it ever makes:
// logs, tables, dead letters, copies, quarantine. Without a key all of that is there.
func TestAnEncryptedQueueKeepsNothingOfVisitorsInClear(t *testing.T) {
	oneCaller(t)
	for _, tt := range []struct {
		name string
		keys Keys
	}{{"with a key", testKeys(1)}, {"without a key", Keys{}}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRand(t)
			var texts []string
			look := func(where, dir string, suffixes ...string) {
				t.Helper()
				found := filesWith(t, dir, texts...)
				if tt.keys.first() != nil {
					if len(found) > 0 {
						t.Errorf("%s: in clear in %q", where, found)
					}
					return
				}
				for _, s := range suffixes {
					if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, s) }) {
						t.Errorf("%s: the test is blind: in clear in %q, not in %s", where, found, s)
					}
				}
			}
			o, _ := damagedOptions(t, t.TempDir())
			o.Keys, o.ShelfBytes = tt.keys, 4<<10
			q, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			for range 12 {
				s, markers := secretSet(r)
				texts = append(texts, markers...)
				mustAppend(t, q, s)
				flush(t, q)
			}
			hits := leaseAll(t, q, 12)
			list := settleAs(hits[:4], hit.Dead)
			texts = append(texts, "an answer that repeats the request")
			for i := range list {
				list[i].Reason, list[i].Answer = "poison", []byte(texts[len(texts)-1])
			}
			if err := q.Settle(0, list); err != nil {
				t.Fatal(err)
			}
			if _, err := q.Journal(idsOf(hits[6:]), nil); err != nil {
				t.Fatal(err)
			}
			look("running", o.Dir, "live/", ".mem", "dead/000001/00001.mem")
			crashed := copyTree(t, o.Dir)
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			look("closed", o.Dir, "live/", ".sst", "dead/000001/000001.sst")

			for _, shelf := range append(shelvesOf(t, crashed), filepath.Join(crashed, "dead", "000001")) {
				if _, err := (&dbFiles{dir: shelf, log: badgerLog{log: o.Log}}).prepare(); err != nil {
					t.Fatal(err)
				}
			}
			look("salvaged", filepath.Join(crashed, "salvage"), "live-", "dead-000001/00001.mem")
			err = WithCopy(o.Dir, tt.keys, func(q *Queue) error {
				look("a tool's copy", q.dir, "live/", ".sst")
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}

			// A block in quarantine, and two databases.
			shelves := shelvesOf(t, o.Dir)
			p := placesOf(t, shelves[0], prefixBlock)[5]
			spoil(t, p)
			remove(t, filepath.Join(shelves[len(shelves)-1], "MANIFEST"))
			remove(t, filepath.Join(o.Dir, "dead", "000001", "MANIFEST"))
			o.Metrics = testOptions(t, "").Metrics
			if q, err = Open(o); err != nil {
				t.Fatal(err)
			}
			leaseRest(t, q)
			if got := deadOf(t, q); len(got) != 4 {
				t.Errorf("%d letters after the rebuild, want 4", len(got))
			}
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			if got := kept(t, o.Dir, "*"); len(got) != 3 {
				t.Fatalf("quarantine holds %q", got)
			}
			look("quarantine", o.Dir, ".block", "quarantine/dead-000001-1/")
		})
	}
}

// spoil changes the end of a value in its file and makes its checksum right: the
// last byte of a body is its authentication, or a hit's.
func spoil(t testing.TB, p place) {
	t.Helper()
	v := bytes.Clone(p.value)
	v[len(v)-1] ^= 1
	if p.value[frameLen]&codecSealed == 0 {
		v[frameLen+25]++ // one hit more than there is
	}
	change(t, p.file, int64(p.off), seal(v, v[1]))
}

// keyedStore gives a closed queue's directory with five blocks and two letters, all
// encrypted with keys.
func keyedStore(t testing.TB, keys Keys) string {
	t.Helper()
	dir := t.TempDir()
	openWith(t, dir, keys, func(q *Queue) {
		fill(t, q, newRand(t), 5)
		list := settleAs(leaseAll(t, q, 2), hit.Dead)
		if err := q.Settle(0, list); err != nil {
			t.Fatal(err)
		}
	})
	return dir
}

// listed gives the keys in store.json, with the block up to which each encrypted.
func listed(t testing.TB, dir string) (out []string) {
	t.Helper()
	s, err := readStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range s.keys {
		for name := byte(1); name < 10; name++ {
			if testKeys(name).first().id == k.ID {
				out = append(out, fmt.Sprintf("%d:%d", name, k.Until))
			}
		}
	}
	return out
}

func wantListed(t testing.TB, dir string, want ...string) {
	t.Helper()
	if got := listed(t, dir); !slices.Equal(got, want) {
		t.Errorf("store.json lists the keys %q, want %q", got, want)
	}
}

// TestWithoutItsKeyAQueueIsLeftAsItIs: it is neither opened nor changed, by nobody,
// and the error says which key is missing.
func TestWithoutItsKeyAQueueIsLeftAsItIs(t *testing.T) {
	oneCaller(t)
	closed := keyedStore(t, testKeys(1))
	openWith(t, closed, testKeys(2, 1), func(q *Queue) { fill(t, q, newRand(t), 1) })
	wantListed(t, closed, "1:6", "2:0")
	var running string
	openWith(t, copyTree(t, closed), testKeys(1, 2), func(q *Queue) { running = copyTree(t, q.dir) })
	for _, tt := range []struct {
		name    string
		keys    Keys
		missing Keys
	}{
		{"no key", Keys{}, testKeys(1, 2)},
		{"the first key only", testKeys(1), testKeys(2)},
		{"the second key only", testKeys(2), testKeys(1)},
		{"another key", testKeys(3), testKeys(1, 2)},
	} {
		for state, dir := range map[string]string{"closed": closed, "killed": running} {
			t.Run(tt.name+", "+state, func(t *testing.T) {
				before := treeHash(t, dir)
				o, _ := damagedOptions(t, dir)
				o.Keys = tt.keys
				_, err := Open(o)
				for what, err := range map[string]error{
					"Open": err, "CheckKeys": CheckKeys(dir, tt.keys), "WithCopy": WithCopy(dir, tt.keys, nil),
				} {
					if !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "queue.encryption-key-file") || strings.Contains(err.Error(), copyPrefix) {
						t.Fatalf("%s = %v, want ErrKey", what, err)
					}
					for _, k := range testKeys(1, 2).list {
						if strings.Contains(err.Error(), k.id.String()) != (tt.missing.find(k.id) != nil) {
							t.Errorf("%s = %v, want the names of %v", what, err, tt.missing)
						}
					}
				}
				if treeHash(t, dir) != before {
					t.Error("the directory was changed")
				}
			})
		}
	}
	if err := CheckKeys(closed, testKeys(3, 2, 1)); err != nil {
		t.Errorf("CheckKeys with all keys = %v", err)
	}
	if err := CheckKeys(t.TempDir(), Keys{}); err != nil {
		t.Errorf("CheckKeys without a queue = %v", err)
	}
}

// TestAKeyIsChangedWithHitsPending: blocks of both keys are read in their order, and
// the old key is needed until its last block is settled, not for its letters.
func TestAKeyIsChangedWithHitsPending(t *testing.T) {
	dir := keyedStore(t, testKeys(1))
	wantListed(t, dir, "1:0")
	openWith(t, dir, testKeys(2, 1), func(q *Queue) {
		wantListed(t, dir, "1:6", "2:0")
		fill(t, q, newRand(t), 3)
		hits := leaseRest(t, q)
		if len(hits) != 8*hitsPerBlock-2 || !slices.IsSortedFunc(hits, func(a, b hit.Pending) int { return a.ID.Compare(b.ID) }) {
			t.Errorf("%d hits leased, or not in order", len(hits))
		}
		for value, err := range q.dead.values(t.Context(), prefixDead) {
			if err != nil || !testKeys(2).first().hasEncrypted(value) {
				t.Errorf("a letter is not encrypted with the key in use, %v", err)
			}
		}
		if err := q.Settle(0, settleAs(hits[:4*hitsPerBlock-2], hit.Delivered)); err != nil { // block 5 is left
			t.Fatal(err)
		}
	})
	wantListed(t, dir, "1:6", "2:0")
	var killed string
	openWith(t, dir, testKeys(2, 1), func(q *Queue) {
		if err := q.Settle(0, settleAs(leaseAll(t, q, hitsPerBlock), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
		flush(t, q)
		killed = copyTree(t, dir)
	})
	wantListed(t, dir, "2:0")
	openWith(t, dir, testKeys(2), func(q *Queue) {
		if hits := leaseRest(t, q); len(hits) != 3*hitsPerBlock || hits[0].ID.Block != 6 {
			t.Errorf("%d hits leased with the second key alone", len(hits))
		}
		if got := deadOf(t, q); len(got) != 2 {
			t.Errorf("%d letters with the second key alone", len(got))
		}
	})
	// A kill leaves the list; the next opening shortens it.
	wantListed(t, killed, "1:6", "2:0")
	openWith(t, killed, testKeys(2, 1), func(*Queue) { wantListed(t, killed, "2:0") })
	// And back to the first key.
	openWith(t, dir, testKeys(1, 2), func(*Queue) { wantListed(t, dir, "2:9", "1:0") })
	openWith(t, dir, testKeys(2, 1), func(*Queue) { wantListed(t, dir, "2:0", "1:9") })
}

// TestEncryptionIsSwitchedOnOverAClearQueue: what is there stays readable, and the
// letters, which may stay for ever, do not stay in clear.
func TestEncryptionIsSwitchedOnOverAClearQueue(t *testing.T) {
	r := newRand(t)
	dir := t.TempDir()
	s, texts := secretSet(r)
	openWith(t, dir, Keys{}, func(q *Queue) {
		mustAppend(t, q, s)
		fill(t, q, r, 4)
		list := settleAs(leaseAll(t, q, 1), hit.Dead)
		if err := q.Settle(0, list); err != nil {
			t.Fatal(err)
		}
	})
	wantListed(t, dir)
	if len(filesWith(t, filepath.Join(dir, "dead"), texts...)) == 0 {
		t.Error("the test is blind: the letter is not in clear")
	}
	openWith(t, dir, testKeys(1), func(q *Queue) {
		wantListed(t, dir, "1:0")
		s2, texts2 := secretSet(r)
		mustAppend(t, q, s2)
		hits := leaseRest(t, q)
		if len(hits) != 4*hitsPerBlock+1 || string(hits[len(hits)-1].Params) != string(s2.Hits[0].Params) {
			t.Errorf("%d hits leased, want those in clear and the encrypted one", len(hits))
		}
		if found := filesWith(t, dir, texts2...); len(found) > 0 {
			t.Errorf("in clear in %q", found)
		}
		if found := filesWith(t, filepath.Join(dir, "dead"), texts...); len(found) > 0 {
			t.Errorf("the letter is still in clear in %q", found)
		}
		for l, err := range q.Dead(t.Context(), DeadFilter{}) {
			if err != nil || !reflect.DeepEqual(l.Hit, s.Hits[0]) || l.Environment != s.Environment {
				t.Errorf("letter %+v, %v", l, err)
			}
		}
	})
}

// TestAKeyIsListedBeforeAnythingIsEncryptedWithIt, so that no kill leaves a queue
// whose list is short of a key.
func TestAKeyIsListedBeforeAnythingIsEncryptedWithIt(t *testing.T) {
	dir := keyedStore(t, Keys{})
	if err := os.Mkdir(filepath.Join(dir, "store.json.tmp"), 0o700); err != nil { // store.json cannot be written
		t.Fatal(err)
	}
	o, _ := damagedOptions(t, dir)
	o.Keys = testKeys(1)
	if q, err := Open(o); err == nil {
		q.Close()
		t.Fatal("Open = nil although the key cannot be listed")
	}
	openWith(t, dir, Keys{}, func(q *Queue) {
		if got := deadOf(t, q); len(got) != 2 {
			t.Errorf("%d letters, want 2", len(got))
		}
	})
}

// TestADrainedQueueNeedsNoKey: its list ends with the last thing that is encrypted,
// so that encryption can be switched off.
func TestADrainedQueueNeedsNoKey(t *testing.T) {
	oneCaller(t)
	dir := keyedStore(t, testKeys(1))
	openWith(t, dir, testKeys(1), func(q *Queue) {
		if err := q.Settle(0, settleAs(leaseRest(t, q), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
	})
	wantListed(t, dir, "1:0") // for the letters
	openWith(t, dir, testKeys(1), func(q *Queue) {
		if n, err := q.Requeue(t.Context(), DeadFilter{}); n != 2 || err != nil {
			t.Fatalf("Requeue = %d, %v", n, err)
		}
	})
	wantListed(t, dir, "1:0") // for the hits
	var killed string
	openWith(t, dir, testKeys(1), func(q *Queue) {
		if err := q.Settle(0, settleAs(leaseRest(t, q), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
		flush(t, q)
		killed = copyTree(t, dir)
	})
	wantListed(t, dir)
	openWith(t, dir, Keys{}, func(q *Queue) {
		mustAppend(t, q, aSet(0, 1, 1))
		if s := q.Stats(); s.Accepted != 5*hitsPerBlock+1 || s.Pending != 1 {
			t.Errorf("Stats = %+v", s)
		}
	})
	wantListed(t, killed, "1:0")
	openWith(t, killed, testKeys(2, 1), func(*Queue) { wantListed(t, killed, "2:0") })
}

// TestALetterThatCannotBeReadKeepsItsKey on the list, and does not stop the queue.
func TestALetterThatCannotBeReadKeepsItsKey(t *testing.T) {
	dir := keyedStore(t, testKeys(1))
	openWith(t, dir, testKeys(1), func(q *Queue) {
		if err := q.Settle(0, settleAs(leaseRest(t, q), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
	})
	table := theFile(t, filepath.Join(dir, "dead", "000001"), ".sst")
	flipBit(t, table, 200, 1)
	for range 2 {
		o, book := damagedOptions(t, dir)
		o.Keys = testKeys(2, 1)
		q, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if !book.alarmed("a dead letter cannot be read") {
			t.Errorf("alarms %q", book.alarms())
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		wantListed(t, dir, "1:6", "2:0")
	}
}

// TestABlockWhoseKeyIsUnknownStopsTheQueue, although store.json does not ask for
// the key: it is whole, so it is kept where it is, and read with the key.
func TestABlockWhoseKeyIsUnknownStopsTheQueue(t *testing.T) {
	oneCaller(t)
	unlist := func(dir string) {
		s, err := readStore(dir)
		if err == nil {
			s.keys = nil
			err = s.write(dir)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	closed := keyedStore(t, testKeys(1))
	openWith(t, closed, testKeys(1), func(q *Queue) { // the letters are another case
		if n, err := q.Requeue(t.Context(), DeadFilter{}); n != 2 || err != nil {
			t.Fatalf("Requeue = %d, %v", n, err)
		}
	})
	for _, keys := range []Keys{{}, testKeys(2)} {
		for _, snapshots := range []bool{true, false} {
			t.Run(fmt.Sprintf("keys=%v,snapshots=%t", keys, snapshots), func(t *testing.T) {
				dir := copyTree(t, closed)
				unlist(dir)
				if !snapshots {
					harmSnapshots(t, theShelf(t, dir), 9)
				}
				o, _ := damagedOptions(t, dir)
				o.Keys = keys
				q, err := Open(o)
				if err == nil {
					if _, err := q.Verify(t.Context()); !errors.Is(err, ErrKey) {
						t.Errorf("Verify = %v, want ErrKey", err)
					}
					if _, err := q.Find(t.Context(), hit.ID{Generation: q.generation, Block: 1}); !errors.Is(err, ErrKey) {
						t.Errorf("Find = %v, want ErrKey", err)
					}
					_, err = q.Lease(t.Context(), 1)
					if err := q.Close(); err != nil {
						t.Error(err)
					}
				} else if snapshots {
					t.Errorf("Open = %v", err)
				}
				if !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), testKeys(1).String()) {
					t.Errorf("%v, want ErrKey", err)
				}
				if got := kept(t, dir, "*.block"); len(got) > 0 {
					t.Errorf("quarantine holds %q", got)
				}
				o, _ = damagedOptions(t, dir)
				o.Keys = testKeys(2, 1)
				if q, err = Open(o); err != nil {
					t.Fatal(err)
				}
				if got := leaseRest(t, q); len(got) != 5*hitsPerBlock {
					t.Errorf("%d hits with the key, want all", len(got))
				}
				if err := q.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	t.Run("a letter", func(t *testing.T) {
		dir := keyedStore(t, testKeys(1))
		unlist(dir)
		o, _ := damagedOptions(t, dir)
		o.Keys = testKeys(2)
		if _, err := Open(o); !errors.Is(err, ErrKey) {
			t.Errorf("Open = %v, want ErrKey", err)
		}
		openWith(t, dir, testKeys(1), func(q *Queue) {
			if got := deadOf(t, q); len(got) != 2 {
				t.Errorf("%d letters with the key, want 2", len(got))
			}
		})
	})
}

// TestSettledBlocksNeedNoKey, even where the state must be derived from the blocks:
// a key that was let go is not asked for again.
func TestSettledBlocksNeedNoKey(t *testing.T) {
	dir := t.TempDir()
	openWith(t, dir, testKeys(1), func(q *Queue) {
		fill(t, q, newRand(t), 5)
		if err := q.Settle(0, settleAs(leaseRest(t, q), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
	})
	openWith(t, dir, testKeys(2), func(q *Queue) { fill(t, q, newRand(t), 2) })
	harmSnapshots(t, theShelf(t, dir), 9)
	o, book := damagedOptions(t, dir)
	o.Keys = testKeys(2)
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if got := leaseRest(t, q); len(got) != 2*hitsPerBlock || !book.alarmed("derived from its blocks") {
		t.Errorf("%d hits, alarms %q", len(got), book.alarms())
	}
}

// TestAnEncryptedBlockThatWasChangedIsDamage, and only that one: it is counted,
// named and kept like one whose checksum is wrong.
func TestAnEncryptedBlockThatWasChangedIsDamage(t *testing.T) {
	const blocks = 8
	origin := t.TempDir()
	openWith(t, origin, testKeys(1), func(q *Queue) {
		r := rand.New(rand.NewPCG(1, 2)) // always the same: all blocks are of one length
		for range blocks {
			s := aSet(0, hitsPerBlock, 1)
			s.ReceivedAt = 1
			for j := range s.Hits {
				s.Hits[j].Params = fmt.Appendf(nil, "%016x%016x", r.Uint64(), r.Uint64())
				s.Hits[j].At = 1
			}
			mustAppend(t, q, s)
		}
	})
	body := func(p place) []byte { return p.value[frameLen+blockHeaderLen:] }
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, p []place)
		lost []uint64
	}{
		{"a flipped bit", func(t *testing.T, p []place) { spoil(t, p[3]) }, []uint64{4}},
		{"a flipped bit, and no state but in the blocks", func(t *testing.T, p []place) {
			spoil(t, p[3])
			harmSnapshots(t, filepath.Dir(p[3].file), 9)
		}, []uint64{4}},
		{"exchanged bodies", func(t *testing.T, p []place) {
			for _, pair := range [][2]place{{p[2], p[5]}, {p[5], p[2]}} {
				v := append(bytes.Clone(pair[0].value[:frameLen+blockHeaderLen]), body(pair[1])...)
				change(t, pair[0].file, int64(pair[0].off), seal(v, kindBlock))
			}
		}, []uint64{3, 6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := copyTree(t, origin)
			places := placesOf(t, theShelf(t, dir), prefixBlock)
			if len(places[2].value) != len(places[5].value) {
				t.Fatalf("blocks of %d and %d bytes cannot be exchanged", len(places[2].value), len(places[5].value))
			}
			tt.harm(t, places)
			o, book := damagedOptions(t, dir)
			o.Keys = testKeys(1)
			q, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			if got := mustVerify(t, q).Problems; len(got) != len(tt.lost) {
				t.Errorf("Verify names %q, want blocks %d", got, tt.lost)
			}
			checkBlocks(t, leaseRest(t, q), blocks, tt.lost...)
			for _, n := range tt.lost {
				if !book.alarmed("cannot be delivered", fmt.Sprintf("from=%d to=%d", n, n), "there=true") {
					t.Errorf("the log does not name block %d: %q", n, book.alarms())
				}
				if got := kept(t, dir, fmt.Sprintf("*-%d.block", n)); len(got) != 1 {
					t.Errorf("quarantine holds %q, want block %d", got, n)
				}
			}
			if s := q.Stats(); s.DamagedBlocks != int64(len(tt.lost)) || s.MissingBlocks != 0 {
				t.Errorf("Stats = %+v", s)
			}
		})
	}
}
