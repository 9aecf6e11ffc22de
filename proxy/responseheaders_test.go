package proxy

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// policyFiles is one file that has headers of its own, in memory and through net/http.
type policyFiles struct{ fakeFiles }

func (policyFiles) Serve(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Security-Policy", "sandbox")
	w.Header().Set("X-Content-Type-Options", "own")
	_, _ = io.WriteString(w, "file") // the client may be gone
}

func (policyFiles) Wire(FileQuery) ([]byte, int) {
	return []byte("HTTP/1.1 200 OK\r\nContent-Security-Policy: sandbox\r\nx-content-type-options: own\r\nContent-Length: 4\r\n\r\nfile"), http.StatusOK
}

func TestResponseHeaders(t *testing.T) {
	const hsts = "Strict-Transport-Security"
	fields := []Header{
		{"x-frame-options", "DENY"}, {"X-Seen", "by nobody"}, {"X-Content-Type-Options", "nosniff"}, {"Content-Security-Policy", "default-src 'self', b"},
	}
	r := newRig(t, func(c *Config) {
		c.ResponseHeaders, c.HSTS, c.Files = fields, 8760*time.Hour, policyFiles{}
		c.PassThrough = func(int64) bool { return true }
	})
	tests := []struct {
		name, target string
		status       int
		file         bool
		full         bool // the queue is
	}{
		{name: "a hit", target: okHit, status: 200},
		{name: "a hit without an image", target: okHit + "&send_image=0", status: 204},
		{name: "a hit that is refused", target: "/matomo.php?rec=1&idsite=99999", status: 400},
		{name: "a hit that passes the queue by", target: okHit, status: 418, full: true},
		{name: "a file", target: "/matomo.js", status: 200, file: true},
		{name: "what is passed to Matomo", target: "/index.php", status: 418},
		{name: "health", target: "/-/livez", status: 200},
		{name: "a path of ours that is not there", target: "/-/none", status: 404},
	}
	check := func(t *testing.T, on bool) {
		for _, tt := range tests {
			for _, e := range entrances {
				if tt.full {
					r.queue.fail(errFull)
				}
				res, err := r.enter(t, e, "", tt.target)
				r.queue.fail(nil)
				if err != nil || res.StatusCode != tt.status {
					t.Errorf("%s, %s: got %v %v, want %d", tt.name, e.name, res, err, tt.status)
					continue
				}
				want := map[string][]string{}
				if on {
					for _, f := range fields {
						want[http.CanonicalHeaderKey(f.Name)] = []string{f.Value}
					}
					if e.secure {
						want[hsts] = []string{"max-age=31536000"}
					}
				}
				if tt.file {
					want["Content-Security-Policy"] = append([]string{"sandbox"}, want["Content-Security-Policy"]...)
				}
				for _, name := range []string{"X-Frame-Options", "Content-Security-Policy", hsts} {
					if got := res.Header[name]; !slices.Equal(got, want[name]) {
						t.Errorf("%s, %s: %s is %q, want %q", tt.name, e.name, name, got, want[name])
					}
				}
				for _, name := range []string{"X-Seen", "X-Content-Type-Options"} {
					if got := res.Header[name]; on && !slices.Equal(got, want[name]) {
						t.Errorf("%s, %s: %s is %q, want only %q", tt.name, e.name, name, got, want[name])
					}
				}
			}
		}
	}
	check(t, true)
	t.Run("go with a reload", func(t *testing.T) {
		if err := r.Reload(Tunables{}); err != nil {
			t.Fatal(err)
		}
		check(t, false)
	})
	t.Run("are on the answer when Matomo is gone", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.ResponseHeaders = fields })
		r.matomo.Close()
		res, err := r.enter(t, entrances[2], "", "/index.php")
		if err != nil || res.StatusCode/100 != 5 || res.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("got %v %v", res, err)
		}
	})
	t.Run("are refused when they break a line", func(t *testing.T) {
		for _, h := range []Header{{"A", "b\r\nC: d"}, {"A b", "c"}, {"", "c"}, {"A:", "b"}} {
			if err := r.Reload(Tunables{ResponseHeaders: []Header{h}}); err == nil || !strings.Contains(err.Error(), "response header") {
				t.Errorf("%q: got %v", h, err)
			}
		}
	})
}

func TestResponseHeadersDoNotAllocate(t *testing.T) {
	plain, _ := headerSets([]Header{{"X-Frame-Options", "DENY"}}, 0)
	a := success(true, true)
	a.extra = plain
	out, date := make([]byte, 0, baseBuffer), []byte("Thu, 19 Nov 2026 12:00:00 GMT")
	if n := testing.AllocsPerRun(100, func() { out = a.append(out[:0], nil, date, false) }); n > 0 {
		t.Errorf("%v allocations for an answer, want none", n)
	}
}

// FuzzSplicedHeaders puts headers into the head of any answer: its body stays, and
// none of its lines but those that are replaced.
func FuzzSplicedHeaders(f *testing.F) {
	f.Add("X-A: b\r\nX-Frame-Options: own\r\n", "body")
	f.Add("", "\r\n\r\n")
	f.Fuzz(func(t *testing.T, lines, body string) {
		head := "HTTP/1.1 200 OK\r\n" + lines
		if strings.Contains(head, "\r\n\r\n") || !strings.HasSuffix(head, "\r\n") {
			return
		}
		set := newHeaderSet([]Header{{"X-Frame-Options", "DENY"}})
		got, rest := set.spliced(nil, []byte(head+"\r\n"+body))
		if string(rest) != body || !strings.HasSuffix(string(got), "X-Frame-Options: DENY\r\n\r\n") {
			t.Fatalf("got %q and %q", got, rest)
		}
		for line := range strings.SplitSeq(lines, "\r\n") {
			name, _, _ := strings.Cut(line, ":")
			if !strings.Contains(line, "\n") && !strings.EqualFold(name, "X-Frame-Options") && !strings.Contains(string(got), line) {
				t.Fatalf("%q is lost in %q", line, got)
			}
		}
	})
}
