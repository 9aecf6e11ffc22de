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
	// ErrLate: the import has hits that are older than hits of their sites that were
	// handed out.
	ErrLate = errors.New("hits are older than hits that were delivered before")
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
		e := i.Import
		i.stream.mu.Lock()
		t := i.stream.st.total
		i.stream.mu.Unlock()
		e.Accepted, e.Delivered, e.Invalid, e.Dead = t.accepted, t.delivered, t.invalid, t.dead
		out = append(out, e)
	}
	return out
}

// countImports counts those in a state.
func (q *Queue) countImports(state ImportState) (n int) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	for _, i := range q.imports {
		if i.State == state {
			n++
		}
	}
	return n
}

// BeginImport opens an import of hits that were received from one time to another, as far
// as the caller knows. It returns [ErrImportOpen] while another one is open, and
// [ErrFull].
func (q *Queue) BeginImport(note string, from, to time.Time) (Import, error) {
	q.importing.Lock()
	defer q.importing.Unlock()
	if err := q.roomToImport(); err != nil {
		return Import{}, err
	}
	if i := q.openImport(); i != nil {
		return i.Import, ErrImportOpen
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
// places among the others. Hits that are older than one of their site that was handed
// out before are late; with any it returns [ErrLate] and their number, and changes
// nothing, unless late is true. It returns [ErrNoImport].
func (q *Queue) CompleteImport(ctx context.Context, id string, late bool) (tooLate int64, err error) {
	q.importing.Lock()
	defer q.importing.Unlock()
	i := q.openImport()
	if i == nil || i.ID != id {
		return 0, ErrNoImport
	}
	// Nothing is handed out between the look and the joining.
	q.leasing.Lock()
	defer q.leasing.Unlock()
	if tooLate, err = q.lateHits(ctx, i); err != nil {
		return 0, err
	}
	if tooLate > 0 && !late {
		return tooLate, ErrLate
	}
	next := *i
	next.State, next.Completed = ImportComplete, q.now().UTC()
	if i.last != 0 {
		next.To = time.Unix(0, i.last).UTC()
	}
	if err := q.writeMark(&next); err != nil {
		return tooLate, fmt.Errorf("complete an import: %w", err)
	}
	q.mu.Lock()
	i.Import = next.Import
	close(q.joined)
	q.joined = make(chan struct{})
	q.mu.Unlock()
	return tooLate, nil
}

// lateHits counts the hits of an import that are older than one of their site that was
// handed out. What an earlier process did is known to a quarter of an hour: the count may
// be too high. The caller holds leasing.
func (q *Queue) lateHits(ctx context.Context, i *importStream) (n int64, err error) {
	_, last := i.stream.bounds()
	err = i.stream.walkReadable(ctx, 1, last, func(_ *block, sets []*hit.RequestSet) bool {
		for _, set := range sets {
			for h := range set.Hits {
				site := countedSite(set.Hits[h].Site)
				if set.ReceivedAt < q.given[site] {
					n++
				}
			}
		}
		return true
	})
	return n, err
}

// CancelImport gives up an import of which nothing was handed out: its hits and what is
// remembered of them are gone. It returns [ErrNoImport] for one that is not open.
func (q *Queue) CancelImport(id string) error {
	q.importing.Lock()
	defer q.importing.Unlock()
	i := q.openImport()
	if i == nil || i.ID != id {
		return ErrNoImport
	}
	next := *i
	next.State = importCancelled
	if err := q.writeMark(&next); err != nil {
		return fmt.Errorf("cancel an import: %w", err)
	}
	q.mu.Lock()
	q.imports = slices.DeleteFunc(q.imports, func(o *importStream) bool { return o == i })
	q.mu.Unlock()
	q.guard.pending.Add(-i.stream.st.pendingBytes())
	if err := errors.Join(i.seen.close(), q.endStream(i)); err != nil {
		return err
	}
	return q.removeCancelled(i)
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
