package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// A logBook keeps what a queue logs, for tests of what an operator is told.
type logBook struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// alarms gives the lines of level Error.
func (l *logBook) alarms() (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, "level=ERROR") {
			out = append(out, line)
		}
	}
	return out
}

// alarmed reports whether some alarm contains all of the texts.
func (l *logBook) alarmed(texts ...string) bool {
	return slices.ContainsFunc(l.alarms(), func(line string) bool {
		return !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(line, s) })
	})
}

// damagedOptions are those of a queue that may log alarms.
func damagedOptions(t testing.TB, dir string) (Options, *logBook) {
	book := &logBook{}
	return Options{
		Dir: dir, Reserve: testReserve, Metrics: metrics.NewSet(),
		Log: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), book), nil)),
	}, book
}

// openDamaged opens a queue that may be damaged and closes it when the test ends.
func openDamaged(t testing.TB, dir string) (*Queue, *logBook) {
	t.Helper()
	o, book := damagedOptions(t, dir)
	q, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := q.Err(); err != nil {
			t.Errorf("the queue has failed: %v", err)
		}
	})
	return q, book
}

// noiseSet is a set of n hits that hardly compress, so that a block is as long on
// disk as in memory.
func noiseSet(r *rand.Rand, first, n int) *hit.RequestSet {
	s := aSet(first, n, int64(first%3+1))
	for i := range s.Hits {
		noise := make([]byte, 20+r.IntN(120))
		for j := range noise {
			noise[j] = byte(r.Uint32())
		}
		s.Hits[i].Params = fmt.Appendf(nil, "rec=1&n=%d&x=%s", first+i, hex.EncodeToString(noise))
	}
	return s
}

const hitsPerBlock = 3

// fill appends blocks of hitsPerBlock hits each.
func fill(t testing.TB, q *Queue, r *rand.Rand, blocks int) {
	t.Helper()
	for i := range blocks {
		mustAppend(t, q, noiseSet(r, i*hitsPerBlock, hitsPerBlock))
	}
}

// closedStore gives the directory of a closed queue with pending blocks.
func closedStore(t testing.TB, r *rand.Rand, blocks int) string {
	t.Helper()
	dir := t.TempDir()
	q, err := Open(testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, q, r, blocks)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyTree copies a data directory, as a crash would leave it if a queue has it
// open: kernel and disk show the same bytes.
func copyTree(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if rel == "BALLAST" || e.Name() == "LOCK" {
			return nil
		}
		return copyUnsynced(path, filepath.Join(to, rel))
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// copyUnsynced copies a file and leaves its holes out.
func copyUnsynced(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	size := int64(0)
	zero := make([]byte, 64<<10)
	for buf := make([]byte, len(zero)); ; {
		n, err := in.ReadAt(buf, size)
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := out.WriteAt(buf[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if err == io.EOF {
			return out.Truncate(size)
		}
		if err != nil {
			return err
		}
	}
}

// theShelf gives the only shelf of a queue's directory.
func theShelf(t testing.TB, dir string) string {
	t.Helper()
	all := shelvesOf(t, dir)
	if len(all) != 1 {
		t.Fatalf("%d shelves, want 1", len(all))
	}
	return all[0]
}

func shelvesOf(t testing.TB, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := parseShelfName(e.Name()); ok {
			out = append(out, filepath.Join(dir, "live", e.Name()))
		}
	}
	return out
}

// theFile gives the only file with a suffix in a directory.
func theFile(t testing.TB, dir, suffix string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(found) != 1 {
		t.Fatalf("files *%s: %q, %v, want one", suffix, found, err)
	}
	return found[0]
}

// change rewrites a file in place, holes kept.
func change(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func flipBit(t testing.TB, path string, off int64, bit uint) {
	t.Helper()
	data := mustRead(t, path)
	change(t, path, off, []byte{data[off] ^ 1<<(bit%8)})
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A place is where a value lies in a file.
type place struct {
	file  string
	off   int
	value []byte
	key   []byte
}

// placesOf finds the values of a kind in a shelf's files, in the order of keys.
func placesOf(t testing.TB, shelf string, prefix byte) (out []place) {
	t.Helper()
	seen := map[string]bool{}
	for suffix, read := range fileReaders() {
		files, _ := filepath.Glob(filepath.Join(shelf, "*"+suffix))
		for _, file := range files {
			data := mustRead(t, file)
			for e := range read(data) {
				if !(&dbFiles{kinds: shelfKinds}).ours(&e) || e.key[0] != prefix || seen[string(e.key)] {
					continue
				}
				seen[string(e.key)] = true
				out = append(out, place{file: file, off: bytes.Index(data, e.value), value: bytes.Clone(e.value), key: bytes.Clone(e.key)})
			}
		}
	}
	slices.SortFunc(out, func(a, b place) int { return bytes.Compare(a.key, b.key) })
	return out
}

func numberOf(t testing.TB, p place) uint64 {
	t.Helper()
	key, ok := parseBlockKey(p.key)
	if !ok {
		t.Fatalf("%x is no block's key", p.key)
	}
	return key.number
}

// leaseRest leases everything that can be leased.
func leaseRest(t testing.TB, q *Queue) (all []hit.Pending) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		s := q.live
		s.mu.Lock()
		last := s.st.lastNumber
		s.mu.Unlock()
		if s.reader.next > last && len(s.reader.carry) == 0 {
			return all
		}
		// The last blocks may all be damaged: then there is nothing to wait for.
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		got, err := q.Lease(ctx, 1000)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		if err != nil {
			t.Fatalf("Lease after %d hits: %v", len(all), err)
		}
		all = append(all, got...)
	}
}

func blocksOf(hits []hit.Pending) map[uint64]int {
	m := map[uint64]int{}
	for i := range hits {
		m[hits[i].ID.Block]++
	}
	return m
}

// checkBlocks checks that exactly the blocks 1..last but the lost ones were
// leased, whole and in order.
func checkBlocks(t testing.TB, hits []hit.Pending, last uint64, lost ...uint64) {
	t.Helper()
	got := blocksOf(hits)
	for n := uint64(1); n <= last; n++ {
		want := hitsPerBlock
		if slices.Contains(lost, n) {
			want = 0
		}
		if got[n] != want {
			t.Errorf("block %d: %d hits leased, want %d", n, got[n], want)
		}
	}
	if !slices.IsSortedFunc(hits, func(a, b hit.Pending) int { return a.ID.Compare(b.ID) }) {
		t.Error("hits were leased out of order")
	}
}

// treeHash names the content of a directory tree but for the lock.
func treeHash(t testing.TB, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "LOCK" {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintln(h, rel, e.Type())
		if e.Type().IsRegular() {
			fmt.Fprintf(h, "%x\n", sha256.Sum256(mustRead(t, path)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func kept(t testing.TB, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "quarantine", pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestW1AFlippedBitInABlockLosesThatBlockOnly: one bad bit in the value of a
// stored block costs that block and nothing else. It is counted, named in the
// log, kept in quarantine, and the sum says how many hits are gone.
func TestW1AFlippedBitInABlockLosesThatBlockOnly(t *testing.T) {
	oneCaller(t)
	r := newRand(t)
	const blocks = 40
	origin := closedStore(t, r, blocks)
	places := placesOf(t, theShelf(t, origin), prefixBlock)
	if len(places) != blocks {
		t.Fatalf("%d blocks on disk, want %d", len(places), blocks)
	}
	for range 25 {
		p := places[r.IntN(blocks)]
		n := numberOf(t, p)
		off, bit := r.IntN(len(p.value)), uint(r.IntN(8))
		t.Run(fmt.Sprintf("block=%d,byte=%d,bit=%d", n, off, bit), func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			flipBit(t, filepath.Join(theShelf(t, dir), filepath.Base(p.file)), int64(p.off+off), bit)
			q, book := openDamaged(t, dir)
			if problems := mustVerify(t, q).Problems; len(problems) != 1 || !strings.Contains(problems[0], fmt.Sprintf("block %d ", n)) {
				t.Errorf("Verify names %q, want block %d", problems, n)
			}
			hits := leaseRest(t, q)
			checkBlocks(t, hits, blocks, n)
			if !book.alarmed("cannot be delivered", fmt.Sprintf("from=%d to=%d", n, n)) {
				t.Errorf("the log does not name block %d: %q", n, book.alarms())
			}
			if got := kept(t, dir, fmt.Sprintf("*-%d.block", n)); len(got) != 1 {
				t.Errorf("quarantine holds %q, want block %d", got, n)
			}
			if err := q.Settle(0, settleAs(hits, hit.Delivered)); err != nil {
				t.Fatal(err)
			}
			flush(t, q)
			s := q.Stats()
			if s.DamagedBlocks != 1 || s.MissingBlocks != 0 || s.Pending != hitsPerBlock || s.Difference != hitsPerBlock || s.Uncertain != 0 {
				t.Errorf("Stats = %+v, want 1 damaged block and a difference of %d", s, hitsPerBlock)
			}
		})
	}
}

func mustVerify(t testing.TB, q *Queue) *Report {
	t.Helper()
	r, err := q.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestW1AFlippedBitAnywhereInATableStaysThere: a bad bit in a key, in Badger's
// lengths, in a record of our own or in the index loses the block it belongs to
// at most; two, if it is in the number that says where one ends and the next
// begins. It never stops the queue.
func TestW1AFlippedBitAnywhereInATableStaysThere(t *testing.T) {
	oneCaller(t)
	r := newRand(t)
	const blocks = 30
	origin := closedStore(t, r, blocks)
	table := filepath.Base(theFile(t, theShelf(t, origin), ".sst"))
	size := len(mustRead(t, filepath.Join(theShelf(t, origin), table)))
	places := placesOf(t, theShelf(t, origin), prefixBlock)
	var offs []int
	for range 12 {
		offs = append(offs, r.IntN(size))
	}
	for range 20 {
		// Before a block's value: its key, meta, expiry and the entry's lengths, or
		// the checksum and offsets of the block before.
		offs = append(offs, places[r.IntN(blocks)].off-1-r.IntN(60))
	}
	offs = append(offs, 7, 20) // in the first key, with which others of its block share their front
	for range 6 {
		offs = append(offs, size-1-r.IntN(200)) // index and footer
	}
	for _, off := range offs {
		bit := uint(r.IntN(8))
		t.Run(fmt.Sprintf("byte=%d,bit=%d", off, bit), func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			flipBit(t, filepath.Join(theShelf(t, dir), table), int64(max(off, 0)), bit)
			q, book := openDamaged(t, dir)
			hits := leaseRest(t, q)
			var lost []uint64
			got := blocksOf(hits)
			for n := uint64(1); n <= blocks; n++ {
				if got[n] == 0 {
					lost = append(lost, n)
				}
			}
			checkBlocks(t, hits, blocks, lost...)
			if err := q.Settle(0, settleAs(hits, hit.Delivered)); err != nil {
				t.Fatal(err)
			}
			flush(t, q)
			s := q.Stats()
			if len(lost) > 2 || s.DamagedBlocks+s.MissingBlocks != int64(len(lost)) || s.Difference != int64(len(lost)*hitsPerBlock) {
				t.Errorf("lost blocks %d, Stats = %+v", lost, s)
			}
			if len(lost) > 0 && len(book.alarms()) == 0 {
				t.Error("a block was lost in silence")
			}
			mustAppend(t, q, aSet(1000, hitsPerBlock, 1))
			if again := leaseRest(t, q); len(again) != hitsPerBlock || again[0].ID.Block <= blocks {
				t.Errorf("after the damage: leased %d, block %d", len(again), again[0].ID.Block)
			}
		})
	}
}

// TestW1AnUnreadableTableIsRebuilt: without its index, its end, or all of it, a
// table would stop Badger, or make it panic. What verifies in it is delivered,
// the rest is counted as missing, and the file is kept.
func TestW1AnUnreadableTableIsRebuilt(t *testing.T) {
	r := newRand(t)
	const blocks = 30
	origin := closedStore(t, r, blocks)
	places := placesOf(t, theShelf(t, origin), prefixBlock)
	name := filepath.Base(places[0].file)
	tests := []struct {
		name string
		harm func(t *testing.T, path string, size int64)
		// keeps is how many blocks at the front must survive: several share a unit of
		// the table, whose end says where they begin.
		keeps int
	}{
		{"without its footer", func(t *testing.T, path string, size int64) { truncate(t, path, size-10) }, blocks},
		{"with a footer of zeros", func(t *testing.T, path string, size int64) { change(t, path, size-16, make([]byte, 16)) }, blocks},
		{"with an index of zeros", func(t *testing.T, path string, size int64) { change(t, path, size-300, make([]byte, 300)) }, blocks},
		{"cut behind its 20th block", func(t *testing.T, path string, _ int64) { truncate(t, path, int64(places[20].off)) }, 12},
		{"of zeros", func(t *testing.T, path string, size int64) { change(t, path, 0, make([]byte, size)) }, 0},
		{"of no length", func(t *testing.T, path string, _ int64) { truncate(t, path, 0) }, 0},
		{"that is gone", func(t *testing.T, path string, _ int64) { remove(t, path) }, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := copyTree(t, origin)
			path := filepath.Join(theShelf(t, dir), name)
			tt.harm(t, path, int64(len(mustRead(t, path))))
			q, book := openDamaged(t, dir)
			hits := leaseRest(t, q)
			got := blocksOf(hits)
			for n := uint64(1); n <= uint64(tt.keeps); n++ {
				if got[n] != hitsPerBlock {
					t.Errorf("block %d: %d hits leased, want %d", n, got[n], hitsPerBlock)
				}
			}
			if !book.alarmed("is rebuilt") || len(kept(t, dir, "live-*")) == 0 {
				t.Errorf("alarms %q, quarantine %q: want the table kept and the rebuild told", book.alarms(), kept(t, dir, "*"))
			}
			if lost := int64(blocks - len(got)); q.Stats().MissingBlocks != lost {
				t.Errorf("MissingBlocks = %d, want %d", q.Stats().MissingBlocks, lost)
			}
			mustAppend(t, q, aSet(1000, 1, 1))
			if again := leaseRest(t, q); len(again) != 1 || again[0].ID.Block <= blocks {
				t.Errorf("a number was used again: %v", again[0].ID)
			}
		})
	}
}

func truncate(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
