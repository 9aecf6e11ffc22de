package proxy

import (
	"context"
	"net/http"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// A bulkTally counts what becomes of a bulk's hits, as Matomo's answer counts
// them.
type bulkTally struct {
	tracked int // recorded, left out or empty
	invalid int
	dropped int // of the tracked: those that Matomo would leave out
	astray  int // those without a site that Matomo has
}

// serveBulk answers a client's bulk. Its hits that are worth keeping become one
// request set. Parameters of the URL are no parameters of its hits.
func (e *endpoint) serveBulk(ctx context.Context, r *request, s *scratch) answer {
	get := r.method == "GET"
	document, ok := parseJSON(trimBulk(r.body))
	if !ok {
		// PHP decodes it to null, for which Matomo reads $_GET and $_POST instead.
		e.metrics.badInput("json")
		s.params.readQuery(r.parameters())
		return bulkAnswer(get, sendsBody(s.params.values[pSendImage]), 0, 0)
	}
	image, _ := document.member("send_image")
	token, _ := document.member("token_auth")
	requests, _ := document.member("requests")

	c := e.circumstancesOf(r)
	c.token = ownToken(token.param())
	c.authorised = e.cfg.BulkRequiresAuth
	s.set.Hits = s.set.Hits[:0]
	var tally bulkTally
	for _, element := range elements(requests) {
		e.takeElement(ctx, element, s, &c, &tally)
	}
	if status := e.refusesBulk(&c, &tally); status != 0 {
		return bulkFailure(get, status)
	}
	if len(s.set.Hits) > 0 {
		if failure, ok := e.keepOnce(ctx, r, s); !ok {
			return failure
		}
	}
	e.metrics.dropped.Add(tally.dropped)
	a := bulkAnswer(get, sendsBody(image.param()), tally.tracked, tally.invalid)
	a.cookies = c.cookies.headers()
	return a
}

// refusesBulk gives the status with which Matomo refuses a bulk as a whole when
// bulk_requests_require_authentication is set (authenticateRequests of
// plugins/BulkTracking/Tracker/Requests.php), 0 when it does not. It then looks at
// the bulk's own token only, for every hit, and before anything else. Whether the
// token is good is for Matomo to say: its hits travel with it.
func (e *endpoint) refusesBulk(c *circumstances, tally *bulkTally) int {
	switch {
	case !e.cfg.BulkRequiresAuth || tally.tracked+tally.invalid == 0:
		return 0
	case c.token == "":
		e.metrics.badInput("bulk_token")
		return http.StatusInternalServerError
	case tally.astray > 0:
		e.metrics.badInput("bulk_site")
		return http.StatusBadRequest
	}
	return 0
}

// sendsBody reads a bulk's send_image: only what PHP reads as the string "0"
// keeps the body back.
func sendsBody(v value) bool {
	switch v.kind {
	case text:
		return !v.is("0")
	case number:
		return numberText(v.raw) != "0"
	}
	return true
}

// elements gives the values of a list, or of an object as PHP iterates over the
// array that it becomes: equal names once, at the first one's place, with the
// last one's value.
func elements(v jsonValue) []jsonValue {
	var all []jsonValue
	var places map[string]int
	if v.kind == jsonObject {
		places = make(map[string]int)
	}
	for name, child := range v.children() {
		if places != nil {
			if at, ok := places[string(name)]; ok {
				all[at] = child
				continue
			}
			places[string(name)] = len(all)
		}
		all = append(all, child)
	}
	return all
}

// takeElement judges one element of a bulk and adds it to the scratch's hits if
// it is to be kept.
func (e *endpoint) takeElement(ctx context.Context, v jsonValue, s *scratch, c *circumstances, tally *bulkTally) {
	h := hit.Hit{Form: hit.Object, Params: v.raw}
	switch v.kind {
	case jsonString:
		query, ok := phpform.ParseURLQuery(string(decodeJSONString(v.raw)))
		if !ok || phpform.Empty(query) {
			return // Matomo forgets it before it counts
		}
		h.Form, h.Params = hit.Query, []byte(query)
		s.params.readQuery(h.Params)
	case jsonObject:
		s.params.readObject(v)
	case jsonList:
		s.params = params{}
		if !v.isEmpty() {
			s.params.count = 1
		}
	default:
		s.params = params{}
	}
	if s.params.count == 0 {
		tally.tracked++
		tally.astray++
		return
	}

	j := e.judge(ctx, &s.params, c)
	if j.time.unknown {
		e.metrics.badInput("cdt")
	}
	switch j.verdict {
	case refuse:
		e.metrics.badInput(string(j.reason))
		tally.invalid++
		if j.reason == reasonSite {
			tally.astray++
		}
		return
	case drop:
		tally.dropped++
	case store:
		c.cookies.recorded(&s.params, j.time.at)
		h.Rights, h.Token, h.Site, h.At = j.rights, j.token, j.site, j.time.at
		if h.Form == hit.Query {
			h.Params = e.maskQuery(h.Params, &s.params)
		} else {
			h.Params = e.maskObject(v)
		}
		s.set.Hits = append(s.set.Hits, h)
	}
	tally.tracked++
}
