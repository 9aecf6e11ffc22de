package assets

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

func TestRemembers(t *testing.T) {
	for _, tt := range []struct {
		url  string
		want remembrance
	}{
		{"/index.php?module=CoreAdminHome&action=optOutJS", onDisk},
		{"/m/index.php?action=optOutJS&language=de&module=CoreAdminHome", onDisk},
		{"/?module=CoreAdminHome&action=optOutJS", onDisk},
		{"/index.php?module=CoreAdminHome&action=optOut", never},
		{"/plugins/HeatmapSessionRecording/configs.php?idsite=1", inMemory},
		{"/index.php", forgotten}, {"/?module=CoreHome", forgotten}, {"/index.php?module=API&action=optOutJS", forgotten},
		{"/index.php?module=CoreAdminHome&action=optOutJS&action=x", forgotten},
		{"/index.php?module=CoreAdminHome&action=optOutJS&%61ction=x", forgotten},
		{"/index.php?module[]=CoreAdminHome&action=optOutJS", forgotten},
		{"/x.php?module=CoreAdminHome&action=optOutJS", forgotten},
		{"//index.php?module=CoreAdminHome&action=optOutJS", forgotten},
		{"/index%2ephp?module=CoreAdminHome&action=optOutJS", forgotten},
	} {
		u, err := url.ParseRequestURI(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := remembers(u); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.url, got, tt.want)
		}
	}
}

func TestOptOut(t *testing.T) {
	const path, script = "/index.php?module=CoreAdminHome&action=optOutJS&language=auto", "document.write('x');"
	o := newOrigin(t)
	r := newRig(t, o, t.TempDir(), nil)
	say := func(status int, change func(http.Header)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/javascript")
			if change != nil {
				change(w.Header())
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(script))
		})
	}
	down := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	ask := func(r *rig, path string, next http.Handler, headers ...string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(http.MethodGet, path, nil)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		r.Serve(w, req, next)
		return w
	}
	for _, tt := range []struct {
		name    string
		change  func(http.Header)
		headers []string
		status  int
	}{
		{"one that sets a cookie", func(h http.Header) { h.Set("Set-Cookie", "a=b") }, nil, 200},
		{"one that varies with cookies", func(h http.Header) { h.Set("Vary", "Accept, Cookie") }, nil, 200},
		{"one to a request with a cookie", nil, []string{"Cookie", "a=b"}, 200},
		{"a page", func(h http.Header) { h.Set("Content-Type", "text/html") }, nil, 200},
		{"an error", nil, nil, 500},
	} {
		if w := ask(r, path, say(tt.status, tt.change), tt.headers...); w.Code != tt.status || w.Body.String() != script {
			t.Errorf("%s: got %d %q", tt.name, w.Code, w.Body)
		}
		if w := ask(r, path, down); w.Code != http.StatusBadGateway {
			t.Errorf("%s is remembered", tt.name)
		}
	}

	if w := ask(r, path, say(200, nil), "Accept-Language", "de, en"); w.Code != 200 || w.Body.String() != script || w.Header().Get(staleHeader) != "" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
	r.clock.pass(time.Minute)
	broken := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write([]byte("half"))
		panic(http.ErrAbortHandler)
	})
	for name, next := range map[string]http.Handler{"gone": down, "in maintenance": say(503, nil), "breaking off": broken} {
		w := ask(r, path, next, "Accept-Language", "de,en")
		if w.Code != 200 || w.Body.String() != script || w.Header().Get(staleHeader) != "60" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("with Matomo %s: got %d %q %v", name, w.Code, w.Body, w.Header())
		}
	}
	if w := ask(r, path, down, "Accept-Language", "fr"); w.Code != http.StatusBadGateway {
		t.Error("the answer in another language is given")
	}
	if w := ask(r, path+"&x=1", down, "Accept-Language", "de,en"); w.Code != http.StatusBadGateway {
		t.Error("the answer to another query is given")
	}
	const heat = "/plugins/HeatmapSessionRecording/configs.php?idsite=1&url=x"
	ask(r, heat, say(200, nil))
	if w := ask(r, heat, down); w.Code != 200 {
		t.Error("the configuration of heat maps is not given")
	}
	r.stop()

	again := newRig(t, o, r.dir, nil)
	if w := ask(again, path, down, "Accept-Language", "de,en"); w.Code != 200 || w.Body.String() != script {
		t.Errorf("after a restart: got %d", w.Code)
	}
	if w := ask(again, heat, down); w.Code != http.StatusBadGateway {
		t.Error("a query that may name a visitor's page was kept on the disk")
	}
}
