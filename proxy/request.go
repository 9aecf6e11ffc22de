package proxy

import (
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// A request is one HTTP request in the form that both ways in produce. Its bytes
// may alias a connection's buffer: nothing of it outlives the answer.
type request struct {
	method string
	place  place
	query  []byte // without the question mark
	body   []byte
	headers

	peer     netip.Addr // the other end of the connection
	peerText string     // peer in canonical text
	https    bool

	// receivedAt is when the last byte of the request was read.
	receivedAt time.Time

	// What passing the request on needs: the head as it was read, or net/http's
	// request.
	head     []byte
	original *http.Request

	path   []byte // as it came, of the fast path only
	stored int    // hits

	charged int64 // bytes of body that count towards Limits.BodyMemory

	keep []string // Config.KeepHeaders, for the fast path

	files Files     // Config.Files, for the fast path
	file  FileQuery // of a head that is headFile
}

// headers are the values that Matomo or the edge reads, trimmed, each nil when
// the header is absent.
type headers struct {
	host           []byte
	contentType    []byte
	userAgent      []byte
	acceptLanguage []byte
	referer        []byte
	cookie         []byte
	origin         []byte
	doNotTrack     []byte // X-Do-Not-Track
	dnt            []byte
	via            []byte
	purpose        []byte // X-Purpose
	moz            []byte // X-Moz
	fetchMode      []byte // Sec-Fetch-Mode
	forwardedFor   []byte
	forwarded      []byte
	preflight      [2][]byte // Access-Control-Request-Headers and -Method

	forwardedProto []byte // X-Forwarded-Proto
	forwardScheme  []byte // X-Forwarded-Scheme
	urlScheme      []byte // X-Url-Scheme

	// hints are the headers that begin with Sec-CH-UA, and kept those of
	// [Config.KeepHeaders].
	hints, kept []hint
}

type hint struct {
	name, value []byte // name as it came
}

// field gives the place of a header's value, or nil for a header that nobody
// reads. Client hints are not among them.
func (h *headers) field(name []byte) *[]byte {
	switch len(name) {
	case 3:
		if is(name, "via") {
			return &h.via
		}
		if is(name, "dnt") {
			return &h.dnt
		}
	case 4:
		if is(name, "host") {
			return &h.host
		}
	case 5:
		if is(name, "x-moz") {
			return &h.moz
		}
	case 6:
		if is(name, "cookie") {
			return &h.cookie
		}
		if is(name, "origin") {
			return &h.origin
		}
	case 7:
		if is(name, "referer") {
			return &h.referer
		}
	case 9:
		if is(name, "x-purpose") {
			return &h.purpose
		}
		if is(name, "forwarded") {
			return &h.forwarded
		}
	case 10:
		if is(name, "user-agent") {
			return &h.userAgent
		}
	case 12:
		if is(name, "content-type") {
			return &h.contentType
		}
		if is(name, "x-url-scheme") {
			return &h.urlScheme
		}
	case 14:
		if is(name, "x-do-not-track") {
			return &h.doNotTrack
		}
		if is(name, "sec-fetch-mode") {
			return &h.fetchMode
		}
	case 15:
		if is(name, "accept-language") {
			return &h.acceptLanguage
		}
		if is(name, "x-forwarded-for") {
			return &h.forwardedFor
		}
	case 17:
		if is(name, "x-forwarded-proto") {
			return &h.forwardedProto
		}
	case 18:
		if is(name, "x-forwarded-scheme") {
			return &h.forwardScheme
		}
	case 29:
		if is(name, "access-control-request-method") {
			return &h.preflight[1]
		}
	case 30:
		if is(name, "access-control-request-headers") {
			return &h.preflight[0]
		}
	}
	return nil
}

const hintPrefix = "sec-ch-ua"

func isHint(name []byte) bool {
	return len(name) >= len(hintPrefix) && is(name[:len(hintPrefix)], hintPrefix)
}

// is compares a header's name with one in lower case.
func is[T string | []byte](name T, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i := range len(lower) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// fill reads net/http's headers. Equal lines are joined as web servers join them
// for PHP. Names with an underscore are other headers to PHP's web servers and
// are left out, as they do. Keep is [Config.KeepHeaders].
func (h *headers) fill(r *http.Request, keep []string) {
	*h = headers{hints: h.hints[:0], kept: h.kept[:0], host: []byte(r.Host)}
	for name, values := range r.Header {
		if len(values) == 0 {
			continue
		}
		if wanted(keep, []byte(name)) {
			h.kept = append(h.kept, hint{[]byte(name), []byte(strings.Join(values, ", "))})
			continue
		}
		if isHint([]byte(name)) && !strings.Contains(name, "_") {
			h.hints = append(h.hints, hint{[]byte(name), []byte(strings.Join(values, ", "))})
			continue
		}
		field := h.field([]byte(name))
		if field == nil || field == &h.host {
			continue
		}
		separator := ", "
		if field == &h.cookie {
			separator = "; "
		}
		value := strings.Join(values, separator)
		*field = append(make([]byte, 0, len(value)), value...)
	}
}

// header says whether PHP would see a non-empty value by its empty().
func filled(v []byte) bool { return len(v) > 0 && string(v) != "0" }
