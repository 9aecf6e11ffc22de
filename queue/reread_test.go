package queue

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"sluice/internal/hit"
)

// TestReread: hits come again as they were leased, in the order that is asked for,
// without those that are settled and those that never were.
func TestReread(t *testing.T) {
	o := testOptions(t, t.TempDir())
	o.ShelfBytes = 64 << 10 // several shelves
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifyAndClose(t, q) })
	const sets, each = 60, 20
	for i := range sets {
		mustAppend(t, q, aSet(i*each, each, int64(1+i%3)))
	}
	all := leaseAll(t, q, sets*each)
	byID := map[hit.ID]hit.Pending{}
	var settled []hit.Settlement
	gone := map[hit.ID]bool{}
	for i, p := range all {
		byID[p.ID] = p
		if i < 3*each || i%7 == 0 {
			settled = append(settled, hit.Settlement{ID: p.ID, As: hit.Delivered})
			gone[p.ID] = true
		}
	}
	if err := q.Settle(0, settled); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, q, aSet(0, 1, 1)) // settling is committed with it

	var ids, want []hit.ID
	for _, step := range []int{3, 5} { // twice the stream, so that blocks come again
		for i := 0; i < len(all); i += step {
			ids = append(ids, all[i].ID)
			if !gone[all[i].ID] {
				want = append(want, all[i].ID)
			}
		}
	}
	ids = append(ids, hit.ID{Generation: all[0].ID.Generation, Block: 1 << 40}, hit.ID{Generation: 1, Block: all[0].ID.Block})
	got, err := q.Reread(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d hits, want %d", len(got), len(want))
	}
	for i, p := range got {
		if p.ID != want[i] {
			t.Fatalf("place %d has hit %v, want %v", i, p.ID, want[i])
		}
		if !reflect.DeepEqual(p, byID[p.ID]) {
			t.Fatalf("hit %v has changed: %+v, was %+v", p.ID, p, byID[p.ID])
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.Reread(ctx, want[:1]); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context %v, want its error", err)
	}
}
