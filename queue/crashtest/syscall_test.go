package crashtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// An injection makes one kind of system call fail, or kill the process, at its
// k-th call in a thread.
type injection struct {
	call, fault, when string
}

func (i injection) String() string { return fmt.Sprintf("%s %s when=%s", i.call, i.fault, i.when) }

func (i injection) wrap() []string {
	return []string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + i.call, "-e", "inject=" + i.call + ":" + i.fault + ":when=" + i.when}
}

// smallJob is a worker with a limited amount of work, in which shelves are begun,
// closed and removed.
func smallJob(dir string, rng *rand.Rand, base uint64) job {
	return job{
		Role: roleWork, Dir: dir, Seed: rng.Uint64(), Reserve: 1, ShelfBytes: 40 << 10, Base: base,
		Appenders: 2, Sets: 60, Pad: 4000, Consumers: 1, Lease: 30,
	}
}

// needStrace skips a test where strace is missing or must not trace.
func needStrace(t *testing.T) {
	t.Helper()
	needTools(t, "strace")
	if _, err := tool("strace", "-qq", "-o", "/dev/null", "true"); err != nil {
		t.Skipf("SKIPPED: strace cannot trace here: %v; nothing is proven by this run", err)
	}
}

// A result is how a worker under strace has ended.
type result struct {
	t    *testing.T
	led  *ledger
	p    *process
	done bool // it did all its work and closed
}

// runInjected runs a small worker with an injection to its end.
func runInjected(t *testing.T, l *ledger, j job, in injection) *result {
	t.Helper()
	p := start(t, l, j, nil, in.wrap()...)
	res := &result{t: t, led: l, p: p}
	err := p.await(waitLimit, func() bool { return p.acks >= int(j.Sets) })
	if err == nil {
		p.tell("close")
		if p.await(waitLimit, func() bool { return p.closed }) == nil {
			res.done = true
		}
	}
	select {
	case <-p.exited:
	case <-time.After(waitLimit):
		t.Errorf("%v: the worker hangs: %s", in, p.err)
	}
	p.kill()
	return res
}

// inParallel runs cases on a few workers of its own, since the cases mostly wait.
func inParallel[T any](cases []T, run func(int, T)) {
	const width = 3
	next := make(chan int)
	var wg sync.WaitGroup
	for range width {
		wg.Go(func() { // ends when next is closed
			for i := range next {
				run(i, cases[i])
			}
		})
	}
	for i := range cases {
		next <- i
	}
	close(next)
	wg.Wait()
}

// Promise 1 against death at exactly one system call (weakness W4 and every
// half-done step of beginning, closing and removing shelves): the queue opens
// afterwards, and again, and nothing acknowledged is lost.
func TestDeathAtAnySystemCallLosesNothing(t *testing.T) {
	t.Parallel()
	needStrace(t)
	rng, _ := newRand(t)
	calls := []string{
		"openat", "ftruncate", "msync", "fsync", "fdatasync", "renameat", "unlinkat", "mmap", "munmap", "pwrite64",
		"flock", "getdents64", "mkdirat",
	}
	var cases []injection
	for _, call := range calls {
		for _, k := range []int{1, 2, 3, 5, 8} {
			cases = append(cases, injection{call, "signal=SIGKILL", fmt.Sprint(k)})
		}
		// Later calls: of closing, removing and beginning shelves.
		for range rounds(2, 30) {
			cases = append(cases, injection{call, "signal=SIGKILL", fmt.Sprint(9 + rng.IntN(60))})
		}
	}
	seeds := make([]uint64, len(cases))
	for i := range seeds {
		seeds[i] = rng.Uint64()
	}
	root := scratch(t)
	var mu sync.Mutex
	died := map[string]int{}
	inParallel(cases, func(i int, in injection) {
		dir := filepath.Join(root, fmt.Sprint(i))
		l := newLedger()
		res := runInjected(t, l, smallJob(dir, rand.New(rand.NewPCG(seeds[i], 0)), lifeBase(0)), in)
		if !res.done {
			mu.Lock()
			died[in.call]++
			mu.Unlock()
		}
		for _, when := range []string{"first", "second"} {
			census := job{Dir: dir, Reserve: 1, ShelfBytes: 40 << 10, Abandon: when == "first" && i%2 == 0}
			check(t, l, census, fmt.Sprintf("%v, %s opening", in, when))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d cases; deaths by call: %v", len(cases), died)
	for _, call := range []string{"openat", "ftruncate", "msync", "fsync", "renameat", "unlinkat", "mmap", "munmap", "pwrite64", "flock", "getdents64", "mkdirat"} {
		if died[call] == 0 {
			t.Errorf("the suite is blind: no worker died at %s", call)
		}
	}
}

// Weakness W3 and W0: after the first error of a commit, a flush, a sync or the
// making of a file nothing is acknowledged, the process ends within a second, and
// nothing acknowledged is lost.
func TestErrorsOfSystemCallsEndTheQueue(t *testing.T) {
	t.Parallel()
	needStrace(t)
	rng, _ := newRand(t)
	var cases []injection
	for _, k := range []int{1, 2, 4, 8, 16} {
		for _, call := range []string{"msync", "fsync"} {
			cases = append(cases, injection{call, "error=EIO", fmt.Sprint(k)}, injection{call, "error=EIO", fmt.Sprintf("%d+", k)})
		}
		cases = append(cases, injection{"ftruncate", "error=ENOSPC", fmt.Sprint(k)}, injection{"ftruncate", "error=ENOSPC", fmt.Sprintf("%d+", k)})
	}
	// The first calls of fsync are those of the opening.
	for _, k := range []int{11, 13, 20, 24, 32} {
		cases = append(cases, injection{"fsync", "error=EIO", fmt.Sprint(k)}, injection{"fsync", "error=EIO", fmt.Sprintf("%d+", k)})
	}
	// The first calls of openat are those of the Go runtime.
	for _, k := range []int{12, 20, 30, 40, 60} {
		cases = append(cases,
			injection{"openat", "error=EMFILE", fmt.Sprint(k + rng.IntN(8))}, injection{"openat", "error=EMFILE", fmt.Sprintf("%d+", k+rng.IntN(8))},
			injection{"openat", "error=ENOSPC", fmt.Sprintf("%d+", k+rng.IntN(8))})
	}
	if *long {
		cases = append(cases, cases...)
	}
	seeds := make([]uint64, len(cases))
	for i := range seeds {
		seeds[i] = rng.Uint64()
	}
	root := scratch(t)
	var mu sync.Mutex
	ends := map[string]int{}
	inParallel(cases, func(i int, in injection) {
		dir := filepath.Join(root, fmt.Sprint(i))
		l := newLedger()
		res := runInjected(t, l, smallJob(dir, rand.New(rand.NewPCG(seeds[i], 0)), lifeBase(0)), in)
		end := res.judgeEnd(in)
		// A lease that cannot open a shelf says so; its caller tries again.
		l.errors = nil
		mu.Lock()
		ends[in.call+" "+end]++
		mu.Unlock()
		for _, when := range []string{"first", "second"} {
			check(t, l, job{Dir: dir, Reserve: 1, ShelfBytes: 40 << 10}, fmt.Sprintf("%v, %s opening", in, when))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d cases, ends: %v", len(cases), ends)
	if ends["msync failed"] == 0 || ends["fsync failed"] == 0 {
		t.Errorf("the suite is blind: no error ended a queue: %v", ends)
	}
}

// judgeEnd says how a worker with an injected error ended, and whether it may.
func (r *result) judgeEnd(in injection) string {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	code := r.p.exitCode()
	switch {
	case r.p.failure != "" && (r.p.closed || code == exitFault && strings.Contains(r.p.err.String(), "close:")):
		return "failed while closing" // which may begin before, and end before the process would by itself
	case r.p.failure != "":
		if code != exitFailed {
			r.t.Errorf("%v: failed and ended with %d: %s", in, code, r.p.err)
		}
		r.judgeDelay(in)
		return "failed"
	case code == exitOpen || code == exitSpace:
		if !r.p.firstU.IsZero() || r.p.ready {
			r.t.Errorf("%v: open failed after it had succeeded: %s", in, r.p.err)
		}
		return "not opened"
	case code == exitFault && strings.Contains(r.p.err.String(), "close:"):
		return "close failed"
	case r.done:
		return "harmless"
	}
	if code == 1 && strings.Contains(r.p.err.String(), " err: ") {
		return "store gave up" // Badger ends the process where it knows no better
	}
	if strings.Contains(r.p.err.String(), "runtime:") || strings.Contains(r.p.err.String(), "fatal error:") {
		return "runtime gave up"
	}
	r.t.Errorf("%v: ended with %d: %s", in, code, r.p.err)
	return "other"
}

// judgeDelay compares when Append first failed with when Failed was closed.
func (r *result) judgeDelay(in fmt.Stringer) {
	const limit = time.Second
	if d := r.p.failAt.Sub(r.p.firstU); !r.p.firstU.IsZero() && d > limit {
		r.t.Errorf("%v: Failed was closed %v after the first error, want %v at most", in, d, limit)
	}
}

// Weakness W0 and W3: a process that has too few file descriptors fails or
// refuses, and never loses in silence.
func TestTooFewDescriptorsNeverLose(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	root := scratch(t)
	ends := map[string]int{}
	var mu sync.Mutex
	var limits []uint64
	for n := uint64(8); n < 40; n += 2 {
		limits = append(limits, n)
	}
	seeds := make([]uint64, len(limits))
	for i := range seeds {
		seeds[i] = rng.Uint64()
	}
	inParallel(limits, func(i int, files uint64) {
		dir := filepath.Join(root, fmt.Sprint(i))
		l := newLedger()
		j := smallJob(dir, rand.New(rand.NewPCG(seeds[i], 0)), lifeBase(0))
		j.Files = files
		p := start(t, l, j, nil)
		r := &result{t: t, led: l, p: p}
		if p.await(waitLimit, func() bool { return p.acks >= int(j.Sets) }) == nil {
			p.tell("close")
			r.done = p.await(waitLimit, func() bool { return p.closed }) == nil
		}
		p.kill()
		end := r.judgeEnd(injection{"descriptors", fmt.Sprint(files), ""})
		mu.Lock()
		ends[end]++
		mu.Unlock()
		// A lease that cannot open a shelf says so and is tried again by its caller.
		l.errors = nil
		check(t, l, job{Dir: dir, Reserve: 1}, fmt.Sprintf("%d descriptors", files))
	})
	t.Logf("ends: %v", ends)
	if ends["not opened"] == 0 || ends["harmless"] == 0 {
		t.Errorf("the suite is blind: %v", ends)
	}
}

// Promise 1: the entries of directories are durable, too. ext4 and xfs write them
// with the files and would hide a missing sync, so the calls are looked at: every
// directory in which something was made or renamed is synced afterwards, that of an
// import's mark before the worker is told. The mark of a cancelled one is removed when
// the removal of its hits and lines is synced.
func TestDirectoriesAreSynced(t *testing.T) {
	t.Parallel()
	needStrace(t)
	rng, _ := newRand(t)
	dir := t.TempDir()
	trace := filepath.Join(t.TempDir(), "trace")
	l := newLedger()
	j := importJob(filepath.Join(dir, "queue"), rng.Uint64(), false)
	if r := live(t, l, j, "strace", "-f", "-qq", "-y", "-o", trace, "-s", "4096", "-e", "trace=mkdirat,renameat,unlinkat,fsync,write"); !r.done {
		t.Fatalf("the worker has not done its work: %s", r.p.err)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	unsynced := map[string]string{} // directory to the call that changed it
	made, synced, marks := 0, 0, 0
	removed := "" // the newest removal of something of an import that is not synced
	for line := range strings.Lines(string(text)) {
		quoted := strings.Split(line, "\"")
		switch {
		case strings.Contains(line, "mkdirat(") && strings.HasSuffix(line, "= 0\n"), strings.Contains(line, "renameat(") && strings.HasSuffix(line, "= 0\n"):
			made++
			if parent := filepath.Dir(quoted[len(quoted)-2]); parent != dir { // the data directory itself is the operator's
				unsynced[parent] = line
			}
		case strings.Contains(line, "unlinkat(") && strings.HasSuffix(line, "= 0\n"):
			switch name := filepath.Base(quoted[len(quoted)-2]); {
			case strings.HasPrefix(name, "import-") && strings.HasSuffix(name, ".json"):
				if marks++; removed != "" {
					t.Errorf("a mark was removed when this was not synced: %s", removed)
				}
			case strings.HasPrefix(name, "import-"):
				removed = line
			}
		case strings.Contains(line, "write(1<") && strings.ContainsAny(quoted[1][:1], "IKCO"):
			if marked := unsynced[j.Dir]; marked != "" {
				t.Errorf("%q was promised when this was not synced: %s", quoted[1], marked)
			}
		case strings.Contains(line, "fsync("):
			synced++
			if _, rest, ok := strings.Cut(line, "<"); ok {
				name, _, _ := strings.Cut(rest, ">")
				delete(unsynced, name)
				if name == j.Dir {
					removed = ""
				}
			}
		}
	}
	for name, line := range unsynced {
		t.Errorf("%s was not synced after %s", strings.TrimPrefix(name, dir), line)
	}
	if made < 5 || synced < 5 || marks != 1 {
		t.Errorf("the test is blind: %d changes of directories, %d syncs, %d marks removed", made, synced, marks)
	}
}

// fileCount counts the files under dir whose name ends with suffix.
func fileCount(t *testing.T, dir, suffix string) int {
	t.Helper()
	out, err := exec.Command("find", dir, "-name", "*"+suffix).Output()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(out, []byte("\n"))
}

// newestShelf gives the directory of the shelf that is written.
func newestShelf(t *testing.T, dir string) string {
	t.Helper()
	shelves, err := filepath.Glob(filepath.Join(dir, "live", "[0-9a-f]*-[0-9a-f]*"))
	if err != nil || len(shelves) == 0 {
		t.Fatalf("no shelf in %s: %v", dir, err)
	}
	return shelves[len(shelves)-1]
}
