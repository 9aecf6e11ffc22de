package queue

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/internal/hit"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

// newRand gives a generator whose seed is in the log.
func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// model is the queue as a list in memory.
type model struct {
	live    []string // names of hits in the order of arrival, requeued ones again at the end
	imports []*modelImport
	at      map[string]int64 // when each was received
	pending map[string]bool
	dead    map[string]bool
	total   tally
	sites   map[int64]*tally
	leased  map[string]hit.Pending
	open    map[uint64][]string // journalled batches
	doubt   map[string]uint64   // batch in which a hit was left at the last restart
	memos   map[uint64]string   // by batch
}

// A modelImport is an import: its hits are leased among the live ones once it is complete.
type modelImport struct {
	id       string
	names    []string
	complete bool
}

func (m *model) count(site int64, by tally) {
	if m.sites[site] == nil {
		m.sites[site] = &tally{}
	}
	*m.sites[site] = m.sites[site].plus(by)
	m.total = m.total.plus(by)
}

// TestQueueBehavesLikeItsModel drives a queue and a model of it with the same
// random calls, restarts included, and compares them throughout. Shelves are
// tiny, so that every run rotates and removes many. Half of the rounds change the
// key at every restart, and have no key that is not asked for.
func TestQueueBehavesLikeItsModel(t *testing.T) {
	steps := 300
	if testing.Short() {
		steps = 100
	}
	for round := range 4 {
		t.Run(fmt.Sprint("round=", round), func(t *testing.T) {
			t.Parallel()
			r := newRand(t)
			keys := func(string) Keys { return Keys{} }
			if round%2 == 1 {
				keys = func(dir string) Keys { return neededKeys(t, r, dir) }
			}
			runModel(t, r, t.TempDir(), keys, steps)
		})
	}
}

// neededKeys gives a random key to encrypt with, or none, and those without which
// the queue cannot be read.
func neededKeys(t *testing.T, r *rand.Rand, dir string) Keys {
	t.Helper()
	first := byte(r.IntN(4))
	var names []byte
	if first > 0 {
		names = append(names, first)
	}
	for name := byte(1); name < 4; name++ {
		others := slices.DeleteFunc([]byte{1, 2, 3}, func(n byte) bool { return n == name })
		if CheckKeys(dir, testKeys(others...)) != nil && name != first {
			names = append(names, name)
		}
	}
	return testKeys(names...)
}

func openSmall(t *testing.T, dir string, keys func(string) Keys) *Queue {
	t.Helper()
	o := testOptions(t, dir)
	o.Keys = keys(dir)
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	q.live.mu.Lock()
	q.live.limits = shelfLimits{bytes: 20 << 10, idle: 4 << 10, age: time.Hour}
	q.live.mu.Unlock()
	return q
}

func runModel(t *testing.T, r *rand.Rand, dir string, keys func(string) Keys, steps int) {
	m := &model{at: map[string]int64{}, pending: map[string]bool{}, dead: map[string]bool{}, sites: map[int64]*tally{},
		leased: map[string]hit.Pending{}, open: map[uint64][]string{}, doubt: map[string]uint64{}, memos: map[uint64]string{}}
	q := openSmall(t, dir, keys)
	defer func() { verifyAndClose(t, q) }()
	next := 0
	for step := range steps {
		switch k := r.IntN(100); {
		case k < 40:
			n, site := 1+r.IntN(40), int64(1+r.IntN(4))
			set := aSet(next, n, site)
			mustAppend(t, q, set)
			m.live = append(m.live, m.took(set)...)
			next += n
		case k < 60:
			m.lease(t, q, 1+r.IntN(60))
		case k < 70:
			m.journal(t, q, r)
		case k < 90:
			m.settle(t, q, r)
		case k < 93:
			m.requeue(t, q, r)
		case k < 97:
			next += m.importSome(t, q, r, next)
		default:
			if err := q.Close(); err != nil {
				t.Fatalf("step %d: Close: %v", step, err)
			}
			q = openSmall(t, dir, keys)
			m.restart()
		}
		if t.Failed() {
			t.Fatalf("at step %d", step)
		}
	}
	flush(t, q)
	m.check(t, q)
}

func nameOf(p *hit.Pending) string {
	var site, n int
	fmt.Sscanf(string(p.Params), "idsite=%d&rec=1&n=%d", &site, &n)
	return fmt.Sprintf("%d/%d", site, n)
}

// lease takes what is there and checks that it is the oldest that is pending and
// not leased.
func (m *model) lease(t *testing.T, q *Queue, limit int) {
	want := m.toLease()
	if len(want) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := q.Lease(ctx, limit)
	if err != nil {
		t.Errorf("Lease: %v", err)
		return
	}
	for i := range got {
		name := nameOf(&got[i])
		if i >= len(want) || name != want[i] {
			t.Errorf("leased %s at place %d, want %s", name, i, want[min(i, len(want)-1)])
			return
		}
		if got[i].Uncertain != m.doubt[name] {
			t.Errorf("%s: Uncertain = %d, want %d", name, got[i].Uncertain, m.doubt[name])
		}
		m.leased[name] = got[i]
	}
}

// took notes the hits of a set and gives their names.
func (m *model) took(set *hit.RequestSet) (names []string) {
	for i := range set.Hits {
		name := nameOf(&hit.Pending{Hit: set.Hits[i]})
		names = append(names, name)
		m.pending[name], m.at[name] = true, set.ReceivedAt
	}
	m.count(set.Hits[0].Site, tally{accepted: int64(len(names))})
	return names
}

// importSome begins an import, or goes on with the one that is open. It gives how many
// hits it took.
func (m *model) importSome(t *testing.T, q *Queue, r *rand.Rand, next int) (took int) {
	n := len(m.imports) - 1
	if n < 0 || m.imports[n].complete {
		i, err := q.BeginImport("model", time.Unix(0, 0), time.Now())
		if err != nil {
			t.Errorf("BeginImport: %v", err)
			return 0
		}
		m.imports = append(m.imports, &modelImport{id: i.ID})
		n++
	}
	i := m.imports[n]
	switch r.IntN(6) {
	case 0:
		if _, err := q.CompleteImport(t.Context(), i.id, true, nil); err != nil {
			t.Errorf("CompleteImport: %v", err)
		}
		i.complete = true
	case 1:
		if err := q.CancelImport(i.id); err != nil {
			t.Errorf("CancelImport: %v", err)
		}
		for _, name := range i.names {
			var site int64
			fmt.Sscanf(name, "%d/", &site)
			m.count(site, tally{accepted: -1})
			delete(m.pending, name)
		}
		m.imports = m.imports[:n]
	default:
		var sets []*hit.RequestSet
		at := time.Now().Add(-time.Duration(r.IntN(100)) * time.Millisecond).UnixNano()
		if len(i.names) > 0 {
			at = max(at, m.at[i.names[len(i.names)-1]])
		}
		for range 1 + r.IntN(5) {
			set := aSet(next+took, 1+r.IntN(20), int64(1+r.IntN(4)))
			set.ReceivedAt = at
			at += int64(r.IntN(int(5 * time.Millisecond)))
			took += len(set.Hits)
			sets = append(sets, set)
		}
		if err := q.AppendImport(t.Context(), i.id, sets, nil); err != nil {
			t.Errorf("AppendImport: %v", err)
		}
		for _, set := range sets {
			i.names = append(i.names, m.took(set)...)
		}
	}
	return took
}

// toLease gives what is pending and not leased, in the order in which it is to come: of
// each stream in its order, and of streams the one whose next hit is the oldest.
func (m *model) toLease() (out []string) {
	var lists [][]string
	for _, i := range m.imports {
		if i.complete {
			lists = append(lists, i.names)
		}
	}
	lists = append(lists, m.live)
	for i, names := range lists {
		lists[i] = nil
		for at, name := range names {
			// A requeued hit is a live one.
			again := i < len(lists)-1 && slices.Contains(m.live, name) || lastIndex(names, name) != at
			if m.pending[name] && m.leased[name].ID.Block == 0 && !again {
				lists[i] = append(lists[i], name)
			}
		}
	}
	for {
		next := -1
		for i, names := range lists {
			if len(names) > 0 && (next < 0 || m.at[names[0]] < m.at[lists[next][0]]) {
				next = i
			}
		}
		if next < 0 {
			return out
		}
		out = append(out, lists[next][0])
		lists[next] = lists[next][1:]
	}
}

func lastIndex(list []string, name string) int {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] == name {
			return i
		}
	}
	return -1
}

// pick gives leased, pending hits in a stable order.
func (m *model) pick(r *rand.Rand, most int) []string {
	var names []string
	for _, n := range slices.Sorted(maps.Keys(m.leased)) {
		if m.pending[n] && r.IntN(2) == 0 && len(names) < most {
			names = append(names, n)
		}
	}
	return names
}

func (m *model) journal(t *testing.T, q *Queue, r *rand.Rand) {
	inFlight := map[string]bool{}
	for _, names := range m.open {
		for _, n := range names {
			inFlight[n] = true
		}
	}
	names := slices.DeleteFunc(m.pick(r, 30), func(n string) bool { return inFlight[n] })
	if len(names) == 0 {
		return
	}
	var ids []hit.ID
	for _, n := range names {
		ids = append(ids, m.leased[n].ID)
	}
	memo := strings.Repeat(names[0], r.IntN(3))
	batch, err := q.Journal(ids, []byte(memo))
	if err != nil {
		t.Errorf("Journal: %v", err)
	}
	m.open[batch], m.memos[batch] = names, memo
}

func (m *model) settle(t *testing.T, q *Queue, r *rand.Rand) {
	names, batch := m.pick(r, 50), uint64(0)
	if len(m.open) > 0 && r.IntN(3) > 0 {
		keys := slices.Sorted(maps.Keys(m.open))
		batch = keys[r.IntN(len(keys))]
		names = slices.DeleteFunc(slices.Clone(m.open[batch]), func(n string) bool { return m.leased[n].ID.Block == 0 || r.IntN(4) == 0 })
		delete(m.open, batch)
	}
	var list []hit.Settlement
	for _, n := range names {
		p := m.leased[n]
		s := hit.Settlement{ID: p.ID, As: hit.Outcome(r.IntN(3))}
		by := tally{delivered: 1}
		switch s.As {
		case hit.Invalid:
			by = tally{invalid: 1}
		case hit.Dead:
			by = tally{dead: 1}
			s.Reason = "poison"
			m.dead[n] = true
		}
		m.count(p.Site, by)
		delete(m.pending, n)
		delete(m.leased, n)
		list = append(list, s)
	}
	if err := q.Settle(batch, list); err != nil {
		t.Errorf("Settle: %v", err)
	}
}

func (m *model) requeue(t *testing.T, q *Queue, r *rand.Rand) {
	if len(m.dead) == 0 {
		return
	}
	site := int64(1 + r.IntN(4))
	var letters []string
	for l, err := range q.Dead(t.Context(), DeadFilter{Site: &site}) {
		if err != nil {
			t.Error(err)
			return
		}
		letters = append(letters, nameOf(&hit.Pending{Hit: l.Hit}))
	}
	n, err := q.Requeue(t.Context(), DeadFilter{Site: &site})
	if err != nil || n != len(letters) {
		t.Errorf("Requeue = %d, %v, want %d", n, err, len(letters))
	}
	for _, name := range letters {
		if !m.dead[name] {
			t.Errorf("a letter for %s, which is not dead", name)
		}
		delete(m.dead, name)
		delete(m.doubt, name) // the hit has a new id, which no journal knows
		for batch, names := range m.open {
			m.open[batch] = slices.DeleteFunc(names, func(n string) bool { return n == name })
		}
		m.pending[name] = true
		m.live = append(m.live, name)
	}
	m.count(site, tally{dead: -int64(n)})
}

// restart: leases are gone, journalled batches are in doubt.
func (m *model) restart() {
	clear(m.leased)
	for batch, names := range m.open {
		for _, n := range names {
			if m.pending[n] {
				m.doubt[n] = batch
			}
		}
	}
	clear(m.open)
}

func (m *model) check(t *testing.T, q *Queue) {
	s := q.Stats()
	want := Stats{Accepted: m.total.accepted, Delivered: m.total.delivered, Invalid: m.total.invalid, Dead: m.total.dead, Pending: m.total.pending()}
	got := Stats{Accepted: s.Accepted, Delivered: s.Delivered, Invalid: s.Invalid, Dead: s.Dead, Pending: s.Pending}
	if got != want || s.Difference != 0 || s.Pending != int64(len(m.pending)) {
		t.Errorf("Stats = %+v (difference %d), want %+v", got, s.Difference, want)
	}
	sites := map[int64]tally{}
	for _, c := range q.Counters() {
		sites[c.Site] = sites[c.Site].plus(tally{c.Accepted, c.Delivered, c.Invalid, c.Dead})
	}
	for site, w := range m.sites {
		if sites[site] != *w {
			t.Errorf("site %d: %+v, want %+v", site, sites[site], *w)
		}
	}
	named := func(name string, batch uint64) {
		if got := string(q.Memo(batch)); m.pending[name] && got != m.memos[batch] {
			t.Errorf("memo of batch %d is %q, want %q", batch, got, m.memos[batch])
		}
	}
	for name, batch := range m.doubt {
		named(name, batch)
	}
	for batch, names := range m.open {
		for _, name := range names {
			named(name, batch)
		}
	}
	n := 0
	for p, err := range q.Peek(t.Context(), PeekFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if !m.pending[nameOf(&p)] {
			t.Errorf("%s is pending, the model says it is not", nameOf(&p))
		}
		n++
	}
	if n != len(m.pending) {
		t.Errorf("%d hits are pending, the model says %d", n, len(m.pending))
	}
}
