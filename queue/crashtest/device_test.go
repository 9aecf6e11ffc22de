package crashtest

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A recording is what some lives of a worker left in a recorder's log.
type recording struct {
	r     *recorder
	base  []byte // the disk before
	begin int    // the log position at which the file system was mounted
	lives []recordedLife
}

// recordedLife is one life: its job, its ledger before it, and where in the log it begins.
type recordedLife struct {
	job    job
	from   int
	led    *ledger
	killed int // where the census begins, whose opening meets what the kill has left
	census int // where it has ended

	until func(*process) // waits until the life is over
}

// censusJob gives the job of a census in a life.
func (l *recordedLife) censusJob(dir string) job {
	return job{Dir: dir, Reserve: 1, ShelfBytes: l.job.ShelfBytes, Imports: l.job.Imports}
}

// busyLives gives lives of busyJob that are killed after a while.
func busyLives(t *testing.T, n int, life time.Duration) []recordedLife {
	t.Helper()
	rng, _ := newRand(t)
	lives := make([]recordedLife, n)
	for i := range lives {
		lives[i].job = busyJob("", rng, lifeBase(i))
		lives[i].job.ShelfBytes = 400 << 10
		lives[i].until = func(*process) { <-time.After(life) }
	}
	return lives
}

// recordLives runs workers on a recorded disk, one after the other: each is killed, then
// a census is taken, which closes the queue.
func recordLives(t *testing.T, f filesystem, dir string, lives []recordedLife, forgets bool, options ...string) *recording {
	t.Helper()
	image := filepath.Join(dir, "image")
	f.makeImage(t, image)
	r, dev := newRecorder(t, dir, image)
	r.forgets = forgets
	rec := &recording{r: r, base: make([]byte, len(r.data))}
	copySparse(rec.base, r.data)
	r.record(true)
	m := newMountPoint(t, filepath.Join(dir, "mnt"))
	m.mustMount(f, dev, options...)
	rec.begin = r.position()
	l := newLedger()
	for _, life := range lives {
		life.from, life.led, life.job.Dir = r.position(), l.clone(), m.store()
		p := start(t, l, life.job, r.line)
		p.mustAwait("the opening", func() bool { return p.ready })
		life.until(p)
		p.kill()
		life.killed = r.position()
		check(t, l, life.censusJob(m.store()), "between recordings")
		life.census = r.position()
		rec.lives = append(rec.lives, life)
	}
	m.mustUnmount()
	r.record(false)
	if t.Failed() {
		t.FailNow()
	}
	return rec
}

// lifeAt gives which life goes on at log position k.
func (rec *recording) lifeAt(k int) int {
	i := len(rec.lives) - 1
	for i > 0 && rec.lives[i].from > k {
		i--
	}
	return i
}

// ledgerAt gives what was promised at log position k.
func (rec *recording) ledgerAt(k int) *ledger {
	i := rec.lifeAt(k)
	end := len(rec.r.log)
	if i+1 < len(rec.lives) {
		end = rec.lives[i+1].from
	}
	l := rec.lives[i].led.clone()
	for at, e := range rec.r.log[rec.lives[i].from:end] {
		if e.kind == eventLine {
			l.read(e.line, rec.lives[i].from+at >= k)
		}
	}
	return l
}

// A crashState is a moment, and what a power loss then leaves.
type crashState struct {
	at   int
	loss loss
}

func (s crashState) String() string {
	return fmt.Sprintf("log position %d, unflushed writes kept: %v", s.at, s.loss)
}

// try builds states one after the other, mounts each, and gives the faults.
func (rec *recording) try(t *testing.T, f filesystem, dir string, states []crashState, found func(s crashState, faults []string, log string)) {
	t.Helper()
	rng, _ := newRand(t)
	slices.SortFunc(states, func(a, b crashState) int { return a.at - b.at })
	durable, img := slices.Clone(rec.base), make([]byte, len(rec.base))
	flushed := 0
	image := filepath.Join(dir, "crash")
	m := newMountPoint(t, filepath.Join(dir, "crashed"))
	for i, s := range states {
		flushed = rec.r.crashState(durable, flushed, s.at, s.loss, rng, img)
		if err := writeImage(image, img); err != nil {
			t.Fatal(err)
		}
		if err := m.mount(f, image); err != nil {
			found(s, []string{fmt.Sprintf("LOST: the file system: %v", err)}, "")
			continue
		}
		l := rec.ledgerAt(s.at)
		life := &rec.lives[rec.lifeAt(s.at)]
		c, err := takeCensus(t.Context(), life.censusJob(m.store()))
		faults := l.judge(c)
		if err != nil {
			faults = append(faults, err.Error())
		}
		found(s, faults, c.log)
		if len(life.job.Imports) > 0 && len(faults) == 0 && (*long || i%2 == 0) {
			j := life.job
			j.Dir = m.store()
			finishImports(t, l, j, s.String())
		}
		m.mustUnmount()
	}
}

// moments says how many crash states to draw of each kind.
type moments struct {
	early   int // in which the store is made
	busy    int // with many writes in the cache
	opening int // while a store is opened that was not closed
	imports int // while an import is changed, and just after
	other   int
}

// states draws moments.
func (rec *recording) states(t *testing.T, n moments) []crashState {
	t.Helper()
	rng, _ := newRand(t)
	log := rec.r.log
	first := slices.IndexFunc(log, func(e event) bool { return e.kind == eventLine && e.line[0] == 'A' })
	if first < 0 {
		t.Fatal("nothing was acknowledged while the disk was recorded")
	}
	flushes := 0
	for _, e := range log {
		if e.kind == eventFlush {
			flushes++
		}
	}
	t.Logf("the log has %d events, %d of them flushes, the first acknowledgement at %d", len(log), flushes, first)
	var out []crashState
	add := func(at int) { out = append(out, crashState{at: at, loss: loss(len(out) % 4)}) }
	for range n.early {
		add(min(rec.begin+1+rng.IntN(first+first/4-rec.begin), len(log)-1))
	}
	busiest := rec.r.busiest(n.busy)
	for i := range n.busy {
		if len(busiest) == 0 { // no flush at all
			n.other += n.busy
			break
		}
		add(busiest[i%len(busiest)])
	}
	for i := range n.opening {
		life := rec.lives[i%len(rec.lives)]
		add(life.killed + rng.IntN(max(1, life.census-life.killed)))
	}
	for i := range n.imports {
		from, to := rec.importCall(t, rng, importCalls[i%len(importCalls)])
		add(from + rng.IntN(to-from))
	}
	for range n.other {
		add(rec.begin + 1 + rng.IntN(len(log)-1-rec.begin))
	}
	return out
}

// Promise 1 against power loss with a disk that has a cache: whatever the disk
// keeps of the writes behind its last flush, everything acknowledged is there.
// This checks the order of writes and flushes, torn writes and directory
// entries.
func TestRecordedDiskKeepsEverythingAcknowledged(t *testing.T) {
	for _, tt := range []struct {
		f filesystem
		n moments
	}{
		{ext4, moments{early: rounds(4, 100), busy: rounds(6, 200), opening: rounds(6, 200), other: rounds(4, 200)}},
		{xfs, moments{early: rounds(1, 50), busy: rounds(1, 100), opening: rounds(2, 100), other: rounds(1, 100)}},
	} {
		t.Run(tt.f.kind, func(t *testing.T) {
			t.Parallel()
			needRoot(t, tt.f.mkfs[0], "losetup")
			dir := scratch(t)
			rec := recordLives(t, tt.f, dir, busyLives(t, 2, 500*time.Millisecond), false)
			rec.try(t, tt.f, dir, rec.states(t, tt.n), reportState(t))
		})
	}
}

// reportState reports the faults of a state.
func reportState(t *testing.T) func(s crashState, faults []string, log string) {
	return func(s crashState, faults []string, log string) {
		report(t, faults, s.String())
		if len(faults) > 0 {
			t.Logf("the census said: %s", log)
		}
	}
}

// Control of the recorded disk: one that forgets flushes, and a file system that
// sends none (weakness W8), must lose.
func TestRecordedDiskCatchesForgottenFlushes(t *testing.T) {
	for _, tt := range []struct {
		name    string
		forgets bool
		options []string
	}{
		{"a disk that forgets flushes", true, nil},
		{"a mount without barriers", false, []string{"nobarrier"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			needRoot(t, ext4.mkfs[0], "losetup")
			dir := scratch(t)
			rec := recordLives(t, ext4, dir, busyLives(t, 1, 600*time.Millisecond), tt.forgets, tt.options...)
			bad := 0
			rec.try(t, ext4, dir, rec.states(t, moments{busy: 2, other: 4}), func(_ crashState, faults []string, _ string) {
				if len(faults) > 0 {
					bad++
				}
			})
			t.Logf("%d of 6 states are bad", bad)
			if bad == 0 {
				t.Error("the suite is blind: nothing was lost without flushes")
			}
		})
	}
}
