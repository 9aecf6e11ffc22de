package sink

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// TestBlockedLaneHoldsNobodyUp: what stands behind hits in doubt, for ever by
// policy, is a multiple of what fits into memory; others go through all the same, and
// what is parked keeps its order when the doubt ends.
func TestBlockedLaneHoldsNobodyUp(t *testing.T) {
	for _, blockers := range []int{1, 40} {
		t.Run(fmt.Sprint(blockers, " lanes"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testkit.NewMatomo(testkit.MatomoConfig{})
				defer m.Close()
				src := newSource(t)
				cfg := bubbleConfig()
				cfg.OnUnknown, cfg.AheadHits = Hold, 1000
				of := func(visitor int, mark string) hit.Pending {
					p := hitOf(1, mark)
					p.Environment = &hit.Environment{ClientIP: fmt.Sprintf("10.%d.0.1", visitor), UserAgent: browser}
					return p
				}
				for v := range blockers {
					p := of(v, fmt.Sprint("doubt", v))
					p.Uncertain = 9
					src.add(p)
				}
				for i := range 8000 {
					src.add(of(i%blockers, fmt.Sprint("behind", i)))
				}
				var others []string
				for i := range 500 {
					others = append(others, fmt.Sprint("other", i))
					src.add(of(100+i%50, others[i]))
				}
				b := startBubble(t, m, cfg, src)
				src.waitSettled(within(t, time.Minute), 500)
				m.CheckOnce(t, others)
				time.Sleep(time.Second)
				synctest.Wait()
				if fig := b.shown.read(); fig.leased > cfg.AheadHits || fig.parked < 7000 {
					t.Errorf("%d hits in memory, %d parked", fig.leased, fig.parked)
				}
				b.stop(t)
				synctest.Wait()
			})
		})
	}
}

// TestHotVisitorLeavesRoom: a visitor with four fifths of all hits, of which one
// batch at a time may fly, takes no more than its share.
func TestHotVisitorLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.NewMatomo(testkit.MatomoConfig{})
		defer m.Close()
		m.SetLatency(100*time.Millisecond, time.Millisecond)
		src := newSource(t)
		cfg := bubbleConfig()
		cfg.AheadHits = 2000
		hot := 0
		done := map[hit.ID]bool{}
		for i := range 10000 {
			visitor := 0
			if i%5 == 4 {
				visitor = 1 + i%500
			}
			p := hitOf(1, fmt.Sprint("m", i))
			p.Environment = &hit.Environment{ClientIP: fmt.Sprintf("10.%d.%d.1", visitor/250, visitor%250), UserAgent: browser}
			id := src.add(p)[0]
			if done[id] = visitor == 0; done[id] {
				hot++
			}
		}
		b := startBubble(t, m, cfg, src)
		src.waitSettled(within(t, time.Hour), 5000)
		others := 0
		for _, id := range src.settledIDs()[:5000] {
			if !done[id] {
				others++
			}
		}
		if others < 900 {
			t.Errorf("%d of the first 5000 settled hits are others', want about a fifth", others)
		}
		src.waitSettled(within(t, time.Hour), 10000)
		b.stop(t)
		synctest.Wait()
	})
}

// TestParkedHitsThatAreLost stay out of the way: the source cannot read some of them.
func TestParkedHitsThatAreLost(t *testing.T) {
	l := newLaneLab(t)
	l.share, l.parkedMost = 1, 100
	var items []*item
	head := l.add(0, "10.0.0.1", "")
	l.hold(head, l.now().Add(time.Minute), l.now(), l.stream)
	for range 5 {
		items = append(items, l.add(0, "10.0.0.1", ""))
	}
	if l.parked != 5 || l.hits != 1 {
		t.Fatalf("%d parked, %d in memory, want 5 and 1", l.parked, l.hits)
	}
	l.hold(head, l.now(), l.now(), l.stream)
	l.settle(head)
	r := l.reread()
	if r == nil || len(r.hits) != 5 {
		t.Fatalf("asked for %+v, want 5 hits", r)
	}
	for i, it := range items {
		if i != 2 {
			it.away = false
			it.restore(&r.hits[i])
			r.items = append(r.items, it)
		}
	}
	if _, _, lost := l.reclaim(r, l.now(), l.stream); lost != 1 {
		t.Errorf("%d hits are lost, want 1", lost)
	}
	for _, want := range []uint64{2, 3, 5, 6} {
		batch := l.take(size{1, 1 << 20}, l.now(), l.stream)
		if len(batch) != 1 || batch[0].seq != want {
			t.Fatalf("took %v, want hit %d", sitesOf(batch), want)
		}
		batch[0].settled = true
		l.release(batch, l.now(), l.stream)
	}
	if n := len(allLanes(l.lanes)); n != 0 || l.parked != 0 || l.hits != 0 {
		t.Errorf("%d lanes, %d parked, %d hits are left", n, l.parked, l.hits)
	}
}
