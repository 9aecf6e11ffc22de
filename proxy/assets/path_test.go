package assets

import (
	"bytes"
	"strings"
	"testing"
)

func TestKindOf(t *testing.T) {
	for _, tt := range []struct {
		path string
		want kind
	}{
		{"/matomo.js", tracker}, {"/piwik.js", tracker}, {"/a/b/matomo.js", tracker}, {"/~u/matomo.js", tracker},
		{"/js/", script}, {"/a/js/", script}, {"/js/index.php", script}, {"/js/tracker.php", script},
		{"/js/piwik.js", source}, {"/js/piwik.min.js", source},
		{"/js/container_ABCDEFGH.js", container}, {"/a/js/container_ABCDEFGH_staging_0123456789abcdef01234567.js", container},
		{"/js/container_ABCDEFGH_preview.js", preview},
		{"/offline-service-worker.js", worker},
		{"/misc/user/logo.png", image}, {"/a/misc/user/inst/favicon.ICO", image}, {"/misc/user/logo.svg", image}, {"/misc/user/l.jpeg", image},
		{"/plugins/PrivacyManager/tracker.js", plugin}, {"/plugins/PrivacyManager/tracker.min.js", plugin},

		{"", none}, {"/", none}, {"matomo.js", none}, {"//matomo.js", none}, {"/a//matomo.js", none}, {"/./matomo.js", none},
		{"/../matomo.js", none}, {"/.git/matomo.js", none}, {"/.matomo.js", none}, {"/a\\matomo.js", none}, {"/a%2fmatomo.js", none},
		{"/matomo.js;x", none}, {"/matomo.js/", none}, {"/matomo.js/x", none}, {"/matomo.js\x00", none}, {"/MATOMO.JS", none},
		{"/index.php/matomo.js", none}, {"/x.PHP/matomo.js", none}, {"/matomo.php", none}, {"/index.php", none}, {"/tracker.php", none},
		{"/js", none}, {"/js/x.js", none}, {"/js//", none}, {"/js/a/container_A.js", none}, {"/container_A.js", none}, {"/js/container_.js", none},
		{"/js/container_a.b.js", none}, {"/js/container_a.json", none},
		{"/plugins/X/js/container_A.js", none}, {"/plugins/X/matomo.js", none}, {"/plugins/X/js/", none}, {"/plugins/tracker.js", none},
		{"/plugins/X/y/tracker.js", none}, {"/plugins/X/js/index.php", none}, {"/vendor/js/piwik.js", none}, {"/node_modules/matomo.js", none},
		{"/misc/logo.png", none}, {"/misc/user/a/b/logo.png", none}, {"/misc/user/x.php", none}, {"/misc/user/config.ini.php", none},
		{"/misc/other/logo.png", none}, {"/misc/user/", none}, {"/misc/user/x.html", none}, {"/config/config.ini.php", none},
		{"/" + strings.Repeat("a", maxPath) + "/matomo.js", none},
	} {
		if got := kindOf(tt.path); got != tt.want {
			t.Errorf("%q is %s, want %s", tt.path, kindNames[got], kindNames[tt.want])
		}
	}
}

// FuzzKindOf shows that whatever is taken is in the one spelling that every server
// reads in the same way.
func FuzzKindOf(f *testing.F) {
	for _, p := range []string{"/js/", "/matomo.js", "/misc/user/a/logo.svg", "/plugins/X/tracker.js", "/js/container_x_preview.js", "/js/tracker.php"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		k := kindOf(p)
		if k != kindOf([]byte(p)) {
			t.Fatalf("%q has two kinds", p)
		}
		if k == none {
			return
		}
		if strings.ContainsAny(p, "%\\;?#\x00 ") || strings.Contains(p, "//") || strings.Contains(p, "/.") || p[0] != '/' || len(p) > maxPath {
			t.Fatalf("%q is %s", p, kindNames[k])
		}
		if strings.Contains(strings.ToLower(p), ".php") && k != script && !strings.Contains(strings.ReplaceAll(strings.ToLower(p), ".php", ""), "/") {
			t.Fatalf("%q is %s", p, kindNames[k])
		}
	})
}

// FuzzDecodeCopy shows that a copy is read as it was written, or not at all.
func FuzzDecodeCopy(f *testing.F) {
	whole, err := appendCopy(nil, meta{Path: "/matomo.js", ETag: `"a"`, Fetched: 5}, []byte("body"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, body, err := decodeCopy(b)
		if err != nil {
			return
		}
		again, err := appendCopy(nil, m, body)
		if err != nil {
			t.Fatal(err)
		}
		m2, body2, err := decodeCopy(again)
		if err != nil || m2 != m || !bytes.Equal(body, body2) {
			t.Fatalf("%v %v %q, again %v %q", err, m, body, m2, body2)
		}
	})
}

func TestCheckImages(t *testing.T) {
	const png = "\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"
	for _, tt := range []struct{ path, body, want string }{
		{"/misc/user/logo.png", png, ""},
		{"/misc/user/logo.png", png[:12], "magic"},
		{"/misc/user/logo.png", "<html>", "magic"},
		{"/misc/user/logo.png", "", "empty"},
		{"/misc/user/logo.jpg", "\xff\xd8\xff\xe0", ""},
		{"/misc/user/logo.jpg", "GIF89a", "magic"},
		{"/misc/user/logo.gif", "GIF89a", ""},
		{"/misc/user/favicon.ico", "\x00\x00\x01\x00", ""},
		{"/misc/user/logo.svg", `<?xml version="1.0"?><svg xmlns="x"><path d="M0"/></svg>`, ""},
		{"/misc/user/logo.svg", `<svg><script>alert(1)</script></svg>`, "active_svg"},
		{"/misc/user/logo.svg", `<svg ONLOAD = "x()"></svg>`, "active_svg"},
		{"/misc/user/logo.svg", `<svg><a href="JavaScript:x"/></svg>`, "active_svg"},
		{"/misc/user/logo.svg", `<svg><path`, "magic"},
		{"/misc/user/logo.svg", `<html></html>`, "magic"},
	} {
		if got := check(image, tt.path, "", []byte(tt.body)); got != tt.want {
			t.Errorf("%s %.30q: %q, want %q", tt.path, tt.body, got, tt.want)
		}
	}
}

// TestCheckScripts has for each check bytes that only this one refuses.
func TestCheckScripts(t *testing.T) {
	const footer = "/*!! @license-end */;"
	for _, tt := range []struct {
		kind             kind
		mime, body, want string
	}{
		{tracker, "application/javascript", "a();" + footer, ""},
		{tracker, "text/plain", "\xef\xbb\xbfa();" + footer + "\n", ""},
		{tracker, "", "a();", "torn"},
		{script, "", "a();", "torn"},
		{source, "", "a();", "torn"},
		{source, "", "a();\n/*! @license-end */\n", ""},
		{tracker, "", footer + "var a = 1", "torn"},
		{tracker, "", footer + "a /", "torn"},
		{tracker, "", footer + "\x00;", "binary"},
		{tracker, "text/html", footer, "html"},
		{tracker, "", "<b>" + footer, "html"},
		{tracker, "", "Notice: x" + footer, "php_error"},
		{container, "", "var MatomoTagManager={};", ""},
		{container, "", "var MatomoTagManag", "torn"},
		{container, "", "var x={};", "no_container"},
		{plugin, "", "a()", ""},
		{worker, "", "a()", ""},
		{worker, "", "a", "torn"},
	} {
		if got := check(tt.kind, "/x.js", tt.mime, []byte(tt.body)); got != tt.want {
			t.Errorf("%s %q: %q, want %q", kindNames[tt.kind], tt.body, got, tt.want)
		}
	}
}
