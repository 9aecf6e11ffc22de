package accesslog

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	sortingSeed  = flag.Uint64("sorting-seed", 0, "seed of the random tests of reading and sorting; 0 = a new one")
	sortingItems = flag.Int("sorting-items", 2_000_000, "items of TestSorterStaysInItsMemory, of 300 bytes")
)

func newRand(t *testing.T) *rand.Rand {
	seed := *sortingSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-sorting-seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// tiny makes many runs and passes of little data.
var tiny = limits{budget: 64 << 10, slab: 16 << 10, block: 1 << 10, runs: 5}

func tinySorter(t *testing.T, l limits) *Sorter {
	t.Helper()
	s := newSorter(t.TempDir(), l)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func addAll(t *testing.T, s *Sorter, items []Item) {
	t.Helper()
	for _, item := range items {
		if err := s.Add(t.Context(), item); err != nil {
			t.Fatal(err)
		}
	}
}

func compareItems(a, b Item) int {
	return cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
}

func sameItem(a, b Item) bool { return compareItems(a, b) == 0 && bytes.Equal(a.Payload, b.Payload) }

// checkSorted compares with what slices.SortStableFunc makes of the same items.
func checkSorted(t *testing.T, s *Sorter, items []Item) {
	t.Helper()
	want := slices.Clone(items)
	slices.SortStableFunc(want, compareItems)
	n := 0
	for got, err := range s.Sorted(t.Context()) {
		if err != nil {
			t.Fatalf("after %d items: %v", n, err)
		}
		if n >= len(want) || !sameItem(got, want[n]) {
			t.Fatalf("item %d of %d is %v %.20q, another than with a stable sort", n, len(want), got.Time, got.Payload)
		}
		n++
	}
	if n != len(want) {
		t.Fatalf("%d items, want %d", n, len(want))
	}
}

func randomItems(r *rand.Rand, n int) []Item {
	span := int64(1 + r.IntN(2*n+1))
	items := make([]Item, n)
	for i := range items {
		size := r.IntN(60)
		if r.IntN(50) == 0 {
			size = r.IntN(4000)
		}
		items[i] = Item{Time: r.Int64N(span) - span/2, File: r.Int32N(3), Line: r.Int64N(4), Payload: make([]byte, size)}
		for j := range items[i].Payload {
			items[i].Payload[j] = byte(r.IntN(7))
		}
		if r.IntN(500) == 0 {
			items[i].Time = [...]int64{-1 << 63, 1<<63 - 1}[r.IntN(2)]
			items[i].Line = [...]int64{-1 << 63, 1<<63 - 1}[r.IntN(2)]
			items[i].File = [...]int32{-1 << 31, 1<<31 - 1}[r.IntN(2)]
		}
		if len(items[i].Payload) >= 4 { // tells equal items apart
			binary.LittleEndian.PutUint32(items[i].Payload, uint32(i))
		}
	}
	switch r.IntN(3) {
	case 0:
		slices.SortStableFunc(items, compareItems)
	case 1: // nearly sorted
		slices.SortStableFunc(items, compareItems)
		for range n / 20 {
			i := r.IntN(n)
			j := min(n-1, i+r.IntN(50))
			items[i], items[j] = items[j], items[i]
		}
	}
	return items
}

func TestSorterSortsStably(t *testing.T) {
	r := newRand(t)
	for _, n := range []int{0, 1, 2, 100, 1000, 3000, 8000} {
		for range 4 {
			items := randomItems(r, n)
			l := tiny
			l.runs = 2 + r.IntN(4)
			s := tinySorter(t, l)
			addAll(t, s, items)
			checkSorted(t, s, items)
			checkSorted(t, s, items) // once more
			var held int64
			for _, r := range s.runs {
				held += r.size
			}
			if s.held != held || s.Stats().Held < held {
				t.Errorf("%d bytes said to be held, at most %d, there are %d", s.held, s.Stats().Held, held)
			}
			if got := s.Stats().Items; got != int64(n) {
				t.Errorf("Stats().Items = %d, want %d", got, n)
			}
			if open := len(s.runs); open > l.runs {
				t.Errorf("%d runs open, at most %d", open, l.runs)
			}
		}
	}
}

func TestSorterMergesInManyPasses(t *testing.T) {
	r := newRand(t)
	l := tiny
	l.runs = 2
	s := tinySorter(t, l)
	items := randomItems(r, 10_000)
	r.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	addAll(t, s, items)
	checkSorted(t, s, items)
	if s.Stats().Merges < 10 {
		t.Errorf("%+v, want many merges", s.Stats())
	}
}

func TestSorterKeepsOrderOfEqualItems(t *testing.T) {
	s := tinySorter(t, tiny)
	var items []Item
	for i := range 5000 { // three interleaved times, all else equal
		items = append(items, Item{Time: int64(i % 3), Payload: fmt.Appendf(nil, "%d", i)})
	}
	addAll(t, s, items)
	checkSorted(t, s, items)
}

func TestSorterTakesOrderedInputCheaply(t *testing.T) {
	item := func(i int) Item { return Item{Time: int64(i), Payload: make([]byte, 100)} }
	tests := []struct {
		name string
		at   func(i int) int
		runs int
	}{
		{"in order", func(i int) int { return i }, 1},
		{"neighbours swapped", func(i int) int { return i ^ 1 }, 2},
		{"by up to 20 late", func(i int) int { return i - (i*7)%20 }, 2},
		{"two files of the same time", func(i int) int { return i % 10000 }, 3}, // one is of the chunk with both,
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tinySorter(t, tiny)
			var items []Item
			for i := range 20000 {
				items = append(items, item(tt.at(i)))
			}
			addAll(t, s, items)
			checkSorted(t, s, items)
			if st := s.Stats(); st.Runs > tt.runs || st.Merges > 0 || st.Chunks < 10 {
				t.Errorf("%+v, want at most %d runs, no merge, many chunks", st, tt.runs)
			}
		})
	}
}

func TestSorterAddsToTheRunThatEndsLast(t *testing.T) {
	s := tinySorter(t, tiny)
	at := func(time int64) key { return key{time: time} }
	runs := []*run{{last: at(100)}, {last: at(60)}, {last: at(150)}}
	s.runs = runs
	defer func() { s.runs = nil }() // they have no files
	for time, want := range map[int64]*run{50: nil, 60: runs[1], 99: runs[1], 100: runs[0], 149: runs[0], 200: runs[2]} {
		if got := s.runBefore(at(time)); got != want {
			t.Errorf("time %d: a run that ends at %v", time, got)
		}
	}
}

func TestSorterWithoutDiskWhenAllFits(t *testing.T) {
	s, err := OpenSorter(SortConfig{Dir: t.TempDir(), Memory: MinSortMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	items := randomItems(newRand(t), 2000)
	addAll(t, s, items)
	checkSorted(t, s, items)
	if s.Stats().Chunks != 0 {
		t.Errorf("%+v, want nothing on disk", s.Stats())
	}
}

func TestSorterRefuses(t *testing.T) {
	if _, err := OpenSorter(SortConfig{Dir: t.TempDir(), Memory: MinSortMemory - 1}); err == nil {
		t.Error("too little memory: no error")
	}
	if _, err := OpenSorter(SortConfig{Dir: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	s, err := OpenSorter(SortConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(t.Context(), Item{Payload: make([]byte, MaxPayload+1)}); !errors.Is(err, ErrPayload) {
		t.Errorf("long payload: %v", err)
	}
	addAll(t, s, []Item{{Payload: make([]byte, MaxPayload)}, {}})
	for range s.Sorted(t.Context()) {
		break
	}
	if err := s.Add(t.Context(), Item{}); err == nil {
		t.Error("Add after Sorted: no error")
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Add(t.Context(), Item{}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Add after Close: %v", err)
	}
	for _, err := range s.Sorted(t.Context()) {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Sorted after Close: %v", err)
		}
	}
}

// TestSorterReportsDamage flips single bits of every run: none may pass.
func TestSorterReportsDamage(t *testing.T) {
	r := newRand(t)
	dir := t.TempDir()
	var named []string
	s := newSorter(dir, tiny)
	defer s.Close()
	s.create = func(dir string) (tempFile, error) {
		f, err := os.CreateTemp(dir, "run")
		if err == nil {
			named = append(named, f.Name())
		}
		return f, err
	}
	items := randomItems(r, 3000)
	r.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	addAll(t, s, items)
	checkSorted(t, s, items)

	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, compareItems)
	damage := func(t *testing.T, run *run, what string) {
		t.Helper()
		n := 0
		for got, err := range s.Sorted(t.Context()) {
			if err != nil {
				if !errors.Is(err, ErrDamagedRun) {
					t.Errorf("%s: %v, want ErrDamagedRun", what, err)
				}
				return
			}
			if !sameItem(got, sorted[n]) {
				t.Fatalf("%s: item %d differs, without an error before", what, n)
			}
			n++
		}
		t.Errorf("%s: no error", what)
	}
	for _, run := range s.runs {
		file := run.file.(*os.File)
		for range 40 {
			at := r.Int64N(run.size)
			flip(t, file, at, 1<<r.IntN(8))
			damage(t, run, fmt.Sprintf("bit at %d of %d", at, run.size))
			undo(t, file)
		}
		for at := range int64(blockHeader) { // of the first block
			flip(t, file, at, 0x80)
			damage(t, run, fmt.Sprintf("bit of header byte %d", at))
			undo(t, file)
		}
		if err := file.Truncate(run.size - 1); err != nil {
			t.Fatal(err)
		}
		damage(t, run, "cut by a byte")
		if err := file.Truncate(0); err != nil {
			t.Fatal(err)
		}
		damage(t, run, "empty")
		undo(t, file)
		checkSorted(t, s, items)
	}
}

// TestSorterTellsBlocksApart exchanges blocks that are whole but stand elsewhere.
func TestSorterTellsBlocksApart(t *testing.T) {
	s := tinySorter(t, tiny)
	var blocks [4][]byte // two of each run, all of one length
	for i := range blocks {
		if i%2 == 0 {
			r, err := s.newRun()
			if err != nil {
				t.Fatal(err)
			}
			s.runs = append(s.runs, r)
		}
		r := s.runs[i/2]
		before := r.size
		w := blockWriter{s: s, run: r}
		err := w.add(t.Context(), key{time: int64(i), place: uint64(i)}, []byte{byte(i)})
		if err = errors.Join(err, w.flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		blocks[i] = make([]byte, r.size-before)
		if _, err := r.file.ReadAt(blocks[i], before); err != nil {
			t.Fatal(err)
		}
	}
	size := int64(len(blocks[0]))
	for _, place := range []int{0, 1} {
		for i, block := range blocks {
			if _, err := s.runs[0].file.WriteAt(block, int64(place)*size); err != nil {
				t.Fatal(err)
			}
			var last error
			for _, err := range s.Sorted(t.Context()) {
				last = err
			}
			if want := i != place; errors.Is(last, ErrDamagedRun) != want {
				t.Errorf("block %d at %d: %v", i, place, last)
			}
		}
		if _, err := s.runs[0].file.WriteAt(blocks[place], int64(place)*size); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSorterMergesLongItemsAfterShortOnes: short ones make the index long, at the cost
// of the slabs that the merge of long ones needs.
func TestSorterMergesLongItemsAfterShortOnes(t *testing.T) {
	s, err := OpenSorter(SortConfig{Dir: t.TempDir(), Memory: MinSortMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var items []Item
	for i := range 150_000 {
		items = append(items, Item{Time: int64(i * 7919 % 150_011)})
	}
	long := bytes.Repeat([]byte("x"), MaxPayload)
	for i := range 30 {
		items = append(items, Item{Time: int64(-i), Payload: long})
	}
	addAll(t, s, items)
	checkSorted(t, s, items)
	if s.Stats().Merges == 0 {
		t.Errorf("%+v, want merges", s.Stats())
	}
}

// originals keeps a file's content for undo.
var originals = map[*os.File][]byte{}

func flip(t *testing.T, f *os.File, at int64, mask byte) {
	t.Helper()
	if originals[f] == nil {
		data, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		originals[f] = data
	}
	if _, err := f.WriteAt([]byte{originals[f][at] ^ mask}, at); err != nil {
		t.Fatal(err)
	}
}

func undo(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := f.WriteAt(originals[f], 0); err != nil {
		t.Fatal(err)
	}
}

// fullAfter is a file on a disk with so many bytes left.
type fullAfter struct {
	tempFile
	left *int64
}

func (f fullAfter) WriteAt(p []byte, at int64) (int, error) {
	if *f.left -= int64(len(p)); *f.left < 0 {
		return 0, &fs.PathError{Op: "write", Path: "run", Err: unix.ENOSPC}
	}
	return f.tempFile.WriteAt(p, at)
}

func TestSorterReportsFullDisk(t *testing.T) {
	items := randomItems(newRand(t), 6000)
	for i := range items {
		items[i].Time = int64(i * 7919 % 6007) // no order at all
	}
	run := func(left int64) (s *Sorter, err error) {
		s = tinySorter(t, tiny)
		s.create = func(dir string) (tempFile, error) {
			f, err := createTemp(dir)
			return fullAfter{f, &left}, err
		}
		for _, item := range items {
			if err := s.Add(t.Context(), item); err != nil {
				return s, err
			}
		}
		for _, err := range s.Sorted(t.Context()) {
			if err != nil {
				return s, err
			}
		}
		return s, nil
	}
	s, err := run(1 << 40)
	if err != nil {
		t.Fatal(err)
	}
	all := s.Stats().Bytes
	for part := range int64(10) {
		s, err := run(all * part / 10)
		full, ok := errors.AsType[*SpaceError](err)
		if !ok {
			t.Fatalf("with %d of %d bytes: %v, want a SpaceError", all*part/10, all, err)
		}
		if full.Needed <= 0 || full.Held > all*part/10 || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%+v", full)
		}
		if err := s.Add(t.Context(), Item{}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("next Add: %v, want the same error", err)
		}
	}
}

func TestSorterOnFullTmpfs(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := OpenSorter(SortConfig{Dir: dir, Memory: MinSortMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := rand.New(rand.NewPCG(1, 1))
	payload := make([]byte, 1000)
	for i := range 100_000 {
		for j := range payload {
			payload[j] = byte(r.Uint32())
		}
		if err = s.Add(t.Context(), Item{Time: int64(i), Payload: payload}); err != nil {
			break
		}
	}
	full, ok := errors.AsType[*SpaceError](err)
	if !ok || full.Held < 1<<20 || full.Needed < 1<<20 {
		t.Errorf("got %v, want a SpaceError that holds and needs more than a megabyte", err)
	}
	t.Log(err)
}

func TestSorterStopsWhenCancelled(t *testing.T) {
	items := randomItems(newRand(t), 6000)
	why := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	s := tinySorter(t, tiny)
	addAll(t, s, items)
	n := 0
	var last error
	for _, err := range s.Sorted(ctx) {
		if n++; n == 2000 {
			cancel(why)
		}
		last = err
	}
	if !errors.Is(last, why) || n > 2000+1100 {
		t.Errorf("Sorted went on for %d items and ended with %v", n, last)
	}
	checkSorted(t, s, items) // with a context of its own

	l := tiny
	l.runs = 1000 // no merge, which would look at ctx as well
	s = tinySorter(t, l)
	var err error
	for _, item := range items {
		if err = s.Add(ctx, item); err != nil {
			break
		}
	}
	if !errors.Is(err, why) {
		t.Errorf("Add: %v, want the cause", err)
	}
}

// sortingChild makes the test binary a process that sorts in that directory until it
// is killed.
const sortingChild = "ACCESSLOG_SORT_DIR"

func TestKilledSorterLeavesNothing(t *testing.T) {
	if dir := os.Getenv(sortingChild); dir != "" {
		s := newSorter(dir, tiny)
		r := rand.New(rand.NewPCG(1, 1))
		for i := 0; ; i++ {
			if err := s.Add(t.Context(), Item{Time: r.Int64(), Payload: make([]byte, 300)}); err != nil {
				t.Fatal(err)
			}
			if i%200 == 0 {
				fmt.Println("chunks", s.Stats().Chunks)
			}
		}
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledSorterLeavesNothing$")
	cmd.Env = append(os.Environ(), sortingChild+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	said := 0
	for said < 20 && lines.Scan() {
		said++
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // killed
	if said < 20 {
		t.Fatal("the child stopped by itself")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("the killed process left %v, %v", entries, err)
	}
}

// heapBytes is what the runtime holds for objects, dead ones that it has not yet taken
// included.
func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// withRace tells whether the race detector slows everything down.
func withRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func TestSorterStaysInItsMemory(t *testing.T) {
	many, some := *sortingItems, 300_000
	if withRace() {
		many, some = many/10, some/10
	}
	// Random, so that compression does not help.
	random := make([]byte, MaxPayload)
	for r, i := rand.New(rand.NewPCG(1, 1)), 0; i < len(random); i++ {
		random[i] = byte(r.Uint32())
	}
	line := strings.Repeat("203.0.113.7 - - [10/Oct/2023:13:55:36 +0000] \"GET /shop?q=%d HTTP/1.1\" 200 5120 \"-\" \"Mozilla/5.0\" ", 3)
	tests := []struct {
		name        string
		items, size int
		memory      int64
	}{
		{"lines of 300 bytes in 32 MiB", many, 300, 32 << 20},
		{"lines of 300 bytes in 16 MiB", some, 300, MinSortMemory},
		{"nothing but keys", some, 0, MinSortMemory},
		{"index and slabs full at once", some, 220, 64 << 20},
		{"longest payloads", 60, MaxPayload, MinSortMemory},
		{"longest payloads in much memory", 400, MaxPayload, 128 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			payload := slices.Clone(random)[:tt.size]
			if tt.size <= len(line) {
				payload = []byte(line)[:tt.size]
			}
			runtime.GC()
			before := heapBytes()
			var most uint64
			watch := func() { most = max(most, heapBytes()-min(before, heapBytes())) }

			s, err := OpenSorter(SortConfig{Dir: t.TempDir(), Memory: tt.memory})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			const often = 64
			for i := range tt.items {
				if tt.size > 100 {
					for range 20 {
						payload[r.IntN(len(payload))] = byte(r.Uint32())
					}
				}
				if err := s.Add(t.Context(), Item{Time: r.Int64(), Line: int64(i), Payload: payload}); err != nil {
					t.Fatal(err)
				}
				if i%often == 0 {
					watch()
				}
			}
			n, last := 0, int64(-1)
			for item, err := range s.Sorted(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if item.Time < last || len(item.Payload) != tt.size {
					t.Fatalf("item %d is out of order or cut", n)
				}
				last = item.Time
				if n++; n%often == 0 {
					watch()
				}
			}
			watch()
			if n != tt.items {
				t.Errorf("%d items, want %d", n, tt.items)
			}
			t.Logf("%+v, heap grew by %d of %d bytes", s.Stats(), most, tt.memory)
			constant := uint64(1 << 20) // the test's own, and the runtime's
			if withRace() {
				constant = 8 << 20 // sync.Pool forgets on purpose, and S2 allocates anew
			}
			if most > uint64(tt.memory)+constant {
				t.Errorf("heap grew by %d bytes, bound %d", most, tt.memory)
			}
		})
	}
}
