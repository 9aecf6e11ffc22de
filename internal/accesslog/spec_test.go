package accesslog

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// of makes a format of a spec, of Apache if there is a percent sign in it.
func of(spec string) (*Format, error) {
	if strings.Contains(spec, "%") {
		return Apache(spec)
	}
	return Nginx(spec)
}

func TestSpecsAreReadAsTheServersReadThem(t *testing.T) {
	const minute = "2026-11-28T12:45:52Z 1s"
	tests := []struct {
		name, spec, line, want string
	}{
		{"braces around a variable", `${time_iso8601}x${request_uri}`, `2026-11-28T12:45:52+00:00x/a`, minute + ` target="/a"`},
		{"parts of a target", `$time_iso8601 $uri$is_args$args $status`, `2026-11-28T12:45:52+00:00 /a-?b=c-?- 200`, minute + ` target="/a-?b=c-?-" status=200`},
		{"a target without arguments", `$time_iso8601 $uri$is_args$args $status`, `2026-11-28T12:45:52+00:00 /a-- 200`, minute + ` target="/a-" status=200`},
		{"a target without arguments, in JSON", `escape=json $time_iso8601 $uri$is_args$args $status`, `2026-11-28T12:45:52+00:00 /a- 200`, minute + ` target="/a-" status=200`},
		{"path and arguments apart", `$time_iso8601 "$document_uri" "$query_string"`, `2026-11-28T12:45:52+00:00 "/a" "b"`, minute + ` target="/a?b"`},
		{"a request line first", `$time_iso8601 "$request" $request_method $server_protocol $request_uri`, `2026-11-28T12:45:52+00:00 "GET /a HTTP/1.1" PUT HTTP/2.0 /b`,
			minute + ` method="GET" target="/a" protocol="HTTP/1.1"`},
		{"lists without quotes", `$upstream_response_time $http_x_forwarded_for $upstream_addr $time_iso8601 $request_uri`,
			`0.1, 0.2 : - 192.0.2.1, 192.0.2.2 - 2026-11-28T12:45:52+00:00 /a`, minute + ` target="/a" x-forwarded-for="192.0.2.1, 192.0.2.2"`},
		{"a request line without quotes", `$time_iso8601 $request $status`, `2026-11-28T12:45:52+00:00 GET /a b HTTP/1.1 200`,
			minute + ` method="GET" target="/a b" protocol="HTTP/1.1" status=200`},
		{"the address that a proxy told", `$realip_remote_addr $remote_addr [$time_local] $request_uri`, `192.0.2.1 192.0.2.7 [28/Nov/2026:12:45:52 +0000] /a`, minute + ` remote="192.0.2.7" target="/a"`},
		{"only the peer's address", `$realip_remote_addr [$time_local] $request_uri`, `192.0.2.1 [28/Nov/2026:12:45:52 +0000] /a`, minute + ` remote="192.0.2.1" target="/a"`},
		{"the finer of two times", `$msec $time_local $request_time $request_uri`, `1795869952.123 28/Nov/2026:12:45:52 +0000 0.100 /a`, `2026-11-28T12:45:52.023Z 1ms start target="/a"`},
		{"a duration that is none", `$msec $request_time $request_uri`, `1795869952.123 - /a`, `2026-11-28T12:45:52.123Z 1ms target="/a"`},
		{"a duration of years", `$msec $request_time $request_uri`, `1795869952.123 99999999.000 /a`, `2026-11-28T12:45:52.123Z 1ms target="/a"`},
		{"host and scheme", `$msec $scheme $host $server_name $http_host $request_uri $https`, `1795869952.123 https a b c /a on`, `2026-11-28T12:45:52.123Z 1ms host="a" target="/a" scheme=2 host="c"`},
		{"an empty $https", `$msec $server_name "$https" $request_uri`, `1795869952.123 b "" /a`, `2026-11-28T12:45:52.123Z 1ms host="b" target="/a" scheme=1`},
		{"cookies and other variables", `$msec $cookie_a $sent_http_x $http_cookie $request_uri $body_bytes_sent`, `1795869952.123 x y z /a 1`, `2026-11-28T12:45:52.123Z 1ms target="/a" cookie="z"`},
		{"a body", `$msec "$request_uri" "$request_body"`, `1795869952.123 "/a" "{\x22a\x22:\x0A\x5C}"`, `2026-11-28T12:45:52.123Z 1ms target="/a" body="{\"a\":\n\\}"`},
		{"a backslash that old nginx left", `$msec "$request_uri"`, `1795869952.123 "/a\b\"`, `2026-11-28T12:45:52.123Z 1ms target="/a\\b\\"`},
		{"a directive with many quotes", "log_format main  '$msec\\t'\n\t\"$request_uri \\\"'\";", "1795869952.123\t/a \"'", `2026-11-28T12:45:52.123Z 1ms target="/a"`},

		{"statuses of the last request", `%t "%r" %>s`, `[28/Nov/2026:12:45:52 +0000] "GET / HTTP/1.1" 204`, minute + ` start method="GET" target="/" protocol="HTTP/1.1" status=204`},
		{"conditions", `%t "%r" %!200,304{User-Agent}i %400{Referer}i|`, `[28/Nov/2026:12:45:52 +0000] "GET / HTTP/1.1" - -|`,
			minute + ` start method="GET" target="/" protocol="HTTP/1.1" user-agent=none referer=none`},
		{"a time in parts", `[%{%d/%b/%Y %T}t.%{msec_frac}t %{%z}t] %U%q %D`, `[28/Nov/2026 14:45:52.007 +0200] /a?b 5`, `2026-11-28T12:45:52.007Z 1ms start target="/a?b"`},
		{"the end and how long it took", `%{end:msec}t %{us}T %T %U%q|`, `1795869952123 1500000 1 /a|`, `2026-11-28T12:45:50.623Z 1ms start target="/a"`},
		{"the end alone", `%{end:%F %T %z}t %U %q`, `2026-11-28 12:45:52 +0000 /a ?b`, minute + ` target="/a?b"`},
		{"begin and end", `%{end:sec}t %{begin:usec}t %U`, `1795869953 1795869952000007 /a`, `2026-11-28T12:45:52.000007Z 1µs start target="/a"`},
		{"a local time to the minute", `%{%Y-%m-%e %R}t %U`, `2026-11- 8 18:15 /a`, `2026-11-08T12:45:00Z 1m0s start target="/a"`},
		{"an address beside a name", `%a %h %{c}a %t %U`, `192.0.2.7 example.org 192.0.2.1 [28/Nov/2026:12:45:52 +0000] /a`, minute + ` start remote="192.0.2.7" target="/a"`},
		{"a percent sign and trailers", `%t 100%% %U %^ti %p %{x}n`, `[28/Nov/2026:12:45:52 +0000] 100% /a x 80 z`, minute + ` start target="/a"`},
		{"fields of no use without a space", `%t %U %L%X`, `[28/Nov/2026:12:45:52 +0000] /a 12+`, minute + ` start target="/a"`},
		{"no request", `%t %m %U%q %H`, `[28/Nov/2026:12:45:52 +0000] - - HTTP/1.0`, `%U at byte 31: no HTTP request`},
		{"a method that is none", `%t %m %U%q`, `[28/Nov/2026:12:45:52 +0000] "x /a`, `%U at byte 32: no HTTP request`},
		{"no protocol", `$msec $request_uri $server_protocol`, `1795869952.123 /a -`, `$request_uri at byte 15: no HTTP request`},
		{"a time that is no number", `$msec $request_uri`, `1795869952. /a`, `$msec at byte 0: an impossible time`},
		{"a text that is another", `x $msec $request_uri`, `y 1795869952.123 /a`, `line at byte 0: not as the format has it`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := of(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			var r Record
			got := ""
			if err := f.In(time.FixedZone("", 5*3600+1800)).NewParser().Parse([]byte(tt.line), &r); err != nil {
				got = err.Error()
			} else {
				got = described(&r)
			}
			if got != tt.want {
				t.Errorf("got\n%s, want\n%s", got, tt.want)
			}
		})
	}
}

func TestSpecsThatCannotBeReadAreErrors(t *testing.T) {
	tests := []struct{ name, spec, want string }{
		{"nothing", "", "no time"},
		{"no time", `"$request" $status`, "no time"},
		{"a time without a date", `%{%H:%M:%S}t %U`, "no time"},
		{"a fraction alone", `%{usec_frac}t %U`, "no time"},
		{"no request", `[$time_local] $status`, "no request"},
		{"two fields with nothing between them", `$msec $status$request_uri$body_bytes_sent`, "between $request_uri and $body_bytes_sent at byte 25"},
		{"an unknown escape", `escape=all $msec $request_uri`, "escape"},
		{"a sign without a variable", `$msec $request_uri $`, "byte 19"},
		{"a brace that is not closed", `$msec ${request_uri`, "byte 6"},
		{"a quote that is not closed", `log_format a '$msec $request_uri;`, "quote"},
		{"a directive without quotes", `log_format a $msec;`, "quotes"},
		{"a percent sign at the end", `%t %U %`, "byte 6"},
		{"a brace of Apache's that is not closed", `%t %{x`, "byte 3"},
		{"a year of two digits", `%{%y}t %U`, "%y"},
		{"a time that ends too early", `%{%}t %U`, "percent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := of(tt.spec)
			if !errors.Is(err, ErrSpec) || f != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v and %v", f, err)
			}
		})
	}
}

func TestFormatsTellWhatTheyHold(t *testing.T) {
	tests := []struct {
		name, spec         string
		headers            string
		start, zoned, body bool
	}{
		{"nginx", `$remote_addr [$time_local] "$request" "$http_user_agent" "$http_x_forwarded_for"`, "user-agent x-forwarded-for", false, true, false},
		{"nginx with durations", `$msec $request_time "$request" "$request_body"`, "", true, true, true},
		{"Apache", `%t "%r" "%{Accept-Language}i"`, "accept-language", true, true, false},
		{"Apache without a zone", `%{%F %T}t "%r"`, "", true, false, false},
		{"Apache's end", `%{end:sec}t "%r"`, "", false, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := of(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(f.Headers(), " "); got != tt.headers || f.Start() != tt.start || f.Zoned() != tt.zoned || f.Body() != tt.body {
				t.Errorf("headers %q, start %v, zoned %v, body %v", got, f.Start(), f.Zoned(), f.Body())
			}
			if !f.In(time.UTC).Zoned() {
				t.Error("a location is no zone")
			}
		})
	}
}

func TestNamedHasAllNamesAndNoOther(t *testing.T) {
	for _, name := range Names() {
		if f, err := Named(name); err != nil || f.Name() != name {
			t.Errorf("%s: got %v and %v", name, f, err)
		}
	}
	if f, err := Named("x"); err == nil || f != nil || !strings.Contains(err.Error(), "combined-vhost") {
		t.Errorf("got %v and %v", f, err)
	}
	if !slices.IsSortedFunc(Names(), func(a, b string) int { return strings.Index("common", a) - strings.Index("common", b) }) {
		t.Error("the least specific name is not the last")
	}
}
