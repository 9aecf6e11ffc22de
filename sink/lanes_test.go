package sink

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"sluice/internal/hit"
)

func laneItem(site int64, g group) *item {
	it := &item{group: g, element: []byte(`"?x=1"`)}
	it.Site, it.Environment, it.At = site, &hit.Environment{}, 1000
	it.ReceivedAt = 1000 * int64(time.Second)
	it.marks = findMarks(it, 0)
	return it
}

func allLanes(l *lanes) (out []*lane) {
	for _, s := range l.bySite {
		for _, ln := range s.lanes {
			out = append(out, ln)
		}
		if s.whole != nil && s.whole.pending > 0 {
			out = append(out, s.whole)
		}
	}
	return out
}

func sitesOf(batch []*item) (out string) {
	for _, it := range batch {
		out += fmt.Sprintf("%d/%d ", it.Site, it.seq)
	}
	return out
}

func TestLanesTake(t *testing.T) {
	now := time.Unix(1000, 0)
	dnt := group{doNotTrack: true}
	tests := []struct {
		name  string
		items []*item
		limit size
		want  []string // batches taken without releasing any
	}{
		{"mixes sites in the order of arrival", []*item{laneItem(1, group{}), laneItem(2, group{}), laneItem(1, group{}), laneItem(3, group{})}, size{10, 1 << 20},
			[]string{"1/1 2/2 1/3 3/4 "}},
		{"stops at the limit and leaves the lanes busy", []*item{laneItem(1, group{}), laneItem(1, group{}), laneItem(2, group{}), laneItem(1, group{}), laneItem(2, group{})}, size{2, 1 << 20},
			[]string{"1/1 1/2 ", "2/3 2/5 "}},
		{"keeps groups apart", []*item{laneItem(1, group{}), laneItem(1, dnt), laneItem(2, dnt), laneItem(3, group{}), laneItem(2, group{})}, size{10, 1 << 20},
			[]string{"1/1 3/4 ", "2/3 "}},
		{"stops at the bytes", []*item{laneItem(1, group{}), laneItem(2, group{}), laneItem(3, group{})}, size{10, envelopeOverhead + 15},
			[]string{"1/1 2/2 ", "3/3 "}},
		{"lets a large hit go alone", []*item{laneItem(1, group{}), laneItem(2, group{})}, size{10, 1},
			[]string{"1/1 ", "2/2 "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLanes()
			for _, it := range tt.items {
				l.add(it, now, now.Unix())
			}
			for _, want := range append(tt.want, "") {
				if got := sitesOf(l.take(tt.limit, now, now.Unix())); got != want {
					t.Errorf("took %q, want %q", got, want)
				}
			}
		})
	}
}

func TestLanesSendSuspiciousHitsAlone(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLanes()
	for i, alone := range []bool{false, false, true, false, true, true} {
		it := laneItem(int64(1+i%2), group{})
		it.alone = alone
		l.add(it, now, now.Unix())
	}
	// Site 1 has hits 1, 3 (alone), 5 (alone); site 2 has 2, 4, 6 (alone).
	for _, want := range []string{"1/1 2/2 2/4 ", "1/3 ", "1/5 ", "2/6 ", ""} {
		batch := l.take(size{10, 1 << 20}, now, now.Unix())
		if got := sitesOf(batch); got != want {
			t.Errorf("took %q, want %q", got, want)
		}
		for _, it := range batch {
			it.settled = true
		}
		l.release(batch, now, now.Unix())
	}
	if n := len(allLanes(l)); n != 0 || l.hits != 0 || l.bytes != 0 {
		t.Errorf("%d lanes, %d hits, %d bytes are left, want none", n, l.hits, l.bytes)
	}
}

// TestLanesKeepOrder drives random batches that end in random ways: no two
// batches in flight share a site, and every site's hits are settled in order.
func TestLanesKeepOrder(t *testing.T) {
	seed := rand.Uint64()
	if *seedFlag != 0 {
		seed = *seedFlag
	}
	t.Logf("seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	now := time.Unix(1000, 0)
	l := newLanes()
	var flying [][]*item
	last := map[int64]uint64{}
	added, settled := 0, 0
	for step := range 20000 {
		if added < 5000 || step < 15000 && rng.IntN(3) == 0 {
			g := group{doNotTrack: rng.IntN(10) == 0}
			if rng.IntN(20) == 0 {
				g = group{theirs: true, token: fmt.Sprint(rng.IntN(3))}
			}
			it := laneItem(int64(rng.IntN(30)), g)
			it.alone = rng.IntN(50) == 0
			it.doubt = rng.IntN(100) == 0
			it.At = now.Unix() + int64(rng.IntN(4)) - 2
			l.add(it, now, now.Unix())
			added++
			if it.doubt && rng.IntN(2) == 0 {
				l.cleared([]*item{it}, now, now.Unix())
			}
		}
		if rng.IntN(2) == 0 && len(flying) < 8 {
			if batch := l.take(size{1 + rng.IntN(40), 1 << 20}, now, now.Unix()); batch != nil {
				flying = append(flying, batch)
				busy := map[int64]int{}
				for i, f := range flying {
					for _, it := range f {
						if other, taken := busy[it.Site]; taken && other != i {
							t.Fatalf("site %d is in two batches", it.Site)
						}
						busy[it.Site] = i
					}
				}
				for _, it := range batch {
					if it.doubt || it.At > now.Unix() || it.group != batch[0].group || it.alone && len(batch) > 1 {
						t.Fatalf("a hit is taken that must not be: %+v", it)
					}
				}
			}
		}
		if len(flying) > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(len(flying))
			batch := flying[i]
			flying = append(flying[:i], flying[i+1:]...)
			n := rng.IntN(len(batch) + 1) // a prefix is settled
			for _, it := range batch[:n] {
				if it.seq <= last[it.Site] {
					t.Fatalf("site %d: hit %d is settled after %d", it.Site, it.seq, last[it.Site])
				}
				last[it.Site] = it.seq
				it.settled = true
				settled++
			}
			l.release(batch, now, now.Unix())
		}
		if rng.IntN(10) == 0 {
			now = now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
			l.wake(now, now.Unix())
			for _, ln := range allLanes(l) {
				if head := ln.items[0]; head.doubt && ln.busy == 0 && rng.IntN(2) == 0 {
					l.cleared([]*item{head}, now, now.Unix())
				}
			}
		}
	}
	if l.hits != added-settled {
		t.Errorf("%d hits are counted, want %d", l.hits, added-settled)
	}
	if settled < 1000 {
		t.Errorf("only %d of %d hits were settled: the test does not reach what it should", settled, added)
	}
}
