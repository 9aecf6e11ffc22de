package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// named gives a format in which local times are those of a zone 5:30 ahead.
func named(t testing.TB, name string) *Format {
	t.Helper()
	f, err := Named(name)
	if err != nil {
		t.Fatal(err)
	}
	return f.In(time.FixedZone("", 5*3600+1800))
}

// described writes down what a record has, for comparison.
func described(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Time.Format(time.RFC3339Nano), r.Precision)
	if r.Start {
		b.WriteString(" start")
	}
	for _, v := range []struct {
		name  string
		value []byte
	}{{"host", r.Host}, {"remote", r.Remote}, {"method", r.Method}, {"target", r.Target}, {"protocol", r.Protocol}, {"body", r.Body}} {
		if v.value != nil {
			fmt.Fprintf(&b, " %s=%q", v.name, v.value)
		}
	}
	if r.Status != 0 {
		fmt.Fprintf(&b, " status=%d", r.Status)
	}
	if r.Scheme != SchemeUnknown {
		fmt.Fprintf(&b, " scheme=%d", r.Scheme)
	}
	if r.Hits != -1 {
		fmt.Fprintf(&b, " hits=%d", r.Hits)
	}
	for i := range r.headers {
		if v := r.headers[i].value; v != nil {
			fmt.Fprintf(&b, " %s=%q", headerName(string(r.headers[i].name)), v)
		} else {
			fmt.Fprintf(&b, " %s=none", headerName(string(r.headers[i].name)))
		}
	}
	if r.Inexact {
		b.WriteString(" inexact")
	}
	return b.String()
}

// TestHitsBehindALine: Sluice's own combined lines say what was stored, and nobody else can.
func TestHitsBehindALine(t *testing.T) {
	const line = `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET /matomo.php HTTP/1.1" 200 43 "-" "agent`
	for _, tt := range []struct {
		rest string
		hits int
		ok   bool
	}{
		{`"`, -1, true},
		{`" hits=0`, 0, true},
		{`" hits=12`, 12, true},
		{`" hits=`, 0, false},
		{`" hits=-1`, 0, false},
		{`" hits=1 `, 0, false},
		{`\" hits=1"`, -1, true},
		{`\x22 hits=1"`, -1, true},
		{` hits=1`, 0, false},
	} {
		var r Record
		err := named(t, "combined").NewParser().Parse([]byte(line+tt.rest), &r)
		if (err == nil) != tt.ok || tt.ok && r.Hits != tt.hits {
			t.Errorf("%s: %d hits, %v", tt.rest, r.Hits, err)
		}
	}
}

func TestWhatIsNoRecordIsAnErrorThatSaysWhere(t *testing.T) {
	const good = `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET /secret HTTP/1.1" 200 43 "-" "secret"`
	change := func(from, to string) string { return strings.Replace(good, from, to, 1) }
	tests := []struct {
		name   string
		format string
		line   string
		want   error
		where  string // field and position
	}{
		{"an empty line", "combined", "\r\n", ErrEmpty, ""},
		{"a NUL", "combined", change("secret HTTP", "sec\x00ret HTTP"), ErrNUL, "line 52"},
		{"a block of NULs", "combined", strings.Repeat("\x00", 4096), ErrNUL, "line 0"},
		{"a line that is too long", "combined", change("secret HTTP", strings.Repeat("a", 1<<20)+" HTTP"), ErrTooLong, "line 1000000"},
		{"garbage", "combined", "\x7fELF\x02\x01secret\xff\xfe", ErrShort, "%h 14"},
		{"JSON among text", "combined", `{"time":"2026-11-28T12:45:52Z","request":"secret"}`, ErrShort, "%h 50"},
		{"text among JSON", "nginx-json", good, ErrMismatch, "line 0"},
		{"a host before the address", "combined", "example.org " + good, ErrMismatch, "%u 22"},
		{"a host before the address, in common", "common", "example.org " + good, ErrMismatch, "%u 22"},
		{"a field too many", "combined", good + ` "secret"`, ErrMismatch, "line 85"},
		{"a field too few", "nginx-main", good, ErrShort, "%{User-Agent}i 85"},
		{"a quote in the user agent", "combined", change(`"secret"`, `"sec"ret"`), ErrMismatch, "line 82"},
		{"a line cut in the user agent", "combined", good[:len(good)-3], ErrShort, "%{User-Agent}i 82"},
		{"a line cut behind a backslash", "combined", good[:len(good)-3] + `\"`, ErrShort, "%{User-Agent}i 84"},
		{"a line cut in the request", "combined", good[:50], ErrShort, "%r 50"},
		{"a line cut in the time", "combined", good[:20], ErrShort, "%t 20"},
		{"a line cut behind the time", "combined", good[:41], ErrShort, "%t 41"},
		{"a request that is none", "combined", change("GET /secret HTTP/1.1", "-"), ErrRequest, "%r 44"},
		{"an empty request", "combined", change("GET /secret HTTP/1.1", ""), ErrRequest, "%r 44"},
		{"TLS on a plain port", "combined", change("GET /secret HTTP/1.1", `\x16\x03\x01\x02`), ErrRequest, "%r 44"},
		{"HTTP/0.9", "combined", change(" HTTP/1.1", ""), ErrRequest, "%r 44"},
		{"HTTP/0.9 by name", "combined", change("HTTP/1.1", "HTTP/0.9"), ErrRequest, "%r 44"},
		{"a target without a slash", "combined", change("/secret", "secret"), ErrRequest, "%r 44"},
		{"a URL without a host", "combined", change("/secret", "http:///secret"), ErrRequest, "%r 44"},
		{"a URL of another scheme", "combined", change("/secret", "ftp://x/secret"), ErrRequest, "%r 44"},
		{"a method with odd characters", "combined", change("GET", "G{}T"), ErrRequest, "%r 44"},
		{"no address", "combined", change("192.0.2.7", "-"), ErrMismatch, "%h 0"},
		{"a status of two digits", "combined", change(" 200 ", " 20 "), ErrMismatch, "%>s 66"},
		{"the year 0", "combined", change("2026", "0000"), ErrTime, "%t 15"},
		{"the year 1970", "combined", change("2026", "1970"), ErrTime, "%t 15"},
		{"the year 9999", "combined", change("2026", "9999"), ErrTime, "%t 15"},
		{"a year of two digits", "combined", change("2026", "26"), ErrTime, "%t 15"},
		{"the 30th of February", "combined", change("28/Nov", "30/Feb"), ErrTime, "%t 15"},
		{"the 31st of November", "combined", change("28/Nov", "31/Nov"), ErrTime, "%t 15"},
		{"the 0th", "combined", change("28/Nov", "00/Nov"), ErrTime, "%t 15"},
		{"a month of another language", "combined", change("28/Nov", "28/Dez"), ErrTime, "%t 15"},
		{"the 24th hour", "combined", change("12:45:52", "24:00:00"), ErrTime, "%t 15"},
		{"the 60th minute", "combined", change("12:45:52", "12:60:00"), ErrTime, "%t 15"},
		{"a zone too far away", "combined", change("+0000", "+1500"), ErrTime, "%t 15"},
		{"a missing zone", "combined", change(" +0000", ""), ErrTime, "%t 15"},
		{"a local time", "haproxy-nowhere", `192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0/0/0/0 200 1 - - ---- 1/1/0/0/0 0/0 "GET / HTTP/1.1"`, ErrZone, "accept date 13"},
		{"a request that HAProxy has cut", "haproxy", `192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0/0/0/0 200 1 - - ---- 1/1/0/0/0 0/0 "GET /secr"`, ErrRequest, "request 85"},
		{"a line that syslog has cut", "haproxy", `192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0/0/0/0 200 1 - - ---- 1/1/0/0/0 0/0 "GET /secr`, ErrShort, "request 94"},
		{"HAProxy's TCP log", "haproxy", `192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0/5007 212 -- 0/0/0/0/3 0/0`, ErrShort, "request 74"},
		{"no log of HAProxy", "haproxy", good, ErrMismatch, "accept date 0"},
		{"IIS without #Fields", "iis", "2026-11-28 12:45:52 192.0.2.7 GET /secret - 200", ErrNoFields, "line 0"},
		{"JSON that is cut", "caddy", `{"ts":1795870295.3,"request":{"uri":"/secr`, ErrShort, "line 42"},
		{"JSON that is cut in a number", "caddy", `{"ts":1795870295`, ErrShort, "line 16"},
		{"JSON with more behind it", "caddy", `{"ts":1795870295.3} secret`, ErrMismatch, "line 20"},
		{"JSON without a value", "caddy", `{"ts":,"secret":1}`, ErrMismatch, "line 6"},
		{"JSON in too many objects", "nginx-json", strings.Repeat(`{"a":`, 100), ErrMismatch, "line 105"},
		{"JSON in too many lists", "nginx-json", `{"a":` + strings.Repeat(`[`, 100), ErrMismatch, "line 25"},
		{"JSON without a colon", "caddy", `{"ts" 1}`, ErrMismatch, "line 6"},
		{"JSON without a comma", "caddy", `{"ts":1 "a":1}`, ErrMismatch, "line 8"},
		{"JSON without a key", "caddy", `{1:1}`, ErrMismatch, "line 1"},
		{"JSON that is cut behind a key", "caddy", `{"ts"`, ErrShort, "line 5"},
		{"JSON that is cut behind a colon", "caddy", `{"ts": `, ErrShort, "line 7"},
		{"JSON that is cut in a list", "caddy", `{"ts":[1,2`, ErrShort, "line 10"},
		{"JSON with a list that is none", "caddy", `{"ts":[1:2]}`, ErrMismatch, "line 7"},
		{"JSON with a word", "caddy", `{"ts":secret}`, ErrMismatch, "line 6"},
		{"JSON with empty containers", "caddy", `{"a":{},"b":[],"c":[true,null,-1.5e3]}`, ErrMismatch, "time 0"},
		{"an object with a status that is none", "caddy", `{"ts":1795870295.3,"status":1000,"request":{"uri":"/"}}`, ErrMismatch, "status 28"},
		{"an object with an address that is none", "caddy", `{"ts":1795870295.3,"request":{"uri":"/","client_ip":"a b"}}`, ErrMismatch, "remote 52"},
		{"an object with a time in words", "caddy", `{"ts":"2026-11-28 noon","request":{"uri":"/"}}`, ErrTime, "time 6"},
		{"an object with a time that is no number", "caddy", `{"ts":1.7e9,"request":{"uri":"/"}}`, ErrTime, "time 6"},
		{"our own log without hits", "sluice", `{"time":"2026-11-28T12:45:52Z","path":"/secret","handled":"tracking"}`, ErrMismatch, "hits 0"},
		{"HAProxy without an address", "haproxy", `- [28/Nov/2026:12:45:52.001] f b/s 0/0/0/0/0 200 1 - - ---- 1/1/0/0/0 0/0 "GET / HTTP/1.1"`, ErrMismatch, "client 0"},
		{"HAProxy without timers", "haproxy", `192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0 200 "GET / HTTP/1.1"`, ErrMismatch, "timers 39"},
		{"HAProxy with a status that is none", "haproxy", `192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0/0/0/0 2x0 1 "GET / HTTP/1.1"`, ErrMismatch, "status 39"},
		{"HAProxy with more behind the request", "haproxy", `192.0.2.7:1 [28/Nov/2026:12:45:52.001] f b/s 0/0/0/0/0 200 1 "GET / HTTP/1.1"x`, ErrMismatch, "request 77"},
		{"an object without a time", "nginx-json", `{"request":"GET /secret HTTP/1.1"}`, ErrMismatch, "time 0"},
		{"an object without a request", "nginx-json", `{"time":"2026-11-28T12:45:52Z","secret":1}`, ErrMismatch, "request 0"},
		{"an object of another logger", "caddy", `{"level":"info","ts":1795870295.3,"msg":"serving secret"}`, ErrMismatch, "request 0"},
		{"an object with a wrong time", "nginx-json", `{"time":"2026-13-28T12:45:52Z","request":"GET /secret HTTP/1.1"}`, ErrTime, "time 8"},
		{"an object with a local time", "nginx-json-nowhere", `{"time":"2026-11-28T12:45:52","request":"GET /secret HTTP/1.1"}`, ErrZone, "time 8"},
		{"an object from 1970", "nginx-json", `{"msec":0.0,"request":"GET /secret HTTP/1.1"}`, ErrTime, "time 8"},
		{"an object of nobody's", "sluice", `{"time":"2026-11-28T12:45:52Z","path":"/secret"}`, ErrMismatch, "handled 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name, nowhere := strings.CutSuffix(tt.format, "-nowhere")
			f := named(t, name)
			if nowhere {
				f = f.In(nil)
			}
			var r Record
			err := f.NewParser().Parse([]byte(tt.line), &r)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v and %s, want %v", err, described(&r), tt.want)
			}
			if strings.Contains(err.Error(), "secr") {
				t.Errorf("the error has content of the line: %v", err)
			}
			where := ""
			if e, ok := errors.AsType[*ParseError](err); ok {
				where = fmt.Sprintf("%s %d", e.Field, e.Pos)
			}
			if where != tt.where {
				t.Errorf("the error is at %q, want %q", where, tt.where)
			}
		})
	}
}

func TestLinesOfOneFormat(t *testing.T) {
	const minute = "2026-11-28T12:45:52Z 1s"
	tests := []struct {
		name, format, line, want string
	}{
		{"a user with a blank", "combined", `192.0.2.7 - anna b [28/Nov/2026:12:45:52 +0000] "GET / HTTP/1.0" 200 - "-" ""`,
			minute + ` remote="192.0.2.7" method="GET" target="/" protocol="HTTP/1.0" status=200 referer=none user-agent=""`},
		{"a zone", "common", `2001:db8::1 - - [28/Nov/2026:10:15:52 -0230] "GET / HTTP/2.0" 000 -`,
			minute + ` remote="2001:db8::1" method="GET" target="/" protocol="HTTP/2.0"`},
		{"a leap second", "common", `192.0.2.7 - - [31/Dec/2016:23:59:60 +0000] "GET / HTTP/1.1" 200 1`,
			`2017-01-01T00:00:00Z 1s remote="192.0.2.7" method="GET" target="/" protocol="HTTP/1.1" status=200`},
		{"a line end of Windows", "common", "192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] \"GET / HTTP/1.1\" 200 1\r\n",
			minute + ` remote="192.0.2.7" method="GET" target="/" protocol="HTTP/1.1" status=200`},
		{"escapes that are none", "common", `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET /\xZZ\q\x4 HTTP/1.1" 200 1`,
			minute + ` remote="192.0.2.7" method="GET" target="/\\xZZ\\q\\x4" protocol="HTTP/1.1" status=200`},
		{"an escape that ends too early", "combined", `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET / HTTP/1.1" 200 1 "\x" "\x4"`,
			minute + ` remote="192.0.2.7" method="GET" target="/" protocol="HTTP/1.1" status=200 referer="\\x" user-agent="\\x4"`},
		{"a blank in the target", "common", `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET /a b?c HTTP/1.1" 200 1`,
			minute + ` remote="192.0.2.7" method="GET" target="/a b?c" protocol="HTTP/1.1" status=200`},
		{"a URL with a user and no path", "common", `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET https://u:p@example.org:8443?x=/ HTTP/1.1" 200 1`,
			minute + ` host="example.org:8443" remote="192.0.2.7" method="GET" target="/?x=/" protocol="HTTP/1.1" status=200 scheme=2`},
		{"CONNECT", "common", `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "CONNECT example.org:443 HTTP/1.1" 405 1`,
			minute + ` remote="192.0.2.7" method="CONNECT" target="example.org:443" protocol="HTTP/1.1" status=405`},
		{"a host with a port", "common-vhost", `example.org:443 192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET / HTTP/1.1" 200 1`,
			minute + ` host="example.org:443" remote="192.0.2.7" method="GET" target="/" protocol="HTTP/1.1" status=200`},
		{"a leap in HAProxy's local time", "haproxy", `<134>1 2026-11-28T12:45:52.001+05:30 edge haproxy 12 - [x@1 a="b"] 2001:db8::1:4711 [28/Nov/2026:18:15:52.001] f~ b/s 0/0/0/0/0 -1 1 - - ---- 1/1/0/0/0 0/0 {a|b} "GET /#22## HTTP/1.1" 0/0/0/0/0 TLSv1.3/x`,
			`2026-11-28T12:45:52.001Z 1ms start remote="2001:db8::1" method="GET" target="/\"##" protocol="HTTP/1.1" scheme=2`},
		{"milliseconds since 1970", "nginx-json", `{"timestamp":1795869952123,"request":"GET / HTTP/1.1"}`,
			`2026-11-28T12:45:52.123Z 1ms method="GET" target="/" protocol="HTTP/1.1"`},
		{"microseconds since 1970, as a text", "nginx-json", ` { "ts" : "1795869952123456" , "uri" : "/a" , "args":"b=c" } `,
			`2026-11-28T12:45:52.123456Z 1µs target="/a?b=c"`},
		{"seconds since 1970 with much behind them", "nginx-json", `{"msec":"1795869952.123","time":"2001-01-01T00:00:00Z","request_uri":"/a?b","args":"b","status":"200","request_time":"0.5"}`,
			`2026-11-28T12:45:51.623Z 100ms start target="/a?b" status=200`},
		{"nginx's local time", "nginx-json", `{"time_local":"28/Nov/2026:12:45:52 +0000","request":"/a","request_method":"GET","https":"on"}`,
			minute + ` method="GET" target="/a" scheme=2`},
		{"a local time with a comma", "nginx-json", `{"@timestamp":"2026-11-28 18:15:52,5","request":"GET / HTTP/1.1"}`,
			`2026-11-28T12:45:52.5Z 100ms method="GET" target="/" protocol="HTTP/1.1"`},
		{"Elastic's names", "nginx-json", `{"@timestamp":"2026-11-28T12:45:52Z","client":{"ip":"192.0.2.7","port":1},"http":{"request":{"method":"GET","headers":{"Accept-Language":"de"}},"response":{"status_code":200,"headers":{"x":"y"}}},"url":{"original":"https://example.org/a?b"},"user_agent":{"original":"\ud83d\ude00 \u00e9 \t\/"}}`,
			minute + ` host="example.org" remote="192.0.2.7" method="GET" target="/a?b" status=200 scheme=2 accept-language="de" user-agent="😀 é \t/"`},
		{"what no encoder can have meant", "nginx-json", `{"time":"2026-11-28T12:45:52Z","request_uri":"/\ud83dx\ufffd\u12","http_x_a":null,"http_cookie":"-"}`,
			minute + ` target="/�x�\\u12" cookie=none inexact`},
		{"Caddy's old names", "caddy", `{"ts":"2026-11-28T12:45:52.250Z","request":{"remote_addr":"[2001:db8::1]:80","method":"GET","uri":"/","tls":{"version":772},"headers":{"Cookie":["REDACTED"],"X-A":["1","2"],"X-Resp":["3"]}},"duration":0.25,"status":200,"resp_headers":{"Server":["x"]}}`,
			`2026-11-28T12:45:52Z 10ms start remote="2001:db8::1" method="GET" target="/" status=200 scheme=2 x-a="1, 2" x-resp="3"`},
		{"Caddy behind a proxy", "caddy", `{"ts":1795869952.5,"request":{"remote_ip":"192.0.2.1","client_ip":"192.0.2.7","method":"GET","uri":"/","headers":{}},"duration":"0.25s"}`,
			`2026-11-28T12:45:52.5Z 100ms remote="192.0.2.7" method="GET" target="/" scheme=1`},
		{"our own log of a client without an address", "sluice", `{"time":"2026-11-28T12:45:52.000Z","remote":"-","method":"GET","path":"/matomo.php","proto":"HTTP/1.1","status":503,"bytes":0,"duration":0.000001,"handled":"tracking","hits":0}`,
			`2026-11-28T12:45:52Z 1ms start method="GET" target="/matomo.php" protocol="HTTP/1.1" status=503 scheme=1 hits=0 referer=none user-agent=none`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Record
			if err := named(t, tt.format).NewParser().Parse([]byte(tt.line), &r); err != nil {
				t.Fatal(err)
			}
			if got := described(&r); got != tt.want {
				t.Errorf("got\n%s, want\n%s", got, tt.want)
			}
		})
	}
}

func TestHeaderTellsNotHeldFromNotSent(t *testing.T) {
	tests := []struct {
		name, format, line, header, want string
		logged                           bool
	}{
		{"sent", "combined", benchCombined, "USER_agent", benchAgent, true},
		{"not sent", "combined", strings.Replace(benchCombined, "https://shop.example.org/", "-", 1), "Referer", "", true},
		{"not held", "combined", benchCombined, "Accept-Language", "", false},
		{"not sent to Caddy", "caddy", benchmarks[3].line, "Accept-Language", "", true},
		{"a cookie that Caddy does not show", "caddy", benchmarks[3].line, "Cookie", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Record
			if err := named(t, tt.format).NewParser().Parse([]byte(tt.line), &r); err != nil {
				t.Fatal(err)
			}
			value, logged := r.Header(tt.header)
			if string(value) != tt.want || logged != tt.logged || (value == nil) != (tt.want == "") {
				t.Errorf("got %q and %v, want %q and %v", value, logged, tt.want, tt.logged)
			}
		})
	}
}

func TestRecordsOfOneParserDoNotMix(t *testing.T) {
	p := named(t, "combined").NewParser()
	var a, b Record
	first := []byte(strings.Replace(benchCombined, "matomo", `mat\x22mo`, 1))
	if err := p.Parse(first, &a); err != nil {
		t.Fatal(err)
	}
	before := described(&a)
	if err := p.Parse([]byte(strings.Replace(benchCombined, "matomo", `\x41\x42\x43\x44`, 1)), &b); err != nil {
		t.Fatal(err)
	}
	if got := described(&a); got != before {
		t.Errorf("a record became %s", got)
	}
	if err := p.Parse([]byte("x"), &a); err == nil || a.Target != nil || len(a.headers) != 0 {
		t.Errorf("a record keeps what it was before an error: %s", described(&a))
	}
}

func TestManyGoroutinesUseOneFormat(t *testing.T) {
	f := named(t, "iis")
	lines := corpusLines(t, "iis")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := f.NewParser()
			var r Record
			for _, line := range lines {
				if err := p.Parse(line, &r); err != nil && !errors.Is(err, ErrDirective) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestBlanksThatIISWroteAsPlusSigns(t *testing.T) {
	p := named(t, "iis").NewParser()
	var r Record
	_ = p.Parse([]byte("#Fields: date time cs-uri-stem cs-uri-query cs(User-Agent) cs(Cookie) cs(Referer) X-Forwarded-For"), &r)
	if err := p.Parse([]byte("2026-11-28 12:45:52 /a+b c=d+e A/1+(B;+C) a=1+1;+b=2 /?f=g+h 192.0.2.9"), &r); err != nil {
		t.Fatal(err)
	}
	const want = `2026-11-28T12:45:52Z 1s target="/a+b?c=d+e" user-agent="A/1 (B; C)" cookie="a=1+1; b=2" referer="/?f=g+h" x-forwarded-for="192.0.2.9"`
	if got := described(&r); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

func TestColumnsAreThoseOfTheLastDirective(t *testing.T) {
	p := named(t, "iis").NewParser()
	var r Record
	steps := []struct {
		line string
		want error
	}{
		{"2026-11-28 12:45:52 /a 200", ErrNoFields},
		{"#Fields: date time cs-uri-stem sc-status", ErrDirective},
		{"2026-11-28 12:45:52 /a 200", nil},
		{"2026-11-28 12:45:52 /a", ErrShort},
		{"2026-11-28 12:45:52 /a 200 1", ErrMismatch},
		{"2026-02-29 12:45:52 /a 200", ErrTime},
		{"2026-11-28 12:45:52.1 /a 200", ErrTime},
		{"2026-11-28 12:45:52 - 200", ErrRequest},
		{"2026-11-28 12:45:52 /a x", ErrMismatch},
		{"#Remark: nothing", ErrDirective},
		{"#Fields: sc-status cs-uri-stem date time x-unknown", ErrDirective},
		{"200 /a 2026-11-28 12:45:52", ErrShort},
		{"2026-11-28 12:45:52 /a 200 x", ErrMismatch},
		{"200 /a 2026-11-28 12:45:52 x", nil},
		{"#Fields: cs-uri-stem time", ErrDirective},
		{"/a 12:45:52", ErrTime},
	}
	for i, s := range steps {
		if err := p.Parse([]byte(s.line), &r); !errors.Is(err, s.want) {
			t.Errorf("step %d: got %v, want %v", i, err, s.want)
		}
	}
	resumed := named(t, "iis").NewParser()
	if err := resumed.Parse(p.Directive(), &r); !errors.Is(err, ErrDirective) || !bytes.Equal(resumed.Directive(), []byte("#Fields: cs-uri-stem time")) {
		t.Errorf("got %v and %q", err, resumed.Directive())
	}
}
