package accesslog

import (
	"cmp"
	"context"
	"iter"
	"slices"
)

// merge gives the items of runs in order, as the cursor that stands on each. It uses the
// arena, which must hold nothing, and leaves it so.
func (s *Sorter) merge(ctx context.Context, runs []*run) iter.Seq2[*cursor, error] {
	return func(yield func(*cursor, error) bool) {
		s.arena.reset()
		defer s.arena.reset()
		var heap []*cursor
		for _, r := range runs {
			buffer, _, ok := s.arena.take(r.maxRaw, s.slabsAllowed())
			if !ok {
				panic("sort: more runs merged than were counted to fit")
			}
			c := &cursor{s: s, run: r, buffer: buffer}
			more, err := c.next()
			if err != nil {
				yield(nil, err)
				return
			}
			if more {
				heap = append(heap, c)
			}
		}
		for i := len(heap)/2 - 1; i >= 0; i-- {
			siftDown(heap, i)
		}
		const between = 1024
		for n := 0; len(heap) > 0; n++ {
			if n%between == 0 && ctx.Err() != nil {
				yield(nil, context.Cause(ctx))
				return
			}
			if !yield(heap[0], nil) {
				return
			}
			more, err := heap[0].next()
			if err != nil {
				yield(nil, err)
				return
			}
			if !more {
				heap[0] = heap[len(heap)-1]
				heap = heap[:len(heap)-1]
			}
			siftDown(heap, 0)
		}
	}
}

// siftDown is container/heap's Fix for an element that has grown, without its calls
// through an interface.
func siftDown(heap []*cursor, i int) {
	for {
		child := 2*i + 1
		if child >= len(heap) {
			return
		}
		if right := child + 1; right < len(heap) && heap[right].compare(heap[child].key) < 0 {
			child = right
		}
		if heap[i].compare(heap[child].key) <= 0 {
			return
		}
		heap[i], heap[child] = heap[child], heap[i]
		i = child
	}
}

// reduce merges runs, the smallest first, until there are no more than most and all of
// them can be merged at once.
func (s *Sorter) reduce(ctx context.Context, most int) error {
	for {
		slices.SortFunc(s.runs, func(a, b *run) int {
			return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.id, b.id))
		})
		fit := s.fitting(s.runs)
		goal := min(fit, most)
		if len(s.runs) <= goal {
			return nil
		}
		// No more than is needed for the last merge to have all it can hold.
		n := min(fit, len(s.runs)-goal+1)
		if err := s.mergeFirst(ctx, max(n, 2)); err != nil {
			return err
		}
	}
}

// fitting tells how many of runs, from the first on, can be merged at once.
func (s *Sorter) fitting(runs []*run) int {
	slabs, used := 1, 0
	for i, r := range runs {
		n := r.maxRaw
		if used+n > s.limits.slab {
			slabs, used = slabs+1, 0
		}
		if slabs > s.slabsAllowed() {
			return i
		}
		used += n
	}
	return len(runs)
}

// mergeFirst makes one run of the first n.
func (s *Sorter) mergeFirst(ctx context.Context, n int) error {
	out, err := s.newRun()
	if err != nil {
		return err
	}
	w := blockWriter{s: s, run: out}
	for _, r := range s.runs[:n] {
		w.copied += r.size
	}
	err = s.copyMerged(ctx, &w, s.runs[:n])
	if err != nil {
		out.file.Close()
		return err
	}
	s.stats.Merges++
	for _, r := range s.runs[:n] {
		s.held -= r.size
		if err := r.file.Close(); err != nil {
			return err
		}
	}
	s.runs = append(s.runs[n:], out)
	return nil
}

func (s *Sorter) copyMerged(ctx context.Context, w *blockWriter, runs []*run) error {
	for c, err := range s.merge(ctx, runs) {
		if err != nil {
			return err
		}
		if err := w.add(ctx, c.key, c.payload); err != nil {
			return err
		}
	}
	return w.flush(ctx)
}
