package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sluice/internal/durable"
	"sluice/internal/hit"
)

// Imports are streams of their own. One is open while hits come, in the order of their
// times, and nothing of it is handed out; then it is complete; when all its hits are
// settled it is drained, and only its counters are kept.

const (
	importPrefix = "import-"   // and the generation: a stream's directory
	importMark   = ".json"     // what is known of the import, beside it
	importCounts = ".counts"   // the state of a drained one
	importIDs    = ".lines"    // what it was made from, see lines.go
	drainEvery   = time.Second // how often drained imports are looked for
)

// An ImportState says how far an import is.
type ImportState string

// The states of an import.
const (
	ImportOpen     ImportState = "open"     // takes hits and gives none
	ImportComplete ImportState = "complete" // takes no more, and is delivered
	ImportDrained  ImportState = "drained"  // everything is settled

	importCancelled ImportState = "cancelled" // its files are being removed
)

// Errors of imports.
var (
	// ErrImportOpen: another import is open.
	ErrImportOpen = errors.New("another import is open")
	// ErrNoImport: there is no such import, or it takes no more hits.
	ErrNoImport = errors.New("no such import is open")
	// ErrImportOrder: the hits are older than the last ones of the import.
	ErrImportOrder = errors.New("hits are older than those that the import has already")
	// ErrLate: the import has hits that are older than others of their visitors.
	ErrLate = errors.New("hits are older than hits that were delivered before")
	// ErrLateUnknown: whether it has such hits cannot be known now.
	ErrLateUnknown = errors.New("it cannot be known now whether hits are older than hits that were delivered before")
)

// An Import is what is known of an import.
type Import struct {
	ID    string      `json:"id"` // 16 hexadecimal digits
	State ImportState `json:"state"`
	Note  string      `json:"note"` // the caller's own
	Begun time.Time   `json:"begun"`
	// Completed is when the last hit was taken.
	Completed time.Time `json:"completed,omitzero"`
	// From and To are the time that the import covers, by what the caller said at the
	// beginning and by the hits that it took.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Forgotten: its lines are not remembered any more.
	Forgotten bool `json:"forgotten,omitempty"`

	// Hits. What is not delivered, invalid or dead is pending.
	Accepted, Delivered, Invalid, Dead int64 `json:"-"`
}

// An importStream is an import and its hits. It is changed by whoever holds both
// [Queue.importing] and the streams' mu.
type importStream struct {
	*stream
	Import
	last int64 // Unix nanoseconds: the time of the newest hit
	seen *lineLog
}

func (i *importStream) complete() bool { return i.State != ImportOpen }

// name is what the files of the import begin with.
func (i *importStream) name() string { return importPrefix + i.ID }

// running gives the streams that have files.
func (s *streams) running() []*stream {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := []*stream{s.live}
	for _, i := range s.imports {
		if i.State != ImportDrained {
			out = append(out, i.stream)
		}
	}
	return out
}

// Imports gives all imports that are remembered, in the order in which they were begun.
func (q *Queue) Imports() []Import {
	q.mu.RLock()
	defer q.mu.RUnlock()
	out := make([]Import, 0, len(q.imports))
	for _, i := range q.imports {
		out = append(out, i.counted())
	}
	return out
}

// counted gives the import with what its stream has counted. The caller holds importing or
// the streams' mu.
func (i *importStream) counted() Import {
	e := i.Import
	i.stream.mu.Lock()
	t := i.stream.st.total
	i.stream.mu.Unlock()
	e.Accepted, e.Delivered, e.Invalid, e.Dead = t.accepted, t.delivered, t.invalid, t.dead
	return e
}

// countImports counts those in a state, and their hits that are not settled.
func (q *Queue) countImports(state ImportState) (n int, pending int64) {
	for _, i := range q.Imports() {
		if i.State == state {
			n++
			pending += i.Accepted - i.Delivered - i.Invalid - i.Dead
		}
	}
	return n, pending
}

// BeginImport opens an import of hits that were received from one time to another, as far
// as the caller knows. While another one is open it returns that one and [ErrImportOpen].
// It returns [ErrFull].
func (q *Queue) BeginImport(note string, from, to time.Time) (Import, error) {
	q.importing.Lock()
	defer q.importing.Unlock()
	if i := q.openImport(); i != nil {
		return i.counted(), ErrImportOpen
	}
	if err := q.roomToImport(); err != nil {
		return Import{}, err
	}
	var generation uint64
	for generation == 0 || q.of(generation) != nil {
		generation = rand.Uint64()
	}
	i := &importStream{Import: Import{ID: fmt.Sprintf("%016x", generation), State: ImportOpen, Note: note, Begun: q.now().UTC(), From: from.UTC(), To: to.UTC()}}
	var err error
	if i.stream, err = q.openStream(i.name(), generation); err != nil {
		return Import{}, fmt.Errorf("begin an import: %w", err)
	}
	if i.seen, err = openLineLog(filepath.Join(q.dir, i.name()+importIDs), 0); err == nil {
		err = q.writeMark(i)
	}
	if err != nil {
		return Import{}, errors.Join(fmt.Errorf("begin an import: %w", err), i.shut())
	}
	q.mu.Lock()
	q.imports = append(q.imports, i)
	q.mu.Unlock()
	return i.Import, nil
}

// openImport gives the import that takes hits, nil if there is none. The caller holds
// importing.
func (q *Queue) openImport() *importStream {
	for _, i := range q.imports {
		if i.State == ImportOpen {
			return i
		}
	}
	return nil
}

// roomToImport keeps imports from taking the room that live hits need: above the reserve
// there must be as much again.
func (q *Queue) roomToImport() error {
	if err := q.guard.accepting(); err != nil {
		return err
	}
	if q.guard.above() < q.guard.reserve {
		return fmt.Errorf("%w: an import leaves as much free as the reserve for live hits", ErrFull)
	}
	return nil
}

// AppendImport stores hits of the open import, synced, all or none. The times of the sets
// must not go back, also from one call to the next: else it returns [ErrImportOrder].
// Lines are the identities of what the hits were made from, of which [Queue.KnownLines]
// knows from then on. It returns what [Queue.Append] does, and [ErrNoImport].
func (q *Queue) AppendImport(ctx context.Context, id string, sets []*hit.RequestSet, lines []Line) error {
	q.importing.Lock()
	defer q.importing.Unlock()
	i := q.openImport()
	if i == nil || i.ID != id {
		return ErrNoImport
	}
	if err := q.roomToImport(); err != nil {
		return err
	}
	last := i.last
	for _, s := range sets {
		if s.ReceivedAt < last {
			return ErrImportOrder
		}
		last = s.ReceivedAt
	}
	_, number := i.stream.bounds()
	if err := i.seen.add(number, lines); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	err := i.stream.append(ctx, sets, origin{})
	if errors.Is(err, ErrStopped) {
		return err // the hits may be there; the next opening knows
	}
	if err != nil {
		if cut := i.seen.cut(number); cut != nil {
			// The lines would count as taken, and their hits be lost.
			q.fail(fmt.Errorf("lines of an import: %w", cut))
		}
		return err
	}
	i.last = last
	return nil
}

// CompleteImport ends the taking of hits: from then on they are handed out, in their
// places among the others. With hits that the judge, nil for that by site, finds late it returns [ErrLate] and
// their number, and where that cannot be known [ErrLateUnknown], and changes nothing;
// with allowLate it goes on, and gives -1 for what is not known. It reads the whole
// import; meanwhile the other streams are handed out as ever. It returns [ErrNoImport].
func (q *Queue) CompleteImport(ctx context.Context, id string, allowLate bool, judge LateJudge) (late int64, err error) {
	q.importing.Lock()
	defer q.importing.Unlock()
	i := q.openImport()
	if i == nil || i.ID != id {
		return 0, ErrNoImport
	}
	c := &lateCount{q: q, stream: i.stream, judge: judge}
	if err = c.begin(ctx); err == nil {
		err = c.read(ctx, true)
	}
	// Nothing is handed out between the last look and the joining.
	q.leasing.Lock()
	defer q.leasing.Unlock()
	q.witness = nil
	if err == nil {
		err = c.end(ctx)
	}
	late = c.count()
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil && allowLate:
		q.log.Warn("it is not known how many hits of an import are late", "import", id, "err", err)
		late = -1
	case err != nil:
		return 0, fmt.Errorf("%w: %w", ErrLateUnknown, err)
	case late > 0 && !allowLate:
		return late, ErrLate
	}
	next := *i
	next.State, next.Completed = ImportComplete, q.now().UTC()
	if i.last != 0 {
		next.To = time.Unix(0, i.last).UTC()
	}
	if err := q.writeMark(&next); err != nil {
		return late, fmt.Errorf("complete an import: %w", err)
	}
	q.mu.Lock()
	i.Import = next.Import
	close(q.joined)
	q.joined = make(chan struct{})
	q.mu.Unlock()
	return late, nil
}

// CancelImport gives up an import of which nothing was handed out: its hits and what is
// remembered of them are gone. It returns [ErrNoImport] for any other.
func (q *Queue) CancelImport(id string) error {
	q.importing.Lock()
	defer q.importing.Unlock()
	i, err := q.giveUp(id)
	if err != nil {
		return err
	}
	q.guard.pending.Add(-i.stream.st.pendingBytes())
	if i.seen != nil {
		err = i.seen.close()
	}
	if err := errors.Join(err, q.endStream(i)); err != nil {
		return err
	}
	return q.removeCancelled(i)
}

// giveUp takes an import out of those that there are. The caller holds importing.
func (q *Queue) giveUp(id string) (*importStream, error) {
	q.leasing.Lock() // nothing is handed out meanwhile
	defer q.leasing.Unlock()
	n := slices.IndexFunc(q.imports, func(i *importStream) bool { return i.ID == id })
	if n < 0 || q.imports[n].State == ImportDrained || !q.imports[n].stream.untouched() {
		return nil, ErrNoImport
	}
	i := q.imports[n]
	next := *i
	next.State = importCancelled
	if err := q.writeMark(&next); err != nil {
		return nil, fmt.Errorf("cancel an import: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.imports = slices.DeleteFunc(q.imports, func(o *importStream) bool { return o == i })
	return i, nil
}

// removeCancelled removes the files of a cancelled import. The mark goes when the others
// are gone for good: hits without it would be taken for those of an open import.
func (q *Queue) removeCancelled(i *importStream) error {
	name := filepath.Join(q.dir, i.name())
	if err := errors.Join(os.RemoveAll(name), os.RemoveAll(name+importIDs), durable.SyncDir(q.dir)); err != nil {
		return err
	}
	return errors.Join(os.Remove(name+importMark), durable.SyncDir(q.dir))
}

// ForgetImport drops what is remembered of the lines of an import that is complete: they
// can be imported again. It returns [ErrNoImport] for one that is open or unknown.
func (q *Queue) ForgetImport(id string) error {
	q.importing.Lock()
	defer q.importing.Unlock()
	n := slices.IndexFunc(q.imports, func(i *importStream) bool { return i.ID == id && i.complete() })
	if n < 0 {
		return ErrNoImport
	}
	i := q.imports[n]
	if i.seen == nil {
		return nil
	}
	next := *i
	next.Forgotten = true
	if err := q.writeMark(&next); err != nil {
		return fmt.Errorf("forget an import: %w", err)
	}
	q.mu.Lock()
	i.Forgotten, i.seen = true, nil
	q.mu.Unlock()
	return errors.Join(next.seen.close(), os.Remove(filepath.Join(q.dir, i.name()+importIDs)))
}

// forgetLoop looks every hour for imports that are to be forgotten, until stop is closed.
// The first look comes after an hour: a clock that is wrong at the start may be right by
// then.
func (q *Queue) forgetLoop(keep time.Duration, clock *steadyClock, stop <-chan struct{}) {
	every(expireEvery, stop, func() {
		now, _ := clock.read()
		q.forgetOld(now.Add(-keep))
	})
}

// forgetOld drops what is remembered of drained imports that were complete before a time.
func (q *Queue) forgetOld(before time.Time) {
	for _, i := range q.Imports() {
		if i.State != ImportDrained || i.Forgotten || !i.Completed.Before(before) || !q.guard.mayWrite() {
			continue
		}
		if err := q.ForgetImport(i.ID); err != nil {
			q.log.Error("an old import is not forgotten, will retry", "import", i.ID, "err", err)
			continue
		}
		q.log.Info("the lines of an import were remembered for as long as import.remember says", "import", i.ID)
	}
}

// endStream closes a stream of an import and removes its files.
func (q *Queue) endStream(i *importStream) error {
	i.stream.stop()
	i.stream.closer.Wait()
	if q.Err() != nil {
		return q.Err() // nothing is synced any more; the next opening goes on
	}
	if err := errors.Join(i.stream.close(), i.stream.high.close()); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(filepath.Join(q.dir, i.name())), durable.SyncDir(q.dir))
}
