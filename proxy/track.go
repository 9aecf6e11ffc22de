package proxy

import (
	"bytes"
	"context"
	"errors"
	"hash"
	"net/http"
	"slices"
	"sync/atomic"
	"unicode/utf8"

	"sluice/internal/hit"
)

// An endpoint answers tracking requests. All of it may be used by any number of
// goroutines, each with a scratch of its own.
type endpoint struct {
	cfg     *Config
	queue   Appender
	sites   Sites
	metrics *instruments
	pass    func(ctx context.Context, r *request) (*relay, error)
	retries *retries // nil when retries are not collapsed

	live              *atomic.Pointer[tuned]
	addresses, bySite *buckets // of the rates
}

// A scratch is the memory that one connection uses for request after request.
type scratch struct {
	params params
	set    hit.RequestSet
	sets   [1]*hit.RequestSet // what Append is called with
	hints  []byte             // JSON being built

	digest   hash.Hash // for the key of a retry
	preamble []byte    // of what is hashed, then the sum
}

// serve stores what a request brings and says what to answer. It blocks until
// the hits are durable.
func (e *endpoint) serve(ctx context.Context, r *request, s *scratch) answer {
	get := r.method == "GET"
	if r.method == "OPTIONS" && (filled(r.preflight[0]) || filled(r.preflight[1])) {
		return preflight()
	}
	kind := bodyTypeOf(r.method, r.contentType)
	if len(r.body) > 0 && kind != multipartBody && isBulk(r.body) {
		return e.serveBulk(ctx, r, s)
	}

	query := r.parameters()
	s.params.readQuery(query)
	if s.params.count == 0 {
		return nothing(get)
	}
	image := !s.params.values[pSendImage].is("0")

	c := e.circumstancesOf(r)
	j := e.judge(ctx, &s.params, &c)
	if j.time.unknown {
		e.metrics.badInput("cdt")
	}
	switch j.verdict {
	case refuse:
		e.metrics.badInput(string(j.reason))
		return refusal(get, image)
	case drop:
		e.metrics.dropped.Inc()
		return success(get, image)
	}
	s.set.Hits = append(s.set.Hits[:0], hit.Hit{
		Form: hit.Query, Rights: j.rights, Params: e.maskQuery(query, &s.params), Token: j.token, Site: j.site, At: j.time.at,
	})
	if failure, ok := e.keepOnce(ctx, r, s); !ok {
		return failure
	}
	c.cookies.recorded(&s.params, j.time.at)
	a := success(get, image)
	a.cookies = c.cookies.headers()
	return a
}

// circumstancesOf reads what all hits of a request share.
func (e *endpoint) circumstancesOf(r *request) circumstances {
	return circumstances{
		arrival:   r.receivedAt.Unix(),
		excluded:  e.excluded(r),
		userAgent: r.userAgent,
		cookies:   e.cookiesFor(r),
	}
}

// excluded says whether Matomo records nothing of this visitor: an opt-out
// cookie, or a browser that only looks ahead (core/Tracker/VisitExcluded.php).
func (e *endpoint) excluded(r *request) bool {
	if p := string(r.purpose); p == "preview" || p == "instant" || string(r.moz) == "prefetch" {
		return true
	}
	if len(r.cookie) == 0 {
		return false
	}
	v, ok := cookie(r.cookie, e.cfg.CookieIgnoreName)
	return ok && optedOut(v)
}

// keep stores the scratch's hits with the request's environment. When it cannot,
// it answers false with what to tell the client.
func (e *endpoint) keep(ctx context.Context, r *request, s *scratch) (failure answer, ok bool) {
	s.set.ReceivedAt = r.receivedAt.UnixNano()
	e.fillEnvironment(&s.set.Environment, r, s)
	s.sets[0] = &s.set
	hits := len(s.set.Hits)

	err := e.queue.Append(ctx, s.sets[:]...)
	if err == nil {
		r.stored = hits
		e.metrics.stored.Add(hits)
		return answer{}, true
	}
	get := r.method == "GET"
	if says(err, func(e interface{ TooLarge() bool }) bool { return e.TooLarge() }) {
		e.metrics.badInput("set_too_large")
		return fault(http.StatusRequestEntityTooLarge, tooLarge, get), false
	}
	if !says(err, func(e interface{ Uncertain() bool }) bool { return e.Uncertain() }) && e.mayPass(s.set.Hits) {
		if passed, err := e.pass(ctx, r); err == nil {
			if passed.status < http.StatusInternalServerError {
				e.metrics.passed.Add(hits)
			} else {
				e.metrics.refused.Add(hits)
			}
			return answer{status: passed.status, relayed: passed}, false
		}
	}
	e.metrics.refused.Add(hits)
	return fault(http.StatusServiceUnavailable, unavailable, get), false
}

// says looks for an error with a certain method and asks it.
func says[T any](err error, ask func(T) bool) bool {
	var target T
	return errors.As(err, &target) && ask(target)
}

// mayPass says whether every one of the hits may go straight to Matomo.
func (e *endpoint) mayPass(hits []hit.Hit) bool {
	if e.cfg.PassThrough == nil || e.pass == nil || e.cfg.MaskAddress > 0 {
		return false
	}
	return !slices.ContainsFunc(hits, func(h hit.Hit) bool { return !e.cfg.PassThrough(h.Site) })
}

// fillEnvironment writes down what Matomo would have read from the request
// besides its parameters. Texts that did not change since the scratch's last
// request are kept, so that a client's second hit allocates nothing.
func (e *endpoint) fillEnvironment(env *hit.Environment, r *request, s *scratch) {
	env.ClientIP = e.clientAddress(r, env.ClientIP)
	keepText(&env.UserAgent, r.userAgent)
	keepText(&env.AcceptLanguage, r.acceptLanguage)
	keepText(&env.Referer, r.referer)
	s.hints = appendHints(s.hints[:0], r.hints)
	keepText(&env.ClientHints, s.hints)
	env.VisitorCookie = e.cookieID(r)
	s.hints = appendKept(s.hints[:0], r.kept, e.cfg.KeepHeaders)
	keepText(&env.Headers, e.maskHeaders(s.hints))
	env.DoNotTrack = doNotTrack(r)
	env.DataSaver = len(r.via) > 0 && bytes.Contains(bytes.ToLower(r.via), []byte("chrome-compression-proxy"))
}

func keepText(s *string, b []byte) {
	if *s != string(b) {
		*s = string(b)
	}
}

// appendHints appends the client hints as Matomo's uadata parameter takes them:
// an object of PHP's names for the headers, in their order. It appends nothing
// when there are none.
func appendHints(b []byte, hints []hint) []byte {
	if len(hints) == 0 {
		return b
	}
	slices.SortFunc(hints, func(x, y hint) int { return compareNames(x.name, y.name) })
	for i, h := range hints {
		if i == 0 {
			b = append(b, `{"HTTP_`...)
		} else {
			b = append(b, `,"HTTP_`...)
		}
		for _, c := range h.name {
			switch {
			case c == '-':
				c = '_'
			case 'a' <= c && c <= 'z':
				c -= 'a' - 'A'
			}
			b = append(b, c)
		}
		b = append(b, `":`...)
		b = appendJSONString(b, h.value)
	}
	return append(b, '}')
}

// compareNames orders header names as PHP's ksort orders its names for them.
func compareNames(x, y []byte) int {
	for i := range min(len(x), len(y)) {
		a, b := upper(x[i]), upper(y[i])
		if a != b {
			return int(a) - int(b)
		}
	}
	return len(x) - len(y)
}

func upper(c byte) byte {
	switch {
	case c == '-':
		return '_'
	case 'a' <= c && c <= 'z':
		return c - ('a' - 'A')
	}
	return c
}

// appendJSONString appends a header's bytes as a JSON string. Bytes that are not
// UTF-8 are taken for Latin-1, which is what Matomo makes of them too.
func appendJSONString(b, s []byte) []byte {
	if !utf8.Valid(s) {
		wide := make([]byte, 0, 2*len(s))
		for _, c := range s {
			wide = utf8.AppendRune(wide, rune(c))
		}
		s = wide
	}
	b = append(b, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			const digits = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
