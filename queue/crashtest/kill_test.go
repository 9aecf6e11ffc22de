package crashtest

import (
	"math/rand/v2"
	"testing"
	"time"
)

// busyJob is a worker with much going on: many appenders, several consumers,
// shelves so small that they are begun and removed all the time.
func busyJob(dir string, rng *rand.Rand, base uint64) job {
	return job{
		Role: roleWork, Dir: dir, Seed: rng.Uint64(), Reserve: 1, ShelfBytes: 96 << 10, Base: base,
		Appenders: 6, Pad: 4000, Consumers: 2, Lease: 40,
	}
}

// noKeys and changingKeys give the keys of a life.
func noKeys(int) []byte { return nil }

// changingKeys encrypts every life with another key; all of them decrypt.
func changingKeys(life int) []byte {
	first := byte(life % 3)
	return []byte{1 + first, 1 + (first+1)%3, 1 + (first+2)%3}
}

// lifeBase gives the numbers of a life's request sets room of their own.
func lifeBase(life int) uint64 { return uint64(life+1) << 24 }

// killAfter lets a worker live until it has been acknowledged n sets and a
// little more, then kills it.
func killAfter(p *process, n int, more time.Duration) {
	p.t.Helper()
	p.mustAwait("acknowledgements", func() bool { return p.acks >= n })
	<-time.After(more)
	p.kill()
}

// Promise 1, "Durable before the answer", against kill -9: while hits are
// appended, leased, journalled, settled and buried, and shelves and keys change.
func TestKilledWorkerLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		keys  func(life int) []byte
		lives int
	}{
		{"in clear", noKeys, rounds(20, 100)},
		{"encrypted", changingKeys, rounds(12, 100)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rng, _ := newRand(t)
			dir := t.TempDir()
			l := newLedger()
			for life := range tt.lives {
				j := busyJob(dir, rng, lifeBase(life))
				j.Keys = tt.keys(life)
				p := start(t, l, j, nil)
				killAfter(p, 1+rng.IntN(150), time.Duration(rng.IntN(8000))*time.Microsecond)
				census := job{Dir: dir, Reserve: 1, ShelfBytes: 96 << 10, Keys: j.Keys, Abandon: rng.IntN(3) == 0}
				check(t, l, census, "after kill "+string(rune('a'+life%26)))
				if t.Failed() {
					t.Fatalf("life %d; the worker said: %s", life, p.err)
				}
			}
			t.Logf("%d sets acknowledged, settled for good %v", l.acked, l.outcomes)
			if l.outcomes['v'] == 0 || l.outcomes['d'] == 0 || l.outcomes['i'] == 0 {
				t.Errorf("the test is blind: outcomes %v", l.outcomes)
			}
		})
	}
}

// Control of the kills: a worker that acknowledges before the commit must be
// caught.
func TestKillsCatchAWorkerThatAcknowledgesTooEarly(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	total := 0
	for life := range 5 {
		dir := t.TempDir()
		l := newLedger()
		j := busyJob(dir, rng, lifeBase(life))
		j.Liar = true
		p := start(t, l, j, nil)
		killAfter(p, 20+rng.IntN(50), 0)
		c, err := takeCensus(t.Context(), job{Dir: dir, Reserve: 1})
		if err != nil {
			t.Fatal(err)
		}
		total += lost(l.judge(c))
	}
	if total == 0 {
		t.Error("the suite is blind: acknowledgements before the commit lost nothing in 5 kills")
	}
}

// Promise 1 and the sum "accepted = delivered + invalid + dead + pending": a
// queue that takes many hits, drains them, and is killed every second, ends with
// every acknowledged hit settled once or pending once.
func TestConservationAcrossKills(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	dir := t.TempDir()
	l := newLedger()
	const setHits = 10
	target := rounds(200_000, 2_000_000) / setHits
	began := time.Now()
	for life := 0; l.acked < target; life++ {
		if life == 200 {
			t.Fatalf("%d of %d sets after %d lives", l.acked, target, life)
		}
		j := job{
			Role: roleWork, Dir: dir, Seed: rng.Uint64(), Reserve: 1, ShelfBytes: 4 << 20, Base: lifeBase(life),
			Appenders: 24, SetHits: setHits, Pad: 200, Consumers: 2, Lease: 500,
		}
		p := start(t, l, j, nil)
		p.mustAwait("the opening", func() bool { return p.ready })
		select {
		case <-time.After(time.Duration(500+rng.IntN(1000)) * time.Millisecond):
		case <-p.exited:
			t.Fatalf("life %d ended by itself: %s", life, p.err)
		}
		p.kill()
		check(t, l, job{Dir: dir, Reserve: 1, ShelfBytes: 4 << 20, Abandon: true}, "life")
		if t.Failed() {
			t.Fatalf("life %d; the worker said: %s", life, p.err)
		}
	}
	fed := time.Since(began)

	// The last life only drains; then everything is settled once.
	p := start(t, l, job{Role: roleWork, Dir: dir, Reserve: 1, ShelfBytes: 4 << 20, Base: lifeBase(1000), Consumers: 2, Lease: 500, Strict: true}, nil)
	p.mustAwait("the opening", func() bool { return p.ready })
	for p.statsNow().Pending > 0 {
		if time.Since(began) > 4*waitLimit+fed {
			t.Fatalf("the queue does not drain: %+v", p.statsNow())
		}
		<-time.After(20 * time.Millisecond)
	}
	p.tell("close")
	p.mustAwait("the end", func() bool { return p.closed })
	check(t, l, job{Dir: dir, Reserve: 1, ShelfBytes: 4 << 20}, "the end")
	settled := 0
	for _, n := range l.outcomes {
		settled += n
	}
	if settled < l.acked*setHits {
		t.Errorf("%d hits are settled, %d were acknowledged", settled, l.acked*setHits)
	}
	t.Logf("%d hits acknowledged in %v, %d settled, %v", l.acked*setHits, fed.Round(time.Millisecond), settled, l.outcomes)
}
