package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// entryAt is a line of a test: its second, and what else tells it apart.
type entryAt struct {
	second int64
	text   string
}

// parseFile reads "1a 2b 5c" as lines at the seconds 1, 2 and 5.
func parseFile(t testing.TB, s string) []entryAt {
	t.Helper()
	var entries []entryAt
	for field := range strings.FieldsSeq(s) {
		digits := strings.TrimRight(field, "abcdefghijklmnopqrstuvwxyz")
		second, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entryAt{second, field})
	}
	return entries
}

// identities imports files together and gives how often each line is not a duplicate.
// It checks that identities of lines that are none differ, and that those of duplicates
// have been given before.
func identities(t testing.TB, server string, files ...[]entryAt) (counts map[string]int, ids map[Identity]string) {
	t.Helper()
	s := newSorter(t.TempDir(), tiny)
	defer s.Close()
	var ranges Ranges
	for f, entries := range files {
		for i, e := range entries {
			nanoseconds := e.second * int64(time.Second)
			ranges.Add(int32(f), []byte(server), nanoseconds)
			if err := s.Add(t.Context(), Item{Time: nanoseconds, File: int32(f), Line: int64(i), Payload: []byte(e.text)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	counts, ids = make(map[string]int), make(map[Identity]string)
	split := func(payload []byte) (_, line []byte, err error) { return []byte(server), payload, nil }
	for line, err := range Identify(s.Sorted(t.Context()), &ranges, split) {
		if err != nil {
			t.Fatal(err)
		}
		text, given := ids[line.ID]
		if given != line.Duplicate || given && text != string(line.Payload) {
			t.Fatalf("line %q of file %d: duplicate %v, identity given before to %q", line.Payload, line.File, line.Duplicate, text)
		}
		ids[line.ID] = string(line.Payload)
		if !line.Duplicate {
			counts[string(line.Payload)]++
		}
	}
	return counts, ids
}

func count(entries []entryAt) map[string]int {
	counts := make(map[string]int)
	for _, e := range entries {
		counts[e.text]++
	}
	return counts
}

func sameCounts(a, b map[string]int) bool { return fmt.Sprint(a) == fmt.Sprint(b) } // sorted by fmt

func sameIDs(a, b map[Identity]string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

func TestIdentifyCountsEqualLines(t *testing.T) {
	tests := []struct {
		name  string
		files []string
		want  string // the lines there really are
	}{
		{"one file with equal lines", []string{"1a 2b 2b 2b 3c"}, "1a 2b 2b 2b 3c"},
		{"a copy", []string{"1a 2b 2b 3c", "1a 2b 2b 3c"}, "1a 2b 2b 3c"},
		{"a copy of a copy", []string{"1a 2b 2b 3c", "1a 2b 2b 3c", "1a 2b 2b 3c"}, "1a 2b 2b 3c"},
		{"a copy of the beginning", []string{"1a 2b 2b 3c 4d", "1a 2b 2b 3c"}, "1a 2b 2b 3c 4d"},
		{"a copy that ends amid equal lines", []string{"1a 2b 2b 3c 4d", "1a 2b"}, "1a 2b 2b 3c 4d"},
		{"a rotation", []string{"1a 5b", "5c 9d"}, "1a 5b 5c 9d"},
		{"a rotation between equal lines", []string{"1a 5b", "5b 9d"}, "1a 5b 5b 9d"},
		{"the same in the other order", []string{"5b 9d", "1a 5b"}, "1a 5b 5b 9d"},
		{"a rotation amid many equal lines", []string{"1a 5b 5b 5c", "5b 5c 9d"}, "1a 5b 5b 5b 5c 5c 9d"},
		{"a rotation and a copy of each", []string{"1a 5b 5b", "5b 9d", "1a 5b 5b", "5b 9d"}, "1a 5b 5b 5b 9d"},
		{"three in rotation", []string{"1a 5b", "5b 9c", "9c 12d"}, "1a 5b 5b 9c 9c 12d"},
		{"three in rotation and a copy of the middle", []string{"1a 5b", "5b 9c", "9c 12d", "5b 9c"}, "1a 5b 5b 9c 9c 12d"},
		{"the copy of the middle comes first", []string{"5b 9c", "9c 12d", "5b 9c", "1a 5b"}, "1a 5b 5b 9c 9c 12d"},
		{"two in rotation and all of it in one", []string{"1a 5b", "5b 9c", "1a 5b 5b 9c"}, "1a 5b 5b 9c"},
		{"one file lies within another", []string{"1a 3b 3b 5c 5c 9d", "3b 3b 5c 5c"}, "1a 3b 3b 5c 5c 9d"},
		{"one of a single second within another", []string{"1a 3b 3b 9d", "3b"}, "1a 3b 3b 9d"},
		{"cuts that overlap", []string{"1a 3b 4c 4c 5d", "4c 4c 5d 7e"}, "1a 3b 4c 4c 5d 7e"},
		{"cuts that overlap from amid equal lines on", []string{"1a 3b 4c 4c 5d", "4c 5d 7e"}, "1a 3b 4c 4c 5d 7e"},
		{"all in one second", []string{"5a 5a 5b"}, "5a 5a 5b"},
		{"all in one second and a copy", []string{"5a 5a 5b", "5a 5a 5b"}, "5a 5a 5b"},
		{"one second between two files", []string{"1a 5b", "5b 5b", "5b 9c"}, "1a 5b 5b 5b 5b 9c"},
		{"one second, rotated and copied", []string{"5b", "1a 5b", "5b 9c", "5b", "1a 5b"}, "1a 5b 5b 5b 9c"},
		{"the clock goes back within a file", []string{"1a 5b 6c 4d 5b 6c 9e"}, "1a 4d 5b 5b 6c 6c 9e"},
		{"the clock goes back and there is a copy", []string{"1a 5b 6c 4d 5b 6c 9e", "1a 5b 6c 4d 5b 6c 9e"}, "1a 4d 5b 5b 6c 6c 9e"},
		{"before 1970", []string{"-3a -2b", "-2b -1c"}, "-3a -2b -2b -1c"},
		{"files that do not meet", []string{"1a 2b", "3c 4d"}, "1a 2b 3c 4d"},

		// What is documented as wrong.
		{"limit: two machines", []string{"1a 5b 9c", "2d 5b 8e"}, "1a 5b 9c 2d 8e"},
		{"limit: two files within one second", []string{"5b", "5b"}, "5b"},
		{"limit: the clock goes back at a rotation", []string{"1a 5b 6c", "4d 5b 9e"}, "1a 4d 5b 6c 9e"},
		{"limit: cuts that overlap by one second", []string{"1a 5b", "5b 9c"}, "1a 5b 5b 9c"},
		{"limit: a cut of nothing but the last second", []string{"1a 5b 5c", "5b 5c"}, "1a 5b 5b 5c 5c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var files [][]entryAt
			for _, f := range tt.files {
				files = append(files, parseFile(t, f))
			}
			want := count(parseFile(t, tt.want))
			got, ids := identities(t, "example.org", files...)
			if !sameCounts(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
			// The order of the files changes nothing, and neither does a second import.
			slices.Reverse(files)
			got, again := identities(t, "example.org", files...)
			if !sameCounts(got, want) || !sameIDs(again, ids) {
				t.Errorf("files in reverse: %v", got)
			}
		})
	}
}

func TestIdentitiesOfPartsAreThoseOfTheWhole(t *testing.T) {
	whole := parseFile(t, "1a 5b 5b 5c 9d 9d 9e")
	_, all := identities(t, "example.org", whole)
	for _, part := range []string{"1a 5b 5b", "5b 5c 9d 9d 9e", "9d 9e", "5b 5b 5c"} {
		_, ids := identities(t, "example.org", parseFile(t, part))
		for id, text := range ids {
			if all[id] != text {
				t.Errorf("part %q: %q has an identity that it has not in the whole", part, text)
			}
		}
	}
	_, other := identities(t, "example.com", whole)
	for id := range other {
		if all[id] != "" {
			t.Errorf("%q has the same identity on another server", all[id])
		}
	}
}

// TestIdentityIsFrozen: the identities of lines that were imported are on disks.
func TestIdentityIsFrozen(t *testing.T) {
	var got []string
	for _, in := range []struct {
		server, line string
		ordinal      uint64
	}{{"example.org", "GET /", 1}, {"example.org", "GET /", 2}, {"example.or", "gGET /", 1}, {"", "", 1}} {
		d, _ := digestOf([]byte(in.server), []byte(in.line), nil)
		got = append(got, d.identity(in.ordinal).String())
	}
	want := []string{"6f88d92a79111216b6bf5f983c826073", "6e8ce5c2ad0b557f4bf7132cca10160b", "b44c818797c8ec684722e75448466444", "2edcb2fc68c0f65c724cb019b73ed36c"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestNumbererRefusesDisorder(t *testing.T) {
	var ranges Ranges
	n := NewNumberer(&ranges)
	line := []byte("x")
	steps := []struct {
		file int32
		time int64
		want error
	}{{1, 5, nil}, {2, 5, nil}, {1, 5, ErrUnsorted}, {2, 4, ErrUnsorted}, {0, 6, nil}}
	for i, step := range steps {
		if _, _, err := n.Number(step.file, step.time, line, line); !errors.Is(err, step.want) {
			t.Errorf("step %d: %v, want %v", i, err, step.want)
		}
	}
	broken := errors.New("broken")
	bad := func(yield func(Item, error) bool) { yield(Item{}, broken) }
	split := func(p []byte) (_, _ []byte, _ error) { return nil, p, nil }
	for _, err := range Identify(bad, &ranges, split) {
		if err != broken {
			t.Errorf("%v, want the stream's error", err)
		}
	}
	good := func(yield func(Item, error) bool) { yield(Item{}, nil) }
	for _, err := range Identify(good, &ranges, func([]byte) (_, _ []byte, _ error) { return nil, nil, broken }) {
		if err != broken {
			t.Errorf("%v, want split's error", err)
		}
	}
}

func TestRangesKeepServersApart(t *testing.T) {
	var r Ranges
	a, b := []byte("a"), []byte("b")
	r.Add(0, a, 5e9)
	r.Add(0, b, 1e9)
	r.Add(0, a, 9e9)
	r.Add(0, b, 5e9)
	r.Add(1, a, 5e9)
	r.Add(3, a, -1) // the last nanosecond of second -1
	r.Add(3, a, 1)
	for _, second := range []int64{5, 1, 9, 3} { // the clock goes back
		r.Add(4, a, second*1e9)
	}
	for _, tt := range []struct {
		file   int32
		server []byte
		second int64
		want   part
	}{
		{0, a, 5, tail}, {0, a, 7, whole}, {0, a, 9, head}, {0, b, 5, head}, {0, b, 1, tail},
		{1, a, 5, middle}, {1, b, 5, whole}, {2, a, 5, whole},
		{4, a, 5, whole}, {4, a, 1, tail}, {4, a, 9, head},
		{3, a, -1, tail}, {3, a, 0, head},
	} {
		if got := r.part(tt.file, tt.server, tt.second); got != tt.want {
			t.Errorf("file %d, server %s, second %d: part %d, want %d", tt.file, tt.server, tt.second, got, tt.want)
		}
	}
}

func TestNumbererIsBoundedByOneSecond(t *testing.T) {
	lines := 1_000_000
	if withRace() {
		lines /= 10
	}
	var ranges Ranges
	n := NewNumberer(&ranges)
	runtime.GC()
	before := heapBytes()
	line := make([]byte, 0, 100)
	for i := range lines {
		line = fmt.Appendf(line[:0], "GET /%d", i)
		if _, duplicate, err := n.Number(0, 7e9, []byte("s"), line); duplicate || err != nil {
			t.Fatal(duplicate, err)
		}
	}
	runtime.GC()
	held := int64(heapBytes()) - int64(before)
	t.Logf("%d lines in one second: %d bytes, %d a line", lines, held, held/int64(lines))
	if held > 110*int64(lines) {
		t.Errorf("%d bytes held for %d lines", held, lines)
	}
	for second := range 1000 { // would take long if the big map were cleared each time
		if _, _, err := n.Number(0, int64(second+8)*1e9, []byte("s"), line); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	if held := int64(heapBytes()) - int64(before); held > 2<<20 {
		t.Errorf("%d bytes held after that second", held)
	}
	runtime.KeepAlive(n)
}

// FuzzIdentify cuts a log into files that were rotated, copied and cut anew, and checks
// that each of its lines is counted exactly as often as it is there.
func FuzzIdentify(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint8(10*seed+1), uint8(seed))
	}
	f.Fuzz(func(t *testing.T, seed uint64, length, extra uint8) {
		r := rand.New(rand.NewPCG(seed, 0))
		log := make([]entryAt, 0, length)
		second := int64(-3)
		for range length {
			if r.IntN(3) == 0 {
				second += 1 + r.Int64N(2)
			}
			log = append(log, entryAt{second, fmt.Sprintf("%d%c", second, 'a'+r.IntN(2))})
		}
		cuts := placesToCut(r, log)
		var files [][]entryAt
		for i := range len(cuts) - 1 { // all of it, rotated
			files = append(files, log[cuts[i]:cuts[i+1]])
		}
		for range extra % 6 { // and whatever else
			i := r.IntN(len(cuts))
			j := r.IntN(len(cuts))
			files = append(files, log[cuts[min(i, j)]:cuts[max(i, j)]])
		}
		r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		got, ids := identities(t, "example.org", files...)
		if want := count(log); !sameCounts(got, want) {
			t.Fatalf("got  %v\nwant %v\nfiles %v", got, want, files)
		}
		if _, once := identities(t, "example.org", log); !sameIDs(once, ids) {
			t.Fatalf("identities are not those of the log in one piece: files %v", files)
		}
	})
}

// placesToCut chooses where files may begin and end so that the rules can tell copies
// from rotations: no second is touched by two cuts, not even at its edge.
func placesToCut(r *rand.Rand, log []entryAt) []int {
	if len(log) == 0 {
		return []int{0, 0}
	}
	last := log[len(log)-1].second
	cuts := []int{0}
	touched := log[0].second
	for i := 1; i < len(log); i++ {
		left, right := log[i-1].second, log[i].second
		if left > touched && right < last && r.IntN(3) == 0 {
			cuts = append(cuts, i)
			touched = right
		}
	}
	return append(cuts, len(log))
}

func BenchmarkNumber(b *testing.B) {
	var ranges Ranges
	n := NewNumberer(&ranges)
	line := bytes.Repeat([]byte("x"), 250)
	server := []byte("www.example.org")
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		line[i%250]++
		if _, _, err := n.Number(0, int64(i/100)*1e9, server, line); err != nil {
			b.Fatal(err)
		}
	}
}
