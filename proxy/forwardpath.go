package proxy

import (
	"net/http"
	"strings"

	"sluice/internal/phpform"
)

// mayLeave says whether a request's path could lead out of Matomo's base path, or to
// another server, in the eyes of some server behind: dot segments, also with
// parameters, encoded slashes and backslashes, encoded once or more often. Browsers
// resolve dots before they ask, and Matomo's paths have none of this.
func mayLeave(r *http.Request) bool {
	u := r.URL
	if u.Opaque != "" || u.User != nil || u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
		return true
	}
	raw := u.EscapedPath()
	if raw == "" && u.Scheme != "" {
		return false // http://host
	}
	if raw == "" || raw[0] != '/' {
		return true
	}
	const depth = 4 // beyond it nobody decodes
	for range depth {
		if hasBadSegment(raw) {
			return true
		}
		if !strings.Contains(raw, "%") {
			return false
		}
		if lower := strings.ToLower(raw); strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c") {
			return true
		}
		decoded := phpform.Unescape([]byte(strings.ReplaceAll(raw, "+", "%2B")))
		if decoded == raw {
			return false
		}
		raw = decoded
	}
	return true
}

// hasBadSegment looks at a path as it stands.
func hasBadSegment(p string) bool {
	for _, c := range []byte(p) {
		if c == '\\' || c < ' ' || c == 0x7f {
			return true
		}
	}
	for segment := range strings.SplitSeq(p, "/") {
		name, _, _ := strings.Cut(segment, ";")
		// Windows drops dots and spaces at the end.
		if strings.Contains(name, ".") && strings.Trim(name, ". ") == "" {
			return true
		}
	}
	return false
}
