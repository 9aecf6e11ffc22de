package queue

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"sluice/internal/hit"
)

var updateFlag = flag.Bool("update", false, "write the fixtures of a format version that has none yet; a version that is frozen is never written again")

// The frozen stores of format 1: shelves, dead letters, a journal. Beside an
// encrypted one lies its key.
const (
	storeV1          = "../testdata/store/v1"
	storeV1Encrypted = "../testdata/store/v1-encrypted"
	keySuffix        = ".key"
)

// frozenKeys reads the keys of a frozen store; none if it is in clear.
func frozenKeys(t testing.TB, path string) Keys {
	t.Helper()
	text, err := os.ReadFile(path + keySuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return Keys{}
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := NewKeys(raw)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// storeContent is what a store is expected to hold.
type storeContent struct {
	Stats    Stats     `json:"stats"`
	Counters []Counter `json:"counters"`
	Pending  []string  `json:"pending"` // id, uncertain batch and parameters
	Dead     []string  `json:"dead"`    // id, reason, answer and parameters
}

func contentOf(t testing.TB, q *Queue) storeContent {
	t.Helper()
	c := storeContent{Stats: figures(q.Stats()), Counters: q.Counters()}
	for _, p := range leaseRest(t, q) {
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		c.Pending = append(c.Pending, p.ID.String()+" "+string(p.Params)+" "+string(text))
	}
	for l, err := range q.Dead(t.Context(), DeadFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		c.Dead = append(c.Dead, string(text))
	}
	return c
}

// TestAStoreOfFormat1OpensWithExactlyItsContent: what version 1 wrote is read by
// every later version, hit by hit.
func TestAStoreOfFormat1OpensWithExactlyItsContent(t *testing.T) {
	for _, path := range []string{storeV1, storeV1Encrypted} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			keys := frozenKeys(t, path)
			if *updateFlag {
				writeStore(t, path, keys)
			}
			var want storeContent
			if err := json.Unmarshal(mustRead(t, path+".json"), &want); err != nil {
				t.Fatal(err)
			}
			o, book := damagedOptions(t, copyTree(t, path))
			o.Keys = keys
			q, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			got := contentOf(t, q)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
			if s := q.Stats(); s.Shelves < 3 || len(book.alarms()) > 0 {
				t.Errorf("%d shelves, alarms %q", s.Shelves, book.alarms())
			}
			if r := mustVerify(t, q); len(r.Problems) > 0 {
				t.Errorf("Problems = %q", r.Problems)
			}
		})
	}
}

// writeStore makes a fixture. It does not touch one that is there.
func writeStore(t *testing.T, path string, keys Keys) {
	if _, err := os.Stat(path); err == nil {
		t.Logf("%s is frozen", path)
		return
	}
	r := newRand(t)
	o := testOptions(t, t.TempDir())
	o.ShelfBytes, o.Keys = 8<<10, keys
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; q.Stats().Shelves < 3; i++ {
		s := noiseSet(r, i*hitsPerBlock, hitsPerBlock)
		s.ReceivedAt = 1_790_000_000_123_456_789 + int64(i)*1e9
		s.Environment.DoNotTrack, s.Environment.DataSaver = i%2 == 0, i%3 == 0
		s.Environment.ClientHints, s.Environment.VisitorCookie = `{"HTTP_SEC_CH_UA":"x"}`, "0123456789abcdef"
		s.Environment.Referer = "https://example.org/ä"
		for j := range s.Hits {
			s.Hits[j].At = s.ReceivedAt/1e9 - int64(1000*j)
		}
		s.Hits[1].Form, s.Hits[1].Params = hit.Object, []byte(`{"idsite":1,"rec":1}`)
		s.Hits[2].Rights, s.Hits[2].Token = hit.Theirs, "a token"
		mustAppend(t, q, s)
		flush(t, q)
	}
	hits := leaseRest(t, q)
	list := settleAs(hits[1:9], hit.Delivered)
	list[2].As = hit.Invalid
	list[5].As, list[5].Reason, list[5].Status, list[5].Answer = hit.Dead, "poison", 400, []byte("no\x00\xff")
	list[6].As, list[6].Reason = hit.Dead, "too large"
	if err := q.Settle(0, list); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Journal(idsOf(hits[12:15]), nil); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	frozen := testOptions(t, copyTree(t, o.Dir))
	frozen.Keys = keys
	if q, err = Open(frozen); err != nil {
		t.Fatal(err)
	}
	want := contentOf(t, q)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(want, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".json", append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := copyTree(t, o.Dir)
	for _, shelf := range append(shelvesOf(t, dir), filepath.Join(dir, "dead", "000001")) {
		remove(t, filepath.Join(shelf, "DISCARD")) // a megabyte of zeros that Badger makes anew
	}
	if err := os.CopyFS(path, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
}

// newer turns a framed value into one of the next version.
func newer(value []byte) []byte {
	v := append([]byte(nil), value...)
	v[0] = formatVersion + 1
	copy(v[2:], []byte{0, 0, 0, 0})
	sum := checksum(v)
	v[2], v[3], v[4], v[5] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	return v
}

// TestANewerFormatIsRefusedAndKept: what a later version wrote is neither read
// wrongly nor lost. Opened by that version again, everything is there.
func TestANewerFormatIsRefusedAndKept(t *testing.T) {
	origin := closedStore(t, newRand(t), 6)
	// entries are what the shelf holds, whatever its files look like.
	entries := func(t *testing.T, dir string) map[string]string {
		out := map[string]string{}
		for _, shelf := range shelvesOf(t, dir) {
			for e, err := range entriesIn(shelf) {
				if err != nil {
					t.Fatal(err)
				}
				if !e.end {
					out[string(e.key)] = string(e.value)
				}
			}
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		prefix byte
		leased int // hits before the refusal, -1 if the queue does not open
	}{
		{"a block", prefixBlock, 2 * hitsPerBlock},
		{"a delta", prefixDelta, -1},
		{"a snapshot", prefixSnapshot, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			places := placesOf(t, theShelf(t, dir), tt.prefix)
			p := places[min(2, len(places)-1)]
			change(t, p.file, int64(p.off), newer(p.value))
			before := entries(t, dir)
			o, book := damagedOptions(t, dir)
			q, err := Open(o)
			if tt.leased < 0 {
				if !errors.Is(err, ErrNewerFormat) {
					t.Errorf("Open = %v, want ErrNewerFormat", err)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				leased := 0
				for err == nil {
					var got []hit.Pending
					got, err = q.Lease(t.Context(), 1)
					leased += len(got)
				}
				if !errors.Is(err, ErrNewerFormat) || leased > tt.leased {
					t.Errorf("Lease = %v after %d hits, want ErrNewerFormat", err, leased)
				}
				if err := q.Close(); err != nil {
					t.Error(err)
				}
			}
			if got := entries(t, dir); !reflect.DeepEqual(got, before) {
				t.Errorf("the shelf holds %d entries, %d before", len(got), len(before))
			}
			if got := kept(t, dir, "*"); len(got) > 0 || len(book.alarms()) > 0 {
				t.Errorf("quarantine %q, alarms %q", got, book.alarms())
			}
		})
	}
	t.Run("store.json", func(t *testing.T) {
		dir := copyTree(t, origin)
		if err := os.WriteFile(filepath.Join(dir, "store.json"), []byte(`{"format":2,"generation":"00000000000000ff"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		before := treeHash(t, dir)
		o, _ := damagedOptions(t, dir)
		if _, err := Open(o); !errors.Is(err, ErrNewerFormat) {
			t.Errorf("Open = %v, want ErrNewerFormat", err)
		}
		if treeHash(t, dir) != before {
			t.Error("the directory was changed")
		}
	})
	t.Run("a damaged store.json", func(t *testing.T) {
		for _, text := range []string{
			"", "{}", "null", `{"format":0}`, `{"format":1,"generation":"00000000000000ff","keys":[{"id":"1234567"}]}`,
			`{"format":1,"generation":"00000000000000ff","keys":[{"id":"1234567G"}]}`, `{"format":1,"generation":"00000000000000ff","keys":["12345678"]}`,
			`{"format":1,"generation":"x"}`, `{"format":1,"generation":"0000000000000000"}`,
		} {
			dir := copyTree(t, origin)
			if err := os.WriteFile(filepath.Join(dir, "store.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			before := treeHash(t, dir)
			o, _ := damagedOptions(t, dir)
			if _, err := Open(o); !errors.Is(err, ErrDamaged) {
				t.Errorf("Open with %q = %v, want ErrDamaged", text, err)
			}
			if treeHash(t, dir) != before {
				t.Error("the directory was changed")
			}
		}
	})
	t.Run("a dead letter", func(t *testing.T) {
		dir := buriedStore(t, 1)
		db, err := openBadger(badgerOptions(filepath.Join(dir, "dead", "000001"), badgerLog{log: testOptions(t, "").Log}))
		if err != nil {
			t.Fatal(err)
		}
		id := hit.ID{Generation: 9, Block: 1}
		value := newer(encodeDead(&hit.DeadLetter{ID: id}, nil))
		if err := db.Update(func(txn *badger.Txn) error { return txn.Set(deadKey(id), value) }); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		o, _ := damagedOptions(t, dir)
		if _, err := Open(o); !errors.Is(err, ErrNewerFormat) {
			t.Errorf("Open = %v, want ErrNewerFormat", err)
		}
	})
}

// TestAFlippedVersionIsDamage and no reason to refuse the queue.
func TestAFlippedVersionIsDamage(t *testing.T) {
	value := encodeDelta(nil, 3, &delta{ends: []uint64{4}})
	for bit := range 8 {
		v := append([]byte(nil), value...)
		v[0] ^= 1 << bit
		if _, err := decodeDelta(3, v); !errors.Is(err, errDamaged) {
			t.Errorf("bit %d: %v, want damage", bit, err)
		}
	}
}

// TestAValueUnderAnotherKeyIsDamage: Badger does not protect its keys.
func TestAValueUnderAnotherKeyIsDamage(t *testing.T) {
	key := blockKey{clock: 5, generation: 6, number: 7}
	value := encodeBlock(nil, &block{key: key}, nil)
	for _, other := range []blockKey{{4, 6, 7}, {5, 5, 7}, {5, 6, 8}} {
		if _, _, err := decodeBlock(Keys{}, other, value); !errors.Is(err, errDamaged) {
			t.Errorf("block under %v: %v, want damage", other, err)
		}
	}
	if _, err := decodeDelta(4, encodeDelta(nil, 3, &delta{})); !errors.Is(err, errDamaged) {
		t.Errorf("delta under another key: %v, want damage", err)
	}
	if _, err := decodePart(snapshotKey(3, 1), encodePart(3, 0, 1, nil)); !errors.Is(err, errDamaged) {
		t.Errorf("snapshot under another key: %v, want damage", err)
	}
}
