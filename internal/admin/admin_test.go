package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// world is everything that a Server tells about, made up.
type world struct {
	stats    Stats
	counters []Counter
	pending  []hit.Pending
	dead     []*hit.DeadLetter
	failing  error // given after the last pending or dead hit
	report   Report
	requeued DeadFilter
	imported []hit.Pending
	outcomes []hit.Imported
	order    hit.ImportOrder
	drain    DrainStatus
	paused   string
	until    time.Time
}

func (w *world) Stats() Stats                           { return w.stats }
func (w *world) Counters() []Counter                    { return w.counters }
func (w *world) Verify(context.Context) (Report, error) { return w.report, w.failing }
func (w *world) Status() DrainStatus                    { return w.drain }
func (w *world) Pause(who, why string, until time.Time) { w.paused, w.until = who+": "+why, until }
func (w *world) Resume(who string)                      { w.paused = "" }

func (w *world) Peek(_ context.Context, f PeekFilter) iter.Seq2[hit.Pending, error] {
	return func(yield func(hit.Pending, error) bool) {
		for i, p := range w.pending {
			if f.Site != nil && *f.Site != p.Site || f.Limit != 0 && i >= f.Limit {
				continue
			}
			if !yield(p, nil) {
				return
			}
		}
		if w.failing != nil {
			yield(hit.Pending{}, w.failing)
		}
	}
}

func (w *world) Find(_ context.Context, id hit.ID) (hit.Pending, error) {
	for _, p := range w.pending {
		if p.ID == id {
			return p, nil
		}
	}
	return hit.Pending{}, ErrNotFound
}

func (w *world) Dead(_ context.Context, f DeadFilter) iter.Seq2[*hit.DeadLetter, error] {
	return func(yield func(*hit.DeadLetter, error) bool) {
		if w.failing != nil && !yield(nil, w.failing) {
			return
		}
		for _, l := range w.dead {
			if f.Reason != "" && f.Reason != l.Reason || len(f.IDs) > 0 && f.IDs[0] != l.ID {
				continue
			}
			if !yield(l, nil) {
				return
			}
		}
	}
}

func (w *world) Import(_ context.Context, hits []hit.Pending, order hit.ImportOrder) ([]hit.Imported, error) {
	w.imported, w.order = append(w.imported, hits...), order
	if w.outcomes == nil {
		return make([]hit.Imported, len(hits)), w.failing
	}
	return w.outcomes, w.failing
}

func (w *world) Requeue(_ context.Context, f DeadFilter) (int, error) {
	w.requeued = f
	return len(w.dead), w.failing
}

var (
	clock  = time.Date(2026, 3, 16, 23, 50, 4, 0, time.UTC)
	siteOf = func(n int64) *int64 { return &n }
)

const (
	token   = "token-of-the-operator"
	control = "key-in-the-data-directory"
)

// newWorld has two pending hits and one buried, all with things to hide.
func newWorld() *world {
	environment := &hit.Environment{ClientIP: "203.0.113.77", UserAgent: "Firefox", Referer: "http://ref.example/?q=secret-query"}
	first := hit.Hit{Site: 1, At: clock.Unix(), Params: []byte("idsite=1&rec=1&url=http%3A%2F%2Fshop.example%2Fa%3Fq%3Dsecret-query&_id=0123456789abcdef&uid=anna&token%2Eauth=secret-token")}
	second := hit.Hit{
		Site: 2, At: clock.Unix(), Form: hit.Object, Rights: hit.Theirs, Token: "secret-token",
		Params: []byte(`{"idsite":2,"e_c":"x","cid":"fedcba9876543210","token_auth":"secret-token"}`),
	}
	third := hit.Hit{Site: 1, At: clock.Unix(), Params: []byte("idsite=1&rec=1&url=\xff\xfe")}
	return &world{
		stats: Stats{Accepted: 10, Delivered: 6, Invalid: 1, Dead: 1, Pending: 2, PendingBytes: 800, OldestReceivedAt: clock.Add(-time.Hour).UnixNano(), FreeBytes: 1 << 30, Reserve: 2 << 30, Generation: 0xabc},
		pending: []hit.Pending{
			{ID: hit.ID{Generation: 7, Block: 1}, ReceivedAt: clock.UnixNano(), Environment: environment, Hit: first},
			{ID: hit.ID{Generation: 7, Block: 2}, ReceivedAt: clock.UnixNano(), Environment: environment, Hit: second, Uncertain: 3},
		},
		dead: []*hit.DeadLetter{{
			ID: hit.ID{Generation: 7, Block: 1, Index: 9}, ReceivedAt: clock.UnixNano(), BuriedAt: clock.UnixNano(), Environment: *environment,
			Hit: third, Reason: "poison", Status: 500, Answer: []byte("<b>anna</b>"),
		}},
		drain: DrainStatus{State: "sending"},
	}
}

func newServer(t *testing.T, w *world, cfg Config) *Server {
	t.Helper()
	cfg.Edge, cfg.Version, cfg.Control = "fra-1", "1.2.3", control
	s, err := New(cfg, Parts{
		Queue: w, Reader: w, DeadLetters: w, Importer: w, Drain: w, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return clock },
		Metrics: []*metrics.Set{metrics.NewSet()},
		Checks:  []Check{{"queue", func() error { return w.failing }}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends one request; header lines have the form "Name: value".
func ask(s *Server, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "127.0.0.1:8444"
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			r.Host = value
		}
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

const bearer = "Authorization: Bearer "

func TestWhoMayDoWhat(t *testing.T) {
	const export = "/api/v1/queue/hits?view=export"
	tests := []struct {
		name         string
		token        string // configured
		method, path string
		header       string
		want         int
	}{
		{"health is for everybody", token, "GET", "/livez", "", 200},
		{"readiness is for everybody", token, "GET", "/readyz", "", 200},
		{"alias of health is for everybody", token, "HEAD", "/-/healthy", "", 200},
		{"metrics are open without a token configured", "", "GET", "/metrics", "", 200},
		{"metrics ask for the token when there is one", token, "GET", "/metrics", "", 401},
		{"metrics take the token", token, "GET", "/metrics", bearer + token, 200},
		{"metrics take the control key", token, "GET", "/metrics", bearer + control, 200},
		{"wrong token is refused", token, "GET", "/metrics", bearer + token + "x", 401},
		{"empty token is refused", token, "GET", "/metrics", bearer, 401},
		{"empty token is no control without a token configured", "", "POST", "/api/v1/drain/resume", bearer, 401},
		{"masked list is open without a token configured", "", "GET", "/api/v1/queue/hits", "", 200},
		{"full list asks for control", "", "GET", "/api/v1/queue/hits?view=full", "", 401},
		{"export asks for control", "", "GET", export, "", 401},
		{"export takes the control key", "", "GET", export, bearer + control, 200},
		{"buried in full ask for control", "", "GET", "/api/v1/queue/dead?view=full", "", 401},
		{"one hit in full asks for control", "", "GET", "/api/v1/queue/hits/0000000000000007-1-0?view=full", "", 401},
		{"pause asks for control", "", "POST", "/api/v1/drain/pause", "", 401},
		{"requeue asks for control", "", "POST", "/api/v1/queue/requeue", "", 401},
		{"import asks for control", "", "POST", "/api/v1/queue/import", "", 401},
		{"verify asks for control", "", "POST", "/api/v1/queue/verify", "", 401},
		{"nothing changes by GET", "", "GET", "/api/v1/drain/pause", bearer + control, 405},
		{"profiles ask for the token when there is one", token, "GET", "/debug/pprof/", "", 401},
		{"unknown path is not found", "", "GET", "/nothing", "", 404},
		{"localhost is a known name", "", "GET", "/livez", "Host: localhost:8444", 200},
		{"address is always known", "", "GET", "/livez", "Host: [::1]:8444", 200},
		{"configured name is known", "", "GET", "/livez", "Host: edge.internal", 200},
		{"foreign name is refused", "", "GET", "/livez", "Host: rebound.example", 403},
		{"no name at all is an old health checker", "", "GET", "/livez", "Host: ", 200},
		{"order from another page is refused", "", "POST", "/api/v1/drain/resume", "Sec-Fetch-Site: cross-site", 403},
		{"order from another origin is refused", "", "POST", "/api/v1/drain/resume", "Origin: http://evil.example", 403},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, newWorld(), Config{Token: tt.token, Hosts: []string{"edge.internal"}})
			got := ask(s, tt.method, tt.path, "{}", tt.header)
			if got.Code != tt.want {
				t.Errorf("%s %s answers %d, want %d: %s", tt.method, tt.path, got.Code, tt.want, got.Body)
			}
			if got.Header().Get("Cache-Control") != "no-store" || got.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers are %v", got.Header())
			}
		})
	}
}

func TestViewsShowNoMoreThanTheyMay(t *testing.T) {
	paths := []string{"/api/v1/queue/hits", "/api/v1/queue/dead", "/api/v1/queue/hits/0000000000000007-1-0", "/api/v1/queue/hits/0000000000000007-2-0", "/api/v1/queue/hits/0000000000000007-1-9", "/api/v1/queue/dead/summary", "/api/v1/queue/stats", "/api/v1/queue/sites", "/"}
	views := []struct {
		query  string
		hidden []string
		shown  []string // somewhere in all the answers together
	}{
		{"", []string{"secret-token", "secret-query", "anna", "203.0.113.77", "0123456", "fedcba9"}, []string{"203.0.0.0/16", "012345", "fedcba", `"path":"/a"`, "buried", "uncertain", `"kind":"event"`, "poison"}},
		{"?view=full", []string{"secret-token"}, []string{"203.0.113.77", "anna", "secret-query", "(hidden)", "params_base64"}},
		{"?view=export", nil, []string{"secret-token", "203.0.113.77", `"token_auth":"secret-token"`}},
	}
	for _, v := range views {
		t.Run("view"+v.query, func(t *testing.T) {
			s := newServer(t, newWorld(), Config{})
			var all strings.Builder
			for _, path := range paths {
				got := ask(s, "GET", path+v.query, "", bearer+control)
				if got.Code != http.StatusOK {
					t.Errorf("%s answers %d", path, got.Code)
				}
				all.WriteString(got.Body.String())
			}
			for _, text := range v.hidden {
				if strings.Contains(all.String(), text) {
					t.Errorf("shows %q:\n%s", text, all.String())
				}
			}
			for _, text := range v.shown {
				if !strings.Contains(all.String(), text) {
					t.Errorf("does not show %q:\n%s", text, all.String())
				}
			}
		})
	}
}

func TestHideToken(t *testing.T) {
	tests := []struct {
		name string
		form hit.Form
		text string
		want string
	}{
		{"plain is hidden", hit.Query, "a=1&token_auth=x&b=2", "a=1&token_auth=(hidden)&b=2"},
		{"encoded name is hidden", hit.Query, "%74oken_auth=x", "%74oken_auth=(hidden)"},
		{"name as PHP mangles it is hidden", hit.Query, "+token.auth=x&token%20auth=y", "+token.auth=(hidden)&token%20auth=(hidden)"},
		{"name cut at a zero byte is hidden", hit.Query, "token_auth%00%zz=x", "token_auth%00%zz=(hidden)"},
		{"array is hidden", hit.Query, "token_auth[]=x", "token_auth[]=(hidden)"},
		{"similar name is kept", hit.Query, "mytoken_auth=x", "mytoken_auth=x"},
		{"object is hidden", hit.Object, `{"token_auth":"x","a":1}`, `{"a":1,"token_auth":"(hidden)"}`},
		{"broken object is hidden whole", hit.Object, `{"token_auth":"x"`, "(hidden)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := hideToken(&hit.Hit{Form: tt.form, Params: []byte(tt.text)}); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func FuzzShow(f *testing.F) {
	f.Add([]byte("idsite=1&url=http://a/b?c=d&_id=1"), "1.2.3.4", false)
	f.Add([]byte(`{"idsite":1,"url":"http://a/"}`), "2001:db8::1", true)
	f.Add([]byte("\xff%zz&=&[]="), "fe80::1%eth0", false)
	f.Fuzz(func(t *testing.T, params []byte, address string, object bool) {
		h := hit.Hit{Params: params, Token: "t0ken-t0ken"}
		if object {
			h.Form = hit.Object
		}
		for _, v := range []View{Masked, Full, Export} {
			show(hit.ID{}, 0, &h, &hit.Environment{ClientIP: address}, v)
		}
		if bytes.Contains(params, []byte("t0ken-t0ken")) {
			return
		}
		if r := request(&h, &hit.Environment{}, Full); strings.Contains(r.Params+r.Token, "t0ken-t0ken") {
			t.Errorf("full view shows the token: %+v", r)
		}
	})
}

func TestOrders(t *testing.T) {
	const requeue, pause = "/api/v1/queue/requeue", "/api/v1/drain/pause"
	tests := []struct {
		name, path, body string
		want             int
		text             string
	}{
		{"requeue by ids is done", requeue, `{"who":"anna","ids":["0000000000000007-1-9"]}`, 200, `"requeued":1`},
		{"requeue by reason with a bound is done", requeue, `{"who":"anna","reason":"poison","up_to":"0000000000000007-1-9"}`, 200, `"requeued":1`},
		{"requeue without a bound is refused", requeue, `{"who":"anna","reason":"poison"}`, 400, "up_to is missing"},
		{"requeue of everything without a bound is refused", requeue, `{}`, 400, "up_to is missing"},
		{"requeue of a bad id is refused", requeue, `{"ids":["7"]}`, 400, "not a hit id"},
		{"requeue with a bad bound is refused", requeue, `{"up_to":"7"}`, 400, "not a hit id"},
		{"requeue with an unknown field is refused", requeue, `{"upto":"0000000000000007-1-9"}`, 400, "unknown field"},
		{"requeue without JSON is refused", requeue, `x`, 400, "not the JSON"},
		{"pause is done", pause, `{"who":"anna","why":"update","seconds":60}`, 200, `"state":"sending"`},
		{"pause without an end is refused", pause, `{"who":"anna","why":"update"}`, 400, "seconds"},
		{"pause of more than a day is refused", pause, `{"who":"anna","why":"update","seconds":86401}`, 400, "seconds"},
		{"pause without a name is refused", pause, `{"why":"update","seconds":60}`, 400, "who and why"},
		{"resume is done", "/api/v1/drain/resume", `{"who":"anna"}`, 200, `"state":"sending"`},
		{"body of a megabyte is refused", pause, `{"who":"` + strings.Repeat("x", 2<<20) + `"}`, 400, "too large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			got := ask(newServer(t, w, Config{}), "POST", tt.path, tt.body, bearer+control)
			if got.Code != tt.want || !strings.Contains(got.Body.String(), tt.text) {
				t.Errorf("answers %d %s, want %d with %q", got.Code, got.Body, tt.want, tt.text)
			}
			if tt.want != 200 && (w.paused != "" || w.requeued.UpTo != nil || w.requeued.IDs != nil) {
				t.Errorf("a refused order was carried out: %+v", w)
			}
		})
	}
}

func TestPauseEndsWhenItWasOrderedTo(t *testing.T) {
	w := newWorld()
	ask(newServer(t, w, Config{}), "POST", "/api/v1/drain/pause", `{"who":"anna","why":"update","seconds":90}`, bearer+control)
	if w.paused != "anna: update" || !w.until.Equal(clock.Add(90*time.Second)) {
		t.Errorf("paused by %q until %v", w.paused, w.until)
	}
}

func TestReadiness(t *testing.T) {
	w := newWorld()
	s := newServer(t, w, Config{})
	if got := ask(s, "GET", "/readyz", ""); got.Code != 200 || got.Body.String() != "ok\n" {
		t.Errorf("ready answers %d %q", got.Code, got.Body)
	}
	if got := ask(s, "GET", "/readyz?verbose", ""); got.Body.String() != "[+]queue ok\nready\n" {
		t.Errorf("verbose answers %q", got.Body)
	}
	w.failing = errors.New("the disk hangs")
	if got := ask(s, "GET", "/readyz", ""); got.Code != 503 || got.Body.String() != "[-]queue failed: the disk hangs\nnot ready\n" {
		t.Errorf("not ready answers %d %q", got.Code, got.Body)
	}
	if got := ask(s, "GET", "/readyz?exclude=queue", ""); got.Code != 200 {
		t.Errorf("with the check excluded it answers %d", got.Code)
	}
	if got := ask(s, "GET", "/livez", ""); got.Code != 200 {
		t.Errorf("live answers %d while not ready", got.Code)
	}
	w.drain.State = "holding"
	if got := ask(s, "GET", "/sinkz", ""); got.Code != 503 || !strings.Contains(got.Body.String(), `"state":"holding"`) {
		t.Errorf("sinkz answers %d %s", got.Code, got.Body)
	}
}

func TestBadQuestionsAreRefused(t *testing.T) {
	s := newServer(t, newWorld(), Config{})
	for _, path := range []string{
		"/api/v1/queue/hits?site=x", "/api/v1/queue/hits?limit=-1", "/api/v1/queue/hits?limit=x", "/api/v1/queue/hits?after=7",
		"/api/v1/queue/dead?up_to=7", "/api/v1/queue/dead/summary?site=x", "/api/v1/queue/hits/7",
	} {
		if got := ask(s, "GET", path, ""); got.Code != 400 {
			t.Errorf("%s answers %d %s", path, got.Code, got.Body)
		}
	}
	if got := ask(s, "GET", "/api/v1/queue/hits/0000000000000007-5-5", ""); got.Code != 404 {
		t.Errorf("unknown hit answers %d", got.Code)
	}
}

func TestNewNeedsAllParts(t *testing.T) {
	if _, err := New(Config{}, Parts{}); err == nil {
		t.Error("New without parts gives no error")
	}
}

func TestRunServesUntilToldToStop(t *testing.T) {
	s := newServer(t, newWorld(), Config{Listen: "127.0.0.1:0"})
	if err := s.Run(t.Context()); err == nil {
		t.Error("Run before Listen gives no error")
	}
	addr, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	resp, err := http.Get("http://" + addr.String() + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "ok\n" {
		t.Errorf("got %q", body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v after cancel, want nil", err)
	}
	if _, err := newServer(t, newWorld(), Config{Listen: "256.0.0.1:1"}).Listen(); err == nil {
		t.Error("a bad address gives no error")
	}
}
