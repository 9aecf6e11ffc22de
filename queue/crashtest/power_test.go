package crashtest

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// powerCut takes the file system away under a worker, as a power loss would, and
// mounts it again. What had not been synced is gone.
func powerCut(t *testing.T, p *process, m *mountPoint, f filesystem, image string) {
	t.Helper()
	// An fsync that runs while the file system goes down may return without an
	// error although it wrote nothing, so only what was promised before counts.
	p.cut()
	if err := m.ioctl(ioctlShutdown, noLogFlush); err != nil {
		t.Fatalf("shut the file system down: %v", err)
	}
	p.kill()
	m.mustUnmount()
	m.mustMount(f, image)
}

// Promise 1 against power loss: the file system drops everything that it has not
// written. The image goes on from round to round, so that damage would add up
// and the recovery of a recovery is tested.
func TestPowerLossLosesNothingAcknowledged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		f      filesystem
		keys   func(round int) []byte
		rounds int
	}{
		{"ext4", ext4, noKeys, rounds(15, 200)},
		{"xfs", xfs, noKeys, rounds(15, 200)},
		{"ext4, encrypted", ext4, changingKeys, rounds(8, 100)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := tt.f
			needRoot(t, f.mkfs[0])
			rng, _ := newRand(t)
			dir := scratch(t)
			image := filepath.Join(dir, "image")
			f.makeImage(t, image)
			m := newMountPoint(t, filepath.Join(dir, "mnt"))
			m.mustMount(f, image)
			l := newLedger()
			for round := range tt.rounds {
				j := busyJob(m.store(), rng, lifeBase(round))
				j.ShelfBytes, j.Keys = 512<<10, tt.keys(round)
				p := start(t, l, j, nil)
				p.mustAwait("acknowledgements", func() bool { return p.acks >= 1 })
				<-time.After(time.Duration(rng.IntN(120_000)) * time.Microsecond)
				powerCut(t, p, m, f, image)
				// Half of the time the census itself is ended by the next power cut.
				census := job{Dir: m.store(), Reserve: 1, ShelfBytes: j.ShelfBytes, Keys: j.Keys, Abandon: rng.IntN(2) == 0}
				check(t, l, census, fmt.Sprintf("%s round %d", tt.name, round))
				if t.Failed() {
					t.Fatalf("the worker said: %s", p.err)
				}
			}
			t.Logf("%d sets acknowledged, settled for good %v", l.acked, l.outcomes)
		})
	}
}

// Control of the power loss: a store that does not sync must lose.
func TestPowerLossCatchesAStoreThatDoesNotSync(t *testing.T) {
	for _, f := range []filesystem{ext4, xfs} {
		t.Run(f.kind, func(t *testing.T) {
			t.Parallel()
			needRoot(t, f.mkfs[0])
			rng, _ := newRand(t)
			dir := scratch(t)
			image := filepath.Join(dir, "image")
			total := 0
			for round := range 3 {
				f.makeImage(t, image)
				m := newMountPoint(t, filepath.Join(dir, "mnt"))
				m.mustMount(f, image)
				l := newLedger()
				p := start(t, l, job{Role: roleUnsynced, Dir: m.store(), Base: lifeBase(round), Pad: 4000}, nil)
				p.mustAwait("acknowledgements", func() bool { return p.acks >= 200+rng.IntN(200) })
				powerCut(t, p, m, f, image)
				c, err := takeCensus(t.Context(), job{Role: roleBareCensus, Dir: m.store()})
				if err != nil {
					t.Logf("round %d: the store cannot even be opened: %v", round, err)
				}
				total += lost(l.judge(c))
				m.mustUnmount()
			}
			t.Logf("the control lost %d sets", total)
			if total == 0 {
				t.Error("the suite is blind: a store without syncing lost nothing in 3 power losses")
			}
		})
	}
}
