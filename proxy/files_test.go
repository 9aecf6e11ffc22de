package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// fakeFiles has one file, in memory for plain requests.
type fakeFiles struct{ wired *int }

func (fakeFiles) Claims(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/matomo.js") }

func (fakeFiles) Serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if r.URL.Path != "/matomo.js" {
		next.ServeHTTP(w, r)
		return
	}
	_, _ = io.WriteString(w, "slow") // the client may be gone
}

func (fakeFiles) Named(path []byte) bool { return bytes.HasSuffix(path, []byte("/matomo.js")) }

func (f fakeFiles) Wire(q FileQuery) ([]byte, int) {
	if string(q.Path) != "/matomo.js" || len(q.NoneMatch) > 0 {
		return nil, 0
	}
	*f.wired++
	end := "\r\n"
	if q.Last {
		end = "Connection: close\r\n\r\n"
	}
	return []byte("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nDate: " + q.Now.UTC().Format(http.TimeFormat) + "\r\n" + end + "fast"), http.StatusOK
}

// TestFilesOnTheFastPath shows which requests are answered from memory, and that hits
// on the same connection go on as before.
func TestFilesOnTheFastPath(t *testing.T) {
	const host = "Host: a.example\r\n"
	for _, tt := range []struct{ name, raw, want string }{
		{"a plain request", "GET /matomo.js HTTP/1.1\r\n" + host + "Accept-Encoding: br\r\nCookie: a=b\r\n\r\n", "fast"},
		{"one with a query", "GET /matomo.js?v=2 HTTP/1.1\r\n" + host + "\r\n", "fast"},
		{"one that memory cannot answer", "GET /matomo.js HTTP/1.1\r\n" + host + "If-None-Match: \"x\"\r\n\r\n", "slow"},
		{"one for a part", "GET /matomo.js HTTP/1.1\r\n" + host + "Range: bytes=0-1\r\n\r\n", "slow"},
		{"one for a part if it is the same", "GET /matomo.js HTTP/1.1\r\n" + host + "If-Range: \"x\"\r\n\r\n", "slow"},
		{"one with two lists of encodings", "GET /matomo.js HTTP/1.1\r\n" + host + "Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n\r\n", "slow"},
		{"one with a body", "GET /matomo.js HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nx", "slow"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wired := 0
			s := newRig(t, func(c *Config) { c.Files = fakeFiles{&wired} })
			conn := s.dial(t)
			hit := "GET /matomo.php?idsite=1&rec=1 HTTP/1.1\r\n" + host + "\r\n"
			if _, err := io.WriteString(conn, hit+tt.raw+hit); err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(conn)
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second)) // a dead connection shows itself below
			for i := range 3 {
				resp, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatalf("answer %d: %v", i, err)
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatalf("answer %d: %v", i, err)
				}
				if i == 1 && string(body) != tt.want {
					t.Errorf("got %q, want %q", body, tt.want)
				}
				if resp.StatusCode/100 != 2 {
					t.Errorf("answer %d has status %d", i, resp.StatusCode)
				}
			}
			if fast := tt.want == "fast"; fast != (wired == 1) {
				t.Errorf("%d answers from memory", wired)
			}
			if got := len(s.queue.take()); got != 2 {
				t.Errorf("%d hits stored, want 2", got)
			}
		})
	}
}

func TestFilesAreServedWithTrackingOnly(t *testing.T) {
	wired := 0
	s := newRig(t, func(c *Config) { c.Files, c.Expose = fakeFiles{&wired}, ExposeTrackingOnly })
	for path, want := range map[string]int{"/matomo.js": 200, "/other/matomo.js": 418, "/index.php": 404} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s: got %d, want %d", path, w.Code, want)
		}
	}
}
