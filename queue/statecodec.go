package queue

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"sluice/internal/hit"
)

// The records of a delta, by their tag. A snapshot is a delta's records and a
// few of its own: docs/format.md, "Delta" and "Snapshot".
const (
	tagBlock      = 1
	tagSettle     = 2
	tagCount      = 3
	tagBegin      = 4
	tagEnd        = 5
	tagRequeued   = 6
	tagForgotten  = 7
	tagSpan       = 8
	tagFold       = 9
	tagDoubt      = 10
	tagMemo       = 11
	tagImported   = 12
	tagNoted      = 13
	tagScalars    = 32
	tagWindow     = 33
	tagFoldedSite = 34
	tagDone       = 35
)

// encodeDelta gives the value of the delta with a sequence number.
func encodeDelta(buf []byte, seq uint64, d *delta) []byte {
	w := writer{append(buf[:0], make([]byte, frameLen)...)}
	w.u(seq)
	for _, b := range d.blocks {
		w.u(tagBlock, b.number, b.clock, uint64(b.hits), uint64(b.size))
	}
	for i := range d.settles {
		e := &d.settles[i]
		w.u(tagSettle, e.block, uint64(e.hits), e.hitsBefore, e.byteAfter)
		w.bitmap(e.settled)
	}
	for _, c := range d.counts {
		w.count(tagCount, c.key, c.by)
	}
	for i := range d.begins {
		w.begin(&d.begins[i])
	}
	for _, b := range d.ends {
		w.u(tagEnd, b)
	}
	for _, id := range d.requeued {
		w.u(tagRequeued, id.Generation, id.Block, uint64(id.Index))
	}
	for _, id := range d.forgotten {
		w.u(tagForgotten, id.Generation, id.Block, uint64(id.Index))
	}
	for _, id := range d.imported {
		w.u(tagImported, id.Generation, id.Block, uint64(id.Index))
	}
	for _, id := range d.noted {
		w.u(tagNoted, id.Generation, id.Block, uint64(id.Index))
	}
	for _, sp := range d.spans {
		w.span(sp)
	}
	for _, k := range d.folds {
		w.u(tagFold)
		w.i(k.site, k.quarter)
	}
	if d.doubtUntil != 0 {
		w.u(tagDoubt, d.doubtUntil)
	}
	return seal(w.b, kindDelta)
}

// decodeDelta reads a delta's value, which must be the one of a sequence number.
func decodeDelta(seq uint64, value []byte) (*delta, error) {
	p, err := unseal(value, kindDelta)
	if err != nil {
		return nil, err
	}
	r := reader{b: p}
	d := &delta{}
	if own := r.u(); own != seq {
		r.fail("delta %d stands under the key of delta %d", own, seq)
	}
	for len(r.b) > 0 && r.err == nil {
		switch tag := r.u(); tag {
		case tagBlock:
			d.blocks = append(d.blocks, blockMeta{r.u(), r.u(), r.u32(), r.u32()})
		case tagSettle:
			e := settle{block: r.u(), hits: r.u32(), hitsBefore: r.u(), byteAfter: r.u()}
			e.settled = r.bitmap(e.hits)
			d.settles = append(d.settles, e)
		case tagCount:
			d.counts = append(d.counts, r.count())
		case tagBegin:
			d.begins = append(d.begins, r.begin())
		case tagEnd:
			d.ends = append(d.ends, r.u())
		case tagRequeued:
			d.requeued = append(d.requeued, r.id())
		case tagForgotten:
			d.forgotten = append(d.forgotten, r.id())
		case tagImported:
			d.imported = append(d.imported, r.id())
		case tagNoted:
			d.noted = append(d.noted, r.id())
		case tagSpan:
			d.spans = append(d.spans, r.span())
		case tagFold:
			d.folds = append(d.folds, counterKey{r.i(), r.i()})
		case tagDoubt:
			d.doubtUntil = r.u()
		case tagMemo:
			batch, memo := r.memo()
			if n := len(d.begins); n > 0 && d.begins[n-1].batch == batch {
				d.begins[n-1].memo = memo
			} else {
				r.fail("memo of batch %d without the batch", batch)
			}
		default:
			r.fail("delta record %d", tag)
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return d, nil
}

// encodeSnapshot gives the whole state as one run of records. The caller cuts it
// into parts and frames them.
func encodeSnapshot(s *state) []byte {
	w := writer{}
	w.u(tagScalars, s.seq, s.lastNumber, s.lastClock, s.hits, s.bytes, s.floor, s.floorHits, s.floorBytes,
		s.lastBatch, uint64(s.missing), uint64(s.damaged), s.doubtUntil)
	w.i(s.total.accepted, s.total.delivered, s.total.invalid, s.total.dead)
	for _, n := range slices.Sorted(maps.Keys(s.window)) {
		wb := s.window[n]
		w.u(tagWindow, n, uint64(wb.hits), wb.hitsAfter, wb.byteAfter)
		bits := wb.settled
		if bits == nil {
			bits = newBitmap(wb.hits)
			for i := range wb.hits {
				bits.set(i)
			}
		}
		w.bitmap(bits)
	}
	w.ledger(s.counters)
	for _, b := range slices.Sorted(maps.Keys(s.journal)) {
		e := s.journal[b]
		w.begin(&e)
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.requeued), hit.ID.Compare) {
		w.u(tagRequeued, id.Generation, id.Block, uint64(id.Index))
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.imported), hit.ID.Compare) {
		w.u(tagImported, id.Generation, id.Block, uint64(id.Index))
	}
	for _, sp := range s.spans {
		w.span(sp)
	}
	return w.b
}

// decodeSnapshot reads what encodeSnapshot wrote.
func decodeSnapshot(p []byte) (*state, error) {
	r := reader{b: p}
	s := newState()
	for len(r.b) > 0 && r.err == nil {
		switch tag := r.u(); tag {
		case tagScalars:
			for _, f := range []*uint64{&s.seq, &s.lastNumber, &s.lastClock, &s.hits, &s.bytes, &s.floor, &s.floorHits, &s.floorBytes, &s.lastBatch} {
				*f = r.u()
			}
			s.missing, s.damaged, s.doubtUntil = int64(r.u()), int64(r.u()), r.u()
			s.total = r.tally()
		case tagWindow:
			n := r.u()
			wb := &windowBlock{hits: r.u32(), hitsAfter: r.u(), byteAfter: r.u()}
			wb.settled = r.bitmap(wb.hits)
			s.windowSettled += int64(wb.settled.count())
			if wb.settled.full(wb.hits) {
				wb.settled = nil
			}
			s.window[n] = wb
		case tagCount:
			c := r.count()
			s.counters.put(c.key, c.by)
		case tagDone:
			r.done(s.counters)
		case tagFoldedSite:
			c := r.count()
			site := s.counters.site(c.key.site)
			site.folded, site.foldedTo = c.by, c.key.quarter
		case tagBegin:
			e := r.begin()
			s.journal[e.batch] = e
		case tagMemo:
			batch, memo := r.memo()
			e, open := s.journal[batch]
			if !open {
				r.fail("memo of batch %d without the batch", batch)
			} else {
				e.memo = memo
				s.journal[batch] = e
			}
		case tagRequeued:
			s.requeued[r.id()] = struct{}{}
		case tagImported:
			s.imported[r.id()] = struct{}{}
		case tagSpan:
			s.spans = append(s.spans, r.span())
		default:
			r.fail("snapshot record %d", tag)
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return s, nil
}

// A writer appends varints.
type writer struct{ b []byte }

func (w *writer) u(vs ...uint64) {
	for _, v := range vs {
		w.b = binary.AppendUvarint(w.b, v)
	}
}

func (w *writer) i(vs ...int64) {
	for _, v := range vs {
		w.b = binary.AppendVarint(w.b, v)
	}
}

// bitmap writes the words; the number of hits, written before, says how many.
func (w *writer) bitmap(b bitmap) {
	for _, word := range b {
		w.b = binary.LittleEndian.AppendUint64(w.b, word)
	}
}

func (w *writer) count(tag uint64, k counterKey, t tally) {
	w.u(tag)
	w.i(k.site, k.quarter, t.accepted, t.delivered, t.invalid, t.dead)
}

func (w *writer) ledger(l *ledger) {
	sites := slices.Sorted(maps.Keys(l.sites))
	for _, site := range sites {
		s := l.sites[site]
		for _, o := range s.open {
			w.count(tagCount, counterKey{site, o.quarter}, o.tally)
		}
		if len(s.done) == 0 {
			continue
		}
		w.u(tagDone)
		w.i(site)
		w.u(uint64(len(s.done)))
		last := int64(0)
		for _, d := range s.done {
			w.i(int64(d.quarter) - last)
			w.u(uint64(d.hits))
			last = int64(d.quarter)
		}
	}
	for _, site := range sites {
		if s := l.sites[site]; s.folded != (tally{}) {
			w.count(tagFoldedSite, counterKey{site, s.foldedTo}, s.folded)
		}
	}
}

func (w *writer) begin(e *journalEntry) {
	w.u(tagBegin, e.batch)
	w.i(e.at)
	w.u(uint64(len(e.ids)))
	for _, r := range e.ids {
		w.u(r.block, uint64(r.from), uint64(r.to-r.from))
	}
	if len(e.memo) > 0 {
		w.u(tagMemo, e.batch, uint64(len(e.memo)))
		w.b = append(w.b, e.memo...)
	}
}

func (w *writer) span(sp span) {
	damaged := uint64(0)
	if sp.damaged {
		damaged = 1
	}
	w.u(tagSpan, sp.from, sp.to, damaged, sp.hitsAfter, sp.byteAfter)
}

// A reader takes varints from the front of b. After the first error everything
// reads as zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
	}
	r.b = nil
}

func (r *reader) u() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) u32() uint32 {
	v := r.u()
	if v > 1<<32-1 {
		r.fail("number %d is too large", v)
	}
	return uint32(v)
}

func (r *reader) i() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bitmap(hits uint32) bitmap {
	words := (int(hits) + 63) / 64
	if len(r.b) < 8*words {
		r.fail("short bitmap")
		return nil
	}
	b := make(bitmap, words)
	for i := range b {
		b[i] = binary.LittleEndian.Uint64(r.b[8*i:])
	}
	r.b = r.b[8*words:]
	if hits%64 != 0 && b[words-1]>>(hits%64) != 0 {
		r.fail("bitmap with bits beyond its block")
	}
	return b
}

func (r *reader) tally() tally { return tally{r.i(), r.i(), r.i(), r.i()} }

func (r *reader) count() countChange {
	return countChange{key: counterKey{r.i(), r.i()}, by: r.tally()}
}

// done reads the slots of a site of which every hit was delivered, into a ledger that
// has none of them yet.
func (r *reader) done(l *ledger) {
	site := r.i()
	n := r.u()
	if n == 0 || n > uint64(len(r.b)/2) { // a slot takes two bytes at least
		r.fail("%d slots of site %d", n, site)
		return
	}
	s := l.site(site)
	if len(s.done) > 0 {
		r.fail("slots of site %d stand twice", site)
		return
	}
	s.done = make([]doneSlot, 0, n)
	last := int64(0)
	for i := range n {
		quarter, hits := last+r.i(), r.u32()
		if r.err != nil {
			return
		}
		if i > 0 && quarter <= last || int64(int32(quarter)) != quarter || hits == 0 {
			r.fail("slot %d of site %d", quarter, site)
			return
		}
		if _, twice := s.findOpen(quarter); twice {
			r.fail("slot %d of site %d stands twice", quarter, site)
			return
		}
		s.done = append(s.done, doneSlot{int32(quarter), hits})
		last = quarter
	}
	l.slots += len(s.done)
}

func (r *reader) begin() journalEntry {
	e := journalEntry{batch: r.u(), at: r.i()}
	n := r.u()
	if n > uint64(len(r.b)) { // a range takes three bytes at least
		r.fail("journal entry of %d ranges", n)
		return e
	}
	for range n {
		rg := idRange{block: r.u(), from: r.u32()}
		rg.to = rg.from + r.u32()
		if rg.to < rg.from {
			r.fail("journal range beyond its block")
		}
		e.ids = append(e.ids, rg)
	}
	return e
}

func (r *reader) memo() (batch uint64, memo []byte) {
	batch = r.u()
	n := r.u()
	if n == 0 || n > uint64(len(r.b)) {
		r.fail("memo of %d bytes", n)
		return batch, nil
	}
	memo = slices.Clone(r.b[:n])
	r.b = r.b[n:]
	return batch, memo
}

func (r *reader) id() hit.ID { return hit.ID{Generation: r.u(), Block: r.u(), Index: r.u32()} }

func (r *reader) span() span {
	sp := span{from: r.u(), to: r.u(), damaged: r.u() != 0, hitsAfter: r.u(), byteAfter: r.u()}
	if sp.to < sp.from {
		r.fail("span %d to %d", sp.from, sp.to)
	}
	return sp
}
