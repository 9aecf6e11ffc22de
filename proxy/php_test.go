package proxy

import (
	"bufio"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/internal/phpform"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

func random(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed=%d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// askPHP gives each input to a script of testdata/php and returns its answers.
func askPHP(t *testing.T, script string, inputs []string, args ...string) []string {
	t.Helper()
	php, err := exec.LookPath("php")
	if err != nil {
		t.Skip("SKIPPED: php is not installed, so nothing was compared with it")
	}
	var in strings.Builder
	for _, s := range inputs {
		in.WriteString(base64.StdEncoding.EncodeToString([]byte(s)) + "\n")
	}
	cmd := exec.CommandContext(t.Context(), php, append([]string{"-n", "testdata/php/" + script}, args...)...)
	cmd.Stdin = strings.NewReader(in.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("php %s: %v", script, err)
	}
	answers := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(answers) != len(inputs) {
		t.Fatalf("php %s gave %d answers to %d inputs: %.300s", script, len(answers), len(inputs), out)
	}
	return answers
}

var jsonCorpus = []string{
	`{}`, `[]`, `null`, `true`, `false`, `TRUE`, `Null`, `0`, `-0`, `-0.0`, `1e2`, `1E+2`, `1e`, `1.`, `.5`, `01`, `-`, `+1`, `0e1`,
	`1e999`, `123456789012345678901234567890`, `""`, `"a"`, `"\u0041"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ude00"`, `"\ude00\ud83d"`,
	`"\ud83dx"`, `"\ud83d\u0041"`, `"\u0000"`, `"\x"`, `"\/\b\f\n\r\t\"\\"`, "\"a\tb\"", "\"a\x7fb\"", "\"a\nb\"", "\"\xc3\xa9\"",
	"\"\xe9\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xf0\x9f\x98\x80\"", "\xef\xbb\xbf{}", "{}\x00", "\x00{}",
	"{}\x0b", "\x0c{}", `{"a":1}`, `{"a":1,"a":2,"b":3}`, `{"b":1,"a":2,"b":[]}`, `{"1":1,"01":2,"1":3}`, `{"":1}`, `{a:1}`, `{'a':1}`, `{"a":1,}`, `{,}`, `[1,]`, `[,1]`,
	`[1 2]`, `{"a" : 1 , "b":[ ] }`, `{"a":{"b":{"c":[1,[2]]}}}`, `[1]]`, `[[1]`, `{"a"}`, `{"a":}`, `nul`, `nulll`, ``, ` `, `"`, `[`, `{`, `[]//`,
	strings.Repeat("[", 511) + strings.Repeat("]", 511), strings.Repeat("[", 512) + strings.Repeat("]", 512),
	strings.Repeat(`{"a":`, 511) + "1" + strings.Repeat("}", 511), strings.Repeat(`{"a":`, 512) + "1" + strings.Repeat("}", 512),
	`{"requests":["?idsite=1&rec=1","?a=\"b\""],"send_image":0,"token_auth":"x"}`,
}

// describeJSON is what testdata/php/json.php prints.
func describeJSON(v jsonValue) string {
	switch v.kind {
	case jsonString:
		return "s" + base64.StdEncoding.EncodeToString(decodeJSONString(v.raw))
	case jsonList, jsonObject:
		return "a" + strconv.Itoa(len(elements(v)))
	case jsonNull:
		return "n"
	case jsonBool:
		if v.raw[0] == 't' {
			return "T"
		}
		return "F"
	}
	return "d"
}

// TestJSONAsPHP compares with json_decode on a corpus and on damaged pieces of it.
func TestJSONAsPHP(t *testing.T) {
	rng := random(t)
	inputs := slices.Clone(jsonCorpus)
	for range 4000 {
		s := []byte(jsonCorpus[rng.IntN(len(jsonCorpus))])
		for range 1 + rng.IntN(3) {
			other := jsonCorpus[rng.IntN(len(jsonCorpus))]
			at := rng.IntN(len(s) + 1)
			switch rng.IntN(4) {
			case 0:
				s = append(s[:at:at], append([]byte(other), s[at:]...)...)
			case 1:
				s = append(s[:at:at], s[min(at+1+rng.IntN(3), len(s)):]...)
			case 2:
				s = append(s[:at:at], append([]byte{`{}[]":,\ 019e.-tfnu`[rng.IntN(19)]}, s[at:]...)...)
			case 3:
				s = append(s[:at:at], append([]byte{byte(rng.Uint32())}, s[at:]...)...)
			}
		}
		inputs = append(inputs, string(s))
	}
	for i, want := range askPHP(t, "json.php", inputs) {
		got := "-"
		if v, ok := parseJSON(trimBulk([]byte(inputs[i]))); ok {
			got = describeJSON(v)
			if v.kind == jsonList {
				for k, e := range elements(v) {
					got += " " + base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(k))) + "=" + describeJSON(e)
				}
			}
			if v.kind == jsonObject {
				var names []string
				for name := range v.children() {
					if !slices.Contains(names, string(name)) {
						names = append(names, string(name))
					}
				}
				for k, e := range elements(v) {
					got += " " + base64.StdEncoding.EncodeToString([]byte(names[k])) + "=" + describeJSON(e)
				}
			}
		}
		if got != want {
			t.Errorf("parseJSON(%.200q) = %.200s, PHP says %.200s", inputs[i], got, want)
		}
	}
}

var timeCorpus = []string{
	"2026-11-19", "2026-11-19 10:00", "2026-11-19T10:00:00", "2026-11-19 10:00:00.5", "2026-11-19T10:00:00Z", "2026-11-19t10:00z",
	"2026-11-19T10:00:00+01:00", "2026-11-19 10:00:00 +0100", "2026-11-19 10:00:00 -14:30", "2026-11-19 10:00:00 UTC", "2026-11-19 10:00:00 gmt",
	"2026-02-30 10:00:00", "2026-1-2 3:4:5", "2026-11-31", " 2026-11-19 10:00 ", "2026-11-19  10:00", "2026-11-19T10:00:00.123456789+01:00",
	"2024-02-29", "2025-02-29 23:59:59", "0001-01-01", "9999-12-31 23:59:59", "now", "NOW", " now ", "today", "midnight", "yesterday",
	"@1700000000", "@-5", "-1 hour", "-1hour", "- 1 hour", "1 hour ago", "-1 hour ago", "+2 days", "-90 min", "-1 month", "now -1 hour",
	"now-1 hour", "-1 day -2 hours", "-1 HOUR", "-1\thour", "-5 secs", "-3 weeks", "-1 fortnight", "2 fortnights ago", "-2 years", "1 month 1 day ago", "+1 month -1 day ago",
	"11/19/2026", "11/19/2026 10:05", "1/2/2026 03:04:05", "2026/11/19", "2026/1/2 10:05", "2026/11/19 23:59:59", "19.11.2026", "2.1.2026 10:05",
	"19.11.2026 10:05:06", "20261119T100506", "20261119t10:05:06", "19 November 2026", "19 november 2026 10:05", "2 January 2026 10:05:06", "19 Nov 2026",
	"19 NOV 2026 10:05", "19 Nov 2026 10:05:06", "November 19 2026", "November 19, 2026", "November 19, 2026 10:05", "January 2, 2026 10:05:06",
	"Nov 19 2026", "Nov 19, 2026", "Nov 19, 2026 10:05", "Nov 19, 2026 10:05:06", "Thu, 19 Nov 2026 10:05:06 +0000", "Thu, 19 Nov 2026 10:05:06 -0130",
	"Thu, 19 Nov 2026 10:05:06 GMT", "Thu, 19 Nov 2026 10:05:06 UTC", "10:05", "10:05:06", "0:01", "noon", "2026-11-19 24:00:00",
	"-1 day +2 hours -3 minutes +4 seconds", "2 weeks ago", "-0 days", "+13 months", "-31 days", "-1 sec", "-1 second", "-1 mins",
}

// TestTimeTextAsPHP compares with strtotime. What is not understood here may be
// anything there, but what is understood must be the same.
func TestTimeTextAsPHP(t *testing.T) {
	rng := random(t)
	inputs := slices.Clone(timeCorpus)
	units := []string{"sec", "secs", "second", "seconds", "min", "mins", "minute", "minutes", "hour", "hours", "day", "days", "week", "weeks", "month", "months", "year", "years"}
	for range 3000 {
		var s string
		switch rng.IntN(3) {
		case 0:
			s = fmt.Sprintf("%04d-%02d-%02d", 1970+rng.IntN(80), 1+rng.IntN(12), 1+rng.IntN(31))
			if rng.IntN(4) > 0 {
				s += string(" T"[rng.IntN(2)]) + fmt.Sprintf("%02d:%02d", rng.IntN(26), rng.IntN(62))
				if rng.IntN(2) > 0 {
					s += fmt.Sprintf(":%02d", rng.IntN(62))
				}
				s += []string{"", "Z", " UTC", fmt.Sprintf("+%02d:%02d", rng.IntN(16), rng.IntN(62)), fmt.Sprintf("-%02d%02d", rng.IntN(16), rng.IntN(60))}[rng.IntN(5)]
			}
		case 1:
			for range 1 + rng.IntN(3) {
				s += []string{"-", "+", "", " -", " +", "- "}[rng.IntN(6)] + strconv.Itoa(rng.IntN(120)) + []string{" ", "", "  "}[rng.IntN(3)] + units[rng.IntN(len(units))]
			}
			s += []string{"", " ago", "ago"}[rng.IntN(3)]
		case 2:
			b := []byte(timeCorpus[rng.IntN(len(timeCorpus))])
			at := rng.IntN(len(b))
			b[at] = "0123456789-+:. Tz@aged"[rng.IntN(22)]
			s = string(b)
		}
		inputs = append(inputs, s)
	}
	understood := 0
	for i, want := range askPHP(t, "time.php", inputs, strconv.Itoa(testTime)) {
		got, ok := parseTimeText(inputs[i], time.Unix(testTime, 0))
		if !ok {
			if i < len(timeCorpus) {
				t.Errorf("parseTimeText(%q) is not understood, PHP says %s", inputs[i], want)
			}
			continue
		}
		understood++
		if s := strconv.FormatInt(got.Unix(), 10); s != want {
			t.Errorf("parseTimeText(%q) = %s, PHP says %s", inputs[i], s, want)
		}
	}
	t.Logf("%d of %d understood", understood, len(inputs))
}

// TestPrivilegedAsPHP writes privileged parameters in every way that could slip
// through, and compares with what Matomo's own reading finds in PHP's variables.
func TestPrivilegedAsPHP(t *testing.T) {
	rng := random(t)
	names := []string{"cip", "country", "region", "city", "lat", "long", "CIP", "cipx", "idsite"}
	values := []string{"", "0", "1.2.3.4", "de", "+", "%00", "0%00", "%30", "%2530", "0.0", "-0", "%C3%A9", "%E9", "%26%2348%3B", "00", " ", "a%00b", "null", "false"}
	before := []string{"", "", "", "+", "%20", "%20+", "%00", ".", "_", "%0", "\t", "[", "%5B"}
	after := []string{"", "", "", "[]", "[x]", "[", "%5B%5D", "%5B", "]", "%00", "%00x", "+", "%20", ".", "[x", "[x]y", "[][a]", "%5d"}
	inputs := []string{}
	for range 6000 {
		var pairs []string
		for range 1 + rng.IntN(4) {
			name := []byte(names[rng.IntN(len(names))])
			for i := range name {
				if rng.IntN(6) == 0 {
					name = append(name[:i:i], append(fmt.Appendf(nil, "%%%02x", name[i]), name[i+1:]...)...)
					break
				}
			}
			pairs = append(pairs, before[rng.IntN(len(before))]+string(name)+after[rng.IntN(len(after))]+
				[]string{"=", "=", "=", "", "=="}[rng.IntN(5)]+values[rng.IntN(len(values))])
		}
		inputs = append(inputs, strings.Join(pairs, []string{"&", "&", "&", ";", "&&"}[rng.IntN(5)]))
	}
	literals := []string{`""`, `"0"`, `"de"`, `0`, `-0`, `0.0`, `-0.0`, `0e5`, `1`, `1.5`, `1e999`, `true`, `false`, `null`, `[]`, `["de"]`, `{}`, `{"a":1}`, `"\u0000"`, `"\u0030"`, `"0\u0000"`, `" "`}
	keys := []string{"cip", "country", `c\u0069ty`, " cip", "cip ", "lat", "long", "region", "CIP", `cip\u0000`, "cip[]", "city."}
	for range 3000 {
		var members []string
		for range 1 + rng.IntN(3) {
			members = append(members, `"`+keys[rng.IntN(len(keys))]+`":`+literals[rng.IntN(len(literals))])
		}
		inputs = append(inputs, "{"+strings.Join(members, ",")+"}")
	}
	found := 0
	for i, want := range askPHP(t, "privileged.php", inputs) {
		var p params
		if inputs[i] != "" && inputs[i][0] == '{' {
			v, ok := parseJSON([]byte(inputs[i]))
			if !ok {
				t.Fatalf("%q does not parse", inputs[i])
			}
			p.readObject(v)
		} else {
			p.readQuery([]byte(inputs[i]))
		}
		got := privileged(&p)
		if want == "1" {
			found++
		}
		if want == "1" && !got {
			t.Errorf("ESCALATION: %q is taken for harmless", inputs[i])
		}
		// An empty value written as an HTML entity is taken for privileged: see the
		// comment at privileged.
		if want == "0" && got && !strings.Contains(inputs[i], "%26%2348%3B") {
			t.Errorf("%q is taken for privileged, and is not to Matomo", inputs[i])
		}
	}
	t.Logf("%d of %d privileged", found, len(inputs))
}

// TestRequestAsPHP compares forms, multipart bodies, cookies and repeated headers
// with what PHP's own server makes of them.
func TestRequestAsPHP(t *testing.T) {
	php, err := exec.LookPath("php")
	if err != nil {
		t.Skip("SKIPPED: php is not installed, so nothing was compared with it")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	cmd := exec.CommandContext(t.Context(), php, "-n", "-d", "display_errors=0", "-S", address, "testdata/php/request.php")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("PHP's server does not come up: %v", err)
		}
	}

	multipart := func(body string) string { return post("/x?g=1", body, boundary) }
	tests := []struct{ name, raw string }{
		{"a form", post("/x?a=1&b=2", "b=3&c=4", formType)},
		{"a form only", post("/x", "b=3&c=4", formType)},
		{"a form with empty pairs", post("/x", "&&b=3&&c=4&", formType)},
		{"a form with a NUL", post("/x", "b=3\x00&c=4", formType)},
		{"a form sent by PUT", strings.Replace(post("/x?a=1", "b=3", formType), "POST", "PUT", 1)},
		{"a form with a parameter in capitals", post("/x?a=1", "b=3", "Content-Type: Application/X-WWW-Form-Urlencoded ; charset=x")},
		{"a form's type followed by a comma", post("/x?a=1", "b=3", "Content-Type: application/x-www-form-urlencoded,x")},
		{"a form's type with a tail", post("/x?a=1", "b=3", "Content-Type: application/x-www-form-urlencodedx")},
		{"no type", post("/x?a=1", "b=3")},
		{"a multipart form", multipart(part("a", "1") + part("b.c", "x\r\ny") + part("g", "2") + "--XX--\r\n")},
		{"a multipart form with odd names", multipart(part("a[]", "1") + part(" b", "2") + part("c[d", "3") + part("e f", "4") + "--XX--\r\n")},
		{"a multipart form with a file", multipart("--XX\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x.txt\"\r\n\r\nfile\r\n" + part("a", "1") + "--XX--\r\n")},
		{"a multipart form without an end", multipart(part("a", "1") + part("b", "2"))},
		{"a multipart form cut in a part", multipart(part("a", "1") + "--XX\r\nContent-Disposition: form-data; name=\"b\"\r\n\r\n2")},
		{"a multipart form with a preamble", multipart("hello\r\n" + part("a", "1") + "--XX--\r\n")},
		{"a multipart form with types", multipart("--XX\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--XX--\r\n")},
		{"a multipart form without names", multipart("--XX\r\nContent-Disposition: form-data\r\n\r\n1\r\n" + part("b", "2") + "--XX--\r\n")},
		{"an empty multipart form", multipart("--XX--\r\n")},
		{"a multipart form by PUT", strings.Replace(multipart(part("a", "1")+"--XX--\r\n"), "POST", "PUT", 1)},
		{"a multipart form with a quoted boundary", post("/x", part("a", "1")+"--XX--\r\n", `Content-Type: multipart/form-data; boundary="XX"`)},
		{"a multipart form without a boundary", post("/x", part("a", "1")+"--XX--\r\n", `Content-Type: multipart/form-data`)},
		{"a cookie", get("/x", "Cookie: a=b; matomo_ignore=ignore%3DKg%3D%3D; c=d")},
		{"a cookie without decoding", get("/x", "Cookie: matomo_ignore=ignore=Kg==")},
		{"a cookie with a plus", get("/x", "Cookie: matomo_ignore=a+b%2Bc")},
		{"a cookie twice", get("/x", "Cookie: matomo_ignore=first; matomo_ignore=second")},
		{"a cookie behind spaces", get("/x", "Cookie: a=b;   matomo_ignore=x")},
		{"a cookie without a value", get("/x", "Cookie: matomo_ignore")},
		{"an empty cookie", get("/x", "Cookie: matomo_ignore=; matomo_ignore=b")},
		{"two user agents", get("/x", "User-Agent: one", "User-Agent: two")},
		{"an empty user agent", get("/x", "User-Agent:")},
		{"a user agent in Latin-1", get("/x", "User-Agent: caf\xe9")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, tt.raw); err != nil {
				t.Fatal(err)
			}
			method, _, _ := strings.Cut(tt.raw, " ")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(tt.raw)))
			if err != nil {
				t.Fatal(err)
			}
			in := request{method: method, query: []byte(r.URL.RawQuery)}
			in.body, _ = io.ReadAll(r.Body)
			in.fill(r, nil)

			if want, got := res.Header.Get("X-Params"), flatten(in.parameters()); got != want {
				t.Errorf("variables %s, PHP has %s", got, want)
			}
			ignore := "\x00none"
			if v, ok := cookie(in.cookie, "matomo_ignore"); ok {
				ignore = unescapeCookie(v)
			}
			if want, _ := base64.StdEncoding.DecodeString(res.Header.Get("X-Ignore")); ignore != string(want) {
				t.Errorf("cookie %q, PHP has %q", ignore, want)
			}
			agent := "\x00none"
			if in.userAgent != nil {
				agent = string(in.userAgent)
			}
			if want, _ := base64.StdEncoding.DecodeString(res.Header.Get("X-Agent")); agent != string(want) {
				t.Errorf("user agent %q, PHP has %q", agent, want)
			}
			readable := len(in.body) > 0 && bodyTypeOf(in.method, in.contentType) != multipartBody
			if hasInput := res.Header.Get("X-Input") != "0"; hasInput != readable {
				t.Errorf("body can be a bulk: %v, PHP says %v", readable, hasInput)
			}
		})
	}
}

// flatten is what testdata/php/request.php prints of the variables.
func flatten(query []byte) string {
	var names, out []string
	form := phpform.Parse(query)
	for pair := range phpform.Pairs(query) {
		if name := string(pair.Name); !slices.Contains(names, name) {
			names = append(names, name)
			v, kind := form.Raw(name)
			text := base64.StdEncoding.EncodeToString([]byte(v))
			if kind == phpform.Array {
				text = "[]"
			}
			out = append(out, base64.StdEncoding.EncodeToString([]byte(name))+"="+text)
		}
	}
	return strings.Join(out, " ")
}
