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
		batch, err := q.Journal(idsOf(hits), nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := q.Settle(batch, settleAs(hits, hit.Delivered)); err != nil {
			b.Fatal(err)
		}
		n += len(hits)
	}
}

// BenchmarkEncryption: appending blocks of 1000 hits and leasing them, in clear and
// with a key. One op is one hit.
func BenchmarkEncryption(b *testing.B) {
	for _, bb := range []struct {
		name string
		keys Keys
	}{{"key=off", Keys{}}, {"key=on", testKeys(1)}} {
		b.Run(bb.name, func(b *testing.B) {
			o := testOptions(b, b.TempDir())
			o.Keys = bb.keys
			q, err := Open(o)
			if err != nil {
				b.Fatal(err)
			}
			defer q.Close()
			const hits = 1000
			s := aSet(0, hits, 1)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += hits {
				mustAppend(b, q, s)
				leaseAll(b, q, hits)
			}
		})
	}
}

// BenchmarkBlock: encoding and decoding one block of 1000 hits, without the disk.
func BenchmarkBlock(b *testing.B) {
	for _, bb := range []struct {
		name string
		keys Keys
	}{{"key=off", Keys{}}, {"key=on", testKeys(1)}} {
		b.Run(bb.name, func(b *testing.B) {
			bl := &block{key: blockKey{clock: 1, generation: 2, number: 3}, hits: 1000, raw: hit.AppendRequestSet(nil, aSet(0, 1000, 1))}
			var buf []byte
			b.ReportAllocs()
			b.SetBytes(int64(len(bl.raw)))
			for b.Loop() {
				buf = encodeBlock(buf, bl, bb.keys.first())
				if _, _, err := decodeBlock(bb.keys, bl.key, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
