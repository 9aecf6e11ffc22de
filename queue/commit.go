package queue

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
)

const (
	// lazyDelay is how long a settlement may wait for a group to ride with.
	lazyDelay = 100 * time.Millisecond
	// maxLinger is how long a small group may wait for company. On a fast disk it
	// saves most of the cost of tiny groups; see pace.
	maxLinger = time.Millisecond
	// maxOps bounds the changes of state in one transaction, so that it stays
	// below Badger's limit.
	maxOps = 32
	// snapshotEvery is how many bytes of deltas are written before a snapshot
	// makes them unnecessary for opening; see checkpoint.
	snapshotEvery = 8 << 20
	// guardRetry is how long the committer waits on a full disk.
	guardRetry = 200 * time.Millisecond
)

// commitLoop is the one goroutine that writes. It ends when the stream is
// stopped and everything submitted is committed, or at the first error.
func (s *stream) commitLoop() {
	defer close(s.done)
	lazy := time.NewTimer(0)
	<-lazy.C
	armed := false
	for {
		s.mu.Lock()
		hits, urgent, waiting := len(s.open.keys) > 0, s.urgentLocked(), len(s.ops) > 0
		stopping, failed := s.stopping, s.stopErr != nil
		s.mu.Unlock()
		switch {
		case failed:
			s.refuse()
			return
		case hits || urgent || waiting && stopping:
		case stopping:
			s.refuse()
			return
		default:
			if waiting && !armed {
				lazy.Reset(lazyDelay)
				armed = true
			}
			select {
			case <-s.wake:
				continue
			case <-lazy.C:
				armed = false
				if !waiting {
					continue
				}
			}
		}
		if hits && !stopping && s.pace.linger() {
			time.Sleep(maxLinger)
		}
		if err := s.commitOnce(); err != nil {
			s.fail(err)
		}
	}
}

func (s *stream) urgentLocked() bool {
	for _, o := range s.ops {
		if o.done != nil {
			return true
		}
	}
	return len(s.ops) >= maxOps
}

// refuse answers everything that waits, after the end.
func (s *stream) refuse() {
	s.mu.Lock()
	if s.stopErr == nil {
		s.stopErr = ErrStopped
	}
	g, ops, err := s.open, s.ops, s.stopErr
	s.open, s.ops = &group{done: make(chan struct{})}, nil
	close(s.taken)
	s.taken = make(chan struct{})
	close(s.committed)
	s.committed = make(chan struct{})
	s.mu.Unlock()
	g.err = err
	close(g.done)
	for _, o := range ops {
		if o.done != nil {
			o.done <- err
		}
	}
}

// commitOnce writes what has gathered in one synced transaction.
func (s *stream) commitOnce() error {
	if !s.guard.mayWrite() {
		// Writing into a mapped file on a full disk would kill the process.
		s.dropGroup()
		s.mu.Lock()
		stopping := s.stopping
		s.mu.Unlock()
		if stopping {
			// What waits was promised to nobody: a change of state that is not yet
			// committed is as if it had not happened.
			s.mark(ErrNoSpace)
			return nil
		}
		select {
		case <-s.wake:
		case <-time.After(guardRetry):
		}
		return nil
	}
	g, ops := s.take()
	began := s.now()
	// Until everything that is due is done: a disk may hang in any of it.
	s.commitBegan.Store(time.Now().UnixNano())
	defer s.commitBegan.Store(0)
	d, err := s.write(g, ops, began)
	if err != nil {
		err = fmt.Errorf("commit: %w", err)
		g.err = commitError{err}
		s.mark(err)
		close(g.done)
		for _, o := range ops {
			if o.done != nil {
				o.done <- g.err
			}
		}
		return err
	}
	close(g.done)
	for _, o := range ops {
		if o.done != nil {
			o.done <- nil
		}
	}
	s.recycle(&g.batchOf)
	s.track.committed(d)
	return s.tidy(began)
}

// dropGroup refuses the hits that were let in just before the disk was full.
// They are not stored; the changes of state wait.
func (s *stream) dropGroup() {
	s.mu.Lock()
	g := s.open
	if len(g.keys) == 0 {
		s.mu.Unlock()
		return
	}
	s.newGroupLocked()
	s.mu.Unlock()
	g.err = ErrFull
	close(g.done)
}

// recycle keeps the buffers of a group that is on disk.
func (s *stream) recycle(b *batchOf) {
	b.reset()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spare = *b
}

func (s *stream) newGroupLocked() {
	s.open = &group{batchOf: s.spare, done: make(chan struct{})}
	s.spare = batchOf{}
	close(s.taken)
	s.taken = make(chan struct{})
}

func (s *stream) take() (*group, []*op) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.open
	s.newGroupLocked()
	n := min(len(s.ops), maxOps)
	ops := s.ops[:n:n]
	s.ops = s.ops[n:]
	return g, ops
}

// write commits a group and the ops that ride with it, and applies the delta to
// the state once the disk has it.
func (s *stream) write(g *group, ops []*op, now time.Time) (*delta, error) {
	d := &delta{}
	for _, o := range ops {
		d.join(&o.delta)
	}
	// Only this goroutine changes the state, so it may be read without the lock.
	blocks := s.buildBlocks(g, now, d)
	d.counts = append(d.counts, countGroup(g)...)
	d.requeued = append(d.requeued, g.requeued...)
	d.imported = append(d.imported, g.imported...)
	d.folds = s.folds(now)
	if d.empty() {
		return d, nil
	}
	seq := s.st.seq + 1
	db := s.current().db
	txn := db.NewTransaction(true)
	defer txn.Discard()
	size := 0
	for i := range blocks {
		var buf []byte
		if i == 0 {
			buf = s.valueBuf // Badger has copied it when Commit returns
		}
		value := encodeBlock(buf, &blocks[i], s.keys.first())
		if i == 0 {
			s.valueBuf = value
		}
		blocks[i].size = uint32(len(value))
		d.blocks[i].size = uint32(len(value))
		size += len(value)
		if err := txn.Set(blocks[i].key.bytes(), value); err != nil {
			return nil, err
		}
		if i+1 < len(blocks) {
			blocks[i+1].byteBefore = blocks[i].byteBefore + uint64(len(value))
		}
	}
	value := encodeDelta(s.deltaBuf, seq, d)
	s.deltaBuf = value
	if err := txn.Set(deltaKey(seq), value); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := txn.Commit(); err != nil {
		return nil, err
	}
	took := time.Since(began)
	s.pace.observe(len(g.keys), took)
	s.commitMean.Store(int64(s.pace.commit * float64(time.Second)))
	s.inst.commit(len(g.keys), size+len(value), took)
	s.written += int64(size + len(value))
	s.deltasSince += int64(len(value)) + 32

	s.mu.Lock()
	before := s.st.pendingBytes()
	s.st.apply(seq, d)
	s.guard.pending.Add(s.st.pendingBytes() - before)
	close(s.committed)
	s.committed = make(chan struct{})
	s.mu.Unlock()
	s.clock = max(s.clock, s.st.lastClock)
	s.high.write(s.st.lastNumber, seq)
	return d, nil
}

// buildBlocks cuts a group into blocks and announces them in d.
func (s *stream) buildBlocks(g *group, now time.Time, d *delta) []block {
	var blocks []block
	start, from := 0, 0
	hitsBefore, number := s.st.hits, s.st.lastNumber
	clock := s.clock
	for i := range g.pieces {
		if i+1 < len(g.pieces) && g.pieces[i+1].end-start <= maxBlockRaw {
			continue
		}
		var hits uint32
		for _, p := range g.pieces[from : i+1] {
			hits += p.hits
		}
		number++
		clock = nextClock(clock, now)
		blocks = append(blocks, block{
			key:        blockKey{clock: clock, generation: s.generation, number: number},
			hits:       hits,
			hitsBefore: hitsBefore,
			byteBefore: s.st.bytes,
			raw:        g.raw[start:g.pieces[i].end],
		})
		d.blocks = append(d.blocks, blockMeta{number: number, clock: clock, hits: hits})
		hitsBefore += uint64(hits)
		start, from = g.pieces[i].end, i+1
	}
	return blocks
}

// countGroup gives the counters' changes for newly stored hits. A requeued hit
// leaves the dead and is pending again; it was accepted long ago.
func countGroup(g *group) []countChange {
	per := make(map[counterKey]int64, 8)
	for _, k := range g.keys {
		per[k]++
	}
	changes := make([]countChange, 0, len(per))
	for k, n := range per {
		c := countChange{key: k, by: tally{accepted: n}}
		if len(g.requeued) > 0 {
			c.by = tally{dead: -n}
		}
		changes = append(changes, c)
	}
	return changes
}

func (d *delta) join(o *delta) {
	d.settles = append(d.settles, o.settles...)
	d.counts = append(d.counts, o.counts...)
	d.begins = append(d.begins, o.begins...)
	d.ends = append(d.ends, o.ends...)
	d.forgotten = append(d.forgotten, o.forgotten...)
	d.noted = append(d.noted, o.noted...)
	d.spans = append(d.spans, o.spans...)
	d.doubtUntil = max(d.doubtUntil, o.doubtUntil)
}

const (
	// keepCounters is how long the counters of a slot are kept after its last hit
	// was settled; then they are added to the site's total.
	keepCounters = 7 * 24 * time.Hour
	// maxCounters bounds the slots that are kept so: of 10,000 sites with hits at all
	// hours those of two days.
	maxCounters = 2_000_000
	// packAfter is how old a slot is when hardly any more hits of it come.
	packAfter = 30 * time.Minute
	foldEvery = time.Minute
	maxFolds  = 4096
)

// folds names settled counters that are old enough to be let go. From time to time
// it makes those small that are over.
func (s *stream) folds(now time.Time) []counterKey {
	if now.Sub(s.foldedAt) < foldEvery && !s.foldedAt.After(now) {
		return nil
	}
	s.foldedAt = now
	s.mu.Lock()
	s.st.counters.pack(now.Add(-packAfter).Unix() / quarterSeconds)
	s.mu.Unlock()
	return s.st.counters.settledOld(now.Add(-keepCounters).Unix()/quarterSeconds, maxFolds, maxCounters)
}

// idleSnapshots is how many times the size of the snapshot that begins a shelf must be
// written before a drained one is given up for another.
const idleSnapshots = 8

// tidy does what is due after a commit: a snapshot, a new shelf, the removal of
// drained ones.
func (s *stream) tidy(now time.Time) error {
	if err := s.removeDrained(); err != nil {
		return err
	}
	if !s.guard.mayWrite() {
		return nil
	}
	drained := s.st.floor > s.st.lastNumber
	switch {
	case s.st.lastNumber < s.current().first.number: // holds no block yet
	case s.written >= s.limits.bytes, drained && s.written >= max(s.limits.idle, idleSnapshots*s.snapshotLen), now.Sub(s.bornAt) >= s.limits.age:
		return s.rotate(now)
	}
	return s.checkpoint()
}

// checkpoint writes a snapshot into the shelf in use once the deltas since the
// last one are many times as long, so that opening stays quick and the cost of
// snapshots a fraction of that of the deltas.
func (s *stream) checkpoint() error {
	if s.deltasSince < max(snapshotEvery, 4*s.snapshotLen) {
		return nil
	}
	return s.writeSnapshot(s.current().db)
}

// snapshotPart is the size of a part of a snapshot: each is a transaction of its
// own.
const snapshotPart = 512 << 10

// writeSnapshot writes the whole state, synced. It counts as written only when
// all its parts are there.
func (s *stream) writeSnapshot(db *badger.DB) error {
	raw := encodeSnapshot(s.st)
	parts := (len(raw) + snapshotPart - 1) / snapshotPart
	for i := range parts {
		chunk := raw[i*snapshotPart : min((i+1)*snapshotPart, len(raw))]
		value := encodePart(s.st.seq, i, parts, chunk)
		err := db.Update(func(txn *badger.Txn) error {
			return txn.Set(snapshotKey(s.st.seq, uint16(i)), value)
		})
		if err != nil {
			return fmt.Errorf("write snapshot: %w", err)
		}
	}
	s.written += int64(len(raw))
	s.deltasSince, s.snapshotLen = 0, int64(len(raw))
	return nil
}

// rotate begins a new shelf. A kill at any step leaves either the old shelf as
// the last one, with perhaps an unfinished new one that holds no block, or a new
// one that begins with a full snapshot, with perhaps an old one not yet closed.
func (s *stream) rotate(now time.Time) error {
	s.clock = max(s.clock, nextClock(s.clock, now)-1)
	first := blockKey{clock: s.clock + 1, number: s.st.lastNumber + 1}
	sh := s.newShelf(first)
	if err := makeDir(sh.dir); err != nil {
		return err
	}
	if err := sh.openWritable(); err != nil {
		return fmt.Errorf("open a new shelf: %w", err)
	}
	s.written = 0
	if err := s.writeSnapshot(sh.db); err != nil {
		return err
	}
	if err := syncTree(sh.dir); err != nil {
		return err
	}
	s.mu.Lock()
	old := s.shelves[len(s.shelves)-1]
	s.shelves = append(s.shelves, sh)
	s.mu.Unlock()
	s.bornAt = now
	s.log.Debug("new shelf", "shelf", filepath.Base(sh.dir))
	s.closer.Go(func() { // ends when the old shelf is flushed
		if err := old.finish(); err != nil {
			s.fail(err)
			return
		}
		s.nudge()
	})
	return nil
}

// nudge makes the committer look at what is due although nothing is to be
// committed. When the stream has ended nothing is due.
func (s *stream) nudge() { _ = s.submit(&op{}) }

func (s *stream) newShelf(first blockKey) *shelf {
	return &shelf{
		dir:   filepath.Join(s.dir, shelfName(first)),
		first: first,
		log:   newBadgerLog(s.log, s.fail),
		room:  s.guard.mayWrite,
	}
}

// removeDrained removes shelves of which every block is settled.
func (s *stream) removeDrained() error {
	for {
		s.mu.Lock()
		if len(s.shelves) < 2 || s.st.floor < s.shelves[1].first.number {
			s.mu.Unlock()
			return nil
		}
		oldest := s.shelves[0]
		s.mu.Unlock()
		removed, err := oldest.remove()
		if err != nil {
			return fmt.Errorf("remove a drained shelf: %w", err)
		}
		if !removed {
			return nil // still read; tried again after the next commit
		}
		s.mu.Lock()
		s.shelves = s.shelves[1:]
		s.mu.Unlock()
	}
}

// pace decides whether a small group should wait for company. It belongs to the
// committer.
type pace struct {
	hits   float64 // smoothed hits of a group
	commit float64 // smoothed seconds of a commit
}

func (p *pace) observe(hits int, took time.Duration) {
	const weight = 0.1
	if hits > 0 {
		p.hits += weight * (float64(hits) - p.hits)
	}
	p.commit += weight * (took.Seconds() - p.commit)
}

// linger: groups are small and commits quick, so that waiting a millisecond
// costs little and spares many commits. On a slow disk, or with many clients,
// groups form by themselves.
func (p *pace) linger() bool {
	const smallGroup = 16
	return p.hits < smallGroup && p.commit < maxLinger.Seconds()
}

// errIncomplete: a snapshot of which parts are missing.
var errIncomplete = errors.New("incomplete snapshot")
