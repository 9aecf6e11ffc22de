package queue

import (
	"context"
	"errors"

	"sluice/internal/hit"
)

// Reread gives leased hits again, in the order of ids, which must ascend within a
// generation for each block to be read once. Hits that are settled are left out, and
// so are those of blocks that are not there or damaged, which stay pending. It
// returns ctx's error when ctx ends, and else what [Queue.Lease] returns.
func (q *Queue) Reread(ctx context.Context, ids []hit.ID) ([]hit.Pending, error) {
	out := make([]hit.Pending, 0, len(ids))
	for len(ids) > 0 {
		n := 1
		for n < len(ids) && ids[n].Generation == ids[0].Generation {
			n++
		}
		if s := q.of(ids[0].Generation); s != nil {
			pending, err := s.again(ctx, ids[:n])
			if err != nil {
				return nil, err
			}
			out = append(out, pending...)
		}
		ids = ids[n:]
	}
	return out, nil
}

// again reads hits of the stream block by block: those of one block that follow each
// other in ids cost one reading.
func (s *stream) again(ctx context.Context, ids []hit.ID) ([]hit.Pending, error) {
	out := make([]hit.Pending, 0, len(ids))
	for len(ids) > 0 {
		n := 1
		for n < len(ids) && ids[n].Block == ids[0].Block {
			n++
		}
		pending, err := s.pendingIn(ctx, ids[0].Block)
		if err != nil {
			return nil, err
		}
		at := make(map[uint32]int, len(pending))
		for i := range pending {
			at[pending[i].ID.Index] = i
		}
		for _, id := range ids[:n] {
			if i, ok := at[id.Index]; ok {
				out = append(out, pending[i])
			}
		}
		ids = ids[n:]
	}
	return out, nil
}

// pendingIn gives the unsettled hits of a block.
func (s *stream) pendingIn(ctx context.Context, number uint64) ([]hit.Pending, error) {
	s.mu.Lock()
	floor, last, stopErr := s.st.floor, s.st.lastNumber, s.stopErr
	s.mu.Unlock()
	if stopErr != nil {
		return nil, stopErr
	}
	if number < floor || number > last {
		return nil, nil
	}
	var out []hit.Pending
	err := s.walk(ctx, number, number, func(f found) (bool, error) {
		if f.missing != 0 {
			return true, nil
		}
		b, sets, err := decodeBlock(s.keys, f.key, f.value)
		if errors.Is(err, errDamaged) {
			return true, nil // it was whole when it was leased: the next start finds it
		}
		if err != nil {
			return false, err
		}
		out = s.pendingOf(b, sets)
		return false, nil
	})
	return out, err
}
