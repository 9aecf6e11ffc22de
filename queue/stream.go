package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/hit"
)

const (
	// maxGroupHits and maxBlockRaw seal a group: the next one opens meanwhile.
	maxGroupHits = 4096
	// maxSetRaw bounds the request sets of one call before compression. With a
	// full share of settlements it still fits one Badger transaction (15 % of the
	// memtable, 2.4 MiB).
	maxSetRaw = 1792 << 10
	// pieceRaw is where a large request set is cut into several encoded sets, so
	// that blocks stay small.
	pieceRaw = maxBlockRaw / 3
)

// A stream is a row of shelves with one committer: the live hits, later also
// those of an import. Its state is its own, so streams know nothing of each
// other.
type stream struct {
	dir        string
	generation uint64
	log        *slog.Logger
	now        func() time.Time
	guard      *guard
	inst       *instruments
	failed     func(error) // ends the queue
	limits     shelfLimits
	keys       Keys

	// Owned by the committer goroutine once it runs.
	clock       uint64 // never goes back
	written     int64  // bytes written to the current shelf
	bornAt      time.Time
	deltasSince int64 // bytes of deltas since the last snapshot
	snapshotLen int64
	high        *highWater
	foldedAt    time.Time
	pace        pace
	valueBuf    []byte
	deltaBuf    []byte

	wake   chan struct{} // capacity 1: something to commit
	closer sync.WaitGroup
	done   chan struct{} // closed when the committer has ended

	// commitBegan is when the commit now under way began, in Unix nanoseconds; 0
	// if none is. A disk that hangs shows as a commit that does not return.
	commitBegan atomic.Int64
	// commitMean is the smoothed time of a commit in nanoseconds.
	commitMean atomic.Int64

	mu        sync.Mutex
	st        *state
	shelves   []*shelf // oldest first; the last one is written
	open      *group
	spare     batchOf       // buffers of a committed group, for the next one
	taken     chan struct{} // closed when the open group is taken
	ops       []*op
	committed chan struct{} // closed at the next commit
	stopping  bool
	stopErr   error

	track  tracker
	reader leaseReader

	// The age of the oldest pending hit, remembered for the floor it was read at.
	oldestMu    sync.Mutex
	oldestFloor uint64
	oldestAt    int64
}

// shelfLimits say when a new shelf is begun.
type shelfLimits struct {
	bytes int64         // a shelf this large
	idle  int64         // a shelf this large of which everything is settled
	age   time.Duration // a shelf this old
}

var defaultShelfLimits = shelfLimits{bytes: 256 << 20, idle: 32 << 20, age: 24 * time.Hour}

// limitsOf gives the default limits, scaled to shelves of the given size.
func limitsOf(bytes int64) shelfLimits {
	l := defaultShelfLimits
	if bytes > 0 {
		l.idle = max(1, l.idle*bytes/l.bytes)
		l.bytes = bytes
	}
	return l
}

// A group is what one transaction will store of new hits.
type group struct {
	batchOf
	origin
	done chan struct{}
	err  error // set before done is closed
}

// batchOf is encoded request sets.
type batchOf struct {
	raw    []byte
	pieces []piece
	keys   []counterKey // one a hit
}

// A piece is one encoded request set within raw.
type piece struct {
	end  int
	hits uint32
}

func (b *batchOf) reset() {
	b.raw, b.pieces, b.keys = b.raw[:0], b.pieces[:0], b.keys[:0]
}

func (b *batchOf) add(o *batchOf) {
	base := len(b.raw)
	b.raw = append(b.raw, o.raw...)
	for _, p := range o.pieces {
		b.pieces = append(b.pieces, piece{end: base + p.end, hits: p.hits})
	}
	b.keys = append(b.keys, o.keys...)
}

// Size gives how many bytes request sets have before compression. It returns
// [ErrTooLarge] for those that [Queue.Append] and [Queue.AppendImport] do not take at once.
func Size(sets ...*hit.RequestSet) (int, error) {
	e := encoders.Get().(*batchOf)
	defer encoders.Put(e)
	e.reset()
	err := e.encode(sets)
	return len(e.raw), err
}

// encode appends sets. A set that is too large for a block is cut at hits.
func (b *batchOf) encode(sets []*hit.RequestSet) error {
	for _, s := range sets {
		if len(s.Hits) == 0 {
			continue
		}
		for rest := s.Hits; len(rest) > 0; {
			part := *s
			part.Hits, rest = cut(rest)
			start := len(b.raw)
			b.raw = hit.AppendRequestSet(b.raw, &part)
			if len(b.raw)-start > maxBlockRaw || len(b.raw) > maxSetRaw {
				return ErrTooLarge
			}
			b.pieces = append(b.pieces, piece{end: len(b.raw), hits: uint32(len(part.Hits))})
		}
		for i := range s.Hits {
			b.keys = append(b.keys, counterOf(&s.Hits[i]))
		}
	}
	return nil
}

// cut takes hits from the front of h until they fill a piece.
func cut(h []hit.Hit) (part, rest []hit.Hit) {
	size := 0
	for i := range h {
		size += len(h[i].Params) + len(h[i].Token) + 32
		if i > 0 && size > pieceRaw || i == maxGroupHits {
			return h[:i], h[i:]
		}
	}
	return h, nil
}

var encoders = sync.Pool{New: func() any { return &batchOf{} }}

// append stores sets; see [Queue.Append].
func (s *stream) append(ctx context.Context, sets []*hit.RequestSet, from origin) error {
	e := encoders.Get().(*batchOf)
	defer encoders.Put(e)
	e.reset()
	if err := e.encode(sets); err != nil {
		return err
	}
	if len(e.keys) == 0 {
		return nil
	}
	g, err := s.admit(ctx, e, from)
	if err != nil {
		return err
	}
	<-g.done
	if g.err == nil && len(from.requeued) == 0 {
		s.inst.accepted.Add(len(e.keys))
	}
	return g.err
}

// admit puts encoded sets into the open group, waiting for the next one where
// they do not fit.
func (s *stream) admit(ctx context.Context, e *batchOf, from origin) (*group, error) {
	s.mu.Lock()
	for {
		if s.stopErr != nil {
			s.mu.Unlock()
			return nil, s.stopErr
		}
		if err := s.guard.accepting(); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		g := s.open
		fits := len(g.raw)+len(e.raw) <= maxBlockRaw && len(g.keys)+len(e.keys) <= maxGroupHits
		// A requeue travels alone, since its hits are counted differently.
		mixed := len(from.requeued) > 0 || len(g.requeued) > 0
		if len(g.keys) == 0 || fits && !mixed {
			g.add(e)
			g.requeued = append(g.requeued, from.requeued...)
			g.imported = append(g.imported, from.imported...)
			s.mu.Unlock()
			s.signal()
			return g, nil
		}
		taken := s.taken
		s.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		s.mu.Lock()
	}
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// An op is a change of state that rides along with the next group.
type op struct {
	delta delta
	// done, if not nil, gets the outcome; such an op is committed at once. Others
	// are committed within lazyDelay.
	done chan error
}

func (s *stream) submit(o *op) error {
	s.mu.Lock()
	if s.stopErr != nil {
		s.mu.Unlock()
		return s.stopErr
	}
	s.ops = append(s.ops, o)
	s.mu.Unlock()
	s.signal()
	return nil
}

// submitAndWait commits o and waits for it.
func (s *stream) submitAndWait(o *op) error {
	o.done = make(chan error, 1)
	if err := s.submit(o); err != nil {
		return err
	}
	return <-o.done
}

// stop ends the committer after everything submitted has been committed.
func (s *stream) stop() {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.signal()
	<-s.done
}

// fail ends acceptance after an error that makes the disk unbelievable, here and
// in the whole queue.
func (s *stream) fail(err error) {
	s.mark(err)
	s.failed(err)
}

// mark refuses everything from now on.
func (s *stream) mark(err error) {
	s.mu.Lock()
	if s.stopErr == nil {
		s.stopErr = fmt.Errorf("%w: %w", ErrStopped, err)
	}
	s.mu.Unlock()
	s.signal()
}

// close closes the shelves after stop.
func (s *stream) close() error {
	var errs []error
	for _, sh := range s.shelves {
		errs = append(errs, sh.finish())
	}
	return errors.Join(errs...)
}

// bounds gives the floor and the number of the newest block.
func (s *stream) bounds() (floor, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.floor, s.st.lastNumber
}

// current is the shelf being written.
func (s *stream) current() *shelf {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shelves[len(s.shelves)-1]
}
