package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hardFloor is the free space below which nothing at all is written: room for
	// two memtables to be flushed. Badger writes through mapped sparse files, so a
	// full disk is a SIGBUS, not an error.
	hardFloor = 2 * memTableSize
	// ballastSize is given up when free space nears hardFloor, so that the drain
	// can go on and free more.
	ballastSize = hardFloor
	// reserveMin and reservePercent make the default reserve.
	reserveMin     = 512 << 20
	reservePercent = 2
	// The guard looks at the disk this often, and before every commit.
	guardEvery = 200 * time.Millisecond
	// Accepting begins again when free space is this much above the reserve.
	guardHysteresis = 1.25
)

// DefaultReserve is the free space, in bytes, below which an edge stops storing
// hits on a disk of the given size: 2 %, 512 MiB at least.
func DefaultReserve(total int64) int64 {
	return max(reserveMin, total*reservePercent/100)
}

// A guard watches free disk space. Badger cannot be asked to fail: space is
// checked before it is written.
type guard struct {
	dir     string
	reserve int64
	maxSize int64 // of what is pending; 0 = no limit
	log     *slog.Logger
	statfs  func(dir string) (free, total int64, err error) // replaced in tests

	free    atomic.Int64
	full    atomic.Bool
	pending atomic.Int64 // bytes of blocks of all streams that hold unsettled hits, and behind one that does

	mu      sync.Mutex
	ballast bool
}

func newGuard(dir string, reserve, maxSize int64, log *slog.Logger) (*guard, error) {
	g := &guard{dir: dir, reserve: reserve, maxSize: maxSize, log: log, statfs: FreeSpace}
	free, total, err := g.statfs(dir)
	if err != nil {
		return nil, err
	}
	if g.reserve == 0 {
		g.reserve = DefaultReserve(total)
	}
	g.reserve = max(g.reserve, hardFloor+hardFloor/2)
	g.free.Store(free)
	_, err = os.Stat(g.ballastPath())
	g.ballast = err == nil
	if free < hardFloor {
		g.dropBallast()
		if free = g.free.Load(); free < hardFloor {
			return nil, fmt.Errorf("%w: %d bytes free, %d needed, in %s", ErrNoSpace, free, int64(hardFloor), dir)
		}
	}
	g.look()
	return g, nil
}

func (g *guard) ballastPath() string { return filepath.Join(g.dir, "BALLAST") }

// run looks at the disk until stop is closed.
func (g *guard) run(stop <-chan struct{}) { every(guardEvery, stop, g.look) }

// every calls f again and again, the first time after d, until stop is closed.
func every(d time.Duration, stop <-chan struct{}, f func()) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			f()
		}
	}
}

func (g *guard) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	free, _, err := g.statfs(g.dir)
	if err != nil {
		g.log.Error("free disk space is not known; the last figure is kept", "err", err)
		return
	}
	g.free.Store(free)
	switch was := g.full.Load(); {
	case free < g.reserve:
		g.full.Store(true)
		if !was {
			g.log.Error("free disk space is below the reserve; hits are no longer stored until it is back",
				"free_bytes", free, "reserve_bytes", g.reserve)
		}
	case float64(free) >= guardHysteresis*float64(g.reserve) || !was:
		g.full.Store(false)
		if was {
			g.log.Info("free disk space is back; hits are stored again", "free_bytes", free)
		}
	}
	switch {
	case free < 2*hardFloor && g.ballast:
		g.dropBallastLocked()
	case !g.ballast && float64(free) >= guardHysteresis*float64(g.reserve)+ballastSize:
		g.makeBallastLocked()
	}
}

func (g *guard) dropBallast() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dropBallastLocked()
}

func (g *guard) dropBallastLocked() {
	if err := os.Remove(g.ballastPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.log.Error("the ballast file could not be removed", "err", err)
		return
	}
	g.ballast = false
	if free, _, err := g.statfs(g.dir); err == nil {
		g.free.Store(free)
	}
	g.log.Warn("the ballast file was given up so that the drain can go on", "free_bytes", g.free.Load())
}

func (g *guard) makeBallastLocked() {
	f, err := os.OpenFile(g.ballastPath(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		g.log.Warn("no ballast file", "err", err)
		return
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, ballastSize)
	if err = errors.Join(err, f.Close()); err != nil {
		// A file system without fallocate has no ballast; the reserve remains.
		os.Remove(g.ballastPath())
		g.log.Debug("no ballast file", "err", err)
	}
	g.ballast = true
}

// accepting returns nil if hits may be stored, else why not.
func (g *guard) accepting() error {
	if g.full.Load() {
		return fmt.Errorf("%w: free disk space is below the reserve", ErrFull)
	}
	if g.maxSize > 0 && g.pending.Load() >= g.maxSize {
		return fmt.Errorf("%w: it has reached its maximum size", ErrFull)
	}
	return nil
}

// mayWrite looks at the disk, which costs a few microseconds, and reports whether
// there is room even for settling. It is asked before every commit, since another
// process may take the space at any time.
func (g *guard) mayWrite() bool {
	g.look()
	return g.free.Load() >= hardFloor
}

// above is the free space above the reserve, in bytes; negative below it.
func (g *guard) above() int64 { return g.free.Load() - g.reserve }

// awaitRoom blocks while there is no room to write, like the committer. It
// returns [ErrStopped] if the stream ends before there is.
func (s *stream) awaitRoom() error {
	for !s.guard.mayWrite() {
		s.mu.Lock()
		err, stopping := s.stopErr, s.stopping
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if stopping {
			return ErrStopped
		}
		select {
		case <-s.done:
		case <-time.After(guardRetry):
		}
	}
	return nil
}
