package queue

import (
	"context"
	"fmt"
	"slices"

	"sluice/internal/hit"
)

// A Recount is what reading every pending hit has shown of the counters.
type Recount struct {
	Hits int64 // pending hits that were read
	// Unreadable is hits that are counted as pending and that the disk does not give any
	// more. They stay counted: nobody knows what became of them.
	Unreadable int64
	Slots      []RecountSlot // that did not agree, in no order
}

// A RecountSlot is a slot whose counter did not agree with its hits.
type RecountSlot struct {
	Site, Quarter  int64
	Counted, Found int64 // pending hits
}

// Recount reads every pending hit, compares the counters of one moment with what it
// finds, and puts them right: a slot gets the hits that it lacks, and, if no block was
// ever lost, loses those that it has too many. It runs beside everything else but another
// Recount, keeps no lease, and may take minutes. Drained shelves stay on the disk until it
// returns.
func (q *Queue) Recount(ctx context.Context) (Recount, error) {
	sum := Recount{}
	for _, s := range q.running() {
		one, err := s.recount(ctx)
		sum.Hits += one.Hits
		sum.Unreadable += one.Unreadable
		sum.Slots = append(sum.Slots, one.Slots...)
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

func (s *stream) recount(ctx context.Context) (Recount, error) {
	then := s.freeze()
	defer then.thaw()
	there := map[counterKey]int64{}
	out := Recount{}
	err := s.walkReadable(ctx, then.floor, then.last, func(b *block, sets []*hit.RequestSet) bool {
		index := uint32(0)
		for _, set := range sets {
			for i := range set.Hits {
				if !then.settled(b.key.number, index) {
					there[counterOf(&set.Hits[i])]++
					out.Hits++
				}
				index++
			}
		}
		return true
	})
	if err != nil {
		return Recount{}, fmt.Errorf("recount: %w", err)
	}
	out.Unreadable = then.pending - out.Hits + then.passed
	var repair []countChange
	for k, n := range then.counted {
		if there[k] != n {
			out.Slots = append(out.Slots, RecountSlot{k.site, k.quarter, n, there[k]})
		}
	}
	for k, n := range there {
		if _, ok := then.counted[k]; !ok {
			out.Slots = append(out.Slots, RecountSlot{k.site, k.quarter, 0, n})
		}
	}
	for _, slot := range out.Slots {
		if by := slot.Found - slot.Counted; by > 0 || out.Unreadable == 0 && !then.lossy {
			repair = append(repair, countChange{counterKey{slot.Site, slot.Quarter}, tally{accepted: by}})
		}
	}
	for part := range slices.Chunk(repair, maxRepair) {
		if err := s.submitAndWait(&op{delta: delta{counts: part}}); err != nil {
			return out, err
		}
	}
	return out, nil
}

// maxRepair bounds the slots that one transaction puts right, so that it stays below
// Badger's limit.
const maxRepair = 4096

// A frozen is the state of a stream at one moment, as far as counting needs it.
type frozen struct {
	s           *stream
	shelves     []*shelf
	floor, last uint64
	window      map[uint64]bitmap // nil: every hit is settled
	pending     int64
	counted     map[counterKey]int64 // pending hits
	lossy       bool                 // blocks have been lost
	passed      int64                // pending hits of lost blocks below the floor
}

// freeze notes the state, and keeps the shelves from being removed until thaw.
func (s *stream) freeze() *frozen {
	f := &frozen{s: s, window: map[uint64]bitmap{}, counted: map[counterKey]int64{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		fresh := slices.DeleteFunc(slices.Clone(s.shelves), func(sh *shelf) bool { return slices.Contains(f.shelves, sh) })
		if len(fresh) == 0 {
			break
		}
		// A shelf that is being closed or recovered makes this wait, and nobody else.
		s.mu.Unlock()
		for _, sh := range fresh {
			sh.pin(1)
		}
		f.shelves = append(f.shelves, fresh...)
		s.mu.Lock()
	}
	f.floor, f.last, f.pending = s.st.floor, s.st.lastNumber, s.st.pending()
	if f.lossy = s.st.damaged+s.st.missing > 0; f.lossy {
		f.passed = max(0, s.st.total.pending()-f.pending)
	}
	for n, w := range s.st.window {
		if w.settled == nil {
			f.window[n] = nil
			continue
		}
		f.window[n] = append(bitmap(nil), w.settled...)
	}
	for _, c := range s.st.counters.unsettled() {
		f.counted[counterKey{c.Site, c.Quarter}] = c.Accepted - c.Delivered - c.Invalid - c.Dead
	}
	return f
}

func (f *frozen) thaw() {
	for _, sh := range f.shelves {
		sh.pin(-1)
	}
	f.s.nudge()
}

func (f *frozen) settled(number uint64, index uint32) bool {
	bits, any := f.window[number]
	return any && (bits == nil || bits.has(index))
}
