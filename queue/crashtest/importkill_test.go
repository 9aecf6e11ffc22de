package crashtest

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// importJob is a short life with live hits and an import of each fate. Shelves are so
// small that those of imports change, too.
func importJob(dir string, seed uint64, putAway bool) job {
	return job{
		Role: roleWork, Dir: dir, Seed: seed, Reserve: 1, ShelfBytes: 24 << 10, Base: lifeBase(0),
		Appenders: 1, Sets: 40, Pad: 4000, Consumers: 1, Lease: 20,
		Strict: putAway, PutAway: putAway, Imports: importPlans(lifeBase(0), 20),
	}
}

// importCensus is a census after importJob.
func importCensus(j job) job {
	return job{Role: roleCensus, Dir: j.Dir, Reserve: 1, ShelfBytes: j.ShelfBytes, Imports: j.Imports}
}

// live runs a worker until its imports are made and all live hits acknowledged.
func live(t *testing.T, l *ledger, j job, wrap ...string) *result {
	t.Helper()
	r := &result{t: t, led: l, p: start(t, l, j, nil, wrap...)}
	p := r.p
	made := func() bool { return p.made && p.acks >= int(j.Sets) }
	if p.await(waitLimit, func() bool { return made() || len(l.errors) > 0 }) == nil {
		p.tell("close")
		r.done = p.await(waitLimit, func() bool { return p.closed && made() }) == nil
	}
	p.kill()
	return r
}

// goingOn gives a job that ends what a crash has left of one: all lines are given once
// more, and everything is delivered.
func goingOn(j job) job {
	j.Base, j.Sets, j.Appenders, j.Consumers, j.Strict, j.PutAway = lifeBase(1), 0, 0, 1, true, true
	j.Imports = slices.Clone(j.Imports)
	j.Seed++ // other transactions than before
	for i := range j.Imports {
		if j.Imports[i].Fate == fateOpen {
			j.Imports[i].Fate = fateDeliver
		}
	}
	return j
}

// finishImports ends what a crash has left. Then each hit is settled once.
func finishImports(t *testing.T, l *ledger, j job, where string) {
	t.Helper()
	end := goingOn(j)
	if r := live(t, l, end); !r.done {
		t.Errorf("%s: what was left is not finished: %q, %q, %s", where, l.broken, l.errors, r.p.err)
		return
	}
	check(t, l, importCensus(end), where+", finished")
	for _, p := range end.Imports {
		for _, set := range p.sets() {
			h := l.hits[set<<hitBits]
			if p.Fate == fateCancel {
				if h != nil {
					t.Errorf("%s: set %d of a cancelled import is still there", where, set)
				}
			} else if h == nil || !h.gone {
				t.Errorf("%s: set %d was not delivered in the end", where, set)
			}
		}
	}
}

// A traced is the system calls of a worker's first thread, in their order.
type traced struct {
	call  string
	k     int    // its place among those of its kind, from 1
	phase string // the worker's newest line that is of an import
}

// traceCalls runs a worker and lists the calls that it makes itself.
func traceCalls(t *testing.T, dir string, j job, calls []string) []traced {
	t.Helper()
	path := filepath.Join(dir, "trace")
	l := newLedger()
	r := live(t, l, j, "strace", "-f", "-qq", "-s", "2", "-o", path, "-e", "trace="+strings.Join(calls, ","))
	if !r.done {
		t.Fatalf("the worker has not done its work: %s", r.p.err)
	}
	check(t, l, importCensus(j), "traced")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []traced
	count := map[string]int{}
	main, phase := "", "open"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		thread, text, _ := strings.Cut(lines.Text(), " ")
		call, args, isCall := strings.Cut(strings.TrimSpace(text), "(")
		if main == "" {
			main = thread
		}
		if thread != main || !isCall || strings.HasPrefix(call, "<") {
			continue
		}
		if said, ok := strings.CutPrefix(args, `1, "`); ok && call == "write" && strings.ContainsRune("iImMkKcCoOW", rune(said[0])) {
			phase = said[:1]
		}
		count[call]++
		out = append(out, traced{call: call, k: count[call], phase: phase})
	}
	return out
}

// importPhases are those in which a worker's first thread changes imports: after it has
// said that it begins, fills, completes, cancels and forgets one.
var importPhases = []string{"i", "m", "k", "c", "o"}

// sample gives up to n calls of each phase.
func sample(rng *rand.Rand, all []traced, n int) (out []traced) {
	for _, phase := range importPhases {
		of := slices.DeleteFunc(slices.Clone(all), func(c traced) bool { return c.phase != phase })
		rng.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		out = append(out, of[:min(n, len(of))]...)
	}
	return out
}

// Promise 1 for imports, against death at exactly one system call while one is begun,
// filled, completed, cancelled or forgotten, or at one of the opening after it: its hits
// are all there or, cancelled, none, and the lines that are known are those of the hits.
// Given once more, every line ends as one hit.
func TestDeathWhileImportingLosesNothing(t *testing.T) {
	t.Parallel()
	needStrace(t)
	rng, _ := newRand(t)
	root := scratch(t)
	calls := []string{"openat", "ftruncate", "fsync", "renameat", "unlinkat", "mkdirat", "pwrite64", "write", "mmap", "munmap"}
	all := traceCalls(t, root, importJob(filepath.Join(root, "traced"), 1, false), calls)
	cases := sample(rng, all, rounds(2, 60))
	for range rounds(1, 40) { // of whatever thread comes first: commits
		cases = append(cases, traced{call: "msync", k: 5 + rng.IntN(25), phase: "commit"})
	}
	seeds := make([]uint64, len(cases))
	for i := range seeds {
		seeds[i] = rng.Uint64()
	}
	var mu sync.Mutex
	died := map[string]int{}
	again := 0
	inParallel(cases, func(i int, c traced) {
		rng := rand.New(rand.NewPCG(seeds[i], 0))
		l := newLedger()
		in := injection{c.call, "signal=SIGKILL", fmt.Sprint(c.k)}
		where := fmt.Sprintf("phase %s, %v", c.phase, in)
		j := importJob(filepath.Join(root, fmt.Sprint(i)), 1, false)
		j.Consumers = i % 3 // without any, all hits are there in the end, to be merged
		r := live(t, l, j, in.wrap()...)
		// The opening after it dies, too.
		second := injection{calls[rng.IntN(len(calls))], "signal=SIGKILL", fmt.Sprint(1 + rng.IntN(40))}
		err := command(importCensus(j), second.wrap()...).Run()
		mu.Lock()
		if !r.done {
			died[c.phase]++
		}
		if err != nil {
			again++
		}
		mu.Unlock()
		check(t, l, importCensus(j), fmt.Sprintf("%s, then %v", where, second))
		if *long && i%2 == 0 { // who goes on dies, too
			third := injection{calls[rng.IntN(len(calls))], "signal=SIGKILL", fmt.Sprint(30 + rng.IntN(100))}
			live(t, l, goingOn(j), third.wrap()...)
			where += fmt.Sprintf(", then %v", third)
			check(t, l, importCensus(j), where)
		}
		if *long || i%2 == 0 {
			finishImports(t, l, j, where)
		}
		if err := os.RemoveAll(j.Dir); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d calls, %d cases; deaths by phase: %v; openings that died: %d", len(all), len(cases), died, again)
	// The calls are not quite the same from one life to the next.
	if len(died) < rounds(4, len(importPhases)+1) || again == 0 {
		t.Errorf("the suite is blind: too few workers or openings died")
	}
}

// The same while a delivered import is put away: its counters stay, its lines are known,
// and its hits do not come back.
func TestDeathWhileAnImportIsPutAwayLosesNothing(t *testing.T) {
	t.Parallel()
	needStrace(t)
	rng, _ := newRand(t)
	root := scratch(t)
	j := importJob(filepath.Join(root, "origin"), rng.Uint64(), false)
	j.Consumers, j.Imports = 0, j.Imports[:1]
	origin := newLedger()
	if r := live(t, origin, j); !r.done {
		t.Fatalf("the worker has not done its work: %s", r.p.err)
	}
	check(t, origin, importCensus(j), "before")
	names, err := filepath.Glob(filepath.Join(j.Dir, "import-*.json"))
	if err != nil || len(names) != 1 {
		t.Fatalf("marks of imports: %v, %v", names, err)
	}
	name := strings.TrimSuffix(filepath.Base(names[0]), ".json")
	shelves, err := filepath.Glob(filepath.Join(j.Dir, name, "*-*"))
	if err != nil || len(shelves) == 0 {
		t.Fatalf("no shelf of the import: %v", err)
	}

	if err := os.Remove(filepath.Join(j.Dir, "BALLAST")); err != nil { // it would be copied
		t.Fatal(err)
	}

	// A death is at a call on one of some files; what else goes on does not count.
	type death struct {
		in    injection
		paths []string
	}
	var cases []death
	add := func(most int, calls []string, paths ...string) {
		var all []death
		for _, call := range calls {
			for k := range most {
				all = append(all, death{injection{call, "signal=SIGKILL", fmt.Sprint(k + 1)}, paths})
			}
		}
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		cases = append(cases, all[:rounds(1, len(all))]...)
	}
	replace := []string{"openat", "write", "fsync", "renameat"}
	add(1, replace, name+".counts.tmp")
	add(1, replace, name+".json.tmp")
	add(8, []string{"unlinkat"}, append([]string{name}, relative(t, j.Dir, shelves)...)...)
	var mu sync.Mutex
	died := map[string]int{}
	inParallel(cases, func(i int, c death) {
		dir := filepath.Join(root, fmt.Sprint(i))
		if err := os.CopyFS(dir, os.DirFS(j.Dir)); err != nil {
			t.Error(err)
			return
		}
		l := origin.clone()
		drain := job{Role: roleWork, Dir: dir, Seed: j.Seed, Reserve: 1, ShelfBytes: j.ShelfBytes, Base: lifeBase(1), Consumers: 1, Lease: 20, Strict: true, PutAway: true, Imports: j.Imports}
		wrap := c.in.wrap()
		for _, path := range c.paths {
			wrap = append(wrap, "-P", filepath.Join(dir, path))
		}
		r := live(t, l, drain, wrap...)
		if !r.done {
			mu.Lock()
			died[c.in.call]++
			mu.Unlock()
		}
		where := fmt.Sprintf("%v on %s", c.in, c.paths[0])
		for _, when := range []string{"first", "second"} {
			check(t, l, importCensus(drain), fmt.Sprintf("%s, %s opening", where, when))
		}
		finishImports(t, l, drain, where)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d cases; deaths by call: %v", len(cases), died)
	if len(died) == 0 {
		t.Error("the suite is blind: no worker died")
	}
}

// relative gives paths below dir.
func relative(t *testing.T, dir string, paths []string) (out []string) {
	t.Helper()
	for _, path := range paths {
		r, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}
