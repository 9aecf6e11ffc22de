package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sluice/internal/durable"
	"sluice/internal/hit"
)

// What lies on disk of imports, and how it is read again: docs/format.md, "Imports".

// openImports opens the imports that were there when the queue was closed.
func (q *Queue) openImports() error {
	marks, err := filepath.Glob(filepath.Join(q.dir, importPrefix+"*"+importMark))
	if err != nil {
		return err
	}
	for _, mark := range marks {
		i, err := q.readImport(mark)
		if err != nil {
			return fmt.Errorf("import %s: %w", filepath.Base(mark), err)
		}
		if i.State == importCancelled {
			if err := q.removeCancelled(i); err != nil {
				return err
			}
			continue
		}
		q.imports = append(q.imports, i)
		q.batch = max(q.batch, i.stream.st.lastBatch)
	}
	slices.SortFunc(q.imports, func(a, b *importStream) int {
		return cmp.Or(a.Begun.Compare(b.Begun), strings.Compare(a.ID, b.ID))
	})
	return q.adoptUnmarked()
}

// adoptUnmarked looks at the directories of imports that no mark names: what a kill has
// left of a beginning is removed; with hits in it the mark was lost.
func (q *Queue) adoptUnmarked() error {
	dirs, err := filepath.Glob(filepath.Join(q.dir, importPrefix+strings.Repeat("?", idLen)))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		id := strings.TrimPrefix(filepath.Base(dir), importPrefix)
		n := slices.IndexFunc(q.imports, func(i *importStream) bool { return i.ID == id })
		if n >= 0 && q.imports[n].State != ImportDrained {
			continue
		}
		if n < 0 {
			generation, err := parseGeneration(id)
			if err != nil {
				q.log.Error("something that is no import lies among the imports; it is left alone", "name", filepath.Base(dir))
				continue
			}
			i := &importStream{Import: Import{ID: id, State: ImportOpen, Note: "its mark was lost", Begun: q.now().UTC()}}
			if i.stream, err = q.openStream(i.name(), generation); err != nil {
				return fmt.Errorf("import %s: %w", id, err)
			}
			if _, last := i.stream.bounds(); last > 0 {
				q.log.Error("the mark of an import was lost; it is open until it is completed or cancelled", "import", id)
				if i.seen, err = openLineLog(filepath.Join(q.dir, i.name()+importIDs), last); err == nil {
					i.last, err = i.lastTime()
				}
				if err == nil {
					err = q.writeMark(i)
				}
				if err != nil {
					return errors.Join(err, i.shut())
				}
				q.imports = append(q.imports, i)
				continue
			}
			if err := i.shut(); err != nil {
				return err
			}
			for _, suffix := range []string{importIDs, importMark + durable.TemporarySuffix} { // the directory last
				if err := os.RemoveAll(dir + suffix); err != nil {
					return err
				}
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// idLen is the length of an import's id.
const idLen = 16

func (q *Queue) readImport(mark string) (*importStream, error) {
	text, err := os.ReadFile(mark)
	if err != nil {
		return nil, err
	}
	i := &importStream{}
	if err := json.Unmarshal(text, &i.Import); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	generation, err := parseGeneration(i.ID)
	if err != nil || filepath.Base(mark) != i.name()+importMark {
		return nil, fmt.Errorf("%w: it names another import", ErrDamaged)
	}
	switch i.State {
	case importCancelled:
		return i, nil
	case ImportDrained:
		i.stream, err = q.readDrained(i, generation)
	case ImportOpen, ImportComplete:
		i.stream, err = q.openStream(i.name(), generation)
	default:
		return nil, fmt.Errorf("%w: state %q", ErrNewerFormat, i.State)
	}
	if err != nil {
		return nil, err
	}
	if lines := filepath.Join(q.dir, i.name()+importIDs); i.Forgotten {
		err = os.RemoveAll(lines) // a kill may have left it
	} else {
		if _, gone := os.Stat(lines); errors.Is(gone, fs.ErrNotExist) && i.stream.st.total.accepted > 0 {
			q.log.Error("what an import has taken is not known any more; its logs, given again, would be recorded twice", "import", i.ID)
		}
		i.seen, err = openLineLog(lines, i.stream.st.lastNumber)
	}
	if err == nil && i.State == ImportOpen {
		i.last, err = i.lastTime()
	}
	if err != nil {
		return nil, errors.Join(err, i.shut())
	}
	return i, nil
}

// shut stops an import whose opening has failed.
func (i *importStream) shut() error {
	i.stream.stop()
	i.stream.closer.Wait()
	return errors.Join(i.stream.close(), i.stream.high.close())
}

func parseGeneration(id string) (g uint64, err error) {
	if _, err = fmt.Sscanf(id, "%016x", &g); err == nil && (g == 0 || fmt.Sprintf("%016x", g) != id) {
		err = fmt.Errorf("%q is no id of an import", id)
	}
	return g, err
}

// lastTime gives when the newest hit of the import was received, in Unix nanoseconds.
func (i *importStream) lastTime() (at int64, err error) {
	_, last := i.stream.bounds()
	if last == 0 {
		return 0, nil
	}
	err = i.stream.walkReadable(context.Background(), last, last, func(_ *block, sets []*hit.RequestSet) bool {
		for _, s := range sets {
			at = max(at, s.ReceivedAt)
		}
		return true
	})
	return at, err
}

// writeMark makes what is known of an import durable.
func (q *Queue) writeMark(i *importStream) error {
	text, err := json.Marshal(i.Import)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(q.dir, i.name()+importMark), append(text, '\n'))
}

// drainLoop ends imports of which everything is settled, until stop is closed.
func (q *Queue) drainLoop(stop <-chan struct{}) {
	every(drainEvery, stop, func() {
		if err := q.endDrained(); err != nil {
			q.log.Error("a drained import is not put away, will retry", "err", err)
		}
	})
}

// endDrained puts away the imports of which everything is settled: a copy of the state
// takes the place of the shelves.
func (q *Queue) endDrained() error {
	if !q.importing.TryLock() {
		return nil // the next time
	}
	defer q.importing.Unlock()
	for _, i := range q.imports {
		if i.State != ImportComplete || !i.stream.isDrained() || !q.guard.mayWrite() {
			continue
		}
		if err := i.stream.submitAndWait(&op{}); err != nil { // what waits to be committed
			return err
		}
		drained := &importStream{Import: i.Import, seen: i.seen}
		drained.State = ImportDrained
		i.stream.mu.Lock()
		part := encodePart(i.stream.st.seq, 0, 1, encodeSnapshot(i.stream.st))
		i.stream.mu.Unlock()
		if err := durable.WriteFile(filepath.Join(q.dir, i.name()+importCounts), part); err != nil {
			return err
		}
		var err error
		if drained.stream, err = q.readDrained(drained, i.generation); err != nil {
			return err
		}
		if err := q.writeMark(drained); err != nil {
			return err
		}
		running := *i
		q.leasing.Lock() // nobody reads on in a stream that ends
		q.mu.Lock()
		*i = *drained
		q.mu.Unlock()
		q.leasing.Unlock()
		q.log.Info("an import is delivered", "import", i.ID, "hits", drained.stream.st.total.accepted)
		if err := q.endStream(&running); err != nil {
			return err
		}
	}
	return nil
}

// isDrained reports whether nothing of the stream is pending, nor was lost.
func (s *stream) isDrained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.total.pending() == 0 && s.st.pending() == 0 && len(s.st.journal) == 0 && s.st.floor > s.st.lastNumber
}

// readDrained gives a stream without files that has the counters of a drained import.
func (q *Queue) readDrained(i *importStream, generation uint64) (*stream, error) {
	value, err := os.ReadFile(filepath.Join(q.dir, i.name()+importCounts))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: the counters of import %s are missing", ErrDamaged, i.ID)
		}
		return nil, err
	}
	p, err := unseal(value, kindSnapshot)
	if err != nil || len(p) < partHeaderLen {
		return nil, fmt.Errorf("%w: the counters of import %s", ErrDamaged, i.ID)
	}
	st, err := decodeSnapshot(p[partHeaderLen:])
	if err != nil {
		return nil, fmt.Errorf("the counters of import %s: %w", i.ID, err)
	}
	done := make(chan struct{})
	close(done)
	return &stream{
		dir: filepath.Join(q.dir, i.name()), generation: generation, log: q.log, now: q.now, guard: q.guard,
		inst: q.inst, failed: q.fail, keys: q.keys, st: st, done: done,
		track: tracker{blocks: map[uint64]*leasedBlock{}},
	}, nil
}
