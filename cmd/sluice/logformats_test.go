package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"sluice/internal/accesslog"
	"sluice/internal/testkit"
)

// Parts of lines: the request line, and what a log has that splits it.
const (
	loggedQuery   = "idsite=1&rec=1&tkmark=MARK"
	loggedRequest = "GET /matomo.php?" + loggedQuery + " HTTP/1.1"
)

// TestImportOfEachFormat: what each server writes of one request comes to Matomo as the
// request, from a plain file or a compressed one.
func TestImportOfEachFormat(t *testing.T) {
	const (
		combined = `192.0.2.7 - - [01/Mar/2026:12:00:01 +0000] "` + loggedRequest + `" 200 43 "-" "Agent/1 (x; y)"` + "\n"
		agent    = "Agent/1 (x; y)"
		language = "de-ch,de"
		haproxy  = `192.0.2.7:2817 [01/Mar/2026:13:00:01.250] in~ b/s 0/0/0/0/2500 200 124 - - ---- 1/1/0/0/0 0/0 {|} "` + loggedRequest + `"` + "\n"
	)
	tests := []struct {
		mark   string // and the file's name
		flag   string
		pack   func(testing.TB, string) string
		text   string // MARK stands for the mark
		format string
		// what arrives; the time is the first of March 2026
		at, ip, agent, language string
	}{
		{"common", "", plain, `192.0.2.7 - - [01/Mar/2026:17:30:01 +0530] "` + loggedRequest + "\" 200 43\n", "common", "12:00:01", "192.0.2.7", "", ""},
		{"common-vhost", "", plain, `s.example:443 2001:db8::7 - - [01/Mar/2026:12:00:01 +0000] "` + loggedRequest + "\" 200 43\n", "common-vhost", "12:00:01", "2001:db8::7", "", ""},
		{"combined", "", plain, combined, "combined", "12:00:01", "192.0.2.7", agent, ""},
		{"combined-vhost", "", plain, "s.example " + combined, "combined-vhost", "12:00:01", "192.0.2.7", agent, ""},
		{"nginx-main", "", plain, strings.TrimSuffix(combined, "\n") + ` "203.0.113.9"` + "\n", "nginx-main", "12:00:01", "203.0.113.9", agent, ""},
		{"nginx-format", `--nginx-format=$remote_addr [$msec] "$request" $status "$http_referer" "$http_user_agent" "$http_accept_language" $request_time`, plain,
			`192.0.2.7 [1772366403.600] "` + loggedRequest + `" 200 "-" "Agent \x22q\x22" "de-CH,de;q=0.9" 2.500` + "\n", "nginx format", "12:00:01", "192.0.2.7", `Agent "q"`, language},
		{"nginx-body", `--nginx-format=$remote_addr [$time_local] "$request" $status "$request_body"`, plain,
			`192.0.2.7 [01/Mar/2026:12:00:01 +0000] "POST /matomo.php HTTP/1.1" 204 "` + loggedQuery + "\"\n", "nginx format", "12:00:01", "192.0.2.7", "", ""},
		{"nginx-json", "", plain, `{"time":"2026-03-01T12:00:04+00:00","remote_addr":"192.0.2.7","request":"` + loggedRequest + `","status":"200","request_time":"3.0","http_user_agent":"Agent \"q\"","http_accept_language":"de-CH,de;q=0.9"}` + "\n",
			"nginx-json", "12:00:01", "192.0.2.7", `Agent "q"`, language},
		{"nginx-json-body", "--format=nginx-json", plain, `{"time":"2026-03-01T12:00:01+00:00","remote_addr":"192.0.2.7","request":"POST /matomo.php HTTP/1.1","status":"204","request_body":"` + loggedQuery + "\"}\n", "nginx-json", "12:00:01", "192.0.2.7", "", ""},
		{"apache-format", `--apache-format=LogFormat "%a %{%Y-%m-%dT%H:%M:%S%z}t \"%r\" %>s \"%{User-Agent}i\" \"%{Accept-Language}i\" %D" mine`, plain,
			`192.0.2.7 2026-03-01T13:00:01+0100 "` + loggedRequest + `" 200 "Agent/1 (x; y)" "de-CH,de;q=0.9" 2500000` + "\n", "Apache format", "12:00:01", "192.0.2.7", agent, language},
		{"caddy", "", plain, `{"level":"info","ts":1772366403.5,"logger":"http.log.access","msg":"handled request","request":{"remote_ip":"192.0.2.7","proto":"HTTP/2.0","method":"GET","host":"s.example","uri":"/matomo.php?` + strings.ReplaceAll(loggedQuery, "&", `\u0026`) +
			`","headers":{"User-Agent":["Agent/1 (x; y)"],"Accept-Language":["de-CH,de;q=0.9"]}},"duration":2.25,"status":200}` + "\n", "caddy", "12:00:01", "192.0.2.7", agent, language},
		{"haproxy", "--timezone=Europe/Berlin", plain, haproxy, "haproxy", "12:00:01", "192.0.2.7", "", ""},
		{"haproxy-syslog", "--timezone=Europe/Berlin", plain, "Mar  1 13:00:04 edge1 haproxy[6427]: " + haproxy, "haproxy", "12:00:01", "192.0.2.7", "", ""},
		{"iis", "", plain, "\xef\xbb\xbf#Software: Microsoft Internet Information Services 10.0\r\n#Fields: date time cs-method cs-uri-stem\r\n2026-03-01 11:00:00 GET /\r\n" +
			"#Fields: date time cs-method cs-uri-stem cs-uri-query c-ip cs(User-Agent) cs(Accept-Language) sc-status time-taken\r\n2026-03-01 12:00:03 GET /matomo.php " + loggedQuery + " 192.0.2.7 Agent/1+(x;+y) de-CH,de;q=0.9 200 2000\r\n",
			"iis", "12:00:01", "192.0.2.7", agent, language},
		{"alb", "", plain, `https 2026-03-01T12:00:03.250000Z app/m/0123 192.0.2.7:2817 192.0.2.20:80 0.001 2.000 0.000 200 200 512 843 "GET https://s.example:443/matomo.php?` + loggedQuery +
			` HTTP/1.1" "Agent/1 (x; y)" ECDHE TLSv1.2 arn:x "Root=1-5" "s.example" "arn:y" 0 2026-03-01T12:00:01.100000Z "forward" "-" "-" "192.0.2.20:80" "200" "-" "-"` + "\n", "alb", "12:00:01", "192.0.2.7", agent, ""},
		{"cloudfront", "", zipped, "#Version: 1.0\n#Fields: date time c-ip cs-method cs-uri-stem cs-uri-query sc-status cs(User-Agent) time-taken\n2026-03-01\t12:00:03\t192.0.2.7\tGET\t/matomo.php\t" + loggedQuery + "\t200\tAgent/1%20(x;%20y)\t2.0\n",
			"cloudfront", "12:00:01", "192.0.2.7", agent, ""},
		{"sluice", "", plain, `{"time":"2026-03-01T12:00:01.250Z","remote":"192.0.2.7","host":"s.example","method":"GET","path":"/matomo.php","query":"` + loggedQuery +
			`","proto":"HTTP/1.1","status":503,"bytes":0,"duration":0.1,"user_agent":"Agent/1 (x; y)","handled":"tracking","hits":0}` + "\n", "sluice", "12:00:01", "192.0.2.7", agent, ""},
		{"gzip-under-another-name.log", "", zipped, combined, "combined", "12:00:01", "192.0.2.7", agent, ""},
		{"gzip-of-two-members.gz", "", func(t testing.TB, s string) string { return zipped(t, s[:40]) + zipped(t, s[40:]) }, combined, "combined", "12:00:01", "192.0.2.7", agent, ""},
		{"zstd.zst", "", zstandard, combined, "combined", "12:00:01", "192.0.2.7", agent, ""},
		{"bzip2", "", func(testing.TB, string) string { return bzipped }, combined, "combined", "12:00:00", "192.0.2.7", agent, ""},
	}
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	s := startServer(t, filepath.Join(t.TempDir(), "data"), m.Serve(t), "--matomo.token-file="+file(t, "token", testkit.SuperToken, 0o600), "--proxy.trusted=192.0.2.7/32")
	dir := t.TempDir()
	paths := map[string][]string{} // by flags, of which each wants an import of its own
	formats := map[string]string{} // by path
	missing := accesslog.Names()
	for _, tt := range tests {
		path := writeLog(t, filepath.Join(dir, tt.mark), tt.pack(t, strings.ReplaceAll(tt.text, "MARK", tt.mark)))
		paths[tt.flag] = append(paths[tt.flag], path)
		formats[path] = tt.format
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == tt.format })
	}
	if len(missing) > 0 {
		t.Errorf("no row has the formats %q", missing)
	}
	for flag, files := range paths {
		args := append([]string{"--allow-late"}, files...)
		if flag != "" {
			args = append(args, flag)
		}
		sum, _ := s.importing(exitOK, args...)
		if sum.Hits != int64(len(files)) || len(sum.Files) != len(files) {
			t.Errorf("%s: %+v", flag, sum)
		}
		for _, f := range sum.Files {
			if f.Format != formats[f.Name] {
				t.Errorf("%s was read as %s, want %s", f.Name, f.Format, formats[f.Name])
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := m.WaitRecorded(ctx, int64(len(tests))); err != nil {
		t.Error(err)
	}
	got := map[string]string{}
	for _, h := range m.Recorded() {
		got[h.Mark] = fmt.Sprintf("%s %s %q %q", time.Unix(h.Time, 0).UTC().Format(time.DateTime), h.IP, h.UserAgent, h.Language)
	}
	for _, tt := range tests {
		if want := fmt.Sprintf("2026-03-01 %s %s %q %q", tt.at, tt.ip, tt.agent, tt.language); got[tt.mark] != want {
			t.Errorf("%s: %s arrived, want %s", tt.mark, got[tt.mark], want)
		}
	}
}

func plain(_ testing.TB, text string) string { return text }

func zipped(t testing.TB, text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zstandard(t testing.TB, text string) string {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(z.EncodeAll([]byte(text), nil))
}

// bzipped is a line of the combined format, with the mark bzip2; no Go writes such files.
var bzipped = func() string {
	b, err := base64.StdEncoding.DecodeString("QlpoOTFBWSZTWTSPr5IAAB3fgEAQUWv9uqLCRAo+69xwIAB0Mnqb1PSTNNTCY0jZTAIyPJkM2k9Q0DQDQAAAAGROFZxfbqVF4UOFM2QEg9AhlhMXjy3tUyxEBOuWNO8RlFL3V8UMUWMpTJCMQgfU3b6uSvQhjp0JqGPxjyDsUle827nCWmjIx4JGqYsjXCANQ7kXckU4UJA0j6+S")
	if err != nil {
		panic(err)
	}
	return string(b)
}()
