package main

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/archivegate"
	"sluice/internal/hit"
	"sluice/queue"
)

// BenchmarkTenThousandSites asks the gate for the complete ones of 10,000 sites that had
// hits in every quarter of an hour of two days: what "sluice gate sites --complete"
// costs the daemon, and what the counters take of memory.
func BenchmarkTenThousandSites(b *testing.B) {
	const sites, quarters = 10_000, 2 * 96
	now := time.Date(2026, 3, 18, 0, 20, 0, 0, time.UTC)
	var clock atomic.Int64 // Unix seconds
	q, err := queue.Open(queue.Options{
		Dir: b.TempDir(), Reserve: 64 << 20, Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet(), Now: func() time.Time { return time.Unix(clock.Load(), 0) },
	})
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	before := heap()
	list := make(listOf, sites)
	for i := range list {
		list[i] = archivegate.Site{ID: int64(i + 1), Zone: gateZones[i%len(gateZones)], Name: fmt.Sprint("site ", i)}
	}
	for n := range quarters {
		at := now.Add(-time.Duration(quarters-n) * 15 * time.Minute)
		clock.Store(at.Unix())
		set := &hit.RequestSet{ReceivedAt: at.UnixNano(), Hits: make([]hit.Hit, sites)}
		for i := range set.Hits {
			set.Hits[i] = hit.Hit{Site: int64(i + 1), At: at.Unix(), Params: []byte("x")}
		}
		if err := q.Append(b.Context(), set); err != nil {
			b.Fatal(err)
		}
		for left := sites; left > 0; {
			pending, err := q.Lease(b.Context(), left)
			if err != nil {
				b.Fatal(err)
			}
			left -= len(pending)
			settled := make([]hit.Settlement, len(pending))
			for i, p := range pending {
				settled[i] = hit.Settlement{ID: p.ID, As: hit.Delivered}
			}
			if err := q.Settle(0, settled); err != nil {
				b.Fatal(err)
			}
		}
	}
	clock.Store(now.Unix())
	if err := q.Append(b.Context(), &hit.RequestSet{ReceivedAt: now.UnixNano(), Hits: []hit.Hit{{Site: 1, At: now.Unix()}}}); err != nil {
		b.Fatal(err)
	}
	for q.Stats().Pending > 1 {
		time.Sleep(time.Millisecond)
	}
	g, err := archivegate.New(archivegate.Config{Edge: "e"}, archivegate.Parts{
		Ledger: ledgerRoom{q}, Arrivals: arrived{now}, Drain: func() archivegate.Drain { return archivegate.Drain{} }, Lister: list, Keeper: keeper{b.TempDir()},
		Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet(), Now: func() time.Time { return now },
	})
	if err != nil {
		b.Fatal(err)
	}
	h := g.Handler()
	used := heap() - before
	ask := func() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), "GET", "/gate/v1/sites?date=finished&state=complete&format=ids", nil))
		if w.Code != 200 || w.Body.Len() < 5*sites-2000 {
			b.Fatalf("%d, %d bytes", w.Code, w.Body.Len())
		}
	}
	ask() // reads the list
	for b.Loop() {
		ask()
	}
	b.ReportMetric(float64(used)/(1<<20), "MiB-of-counters")
	b.ReportMetric(float64(len(q.Counters())), "slots")
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
