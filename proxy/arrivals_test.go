package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// handClock is a wall clock that only a test moves.
type handClock struct {
	at   atomic.Int64 // Unix nanoseconds
	halt atomic.Pointer[halt]
}

// A halt stops the next reader of a clock that has its time already.
type halt struct{ reached, goOn chan struct{} }

func newHandClock() *handClock {
	c := &handClock{}
	c.at.Store(testTime * int64(time.Second))
	return c
}

func (c *handClock) now() time.Time {
	at := time.Unix(0, c.at.Load())
	if h := c.halt.Swap(nil); h != nil {
		close(h.reached)
		<-h.goOn
	}
	return at
}

// add moves the clock and gives its new time.
func (c *handClock) add(d time.Duration) time.Time { return time.Unix(0, c.at.Add(int64(d))) }

func TestArrivalsHoldTheTimeBack(t *testing.T) {
	clk := newHandClock()
	var a arrivals
	want := func(when string, want time.Time) {
		t.Helper()
		if got := a.since(clk.now); !got.Equal(want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	asked := clk.now()
	want("asked for the first time", asked)
	want("asked again at once", asked)
	asked = clk.add(time.Second)
	want("without any request", asked)

	arrival := clk.add(time.Second)
	first := a.enter()
	for range 4 {
		clk.add(time.Second)
		if got := a.since(clk.now); got.After(arrival) || got.Before(asked) {
			t.Errorf("with a request under way: got %v, want %v to %v", got, asked, arrival)
		}
	}
	second := a.enter() // while the first holds up
	a.leave(first)
	for range 4 {
		if got := a.since(clk.now); got.After(clk.now()) || got.Before(arrival) {
			t.Errorf("with a later request under way: got %v, want %v to %v", got, arrival, clk.now())
		}
	}
	clk.add(time.Second)
	a.leave(second)
	want("when all are done", clk.now())
}

// TestArrivalsGetOnUnderSteadyTraffic: at each moment some request is under way, and
// none is for long. The time is never older than the question before the last.
func TestArrivalsGetOnUnderSteadyTraffic(t *testing.T) {
	clk := newHandClock()
	var a arrivals
	a.since(clk.now)
	before := a.enter()
	for i := range 100 {
		lastAsked := clk.now()
		clk.add(time.Second)
		next := a.enter()
		a.leave(before)
		before = next
		if got := a.since(clk.now); i > 0 && got.Before(lastAsked) {
			t.Fatalf("question %d at %v: got %v, want %v at the earliest", i, clk.now(), got, lastAsked)
		}
	}
}

// TestARequestThatArrivesBetweenTwoEpochs: it enters before an epoch begins whose
// beginning is later than its arrival.
func TestARequestThatArrivesBetweenTwoEpochs(t *testing.T) {
	for reading := range 2 {
		t.Run(fmt.Sprintf("at reading %d of the clock", reading), func(t *testing.T) {
			clk := newHandClock()
			var a arrivals
			a.since(clk.now)
			clk.add(time.Second)
			var epoch uint64
			var arrival time.Time
			readings := 0
			a.since(func() time.Time {
				if readings == reading {
					epoch, arrival = a.enter(), clk.now()
					clk.add(time.Second)
				}
				readings++
				return clk.now()
			})
			if arrival.IsZero() {
				t.Fatalf("the clock was read %d times, want more than %d", readings, reading)
			}
			for range 4 {
				clk.add(time.Second)
				if got := a.since(clk.now); got.After(arrival) {
					t.Errorf("got %v while a request of %v is under way", got, arrival)
				}
			}
			a.leave(epoch)
			if got := a.since(clk.now); !got.Equal(clk.now()) {
				t.Errorf("got %v after it, want %v", got, clk.now())
			}
		})
	}
}

// TestArrivalsAtTheSameTime: whatever time was given while a request is under way is
// not later than its arrival, which is read after it has entered.
func TestArrivalsAtTheSameTime(t *testing.T) {
	// More threads than processors: the kernel stops some within a step.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	var a arrivals
	base := time.Now()
	var newest atomic.Int64 // nanoseconds since base, of what was given so far
	var watchers, workers sync.WaitGroup
	done := make(chan struct{})
	slow := func() time.Time { // leaves others the time to enter before it is read
		runtime.Gosched()
		return time.Now()
	}
	for range 2 {
		watchers.Go(func() { // ends with the workers
			for {
				given := int64(a.since(slow).Sub(base))
				for old := newest.Load(); given > old && !newest.CompareAndSwap(old, given); old = newest.Load() {
				}
				select {
				case <-done:
					return
				default:
					runtime.Gosched()
				}
			}
		})
	}
	const rounds = 150_000
	for w := range 3 {
		workers.Go(func() {
			for i := range rounds {
				epoch := a.enter()
				arrival := int64(time.Since(base))
				for range (i + w) % 4 {
					runtime.Gosched()
				}
				if given := newest.Load(); given > arrival {
					t.Errorf("%v was given while a request of %v was under way", time.Duration(given), time.Duration(arrival))
					a.leave(epoch)
					return
				}
				a.leave(epoch)
			}
		})
	}
	workers.Wait()
	close(done)
	watchers.Wait()
	at := time.Now()
	if got := a.since(time.Now); got.Before(at) {
		t.Errorf("got %v when all are done, want %v or later", got, at)
	}
	if newest.Load() == 0 {
		t.Error("the time never got on while requests came and went")
	}
}

// A way sends a request to a running server. What comes is nil after an answer with
// 200, and an error otherwise.
type way struct {
	name string
	fast bool
	send func(t *testing.T, r *rig, query string) <-chan error
}

var ways = []way{
	{"GET on the fast path", true, func(t *testing.T, r *rig, query string) <-chan error {
		return r.sendRaw(t, get("/matomo.php?"+query))
	}},
	{"POST on the fast path", true, func(t *testing.T, r *rig, query string) <-chan error {
		return r.sendRaw(t, post("/matomo.php", `{"requests":["?`+query+`"]}`))
	}},
	{"GET by net/http", false, func(t *testing.T, r *rig, query string) <-chan error {
		return r.sendRaw(t, get("/matomo.php?"+query, "TE: trailers"))
	}},
	{"POST by net/http", false, func(t *testing.T, r *rig, query string) <-chan error {
		return r.sendRaw(t, post("/matomo.php", `{"requests":["?`+query+`"]}`, "TE: trailers"))
	}},
	{"HTTP/2", false, sendHTTP2},
}

func (r *rig) sendRaw(t *testing.T, raw string) <-chan error {
	t.Helper()
	conn := r.dial(t)
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	return answered(conn)
}

// answered reads one answer from a connection.
func answered(conn net.Conn) <-chan error {
	done := make(chan error, 1)
	go func() { // ends with an answer, the connection, or its deadline
		a, err := readAnswer(bufio.NewReader(conn), "GET")
		if err == nil && !strings.Contains(a.status, " 200 ") {
			err = errors.New(a.status)
		}
		done <- err
	}()
	return done
}

func sendHTTP2(t *testing.T, r *rig, query string) <-chan error {
	t.Helper()
	secure, _ := r.Addrs()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", secure.String())
		},
	}}
	t.Cleanup(client.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://stats.example/matomo.php?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // ends with an answer or with the test
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
				err = errors.New(resp.Proto + " " + resp.Status)
			}
		}
		done <- err
	}()
	return done
}

// clockedRig runs a server with a clock that stands, and its queue held.
func clockedRig(t *testing.T) (*rig, *handClock, *heldQueue) {
	t.Helper()
	clk := newHandClock()
	r := newRig(t, func(c *Config) { c.Now = clk.now })
	q := newHeldQueue()
	r.endpoint.queue = q
	return r, clk, q
}

// TestWrittenWaitsForWhatIsBeingStored: until the queue has answered, Written stays
// before the request's arrival; then it gets on, before the client has its answer.
func TestWrittenWaitsForWhatIsBeingStored(t *testing.T) {
	for _, way := range ways {
		for _, outcome := range []error{nil, errFull} {
			t.Run(fmt.Sprintf("%s, outcome %v", way.name, outcome), func(t *testing.T) {
				r, clk, q := clockedRig(t)
				if got := r.Written(); !got.Equal(clk.now()) {
					t.Fatalf("without a request: got %v, want %v", got, clk.now())
				}
				arrival := clk.add(time.Second)
				done := way.send(t, r, "idsite=1&rec=1&url=a")
				<-q.entered
				for range 4 {
					clk.add(time.Minute)
					if got := r.Written(); got.After(arrival) {
						t.Errorf("got %v while a request of %v is being stored", got, arrival)
					}
				}
				q.end <- outcome
				if err := <-done; (err == nil) != (outcome == nil) {
					t.Errorf("answered with %v", err)
				}
				if got := r.Written(); !got.Equal(clk.now()) {
					t.Errorf("after the answer: got %v, want %v", got, clk.now())
				}
				for _, set := range q.take() {
					if set.ReceivedAt != arrival.UnixNano() {
						t.Errorf("stored as received at %v, want %v", time.Unix(0, set.ReceivedAt), arrival)
					}
				}
				if fast := r.count("sluice_proxy_fast_requests_total") > 0; fast != way.fast {
					t.Errorf("on the fast path: %v, want %v", fast, way.fast)
				}
			})
		}
	}
}

// TestARequestCountsBeforeItsArrivalIsRead: there is no moment at which a request has
// its time and does not hold Written back.
func TestARequestCountsBeforeItsArrivalIsRead(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			r, clk, q := clockedRig(t)
			arrival := clk.add(time.Second)
			h := &halt{make(chan struct{}), make(chan struct{})}
			clk.halt.Store(h)
			done := way.send(t, r, "idsite=1&rec=1&url=a")
			<-h.reached
			for range 4 {
				clk.add(time.Minute)
				if got := r.Written(); got.After(arrival) {
					t.Errorf("got %v while a request has read %v", got, arrival)
				}
			}
			close(h.goOn)
			<-q.entered
			q.end <- nil
			if err := <-done; err != nil {
				t.Error(err)
			}
			if sets := q.take(); len(sets) != 1 || sets[0].ReceivedAt != arrival.UnixNano() {
				t.Errorf("stored %v, want one request of %v", describe(sets), arrival)
			}
			if got := r.Written(); !got.Equal(clk.now()) {
				t.Errorf("after the answer: got %v, want %v", got, clk.now())
			}
		})
	}
}

// TestARequestThatIsNotWholeHasNotArrived: a client that sends slowly holds nothing
// back, and its hit counts from when it is whole.
func TestARequestThatIsNotWholeHasNotArrived(t *testing.T) {
	for _, header := range []string{"X-None: fast", "TE: trailers"} {
		t.Run(header, func(t *testing.T) {
			r, clk, q := clockedRig(t)
			raw := post("/matomo.php", `{"requests":["?idsite=1&rec=1"]}`, header)
			conn := r.dial(t)
			if _, err := io.WriteString(conn, raw[:len(raw)-9]); err != nil {
				t.Fatal(err)
			}
			at := clk.add(time.Minute)
			if got := r.Written(); !got.Equal(at) {
				t.Errorf("got %v while a client sends, want %v", got, at)
			}
			at = clk.add(time.Minute)
			if _, err := io.WriteString(conn, raw[len(raw)-9:]); err != nil {
				t.Fatal(err)
			}
			<-q.entered
			q.end <- nil
			if err := <-answered(conn); err != nil {
				t.Error(err)
			}
			if sets := q.take(); len(sets) != 1 || sets[0].ReceivedAt != at.UnixNano() {
				t.Errorf("stored %v, want one request of %v", describe(sets), at)
			}
		})
	}
}

// TestARequestThatPanicsIsDone: a fault of ours must not hold every later day open.
func TestARequestThatPanicsIsDone(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			r, clk, _ := clockedRig(t)
			r.endpoint.queue = panicQueue{}
			if err := <-way.send(t, r, "idsite=1&rec=1&url=a"); err == nil {
				t.Error("answered with 200, want a connection that ends")
			}
			clk.add(time.Minute)
			if got := r.Written(); !got.Equal(clk.now()) {
				t.Errorf("got %v, want %v", got, clk.now())
			}
		})
	}
}

// TestOneSlowRequestDoesNotStopWritten: once it is done, Written gets on to the arrival
// of those behind it.
func TestOneSlowRequestDoesNotStopWritten(t *testing.T) {
	r, clk, q := clockedRig(t)
	first := ways[0].send(t, r, "idsite=1&rec=1&url=a")
	<-q.entered
	r.Written()
	clk.add(time.Second)
	second := ways[2].send(t, r, "idsite=1&rec=1&url=b")
	<-q.entered
	arrival := clk.now()
	clk.add(time.Second)
	r.Written()
	q.end <- nil // one of them, whichever
	select {
	case err := <-first:
		if err != nil {
			t.Error(err)
		}
		for range 3 {
			if got := r.Written(); got.After(arrival) {
				t.Errorf("got %v while a request of %v is being stored", got, arrival)
			}
		}
	case err := <-second:
		if err != nil {
			t.Error(err)
		}
		for range 3 {
			if got := r.Written(); got.After(arrival.Add(-time.Second)) {
				t.Errorf("got %v while a request of %v is being stored", got, arrival.Add(-time.Second))
			}
		}
	}
	q.end <- nil
	select {
	case <-first:
	case <-second:
	}
	if got := r.Written(); !got.Equal(clk.now()) {
		t.Errorf("after both: got %v, want %v", got, clk.now())
	}
}
