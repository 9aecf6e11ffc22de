package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestAssetsEndToEnd runs an edge in front of a Matomo that goes away, over HTTP/1.1
// and HTTP/2, and gives the orders of the command line.
func TestAssetsEndToEnd(t *testing.T) {
	const path = "/base/js/container_ABCDEFGH.js"
	container := func(n string) string { return "(function(){var MatomoTagManager=" + n + ";})();" }
	var text atomic.Value
	text.Store(container("1"))
	matomo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, text.Load().(string)) // the edge may be gone
	}))
	defer matomo.Close()
	dir := t.TempDir()
	s := startServer(t, dir, matomo.URL)
	fetch := func(protocols func(*http.Protocols)) (*http.Response, string) {
		t.Helper()
		transport := s.client.Transport.(*http.Transport).Clone()
		transport.Protocols = new(http.Protocols)
		protocols(transport.Protocols)
		defer transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.public+path+"?v=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp, string(body)
	}
	one, two := func(p *http.Protocols) { p.SetHTTP1(true) }, func(p *http.Protocols) { p.SetHTTP2(true) }
	wants := func(want string) {
		t.Helper()
		first, body1 := fetch(one)
		second, body2 := fetch(two)
		if body1 != want || body2 != want || first.Header.Get("Etag") != second.Header.Get("Etag") || second.ProtoMajor != 2 {
			t.Errorf("HTTP/1.1 has %d %q, HTTP/2 %d %q, want %q", first.StatusCode, body1, second.StatusCode, body2, want)
		}
	}
	runs := func(want int, has string, args ...string) {
		t.Helper()
		if code, out, errs := s.run(args...); code != want || !strings.Contains(out+errs, has) {
			t.Errorf("%v: %d %s%s, want %d with %q", args, code, out, errs, want, has)
		}
	}
	runs(exitOK, "no copies yet", "assets", "ls")
	wants(container("1"))
	text.Store(container("2"))
	runs(exitOK, "replaced", "assets", "purge", path)
	wants(container("2"))
	runs(exitOK, "is pinned at", "assets", "pin", path, "--previous")
	wants(container("1"))
	runs(exitOK, `"pinned":true`, "assets", "ls", "--json")
	runs(exitOK, "pinned; Matomo has", "assets", "ls")
	runs(exitOK, "follows Matomo again", "assets", "unpin", path)
	runs(exitFailed, "there is no copy", "assets", "pin", "/matomo.js")
	matomo.Close()
	runs(exitFailed, "could not be compared", "assets", "purge", "--all")
	wants(container("2"))
	s.stop()

	s = startServer(t, dir, matomo.URL)
	wants(container("2"))
}
