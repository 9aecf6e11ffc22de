package queue

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// testReserve is small, so that tests may use small file systems.
const testReserve = 1

func testOptions(t testing.TB, dir string) Options {
	return Options{
		Dir: dir, Reserve: testReserve, Metrics: metrics.NewSet(),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// oneCaller skips a test that looks at what is on disk and has one goroutine call the
// queue: the race detector sees nothing in it that it does not see elsewhere, and makes
// it ten times as slow. -short goes with the detector; `make test` runs the whole
// package without either too.
func oneCaller(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("is run without the race detector")
	}
}

// testKeys makes keys of their names, 1 and up.
func testKeys(names ...byte) Keys {
	raw := make([][]byte, len(names))
	for i, n := range names {
		raw[i] = bytes.Repeat([]byte{n}, KeyLen)
	}
	keys, err := NewKeys(raw...)
	if err != nil {
		panic(err)
	}
	return keys
}

// openWith opens a queue with keys for as long as use takes.
func openWith(t testing.TB, dir string, keys Keys, use func(*Queue)) {
	t.Helper()
	o := testOptions(t, dir)
	o.Keys = keys
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer verifyAndClose(t, q)
	use(q)
}

// openAt opens a queue that is verified and closed when the test ends, so that no
// test can pass and leave a broken queue behind.
func openAt(t testing.TB, dir string) *Queue {
	t.Helper()
	q, err := Open(testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifyAndClose(t, q) })
	return q
}

func verifyAndClose(t testing.TB, q *Queue) {
	t.Helper()
	if q.Err() == nil {
		select {
		case <-q.live.done: // closed by the test itself
		default:
			if r, err := q.Verify(context.Background()); err != nil {
				t.Errorf("Verify: %v", err)
			} else if len(r.Problems) > 0 {
				t.Errorf("Verify: %q", r.Problems)
			}
		}
	}
	if err := q.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// aSet is a request set of n hits, each with a number of its own.
func aSet(first, n int, site int64) *hit.RequestSet {
	s := &hit.RequestSet{
		ReceivedAt: time.Now().UnixNano(),
		Environment: hit.Environment{
			ClientIP: "192.0.2.7", UserAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
			AcceptLanguage: "de-DE,de;q=0.8",
		},
	}
	for i := range n {
		s.Hits = append(s.Hits, hit.Hit{
			Params: fmt.Appendf(nil, "idsite=%d&rec=1&n=%d&url=https%%3A%%2F%%2Fexample.org%%2Fpage-%d", site, first+i, first+i),
			Site:   site, At: s.ReceivedAt / 1e9,
		})
	}
	return s
}

func mustAppend(t testing.TB, q *Queue, sets ...*hit.RequestSet) {
	t.Helper()
	if err := q.Append(t.Context(), sets...); err != nil {
		t.Fatal(err)
	}
}

// leaseAll leases n hits.
func leaseAll(t testing.TB, q *Queue, n int) []hit.Pending {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all []hit.Pending
	for len(all) < n {
		got, err := q.Lease(ctx, n-len(all))
		if err != nil {
			t.Fatalf("leased %d of %d hits: %v", len(all), n, err)
		}
		all = append(all, got...)
	}
	return all
}

func settleAs(hits []hit.Pending, as hit.Outcome) []hit.Settlement {
	var out []hit.Settlement
	for i := range hits {
		out = append(out, hit.Settlement{ID: hits[i].ID, As: as})
	}
	return out
}

func idsOf(hits []hit.Pending) (ids []hit.ID) {
	for i := range hits {
		ids = append(ids, hits[i].ID)
	}
	return ids
}

// flush waits until everything submitted so far is committed.
func flush(t testing.TB, q *Queue) {
	t.Helper()
	for _, s := range q.running() {
		if err := s.submitAndWait(&op{}); err != nil {
			t.Fatal(err)
		}
	}
}
