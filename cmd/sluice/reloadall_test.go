package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// wantsReload sends the order and looks at how it ends.
func (s *server) wantsReload(code int, text string) {
	s.t.Helper()
	if got, stdout, stderr := s.live("reload"); got != code || !strings.Contains(stdout+stderr, text) {
		s.t.Fatalf("reload: exit %d, want %d with %q: %s%s", got, code, text, stdout, stderr)
	}
}

// TestReloadReachesEveryPart: what the proxy does not see for itself is told.
func TestReloadReachesEveryPart(t *testing.T) {
	const file = "/matomo.js"
	var version atomic.Int32
	matomo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != file {
			panic(http.ErrAbortHandler) // without an answer
		}
		// The edge may be gone.
		_, _ = fmt.Fprintf(w, "if(typeof window.Matomo!=='object'){}/*%d*//*!! @license-end */", version.Load())
	}))
	defer matomo.Close()
	dir := t.TempDir()
	path := filepath.Join(dir, "sluice.yaml")
	writeSettings(t, path, "assets.revalidate: 60s\n")
	s := startServer(t, filepath.Join(dir, "data"), matomo.URL, "--config="+path)
	fetched := func(want string) bool {
		t.Helper()
		resp, err := s.client.Get(s.public + file)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(text), want)
	}
	becomes := func(what string, condition func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not after 20 s\n%s", what, s.log)
			}
		}
	}
	debugging := func() bool { // that Matomo gives no answer is told at that level
		resp, err := s.client.Get(s.public + "/index.php")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return strings.Contains(s.log.String(), `"level":"DEBUG"`)
	}
	becomes("the file", func() bool { return fetched("/*0*/") })
	time.Sleep(2 * time.Second) // a first copy is looked at once more soon
	version.Store(1)
	time.Sleep(2 * time.Second)
	if fetched("/*1*/") {
		t.Fatal("the file is compared before its time")
	}
	if debugging() {
		t.Fatal("something is logged at debug level")
	}
	writeSettings(t, path, "assets.revalidate: 1s\nlog.level: debug\n")
	s.wantsReload(exitOK, "assets.revalidate, log.level")
	becomes("the new file", func() bool { return fetched("/*1*/") })
	becomes("a line at debug level", debugging)
}

// TestReloadIsAllOrNothing: what one part refuses takes effect in no other.
func TestReloadIsAllOrNothing(t *testing.T) {
	authority := newAuthority(t, "authority")
	authority.client("edge", time.Hour)
	dir := t.TempDir()
	path, token := filepath.Join(dir, "sluice.yaml"), filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("a-token-of-the-listener"), 0o600); err != nil {
		t.Fatal(err)
	}
	writeSettings(t, path, "admin.token-file: "+token+"\n")
	s := startServer(t, filepath.Join(dir, "data"), nobody, "--config="+path, "--admin.listen=0.0.0.0:0",
		"--tls.mode=files", "--tls.cert-file="+authority.file("edge"), "--tls.key-file="+authority.file("edge-key"))
	_, port, _ := strings.Cut(s.private, "]:")
	s.private = "127.0.0.1:" + port
	limited := func() bool {
		for range 3 {
			if s.hit("idsite=1&rec=1") == http.StatusTooManyRequests {
				return true
			}
		}
		return false
	}
	const rate = "proxy.address-rate: 1\nproxy.address-burst: 1\n"

	// Others reach the private listener: without a token it would be open.
	writeSettings(t, path, rate+"admin.listen: 127.0.0.1:0\n")
	s.wantsReload(exitSettings, "admin.token-file")
	if limited() {
		t.Error("a reload without a token took effect")
	}
	writeSettings(t, path, rate+"admin.token-file: "+token+"\n")
	whole, err := os.ReadFile(authority.file("edge"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(authority.file("edge"), whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	s.wantsReload(exitSettings, "certificate")
	if limited() {
		t.Error("a reload with a damaged certificate took effect")
	}
	if err := os.WriteFile(authority.file("edge"), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.wantsReload(exitOK, "proxy.address-rate")
	if !limited() {
		t.Error("the reload did not take effect")
	}
}
