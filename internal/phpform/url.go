package phpform

import "strings"

// ParseURLQuery gives the query of a hit that came as a string in a bulk
// request: PHP's parse_url, which replaces control bytes by "_". It reports false
// when Matomo drops the hit: parse_url refuses the string, or finds no query or
// the query "0".
func ParseURLQuery(s string) (query string, ok bool) {
	s, ok = afterHost(s)
	if !ok {
		return "", false
	}
	s, _, _ = strings.Cut(s, "#")
	_, query, _ = strings.Cut(s, "?")
	if Empty(query) {
		return "", false
	}
	return replaceControls(query), true
}

// afterHost drops what stands before the path, query and fragment. It reports
// false when parse_url refuses the string. The rules are PHP's, not those of any
// standard: what is not plausible as a scheme or port is taken as a path.
func afterHost(s string) (rest string, ok bool) {
	colon := strings.IndexByte(s, ':')
	if colon < 0 {
		if hasAuthority(s) {
			return afterAuthority(s[2:], false)
		}
		return s, true
	}
	if !isScheme(s[:colon]) {
		if colon == 0 || colon+1 < len(s) && !strings.ContainsAny(s[:colon], "?#") {
			return afterPort(s, colon)
		}
		if hasAuthority(s) {
			return afterAuthority(s[2:], false)
		}
		return s, true
	}

	after := s[colon+1:]
	switch {
	case after == "":
		return "", true
	case after[0] != '/':
		port := skipDigits(after, 0)
		if port < maxPortDigits+1 && (port == len(after) || after[port] == '/') {
			return afterPort(s, colon)
		}
		return after, true
	case !hasAuthority(after):
		return after, true
	case strings.EqualFold(s[:colon], "file") && len(after) > 2 && after[2] == '/':
		return after[2:], true
	}
	return afterAuthority(after[2:], false)
}

// maxPortDigits is how many digits parse_url looks at for a port.
const maxPortDigits = 5

// afterPort handles a string whose first colon does not end a scheme, so that a
// port may follow it.
func afterPort(s string, colon int) (rest string, ok bool) {
	after := s[colon+1:]
	digits := skipDigits(after, 0)
	portIsNotZero := false
	switch {
	case 0 < digits && digits <= maxPortDigits && (digits == len(after) || after[digits] == '/'):
		port := Intval(after[:digits])
		if port > maxPort {
			return "", false
		}
		portIsNotZero = port != 0
		if hasAuthority(s) {
			s = s[2:]
		}
	case after == "":
		return "", false
	case hasAuthority(s):
		s = s[2:]
	default:
		return s, true
	}
	return afterAuthority(s, portIsNotZero)
}

const maxPort = 65535

// afterAuthority drops user, host and port. A port that was found before is not
// looked at again, unless it was zero.
func afterAuthority(s string, portKnown bool) (rest string, ok bool) {
	host, rest := s, ""
	if end := strings.IndexAny(s, "/?#"); end >= 0 {
		host, rest = s[:end], s[end:]
	}
	host = host[strings.LastIndexByte(host, '@')+1:]
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	colon := strings.LastIndexByte(host, ':')
	if bracketed || colon < 0 {
		return rest, host != ""
	}
	if !portKnown && !plausiblePort(host[colon+1:]) {
		return "", false
	}
	return rest, colon > 0
}

// plausiblePort says whether parse_url takes what stands between the last colon
// and the end of the host. C's strtol reads it, so space, a sign and trailing
// text pass.
func plausiblePort(s string) bool {
	if s == "" {
		return true
	}
	if len(s) > maxPortDigits {
		return false
	}
	at := 0
	for at < len(s) && isSpace(s[at]) {
		at++
	}
	negative := at < len(s) && s[at] == '-'
	if at < len(s) && (s[at] == '-' || s[at] == '+') {
		at++
	}
	end := skipDigits(s, at)
	if end == at {
		return false
	}
	port := Intval(s[at:end])
	return port <= maxPort && !(negative && port > 0)
}

func hasAuthority(s string) bool { return strings.HasPrefix(s, "//") }

// isScheme says whether PHP takes s as a scheme. An empty one is none.
func isScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		digit := '0' <= c && c <= '9'
		if !letter && !digit && c != '+' && c != '.' && c != '-' {
			return false
		}
	}
	return s != ""
}

func replaceControls(s string) string {
	at := 0
	for at < len(s) && !isControl(s[at]) {
		at++
	}
	if at == len(s) {
		return s
	}
	b := []byte(s)
	for i := at; i < len(b); i++ {
		if isControl(b[i]) {
			b[i] = '_'
		}
	}
	return string(b)
}

func isControl(c byte) bool { return c < 0x20 || c == 0x7f }
