package crashtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tmpfs gives a file system in memory of a few MiB.
func tmpfs(t *testing.T, mib int64) *mountPoint {
	t.Helper()
	needRoot(t)
	m := newMountPoint(t, filepath.Join(t.TempDir(), "small"))
	mustTool(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "sluice-crashtest", m.dir)
	m.on = true
	return m
}

func (m *mountPoint) free() int64 {
	m.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != nil {
		m.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func (m *mountPoint) filler() string { return filepath.Join(m.dir, "filler") }

// fill is another process that takes all space but rest bytes at once.
func (m *mountPoint) fill(rest int64) {
	m.t.Helper()
	m.dropBallast()
	f, err := os.OpenFile(m.filler(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	// A queue that gives up its ballast, or still grows, moves the target.
	for range 20 {
		more := m.free() - rest
		if more <= 0 {
			break
		}
		info, err := f.Stat()
		if err != nil {
			m.t.Fatal(err)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, info.Size(), more); err != nil && !errors.Is(err, unix.ENOSPC) {
			m.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// dropBallast makes it as if the queue had given up its ballast before, so that it
// has none left to give.
func (m *mountPoint) dropBallast() {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.store(), "BALLAST")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.t.Fatal(err)
	}
}

func (m *mountPoint) unfill() {
	m.t.Helper()
	if err := os.Remove(m.filler()); err != nil {
		m.t.Fatal(err)
	}
}

// alive fails the test if the worker has ended, as by SIGBUS.
func (p *process) alive(when string) {
	p.t.Helper()
	select {
	case <-p.exited:
		p.t.Fatalf("%s: the worker has ended (%v): %s", when, p.exitErr, p.err)
	default:
	}
}

// awaitEmpty waits until nothing is pending.
func (p *process) awaitEmpty() {
	p.t.Helper()
	deadline := time.Now().Add(waitLimit)
	for {
		st := p.statsNow()
		if st.Pending == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the queue does not drain: %+v: %s", st, p.err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func fullJob(m *mountPoint, seed uint64) job {
	return job{Role: roleWork, Dir: m.store(), Seed: seed, Reserve: 1, ShelfBytes: 4 << 20, Base: lifeBase(0), Appenders: 4, Pad: 60_000, Lease: 100}
}

// Weakness W5, a full disk is a SIGBUS and not an error: the queue refuses hits
// before that, the drain goes on with what is kept for it, space comes back, and
// hits are accepted again.
func TestFullDiskIsRefusedAndDrained(t *testing.T) {
	t.Parallel()
	m := tmpfs(t, 120)
	_, seed := newRand(t)
	l := newLedger()
	p := start(t, l, fullJob(m, seed), nil)
	p.mustAwait("a refusal", func() bool { return p.refused > 20 })
	free := m.free()
	if free < 32<<20 {
		t.Errorf("%d MiB are free when hits are refused, want what the drain needs", free>>20)
	}
	full := p.acked()
	t.Logf("refused after %d sets with %d MiB free", full, free>>20)
	p.tell("drain")
	p.mustAwait("acceptance", func() bool { return p.acks > full+20 })
	p.tell("quiet")
	p.mustAwait("quiet", func() bool { return p.quiet })
	p.awaitEmpty()
	if after := m.free(); after < free+(20<<20) {
		t.Errorf("%d MiB are free after the drain, %d before it", after>>20, free>>20)
	}
	p.tell("close")
	p.mustAwait("the end", func() bool { return p.closed })
	check(t, l, job{Dir: m.store(), Reserve: 1, ShelfBytes: 4 << 20}, "after the drain")
}

// Weakness W5: another process takes the space suddenly. Nothing is written until
// it is back, and nobody dies.
func TestSuddenlyFullDiskHoldsEverythingBack(t *testing.T) {
	t.Parallel()
	m := tmpfs(t, 160)
	_, seed := newRand(t)
	l := newLedger()
	j := fullJob(m, seed)
	// No table is written at the moment when the space goes: that cannot be held
	// back, and the process would die as if it were killed.
	j.Ready, j.ShelfBytes = true, 64<<20
	p := start(t, l, j, nil)
	p.mustAwait("acknowledgements", func() bool { return p.acks >= 150 })
	p.tell("drain")
	p.mustAwait("settlements", func() bool { return p.settles >= 3 })
	const rest = 4 << 20
	m.fill(rest)
	p.mustAwait("unreadiness", func() bool { return p.saysNow != "ok" })
	<-time.After(300 * time.Millisecond) // what was under way is answered
	p.mu.Lock()
	p.acks = 0
	p.mu.Unlock()
	settled := m.free()
	<-time.After(time.Second)
	p.alive("on a full disk")
	if n := p.acked(); n > 0 {
		t.Errorf("%d sets were acknowledged on a full disk", n)
	}
	if free := m.free(); free < settled {
		t.Errorf("%d KiB are free, %d were left: the queue goes on writing", free>>10, settled>>10)
	}
	m.unfill()
	p.mustAwait("acceptance", func() bool { return p.acks > 20 })
	p.tell("quiet")
	p.mustAwait("quiet", func() bool { return p.quiet })
	p.awaitEmpty()
	p.kill()
	check(t, l, job{Dir: m.store(), Reserve: 1, ShelfBytes: 4 << 20}, "after the space is back")
}

// Weakness W5: dead letters are a database of their own; burying on a full disk
// must not write there either.
func TestBuryingOnAFullDiskIsHeldBack(t *testing.T) {
	t.Parallel()
	m := tmpfs(t, 160)
	_, seed := newRand(t)
	l := newLedger()
	j := fullJob(m, seed)
	j.Ready, j.Lease, j.ShelfBytes = true, 15, 64<<20
	p := start(t, l, j, nil)
	p.mustAwait("acknowledgements", func() bool { return p.acks >= 400 })
	p.tell("quiet")
	p.mustAwait("quiet", func() bool { return p.quiet })
	m.fill(0)
	p.mustAwait("unreadiness", func() bool { return p.saysNow != "ok" })
	p.tell("consume")
	<-time.After(700 * time.Millisecond)
	p.alive("burying on a full disk")
	m.unfill()
	p.mustAwait("settlements", func() bool { return p.settles > 20 })
	p.kill()
	check(t, l, job{Dir: m.store(), Reserve: 1, ShelfBytes: 4 << 20}, "after the space is back")
}

// Weakness W5: stopping on a full disk ends, and loses nothing.
func TestStoppingOnAFullDiskEnds(t *testing.T) {
	t.Parallel()
	m := tmpfs(t, 160)
	_, seed := newRand(t)
	l := newLedger()
	j := fullJob(m, seed)
	j.Ready, j.ShelfBytes = true, 64<<20
	p := start(t, l, j, nil)
	p.mustAwait("acknowledgements", func() bool { return p.acks >= 200 })
	p.tell("quiet")
	p.mustAwait("quiet", func() bool { return p.quiet })
	m.fill(2 << 20)
	p.mustAwait("unreadiness", func() bool { return p.saysNow != "ok" })
	p.tell("consume")
	<-time.After(200 * time.Millisecond) // changes of state wait now
	p.tell("close")
	const limit = 5 * time.Second
	select {
	case <-p.exited:
		if text := p.err.String(); strings.Contains(text, "fault") || strings.Contains(text, "SIGBUS") {
			t.Errorf("the worker crashed: %s", text)
		}
	case <-time.After(limit):
		t.Errorf("Close has not returned after %v on a full disk", limit)
	}
	p.kill()
	m.unfill()
	check(t, l, job{Dir: m.store(), Reserve: 1, ShelfBytes: 4 << 20}, "after the space is back")
}

// listing gives the names and sizes of all files that hold data.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Name() != "BALLAST" { // it is there to be given up
			fmt.Fprintf(&out, "%s %d\n", strings.TrimPrefix(path, dir), info.Size())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Weakness W5: a queue that was killed opens on a nearly full disk, or says that
// there is too little space and changes nothing.
func TestOpeningOnANearlyFullDisk(t *testing.T) {
	t.Parallel()
	m := tmpfs(t, 300)
	rng, _ := newRand(t)
	l := newLedger()
	ends := map[string]int{}
	for i, rest := range []int64{0, 2, 12, 24, 31, 33, 36, 40, 48, 64} {
		// A log that is nearly full: its recovery needs the most room.
		j := fullJob(m, rng.Uint64())
		j.ShelfBytes, j.Base, j.Sets = 64<<20, lifeBase(i), 700
		p := start(t, l, j, nil)
		p.mustAwait("acknowledgements", func() bool { return p.acks >= 300+rng.IntN(400) })
		p.kill()
		census := job{Dir: m.store(), Reserve: 1, ShelfBytes: j.ShelfBytes}
		m.fill(rest << 20)
		before := listing(t, m.store())
		c, err := takeCensus(t.Context(), census)
		var exit *exec.ExitError
		switch {
		case err == nil:
			ends["opened"]++
			report(t, l.judge(c), fmt.Sprintf("with %d MiB free", rest))
		case errors.As(err, &exit) && exit.ExitCode() == exitSpace:
			ends["refused"]++
			if after := listing(t, m.store()); after != before {
				t.Errorf("opening with %d MiB free was refused and changed something: before\n%safter\n%s", rest, before, after)
			}
		default:
			ends["died"]++
			t.Errorf("opening with %d MiB free: %v", rest, err)
		}
		m.unfill()
		check(t, l, census, fmt.Sprintf("with %d MiB free before, now with more", rest))
		// Drained, so that the next round begins with an empty disk.
		p = start(t, l, job{Role: roleWork, Dir: m.store(), Reserve: 1, ShelfBytes: 1 << 20, Base: lifeBase(100 + i), Consumers: 1, Lease: 1000, Strict: true}, nil)
		p.awaitEmpty()
		p.tell("close")
		p.mustAwait("the end", func() bool { return p.closed })
		check(t, l, census, "after the drain")
		if t.Failed() {
			break
		}
	}
	t.Logf("ends: %v", ends)
	if ends["opened"] == 0 || ends["refused"] == 0 {
		t.Errorf("the test is blind: %v", ends)
	}
}

// Control of the full disk: the same store without the queue's guard dies.
func TestFullDiskKillsAStoreWithoutAGuard(t *testing.T) {
	t.Parallel()
	m := tmpfs(t, 120)
	p := start(t, newLedger(), job{Role: roleBare, Dir: m.store(), Pad: 60_000}, nil)
	select {
	case <-p.exited:
	case <-time.After(waitLimit):
		t.Fatal("the suite is blind: a store without a guard lives on a full disk")
	}
	if text := p.err.String(); !strings.Contains(text, "unexpected fault") && !strings.Contains(text, "SIGBUS") {
		t.Errorf("the suite is blind: a store without a guard ends on a full disk with %v: %s", p.exitErr, text)
	}
}
