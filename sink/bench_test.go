package sink

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/internal/testkit"
)

// benchQuery is a page view as matomo.js sends it.
const benchQuery = "action_name=Home%20%7C%20Example&rec=1&r=123456&h=10&m=20&s=30&url=https%3A%2F%2Fexample.org%2Fa%2Fb%3Fq%3D1&urlref=https%3A%2F%2Fwww.example.com%2F" +
	"&_id=0123456789abcdef&_idn=0&send_image=0&_refts=0&pv_id=AbCdEf&pf_net=1&pf_srv=20&pf_tfr=3&pf_dm1=100&uadata=%7B%22fullVersionList%22%3A%5B%7B%22brand%22%3A%22Chromium%22%2C%22version%22%3A%22120%22%7D%5D%2C%22mobile%22%3Afalse%2C%22model%22%3A%22%22%2C%22platform%22%3A%22Linux%22%2C%22platformVersion%22%3A%226.1%22%7D" +
	"&pdf=1&qt=0&realp=0&wma=0&fla=0&java=0&ag=0&cookie=1&res=1920x1080"

func benchHit(site int64) hit.Pending {
	p := pendingOf(site, fmt.Sprintf("idsite=%d&", site)+benchQuery)
	p.Environment = &hit.Environment{ClientIP: "203.0.113.9", UserAgent: browser, AcceptLanguage: "de-AT,de;q=0.9,en;q=0.5", Referer: "https://example.org/"}
	return p
}

func BenchmarkEncode(b *testing.B) {
	e := newEncoder()
	p := benchHit(1)
	b.ReportAllocs()
	b.SetBytes(int64(len(p.Params)))
	for b.Loop() {
		e.encode(p)
	}
}

// BenchmarkDrain drains from memory into a fake Matomo on a socket.
func BenchmarkDrain(b *testing.B) {
	for _, sites := range []int{1, 4, 10000} {
		b.Run(fmt.Sprintf("sites=%d", sites), func(b *testing.B) {
			m := testkit.NewMatomo(testkit.MatomoConfig{CountOnly: true})
			cfg := testConfig()
			cfg.Endpoint = m.Serve(b) + "/matomo.php"
			src := &countingSource{left: b.N, done: make(chan struct{})}
			for i := range sites {
				src.hits = append(src.hits, benchHit(int64(i+1)))
			}
			s, err := New(cfg, src, slog.New(slog.DiscardHandler), metrics.NewSet())
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			b.ReportAllocs()
			b.ResetTimer()
			began := time.Now()
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			<-src.done
			b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "hits/s")
			b.StopTimer()
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	}
}
