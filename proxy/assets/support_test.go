package assets

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// trackerText is JavaScript that passes for the tracker.
func trackerText(n int) []byte {
	return fmt.Appendf(nil, "/*!! Matomo %d */;%s/*!! @license-end */;\n", n, bytes.Repeat([]byte("if(a){b()}else{c(1,2,3)};"), 100))
}

func containerText(n int) []byte {
	return fmt.Appendf(nil, "/*!! %d */(function(){var MatomoTagManager={};%s})();", n, bytes.Repeat([]byte("var x=1;"), 100))
}

// A fakeOrigin is Matomo's web server. Its files can be changed at any time, and it
// can be made to lie.
type fakeOrigin struct {
	*httptest.Server
	t *testing.T

	mu    sync.Mutex
	files map[string]http.HandlerFunc
	asked []*http.Request
	hits  chan struct{}
}

func newOrigin(t *testing.T) *fakeOrigin {
	o := &fakeOrigin{t: t, files: make(map[string]http.HandlerFunc), hits: make(chan struct{}, 10000)}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	return o
}

func (o *fakeOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.asked = append(o.asked, r)
	h := o.files[r.URL.Path]
	o.mu.Unlock()
	select {
	case o.hits <- struct{}{}:
	default:
	}
	if h == nil {
		http.NotFound(w, r)
		return
	}
	h(w, r)
}

// has gives a path an answer.
func (o *fakeOrigin) has(path string, h http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.files[path] = h
}

// file gives a path a static file, of which every content has its own validators.
func (o *fakeOrigin) file(path string, body []byte) {
	o.has(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/javascript")
		w.Header().Set("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("ETag", `"o-`+hashOf(body)+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
}

func (o *fakeOrigin) requests(path string) []*http.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []*http.Request
	for _, r := range o.asked {
		if r.URL.Path == path {
			list = append(list, r)
		}
	}
	return list
}

// A clock is moved by hand.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// A rig is a cache with its origin.
type rig struct {
	*Cache
	t      *testing.T
	origin *fakeOrigin
	clock  *clock
	set    *metrics.Set
	dir    string
	stop   func()
}

// newRig makes a cache in dir whose workers run. It looks at files only when asked to,
// since its clock stands still.
func newRig(t *testing.T, o *fakeOrigin, dir string, change func(*Config)) *rig {
	t.Helper()
	base, err := url.Parse(o.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, origin: o, clock: &clock{at: time.Date(2026, 11, 19, 12, 0, 0, 0, time.UTC)}, set: metrics.NewSet(), dir: dir}
	cfg := Config{Dir: dir, Origin: base, Now: r.clock.now, Moment: time.Millisecond, FetchTimeout: 2 * time.Second}
	if change != nil {
		change(&cfg)
	}
	if r.Cache, err = New(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), r.set); err != nil {
		t.Fatal(err)
	}
	r.Load()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	// It ends with stop.
	go func() {
		defer close(done)
		_ = r.Run(ctx) // it never fails
	}()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(r.stop)
	return r
}

// upstream is what requests are passed on to.
var upstream = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusTeapot)
})

// get asks for a path with headers in pairs.
func (r *rig) get(path string, headers ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	return r.request(http.MethodGet, path, headers...)
}

func (r *rig) request(method, path string, headers ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	req := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	r.Serve(w, req, upstream)
	return w
}

// wants asks for a path and compares status and body, which may be nil for any.
func (r *rig) wants(path string, status int, body []byte) *httptest.ResponseRecorder {
	r.t.Helper()
	w := r.get(path)
	if w.Code != status || body != nil && !bytes.Equal(w.Body.Bytes(), body) {
		r.t.Errorf("%s: got %d with %d bytes %.40q, want %d with %d bytes", path, w.Code, w.Body.Len(), w.Body.Bytes(), status, len(body))
	}
	return w
}

// look looks at a file once, now.
func (r *rig) lookAt(path string) outcome {
	r.t.Helper()
	f := r.find(path)
	if f == nil {
		r.t.Fatalf("there is no copy of %s", path)
	}
	return r.check(r.t.Context(), f, checking{moment: r.cfg.Moment})
}

// settles looks twice, a moment apart.
func (r *rig) settles(path string, want outcome) {
	r.t.Helper()
	got := r.lookAt(path)
	r.clock.pass(r.cfg.Moment)
	if got == unsure {
		got = r.lookAt(path)
	}
	if got != want {
		r.t.Errorf("the looks at %s led to %s, want %s", path, got, want)
	}
}

// eventually waits for something that a goroutine of the cache does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		wait(ctx, 5*time.Millisecond)
		if ctx.Err() != nil {
			t.Fatalf("never: %s", what)
		}
	}
}
