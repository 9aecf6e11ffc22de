package proxy

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"sluice/internal/phpform"
)

// someFiles claims matomo.js and, as the copies do, the opt-out below any path.
type someFiles struct{}

func (someFiles) Claims(r *http.Request) bool {
	return r.URL.Path == "/matomo.js" || strings.Contains(r.URL.RawQuery, "optOut")
}
func (someFiles) Serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(w, r)
}
func (someFiles) Named([]byte) bool                { return false }
func (someFiles) Wire(FileQuery) (b []byte, n int) { return nil, 0 }

// wiredFiles has matomo.js in memory.
type wiredFiles struct{ someFiles }

func (wiredFiles) Named(path []byte) bool { return string(path) == "/matomo.js" }
func (wiredFiles) Wire(FileQuery) (b []byte, status int) {
	return []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), http.StatusOK
}

const optOutQuery = "module=CoreAdminHome&action=optOut"

func TestTrackingOnly(t *testing.T) {
	var body string
	r := passTo(t, func(_ http.ResponseWriter, in *http.Request) {
		b, _ := io.ReadAll(in.Body)
		body = string(b)
	}, func(c *Config) { c.Expose, c.Files = ExposeTrackingOnly, someFiles{} })
	form := func(target, body string) string { return post(target, body, formType) }
	for _, tt := range []struct {
		name, raw string
		served    bool
	}{
		{"matomo.js", get("/matomo.js"), true},
		{"the page", get("/index.php?" + optOutQuery + "&language=de&fontColor=%23fff"), true},
		{"the page at the root", get("/?" + optOutQuery), true},
		{"HEAD of the page", strings.Replace(get("/?"+optOutQuery), "GET", "HEAD", 1), true},
		{"the script", get("/index.php?module=CoreAdminHome&action=optOutJS&divId=a"), true},
		{"what the page loads", get("/plugins/CoreAdminHome/javascripts/optOut.js?v=1"), true},
		{"the form", form("/index.php?"+optOutQuery+"&setCookieInNewWindow=1&nonce=a", "nonce=a&fuzz=b&trackVisits=on"), true},

		{"the login", get("/index.php"), false},
		{"the root", get("/"), false},
		{"the API", get("/index.php?module=API&method=x"), false},
		{"another action", get("/index.php?module=CoreAdminHome&action=home"), false},
		{"another module", get("/index.php?module=Login&action=optOut"), false},
		{"a later module", get("/index.php?" + optOutQuery + "&module=API"), false},
		{"an earlier module", get("/index.php?module=API&" + optOutQuery), false},
		{"the same twice", get("/index.php?" + optOutQuery + "&action=optOut"), false},
		{"an array", get("/index.php?" + optOutQuery + "&module[]=API"), false},
		{"an array by an escape", get("/index.php?" + optOutQuery + "&module%5b%5d=API"), false},
		{"an escaped name", get("/index.php?" + optOutQuery + "&mod%75le=API"), false},
		{"an escaped value", get("/index.php?module=CoreAdminHome&action=opt%4fut"), false},
		{"a NUL in a name", get("/index.php?" + optOutQuery + "&module%00x=API"), false},
		{"a NUL in a value", get("/index.php?" + optOutQuery + "%00x"), false},
		{"a space before a name", get("/index.php?" + optOutQuery + "&+module=API"), false},
		{"another case", get("/index.php?module=coreadminhome&action=optout"), false},
		{"a name in another case", get("/index.php?" + optOutQuery + "&Module=API"), false},
		{"semicolons", get("/index.php?" + optOutQuery + "&a=b;module=API"), false},
		{"semicolons only", get("/index.php?module=CoreAdminHome;action=optOut"), false},
		{"a fragment", get("/index.php?" + optOutQuery + "#a"), false},
		{"a token", get("/index.php?" + optOutQuery + "&token_auth=a"), false},
		{"too many pairs", get("/index.php?" + optOutQuery + strings.Repeat("&a", maxOptOutPairs)), false},
		{"too long", get("/index.php?" + optOutQuery + "&a=" + strings.Repeat("a", maxOptOutQuery)), false},
		{"PATH_INFO", get("/index.php/x?" + optOutQuery), false},
		{"PATH_INFO with a slash", get("/index.php/?" + optOutQuery), false},
		{"another script", get("/vendor/x/index.php?" + optOutQuery), false},
		{"a directory of Matomo's", get("/plugins/?" + optOutQuery), false},
		{"an escaped path", get("/index%2ephp?" + optOutQuery), false},
		{"a second slash", get("//index.php?" + optOutQuery), false},
		{"another file of the plugin", get("/plugins/CoreAdminHome/javascripts/other.js"), false},
		{"POST of a file", form("/matomo.js", "a=1"), false},
		{"DELETE of the page", strings.Replace(get("/?"+optOutQuery), "GET", "DELETE", 1), false},
		{"a method in a header", get("/?"+optOutQuery, "X-HTTP-Method-Override: PUT"), false},
		{"POST of the script", form("/?module=CoreAdminHome&action=optOutJS", "nonce=a"), false},
		{"GET with a body", strings.Replace(form("/?"+optOutQuery, "module=API"), "POST", "GET", 1), false},
		{"a module in the body", form("/?"+optOutQuery, "nonce=a&module=API"), false},
		{"an escaped module in the body", form("/?"+optOutQuery, "nonce=a&%6dodule=API"), false},
		{"semicolons in the body", form("/?"+optOutQuery, "nonce=a;module=API"), false},
		{"a module in the body only", form("/?action=optOut", "module=CoreAdminHome"), false},
		{"another kind of body", post("/?"+optOutQuery, "nonce=a", "Content-Type: multipart/form-data; boundary=a"), false},
		{"a body of no kind", post("/?"+optOutQuery, "nonce=a"), false},
		{"a large body", form("/?"+optOutQuery, "nonce="+strings.Repeat("a", maxOptOutBody)), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body = ""
			a := r.exchange(t, tt.raw)
			if want := map[bool]string{true: " 200 ", false: " 404 "}[tt.served]; !strings.Contains(a.status, want) {
				t.Errorf("got %s, want%s", a.status, want)
			}
			if _, sent, _ := strings.Cut(tt.raw, "\r\n\r\n"); tt.served && body != sent {
				t.Errorf("Matomo got the body %q, want %q", body, sent)
			}
		})
	}
	if a := r.exchange(t, get("/?"+optOutQuery, "Connection: Upgrade", "Upgrade: websocket")); !strings.Contains(a.status, " 200 ") {
		t.Errorf("an upgrade: got %s", a.status)
	}
}

// FuzzOptOut: what is taken for the opt-out is that for PHP, with any separator.
func FuzzOptOut(f *testing.F) {
	for _, q := range []string{optOutQuery, optOutQuery + "&module[]=a", "module=API&" + optOutQuery, optOutQuery + ";action=a", "a&" + optOutQuery + "&x%00module=1"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		action, ok := onlyAction([]byte(query))
		if !ok {
			return
		}
		for _, separated := range []string{query, strings.ReplaceAll(query, ";", "&")} {
			form := phpform.Parse([]byte(separated))
			if form.String("module") != "CoreAdminHome" || form.String("action") != action {
				t.Fatalf("%q calls %q, %q", separated, form.String("module"), form.String("action"))
			}
		}
		if action != "optOut" && action != "optOutJS" {
			t.Fatalf("%q calls %q", query, action)
		}
	})
}

// FuzzPath: a path that is passed stays below the base, however often it is decoded.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"/a", "/../a", "/%2e%2e/a", "/%252e%252e%252fa", "/..;/a", `/..\a`} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		u, err := url.ParseRequestURI(p)
		if err != nil || mayLeave(&http.Request{URL: u}) {
			return
		}
		decoded := u.EscapedPath()
		for range 6 {
			below := 0
			for segment := range strings.FieldsFuncSeq(decoded, func(c rune) bool { return c == '/' || c == '\\' }) {
				name, _, _ := strings.Cut(segment, ";")
				if below++; name == ".." {
					below -= 2
				}
				if below < 0 {
					t.Fatalf("%q leaves as %q", p, decoded)
				}
			}
			next, err := url.PathUnescape(decoded)
			if err != nil {
				return
			}
			decoded = next
		}
	})
}
