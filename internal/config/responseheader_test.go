package config_test

import (
	"slices"
	"strings"
	"testing"
)

func TestResponseHeaders(t *testing.T) {
	tests := []struct {
		name, value string
		want        []string
		fault       string // part of it; "" for none
	}{
		{"one", "X-Frame-Options: DENY", []string{"X-Frame-Options: DENY"}, ""},
		{"two without a space", "X-Frame-Options: DENY,Referrer-Policy:same-origin", []string{"X-Frame-Options: DENY", "Referrer-Policy: same-origin"}, ""},
		{"a comma in a value", "Permissions-Policy: camera=(), geolocation=(), X-A: b", []string{"Permissions-Policy: camera=(), geolocation=()", "X-A: b"}, ""},
		{"an address behind a comma", "Content-Security-Policy: img-src https://a, https://b", []string{"Content-Security-Policy: img-src https://a, https://b"}, ""},
		{"a value with a colon", `Report-To: {"group":"a","max_age":1}`, []string{`Report-To: {"group":"a","max_age":1}`}, ""},
		{"Server is free", "Server: none", []string{"Server: none"}, ""},
		{"no colon", "X-Frame-Options DENY", nil, "want headers such as"},
		{"no value", "X-Frame-Options:", nil, "want a value of"},
		{"no name", ": DENY", nil, "want headers such as"},
		{"a name with a space", "X Frame: DENY", nil, "want headers such as"},
		{"twice", "X-A: b, x-a: c", nil, "twice"},
		{"a line end", "X-A: b\r\nX-B: c", nil, "printable ASCII"},
		{"a control", "X-A: b\x00", nil, "printable ASCII"},
		{"a cookie", "Set-Cookie: a=b", nil, "says what an answer is"},
		{"a length", "content-length: 5", nil, "says what an answer is"},
		{"a type", "Content-Type: text/html", nil, "says what an answer is"},
		{"hop by hop", "Connection: close", nil, "says what an answer is"},
		{"transfer coding", "Transfer-Encoding: chunked", nil, "says what an answer is"},
		{"a date", "Date: now", nil, "says what an answer is"},
		{"another origin", "Access-Control-Allow-Origin: *", nil, "says what an answer is"},
		{"HSTS", "Strict-Transport-Security: max-age=1", nil, "want proxy.hsts"},
		{"a long value", "X-A: " + strings.Repeat("x", 2<<10+1), nil, "want a value of"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := load(t, []string{url, "--proxy.response-headers=" + tt.value}, nil)
			if tt.fault != "" {
				if len(l.faults) != 1 || l.faults[0].Setting != "proxy.response-headers" || !strings.Contains(l.faults[0].Error(), tt.fault) {
					t.Errorf("got %v, want one with %q", l.faults, tt.fault)
				}
				return
			}
			var got []string
			for _, h := range l.Proxy.ResponseHeaders {
				got = append(got, h.String())
			}
			if len(l.faults) > 0 || !slices.Equal(got, tt.want) {
				t.Errorf("got %q and %v, want %q", got, l.faults, tt.want)
			}
		})
	}
}
