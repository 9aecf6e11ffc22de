package queue

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// Options say where a queue lives and when it is full.
type Options struct {
	// Dir is the data directory; it is created if it is missing.
	Dir string
	// Reserve is the free disk space, in bytes, below which nothing is stored.
	// 0 means [DefaultReserve].
	Reserve int64
	// MaxSize is how many bytes of blocks may be pending. 0 means no limit.
	MaxSize int64
	// ShelfBytes is the size at which a new shelf is begun. 0 means the default;
	// smaller values serve tests.
	ShelfBytes int64
	Log        *slog.Logger
	Metrics    *metrics.Set
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
}

// A Queue is a durable queue of hits; see the package comment for its contract.
type Queue struct {
	dir        string
	generation uint64
	log        *slog.Logger
	now        func() time.Time
	lock       *os.File
	guard      *guard
	inst       *instruments
	live       *stream
	dead       *deadLetters

	stopGuard chan struct{}
	wg        sync.WaitGroup

	failOnce sync.Once
	failed   chan struct{}
	failErr  error // set before failed is closed

	closeOnce sync.Once
	closeErr  error

	usage diskUsageCache
}

// Open opens the queue in o.Dir, or makes it. It never deletes anything that
// could hold an unsettled hit in order to start.
//
// It returns [ErrLocked] when another process has the queue, [ErrNewerFormat]
// when a newer version wrote it, [ErrNoSpace] when there is too little room even
// to open it, and [ErrDamaged] when opening could destroy what is there.
func Open(o Options) (*Queue, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	q := &Queue{
		dir: o.Dir, log: o.Log, now: o.Now, lock: lock,
		stopGuard: make(chan struct{}),
		failed:    make(chan struct{}),
	}
	if err := q.open(o); err != nil {
		return nil, errors.Join(fmt.Errorf("open queue %s: %w", o.Dir, err), lock.Close())
	}
	return q, nil
}

func (q *Queue) open(o Options) error {
	var err error
	if q.generation, err = ensureStore(o.Dir); err != nil {
		return err
	}
	if q.guard, err = newGuard(o.Dir, o.Reserve, o.MaxSize, o.Log); err != nil {
		return err
	}
	q.inst = newInstruments(o.Metrics, q)
	if q.dead, err = openDeadLetters(filepath.Join(o.Dir, "dead"), newBadgerLog(o.Log, q.fail)); err != nil {
		return err
	}
	q.live, err = openStream(streamConfig{
		dir: filepath.Join(o.Dir, "live"), generation: q.generation, log: o.Log, now: o.Now,
		guard: q.guard, inst: q.inst, failed: q.fail, limits: limitsOf(o.ShelfBytes),
	})
	if err != nil {
		return errors.Join(err, q.dead.close())
	}
	q.wg.Go(func() { q.guard.run(q.stopGuard) }) // ended by Close
	if err := q.reconcileDead(); err != nil {
		return errors.Join(err, q.Close())
	}
	return nil
}

// ensureStore reads store.json, or writes it into an empty directory.
func ensureStore(dir string) (uint64, error) {
	generation, err := readStore(dir)
	if err != nil || generation != 0 {
		return generation, err
	}
	if _, err := os.Stat(filepath.Join(dir, "live")); err == nil {
		return 0, fmt.Errorf("%w: there is a queue but no store.json", ErrDamaged)
	}
	var b [8]byte
	rand.Read(b[:])
	generation = binary.LittleEndian.Uint64(b[:]) | 1
	return generation, writeStore(dir, generation)
}

// fail ends acceptance for good after the first error of the disk.
func (q *Queue) fail(err error) {
	q.failOnce.Do(func() {
		q.failErr = err
		close(q.failed)
		q.log.Error("the disk cannot be believed any more; nothing is accepted and the process must end", "err", err)
		q.inst.syncErrors.Inc()
	})
	if q.live != nil {
		q.live.mark(err)
	}
}

// Failed is closed at the first error of a commit, a flush or a sync. The process
// must end then; see the package comment.
func (q *Queue) Failed() <-chan struct{} { return q.failed }

// Err gives the error that closed [Queue.Failed], or nil.
func (q *Queue) Err() error {
	select {
	case <-q.failed:
		return q.failErr
	default:
		return nil
	}
}

// Append stores request sets and returns nil once all of them are synced to
// disk; either all are stored or none. It blocks for one commit, usually 1 to
// 20 ms. ctx bounds the wait for admission, not the commit.
//
// It returns [ErrFull], [ErrTooLarge] or ctx's error when nothing was stored, and
// [ErrStopped] when the disk has failed or the queue was closed, in which case
// the hits may or may not be there. It does not retain the sets.
func (q *Queue) Append(ctx context.Context, sets ...*hit.RequestSet) error {
	return q.live.append(ctx, sets, nil)
}

// stuckCommit is how long a commit may take before the queue is not ready: a
// disk that hangs gives no error.
const stuckCommit = 5 * time.Second

// Ready returns nil if a hit could be stored durably now, else one sentence that
// says why not.
func (q *Queue) Ready() error {
	if err := q.Err(); err != nil {
		return fmt.Errorf("the disk has failed: %w", err)
	}
	s := q.live
	s.mu.Lock()
	stopErr, pending := s.stopErr, s.st.pendingBytes()
	s.mu.Unlock()
	if stopErr != nil {
		return stopErr
	}
	if err := q.guard.accepting(pending); err != nil {
		return err
	}
	if began := s.commitBegan.Load(); began != 0 {
		if age := time.Since(time.Unix(0, began)); age > stuckCommit {
			return fmt.Errorf("the disk hangs: a commit has been under way for %s", age.Round(time.Second))
		}
	}
	return nil
}

// Lease gives up to limit hits in the order of arrival, blocking until there is
// at least one that was not leased before. Each hit is leased once a process; it
// stays the caller's until it is settled. It returns ctx's error when ctx ends,
// [ErrStopped] after the end, [ErrNewerFormat] for a block of a newer version.
func (q *Queue) Lease(ctx context.Context, limit int) ([]hit.Pending, error) {
	return q.live.lease(ctx, limit)
}

// Journal writes down that hits are about to be sent and returns once that is
// synced. If the process ends before [Queue.Settle] is called with the batch,
// the hits come back as uncertain.
func (q *Queue) Journal(ids []hit.ID) (batch uint64, err error) {
	return q.live.journal(ids, q.now().UnixNano())
}

// Settle ends the journal's batch and settles hits, in one transaction that is
// committed with the next group, within 100 ms. The settlements may cover a part
// of the batch or nothing: what is not settled is as if it had never been sent.
// Batch 0 stands for none.
//
// Dead letters are synced before Settle returns; on a full disk it waits for room
// with them. It returns an error, having changed nothing, if a hit is not leased
// or was settled before.
func (q *Queue) Settle(batch uint64, list []hit.Settlement) error {
	if err := q.bury(list); err != nil {
		return err
	}
	d, err := q.live.track.claim(q.generation, list)
	if err != nil {
		return err
	}
	if batch != 0 {
		d.ends = append(d.ends, batch)
	}
	q.inst.settled(list)
	return q.live.submit(&op{delta: *d})
}

// Close commits what has been submitted, closes the files and releases the
// lock. It is idempotent. After a failure it closes nothing that would sync
// again.
func (q *Queue) Close() error {
	q.closeOnce.Do(func() {
		close(q.stopGuard)
		q.live.stop()
		q.live.closer.Wait()
		q.wg.Wait()
		if q.Err() == nil {
			q.closeErr = q.live.close()
			if q.guard.mayWrite() { // else the dead letters stay as a kill leaves them
				q.closeErr = errors.Join(q.closeErr, q.dead.close())
			}
		}
		q.closeErr = errors.Join(q.closeErr, q.live.high.close(), q.lock.Close())
	})
	return q.closeErr
}
