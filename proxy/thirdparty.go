package proxy

import (
	"encoding/base64"
	"html"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxCookieContent is the longest content of a cookie that Matomo writes, in
// bytes (core/Cookie.php). Instead of a longer one it deletes the cookie.
const maxCookieContent = 1024

// maxCookieLines bounds the cookies of one answer: with more, a proxy in front that
// takes 4 KiB of headers would make an error of it. Browsers keep the last of
// several, so that the others have no effect.
const maxCookieLines = 20

// A cookieValue is one named value out of a cookie of Matomo's.
type cookieValue struct{ name, value string }

// readCookie reads the content of a cookie as class Cookie of core/Cookie.php
// does: "name=value" joined by ":", values in base64 unless they are numbers. The
// last of equal names counts, at the first one's place. Signed cookies of Matomo
// before 4, which only Matomo could verify, are read as if they had no signature.
func readCookie(raw []byte) []cookieValue {
	content := unescapeCookie(raw)
	if !strings.Contains(content, "=") {
		return nil
	}
	var values []cookieValue
	for part := range strings.SplitSeq(content, ":") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			// PHP's substr begins behind the first byte then.
			name, value = "", part[min(1, len(part)):]
		}
		if _, number := phpNumber(value); !number {
			value = string(looseBase64(value))
		}
		values = setCookieValue(values, name, value)
	}
	return values
}

func setCookieValue(values []cookieValue, name, value string) []cookieValue {
	i := slices.IndexFunc(values, func(v cookieValue) bool { return v.name == name })
	if i < 0 {
		return append(values, cookieValue{name, value})
	}
	values[i].value = value
	return values
}

// visitorValue is the name of the visitor's id within the cookie.
const visitorValue = "0"

// idOf gives the visitor's id in the third-party cookie, as function
// getThirdPartyCookieVisitorId of core/Tracker/Request.php reads it, or "". It
// need not be hexadecimal.
func idOf(values []cookieValue) string {
	for _, v := range values {
		if id := matomoText(v.value); v.name == visitorValue && len(id) == visitorLength {
			return id
		}
	}
	return ""
}

// cookieID gives the visitor's id that a request's third-party cookie brought,
// "" outside of that mode.
func (e *endpoint) cookieID(r *request) string {
	if !e.cfg.ThirdPartyCookie || len(r.cookie) == 0 {
		return ""
	}
	raw, _ := cookie(r.cookie, e.cfg.CookieVisitorName)
	return idOf(readCookie(raw))
}

// visitorCookies collects the header lines with which an answer sets the
// third-party cookie, once for each hit that is stored: the function
// setThirdPartyCookie of core/Tracker/Request.php. Where Matomo heeds DNT it
// collects what plugins/PrivacyManager/DoNotTrackHeaderChecker.php answers to
// that. A nil one collects nothing.
type visitorCookies struct {
	cfg       *Config
	values    []cookieValue // of the request's cookie
	found     bool          // there is such a cookie
	id        string        // the visitor's id in it
	untracked bool          // the request asks not to be tracked, and is heeded
	secure    bool          // the client speaks HTTPS
	safari    bool
	arrival   time.Time
	lines     [][]byte
	hits      int
}

// cookiesFor gives what collects an answer's cookies, nil when none are set.
func (e *endpoint) cookiesFor(r *request) *visitorCookies {
	untracked := e.cfg.DoNotTrack && doNotTrack(r)
	if !e.cfg.ThirdPartyCookie && !untracked {
		return nil
	}
	c := &visitorCookies{cfg: e.cfg, untracked: untracked, secure: secure(r), safari: isSafari(string(r.userAgent)), arrival: r.receivedAt}
	if len(r.cookie) > 0 {
		var raw []byte
		raw, c.found = cookie(r.cookie, e.cfg.CookieVisitorName)
		c.values = readCookie(raw)
		c.id = idOf(c.values)
	}
	return c
}

// recorded adds the cookie of a hit whose time is at, in Unix seconds.
func (c *visitorCookies) recorded(p *params, at int64) {
	if c == nil {
		return
	}
	c.hits++
	if c.untracked {
		if c.found {
			c.delete()
		}
		return
	}
	id := c.id
	if id == "" {
		if first := matomoText(p.values[pFirstParty].text()); len(first) >= visitorLength {
			id = first[:visitorLength]
		}
	}
	content := cookieContent(setCookieValue(slices.Clone(c.values), visitorValue, hexOf(id)))
	if len(content) > maxCookieContent {
		c.delete()
		return
	}
	site := "Lax"
	if c.secure {
		site = "None"
		if c.safari {
			site = ""
		}
	}
	c.add(c.line(rawURLEncode(content), at+int64(c.cfg.CookieExpire/time.Second), c.secure, site))
}

// deletedAgo is how far back Matomo dates a cookie that is to go, in seconds.
const deletedAgo = 31536001

func (c *visitorCookies) delete() {
	past := c.arrival.Unix() - deletedAgo
	c.add(append(c.line("deleted", past, false, ""), c.line("deleted", past, true, "None")...))
}

func (c *visitorCookies) add(line []byte) {
	if len(c.lines) == maxCookieLines {
		c.lines = c.lines[:maxCookieLines-1]
	}
	c.lines = append(c.lines, line)
}

// headers gives the lines, with the policy that Matomo sends along.
func (c *visitorCookies) headers() (b []byte) {
	if c == nil || c.hits == 0 {
		return nil
	}
	if c.untracked {
		b = append(b, "Tk: N\r\n"...)
	}
	if len(c.lines) > 0 {
		b = append(b, "P3P: CP='OTI DSP COR NID STP UNI OTPa OUR'\r\n"...)
	}
	for _, line := range c.lines {
		b = append(b, line...)
	}
	return b
}

// line writes one cookie as function setCookie of core/Cookie.php does. Value is
// encoded, expires is in Unix seconds.
func (c *visitorCookies) line(value string, expires int64, secure bool, site string) []byte {
	b := append([]byte("Set-Cookie: "), rawURLEncode(c.cfg.CookieVisitorName)...)
	b = append(append(b, '='), value...)
	b = time.Unix(expires, 0).UTC().AppendFormat(append(b, "; expires="...), "Monday, 02-Jan-2006 15:04:05 MST")
	if c.cfg.CookiePath != "" && c.cfg.CookiePath != "0" {
		b = append(append(b, "; path="...), c.cfg.CookiePath...)
	}
	if domain := cookieDomain(c.cfg.CookieDomain); domain != "" {
		b = append(append(b, "; domain="...), rawURLEncode(domain)...)
	}
	if secure {
		b = append(b, "; secure"...)
	}
	if site != "" {
		b = append(append(b, "; SameSite="...), site...)
	}
	return append(b, "\r\n"...)
}

// cookieDomain writes a domain as Matomo does: for all hosts below it, without www
// and without a port.
func cookieDomain(domain string) string {
	const www = "www."
	if domain == "" || domain == "0" {
		return ""
	}
	if len(domain) >= len(www) && strings.EqualFold(domain[:len(www)], www) {
		domain = domain[len(www):]
	}
	domain, _, _ = strings.Cut(domain, ":")
	return "." + domain
}

func cookieContent(values []cookieValue) string {
	parts := make([]string, len(values))
	for i, v := range values {
		text := v.value
		if _, number := phpNumber(text); !number {
			text = base64.StdEncoding.EncodeToString([]byte(text))
		}
		parts[i] = v.name + "=" + text
	}
	return strings.Join(parts, ":")
}

// hexOf writes an id as Matomo does after it has made bytes of it: in lower case,
// with 0 for what is no hexadecimal digit.
func hexOf(id string) string {
	b := []byte(id)
	for i, c := range b {
		switch {
		case unhex(c) < 0:
			b[i] = '0'
		case 'A' <= c && c <= 'F':
			b[i] = c + ('a' - 'A')
		}
	}
	return string(b)
}

// rawURLEncode is PHP's function of that name.
func rawURLEncode(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

// doNotTrack says whether a request asks not to be tracked, as
// plugins/PrivacyManager/DoNotTrackHeaderChecker.php reads it.
func doNotTrack(r *request) bool {
	return string(r.doNotTrack) == "1" || len(r.dnt) > 0 && r.dnt[0] == '1'
}

// secure says whether Matomo takes a request for one over HTTPS: function
// getCurrentSchemeFromRequestHeader of core/Url.php, which believes everybody.
func secure(r *request) bool {
	const https = "https"
	switch {
	case is(r.forwardScheme, https), is(r.urlScheme, https):
		return true
	case string(r.forwardedProto) == "http":
		return false
	}
	return r.https || string(r.forwardedProto) == https
}

// isSafari says whether a browser is of Safari's family, which takes SameSite=None
// for Strict. Matomo asks its device detection, which knows some hundred browsers
// by name before it falls back to Safari; here a browser is Safari when it runs on
// Apple's systems or Windows and names nothing but what Safari names.
func isSafari(agent string) bool {
	_, rest, _ := strings.Cut(agent, "(")
	system, rest, _ := strings.Cut(rest, ")")
	if !containsAny(system, "Macintosh", "iPhone", "iPad", "iPod", "Windows") || strings.Contains(system, "compatible") {
		return false
	}
	rest = strings.ReplaceAll(rest, "(KHTML, like Gecko)", "")
	safari := containsAny(system, "iPhone", "iPad", "iPod")
	for product := range strings.FieldsSeq(rest) {
		switch name, _, _ := strings.Cut(product, "/"); name {
		case "Safari":
			safari = true
		case "AppleWebKit", "Mobile", "Version":
		default:
			return false
		}
	}
	return safari
}

func containsAny(s string, words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(s, w) })
}

// matomoText gives a text as Matomo has it after reading: function
// sanitizeInputValue of core/Common.php.
func matomoText(s string) string {
	if !strings.ContainsAny(s, "\r\n\x00&<>\"'") && utf8.ValidString(s) {
		return s
	}
	s = html.UnescapeString(strings.NewReplacer("\r", "", "\n", "").Replace(s))
	s = strings.ReplaceAll(s, "\x00", "")
	if !utf8.ValidString(s) {
		wide := make([]byte, 0, 2*len(s))
		for i := range len(s) {
			wide = utf8.AppendRune(wide, rune(s[i]))
		}
		s = string(wide)
	}
	return escapeHTML.Replace(s)
}

var escapeHTML = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#039;")
