package archivegate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxWait bounds how long one request may wait for a day.
	maxWait = time.Minute
	// Bounds of Retry-After, in seconds.
	leastRetry, usualRetry, mostRetry = 5, 60, 300
	maxOrder                          = 64 << 10
)

// Handler is the gate over HTTP, below /gate/v1/. It asks nobody for a token: who may
// ask, and who may order, is for the listener to say; orders are what is not GET or
// HEAD.
//
// It answers 200 when archiving may begin, 503 with Retry-After when not yet, which is
// what curl --retry waits for, and 400 and 404 to what will never be answered
// otherwise.
func (g *Gate) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /gate/v1/complete", g.serveComplete)
	mux.HandleFunc("GET /gate/v1/sites", g.serveSites)
	mux.HandleFunc("GET /gate/v1/holds", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, Holds{1, g.Holds()}) })
	mux.HandleFunc("POST /gate/v1/holds", g.serveHold)
	mux.HandleFunc("DELETE /gate/v1/holds/{name}", g.serveRelease)
	mux.HandleFunc("POST /gate/v1/lock", g.serveLock)
	mux.HandleFunc("POST /gate/v1/unlock", g.serveUnlock)
	mux.HandleFunc("POST /gate/v1/rebuild", g.serveRebuild)
	return mux
}

// A Holds is the answer of GET /gate/v1/holds.
type Holds struct {
	V     int    `json:"v"`
	Holds []Hold `json:"holds"`
}

// A HoldOrder is the body of POST /gate/v1/holds.
type HoldOrder struct {
	Name    string  `json:"name"`
	Who     string  `json:"who"`
	Site    int64   `json:"site,omitempty"`
	Date    *Date   `json:"date,omitempty"`
	Seconds float64 `json:"seconds"`
}

// A LockOrder is the body of POST /gate/v1/lock and /gate/v1/unlock.
type LockOrder struct {
	Name    string  `json:"name"`
	Who     string  `json:"who"`
	Key     string  `json:"key,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

func (g *Gate) serveComplete(w http.ResponseWriter, r *http.Request) {
	values, q, err := readQuery(r, "site", "date", "max_hold", "wait")
	var wait time.Duration
	if err == nil && values.Get("site") == "" {
		err = usage("want site=all or a site's number")
	}
	if err == nil {
		wait, err = readDuration(values, "wait", maxWait)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	var shown any
	var state State
	var eta *float64
	err = g.wait(r.Context(), g.now().Add(wait), func() (bool, error) {
		if q.Site == 0 {
			sum, err := g.All(r.Context(), q)
			shown, state, eta = sum, sum.State, sum.ETASeconds
			return sum.Pass, err
		}
		a, err := g.One(r.Context(), q)
		shown, state, eta = a, a.State, a.ETASeconds
		return a.Pass, err
	})
	switch {
	case err != nil:
		refuse(w, err)
	case state.passes():
		reply(w, http.StatusOK, shown)
	default:
		notYet(w, state, eta)
		reply(w, http.StatusServiceUnavailable, shown)
	}
}

// serveSites lists sites: as JSON lines, or as numbers with commas between them. With
// a state and no site in it the answer is 503, never an empty list: Matomo takes an
// empty list for all sites.
func (g *Gate) serveSites(w http.ResponseWriter, r *http.Request) {
	values, q, err := readQuery(r, "date", "max_hold", "state", "format")
	wanted, format := State(values.Get("state")), values.Get("format")
	if _, ok := weight[wanted]; err == nil && wanted != "" && !ok {
		err = usage("%q is no state", wanted)
	}
	if err == nil && format != "" && format != "lines" && format != "ids" {
		err = usage("format %q: want lines or ids", format)
	}
	var answers []Answer
	if err == nil {
		answers, err = g.Sites(r.Context(), q)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	found := 0
	for i := range answers {
		a := &answers[i]
		// What is let through may be archived like what is complete.
		if wanted != "" && a.State != wanted && !(wanted == StateComplete && a.Pass) {
			continue
		}
		switch {
		case format != "ids":
			_ = encoder.Encode(a) // plain values into memory
		case found > 0:
			b.WriteString("," + strconv.FormatInt(a.Site, 10))
		default:
			b.WriteString(strconv.FormatInt(a.Site, 10))
		}
		found++
	}
	if found == 0 {
		notYet(w, StateDraining, nil)
		reply(w, http.StatusServiceUnavailable, problem{Error: "no site is " + string(wordFor(wanted)), Try: "sluice gate status"})
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	if format == "ids" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		b.WriteByte('\n')
	}
	_, _ = io.WriteString(w, b.String()) // whoever asked is gone if this fails
}

func wordFor(s State) State {
	if s == "" {
		return "known"
	}
	return s
}

func (g *Gate) serveHold(w http.ResponseWriter, r *http.Request) {
	var order HoldOrder
	if !readOrder(w, r, &order) {
		return
	}
	h, err := g.Hold(Hold{Name: order.Name, Who: order.Who, Site: order.Site, Date: order.Date}, secondsOf(order.Seconds))
	if err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, h)
}

func (g *Gate) serveRelease(w http.ResponseWriter, r *http.Request) {
	values, err := readValues(r, "who")
	was := false
	if err == nil {
		was, err = g.Release(r.PathValue("name"), values.Get("who"))
	}
	switch {
	case err != nil:
		refuse(w, err)
	case !was:
		reply(w, http.StatusNotFound, problem{Error: "there is no such hold", Try: "sluice gate status"})
	default:
		reply(w, http.StatusOK, struct {
			V        int  `json:"v"`
			Released bool `json:"released"`
		}{1, true})
	}
}

func (g *Gate) serveLock(w http.ResponseWriter, r *http.Request) {
	var order LockOrder
	if !readOrder(w, r, &order) {
		return
	}
	lease, err := g.Lock(order.Name, order.Who, order.Key, secondsOf(order.Seconds))
	switch {
	case errors.Is(err, ErrTaken):
		notYet(w, StateDraining, nil)
		reply(w, http.StatusServiceUnavailable, lease)
	case err != nil:
		refuse(w, err)
	default:
		reply(w, http.StatusOK, lease)
	}
}

func (g *Gate) serveUnlock(w http.ResponseWriter, r *http.Request) {
	var order LockOrder
	if !readOrder(w, r, &order) {
		return
	}
	if err := g.Unlock(order.Name, order.Key); err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, struct {
		V int `json:"v"`
	}{1})
}

func (g *Gate) serveRebuild(w http.ResponseWriter, r *http.Request) {
	result, err := g.Rebuild(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, result)
}

// readQuery reads what is asked for. What is not understood is an error: somebody who
// misspells "site" must not get an answer about all.
func readQuery(r *http.Request, known ...string) (url.Values, Query, error) {
	values, err := readValues(r, known...)
	if err != nil {
		return nil, Query{}, err
	}
	q := Query{Date: values.Get("date")}
	if site := values.Get("site"); site != "" && site != "all" {
		id, err := strconv.ParseInt(site, 10, 64)
		if err != nil || id <= 0 {
			return nil, Query{}, usage("site %q: want all or a number", site)
		}
		q.Site = id
	}
	q.MaxHold, err = readDuration(values, "max_hold", 0)
	if err == nil {
		err = q.check()
	}
	return values, q, err
}

// readValues reads the parameters, each of which stands there once at most. Unlike
// [url.URL.Query] it passes over nothing.
func readValues(r *http.Request, known ...string) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, usage("the parameters cannot be read: %v", err)
	}
	for name, list := range values {
		if !slices.Contains(known, name) || len(list) != 1 {
			return nil, usage("parameter %q: want each of %s at most once", name, strings.Join(known, ", "))
		}
	}
	return values, nil
}

// readDuration reads a time such as 55s; most bounds it, 0 does not.
func readDuration(values url.Values, name string, most time.Duration) (time.Duration, error) {
	text := values.Get(name)
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, usage("%s %q: want a time such as 45m", name, text)
	}
	if most > 0 {
		d = min(d, most)
	}
	return d, nil
}

func secondsOf(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func readOrder(w http.ResponseWriter, r *http.Request, into any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil && decoder.More() {
		err = errors.New("something stands behind it")
	}
	if err != nil {
		refuse(w, usage("the order cannot be read: %v", err))
		return false
	}
	return true
}

// A problem is the body of what refuses, as everywhere on the private listener.
type problem struct {
	Error string `json:"error"`
	Try   string `json:"try,omitempty"`
}

func refuse(w http.ResponseWriter, err error) {
	code, try := http.StatusInternalServerError, ""
	switch {
	case errors.Is(err, ErrNoSite):
		code, try = http.StatusNotFound, "sluice gate sites"
	case errors.Is(err, ErrUsage):
		code = http.StatusBadRequest
	case errors.Is(err, ErrBusy), errors.Is(err, context.Canceled):
		code = http.StatusConflict
	}
	reply(w, code, problem{err.Error(), try})
}

// notYet says when to ask again.
func notYet(w http.ResponseWriter, state State, eta *float64) {
	after := usualRetry
	switch {
	case state == StateSealing:
		after = leastRetry
	case eta != nil:
		after = int(min(max(*eta, leastRetry), mostRetry))
	}
	w.Header().Set("Retry-After", fmt.Sprint(after))
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(v) // whoever asked is gone if this fails
}
