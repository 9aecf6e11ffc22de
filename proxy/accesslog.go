package proxy

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/phpform"
)

// What [AccessLog.Format] may say.
const (
	AccessLogOff      = "off"
	AccessLogCombined = "combined" // as Apache and nginx
	AccessLogJSON     = "json"     // an object a line
)

// AccessLog says which requests are written down and how. Bodies never are.
type AccessLog struct {
	Format string // [AccessLogOff] when empty
	File   string // a path, or "-" for standard output, the default

	// MaskAddress is how many bytes of addresses are set to zero, 0 to 4, as
	// [Config.MaskAddress] does it, which is the least.
	MaskAddress int

	// Query writes queries, with secrets in them masked. Without it they are left
	// out, of the Referer too.
	Query bool
}

// Who answered a request, in the access log.
const (
	handledTracking = "tracking"
	handledAsset    = "asset"
	handledProxy    = "proxy"
	handledOwn      = "own"
)

// An accessFormat is what a line looks like. It never changes.
type accessFormat struct {
	json  bool
	mask  int
	query bool
}

// An accessNote is what a handler finds out about its request.
type accessNote struct {
	began   time.Time
	handled string
	hits    int // stored
}

// An accessEntry is one request with its answer. Its bytes are the client's.
type accessEntry struct {
	began     time.Time
	took      time.Duration
	visitor   netip.Addr
	host      []byte
	method    string
	path      []byte // may hold more than a path: see appendTarget
	query     []byte
	protocol  string
	status    int
	bytes     int64
	referer   []byte
	userAgent []byte
	requestID string
	tls       string
	handled   string
	hits      int
}

// log writes down a request of the fast path that was answered.
func (c *fastConn) log(format *accessFormat, a *answer, began time.Time) {
	size := 0
	switch {
	case a.relayed != nil:
		size = len(a.relayed.body)
	case a.status != http.StatusNoContent:
		size = a.bodyLen()
	}
	c.logAs(format, accessEntry{status: a.status, bytes: int64(size), handled: handledTracking, hits: c.request.stored}, began)
}

// logFile writes down a file that was sent; size is without the answer's head.
func (c *fastConn) logFile(format *accessFormat, status, size int, began time.Time) {
	c.logAs(format, accessEntry{status: status, bytes: int64(size), handled: handledAsset}, began)
}

func (c *fastConn) logAs(format *accessFormat, e accessEntry, began time.Time) {
	s, r := c.s, &c.request
	e.began, e.took, e.visitor = s.now(began), time.Since(began), s.endpoint.visitor(r)
	e.host, e.method, e.path, e.query, e.protocol = r.host, r.method, r.path, r.query, "HTTP/1.1"
	e.referer, e.userAgent = r.referer, r.userAgent
	if conn, ok := c.conn.(*tls.Conn); ok {
		e.tls = tlsName(conn.ConnectionState().Version)
	}
	c.out = format.append(c.out[:0], &e)
	s.access.write(c.out)
}

// logRequest writes down a request of net/http that was answered.
func (s *Server) logRequest(r *http.Request, w *countingWriter, note *accessNote) {
	format := s.tuned().access
	if format == nil {
		return
	}
	target, query, _ := strings.Cut(r.RequestURI, "?")
	e := accessEntry{
		began: s.now(note.began), took: time.Since(note.began), visitor: s.visitorOf(r), host: []byte(r.Host), method: r.Method, path: []byte(target), query: []byte(query),
		protocol: r.Proto, status: w.status(), bytes: w.bytes, referer: []byte(r.Referer()), userAgent: []byte(r.UserAgent()),
		requestID: requestID(r.Context()), handled: note.handled, hits: note.hits,
	}
	if r.TLS != nil {
		e.tls = tlsName(r.TLS.Version)
	}
	s.access.write(format.append(nil, &e))
}

func tlsName(version uint16) string {
	switch version {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return ""
}

// append appends one line with its line end.
func (f *accessFormat) append(b []byte, e *accessEntry) []byte {
	if f.json {
		return f.appendJSON(b, e)
	}
	return f.appendCombined(b, e)
}

func (f *accessFormat) appendAddress(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, '-')
	}
	return mask(a, f.mask).AppendTo(b)
}

// appendCombined appends a line as Apache's and nginx's "combined". Quotes,
// backslashes and what is not printable ASCII are written as \xHH, as nginx does. Behind
// it stands " hits=" and how many were stored, if the request tracks: so sluice import
// knows the line again.
func (f *accessFormat) appendCombined(b []byte, e *accessEntry) []byte {
	b = f.appendAddress(b, e.visitor)
	b = append(b, " - - ["...)
	b = e.began.AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `] "`...)
	b = appendEscaped(b, []byte(e.method))
	b = append(b, ' ')
	// The scratch holds what must be escaped as a whole.
	var scratch [1024]byte
	b = appendEscaped(b, f.appendTarget(scratch[:0], e.path, e.query))
	b = append(append(b, ' '), e.protocol...)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(e.status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, e.bytes, 10)
	b = append(b, ` "`...)
	b = appendFilled(b, f.appendURL(scratch[:0], e.referer))
	b = append(b, `" "`...)
	b = append(appendFilled(b, e.userAgent), '"')
	if e.handled == handledTracking {
		b = append(b, " hits="...)
		b = strconv.AppendInt(b, int64(e.hits), 10)
	}
	return append(b, '\n')
}

func appendFilled(b, s []byte) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	return appendEscaped(b, s)
}

func appendEscaped(b, s []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range s {
		if c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// appendJSON appends an object. Fields without a value are left out, but for
// numbers.
func (f *accessFormat) appendJSON(b []byte, e *accessEntry) []byte {
	b = append(b, `{"time":"`...)
	b = e.began.AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, `","remote":"`...)
	b = f.appendAddress(b, e.visitor)
	b = append(b, '"')
	var scratch [1024]byte
	b = appendField(b, "host", e.host)
	b = appendField(b, "method", []byte(e.method))
	b = appendField(b, "path", f.appendPath(scratch[:0], e.path))
	if f.query {
		b = appendField(b, "query", appendMaskedQuery(scratch[:0], e.query))
	}
	b = appendField(b, "proto", []byte(e.protocol))
	b = appendNumber(b, "status", int64(e.status))
	b = appendNumber(b, "bytes", e.bytes)
	b = append(b, `,"duration":`...)
	b = strconv.AppendFloat(b, e.took.Seconds(), 'f', 6, 64)
	b = appendField(b, "referer", f.appendURL(scratch[:0], e.referer))
	b = appendField(b, "user_agent", e.userAgent)
	b = appendField(b, "request_id", []byte(e.requestID))
	b = appendField(b, "tls", []byte(e.tls))
	b = appendField(b, "handled", []byte(e.handled))
	b = appendNumber(b, "hits", int64(e.hits))
	return append(b, '}', '\n')
}

func appendField(b []byte, name string, value []byte) []byte {
	if len(value) == 0 {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":`...)
	return appendJSONString(b, value)
}

func appendNumber(b []byte, name string, n int64) []byte {
	b = append(append(append(b, `,"`...), name...), `":`...)
	return strconv.AppendInt(b, n, 10)
}

// maskedValue stands for a secret.
const maskedValue = "***"

// secretNames stand in the names of parameters whose values are not written down, in
// lower case. Whatever PHP reads as token_auth has the first one. secretTexts do the
// same for values, of which many are addresses with parameters of their own.
var (
	secretNames = []string{"token", "passw", "pwd", "nonce", "sess", "secret", "auth", "apikey", "api_key"}
	secretTexts = []string{"token", "passw", "nonce", "sessid", "sessionid", "secret", "apikey", "api_key"}
)

// hasWord says whether a text has one of the words in it, as it stands or with its escapes
// resolved. One that is escaped more often than that is taken for yes.
func hasWord(s []byte, words []string) bool {
	const depth = 4 // an address within an address, and one more
	for range depth {
		lower := bytes.ReplaceAll(bytes.ToLower(s), []byte{0}, nil) // PHP may drop NULs
		if slices.ContainsFunc(words, func(w string) bool { return bytes.Contains(lower, []byte(w)) }) {
			return true
		}
		if bytes.IndexByte(s, '%') < 0 {
			return false
		}
		resolved := []byte(phpform.Unescape(s))
		if bytes.Equal(resolved, s) {
			return false
		}
		s = resolved
	}
	return true
}

// holdsSecret says whether a text could have a secret's name together with its value.
func holdsSecret(s []byte) bool { return bytes.ContainsAny(s, "=%") && hasWord(s, secretTexts) }

// appendMaskedQuery appends a query without the values of secrets. A value that could
// hold a secret, as an address with parameters does, is masked as a whole.
func appendMaskedQuery(b, query []byte) []byte {
	if !hasWord(query, secretNames) { // which are in whatever secretTexts has; no word spans a pair
		return append(b, query...)
	}
	for i, pair := range bytes.Split(query, []byte("&")) {
		if i > 0 {
			b = append(b, '&')
		}
		name, value, valued := bytes.Cut(pair, []byte("="))
		switch {
		case !hasWord(name, secretNames) && !holdsSecret(value):
			b = append(b, pair...)
		case valued && !holdsSecret(name):
			b = append(append(append(b, name...), '='), maskedValue...)
		default:
			b = append(b, maskedValue...)
		}
	}
	return b
}

// appendTarget appends what was asked for.
func (f *accessFormat) appendTarget(b, target, query []byte) []byte {
	b = f.appendPath(b, target)
	if f.query && len(query) > 0 {
		b = appendMaskedQuery(append(b, '?'), query)
	}
	return b
}

// appendPath appends a path, or an address without its query. What follows the first
// sign of a secret in it is masked, and so are a user and a password before the host.
func (f *accessFormat) appendPath(b, target []byte) []byte {
	if i := bytes.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	if i := bytes.Index(target, []byte("//")); i >= 0 {
		host, _, _ := bytes.Cut(target[i+2:], []byte("/"))
		if at := bytes.LastIndexByte(host, '@'); at >= 0 {
			b = append(append(b, target[:i+2]...), maskedValue...)
			target = target[i+2+at:]
		}
	}
	if holdsSecret(target) {
		end := bytes.IndexAny(target, "=%;")
		return append(append(b, target[:end]...), maskedValue...)
	}
	return append(b, target...)
}

// appendURL appends a Referer. Its fragment is left out, and its query is as that of
// the request.
func (f *accessFormat) appendURL(b, address []byte) []byte {
	if i := bytes.IndexByte(address, '#'); i >= 0 {
		address = address[:i]
	}
	path, query, _ := bytes.Cut(address, []byte("?"))
	return f.appendTarget(b, path, query)
}
