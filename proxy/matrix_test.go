package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sluice/internal/hit"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	formType = "Content-Type: application/x-www-form-urlencoded; charset=UTF-8"
	chrome   = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
	boundary = "Content-Type: multipart/form-data; boundary=XX"
)

func part(name, value string) string {
	return "--XX\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n"
}

// matrixRows are the rows of Matomo's response matrix. Robots are used where a
// hit is taken, so that the rows can be sent to a real Matomo too.
var matrixRows = []struct {
	name, raw string
}{
	{name: "GET hit", raw: get("/matomo.php?idsite=1&rec=1&url=http%3A%2F%2Fa%2F", "User-Agent: Googlebot")},
	{name: "GET hit without an image", raw: get("/matomo.php?idsite=1&rec=1&send_image=0", "User-Agent: Googlebot")},
	{name: "GET hit with send_image 00", raw: get("/matomo.php?idsite=1&rec=1&send_image=00", "User-Agent: Googlebot")},
	{name: "GET hit with send_image as an array", raw: get("/matomo.php?idsite=1&rec=1&send_image[]=0", "User-Agent: Googlebot")},
	{name: "GET hit with an Origin", raw: get("/matomo.php?idsite=1&rec=1", "User-Agent: Googlebot", "Origin: https://shop.example")},
	{name: "GET hit at piwik.php", raw: get("/piwik.php?idsite=1&rec=1", "User-Agent: Googlebot")},
	{name: "GET hit at js/", raw: get("/js/?idsite=1&rec=1", "User-Agent: Googlebot")},
	{name: "GET hit at js/index.php", raw: get("/js/index.php?idsite=1&rec=1", "User-Agent: Googlebot")},
	{name: "GET hit behind slashes", raw: get("//matomo.php?idsite=1&rec=1", "User-Agent: Googlebot")},
	{name: "GET hit with a percent sign in the path", raw: get("/matomo%2Ephp?idsite=1&rec=1", "User-Agent: Googlebot")},
	{name: "POST hit of a form", raw: post("/matomo.php", "idsite=1&rec=1", formType, "User-Agent: Googlebot")},
	{name: "POST hit with parameters in the URL", raw: post("/matomo.php?idsite=1&rec=1", "", formType, "User-Agent: Googlebot")},
	{name: "POST hit with no length", raw: "POST /matomo.php?idsite=1&rec=1 HTTP/1.1\r\nHost: stats.example\r\nUser-Agent: Googlebot\r\n\r\n"},
	{name: "POST hit without an image", raw: post("/matomo.php?idsite=1&rec=1&send_image=0", "", formType, "User-Agent: Googlebot")},
	{name: "POST hit without an image, from an origin", raw: post("/matomo.php?idsite=1&rec=1&send_image=0", "", formType, "User-Agent: Googlebot", "Origin: https://shop.example")},
	{name: "POST hit with an empty Origin", raw: post("/matomo.php?idsite=1&rec=1", "", "Origin:", "User-Agent: Googlebot")},
	{name: "POST hit with send_image in both places", raw: post("/matomo.php?idsite=1&rec=1&send_image=1", "send_image=0", formType, "User-Agent: Googlebot")},
	{name: "POST hit of a multipart form", raw: post("/matomo.php", part("idsite", "1")+part("rec", "1")+part("send_image", "0")+"--XX--\r\n", boundary, "User-Agent: Googlebot")},
	{name: "HEAD hit", raw: strings.Replace(get("/matomo.php?idsite=1&rec=1", "User-Agent: Googlebot"), "GET", "HEAD", 1)},
	{name: "PUT hit", raw: strings.Replace(post("/matomo.php?idsite=1&rec=1", "", "User-Agent: Googlebot"), "POST", "PUT", 1)},
	{name: "DELETE hit without an image", raw: strings.Replace(get("/matomo.php?idsite=1&rec=1&send_image=0", "User-Agent: Googlebot"), "GET", "DELETE", 1)},
	{name: "OPTIONS preflight", raw: strings.Replace(get("/matomo.php", "Origin: https://a.example", "Access-Control-Request-Method: POST"), "GET", "OPTIONS", 1)},
	{name: "OPTIONS preflight with parameters", raw: strings.Replace(get("/matomo.php?idsite=1&rec=1", "Access-Control-Request-Headers: x"), "GET", "OPTIONS", 1)},
	{name: "OPTIONS hit", raw: strings.Replace(get("/matomo.php?idsite=1&rec=1", "User-Agent: Googlebot"), "GET", "OPTIONS", 1)},
	{name: "OPTIONS without anything", raw: strings.Replace(get("/matomo.php"), "GET", "OPTIONS", 1)},

	{name: "GET without parameters", raw: get("/matomo.php")},
	{name: "GET with an empty query", raw: get("/matomo.php?")},
	{name: "GET with a query of separators", raw: get("/matomo.php?&&")},
	{name: "GET with a nameless parameter", raw: get("/matomo.php?=1")},
	{name: "POST without parameters", raw: post("/matomo.php", "")},
	{name: "POST of plain text", raw: post("/matomo.php", "idsite=1&rec=1", "Content-Type: text/plain")},
	{name: "POST of JSON without requests", raw: post("/matomo.php", `{"idsite":1,"rec":1}`, "Content-Type: application/json")},
	{name: "PUT of a form", raw: strings.Replace(post("/matomo.php", "idsite=1&rec=1", formType), "POST", "PUT", 1)},

	{name: "no rec", raw: get("/matomo.php?idsite=1")},
	{name: "rec of 0, without an image", raw: get("/matomo.php?idsite=1&rec=0&send_image=0")},
	{name: "rec of a word", raw: get("/matomo.php?idsite=1&rec=yes")},
	{name: "no site", raw: get("/matomo.php?rec=1")},
	{name: "an empty site", raw: get("/matomo.php?idsite=&rec=1")},
	{name: "site 0", raw: get("/matomo.php?idsite=0&rec=1")},
	{name: "a negative site, without an image", raw: get("/matomo.php?idsite=-1&rec=1&send_image=0")},
	{name: "an absent site", raw: get("/matomo.php?idsite=99999&rec=1")},
	{name: "an absent site and no rec", raw: get("/matomo.php?idsite=99999")},
	{name: "an absent site, POST without an image", raw: post("/matomo.php?idsite=99999&rec=1&send_image=0", "")},
	{name: "an absent site, HEAD", raw: strings.Replace(get("/matomo.php?idsite=99999&rec=1"), "GET", "HEAD", 1)},
	{name: "a site too large for an integer", raw: get("/matomo.php?idsite=99999999999999999999&rec=1")},
	{name: "a site with white space", raw: get("/matomo.php?idsite=+1&rec=1", "User-Agent: Googlebot")},

	{name: "cip without a token", raw: get("/matomo.php?idsite=1&rec=1&cip=1.2.3.4")},
	{name: "cip without a token, of a bot", raw: get("/matomo.php?idsite=1&rec=1&cip=1.2.3.4", "User-Agent: Googlebot")},
	{name: "cip without a token and without rec", raw: get("/matomo.php?idsite=1&cip=1.2.3.4")},
	{name: "cip without a token, POST without an image", raw: post("/matomo.php", "idsite=1&rec=1&cip=1.2.3.4&send_image=0", formType)},
	{name: "cip of 0", raw: get("/matomo.php?idsite=1&rec=1&cip=0", "User-Agent: Googlebot")},
	{name: "cip as an array", raw: get("/matomo.php?idsite=1&rec=1&cip[]=1.2.3.4", "User-Agent: Googlebot")},
	{name: "country behind a space", raw: get("/matomo.php?idsite=1&rec=1&%20country=de")},
	{name: "city cut at a NUL", raw: get("/matomo.php?idsite=1&rec=1&city%00x=Bonn")},
	{name: "a latitude", raw: get("/matomo.php?idsite=1&rec=1&lat=1.5")},
	{name: "a longitude of 0", raw: get("/matomo.php?idsite=1&rec=1&long=0", "User-Agent: Googlebot")},
	{name: "a region of a space", raw: get("/matomo.php?idsite=1&rec=1&region=+")},
	{name: "an old cdt without a token", raw: get("/matomo.php?idsite=1&rec=1&cdt=1500000000")},
	{name: "an old cdt as a date", raw: get("/matomo.php?idsite=1&rec=1&cdt=2026-01-02+03:04:05")},
	{name: "a large cdo", raw: get("/matomo.php?idsite=1&rec=1&cdo=-86400")},
	{name: "a cdt in the far future", raw: get("/matomo.php?idsite=1&rec=1&cdt=4000000000", "User-Agent: Googlebot")},
	{name: "a cdt before all time", raw: get("/matomo.php?idsite=1&rec=1&cdt=1", "User-Agent: Googlebot")},
	{name: "a cdt that is no time", raw: get("/matomo.php?idsite=1&rec=1&cdt=whenever", "User-Agent: Googlebot")},
	{name: "a wrong token for nothing", raw: get("/matomo.php?idsite=1&rec=1&token_auth=wrong", "User-Agent: Googlebot")},

	{name: "a short cid", raw: get("/matomo.php?idsite=1&rec=1&cid=abc", chrome)},
	{name: "a short cid without an image", raw: post("/matomo.php?idsite=1&rec=1&cid=abc&send_image=0", "", chrome)},
	{name: "a short cid of a bot", raw: get("/matomo.php?idsite=1&rec=1&cid=abc", "User-Agent: Googlebot")},
	{name: "a short cid behind the opt-out cookie", raw: get("/matomo.php?idsite=1&rec=1&cid=abc", chrome, "Cookie: matomo_ignore=ignore%3DKg%3D%3D")},
	{name: "an event of spaces", raw: get("/matomo.php?idsite=1&rec=1&e_c=%20%20&e_a=play", chrome)},
	{name: "an event action of tabs", raw: get("/matomo.php?idsite=1&rec=1&e_c=video&e_a=%09", chrome)},
	{name: "a content name of spaces", raw: get("/matomo.php?idsite=1&rec=1&c_n=%20", chrome)},

	{name: "the opt-out cookie", raw: get("/matomo.php?idsite=1&rec=1", chrome, "Cookie: a=b; matomo_ignore=ignore%3DKg%3D%3D")},
	{name: "the opt-out cookie and cip", raw: get("/matomo.php?idsite=1&rec=1&cip=1.2.3.4", chrome, "Cookie: matomo_ignore=ignore%3DKg%3D%3D")},
	{name: "a prefetch", raw: get("/matomo.php?idsite=1&rec=1", chrome, "X-Moz: prefetch")},
	{name: "a preview", raw: post("/matomo.php?idsite=1&rec=1&send_image=0", "", chrome, "X-Purpose: preview")},

	{name: "bulk", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0","?idsite=2&rec=0"]}`, formType)},
	{name: "bulk by GET", raw: strings.Replace(post("/matomo.php?idsite=99999&rec=1", `{"requests":["?idsite=1&rec=0"]}`), "POST", "GET", 1)},
	{name: "bulk by PUT as multipart", raw: strings.Replace(post("/matomo.php", `{"requests":["?idsite=1&rec=0"]}`, boundary), "POST", "PUT", 1)},
	{name: "bulk without an image", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0"],"send_image":0}`, formType, "Origin: https://shop.example")},
	{name: "bulk with send_image as a string", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0"],"send_image":"0"}`)},
	{name: "bulk with send_image 0.0", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0"],"send_image":0.0}`)},
	{name: "bulk with send_image false", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0"],"send_image":false}`)},
	{name: "bulk with send_image 00", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0"],"send_image":"00"}`)},
	{name: "bulk of invalid hits", raw: post("/matomo.php", `{"requests":["?idsite=99999&rec=1","?idsite=1&rec=1&cip=1.1.1.1","?rec=1","?idsite=1&rec=0"]}`)},
	{name: "bulk of strings without a query", raw: post("/matomo.php", `{"requests":["foo","","?","?0","http:///?idsite=1","?idsite=1&rec=0"]}`)},
	{name: "bulk of an empty string query", raw: post("/matomo.php", `{"requests":["?&&"]}`)},
	{name: "bulk of objects", raw: post("/matomo.php", `{"requests":[{"idsite":1,"rec":0},{"idsite":"1","rec":"0"},{"idsite":99999,"rec":1}]}`)},
	{name: "bulk of empty things", raw: post("/matomo.php", `{"requests":[{},[],null,5,true,1.5]}`)},
	{name: "bulk of lists", raw: post("/matomo.php", `{"requests":[["idsite",1],[[]]]}`)},
	{name: "bulk as an object", raw: post("/matomo.php", `{"requests":{"a":"?idsite=1&rec=0","b":"?idsite=99999","a":"?idsite=99999"}}`)},
	{name: "bulk of objects with privileged values", raw: post("/matomo.php", `{"requests":[{"idsite":1,"rec":0,"country":"de"},{"idsite":1,"rec":0,"country":["de"]},{"idsite":1,"rec":0,"lat":1.5},{"idsite":1,"rec":0,"lat":0},{"idsite":1,"rec":0,"lat":-0.0},{"idsite":1,"rec":0,"lat":0.0},{"idsite":1,"rec":0,"city":true},{"idsite":1,"rec":0,"c\u0069p":"1.1.1.1"},{"idsite":1,"rec":0," cip":"1.1.1.1"},{"idsite":1,"rec":0,"cip":"1.1.1.1","cip":""}]}`)},
	{name: "bulk with no requests", raw: post("/matomo.php", `{"requests":[]}`)},
	{name: "bulk with requests as a string", raw: post("/matomo.php", `{"requests":"?idsite=1"}`)},
	{name: "bulk with requests deeper", raw: post("/matomo.php", `{"a":{"requests":["?idsite=1"]}}`)},
	{name: "bulk in a list", raw: post("/matomo.php", `[{"requests":["?idsite=1"]}]`)},
	{name: "bulk in a JSON string", raw: post("/matomo.php", `"x\"requests\""`)},
	{name: "bulk with requests twice", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0"],"requests":["?idsite=1&rec=0","?idsite=99999"]}`)},
	{name: "bulk with line breaks", raw: post("/matomo.php", "{\"requests\":[\n\"?idsite=1&re\nc=0\",\r\n\"?idsite=1&rec=0\"]}\n")},
	{name: "bulk with white space and a NUL around", raw: post("/matomo.php", "\x00 \t{\"requests\":[\"?idsite=1&rec=0\"]} \x0b\x00")},
	{name: "truncated bulk", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=1"`)},
	{name: "truncated bulk with send_image 0 in the URL", raw: post("/matomo.php?send_image=0", `{"requests":["?idsite=1&rec=1"`)},
	{name: "bulk in single quotes", raw: post("/matomo.php", `{'requests':['?idsite=1&rec=1']}`)},
	{name: "bulk behind a byte order mark", raw: post("/matomo.php", "\ufeff{\"requests\":[\"?idsite=1&rec=1\"]}")},
	{name: "bulk with invalid UTF-8", raw: post("/matomo.php", "{\"requests\":[\"?idsite=1&rec=1&action_name=\xe9\"]}")},
	{name: "bulk with a lone surrogate", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=1&action_name=\ud83d"]}`)},
	{name: "bulk with a trailing comma", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=1",]}`)},
	{name: "requests at the beginning", raw: post("/matomo.php", `"requests":["?idsite=1&rec=1"]`, "Content-Type: text/plain")},
	{name: "a form that contains the word", raw: post("/matomo.php", `idsite=1&rec=1&a="requests"`, formType)},
	{name: "multipart that contains the word", raw: post("/matomo.php", part("idsite", "1")+part("rec", "0")+part("x", `"requests"`)+"--XX--\r\n", boundary)},
	{name: "bulk with a wrong token", raw: post("/matomo.php", `{"requests":["?idsite=1&rec=0"],"token_auth":""}`)},
}

// TestMatrix gives every row to both ways in and compares what comes back, and
// what was stored, with the golden file.
func TestMatrix(t *testing.T) {
	r := newRig(t, nil)
	var out strings.Builder
	for _, row := range matrixRows {
		fast := r.exchange(t, row.raw)
		stored := describe(r.queue.take())
		library := r.exchangeByLibrary(t, row.raw)
		storedByLibrary := describe(r.queue.take())
		if f, l := sorted(fast), sorted(library); f != l {
			t.Errorf("%s: the fast path answers\n%s\nand net/http\n%s", row.name, f, l)
		}
		if stored != storedByLibrary {
			t.Errorf("%s: the fast path stores\n%s\nand net/http\n%s", row.name, stored, storedByLibrary)
		}
		second := r.exchangeHTTP2(t, row.raw)
		storedByHTTP2 := describe(r.queue.take())
		if f := summary(fast); f != second {
			t.Errorf("%s: HTTP/1.1 answers\n%s\nand HTTP/2\n%s", row.name, f, second)
		}
		if stored != storedByHTTP2 {
			t.Errorf("%s: HTTP/1.1 stores\n%s\nand HTTP/2\n%s", row.name, stored, storedByHTTP2)
		}
		fmt.Fprintf(&out, "== %s\n%s\n%s\n", row.name, printable(fast), stored)
	}
	golden(t, "testdata/matrix.golden", out.String())
}

// TestMatrixAgainstMatomo sends the rows to a real Matomo when the environment
// names one. Its site 1 must exist, and 99999 must not.
func TestMatrixAgainstMatomo(t *testing.T) {
	real := os.Getenv("SLUICE_TEST_MATOMO")
	if real == "" {
		t.Skip("SLUICE_TEST_MATOMO does not name a Matomo")
	}
	matomo, err := url.Parse(real)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.Now = nil })
	for _, row := range matrixRows {
		ours := r.exchange(t, row.raw)
		conn, err := net.Dial("tcp", matomo.Host)
		if err != nil {
			t.Fatal(err)
		}
		raw := strings.Replace(row.raw, "Host: stats.example\r\n", "Host: "+matomo.Host+"\r\nConnection: close\r\n", 1)
		if _, err := io.WriteString(conn, raw); err != nil {
			t.Fatal(err)
		}
		method, _, _ := strings.Cut(row.raw, " ")
		res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		conn.Close()
		theirs := summarize(res.StatusCode, res.Header, string(body))
		if s := summary(ours); s != theirs {
			t.Errorf("%s: we answer\n%s\nMatomo\n%s", row.name, s, theirs)
		}
	}
}

// exchangeByLibrary makes net/http answer, by a first request that the fast path
// declines.
func (r *rig) exchangeByLibrary(t testing.TB, raw string) rawAnswer {
	t.Helper()
	conn := r.dial(t)
	defer conn.Close()
	reader := bufio.NewReader(conn)
	if _, err := io.WriteString(conn, get("/-/livez")); err != nil {
		t.Fatal(err)
	}
	if _, err := readAnswer(reader, "GET"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(raw, " ")
	a, err := readAnswer(reader, method)
	if err != nil {
		t.Fatalf("read answer to %.60q: %v", raw, err)
	}
	return a
}

// exchangeHTTP2 sends the same request over HTTP/2 and sums up the answer.
func (r *rig) exchangeHTTP2(t testing.TB, raw string) string {
	t.Helper()
	secure, _ := r.Addrs()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", secure.String())
		},
	}}
	defer client.CloseIdleConnections()
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	first := strings.Split(lines[0], " ")
	req, err := http.NewRequestWithContext(t.Context(), first[0], "https://stats.example/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = nil, 0
	}
	if req.URL, err = url.ParseRequestURI("/" + strings.TrimLeft(first[1], "/")); err != nil {
		t.Fatal(err)
	}
	req.URL.Scheme, req.URL.Host = "https", "stats.example"
	req.Header.Set("User-Agent", "")
	for _, line := range lines[2:] {
		name, value, _ := strings.Cut(line, ":")
		if name != "Content-Length" {
			req.Header.Set(name, strings.TrimSpace(value))
		}
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 {
		t.Fatalf("spoke %s, want HTTP/2", res.Proto)
	}
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return summarize(res.StatusCode, res.Header, string(answer))
}

// matrixHeaders are those that Matomo itself decides.
var matrixHeaders = []string{"Content-Type", "Cache-Control", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials",
	"Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Set-Cookie", "Vary"}

func summarize(status int, h http.Header, body string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d\n", status)
	for _, name := range matrixHeaders {
		for _, v := range h[name] {
			fmt.Fprintf(&b, "%s: %s\n", name, v)
		}
	}
	fmt.Fprintf(&b, "%q", body)
	return b.String()
}

func summary(a rawAnswer) string {
	h := make(http.Header)
	for _, l := range a.lines {
		name, value, _ := strings.Cut(l, ":")
		h.Add(name, strings.TrimSpace(value))
	}
	status, _ := strconv.Atoi(strings.Fields(a.status)[1])
	return summarize(status, h, a.body)
}

func sorted(a rawAnswer) string {
	a.lines = slices.Clone(a.lines)
	slices.Sort(a.lines)
	return printable(a)
}

func printable(a rawAnswer) string {
	body := strconv.Quote(a.body)
	body = strings.Replace(body, strconv.Quote(info)[1:len(strconv.Quote(info))-1], "<INFO>", 1)
	body = strings.Replace(body, strconv.Quote(gif)[1:len(strconv.Quote(gif))-1], "<GIF>", 1)
	return a.status + "\n" + strings.Join(a.lines, "\n") + "\n" + body
}

// describe writes down what was stored, one line a hit.
func describe(sets []hit.RequestSet) string {
	var b strings.Builder
	for _, s := range sets {
		for _, h := range s.Hits {
			form, rights := "query", "ours"
			if h.Form == hit.Object {
				form = "object"
			}
			if h.Rights == hit.Theirs {
				rights = "theirs"
			}
			fmt.Fprintf(&b, "stored %s %s site=%d at=%+d token=%q %q\n", form, rights, h.Site, h.At-testTime, h.Token, h.Params)
		}
	}
	return b.String()
}

// golden compares with a file, or writes it when asked to.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (run the test with -update to write it)", err)
	}
	if got == string(want) {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		if i >= len(gotLines) || i >= len(wantLines) || gotLines[i] != wantLines[i] {
			t.Fatalf("%s differs at line %d:\ngot  %q\nwant %q", file, i+1,
				strings.Join(gotLines[min(i, len(gotLines)):min(i+3, len(gotLines))], "\n"),
				strings.Join(wantLines[min(i, len(wantLines)):min(i+3, len(wantLines))], "\n"))
		}
	}
}
