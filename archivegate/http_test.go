package archivegate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// call sends one request to a gate.
func call(ctx context.Context, g *Gate, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, method, "/gate/v1/"+target, strings.NewReader(body))
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, r)
	return w
}

// decoded reads an answer into v and wants a status.
func decoded[T any](t *testing.T, w *httptest.ResponseRecorder, status int) (v T) {
	t.Helper()
	if w.Code != status {
		t.Fatalf("answered %d %s, want %d", w.Code, w.Body, status)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatalf("answered %s: %v", w.Body, err)
	}
	return v
}

// refused wants an answer that refuses and says why.
func refused(t *testing.T, w *httptest.ResponseRecorder, status int, why string) {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != status || p.Error == "" || !strings.Contains(p.Error, why) {
		t.Errorf("answered %d %s, want %d with %q", w.Code, w.Body, status, why)
	}
	if got := w.Header().Get("Retry-After"); got != "" && status != http.StatusServiceUnavailable {
		t.Errorf("Retry-After %q with %d, want none", got, status)
	}
}

// twoSites is a world on 17 March in which site 1 is behind with the day before, by two
// hits, and site 2 is not.
func twoSites() *world {
	w := newWorld("2026-03-17T12:00:00Z", berlin(), utcSite(2))
	w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Accepted: 3, Delivered: 1})
	return w
}

func TestHTTPComplete(t *testing.T) {
	tests := []struct {
		name   string
		target string
		set    func(*world)
		status int
		state  State
		retry  string // Retry-After
	}{
		{"a site that is complete", "complete?site=2", nil, 200, StateComplete, ""},
		{"of a day", "complete?site=2&date=2026-03-10", nil, 200, StateComplete, ""},
		{"all sites", "complete?site=all", func(w *world) { w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Delivered: 2}) }, 200, StateComplete, ""},
		{"all sites with one behind", "complete?site=all", nil, 503, StateDraining, "60"},
		{"a site that is behind", "complete?site=1", nil, 503, StateDraining, "60"},
		{"a day before it", "complete?site=1&date=2026-03-15", nil, 200, StateComplete, ""},
		{"for a moment", "complete?site=1", func(w *world) { w.drain.PerSecond = 10 }, 503, StateDraining, "5"},
		{"for longer", "complete?site=1", func(w *world) { w.drain.PerSecond = 0.02 }, 503, StateDraining, "100"},
		{"for hours", "complete?site=all", func(w *world) { w.drain.PerSecond = 0.0001 }, 503, StateDraining, "300"},
		{"today", "complete?site=2&date=today", nil, 503, StateOpen, "60"},
		{"being written", "complete?site=2", func(w *world) { w.clock.set("2026-03-17T00:00:03Z") }, 503, StateSealing, "5"},
		{"not known", "complete?site=2", func(w *world) { w.listErr = errors.New("no answer") }, 503, StateUnknown, "60"},
		{"all not known", "complete?site=all", func(w *world) { w.listErr = errors.New("no answer") }, 503, StateUnknown, "60"},
		{"let through", "complete?site=1&max_hold=1h", nil, 200, StateForced, ""},
		{"all let through", "complete?site=all&max_hold=1h30m", nil, 200, StateForced, ""},
		{"not yet let through", "complete?site=1&max_hold=24h", nil, 503, StateDraining, "60"},
	}
	for _, tt := range tests {
		for _, method := range []string{"GET", "HEAD"} {
			t.Run(method+" "+tt.name, func(t *testing.T) {
				w := twoSites()
				if tt.set != nil {
					tt.set(w)
				}
				got := call(t.Context(), w.gate(t, Config{Skew: skew}), method, tt.target, "")
				a := decoded[struct {
					V        int
					State    State
					Complete bool
					Pass     bool
					Reasons  []string
					Waiting  []Answer
				}](t, got, tt.status)
				if a.V != 1 || a.State != tt.state || a.Complete != (tt.state == StateComplete) || a.Pass != (tt.status == 200) {
					t.Errorf("answered %s, want version 1 of %s", got.Body, tt.state)
				}
				if (len(a.Reasons) == 0 && len(a.Waiting) == 0) != (tt.state == StateComplete) {
					t.Errorf("answered %s, want a reason unless it is complete", got.Body)
				}
				h := got.Header()
				if h.Get("Retry-After") != tt.retry || h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-store" {
					t.Errorf("headers %v, want JSON, not cached, and Retry-After %q", h, tt.retry)
				}
			})
		}
	}
}

// TestHTTPQuestionsThatAreNone are never answered with 200 or with 503: whoever waits
// for either would take or wait for the wrong thing.
func TestHTTPQuestionsThatAreNone(t *testing.T) {
	tests := []struct {
		method, target string
		status         int
		why            string
	}{
		{"GET", "complete", 400, "site"},
		{"GET", "sites?format=ids&state=complete;x", 400, "cannot be read"},
		{"GET", "complete?site=2&date=%zz", 400, "cannot be read"},
		{"DELETE", "holds/x?whom=me", 400, "whom"},
		{"GET", "complete?site=", 400, "site"},
		{"GET", "complete?site=0", 400, "site"},
		{"GET", "complete?site=-1", 400, "site"},
		{"GET", "complete?site=ALL", 400, "site"},
		{"GET", "complete?site=1,2", 400, "site"},
		{"GET", "complete?site=99999999999999999999", 400, "site"},
		{"GET", "complete?sites=1&site=1", 400, `"sites"`},
		{"GET", "complete?Site=1", 400, `"Site"`},
		{"GET", "complete?site=1&site=1", 400, `"site"`},
		{"GET", "complete?site=1&date=today&date=today", 400, `"date"`},
		{"GET", "complete?site=1&max_hold=1h&max_hold=1h", 400, `"max_hold"`},
		{"GET", "complete?site=1&max-hold=1h", 400, `"max-hold"`},
		{"GET", "complete?site=1&token=hunter2", 400, `"token"`},
		{"GET", "complete?site=1&date=2026-02-30", 400, "2026-02-30"},
		{"GET", "complete?site=1&date=16.03.2026", 400, "16.03.2026"},
		{"GET", "complete?site=1&date=tomorrow", 400, "tomorrow"},
		{"GET", "complete?site=1&date=1999-01-01", 400, "1999-01-01"},
		{"GET", "complete?site=all&date=1999-01-01", 400, "1999-01-01"},
		{"GET", "complete?site=1&max_hold=1", 400, "max_hold"},
		{"GET", "complete?site=1&max_hold=-1h", 400, "max_hold"},
		{"GET", "complete?site=1&wait=soon", 400, "wait"},
		{"GET", "complete?site=1&wait=-1s", 400, "wait"},
		{"GET", "complete?site=9", 404, "9"},
		{"GET", "complete?site=9&max_hold=1s", 404, "9"},
		{"GET", "sites?site=1", 400, `"site"`},
		{"GET", "sites?wait=1s", 400, `"wait"`},
		{"GET", "sites?state=ready", 400, "ready"},
		{"GET", "sites?state=complete&state=complete", 400, `"state"`},
		{"GET", "sites?format=csv", 400, "csv"},
		{"GET", "sites?date=never", 400, "never"},
		{"GET", "sites?date=1999-01-01&state=complete&format=ids", 400, "1999-01-01"},
	}
	for _, tt := range tests {
		t.Run(tt.target, func(t *testing.T) {
			refused(t, call(t.Context(), twoSites().gate(t, Config{Skew: skew}), tt.method, tt.target, ""), tt.status, tt.why)
		})
	}
	for _, tt := range []struct {
		method, target string
		status         int
	}{
		{"POST", "complete?site=all", 405}, {"DELETE", "complete?site=all", 405}, {"PUT", "holds", 405}, {"POST", "sites", 405},
		{"DELETE", "holds", 405}, {"GET", "holds/logs", 405}, {"GET", "lock", 405}, {"GET", "rebuild", 405},
		{"GET", "", 404}, {"GET", "ready", 404}, {"GET", "complete/1", 404},
	} {
		if got := call(t.Context(), twoSites().gate(t, Config{}), tt.method, tt.target, "{}"); got.Code != tt.status {
			t.Errorf("%s %s answers %d, want %d", tt.method, tt.target, got.Code, tt.status)
		}
	}
	allOnly := twoSites().gate(t, Config{Skew: skew, AllOnly: true})
	refused(t, call(t.Context(), allOnly, "GET", "complete?site=2", ""), 400, "all-only")
	refused(t, call(t.Context(), allOnly, "GET", "sites?state=complete&format=ids", ""), 400, "all-only")
	decoded[Summary](t, call(t.Context(), allOnly, "GET", "complete?site=all", ""), 503)
}

// TestHTTPSites: the numbers are for core:archive --force-idsites, which takes an empty
// list for all sites.
func TestHTTPSites(t *testing.T) {
	done := func(w *world) { w.books.add(1, at("2026-03-16T12:00:00Z"), Tally{Delivered: 2}) }
	tests := []struct {
		name, target string
		set          func(*world)
		status       int
		body         string // as a whole; "" = not looked at
	}{
		{"complete ones of two", "sites?state=complete&format=ids", done, 200, "1,2\n"},
		{"complete ones of one", "sites?state=complete&format=ids", nil, 200, "2\n"},
		{"complete ones of a day", "sites?state=complete&format=ids&date=2026-03-15", nil, 200, "1,2\n"},
		{"draining ones", "sites?state=draining&format=ids", nil, 200, "1\n"},
		{"all", "sites?format=ids", nil, 200, "1,2\n"},
		{"what is let through is with the complete", "sites?state=complete&format=ids&max_hold=1h", nil, 200, "1,2\n"},
		{"what is let through by itself", "sites?state=forced&format=ids&max_hold=1h", nil, 200, "1\n"},
		{"what waits is not with the complete", "sites?state=complete&format=ids&max_hold=24h", nil, 200, "2\n"},
		{"none is complete", "sites?state=complete&format=ids&date=today", nil, 503, ""},
		{"none is complete, as lines", "sites?state=complete&date=today", nil, 503, ""},
		{"none is let through", "sites?state=forced&format=ids", nil, 503, ""},
		{"none is known", "sites?state=complete&format=ids", func(w *world) { w.listErr = errors.New("no answer") }, 503, ""},
		{"none is known, as lines", "sites", func(w *world) { w.listErr = errors.New("no answer") }, 503, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := twoSites()
			if tt.set != nil {
				tt.set(w)
			}
			got := call(t.Context(), w.gate(t, Config{Skew: skew}), "GET", tt.target, "")
			if got.Code != tt.status || tt.body != "" && got.Body.String() != tt.body {
				t.Errorf("answered %d %q, want %d %q", got.Code, got.Body, tt.status, tt.body)
			}
			if kind := got.Header().Get("Content-Type"); tt.status == 200 && !strings.HasPrefix(kind, "text/plain") {
				t.Errorf("Content-Type %q, want text/plain", kind)
			}
			if tt.status != 200 {
				refused(t, got, tt.status, "no site is ")
				if got.Header().Get("Retry-After") != "60" {
					t.Errorf("Retry-After %q, want 60", got.Header().Get("Retry-After"))
				}
			}
		})
	}

	w := twoSites()
	w.sites[0].Name = "<shop> & co\n"
	for _, target := range []string{"sites", "sites?format=lines", "sites?date=finished&format=lines&state="} {
		got := call(t.Context(), w.gate(t, Config{Skew: skew}), "GET", target, "")
		if got.Code != 200 || got.Header().Get("Content-Type") != "application/x-ndjson" || strings.Contains(got.Body.String(), `\u003c`) {
			t.Errorf("%s: answered %d %v %s, want JSON lines", target, got.Code, got.Header(), got.Body)
		}
		var states []string
		for scanner := bufio.NewScanner(got.Body); scanner.Scan(); {
			var a Answer
			if err := json.Unmarshal(scanner.Bytes(), &a); err != nil {
				t.Fatalf("%s: line %q: %v", target, scanner.Text(), err)
			}
			states = append(states, fmt.Sprint(a.Site, " ", a.State, " ", a.Name))
		}
		if want := []string{"1 draining <shop> & co\n", "2 complete "}; fmt.Sprint(states) != fmt.Sprint(want) {
			t.Errorf("%s: got %q, want %q", target, states, want)
		}
	}
}

func TestHTTPHolds(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin(), utcSite(2))
	g := w.gate(t, Config{Skew: skew})
	holds := func(want ...string) {
		t.Helper()
		list := decoded[Holds](t, call(t.Context(), g, "GET", "holds", ""), 200)
		var names []string
		for _, h := range list.Holds {
			names = append(names, h.Name)
		}
		if list.V != 1 || fmt.Sprint(names) != fmt.Sprint(want) {
			t.Errorf("holds %+v, want %q", list, want)
		}
	}
	holds()
	h := decoded[Hold](t, call(t.Context(), g, "POST", "holds", `{"name":"logs","who":"ann@db1","site":1,"date":"2026-03-16","seconds":90.5}`), 200)
	if h.Name != "logs" || h.Who != "ann@db1" || h.Site != 1 || h.Date == nil || h.Date.String() != "2026-03-16" || !h.Until.Equal(w.clock.now().Add(90500*time.Millisecond)) {
		t.Errorf("held %+v", h)
	}
	holds("logs")
	for target, status := range map[string]int{"complete?site=1": 503, "complete?site=1&date=2026-03-15": 200, "complete?site=2": 200, "complete?site=all": 503} {
		if got := call(t.Context(), g, "GET", target, ""); got.Code != status {
			t.Errorf("%s answers %d %s, want %d", target, got.Code, got.Body, status)
		}
	}
	decoded[Hold](t, call(t.Context(), g, "POST", "holds", `{"name":"more","who":"","seconds":60}`), 200)
	holds("logs", "more")
	got := decoded[struct{ Released bool }](t, call(t.Context(), g, "DELETE", "holds/logs?who=ann%40db1", ""), 200)
	if !got.Released {
		t.Error("released is false")
	}
	refused(t, call(t.Context(), g, "DELETE", "holds/logs?who=ann%40db1", ""), 404, "no such hold")
	refused(t, call(t.Context(), g, "DELETE", "holds/a%2Fb", ""), 404, "no such hold")
	holds("more")
	w.clock.add(time.Minute)
	holds()
	if got := call(t.Context(), g, "GET", "complete?site=all", ""); got.Code != 200 {
		t.Errorf("after all holds: %d %s, want 200", got.Code, got.Body)
	}
	w.keep.fail = true
	refused(t, call(t.Context(), g, "POST", "holds", `{"name":"logs","seconds":60}`), 500, "no space")
	holds()
}

// TestHTTPOrdersThatAreNone change nothing: a misspelt field must not make a hold of all
// sites out of one of one site.
func TestHTTPOrdersThatAreNone(t *testing.T) {
	long := `{"name":"logs","seconds":60,"who":"` + strings.Repeat("x", maxOrder) + `"}`
	tests := []struct{ name, target, body string }{
		{"nothing", "holds", ``},
		{"no JSON", "holds", `name=logs`},
		{"a list", "holds", `[]`},
		{"half an order", "holds", `{"name":"logs","seconds":60`},
		{"an unknown field", "holds", `{"name":"logs","seconds":60,"sites":1}`},
		{"an unknown field of a lock", "lock", `{"name":"a","seconds":60,"site":1}`},
		{"an unknown field of an unlock", "unlock", `{"name":"a","keys":""}`},
		{"a site that is no number", "holds", `{"name":"logs","seconds":60,"site":"all"}`},
		{"a site below 1", "holds", `{"name":"logs","seconds":60,"site":-1}`},
		{"a day that is none", "holds", `{"name":"logs","seconds":60,"date":"2026-02-30"}`},
		{"a word for a day", "holds", `{"name":"logs","seconds":60,"date":"today"}`},
		{"no name", "holds", `{"seconds":60}`},
		{"a name with a slash", "holds", `{"name":"a/b","seconds":60}`},
		{"no time", "holds", `{"name":"logs"}`},
		{"no time at all", "holds", `{"name":"logs","seconds":0.5}`},
		{"a time beyond all", "holds", `{"name":"logs","seconds":1e300}`},
		{"a negative time", "holds", `{"name":"logs","seconds":-60}`},
		{"a time of two weeks", "holds", `{"name":"logs","seconds":1209600}`},
		{"a body that is too large", "holds", long},
		{"a lock without a name", "lock", `{"seconds":60}`},
		{"a lock without a time", "lock", `{"name":"a"}`},
		{"a lock of two days", "lock", `{"name":"a","seconds":172800}`},
		{"no lock", "lock", ``},
		{"no unlock", "unlock", `"a"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := twoSites()
			g := w.gate(t, Config{Skew: skew})
			refused(t, call(t.Context(), g, "POST", tt.target, tt.body), 400, "")
			if len(g.Holds()) != 0 || len(w.keep.texts) != 0 {
				t.Errorf("kept %q, want nothing", w.keep.texts)
			}
		})
	}
}

func TestHTTPLocks(t *testing.T) {
	w := newWorld("2026-03-17T12:00:00Z", berlin())
	g := w.gate(t, Config{})
	lock := func(body string, status int) Lease {
		t.Helper()
		got := call(t.Context(), g, "POST", "lock", body)
		if retry := got.Header().Get("Retry-After"); (retry != "") != (status == 503) {
			t.Errorf("Retry-After %q with %d", retry, got.Code)
		}
		return decoded[Lease](t, got, status)
	}
	first := lock(`{"name":"archive","who":"db1","seconds":60}`, 200)
	if first.Key == "" || first.Who != "db1" || !first.Until.Equal(w.clock.now().Add(time.Minute)) {
		t.Errorf("leased %+v", first)
	}
	if other := lock(`{"name":"archive","who":"db2","seconds":60}`, 503); other.Key != "" || other.Who != "db1" {
		t.Errorf("another gets %+v, want who has it and no key", other)
	}
	w.clock.add(30 * time.Second)
	if again := lock(`{"name":"archive","who":"db1","seconds":60,"key":"`+first.Key+`"}`, 200); again.Key != first.Key || !again.Until.Equal(w.clock.now().Add(time.Minute)) {
		t.Errorf("renewed %+v", again)
	}
	unlock := func(key string) {
		t.Helper()
		if v := decoded[struct{ V int }](t, call(t.Context(), g, "POST", "unlock", `{"name":"archive","who":"db1","key":"`+key+`"}`), 200); v.V != 1 {
			t.Errorf("answered version %d, want 1", v.V)
		}
	}
	unlock("wrong")
	lock(`{"name":"archive","who":"db2","seconds":60}`, 503)
	unlock(first.Key)
	unlock(first.Key)
	lock(`{"name":"archive","who":"db2","seconds":60}`, 200)
	lock(`{"name":"archive","who":"db1","seconds":60,"key":"`+first.Key+`"}`, 503)
	w.keep.fail = true
	refused(t, call(t.Context(), g, "POST", "lock", `{"name":"other","seconds":60}`), 500, "no space")
}

// recounting is a ledger whose recount a test answers.
type recounting struct {
	*books
	recount func(context.Context) (Recount, error)
}

func (r recounting) Recount(ctx context.Context) (Recount, error) { return r.recount(ctx) }

// gateWith makes a gate with a ledger and a clock of its own.
func gateWith(t *testing.T, w *world, l Ledger, arrivals Arrivals, now func() time.Time) *Gate {
	t.Helper()
	g, err := New(Config{Edge: "edge-1", Skew: skew}, Parts{
		Ledger: l, Arrivals: arrivals, Drain: func() Drain { return w.drain }, Lister: w, Keeper: w.keep,
		Log: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet(), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestHTTPRebuild(t *testing.T) {
	w := twoSites()
	want := Recount{V: 1, Hits: 7, Differing: 1, Slots: []RecountSlot{{1, 2, 3, 4}}, Unreadable: 2}
	var failing error
	entered, end := make(chan struct{}), make(chan struct{})
	wait := false
	g := gateWith(t, w, recounting{w.books, func(context.Context) (Recount, error) {
		if wait {
			close(entered)
			<-end
		}
		return want, failing
	}}, w, w.clock.now)
	for _, body := range []string{"", "{}"} {
		if got := decoded[Recount](t, call(t.Context(), g, "POST", "rebuild", body), 200); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("answered %+v, want %+v", got, want)
		}
	}
	failing = errors.New("the disk is gone")
	refused(t, call(t.Context(), g, "POST", "rebuild", ""), 500, "the disk is gone")
	failing = context.Canceled
	refused(t, call(t.Context(), g, "POST", "rebuild", ""), 409, "canceled")
	failing, wait = nil, true
	first := make(chan *httptest.ResponseRecorder, 1)
	go func() { first <- call(t.Context(), g, "POST", "rebuild", "") }() // ends when end is closed
	<-entered
	refused(t, call(t.Context(), g, "POST", "rebuild", ""), 409, "under way")
	close(end)
	if got := <-first; got.Code != 200 {
		t.Errorf("the first answers %d, want 200", got.Code)
	}
}

// nowArrivals are requests that are written at once. At each look it lets time change
// the world.
type nowArrivals struct{ look func() }

func (a nowArrivals) Written() time.Time {
	a.look()
	return time.Now()
}

// TestHTTPWait: a question with wait= is asked anew until the answer is yes or the time
// is over, a minute at the most, and ends with its asker.
func TestHTTPWait(t *testing.T) {
	tests := []struct {
		name, target string
		done         time.Duration // when the last hit gets to Matomo; 0 = never
		leaves       time.Duration // when the asker goes; 0 = never
		status       int
		took         time.Duration // at least, and at most a step more
	}{
		{"no time", "complete?site=1", time.Second, 0, 503, 0},
		{"a time of none", "complete?site=1&wait=0", time.Second, 0, 503, 0},
		{"long enough", "complete?site=1&wait=30s", 10 * time.Second, 0, 200, 10 * time.Second},
		{"long enough for all", "complete?site=all&wait=30s", 10 * time.Second, 0, 200, 10 * time.Second},
		{"not long enough", "complete?site=1&wait=5s", 10 * time.Second, 0, 503, 5 * time.Second},
		{"not for ever", "complete?site=1&wait=24h", 0, 0, 503, maxWait},
		{"for nothing", "complete?site=2&wait=30s", 0, 0, 200, 0},
		{"for a site that is none", "complete?site=9&wait=30s", 0, 0, 404, 0},
		{"by an asker who goes", "complete?site=1&wait=30s", 0, 5500 * time.Millisecond, 503, 5500 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(12 * time.Hour) // a bubble begins at midnight
				began := time.Now()
				yesterday := began.Add(-24 * time.Hour)
				w := newWorld(began.Format(time.RFC3339), utcSite(1), utcSite(2))
				for i := range w.sites {
					w.sites[i].Created = began.Add(-240 * time.Hour)
				}
				w.books.add(1, yesterday, Tally{Accepted: 1})
				g := gateWith(t, w, w.books, nowArrivals{func() {
					if tt.done != 0 && time.Since(began) >= tt.done && len(w.books.Unsettled()) > 0 {
						w.books.add(1, yesterday, Tally{Delivered: 1})
					}
				}}, time.Now)
				ctx := t.Context()
				if tt.leaves != 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.leaves)
					defer cancel()
				}
				got := call(ctx, g, "GET", tt.target, "")
				if took := time.Since(began); got.Code != tt.status || took < tt.took || took > tt.took+waitStep {
					t.Errorf("answered %d after %v, want %d after %v: %s", got.Code, took, tt.status, tt.took, got.Body)
				}
			})
		})
	}
}
