package queue

import (
	"context"
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
	// DeadRetention is how long dead letters are kept. 0 means until they are
	// requeued.
	DeadRetention time.Duration
	// RememberImports is how long the lines of a drained import are known, so that they are
	// not taken again. 0 means until [Queue.ForgetImport].
	RememberImports time.Duration
	// Keys encrypt blocks and dead letters. The zero value leaves them in clear.
	Keys    Keys
	Log     *slog.Logger
	Metrics *metrics.Set
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
	streams
	dead *deadLetters
	keys Keys

	shelfLimits shelfLimits

	leasing  sync.Mutex      // held while hits are handed out
	given    map[int64]int64 // guarded by leasing: when a site's newest hit was received that was handed out, in Unix nanoseconds
	witness  *lateCount      // guarded by leasing: who notes what is handed out; nil = nobody
	claiming sync.Mutex      // held while it is decided what may be settled

	importing sync.Mutex // held while an import begins, takes hits or ends

	// leaving is held while letters leave and while hits of exports come: what is
	// decided about an id is carried out before another decides.
	leaving sync.Mutex

	// Of Open and Close.
	store *store
	// lettersCurrent: every dead letter is encrypted with the first key.
	lettersCurrent bool

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
// It returns [ErrLocked] when another process still has the queue after 2 s,
// [ErrNewerFormat] when a newer version wrote it, [ErrKey] when it is encrypted with
// a key that is not among o.Keys, [ErrNoSpace] when there is too little room even to
// open it, and [ErrDamaged] when opening could destroy what is there.
func Open(o Options) (*Queue, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	lock, err := lockDir(o.Dir, lockPatience)
	if err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	q := &Queue{
		dir: o.Dir, log: o.Log, now: o.Now, lock: lock, keys: o.Keys,
		stopGuard: make(chan struct{}),
		failed:    make(chan struct{}),
		given:     map[int64]int64{},
		streams:   streams{joined: make(chan struct{})},
	}
	if err := q.open(o); err != nil {
		return nil, errors.Join(fmt.Errorf("open queue %s: %w", o.Dir, err), lock.Close())
	}
	return q, nil
}

func (q *Queue) open(o Options) error {
	var err error
	if q.store, err = readStore(o.Dir); err == nil && q.store == nil {
		q.store, err = newStore(o.Dir)
	}
	if err != nil {
		return err
	}
	q.generation = q.store.generation
	if err := q.store.require(o.Keys); err != nil {
		return err
	}
	if q.guard, err = newGuard(o.Dir, o.Reserve, o.MaxSize, o.Log); err != nil {
		return err
	}
	q.inst = newInstruments(o.Metrics, q)
	if q.dead, err = openDeadLetters(filepath.Join(o.Dir, "dead"), newBadgerLog(o.Log, q.fail), o.Keys); err != nil {
		return err
	}
	q.shelfLimits = limitsOf(o.ShelfBytes)
	if q.live, err = q.openStream("live", q.generation); err != nil {
		return errors.Join(err, q.dead.close())
	}
	q.batch = q.live.st.lastBatch
	if err := q.openImports(); err != nil {
		return errors.Join(err, q.closeStreams(), q.dead.close())
	}
	q.each(func(st *state) {
		for site, l := range st.counters.sites {
			q.given[site] = max(q.given[site], l.settledUntil())
		}
	})
	q.wg.Go(func() { q.guard.run(q.stopGuard) }) // ended by Close
	q.wg.Go(func() { q.drainLoop(q.stopGuard) }) // as above
	err = q.reconcileDead()
	if err == nil {
		err = q.beginKeys()
	}
	if err != nil {
		return errors.Join(err, q.Close())
	}
	if o.RememberImports > 0 {
		clock := newSteadyClock(q.now)
		q.wg.Go(func() { q.forgetLoop(o.RememberImports, &clock, q.stopGuard) }) // ended by Close
	}
	if o.DeadRetention > 0 {
		r := newRetention(q, o.DeadRetention)
		q.wg.Go(func() { r.run(q.stopGuard) }) // ended by Close
	}
	return nil
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
		for _, s := range q.all() {
			s.mark(err)
		}
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
	return q.live.append(ctx, sets, origin{})
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
	stopErr := s.stopErr
	s.mu.Unlock()
	if stopErr != nil {
		return stopErr
	}
	if err := q.guard.accepting(); err != nil {
		return err
	}
	if began := s.commitBegan.Load(); began != 0 {
		if age := time.Since(time.Unix(0, began)); age > stuckCommit {
			return fmt.Errorf("the disk hangs: a commit has been under way for %s", age.Round(time.Second))
		}
	}
	return nil
}

// openStream opens a stream in a directory of its own, or makes it.
func (q *Queue) openStream(name string, generation uint64) (*stream, error) {
	return openStream(streamConfig{
		dir: filepath.Join(q.dir, name), generation: generation, log: q.log, now: q.now,
		guard: q.guard, inst: q.inst, failed: q.fail, limits: q.shelfLimits, keys: q.keys,
	})
}

func (q *Queue) closeStreams() error {
	var errs []error
	for _, s := range q.all() {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// Close commits what has been submitted, closes the files and releases the
// lock. It is idempotent. After a failure it closes nothing that would sync
// again.
func (q *Queue) Close() error {
	q.closeOnce.Do(func() {
		close(q.stopGuard)
		q.importing.Lock() // no import begins or ends from now on
		defer q.importing.Unlock()
		for _, s := range q.all() {
			s.stop()
			s.closer.Wait()
		}
		q.wg.Wait()
		q.leaving.Lock() // what is under way ends with the stream's refusal
		defer q.leaving.Unlock()
		if q.Err() == nil {
			q.closeErr = q.closeStreams()
			if q.guard.mayWrite() { // else the dead letters stay as a kill leaves them
				if q.closeErr == nil {
					q.closeErr = q.endKeys()
				}
				q.closeErr = errors.Join(q.closeErr, q.dead.close())
			}
		}
		for _, s := range q.all() {
			q.closeErr = errors.Join(q.closeErr, s.high.close())
		}
		for _, i := range q.imports {
			if i.seen != nil {
				q.closeErr = errors.Join(q.closeErr, i.seen.close())
			}
		}
		q.closeErr = errors.Join(q.closeErr, q.lock.Close())
	})
	return q.closeErr
}
