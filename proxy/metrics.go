package proxy

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// instruments are the room's metrics, one set for each server.
type instruments struct {
	set *metrics.Set

	stored, passed, refused, dropped *metrics.Counter // hits by answer
	collapsed                        *metrics.Counter // hits of retries, stored with what they repeat
	codes                            [6]*metrics.Counter
	connections                      atomic.Int64
	fast, handed                     *metrics.Counter // requests of the fast path, connections given to net/http
	byAddress, bySite                *metrics.Counter // requests beyond a rate
	shed                             *metrics.Counter // connections closed for others
	lostLines                        *metrics.Counter // of the access log
	latency                          latency
}

func newInstruments(set *metrics.Set) *instruments {
	hits := func(answer string) *metrics.Counter {
		return set.NewCounter(`sluice_proxy_hits_total{answer="` + answer + `"}`)
	}
	m := &instruments{
		set:    set,
		stored: hits("stored"), passed: hits("passed"), refused: hits("refused"), dropped: hits("dropped"),
		collapsed: set.NewCounter("sluice_proxy_collapsed_hits_total"),
		fast:      set.NewCounter("sluice_proxy_fast_requests_total"),
		byAddress: set.NewCounter(`sluice_proxy_rate_limited_total{by="address"}`),
		bySite:    set.NewCounter(`sluice_proxy_rate_limited_total{by="site"}`),
		shed:      set.NewCounter("sluice_proxy_shed_connections_total"),
		lostLines: set.NewCounter("sluice_proxy_access_log_dropped_total"),
		handed:    set.NewCounter("sluice_proxy_handed_connections_total"),
	}
	for class := 1; class <= 5; class++ {
		m.codes[class] = set.NewCounter(fmt.Sprintf(`sluice_proxy_requests_total{code="%dxx"}`, class))
	}
	set.NewGauge("sluice_proxy_connections", func() float64 { return float64(m.connections.Load()) })
	set.RegisterMetricsWriter(m.latency.write)
	return m
}

// badInput counts input that was not taken as it came. Reasons are a closed list.
func (m *instruments) badInput(reason string) {
	m.set.GetOrCreateCounter(`sluice_proxy_bad_input_total{reason="` + reason + `"}`).Inc()
}

// upstreamError counts a request that was not passed to Matomo, or not answered as a
// whole. Causes are a closed list.
func (m *instruments) upstreamError(cause string) {
	m.set.GetOrCreateCounter(`sluice_proxy_upstream_errors_total{cause="` + cause + `"}`).Inc()
}

// code counts a request by the class of its answer's status.
func (m *instruments) code(status int) {
	if class := status / 100; 1 <= class && class <= 5 {
		m.codes[class].Inc()
	}
}

// latencyBounds are the upper bounds of the buckets of
// sluice_proxy_request_seconds.
var latencyBounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// latencyShards keeps goroutines on different processors from writing to the
// same cache line most of the time.
const latencyShards = 8

// latency is a histogram that many goroutines may write without a lock. A reader
// may see a bucket without the sum that belongs to it.
type latency struct {
	shards [latencyShards]struct {
		buckets     [len(latencyBounds) + 1]atomic.Uint64
		nanoseconds atomic.Uint64
		_           [64]byte // the next shard begins on a cache line of its own
	}
}

func (l *latency) observe(d time.Duration) {
	shard := &l.shards[rand.Uint32()%latencyShards]
	bucket := 0
	for bucket < len(latencyBounds) && d > latencyBounds[bucket] {
		bucket++
	}
	shard.buckets[bucket].Add(1)
	shard.nanoseconds.Add(uint64(max(d, 0)))
}

// write prints the histogram in the text format of Prometheus.
func (l *latency) write(w io.Writer) {
	const name = "sluice_proxy_request_seconds"
	var total, nanoseconds uint64
	for i := range len(latencyBounds) + 1 {
		for s := range l.shards {
			total += l.shards[s].buckets[i].Load()
		}
		bound := "+Inf"
		if i < len(latencyBounds) {
			bound = fmt.Sprint(latencyBounds[i].Seconds())
		}
		fmt.Fprintf(w, "%s_bucket{le=%q} %d\n", name, bound, total)
	}
	for s := range l.shards {
		nanoseconds += l.shards[s].nanoseconds.Load()
	}
	fmt.Fprintf(w, "%s_sum %g\n%s_count %d\n", name, time.Duration(nanoseconds).Seconds(), name, total)
}
