package testkit

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Matomo's defaults.
const (
	privilegedAge  = 86400 * time.Second       // older times need a token
	oldestAge      = 20 * 365 * 24 * time.Hour // older times are ignored
	visitorIDChars = 16                        // of cid, and of the part of _id that counts
	optOutCookie   = "matomo_ignore=ignore=Kg=="
)

// poison says how a hit kills the request that carries it.
type poison uint8

const (
	harmless poison = iota
	failing         // an exception: 500 with JSON
	fatal           // PHP dies: 500 with nothing
	walled          // a firewall refuses it: 403
)

// A judge knows what all hits of one request share.
type judge struct {
	m         *Matomo
	state     *state
	now       time.Time
	request   *Request
	bulkToken string
	form      Params // of a form body: where secure-only tokens count
	peer      string // client address as PHP has it
	failed    bool   // a token was looked up in vain
	orders    map[string]bool
}

// hit judges one hit in Matomo's own order, so that the first error is Matomo's.
func (j *judge) hit(index int, raw string, p Params) (*Hit, poison) {
	header := j.request.Header
	h := &Hit{
		From: j.request, Index: index, Params: p, Raw: raw,
		Mark: p.String(j.m.cfg.Mark), Site: p.Int("idsite", 0), Time: j.now.Unix(), IP: j.peer,
		URL: p.String("url"), UserAgent: p.String("ua"), Language: p.String("lang"),
		Token: j.bulkToken,
	}
	if isEmpty(h.URL) && isEmpty(p.String("urlref")) && header.Get("Referer") != "" {
		h.URL = header.Get("Referer")
	}
	if h.UserAgent == "" {
		h.UserAgent = header.Get("User-Agent")
	}
	if h.Language == "" {
		h.Language = header.Get("Accept-Language")
	}
	if h.Token == "" {
		h.Token = p.String("token_auth")
	}
	if len(p) == 0 {
		h.Outcome = Excluded
		return h, harmless
	}
	if hostileHints(p) {
		return h, fatal
	}
	site, known := j.m.sites[h.Site]
	if !known {
		h.Outcome = Invalid
		return h, harmless
	}
	h.Trusted = j.trusted(h.Token, h.Site)
	if !j.place(h) {
		h.Outcome = Invalid
		return h, harmless
	}
	if j.excluded(h) {
		h.Outcome = Excluded
		return h, harmless
	}
	h.Visitor = visitor(p)
	if !j.sound(h, site) {
		h.Outcome = Invalid
		return h, harmless
	}
	if p.Int("ca", 0) != 0 || tooLong(p) {
		return h, failing
	}
	return h, harmless
}

// trusted says whether token is good for site.
func (j *judge) trusted(token string, site int64) bool {
	if j.m.cfg.NoAuth {
		return true
	}
	rights, ok := j.m.rights(token)
	if !ok || j.state.blocked && rights.Super {
		return false
	}
	if slices.Contains(rights.Sites, site) {
		return true
	}
	return rights.Super && (!rights.SecureOnly || j.form.String("token_auth") == token)
}

// place sets time and address; false when that needed a right that the hit lacks.
func (j *judge) place(h *Hit) bool {
	p := h.Params
	for _, name := range []string{"country", "region", "city", "lat", "long"} {
		if !isEmpty(p.String(name)) && !j.authenticated(h) {
			return false
		}
	}
	if at, given := customTime(p, j.now); given {
		if j.now.Sub(at) >= privilegedAge && !j.authenticated(h) {
			return false
		}
		h.Time = at.Unix()
	}
	if ip := p.String("cip"); !isEmpty(ip) {
		h.IP = ip
		return j.authenticated(h)
	}
	return true
}

// authenticated looks a hit's token up, which Matomo does only when a parameter
// needs it.
func (j *judge) authenticated(h *Hit) bool {
	if !h.Trusted && !isEmpty(h.Token) {
		j.failed = true
	}
	return h.Trusted
}

// customTime resolves cdt and cdo; given=false when they are absent, unreadable,
// in the future, or too old, all of which mean now.
func customTime(p Params, now time.Time) (at time.Time, given bool) {
	cdt, cdo := p.String("cdt"), p.Int("cdo", 0)
	switch seconds, number := numeric(cdt); {
	case isEmpty(cdt) && cdo == 0:
		return at, false
	case isEmpty(cdt):
		at = now
	case number:
		at = time.Unix(int64(seconds), 0)
	default:
		var ok bool
		if at, ok = parseTime(cdt); !ok {
			return at, false
		}
	}
	at = at.Add(-time.Duration(max(cdo, -cdo)) * time.Second)
	return at, at.Unix() <= now.Unix() && now.Sub(at) < oldestAge
}

// parseTime reads absolute dates. PHP reads many more texts; a replay must not
// depend on them, so the fake ignores them like any unreadable text.
func parseTime(s string) (time.Time, bool) {
	for _, layout := range []string{time.DateTime, time.RFC3339Nano, "2006-01-02T15:04:05",
		"2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05-0700", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// excluded says whether Matomo ignores the hit and calls that success.
func (j *judge) excluded(h *Hit) bool {
	header := j.request.Header
	if h.Params.Int("rec", 0) == 0 {
		return true
	}
	if agent := strings.ToLower(h.UserAgent); h.Params.Int("bots", 0) == 0 && (strings.Contains(agent, "bot/") || strings.Contains(agent, "googlebot")) {
		return true
	}
	if j.m.cfg.DoNotTrack && (strings.HasPrefix(header.Get("DNT"), "1") || header.Get("X-Do-Not-Track") == "1") {
		return true
	}
	if p := header.Get("X-Purpose"); p == "preview" || p == "instant" || header.Get("X-Moz") == "prefetch" {
		return true
	}
	return strings.Contains(phpUnescape(header.Get("Cookie")), optOutCookie)
}

// sound says whether the parameters are what Matomo can record.
func (j *judge) sound(h *Hit, site Site) bool {
	p := h.Params
	if cid := p.String("cid"); isEmpty(p.String("uid")) && !isEmpty(cid) && len(cid) != visitorIDChars {
		return false
	}
	goal := p.Int("idgoal", -1)
	if goal > 0 && !slices.Contains(site.Goals, goal) {
		return false
	}
	for _, name := range []string{"e_c", "e_a", "c_n"} {
		if v := p.String(name); v != "" && strings.TrimSpace(v) == "" {
			return false
		}
	}
	for _, name := range []string{"pf_net", "pf_srv", "pf_tfr", "pf_dm1", "pf_dm2", "pf_onl"} {
		// -1 is the default that stands for not measured.
		if p.Int(name, 0) < -1 {
			return false
		}
	}
	if key := h.order(); key != "" {
		if j.orders[key] || j.m.hasOrder(key) {
			return false
		}
		j.orders[key] = true
	}
	return true
}

// order names the hit's order, "" when it is none. An order is recorded once for
// ever.
func (h *Hit) order() string {
	id := h.Params.String("ec_id")
	if h.Params.Int("idgoal", -1) != 0 || isEmpty(id) {
		return ""
	}
	return fmt.Sprintf("%d %s", h.Site, id)
}

func (m *Matomo) hasOrder(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records.orders[key]
}

// visitor is the id by which Matomo looks the visitor up.
func visitor(p Params) string {
	id := p.String("cid")
	if uid := p.String("uid"); !isEmpty(uid) {
		sum := sha1.Sum([]byte(uid))
		id = hex.EncodeToString(sum[:])
	} else if isEmpty(id) {
		id = p.String("_id")
	}
	if len(id) < visitorIDChars {
		return ""
	}
	id = strings.ToLower(id[:visitorIDChars])
	if _, err := hex.DecodeString(id); err != nil {
		return ""
	}
	return id
}

// hostileHints finds client hints that kill PHP: one of those that it takes for
// text is something else. It needs no site, no rec and no browser.
func hostileHints(p Params) bool {
	hints, ok := decodeJSON([]byte(p.String("uadata"))).(map[string]any)
	if !ok {
		return false
	}
	for name, value := range hints {
		if _, isText := value.(string); isText {
			continue
		}
		name = strings.TrimPrefix(strings.ReplaceAll(strings.ToLower(name), "_", "-"), "http-")
		switch strings.TrimPrefix(name, "sec-ch-ua-") {
		case "arch", "architecture", "bitness", "model", "uafullversion", "full-version", "platform",
			"platformversion", "platform-version", "sec-ch-ua", "full-version-list", "x-requested-with":
			return true
		}
	}
	return false
}

// Widths of the columns for a place given by the client.
const (
	maxCountry = 3
	maxRegion  = 3
	maxCity    = 255
	maxDegrees = 1000
)

// tooLong finds the places that MariaDB's strict mode refuses.
func tooLong(p Params) bool {
	for _, name := range []string{"lat", "long"} {
		v, ok := numeric(p.String(name))
		if !isEmpty(p.String(name)) && (!ok || math.Abs(v) >= maxDegrees) {
			return true
		}
	}
	return len(p.String("country")) > maxCountry || len(p.String("region")) > maxRegion || len(p.String("city")) > maxCity
}

// peerAddress is the visitor's address when the hit does not name one.
func (m *Matomo) peerAddress(r *http.Request) string {
	if m.cfg.TrustForwarded {
		list := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		if last := strings.TrimSpace(list[len(list)-1]); last != "" {
			return last
		}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// jsonText marshals what cannot fail: strings, numbers and lists of them.
func jsonText(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return b
}
