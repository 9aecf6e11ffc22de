package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/phpform"
)

// combinedLine is what reads Apache's combined format, and what stands behind it.
var combinedLine = regexp.MustCompile(`^(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "((?:[^"\\]|\\x[0-9A-F]{2})*)" (\d{3}) (\d+) "((?:[^"\\]|\\x[0-9A-F]{2})*)" "((?:[^"\\]|\\x[0-9A-F]{2})*)"(?: hits=\d+)?$`)

// logLines reads the log's lines once there are n.
func (r *rig) logLines(t *testing.T, file string, n int) []string {
	t.Helper()
	var data []byte
	r.until(t, func() bool {
		data, _ = os.ReadFile(file)
		return bytes.Count(data, []byte("\n")) >= n
	})
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func logged(file string, a AccessLog) func(*Config) {
	return func(c *Config) {
		c.AccessLog = a
		c.AccessLog.File = file
		c.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
}

func TestAccessLog(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef"
	agent, referer := `User-Agent: Mo"z\`+"\xff", "Referer: https://u:"+secret+"@a.example/x?token_auth="+secret+"#y"
	hit := get("/matomo.php?idsite=1&rec=1&x=%22&token_auth="+secret, agent, referer, "X-Forwarded-For: 192.0.2.77")
	for _, way := range []string{"fast", "library"} {
		for _, tt := range []struct {
			name string
			log  AccessLog
			mask int
			want []string
		}{
			{"combined", AccessLog{Format: AccessLogCombined, MaskAddress: 2}, 0, []string{`192.0.0.0 - - [`, `] "GET /matomo.php HTTP/1.1" 200 43 "https://***@a.example/x" "Mo\x22z\x5C\xFF" hits=1`}},
			{"with queries", AccessLog{Format: AccessLogCombined, Query: true}, 0, []string{`192.0.2.77 - - [`, `"GET /matomo.php?idsite=1&rec=1&x=%22&token_auth=*** HTTP/1.1" 200 43 "https://***@a.example/x?token_auth=***"`}},
			{"masked as on disk", AccessLog{Format: AccessLogCombined}, 3, []string{`192.0.0.0 - - [`}},
			{"JSON", AccessLog{Format: AccessLogJSON, MaskAddress: 1}, 0, []string{`"remote":"192.0.2.0","host":"stats.example","method":"GET","path":"/matomo.php","proto":"HTTP/1.1","status":200,"bytes":43,"duration":0.`,
				`,"referer":"https://***@a.example/x","user_agent":"Mo\"z\\` + "\u00ff" + `","handled":"tracking","hits":1}`}},
			{"JSON with queries", AccessLog{Format: AccessLogJSON, Query: true}, 0, []string{`"query":"idsite=1&rec=1&x=%22&token_auth=***"`}},
		} {
			if tt.mask == 3 {
				tt.want = []string{"192.0.0.0 - - ["}
				tt.want[0] = mask(netip.MustParseAddr("192.0.2.77"), 3).String() + " - - ["
			}
			t.Run(tt.name+": "+way, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "access.log")
				r := newRig(t, func(c *Config) { logged(file, tt.log)(c); c.MaskAddress = tt.mask })
				exchange := r.exchange
				if way == "library" {
					exchange = r.exchangeByLibrary
				}
				exchange(t, hit)
				r.stop()
				<-r.done
				r.done <- nil
				lines := r.logLines(t, file, 1)
				line := lines[len(lines)-1]
				if strings.Contains(line, secret) {
					t.Fatalf("a secret is in %s", line)
				}
				for _, want := range tt.want {
					if !strings.Contains(line, want) {
						t.Errorf("got\n%s\nwithout\n%s", line, want)
					}
				}
				checkLine(t, line, tt.log.Format == AccessLogJSON)
				if info, err := os.Stat(file); err != nil || info.Mode().Perm()&^logMode != 0 {
					t.Errorf("mode %v %v", info.Mode(), err)
				}
			})
		}
	}
	t.Run("says who answered", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "access.log")
		r := newRig(t, logged(file, AccessLog{Format: AccessLogJSON}))
		r.exchange(t, get("/-/livez"))
		r.exchange(t, get("/index.php?module=Login"))
		r.exchange(t, post("/matomo.php", `{"requests":["?idsite=1&rec=1","?idsite=1&rec=1","?idsite=1"]}`))
		r.exchange(t, post("/matomo.php?token_auth=x", "idsite=1"))
		r.exchangeHTTP2(t, get("/matomo.php?idsite=1&rec=1"))
		all := strings.Join(r.logLines(t, file, 5), "\n")
		for _, want := range []string{
			`"path":"/-/livez","proto":"HTTP/1.1","status":200,"bytes":5,`, `"handled":"own","hits":0}`,
			`"path":"/index.php","proto":"HTTP/1.1","status":418,`, `"handled":"proxy","hits":0}`,
			`"method":"POST","path":"/matomo.php"`, `"handled":"tracking","hits":2}`, `"proto":"HTTP/2.0"`, `"tls":"1.3","handled":"tracking","hits":1}`,
		} {
			if !strings.Contains(all, want) {
				t.Errorf("got\n%s\nwithout\n%s", all, want)
			}
		}
	})
	t.Run("has the request whose body did not come", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "access.log")
		r := newRig(t, func(c *Config) {
			logged(file, AccessLog{Format: AccessLogCombined})(c)
			c.Limits.BodyTimeout = 20 * time.Millisecond
		})
		r.exchange(t, "POST /piwik.php?a=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nContent-Length: 70000\r\n\r\nabc")
		if lines := r.logLines(t, file, 1); !strings.Contains(lines[0], `"POST /piwik.php HTTP/1.1" 408 `) || !strings.Contains(lines[0], `"me"`) {
			t.Errorf("got %s", lines[0])
		}
	})
	t.Run("goes on in a new file after a rotation", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "access.log")
		r := newRig(t, logged(file, AccessLog{Format: AccessLogCombined}))
		r.exchange(t, get("/matomo.php?idsite=1"))
		r.logLines(t, file, 1)
		if err := os.Rename(file, file+".1"); err != nil {
			t.Fatal(err)
		}
		if err := r.Reopen(); err != nil {
			t.Fatal(err)
		}
		r.exchange(t, get("/piwik.php?idsite=1"))
		if lines := r.logLines(t, file, 1); len(lines) != 1 || !strings.Contains(lines[0], "/piwik.php") {
			t.Errorf("got %q", lines)
		}
	})
	t.Run("is written when a file cannot be opened anew", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "logs")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "access.log")
		r := newRig(t, logged(file, AccessLog{Format: AccessLogCombined}))
		if err := os.Rename(dir, dir+"2"); err != nil {
			t.Fatal(err)
		}
		if err := r.Reopen(); err == nil {
			t.Fatal("opened a file in no directory")
		}
		r.exchange(t, get("/matomo.php?idsite=1"))
		r.logLines(t, filepath.Join(dir+"2", "access.log"), 1)
	})
}

func checkLine(t *testing.T, line string, isJSON bool) {
	t.Helper()
	if strings.ContainsAny(line, "\n\r") {
		t.Errorf("more than a line: %q", line)
	}
	if !isJSON {
		m := combinedLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a line of the combined format: %q", line)
		}
		if _, err := time.Parse("02/Jan/2006:15:04:05 -0700", m[2]); err != nil {
			t.Error(err)
		}
		return
	}
	var v struct {
		Time   time.Time
		Status int
	}
	if err := json.Unmarshal([]byte(line), &v); err != nil || v.Time.IsZero() || v.Status == 0 {
		t.Errorf("not an object with a time and a status: %v %q", err, line)
	}
}

// brokenFile takes so many bytes and then fails until it is mended.
type brokenFile struct {
	mu   sync.Mutex
	room int
	got  bytes.Buffer
}

func (f *brokenFile) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(b) <= f.room {
		f.room -= len(b)
		return f.got.Write(b)
	}
	n, _ := f.got.Write(b[:f.room])
	f.room = 0
	return n, errors.New("no space left on device")
}

func TestAccessWriter(t *testing.T) {
	newWriter := func(log io.Writer) (*accessWriter, *brokenFile, *metrics.Counter) {
		lost := metrics.NewSet().NewCounter("lost_total")
		w := newAccessWriter(slog.New(slog.NewTextHandler(log, nil)), lost)
		f := &brokenFile{}
		w.path, w.file = "f", f
		return w, f, lost
	}
	flush := func(w *accessWriter) {
		w.fileMu.Lock()
		defer w.fileMu.Unlock()
		w.flushLocked()
	}
	t.Run("counts what a full disk loses, and begins a new line after it", func(t *testing.T) {
		var log bytes.Buffer
		w, f, lost := newWriter(&log)
		f.room = len("one\ntwo\nth")
		for _, line := range []string{"one\n", "two\n", "three\n", "four\n"} {
			w.write([]byte(line))
		}
		flush(w)
		w.write([]byte("five\n"))
		flush(w)
		f.room = 1000
		w.write([]byte("six\n"))
		flush(w)
		w.write([]byte("seven\n"))
		flush(w)
		if got := f.got.String(); got != "one\ntwo\nth\nsix\nseven\n" {
			t.Errorf("got %q", got)
		}
		if lost.Get() != 3 {
			t.Errorf("%d lines are counted as lost, want 3", lost.Get())
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "lost=3") {
			t.Errorf("%d warnings, want 1, and an end with 3 lines:\n%s", n, &log)
		}
	})
	t.Run("blocks nobody while the disk does not answer", func(t *testing.T) {
		w, _, lost := newWriter(io.Discard)
		w.fileMu.Lock() // as a write that does not return
		line := bytes.Repeat([]byte("x"), 1<<20-1)
		line = append(line, '\n')
		for range 7 {
			w.write(line)
		}
		w.fileMu.Unlock()
		if lost.Get() != 3 || len(w.waiting) > maxLogBuffer {
			t.Errorf("%d lines lost and %d bytes waiting, want 3 and %d", lost.Get(), len(w.waiting), maxLogBuffer)
		}
	})
	t.Run("does not hold up the stop", func(t *testing.T) {
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w, _, _ := newWriter(io.Discard)
		w.file = blockedFile{writer}
		go w.run() // ends when the pipe is closed
		w.write([]byte(strings.Repeat("x", 1<<20) + "\n"))
		began := time.Now()
		w.stop()
		if took := time.Since(began); took > 2*logPatience {
			t.Errorf("the stop took %v", took)
		}
		reader.Close()
		<-w.drained
	})
}

// A blockedFile hides that it is a file.
type blockedFile struct{ io.Writer }

func FuzzAccessLog(f *testing.F) {
	f.Add("/matomo.php", "idsite=1&token_auth=", "http://a/?token_auth=", "Mozilla \"\\\xff\n", "GET")
	f.Add("//u:p@h/a%3ftoken_auth=", "token%5fauth=&token.auth=&+token auth=", "//x@y//z@", "", "P\"")
	f.Add("/a", "url=http%3A%2F%2Fa%2F%3Ftoken_auth%253D&x[token_auth]=&token[auth=", "token_auth=", "", "")
	const secret = "53cre7va1ue"
	f.Fuzz(func(t *testing.T, path, query, referer, agent, method string) {
		// Wherever PHP would read a token, it reads this one.
		fill := func(raw string) string {
			var b strings.Builder
			for i, pair := range strings.Split(raw, "&") {
				if i > 0 {
					b.WriteByte('&')
				}
				name, value, _ := strings.Cut(pair, "=")
				b.WriteString(pair)
				for p := range phpform.Pairs([]byte(name + "=" + secret)) {
					if string(p.Name) == "token_auth" {
						b.Reset()
						return name + "=" + secret + "&" + value
					}
				}
			}
			return b.String()
		}
		for _, s := range []string{path, query, referer, agent, method} {
			if strings.Contains(s, secret) {
				return
			}
		}
		e := accessEntry{began: time.Unix(testTime, 0), visitor: netip.MustParseAddr("2001:db8::1"), host: []byte(agent), method: method, path: []byte(path),
			query: []byte(fill(query)), protocol: "HTTP/1.1", status: 200, referer: []byte(referer + "?" + fill(query)), userAgent: []byte(agent), handled: handledProxy}
		for _, format := range []accessFormat{{}, {query: true}, {json: true}, {json: true, query: true}} {
			line, ended := strings.CutSuffix(string(format.append(nil, &e)), "\n")
			if !ended || strings.Contains(line, secret) {
				t.Errorf("got %q", line)
			}
			checkLine(t, line, format.json)
		}
	})
}
