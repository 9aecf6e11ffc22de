package accesslog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// combinedLines writes lines as nginx's "combined" format has them, about 230 bytes each
// and 40 of them in a second.
func combinedLines(r *rand.Rand, lines int) []byte {
	agents := []string{
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
		"Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
		"Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
	}
	var b bytes.Buffer
	start := time.Date(2024, 10, 10, 0, 0, 0, 0, time.UTC)
	for i := range lines {
		at := start.Add(time.Duration(i) * time.Second / 40)
		fmt.Fprintf(&b, "%d.%d.%d.%d - - [%s] \"GET /products/%x/item-%d.html?ref=%d HTTP/2.0\" 200 %d \"https://www.example.org/category/%d\" \"%s\"\n",
			r.IntN(224), r.IntN(256), r.IntN(256), r.IntN(256), at.Format("02/Jan/2006:15:04:05 -0700"), r.IntN(1<<20), r.IntN(10000), r.IntN(100),
			r.IntN(100_000), r.IntN(300), agents[r.IntN(len(agents))])
	}
	return b.Bytes()
}

func BenchmarkReadAndSort(b *testing.B) {
	const lines = 1_000_000
	r := rand.New(rand.NewPCG(1, 1))
	text := combinedLines(r, lines)
	dir := b.TempDir()
	plain := filepath.Join(dir, "access.log")
	packed := filepath.Join(dir, "access.log.1.gz")
	for path, data := range map[string][]byte{plain: text, packed: gzipped(b, text)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	shuffled := r.Perm(lines)
	for _, bb := range []struct {
		name, path string
		memory     int64
		time       func(line int64) int64
	}{
		{"read/plain", plain, 0, nil},
		{"read/gzip", packed, 0, nil},
		{"sort/plain/memory=32MiB/in order", plain, 32 << 20, func(i int64) int64 { return i / 40 }},
		{"sort/gzip/memory=32MiB/in order", packed, 32 << 20, func(i int64) int64 { return i / 40 }},
		{"sort/gzip/memory=512MiB/in order", packed, 512 << 20, func(i int64) int64 { return i / 40 }},
		{"sort/gzip/memory=32MiB/nearly in order", packed, 32 << 20, func(i int64) int64 { return (i - i*7919%100) / 40 }},
		{"sort/gzip/memory=32MiB/no order", packed, 32 << 20, func(i int64) int64 { return int64(shuffled[i-1]) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				readAndSort(b, dir, bb.path, bb.memory, bb.time)
			}
			b.ReportMetric(lines*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}

// readAndSort sorts by what at says of a line's number, in seconds; without it, it reads.
func readAndSort(b *testing.B, dir, path string, memory int64, at func(line int64) int64) {
	in, err := Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	s, err := OpenSorter(SortConfig{Dir: dir, Memory: memory})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	lines := 0
	for line, err := range Lines(in) {
		if err != nil {
			b.Fatal(err)
		}
		lines++
		if at == nil {
			continue
		}
		if err := s.Add(b.Context(), Item{Time: at(line.Number) * 1e9, Line: line.Number, Payload: line.Text}); err != nil {
			b.Fatal(err)
		}
	}
	if at == nil {
		return
	}
	sorted := 0
	for _, err := range s.Sorted(b.Context()) {
		if err != nil {
			b.Fatal(err)
		}
		sorted++
	}
	if sorted != lines {
		b.Fatalf("%d lines sorted of %d", sorted, lines)
	}
}
