package proxy

import (
	"bytes"
	"context"
	"strings"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// A verdict is what becomes of one hit at arrival.
type verdict uint8

const (
	store  verdict = iota // keep it; Matomo decides
	drop                  // Matomo would answer success and record nothing
	refuse                // Matomo would not take it: 400, or invalid in a bulk
)

// A reason says why a hit was refused; it is a label of a metric.
type reason string

const (
	reasonSite       reason = "site"       // no site, or one that Matomo does not have
	reasonPrivileged reason = "privileged" // a parameter that needs a token, and none given
	reasonVisitor    reason = "visitor"    // cid is not 16 characters long
	reasonBlank      reason = "blank"      // a name of an event or content of white space only
)

// A judgement is a verdict with what it found.
type judgement struct {
	verdict verdict
	reason  reason // of a refusal
	site    int64  // 0 when it cannot be read as a number
	rights  hit.Rights
	token   string // of a hit with rights Theirs
	time    hitTime
}

// circumstances are what all hits of a request share.
type circumstances struct {
	arrival int64  // Unix seconds
	token   string // of a bulk as a whole; it hides the hits' own
	// authorised: Matomo looks at the token whatever the hits say, so that they all
	// travel with it.
	authorised bool
	excluded   bool // opt-out cookie or prefetch: Matomo records nothing
	userAgent  []byte
	sites      siteMemo
	cookies    *visitorCookies // of the answer; nil when it has none
}

// judge decides a hit in the order of core/Tracker/Visit.php, handle: the site,
// then what needs a token, then exclusion, then what is invalid in itself. What
// Matomo alone can know is stored.
func (e *endpoint) judge(ctx context.Context, p *params, c *circumstances) judgement {
	var j judgement
	var absent bool
	if j.site, absent = siteOf(&p.values[pSite]); absent {
		return judgement{verdict: refuse, reason: reasonSite}
	}

	j.time = resolveTime(p.values[pTime], p.values[pTimeOffset], c.arrival, e.cfg.CustomTimestampAge)
	if j.time.old || privileged(p) || c.authorised {
		j.token = c.token
		if j.token == "" {
			j.token = ownToken(p.values[pToken])
		}
		if j.token == "" && !e.cfg.OpenTracking && !c.authorised {
			j.verdict, j.reason = refuse, reasonPrivileged
			return j
		}
		// Even without a token they are no hits of ours: those are lent our rights.
		j.rights = hit.Theirs
	}
	if j.site > 0 && e.lookup(ctx, j.site, &c.sites) == SiteAbsent {
		j.verdict, j.reason = refuse, reasonSite
		return j
	}
	if c.excluded || p.values[pRec].int(0) == 0 {
		j.verdict = drop
		return j
	}
	if r := invalid(p); r != "" && !maybeBot(p, c.userAgent) {
		j.verdict, j.reason = refuse, r
	}
	return j
}

// siteOf reads a hit's site. It is absent when there is none and no plugin could
// have meant one; a text that is not a number may be a plugin's own kind of id.
func siteOf(v *value) (site int64, absent bool) {
	site = v.int(0)
	if site > 0 {
		return site, false
	}
	switch v.kind {
	case missing, number, boolean:
		return 0, true
	case text:
		s := v.text()
		_, numeric := phpNumber(s)
		return 0, s == "" || numeric
	}
	return 0, false
}

// privileged says whether a hit uses a parameter for which Matomo wants a token,
// the time apart. It errs on the side of yes: what is privileged and taken for
// ours would be lent our token.
func privileged(p *params) bool {
	for i := pIP; i <= pLongitude; i++ {
		if p.values[i].kind != missing && !p.values[i].empty() {
			return true
		}
	}
	return false
}

// ownToken reads a hit's own token.
func ownToken(v value) string {
	if v.kind == missing || v.empty() {
		return ""
	}
	return v.text()
}

// visitorLength is how long a visitor's id is, in hexadecimal digits.
const visitorLength = 16

// invalid says why Matomo refuses a hit for what it says, once the hit is not
// excluded. It answers only where no plugin and no other action can change that.
func invalid(p *params) reason {
	if invalidVisitor(p) {
		return reasonVisitor
	}
	// A goal, an order, a ping or a plugin's action has no action of its own, and
	// of two actions an outlink and a download win.
	for _, i := range [...]param{pGoal, pPing, pDownload, pLink, pCustomAction} {
		if v := p.values[i]; v.kind != missing && !(v.kind == text && len(v.raw) == 0) {
			return ""
		}
	}
	category, action := plainText(p.values[pEventCategory]), plainText(p.values[pEventAction])
	if category != "" && action != "" {
		if blank(category) || blank(action) {
			return reasonBlank
		}
		return ""
	}
	if name := plainText(p.values[pContentName]); name != "" && name != "0" && blank(name) {
		return reasonBlank
	}
	return ""
}

// invalidVisitor follows getVisitorId of core/Tracker/Request.php: a user id wins
// over cid. Matomo counts the bytes after escaping them for HTML.
func invalidVisitor(p *params) bool {
	user := p.values[pUser]
	if user.kind == array || user.kind != missing && !user.empty() {
		return false
	}
	v := p.values[pVisitor]
	if v.kind != text {
		return false
	}
	if strings.Contains(v.text(), "&") {
		return false // which entities PHP knows is not known here
	}
	cid := matomoText(v.text())
	return !phpform.Empty(cid) && len(cid) != visitorLength
}

func plainText(v value) string {
	if v.kind != text {
		return ""
	}
	return v.text()
}

// blank says whether PHP's trim leaves nothing. NUL bytes are not counted as
// space, since Matomo has dropped them before.
func blank(s string) bool { return strings.Trim(s, " \t\n\r\v") == "" }

// botWords stand in the names of robots, of the tools that they are made with
// and of their pages, but not in those of browsers.
var botWords = []string{"bot", "crawl", "spider", "slurp", "http", "www", "@", "+", "scan", "monitor", "check",
	"fetch", "preview", "archiv", "search", "google", "bing", "yahoo", "yandex", "baidu", "facebook", "headless",
	"lighthouse", "insights", "validator", "feed", "compatible"}

// maybeBot says whether Matomo could take the visitor for a robot, which it
// excludes before it looks at the rest. Only a plain browser, no name at all, or
// bots=1 rule that out.
func maybeBot(p *params, header []byte) bool {
	if p.values[pBots].int(0) != 0 {
		return false
	}
	agent := header
	if s := p.values[pUserAgent].text(); s != "" {
		agent = []byte(s)
	}
	if len(agent) == 0 {
		return false
	}
	if !bytes.HasPrefix(agent, []byte("Mozilla/5.0 (")) {
		return true
	}
	lower := bytes.ToLower(agent)
	for _, word := range botWords {
		if bytes.Contains(lower, []byte(word)) {
			return true
		}
	}
	return false
}

// maxLookups bounds how many sites one request may ask about.
const maxLookups = 16

// A siteMemo remembers the answers within one request.
type siteMemo struct {
	asked   int
	ids     [maxLookups]int64
	answers [maxLookups]SiteAnswer
}

// lookup asks for a site, once for each request.
func (e *endpoint) lookup(ctx context.Context, site int64, memo *siteMemo) SiteAnswer {
	if e.sites == nil {
		return SiteUnknown
	}
	for i := range memo.asked {
		if memo.ids[i] == site {
			return memo.answers[i]
		}
	}
	if memo.asked == maxLookups {
		return SiteUnknown
	}
	answer := e.sites.Lookup(ctx, site)
	memo.ids[memo.asked], memo.answers[memo.asked] = site, answer
	memo.asked++
	return answer
}
