package proxy

import "bytes"

// A headResult says what the strict parser makes of a connection's bytes.
type headResult uint8

const (
	headMore    headResult = iota // the head is not complete
	headTaken                     // a request that the fast path answers
	headDecline                   // anything else: net/http decides
	headFile                      // a GET of one of Matomo's files, which r.file describes
)

// A head is what the strict parser has found besides the request.
type head struct {
	size   int // of request line and headers, with the empty line
	length int // of the body
	file   bool
}

// parseHead reads the head of a request at the front of b, and only this:
//
//   - "GET" or "POST", one space, a path of plain characters that leads to the
//     tracker, and optionally "?" and a query without controls and spaces, one
//     space, "HTTP/1.1"; every line ends in CR LF;
//   - names of token characters, a colon right behind them, values without
//     control characters but the tab; no continued lines;
//   - Host exactly once and plain, Content-Length at most once, in digits,
//     without a leading zero and at most maxBody; Connection absent or
//     "keep-alive"; no header that would change where the message ends, what the
//     connection becomes, or what the client waits for; none of the headers that
//     are read here twice;
//   - or a GET of one of Matomo's files in the same form, with the limits of
//     [request.fileHeaders].
//
// Whatever it takes, net/http would read in the same way. It never judges: what
// it declines may be a perfectly good request. The request's bytes alias b.
func parseHead(b []byte, r *request, maxBody int) (head, headResult) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if hasBareLF(b) {
			return head{}, headDecline
		}
		return head{}, headMore
	}
	h := head{size: end + 4, length: -1}
	b = b[:end+2]

	rest, ok := r.parseRequestLine(b)
	if !ok {
		return head{}, headDecline
	}
	r.headers = headers{hints: r.hints[:0], kept: r.kept[:0]}
	if !r.place.tracks(r.method, r.query) {
		if r.fileHeaders(rest, &h) && len(r.host) > 0 {
			h.length, h.file = 0, true
			return h, headFile
		}
		return head{}, headDecline
	}
	for len(rest) > 0 {
		if rest, ok = r.parseHeader(rest, &h); !ok {
			return head{}, headDecline
		}
	}
	if len(r.host) == 0 || h.length > maxBody {
		return head{}, headDecline
	}
	h.length = max(h.length, 0)
	return h, headTaken
}

// hasBareLF tells line ends that are not CR LF, which the fast path would wait
// behind for ever.
func hasBareLF(b []byte) bool {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return false
		}
		if at+i == 0 || b[at+i-1] != '\r' {
			return true
		}
		at += i + 1
	}
}

// parseRequestLine reads the first line and gives what follows it.
func (r *request) parseRequestLine(b []byte) (rest []byte, ok bool) {
	switch {
	case len(b) > 4 && string(b[:4]) == "GET ":
		r.method, b = "GET", b[4:]
	case len(b) > 5 && string(b[:5]) == "POST ":
		r.method, b = "POST", b[5:]
	default:
		return nil, false
	}
	at := 0
	for at < len(b) && pathByte[b[at]] {
		at++
	}
	path := b[:at]
	if at == len(b) || at == 0 || path[0] != '/' {
		return nil, false
	}
	r.query = nil
	if b[at] == '?' {
		start := at + 1
		for at = start; at < len(b) && b[at] > ' ' && b[at] != 0x7f; at++ {
		}
		r.query = b[start:at:at]
	}
	const tail = " HTTP/1.1\r\n"
	if len(b)-at < len(tail) || string(b[at:at+len(tail)]) != tail {
		return nil, false
	}
	// Paths that need cleaning are left to net/http.
	for i := range len(path) - 1 {
		if path[i] == '/' && (path[i+1] == '/' || path[i+1] == '.') {
			return nil, false
		}
	}
	r.path, r.place = path, placeOf(path)
	rest = b[at+len(tail):]
	if r.place.tracks(r.method, r.query) {
		return rest, true
	}
	r.file.Path = path
	return rest, r.files != nil && r.method == "GET" && r.files.Named(path)
}

// parseHeader reads one line. It notes what the request needs and declines what
// the fast path must not answer.
func (r *request) parseHeader(b []byte, h *head) (rest []byte, ok bool) {
	at := 0
	for at < len(b) && tokenByte[b[at]] {
		at++
	}
	if at == 0 || at == len(b) || b[at] != ':' {
		return nil, false
	}
	name := b[:at]
	start := at + 1
	for at = start; at < len(b) && valueByte[b[at]]; at++ {
	}
	if len(b)-at < 2 || b[at] != '\r' || b[at+1] != '\n' {
		return nil, false
	}
	v := trimSpace(b[start:at:at])
	rest = b[at+2:]

	switch len(name) {
	case 2:
		if is(name, "te") {
			return nil, false
		}
	case 6:
		if is(name, "expect") {
			return nil, false
		}
	case 7:
		if is(name, "upgrade") || is(name, "trailer") {
			return nil, false
		}
	case 10:
		if is(name, "connection") {
			return rest, is(v, "keep-alive")
		}
	case 14:
		if is(name, "content-length") {
			n, ok := digits(v)
			if !ok || len(v) > maxLengthDigits || v[0] == '0' && len(v) > 1 || h.length >= 0 {
				return nil, false
			}
			h.length = int(n)
			return rest, true
		}
		if is(name, "http2-settings") {
			return nil, false
		}
	case 17:
		if is(name, "transfer-encoding") {
			return nil, false
		}
	}

	if isHint(name) {
		for _, other := range r.hints {
			if compareNames(other.name, name) == 0 {
				return nil, false
			}
		}
		if bytes.IndexByte(name, '_') < 0 {
			r.hints = append(r.hints, hint{name, v})
		}
		return rest, true
	}
	field := r.field(name)
	if field == nil {
		return rest, r.keepHeader(name, v)
	}
	if *field != nil || field == &r.host && !isPlainHost(v) {
		return nil, false
	}
	*field = v
	return rest, true
}

// maxLengthDigits keeps a body's length within 32 bits.
const maxLengthDigits = 9

// isPlainHost takes the hosts that every reader of HTTP understands in the same
// way.
func isPlainHost(v []byte) bool {
	for _, c := range v {
		if !hostByte[c] {
			return false
		}
	}
	return len(v) > 0
}

// trimSpace takes spaces and tabs off both ends. It never returns nil.
func trimSpace(v []byte) []byte {
	for len(v) > 0 && (v[0] == ' ' || v[0] == '\t') {
		v = v[1:]
	}
	for len(v) > 0 && (v[len(v)-1] == ' ' || v[len(v)-1] == '\t') {
		v = v[:len(v)-1]
	}
	return v
}

// The bytes that may stand in the parts of a head.
var (
	alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	pathByte     = byteSet("/._~-" + alphanumeric)
	tokenByte    = byteSet("!#$%&'*+-.^_`|~" + alphanumeric)
	hostByte     = byteSet(".:-[]" + alphanumeric)
	valueByte    = valueBytes()
)

func byteSet(members string) (set [256]bool) {
	for i := range len(members) {
		set[members[i]] = true
	}
	return set
}

// valueBytes are those of a field's value: all but control characters, and the
// tab.
func valueBytes() (set [256]bool) {
	for c := range set {
		set[c] = c >= ' ' && c != 0x7f || c == '\t'
	}
	return set
}
