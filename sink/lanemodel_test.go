package sink

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// laneRounds is how many streams one run of the test drains.
const laneRounds = 12

// TestConflictingHitsKeepTheirOrder drains random streams of visitors who roam, hits
// that come late, and hits that cannot be read, through random faults, with little
// memory, and compares with a naive search for conflicts: a hit may leave only when
// every earlier one that it conflicts with is settled or stands before it in the same
// batch. Everything must be settled in the end.
func TestConflictingHitsKeepTheirOrder(t *testing.T) { eachSeed(t, laneRounds, laneModel) }

// A told hit is what the oracle knows about one.
type told struct {
	site     int64
	arrival  int64
	late     bool
	blurred  bool // its ids cannot be read
	keys     []string
	alone    int // how often it was sent alone
	position int
}

// conflict reports whether two hits, i before j, may meet in a visit: they are
// joined by hits that arrived before j and at most an hour before i.
func conflict(all []told, i, j int) bool {
	a, b := &all[i], &all[j]
	if a.site != b.site {
		return false
	}
	if a.late && b.late {
		return true
	}
	reached := map[string]bool{}
	for _, k := range b.keys {
		reached[k] = true
	}
	from := a.arrival - 3600
	for grown := true; grown; {
		grown = false
		for k := j; k >= 0; k-- {
			h := &all[k]
			if h.site != a.site || h.arrival < from && k != i {
				continue
			}
			if h.blurred {
				return true
			}
			if !slices.ContainsFunc(h.keys, func(key string) bool { return reached[key] }) {
				continue
			}
			if k == i {
				return true
			}
			for _, key := range h.keys {
				if !reached[key] {
					reached[key], grown = true, true
				}
			}
		}
	}
	return false
}

func laneModel(t *testing.T, seed uint64) {
	d := &dice{rng: rand.New(rand.NewPCG(seed, 1))}
	m := testkit.NewMatomo(testkit.MatomoConfig{Sites: []testkit.Site{{ID: 1}, {ID: 2}, {ID: 5}}})
	defer m.Close()
	m.Poison(func(h *testkit.Hit) bool { return strings.HasPrefix(h.Mark, "poison") })
	m.Choose(func(x *testkit.Exchange) *testkit.Answer { return d.lie(x) })
	src := newSource(t)
	cfg := bubbleConfig()
	cfg.Lanes, cfg.BatchHits, cfg.AheadHits = 1+d.n(6), 1+d.n(60), 30+d.n(200)
	mask := d.n(3)
	cfg.AddressMask = fmt.Sprint(mask)

	var all []told
	place := map[hit.ID]int{}
	src.watch = func(ids []hit.ID) { // the source's mutex is held
		for n, id := range ids {
			j, ok := place[id]
			if !ok {
				continue
			}
			if len(ids) == 1 {
				all[j].alone++
			}
			var before []int
			lastResort := false // behind a hit that nobody else could clear, order gives way
			for i := range j {
				other := hit.ID{Generation: 1, Block: uint64(all[i].position)}
				if _, done := src.settled[other]; done || all[i].site != all[j].site || slices.Contains(ids[:n], other) {
					continue
				}
				lastResort = lastResort || all[i].alone >= patience
				if conflict(all, i, j) {
					before = append(before, i)
				}
			}
			if len(before) > 0 && !lastResort {
				t.Errorf("hit %d is sent while hit %d is not settled: %+v, %+v", j, before[0], all[j], all[before[0]])
			}
		}
	}
	b := startBubble(t, m, cfg, src)
	want := 0
	const total = 400
	for i := range total {
		h, p := d.visitor(i, mask)
		src.mu.Lock()
		h.position = int(src.next) + 1
		place[hit.ID{Generation: 1, Block: src.next + 1}] = len(all)
		all = append(all, h)
		src.mu.Unlock()
		src.add(p)
		want++
		switch k := d.n(100); {
		case k < 10:
			time.Sleep(time.Duration(d.n(5000)) * time.Millisecond)
		case k < 12:
			time.Sleep(time.Duration(d.n(40)) * time.Minute)
		}
		d.weather(m, b)
	}
	m.SetDatabase(testkit.DatabaseUp)
	b.net.refuse.Store(false)
	deadline := time.Now().Add(48 * time.Hour)
	for n := 0; len(src.settledIDs()) < want && time.Now().Before(deadline); n++ {
		time.Sleep(time.Minute)
		src.add(hitOf(5, fmt.Sprintf("end%d", n)))
		want++
		if n == 20 {
			m.Choose(nil)
		}
	}
	src.waitSettled(within(t, time.Minute), want)
	if n := src.openJournals(); n != 0 {
		t.Errorf("%d journals stay open", n)
	}
	time.Sleep(time.Second)
	synctest.Wait()
	if fig := b.shown.read(); fig.leased != 0 || fig.parked != 0 || fig.uncertain != 0 {
		t.Errorf("%d hits in hand, %d parked, %d in doubt are left", fig.leased, fig.parked, fig.uncertain)
	}
	t.Logf("%d readings of parked hits", src.rereads)
	b.stop(t)
	synctest.Wait()
}

// visitor makes a random hit and what there is to know about it.
func (d *dice) visitor(i, mask int) (told, hit.Pending) {
	site := int64(1 + d.n(2))
	name := fmt.Sprintf("m%d", i)
	if d.percent(1) {
		name = "poison" + name
	}
	p := hitOf(site, name)
	h := told{site: site, arrival: p.ReceivedAt / 1e9}
	who := d.n(12)
	uid := fmt.Sprintf("user %d", who)
	sum := sha1.Sum([]byte(uid))
	id := hex.EncodeToString(sum[:8])
	key := "id " + id
	address := [4]int{10, who % 2, d.n(2), who}
	if d.percent(15) {
		address = [4]int{10, d.n(2), d.n(2), d.n(12)} // roams
	}
	env := &hit.Environment{ClientIP: fmt.Sprintf("%d.%d.%d.%d", address[0], address[1], address[2], address[3]), UserAgent: browser}
	h.keys = append(h.keys, fmt.Sprint("address ", address[:4-mask]))
	p.Environment = env
	var extra string
	switch d.n(7) {
	case 0:
		extra, h.keys = "&uid="+strings.ReplaceAll(uid, " ", "+"), append(h.keys, key)
	case 1:
		extra, h.keys = "&_id="+strings.ToUpper(id), append(h.keys, key)
	case 2:
		extra, h.keys = "&cid="+id, append(h.keys, key)
	case 3:
		env.VisitorCookie, h.keys = id, append(h.keys, key)
	case 4:
		extra = fmt.Sprint("&ec_id=o", d.n(4)) // more than the oracle asks for
	}
	p.Params = append(p.Params, extra...)
	switch {
	case d.percent(4):
		p.At -= int64(61 + d.n(200000))
		h.late = true
	case d.percent(1) && i > 0:
		p.Form = hit.Object
		p.Params = fmt.Appendf(nil, `{"idsite":%d,"rec":1,"url":"http://example.org/","uid":1.50,%q:%q}`, site, testkit.DefaultMark, name)
		h.blurred = true
	}
	return h, p
}
