package crashtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Weakness W3: a disk that answers EIO, for a moment or for good, ends the queue.
// What was acknowledged before is there when the disk is well again, and nothing
// is acknowledged after.
func TestFailingDiskEndsTheQueueAndLosesNothing(t *testing.T) {
	const moment = 30 * time.Millisecond
	for _, tt := range []struct {
		name            string
		writes, flushes bool
		lasts           time.Duration // 0 = for good
	}{
		{"writes fail for a moment", true, false, moment},
		{"writes fail for good", true, false, 0},
		{"flushes fail for a moment", false, true, moment},
		{"flushes fail for good", false, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			needRoot(t, ext4.mkfs[0], "losetup")
			for range rounds(1, 10) {
				failDisk(t, tt.writes, tt.flushes, tt.lasts)
			}
		})
	}
}

func failDisk(t *testing.T, writes, flushes bool, lasts time.Duration) {
	rng, _ := newRand(t)
	dir := scratch(t)
	image := filepath.Join(dir, "image")
	ext4.makeImage(t, image)
	r, dev := newRecorder(t, dir, image)
	m := newMountPoint(t, filepath.Join(dir, "mnt"))
	m.mustMount(ext4, dev)
	l := newLedger()
	j := busyJob(m.store(), rng, lifeBase(0))
	p := start(t, l, j, nil)
	p.mustAwait("acknowledgements", func() bool { return p.acks >= 30+rng.IntN(100) })
	r.fail(writes, flushes)
	if lasts > 0 {
		<-time.After(lasts)
		r.fail(false, false)
	}
	// The file system may hide a fault that was short: then all goes on. One that
	// stays must be noticed.
	err := p.await(3*time.Second, func() bool { return p.failure != "" })
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the worker died: %s", p.err)
	}
	if err != nil && lasts == 0 {
		t.Errorf("the disk fails, and the queue has not noticed: %v", err)
	}
	if err == nil {
		select {
		case <-p.exited:
			(&result{t: t, led: l, p: p}).judgeDelay(injection{call: "disk"})
		case <-time.After(waitLimit):
			t.Error("the worker hangs")
		}
	}
	p.kill()
	r.mu.Lock()
	t.Logf("acknowledged %d, refused requests of the disk %d, failure %q", p.acks, r.failed, p.failure)
	r.mu.Unlock()
	// The disk as it is now, on its own.
	r.fail(false, false)
	r.mu.Lock()
	werr := writeImage(image, r.data)
	r.mu.Unlock()
	if werr != nil {
		t.Fatal(werr)
	}
	crashed := newMountPoint(t, filepath.Join(dir, "crashed"))
	crashed.mustMount(ext4, image)
	check(t, l, job{Dir: crashed.store(), Reserve: 1}, "after the fault")
	crashed.mustUnmount()
}

// Weakness W0: no compaction ever runs, so none can lose tables: a shelf of many
// tables keeps all of them at level zero, and the store has no value log of any
// length.
func TestNoTableIsEverCompacted(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	dir := t.TempDir()
	l := newLedger()
	const lives = 12
	for life := range lives {
		// Each closing makes a table of the log.
		j := job{Role: roleWork, Dir: dir, Seed: rng.Uint64(), Reserve: 1, Base: lifeBase(life), Appenders: 3, Sets: 60, Pad: 8000}
		p := start(t, l, j, nil)
		p.mustAwait("all acknowledgements", func() bool { return p.acks >= 60 })
		p.tell("close")
		p.mustAwait("the end", func() bool { return p.closed })
		<-p.exited
	}
	// A compaction would begin within a second or so of an opening.
	p := start(t, l, job{Role: roleWork, Dir: dir, Reserve: 1, Base: lifeBase(lives), Appenders: 1, Pad: 8000, Pause: 50 * time.Millisecond}, nil)
	p.mustAwait("the opening", func() bool { return p.ready })
	<-time.After(2500 * time.Millisecond)
	p.kill()
	check(t, l, job{Dir: dir, Reserve: 1}, "after many tables")
	shelf := newestShelf(t, dir)
	db, err := badger.Open(bareOptions(shelf, true).WithReadOnly(true))
	if err != nil {
		t.Fatal(err)
	}
	tables, low := 0, 0
	for _, info := range db.Tables() {
		tables++
		if info.Level > 0 {
			low++
		}
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if tables < lives || low > 0 {
		t.Errorf("%d tables, %d of them below level zero; want %d at least, none below", tables, low, lives)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "*", "*", "*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range logs {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 2<<20 {
			t.Errorf("%s has grown to %d bytes", path, info.Size())
		}
	}
}

// Weakness W0: a table that cannot be made, since a file is in its way, ends the
// queue, and what it should have held is still there.
func TestATableThatCannotBeMadeEndsTheQueue(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	dir := t.TempDir()
	l := newLedger()
	j := job{Role: roleWork, Dir: dir, Seed: rng.Uint64(), Reserve: 1, Base: lifeBase(0), Appenders: 4, Pad: 200_000, SetHits: 3}
	p := start(t, l, j, nil)
	p.mustAwait("acknowledgements", func() bool { return p.acks >= 1 })
	shelf := newestShelf(t, dir)
	tables := fileCount(t, shelf, ".sst")
	for n := range 3 {
		path := filepath.Join(shelf, fmt.Sprintf("%06d.sst", tables+1+n))
		if err := os.WriteFile(path, []byte("in the way"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.await(waitLimit, func() bool { return p.failure != "" }); err != nil {
		t.Errorf("tables cannot be made, and the queue has not noticed: %v: %s", err, p.err)
	}
	p.kill()
	t.Logf("acknowledged %d sets; the queue says: %s", l.acked, p.failure)
	for _, when := range []string{"first", "second"} {
		check(t, l, job{Dir: dir, Reserve: 1}, when+" opening")
	}
}

// Promise 1 with a disk that hangs: commits wait, readiness says so, and when the
// disk comes back all goes on.
func TestFrozenDiskTakesReadinessAway(t *testing.T) {
	t.Parallel()
	needRoot(t, ext4.mkfs[0])
	rng, _ := newRand(t)
	dir := scratch(t)
	image := filepath.Join(dir, "image")
	ext4.makeImage(t, image)
	m := newMountPoint(t, filepath.Join(dir, "mnt"))
	m.mustMount(ext4, image)
	l := newLedger()
	j := busyJob(m.store(), rng, lifeBase(0))
	j.Ready = true
	p := start(t, l, j, nil)
	for range rounds(2, 10) {
		p.mustAwait("acknowledgements", func() bool { return p.acks >= 50 && p.saysNow == "ok" })
		if err := m.ioctl(ioctlFreeze, 0); err != nil {
			t.Fatal(err)
		}
		frozen := time.Now()
		t.Cleanup(func() { _ = m.ioctl(ioctlThaw, 0) }) // an error says that it is not frozen
		const limit = 6500 * time.Millisecond
		if err := p.await(limit, func() bool { return p.saysNow != "ok" && p.saysNow != "" }); err != nil {
			t.Errorf("the disk has hung for %v, and Ready says %q", time.Since(frozen).Round(time.Millisecond), p.said())
		}
		p.mu.Lock()
		p.acks = 0
		p.mu.Unlock()
		if err := p.await(300*time.Millisecond, func() bool { return p.acks > 0 }); err == nil {
			t.Error("something was acknowledged while the disk was frozen")
		}
		if err := m.ioctl(ioctlThaw, 0); err != nil {
			t.Fatal(err)
		}
		t.Logf("frozen for %v: Ready said %q", time.Since(frozen).Round(time.Millisecond), p.said())
	}
	p.mustAwait("acknowledgements", func() bool { return p.acks >= 50 && p.saysNow == "ok" })
	p.kill()
	check(t, l, job{Dir: m.store(), Reserve: 1, ShelfBytes: j.ShelfBytes}, "after the frost")
}
