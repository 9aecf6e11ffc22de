package accesslog

import "bytes"

// setRequest takes a request line, in which the log's escapes are undone already. A line
// without a protocol is an error: HTTP/0.9 brings no hit, and servers that cut long
// lines cut it off.
func (r *Record) setRequest(s []byte) error {
	method, rest, _ := bytes.Cut(s, space)
	last := bytes.LastIndexByte(rest, ' ')
	if last < 0 || !isMethod(method) || !isProtocol(rest[last+1:]) {
		return ErrRequest
	}
	r.Method, r.Protocol = method, rest[last+1:]
	return r.setTarget(rest[:last])
}

var (
	space     = []byte(" ")
	schemeEnd = []byte("://")
)

// setTarget takes what stands between method and protocol.
func (r *Record) setTarget(s []byte) error {
	if len(s) > 0 && s[0] == '/' {
		r.Target = s
		return nil
	}
	if string(s) == "*" || (len(s) > 0 && string(r.Method) == "CONNECT") {
		r.Target = s
		return nil
	}
	scheme, rest, found := bytes.Cut(s, schemeEnd)
	switch {
	case !found:
		return ErrRequest
	case bytes.EqualFold(scheme, []byte("http")) || bytes.EqualFold(scheme, []byte("ws")):
		r.setScheme(SchemeHTTP)
	case bytes.EqualFold(scheme, []byte("https")) || bytes.EqualFold(scheme, []byte("wss")):
		r.setScheme(SchemeHTTPS)
	default:
		return ErrRequest
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	host := rest[:end]
	if at := bytes.LastIndexByte(host, '@'); at >= 0 {
		host = host[at+1:]
	}
	if len(host) == 0 {
		return ErrRequest
	}
	if r.Host == nil {
		r.Host = host
	}
	switch {
	case end == len(rest):
		r.Target = []byte("/")
	case rest[end] == '/':
		r.Target = rest[end:]
	default:
		at := len(r.buf)
		r.buf = append(append(r.buf, '/'), rest[end:]...)
		r.Target = r.buf[at:]
	}
	return nil
}

// setParts takes a path and a query that are logged apart. A query that is nil was
// not sent.
func (r *Record) setParts(path, query []byte) error {
	if query == nil {
		return r.setTarget(path)
	}
	at := len(r.buf)
	r.buf = append(append(append(r.buf, path...), '?'), query...)
	return r.setTarget(r.buf[at:])
}

func (r *Record) setScheme(s Scheme) {
	if r.Scheme == SchemeUnknown {
		r.Scheme = s
	}
}

// isMethod says whether a word could be a method. The longest that is registered
// has 17 letters (IANA, HTTP Method Registry).
func isMethod(s []byte) bool {
	const longest = 32
	if len(s) == 0 || len(s) > longest || !isLetter(s[0]) {
		return false
	}
	for _, c := range s {
		if !isLetter(c) && !isDigit(c) && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// isProtocol says whether a word is a protocol that a hit can have come by.
func isProtocol(s []byte) bool {
	return bytes.HasPrefix(s, []byte("HTTP/")) && string(s) != "HTTP/0.9"
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isAddress says whether something looks like the address or the name of a peer.
func isAddress(s []byte) bool {
	if len(s) == 0 || string(s) == "-" {
		return false
	}
	for _, c := range s {
		if c <= ' ' || c == '"' || c == '[' || c == ']' || c == '\\' || c >= 0x7f {
			return false
		}
	}
	return true
}

// withoutPort takes the port off an address, as in "192.0.2.1:80" and "[::1]:80". In
// portAlways logs "::1:80" is an address with a port, too.
func withoutPort(s []byte, portAlways bool) []byte {
	if len(s) > 0 && s[0] == '[' {
		if end := bytes.IndexByte(s, ']'); end > 0 {
			return s[1:end]
		}
		return s
	}
	last := bytes.LastIndexByte(s, ':')
	if last < 0 || (!portAlways && bytes.IndexByte(s, ':') != last) {
		return s
	}
	return s[:last]
}

// number reads a whole number without a sign.
func number(s []byte) (int64, bool) {
	const most = 18 // digits that always fit
	if len(s) == 0 || len(s) > most {
		return 0, false
	}
	var n int64
	for _, c := range s {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// status reads a status. Zero and a hyphen are none.
func status(s []byte) (int, bool) {
	if string(s) == "-" || string(s) == "0" || string(s) == "000" {
		return 0, true
	}
	n, ok := number(s)
	return int(n), ok && 100 <= n && n <= 999
}
