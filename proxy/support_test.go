package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
	"sluice/proxy/certs"
)

// testTime is the clock of nearly every test: Thursday, 2026-11-19 12:00:00 UTC.
const testTime = 1795089600

// fakeQueue keeps copies of what it is given.
type fakeQueue struct {
	mu   sync.Mutex
	err  error // what Append answers
	sets []hit.RequestSet
}

func (q *fakeQueue) Append(_ context.Context, sets ...*hit.RequestSet) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return q.err
	}
	for _, s := range sets {
		// The codec copies, and shows that the set can be stored.
		c, rest, err := hit.DecodeRequestSet(hit.AppendRequestSet(nil, s))
		if err != nil || len(rest) != 0 {
			return fmt.Errorf("set is not storable: %w", err)
		}
		q.sets = append(q.sets, *c)
	}
	return nil
}

func (q *fakeQueue) take() []hit.RequestSet {
	q.mu.Lock()
	defer q.mu.Unlock()
	sets := q.sets
	q.sets = nil
	return sets
}

func (q *fakeQueue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
}

// fakeSites knows sites 1 to 9, is sure that 99999 is absent, and knows nothing
// of others.
type fakeSites struct{}

func (fakeSites) Lookup(_ context.Context, site int64) SiteAnswer {
	switch {
	case site <= 9:
		return SiteExists
	case site == 99999:
		return SiteAbsent
	}
	return SiteUnknown
}

// tooLargeError and uncertainError are errors as a queue declares them.
type tooLargeError struct{ error }

func (tooLargeError) TooLarge() bool { return true }

type uncertainError struct{ error }

func (uncertainError) Uncertain() bool { return true }

var errFull = errors.New("queue is full")

// A rig is a running server with its fakes.
type rig struct {
	*Server
	queue   *fakeQueue
	set     *metrics.Set
	matomo  *httptest.Server
	matomoN func() int // requests that reached Matomo
	stop    context.CancelFunc
	done    chan error
}

// newRig runs a server on loopback until the test ends. Change may be nil.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	r := &rig{queue: &fakeQueue{}, set: metrics.NewSet(), done: make(chan error, 1)}
	var mu sync.Mutex
	requests := 0
	r.matomo = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		mu.Lock()
		requests++
		mu.Unlock()
		body, _ := io.ReadAll(in.Body)
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s for=%s proto=%s host=%s", in.Method, in.URL.RequestURI(),
			in.Header.Get("X-Forwarded-For"), in.Header.Get("X-Forwarded-Proto"), in.Host+in.Header.Get("X-Forwarded-Host")))
		w.Header().Set("Content-Type", "text/x-matomo")
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(append([]byte("matomo got "), body...))
	}))
	t.Cleanup(r.matomo.Close)
	r.matomoN = func() int { mu.Lock(); defer mu.Unlock(); return requests }
	upstream, err := url.Parse(r.matomo.URL + "/base/")
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := certs.Open(certs.Config{Mode: certs.ModeSelfSigned, Dir: t.TempDir()}, slog.New(slog.DiscardHandler), r.set)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Listen: "127.0.0.1:0", ListenHTTP: "127.0.0.1:0", TLSConfig: keeper.TLSConfig(), Upstream: upstream,
		Grace: 5 * time.Second, Now: func() time.Time { return time.Unix(testTime, 123456789) },
	}
	if change != nil {
		change(&cfg)
	}
	logs := t.Output()
	r.Server, err = New(cfg, r.queue, fakeSites{}, slog.New(slog.NewTextHandler(logs, nil)), r.set)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	finished := make(chan struct{})
	go func() { // ends when Cleanup cancels ctx
		r.done <- r.Run(ctx)
		close(finished)
	}()
	t.Cleanup(func() {
		cancel()
		<-finished
	})
	select {
	case <-r.Started():
	case err := <-r.done:
		t.Fatalf("Run: %v", err)
	}
	return r
}

// dial opens a plain connection that fails rather than hangs.
func (r *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	_, plain := r.Addrs()
	conn, err := net.Dial("tcp", plain.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// A rawAnswer is an HTTP/1.1 answer as it came over the wire, but for its Date.
type rawAnswer struct {
	status string
	lines  []string // header lines in order
	body   string
}

func (a rawAnswer) String() string {
	return a.status + "\n" + strings.Join(a.lines, "\n") + "\n\n" + a.body
}

// line gives the value of a header in exactly this spelling.
func (a rawAnswer) line(name string) string {
	for _, l := range a.lines {
		if n, v, _ := strings.Cut(l, ":"); n == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// readAnswer reads one answer; the body is measured by its headers.
func readAnswer(r *bufio.Reader, method string) (rawAnswer, error) {
	var a rawAnswer
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadString('\n')
		if err != nil {
			return a, err
		}
		line = strings.TrimRight(line, "\r\n")
		if first {
			a.status = line
			continue
		}
		if line == "" {
			break
		}
		name, value, _ := strings.Cut(line, ": ")
		if strings.EqualFold(name, "Content-Length") {
			fmt.Sscan(value, &length)
		}
		if name != "Date" {
			a.lines = append(a.lines, line)
		}
	}
	if method == "HEAD" {
		length = 0
	}
	body := make([]byte, length)
	_, err := io.ReadFull(r, body)
	a.body = string(body)
	return a, err
}

// exchange sends a request's bytes on a new connection and reads one answer.
func (r *rig) exchange(t testing.TB, raw string) rawAnswer {
	t.Helper()
	conn := r.dial(t)
	defer conn.Close()
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(raw, " ")
	a, err := readAnswer(bufio.NewReader(conn), method)
	if err != nil {
		t.Fatalf("read answer to %.60q: %v", raw, err)
	}
	return a
}

// count gives a counter's value.
func (r *rig) count(name string) int {
	var b bytes.Buffer
	r.set.WritePrometheus(&b)
	for line := range strings.SplitSeq(b.String(), "\n") {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var n float64
			fmt.Sscan(rest, &n)
			return int(n)
		}
	}
	return 0
}

// newEndpoint makes an endpoint without listeners.
func newEndpoint(change func(*Config)) (*endpoint, *fakeQueue) {
	cfg := Config{Upstream: &url.URL{Scheme: "http", Host: "matomo.invalid"}}
	if change != nil {
		change(&cfg)
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		panic(err)
	}
	q := &fakeQueue{}
	live := new(atomic.Pointer[tuned])
	live.Store(tune(cfg.tunables(), cfg.MaskAddress))
	return &endpoint{cfg: &cfg, queue: q, sites: fakeSites{}, metrics: newInstruments(metrics.NewSet()),
		live: live, addresses: newBuckets(maxBuckets), bySite: newBuckets(maxSites)}, q
}

// newRequest makes a GET of the tracker from 192.0.2.1.
func newRequest(query string) *request {
	peer := netip.MustParseAddr("192.0.2.1")
	return &request{method: "GET", place: tracker, query: []byte(query), peer: peer, peerText: peer.String(),
		receivedAt: time.Unix(testTime, 0)}
}

func get(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: stats.example\r\n" + headerLines(headers) + "\r\n"
}

func post(target, body string, headers ...string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: stats.example\r\n%sContent-Length: %d\r\n\r\n%s",
		target, headerLines(headers), len(body), body)
}

func headerLines(headers []string) string {
	if len(headers) == 0 {
		return ""
	}
	return strings.Join(headers, "\r\n") + "\r\n"
}
