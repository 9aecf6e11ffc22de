package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// shown is a record as a text.
func shown(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s %s %d", r.Time.UTC().Format(time.RFC3339Nano), r.Host, r.Remote, r.Method, r.Target, r.Status)
	if r.HTTPS {
		b.WriteString(" https")
	}
	if r.Stored >= 0 {
		fmt.Fprintf(&b, " stored=%d", r.Stored)
	}
	var headers []string
	r.Headers(func(name string, value []byte) { headers = append(headers, fmt.Sprintf("%s=%s", name, value)) })
	if len(headers) > 0 {
		fmt.Fprintf(&b, " %q", headers)
	}
	if r.Body != nil {
		fmt.Fprintf(&b, " body=%s", r.Body)
	}
	return b.String()
}

const hitLine = `GET /matomo.php?idsite=1&rec=1&x=%22 HTTP/1.1`

func TestNamedFormats(t *testing.T) {
	for _, tt := range []struct{ name, line, want string }{
		{"combined", `192.0.2.7 - bob [28/Nov/2026:12:30:01 +0100] "` + hitLine + `" 200 43 "https://example.org/" "Mozilla \"5\" \xc3\xa4 \\x"`,
			`2026-11-28T11:30:01Z  192.0.2.7 GET /matomo.php?idsite=1&rec=1&x=%22 200 ["referer=https://example.org/" "user-agent=Mozilla \"5\" ä \\x"]`},
		{"combined", `2001:db8::7 - - [28/Nov/2026:12:30:01 +0000] "GET /m\x22\x5C/matomo.php?a=b HTTP/1.1" 404 0 "-" "-"`,
			`2026-11-28T12:30:01Z  2001:db8::7 GET /m"\/matomo.php?a=b 404`},
		{"common", `192.0.2.7 - - [28/Nov/2026:12:30:01 -0500] "POST /matomo.php HTTP/2.0" 204 -`, `2026-11-28T17:30:01Z  192.0.2.7 POST /matomo.php 204`},
		{"main", `192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "` + hitLine + `" 200 43 "-" "M" "203.0.113.1, 198.51.100.2"`,
			`2026-11-28T12:30:01Z  192.0.2.7 GET /matomo.php?idsite=1&rec=1&x=%22 200 ["user-agent=M" "x-forwarded-for=203.0.113.1, 198.51.100.2"]`},
		{"combined-vhost-port", `stats.example.org:443 192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "` + hitLine + `" 200 43 "-" "M"`,
			`2026-11-28T12:30:01Z stats.example.org 192.0.2.7 GET /matomo.php?idsite=1&rec=1&x=%22 200 ["user-agent=M"]`},
		{"combined-vhost", `stats.example.org 192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "GET http://stats.example.org/matomo.php?a HTTP/1.0" 200 43 "-" "M"`,
			`2026-11-28T12:30:01Z stats.example.org 192.0.2.7 GET /matomo.php?a 200 ["user-agent=M"]`},
		{"nginx-json", `{"time_iso8601":"2026-11-28T12:30:01+00:00","remote_addr":"192.0.2.7","request":"` + hitLine + `","status":"200","http_user_agent":"M \"x\"","http_accept_language":"de","request_time":"0.250"}`,
			`2026-11-28T12:30:01.25Z  192.0.2.7 GET /matomo.php?idsite=1&rec=1&x=%22 200 ["accept-language=de" "user-agent=M \"x\""]`},
		{"nginx-json", `{"@timestamp":1795869001.5,"client_ip":"192.0.2.7","method":"GET","uri":"/matomo.php","args":"idsite=1","status":200,"scheme":"https","host":"a.example"}`,
			`2026-11-28T12:30:01.5Z a.example 192.0.2.7 GET /matomo.php?idsite=1 200 https`},
		{"caddy", `{"level":"info","ts":1795869001.25,"request":{"remote_ip":"192.0.2.7","client_ip":"203.0.113.4","proto":"HTTP/2.0","method":"GET","host":"a.example","uri":"/matomo.php?idsite=1","headers":{"User-Agent":["M"],"Accept-Language":["de","en"]},"tls":{"version":772}},"duration":0.25,"status":200}`,
			`2026-11-28T12:30:01Z a.example 203.0.113.4 GET /matomo.php?idsite=1 200 https ["accept-language=de, en" "user-agent=M"]`},
		{"sluice", `{"time":"2026-11-28T12:30:01.250Z","remote":"192.0.2.7","host":"a.example","method":"GET","path":"/matomo.php","query":"idsite=1","proto":"HTTP/1.1","status":200,"bytes":43,"duration":0.25,"user_agent":"M","tls":"1.3","handled":"tracking","hits":1}`,
			`2026-11-28T12:30:01.25Z a.example 192.0.2.7 GET /matomo.php?idsite=1 200 https stored=1 ["user-agent=M"]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Detect([][]byte{[]byte(tt.line), nil, []byte(tt.line)})
			if err != nil || f.Name != tt.name {
				t.Fatalf("detected %+v, %v", f, err)
			}
			var r Record
			for range 2 {
				if err := f.Parse([]byte(tt.line), &r); err != nil {
					t.Fatal(err)
				}
				got := shown(&r)
				if i := strings.Index(got, " ["); i > 0 { // JSON has its headers in no order
					got, tt.want = got[:i]+sortedWords(got[i:]), tt.want[:i]+sortedWords(tt.want[i:])
				}
				if got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
			}
		})
	}
}

func sortedWords(s string) string {
	b := []byte(s)
	for i := range b {
		for j := i + 1; j < len(b); j++ {
			if b[j] < b[i] {
				b[i], b[j] = b[j], b[i]
			}
		}
	}
	return string(b)
}

func TestOwnFormats(t *testing.T) {
	for _, tt := range []struct {
		name, spec, line, want string
		make                   func(string) (*Format, error)
	}{
		{"nginx", `$remote_addr [$time_local] "$request" $status "$http_accept_language" $request_time "$request_body"`,
			`192.0.2.7 [28/Nov/2026:12:30:01 +0000] "POST /matomo.php HTTP/1.1" 200 "de-DE,de;q=0.8" 0.500 "idsite=1&rec=1\x0A"`,
			"2026-11-28T12:30:01Z  192.0.2.7 POST /matomo.php 200 [\"accept-language=de-DE,de;q=0.8\"] body=idsite=1&rec=1\n", Nginx},
		{"nginx in quotes", "'$msec $host:$server_port $remote_addr '\n\t'\"$request_method $uri?$args\" $scheme'",
			`1795869001.123 a.example:443 192.0.2.7 "GET /matomo.php?idsite=1" https`,
			"2026-11-28T12:30:01.123Z a.example 192.0.2.7 GET /matomo.php?idsite=1 0 https", Nginx},
		{"nginx without escapes", `escape=none $remote_addr|$time_iso8601|$request`, `192.0.2.7|2026-11-28T12:30:01+00:00|GET /\x22 HTTP/1.1`,
			`2026-11-28T12:30:01Z  192.0.2.7 GET /\x22 0`, Nginx},
		{"apache", `%{c}a %{%Y-%m-%dT%H:%M:%S%z}t %m %U%q %>s "%{Accept-Language}i" %D`, `192.0.2.7 2026-11-28T12:30:01+0000 GET /matomo.php?idsite=1 200 "de" 1500`,
			`2026-11-28T12:30:01Z  192.0.2.7 GET /matomo.php?idsite=1 200 ["accept-language=de"]`, Apache},
		{"apache's end", `%h %{end:usec}t "%r" %D`, `192.0.2.7 1795869001000000 "GET /a HTTP/1.1" 250000`, `2026-11-28T12:30:00.75Z  192.0.2.7 GET /a 0`, Apache},
		{"apache as configured", `"%h %t \"%r\" %%"`, `192.0.2.7 [28/Nov/2026:12:30:01 +0000] "GET /a HTTP/1.1" %`, `2026-11-28T12:30:01Z  192.0.2.7 GET /a 0`, Apache},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := tt.make(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			var r Record
			if err := f.Parse([]byte(tt.line), &r); err != nil {
				t.Fatal(err)
			}
			if got := shown(&r); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	for _, spec := range []string{"", "$remote_addr $request", "$remote_addr [$time_local]", "$time_local$request $remote_addr", "escape=json $remote_addr", "${remote_addr"} {
		if _, err := Nginx(spec); err == nil {
			t.Errorf("%q is taken", spec)
		}
	}
	for _, spec := range []string{"%h %r", "%h %{%Q}t %r", "%h %{%H:%M}t %r", "%{x", "%", "%t %r"} {
		if _, err := Apache(spec); err == nil {
			t.Errorf("%q is taken", spec)
		}
	}
}

// TestBadLines: what is wrong is told, and nothing of the line.
func TestBadLines(t *testing.T) {
	combined, err := Named("combined")
	if err != nil {
		t.Fatal(err)
	}
	const rest = `" 200 43 "-" "M"`
	for _, tt := range []struct {
		name, line string
		want       error
	}{
		{"nothing", "", ErrShape},
		{"another format", `{"a":1}`, ErrShape},
		{"cut", `192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "GET /a HT`, ErrShape},
		{"cut in the agent", `192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "GET /a HTTP/1.1" 200 43 "-" "M`, ErrShape},
		{"more behind it", `192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "GET /a HTTP/1.1" 200 43 "-" "M" x`, ErrShape},
		{"no address", `- - - [28/Nov/2026:12:30:01 +0000] "GET /a HTTP/1.1` + rest, ErrShape},
		{"a day that is none", `192.0.2.7 - - [31/Feb/2026:12:30:01 +0000] "GET /a HTTP/1.1` + rest, ErrTime},
		{"seconds that are none", `192.0.2.7 - - [28/Nov/2026:12:30:6x +0000] "GET /a HTTP/1.1` + rest, ErrTime},
		{"no zone", `192.0.2.7 - - [28/Nov/2026:12:30:01] "GET /a HTTP/1.1` + rest, ErrTime},
		{"a year long ago", `192.0.2.7 - - [28/Nov/0026:12:30:01 +0000] "GET /a HTTP/1.1` + rest, ErrTime},
		{"a year to come", `192.0.2.7 - - [28/Nov/9999:12:30:01 +0000] "GET /a HTTP/1.1` + rest, ErrTime},
		{"TLS on a plain port", `192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "\x16\x03\x01\x02` + rest, ErrRequest},
		{"no request", `192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "-` + rest, ErrRequest},
		{"a status that is none", `192.0.2.7 - - [28/Nov/2026:12:30:01 +0000] "GET /a HTTP/1.1" 2000 43 "-" "M"`, ErrShape},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r Record
			err := combined.Parse([]byte(tt.line), &r)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "192.0.2") {
				t.Errorf("the error shows the line: %v", err)
			}
		})
	}
	if _, err := Detect([][]byte{[]byte("one"), []byte("two")}); err == nil || !strings.Contains(err.Error(), "combined (0 of 2 lines)") {
		t.Errorf("got %v", err)
	}
	if _, err := Detect(nil); err == nil {
		t.Error("a format of no lines")
	}
}

// escaped writes a value as nginx's log module does.
func escaped(s []byte) string {
	var b strings.Builder
	for _, c := range s {
		if c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\x%02X`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// FuzzCombined: what a server wrote comes out as it was, and no line is a panic.
func FuzzCombined(f *testing.F) {
	f.Add([]byte("/matomo.php?a=%22\"\\"), []byte("M \x00\xff\"\\n"), []byte("https://a/"))
	f.Add([]byte("/ HTTP/1.1\" 200"), []byte("-"), []byte(""))
	combined, err := Named("combined")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, target, agent, referer []byte) {
		var r Record
		for _, name := range Names() { // as a line of anything
			any, err := Named(name)
			if err != nil {
				t.Fatal(err)
			}
			_ = any.Parse(bytes.Join([][]byte{target, agent, referer}, []byte(" ")), &r)
		}
		if len(target) == 0 || target[0] != '/' || bytes.ContainsAny(target, " \n") {
			return
		}
		line := fmt.Sprintf(`192.0.2.7 - - [28/Nov/2026:12:30:%02d +0000] "GET %s HTTP/1.1" 200 43 "%s" "%s"`, rand.IntN(60), escaped(target), escaped(referer), escaped(agent))
		if err := combined.Parse([]byte(line), &r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if !bytes.Equal(r.Target, target) {
			t.Errorf("target %q, want %q", r.Target, target)
		}
		want := map[string][]byte{"user-agent": agent, "referer": referer}
		r.Headers(func(name string, value []byte) {
			if !bytes.Equal(value, want[name]) {
				t.Errorf("%s is %q, want %q", name, value, want[name])
			}
			delete(want, name)
		})
		for name, v := range want {
			if !absent(v) {
				t.Errorf("%s is missing, want %q", name, v)
			}
		}
	})
}

func BenchmarkParseCombined(b *testing.B) {
	f, err := Named("combined")
	if err != nil {
		b.Fatal(err)
	}
	line := []byte(`192.0.2.7 - - [28/Nov/2026:12:30:01 +0100] "` + hitLine + `" 200 43 "https://example.org/" "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"`)
	var r Record
	b.ReportAllocs()
	for b.Loop() {
		if err := f.Parse(line, &r); err != nil {
			b.Fatal(err)
		}
	}
}
