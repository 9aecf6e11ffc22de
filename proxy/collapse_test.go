package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sluice/internal/hit"
)

// longText is a page view as matomo.js writes it: longer than 2000 bytes, so that
// it does not travel in a URL, and with an apostrophe, which the script leaves and
// a browser encodes in a URL only.
var longText = "action_name=L'%C3%A9t%C3%A9&idsite=4&rec=1&r=834909&h=18&m=37&s=27&url=https%3A%2F%2Fshop.example%2F" +
	strings.Repeat("a", 2000) + "&_id=00fdfeae8e903fd9&_idn=1&send_image=0&_refts=0&pv_id=cwDamt&res=390x844"

const (
	corsMode   = "Sec-Fetch-Mode: cors"
	noCORSMode = "Sec-Fetch-Mode: no-cors"
)

// A jsTracker builds requests as js/piwik.js of Matomo 5 does, for one setTrackerUrl.
type jsTracker string

// xhr is sendXmlHttpRequest.
func (url jsTracker) xhr(text string, headers ...string) string {
	return post(string(url), text, append([]string{formType, chrome}, headers...)...)
}

// image is getImage, after which the browser encodes the apostrophe.
func (url jsTracker) image(text string, headers ...string) string {
	separator := "?"
	if strings.Contains(string(url), "?") {
		separator = "&"
	}
	text = strings.Replace(text, "send_image=0", "send_image=1", 1)
	return get(string(url)+separator+strings.ReplaceAll(text, "'", "%27"), append([]string{chrome}, headers...)...)
}

// beacon is sendPostRequestViaSendBeacon of a text that is long or a bulk.
func (url jsTracker) beacon(text string, headers ...string) string { return url.xhr(text, headers...) }

// bulkText is sendBulkRequest's.
func bulkText(texts ...string) string {
	return `{"requests":["?` + strings.Join(texts, `","?`) + `"],"send_image":0}`
}

const js jsTracker = "/matomo.php"

func collapsing(c *Config) { c.CollapseRetries = true }

// heldQueue lets a test decide when and how each Append ends. It takes two.
type heldQueue struct {
	fakeQueue
	entered chan struct{}
	end     chan error
}

func newHeldQueue() *heldQueue {
	return &heldQueue{entered: make(chan struct{}, 2), end: make(chan error)}
}

func (q *heldQueue) Append(ctx context.Context, sets ...*hit.RequestSet) error {
	q.entered <- struct{}{}
	if err := <-q.end; err != nil {
		return err
	}
	return q.fakeQueue.Append(ctx, sets...)
}

// TestRetryOfAHitWhoseAnswerWasLost defends promise 1 of an answer that says
// success, and that it stores nothing twice.
func TestRetryOfAHitWhoseAnswerWasLost(t *testing.T) {
	const withQuery jsTracker = "/matomo.php?tenant=7"
	other := strings.Replace(longText, "r=834909", "r=112233", 1)
	both := bulkText(longText, other)
	tests := []struct {
		name          string
		first, second string
		hits          int
		status        string
	}{
		{"an image after an XHR", js.xhr(longText), js.image(longText), 1, "200 OK"},
		{"in a browser that tells modes", js.xhr(longText, corsMode), js.image(longText, noCORSMode), 1, "200 OK"},
		{"with a query in the tracker's address", withQuery.xhr(longText), withQuery.image(longText), 1, "200 OK"},
		{"read by net/http", js.xhr(longText), js.image(longText, "TE: trailers"), 1, "200 OK"},
		{"of an XHR read by net/http", js.xhr(longText, "TE: trailers"), js.image(longText), 1, "200 OK"},
		{"a beacon after an XHR", js.xhr(longText, corsMode), js.beacon(longText, noCORSMode), 1, "204 No Content"},
		{"a bulk by beacon after an XHR", js.xhr(both, corsMode), js.beacon(both, noCORSMode), 2, "204 No Content"},
		{"without a visitor's id", js.xhr(strings.Replace(longText, "00fdfeae8e903fd9", "", 1)),
			js.image(strings.Replace(longText, "00fdfeae8e903fd9", "", 1)), 1, "200 OK"},
		{"an image without the change of send_image", js.xhr(longText),
			strings.Replace(js.image(longText), "send_image=1", "send_image=0", 1), 1, "204 No Content"},
		{"without send_image", js.xhr(strings.Replace(longText, "&send_image=0", "", 1)),
			js.image(strings.Replace(longText, "&send_image=0", "", 1)), 1, "200 OK"},
		{"with its parameters in the URL", post("/matomo.php?"+longText, "", chrome), js.image(longText), 1, "200 OK"},
		{"without a page view", js.xhr(strings.Replace(longText, "&pv_id=cwDamt", "", 1)),
			js.image(strings.Replace(longText, "&pv_id=cwDamt", "", 1)), 1, "200 OK"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, collapsing)
			q := newHeldQueue()
			r.endpoint.queue = q
			conn := r.dial(t)
			if _, err := io.WriteString(conn, tt.first); err != nil {
				t.Fatal(err)
			}
			<-q.entered
			conn.Close() // nobody reads the answer
			close(q.end)
			a := r.exchange(t, tt.second)
			if !strings.HasSuffix(a.status, tt.status) {
				t.Errorf("the retry is answered %q, want %q", a.status, tt.status)
			}
			if n := countHits(q.take()); n != tt.hits {
				t.Errorf("%d hits are stored, want %d", n, tt.hits)
			}
			if n := r.count("sluice_proxy_collapsed_hits_total"); n != tt.hits {
				t.Errorf("%d hits are counted as collapsed, want %d", n, tt.hits)
			}
			if n := r.count(`sluice_proxy_hits_total{answer="stored"}`); n != tt.hits {
				t.Errorf("%d hits are counted as stored, want %d", n, tt.hits)
			}
		})
	}
}

func countHits(sets []hit.RequestSet) (n int) {
	for _, s := range sets {
		n += len(s.Hits)
	}
	return n
}

func TestRetryOfAHitThatWasNotStoredIsStored(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"refused", errFull},
		{"uncertain", uncertainError{errFull}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, collapsing)
			r.queue.fail(tt.err)
			if a := r.exchange(t, js.xhr(longText)); !strings.Contains(a.status, "503") {
				t.Fatalf("the first is answered %q, want 503", a.status)
			}
			r.queue.fail(nil)
			if a := r.exchange(t, js.image(longText)); !strings.Contains(a.status, "200") {
				t.Errorf("the retry is answered %q, want 200", a.status)
			}
			if n := len(r.queue.take()); n != 1 {
				t.Errorf("%d hits are stored, want 1", n)
			}
		})
	}
}

// TestHitsThatAreNoRetriesAreStored sends requests one after the other. All of
// them are answered, and all are stored.
func TestHitsThatAreNoRetriesAreStored(t *testing.T) {
	without := func(old, replacement string) string {
		if !strings.Contains(longText, old) {
			t.Fatalf("no %q to change", old)
		}
		return strings.Replace(longText, old, replacement, 1)
	}
	anonymous := strings.Replace(without("_id=00fdfeae8e903fd9", "_id="), "&pv_id=cwDamt", "", 1)
	from := func(address string) string { return "X-Forwarded-For: " + address }
	theirs := longText + "&cip=203.0.113.9&token_auth=0123456789abcdef0123456789abcdef"
	bulk := bulkText(longText, without("r=834909", "r=112233"))
	partly := bulkText(longText, without("&r=834909", ""))
	const objects = `{"requests":[{"idsite":4,"rec":1,"url":"http://a/?idsite=4&r=1&pv_id=2"}],"send_image":0}`
	inURL := without("send_image=0", "send_image=1")
	getWithBody := strings.Replace(post("/matomo.php?"+inURL, "x", chrome), "POST", "GET", 1)
	tests := []struct {
		name     string
		requests []string
	}{
		{"another random number", []string{js.xhr(longText), js.image(without("r=834909", "r=834908"))}},
		{"another page view", []string{js.xhr(longText), js.image(without("cwDamt", "cwDamu"))}},
		{"another visitor", []string{js.xhr(longText), js.image(without("00fdfeae8e903fd9", "00fdfeae8e903fd8"))}},
		{"another page", []string{js.xhr(longText), js.image(without("shop.example", "shop.example2"))}},
		{"another site", []string{js.xhr(longText), js.image(without("idsite=4", "idsite=5"))}},
		{"another second", []string{js.xhr(longText), js.image(without("s=27", "s=28"))}},
		{"another tracker's query", []string{jsTracker("/matomo.php?a=1").xhr(longText), jsTracker("/matomo.php?a=2").image(longText)}},
		{"another address", []string{js.xhr(longText, from("192.0.2.7")), js.image(longText, from("192.0.2.8"))}},
		{"another browser", []string{js.xhr(longText), strings.Replace(js.image(longText), "Chrome/131", "Chrome/132", 1)}},
		{"no random number", []string{js.xhr(without("&r=834909", "")), js.image(without("&r=834909", ""))}},
		{"an empty random number", []string{js.xhr(without("r=834909", "r=")), js.image(without("r=834909", "r="))}},
		{"neither page view nor visitor", []string{js.xhr(anonymous), js.image(anonymous)}},
		{"a token of its own", []string{js.xhr(theirs), js.image(theirs)}},
		{"an image that a browser or proxy repeats", []string{js.image(longText), js.image(longText)}},
		{"an image before the XHR", []string{js.image(longText), js.xhr(longText)}},
		{"a log replayed with its fixed random numbers", []string{get("/matomo.php?" + longText), get("/matomo.php?" + longText), get("/matomo.php?" + longText)}},
		{"a load test with one body", []string{js.xhr(longText), js.xhr(longText), js.xhr(longText)}},
		{"a load test with one URL", []string{post("/matomo.php?"+longText, "", formType), post("/matomo.php?"+longText, "", formType)}},
		{"an XHR repeated by the network", []string{js.xhr(longText, corsMode), js.xhr(longText, corsMode)}},
		{"beacons", []string{js.beacon(longText, noCORSMode), js.beacon(longText, noCORSMode), js.image(longText, noCORSMode)}},
		{"a beacon of a browser that tells no modes", []string{js.xhr(longText), js.beacon(longText)}},
		{"an image where only one request tells its mode", []string{js.xhr(longText), js.image(longText, noCORSMode)}},
		{"a script's own GET", []string{js.xhr(longText, corsMode), js.image(longText, corsMode)}},
		{"an empty mode", []string{js.xhr(longText, corsMode), js.image(longText, "Sec-Fetch-Mode:")}},
		{"a form that a visitor sends", []string{js.xhr(longText, "Sec-Fetch-Mode: navigate"), js.image(longText, noCORSMode)}},
		{"a bulk sent twice", []string{js.xhr(bulk), js.xhr(bulk)}},
		{"a bulk of a browser that tells no modes", []string{js.xhr(bulk), js.beacon(bulk)}},
		{"a bulk with one hit that cannot be told from others", []string{js.xhr(partly, corsMode), js.beacon(partly, noCORSMode)}},
		{"objects in a bulk", []string{js.xhr(objects, corsMode), js.beacon(objects, noCORSMode)}},
		{"a list of random numbers", []string{js.xhr(without("r=834909", "r[]=834909")), js.image(without("r=834909", "r[]=834909"))}},
		{"a body that is no form", []string{post("/matomo.php?"+inURL, "x", "Content-Type: text/plain", chrome), get("/matomo.php?"+inURL+"&x", chrome)}},
		{"a GET with a body", []string{post("/matomo.php?"+inURL, "x", formType, chrome), getWithBody}},
		{"a GET with a body, with its mode", []string{post("/matomo.php?"+inURL, "x", formType, chrome, corsMode),
			strings.Replace(getWithBody, chrome, chrome+"\r\n"+noCORSMode, 1)}},
		{"a HEAD", []string{js.xhr(longText), strings.Replace(js.image(longText), "GET", "HEAD", 1)}},
		{"a HEAD, with its mode", []string{js.xhr(longText, corsMode), strings.Replace(js.image(longText, noCORSMode), "GET", "HEAD", 1)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(c *Config) {
				collapsing(c)
				c.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
			})
			want := 0
			for i, raw := range tt.requests {
				if a := r.exchange(t, raw); !strings.Contains(a.status, " 20") {
					t.Errorf("request %d is answered %q, want success", i, a.status)
				}
				want += strings.Count(raw, "idsite=")
			}
			if n := countHits(r.queue.take()); n != want {
				t.Errorf("%d hits are stored, want %d", n, want)
			}
			if n := r.count("sluice_proxy_collapsed_hits_total"); n != 0 {
				t.Errorf("%d hits are counted as collapsed, want 0", n)
			}
		})
	}
}

func TestEachHitHasOneRetry(t *testing.T) {
	r := newRig(t, collapsing)
	for _, raw := range []string{js.xhr(longText), js.image(longText), js.image(longText)} {
		r.exchange(t, raw)
	}
	if n := len(r.queue.take()); n != 2 {
		t.Errorf("%d hits are stored, want the first and the third", n)
	}
}

func TestRetriesAreStoredElsewhere(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second func(*Config)
	}{
		{"on another edge", collapsing, collapsing},
		{"after a restart", collapsing, collapsing},
		{"when retries are not collapsed", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newRig(t, tt.first)
			b := a
			if tt.second != nil {
				b = newRig(t, tt.second)
			}
			a.exchange(t, js.xhr(longText))
			b.exchange(t, js.image(longText))
			stored := append(a.queue.take(), b.queue.take()...)
			if n := len(stored); n != 2 {
				t.Errorf("%d hits are stored, want 2", n)
			}
		})
	}
}

// A bubble is an endpoint without sockets, for tests in which time runs.
type bubble struct {
	*endpoint
	queue *heldQueue
	wg    sync.WaitGroup
}

func newBubble() *bubble {
	e, _ := newEndpoint(collapsing)
	e.retries = newRetries()
	b := &bubble{endpoint: e, queue: newHeldQueue()}
	e.queue = b.queue
	return b
}

// send serves a request in a goroutine that ends with its answer.
func (b *bubble) send(ctx context.Context, method, text string) (status func() int) {
	r := newRequest(text)
	if method == "POST" {
		_, contentType, _ := strings.Cut(formType, ": ")
		r.method, r.query, r.body = "POST", nil, []byte(text)
		r.contentType = []byte(contentType)
	} else {
		r.query = []byte(strings.Replace(text, "send_image=0", "send_image=1", 1))
	}
	var mu sync.Mutex
	answered := 0
	b.wg.Go(func() {
		a := b.serve(ctx, r, new(scratch))
		mu.Lock()
		defer mu.Unlock()
		answered = a.status
	})
	return func() int { mu.Lock(); defer mu.Unlock(); return answered }
}

func TestRetryWaitsForTheFirst(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		status int // of the first
		stored int // when the retry is answered
	}{
		{"which is stored", nil, 204, 1},
		{"which is not stored", errFull, 503, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble()
				one := b.send(t.Context(), "POST", longText)
				<-b.queue.entered
				time.Sleep(time.Minute) // a commit may take its time, and a balancer give up
				two := b.send(t.Context(), "GET", longText)
				synctest.Wait()
				if s := two(); s != 0 {
					t.Fatalf("the retry is answered %d before the first is stored", s)
				}
				b.queue.end <- tt.err
				if tt.err != nil {
					<-b.queue.entered // the retry's own
					synctest.Wait()
					if s := two(); s != 0 {
						t.Fatalf("the retry is answered %d before it is stored", s)
					}
					b.queue.end <- nil
				}
				b.wg.Wait()
				if one() != tt.status || two() != 200 {
					t.Errorf("answered %d and %d, want %d and 200", one(), two(), tt.status)
				}
				if n := len(b.queue.take()); n != tt.stored {
					t.Errorf("%d hits are stored, want %d", n, tt.stored)
				}
			})
		})
	}
}

func TestRetryThatCannotWaitIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble()
		b.send(t.Context(), "POST", longText)
		<-b.queue.entered
		ctx, cancel := context.WithCancel(t.Context())
		two := b.send(ctx, "GET", longText)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if s := two(); s != 503 {
			t.Errorf("answered %d when the server ends, want 503", s)
		}
		b.queue.end <- nil
		b.wg.Wait()
	})
}

func TestRetryOfAHitWhoseStoringPanicsIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, q := newEndpoint(collapsing)
		e.retries = newRetries()
		e.queue = panicQueue{}
		b := &bubble{endpoint: e}
		func() {
			defer func() { _ = recover() }() // as serveConn does
			r := newRequest("")
			r.method, r.body, r.contentType = "POST", []byte(longText), []byte("application/x-www-form-urlencoded")
			b.serve(t.Context(), r, new(scratch))
		}()
		e.queue = q
		status := b.send(t.Context(), "GET", longText)
		b.wg.Wait()
		if n := len(q.take()); status() != 200 || n != 1 {
			t.Errorf("answered %d with %d hits stored, want 200 with 1", status(), n)
		}
	})
}

type panicQueue struct{}

func (panicQueue) Append(context.Context, ...*hit.RequestSet) error { panic("a fault of ours") }

func TestRetryIsKnownForTenSeconds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		commit time.Duration // from the first's arrival until it is stored
		wait   time.Duration // from then on
		want   int
	}{
		{"at once", 0, 0, 1},
		{"just within", 0, 10*time.Second - 1, 1},
		{"just beyond", 0, 10 * time.Second, 2},
		{"within, after a slow commit", time.Minute, 9 * time.Second, 1},
		{"beyond, after a slow commit", time.Minute, 11 * time.Second, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble()
				b.send(t.Context(), "POST", longText)
				<-b.queue.entered
				time.Sleep(tt.commit)
				b.queue.end <- nil
				b.wg.Wait()
				time.Sleep(tt.wait)
				two := b.send(t.Context(), "GET", longText)
				synctest.Wait()
				select {
				case <-b.queue.entered:
					b.queue.end <- nil
				default:
				}
				b.wg.Wait()
				if n := len(b.queue.take()); n != tt.want || two() != 200 {
					t.Errorf("%d hits are stored and the retry is answered %d, want %d and 200", n, two(), tt.want)
				}
			})
		})
	}
}

func TestRetriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newRetries()
		key := func(n int) (k retryKey) {
			binary.BigEndian.PutUint64(k[:], uint64(n))
			return k
		}
		const many = maxFirsts + maxFirsts/2
		for i := range many {
			table.settle(table.expect(key(i)), true)
		}
		if n := len(table.byKey); n != maxFirsts || table.listed != maxFirsts {
			t.Errorf("%d requests are known and %d listed, want %d", n, table.listed, maxFirsts)
		}
		if table.take(key(many-maxFirsts-1)) != nil {
			t.Error("one more than the limit is known")
		}
		if table.take(key(many-maxFirsts)) == nil || table.take(key(many-1)) == nil {
			t.Error("the newest are not known")
		}
		time.Sleep(collapseWindow)
		table.settle(table.expect(key(many)), false)
		if n := table.known.Load(); n != 0 {
			t.Errorf("%d are known when all are old or not stored, want none", n)
		}
		table.take(key(1))
		table.settle(table.expect(key(many+1)), true)
		if n := len(table.byKey); n != 1 || table.listed != 1 || table.known.Load() != 1 {
			t.Errorf("%d requests are known, %d listed and %d counted, want the last", n, table.listed, table.known.Load())
		}
	})
}

// TestRetriesAtTheSameTime sends many pairs at once, each retry as soon as its
// first has reached the queue, which fails every now and then.
func TestRetriesAtTheSameTime(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	e, _ := newEndpoint(collapsing)
	e.retries = newRetries()
	q := &countingQueue{stored: make(map[string]int), reached: make(map[string]chan struct{}), rng: rand.New(rand.NewPCG(seed, 0))}
	e.queue = q
	s := &Server{cfg: *e.cfg, endpoint: *e, metrics: e.metrics, hard: context.Background()}
	s.bodies.limit.Store(defaultBodyMemory)

	const visitors, hits = 32, 50
	var wg sync.WaitGroup
	for v := range visitors {
		for h := range hits {
			q.reached[fmt.Sprintf("%06d", v*hits+h)] = make(chan struct{})
		}
	}
	for v := range visitors {
		wg.Go(func() {
			for h := range hits {
				random := fmt.Sprintf("%06d", v*hits+h)
				text := strings.Replace(longText, "r=834909", "r="+random, 1)
				var first int
				var pair sync.WaitGroup
				pair.Go(func() {
					w := httptest.NewRecorder()
					r := httptest.NewRequest("POST", "/matomo.php", strings.NewReader(text))
					r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
					s.ServeHTTP(w, r)
					first = w.Code
				})
				<-q.reached[random]
				w := httptest.NewRecorder()
				image := strings.NewReplacer("send_image=0", "send_image=1", "'", "%27").Replace(text)
				s.ServeHTTP(w, httptest.NewRequest("GET", "/matomo.php?"+image, nil))
				stored := q.count(random)
				pair.Wait()
				if w.Code == 200 && stored != 1 || w.Code != 200 && first != 204 && stored != 0 {
					t.Errorf("hit %s is stored %d times when the retry is answered %d, the first %d", random, stored, w.Code, first)
				}
				if first == 204 && w.Code != 200 {
					t.Errorf("the retry of the stored hit %s is answered %d", random, w.Code)
				}
				if n := q.count(random); n > 1 {
					t.Errorf("hit %s is stored %d times", random, n)
				}
			}
		})
	}
	wg.Wait()
}

// countingQueue counts each hit by its random number, and refuses one in four.
type countingQueue struct {
	mu      sync.Mutex
	rng     *rand.Rand
	stored  map[string]int
	reached map[string]chan struct{} // closed when a hit comes first
	closed  [32 * 50]bool
}

func (q *countingQueue) Append(_ context.Context, sets ...*hit.RequestSet) error {
	_, after, _ := strings.Cut(string(sets[0].Hits[0].Params), "&r=")
	random := after[:6]
	q.mu.Lock()
	defer q.mu.Unlock()
	var n int
	fmt.Sscan(strings.TrimLeft(random, "0")+" ", &n)
	if !q.closed[n] {
		q.closed[n] = true
		close(q.reached[random])
	}
	if q.rng.IntN(4) == 0 {
		return errors.New("the disk says no")
	}
	q.stored[random]++
	return nil
}

func (q *countingQueue) count(random string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stored[random]
}
