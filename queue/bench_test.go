package queue

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"sluice/internal/hit"
)

// BenchmarkAppend: hits of one request each, from many submitters at once. One
// op is one acknowledged hit.
func BenchmarkAppend(b *testing.B) {
	for _, submitters := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("submitters=%d", submitters), func(b *testing.B) {
			q, err := Open(testOptions(b, b.TempDir()))
			if err != nil {
				b.Fatal(err)
			}
			defer q.Close()
			b.ReportAllocs()
			b.ResetTimer()
			var next atomic.Int64
			var wg sync.WaitGroup
			for range submitters {
				wg.Go(func() {
					s := aSet(0, 1, 1)
					for next.Add(1) <= int64(b.N) {
						if err := q.Append(context.Background(), s); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// BenchmarkDrain: leasing, journalling and settling in batches of 200, without
// delivering. One op is one hit.
func BenchmarkDrain(b *testing.B) {
	q, err := Open(testOptions(b, b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	for n := 0; n < b.N; n += 1000 {
		mustAppend(b, q, aSet(n, 1000, 1))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		hits, err := q.Lease(context.Background(), 200)
		if err != nil {
			b.Fatal(err)
		}
		batch, err := q.Journal(idsOf(hits))
		if err != nil {
			b.Fatal(err)
		}
		if err := q.Settle(batch, settleAs(hits, hit.Delivered)); err != nil {
			b.Fatal(err)
		}
		n += len(hits)
	}
}
