package assets

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

func decoded(t *testing.T, encoding string, body []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(body)
	switch encoding {
	case "gzip":
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		r = z
	case "br":
		r = brotli.NewReader(r)
	case "zstd":
		z, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", encoding, err)
	}
	return b
}

// encodedRig has one file with all its encodings.
func encodedRig(t *testing.T) *rig {
	t.Helper()
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), nil)
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	v := r.find("/matomo.js").serving.Load()
	eventually(t, "the encodings are made", func() bool { return v.encoded.Load() != nil })
	return r
}

// inBothWays asks through net/http and for the whole answer, and compares the two.
func (r *rig) inBothWays(path string, headers ...string) *http.Response {
	r.t.Helper()
	w := r.get(path, headers...)
	q := Query{Path: []byte(path), Now: r.clock.now()}
	for i := 0; i < len(headers); i += 2 {
		switch headers[i] {
		case "Accept-Encoding":
			q.AcceptEncoding = []byte(headers[i+1])
		case "If-None-Match":
			q.NoneMatch = []byte(headers[i+1])
		case "If-Modified-Since":
			q.ModifiedSince = []byte(headers[i+1])
		}
	}
	raw, status := r.Wire(q)
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), httptest.NewRequest(http.MethodGet, path, nil))
	if err != nil {
		r.t.Fatalf("%v: %v in %.80q", headers, err, raw)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.Header.Get("Date") == "" {
		r.t.Errorf("%v: no Date", headers)
	}
	resp.Header.Del("Date")
	equal := maps.EqualFunc(resp.Header, w.Header(), slices.Equal[[]string])
	if status != w.Code || resp.StatusCode != w.Code || !equal || !bytes.Equal(body, w.Body.Bytes()) {
		r.t.Errorf("%v: whole answer %d %v, %d bytes; net/http %d %v, %d bytes", headers, status, resp.Header, len(body), w.Code, w.Header(), w.Body.Len())
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp
}

func TestEncodings(t *testing.T) {
	r := encodedRig(t)
	smallest := (*r.find("/matomo.js").serving.Load().encoded.Load())[0].encoding
	tags := make(map[string]bool)
	for _, tt := range []struct{ accept, want string }{
		{"", ""}, {"gzip", "gzip"}, {"GZIP", "gzip"}, {"x-gzip", "gzip"}, {"br", "br"}, {"zstd", "zstd"}, {"deflate", ""},
		{"gzip, deflate, br, zstd", smallest}, {"gzip;q=1.0, br;q=0.9", "gzip"}, {"br;q=0, gzip;q=0.1", "gzip"}, {"*", smallest},
		{"*;q=0", ""}, {"gzip;q=0", ""}, {"identity, gzip;q=0.5", ""}, {"br;q=x", ""}, {"br;q=0.000", ""}, {"br ; q=0.5 , gzip ; q=0.7", "gzip"},
		{"identity;q=0, zstd", "zstd"}, {",,,", ""}, {"br;q=1.5", "br"}, {"brr", ""}, {"identity;q=0", ""},
	} {
		resp := r.inBothWays("/matomo.js", "Accept-Encoding", tt.accept)
		body, _ := io.ReadAll(resp.Body)
		got := resp.Header.Get("Content-Encoding")
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.accept, got, tt.want)
		}
		if !bytes.Equal(decoded(t, got, body), trackerText(1)) {
			t.Errorf("%q: other bytes", tt.accept)
		}
		if resp.Header.Get("Vary") != "Accept-Encoding" || resp.Header.Get("Content-Type") != "application/javascript; charset=utf-8" ||
			resp.Header.Get("Last-Modified") != "Mon, 02 Nov 2026 10:00:00 GMT" || resp.Header.Get("Cache-Control") != defaultCacheControl {
			t.Errorf("%q: headers %v", tt.accept, resp.Header)
		}
		tags[resp.Header.Get("Etag")] = true
	}
	if len(tags) != 4 {
		t.Errorf("tags %v, want one for each encoding", tags)
	}
}

func TestConditions(t *testing.T) {
	r := encodedRig(t)
	plain := `"` + hashOf(trackerText(1)) + `"`
	const modified = "Mon, 02 Nov 2026 10:00:00 GMT"
	for _, tt := range []struct {
		name    string
		headers []string
		want    int
	}{
		{"the same tag", []string{"If-None-Match", plain}, 304},
		{"a weak form of it", []string{"If-None-Match", "W/" + plain}, 304},
		{"it in a list", []string{"If-None-Match", `"a", ` + plain}, 304},
		{"a star", []string{"If-None-Match", "*"}, 304},
		{"another tag", []string{"If-None-Match", `"a"`}, 200},
		{"the tag of another encoding", []string{"If-None-Match", plain, "Accept-Encoding", "gzip"}, 200},
		{"the tag of this encoding", []string{"If-None-Match", plain[:17] + `-gz"`, "Accept-Encoding", "gzip"}, 304},
		{"the same time", []string{"If-Modified-Since", modified}, 304},
		{"a later time, since versions may go back", []string{"If-Modified-Since", "Tue, 03 Nov 2026 10:00:00 GMT"}, 200},
		{"another tag and the same time", []string{"If-None-Match", `"a"`, "If-Modified-Since", modified}, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.inBothWays("/matomo.js", tt.headers...); got.StatusCode != tt.want {
				t.Errorf("got %d, want %d", got.StatusCode, tt.want)
			}
		})
	}
}

func TestRangesAndMethods(t *testing.T) {
	r := encodedRig(t)
	all := trackerText(1)
	w := r.get("/matomo.js", "Range", "bytes=10-19", "Accept-Encoding", "gzip")
	if w.Code != http.StatusPartialContent || !bytes.Equal(w.Body.Bytes(), all[10:20]) || w.Header().Get("Content-Encoding") != "" {
		t.Errorf("a range: got %d %v %q", w.Code, w.Header(), w.Body)
	}
	if w := r.get("/matomo.js", "Range", "bytes=0-0,5-6"); w.Code != http.StatusPartialContent || !strings.HasPrefix(w.Header().Get("Content-Type"), "multipart/byteranges") {
		t.Errorf("two ranges: got %d %v", w.Code, w.Header())
	}
	if w := r.get("/matomo.js", "Range", "bytes=999999-"); w.Code != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a range beyond the end: got %d", w.Code)
	}
	if w := r.get("/matomo.js", "Range", "bytes=0-1", "If-Range", `"old"`); w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), all) {
		t.Errorf("a range of another version: got %d with %d bytes", w.Code, w.Body.Len())
	}
	if w := r.request(http.MethodHead, "/matomo.js"); w.Code != http.StatusOK || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "" {
		t.Errorf("HEAD: got %d %v with %d bytes", w.Code, w.Header(), w.Body.Len())
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodOptions} {
		if w := r.request(method, "/matomo.js"); w.Code != http.StatusTeapot {
			t.Errorf("%s: got %d, want it passed on", method, w.Code)
		}
	}
}

func TestWholeAnswers(t *testing.T) {
	r := encodedRig(t)
	q := Query{Path: []byte("/matomo.js"), Now: r.clock.now()}
	first, _ := r.Wire(q)
	again, _ := r.Wire(q)
	if &first[0] != &again[0] {
		t.Error("two answers of one second are not the same bytes")
	}
	q.AcceptEncoding, q.NoneMatch = []byte("gzip, deflate, br, zstd"), []byte(`"0123456789abcdef-br"`)
	r.Wire(q)
	if n := testing.AllocsPerRun(100, func() { r.Wire(q) }); n != 0 {
		t.Errorf("%v allocations an answer, want none", n)
	}
	q.Last = true
	if b, _ := r.Wire(q); !bytes.Contains(b, []byte("\r\nConnection: close\r\n")) {
		t.Error("the last answer does not say that the connection ends")
	}
	q.Last = false
	if b, _ := r.Wire(q); bytes.Contains(b, []byte("\r\nConnection: close\r\n")) {
		t.Error("an answer says that the connection ends")
	}
	q.Now = q.Now.Add(10 * time.Minute)
	r.clock.pass(10 * time.Minute)
	if b, _ := r.Wire(q); b != nil {
		t.Error("a copy that must be looked at first is answered at once")
	}
	r.origin.Close()
	r.lookAt("/matomo.js")
	if b, _ := r.Wire(q); !bytes.Contains(b, []byte("\r\n"+staleHeader+": 600\r\n")) {
		t.Errorf("a stale answer does not say so: %.300q", b)
	}
}

func TestPurgeAndPin(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), func(c *Config) { c.Now = nil })
	purge := func(want string) {
		t.Helper()
		got, err := r.Purge(t.Context(), "/matomo.js")
		if err != nil || len(got) != 1 || got[0].Outcome != want {
			t.Errorf("purge: %v %v, want %s", got, err, want)
		}
	}
	if _, err := r.Purge(t.Context(), "/matomo.js"); err == nil {
		t.Error("a purge of nothing succeeds")
	}
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	purge("unchanged")
	o.file("/matomo.js", trackerText(2))
	purge("replaced")
	r.wants("/matomo.js", http.StatusOK, trackerText(2))
	o.has("/matomo.js", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) })
	purge("refused")
	r.wants("/matomo.js", http.StatusOK, trackerText(2))

	if hash, err := r.Pin("/matomo.js", PreviousVersion); err != nil || hash != hashOf(trackerText(1)) {
		t.Fatalf("pin the previous version: %s %v", hash, err)
	}
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	o.file("/matomo.js", trackerText(3))
	purge("replaced")
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	if _, err := r.Pin("/matomo.js", "nothing"); err == nil {
		t.Error("a version that is not there is pinned")
	}
	list := r.List()
	if len(list) != 1 || !list[0].Pinned || list[0].Live != hashOf(trackerText(3)) || list[0].Previous != hashOf(trackerText(2)) {
		t.Errorf("listed as %+v", list)
	}
	r.stop()

	r = newRig(t, o, r.dir, func(c *Config) { c.Now = nil })
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	o.has("/matomo.js", nil)
	purge("deleted")
	r.wants("/matomo.js", http.StatusOK, trackerText(1))
	if err := r.Unpin("/matomo.js"); err != nil {
		t.Fatal(err)
	}
	r.wants("/matomo.js", http.StatusTeapot, nil)
}

func TestOff(t *testing.T) {
	o := newOrigin(t)
	o.file("/matomo.js", trackerText(1))
	r := newRig(t, o, t.TempDir(), func(c *Config) { c.Off = true })
	r.wants("/matomo.js", http.StatusTeapot, nil)
	if !r.Claims(httptest.NewRequest(http.MethodGet, "/matomo.js", nil)) {
		t.Error("with the copies off nothing says that the path is public")
	}
}
