package testkit

import (
	"io"
	"maps"
	"mime"
	"net/http"
	"strings"
	"time"
)

// The transparent image that Matomo answers hits with.
const gif = "GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00" +
	"!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"

const htmlType = "text/html; charset=UTF-8"

// maxBody bounds what the fake reads of one request, in bytes.
const maxBody = 64 << 20

// ServeHTTP implements http.Handler: tracker, Reporting API, and the fallback.
func (m *Matomo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch {
	case trackerPath(path, r):
		m.track(w, r)
	case strings.HasSuffix(path, "/index.php") && r.FormValue("module") == "API":
		m.report(w, r)
	case m.cfg.Fallback != nil:
		m.cfg.Fallback.ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

// trackerPath says whether a request reaches the tracker. Under js/ that takes a
// POST or a query.
func trackerPath(path string, r *http.Request) bool {
	for _, script := range []string{"/matomo.php", "/piwik.php"} {
		if strings.HasSuffix(path, script) || strings.Contains(path, script+"/") {
			return true
		}
	}
	if r.Method != http.MethodPost && r.URL.RawQuery == "" {
		return false
	}
	for _, script := range []string{"/js/", "/js/index.php", "/js/tracker.php"} {
		if strings.HasSuffix(path, script) {
			return true
		}
	}
	return false
}

// track reads one tracking request, judges it, and gives the answer that script
// and state ask for.
func (m *Matomo) track(w http.ResponseWriter, r *http.Request) {
	st := m.snapshot()
	now := m.now(&st)
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		// The client went away in the middle, or sends without end: PHP never runs.
		return
	}
	if r.Method == http.MethodOptions && (r.Header.Get("Access-Control-Request-Method") != "" || r.Header.Get("Access-Control-Request-Headers") != "") {
		preflight(w)
		return
	}
	x := &Exchange{m: m, w: w, r: r, state: st, now: now}
	x.Request = &Request{
		At: now, Method: r.Method, Query: r.URL.RawQuery, Header: r.Header, Bytes: len(body),
		Bulk: isBulk(body),
	}
	x.read(body)
	m.arrive(x.Request)
	x.work(st.perRequest + time.Duration(x.Hits)*st.perHit)
	answer := m.choose(x)
	// Also when the answer ends the connection by a panic, which net/http wants.
	defer func() { m.answered(x.Request, answer.Name, x.status) }()
	answer.Do(x)
}

func preflight(w http.ResponseWriter) {
	w.Header().Set("Access-Control-Allow-Methods", "GET, POST")
	w.Header().Set("Access-Control-Allow-Headers", "*")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Content-Type", htmlType)
	w.WriteHeader(http.StatusNoContent)
}

// read fills in what the request carries.
func (x *Exchange) read(body []byte) {
	get := parseQuery(x.r.URL.RawQuery)
	post := Params{}
	kind, _, _ := mime.ParseMediaType(x.r.Header.Get("Content-Type")) // unreadable = not a form
	if x.r.Method == http.MethodPost && kind == "application/x-www-form-urlencoded" {
		post = parseQuery(string(body))
	}
	x.params = maps.Clone(post)
	maps.Copy(x.params, get) // the URL wins
	if x.Bulk && x.m.cfg.CountOnly {
		if token, hits, marks, ok := scanBulk(body, x.m.cfg.Mark); ok {
			x.Token, x.Hits, x.marks, x.counted = token, hits, marks, true
			x.super = x.m.superuser(token, post)
			return
		}
	}
	x.state.blocked = x.state.blocked || x.m.lockedOut(x.m.peerAddress(x.r), x.now)
	j := &judge{
		m: x.m, state: &x.state, now: x.now, request: x.Request, form: post,
		peer: x.m.peerAddress(x.r), orders: make(map[string]bool),
	}
	var list []bulkHit
	if x.Bulk {
		b := decodeBulk(body)
		list, x.Dropped, x.silent = b.hits, b.dropped, b.silent
		j.bulkToken = b.token
		// A token of the URL or the form is the bulk's before that of the JSON, and no
		// hit's.
		x.Token = x.params.String("token_auth")
		if x.Token == "" {
			x.Token = b.token
		}
	} else if len(x.params) > 0 {
		list = []bulkHit{{x.r.URL.RawQuery, x.params}}
		x.Token = x.params.String("token_auth")
		x.silent = x.params["send_image"] == "0"
	}
	x.Hits = len(list)
	x.Probe = true
	for i, one := range list {
		h, p := j.hit(i, one.raw, one.params)
		x.hits = append(x.hits, h)
		x.poisons = append(x.poisons, p)
		if h.Outcome != Excluded {
			x.Probe = false
		}
	}
	x.super = x.m.superuser(x.Token, post)
	if j.failed && !x.state.blocked && x.state.database != DatabaseDown {
		x.m.bookFailure(j.peer, x.now)
	}
}

// superuser says whether a bulk's token is a superuser's and accepted from where
// it stood.
func (m *Matomo) superuser(token string, form Params) bool {
	rights, known := m.rights(token)
	return known && rights.Super && (!rights.SecureOnly || form.String("token_auth") == token)
}
