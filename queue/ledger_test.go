package queue

import (
	"maps"
	"runtime"
	"slices"
	"testing"
)

// A ledgerModel is what a ledger must be like: one map.
type ledgerModel struct {
	slots    map[counterKey]tally
	folded   map[int64]tally
	foldedTo map[int64]int64
}

// later reports whether a slot at or behind a quarter was let go.
func (m *ledgerModel) later(site, quarter int64) bool { return m.foldedTo[site] > quarter }

func (m *ledgerModel) add(k counterKey, by tally) {
	if t := m.slots[k].plus(by); t != (tally{}) {
		m.slots[k] = t
	} else {
		delete(m.slots, k)
	}
}

func (m *ledgerModel) fold(k counterKey) {
	if m.slots[k] != (tally{}) {
		m.foldedTo[k.site] = max(m.foldedTo[k.site], k.quarter+1)
	}
	m.folded[k.site] = m.folded[k.site].plus(m.slots[k])
	delete(m.slots, k)
}

func TestLedgerIsLikeAMap(t *testing.T) {
	oneCaller(t)
	rng := newRand(t)
	for round := range 60 {
		l, m := newLedger(), &ledgerModel{map[counterKey]tally{}, map[int64]tally{}, map[int64]int64{}}
		for step := range 400 {
			k := counterKey{rng.Int64N(4), rng.Int64N(200) - 20}
			switch rng.IntN(10) {
			default:
				by := tally{accepted: rng.Int64N(3)}
				m.add(k, by)
				l.add(k, by)
			case 4, 5, 6, 7:
				// Everything of the slot is delivered, as is usual.
				by := tally{delivered: m.slots[k].pending()}
				m.add(k, by)
				l.add(k, by)
			case 8:
				by := tally{rng.Int64N(5) - 2, rng.Int64N(3) - 1, rng.Int64N(2), rng.Int64N(3) - 1}
				m.add(k, by)
				l.add(k, by)
			case 9:
				switch rng.IntN(4) {
				case 0:
					l.pack(rng.Int64N(200))
				case 1:
					m.fold(k)
					l.fold(k)
				case 2:
					l = againLedger(t, l)
				case 3:
					for _, k := range l.settledOld(rng.Int64N(60), 5, 50+rng.IntN(200)) {
						if m.slots[k].pending() != 0 || m.slots[k] == (tally{}) {
							t.Fatalf("round %d, step %d: slot %v is to be let go with %+v", round, step, k, m.slots[k])
						}
						m.fold(k)
						l.fold(k)
					}
				}
			}
			checkLedger(t, l, m)
			if t.Failed() {
				t.Fatalf("round %d, step %d", round, step)
			}
		}
	}
}

// againLedger writes a ledger into a snapshot and reads it.
func againLedger(t *testing.T, l *ledger) *ledger {
	t.Helper()
	s := newState()
	s.counters = l
	again, err := decodeSnapshot(encodeSnapshot(s))
	if err != nil {
		t.Fatal(err)
	}
	return again.counters
}

func checkLedger(t *testing.T, l *ledger, m *ledgerModel) {
	t.Helper()
	if got := maps.Collect(l.all()); !maps.Equal(got, m.slots) {
		t.Errorf("slots %v, want %v", got, m.slots)
	}
	if l.slots != len(m.slots) {
		t.Errorf("%d slots counted, want %d", l.slots, len(m.slots))
	}
	unsettled := 0
	for k, want := range m.slots {
		if got := l.get(k); got != want {
			t.Errorf("slot %v is %+v, want %+v", k, got, want)
		}
		if want.pending() != 0 {
			unsettled++
		}
	}
	if got := l.unsettled(); len(got) != unsettled {
		t.Errorf("%d unsettled slots, want %d", len(got), unsettled)
	}
	for site := range int64(4) {
		var within, all, pending tally
		all = m.folded[site]
		for k, s := range m.slots {
			if k.site != site {
				continue
			}
			pending = pending.plus(s)
			if k.quarter < 120 {
				all = all.plus(s)
				if k.quarter >= 60 {
					within = within.plus(s)
				}
			}
		}
		if w, a, exact := l.sums(site, 60, 120); w != within || exact && a != all || a.pending() != all.pending() || !exact && !m.later(site, 120) {
			t.Errorf("site %d sums %+v and %+v, want %+v and %+v", site, w, a, within, all)
		}
		if got := l.pendingOf(site); got != pending.pending() {
			t.Errorf("site %d has %d pending, want %d", site, got, pending.pending())
		}
	}
}

// Two days of ten thousand sites with hits in every quarter hour.
func TestLedgerOfManySitesIsSmall(t *testing.T) {
	oneCaller(t)
	before := heapInUse()
	l := newLedger()
	const sites, quarters = 10_000, 2 * quartersPerDay
	for q := range int64(quarters) {
		for site := range int64(sites) {
			l.add(counterKey{site + 1, 1_980_000 + q}, tally{accepted: 300 + q, delivered: 300 + q})
		}
		if q%4 == 0 {
			l.pack(1_980_000 + q - 2)
		}
	}
	used := heapInUse() - before
	t.Logf("%d slots in %.1f MiB", l.slots, float64(used)/(1<<20))
	if l.slots != sites*quarters {
		t.Fatalf("%d slots, want %d", l.slots, sites*quarters)
	}
	if used > 50<<20 {
		t.Errorf("the counters take %d MiB, want less than 50", used>>20)
	}
	s := newState()
	s.counters = l
	size := len(encodeSnapshot(s))
	t.Logf("snapshot of %.1f MiB", float64(size)/(1<<20))
	if size > 10<<20 {
		t.Errorf("a snapshot takes %d MiB, want less than 10", size>>20)
	}
	if old := l.settledOld(0, 100, sites*quartersPerDay); len(old) != 100 || slices.ContainsFunc(old, func(k counterKey) bool { return k.quarter >= 1_980_000+quartersPerDay }) {
		t.Errorf("%d slots are to be let go, %v, want 100 of the first day", len(old), old[:min(3, len(old))])
	}
	runtime.KeepAlive(l)
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
