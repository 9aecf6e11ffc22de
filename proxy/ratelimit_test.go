package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"sluice/internal/hit"
)

func TestBuckets(t *testing.T) {
	r := newRate(2, 4) // one comes back each 500 ms
	tests := []struct {
		name  string
		at    []time.Duration
		costs []int
		want  []bool
		wait  time.Duration // of the last one that is refused
	}{
		{"a burst and no more", []time.Duration{0, 0, 0, 0, 0}, []int{1, 1, 1, 1, 1}, []bool{true, true, true, true, false}, 500 * time.Millisecond},
		{"comes back with time", []time.Duration{0, 499 * time.Millisecond, 500 * time.Millisecond}, []int{4, 1, 1}, []bool{true, false, true}, time.Millisecond},
		{"never holds more than the burst", []time.Duration{0, time.Hour, time.Hour}, []int{4, 4, 1}, []bool{true, true, false}, 500 * time.Millisecond},
		{"more than the burst takes all of it", []time.Duration{0, 0}, []int{1000, 1}, []bool{true, false}, 500 * time.Millisecond},
		{"more than the burst wants all of it", []time.Duration{0, 0}, []int{1, 1000}, []bool{true, false}, 500 * time.Millisecond},
		{"a refusal takes nothing", []time.Duration{0, 0, 0}, []int{3, 2, 1}, []bool{true, false, true}, 500 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBuckets(maxSites)
			for i, at := range tt.at {
				wait, ok := b.take(siteKey(1), tt.costs[i], r, b.began.Add(at))
				if ok != tt.want[i] || !ok && wait != tt.wait {
					t.Errorf("take %d: got %v and %v, want %v and %v", i, ok, wait, tt.want[i], tt.wait)
				}
			}
		})
	}
	t.Run("are bounded", func(t *testing.T) {
		const most = 10 * rateShards
		b := newBuckets(most)
		for site := range int64(20 * most) {
			b.take(siteKey(site), 1, r, b.began)
		}
		n := 0
		for i := range b.shards {
			n += len(b.shards[i].full)
		}
		if n > most || n < most/2 {
			t.Errorf("%d buckets, want at most %d and not far below", n, most)
		}
	})
	t.Run("that are full are forgotten first", func(t *testing.T) {
		const others = 40 * rateShards
		b := newBuckets(rateShards * 8)
		later := b.began.Add(others * time.Minute)
		b.take(siteKey(1_000_000), 4, r, later)
		for site := range int64(others) {
			// Each is full again when the next comes.
			b.take(siteKey(2_000_000+site), 1, r, b.began.Add(time.Duration(site)*time.Minute))
		}
		if _, ok := b.take(siteKey(1_000_000), 1, r, later); ok {
			t.Error("a bucket in use was forgotten with full ones around")
		}
	})
}

// TestBucketMemory states what a full table takes.
func TestBucketMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	b := newBuckets(maxBuckets)
	for site := range int64(maxBuckets * 5 / 4) {
		b.take(siteKey(site), 1, newRate(1, 10), b.began)
	}
	used := (heap() - before) >> 20
	runtime.KeepAlive(b)
	t.Logf("%d buckets take at most %d MiB", maxBuckets, used)
	if used > 64 {
		t.Errorf("%d MiB, want at most 64", used)
	}
}

func TestRateLimits(t *testing.T) {
	const hitURL = "/matomo.php?idsite=1&rec=1"
	forwarded := func(a string) string { return "X-Forwarded-For: " + a }
	limited := func(l RateLimits) func(*Config) {
		return func(c *Config) {
			c.RateLimits = l
			c.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			c.CollapseRetries = true
		}
	}
	bulk := func(site, n int) string {
		one := fmt.Sprintf(`"?idsite=%d&rec=1"`, site)
		return `{"requests":[` + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + `]}`
	}
	one := RateLimits{PerAddress: 1, AddressBurst: 1}
	tests := []struct {
		name   string
		limits RateLimits
		raw    []string
		want   []int
		stored int
	}{
		{"refuse what is beyond an address's", one, []string{get(hitURL), get(hitURL)}, []int{200, 429}, 1},
		{"know the visitor behind a proxy", one, []string{get(hitURL, forwarded("192.0.2.1")), get(hitURL, forwarded("192.0.2.2")), get(hitURL, forwarded("192.0.2.1"))}, []int{200, 200, 429}, 2},
		{"take an IPv6 /64 for one address", one, []string{get(hitURL, forwarded("2001:db8::1")), get(hitURL, forwarded("2001:db8::ffff:2")), get(hitURL, forwarded("2001:db8:0:1::1"))}, []int{200, 429, 200}, 2},
		{"spare who is exempt", RateLimits{PerAddress: 1, AddressBurst: 1, PerSite: 1, SiteBurst: 1, Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			[]string{get(hitURL, forwarded("192.0.2.1")), get(hitURL, forwarded("192.0.2.1")), get(hitURL), get(hitURL)}, []int{200, 200, 200, 429}, 3},
		{"count a token's hits like others", one, []string{get(hitURL + "&token_auth=a&cip=1.2.3.4"), get(hitURL + "&token_auth=b&cip=1.2.3.4")}, []int{200, 429}, 1},
		{"leave alone what would not be stored", one,
			[]string{get(hitURL), get("/matomo.php?idsite=1"), get(hitURL, "X-Moz: prefetch"), get(hitURL, "Cookie: matomo_ignore=ignore%3DKg%3D%3D"), get("/matomo.php"), get("/matomo.php?idsite=99999&rec=1")},
			[]int{200, 200, 200, 200, 200, 400}, 1},
		{"leave preflights alone", one, []string{get(hitURL), "OPTIONS /matomo.php HTTP/1.1\r\nHost: a\r\nAccess-Control-Request-Method: POST\r\n\r\n"}, []int{200, 204}, 1},
		{"leave health paths alone", one, []string{get(hitURL), get("/-/livez"), get("/-/readyz")}, []int{200, 200, 200}, 1},
		{"count what is forwarded", one, []string{get("/index.php"), get("/index.php"), get(hitURL)}, []int{418, 429, 429}, 0},
		{"count a bulk once for its address", RateLimits{PerAddress: 1, AddressBurst: 2}, []string{post("/matomo.php", bulk(1, 5)), get(hitURL), get(hitURL)}, []int{200, 200, 429}, 6},
		{"refuse what is beyond a site's", RateLimits{PerSite: 1, SiteBurst: 1}, []string{get(hitURL), get(hitURL), get("/matomo.php?idsite=2&rec=1")}, []int{200, 429, 200}, 2},
		{"take a bulk as a whole", RateLimits{PerSite: 1, SiteBurst: 5}, []string{post("/matomo.php", bulk(1, 3)), post("/matomo.php", bulk(1, 3)), post("/matomo.php", bulk(1, 2))}, []int{200, 429, 200}, 5},
		{"take a bulk beyond the burst when nothing is used up", RateLimits{PerSite: 1, SiteBurst: 5}, []string{post("/matomo.php", bulk(1, 50)), get(hitURL)}, []int{200, 429}, 50},
		{"give back what other sites were charged", RateLimits{PerSite: 1, SiteBurst: 1},
			[]string{get(hitURL), post("/matomo.php", `{"requests":["?idsite=2&rec=1","?idsite=1&rec=1","?idsite=3&rec=1"]}`), get("/matomo.php?idsite=2&rec=1"), get("/matomo.php?idsite=3&rec=1")}, []int{200, 429, 200, 200}, 3},
		{"give back what the address was charged for a site's refusal", RateLimits{PerAddress: 1, AddressBurst: 2, PerSite: 1, SiteBurst: 1}, []string{get(hitURL), get(hitURL), get("/matomo.php?idsite=2&rec=1")}, []int{200, 429, 200}, 2},
		{"are off by default", RateLimits{}, []string{get(hitURL), get(hitURL), get("/index.php")}, []int{200, 200, 418}, 2},
	}
	for _, tt := range tests {
		for _, way := range []string{"fast", "library"} {
			t.Run(tt.name+": "+way, func(t *testing.T) {
				r := newRig(t, limited(tt.limits))
				exchange := r.exchange
				if way == "library" {
					exchange = r.exchangeByLibrary
				}
				for i, raw := range tt.raw {
					a := exchange(t, raw)
					if !strings.HasPrefix(a.status, fmt.Sprintf("HTTP/1.1 %d ", tt.want[i])) {
						t.Errorf("request %d: got %s, want %d", i, a.status, tt.want[i])
					}
					if isRefusal := strings.Contains(a.status, " 429 "); isRefusal != (a.line("Retry-After") != "") {
						t.Errorf("request %d: got\n%s", i, a)
					}
				}
				stored := 0
				for _, set := range r.queue.take() {
					stored += len(set.Hits)
				}
				if stored != tt.stored || r.count(`sluice_proxy_hits_total{answer="stored"}`) != stored {
					t.Errorf("%d hits are stored, want %d", stored, tt.stored)
				}
			})
		}
	}

	t.Run("can be read by a script", func(t *testing.T) {
		r := newRig(t, limited(one))
		r.exchange(t, get(hitURL))
		a := r.exchange(t, post("/matomo.php", "idsite=1&rec=1", formType, "Origin: https://a.example"))
		if a.line("Access-Control-Allow-Origin") != "https://a.example" || a.line("Retry-After") != "1" || a.line("Cache-Control") != "no-store" {
			t.Errorf("got\n%s", a)
		}
		if n := r.count(`sluice_proxy_hits_total{answer="refused"}`); n != 1 {
			t.Errorf("%d hits are counted as refused, want 1", n)
		}
		if n := r.count(`sluice_proxy_rate_limited_total{by="address"}`); n != 1 {
			t.Errorf("%d requests are counted, want 1", n)
		}
	})
	t.Run("say to wait until it comes back", func(t *testing.T) {
		r := newRig(t, limited(RateLimits{PerSite: 1, SiteBurst: 30}))
		r.exchange(t, post("/matomo.php", bulk(1, 30)))
		if a := r.exchange(t, post("/matomo.php", bulk(1, 20))); a.line("Retry-After") != "20" {
			t.Errorf("got\n%s\nwant 20 s", a)
		}
	})
	t.Run("let a retry of what is stored through", func(t *testing.T) {
		r := newRig(t, limited(one))
		body := "idsite=1&rec=1&r=123456&_id=00fdfeae8e903fd9&send_image=0"
		conn := r.dial(t)
		reader := bufio.NewReader(conn)
		io.WriteString(conn, post("/matomo.php", body, formType)+get("/matomo.php?"+strings.Replace(body, "send_image=0", "send_image=1", 1))+get(hitURL))
		for i, want := range []string{" 204 ", " 200 ", " 429 "} {
			if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, want) {
				t.Errorf("answer %d: got %s %v, want %s", i, a.status, err, want)
			}
		}
		if sets := r.queue.take(); len(sets) != 1 {
			t.Errorf("%d sets are stored, want 1", len(sets))
		}
	})
}

func TestRateLimitsDoNotAllocate(t *testing.T) {
	e, _ := newEndpoint(func(c *Config) { c.RateLimits = RateLimits{PerAddress: maxRate, PerSite: maxRate} })
	r, hits := newRequest(""), []hit.Hit{{Site: 1}}
	if n := testing.AllocsPerRun(1000, func() {
		if _, ok := e.admits(r, hits); !ok {
			t.Fatal("refused")
		}
	}); n > 0 {
		t.Errorf("%v allocations for a hit, want none", n)
	}
}
