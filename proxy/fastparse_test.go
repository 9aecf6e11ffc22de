package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestParseHeadDeclines lists what could be read in two ways, or wants more than
// an answer. Every row must be left to net/http.
func TestParseHeadDeclines(t *testing.T) {
	const line, host = "GET /matomo.php?a=1 HTTP/1.1\r\n", "Host: a.example\r\n"
	tests := []struct{ name, raw string }{
		{"two lengths", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\na=1"},
		{"two different lengths", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\na=1"},
		{"a list of lengths", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 3, 3\r\n\r\na=1"},
		{"a signed length", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\na=1"},
		{"a length with a leading zero", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 03\r\n\r\na=1"},
		{"a hexadecimal length", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 0x3\r\n\r\na=1"},
		{"an empty length", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n"},
		{"a length beyond 64 bits", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n"},
		{"a length beyond the limit", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 1001\r\n\r\n"},
		{"chunks", "POST /matomo.php HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\na=1\r\n0\r\n\r\n"},
		{"a length and chunks", "POST /matomo.php HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"chunks and a length", "POST /matomo.php HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"},
		{"an unknown transfer coding", "POST /matomo.php HTTP/1.1\r\n" + host + "transfer-encoding: identity\r\n\r\n"},
		{"a space before the colon", line + host + "Content-Length : 3\r\n\r\n"},
		{"a tab before the colon", line + host + "X\t: 3\r\n\r\n"},
		{"a continued line", line + host + "X: a\r\n b\r\n\r\n"},
		{"a continued line with a tab", line + host + "X: a\r\n\tb\r\n\r\n"},
		{"a continued first header", line + " X: a\r\n" + host + "\r\n"},
		{"bare line feeds", "GET /matomo.php?a=1 HTTP/1.1\nHost: a.example\n\n"},
		{"one bare line feed", "GET /matomo.php?a=1 HTTP/1.1\r\nHost: a.example\nX: y\r\n\r\n"},
		{"a bare line feed before the head's end", line + "Host: a.example\n\r\n"},
		{"a bare carriage return in a value", line + host + "X: a\rContent-Length: 3\r\n\r\n"},
		{"a bare carriage return in the request line", "GET /matomo.php?a=1\r HTTP/1.1\r\n" + host + "\r\n"},
		{"a NUL in a value", line + host + "X: a\x00b\r\n\r\n"},
		{"a NUL in a name", line + host + "X\x00: a\r\n\r\n"},
		{"a NUL in the target", "GET /matomo.php?a\x00=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"a control in a value", line + host + "X: a\x01\r\n\r\n"},
		{"a DEL in a value", line + host + "X: a\x7f\r\n\r\n"},
		{"a name with an umlaut", line + host + "X\xe4: a\r\n\r\n"},
		{"an empty name", line + host + ": a\r\n\r\n"},
		{"a line without a colon", line + host + "X\r\n\r\n"},
		{"no host", line + "\r\n"},
		{"two hosts", line + host + host + "\r\n"},
		{"an empty host", line + "Host:\r\n\r\n"},
		{"a host with a path", line + "Host: a/b\r\n\r\n"},
		{"a host with a user", line + "Host: u@a\r\n\r\n"},
		{"HTTP/1.0", "GET /matomo.php?a=1 HTTP/1.0\r\n" + host + "\r\n"},
		{"HTTP/2.0", "GET /matomo.php?a=1 HTTP/2.0\r\n" + host + "\r\n"},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"a lower-case version", "GET /matomo.php?a=1 http/1.1\r\n" + host + "\r\n"},
		{"no version", "GET /matomo.php?a=1\r\n\r\n"},
		{"two spaces before the target", "GET  /matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"two spaces before the version", "GET /matomo.php?a=1  HTTP/1.1\r\n" + host + "\r\n"},
		{"a space behind the version", "GET /matomo.php?a=1 HTTP/1.1 \r\n" + host + "\r\n"},
		{"a space in the query", "GET /matomo.php?a=1 b HTTP/1.1\r\n" + host + "\r\n"},
		{"a tab as a space", "GET\t/matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"an empty line before the request", "\r\n" + line + host + "\r\n"},
		{"a lower-case method", "get /matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"another method", "PUT /matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"a whole URL as the target", "GET http://a.example/matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"an escaped path", "GET /matomo%2ephp?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"a dotted path", "GET /a/../matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"a path of slashes", "GET //matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"a path with a backslash", "GET /a\\matomo.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"a path with a semicolon", "GET /matomo.php;x?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"a fragment behind the path", "GET /matomo.php#x HTTP/1.1\r\n" + host + "\r\n"},
		{"another path", "GET /index.php?a=1 HTTP/1.1\r\n" + host + "\r\n"},
		{"the JavaScript file", "GET /js/ HTTP/1.1\r\n" + host + "\r\n"},
		{"a wish to close", line + host + "Connection: close\r\n\r\n"},
		{"a list of wishes", line + host + "Connection: keep-alive, close\r\n\r\n"},
		{"a header made hop by hop", line + host + "Connection: Content-Length\r\n\r\n"},
		{"a wish to upgrade", line + host + "Upgrade: h2c\r\n\r\n"},
		{"settings of HTTP/2", line + host + "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"},
		{"an expectation", "POST /matomo.php HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"},
		{"trailers", line + host + "Trailer: X\r\n\r\n"},
		{"a wish for trailers", line + host + "TE: trailers\r\n\r\n"},
		{"two user agents", line + host + "User-Agent: a\r\nuser-agent: b\r\n\r\n"},
		{"two cookies", line + host + "Cookie: a\r\nCookie: b\r\n\r\n"},
		{"two equal hints", line + host + "Sec-CH-UA: a\r\nsec-ch-ua: b\r\n\r\n"},
		{"two lists of proxies", line + host + "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r request
			if _, got := parseHead([]byte(tt.raw), &r, 1000); got != headDecline {
				t.Errorf("parseHead(%q) = %d, want it declined", tt.raw, got)
			}
		})
	}
}

func TestParseHeadTakes(t *testing.T) {
	var r request
	raw := "POST /x/y/matomo.php?idsite=1&a=%E9\xe9# HTTP/1.1\r\nhost: stats.example:8080\r\nUSER-AGENT:  Mozilla \t\r\n" +
		"Referer:\r\nConnection: Keep-Alive\r\nX-Other: a, b\r\nSec-CH-UA: \"x\"\r\nSec-CH-UA-Mobile: ?1\r\nSec_CH_UA_Model: z\r\n" +
		"DNT: 1\r\nContent-Length: 5\r\n\r\nab=1&GET"
	h, result := parseHead([]byte(raw), &r, 5)
	if result != headTaken {
		t.Fatalf("parseHead = %d, want it taken", result)
	}
	if want := strings.Index(raw, "ab=1"); h.size != want || h.length != 5 {
		t.Errorf("head %+v, want size %d and length 5", h, want)
	}
	for _, f := range []struct{ name, got, want string }{
		{"method", r.method, "POST"},
		{"query", string(r.query), "idsite=1&a=%E9\xe9#"},
		{"host", string(r.host), "stats.example:8080"},
		{"user agent", string(r.userAgent), "Mozilla"},
		{"DNT", string(r.dnt), "1"},
	} {
		if f.got != f.want {
			t.Errorf("%s %q, want %q", f.name, f.got, f.want)
		}
	}
	if r.referer == nil || len(r.referer) != 0 {
		t.Errorf("empty Referer %q, want it present and empty", r.referer)
	}
	if r.origin != nil {
		t.Errorf("Origin %q, want none", r.origin)
	}
	if len(r.hints) != 2 {
		t.Errorf("%d client hints, want 2", len(r.hints))
	}
}

func TestParseHeadWaitsForMore(t *testing.T) {
	raw := "GET /matomo.php?a=1 HTTP/1.1\r\nHost: a\r\n\r\n"
	for i := range len(raw) {
		var r request
		if _, got := parseHead([]byte(raw[:i]), &r, 10); got != headMore {
			t.Errorf("parseHead of the first %d bytes = %d, want more", i, got)
		}
	}
}

// FuzzParseHead compares with net/http: what the fast path takes, net/http must
// take too, and find the same request and the same end of it.
func FuzzParseHead(f *testing.F) {
	for _, row := range matrixRows {
		f.Add([]byte(row.raw))
	}
	f.Add([]byte(benchGet))
	f.Add([]byte(benchPost))
	f.Add([]byte("GET /a/matomo.js?v=1 HTTP/1.1\r\nHost: a\r\nAccept-Encoding: br\r\nIf-None-Match: \"x\"\r\nIf-Modified-Since: y\r\n\r\n"))
	f.Add([]byte("GET /matomo.php?a=1 HTTP/1.1\r\nHost: a\r\nX-A: b\r\nCookie: c\r\n\r\nGET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keep := []string{"x-a", "x-b"}
		fast := request{keep: keep, files: fakeFiles{}}
		h, result := parseHead(raw, &fast, 1<<20)
		if result == headFile {
			compareFile(t, raw, &fast, h)
			return
		}
		if result != headTaken || len(raw) < h.size+h.length {
			return
		}
		reader := bufio.NewReader(bytes.NewReader(raw))
		r, err := http.ReadRequest(reader)
		if err != nil {
			t.Fatalf("taken, but net/http says %v: %q", err, raw)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatalf("taken, but net/http cannot read the body: %v: %q", err, raw)
		}
		if want := raw[h.size : h.size+h.length]; !bytes.Equal(body, want) {
			t.Fatalf("body %q, net/http has %q", want, body)
		}
		rest, _ := io.ReadAll(reader)
		if want := raw[h.size+h.length:]; !bytes.Equal(rest, want) {
			t.Fatalf("next request begins with %q, net/http has %q", want, rest)
		}
		var slow request
		slow.fill(r, keep)
		if fast.method != r.Method || string(fast.query) != r.URL.RawQuery {
			t.Fatalf("%s %q, net/http has %s %q", fast.method, fast.query, r.Method, r.URL.RawQuery)
		}
		if at := placeOf(cleanPath(r.URL.Path)); at != fast.place || !at.tracks(r.Method, []byte(r.URL.RawQuery)) {
			t.Fatalf("place %d, net/http's path %q leads to %d", fast.place, r.URL.Path, at)
		}
		for i, pair := range [][2][]byte{
			{fast.host, slow.host}, {fast.contentType, slow.contentType}, {fast.userAgent, slow.userAgent},
			{fast.acceptLanguage, slow.acceptLanguage}, {fast.referer, slow.referer}, {fast.cookie, slow.cookie},
			{fast.origin, slow.origin}, {fast.doNotTrack, slow.doNotTrack}, {fast.dnt, slow.dnt}, {fast.via, slow.via},
			{fast.purpose, slow.purpose}, {fast.moz, slow.moz}, {fast.forwardedFor, slow.forwardedFor},
			{fast.forwarded, slow.forwarded}, {fast.preflight[0], slow.preflight[0]}, {fast.preflight[1], slow.preflight[1]},
			{fast.forwardedProto, slow.forwardedProto}, {fast.forwardScheme, slow.forwardScheme}, {fast.urlScheme, slow.urlScheme},
			{appendHints(nil, fast.hints), appendHints(nil, slow.hints)}, {appendKept(nil, fast.kept, keep), appendKept(nil, slow.kept, keep)},
		} {
			if !bytes.Equal(pair[0], pair[1]) || (pair[0] == nil) != (pair[1] == nil) {
				t.Fatalf("header %d: %q, net/http has %q in %q", i, pair[0], pair[1], raw)
			}
		}
	})
}

// compareFile compares what the fast path makes of a GET of a file with net/http.
func compareFile(t *testing.T, raw []byte, fast *request, h head) {
	t.Helper()
	reader := bufio.NewReader(bytes.NewReader(raw))
	r, err := http.ReadRequest(reader)
	if err != nil {
		t.Fatalf("taken as a file, but net/http says %v: %q", err, raw)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || len(body) != 0 {
		t.Fatalf("taken as a file, but net/http reads the body %q, %v: %q", body, err, raw)
	}
	if rest, _ := io.ReadAll(reader); !bytes.Equal(rest, raw[h.size:]) {
		t.Fatalf("next request begins with %q, net/http has %q", raw[h.size:], rest)
	}
	if r.Method != http.MethodGet || r.URL.Path != string(fast.file.Path) || r.URL.RawPath != "" || !(fakeFiles{}).Claims(r) ||
		placeOf(cleanPath(r.URL.Path)).tracks(r.Method, []byte(r.URL.RawQuery)) {
		t.Fatalf("path %q, net/http has %s %q", fast.file.Path, r.Method, r.URL)
	}
	for name, got := range map[string][]byte{
		"Accept-Encoding": fast.file.AcceptEncoding, "If-None-Match": fast.file.NoneMatch, "If-Modified-Since": fast.file.ModifiedSince,
		"Range": nil, "If-Range": nil, "If-Match": nil, "If-Unmodified-Since": nil, "Authorization": nil,
	} {
		want := r.Header[name]
		if len(want) > 1 || (got == nil) != (len(want) == 0) || len(want) == 1 && want[0] != string(got) {
			t.Fatalf("%s %q, net/http has %q in %q", name, got, want, raw)
		}
	}
}
