package proxy

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"sluice/internal/hit"
)

const (
	safari   = "User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Safari/605.1.15"
	secureBy = "X-Forwarded-Proto: https"
	firstID  = "&_id=abc0000000000001"
)

// thirdPartyRows are requests in third-party cookie mode. A Matomo 5.0.2 gave the
// same cookies for them.
var thirdPartyRows = []struct {
	name, raw string
}{
	{"the first-party id of letters", get("/matomo.php?idsite=1&rec=1"+firstID, chrome)},
	{"the first-party id of digits", get("/matomo.php?idsite=1&rec=1&_id=1111111111111111", chrome)},
	{"the first-party id in capitals, too long", get("/matomo.php?idsite=1&rec=1&_id=ABCDEF123456789012", chrome)},
	{"a first-party id that is not hexadecimal", get("/matomo.php?idsite=1&rec=1&_id=ghijklmnopqrstuv", chrome)},
	{"a first-party id that is too short", get("/matomo.php?idsite=1&rec=1&_id=abc", chrome)},
	{"no id", get("/matomo.php?idsite=1&rec=1", chrome)},
	{"cid and uid do not count", get("/matomo.php?idsite=1&rec=1&cid=1234567890abcdef&uid=me"+firstID, chrome)},
	{"a cookie in base64", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: a=b; _pk_uid=0%3DMTExMTExMTExMTExMWFiYw%3D%3D")},
	{"a cookie of digits", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3D1111111111111112")},
	{"a cookie that is not escaped", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0=1111111111111113")},
	{"a cookie of digits in base64", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3DMTExMTExMTExMTExMTExMQ%3D%3D")},
	{"a cookie with a number in science's form", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3D1234567890123e45")},
	{"a cookie that is not hexadecimal", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3DZ2hpamtsbW5vcHFyc3R1dg%3D%3D")},
	{"a cookie that is 16 bytes long only before Matomo escapes it", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3DPDEyMzQ1Njc4OTAxMjM0NQ%3D%3D")},
	{"a cookie that is too short", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3DMTEx")},
	{"an empty cookie", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=")},
	{"a cookie without a name in it", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=abc")},
	{"a cookie with further values", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=1%3D5%3A0%3D2222222222222222%3Ax%3DYWJj%3Aabc")},
	{"a cookie with the id twice", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3D2222222222222222%3A0%3D3333333333333333")},
	{"a cookie with a signature", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=0%3DMQ%3D%3D%3A_%3D"+strings.Repeat("a", 40))},
	{"a cookie that grew too large", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uid=x%3D"+strings.Repeat("QUJD", 300))},
	{"another's cookie", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: _pk_uidx=0%3D1111111111111111")},

	{"an earlier time", get(fmt.Sprintf("/matomo.php?idsite=1&rec=1&cdt=%d", testTime-5000)+firstID, chrome)},
	{"POST without an image", post("/matomo.php?idsite=1&rec=1&send_image=0"+firstID, "", chrome, "Origin: https://shop.example")},
	{"over HTTPS", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, secureBy)},
	{"over HTTPS, Safari", get("/matomo.php?idsite=1&rec=1"+firstID, safari, secureBy)},
	{"over HTTP, Safari", get("/matomo.php?idsite=1&rec=1"+firstID, safari, "X-Forwarded-Proto: http")},
	{"over HTTPS in capitals", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "X-Forwarded-Proto: HTTPS")},
	{"over HTTPS by another header", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "X-Forwarded-Scheme: HTTPS")},
	{"over HTTPS by a third header", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "X-Url-Scheme: https", "X-Forwarded-Proto: http")},

	{"the opt-out cookie", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "Cookie: matomo_ignore=ignore%3DKg%3D%3D")},
	{"no rec", get("/matomo.php?idsite=1"+firstID, chrome)},
	{"a refused hit", get("/matomo.php?idsite=1&rec=1&cip=1.2.3.4"+firstID, chrome)},
	{"a bulk", post("/matomo.php", `{"requests":["?idsite=1&rec=1`+firstID+`","?idsite=1&rec=1&cip=1.1.1.1",{"idsite":1,"rec":1,"_id":"abc0000000000002"},{},"?idsite=1&rec=0"]}`, chrome)},
	{"a bulk with a cookie", post("/matomo.php", `{"requests":["?idsite=1&rec=1`+firstID+`","?idsite=2&rec=1"],"send_image":0}`, chrome, "Cookie: _pk_uid=0%3D1111111111111112")},
	{"a bulk of more hits than an answer sets cookies", post("/matomo.php", `{"requests":[`+strings.Repeat(`"?idsite=1&rec=1&_id=1111111111111111",`, maxCookieLines+1)+`"?idsite=1&rec=1`+firstID+`"]}`, chrome)},

	{"a visitor who is not to be tracked", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "DNT: 1")},
	{"a visitor who is not to be tracked, with a cookie", get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "DNT: 1", "Cookie: _pk_uid=0%3D1111111111111112")},
}

// TestThirdPartyMatrix compares the cookies of answers with the golden file, for
// both ways in.
func TestThirdPartyMatrix(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ThirdPartyCookie, c.DoNotTrack = true, true })
	var out strings.Builder
	for _, row := range thirdPartyRows {
		fast := r.exchange(t, row.raw)
		stored := r.queue.take()
		library := r.exchangeByLibrary(t, row.raw)
		if f, l := sorted(fast), sorted(library); f != l {
			t.Errorf("%s: the fast path answers\n%s\nand net/http\n%s", row.name, f, l)
		}
		if f, l := describe(stored), describe(r.queue.take()); f != l {
			t.Errorf("%s: the fast path stores\n%s\nand net/http\n%s", row.name, f, l)
		}
		fmt.Fprintf(&out, "== %s\n%s\n", row.name, fast.status)
		for _, line := range fast.lines {
			if name, _, _ := strings.Cut(line, ":"); name == "P3P" || name == "Set-Cookie" || name == "Tk" {
				fmt.Fprintln(&out, line)
			}
		}
		id := "nothing stored"
		if len(stored) > 0 {
			id = "cookie's id: " + stored[0].Environment.VisitorCookie
		}
		fmt.Fprintln(&out, id)
	}
	golden(t, "testdata/thirdparty.golden", out.String())
}

func TestCookieLine(t *testing.T) {
	tests := []struct {
		name, path, domain string
		want               string
	}{
		{"of this host", "", "", ""},
		{"with a path and a domain", "/a b", "shop.example", "; path=/a b; domain=.shop.example"},
		{"with what PHP calls empty", "0", "0", ""},
		{"with www and a port", "", "WWW.shop.example:8080", "; domain=.shop.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := visitorCookies{cfg: &Config{CookieVisitorName: "_pk_uid", CookiePath: tt.path, CookieDomain: tt.domain}}
			want := "Set-Cookie: _pk_uid=x; expires=Thursday, 01-Jan-1970 00:00:00 UTC" + tt.want + "; SameSite=Lax\r\n"
			if got := string(c.line("x", 0, false, "Lax")); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestThirdPartyModeOff(t *testing.T) {
	r := newRig(t, nil)
	a := r.exchange(t, get("/matomo.php?idsite=1&rec=1"+firstID, chrome, "DNT: 1", "Cookie: _pk_uid=0%3D1111111111111112"))
	if a.line("Set-Cookie") != "" || a.line("P3P") != "" || a.line("Tk") != "" {
		t.Errorf("answers %s", a)
	}
	if sets := r.queue.take(); len(sets) != 1 || sets[0].Environment.VisitorCookie != "" {
		t.Errorf("stores %+v, want one set without the cookie", sets)
	}
}

func TestIsSafari(t *testing.T) {
	const webkit = " AppleWebKit/605.1.15 (KHTML, like Gecko) "
	tests := []struct {
		name, agent string
		want        bool
	}{
		{"Safari", strings.TrimPrefix(safari, "User-Agent: "), true},
		{"Safari of an iPhone", "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X)" + webkit + "Version/17.4 Mobile/15E148 Safari/604.1", true},
		{"an app on an iPad", "Mozilla/5.0 (iPad; CPU OS 17_4 like Mac OS X)" + webkit + "Mobile/15E148", true},
		{"an app on a Mac", "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)" + webkit, false},
		{"Chrome", strings.TrimPrefix(chrome, "User-Agent: "), false},
		{"Chrome of an iPhone", "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X)" + webkit + "CriOS/123.0.6312.52 Mobile/15E148 Safari/604.1", false},
		{"Firefox", "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:120.0) Gecko/20100101 Firefox/120.0", false},
		{"Android's old browser", "Mozilla/5.0 (Linux; U; Android 4.0.3; de-de; GT-I9100)" + webkit + "Version/4.0 Mobile Safari/534.30", false},
		{"nothing", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := isSafari(tt.agent); got != tt.want {
				t.Errorf("isSafari(%q) = %v, want %v", tt.agent, got, tt.want)
			}
		})
	}
}

// TestKeptHeaders sends headers that plugins need both ways in.
func TestKeptHeaders(t *testing.T) {
	long := "X-Foo: " + strings.Repeat("x", maxKeptValue+1)
	tests := []struct {
		name    string
		headers []string
		want    string
	}{
		{"none of them", []string{"X-Other: 1", "X_Foo: 1"}, ""},
		{"in any order and case", []string{"x-foo: 1", "X-BAR:  a, b\t"}, "x-bar: a, b\nx-foo: 1\n"},
		{"twice", []string{"X-Foo: 1", "X-Foo: 2"}, "x-foo: 1, 2\n"},
		{"empty", []string{"X-Foo:", "X-Bar: 0"}, "x-bar: 0\n"},
		{"with other bytes than UTF-8", []string{"X-Foo: caf\xe9"}, "x-foo: caf\xe9\n"},
		{"too long", []string{long, "X-Bar: 1"}, "x-bar: 1\n"},
	}
	r := newRig(t, func(c *Config) { c.KeepHeaders = []string{"x-bar", "x-foo"} })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := get("/matomo.php?idsite=1&rec=1", append([]string{chrome}, tt.headers...)...)
			for way, exchange := range map[string]func(testing.TB, string) rawAnswer{"the fast path": r.exchange, "net/http": r.exchangeByLibrary} {
				exchange(t, raw)
				sets := r.queue.take()
				if len(sets) != 1 || sets[0].Environment.Headers != tt.want {
					t.Errorf("%s stores %+v, want headers %q", way, sets, tt.want)
				}
			}
		})
	}
}

func TestKeepHeadersChecked(t *testing.T) {
	for _, names := range [][]string{{"cookie"}, {"sec-ch-ua-model"}, {"X-Foo"}, {"x-foo", "x-bar"}} {
		cfg := Config{Upstream: &url.URL{Scheme: "http", Host: "matomo.example"}, KeepHeaders: names}
		if _, err := cfg.withDefaults(); err == nil {
			t.Errorf("headers %q are taken", names)
		}
	}
}

// TestFragment says what a raw "#" in a request's target does: web servers end the
// query there. In a form it is a byte like others.
func TestFragment(t *testing.T) {
	tests := []struct{ name, raw, want string }{
		{"in the query", get("/matomo.php?idsite=1&rec=1&action_name=a#b&e_c=c", chrome), "idsite=1&rec=1&action_name=a"},
		{"in the query of a form", post("/matomo.php?idsite=1&rec=1&action_name=a#b", "x=1#2", formType, chrome), "idsite=1&rec=1&action_name=a&x=1#2"},
		{"escaped", get("/matomo.php?idsite=1&rec=1&action_name=a%23b", chrome), "idsite=1&rec=1&action_name=a%23b"},
	}
	r := newRig(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r.exchange(t, tt.raw)
			var got []hit.Hit
			for _, set := range r.queue.take() {
				got = append(got, set.Hits...)
			}
			if len(got) != 1 || string(got[0].Params) != tt.want {
				t.Errorf("stores %+v, want %q", got, tt.want)
			}
		})
	}
}
