package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// openRow opens a queue of small shelves that is verified when the test ends.
func openRow(t testing.TB, dir string, keys Keys) *Queue {
	t.Helper()
	o := testOptions(t, dir)
	o.ShelfBytes, o.Keys = 8<<10, keys
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifyAndClose(t, q) })
	return q
}

// spread gives a set a site and times of its own, so that its hits stand in many slots.
func spread(r *rand.Rand, s *hit.RequestSet) *hit.RequestSet {
	sites := []int64{1, 2, 3, 0, -4, maxCountedSite + 1}
	for i := range s.Hits {
		s.Hits[i].Site = sites[r.IntN(len(sites))]
		s.Hits[i].At = time.Now().Unix() - r.Int64N(5*24*3600)
		if r.IntN(50) == 0 {
			s.Hits[i].At = -r.Int64N(1e6) // before 1970
		}
	}
	return s
}

func mustRecount(t testing.TB, q *Queue) Recount {
	t.Helper()
	got, err := q.Recount(t.Context())
	if err != nil {
		t.Fatalf("Recount: %v", err)
	}
	return got
}

// agree checks that a recount finds so many hits and nothing wrong.
func agree(t testing.TB, q *Queue, hits int64) {
	t.Helper()
	if got := mustRecount(t, q); got.Hits != hits || got.Unreadable != 0 || len(got.Slots) != 0 {
		t.Errorf("Recount = %+v, want %d hits and nothing else", got, hits)
	}
}

// settleSome settles every n-th of some hits, as one of the outcomes by turns.
func settleSome(t testing.TB, q *Queue, hits []hit.Pending, n int) (settled int64) {
	t.Helper()
	var list []hit.Settlement
	for i := 0; i < len(hits); i += n {
		s := hit.Settlement{ID: hits[i].ID, As: []hit.Outcome{hit.Delivered, hit.Invalid, hit.Dead}[len(list)%3]}
		if s.As == hit.Dead {
			s.Reason = "poison"
		}
		list = append(list, s)
	}
	if err := q.Settle(0, list); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	return int64(len(list))
}

// TestRecountAgrees: with hits that wait, are settled in all ways, are buried and come
// back, over several shelves, before and after a restart.
func TestRecountAgrees(t *testing.T) {
	for _, tt := range []struct {
		name string
		keys Keys
	}{{"in clear", Keys{}}, {"encrypted", testKeys(1)}} {
		t.Run(tt.name, func(t *testing.T) {
			dir, r := t.TempDir(), newRand(t)
			q := openRow(t, dir, tt.keys)
			agree(t, q, 0)
			hits := int64(0)
			for q.Stats().Shelves < 4 {
				mustAppend(t, q, spread(r, noiseSet(r, int(hits), 5)))
				flush(t, q) // the rotation follows the commit
				hits += 5
			}
			agree(t, q, hits)
			all := leaseRest(t, q)
			pending := hits - settleSome(t, q, all[10:60], 3) // the first blocks stay, so that no shelf goes
			pending -= settleSome(t, q, all[60:75], 1)        // whole blocks
			agree(t, q, pending)
			back, err := q.Requeue(t.Context(), DeadFilter{IDs: idsOf(all[:40])})
			if err != nil || back == 0 {
				t.Fatalf("Requeue = %d, %v, want some", back, err)
			}
			pending += int64(back)
			agree(t, q, pending)
			if s := q.Stats(); s.Shelves < 4 || s.Pending != pending || s.Dead == 0 || s.Invalid == 0 {
				t.Fatalf("Stats = %+v, want all kinds of hits on 4 shelves", s)
			}
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			q = openRow(t, dir, tt.keys)
			agree(t, q, pending)
		})
	}
}

// TestUnsettledAndSums are checked against what Peek and Counters list.
func TestUnsettledAndSums(t *testing.T) {
	r := newRand(t)
	q := openRow(t, t.TempDir(), Keys{})
	for i := range 20 {
		mustAppend(t, q, spread(r, noiseSet(r, i*10, 10)))
	}
	settleSome(t, q, leaseRest(t, q), 2)

	want := map[counterKey]int64{}
	for p, err := range q.Peek(t.Context(), PeekFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		want[counterOf(&p.Hit)]++
	}
	unsettled := q.Unsettled()
	for _, c := range unsettled {
		k := counterKey{c.Site, c.Quarter}
		if n := c.Accepted - c.Delivered - c.Invalid - c.Dead; n != want[k] {
			t.Errorf("slot %+v: %d hits pending, want %d", k, n, want[k])
		}
		delete(want, k)
	}
	if len(want) != 0 {
		t.Errorf("slots %v are not listed", want)
	}
	if !slices.IsSortedFunc(unsettled, func(a, b Counter) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Quarter, b.Quarter))
	}) {
		t.Error("the list is not sorted")
	}

	counters := q.Counters()
	for range 200 {
		c := counters[r.IntN(len(counters))]
		from := c.Quarter - r.Int64N(200)
		before := from + r.Int64N(400)
		var within, all Counter
		for _, c := range counters {
			if c.Site != counters[0].Site || c.Quarter >= before {
				continue
			}
			all.add(c)
			if c.Quarter >= from {
				within.add(c)
			}
		}
		within.Site, within.Quarter, all.Site, all.Quarter = counters[0].Site, from, counters[0].Site, before
		if w, a, _ := q.Sums(counters[0].Site, from, before); w != within || a != all {
			t.Errorf("Sums(%d, %d, %d) = %+v, %+v, want %+v, %+v", counters[0].Site, from, before, w, a, within, all)
		}
	}
	if w, a, exact := q.Sums(77, 0, 1<<40); w.Accepted != 0 || a.Accepted != 0 || !exact {
		t.Errorf("a site without hits has %+v, %+v, exact %v", w, a, exact)
	}
}

// TestSumsOfWhatIsNoLongerListed: a slot that was let go is still in the sum of all
// before, and the sum says so where it is of a later time.
func TestSumsOfWhatIsNoLongerListed(t *testing.T) {
	const day = 24 * time.Hour
	dir := t.TempDir()
	var wall atomic.Int64
	wall.Store(time.Now().UnixNano())
	o := testOptions(t, dir)
	o.ShelfBytes, o.Now = 8<<10, func() time.Time { return time.Unix(0, wall.Load()) }
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	appendNow := func(n int) (quarter int64) {
		t.Helper()
		set := aSet(0, n, 1)
		for i := range set.Hits {
			set.Hits[i].At = wall.Load() / 1e9
		}
		mustAppend(t, q, set)
		return counterOf(&set.Hits[0]).quarter
	}
	settle := func() {
		t.Helper()
		if err := q.Settle(0, settleAs(leaseRest(t, q), hit.Delivered)); err != nil {
			t.Fatal(err)
		}
		flush(t, q)
	}
	first := appendNow(3)
	settle()
	wall.Add(int64(day))
	second := appendNow(5)
	settle()
	wall.Add(int64(keepCounters - day + time.Hour)) // the first slot is old enough to go, the second is not
	third := appendNow(7)
	settle()

	want := func(when string, from, before, within, all int64, exact bool) {
		t.Helper()
		if w, a, e := q.Sums(1, from, before); w.Accepted != within || a.Accepted != all || a.Delivered != all || e != exact {
			t.Errorf("%s: Sums(%d, %d) = %+v, %+v, %v, want %d, %d, %v", when, from-first, before-first, w, a, e, within, all, exact)
		}
	}
	for _, when := range []string{"at once", "after a restart"} {
		if slices.ContainsFunc(q.Counters(), func(c Counter) bool { return c.Quarter == first }) {
			t.Fatalf("%s: the slot of a week ago is still listed", when)
		}
		want(when, first, third+1, 12, 15, true)
		want(when, second, second+1, 5, 8, true)
		want(when, first, first+1, 0, 3, true)
		want(when, first-1, first, 0, 3, false) // what was let go came later
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		o.Metrics = metrics.NewSet()
		if q, err = Open(o); err != nil {
			t.Fatal(err)
		}
	}
	verifyAndClose(t, q)
}

func (c *Counter) add(o Counter) {
	c.Accepted += o.Accepted
	c.Delivered += o.Delivered
	c.Invalid += o.Invalid
	c.Dead += o.Dead
}

// TestRecountBesideTraffic: while hits come and go and shelves with them, the counters
// of each moment agree with the hits of that moment.
func TestRecountBesideTraffic(t *testing.T) {
	r := newRand(t)
	q := openRow(t, t.TempDir(), Keys{})
	ctx, stop := context.WithCancel(t.Context())
	var traffic sync.WaitGroup
	for w := range 2 {
		own := rand.New(rand.NewPCG(r.Uint64(), uint64(w)))
		traffic.Go(func() { // ends with the recounts
			for i := 0; ctx.Err() == nil; i++ {
				if q.Stats().Pending > 2000 {
					flush(t, q)
					continue
				}
				mustAppend(t, q, spread(own, noiseSet(own, i, 1+own.IntN(20))))
			}
		})
	}
	traffic.Go(func() { // ends with the recounts
		own := rand.New(rand.NewPCG(1, 2))
		for {
			hits, err := q.Lease(ctx, 1+own.IntN(200))
			if err != nil {
				return
			}
			list := settleAs(hits, hit.Delivered)
			own.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			half := len(list) / 2
			if err := errors.Join(q.Settle(0, list[:half]), q.Settle(0, list[half:])); err != nil {
				t.Error(err)
				return
			}
		}
	})
	rounds, hits, gone, last := 0, int64(0), 0, uint64(1)
	for end := time.Now().Add(20 * time.Second); (rounds < 200 || gone < 10) && time.Now().Before(end) && !t.Failed(); rounds++ {
		got := mustRecount(t, q)
		if len(got.Slots) != 0 || got.Unreadable != 0 {
			t.Errorf("round %d: %+v", rounds, got)
		}
		hits += got.Hits
		if rounds%10 == 0 {
			flush(t, q) // shelves go after a commit, and not during a recount
		}
		q.live.mu.Lock()
		oldest := q.live.shelves[0].first.number
		q.live.mu.Unlock()
		if oldest != last {
			gone, last = gone+1, oldest
		}
	}
	stop()
	traffic.Wait()
	t.Logf("%d rounds, %d hits read, shelves gone in %d of them", rounds, hits, gone)
	if rounds < 20 || hits == 0 || gone == 0 {
		t.Errorf("%d rounds over %d hits, shelves gone in %d: too little to show anything", rounds, hits, gone)
	}
	if s := q.Stats(); s.Difference != 0 {
		t.Errorf("Difference = %d, want 0", s.Difference)
	}
}

// miscount changes counters as if hits had been counted that are not there.
func miscount(t testing.TB, q *Queue, changes ...countChange) {
	t.Helper()
	if err := q.live.submitAndWait(&op{delta: delta{counts: changes}}); err != nil {
		t.Fatal(err)
	}
}

// TestRecountPutsRight what was miscounted, however it was, for good.
func TestRecountPutsRight(t *testing.T) {
	const quarter, elsewhere = 2_000_000, 2_000_001
	a, b, empty := counterKey{1, quarter}, counterKey{2, quarter}, counterKey{3, elsewhere}
	tests := []struct {
		name       string
		by         []countChange
		difference int64
		want       []RecountSlot
	}{
		{"too many in a slot", []countChange{{a, tally{accepted: 5}}}, 5, []RecountSlot{{1, quarter, 14, 9}}},
		{"too few in a slot", []countChange{{a, tally{accepted: -5}}}, -5, []RecountSlot{{1, quarter, 4, 9}}},
		{"none in a slot with hits", []countChange{{a, tally{accepted: -9}}}, -9, []RecountSlot{{1, quarter, 0, 9}}},
		{"less than none", []countChange{{a, tally{delivered: 10}}}, -10, []RecountSlot{{1, quarter, -1, 9}}},
		{"hits in a slot without", []countChange{{empty, tally{accepted: 2}}}, 2, []RecountSlot{{3, elsewhere, 2, 0}}},
		{"a delivery that was not counted", []countChange{{empty, tally{delivered: -1}}}, 1, []RecountSlot{{3, elsewhere, 1, 0}}},
		{"hits of one site with another", []countChange{{a, tally{accepted: -3}}, {b, tally{accepted: 3}}}, 0,
			[]RecountSlot{{1, quarter, 6, 9}, {2, quarter, 12, 9}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			q := openRow(t, dir, Keys{})
			for i := range 6 {
				set := aSet(i*3, 3, int64(1+i%2))
				for j := range set.Hits {
					set.Hits[j].At = quarter * quarterSeconds
				}
				mustAppend(t, q, set)
			}
			agree(t, q, 18)
			miscount(t, q, tt.by...)
			if d := q.Stats().Difference; d != tt.difference {
				t.Errorf("before: Difference = %d, want %d", d, tt.difference)
			}
			got := mustRecount(t, q)
			slices.SortFunc(got.Slots, func(x, y RecountSlot) int { return cmp.Compare(x.Site, y.Site) })
			if got.Hits != 18 || got.Unreadable != 0 || !slices.Equal(got.Slots, tt.want) {
				t.Errorf("Recount = %+v, want 18 hits and %+v", got, tt.want)
			}
			for _, when := range []string{"after it", "after a restart"} {
				if s := q.Stats(); s.Difference != 0 || s.Pending != 18 {
					t.Errorf("%s: Difference = %d, Pending = %d, want 0 and 18", when, s.Difference, s.Pending)
				}
				agree(t, q, 18)
				if err := q.Close(); err != nil {
					t.Fatal(err)
				}
				q = openRow(t, dir, Keys{})
			}
		})
	}
}

// TestRecountPutsManySlotsRight: more than one transaction takes. A larger one would end
// the queue.
func TestRecountPutsManySlotsRight(t *testing.T) {
	q := openRow(t, t.TempDir(), Keys{})
	mustAppend(t, q, aSet(0, 3, 1))
	const wrong, each, sites = 240_000, 20_000, 4_000
	for i := range wrong / each {
		var list []countChange
		for j := range each {
			n := i*each + j
			list = append(list, countChange{counterKey{int64(1 + n%sites), int64(1e12 + n/sites)}, tally{accepted: 1}})
		}
		miscount(t, q, list...)
	}
	if got := mustRecount(t, q); len(got.Slots) != wrong {
		t.Errorf("%d slots differ, want %d", len(got.Slots), wrong)
	}
	agree(t, q, 3)
	if s := q.Stats(); s.Difference != 0 {
		t.Errorf("Difference = %d, want 0", s.Difference)
	}
}

// TestRecountKeepsWhatIsLost: the hits of a block that cannot be read stay counted, so
// that no day that they may belong to becomes complete: while the block waits, when
// the drain has passed it over, and after a restart. What is counted too few is put
// right all the same.
func TestRecountKeepsWhatIsLost(t *testing.T) {
	r := newRand(t)
	const blocks, bad = 12, 5
	dir := closedStore(t, r, blocks)
	p := placesOf(t, theShelf(t, dir), prefixBlock)[bad-1]
	flipBit(t, filepath.Join(theShelf(t, dir), filepath.Base(p.file)), int64(p.off+len(p.value)/2), 3)
	site := countedSite(int64((bad-1)*hitsPerBlock%3 + 1)) // as noiseSet has it
	q, _ := openDamaged(t, dir)

	lost := func(when string, hits int64) {
		t.Helper()
		for range 2 { // the second one finds what the first has left
			got := mustRecount(t, q)
			tooMany := int64(0)
			for _, s := range got.Slots {
				if s.Site != site || s.Counted <= s.Found {
					t.Errorf("%s: slot %+v is reported, want those of site %d with lost hits", when, s, site)
				}
				tooMany += s.Counted - s.Found
			}
			if got.Hits != hits || got.Unreadable != hitsPerBlock || tooMany != hitsPerBlock {
				t.Errorf("%s: Recount = %+v, want %d hits and %d unreadable", when, got, hits, hitsPerBlock)
			}
		}
		if n := q.PendingOf(site); n < hitsPerBlock {
			t.Errorf("%s: %d hits of site %d are pending, want the lost ones at least", when, n, site)
		}
	}
	lost("while the block waits", (blocks-1)*hitsPerBlock)

	miscount(t, q, countChange{counterKey{7, 5}, tally{accepted: -2}})
	if got := mustRecount(t, q); !slices.Contains(got.Slots, RecountSlot{7, 5, -2, 0}) {
		t.Errorf("Recount = %+v, want the slot that was counted too few", got)
	}
	lost("with another slot put right", (blocks-1)*hitsPerBlock)

	hits := leaseRest(t, q)
	lost("when the drain has found it", (blocks-1)*hitsPerBlock)
	if err := q.Settle(0, settleAs(hits, hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	lost("when the drain has passed it over", 0)
	if s := q.Stats(); s.DamagedBlocks != 1 || s.Difference != hitsPerBlock || s.Pending != hitsPerBlock {
		t.Errorf("Stats = %+v, want 1 damaged block and a difference of %d", s, hitsPerBlock)
	}
	mustAppend(t, q, aSet(1000, 4, 9))
	lost("with new hits", 4)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q, _ = openDamaged(t, dir)
	lost("after a restart", 4)
	if got := q.Unsettled(); !slices.ContainsFunc(got, func(c Counter) bool { return c.Site == site }) {
		t.Errorf("Unsettled = %+v, want the lost hits of site %d", got, site)
	}
}

// stepContext calls step before each block that is read, and counts.
type stepContext struct {
	context.Context
	step func(n int)
	n    int
}

func (c *stepContext) Err() error {
	c.n++
	c.step(c.n)
	return c.Context.Err()
}

// fillShelves appends until there are so many shelves, and gives how many hits.
func fillShelves(t testing.TB, q *Queue, r *rand.Rand, shelves int64) (hits int) {
	t.Helper()
	for q.Stats().Shelves < shelves {
		mustAppend(t, q, spread(r, noiseSet(r, hits, 5)))
		flush(t, q)
		hits += 5
	}
	return hits
}

// waitForShelves waits until drained shelves are removed; nothing else is done meanwhile.
func waitForShelves(t testing.TB, q *Queue, want int64) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); q.Stats().Shelves > want; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%d shelves are left, want %d", q.Stats().Shelves, want)
		}
	}
}

// TestRecountReadsDrainedShelves: what is drained in the middle of a recount stays on
// the disk until it has been read, and goes then.
func TestRecountReadsDrainedShelves(t *testing.T) {
	r := newRand(t)
	q := openRow(t, t.TempDir(), Keys{})
	hits := fillShelves(t, q, r, 4)
	all := leaseRest(t, q)
	settleSome(t, q, all, 7)
	want := q.Stats().Pending
	ctx := &stepContext{Context: t.Context(), step: func(n int) {
		if n != 2 {
			return
		}
		var rest []hit.Settlement
		for i := range all {
			if i%7 != 0 {
				rest = append(rest, hit.Settlement{ID: all[i].ID, As: hit.Delivered})
			}
		}
		if err := q.Settle(0, rest); err != nil {
			t.Error(err)
		}
		for range 3 { // each time drained shelves would be removed
			mustAppend(t, q, aSet(hits, 1, 1))
			flush(t, q)
		}
		if s := q.Stats(); s.Pending != 3 || s.Shelves < 4 {
			t.Errorf("in the middle: %d hits pending on %d shelves, want 3 on 4", s.Pending, s.Shelves)
		}
	}}
	got, err := q.Recount(ctx)
	if err != nil || got.Hits != want || got.Unreadable != 0 || len(got.Slots) != 0 {
		t.Errorf("Recount = %+v, %v, want %d hits and nothing else", got, err, want)
	}
	if ctx.n < 2 {
		t.Fatal("nothing happened in the middle")
	}
	waitForShelves(t, q, 1)
	agree(t, q, 3)
}

// TestFrozenShelvesStay: what is frozen is on the disk until the thaw, and goes then by
// itself.
func TestFrozenShelvesStay(t *testing.T) {
	r := newRand(t)
	q := openRow(t, t.TempDir(), Keys{})
	hits := fillShelves(t, q, r, 4)
	first, second := q.live.freeze(), q.live.freeze()
	if err := q.Settle(0, settleAs(leaseRest(t, q), hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, q, aSet(hits, 1, 1))
	for _, f := range []*frozen{first, second} {
		for range 3 { // each time drained shelves would be removed
			flush(t, q)
		}
		if n := q.Stats().Shelves; n < 4 {
			t.Errorf("%d shelves are left, want 4", n)
		}
		f.thaw()
	}
	waitForShelves(t, q, 1)
}

// TestRecountEndsWithItsContext, with its error, nothing changed, and no shelf kept.
func TestRecountEndsWithItsContext(t *testing.T) {
	r := newRand(t)
	q := openRow(t, t.TempDir(), Keys{})
	hits := fillShelves(t, q, r, 4)
	miscount(t, q, countChange{counterKey{1, 5}, tally{accepted: 2}})
	for _, at := range []int{1, 3, hits / 5} {
		inner, cancel := context.WithCancel(t.Context())
		ctx := &stepContext{Context: inner, step: func(n int) {
			if n == at {
				cancel()
			}
		}}
		if got, err := q.Recount(ctx); !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "recount: ") || got.Hits != 0 {
			t.Errorf("cancelled at block %d: %+v, %v, want context.Canceled", at, got, err)
		}
		cancel()
	}
	if d := q.Stats().Difference; d != 2 {
		t.Errorf("Difference = %d, want 2 as before", d)
	}
	if got := mustRecount(t, q); len(got.Slots) != 1 {
		t.Errorf("Recount = %+v, want the slot that is wrong", got)
	}
	if err := q.Settle(0, settleAs(leaseRest(t, q), hit.Delivered)); err != nil {
		t.Fatal(err)
	}
	flush(t, q)
	waitForShelves(t, q, 1)
}

// TestRecountHoldsNobodyUp: a shelf that is being closed or recovered, which takes
// seconds on a slow disk, keeps a recount waiting and no hit.
func TestRecountHoldsNobodyUp(t *testing.T) {
	r := newRand(t)
	q := openRow(t, t.TempDir(), Keys{})
	hits := fillShelves(t, q, r, 3)
	q.live.mu.Lock()
	busy := q.live.shelves[1]
	q.live.mu.Unlock()
	busy.mu.Lock()
	recounted := make(chan error, 1)
	go func() { // ends when the shelf is let go
		got, err := q.Recount(t.Context())
		if err == nil && (len(got.Slots) != 0 || got.Unreadable != 0 || got.Hits < int64(hits)) {
			err = fmt.Errorf("%+v, want %d hits", got, hits)
		}
		recounted <- err
	}()
	appended := make(chan error, 1)
	go func() { // ends when it is not held up, or the shelf is let go
		for range 20 {
			if err := q.Append(t.Context(), spread(r, noiseSet(r, hits, 5))); err != nil {
				appended <- err
				return
			}
		}
		appended <- nil
	}()
	select {
	case err := <-appended:
		if err != nil {
			t.Error(err)
		}
		appended <- nil
	case <-time.After(10 * time.Second):
		t.Error("hits are not accepted while a recount waits for a shelf")
	}
	busy.mu.Unlock()
	if err := <-recounted; err != nil {
		t.Errorf("Recount: %v", err)
	}
	<-appended
}

// TestRecountOfAQueueThatHasFailed gives the reason, and no half result.
func TestRecountOfAQueueThatHasFailed(t *testing.T) {
	o := testOptions(t, t.TempDir())
	o.Metrics = metrics.NewSet()
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() }) // it has failed on purpose
	mustAppend(t, q, aSet(0, 3, 1))
	miscount(t, q, countChange{counterKey{1, 5}, tally{accepted: 2}})
	q.live.mark(errors.New("the disk is gone"))
	if _, err := q.Recount(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("Recount = %v, want ErrStopped", err)
	}
}
