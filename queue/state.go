package queue

import (
	"math/bits"
	"slices"

	"sluice/internal/hit"
)

// quarterSeconds is the width of a counter's time slot. Every time zone in use
// is a whole number of quarter hours off UTC, so that any site's day is a whole
// number of slots.
const quarterSeconds = 15 * 60

// A counterKey names one counter: a site and a slot of effective UTC time.
type counterKey struct{ site, quarter int64 }

// maxCountedSite is the highest site number that gets counters of its own. The
// largest installations have some ten thousand sites; without a limit invented
// numbers in hits that nobody has judged yet would fill the memory.
const maxCountedSite = 1_000_000

// countedSite gives the site under which a hit is counted: its own, or 0.
func countedSite(site int64) int64 {
	if site < 1 || site > maxCountedSite {
		return 0
	}
	return site
}

func counterOf(h *hit.Hit) counterKey {
	q := h.At / quarterSeconds
	if h.At%quarterSeconds < 0 {
		q-- // slots before 1970 are counted downwards
	}
	return counterKey{site: countedSite(h.Site), quarter: q}
}

// A tally counts hits. In a delta its fields are changes and may be negative.
type tally struct{ accepted, delivered, invalid, dead int64 }

func (t tally) plus(d tally) tally {
	return tally{t.accepted + d.accepted, t.delivered + d.delivered, t.invalid + d.invalid, t.dead + d.dead}
}

func (t tally) pending() int64 { return t.accepted - t.delivered - t.invalid - t.dead }

// A bitmap has one bit a hit of a block.
type bitmap []uint64

func newBitmap(n uint32) bitmap    { return make(bitmap, (n+63)/64) }
func (b bitmap) has(i uint32) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i uint32)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) or(o bitmap) {
	for i := range b {
		b[i] |= o[i]
	}
}
func (b bitmap) count() (n uint32) {
	for _, w := range b {
		n += uint32(bits.OnesCount64(w))
	}
	return n
}
func (b bitmap) full(hits uint32) bool { return b.count() == hits }

// A windowBlock is a block at or above the floor of which something is settled.
type windowBlock struct {
	hits      uint32
	settled   bitmap // nil when every hit is settled
	hitsAfter uint64 // running numbers of the stream after this block
	byteAfter uint64
}

// A journalEntry is a batch that is, or was when the process ended, in flight.
type journalEntry struct {
	batch uint64
	at    int64 // Unix nanoseconds
	ids   []idRange
	memo  []byte // what the sender gave with it
}

// An idRange is the hits from..to, both included, of one block.
type idRange struct {
	block    uint64
	from, to uint32
}

// A span is blocks that cannot be delivered: from..to, both included.
type span struct {
	from, to  uint64
	damaged   bool   // there, but not readable; else not there at all
	hitsAfter uint64 // running numbers after the span, as the next block says
	byteAfter uint64
}

// state is what a stream remembers besides its blocks. It is changed by apply
// and restored from snapshots, nowhere else, so that what is on disk and what is
// in memory cannot drift apart. It has no lock of its own.
type state struct {
	seq uint64 // of the last transaction

	lastNumber, lastClock uint64 // of the newest block; number 0 = none yet
	hits, bytes           uint64 // running numbers after the newest block

	floor                 uint64 // every block below it is settled
	floorHits, floorBytes uint64 // running numbers before the floor
	window                map[uint64]*windowBlock
	windowSettled         int64 // hits settled in window blocks

	total    tally
	counters *ledger

	journal   map[uint64]journalEntry
	lastBatch uint64

	// requeued are dead letters that were appended again and must be removed from
	// the dead letters; the two stores cannot change in one transaction.
	requeued map[hit.ID]struct{}
	// imported are ids of exported hits that were appended and must be noted beside
	// the dead letters.
	imported map[hit.ID]struct{}

	spans      []span
	missing    int64 // blocks that are not there
	damaged    int64 // blocks that cannot be read
	doubtUntil uint64
}

func newState() *state {
	return &state{
		floor:    1,
		window:   map[uint64]*windowBlock{},
		counters: newLedger(),
		journal:  map[uint64]journalEntry{},
		requeued: map[hit.ID]struct{}{},
		imported: map[hit.ID]struct{}{},
	}
}

// A delta is what one transaction changes.
type delta struct {
	blocks    []blockMeta
	settles   []settle
	counts    []countChange
	begins    []journalEntry
	ends      []uint64
	requeued  []hit.ID
	forgotten []hit.ID
	imported  []hit.ID
	noted     []hit.ID
	spans     []span
	folds     []counterKey
	// doubtUntil marks every unsettled hit of blocks up to this number as
	// uncertain: what was known of them has been lost. 0 changes nothing.
	doubtUntil uint64
}

type blockMeta struct {
	number, clock uint64
	hits, size    uint32
}

// A settle marks hits of one block as settled.
type settle struct {
	block      uint64
	hits       uint32
	hitsBefore uint64
	byteAfter  uint64
	settled    bitmap // what is newly settled
}

type countChange struct {
	key counterKey
	by  tally
}

func (d *delta) empty() bool {
	return len(d.blocks) == 0 && len(d.settles) == 0 && len(d.counts) == 0 && len(d.begins) == 0 &&
		len(d.ends) == 0 && len(d.requeued) == 0 && len(d.forgotten) == 0 &&
		len(d.imported) == 0 && len(d.noted) == 0 && len(d.spans) == 0 &&
		len(d.folds) == 0 && d.doubtUntil == 0
}

// apply carries out a committed delta. It is called in the order of seq, once
// for each.
func (s *state) apply(seq uint64, d *delta) {
	s.seq = seq
	for _, b := range d.blocks {
		s.lastNumber, s.lastClock = b.number, b.clock
		s.hits += uint64(b.hits)
		s.bytes += uint64(b.size)
	}
	for _, c := range d.counts {
		s.count(c)
	}
	for _, k := range d.folds {
		s.counters.fold(k)
	}
	for _, e := range d.begins {
		s.journal[e.batch] = e
		s.lastBatch = max(s.lastBatch, e.batch)
	}
	for _, b := range d.ends {
		delete(s.journal, b)
	}
	for _, id := range d.requeued {
		s.requeued[id] = struct{}{}
	}
	for _, id := range d.forgotten {
		delete(s.requeued, id)
	}
	for _, id := range d.imported {
		s.imported[id] = struct{}{}
	}
	for _, id := range d.noted {
		delete(s.imported, id)
	}
	for _, sp := range d.spans {
		s.addSpan(sp)
	}
	for i := range d.settles {
		s.settle(&d.settles[i])
	}
	s.doubtUntil = max(s.doubtUntil, d.doubtUntil)
	s.advance()
}

func (s *state) count(c countChange) {
	s.total = s.total.plus(c.by)
	s.counters.add(c.key, c.by)
}

func (s *state) settle(e *settle) {
	if e.block < s.floor {
		return
	}
	w := s.window[e.block]
	if w == nil {
		w = &windowBlock{hits: e.hits, settled: newBitmap(e.hits), hitsAfter: e.hitsBefore + uint64(e.hits), byteAfter: e.byteAfter}
		s.window[e.block] = w
	}
	if w.settled == nil {
		return
	}
	before := w.settled.count()
	w.settled.or(e.settled)
	s.windowSettled += int64(w.settled.count() - before)
	if w.settled.full(w.hits) {
		w.settled = nil
	}
}

// addSpan takes blocks out of the way that will never be delivered. Their hits
// stay counted as pending: the sum says that they are gone, and no day that one
// of them may belong to becomes complete.
//
// A span that is known already is found again whenever its blocks are read, and
// is not counted again.
func (s *state) addSpan(sp span) {
	sp.from = max(sp.from, s.floor)
	for _, known := range s.spans {
		if known.from <= sp.from && sp.from <= known.to {
			sp.from = known.to + 1
		}
		if known.from <= sp.to && sp.to <= known.to {
			sp.to = known.from - 1
		}
	}
	if sp.from > sp.to {
		return
	}
	s.spans = append(s.spans, sp)
	n := int64(sp.to - sp.from + 1)
	if sp.damaged {
		s.damaged += n
	} else {
		s.missing += n
	}
	s.lastNumber = max(s.lastNumber, sp.to)
}

// advance moves the floor over settled blocks and unreadable spans.
func (s *state) advance() {
	for {
		if w := s.window[s.floor]; w != nil && w.settled == nil {
			s.floorHits, s.floorBytes = w.hitsAfter, w.byteAfter
			s.windowSettled -= int64(w.hits)
			delete(s.window, s.floor)
			s.floor++
			continue
		}
		i := slices.IndexFunc(s.spans, func(sp span) bool { return sp.from <= s.floor && s.floor <= sp.to })
		if i < 0 {
			break
		}
		sp := s.spans[i]
		s.floorHits, s.floorBytes = max(s.floorHits, sp.hitsAfter), max(s.floorBytes, sp.byteAfter)
		s.floor = sp.to + 1
		s.spans = slices.Delete(s.spans, i, i+1)
	}
	for batch, e := range s.journal {
		if s.journalDone(&e) {
			delete(s.journal, batch)
		}
	}
}

// journalDone reports whether every hit of an entry is settled.
func (s *state) journalDone(e *journalEntry) bool {
	for _, r := range e.ids {
		for i := r.from; ; i++ {
			if !s.isSettled(r.block, i) {
				return false
			}
			if i == r.to {
				break
			}
		}
	}
	return true
}

func (s *state) isSettled(number uint64, index uint32) bool {
	if number < s.floor {
		return true
	}
	w := s.window[number]
	return w != nil && (w.settled == nil || index < w.hits && w.settled.has(index))
}

// isSettledWhole reports whether every hit of a block is settled.
func (s *state) isSettledWhole(number uint64) bool {
	w := s.window[number]
	return number < s.floor || w != nil && w.settled == nil
}

// pending counts the unsettled hits from the blocks' running numbers, without
// looking at any counter.
func (s *state) pending() int64 { return int64(s.hits-s.floorHits) - s.windowSettled }

// pendingBytes is the size of the blocks that hold unsettled hits or stand
// behind one that does.
func (s *state) pendingBytes() int64 { return int64(s.bytes - s.floorBytes) }
