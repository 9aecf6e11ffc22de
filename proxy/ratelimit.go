package proxy

import (
	"encoding/binary"
	"hash/maphash"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// RateLimits bounds how much one visitor's address and one site may bring. Zero
// rates are off. Only hits that would be stored, and requests that would be
// forwarded, count.
type RateLimits struct {
	PerAddress   int // requests per second of one IPv4 address or one IPv6 /64
	AddressBurst int // requests at once; ten seconds of the rate when zero
	PerSite      int // hits per second of one site
	SiteBurst    int // hits at once; ten seconds of the rate when zero

	// Exempt are visitors' addresses that take nothing from either bucket: importers
	// and servers that report for many visitors.
	Exempt []netip.Prefix
}

const (
	maxRate = 1_000_000
	// burstSeconds is how long a rate fills the bucket of a burst that is not set.
	burstSeconds = 10
	// rateShards keeps requests on different processors from waiting for each other.
	rateShards = 64
	// maxBuckets bounds the buckets of one table. With a key of 16 and a time of 8
	// bytes, a full table takes some 40 MiB.
	maxBuckets = 1_000_000
	maxSites   = maxBuckets / 10
	minSweep   = 256 // buckets of a shard below which none are looked for to forget
)

// A rate is what one bucket allows, as the generic cell rate algorithm has it: the
// bucket is one time, and nothing has to be filled up.
type rate struct {
	interval time.Duration // that one takes to come back
	capacity time.Duration // what a full bucket holds
}

// rates are the two limits; an interval of zero is off.
type rates struct{ address, site rate }

func (l *RateLimits) rates() rates {
	return rates{newRate(l.PerAddress, l.AddressBurst), newRate(l.PerSite, l.SiteBurst)}
}

func newRate(perSecond, burst int) rate {
	if perSecond == 0 {
		return rate{}
	}
	if burst == 0 {
		burst = burstSeconds * perSecond
	}
	r := rate{interval: time.Second / time.Duration(perSecond)}
	r.capacity = time.Duration(burst) * r.interval
	return r
}

// A bucketKey is a network's or a site's.
type bucketKey [16]byte

func siteKey(site int64) (key bucketKey) {
	binary.BigEndian.PutUint64(key[:], uint64(site))
	return key
}

// buckets is a table of token buckets. One that is full again is forgotten when room
// is needed, and in a table full of others some are forgotten too soon, which gives
// them a full bucket. All methods may be called from any goroutine.
type buckets struct {
	seed   maphash.Seed
	began  time.Time
	most   int // buckets of one shard
	shards [rateShards]bucketShard
}

type bucketShard struct {
	mu sync.Mutex
	// full is when each bucket will be full again, in time since began.
	full  map[bucketKey]time.Duration // guarded by mu
	sweep int                         // guarded by mu: at this size what is full is forgotten
}

func newBuckets(most int) *buckets {
	return &buckets{seed: maphash.MakeSeed(), began: time.Now(), most: max(1, most/rateShards)}
}

// take takes n from a bucket; more than it can hold is taken as all of it. When it
// does not have them, it takes nothing and says how long to wait.
func (b *buckets) take(key bucketKey, n int, r rate, now time.Time) (wait time.Duration, ok bool) {
	at := now.Sub(b.began)
	cost := r.cost(n)
	s := &b.shards[maphash.Comparable(b.seed, key)%rateShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	before, known := s.full[key]
	full := max(before, at) + cost
	if wait := full - at - r.capacity; wait > 0 {
		return wait, false
	}
	if !known {
		s.makeRoomLocked(at, b.most)
	}
	s.full[key] = full
	return 0, true
}

// give puts back what was taken.
func (b *buckets) give(key bucketKey, n int, r rate) {
	s := &b.shards[maphash.Comparable(b.seed, key)%rateShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if full, known := s.full[key]; known {
		s.full[key] = full - r.cost(n)
	}
}

func (r rate) cost(n int) time.Duration {
	if time.Duration(n) > r.capacity/r.interval {
		return r.capacity
	}
	return time.Duration(n) * r.interval
}

// makeRoomLocked makes room for one more bucket. Maps do not shrink, so what stays
// goes into a new one.
func (s *bucketShard) makeRoomLocked(at time.Duration, most int) {
	if s.full != nil && len(s.full) < s.sweep {
		return
	}
	kept := make(map[bucketKey]time.Duration)
	for key, full := range s.full {
		// An eighth stays free, so that the next sweep is that many buckets away.
		if full > at && len(kept) < most-most/8-1 {
			kept[key] = full
		}
	}
	s.full = kept
	s.sweep = min(most, max(minSweep, 2*len(kept)))
}

// admits says whether hits that are about to be stored are within the rates. When
// they are not, nothing is taken from any bucket, and it gives the refusal.
func (e *endpoint) admits(r *request, hits []hit.Hit) (refusal answer, ok bool) {
	v := e.live.Load()
	if v.rates == (rates{}) {
		return answer{}, true
	}
	now := time.Now()
	visitor := e.visitor(r)
	if contains(v.RateLimits.Exempt, visitor) {
		return answer{}, true
	}
	network := bucketKey(networkOf(visitor).As16())
	if v.rates.address.interval > 0 {
		if wait, ok := e.addresses.take(network, 1, v.rates.address, now); !ok {
			return e.tooMany(e.metrics.byAddress, wait, r.method == "GET", len(hits)), false
		}
	}
	if v.rates.site.interval > 0 {
		if wait, ok := e.takeSites(hits, v.rates.site, now); !ok {
			if v.rates.address.interval > 0 {
				e.addresses.give(network, 1, v.rates.address)
			}
			return e.tooMany(e.metrics.bySite, wait, r.method == "GET", len(hits)), false
		}
	}
	return answer{}, true
}

// takeSites takes each hit from its site's bucket, or nothing.
func (e *endpoint) takeSites(hits []hit.Hit, r rate, now time.Time) (wait time.Duration, ok bool) {
	if len(hits) == 1 {
		return e.bySite.take(siteKey(hits[0].Site), 1, r, now)
	}
	counts := make(map[int64]int)
	for i := range hits {
		counts[hits[i].Site]++
	}
	taken := make([]int64, 0, len(counts))
	for site, n := range counts {
		if wait, ok := e.bySite.take(siteKey(site), n, r, now); !ok {
			for _, site := range taken {
				e.bySite.give(siteKey(site), counts[site], r)
			}
			return wait, false
		}
		taken = append(taken, site)
	}
	return 0, true
}

// tooMany is the refusal of hits beyond a rate.
func (e *endpoint) tooMany(counter *metrics.Counter, wait time.Duration, get bool, hits int) answer {
	counter.Inc()
	e.metrics.refused.Add(hits)
	a := fault(http.StatusTooManyRequests, tooManyHits, get)
	a.wait = waitSeconds(wait)
	return a
}

// waitSeconds gives whole seconds, at least one.
func waitSeconds(d time.Duration) int { return max(1, int((d+time.Second-1)/time.Second)) }

// mayForward says whether a request that is not tracking is within its address's
// rate, and answers it when it is not. A browser's question before a request always
// is.
func (s *Server) mayForward(w http.ResponseWriter, r *http.Request) bool {
	if s.tuned().rates.address.interval == 0 || r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		return true
	}
	request := s.addressed(r)
	refused, limited := s.overRate(&request)
	if limited {
		refused.write(w, nil, s.stopping.Load())
	}
	return !limited
}

// overRate counts a request that does not track for its address, and gives what to
// answer when that is beyond its rate.
func (s *Server) overRate(r *request) (refused answer, limited bool) {
	v := s.tuned()
	if v.rates.address.interval == 0 {
		return answer{}, false
	}
	visitor := s.endpoint.visitor(r)
	if contains(v.RateLimits.Exempt, visitor) {
		return answer{}, false
	}
	wait, ok := s.endpoint.addresses.take(networkOf(visitor).As16(), 1, v.rates.address, time.Now())
	if ok {
		return answer{}, false
	}
	s.metrics.byAddress.Inc()
	refused = fault(http.StatusTooManyRequests, tooManyRequests, true)
	refused.wait = waitSeconds(wait)
	return refused, true
}

// addressed gives what the visitor's address is read from, of net/http's request.
func (s *Server) addressed(r *http.Request) request {
	request := request{peer: remoteOf(r)}
	if s.endpoint.trusts(request.peer) {
		request.fill(r, nil)
	}
	return request
}

// visitorOf gives the visitor's whole address of net/http's request.
func (s *Server) visitorOf(r *http.Request) netip.Addr {
	request := s.addressed(r)
	return s.endpoint.visitor(&request)
}
