package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"sluice/internal/hit"
)

// DoubtLost is the value of [hit.Pending.Uncertain] for hits of which the
// journal itself was lost with the end of a damaged log: nobody knows whether
// they were in flight.
const DoubtLost = 1<<64 - 1

// leaseRead bounds what one read ahead decodes, in bytes.
const leaseRead = 4 << 20

// A leaseReader hands out hits in order, each once. It belongs to whoever holds
// [Queue.leasing].
type leaseReader struct {
	next uint64 // the block to read next; 0 = from the floor
	// carry is hits that are read and not handed out yet.
	carry []hit.Pending
	given bool // a hit was handed out
	// spans are holes found, not yet reported.
	spans []span

	// orphans are journal entries found at opening: what was in flight when the
	// process ended. Set before the stream runs.
	orphans map[uint64][]orphan
}

type orphan struct {
	from, to uint32
	batch    uint64
}

func (r *leaseReader) setOrphans(st *state) {
	r.orphans = map[uint64][]orphan{}
	for _, e := range st.journal {
		for _, rg := range e.ids {
			r.orphans[rg.block] = append(r.orphans[rg.block], orphan{from: rg.from, to: rg.to, batch: e.batch})
		}
	}
}

// doubt says which batch a hit was left in: [DoubtLost] where the journal itself
// is lost, 0 if in none.
func (r *leaseReader) doubt(st *state, number uint64, index uint32) uint64 {
	if number <= st.doubtUntil {
		return DoubtLost
	}
	return r.leftIn(st, number, index)
}

// leftIn gives the newest open batch of the journal that names a hit, or 0.
func (r *leaseReader) leftIn(st *state, number uint64, index uint32) uint64 {
	batch := uint64(0)
	for _, o := range r.orphans[number] {
		if _, open := st.journal[o.batch]; open && o.from <= index && index <= o.to {
			batch = max(batch, o.batch)
		}
	}
	return batch
}

// fill reads ahead until there is something to hand out or all is read. Then it gives
// what is closed at the next commit.
func (s *stream) fill(ctx context.Context, limit int) (committed <-chan struct{}, err error) {
	r := &s.reader
	for {
		s.mu.Lock()
		committed, stopErr := s.committed, s.stopErr
		r.next = max(r.next, s.st.floor)
		last := s.st.lastNumber
		s.mu.Unlock()
		switch {
		case len(r.carry) > 0:
			return nil, nil
		case stopErr != nil:
			return nil, stopErr
		case r.next > last:
			return committed, nil
		}
		if err := s.readAhead(ctx, last, limit); err != nil {
			return nil, err
		}
	}
}

// give hands out up to n hits of those that fill has read.
func (r *leaseReader) give(n int) []hit.Pending {
	n = min(n, len(r.carry))
	r.given = r.given || n > 0
	out := r.carry[:n:n]
	r.carry = r.carry[n:]
	return out
}

// untouched reports whether no hit of the stream was ever handed out and might be
// delivered. The caller holds [Queue.leasing].
func (s *stream) untouched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.st.total
	return !s.reader.given && t.pending() == t.accepted && len(s.st.journal) == 0 && s.st.doubtUntil == 0
}

// before counts the hits that fill has read and that were received before a time, in
// Unix nanoseconds, or at it.
func (r *leaseReader) before(at int64) int {
	n := 0
	for n < len(r.carry) && r.carry[n].ReceivedAt <= at {
		n++
	}
	return n
}

// readAhead fills carry from the blocks r.next..last.
func (s *stream) readAhead(ctx context.Context, last uint64, limit int) error {
	r := &s.reader
	size := 0
	err := s.walk(ctx, r.next, last, func(f found) (bool, error) {
		if f.missing != 0 {
			r.next = f.key.number
			s.noteSpan(span{from: f.missing, to: f.key.number - 1}, nil)
			return true, nil
		}
		b, sets, err := decodeBlock(s.keys, f.key, f.value)
		r.next = f.key.number + 1
		if errors.Is(err, errDamaged) {
			if qerr := s.quarantineBlock(f.key, f.value); qerr != nil {
				return false, qerr
			}
			s.noteSpan(span{from: f.key.number, to: f.key.number, damaged: true}, err)
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if err := s.reportSpans(b.hitsBefore, b.byteBefore); err != nil {
			return false, err
		}
		pending := s.pendingOf(b, sets)
		if len(pending) > 0 {
			s.track.add(b, sets, pending)
			r.carry = append(r.carry, pending...)
			size += len(b.raw)
		}
		return len(r.carry) < limit && size < leaseRead, nil
	})
	if err != nil {
		return err
	}
	if r.next <= last || len(r.spans) == 0 {
		return nil
	}
	s.mu.Lock()
	newest, hits, bytes := s.st.lastNumber, s.st.hits, s.st.bytes
	s.mu.Unlock()
	if newest > last {
		return nil // the next block will say
	}
	return s.reportSpans(hits, bytes)
}

// noteSpan remembers a hole until the block behind it says how much it held.
func (s *stream) noteSpan(sp span, cause error) {
	s.log.Error("blocks of the queue cannot be delivered; their hits stay counted as pending",
		"from", sp.from, "to", sp.to, "there", sp.damaged, "err", cause)
	s.reader.spans = append(s.reader.spans, sp)
}

// reportSpans writes the holes found so far into the state.
func (s *stream) reportSpans(hitsAfter, byteAfter uint64) error {
	r := &s.reader
	if len(r.spans) == 0 {
		return nil
	}
	o := &op{}
	for _, sp := range r.spans {
		sp.hitsAfter, sp.byteAfter = hitsAfter, byteAfter
		o.delta.spans = append(o.delta.spans, sp)
	}
	r.spans = nil
	return s.submitAndWait(o)
}

// A tracker knows the blocks of which hits are leased: who may be settled.
type tracker struct {
	mu     sync.Mutex
	blocks map[uint64]*leasedBlock
}

type leasedBlock struct {
	key        blockKey
	hits       uint32
	hitsBefore uint64
	byteAfter  uint64
	oldest     int64 // Unix nanoseconds
	counters   []counterKey
	claimed    bitmap // settled, or on the way to it
	left       uint32 // not yet settled on disk
}

func (t *tracker) add(b *block, sets []*hit.RequestSet, pending []hit.Pending) {
	l := &leasedBlock{
		key: b.key, hits: b.hits, hitsBefore: b.hitsBefore, byteAfter: b.byteBefore + uint64(b.size),
		oldest: pending[0].ReceivedAt, claimed: newBitmap(b.hits), left: uint32(len(pending)),
		counters: make([]counterKey, 0, b.hits),
	}
	for i := range b.hits {
		l.claimed.set(i)
	}
	for i := range pending {
		l.claimed[pending[i].ID.Index/64] &^= 1 << (pending[i].ID.Index % 64)
	}
	for _, set := range sets {
		for i := range set.Hits {
			l.counters = append(l.counters, counterOf(&set.Hits[i]))
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.blocks[b.key.number] = l
}

// judge gives what settling hits changes. It refuses hits that are not leased, or are
// settled already. The caller lets nobody else settle until it has called take.
func (t *tracker) judge(generation uint64, list []hit.Settlement) (*delta, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	perBlock := map[uint64]*settle{}
	perCounter := map[counterKey]tally{}
	d := &delta{}
	var order []uint64
	for i := range list {
		id := list[i].ID
		l := t.blocks[id.Block]
		if l == nil || id.Generation != generation || id.Index >= l.hits {
			return nil, fmt.Errorf("settle %v: not leased", id)
		}
		e := perBlock[id.Block]
		if e == nil {
			e = &settle{block: id.Block, hits: l.hits, hitsBefore: l.hitsBefore, byteAfter: l.byteAfter, settled: newBitmap(l.hits)}
			perBlock[id.Block] = e
			order = append(order, id.Block)
		}
		if l.claimed.has(id.Index) || e.settled.has(id.Index) {
			return nil, fmt.Errorf("settle %v: settled before", id)
		}
		e.settled.set(id.Index)
		by := tally{}
		switch list[i].As {
		case hit.Delivered:
			by.delivered = 1
		case hit.Invalid:
			by.invalid = 1
		case hit.Dead:
			by.dead = 1
		default:
			return nil, fmt.Errorf("settle %v: unknown outcome %d", id, list[i].As)
		}
		k := l.counters[id.Index]
		perCounter[k] = perCounter[k].plus(by)
	}
	slices.Sort(order)
	for _, n := range order {
		d.settles = append(d.settles, *perBlock[n])
	}
	for k, by := range perCounter {
		d.counts = append(d.counts, countChange{key: k, by: by})
	}
	return d, nil
}

// take marks hits as being settled.
func (t *tracker) take(d *delta) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range d.settles {
		t.blocks[d.settles[i].block].claimed.or(d.settles[i].settled)
	}
}

// committed forgets blocks of which every hit is settled on disk.
func (t *tracker) committed(d *delta) {
	if len(d.settles) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range d.settles {
		e := &d.settles[i]
		l := t.blocks[e.block]
		if l == nil {
			continue
		}
		if l.left -= e.settled.count(); l.left == 0 {
			delete(t.blocks, e.block)
		}
	}
}

func (t *tracker) find(number uint64) *leasedBlock {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.blocks[number]
}

// journal writes down, synced, that hits of the stream are about to be sent.
func (s *stream) journal(batch uint64, ids []hit.ID, memo []byte, now int64) error {
	sorted := slices.SortedFunc(slices.Values(ids), hit.ID.Compare)
	e := journalEntry{batch: batch, at: now, memo: slices.Clone(memo)}
	for _, id := range sorted {
		if n := len(e.ids); n > 0 && e.ids[n-1].block == id.Block && e.ids[n-1].to+1 == id.Index {
			e.ids[n-1].to++
			continue
		}
		e.ids = append(e.ids, idRange{block: id.Block, from: id.Index, to: id.Index})
	}
	return s.submitAndWait(&op{delta: delta{begins: []journalEntry{e}}})
}
