package sink

import (
	"fmt"
	"slices"
	"testing"
	"time"
	"unsafe"

	"sluice/internal/hit"
)

// A laneLab adds hits to lanes at times of a stream.
type laneLab struct {
	t *testing.T
	*lanes
	ids uint64
}

func newLaneLab(t *testing.T) *laneLab { return &laneLab{t: t, lanes: newLanes()} }

// add adds a hit of site 1 at a minute of the stream. params begin with its address.
func (l *laneLab) add(minute float64, address, params string) *item {
	l.ids++
	it := &item{element: []byte(`"?"`)}
	at := 1_000_000 + int64(60*minute)
	it.ID = hit.ID{Generation: 1, Block: l.ids}
	it.Site, it.At, it.ReceivedAt = 1, at, at*int64(time.Second)
	it.Environment, it.Params = &hit.Environment{ClientIP: address}, []byte(params)
	if params == "object" {
		it.Form, it.Params = hit.Object, []byte(`{"uid":1.50}`)
	}
	if params == "late" {
		it.At -= 7 * 24 * 3600
	}
	it.mask = l.mask
	it.marks = findMarks(it, it.mask)
	l.lanes.add(it, l.now(), l.stream)
	return it
}

func (l *laneLab) now() time.Time { return time.Unix(l.stream, 0) }

func (l *laneLab) settle(items ...*item) {
	items = slices.DeleteFunc(slices.Clone(items), func(it *item) bool { return it.settled })
	for _, it := range items {
		it.settled = true
	}
	l.leave(items, l.now(), l.stream)
	for _, it := range items {
		l.place(it.lane.top(), l.now(), l.stream) // they were not taken
	}
}

func (l *laneLab) expect(together bool, a, b *item, when string) {
	l.t.Helper()
	if got := a.lane.top() == b.lane.top(); got != together {
		l.t.Errorf("%s two hits are in one lane: %v, want %v", when, got, together)
	}
}

// TestLinksLastAsLongAsVisits: a visit that began with one hit of an id and an
// address lives on with hits that show only one of both.
func TestLinksLastAsLongAsVisits(t *testing.T) {
	l := newLaneLab(t)
	l.settle(l.add(0, "10.0.0.1", "_id=aaaaaaaaaaaaaaaa"))
	minute := 0.0
	for ; minute < 5*60; minute += 20 {
		l.settle(l.add(minute, "10.0.0.2", "_id=aaaaaaaaaaaaaaaa"))
		l.settle(l.add(minute+1, "10.0.0.1", ""))
	}
	l.expect(true, l.add(minute, "10.0.0.3", "_id=aaaaaaaaaaaaaaaa"), l.add(minute, "10.0.0.1", ""), "while the id is seen")

	// The address may be silent for as long.
	l = newLaneLab(t)
	l.settle(l.add(0, "10.0.0.1", "_id=aaaaaaaaaaaaaaaa"))
	for minute = 0; minute < 5*60; minute += 20 {
		l.settle(l.add(minute, "10.0.0.2", "_id=aaaaaaaaaaaaaaaa"))
	}
	l.expect(true, l.add(minute, "10.0.0.3", "_id=aaaaaaaaaaaaaaaa"), l.add(minute, "10.0.0.1", ""), "while only the id is seen")
}

// TestLinksExpire: when an id was not seen for long, what it linked goes apart, and
// nothing is remembered for it.
func TestLinksExpire(t *testing.T) {
	l := newLaneLab(t)
	l.settle(l.add(0, "10.0.0.1", "_id=aaaaaaaaaaaaaaaa"), l.add(1, "10.0.0.2", "_id=aaaaaaaaaaaaaaaa"))
	l.expect(true, l.add(60, "10.0.0.1", ""), l.add(60, "10.0.0.2", ""), "within an hour")
	for minute := 61.0; minute < 400; minute++ {
		for _, ln := range allLanes(l.lanes) {
			l.settle(ln.items...)
		}
		l.settle(l.add(minute, fmt.Sprintf("10.1.%d.1", int(minute)), ""))
	}
	l.expect(false, l.add(400, "10.0.0.1", ""), l.add(400, "10.0.0.2", ""), "five hours later")
	if n := l.marks; n > 200 {
		t.Errorf("%d marks are remembered", n)
	}
}

// TestMarksOfPendingHitsStay, however long the hits wait.
func TestMarksOfPendingHitsStay(t *testing.T) {
	for _, params := range []string{"_id=aaaaaaaaaaaaaaaa", "late", "ec_id=5"} {
		t.Run(params, func(t *testing.T) {
			l := newLaneLab(t)
			first := l.add(0, "10.0.0.1", params)
			for minute := 1.0; minute < 600; minute += 5 {
				l.settle(l.add(minute, "10.0.0.9", ""))
			}
			l.expect(true, first, l.add(600, "10.0.0.2", params), "after ten hours")
			l.expect(false, first, l.add(600, "10.0.0.3", ""), "without a mark in common")
		})
	}
}

// TestSiteIsOneLaneAround: what cannot be read, another mask, and too many marks make
// a lane of the site; later it has many again, but for what waited through it.
func TestSiteIsOneLaneAround(t *testing.T) {
	tests := []struct {
		name    string
		happens func(*laneLab)
		minutes float64
	}{
		{"a hit that cannot be read", func(l *laneLab) { l.settle(l.add(1, "10.0.0.5", "object")) }, 71 + 18},
		{"another mask", func(l *laneLab) { l.remask(2, l.now(), l.stream) }, 71 + 18},
		{"too many marks", func(l *laneLab) {
			l.marksMost = l.marks
			l.settle(l.add(1, "10.0.0.5", ""))
			l.marksMost = maxMarks
		}, 141 + 18},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLaneLab(t)
			a, b := l.add(0, "10.1.0.1", ""), l.add(0, "10.2.0.2", "")
			l.expect(false, a, b, "before")
			tt.happens(l)
			c := l.add(2, "10.3.0.3", "")
			l.expect(true, a, b, "then")
			l.expect(true, a, c, "then")
			l.settle(a, b, c)
			d, e := l.add(40, "10.1.0.1", ""), l.add(40, "10.2.0.2", "")
			l.expect(true, d, e, "in that time")
			l.settle(e)
			for m := 41.0; m < tt.minutes+1; m++ {
				l.settle(l.add(m, "10.9.0.9", ""))
			}
			// d is older than the end of that time: what leads to it may not be known.
			l.expect(true, d, l.add(tt.minutes+1, "10.7.0.7", ""), "while a hit waits through it")
			for _, ln := range allLanes(l.lanes) {
				l.settle(ln.items...)
			}
			l.expect(false, l.add(tt.minutes+20, "10.1.0.1", ""), l.add(tt.minutes+20, "10.2.0.2", ""), "afterwards")
			if s := l.bySite[1]; s.unlinked != 0 || s.blind != 0 || s.pending != 2 {
				t.Errorf("%d unlinked, %d blind, %d pending, want 0, 0, 2", s.unlinked, s.blind, s.pending)
			}
		})
	}
}

// TestMarks has what Matomo takes for the same visitor.
func TestMarks(t *testing.T) {
	tests := []struct {
		name string
		a, b string // address and parameters
		mask uint8
		same bool
	}{
		{"nothing in common", "10.0.0.1 ", "10.0.0.2 ", 0, false},
		{"an address", "10.0.0.1 ", "10.0.0.1 ", 0, true},
		{"a masked address", "10.0.1.1 ", "10.0.2.2 ", 2, true},
		{"an address with a shorter mask", "10.0.1.1 ", "10.0.2.2 ", 1, false},
		{"a mapped address", "10.0.0.1 ", "::ffff:10.0.0.1 ", 0, true},
		{"two texts of an address", "2001:db8::5 ", "2001:0DB8:0::5 ", 0, true},
		{"a masked IPv6 address", "2001:db8:1:1::5 ", "2001:db8:1:1:9::5 ", 1, true},
		{"IPv6 networks", "2001:db8:1:1::5 ", "2001:db8:1:2::5 ", 1, false},
		{"two that are no addresses", "10.0.0.1:80 ", "10.0.0.01 ", 0, true},
		{"an id in capitals", "10.0.0.1 _id=abcdefabcdefabcd", "10.0.0.2 cid=ABCDEFABCDEFABCD", 0, true},
		{"an id with more behind it", "10.0.0.1 _id=abcdefabcdefabcd", "10.0.0.2 _id=abcdefabcdefabcd99", 0, true},
		{"a short id is none", "10.0.0.1 _id=abc", "10.0.0.2 _id=abc", 0, false},
		{"a digit that is none counts as zero", "10.0.0.1 _id=000000000000000g", "10.0.0.2 _id=0000000000000000", 0, true},
		{"a user and the hash of its name", "10.0.0.1 uid=a%26b", "10.0.0.2 _id=c65ece81e2ec7260", 0, true},
		{"a user's name with a line break", "10.0.0.1 uid=joe", "10.0.0.2 uid=jo%0De", 0, true},
		{"a user's name in entities", "10.0.0.1 uid=a%26b", "10.0.0.2 uid=a%26amp%3Bb", 0, true},
		{"a user's name in Latin-1", "10.0.0.1 uid=%E9", "10.0.0.2 uid=%C3%A9", 0, true},
		{"other users", "10.0.0.1 uid=a", "10.0.0.2 uid=b", 0, false},
		{"an order in capitals", "10.0.0.1 ec_id=ab", "10.0.0.2 ec_id=AB", 0, true},
		{"an object and a query", `10.0.0.1 {"uid":12}`, "10.0.0.2 uid=12", 0, true},
		{"a given address without rights", "10.0.0.1 cip=9.9.9.9", "10.0.0.2 cip=9.9.9.9", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := false
			var met [2]visitorMarks
			for i, text := range []string{tt.a, tt.b} {
				it := &item{}
				var address, params string
				fmt.Sscanf(text, "%s %s", &address, &params)
				it.Environment, it.Params = &hit.Environment{ClientIP: address}, []byte(params)
				if params != "" && params[0] == '{' {
					it.Form = hit.Object
				}
				met[i] = findMarks(it, tt.mask)
				if met[i].unknown {
					t.Errorf("the marks of %q are not known", text)
				}
			}
			for _, a := range met[0].all {
				for _, b := range met[1].all {
					got = got || a == b
				}
			}
			if got != tt.same {
				t.Errorf("a mark in common: %v, want %v", got, tt.same)
			}
		})
	}
	own := &item{}
	own.Rights, own.Environment, own.Params = hit.Theirs, &hit.Environment{ClientIP: "10.0.0.1"}, []byte("cip=10.0.0.2")
	if m := findMarks(own, 0); m.addresses != 2 {
		t.Errorf("a hit with rights has %d addresses, want its own and the one that it gives", m.addresses)
	}
	for _, text := range []string{`{"uid":1.5}`, `{"uid":1e3}`, `{"uid":-0}`, `{"cid":12345678901234567890}`, `{"a":`} {
		it := &item{}
		it.Form, it.Environment, it.Params = hit.Object, &hit.Environment{}, []byte(text)
		if !findMarks(it, 0).unknown {
			t.Errorf("the marks of %s count as known", text)
		}
	}
}

func TestParkedHitIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(parkedHit{}); n > 48 {
		t.Errorf("%d bytes, want at most 48", n)
	}
}

// BenchmarkSchedule measures the lanes alone: hits of random visitors, some of whom
// roam, are added, taken in batches, and settled.
func BenchmarkSchedule(b *testing.B) {
	for _, sites := range []int{1, 100} {
		b.Run(fmt.Sprintf("sites=%d", sites), func(b *testing.B) {
			l := newLanes()
			const ahead = 16384
			items := make([]item, ahead)
			env := make([]*hit.Environment, 20000)
			ids := make([][]byte, 20000)
			for i := range env {
				env[i] = &hit.Environment{ClientIP: fmt.Sprintf("10.%d.%d.%d", i%7, i/256, i%256)}
				ids[i] = fmt.Appendf(nil, "rec=1&_id=%016x", i)
			}
			b.ReportAllocs()
			began := time.Now()
			n := 0
			for b.Loop() {
				n++
				it := &items[n%ahead]
				*it = item{element: ids[0]}
				visitor := n * 7919 % len(env)
				at := int64(1_000_000_000 + n/25)
				it.ID.Block, it.Site, it.At, it.ReceivedAt = uint64(n), int64(n%sites), at, at*int64(time.Second)
				it.Environment, it.Params = env[visitor], ids[visitor]
				if n%50 == 0 {
					it.Environment = env[(visitor+1)%len(env)]
				}
				it.marks = findMarks(it, 0)
				l.add(it, time.Unix(at, 0), at)
				for l.hits >= ahead/2 {
					batch := l.take(size{400, 1 << 20}, time.Unix(at, 0), at)
					for _, done := range batch {
						done.settled = true
					}
					l.release(batch, time.Unix(at, 0), at)
				}
			}
			b.ReportMetric(float64(n)/time.Since(began).Seconds(), "hits/s")
			b.ReportMetric(float64(l.marks), "marks")
		})
	}
}
